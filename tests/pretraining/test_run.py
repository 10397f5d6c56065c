# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Runs of the real program: exact on any number of processes, exact after any kill, clear about what goes wrong."""

import json
import re
import resource
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import LinearLR, SequentialLR
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer, pipeline

from luna_tools.publish import files_to_upload
from pretraining import checkpoint as ckpt
from pretraining import metrics
from pretraining.data import MaskedLMDataset, Masking, mask_tokens
from pretraining.metrics import read_metrics
from pretraining.model import build_model, model_config
from pretraining.recipe import RECIPES, Recipe
from pretraining.run import learning_rate_at
from tests.support import faults
from tests.support.pretraining import (
    GPT2,
    NO_DROPOUT,
    error,
    exact_rows,
    is_same_run,
    last_checkpoint,
    left_alive,
    pretrain,
    weights,
    write_recipe,
)
from tests.support.ranks import launch, start

# ---------------------------------------------------------------------------------------------------------------------
# One run, seen from outside


def test_a_run_leaves_what_a_user_needs(recipe_file, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(metrics, "SECONDS_BETWEEN_LINES", 0)
    real = MaskedLMDataset.__getitems__
    monkeypatch.setattr(MaskedLMDataset, "__getitems__", lambda self, places: (time.sleep(0.02), real(self, places))[1])
    argv = [recipe_file, *"--report_to tensorboard --profile_step 3 --peak_tflops 0.1".split()]
    assert pretrain(*argv) == 0
    output = tmp_path / "run"
    shown = "".join(capfd.readouterr())
    assert "\r" not in shown and "█" not in shown and "%|" not in shown, "a log has no bars"
    line = r"^step (\d) of 8: loss \d\.\d{3}, lr \d\.\de-\d\d, [\d,]+ tokens/s, [\d:]+ left$"
    assert re.findall(line, shown, re.MULTILINE) == [str(step) for step in range(1, 9)]
    waits = re.findall(r"warning: up to step \d+, (\d+)% of the time went into waiting for data", shown)
    assert len(waits) == 1 and int(waits[0]) > 5
    trace = json.loads((output / "profile" / "rank-0.json").read_text())
    assert sum(event.get("name", "").startswith("Optimizer.step") for event in trace["traceEvents"]) == 3
    results = json.loads((output / "results.json").read_text())
    assert results["steps"] == 8
    assert results["eval_perplexity"] == pytest.approx(np.exp(results["eval_loss"]))
    assert (output / "loss.png").read_bytes().startswith(b"\x89PNG")
    told = [path.read_bytes() for path in (output / "luna-pretraining").rglob("*") if path.is_file()]
    assert told and not any(str(tmp_path).encode() in content for content in told), "trackers are not told where it lies"
    rows = read_metrics(output / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 9))
    assert [row["step"] for row in rows if "eval_loss" in row] == [4, 8]
    assert all(0 < row["mfu"] < 1 and 0 <= row["data_wait"] <= 1 for row in rows if "loss" in row)
    assert rows[0]["learning_rate"] == pytest.approx(1e-3 / 3) and rows[-2]["learning_rate"] == pytest.approx(1e-3 / 6)

    _, loading = AutoModel.from_pretrained(output / "model", output_loading_info=True)
    assert not loading["missing_keys"]
    tokenizer = AutoTokenizer.from_pretrained(output / "model")
    guesses = pipeline("fill-mask", model=str(output / "model"), tokenizer=tokenizer)(f"Return the{tokenizer.mask_token}.")
    assert len(guesses) == 5


def test_nothing_that_is_published_says_where_it_lies(finished, values):
    """Weights, tokenizer, configuration and cards of model and checkpoints, and what trackers are told."""
    private = {str(finished.parent), str(Path(values["dataset"]).parent)}
    for folder in (finished / "model", *ckpt.checkpoints(finished / "checkpoints")):
        for name in files_to_upload(folder):
            content = (folder / name).read_bytes().decode("utf-8", errors="replace")
            assert not any(place in content for place in private), name


def test_a_finished_run_is_not_run_again(finished, recipe_file, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "run")
    before = (tmp_path / "run" / "model" / "model.safetensors").stat().st_mtime_ns
    assert pretrain(recipe_file) == 0
    assert "This run is finished" in capsys.readouterr().out
    assert (tmp_path / "run" / "model" / "model.safetensors").stat().st_mtime_ns == before


def test_training_learns(values, tmp_path):
    changes = {"max_steps": 150, "learning_rate": 3e-3, "global_batch_size": 32, "micro_batch_size": 32}
    changes |= dict.fromkeys(("logging_steps", "eval_steps", "save_steps"), 150)
    output = tmp_path / "run"
    assert pretrain(write_recipe(values, output, model=values["model"] | NO_DROPOUT, **changes)) == 0
    assert json.loads((output / "results.json").read_text())["eval_loss"] < np.log(600) - 0.7


def test_the_first_loss_is_that_of_the_definition(values, tmp_path):
    """Step 1 by hand: the rows of the permutation, masked one by one, through the freshly initialised model."""
    model = values["model"] | NO_DROPOUT | {"max_position_embeddings": 50}
    changed = values | {"model": model, "max_steps": 1, "warmup_steps": 0}
    assert pretrain(write_recipe(changed, tmp_path / "run")) == 0
    longest = AutoTokenizer.from_pretrained(tmp_path / "run" / "model").model_max_length
    assert longest == 48, "the tokenizer lets pass what the model has positions for, not what a row holds"

    recipe = Recipe(**changed, output_dir="")
    tokenizer = AutoTokenizer.from_pretrained(Path(recipe.dataset) / "tokenizer")
    masking = Masking(0.15, tokenizer.mask_token_id, tuple(tokenizer.all_special_ids), 600)
    data = MaskedLMDataset(Path(recipe.dataset) / "train", masking, seed=0, shuffle=True)
    rows = [mask_tokens(data.rows[i]["input_ids"], masking, 0, 0, i) for _, i in data.locate(range(8))]
    ids, labels = (torch.from_numpy(np.stack(x)) for x in zip(*rows, strict=True))
    logits = build_model(recipe, model_config(recipe), None).eval()(input_ids=ids).logits[labels != -100]
    expected = torch.nn.functional.cross_entropy(logits.double(), labels[labels != -100])
    assert exact_rows(tmp_path / "run")[0]["loss"] == pytest.approx(expected.item(), rel=1e-6)


def test_any_causal_language_model_trains(values, tmp_path):
    assert pretrain(write_recipe(values, tmp_path / "run", objective="clm", model=GPT2, max_steps=2)) == 0
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model").config.model_type == "gpt2"


@pytest.mark.parametrize("architecture", ["roberta", "modernbert"])
def test_any_masked_language_model_trains(values, tmp_path, architecture):
    model = {name: values["model"][name] for name in ("vocab_size", "hidden_size", "num_hidden_layers")}
    model |= {"model_type": architecture, "num_attention_heads": 4, "intermediate_size": 64}
    if architecture == "modernbert":
        model |= {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "cls_token_id": 0, "sep_token_id": 2}
    model |= {"max_position_embeddings": 34}
    assert pretrain(write_recipe(values, tmp_path / "run", model=model, max_steps=2)) == 0
    assert AutoModelForMaskedLM.from_pretrained(tmp_path / "run" / "model").config.model_type == architecture


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_of_the_package_trains_in_small(path, values, tmp_path):
    sizes = {"vocab_size": values["model"]["vocab_size"], "hidden_size": 32, "intermediate_size": 64}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 4}
    changes = {"dataset": values["dataset"], "output_dir": tmp_path / "run", "max_steps": 2, "warmup_steps": 1}
    changes |= {"global_batch_size": 4, "micro_batch_size": 2, "max_eval_sequences": 4, "dataloader_num_workers": 0}
    changes |= {f"model.{name}": value for name, value in sizes.items()}
    assert pretrain(path.stem, *(token for name, value in changes.items() for token in (f"--{name}", value))) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["steps"] == 2 and results["eval_loss"] < np.log(600) + 0.5


def test_training_goes_on_from_given_weights(values, finished, tmp_path):
    second = write_recipe(values, tmp_path / "second", model={}, model_name_or_path=str(finished / "model"), max_steps=2)
    assert pretrain(second) == 0
    assert exact_rows(tmp_path / "second")[0]["loss"] < exact_rows(finished)[0]["loss"]
    assert "from the weights of `model`." in (tmp_path / "second" / "model" / "README.md").read_text()


@pytest.mark.slow
def test_gradient_checkpointing_and_bf16_train_alike(values, tmp_path):
    curves = {}
    for name, change in {
        "plain": {},
        "checkpointed": {"gradient_checkpointing": True},
        "bf16": {"mixed_precision": "bf16"},
    }.items():
        assert pretrain(write_recipe(values, tmp_path / name, model=values["model"] | NO_DROPOUT, **change)) == 0
        curves[name] = [row["loss"] for row in exact_rows(tmp_path / name) if "loss" in row]
    assert curves["checkpointed"] == pytest.approx(curves["plain"], rel=1e-5)
    # bfloat16 keeps 8 bits: a relative error of 0.4 % a product, less in the mean over the tokens.
    assert curves["bf16"] == pytest.approx(curves["plain"], rel=1e-2)
    assert curves["bf16"] != curves["plain"]


@pytest.mark.parametrize(("max_steps", "warmup_steps"), [(12, 3), (12, 0), (7, 7)])
def test_the_learning_rate_is_that_of_torchs_schedulers(values, max_steps, warmup_steps):
    changes = {"output_dir": "", "max_steps": max_steps, "warmup_steps": warmup_steps, "learning_rate": 1.0}
    recipe = Recipe(**values | changes)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    rise = LinearLR(optimizer, 1 / (warmup_steps + 1), 1.0, total_iters=warmup_steps)
    fall = LinearLR(optimizer, 1.0, 0.0, total_iters=max(1, max_steps - warmup_steps))
    schedule = SequentialLR(optimizer, [rise, fall], [warmup_steps]) if warmup_steps else fall
    for step in range(max_steps):
        assert learning_rate_at(step, recipe) == pytest.approx(schedule.get_last_lr()[0], abs=1e-9), step
        optimizer.step()
        schedule.step()


def test_evaluation_may_read_a_part_of_the_validation_split(values, finished, tmp_path):
    assert pretrain(write_recipe(values, tmp_path / "part", max_eval_sequences=2)) == 0
    part, whole = exact_rows(tmp_path / "part"), exact_rows(finished)
    assert [row for row in part if "loss" in row] == [row for row in whole if "loss" in row]
    assert part[-1]["eval_loss"] != whole[-1]["eval_loss"]


# ---------------------------------------------------------------------------------------------------------------------
# Exactness


@pytest.mark.parametrize(
    ("steps", "batch", "divisions"),
    [
        (20, 8, [(1, 8), (2, 2), (4, 1)]),
        pytest.param(50, 32, [(1, 32), (1, 1), (8, 2)], marks=pytest.mark.slow),
    ],
)
def test_processes_and_accumulation_never_change_the_curve(steps, batch, divisions, values, tmp_path):
    """Runs on (processes, sequences at a time) have the curve of the first, in float32 without dropout."""
    changes = {"max_steps": steps, "warmup_steps": 10, "eval_steps": steps // 2, "save_steps": steps}
    changes |= {"global_batch_size": batch, "eval_micro_batch_size": 3, "model": values["model"] | NO_DROPOUT}
    runs = [tmp_path / f"{number}" for number in range(len(divisions))]
    for run, (processes, micro_batch) in zip(runs, divisions, strict=True):
        launch("pretrain", [write_recipe(values, run, micro_batch_size=micro_batch, **changes)], processes)
    reference, *others = map(exact_rows, runs)
    assert len([row for row in reference if "loss" in row]) == steps
    for rows in others:
        for expected, row in zip(reference, rows, strict=True):
            assert row == pytest.approx(expected, rel=1e-5)


def check_kills(values: dict, folder: Path, moments: list, processes: int = 2, engine: str = "ddp") -> None:
    """A run that is killed at each moment of a save in turn, with dropout, has the bits of an undisturbed one."""
    values = values | {"max_steps": 2 * len(moments) + 2, "save_steps": 1, "save_total_limit": 1}
    whole, broken = write_recipe(values, folder / "whole"), write_recipe(values, folder / "broken")
    launch("pretrain", [whole], processes, engine)
    for moment in moments:
        done = launch("pretrain", [broken], processes, engine, check=False, before=faults.killed_in_save(*moment))
        assert done.returncode != 0, moment
        for checkpoint in ckpt.checkpoints(folder / "broken" / "checkpoints"):
            ckpt.verify_checkpoint(checkpoint)
    launch("pretrain", [broken], processes, engine)
    assert is_same_run(folder / "broken", folder / "whole")
    assert not list((folder / "broken" / "checkpoints").glob(".*"))


def test_kill_9_at_any_moment_of_a_save_changes_nothing(values, tmp_path):
    check_kills(values, tmp_path, faults.MOMENTS)


def test_kill_9_in_a_save_of_a_causal_model_changes_nothing(causal_values, tmp_path):
    check_kills(causal_values, tmp_path, faults.MOMENTS[4:6])


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["fsdp2", "zero1", "zero3"])
def test_kill_9_in_a_save_changes_nothing_under_an_engine(engine, values, tmp_path):
    check_kills(values, tmp_path, faults.MOMENTS[2::3], engine=engine)


def test_a_signal_to_one_process_saves_on_all_and_the_next_run_goes_on(values, tmp_path):
    """In the middle of an epoch, and between the steps that are saved otherwise."""
    recipe, whole = write_recipe(values, tmp_path / "run"), write_recipe(values, tmp_path / "whole")
    done = launch("pretrain", [recipe], 2, check=False, before=faults.at_step(3, {1: faults.stop}))
    assert done.returncode == 128 + signal.SIGTERM
    assert done.stderr.count("Stopped by a signal after step 3, which is saved: give the same command again") == 1
    assert last_checkpoint(tmp_path / "run") == 3 == exact_rows(tmp_path / "run")[-1]["step"]
    for path in (recipe, whole):
        launch("pretrain", [path], 2)
    assert is_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_resumed_run_may_change_how_it_divides_the_batch_and_says_so(stopped, finished, recipe_file, capfd):
    assert pretrain(recipe_file, "--micro_batch_size", 8, "--save_steps", 2) == 0
    # Dropout belongs to the micro-batch, so only what came before the division is bit-identical.
    assert exact_rows(stopped)[:5] == exact_rows(finished)[:5]
    assert [line for line in capfd.readouterr().out.splitlines() if line.startswith("warning: ")] == [
        "warning: `micro_batch_size` is 8 now and was 2 when the run was last started.",
        "warning: `save_steps` is 2 now and was 4 when the run was last started.",
    ]


@pytest.mark.slow
def test_a_clock_that_jumps_changes_nothing(values, finished, tmp_path, monkeypatch):
    jumps, real = iter(range(10**9)), __import__("time").time
    monkeypatch.setattr("time.time", lambda: real() + (next(jumps) % 4 - 2) * 1e6)
    assert pretrain(write_recipe(values, tmp_path / "jumped")) == 0
    assert is_same_run(tmp_path / "jumped", finished)
    assert all(row["tokens_per_second"] > 0 for row in read_metrics(tmp_path / "jumped" / "metrics.jsonl") if "loss" in row)


# ---------------------------------------------------------------------------------------------------------------------
# What goes wrong in a run


@pytest.mark.parametrize(
    ("processes", "fault", "what"),
    [(1, faults.make_loss_nan, "loss"), (1, faults.make_gradient_nan, "gradient norm"), (2, faults.make_loss_nan, "loss")],
)
def test_a_number_that_is_none_ends_all_and_keeps_the_last_checkpoint(processes, fault, what, recipe_file, tmp_path):
    """On the last rank alone, if there are two."""
    before = faults.at_step(6, {processes - 1: fault})
    done = launch("pretrain", [recipe_file], processes, check=False, before=before)
    assert done.returncode == 2
    text = error(done.stderr)
    assert f"The {what} is nan at step 6" in text and "the last good checkpoint is" in text and "step-00000004" in text
    assert [row["step"] for row in exact_rows(tmp_path / "run") if "loss" in row] == [1, 2, 3, 4, 5]
    assert last_checkpoint(tmp_path / "run") == 4
    if processes == 2:
        launch("pretrain", [recipe_file], processes)


@pytest.mark.parametrize("fault", [faults.run_out_of_memory, lambda run: torch.empty(2**55)], ids=["GPU", "CPU, real"])
def test_out_of_memory_is_one_sentence(fault, recipe_file, capsys, monkeypatch):
    monkeypatch.setattr("pretraining.run.Run.step", lambda self, *args: fault(self))
    assert pretrain(recipe_file, "--micro_batch_size", 4) == 2
    text = error(capsys.readouterr().err)
    assert "The memory does not suffice (" in text
    assert "lower `micro_batch_size` (now 4) or set `gradient_checkpointing` to true" in text


MEMORY, UNKNOWN = "error: The memory does not suffice", "LookupError: nobody knows"
LOST = "error: Another process has ended, and this one cannot go on without it"
FULL = "results.json can't be used (No space left on device)"


@pytest.mark.parametrize(
    ("before", "status", "sentence"),
    [
        (faults.at_step(3, {1: faults.run_out_of_memory}), 2, MEMORY),
        (faults.at_step(3, {1: faults.run_out_of_memory, 0: faults.stand_still}), 2, MEMORY),
        (faults.at_step(3, {1: faults.raise_unknown}), 2, UNKNOWN),
        (faults.at_step(3, {1: faults.raise_unknown, 0: faults.stand_still}), 2, UNKNOWN),
        (faults.at_step(3, {1: faults.die}), -signal.SIGKILL, LOST),
        (faults.disk_full_at_the_end, 2, FULL),
    ],
    ids=["memory", "memory, other stands still", "unknown", "unknown, other stands still", "killed", "disk full at the end"],
)
def test_an_error_on_one_process_ends_all_without_the_launchers_help(before, status, sentence, recipe_file):
    """Also those that wait where no error reaches them, as on GPUs; all say one thing once."""
    done = start("pretrain", [recipe_file], 2, before=before).wait(ends_others=False)
    assert done.returncode == status
    assert done.stderr.count(sentence) == 1
    assert sentence is LOST or "gloo" not in done.stderr.lower()
    if sentence is not UNKNOWN:
        assert sentence in error(done.stderr)
    if sentence is FULL:
        launch("pretrain", [recipe_file], 2)


def limit_files_to_100_kb() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def test_a_disk_that_takes_no_more_ends_the_run_and_loses_nothing(stopped, finished, recipe_file):
    """The limit is the operating system's own, on the size of a file."""
    done = launch("pretrain", [recipe_file], check=False, before=limit_files_to_100_kb)
    assert done.returncode == 2
    text = error(done.stderr)
    assert "step-00000008 can't be written" in text and "make room and give the same command again" in text
    assert last_checkpoint(stopped) == 4
    assert pretrain(recipe_file) == 0
    assert weights(stopped) == weights(finished)


def test_weights_of_another_shape_are_refused(values, finished, tmp_path, capsys):
    recipe = write_recipe(values, tmp_path / "other", model={"intermediate_size": 128})
    assert pretrain(recipe, "--model_name_or_path", finished / "model") == 2
    assert "The model can't be built" in error(capsys.readouterr().err)


# ---------------------------------------------------------------------------------------------------------------------
# The ranks of the tests are those of a launcher


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp2", "zero1", "zero2", "zero3"])
def test_ranks_that_are_forked_run_as_under_torchrun(engine, values, tmp_path, torchrun):
    forked, launched = (write_recipe(values, tmp_path / name) for name in ("forked", "launched"))
    launch("pretrain", [forked], 2, engine)
    assert torchrun(engine, launched).wait() == 0
    assert is_same_run(tmp_path / "forked", tmp_path / "launched")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_signals_and_kills_under_torchrun(number, values, tmp_path, torchrun):
    """SIGTERM as schedulers send it, to every process of a step, so that ranks have it twice; kill -9 of one rank."""
    recipe = write_recipe(values, tmp_path / "run", max_steps=4000, save_steps=4000, dataloader_num_workers=1)
    job = torchrun("ddp", recipe)
    while len(exact_rows(tmp_path / "run")) < 3:
        assert job.poll() is None
        time.sleep(0.05)
    family = job.family()
    chosen = family if number == signal.SIGTERM else [next(p for p in family if p.environ().get("RANK") == "1")]
    for process in chosen:
        process.send_signal(number)
    assert job.wait(timeout=300) != 0
    assert not left_alive(family), "ranks and data workers have ended"
    if number == signal.SIGTERM:
        assert (
            last_checkpoint(tmp_path / "run") == [row["step"] for row in exact_rows(tmp_path / "run") if "loss" in row][-1]
        )
    else:
        assert not ckpt.checkpoints(tmp_path / "run" / "checkpoints")
