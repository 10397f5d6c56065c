# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""What a run refuses before it begins, and what is no obstacle."""

import importlib.util
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from luna_tools.files import hold_lock
from pretraining import checkpoint as ckpt
from pretraining.recipe import Recipe
from pretraining.start import allowed_changes
from tests.support import faults
from tests.support.pretraining import error, pretrain, write_recipe
from tests.support.ranks import launch


def change_state(run: Path, change: Callable) -> None:
    """Change what the checkpoint of step 4 knows of its run, and seal it again."""
    folder = run / "checkpoints" / "step-00000004"
    path, state = folder / "trainer_state.json", ckpt.load_trainer_state(folder)
    change(state)
    path.write_text(json.dumps(state), encoding="utf-8")
    seal = json.loads((folder / ckpt.SEAL).read_text())
    seal[path.name] = {"bytes": path.stat().st_size, "sha256": ckpt.sha256(path)}
    (folder / ckpt.SEAL).write_text(json.dumps(seal), encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--dataset nowhere", "`dataset` is nowhere, which has no manifest.json: prepare it first"),
        ("--model.vocab_size 700", "`model.vocab_size` is 700, but the tokenizer"),
        ("--model.max_position_embeddings 20", "sequences of 32 tokens, but the model has positions for 18"),
        ("--global_batch_size 7", "`global_batch_size` is 7, which `micro_batch_size` = 2 x 1 processes does not divide"),
        ("--num_processes 2", "`num_processes` is 2, but the run has 1"),
        ("--model.hidden_size 33", "`model` is refused: `hidden_size` is 33"),
        ("--mixed_precision fp16", "`mixed_precision` is fp16, which needs a GPU"),
        ("--report_to tensorbord", "`report_to` names 'tensorbord'"),
        ("--report_to wandb", "`report_to` names wandb, which is not installed"),
        ("--attn_implementation fast", "The model can't be built: .*fast"),
        ("--model_name_or_path nosuchmodel", "`model_name_or_path` is nosuchmodel, which can't be loaded .*: give a"),
        ("--model.pad_token_id 0", "`model.pad_token_id` is 0, but the tokenizer of the dataset .* has 1"),
        ("--output_dir /proc/run", "/proc/run can't be used"),
        ("--plan --num_processes 3", "`micro_batch_size` = 2 x 3 processes does not divide: choose a multiple of 6"),
        ("--plan --attn_implementation fast", "The model can't be built: "),
        ("--plan --engine ddp4", "`engine` is 'ddp4', but must be one of"),
    ],
)
def test_a_run_that_cannot_be_is_refused_in_one_sentence(recipe_file, capsys, options, sentence):
    if "wandb" in options:
        assert importlib.util.find_spec("wandb") is None, "this case needs an environment without wandb"
    assert pretrain(recipe_file, *options.split()) == 2
    assert re.search(sentence, error(capsys.readouterr().err))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--learning_rate 0.5", "`learning_rate` is 0.5, but the run in .*step-00000004 was started with 0.001"),
        ("--model.hidden_size 64", "`model.hidden_size` is 64, but the run in .* was started with 32"),
        ("--seed 1", "`seed` is 1, but the run in .* was started with 0"),
        ("--max_steps 20", "`max_steps` is 20, but the run in .* was started with 8"),
    ],
)
def test_a_changed_recipe_is_refused_on_resume(stopped, recipe_file, capsys, options, sentence):
    assert pretrain(recipe_file, *options.split()) == 2
    assert re.search(sentence, error(capsys.readouterr().err))


def test_a_changed_dataset_is_refused_on_resume(stopped, recipe_file, prepared, capsys):
    state = ckpt.load_trainer_state(stopped / "checkpoints" / "step-00000004")
    assert state["dataset_fingerprint"] == json.loads((prepared / "manifest.json").read_text())["fingerprint"]
    change_state(stopped, lambda state: state.update(dataset_fingerprint="other"))
    assert pretrain(recipe_file) == 2
    assert "is not the one that the run in" in error(capsys.readouterr().err)


def test_a_damaged_dataset_is_refused_by_file(prepared, recipe_file, tmp_path, capfd):
    dataset = shutil.copytree(prepared, tmp_path / "dataset")
    shard = dataset / "train" / "data-00000.arrow"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 4
    shard.write_bytes(content)
    assert pretrain(recipe_file, "--dataset", dataset) == 2
    sentence = f"error: {shard} is missing or not as it was prepared (its SHA-256 is another): copy it again"
    assert error(capfd.readouterr().err).startswith(sentence)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


# ---------------------------------------------------------------------------------------------------------------------
# Two processes


def test_an_error_on_one_process_ends_all_with_its_sentence(recipe_file, tmp_path):
    (tmp_path / "run").mkdir()
    with hold_lock(tmp_path / "run" / ".lock"):
        done = launch("pretrain", [recipe_file], 2, check=False)
    assert done.returncode == 2
    assert "Another run is writing to `output_dir`" in error(done.stderr)
    assert "gloo" not in done.stderr.lower()


def test_ranks_that_see_different_files_are_told(recipe_file, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run-1")
    done = launch("pretrain", [recipe_file], 2, check=False, before=faults.apart)
    assert done.returncode == 2
    sentence = error(done.stderr)
    assert "The processes see different files in `output_dir`" in sentence and "file system that all nodes share" in sentence


@pytest.mark.parametrize("name", ["optimizer.safetensors", "config.json"])
def test_a_checkpoint_without_a_file_ends_all_ranks_with_one_sentence(name, finished, recipe_file, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "results.json").unlink()
    newest = ckpt.checkpoints(run / "checkpoints")[-1]
    (newest / name).unlink()
    done = launch("pretrain", [recipe_file], 2, check=False)
    assert done.returncode == 2
    assert f"lacks its file {name}: remove the folder {newest}" in error(done.stderr)
    # The remedy of the sentence.
    shutil.rmtree(newest)
    assert pretrain(recipe_file) == 0


# ---------------------------------------------------------------------------------------------------------------------
# What is no obstacle


def test_what_is_no_obstacle(stopped, values):
    """A dead run's lock, a damaged copy of the recipe, that copy as the recipe, and the state of an earlier version."""
    left = yaml.safe_load((stopped / "recipe.yaml").read_text())
    assert left["model"] == values["model"]
    (stopped / ".lock").write_text("4242", encoding="utf-8")
    (stopped / "recipe.yaml").write_text("{", encoding="utf-8")
    change_state(stopped, lambda state: state["recipe"].pop("objective"))
    assert pretrain(write_recipe(left, stopped)) == 0


@pytest.mark.parametrize("copy", ["", "[]", "{", "seed: 0"], ids=["empty", "a list", "half a copy", "an old copy"])
def test_a_copy_that_tells_nothing_is_no_obstacle(copy, recipe_values, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text(copy, encoding="utf-8")
    assert allowed_changes(Recipe(**recipe_values)) == []
