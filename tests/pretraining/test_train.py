# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Runs of the real program: exact on any number of processes, exact after any kill, clear about what it refuses."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from kill_ranks import is_saving
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, pipeline

from luna_tools.files import hold_lock
from pretraining import checkpoint as ckpt
from pretraining import train
from pretraining.data import Masking, mask_tokens
from pretraining.engines import build_optimizer
from pretraining.recipe import recipe_from_values

ROOT = Path(__file__).parents[2]
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def run_program(*arguments):
    AcceleratorState._reset_state(reset_partial_state=True)
    return train.main([str(argument) for argument in arguments])


def command(recipe_file, *overrides, processes=1):
    program = ["-m", "pretraining.train", str(recipe_file), *overrides]
    if processes == 1:
        return [sys.executable, *program]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", *program]


def environment():
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def launch(recipe_file, *overrides, processes=1, check=True):
    done = subprocess.run(
        command(recipe_file, *overrides, processes=processes), capture_output=True, text=True, env=environment(), cwd=ROOT
    )
    assert done.returncode == 0 or not check, done.stderr
    return done


def losses(output_dir):
    """Everything in the metrics that must be exact: all but the speed."""
    rows = train.read_metrics(Path(output_dir) / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name not in ("tokens_per_second", "data_wait")} for row in rows]


def write(values, path, **change):
    values = values | change
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


# ---------------------------------------------------------------------------------------------------------------------
# One run, seen from outside


def test_a_run_leaves_what_a_user_needs(recipe_values, recipe_file):
    assert run_program(recipe_file, "report_to=[tensorboard]") == 0
    output = Path(recipe_values["output_dir"])
    results = json.loads((output / "results.json").read_text())
    assert results["steps"] == 8
    assert results["eval_perplexity"] == pytest.approx(np.exp(results["eval_loss"]))
    assert (output / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert list((output / "luna-pretraining").rglob("events.out.tfevents.*"))
    rows = train.read_metrics(output / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 9))
    assert [row["step"] for row in rows if "eval_loss" in row] == [4, 8]
    assert rows[0]["learning_rate"] == pytest.approx(1e-3 / 3) and rows[-2]["learning_rate"] == pytest.approx(1e-3 / 6)

    _, loading = AutoModel.from_pretrained(output / "model", output_loading_info=True)
    assert not loading["missing_keys"]
    tokenizer = AutoTokenizer.from_pretrained(output / "model")
    guesses = pipeline("fill-mask", model=str(output / "model"), tokenizer=tokenizer)(f"Return the{tokenizer.mask_token}.")
    assert len(guesses) == 5


def test_a_finished_run_is_not_run_again(recipe_values, recipe_file, capsys):
    assert run_program(recipe_file) == 0
    before = (Path(recipe_values["output_dir"]) / "model" / "model.safetensors").stat().st_mtime_ns
    assert run_program(recipe_file) == 0
    assert "This run is finished" in capsys.readouterr().out
    assert (Path(recipe_values["output_dir"]) / "model" / "model.safetensors").stat().st_mtime_ns == before


def test_training_learns(recipe_values, tmp_path):
    recipe = write(
        recipe_values,
        tmp_path / "r.yaml",
        max_steps=150,
        learning_rate=3e-3,
        global_batch_size=32,
        micro_batch_size=32,
        model=recipe_values["model"] | NO_DROPOUT,
        logging_steps=150,
        eval_steps=150,
        save_steps=150,
    )
    assert run_program(recipe) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["eval_loss"] < np.log(600) - 0.7


def test_the_first_loss_is_that_of_the_definition(recipe_values, tmp_path):
    """Step 1 by hand: the rows of the permutation, masked one by one, through the freshly initialised model."""
    values = recipe_values | {"model": recipe_values["model"] | NO_DROPOUT, "max_steps": 1, "warmup_steps": 0}
    recipe = recipe_from_values(values, "")
    assert run_program(write(values, tmp_path / "r.yaml")) == 0

    tokenizer = AutoTokenizer.from_pretrained(Path(recipe.dataset) / "tokenizer")
    masking = Masking(0.15, tokenizer.mask_token_id, tuple(tokenizer.all_special_ids), 600)
    data = train.MaskedLMDataset(Path(recipe.dataset) / "train", masking, seed=0, shuffle=True)
    rows = [mask_tokens(data.rows[i]["input_ids"], masking, 0, 0, i) for i in (data.locate(p)[1] for p in range(8))]
    ids, labels = (torch.from_numpy(np.stack(x)) for x in zip(*rows, strict=True))
    model = train.build_model(recipe, None).eval()
    logits = model(input_ids=ids).logits[labels != -100]
    expected = torch.nn.functional.cross_entropy(logits.double(), labels[labels != -100])
    assert losses(recipe.output_dir)[0]["loss"] == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("architecture", ["roberta", "modernbert"])
def test_any_masked_language_model_trains(recipe_values, tmp_path, architecture):
    model = {name: recipe_values["model"][name] for name in ("vocab_size", "hidden_size", "num_hidden_layers")}
    model |= {"model_type": architecture, "num_attention_heads": 4, "intermediate_size": 64}
    if architecture == "modernbert":
        model |= {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "cls_token_id": 0, "sep_token_id": 2}
    model |= {"max_position_embeddings": 34}
    assert run_program(write(recipe_values, tmp_path / "r.yaml", model=model)) == 0
    assert AutoModelForMaskedLM.from_pretrained(tmp_path / "run" / "model").config.model_type == architecture


def test_training_goes_on_from_given_weights(recipe_values, recipe_file, tmp_path):
    assert run_program(recipe_file) == 0
    second = write(
        recipe_values,
        tmp_path / "second.yaml",
        output_dir=str(tmp_path / "second"),
        model={},
        model_name_or_path=str(tmp_path / "run" / "model"),
    )
    assert run_program(second) == 0
    assert losses(tmp_path / "second")[0]["loss"] < losses(tmp_path / "run")[0]["loss"]


@pytest.mark.slow
def test_gradient_checkpointing_and_bf16_train_alike(recipe_values, tmp_path):
    model = recipe_values["model"] | NO_DROPOUT
    curves = {}
    for name, change in {
        "plain": {},
        "checkpointed": {"gradient_checkpointing": True},
        "bf16": {"mixed_precision": "bf16"},
    }.items():
        output = str(tmp_path / name)
        assert run_program(write(recipe_values, tmp_path / "r.yaml", model=model, output_dir=output, **change)) == 0
        curves[name] = [row["loss"] for row in losses(output) if "loss" in row]
    assert curves["checkpointed"] == pytest.approx(curves["plain"], rel=1e-5)
    # bfloat16 keeps 8 bits: a relative error of 0.4 % a product, less in the mean over the tokens.
    assert curves["bf16"] == pytest.approx(curves["plain"], rel=1e-2)
    assert curves["bf16"] != curves["plain"]


def test_weights_decay_but_norms_and_biases_do_not(recipe_values):
    recipe = recipe_from_values(recipe_values, "")
    model = train.build_model(recipe, None)
    decayed, free = build_optimizer(model, recipe).param_groups
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert decayed["weight_decay"] == 0.01 and free["weight_decay"] == 0
    assert all("norm" in names[p] or names[p].endswith("bias") for p in free["params"])
    assert not any("norm" in names[p] or names[p].endswith("bias") for p in decayed["params"])
    assert len(decayed["params"]) + len(free["params"]) == sum(p.requires_grad for p in model.parameters())


def test_the_learning_rate_rises_and_falls_in_straight_lines(recipe_values):
    recipe = recipe_from_values(recipe_values | {"max_steps": 12, "warmup_steps": 3, "learning_rate": 1.0}, "")
    rates = [train.learning_rate_at(step, recipe) for step in range(13)]
    assert rates[:4] == pytest.approx([1 / 4, 2 / 4, 3 / 4, 1])
    assert rates[3:] == pytest.approx([i / 9 for i in range(9, -1, -1)])


# ---------------------------------------------------------------------------------------------------------------------
# Exactness


@pytest.mark.slow
def test_processes_and_accumulation_never_change_the_curve(recipe_values, tmp_path):
    """50 steps in float32 without dropout on 1, 2 and 4 processes, accumulating 8 to 1 times."""
    common = {
        "model": recipe_values["model"] | NO_DROPOUT,
        "max_steps": 50,
        "warmup_steps": 10,
        "eval_steps": 25,
        "save_steps": 50,
    }
    curves = {}
    for processes, micro_batch in ((1, 8), (1, 1), (2, 2), (4, 2)):
        output = str(tmp_path / f"{processes}x{micro_batch}")
        recipe = write(recipe_values, tmp_path / "r.yaml", output_dir=output, micro_batch_size=micro_batch, **common)
        launch(recipe, processes=processes)
        curves[processes, micro_batch] = losses(output)
    reference = curves.pop((1, 8))
    assert len([row for row in reference if "loss" in row]) == 50
    for key, curve in curves.items():
        for expected, row in zip(reference, curve, strict=True):
            assert row == pytest.approx(expected, rel=1e-5), key


@pytest.mark.slow
def test_eight_processes_take_the_steps_of_one(recipe_values, tmp_path):
    common = {
        "model": recipe_values["model"] | NO_DROPOUT,
        "max_steps": 10,
        "global_batch_size": 32,
        "eval_steps": 10,
        "save_steps": 10,
    }
    recipe = write(recipe_values, tmp_path / "8.yaml", output_dir=str(tmp_path / "8"), **common)
    launch(recipe, processes=8)
    assert run_program(write(recipe_values, tmp_path / "1.yaml", output_dir=str(tmp_path / "1"), **common)) == 0
    one, eight = losses(tmp_path / "1"), losses(tmp_path / "8")
    assert len([row for row in one if "loss" in row]) == 10
    for expected, row in zip(one, eight, strict=True):
        assert row == pytest.approx(expected, rel=1e-5)


def run_until_killed(arguments, output, kill_at):
    """Start a run and kill -9 it with all its processes at `kill_at(output)`. Returns whether it was killed."""
    process = subprocess.Popen(arguments, env=environment(), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        if kill_at(output):
            # torchrun's workers are sessions of their own, which outlive it.
            family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
            for member in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.kill()
            process.wait()
            psutil.wait_procs(family, timeout=30)
            return True
        time.sleep(0.001)
    return False


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_kill_9_at_any_moment_changes_nothing(recipe_values, tmp_path, processes):
    """Ten kills, by turns in the middle of a save and at a random time, each followed by a resumed run; dropout is on."""
    change = {"max_steps": 60, "eval_steps": 20, "save_steps": 3, "micro_batch_size": 4, "save_total_limit": 2}
    whole = write(recipe_values, tmp_path / "whole.yaml", output_dir=str(tmp_path / "whole"), **change)
    launch(whole, processes=processes)

    broken = tmp_path / "broken"
    recipe = write(recipe_values, tmp_path / "broken.yaml", output_dir=str(broken), **change)
    chance = random.Random(processes)
    kills = 0
    while kills < 10:
        # A save of this model takes some 20 ms: wait for one to begin, then kill somewhere inside it.
        if kills % 2 == 0:
            delay = chance.uniform(0, 0.02)
            at = lambda output, delay=delay: is_saving(output) and (time.sleep(delay) or True)  # noqa: E731
        else:
            rows = len(losses(broken)) + chance.randint(1, 6)
            at = lambda output, rows=rows: len(losses(output)) >= rows  # noqa: E731
        if not run_until_killed(command(recipe, processes=processes), broken, at):
            # The run got to its end between two kills: begin anew, so that ten kills are ten kills.
            assert (broken / "results.json").exists()
            assert losses(broken) == losses(tmp_path / "whole")
            shutil.rmtree(broken)
            continue
        kills += 1
        for checkpoint in ckpt.checkpoints(broken / "checkpoints"):
            ckpt.verify_checkpoint(checkpoint)
    launch(recipe, processes=processes)
    assert losses(broken) == losses(tmp_path / "whole")
    model = "model/model.safetensors"
    assert (broken / model).read_bytes() == (tmp_path / "whole" / model).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_next_run_goes_on(recipe_values, tmp_path, number):
    change = {"max_steps": 150, "eval_steps": 150, "save_steps": 150}
    recipe = write(recipe_values, tmp_path / "r.yaml", **change)
    process = subprocess.Popen(
        command(recipe), env=environment(), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    while len(losses(tmp_path / "run")) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Stopped by a signal after step" in out
    (saved,) = ckpt.checkpoints(tmp_path / "run" / "checkpoints")
    assert ckpt.checkpoint_step(saved) == len(losses(tmp_path / "run"))
    launch(recipe)
    launch(write(recipe_values, tmp_path / "w.yaml", output_dir=str(tmp_path / "whole"), **change))
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_a_resumed_run_may_change_how_it_divides_the_batch(recipe_values, tmp_path):
    recipe = write(recipe_values, tmp_path / "r.yaml", max_steps=8, save_steps=4)
    assert run_program(recipe) == 0
    run = tmp_path / "run"
    shutil.rmtree(ckpt.checkpoints(run / "checkpoints")[-1])
    (run / "results.json").unlink()
    expected = losses(run)
    assert run_program(recipe, "micro_batch_size=8", "save_steps=2") == 0
    # Dropout belongs to the micro-batch, so only what came before the division is bit-identical.
    assert losses(run)[:5] == expected[:5]


# ---------------------------------------------------------------------------------------------------------------------
# Refusals


def message(capsys):
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in err, err
    return lines[0]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["dataset=nowhere"], "`dataset` is nowhere, which has no manifest.json: prepare it first"),
        (["model.vocab_size=700"], "`model.vocab_size` is 700, but the tokenizer"),
        (["model.max_position_embeddings=20"], "sequences of 32 tokens, but the model has positions for 18"),
        (["global_batch_size=7"], "`global_batch_size` is 7, which `micro_batch_size` = 2 x 1 processes does not divide"),
        (["num_processes=2"], "`num_processes` is 2, but the run has 1"),
        (["model.hidden_size=33"], "`model` is refused: `hidden_size` is 33"),
        (["mixed_precision=fp16"], "`mixed_precision` is fp16, which needs a GPU"),
        (["report_to=[tensorbord]"], "`report_to` names 'tensorbord'"),
        (["report_to=[wandb]"], "`report_to` names wandb, which is not installed"),
        (["attn_implementation=fast"], "The model can't be built: .*fast"),
        (["model_name_or_path=nowhere/at/all"], "`model` can't be built: .*nowhere"),
        (["model.pad_token_id=0"], "`model.pad_token_id` is 0, but the tokenizer of the dataset .* has 1"),
        (["output_dir=/proc/run"], "/proc/run can't be used"),
        (["--plan", "attn_implementation=fast"], "The model can't be built: .*fast"),
        (["--plan", "--num_processes", "0"], "`--num_processes` is 0, but must be at least 1"),
    ],
)
def test_a_run_that_cannot_be_is_refused_in_one_sentence(recipe_file, capsys, overrides, sentence):
    if "wandb" in overrides[0]:
        assert train.importlib.util.find_spec("wandb") is None, "this case needs an environment without wandb"
    assert run_program(recipe_file, *overrides) == 2
    assert re.search(sentence, message(capsys))


@pytest.fixture
def stopped(recipe_values, recipe_file):
    """A run that has a checkpoint of step 4 and none of step 8."""
    assert run_program(recipe_file) == 0
    run = Path(recipe_values["output_dir"])
    (run / "results.json").unlink()
    shutil.rmtree(run / "checkpoints" / "step-00000008")
    return run


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("learning_rate=0.5", "`learning_rate` is 0.5, but the run in .*step-00000004 was started with 0.001"),
        ("model.hidden_size=64", "`model.hidden_size` is 64, but the run in .* was started with 32"),
        ("seed=1", "`seed` is 1, but the run in .* was started with 0"),
        ("max_steps=20", "`max_steps` is 20, but the run in .* was started with 8"),
    ],
)
def test_a_changed_recipe_is_refused_on_resume(stopped, recipe_file, capsys, override, sentence):
    assert run_program(recipe_file, override) == 2
    assert re.search(sentence, message(capsys))


def test_a_changed_dataset_is_refused_on_resume(stopped, recipe_file, prepared, capsys, monkeypatch):
    state_file = stopped / "checkpoints" / "step-00000004" / "trainer_state.json"
    manifest = json.loads((prepared / "manifest.json").read_text())
    assert json.loads(state_file.read_text())["dataset_fingerprint"] == manifest["fingerprint"]
    monkeypatch.setattr(train, "read_manifest", lambda recipe: manifest | {"fingerprint": "other"})
    assert run_program(recipe_file) == 2
    assert "is not the one that the run in" in message(capsys)


def test_a_damaged_checkpoint_is_refused_on_resume(stopped, recipe_file, capsys):
    weights = stopped / "checkpoints" / "step-00000004" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    assert run_program(recipe_file) == 2
    assert "The file model.safetensors of the checkpoint" in message(capsys)


def test_two_runs_cannot_share_a_folder(recipe_values, recipe_file, capsys):
    output = Path(recipe_values["output_dir"])
    output.mkdir()
    held = hold_lock(output / ".lock")
    assert run_program(recipe_file) == 2
    assert "Another run is writing to `output_dir`" in message(capsys)
    held.close()
    assert run_program(recipe_file) == 0


@pytest.mark.parametrize("what", ["loss", "gradient norm"])
def test_a_number_that_is_none_stops_the_run_and_keeps_the_last_checkpoint(
    recipe_values, recipe_file, capsys, monkeypatch, what
):
    calls = []
    real = train.masked_sum

    def poisoned(model, batch):
        calls.append(1)
        value = real(model, batch)
        if len(calls) <= 5 * 4:
            return value
        # The gradient of a square root at 0 is infinite while the value is finite.
        return value * float("nan") if what == "loss" else value + torch.sqrt(value * 0.0)

    monkeypatch.setattr(train, "masked_sum", poisoned)
    assert run_program(recipe_file) == 2
    text = message(capsys)
    assert f"The {what} is nan at step 6" in text and "the last good checkpoint is" in text and "step-00000004" in text
    assert [row["step"] for row in losses(recipe_values["output_dir"]) if "loss" in row] == [1, 2, 3, 4, 5]
    (kept,) = ckpt.checkpoints(Path(recipe_values["output_dir"]) / "checkpoints")
    ckpt.verify_checkpoint(kept)


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"format_version": 99}'])
def test_a_foreign_manifest_is_refused(recipe_values, tmp_path, capsys, content):
    folder = tmp_path / "dataset"
    shutil.copytree(recipe_values["dataset"], folder)
    (folder / "manifest.json").write_text(content)
    assert run_program(write(recipe_values, tmp_path / "r.yaml", dataset=str(folder))) == 2
    assert re.search("whose manifest.json is damaged|which is of format 99", message(capsys))


def test_weights_of_another_shape_are_refused(recipe_values, recipe_file, tmp_path, capsys):
    assert run_program(recipe_file) == 0
    source = tmp_path / "run" / "model"
    other = write(recipe_values, tmp_path / "o.yaml", output_dir=str(tmp_path / "o"), model={"intermediate_size": 128})
    assert run_program(other, f"model_name_or_path={source}") == 2
    assert "The model can't be built" in message(capsys)


def test_a_full_disk_ends_a_run_in_one_sentence_and_loses_nothing(recipe_values, recipe_file, capsys, monkeypatch):
    real = ckpt.save_file
    calls = []

    def full(tensors, path):
        calls.append(path)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(ckpt, "save_file", full)
    assert run_program(recipe_file) == 2
    assert "No space left on device" in message(capsys)
    (kept,) = ckpt.checkpoints(Path(recipe_values["output_dir"]) / "checkpoints")
    assert ckpt.checkpoint_step(kept) == 4
    assert run_program(recipe_file) == 0


@pytest.mark.slow
def test_an_error_on_one_process_ends_all_with_its_sentence(recipe_values, recipe_file):
    output = Path(recipe_values["output_dir"])
    output.mkdir()
    with hold_lock(output / ".lock"):
        done = launch(recipe_file, processes=2, check=False)
    assert done.returncode != 0
    assert done.stderr.count("error: Another run is writing to `output_dir`") == 1
    assert "gloo" not in done.stderr.lower()


@pytest.mark.slow
def test_a_signal_to_the_whole_group_saves_with_data_workers(recipe_values, tmp_path):
    """What a scheduler sends: SIGTERM to every process of the group, data workers included."""
    recipe = write(recipe_values, tmp_path / "r.yaml", max_steps=4000, save_steps=4000, dataloader_num_workers=2)
    process = subprocess.Popen(
        command(recipe), env=environment(), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    while len(losses(tmp_path / "run")) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, err.decode()
    (saved,) = ckpt.checkpoints(tmp_path / "run" / "checkpoints")
    ckpt.verify_checkpoint(saved)


def test_evaluation_may_read_a_part_of_the_validation_split(recipe_values, tmp_path):
    for name, change in {"all": {}, "part": {"max_eval_sequences": 2}, "as_many": {"max_eval_sequences": 10**6}}.items():
        assert run_program(write(recipe_values, tmp_path / "r.yaml", output_dir=str(tmp_path / name), **change)) == 0
    everything, part, as_many = (losses(tmp_path / name)[-1]["eval_loss"] for name in ("all", "part", "as_many"))
    assert everything == as_many != part


def test_plan_prints_and_trains_nothing(recipe_values, recipe_file, capsys):
    assert run_program(recipe_file, "--plan", "--num_processes", "4") == 0
    assert "Processes: 4, each 2 sequences at a time, accumulating 1 micro-batches a step" in capsys.readouterr().out
    assert not Path(recipe_values["output_dir"]).exists()
    assert run_program(recipe_file, "--plan", "--num_processes", "3") == 2
    assert "`global_batch_size` is 8" in message(capsys)
