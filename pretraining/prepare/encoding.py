# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Tokenising in worker processes, with the results in the order of the texts and little held in memory."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TypeVar

import numpy as np
from tokenizers import Tokenizer, pre_tokenizers

from luna_tools.errors import InputError
from pretraining.prepare.slices import cut_up
from pretraining.prepare.tokenizer import load_for_text

Note = TypeVar("Note")

PIECE_CHARS = 2**12
BATCHES_PER_PROCESS = 3  # in flight: one worked on, one waiting, one done

_tokenizer: Tokenizer  # of this worker process


def encode_in_order(
    batches: Iterable[tuple[Note, list[str]]], tokenizer_folder: Path, num_proc: int
) -> Iterator[tuple[Note, list[np.ndarray]]]:
    """Tokenise batches of texts, without special tokens, in `num_proc` processes (1: in this one).

    Args:
        batches: pairs of anything and a list of texts; read at most `BATCHES_PER_PROCESS * num_proc` batches ahead.
        tokenizer_folder: a folder with tokenizer.json.
        num_proc: the number of processes.

    Yields:
        The pairs in the order given, with an int32 array of token ids in the place of each text.

    Raises:
        InputError: a worker process died.
    """
    if num_proc == 1:
        tokenizer = load_for_text(tokenizer_folder)
        for note, texts in batches:
            yield note, encode(tokenizer, texts)
        return
    # Spawned, not forked: tokenizers and pyarrow run threads, and a fork of a process with threads can hang.
    executor = ProcessPoolExecutor(num_proc, multiprocessing.get_context("spawn"), _start_worker, (tokenizer_folder,))
    waiting: deque = deque()
    try:
        # The workers inherit the blocked signal: Ctrl-C reaches the whole process group and is ours to handle.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for _ in range(num_proc):
                executor.submit(os.getpid)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for note, texts in batches:
            waiting.append((note, executor.submit(_encode_in_worker, texts)))
            if len(waiting) == BATCHES_PER_PROCESS * num_proc:
                note, future = waiting.popleft()
                yield note, future.result()
        while waiting:
            note, future = waiting.popleft()
            yield note, future.result()
    except BrokenProcessPool as error:
        raise InputError(
            f"--num_proc {num_proc}: a worker process died, perhaps for want of memory; run the same command with a "
            "smaller number to continue."
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


def encode(tokenizer: Tokenizer, texts: list[str]) -> list[np.ndarray]:
    """Return the token ids of each text, int32, without special tokens."""
    pieces = [[text] for text in texts]
    if _cuts_are_exact(tokenizer):  # short pieces are twice as fast as long ones
        pieces = [list(cut_up(text, PIECE_CHARS)) for text in texts]
    encodings = iter(tokenizer.encode_batch_fast([p for of in pieces for p in of], add_special_tokens=False))
    return [np.array([i for _ in of for i in next(encodings).ids], dtype=np.int32) for of in pieces]


def _cuts_are_exact(tokenizer: Tokenizer) -> bool:
    kind = tokenizer.pre_tokenizer
    return (
        tokenizer.normalizer is None
        and isinstance(kind, pre_tokenizers.ByteLevel)
        and kind.use_regex
        and not kind.add_prefix_space
    )


def _start_worker(tokenizer_folder: Path) -> None:
    global _tokenizer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # for a worker that the executor starts later
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    _tokenizer = load_for_text(tokenizer_folder)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()  # returns when the parent is killed; the worker would wait for ever
    os._exit(1)


def _encode_in_worker(texts: list[str]) -> list[np.ndarray]:
    return encode(_tokenizer, texts)
