# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Checkpoints on a Hub on loopback: complete, in order, and never in the way of training."""

import json

import pytest
from accelerate.state import AcceleratorState
from safetensors.torch import load

from hub_server import Hub
from pretraining import train
from pretraining.recipe import RecipeError, recipe_from_values

FILES = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
CODE_FILES = {"configuration_luna.py", "modeling_luna.py"}


@pytest.fixture(autouse=True)
def fresh_accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def rows_of(run):
    rows = train.read_metrics(run / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name != "tokens_per_second"} for row in rows]


def test_every_checkpoint_becomes_a_revision(recipe_file, tmp_path, monkeypatch):
    with Hub() as hub:
        hub.serve_this_process(monkeypatch, tmp_path / "cache")
        assert train.main([str(recipe_file), "hub_model_id=org/luna"]) == 0
        repository = hub.repositories["org/luna"]
    assert repository.private
    assert repository.branches.keys() == {"main", "step-4", "step-8"}
    for step in (4, 8):
        files = repository.commits[repository.branches[f"step-{step}"]]
        assert files.keys() == FILES | CODE_FILES | {".gitattributes"}
        checkpoint = tmp_path / "run" / "checkpoints" / f"step-{step:08d}"
        for name in FILES | CODE_FILES:
            assert files[name] == (checkpoint / name).read_bytes()
        assert "AutoModel" in json.loads(files["config.json"])["auto_map"] and load(files["model.safetensors"])


def test_a_failure_is_one_line_and_changes_nothing(recipe_file, tmp_path, capfd):
    assert train.main([str(recipe_file), "hub_model_id=org/luna"]) == 0  # the tests are offline
    warnings = [line for line in capfd.readouterr().err.splitlines() if "was not published" in line]
    assert len(warnings) == 2 and all("to org/luna (" in line and "training goes on" in line for line in warnings)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert train.main([str(recipe_file), f"output_dir={tmp_path / 'without'}"]) == 0
    assert rows_of(tmp_path / "run") == rows_of(tmp_path / "without")


def test_a_name_that_the_hub_would_not_take_is_refused_at_once(recipe_values):
    with pytest.raises(RecipeError, match="`hub_model_id` is 'org/lu na'"):
        recipe_from_values(recipe_values | {"hub_model_id": "org/lu na"}, "")
