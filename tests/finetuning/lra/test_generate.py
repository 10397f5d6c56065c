# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The command `luna generate`: words and options, one sentence for what is wrong, and an end in order at a signal."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from finetuning.lra.generate import GENERATORS
from luna_tools.command_line import run
from tests.support.fresh_process import ROOT

TASKS = "listops, pathfinder32, pathfinder128"


def test_tasks_and_options_are_listed(capsys):
    for argv in ([], ["--help"]):
        assert run("generate", argv) == 0
        assert TASKS in capsys.readouterr().out
    for task in GENERATORS:
        assert run("generate", [task, "--help"]) == 0
        shown = capsys.readouterr().out
        assert shown.startswith(f"usage: luna generate {task} [options.yaml]")
        assert "--seed" in shown and "(default: 2000)" in shown or "(default: 200000)" in shown


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["aan"], f"Give one of {TASKS} before the options, not aan."),
        (["--seed", "1"], f"Give one of {TASKS} before the options, not nothing."),
        (["listops"], "`output_dir` is missing: give --output_dir; `luna generate listops --help` lists the options."),
        (
            ["pathfinder32", "--output_dir", "x", "--num_samples", "many"],
            "`num_samples` is 'many', but must be of type int; ",
        ),
        (["pathfinder128", "--output_dir", "x", "--contour_length", "1"], "`contour_length` is 1, but must be at least 2."),
        (["listops", "--output_dir", "x", "--max_length", "400"], "No expression has more than `min_length` 500 and fewer "),
    ],
)
def test_wrong_input_is_one_sentence(argv, sentence, capsys):
    assert run("generate", argv) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {sentence}") and error.count("\n") == 1


SMALL = ["--num_samples", "6", "--contour_length", "4", "--num_workers", "1"]


def test_what_is_complete_is_named(tmp_path, capsys, monkeypatch):
    (tmp_path / "options.yaml").write_text("num_distractors: 0\n")
    monkeypatch.chdir(tmp_path)
    assert run("generate", ["pathfinder32", "options.yaml", "--output_dir", "out", *SMALL]) == 0
    assert capsys.readouterr().out == "out/pathfinder32/curv_contour_length_4 is complete.\n"


def test_a_full_disk_is_one_sentence(tmp_path, capsys, monkeypatch):
    def fail(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    assert run("generate", ["pathfinder32", "--output_dir", str(tmp_path), *SMALL]) == 2
    told = f"error: {tmp_path} cannot be written (the disk is full): free some space and give the same command again.\n"
    assert capsys.readouterr().err == told


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_what_is_complete(number, tmp_path):
    """As a terminal interrupts: the workers too."""
    arguments = ["pathfinder32", "--output_dir", str(tmp_path), "--contour_length", "6", "--num_workers", "2"]
    command = [sys.executable, "-m", "luna_tools.command_line", "generate", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, cwd=ROOT, text=True, start_new_session=True, **pipes)
    folder = tmp_path / "pathfinder32" / "curv_contour_length_6"
    while not list(folder.glob("metadata/*.npy")):
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate() if number == signal.SIGTERM else os.killpg(process.pid, number)
    _, error = process.communicate(timeout=60)  # returns when the workers have ended, too
    assert process.returncode == 128 + number
    sentence = f"Stopped by {number.name}: nothing is half-written. Give the same command again: what is complete is kept."
    assert error.splitlines()[-1] == sentence and "Traceback" not in error
    shards = [path.stem for path in folder.glob("metadata/*.npy")]
    assert sorted(path.name for path in folder.glob("imgs/*")) == sorted(shards)
    assert all(len(list((folder / "imgs" / shard).iterdir())) == 1000 for shard in shards)
