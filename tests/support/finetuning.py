# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Tiny checkpoints of several architectures, and runs of the real fine-tuning program that take a second."""

import json
from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate.state import AcceleratorState
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer, T5EncoderModel

from finetuning.arguments import parse
from finetuning.finetune import finetune
from finetuning.tasks import TASKS
from luna_tools.command_line import run
from tests.support.published_files import write_published, write_tokenizer

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
SIZES |= {"initializer_range": 0.1}  # far from where all inputs look alike
ARCHITECTURES = {
    "luna": {"projection_length": 4, "max_position_embeddings": 98},
    "roberta": {"max_position_embeddings": 98, "type_vocab_size": 1},
    "modernbert": {"max_position_embeddings": 96, "cls_token_id": 0, "sep_token_id": 2},
}
OTHERS = {  # with the class of their pretrained checkpoints
    "gpt2": (AutoModelForCausalLM, {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 96, "pad_token_id": None}),
    "t5": (T5EncoderModel, {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "pad_token_id": 1}),
    "vit": (AutoModel, {"image_size": 8, "patch_size": 4}),
}
FAST = {
    "recipe": "none",
    "num_train_epochs": 2,
    "per_device_train_batch_size": 8,
    "learning_rate": 1e-3,
    "max_sequence_length": 96,
    "use_cpu": True,
    "disable_tqdm": True,
}


def write_checkpoint(folder, architecture="luna", seed=0, **changes):
    """A pretrained checkpoint with random weights and its tokenizer."""
    write_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    special = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": 0, "eos_token_id": 2}
    values = {"vocab_size": len(tokenizer)} | special | SIZES | ARCHITECTURES[architecture] | changes
    torch.manual_seed(seed)
    config = AutoConfig.for_model(architecture, **values)
    AutoModelForMaskedLM.from_config(config).save_pretrained(folder)
    return folder


def write_other(folder, architecture):
    """A checkpoint of `OTHERS` with a tokenizer; GPT-2's has no pad token."""
    write_tokenizer(folder)
    auto_class, sizes = OTHERS[architecture]
    text = {} if architecture == "vit" else {"vocab_size": len(AutoTokenizer.from_pretrained(folder)), "eos_token_id": 2}
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **(SIZES if architecture == "vit" else {}) | text | sizes)
    make = getattr(auto_class, "from_config", auto_class)
    make(config).save_pretrained(folder)
    if architecture == "gpt2":
        change_json(folder / "tokenizer_config.json", pad_token=None)
    return folder


def change_json(path, **changes):
    """Set some values of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def write_rows(path, rows):
    """Write a user's file in the format of its suffix; lists are words with spaces between where there are no lists."""
    words = [[" ".join(value) if isinstance(value, list) else str(value) for value in row.values()] for row in rows]
    table = [list(rows[0]), *words]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix in (".jsonl", ".json"):
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    elif path.suffix == ".tsv":
        path.write_text("\n".join(map("\t".join, table)))
    else:
        quoted = [",".join('"' + value.replace('"', '""') + '"' for value in row) for row in table]
        path.write_bytes("\r\n".join(quoted).encode("utf-8-sig"))
    return path


@cache
def published(task_name, form, base, rows=32):
    """The folder with a task's published files below the session's folder `base`; written once."""
    folder = Path(base) / f"{task_name}-{form}-{rows}"
    write_published(task_name, folder, form, rows=rows)
    return folder


def to_options(**values):
    """Option values as the command line spells them."""
    tokens = []
    for name, value in values.items():
        if isinstance(value, list | tuple):
            tokens += [f"--{name}", *map(str, value)]
        elif value is not None:
            tokens += [f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return tokens


def arguments_of(task_name, **values):
    if "multiple_choice" in (values.get("kind"), task_name in TASKS and TASKS[task_name].kind):
        values = {"max_option_length": 40} | values
    return parse(task_name, to_options(**(FAST | values)))


def run_task(task_name, **values):
    """One run in this process, as a launch of its own; returns its results."""
    AcceleratorState._reset_state(reset_partial_state=True)
    return finetune(arguments_of(task_name, **values))


def run_main(*argv):
    """The command line in this process, as a launch of its own; returns the exit status."""
    AcceleratorState._reset_state(reset_partial_state=True)
    return run("finetune", [str(token) for token in argv])


def read_lines(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def read_results(folder):
    return json.loads((Path(folder) / "all_results.json").read_text(encoding="utf-8"))


def outcome(folder):
    """Everything of a finished run that must be exact: results, weights, predictions and submission."""
    folder = Path(folder)
    paths = sorted(
        path for pattern in ("model.safetensors", "predictions_*.jsonl", "submission.zip") for path in folder.glob(pattern)
    )
    return {"results": read_results(folder), **{path.name: path.read_bytes() for path in paths}}
