# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Everything that may take long is shown, and what takes a moment is not."""

from pretraining.prepare import progress
from pretraining.prepare.run import prepare
from pretraining.prepare.sources import python_docs
from tests.support.preparing import make_config, prepare_in_jobs, prepare_until_killed

READING = ("Listing", "Reading for the tokenizer: ", "Training the tokenizer: ")
FINISHING = ("Checksums of train", "Checksums of validation", "Counting tokens")
OF_JOBS = ("Measuring", "Checking", "Merging")


def test_all_phases_are_shown(faulty, corpus, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, "DELAY", 0)
    prepare_in_jobs(tmp_path / "jobs", faulty, 2, on_error="skip", deduplicate=True)
    shown = capsys.readouterr().err
    assert [
        title for title in (*READING, *OF_JOBS, "Job 1 of 2", "Looking for duplicates", *FINISHING) if title not in shown
    ] == []
    assert prepare_until_killed(make_config(tmp_path / "out", corpus), 5) is None
    prepare(make_config(tmp_path / "out", corpus))
    shown = capsys.readouterr().err
    alone = ("Reading up to where the work was interrupted", "Tokenising")
    assert [title for title in (*READING, *OF_JOBS, *alone, *FINISHING) if title not in shown] == []
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(tmp_path)})
    assert python_docs.__wrapped__() == ()
    assert "Reading the standard library" in capsys.readouterr().err
