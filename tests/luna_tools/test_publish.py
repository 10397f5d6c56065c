# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Checkpoints and finished models on a Hub on loopback: complete, in order, and never in the way of training."""

import json

import pytest
import torch
from accelerate.state import AcceleratorState
from huggingface_hub import ModelCard
from safetensors.torch import load
from tests.support.fresh_process import run_program
from tests.support.hub_server import TOKEN, Hub
from tests.support.luna_builders import build, make_tokenizer

from luna_tools.publish import publish, wait_for_uploads
from modeling_luna import UNNAMED, LunaForMaskedLM, named_card
from pretraining import train
from pretraining.recipe import InputError, recipe_from_values

FILES = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
CODE_FILES = {"configuration_luna.py", "modeling_luna.py"}


def rows_of(run):
    rows = train.read_metrics(run / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name not in ("tokens_per_second", "data_wait")} for row in rows]


def test_every_checkpoint_becomes_a_revision_and_the_finished_model_main(recipe_file, tmp_path, monkeypatch):
    with Hub() as hub:
        hub.serve_this_process(monkeypatch, tmp_path / "cache")
        assert train.main([str(recipe_file), "hub_model_id=org/luna"]) == 0
        repository = hub.repositories["org/luna"]
    assert repository.private
    assert repository.branches.keys() == {"main", "step-4", "step-8"}
    model, files = tmp_path / "run" / "model", repository.commits[repository.branches["main"]]
    for name in (FILES | CODE_FILES) - {"README.md"}:
        assert files[name] == (model / name).read_bytes()
    card = ModelCard((model / "README.md").read_text())
    assert files["README.md"].decode() == named_card(card.content, "org/luna")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    values = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert values == {name: results[f"eval_{name}"] for name in ("loss", "perplexity", "accuracy")}
    for step in (4, 8):
        files = repository.commits[repository.branches[f"step-{step}"]]
        assert files.keys() == FILES | CODE_FILES | {".gitattributes"}
        checkpoint = tmp_path / "run" / "checkpoints" / f"step-{step:08d}"
        for name in (FILES | CODE_FILES) - {"README.md"}:
            assert files[name] == (checkpoint / name).read_bytes()
        card = (checkpoint / "README.md").read_text()
        assert UNNAMED in card and files["README.md"].decode() == named_card(card, "org/luna", f"step-{step}")
        assert f'name, revision="step-{step}"' in files["README.md"].decode()
        assert f"after step {step} of 8" in card and "None: a checkpoint" in card
        assert "AutoModel" in json.loads(files["config.json"])["auto_map"] and load(files["model.safetensors"])


def test_a_failure_is_one_line_and_changes_nothing(recipe_file, tmp_path, capfd):
    assert train.main([str(recipe_file), "hub_model_id=org/luna"]) == 0  # the tests are offline
    warnings = [line for line in capfd.readouterr().err.splitlines() if "was not published" in line]
    assert all("to org/luna (" in line for line in warnings)
    assert len([line for line in warnings if "training goes on" in line]) == 2 and len(warnings) == 3
    AcceleratorState._reset_state(reset_partial_state=True)
    assert train.main([str(recipe_file), f"output_dir={tmp_path / 'without'}"]) == 0
    assert rows_of(tmp_path / "run") == rows_of(tmp_path / "without")


@pytest.fixture
def finished(tmp_path):
    folder = tmp_path / "run" / "model"
    tokenizer = make_tokenizer()
    build(LunaForMaskedLM, dtype=torch.float32, vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_finished_model_goes_to_main_and_loads_by_its_name(finished, tmp_path, monkeypatch):
    program = """
from transformers import AutoTokenizer, pipeline
masked = pipeline("fill-mask", "org/luna", trust_remote_code=True)
print(len(masked("The moon <mask> around the earth.")), type(masked.model).__name__)
"""
    with Hub() as hub:
        hub.serve_this_process(monkeypatch, tmp_path / "cache")
        publish(finished, "org/luna", "main")
        wait_for_uploads()
        repository = hub.repositories["org/luna"]
        online = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN}
        done = run_program(program, tmp_path / "elsewhere", **online)
        assert done.returncode == 0 and done.stdout.split() == ["5", "LunaForMaskedLM"], done.stderr
    assert repository.private and repository.branches.keys() == {"main"}
    card = repository.commits[repository.branches["main"]]["README.md"].decode()
    assert 'name = "org/luna"\n' in card and "revision=" not in card
    assert UNNAMED in (finished / "README.md").read_text()


def test_a_finished_model_that_cannot_be_published_is_one_line_with_the_command(finished, capfd):
    publish(finished, "org/luna", "main")  # the tests are offline
    wait_for_uploads()
    (warning,) = capfd.readouterr().err.splitlines()
    assert warning.startswith(f"warning: {finished} was not published to org/luna (")
    assert warning.endswith(f"`python scripts/push_to_hub.py {finished} org/luna` does so.")


def test_a_name_that_the_hub_would_not_take_is_refused_at_once(recipe_values):
    with pytest.raises(InputError, match="`hub_model_id` is 'org/lu na'"):
        recipe_from_values(recipe_values | {"hub_model_id": "org/lu na"}, "")
