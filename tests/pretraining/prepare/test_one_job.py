# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""One job goes on after any end with the same bytes, and refuses to go on with anything else."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from luna_tools.errors import InputError
from pretraining.prepare.packing import SplitWriter
from pretraining.prepare.run import prepare
from pretraining.prepare.sources import python_docs
from tests.support.preparing import command_line, contents, make_config, prepare_until_killed

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("num_proc", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_at_every_write(complete, corpus, tmp_path, num_proc):
    config = make_config(tmp_path / "out", corpus, num_proc=num_proc)
    kills = 0
    while prepare_until_killed(config, 2) is None:  # two writes further each time: what is written is not written again
        kills += 1
        assert kills < 50
    assert kills >= 3
    assert contents(tmp_path / "out") == contents(complete[0])


def test_one_job_that_leaves_out_duplicates_is_killed(faulty, tmp_path):
    options = {"on_error": "skip", "deduplicate": True}
    prepare(make_config(tmp_path / "whole", faulty, **options))
    kills = 0
    while prepare_until_killed(make_config(tmp_path / "out", faulty, **options), 2) is None:
        kills += 1
        assert kills < 50
    assert kills > 3
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_input_or_settings_that_changed(corpus, tmp_path):
    folder = shutil.copytree(corpus, tmp_path / "corpus")
    assert prepare_until_killed(make_config(tmp_path / "out", folder), 4) is None
    (folder / "b.jsonl").write_text('{"text": "other"}\n')
    with pytest.raises(InputError, match=r"was begun with other input \(first change: .*b\.jsonl\): go on with what"):
        prepare(make_config(tmp_path / "out", folder))
    with pytest.raises(InputError, match="was made with --seed 0, and this is 1: go on with what it was begun with"):
        prepare(make_config(tmp_path / "out", folder, seed=1))


def test_start_over_while_nothing_is_finished(corpus, tmp_path, complete, capsys):
    assert prepare_until_killed(make_config(tmp_path / "out", corpus, seed=7), 2) is None
    assert prepare_until_killed(make_config(tmp_path / "out", corpus, validation_fraction=0), 2) is None
    assert not (tmp_path / "out" / "validation").exists()
    prepare(make_config(tmp_path / "out", corpus))
    assert capsys.readouterr().out.count("no shard was finished, so it is begun anew") == 2
    assert contents(tmp_path / "out") == contents(complete[0])


@pytest.mark.parametrize("name", ["train/data-00000.arrow", "tokenizer/tokenizer.json"])
def test_interrupted_output_that_was_changed(corpus, tmp_path, name):
    config = make_config(tmp_path / "out", corpus)
    assert prepare_until_killed(config, 4) is None
    with open(tmp_path / "out" / name, "a") as file:
        file.write(" ")
    with pytest.raises(InputError, match=f"{name} is not as the interrupted run left it: delete .*out and run again"):
        prepare(config)


def test_on_error_may_become_skip_on_the_way(corpus, tmp_path):
    folder = shutil.copytree(corpus, tmp_path / "corpus")
    (folder / "d.txt").write_bytes(b"\xff")
    config = make_config(tmp_path / "out", folder, tokenizer_sample_mb=0.02)
    with pytest.raises(InputError, match="d.txt:1 is not UTF-8"):
        prepare(config)
    config.on_error = "skip"
    assert prepare(config)["skipped"]["count"] == 1
    config.on_error = "fail"
    with pytest.raises(InputError, match="was made with --on_error skip, and this is fail"):
        prepare(config)


def test_disk_full_on_the_way(corpus, tmp_path, complete, monkeypatch):
    def full(self):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(SplitWriter, "_finish_shard", full)
        with pytest.raises(InputError, match="No space left on device; free some space and run the same command again"):
            prepare(make_config(tmp_path / "out", corpus))
    prepare(make_config(tmp_path / "out", corpus))
    assert contents(tmp_path / "out") == contents(complete[0])


@pytest.mark.parametrize("name", ["progress.json", "plan.json"])
def test_work_begun_by_another_version(corpus, tmp_path, name):
    (tmp_path / name).write_text('{"format_version": 2}')
    message = rf"{name} is of format 2, and this version of the program goes on with format 3: use the version that wrote"
    with pytest.raises(InputError, match=message):
        prepare(make_config(tmp_path, corpus))


# ---------------------------------------------------------------------------------------------------------------------
# Fresh interpreters with workers

SIGNALLED = """
import os, signal, sys
from luna_tools import files
write, left = files.write_json, [int(sys.argv.pop(1))]
number = int(sys.argv.pop(1))
def signalling(*arguments, **options):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), number) if number == signal.SIGKILL else os.killpg(0, number)
    write(*arguments, **options)
files.write_json = signalling
from luna_tools.command_line import main
sys.exit(main(["prepare", *sys.argv[1:]]))
"""


@pytest.mark.slow
def test_stopped_by_signals_with_workers_at_work(tmp_path):
    """Killed, and interrupted as a terminal does it (the workers too): no process stays, and the bytes are the same."""
    text = "\n\n".join(doc.text for doc in python_docs()[:3000])
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    options = {"num_proc": 2, "shard_size_mb": 0.05}
    prepare(make_config(tmp_path / "whole", tmp_path / "a.txt", **options))
    arguments = command_line(tmp_path / "out", tmp_path / "a.txt", **options)

    def run(write, number):
        command = [sys.executable, "-c", SIGNALLED, str(write), str(int(number)), *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(command, cwd=ROOT, text=True, start_new_session=True, **pipes)
        out, err = process.communicate(timeout=120)  # returns when all that have the pipes have ended, workers included
        return process.returncode, out, err

    for write in (1, 3, 5):
        assert run(write, signal.SIGKILL)[0] == -signal.SIGKILL
    assert json.loads((tmp_path / "out" / "progress.json").read_text())["splits"]["train"]["shards"]
    status, _, err = run(3, signal.SIGINT)
    assert (status, err.splitlines()[-1]) == (130, "Interrupted: give the same command again.")
    assert "Traceback" not in err
    status, out, _ = run(0, signal.SIGKILL)
    assert status == 0 and "Going on with the interrupted run" in out
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
