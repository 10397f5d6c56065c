# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""A run publishes to a Hub on loopback: complete, in order, and never in the way of training."""

import json

from huggingface_hub import ModelCard
from safetensors.torch import load

from luna_tools.cards import UNNAMED, named_card
from tests.support.hub_server import Hub
from tests.support.pretraining import exact_rows, pretrain

CODE_FILES = {"causal_luna.py", "configuration_luna.py", "modeling_luna.py"}
FILES = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} | CODE_FILES


def test_every_checkpoint_becomes_a_revision_and_the_finished_model_main(recipe_file, tmp_path, monkeypatch):
    with Hub() as hub:
        hub.serve_this_process(monkeypatch, tmp_path / "cache")
        assert pretrain(recipe_file, "--hub_model_id", "org/luna") == 0
        repository = hub.repositories["org/luna"]
    assert repository.private
    assert repository.branches.keys() == {"main", "step-4", "step-8"}
    model, files = tmp_path / "run" / "model", repository.commits[repository.branches["main"]]
    for name in FILES:
        assert files[name] == (model / name).read_bytes()
    card = ModelCard((model / "README.md").read_text())
    assert files["README.md"].decode() == named_card(card.content, "org/luna") and str(tmp_path) not in card.content
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    values = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert values == {name: results[f"eval_{name}"] for name in ("loss", "perplexity", "accuracy")}
    for step in (4, 8):
        files = repository.commits[repository.branches[f"step-{step}"]]
        assert files.keys() == FILES | {"README.md", ".gitattributes"}
        checkpoint = tmp_path / "run" / "checkpoints" / f"step-{step:08d}"
        for name in FILES:
            assert files[name] == (checkpoint / name).read_bytes()
        card = (checkpoint / "README.md").read_text()
        assert UNNAMED in card and files["README.md"].decode() == named_card(card, "org/luna", f"step-{step}")
        assert f'name, revision="step-{step}"' in files["README.md"].decode()
        assert f"after step {step} of 8" in card and "None: a checkpoint" in card
        assert "AutoModel" in json.loads(files["config.json"])["auto_map"] and load(files["model.safetensors"])


def test_a_failure_is_one_line_and_changes_nothing(recipe_file, finished, tmp_path, capfd):
    assert pretrain(recipe_file, "--hub_model_id", "org/luna") == 0  # the tests are offline
    warnings = [line for line in capfd.readouterr().err.splitlines() if "was not published" in line]
    assert all("to org/luna (" in line for line in warnings)
    assert len([line for line in warnings if "training goes on" in line]) == 2 and len(warnings) == 3
    assert exact_rows(tmp_path / "run") == exact_rows(finished)
