# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""What a job leaves for the merge: the token stream of each split, and where its documents are.

A stream is a file of raw little-endian token ids with `end_id` before every document, so streams that are read one
after the other are one stream. The document log has a record of fixed size for every document: with it, the merge
finds the documents that occur twice and leaves them out.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pretraining.dataset_format import SPLITS
from pretraining.prepare.progress import progress_bar

RECORD = np.dtype([("hash", "<u8", 2), ("tokens", "<u8"), ("text_bytes", "<u8"), ("split", "u1")])
CHUNK = 2**20  # records or tokens that are read at a time
HASHES_PER_PASS = 2**22  # to find duplicates, about 70 bytes of memory for each


class AppendedFile:
    """A file that grows, and that can be cut back to a checkpoint.

    Args:
        path: the file.
        state: what `checkpoint` returned, to go on from there.

    Raises:
        FileNotFoundError: the file is shorter than at the checkpoint.
    """

    def __init__(self, path: Path, state: dict | None = None):
        size = state["bytes"] if state else 0
        if state and (not path.is_file() or path.stat().st_size < size):
            raise FileNotFoundError(path)
        self.path = path
        self.bytes = size
        self._file = open(path, "r+b" if state else "wb", buffering=2**20)
        self._file.truncate(size)
        self._file.seek(size)

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self.bytes += len(data)

    def checkpoint(self) -> dict:
        """Make what is written safe on disk and return the state, fit for JSON, to go on from."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return {"bytes": self.bytes}

    def close(self) -> None:
        self._file.close()


class StreamWriter(AppendedFile):
    """Writes the token stream of one split, of integers of `dtype` with `end_id` before every document."""

    def __init__(self, path: Path, state: dict | None, end_id: int, dtype: np.dtype):
        super().__init__(path, state)
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._separator = np.array([end_id], dtype=self._dtype).tobytes()

    def add(self, tokens: np.ndarray, starts_document: bool) -> None:
        """Append a document, or with `starts_document` false the next part of the last one."""
        if starts_document:
            self.write(self._separator)
        self.write(tokens.astype(self._dtype).tobytes())


class DocumentLog(AppendedFile):
    """Writes a record for every document: its split, tokens, bytes of text, and a hash of its text without white space
    around it. Documents of different `repeat` have different hashes: a weight above 1 repeats them on purpose.
    """

    def __init__(self, path: Path, state: dict | None = None):
        super().__init__(path, state)
        self._hash = None

    def add(self, text: str, tokens: int, starts_document: bool, split: str, repeat: int) -> None:
        """Take a document, or with `starts_document` false the next part of the last one."""
        if starts_document:
            self._end_document()
            self._hash = hashlib.blake2b(digest_size=16, salt=str(repeat).encode("ascii"))
            self._space = ""
            self._record = np.zeros((), dtype=RECORD)
            self._record["split"] = SPLITS.index(split)
        self._record["tokens"] += tokens
        self._record["text_bytes"] += len(text.encode("utf-8"))
        text = text.lstrip() if starts_document else text
        body = text.rstrip()  # what follows is part of the text only if more than white space comes after it
        if body:
            self._hash.update((self._space + body).encode("utf-8"))
            self._space = ""
        self._space += text[len(body) :]

    def _end_document(self) -> None:
        if self._hash is not None:
            self._record["hash"] = np.frombuffer(self._hash.digest(), dtype="<u8")
            self.write(self._record.tobytes())
            self._hash = None

    def checkpoint(self) -> dict:
        """Do as for any file, but only between documents: a hash that is begun cannot be kept."""
        self._end_document()
        return super().checkpoint()


class Records(NamedTuple):
    """`count` records of a document log, from number `first` on."""

    log: Path
    first: int
    count: int

    def read(self) -> Iterator[np.ndarray]:
        """Yield the records in order, of type `RECORD`, up to `CHUNK` at a time."""
        return read_stream(self.log, RECORD, self.first, self.count)


def find_duplicates(documents: list[Records]) -> np.ndarray:
    """Mark the documents whose text came before.

    Args:
        documents: all documents, in their order.

    Returns:
        bool, of shape (documents,). A byte a document and the hashes of one pass are all that is held in memory: each
        pass goes through all records, for its share of the hashes.
    """
    duplicate = np.zeros(sum(records.count for records in documents), dtype=bool)
    passes = np.uint64(1 + len(duplicate) // HASHES_PER_PASS)
    for number in progress_bar("Looking for duplicates", "pass", over=range(int(passes))):
        hashes, places, before = [np.empty((0, 2), dtype="<u8")], [np.empty(0, dtype=np.int64)], 0
        for records in documents:
            for chunk in records.read():
                mine = np.flatnonzero(chunk["hash"][:, 0] % passes == number)
                hashes.append(chunk["hash"][mine])
                places.append(before + mine)
                before += len(chunk)
        hashes, places = np.concatenate(hashes), np.concatenate(places)
        order = np.lexsort((hashes[:, 1], hashes[:, 0]))  # stable: of equal hashes, the first document stays first
        hashes, places = hashes[order], places[order]
        duplicate[places[1:][(hashes[1:] == hashes[:-1]).all(axis=1)]] = True
    return duplicate


def read_stream(path: Path, dtype: np.dtype, first: int, count: int) -> Iterator[np.ndarray]:
    """Yield `count` tokens or records of a file from number `first` on, up to `CHUNK` at a time."""
    dtype = np.dtype(dtype).newbyteorder("<")
    for start in range(0, count, CHUNK):
        yield np.fromfile(path, dtype, min(CHUNK, count - start), offset=(first + start) * dtype.itemsize)


def kept_runs(tokens: np.ndarray, kept: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Find what to copy of documents that lie one after the other in a stream.

    Args:
        tokens: the length of each document in the stream, of shape (documents,).
        kept: bool, of the same shape.

    Yields:
        The first token, the number of tokens and the number of documents of each longest run of kept documents.
    """
    starts = np.concatenate([[0], np.cumsum(tokens, dtype=np.int64)])
    edges = np.flatnonzero(np.diff(kept, prepend=False, append=False))
    for first, stop in edges.reshape(-1, 2):
        yield int(starts[first]), int(starts[stop] - starts[first]), int(stop - first)
