# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Sources are listed in one order, what cannot be one is told, and shares are contiguous, complete and balanced."""

import sysconfig
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luna_tools.errors import InputError
from pretraining.prepare.hub import parse_name
from pretraining.prepare.readers import read_input
from pretraining.prepare.sources import divide, find_inputs, measure_input, python_docs


def test_folder_is_sorted_and_recursive(tmp_path):
    for name in ("b/z.txt", "a.txt", "b/a.md", "c.jsonl", "d.doc", "b/README"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"text": "c.jsonl"}' if name == "c.jsonl" else name)
    inputs, ignored = find_inputs(str(tmp_path))
    assert [one.path for one in inputs] == ["a.txt", "b/a.md", "b/z.txt", "c.jsonl"]
    assert [one.size for one in inputs] == [5, 6, 7, 19]
    assert ignored == ["b/README", "d.doc"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("absent", "absent: no such file or folder; give an existing one, python-docs, or hub:NAME"),
        ("data.doc", r"data\.doc: unknown kind of file, use one of \.txt, \.txt\.gz"),
        ("data", "data: unknown kind of file"),
        ("hub:", r"hub:: write it as hub:NAME\[:CONFIG\[:SPLIT\]\]"),
        ("hub:a:b:c:d", "hub:a:b:c:d: write it as hub:NAME"),
    ],
)
def test_sources_that_cannot_be(tmp_path, monkeypatch, source, message):
    monkeypatch.chdir(tmp_path)
    for name in ("data.doc", "data"):
        Path(name).write_text("x")
    with pytest.raises(InputError, match=f"^--sources {message}"):
        find_inputs(source)


def _standard_library(folder, monkeypatch, **files):
    for name, text in files.items():
        path = folder / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(folder)})
    return python_docs.__wrapped__()


def test_docstrings_of_python(tmp_path, monkeypatch):
    files = {
        "package/__init__": '"""One."""',
        "package/part": 'class A:\n  def f(self):\n    """Two\n\n       three.\n"""\n',
    }
    files |= {"same": '"""One."""\nasync def g():\n  " "', "test/left_out": '"""Four."""', "half": r"'\ud800'"}
    docs = _standard_library(tmp_path, monkeypatch, **files)
    assert docs == (("package", "One."), ("package.part", "Two\n\nthree."))
    with pytest.raises(InputError, match=r"^--sources python-docs: cannot read .*broken\.py \(invalid syntax"):
        _standard_library(tmp_path, monkeypatch, broken="def")


@pytest.mark.slow
def test_docstrings_of_this_python():
    docs = python_docs()
    assert len(docs) > 5000 and sum(len(doc.text.encode()) for doc in docs) > 1_000_000
    [one], ignored = find_inputs("python-docs")
    assert ignored == []
    assert [item.text for item in read_input(one, "text", "file")] == [doc.text for doc in docs]


def test_revision_of_a_hub_dataset():
    assert parse_name("hub:a/b@refs/convert/parquet:c:d") == ("a/b", "refs/convert/parquet", "c", "d")
    assert parse_name("hub:a/b") == ("a/b", None, None, "train")


@pytest.mark.parametrize(
    ("name", "separator", "units", "size"),
    [
        ("a.txt", "file", 1, 100),
        ("a.md", "blank_line", 100, 100),
        ("a.txt.gz", "line", 1, 300),
        ("a.jsonl", "file", 100, 100),
        ("a.jsonl.zst", "file", 1, 300),
        ("a.csv", "line", 1, 100),
        ("a.parquet", "file", 1, 100),  # not one, which reading it tells
    ],
)
def test_what_can_be_divided(tmp_path, name, separator, units, size):
    (tmp_path / name).write_bytes(b"x" * 100)
    [one], _ = find_inputs(str(tmp_path / name))
    assert measure_input(one, separator) == (units, size, one.version)


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 1000)), min_size=1, max_size=8), st.integers(1, 20))
def test_shares_are_contiguous_and_complete(measures, num_jobs):
    shares = divide(measures, num_jobs)
    assert len(shares) == num_jobs
    place = [0] * len(measures)
    flat = [part for share in shares for part in share]
    assert [part.input for part in flat] == sorted(part.input for part in flat)
    for part in flat:
        units = measures[part.input][0]
        start, stop = (0, units) if part.start is None else (part.start, part.stop)
        assert start == place[part.input] and start < stop <= units
        place[part.input] = stop
    assert place == [units for units, _ in measures]


@given(st.lists(st.integers(1, 10**12), min_size=1, max_size=8), st.integers(1, 64))
def test_shares_are_balanced(sizes, num_jobs):
    """Where every byte is a unit, the shares differ by rounding alone."""
    for share in divide([(size, size) for size in sizes], num_jobs):
        work = sum(sizes[part.input] if part.start is None else part.stop - part.start for part in share)
        assert abs(work - sum(sizes) / num_jobs) <= 2
