# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""One process of a run has failed: all end, within seconds, and one says why.

A process that fails alone leaves the others waiting for it in a collective, on GPUs for as long as NCCL's timeout. It may
wait itself, too: the interpreter's exit joins threads and child processes. So it leaves without that, and the others, who
look for its alarm in the launcher's key-value store, do the same.
"""

import multiprocessing
import os
import sys
import threading
from typing import NoReturn

import torch

KEY = "pretraining/failed"
SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_TO_END = 2.0  # for the others' own way out: their collectives may end at once by an error


class Alarm:
    """Tells the processes of a run that one has failed. One process alone needs none, and does nothing.

    Args:
        num_processes: of the run.
        process_index: this one's rank.
    """

    def __init__(self, process_index: int, num_processes: int):
        self.store, self.closed = None, threading.Event()
        if num_processes > 1:
            # A connection of its own: the process group's may be busy in another thread.
            self.store, _, _ = next(torch.distributed.rendezvous("env://", process_index, num_processes))
            threading.Thread(target=self.watch, daemon=True).start()

    def watch(self) -> None:
        """End this process soon after another one has raised the alarm."""
        while not self.closed.wait(SECONDS_BETWEEN_LOOKS):
            if self.is_raised() and not self.closed.wait(SECONDS_TO_END):
                leave(2)

    def is_raised(self) -> bool:
        """Tell whether a process has failed, or taken the store with it."""
        try:
            return self.store.check([KEY])
        except RuntimeError:
            return True

    def close(self) -> None:
        """Look no more."""
        self.closed.set()

    def raise_and_leave(self, sentence: str) -> NoReturn:
        """End all processes, this one at once; the first to come here prints `sentence`."""
        self.close()
        try:
            is_first = self.store.add(KEY, 1) == 1
        except RuntimeError:  # the store ended with the process that has failed
            is_first = False
        if is_first:
            print(sentence, file=sys.stderr)
        leave(2)


def leave(status: int) -> NoReturn:
    """End this process and its children without the interpreter's exit, which may wait for ever."""
    for child in multiprocessing.active_children():
        child.kill()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
