# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Data workers: processes that read and mask ahead of the training, and never outlive it or hold it up.

They are forked from a server that has no threads: a fork of the training process, which has, may wait for a lock for ever.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import connection, forkserver, resource_tracker

import torch
from torch.utils.data import DataLoader

from pretraining.order import MicroBatchSampler


class WorkerError(RuntimeError):
    """A data worker has ended; the message is one sentence for the user."""


class MicroBatches:
    """The micro-batches of this process in their order, read ahead by `num_workers` processes if there are any.

    Raises:
        WorkerError: from `next`, where a worker has ended.
    """

    def __init__(self, rows: torch.utils.data.Dataset, sampler: MicroBatchSampler, collate: Callable, num_workers: int):
        others = set(multiprocessing.active_children())
        loader = DataLoader(
            rows,
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=num_workers,
            multiprocessing_context="forkserver" if num_workers > 0 else None,
            worker_init_fn=live_with_parent,
        )
        with stop_signals_blocked():
            self.iterator = iter(loader)
        self.workers = set(multiprocessing.active_children()) - others

    def __next__(self) -> dict[str, torch.Tensor]:
        try:
            return next(self.iterator)
        except (RuntimeError, OSError, EOFError) as error:  # the last two from a tensor that a dead worker was handing over
            ended = connection.wait([worker.sentinel for worker in self.workers], timeout=5)
            dead = [worker for worker in self.workers if worker.sentinel in ended]
            if not dead:
                raise
            dead[0].join()  # so that it has an exit code
            self.kill()  # one that waits for a lock that the dead one held
            raise WorkerError(
                f"A data worker ended (exit code {dead[0].exitcode}, process {dead[0].pid}), as when the system is out of "
                "memory and kills it: make room or lower `dataloader_num_workers` (now "
                f"{len(self.workers)}), and give the same command again."
            ) from error

    def close(self) -> None:
        """End the workers in order, or else at once: they ignore the signal that the interpreter's exit would send."""
        self.iterator = None  # which tells them, and waits a little
        self.kill()

    def kill(self) -> None:
        """End the workers at once."""
        for worker in self.workers:
            worker.kill()


def start_server() -> None:
    """Start what workers are forked from, which takes some seconds of imports, without waiting for it."""
    resource_tracker.ensure_running()  # it takes the block off these signals, so it comes before ours
    forkserver.set_forkserver_preload(["pretraining.objectives"])
    with stop_signals_blocked():
        forkserver.ensure_running()


@contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """Start processes that never see SIGTERM or SIGINT: sent to the whole group, they would end them before the save."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def live_with_parent(worker_index: int) -> None:
    """In a worker: leave signals to the training process, and end when that has ended, however it did."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)

    def end_with_parent() -> None:
        multiprocessing.parent_process().join()
        os._exit(0)

    threading.Thread(target=end_with_parent, daemon=True).start()
