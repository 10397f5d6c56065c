# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Packing documents into rows of one length and writing them as arrow shards.

A shard is an arrow stream: a schema message, one message per batch of rows, and an end mark.
"""

import json
import os
import shutil
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa

from pretraining.prepare.progress import progress_bar

BATCH_BYTES = 2**20  # rows are written about this many bytes at a time
END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"


class SplitWriter:
    """Packs the token stream of one split into rows and writes them to `folder` as shards.

    The stream is the documents' tokens with `end_id` between documents. It is cut into blocks of
    `sequence_length - 2` tokens, wherever that falls, also within a sentence; a row is `start_id`, a block, `end_id`.
    The last, partial block is dropped.

    Args:
        folder: where the shards go; emptied first.
        sequence_length: the length of a row.
        start_id, end_id: the ids that start and end a row; `end_id` also stands between documents.
        dtype: the integer type of the stored ids.
        shard_bytes: the size of a shard, about; at least one row.
    """

    def __init__(self, folder: Path, sequence_length: int, start_id: int, end_id: int, dtype: np.dtype, shard_bytes: float):
        self.folder = folder
        self.sequence_length = sequence_length
        self.start_id = start_id
        self.end_id = end_id
        self.dtype = np.dtype(dtype)
        row_bytes = sequence_length * self.dtype.itemsize
        self._rows_per_shard = max(1, int(shard_bytes // row_bytes))
        self._rows_per_batch = min(self._rows_per_shard, max(1, BATCH_BYTES // row_bytes))
        self._schema = _features(sequence_length, self.dtype).arrow_schema
        shutil.rmtree(folder, ignore_errors=True)  # of a merge that was interrupted
        folder.mkdir()
        self.documents = self.rows = self._open_rows = 0
        self.shards: list[dict] = []  # finished: file, rows, bytes
        self._file = None
        self._pending = [np.empty(0, dtype=self.dtype)]  # not yet written
        self._pending_tokens = 0

    def _shard_name(self) -> str:
        return f"data-{len(self.shards):05d}.arrow"

    def add(self, tokens: np.ndarray, documents: int) -> None:
        """Append tokens in which `documents` documents start, each after an `end_id`.

        With documents, the tokens start with one; without, they are the next part of what was added last.
        """
        if documents and not self.documents:
            tokens = tokens[1:]  # the id stands between documents, not before the first
        self.documents += documents
        self._pending.append(tokens.astype(self.dtype))
        self._pending_tokens += len(tokens)
        self._write_rows(self._rows_per_batch)

    def _write_rows(self, at_least: int) -> None:
        block = self.sequence_length - 2
        if self._pending_tokens < at_least * block:
            return
        stream = np.concatenate(self._pending)
        while len(stream) >= at_least * block:
            count = min(len(stream) // block, self._rows_per_batch, self._rows_per_shard - self._open_rows)
            rows = np.empty((count, self.sequence_length), dtype=self.dtype)
            rows[:, 0] = self.start_id
            rows[:, 1:-1] = stream[: count * block].reshape(count, block)
            rows[:, -1] = self.end_id
            stream = stream[count * block :]
            self._write_batch(rows)
        self._pending = [stream.copy()]  # a copy, for the view would keep the whole stream
        self._pending_tokens = len(stream)

    def _write_batch(self, rows: np.ndarray) -> None:
        if self._file is None:
            self._file = open(self.folder / self._shard_name(), "wb")
            self._file.write(self._schema.serialize())
        column = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), self.sequence_length)
        self._file.write(pa.RecordBatch.from_arrays([column], schema=self._schema).serialize())
        self.rows += len(rows)
        self._open_rows += len(rows)
        if self._open_rows == self._rows_per_shard:
            self._finish_shard()

    def _finish_shard(self) -> None:
        self._file.write(END_OF_STREAM)
        self._file.flush()
        os.fsync(self._file.fileno())
        self.shards.append({"file": self._shard_name(), "rows": self._open_rows, "bytes": self._file.tell()})
        self._file.close()
        self._file = None
        self._open_rows = 0

    def finish(self) -> int:
        """Write the last rows, end the last shard and return the number of tokens dropped."""
        self._write_rows(1)
        if self._file is not None:
            self._finish_shard()
        return self._pending_tokens

    def close(self) -> None:
        """Close the open file, of a run that ends early."""
        if self._file is not None:
            self._file.close()


def _features(sequence_length: int, dtype: np.dtype) -> datasets.Features:
    row = datasets.List(datasets.Value(dtype.name), length=sequence_length)
    return datasets.Features({"input_ids": row})


def write_dataset_files(writer: SplitWriter, fingerprint: str) -> None:
    """Write what `datasets.load_from_disk` needs next to the shards of a finished split."""
    datasets.DatasetInfo(features=_features(writer.sequence_length, writer.dtype)).write_to_directory(str(writer.folder))
    state = {
        "_data_files": [{"filename": shard["file"]} for shard in writer.shards],
        "_fingerprint": fingerprint,
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    (writer.folder / "state.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")


def count_tokens(paths: list[Path], vocab_size: int) -> np.ndarray:
    """Return how often each token id occurs in the rows of the shards, int64 of shape (vocab_size,)."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    for path in progress_bar("Counting tokens", "shard", over=paths):
        with pa.OSFile(str(path)) as file:  # read, not mapped: a mapped shard would count as memory in use
            for batch in pa.ipc.open_stream(file):
                counts += np.bincount(batch.column(0).values.to_numpy(), minlength=vocab_size)
    return counts
