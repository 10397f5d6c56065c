# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Streams and records are what was added, from any checkpoint; duplicates are those that a slow search finds."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretraining.prepare import streams
from pretraining.prepare.streams import RECORD, DocumentLog, Records, StreamWriter, find_duplicates, kept_runs, read_stream

END = 2
DOCUMENTS = st.lists(st.lists(st.lists(st.integers(3, 999), max_size=9), min_size=1, max_size=3), max_size=9)


@pytest.mark.parametrize("dtype", ["uint16", "int32"])
@given(DOCUMENTS, st.data())
@settings(deadline=None, max_examples=50)
def test_stream_from_any_checkpoint(tmp_path_factory, dtype, documents, data):
    slices = [(np.array(part, dtype=np.int32), i == 0) for parts in documents for i, part in enumerate(parts)]
    path = tmp_path_factory.mktemp("stream") / "train.tokens"
    kept = data.draw(st.integers(0, len(slices)), label="slices before the checkpoint")
    writer = StreamWriter(path, END, dtype, 1)
    for tokens, starts in slices[:kept]:
        writer.add(tokens, starts)
    assert writer.due == (kept > 0)
    state = json.loads(json.dumps(writer.checkpoint()))
    assert not writer.due
    for tokens, starts in slices[kept:][:3]:  # lost
        writer.add(tokens, starts)
    writer.close()
    writer = StreamWriter(path, END, dtype, 1, state)
    for tokens, starts in slices[kept:]:
        writer.add(tokens, starts)
    writer.checkpoint()
    writer.close()
    stream = [token for parts in documents for token in (END, *(token for part in parts for token in part))]
    assert np.fromfile(path, np.dtype(dtype)).tolist() == stream
    first = data.draw(st.integers(0, len(stream)), label="first")
    count = data.draw(st.integers(0, len(stream) - first), label="count")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "CHUNK", 4)
        chunks = list(read_stream(path, dtype, first, count))
    assert all(0 < len(chunk) <= 4 for chunk in chunks)
    assert [token for chunk in chunks for token in chunk.tolist()] == stream[first : first + count]


@pytest.mark.parametrize("kind", [lambda path, state: StreamWriter(path, END, "uint16", 1, state), DocumentLog])
@pytest.mark.parametrize("harm", ["missing", "short"])
def test_a_file_that_is_not_as_it_was(tmp_path, kind, harm):
    if harm == "short":
        (tmp_path / "a").write_bytes(b"123")
    with pytest.raises(FileNotFoundError, match="/a"):
        kind(tmp_path / "a", {"bytes": 4})


def _log(path, documents, repeat=0):
    """Logs documents that are given as lists of slices; returns their records."""
    log = DocumentLog(path)
    for slices in documents:
        for i, text in enumerate(slices):
            log.add(text, len(text), i == 0, "train", repeat)
    log.checkpoint()
    log.close()
    return np.fromfile(path, RECORD)


TEXT = st.text(st.sampled_from("ab \n\u3000"), min_size=1, max_size=6)


@given(st.lists(st.lists(TEXT, min_size=1, max_size=4).filter(lambda slices: slices[0].strip()), max_size=9))
@settings(deadline=None, max_examples=150)
def test_hash_is_of_the_text_without_white_space_around_it(tmp_path_factory, documents):
    records = _log(tmp_path_factory.mktemp("log") / "log", documents)
    texts = ["".join(slices) for slices in documents]
    hashes = [tuple(hash) for hash in records["hash"].tolist()]
    for i in range(len(texts)):
        for j in range(i):
            assert (hashes[i] == hashes[j]) == (texts[i].strip() == texts[j].strip())
    assert records["tokens"].tolist() == [len(text) for text in texts]
    assert records["text_bytes"].tolist() == [len(text.encode()) for text in texts]
    assert set(records["split"].tolist()) <= {0}


def test_repetitions_are_no_duplicates(tmp_path):
    first, second = (_log(tmp_path / f"{repeat}", [["one"], ["two"]], repeat) for repeat in (0, 1))
    documents = [Records(tmp_path / "0", 0, 2), Records(tmp_path / "1", 0, 2), Records(tmp_path / "0", 1, 1)]
    assert first["hash"].tolist() != second["hash"].tolist()
    assert find_duplicates(documents).tolist() == [False, False, False, False, True]


@given(st.lists(st.lists(st.integers(0, 6), max_size=12), max_size=5), st.integers(1, 9), st.integers(1, 5))
@settings(deadline=None, max_examples=150)
def test_duplicates_are_what_came_before(tmp_path_factory, logs, hashes_per_pass, chunk):
    folder = tmp_path_factory.mktemp("logs")
    documents = []
    for number, texts in enumerate(logs):
        _log(folder / f"{number}", [[f"text {text}"] for text in texts])
        middle = len(texts) // 2  # a log may be in several parts
        documents += [Records(folder / f"{number}", 0, middle), Records(folder / f"{number}", middle, len(texts) - middle)]
    texts = [text for texts in logs for text in texts]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "HASHES_PER_PASS", hashes_per_pass)
        patch.setattr(streams, "CHUNK", chunk)
        duplicate = find_duplicates(documents)
    assert duplicate.tolist() == [text in texts[:i] for i, text in enumerate(texts)]


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=20))
def test_runs_are_the_kept_documents(documents):
    tokens = np.array([length for length, _ in documents], dtype=np.uint64)
    kept = np.array([keep for _, keep in documents], dtype=bool)
    stream = [(i, j) for i, (length, _) in enumerate(documents) for j in range(length)]
    runs = list(kept_runs(tokens, kept))
    copied = [token for start, count, _ in runs for token in stream[start : start + count]]
    assert copied == [(i, j) for i, j in stream if kept[i]]
    assert sum(count for _, _, count in runs) == kept.sum()
    assert len(runs) == sum(keep and not (i and kept[i - 1]) for i, keep in enumerate(kept))
