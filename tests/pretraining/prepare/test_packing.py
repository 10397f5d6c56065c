# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Rows are the token stream, cut; shards load with `datasets` and can be gone on with from any checkpoint."""

import json

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretraining.prepare import packing
from pretraining.prepare.packing import SplitWriter, count_tokens, write_dataset_files

START, END = 0, 2
DOCUMENTS = st.lists(st.lists(st.lists(st.integers(3, 999), max_size=40), min_size=1, max_size=3), max_size=20)


def _writer(folder, sequence_length, rows_per_shard, dtype="uint16", state=None):
    dtype = np.dtype(dtype)
    shard_bytes = rows_per_shard * sequence_length * dtype.itemsize
    return SplitWriter(folder, sequence_length, START, END, dtype, shard_bytes, state)


def _slices(documents):
    return [(np.array(part), i == 0) for parts in documents for i, part in enumerate(parts)]


def _stream(documents):
    stream = []
    for number, parts in enumerate(documents):
        stream += [END] * (number > 0) + [token for part in parts for token in part]
    return stream


def _rows(writer):
    if not writer.shards:
        return np.empty((0, writer.sequence_length), dtype=writer.dtype)
    write_dataset_files(writer, "0" * 16)
    return np.array(datasets.load_from_disk(str(writer.folder)).with_format("numpy")["input_ids"][:])


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(packing, "BATCH_BYTES", 60)


@given(DOCUMENTS, st.integers(3, 12), st.integers(1, 7))
@settings(deadline=None, max_examples=60)
def test_rows_are_the_stream_without_its_tail(tmp_path_factory, documents, sequence_length, rows_per_shard):
    writer = _writer(tmp_path_factory.mktemp("rows"), sequence_length, rows_per_shard)
    for tokens, starts in _slices(documents):
        writer.add(tokens, starts)
    dropped = writer.finish()
    rows, stream = _rows(writer), _stream(documents)
    assert rows.shape == (len(stream) // (sequence_length - 2), sequence_length)
    assert dropped == len(stream) % (sequence_length - 2)
    assert (rows[:, 0] == START).all() and (rows[:, -1] == END).all()
    assert rows[:, 1:-1].ravel().tolist() == stream[: len(stream) - dropped]
    assert writer.documents == len(documents)
    assert [shard["rows"] for shard in writer.shards[:-1]] == [rows_per_shard] * (len(writer.shards) - 1)


@given(DOCUMENTS, st.data())
@settings(deadline=None, max_examples=60)
def test_going_on_from_any_checkpoint_gives_the_same_bytes(tmp_path_factory, documents, data):
    slices = _slices(documents)
    kept = data.draw(st.integers(0, len(slices)), label="slices before the checkpoint")
    lost = data.draw(st.integers(0, len(slices) - kept), label="slices after it that are lost")
    whole, broken = (tmp_path_factory.mktemp(name) for name in ("whole", "broken"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "BATCH_BYTES", 60)
        writer = _writer(whole, 8, 5)
        for tokens, starts in slices:
            writer.add(tokens, starts)
        dropped = writer.finish()

        writer = _writer(broken, 8, 5)
        for tokens, starts in slices[:kept]:
            writer.add(tokens, starts)
        state = json.loads(json.dumps(writer.checkpoint()))
        for tokens, starts in slices[kept : kept + lost]:
            writer.add(tokens, starts)
        writer.close()
        resumed = _writer(broken, 8, 5, state=state)
        for tokens, starts in slices[kept:]:
            resumed.add(tokens, starts)
        assert resumed.finish() == dropped
    assert {path.name: path.read_bytes() for path in broken.iterdir()} == {
        path.name: path.read_bytes() for path in whole.iterdir()
    }


@pytest.mark.parametrize("dtype", ["uint16", "int32"])
def test_load_from_disk_maps_the_shards(tmp_path, dtype):
    writer = _writer(tmp_path, 16, 3, dtype)
    writer.add(np.arange(100) + (0 if dtype == "uint16" else 70_000), True)
    writer.finish()
    write_dataset_files(writer, "0" * 16)
    rows = datasets.load_from_disk(str(tmp_path))
    assert rows.features == datasets.Features({"input_ids": datasets.List(datasets.Value(dtype), length=16)})
    assert [file["filename"] for file in rows.cache_files] == [str(tmp_path / f"data-0000{i}.arrow") for i in range(3)]
    assert rows[6]["input_ids"][1:3] == [84 + (0 if dtype == "uint16" else 70_000) + i for i in range(2)]
    assert writer.shards[0]["bytes"] == (tmp_path / "data-00000.arrow").stat().st_size


def test_tokens_are_counted_over_all_shards(tmp_path):
    writer = _writer(tmp_path, 5, 2)
    writer.add(np.array([3, 4, 4] * 5), True)
    writer.finish()
    counts = count_tokens([tmp_path / shard["file"] for shard in writer.shards], 7)
    assert counts.dtype == np.int64
    assert counts.tolist() == [5, 0, 5, 5, 10, 0, 0]


@pytest.mark.parametrize("harm", ["missing", "cut"])
@pytest.mark.parametrize("name", ["data-00000.arrow", "data-00001.arrow"])
def test_a_shard_that_is_not_as_it_was(tmp_path, small_batches, harm, name):
    writer = _writer(tmp_path, 5, 9)  # batches of 6 rows, and of the 3 that complete a shard
    writer.add(np.full(3 * 16, 9), True)
    state = writer.checkpoint()
    writer.close()
    assert len(state["shards"]) == 1 and state["open_rows"] == 6
    path = tmp_path / name
    if harm == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(FileNotFoundError, match=name):
        _writer(tmp_path, 5, 9, state=state)


@given(DOCUMENTS, st.data())
@settings(deadline=None, max_examples=60)
def test_streams_give_the_same_bytes_as_documents(tmp_path_factory, documents, data):
    """However the stream is cut up, if only documents are counted with the chunk that starts with one."""
    one, other = (tmp_path_factory.mktemp(name) for name in ("documents", "streams"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "BATCH_BYTES", 60)
        writer = _writer(one, 8, 5)
        for tokens, starts in _slices(documents):
            writer.add(tokens, starts)
        dropped = writer.finish()

        writer = _writer(other, 8, 5)
        while documents:
            count = data.draw(st.integers(1, len(documents)), label="documents")
            stream = np.array([END, *_stream(documents[:count])], dtype=np.uint16)
            cut = data.draw(st.integers(1, len(stream)), label="cut")
            writer.add_stream(stream[:cut], count)
            writer.add_stream(stream[cut:], 0)
            documents = documents[count:]
        assert writer.finish() == dropped
    assert {path.name: path.read_bytes() for path in other.iterdir()} == {
        path.name: path.read_bytes() for path in one.iterdir()
    }
