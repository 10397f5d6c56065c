# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Files are there whole or not at all, and where they cannot be written one sentence says so."""

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest
from safetensors import SafetensorError

from luna_tools.errors import InputError
from luna_tools.files import put_in_place, sha256, staging_folder, write_json, writing


def test_json_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    write_json(path, {"a": 1})

    def killed(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}


def test_the_hash_is_that_of_all_bytes(tmp_path):
    content = os.urandom(3 * 2**20 + 1)
    (tmp_path / "file").write_bytes(content)
    assert sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


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


FULL = "(the disk is full): free some space and give the same command again."
UNWRITTEN = [
    (OSError(errno.ENOSPC, "No space left on device", "OUT/.unfinished-x/a"), FULL),
    (OSError(errno.EFBIG, "File too large"), FULL),
    (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), FULL),
    (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"), FULL),
    (PermissionError(errno.EACCES, "Permission denied", "OUT/a"), "(Permission denied): choose another place."),
    (
        SafetensorError("Error while serializing: it is odd. More."),
        "(Error while serializing: it is odd): choose another place.",
    ),
]


@pytest.mark.parametrize("error, sentence", UNWRITTEN)
def test_what_cannot_be_written_is_one_sentence(error, sentence):
    with pytest.raises(InputError) as refused, writing(Path("OUT")):
        raise error
    assert str(refused.value) == f"OUT cannot be written {sentence}"


@pytest.mark.parametrize("error", [InputError("mine"), RuntimeError("a bug"), KeyboardInterrupt()])
def test_other_errors_pass(error):
    with pytest.raises(type(error)) as passed, writing(Path("OUT")):
        raise error
    assert passed.value is error
