# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Every format gives the same documents, long documents are cut without loss, every fault is told, parts are the whole."""

import csv
import gzip
import io
import json
import os
import tracemalloc
from contextlib import contextmanager
from dataclasses import replace

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from luna_tools.errors import InputError
from pretraining.prepare import readers, slices
from pretraining.prepare.readers import Fault, FinalFault, no_text, read_input
from pretraining.prepare.slices import Slice, cut_up
from pretraining.prepare.sources import Part, divide, find_inputs, measure_input

TEXTS = ["One document.\nOf two lines.", "Zwei: äöü 漢字", "three"]
ROWS = [{"id": i, "text": text} for i, text in enumerate(TEXTS)]
TABLE = [["id", "text"], *([row["id"], row["text"]] for row in ROWS)]
gz, zst = gzip.compress, zstandard.compress


def _read(path, text_column="text", document_separator="file"):
    [one], _ = find_inputs(str(path))
    return list(read_input(one, text_column, document_separator))


def _csv(rows, **options):
    file = io.StringIO(newline="")
    csv.writer(file, **options).writerows(rows)
    return file.getvalue().encode()


def _parquet(values, kind=None, column="text", **options):
    file = io.BytesIO()
    pq.write_table(pa.table({column: pa.array(values, kind)}), file, **options)
    return file.getvalue()


def _damaged(values, **options):
    data = _parquet(values, write_page_checksum=True, compression="none", use_dictionary=False, **options)
    assert b"document" in data
    return data.replace(b"document", b"dokument")


UTF8 = "is not UTF-8 (invalid start byte)"
NO_TEXT = Fault("", "holds no text")
NO_STRING = "has no string in 'text' (--text_column) but"
NO_COLUMN = "has no column 'text' (--text_column); its columns are"
ENDS = "cannot be read (Compressed file ended before the end-of-stream marker was reached)"
LINES = b"\na\nb\n\n \t\n\nc\nd\n"
BROKEN = b"one\n \ntwo\n\nthree\nfo\xffr\nfive"
NOT_UTF8 = pa.Array.from_buffers(pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xff")])
DICTIONARY = pa.array(TEXTS).cast(pa.dictionary(pa.int32(), pa.string()))
BAD_CSV = b'text,id\n"a "b" c",1\n"fine\nhere",2\nd,3,4\n\n,5\nx\xff,6\n"y",7\n'
# The file, its bytes or what makes it, and its documents and faults: the place in the file, and how the reason starts.
CASES = {
    "byte order mark": ("a.txt", b"\xef\xbb\xbfone\r\ntwo", ["one\ntwo"]),
    "gzip": ("a.md.gz", gz(b"three ") + gz(TEXTS[1].encode()), [f"three {TEXTS[1]}"]),
    "zstd": ("a.rst.zst", zst(b"three ") + zst(TEXTS[1].encode()), [f"three {TEXTS[1]}"]),
    "one document": ("a.txt", LINES, [LINES.decode()]),
    "paragraphs": ("a.txt", LINES, ["a\nb", "c\nd"], "blank_line"),
    "lines": ("a.txt", LINES, ["a", "b", "", "c", "d"], "line"),
    "jsonl": ("a.jsonl", "\n".join(map(json.dumps, ROWS)).encode() + b"\n\n", TEXTS),
    "jsonl, byte order mark": ("a.jsonl", b'\xef\xbb\xbf{"text": "three"}\r\n', ["three"]),
    "jsonl, blank texts": ("a.jsonl", b'{"text": ""}\n{"text": " \\n"}\n{"text": "x"}\n', ["", "", "x"]),
    "jsonl, gzip": ("a.jsonl.gz", gz("\r\n".join(map(json.dumps, ROWS)).encode()), TEXTS),
    "jsonl, zstd": ("a.jsonl.zst", zst(b"\n".join(json.dumps(row, ensure_ascii=False).encode() for row in ROWS)), TEXTS),
    "csv": ("a.csv", _csv(TABLE), TEXTS),
    "csv, all": ("a.csv.gz", gz(b"\xef\xbb\xbf" + _csv(TABLE, quoting=csv.QUOTE_ALL, lineterminator="\n\n")), TEXTS),
    "tsv": ("a.tsv.zst", zst(_csv(TABLE, delimiter="\t")), TEXTS),
    "parquet": ("a.parquet", _parquet(TEXTS), TEXTS),
    "parquet of large strings": ("a.parquet", _parquet(TEXTS, pa.large_string()), TEXTS),
    "parquet of a dictionary": ("a.parquet", _parquet(DICTIONARY), TEXTS),
    "empty text": ("a.txt", b"", [NO_TEXT]),
    "white space only": ("a.txt", b" \n\n ", ["", NO_TEXT]),
    "empty jsonl": ("a.jsonl", b"", [NO_TEXT]),
    "empty rows only": ("a.jsonl", b'{"text": " "}\n', ["", NO_TEXT]),
    "no rows": ("a.parquet", _parquet([], pa.string()), [NO_TEXT]),
    "empty csv": ("a.csv", b"", [NO_TEXT]),
    "csv with a header alone": ("a.csv", b"text,id\n", [NO_TEXT]),
    "not UTF-8": ("a.txt", b"a\nb\nc\xff\n", [Fault(":3", UTF8)]),
    "not UTF-8 line": ("a.txt", BROKEN, ["one", "", "two", "three", Fault(":6", UTF8)], "line"),
    "not UTF-8 paragraph": ("a.txt", BROKEN, ["one", "two", Fault(":6", UTF8)], "blank_line"),
    "cut inside a character": ("a.txt", "a\nä".encode()[:-1], [Fault(":2", "is not UTF-8 (unexpected end of data)")]),
    "not UTF-8 jsonl": ("a.jsonl", b'{"text": "\xff"}\n{"text": "x"}\n', [Fault(":1", UTF8), "x"]),
    "not UTF-8 parquet": ("a.parquet", _parquet(NOT_UTF8), ["a", Fault(":2", UTF8)]),
    "bad gzip": ("a.txt.gz", b"text", [Fault("", "cannot be read (Not a gzipped file (b'te'))")]),
    "cut gzip": ("a.txt.gz", gz(os.urandom(5000).hex().encode())[:2000], [Fault("", ENDS)]),
    "cut gzip, not UTF-8": ("a.txt.gz", gz(b"\xff" + os.urandom(9000))[:9000], [Fault(":1", UTF8)]),
    "damaged gzip": ("a.txt.gz", gz(b"abc" * 1000)[:-6] + b"\1\2\3\4\5\6", [Fault("", "cannot be read (CRC check failed")]),
    "bad zstd": ("a.txt.zst", b"text", [Fault("", "cannot be read (zstd decompress")]),
    "bad parquet": ("a.parquet", b"text" * 9, [Fault("", "cannot be read (Parquet magic bytes")]),
    "damaged parquet": (
        "a.parquet",
        _damaged(["one", "two", "a document", "three"], row_group_size=2),
        ["one", "two", Fault("", "cannot be read (could not verify page integrity")],
    ),
    "invalid JSON": (
        "a.jsonl",
        b'{"text": "x"}\n{"text": \n{"text": "y"}\n',
        ["x", Fault(":2", "is not valid JSON (Expecting value: line 2 column 1 (char 10))"), "y"],
    ),
    "too deep JSON": ("a.jsonl", b"[" * 100_000, [Fault(":1", "is not valid JSON (")]),
    "not an object": ("a.jsonl", b"[1]\n", [Fault(":1", "is not a JSON object but list")]),
    "missing field": ("a.jsonl", b'{"body": "x"}\n', [Fault(":1", "has no field 'text' (--text_column)")]),
    "missing column": ("a.parquet", _parquet(["x"], column="body"), [Fault("", f"{NO_COLUMN} body")]),
    "csv with other columns": ("a.csv", b"id;text\n1;x\n", [Fault("", f"{NO_COLUMN} id;text")]),
    "not a string": (
        "a.jsonl",
        b'{"text": 5}\n{"text": null}\n{"text": "x"}',
        [Fault(":1", f"{NO_STRING} int"), Fault(":2", f"{NO_STRING} NoneType"), "x"],
    ),
    "null in parquet": ("a.parquet", _parquet(["x", None]), ["x", Fault(":2", f"{NO_STRING} NoneType")]),
    "numbers": ("a.parquet", _parquet([1, 2]), [Fault("", "has no strings in 'text' (--text_column) but int64")]),
    "half a surrogate": ("a.jsonl", b'{"text": "\\ud800"}', [Fault(":1", "has half a surrogate pair in 'text' (--te")]),
    "faults in csv": (
        "a.csv",
        BAD_CSV,
        [
            *(Fault(":2", "is not valid CSV (',' expected after '\"')"), "fine\nhere"),
            *(Fault(":5", "has 3 fields, and the header 2: quote the text"), "", Fault(":8", UTF8), "y"),
        ],
    ),
    "open quote in csv": ("a.csv", b'text\n"a\nb\n', [Fault(":2", "is not valid CSV (unexpected end of data)")]),
    "pipe": ("a.txt", os.mkfifo, [Fault("", "is not a regular file")]),
    "broken link": ("a.txt", lambda p: p.symlink_to("no"), [Fault("", "cannot be read (No such file or directory)")]),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_documents_and_faults_of_a_file(tmp_path, case):
    name, make, expected, *separator = case
    path = tmp_path / name
    make(path) if callable(make) else path.write_bytes(make)
    [one], _ = find_inputs(str(tmp_path))
    items = list(read_input(one, "text", *separator or ["file"]))
    for item, of in zip(items, expected, strict=True):
        if isinstance(of, Fault):
            assert item.where == f"{path}{of.where}" and item.reason.startswith(of.reason)
        else:
            assert item == Slice(of, True)


def test_another_column(tmp_path):
    for name, data in (("a.jsonl", b'{"text": "no", "body": "yes"}'), ("a.csv", b"text,body\nno,yes")):
        (tmp_path / name).write_bytes(data)
        assert _read(tmp_path / name, text_column="body") == [Slice("yes", True)]


def test_what_comes_before_a_fault_of_the_file_is_kept(tmp_path):
    lines = b"".join(json.dumps({"text": os.urandom(100).hex()}).encode() + b"\n" for _ in range(5000))
    (tmp_path / "a.jsonl.zst").write_bytes(zst(lines)[:-5])
    items = _read(tmp_path / "a.jsonl.zst")
    assert sum(isinstance(item, Slice) for item in items) > 1000
    assert items[-1] == Fault(f"{tmp_path}/a.jsonl.zst", "cannot be read (the file ends inside a zstd frame)")


# ---------------------------------------------------------------------------------------------------------------------
# Long documents


@given(st.text(st.sampled_from("ab.\n\t\x1c\u00a0 é"), max_size=60), st.integers(1, 20))
def test_parts_are_the_whole(text, length):
    parts = list(cut_up(text, length))
    assert "".join(parts) == text
    for left, right in zip(parts, parts[1:], strict=False):
        assert len(left) >= length and not left[-1].isspace() and right[0].isspace()


@contextmanager
def _short_slices(length=1000, window=50):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "READ_CHARS", length)
        patch.setattr(slices, "SLICE_CHARS", length)
        patch.setattr(slices, "CUT_WINDOW_CHARS", window)
        yield


@given(
    st.sampled_from(["word ", "line\n", "x", "a much longer sentence, this one. "]),
    st.sampled_from(["a.txt", "a.txt.zst", "a.jsonl", "a.csv"]),
    st.sampled_from(["file", "blank_line", "line"]),
)
@settings(deadline=None, max_examples=25)
def test_long_documents_are_cut(tmp_path_factory, unit, name, separator):
    text = (unit * 10_000)[:10_000]
    is_rows = not name.startswith("a.txt")
    data = {"a.jsonl": json.dumps({"text": text}).encode(), "a.csv": _csv([["text"], [text]])}.get(name, text.encode())
    path = tmp_path_factory.mktemp("long") / name
    path.write_bytes(zst(data) if name.endswith("zst") else data)
    with _short_slices():
        items = _read(path, document_separator=separator)
    whole = "".join(item.text for item in items)
    if separator == "line" and not is_rows:
        assert whole == text.replace("\n", "")
        assert sum(item.first for item in items if item.text) == (2000 if unit == "line\n" else 1)
    else:
        assert whole == (text.removesuffix("\n") if separator == "blank_line" and not is_rows else text)
        assert [item.first for item in items] == [True] + [False] * (len(items) - 1)
        assert all(1000 <= len(item.text) <= 1050 for item in items[:-1])


def test_a_document_starts_with_its_first_slice_that_is_not_blank(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"first\n\n" + b" " * 2500 + b"second\n")
    with _short_slices():
        items = _read(tmp_path / "a.txt", document_separator="blank_line")
    assert [(item.text.strip(), item.first) for item in items] == [("first", True), ("", True), ("", True), ("second", True)]


def test_memory_does_not_grow_with_a_document(tmp_path):
    (tmp_path / "a.txt").write_text("some words of a long document without a line end " * 400_000)
    [one], _ = find_inputs(str(tmp_path))
    tracemalloc.start()
    try:
        total = sum(len(item.text) for item in read_input(one, "text", "line"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == one.size > 19_000_000
    assert peak < 10_000_000


# ---------------------------------------------------------------------------------------------------------------------
# Datasets of the Hub. `load_dataset` takes a folder where it takes a name, so this goes through all but the network.


@pytest.fixture
def hub(tmp_path):
    for file, count in enumerate([3, 0, 1, 5]):
        rows = [{"text": None if (file, i) == (3, 2) else f"{file} {i}", "number": i} for i in range(count)]
        (tmp_path / f"train-{file}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "test.jsonl").write_text('{"text": "test", "number": 1}')
    return f"hub:{tmp_path}"


def test_hub_dataset(hub):
    assert [item.text for item in _read(hub) if isinstance(item, Slice)] == "0 0,0 1,0 2,2 0,3 0,3 1,3 3,3 4".split(",")
    for suffix in (":default:test", "::test"):
        source = f"{hub}{suffix}"
        assert _read(source) == [Slice("test", True)]
        reason = "has no column 'body' (--text_column); its columns are text, number"
        assert _read(source, text_column="body") == [Fault(source, reason)]
        reason = "has no string in 'number' (--text_column) but int"
        assert _read(source, text_column="number") == [Fault(f"{source}:1", reason)]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("HUB:nope", "BuilderConfig 'nope' not found"),
        ("HUB::nope", "Bad split: nope"),
        ("HUB/absent", "Couldn't find any data"),
        ("hub:some/name", ""),
    ],
)
def test_hub_dataset_that_cannot_be_opened(hub, source, reason, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    source = source.replace("HUB", hub)
    with pytest.raises(InputError, match=rf"^--sources {source}: the dataset cannot be read \({reason}.*\); check the name"):
        _read(source)


# ---------------------------------------------------------------------------------------------------------------------
# Parts


PIECES = ("word ", "a", "\n", "\n\n", "\r\n", "\r", " \n", "\u3000\n", "ä漢", "\x0c", "long word by word by word ")
JSON_LINES = (
    *('{"text": "one"}', '{"text": "zwei ä"}', '{"text": ""}', ""),
    *('{"body": 1}', "no JSON", "[1]", '{"text": 5}', '{"text": "\\ud800"}'),
)


@st.composite
def divisible_files(draw):
    """The name and the bytes of a file that can be divided, faults included, and the document separator."""
    separator = draw(st.sampled_from(["line", "blank_line"]))
    if draw(st.booleans()):
        pieces = draw(st.lists(st.sampled_from([piece.encode() for piece in PIECES] * 3 + [b"\xff", b"\xe4"]), max_size=40))
        return "a.txt", draw(st.sampled_from([b"", b"\xef\xbb\xbf"])) + b"".join(pieces), separator
    lines = draw(st.lists(st.sampled_from([line.encode() for line in JSON_LINES] + [b'{"text": "\xff"}']), max_size=20))
    return "a.jsonl", b"\n".join(lines) + draw(st.sampled_from([b"", b"\n"])), separator


def _read_divided(one, num_jobs, separator="file"):
    """The items of the parts, without those after a fault that ends the input; and whether there are several parts."""
    units, size, _ = measure_input(one, separator)
    parts = [part for share in divide([(units, size)], num_jobs) for part in share]
    items = []
    for part in parts:
        items += read_input(one, "text", separator, None if part.start is None else (part.start, part.stop))
        if items and isinstance(items[-1], FinalFault):
            break
    return items, parts != [Part(0)]


@given(divisible_files(), st.integers(1, 9), st.sampled_from([2**20, 8]))
@example(("a.txt", b"word \n\xff", "line"), 2, 2**20)
@example(("a.txt", b"word\n\n\xff", "blank_line"), 2, 2**20)
@settings(deadline=None, max_examples=300)
def test_parts_of_a_file_are_the_file(tmp_path_factory, file, num_jobs, slice_chars):
    name, data, separator = file
    path = tmp_path_factory.mktemp("parts") / name
    path.write_bytes(data)
    [one], _ = find_inputs(str(path))
    with _short_slices(slice_chars, 4):
        whole = list(read_input(one, "text", separator))
        items, divided = _read_divided(one, num_jobs, separator)
    if divided and whole[-1:] == [no_text(one)]:  # only the whole can tell that
        del whole[-1]
    assert items == whole


@pytest.mark.parametrize("row_group_size", [1, 3, 100])
def test_parts_of_parquet_are_row_groups(tmp_path, row_group_size):
    texts = [None if i == 17 else f"text {i}" for i in range(40)]
    (tmp_path / "a.parquet").write_bytes(_parquet(texts, row_group_size=row_group_size))
    [one], _ = find_inputs(str(tmp_path))
    assert measure_input(one, "file")[0] == -(-40 // row_group_size)
    whole = list(read_input(one, "text", "file"))
    assert whole[17] == Fault(f"{tmp_path}/a.parquet:18", "has no string in 'text' (--text_column) but NoneType")
    for num_jobs in (1, 2, 7):
        assert _read_divided(one, num_jobs)[0] == whole


def test_parts_of_a_hub_dataset_are_its_files(hub, tmp_path):
    [one], _ = find_inputs(hub)
    units, size, version = measure_input(one, "file")
    assert (units, size) == (4, sum(path.stat().st_size for path in tmp_path.glob("train*")))
    whole = list(read_input(one, "text", "file"))
    assert whole[6] == Fault(f"{hub}, file 4 of 4:3", "has no string in 'text' (--text_column) but NoneType")
    for num_jobs in (1, 2, 3, 9):
        assert _read_divided(replace(one, version=version), num_jobs)[0] == whole
    with pytest.raises(InputError, match="^--sources hub:.*: the dataset has changed since the work was divided"):
        list(read_input(replace(one, version="other"), "text", "file", (0, 1)))
