# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Records tell documents apart by their text; what streams hold and which documents are left out, `test_jobs` compares."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretraining.prepare.streams import RECORD, AppendedFile, DocumentLog, Records, find_duplicates


@pytest.mark.parametrize("harm", ["missing", "short"])
def test_a_file_that_is_not_as_it_was(tmp_path, harm):
    if harm == "short":
        (tmp_path / "a").write_bytes(b"123")
    with pytest.raises(FileNotFoundError, match="/a"):
        AppendedFile(tmp_path / "a", {"bytes": 4})


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
