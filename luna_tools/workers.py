# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Work in several processes, with the results in the order of the tasks and few of them held in memory."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from luna_tools.errors import InputError

Task = TypeVar("Task")
Result = TypeVar("Result")

TASKS_PER_PROCESS = 3  # in flight: one worked on, one waiting, one done


def map_in_order(
    function: Callable[[Task], Result],
    tasks: Iterable[Task],
    num_workers: int,
    option: str,
    start: Callable[..., None] | None = None,
    start_arguments: tuple = (),
) -> Iterator[Result]:
    """Call a function of a module with each task, in `num_workers` processes (1: in this one).

    Args:
        tasks: read at most `TASKS_PER_PROCESS * num_workers` ahead.
        option: the option that sets `num_workers`, as the error names it.
        start: called with `start_arguments` in each process before its first task.

    Yields:
        The results in the order of the tasks.

    Raises:
        InputError: a process died.
    """
    if num_workers == 1:
        if start is not None:
            start(*start_arguments)
        yield from map(function, tasks)
        return
    # Spawned, not forked: numpy, tokenizers and pyarrow run threads, and a fork of a process with threads can hang.
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(num_workers, context, _start_worker, (start, start_arguments))
    waiting: deque = deque()
    try:
        # The workers inherit the blocked signal: Ctrl-C reaches the whole process group and is ours to handle.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for _ in range(num_workers):
                executor.submit(os.getpid)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for task in tasks:
            waiting.append(executor.submit(function, task))
            if len(waiting) == TASKS_PER_PROCESS * num_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise InputError(
            f"--{option} {num_workers}: a worker process died, perhaps for want of memory; run the same command with a "
            "smaller number to continue."
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


def _start_worker(start: Callable[..., None] | None, start_arguments: tuple) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # for a worker that the executor starts later
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if start is not None:
        start(*start_arguments)


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()  # returns when the parent is killed; the worker would wait for ever
    os._exit(1)
