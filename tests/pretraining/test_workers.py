# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Data workers change nothing, outlive no signal before the save, and never hold up or outlive their process."""

import multiprocessing
import os
import signal
import time

import psutil
import pytest

from pretraining.workers import MicroBatches, WorkerError
from tests.support import faults
from tests.support.pretraining import error, is_same_run, last_checkpoint, left_alive, pretrain, write_recipe
from tests.support.ranks import start


def check_that_nothing_is_left(ranks) -> None:
    """Each rank has a session for itself: all in it end, servers of workers too."""
    sessions = {process.pid for process in ranks.processes}
    members = []
    for process in psutil.process_iter():
        try:
            members += [process] if os.getsid(process.pid) in sessions else []
        except ProcessLookupError:
            continue
    assert not left_alive(members)


def test_a_run_with_workers_is_the_run_without_them_and_goes_on_exactly(values, finished, tmp_path):
    """SIGTERM comes to every process of the group, workers included, in the middle of an epoch."""
    recipe = write_recipe(values, tmp_path / "run", dataloader_num_workers=2)
    ranks = start("pretrain", [recipe], before=faults.at_step(3, {0: faults.stop_the_group}))
    done = ranks.wait()
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert last_checkpoint(tmp_path / "run") == 3
    check_that_nothing_is_left(ranks)
    assert pretrain(recipe) == 0
    assert is_same_run(tmp_path / "run", finished)


@pytest.mark.parametrize(
    ("processes", "fault", "sentence"),
    [
        (1, faults.run_out_of_memory, "The memory does not suffice (CUDA out of memory"),
        (2, faults.lose_a_worker, "A data worker ended (exit code -9"),
        pytest.param(2, faults.run_out_of_memory, "The memory does not suffice", marks=pytest.mark.slow),
        pytest.param(1, faults.lose_a_worker, "A data worker ended (exit code -9", marks=pytest.mark.slow),
        pytest.param(2, faults.die, "Another process has ended", marks=pytest.mark.slow),
    ],
)
def test_an_error_beside_workers_ends_all_processes_with_one_sentence(processes, fault, sentence, recipe_file):
    argv = [recipe_file, "--dataloader_num_workers", 2, "--max_steps", 400]
    ranks = start("pretrain", argv, processes, before=faults.at_step(3, {processes - 1: fault}))
    done = ranks.wait(ends_others=False)
    assert done.returncode == (-signal.SIGKILL if fault is faults.die else 2)
    assert sentence in error(done.stderr)
    if fault is faults.lose_a_worker:
        assert "make room or lower `dataloader_num_workers` (now 2)" in done.stderr
    check_that_nothing_is_left(ranks)


@pytest.mark.parametrize("raised", [RuntimeError, ConnectionResetError, EOFError])
def test_whatever_a_dead_worker_breaks_is_told_as_its_end(raised):
    """The one that waits for a tensor notices first, and in its own way."""
    worker = multiprocessing.Process(target=time.sleep, args=(60,))
    worker.start()
    batches = MicroBatches([], [], list, num_workers=0)

    def broken():
        yield worker.kill()
        raise raised("broken")

    batches.workers, batches.iterator = {worker}, broken()
    next(batches)
    with pytest.raises(WorkerError, match="^A data worker ended .exit code -9"):
        next(batches)
