# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Everything that may take long is shown, and what takes a moment is not."""

import pytest

from pretraining.prepare import progress
from pretraining.prepare.run import prepare
from pretraining.prepare.sources import python_docs
from tests.support.preparing import make_config, prepare_in_jobs, prepare_until_killed

READING = ("Listing", "Reading for the tokenizer: ", "Training the tokenizer: ")
FINISHING = ("Checksums of train", "Checksums of validation", "Counting tokens")


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(progress, "DELAY", 0)


def test_phases_of_several_jobs(at_once, faulty, tmp_path, capsys):
    prepare_in_jobs(tmp_path / "out", faulty, 1, on_error="skip", deduplicate=True)
    shown = capsys.readouterr().err
    for title in (*READING, "Measuring", "Job 0 of 1", "Checking", "Looking for duplicates", "Merging", *FINISHING):
        assert title in shown


def test_phases_of_one_job(at_once, corpus, tmp_path, capsys):
    assert prepare_until_killed(make_config(tmp_path / "out", corpus), 4) is None
    prepare(make_config(tmp_path / "out", corpus))
    shown = capsys.readouterr().err
    for title in (*READING, "Reading up to where the work was interrupted", "Packing", *FINISHING):
        assert title in shown


def test_reading_the_standard_library(at_once, capsys, monkeypatch, tmp_path):
    (tmp_path / "module.py").write_text('"""One."""')
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(tmp_path)})
    assert [doc.text for doc in python_docs.__wrapped__()] == ["One."]
    assert "Reading the standard library" in capsys.readouterr().err
