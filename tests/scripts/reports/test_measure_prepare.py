# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Distinct text is taken once, prose first; one job and several are compared and the times projected."""

import json
import sys

import pytest

from pretraining.prepare.sources import python_docs
from scripts.reports import measure_prepare
from scripts.reports.measure_prepare import distinct_texts, duration, write_distinct_corpus


@pytest.fixture
def places(tmp_path):
    for name, data in {
        "a/code.py": b"x" * 600,
        "a/same.py": b"x" * 600,
        "b/read.md": b"y" * 700,
        "b/small.md": b"z" * 499,
        "b/not_unicode.txt": b"\xff" * 600,
        "b/image.png": b"w" * 600,
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    (tmp_path / "b" / "link.py").symlink_to(tmp_path / "a" / "code.py")
    return [str(tmp_path / "a"), str(tmp_path / "b")]


def test_distinct_texts(places):
    assert list(distinct_texts(places)) == [(".md", "y" * 700), (".py", "x" * 600)]


def test_distinct_corpus(places, tmp_path):
    assert write_distinct_corpus(tmp_path, places, 1000) == (1300, {".md": 700, ".py": 600})
    rows = [json.loads(line)["text"] for line in (tmp_path / "00000.jsonl").read_text().splitlines()]
    assert rows == ["y" * 700, "x" * 600]
    with pytest.raises(SystemExit, match="Only 0 MB of distinct text found: name more --places."):
        write_distinct_corpus(tmp_path, places, 2000)


def test_durations_have_a_unit():
    assert [duration(seconds) for seconds in (30, 3599, 3600, 36_000)] == ["0.5 min", "60.0 min", "1.0 h", "10.0 h"]


@pytest.mark.slow
def test_comparison(tmp_path, monkeypatch, capsys):
    text = "\n".join(doc.text for doc in python_docs())
    for number in range(0, len(text), 20_000):
        (tmp_path / f"{number}.txt").write_text(text[number : number + 20_000], encoding="utf-8")
    options = ["--distinct_mb", "1", "--num_proc", "1", "--places", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["", *options, "--vocab_size", "400", "--validation_fraction", "0.1"])
    measure_prepare.main()
    printed = capsys.readouterr().out
    assert "1 MB of distinct text, one document a file: 1 MB of .txt." in printed
    assert "One job and the merge have the same bytes in all" in printed
    lines = printed.splitlines()
    assert [line.split(" | ")[0] for line in lines if line.startswith("| 1")] == ["| 16 GB"] * 3 + ["| 160 GB"] * 3
