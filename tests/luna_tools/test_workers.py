# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Tasks in several processes: results in order, little read ahead, and an end without processes left over."""

import itertools
import multiprocessing
import os
from contextlib import closing

import pytest

from luna_tools.errors import InputError
from luna_tools.workers import TASKS_PER_PROCESS, map_in_order

offset = 0


def set_offset(value: int) -> None:
    global offset
    offset = value


def halve(number: int) -> float:
    """Fails on 13."""
    if number == 13:
        raise InputError("13 is not lucky: leave it out.")
    return offset + number / 2


@pytest.mark.parametrize("num_workers", [1, 3])
def test_results_come_in_order_and_little_is_read_ahead(num_workers):
    tasks = itertools.count(20)
    expected = [100 + number / 2 for number in range(20, 60)]
    with closing(map_in_order(halve, tasks, num_workers, "num_workers", set_offset, (100,))) as results:
        assert [next(results) for _ in range(40)] == expected
    assert next(tasks) - 60 <= TASKS_PER_PROCESS * num_workers
    set_offset(0)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_the_error_of_a_task_is_raised_in_its_turn(num_workers):
    results = map_in_order(halve, range(20), num_workers, "num_workers")
    assert [next(results) for _ in range(13)] == [number / 2 for number in range(13)]
    with pytest.raises(InputError, match="^13 is not lucky: leave it out.$"):
        next(results)
    assert not multiprocessing.active_children()


def test_a_dead_worker_is_an_error_that_names_the_option():
    def tasks():
        for number in range(100):
            if number == 6:
                for worker in multiprocessing.active_children():
                    os.kill(worker.pid, 9)
            yield 0

    with pytest.raises(InputError, match="^--num_proc 2: a worker process died"):
        list(map_in_order(halve, tasks(), 2, "num_proc"))
