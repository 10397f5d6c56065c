# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Runs with --push_to_hub against a Hub on loopback: the finished folder, without pickles, with the card's name right."""

import pytest
from huggingface_hub import ModelCard

from luna_tools import push
from luna_tools.cards import UNNAMED
from luna_tools.errors import InputError
from tests.support.finetuning import read_results, run_task
from tests.support.hub_server import Hub, HubError

WRITTEN_WHILE_TRAINING = ("training_args.bin", "optimizer.pt", "rng_state.pth", "scheduler.pt")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with Hub() as hub:
        hub.serve_this_process(monkeypatch, tmp_path / "cache")
        yield hub


@pytest.fixture
def options(values):
    return values | {"push_to_hub": True, "hub_model_id": "org/sst2", "max_steps": 2}


@pytest.mark.slow
def test_a_run_is_pushed_whole_and_without_pickles(hub, options, pictures):
    results = run_task("sst2", **options)
    folder, repository = options["output_dir"], hub.repositories["org/sst2"]
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert not names & set(WRITTEN_WHILE_TRAINING)
    assert {"model.safetensors", "modeling_luna.py", "configuration_luna.py", "README.md", "tokenizer.json"} <= names
    # One commit after the Hub's own, so no checkpoint was pushed while training.
    assert len(repository.commits) == 2
    files = repository.commits[repository.branches["main"]]
    assert files.keys() == names | {".gitattributes"}
    for name in names - {"README.md"}:
        assert files[name] == (folder / name).read_bytes()

    card = (folder / "README.md").read_text()
    assert UNNAMED in card
    assert files["README.md"].decode() == card.replace(UNNAMED, 'name = "org/sst2"')
    values = {result.metric_name: result.metric_value for result in ModelCard(card).data.eval_results}
    assert values["accuracy"] == results["eval_accuracy"]
    # The project's own check takes the folder, and the card names the next repository.
    assert not push.main([str(folder), "org/again"])
    again = hub.repositories["org/again"]
    assert 'name = "org/again"\n' in again.commits[again.branches["main"]]["README.md"].decode()


def test_a_push_that_fails_is_one_sentence_and_loses_nothing(hub, options):
    hub.failures = {"POST /api/models/org/sst2/commit/": HubError(403, message="read only")}
    with pytest.raises(InputError, match=r"was not pushed \(.*read only.*with `luna push .*run org/sst2`\.") as error:
        run_task("sst2", **options)
    assert "\n" not in str(error.value)
    assert read_results(options["output_dir"])
    assert UNNAMED in (options["output_dir"] / "README.md").read_text()
