# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Tokenising in worker processes, with the results in the order of the texts and little held in memory."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import numpy as np
from tokenizers import Tokenizer, pre_tokenizers

from luna_tools.workers import map_in_order
from pretraining.prepare.slices import cut_up
from pretraining.prepare.tokenizer import load_for_text

Note = TypeVar("Note")

PIECE_CHARS = 2**12
_tokenizer: Tokenizer  # of this worker process


def encode_in_order(
    batches: Iterable[tuple[Note, list[str]]], tokenizer_folder: Path, num_proc: int
) -> Iterator[tuple[Note, list[np.ndarray]]]:
    """Tokenise batches of texts, without special tokens, in `num_proc` processes (1: in this one).

    Args:
        batches: pairs of anything and a list of texts; read at most `TASKS_PER_PROCESS * num_proc` batches ahead.
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
    notes: deque[Note] = deque()

    def texts_of_batches() -> Iterator[list[str]]:
        for note, texts in batches:
            notes.append(note)
            yield texts

    encoded = map_in_order(_encode_in_worker, texts_of_batches(), num_proc, "num_proc", _start_worker, (tokenizer_folder,))
    with closing(encoded):
        for arrays in encoded:
            yield notes.popleft(), arrays


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
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    _tokenizer = load_for_text(tokenizer_folder)


def _encode_in_worker(texts: list[str]) -> list[np.ndarray]:
    return encode(_tokenizer, texts)
