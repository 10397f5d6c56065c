# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""One job and several go on after any end with the same bytes, and refuse to go on with anything else."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from luna_tools.errors import InputError
from luna_tools.files import locked
from pretraining.prepare import finish, slices
from pretraining.prepare.run import prepare
from pretraining.prepare.sources import python_docs
from pretraining.prepare.state import LOCK
from tests.support.preparing import Killed, command_line, contents, make_config, prepare_in_jobs, prepare_until_killed, steps

ROOT = Path(__file__).parents[3]
PLAN, JOB, MERGE = ({"num_jobs": 2} | step for step in ({"plan": True}, {"job": 0}, {"merge": True}))


@pytest.mark.parametrize(
    ("num_jobs", "options"),
    [
        (None, {}),
        (2, {"deduplicate": True}),
        pytest.param(None, {"deduplicate": True}, marks=pytest.mark.slow),
        pytest.param(2, {}, marks=pytest.mark.slow),
        pytest.param(None, {"num_proc": 2}, marks=pytest.mark.slow),
    ],
)
def test_killed_at_every_write(faulty, tmp_path, num_jobs, options, monkeypatch):
    """Also in the middle of a document that is cut up."""
    monkeypatch.setattr(slices, "SLICE_CHARS", 500)
    monkeypatch.setattr(slices, "CUT_WINDOW_CHARS", 50)
    options = options | {"on_error": "skip", "shard_size_mb": 0.02}
    prepare(make_config(tmp_path / "whole", faulty, **options))
    kills = 0
    for step in steps(num_jobs):
        config, before = make_config(tmp_path / "out", faulty, **options, **step), kills
        at_once = 1 if config.job is not None or config.merge else 2  # a plan begins anew
        while prepare_until_killed(config, min(kills - before, at_once)) is None:  # what is written is not written again
            kills += 1
            assert kills < 50
    assert kills > 5
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_killed_after_the_manifest_was_written(faulty, faulty_complete, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(finish, "remove_unfinished", lambda output: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            prepare_in_jobs(tmp_path / "out", faulty, 2, on_error="skip")
    assert (tmp_path / "out" / "jobs").exists()
    prepare(make_config(tmp_path / "out", faulty, on_error="skip", **MERGE))
    (tmp_path / "out" / ".lock").unlink()
    assert contents(tmp_path / "out") == contents(faulty_complete)


@pytest.mark.parametrize(("num_jobs", "writes"), [(None, 1), (2, 9)])  # to the disk: at the tokenizer, and of the tokens
def test_disk_full_on_the_way(faulty, faulty_complete, tmp_path, monkeypatch, num_jobs, writes):
    fsync, left = os.fsync, iter(range(writes))

    def full(descriptor):
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(InputError, match="No space left on device; free some space and run the same command again"):
            prepare_in_jobs(tmp_path / "out", faulty, num_jobs, on_error="skip")
    prepare_in_jobs(tmp_path / "out", faulty, num_jobs, on_error="skip")
    assert contents(tmp_path / "out") == contents(faulty_complete)


def test_too_little_disk(faulty, tmp_path, monkeypatch):
    """Half as much again as the dataset takes is too little for streams and dataset."""
    usage = shutil.disk_usage(tmp_path)
    needed = 2 / 5 * sum(path.stat().st_size for path in faulty.iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=int(1.5 * needed)))
    with pytest.raises(InputError, match="the token streams and the dataset take at least 0 MB and 0 MB are free; free"):
        prepare(make_config(tmp_path / "out", faulty, on_error="skip"))


def test_on_error_may_become_skip_on_the_way(faulty, tmp_path):
    options = {"tokenizer_sample_mb": 0.02}
    with pytest.raises(InputError, match=r"b\.jsonl:151 is not a JSON object but list: correct it, or"):
        prepare(make_config(tmp_path / "out", faulty, **options))
    for output in ("out", "whole"):
        made = prepare(make_config(tmp_path / output, faulty, on_error="skip", **options))
        assert made["skipped"]["count"] == 2
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    with pytest.raises(InputError, match="was made with --on_error skip, and this is fail"):
        prepare(make_config(tmp_path / "out", faulty, **options))


def test_begun_anew_while_nothing_is_finished(corpus, tmp_path, complete, capsys):
    assert prepare_until_killed(make_config(tmp_path / "out", corpus, shard_size_mb=9), 4) is None
    assert (tmp_path / "out" / "validation").exists()
    assert prepare_until_killed(make_config(tmp_path / "out", corpus, validation_fraction=0), 2) is None
    assert not (tmp_path / "out" / "validation").exists()
    prepare(make_config(tmp_path / "out", corpus))
    assert capsys.readouterr().out.count("less than a shard is done, so it is begun anew") == 2
    assert contents(tmp_path / "out") == contents(complete[0])
    prepare(make_config(tmp_path / "jobs", corpus, seed=3, num_jobs=5, plan=True))
    prepare_in_jobs(tmp_path / "jobs", corpus, 2)
    assert contents(tmp_path / "jobs") == contents(complete[0])


# ---------------------------------------------------------------------------------------------------------------------
# What is refused


def _go_on(output, writes=100, **options):
    return prepare_until_killed(make_config(output, "corpus", on_error="skip", **options), writes)


@pytest.fixture(scope="session")
def begun(faulty, tmp_path_factory):
    """Interrupted work of one job and of two, beside its corpus."""
    folder = tmp_path_factory.mktemp("begun")
    shutil.copytree(faulty, folder / "corpus")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert _go_on("one", 4) is None
        assert _go_on("two", **PLAN)
        assert _go_on("two", 3, **JOB) is None
    return folder


@pytest.fixture
def copied(begun, tmp_path, monkeypatch):
    monkeypatch.chdir(shutil.copytree(begun, tmp_path / "copied"))


OTHER = r"other input \(first change: corpus/b\.jsonl\): "
NOT_AS_LEFT = "is not as the interrupted run left it: delete"


@pytest.mark.parametrize(
    ("output", "options", "harmed", "message"),
    [
        ("one", {}, "corpus/b.jsonl", f"one was planned with {OTHER}bring it back, or plan in another folder"),
        ("two", JOB, "corpus/b.jsonl", f"two was planned with {OTHER}bring it back, or plan in another folder"),
        ("one", {"seed": 1}, None, "one was made with --seed 0, and this is 1: use the old value"),
        ("one", {}, "one/tokenizer/tokenizer.json", f"one/tokenizer/tokenizer.json {NOT_AS_LEFT} one and run again"),
        ("two", JOB, "two/jobs/00000/train.tokens", f"00000/train.tokens {NOT_AS_LEFT} two/jobs/00000 and run again"),
        ("one", PLAN, None, "one was made with --num_jobs 1, and this is 2: use the old value, another folder"),
        ("two", {}, None, "two is prepared by several jobs: add --num_jobs 2 and --plan, --job or"),
    ],
)
def test_work_that_does_not_fit(copied, output, options, harmed, message):
    if harmed:
        Path(harmed).write_text("{}")
    with pytest.raises(InputError, match=message):
        _go_on(output, **options)


@pytest.mark.parametrize(("folder", "step"), [("two", {}), ("two", PLAN), ("two", MERGE), ("two/jobs/00000", JOB)])
def test_two_runs_in_a_folder(copied, folder, step):
    with locked(Path(folder) / LOCK), pytest.raises(InputError, match=f"^{folder}: another run is writing here"):
        _go_on("two", **step)


STRANGE = [(name, text) for name in ("manifest.json", "plan.json") for text in ("{}", "[]", "not JSON")]
EARLIER, OF_EARLIER = '{"format_version": 2}', "is of format 2, and this version of the program goes on with format"


@pytest.mark.parametrize(
    ("name", "text", "step", "message"),
    [
        *(("thesis.txt", "x", step, r"the folder is not empty \(thesis\.txt\) and not from an") for step in ({}, PLAN)),
        *(("plan.json", EARLIER, step, f"plan.json {OF_EARLIER} 4: use the version") for step in ({}, PLAN, JOB, MERGE)),
        ("manifest.json", EARLIER, {}, f"manifest.json {OF_EARLIER} 1: use the version that wrote it"),
        *(
            (name, text, {}, f"{name}: this file is not from an earlier run; choose another folder")
            for name, text in STRANGE
        ),
    ],
)
def test_output_that_holds_other_things(corpus, tmp_path, name, text, step, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        prepare(make_config(tmp_path, corpus, **step))
    assert {file: data for file, data in contents(tmp_path).items() if file != ".lock"} == {name: text.encode()}


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
    assert json.loads((tmp_path / "out/jobs/00000/progress.json").read_text())["files"]["train.tokens"]["bytes"]
    status, _, err = run(3, signal.SIGINT)
    assert (status, err.splitlines()[-1]) == (130, "Interrupted: give the same command again.")
    assert "Traceback" not in err
    status, out, _ = run(0, signal.SIGKILL)
    assert status == 0 and "Going on with the interrupted run" in out
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
