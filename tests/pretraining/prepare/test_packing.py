# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Rows are the token stream, cut; shards load with `datasets`."""

import datasets
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretraining.prepare import packing
from pretraining.prepare.packing import SplitWriter, count_tokens, write_dataset_files

START, END = 0, 2
DOCUMENTS = st.lists(st.lists(st.integers(3, 999), max_size=90), max_size=20)


def _writer(folder, sequence_length, rows_per_shard, dtype="uint16"):
    dtype = np.dtype(dtype)
    shard_bytes = rows_per_shard * sequence_length * dtype.itemsize
    return SplitWriter(folder / "split", sequence_length, START, END, dtype, shard_bytes)


@given(DOCUMENTS, st.integers(3, 12), st.integers(1, 7), st.sampled_from([packing.BATCH_BYTES, 60]), st.data())
@settings(deadline=None, max_examples=40)
def test_rows_are_the_stream_without_its_tail(tmp_path_factory, documents, sequence_length, rows_per_shard, batch, data):
    """However it is cut."""
    folder = tmp_path_factory.mktemp("rows")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "BATCH_BYTES", batch)
        writer = _writer(folder, sequence_length, rows_per_shard)
        left, stream = documents, []
        while left:
            count = data.draw(st.integers(1, len(left)), label="documents")
            tokens = [token for document in left[:count] for token in (END, *document)]
            cut = data.draw(st.integers(1, len(tokens)), label="cut")
            writer.add(np.array(tokens[:cut]), count)
            writer.add(np.array(tokens[cut:]), 0)
            left, stream = left[count:], stream + tokens
        dropped = writer.finish()
    stream = stream[1:]  # `END` stands between documents
    assert dropped == len(stream) % (sequence_length - 2)
    assert writer.documents == len(documents)
    assert sorted(path.name for path in writer.folder.iterdir()) == [shard["file"] for shard in writer.shards]
    rows = []
    for shard in writer.shards:
        with pa.OSFile(str(writer.folder / shard["file"])) as file:
            rows.append(pa.ipc.open_stream(file).read_all()["input_ids"].to_pylist())
    assert [shard["rows"] for shard in writer.shards] == [len(of) for of in rows]
    assert all(len(of) == rows_per_shard for of in rows[:-1])
    assert all(row[0] == START and row[-1] == END for of in rows for row in of)
    assert [token for of in rows for row in of for token in row[1:-1]] == stream[: len(stream) - dropped]


@pytest.mark.parametrize(("dtype", "first"), [("uint16", 0), ("int32", 70_000)])
def test_load_from_disk_maps_the_shards(tmp_path, dtype, first):
    writer = _writer(tmp_path, 16, 3, dtype)
    writer.add(np.array([END, *(np.arange(100) + first)]), 1)
    writer.finish()
    write_dataset_files(writer, "0" * 16)
    rows = datasets.load_from_disk(str(writer.folder))
    assert rows.features == datasets.Features({"input_ids": datasets.List(datasets.Value(dtype), length=16)})
    assert [file["filename"] for file in rows.cache_files] == [f"{writer.folder}/data-0000{i}.arrow" for i in range(3)]
    assert rows[6]["input_ids"][1:3] == [first + 84, first + 85]
    assert writer.shards[0]["bytes"] == (writer.folder / "data-00000.arrow").stat().st_size


def test_tokens_are_counted_over_all_shards(tmp_path):
    writer = _writer(tmp_path, 5, 2)
    writer.add(np.array([END, *([3, 4, 4] * 5)]), 1)
    writer.finish()
    counts = count_tokens([writer.folder / shard["file"] for shard in writer.shards], 7)
    assert counts.dtype == np.int64
    assert counts.tolist() == [5, 0, 5, 5, 10, 0, 0]
