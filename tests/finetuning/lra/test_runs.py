# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""New models are made by the recipe's values, trained by the program, evaluated and used again."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from finetuning.arguments import RECIPES, parse
from finetuning.lra import self_pretrain
from finetuning.lra.self_pretrain import masking_collator
from finetuning.model import load_config, load_model
from finetuning.tasks import TASKS
from finetuning.tasks.lra import LRA_TASKS
from luna_tools.command_line import run
from tests.support.finetuning import read_lines, read_results, run_main, to_options
from tests.support.published_files import write_published

# Learning rate, dropout, attention dropout (Table 7), layers, d, heads, ffn, the head's hidden layer, positions, batch,
# updates, warm-up, weight decay, representation; of the official commands where those differ.
PAPER = {
    "listops": (1e-4, 0.1, 0.1, 6, 512, 8, 2048, 2048, 2001, 32, 5000, 1000, 1e-4, "cls"),
    "text": (5e-5, 0.3, 0.3, 4, 256, 4, 1024, 1024, 4002, 32, 20_000, 8000, 1e-4, "cls"),
    "retrieval": (5e-5, 0.1, 0.1, 4, 128, 4, 512, 512, 4002, 32, 20_000, 8000, 1e-4, "cls"),
    "image": (5e-3, 0.1, 0.3, 1, 64, 8, 128, 128, 1024, 256, 35_000, 4000, 0.0, "cls"),
    "pathfinder32": (1e-3, 0.2, 0.1, 1, 128, 4, 128, 256, 1026, 256, 62_500, 4000, 0.0, "mean"),
    "pathfinder128": (1e-3, 0.2, 0.1, 1, 128, 4, 128, 256, 16_386, 256, 62_500, 4000, 0.0, "mean"),
}
OFFICIAL = PAPER | {
    "listops": (1e-4, 0.1, 0.1, 1, *PAPER["listops"][4:]),
    "retrieval": (5e-4, *PAPER["retrieval"][1:]),
    "image": (5e-3, 0.3, 0.1, *PAPER["image"][3:]),
}
ROWS = [(recipe, name, table[name]) for recipe, table in (("paper", PAPER), ("official", OFFICIAL)) for name in table]


@pytest.mark.parametrize(("recipe", "name", "row"), ROWS)
def test_a_recipe_has_the_published_numbers(recipe, name, row):
    arguments = parse(name, ["--recipe", recipe, "--model.projection_length", "128"])
    config, run, training = load_config(arguments), arguments.run, arguments.training
    found = (training.learning_rate, config.hidden_dropout_prob, config.attention_probs_dropout_prob)
    found += (config.num_hidden_layers, config.hidden_size, config.num_attention_heads, config.intermediate_size)
    found += (config.classifier_hidden_size, config.max_sequence_length, run.total_train_batch_size, training.max_steps)
    assert (*found, training.warmup_steps, training.weight_decay, config.classifier_pooling) == row
    assert (config.model_type, config.projection_length, config.tie_key_value) == ("luna", 128, False)
    assert config.share_layer_weights == (name == "listops")
    assert config.classifier_pair == ("concat" if name == "retrieval" else None)
    assert (config.hidden_act, config.classifier_act, config.classifier_bias) == ("gelu", "relu", False)
    assert (config.classifier_dropout, config.activation_dropout, config.dynamic_projection) == (0.0, 0.0, True)
    assert (training.lr_scheduler_type, training.max_grad_norm) == ("inverse_sqrt", 0)
    assert (training.adam_beta1, training.adam_beta2, training.adam_epsilon) == (0.9, 0.98, 1e-8)
    assert arguments.data.max_sequence_length <= config.max_sequence_length
    if recipe == "paper":
        assert parse(name, []).training == training  # the default
    # The Transformer of the same size.
    other = load_config(parse(name, ["--recipe", recipe, "--model_type", "transformer"]))
    for field in ("hidden_size", "num_hidden_layers", "classifier_hidden_size", "classifier_pooling", "hidden_dropout_prob"):
        assert getattr(other, field) == getattr(config, field)
    assert other.vocab_size == config.vocab_size == len(TASKS[name].make_tokenizer())


def test_listops_without_brackets_has_the_recipes_of_listops():
    assert TASKS["listops-no-brackets"].recipes == TASKS["listops"].recipes
    assert all((RECIPES / file).is_file() for task in LRA_TASKS for file in task.recipes)


def test_fields_that_the_transformer_leaves_out_are_told(caplog):
    load_config(parse("listops", ["--model_type", "transformer"]))
    assert "A transformer has no " in caplog.text and "share_layer_weights" in caplog.text


def test_the_transformer_is_of_luna_s_size():
    """It has no P and no projections of P: per layer the tied or untied pack projections less."""
    sizes = {}
    for model_type in ("luna", "transformer"):
        arguments = parse("listops", ["--recipe", "official", "--model_type", model_type])
        with torch.device("meta"):
            sizes[model_type] = load_model(load_config(arguments), TASKS["listops"], arguments).num_parameters()
    d = 512
    packing = 3 * (d * d + d) + 2 * d + 16 * d + 2 * d  # queries, keys and values of the pack; norms of P; P
    # RoBERTa has one token type more.
    assert sizes["luna"] - sizes["transformer"] == packing - d


TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
VALUES = {f"model.{name}": value for name, value in TINY.items()}
VALUES |= {"recipe": "paper", "per_device_train_batch_size": 8, "total_train_batch_size": 8, "max_steps": 4, "eval_steps": 2}
VALUES |= {"save_steps": 2, "use_cpu": True, "disable_tqdm": True, "learning_rate": 1e-3}


def options_of(name, tmp_path, **changes):
    write_published(name, tmp_path / "data", "original", rows=20)
    return VALUES | {"data_dir": tmp_path / "data", "output_dir": tmp_path / "run"} | changes


@pytest.mark.parametrize("model_type", ["luna", "transformer"])
@pytest.mark.parametrize("name", ["listops", "text", "retrieval", "image", "pathfinder32"])
def test_a_run(name, model_type, tmp_path):
    """Trained, evaluated in between, tested, and evaluated again from its folder with the same result."""
    options = options_of(name, tmp_path, model_type=model_type)
    assert run_main(name, *to_options(**options)) == 0
    results = read_results(tmp_path / "run")
    log = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in log if "eval_accuracy" in entry] == [2, 4]
    assert ("test_accuracy" in results) == (name != "text")
    timing = json.loads((tmp_path / "run" / "timing.json").read_text())
    assert timing["steps"] == 4 and timing["seconds_per_step"] > 0 and timing["device"].startswith("CPU, ")
    described = json.loads((tmp_path / "run" / "run.json").read_text())
    assert described["recipe"] == "paper" and described["model"]["hidden_size"] == 16 and "model" in described["given"]
    assert not (tmp_path / "run" / "submission.zip").exists()
    config = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run").config
    assert (config.model_type, config.hidden_size) == (model_type, 16)
    lines = read_lines(tmp_path / "run" / "predictions_validation.jsonl")
    assert all({"index", "prediction", "label"} <= set(line) for line in lines)

    again = {"data_dir": options["data_dir"], "model_name_or_path": tmp_path / "run", "output_dir": tmp_path / "again"}
    assert run_main(name, *to_options(**again, use_cpu=True), "--no_do_train") == 0
    assert read_results(tmp_path / "again")["eval_accuracy"] == results["eval_accuracy"]


def test_five_seeds_by_one_command(tmp_path, capsys):
    options = options_of("listops", tmp_path, num_seeds=2, do_predict=False)
    assert run_main("listops", *to_options(**options)) == 0
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["seed_42", "seed_43", "sweep.json", "sweep.md"]
    assert "Over 2 seed(s)" in capsys.readouterr().out


WRONG = [
    ("listops --model.hiden_size 4", "`model.hiden_size` is 4, but luna has no such field: correct it"),
    ("listops --model.num_attention_heads 5", "`model_type` luna cannot be built with these fields .*: correct"),
    ("listops --model_type lunar", "`model_type` lunar cannot be built with these fields"),
    ("listops --model_type luna --model_name_or_path m", "`model_type` was given beside `model_name_or_path` m: leave one"),
    ("sst2 --model_type luna", "`model_type` was given, but only the tasks of the Long Range Arena start from a new mod"),
    ("listops --recipe none", "Give a checkpoint with --model_name_or_path"),
    (
        "listops --no_do_train",
        "There is no checkpoint to predict listops with: give",
    ),
    ("listops --model_type transformer --classifier_pooling packed_mean", "which transformer refuses"),
    ("image --max_sequence_length 1000", "is 1000, but the pictures of Image have 1024 pixels"),
]


@pytest.mark.parametrize(("command", "expected"), WRONG)
def test_wrong_options(command, expected, tmp_path, capsys):
    name, *options = command.split()
    if name != "sst2":
        write_published(name, tmp_path / "data", "original", rows=20)
        options += ["--data_dir", str(tmp_path / "data")]
    assert run_main(name, *options, "--output_dir", str(tmp_path / "run"), "--use_cpu") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert re.search(expected, line), line


def test_group_by_length_reads_the_lengths(tmp_path):
    options = options_of("text", tmp_path, group_by_length=True, do_predict=False, max_steps=2)
    assert run_main("text", *to_options(**options)) == 0


@pytest.mark.parametrize("name", ["listops", "retrieval"])
def test_self_pretraining(name, tmp_path, capsys):
    """The encoder learns from the inputs alone, and the task's run starts from it."""
    options = options_of(name, tmp_path, output_dir=tmp_path / "pretrained")
    assert run("self_pretrain", [name, *to_options(**options)]) == 0
    assert "give it to `luna finetune" in capsys.readouterr().out
    weights = load_file(tmp_path / "pretrained" / "model.safetensors")
    assert not list((tmp_path / "pretrained").glob("checkpoint-*"))
    described = json.loads((tmp_path / "pretrained" / "run.json").read_text())
    assert described["objective"] == "masked symbols" and described["max_steps"] == 4
    again = {
        "data_dir": options["data_dir"],
        "output_dir": tmp_path / "tuned",
        "model_name_or_path": tmp_path / "pretrained",
    }
    values = {name: value for name, value in options.items() if not name.startswith("model.")}
    assert run_main(name, *to_options(**values | again), "--learning_rate", "0") == 0
    tuned = load_file(tmp_path / "tuned" / "model.safetensors")
    own = [name for name in tuned if name.startswith("luna.")]
    assert own and all(torch.equal(tuned[name], weights[name]) for name in own)


def test_self_pretraining_that_ended_before_it_was_saved_trains_no_further(tmp_path, monkeypatch):
    options = to_options(**options_of("listops", tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(self_pretrain.shutil, "rmtree", lambda path: None)
        assert run("self_pretrain", ["listops", *options]) == 0
    assert (tmp_path / "run" / "checkpoint-4").is_dir()
    model = tmp_path / "run" / "model.safetensors"
    weights = load_file(model)
    model.unlink()
    assert run("self_pretrain", ["listops", *options]) == 0
    again = load_file(model)
    assert all(torch.equal(again[name], weights[name]) for name in weights) and not list(tmp_path.rglob("checkpoint-*"))


def test_masked_symbols():
    """About 15 %, no special ones; the label is the symbol that was there."""
    task = TASKS["text"]
    tokenizer = task.make_tokenizer()
    rows = [{"input_ids": [0, *range(4, 260)]}, {"input_ids": [0, *range(4, 104)]}]
    torch.manual_seed(0)
    batch = masking_collator(task, tokenizer)(rows)
    labels, ids = batch["labels"], batch["input_ids"]
    is_masked = labels != -100
    assert 30 < is_masked.sum() < 80 and not is_masked[:, 0].any() and not is_masked[1, 101:].any()
    original = torch.tensor([row["input_ids"] + [1] * (257 - len(row["input_ids"])) for row in rows])
    assert torch.equal(labels[is_masked], original[is_masked]) and torch.equal(ids[~is_masked], original[~is_masked])
    assert 0.6 < (ids[is_masked] == tokenizer.mask_token_id).double().mean() < 0.95
    assert torch.equal(batch["attention_mask"], (original != 1).long())


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("sst2 --model_name_or_path m", "sst2 was given, but self-pretraining is for one task of the Long Range Arena"),
        ("listops --model_name_or_path m", "Self-pretraining starts from a new Luna: leave out m"),
        ("listops --num_seeds 5", "`num_seeds` was given, but self-pretraining does not read it: leave it out."),
        ("listops --model_type transformer", "Self-pretraining starts from a new Luna: leave out the new transformer"),
    ],
)
def test_wrong_self_pretraining(command, expected, capsys):
    assert run("self_pretrain", command.split()) == 2
    assert f"error: {expected}" in capsys.readouterr().err
