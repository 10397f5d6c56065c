# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Files are there whole or not at all, and where they cannot be written one sentence says so."""

import errno
import hashlib
import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError
from transformers.exporters import OnnxExporter

from luna_tools import export_onnx, plot_attention
from luna_tools.convert.run import main as convert
from luna_tools.errors import InputError, Stopped
from luna_tools.files import put_in_place, sha256, staging_folder, write_json, writing
from modeling_luna import LunaForMaskedLM
from tests.support.fairseq_files import TIED
from tests.support.folders import refused, save_whole, tree


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
    assert tree(tmp_path / target) == {"file": b"whole"}
    assert (tmp_path / target).stat().st_mode == (tmp_path / "empty").stat().st_mode
    assert (tmp_path / "empty").stat().st_ino == inode and not list(tmp_path.rglob(".unfinished-*"))


@pytest.mark.parametrize("stop", [OSError, KeyboardInterrupt])
def test_all_files_move_or_none(stop, tmp_path, monkeypatch):
    for name in ("made", "out"):
        (tmp_path / name).mkdir()
    for name in ("a", "b", "c"):
        (tmp_path / "made" / name).write_text(name)
    before, rename = tree(tmp_path), Path.rename

    def fail_at_the_last(path, target):
        if path == tmp_path / "made" / "c":
            raise stop
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_at_the_last)
    with pytest.raises(stop):
        put_in_place(tmp_path / "made", tmp_path / "out")
    assert tree(tmp_path) == before


def test_a_file_that_is_there_is_not_replaced(tmp_path):
    for name in ("made", "out"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "b").write_text(name)
    (tmp_path / "made" / "a").write_text("made")
    before = tree(tmp_path)
    with pytest.raises(FileExistsError, match="out/b already exists"):
        put_in_place(tmp_path / "made", tmp_path / "out")
    assert tree(tmp_path) == before


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
    with refused(f"OUT cannot be written {sentence}"), writing(Path("OUT")):
        raise error


@pytest.mark.parametrize("error", [InputError("mine"), RuntimeError("a bug"), KeyboardInterrupt()])
def test_other_errors_pass(error):
    with pytest.raises(type(error)) as passed, writing(Path("OUT")):
        raise error
    assert passed.value is error


# ---------------------------------------------------------------------------------------------------------------------
# The commands that write a folder or a file, and the function that does so in each

COMMANDS = {
    "convert": (convert, ["--dictionary", TIED / "dict.txt", "--output_dir"], LunaForMaskedLM, "save_pretrained"),
    "convert back": (convert, ["--to_fairseq"], torch, "save"),
    "export": (export_onnx.main, ["--output_dir"], export_onnx, "largest_difference"),
    "plot": (plot_attention.main, ["A text.", "--output"], plot_attention, "plot"),
}


@pytest.fixture(scope="module")
def luna(tmp_path_factory):
    return save_whole(tmp_path_factory.mktemp("whole") / "luna")


@pytest.fixture(params=COMMANDS)
def command(request, luna, monkeypatch):
    """A command that writes, as a function of its target, with `fail` for what is to happen after a part is written."""
    main, options, *writer = COMMANDS[request.param]
    if request.param == "export":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
        monkeypatch.setattr(OnnxExporter, "export", lambda *_: SimpleNamespace(save_pretrained=lambda folder: None))

    def run(target, fail=None):
        def write_a_part(*arguments, **_):
            path = next(argument for argument in arguments if isinstance(argument, Path))
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"part")
            fail()

        if fail is not None:
            monkeypatch.setattr(*writer, write_a_part)
        main([str(word) for word in (TIED / "model.pt" if request.param == "convert" else luna, *options, target)])

    run.name = request.param
    return run


def raises(error):
    def fail():
        raise error

    return fail


@pytest.mark.parametrize("error, reason", [UNWRITTEN[0], UNWRITTEN[3], UNWRITTEN[4]], ids=["disk", "torch", "forbidden"])
def test_a_command_that_cannot_write_says_so_and_leaves_nothing(error, reason, command, tmp_path):
    (tmp_path / "old.png").write_text("an older picture")
    targets = ["old.png", "new.png"] if command.name == "plot" else ["out", "new/folder/out"]
    for target in targets:
        with refused(f"{target} cannot be written {reason}", tmp_path):
            command(tmp_path / target, raises(error))


# A plot is done in a moment and leaves signals alone, and asks for the folder.
LONGER = pytest.mark.parametrize("command", ["convert", "convert back", "export"], indirect=True)


@LONGER
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_is_stopped_leaves_nothing(number, command, tmp_path):
    with pytest.raises(Stopped, match=f"^Stopped by {number.name}: nothing is half-written.$"):
        command(tmp_path / "new" / "out", lambda: signal.raise_signal(number))
    assert not list(tmp_path.iterdir())


@LONGER
@pytest.mark.parametrize("name, reason", [("x" * 300, "File name too long"), ("file/out", "File exists")])
def test_a_command_says_which_name_cannot_be(name, reason, command, tmp_path):
    (tmp_path / "file").write_text("kept")
    with refused(f"{name} cannot be written ({reason}): choose another place.", tmp_path):
        command(tmp_path / name)
