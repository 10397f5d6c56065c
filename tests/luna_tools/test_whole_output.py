# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""What stops a command leaves its output whole or absent."""

import signal
from pathlib import Path

import pytest
from tests.support.stopped_command import exit_status_when_stopped

from luna_tools.files import one_sentence_when_stopped, put_in_place, staging_folder


def tree(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("target", ["out", "new/folder/out", "empty"])
def test_folders_get_their_place_or_leave_nothing(target, tmp_path):
    (tmp_path / "empty").mkdir()
    before = tree(tmp_path)
    with pytest.raises(ZeroDivisionError), staging_folder(tmp_path / target) as staging:
        (staging / "made").mkdir()
        1 / 0  # noqa: B018
    assert tree(tmp_path) == before
    with staging_folder(tmp_path / target):
        pass
    assert tree(tmp_path) == before

    inode = (tmp_path / "empty").stat().st_ino
    with staging_folder(tmp_path / target) as staging:
        (staging / "made").mkdir()
        (staging / "made" / "file").write_text("whole")
        put_in_place(staging / "made", tmp_path / target)
    assert tree(tmp_path / target) == ["file"] and (tmp_path / target / "file").read_text() == "whole"
    assert (tmp_path / target).stat().st_mode == (tmp_path / "empty").stat().st_mode
    assert (tmp_path / "empty").stat().st_ino == inode and not list(tmp_path.rglob(".unfinished-*"))


@pytest.mark.parametrize("stop", [OSError, KeyboardInterrupt])
def test_all_files_move_or_none(stop, tmp_path, monkeypatch):
    for name in ("made", "out"):
        (tmp_path / name).mkdir()
    for name in ("a", "b", "c"):
        (tmp_path / "made" / name).write_text(name)
    rename = Path.rename

    def fail_at_the_last(path, target):
        if path == tmp_path / "made" / "c":
            raise stop
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_at_the_last)
    with pytest.raises(stop):
        put_in_place(tmp_path / "made", tmp_path / "out")
    assert tree(tmp_path) == ["made", "made/a", "made/b", "made/c", "out"]


def test_a_file_that_is_there_is_not_replaced(tmp_path):
    for name in ("made", "out"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "b").write_text(name)
    (tmp_path / "made" / "a").write_text("made")
    with pytest.raises(FileExistsError, match="out/b already exists"):
        put_in_place(tmp_path / "made", tmp_path / "out")
    assert tree(tmp_path / "out") == ["b"] and (tmp_path / "out" / "b").read_text() == "out"
    assert tree(tmp_path / "made") == ["a", "b"]


def test_a_second_signal_does_not_stop_the_undoing(tmp_path, capsys):
    undone = []

    def command():
        with one_sentence_when_stopped():
            try:
                signal.raise_signal(signal.SIGTERM)
            finally:
                signal.raise_signal(signal.SIGINT)
                undone.append(True)

    assert exit_status_when_stopped(command) == 143 and undone
    assert capsys.readouterr().err == "error: stopped by SIGTERM: nothing is half-written.\n"


def test_a_signal_that_is_ignored_stays_so(capsys):
    """As under nohup, or behind an `&` in a script."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with one_sentence_when_stopped():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, handler)
    assert capsys.readouterr().err == ""
