# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Finished models and checkpoints on a Hub on loopback. tests/pretraining/test_publish.py does so while training."""

import pytest

from luna_tools.cards import named_card
from luna_tools.publish import TRAINING_STATE, files_to_upload, publish, wait_for_uploads
from pretraining.checkpoint import SEAL
from tests.support.folders import save_whole
from tests.support.fresh_process import run_program
from tests.support.hub_server import TOKEN, Hub


@pytest.fixture
def finished(tmp_path):
    return save_whole(tmp_path / "run" / "model")


@pytest.mark.slow
def test_a_finished_model_goes_to_main_and_loads_by_its_name_and_a_token(finished, tmp_path, monkeypatch):
    program = """
from transformers import AutoTokenizer, pipeline
masked = pipeline("fill-mask", "org/luna", trust_remote_code=True)
print(len(masked("The moon <mask> around the earth.")), type(masked.model).__name__)
"""
    card = (finished / "README.md").read_text()
    with Hub() as hub:
        hub.serve_this_process(monkeypatch, tmp_path / "cache")
        publish(finished, "org/luna", "main")
        wait_for_uploads()
        repository = hub.repositories["org/luna"]
        online = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN}
        done = run_program(program, tmp_path / "elsewhere", **online)
        assert done.returncode == 0 and done.stdout.split() == ["5", "LunaForMaskedLM"], done.stderr
    assert repository.private and repository.branches.keys() == {"main"}
    assert repository.commits[repository.branches["main"]]["README.md"].decode() == named_card(card, "org/luna")
    assert (finished / "README.md").read_text() == card


def test_a_finished_model_that_cannot_be_published_is_one_line_with_the_command(finished, capfd):
    publish(finished, "org/luna", "main")  # the tests are offline
    wait_for_uploads()
    (warning,) = capfd.readouterr().err.splitlines()
    assert warning.startswith(f"warning: {finished} was not published to org/luna (")
    assert warning.endswith(f"`luna push {finished} org/luna` does so.")


def test_a_checkpoint_is_a_revision_without_what_only_resuming_needs(finished, tmp_path, monkeypatch):
    assert SEAL in TRAINING_STATE
    step = finished.rename(finished.with_name("step-00000040"))
    names = files_to_upload(step)
    for name in (*TRAINING_STATE, ".git/config", ".cache/huggingface/x", "sub/.git/config"):
        (step / name).parent.mkdir(parents=True, exist_ok=True)
        (step / name).write_text("")
    with Hub() as hub:
        hub.serve_this_process(monkeypatch, tmp_path / "cache")
        publish(step, "org/luna")
        wait_for_uploads()
        repository = hub.repositories["org/luna"]
    files = repository.commits[repository.branches["step-40"]]
    assert files.keys() == {*names, ".gitattributes"}
    assert 'name, revision="step-40"' in files["README.md"].decode()
