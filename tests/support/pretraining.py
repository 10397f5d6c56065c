# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Runs of the pretraining program: their recipes, what of them must be exact, and how they are cut back to a checkpoint."""

import shutil
import time
from contextlib import suppress
from pathlib import Path

import psutil
import yaml
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from luna_tools.command_line import run
from pretraining import checkpoint as ckpt
from pretraining.metrics import read_metrics

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
# A small causal model of another architecture, without dropout, for the vocabulary of the tests' dataset.
GPT2 = {"model_type": "gpt2", "vocab_size": 600, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 34}
GPT2 |= {"bos_token_id": 0, "eos_token_id": 2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


def write_recipe(values: dict, output: Path, **changes) -> Path:
    """Write a recipe beside the folder that its run writes to."""
    path = output.parent / f"{output.name}.yaml"
    path.write_text(yaml.safe_dump(values | changes | {"output_dir": str(output)}), encoding="utf-8")
    return path


def pretrain(*argv) -> int:
    """Run the program in this process, each run a launch of its own. Returns its exit status."""
    AcceleratorState._reset_state(reset_partial_state=True)
    return run("pretrain", [str(token) for token in argv])


def errors(text: str) -> list[str]:
    """Find the sentences that tell errors; a traceback is none."""
    assert "Traceback" not in text, text
    return [line for line in text.splitlines() if line.startswith("error: ")]


def error(text: str) -> str:
    """Find the one sentence that tells an error."""
    found = errors(text)
    assert len(found) == 1, text
    return found[0]


def exact_rows(output: Path) -> list[dict]:
    """Read everything in the metrics that must be exact: all but the speed."""
    rows = read_metrics(Path(output) / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name not in ("tokens_per_second", "data_wait")} for row in rows]


def curve(output: Path) -> list[float]:
    """Read losses, gradient norms and evaluations in their order."""
    return [row[name] for row in exact_rows(output) for name in ("loss", "grad_norm", "eval_loss") if name in row]


def weights(output: Path) -> bytes:
    """Read the final weights."""
    return (output / "model" / "model.safetensors").read_bytes()


def is_same_run(a: Path, b: Path) -> bool:
    """Tell whether all figures and the final weights of two runs have the same bits."""
    return exact_rows(a) == exact_rows(b) and weights(a) == weights(b)


def weight_difference(a: Path, b: Path, file: str = "model/model.safetensors") -> float:
    """Return the largest difference of two runs' tensors; infinite where they have other names."""
    a, b = load_file(a / file), load_file(b / file)
    if a.keys() != b.keys():
        return float("inf")
    return max((a[name] - b[name]).abs().max().item() for name in a)


def cut_back(output: Path, step: int, copy: Path) -> Path:
    """Copy a run as it was after `step`."""
    shutil.copytree(output, copy)
    (copy / "results.json").unlink(missing_ok=True)
    for checkpoint in ckpt.checkpoints(copy / "checkpoints"):
        if ckpt.checkpoint_step(checkpoint) > step:
            shutil.rmtree(checkpoint)
    return copy


def left_alive(processes: list[psutil.Process], seconds: float = 30) -> list[psutil.Process]:
    """Wait for processes to end, reaped or not. Returns those that have not."""
    deadline = time.monotonic() + seconds
    while True:
        alive = []
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                alive += [process] if process.status() != psutil.STATUS_ZOMBIE else []
        if not alive or time.monotonic() > deadline:
            return alive
        time.sleep(0.05)


def last_checkpoint(output: Path) -> int:
    """Return the step of the newest checkpoint, which is whole."""
    newest = ckpt.checkpoints(output / "checkpoints")[-1]
    ckpt.verify_checkpoint(newest)
    return ckpt.checkpoint_step(newest)
