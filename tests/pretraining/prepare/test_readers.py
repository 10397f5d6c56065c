# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Every format gives the same documents, long documents are cut without loss, every fault is told, parts are the whole."""

import csv
import gzip
import io
import json
import os
from contextlib import contextmanager
from dataclasses import replace

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
from tests.support.preparing import write_rows

TEXTS = ["One document.\nOf two lines.", "Zwei: äöü 漢字", "three"]


def _read(path, text_column="text", document_separator="file"):
    inputs, _ = find_inputs(str(path))
    return [item for one in inputs for item in read_input(one, text_column, document_separator)]


def _texts(path, **options):
    items = _read(path, **options)
    assert all(isinstance(item, Slice) and item.first for item in items)
    return [item.text for item in items]


def _write(path, data):
    pack = {".gz": gzip.compress, ".zst": zstandard.compress}.get(path.suffix, bytes)
    path.write_bytes(pack(data))
    return path


def _csv(rows, **options):
    file = io.StringIO(newline="")
    csv.writer(file, **options).writerows(rows)
    return file.getvalue().encode()


def _parquet(values, kind=None, column="text", **options):
    file = io.BytesIO()
    pq.write_table(pa.table({column: pa.array(values, kind)}), file, **options)
    return file.getvalue()


ROWS = [{"id": i, "text": text} for i, text in enumerate(TEXTS)]
TABLE = [["id", "text"], *([row["id"], row["text"]] for row in ROWS)]
FORMATS = {
    "a.txt": (TEXTS[1].encode(), [TEXTS[1]]),
    "mark.txt": (b"\xef\xbb\xbfone\r\ntwo", ["one\ntwo"]),
    "a.md.gz": (TEXTS[1].encode(), [TEXTS[1]]),
    "a.rst.zst": (TEXTS[1].encode(), [TEXTS[1]]),
    "a.jsonl": ("\n".join(map(json.dumps, ROWS)).encode() + b"\n\n", TEXTS),
    "mark.jsonl": (b'\xef\xbb\xbf{"text": "three"}\r\n', ["three"]),
    "blank.jsonl": (b'{"text": ""}\n{"text": " \\n"}\n{"text": "x"}\n', ["", "", "x"]),
    "a.jsonl.gz": ("\r\n".join(map(json.dumps, ROWS)).encode(), TEXTS),
    "a.jsonl.zst": (b"\n".join(json.dumps(row, ensure_ascii=False).encode() for row in ROWS), TEXTS),
    "a.csv": (_csv(TABLE), TEXTS),
    "a.csv.gz": (b"\xef\xbb\xbf" + _csv(TABLE, quoting=csv.QUOTE_ALL, lineterminator="\n\n"), TEXTS),
    "a.tsv.zst": (_csv(TABLE, delimiter="\t"), TEXTS),
    "a.parquet": (_parquet(TEXTS), TEXTS),
    "large.parquet": (_parquet(TEXTS, pa.large_string()), TEXTS),
    "dictionary.parquet": (_parquet(pa.array(TEXTS).cast(pa.dictionary(pa.int32(), pa.string()))), TEXTS),
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats(tmp_path, name):
    data, texts = FORMATS[name]
    assert _texts(_write(tmp_path / name, data)) == texts


def test_another_column(tmp_path):
    for path in (
        _write(tmp_path / "a.jsonl", b'{"text": "no", "body": "yes"}'),
        _write(tmp_path / "a.csv", b"text,body\nno,yes"),
    ):
        assert _texts(path, text_column="body") == ["yes"]


@pytest.mark.parametrize(
    ("separator", "expected"),
    [
        ("file", ["\na\nb\n\n \t\n\nc\nd\n"]),
        ("blank_line", ["a\nb", "c\nd"]),
        ("line", ["a", "b", "c", "d"]),
    ],
)
def test_document_separator(tmp_path, separator, expected):
    path = _write(tmp_path / "a.txt", b"\na\nb\n\n \t\n\nc\nd\n")
    texts = [item.text for item in _read(path, document_separator=separator) if item.text]
    assert texts == expected


def test_several_compressed_frames_are_one_file(tmp_path):
    (tmp_path / "a.txt.zst").write_bytes(zstandard.compress(b"one ") + zstandard.compress(b"two"))
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"three ") + gzip.compress(b"four"))
    assert _texts(tmp_path) == ["one two", "three four"]


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
    with _short_slices():
        items = _read(_write(tmp_path_factory.mktemp("long") / name, data), document_separator=separator)
    whole = "".join(item.text for item in items)
    if separator == "line" and not is_rows:
        assert whole == text.replace("\n", "")
        assert sum(item.first for item in items if item.text) == (2000 if unit == "line\n" else 1)
    else:
        assert whole == (text.removesuffix("\n") if separator == "blank_line" and not is_rows else text)
        assert [item.first for item in items] == [True] + [False] * (len(items) - 1)
        assert all(1000 <= len(item.text) <= 1050 for item in items[:-1])


def test_memory_does_not_grow_with_a_document(tmp_path):
    import tracemalloc

    path = tmp_path / "a.txt"
    with open(path, "w") as file:
        for _ in range(40):
            file.write("some words of a long document without a line end " * 20_000)
    tracemalloc.start()
    try:
        total = sum(len(item.text) for item in read_input(find_inputs(str(path))[0][0], "text", "line"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == path.stat().st_size > 39_000_000
    assert peak < 10_000_000


def _damaged(data):
    assert b"document" in data
    return data.replace(b"document", b"dokument")


def _not_utf8():
    return pa.Array.from_buffers(pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xff")])


CHECKED = {"write_page_checksum": True, "compression": "none", "use_dictionary": False}
NO_STRING = "has no string in 'text' (--text_column) but"
NO_COLUMN = "has no column 'text' (--text_column); its columns are"
ENDS = "cannot be read (Compressed file ended before the end-of-stream marker was reached)"
INVALID = "is not UTF-8 (invalid start byte)"
FAULTS = {
    "empty text": ("a.txt", b"", " holds no text"),
    "white space only": ("a.txt", b" \n\n ", " holds no text"),
    "empty jsonl": ("a.jsonl", b"", " holds no text"),
    "empty rows only": ("a.jsonl", b'{"text": " "}\n', " holds no text"),
    "no rows": ("a.parquet", _parquet([], pa.string()), " holds no text"),
    "empty csv": ("a.csv", b"", " holds no text"),
    "csv with a header alone": ("a.csv", b"text,id\n", " holds no text"),
    "not UTF-8": ("a.txt", b"a\nb\nc\xff\n", f":3 {INVALID}"),
    "cut inside a character": ("a.txt", "a\nä".encode()[:-1], ":2 is not UTF-8 (unexpected end of data)"),
    "not UTF-8 jsonl": ("a.jsonl", b'{"text": "\xff"}\n{"text": "x"}\n', f":1 {INVALID}"),
    "not UTF-8 parquet": ("a.parquet", _parquet(_not_utf8()), f":2 {INVALID}"),
    "bad gzip": ("a.txt.gz", b"text", " cannot be read (Not a gzipped file (b'te'))"),
    "cut gzip": ("a.txt.gz", gzip.compress(os.urandom(5000).hex().encode())[:2000], f" {ENDS}"),
    "cut gzip, not UTF-8": ("a.txt.gz", gzip.compress(b"\xff" + os.urandom(9000))[:9000], f":1 {INVALID}"),
    "damaged gzip": ("a.txt.gz", gzip.compress(b"abc" * 1000)[:-6] + b"\1\2\3\4\5\6", " cannot be read (CRC check failed"),
    "cut csv": ("a.csv.gz", gzip.compress(b"text\n" + os.urandom(5000).hex().encode())[:2000], f" {ENDS}"),
    "bad zstd": ("a.txt.zst", b"text", " cannot be read (zstd decompress"),
    "cut zstd": (
        "a.jsonl.zst",
        zstandard.compress(b'{"text": "x"}\n' * 9)[:-3],
        " cannot be read (the file ends inside a zstd frame)",
    ),
    "bad parquet": ("a.parquet", b"text" * 9, " cannot be read (Parquet magic bytes"),
    "damaged parquet": (
        "a.parquet",
        _damaged(_parquet(TEXTS * 100, **CHECKED)),
        " cannot be read (could not verify page integrity",
    ),
    "invalid JSON": (
        "a.jsonl",
        b'{"text": "x"}\n{"text": \n{"text": "y"}\n',
        ":2 is not valid JSON (Expecting value: line 2 column 1 (char 10))",
    ),
    "too deep JSON": ("a.jsonl", b"[" * 100_000, ":1 is not valid JSON ("),
    "not an object": ("a.jsonl", b"[1]\n", ":1 is not a JSON object but list"),
    "missing field": ("a.jsonl", b'{"body": "x"}\n', ":1 has no field 'text' (--text_column)"),
    "missing column": ("a.parquet", _parquet(["x"], column="body"), f" {NO_COLUMN} body"),
    "csv with other columns": ("a.csv", b"id;text\n1;x\n", f" {NO_COLUMN} id;text"),
    "not a string": (
        "a.jsonl",
        b'{"text": 5}\n{"text": null}\n{"text": "x"}',
        f":1 {NO_STRING} int",
        f":2 {NO_STRING} NoneType",
    ),
    "null in parquet": ("a.parquet", _parquet(["x", None]), f":2 {NO_STRING} NoneType"),
    "column of numbers": ("a.parquet", _parquet([1, 2]), " has no strings in 'text' (--text_column) but int64"),
    "half a surrogate": ("a.jsonl", b'{"text": "\\ud800"}', ":1 has half a surrogate pair in 'text' (--text_column)"),
    "quote inside a csv field": (
        "a.csv",
        b'text,id\n"a "b" c",1\n"fine\nhere",2\nd,3,4\n\n,5\nx\xff,6\n"y",7\n',
        ":2 is not valid CSV (',' expected after '\"')",
        ":5 has 3 fields, and the header 2: quote the text",
        f":8 {INVALID}",
    ),
    "open quote in csv": ("a.csv", b'text\n"a\nb\n', ":2 is not valid CSV (unexpected end of data)"),
    "pipe": ("a.txt", os.mkfifo, " is not a regular file"),
    "broken link": ("a.txt", lambda p: p.symlink_to("absent"), " cannot be read (No such file or directory)"),
    "link to itself": ("a.txt", lambda p: p.symlink_to("a.txt"), " cannot be read (Too many levels of symbolic links)"),
}


@pytest.mark.parametrize(("name", "make", "expected"), [(n, m, e) for n, m, *e in FAULTS.values()], ids=FAULTS)
def test_faults(tmp_path, name, make, expected):
    make(tmp_path / name) if callable(make) else (tmp_path / name).write_bytes(make)
    faults = [f"{item.where} {item.reason}" for item in _read(tmp_path) if isinstance(item, Fault)]
    for fault, start in zip(faults, expected, strict=True):
        assert fault.startswith(f"{tmp_path}/{name}{start}")


def test_a_file_that_may_not_be_opened(tmp_path, monkeypatch):
    path = _write(tmp_path / "a.txt", b"text")

    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(readers, "_open", refuse)
    assert _read(path) == [Fault(str(path), "cannot be read (Permission denied)")]


def test_what_comes_before_a_fault_of_the_file_is_kept(tmp_path):
    path = tmp_path / "a.jsonl.zst"
    lines = b"".join(json.dumps({"text": os.urandom(100).hex()}).encode() + b"\n" for _ in range(5000))
    path.write_bytes(zstandard.compress(lines)[:-5])
    items = _read(path)
    assert sum(isinstance(item, Slice) for item in items) > 1000
    assert [item.where for item in items if isinstance(item, Fault)][-1] == str(path)


@pytest.fixture
def local_dataset(tmp_path):
    for split in ("train", "test"):
        _write(
            tmp_path / f"{split}.jsonl", "\n".join(f'{{"text": "{split} {i}", "number": {i}}}' for i in range(3)).encode()
        )
    return tmp_path


def test_hub_dataset(local_dataset):
    # `load_dataset` takes a folder where it takes a name, so this goes through all of it but the network.
    source = f"hub:{local_dataset}"
    assert _texts(source) == ["train 0", "train 1", "train 2"]
    for suffix in (":default:test", "::test"):
        assert _texts(source + suffix) == ["test 0", "test 1", "test 2"]
    reason = "has no column 'body' (--text_column); its columns are text, number"
    assert _read(source, text_column="body") == [Fault(source, reason)]
    reason = "has no string in 'number' (--text_column) but int"
    assert _read(source, text_column="number")[0] == Fault(f"{source}:1", reason)


@pytest.mark.parametrize(
    ("suffix", "reason"),
    [
        (":nope", "BuilderConfig 'nope' not found"),
        ("::nope", "Bad split: nope"),
        ("/absent", "Couldn't find any data"),
    ],
)
def test_hub_dataset_that_cannot_be_opened(local_dataset, suffix, reason):
    with pytest.raises(InputError, match=rf"^--sources hub:.*{suffix}: the dataset cannot be read \({reason}.*\)"):
        _read(f"hub:{local_dataset}{suffix}")


def test_hub_dataset_that_cannot_be_reached(monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"^--sources hub:some/name: the dataset cannot be read \(.*\); check the name"):
        _read("hub:some/name")


# ---------------------------------------------------------------------------------------------------------------------
# Parts


PIECES = ("word ", "a", "\n", "\n\n", "\r\n", "\r", " \n", "\u3000\n", "ä漢", "\x0c", "long word by word by word ")
LINES = (
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
    lines = draw(st.lists(st.sampled_from([line.encode() for line in LINES] + [b'{"text": "\xff"}']), max_size=20))
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
@settings(deadline=None, max_examples=400)
def test_parts_of_a_file_are_the_file(tmp_path_factory, file, num_jobs, slice_chars):
    name, data, separator = file
    path = tmp_path_factory.mktemp("parts") / name
    path.write_bytes(data)
    [one], _ = find_inputs(str(path))
    assert measure_input(one, separator) == (max(1, len(data)), len(data), one.version)
    with _short_slices(slice_chars, 4):
        whole = list(read_input(one, "text", separator))
        items, divided = _read_divided(one, num_jobs, separator)
    if divided and whole[-1:] == [no_text(one)]:  # only the whole can tell that
        del whole[-1]
    assert items == whole


@pytest.mark.parametrize("row_group_size", [1, 3, 100])
def test_parts_of_parquet_are_row_groups(tmp_path, row_group_size):
    texts = [None if i == 17 else f"text {i}" for i in range(40)]
    path = _write(tmp_path / "a.parquet", _parquet(texts, row_group_size=row_group_size))
    [one], _ = find_inputs(str(path))
    units, size, _ = measure_input(one, "file")
    assert units == -(-40 // row_group_size) and size > 0
    whole = list(read_input(one, "text", "file"))
    assert whole[17] == Fault(f"{path}:18", "has no string in 'text' (--text_column) but NoneType")
    for num_jobs in (1, 2, 7):
        assert _read_divided(one, num_jobs)[0] == whole


def test_rows_before_a_damaged_row_group_are_kept(tmp_path):
    texts = [f"text {'a document' if i > 20 else i}" for i in range(30)]
    path = _write(tmp_path / "a.parquet", _damaged(_parquet(texts, row_group_size=10, **CHECKED)))
    *items, fault = _read(path)
    assert [item.text for item in items] == [f"text {i}" for i in range(20)]
    assert isinstance(fault, FinalFault)


def test_parts_of_a_hub_dataset_are_its_files(tmp_path):
    for file, rows in enumerate([3, 0, 1, 5]):
        texts = [None if (file, i) == (3, 2) else f"{file} {i}" for i in range(rows)]
        write_rows(tmp_path / f"train-{file}.jsonl", texts)
    [one], _ = find_inputs(f"hub:{tmp_path}")
    units, size, version = measure_input(one, "file")
    assert (units, size) == (4, sum(path.stat().st_size for path in tmp_path.iterdir()))
    whole = list(read_input(one, "text", "file"))
    fault = Fault(f"hub:{tmp_path}, file 4 of 4:3", "has no string in 'text' (--text_column) but NoneType")
    assert [item if isinstance(item, Fault) else item.text for item in whole] == [
        *("0 0", "0 1", "0 2", "2 0", "3 0", "3 1", fault, "3 3", "3 4")
    ]
    for num_jobs in (1, 2, 3, 9):
        assert _read_divided(replace(one, version=version), num_jobs)[0] == whole
    with pytest.raises(InputError, match="^--sources hub:.*: the dataset has changed since the work was divided"):
        list(read_input(replace(one, version="other"), "text", "file", (0, 1)))


def test_a_document_starts_with_its_first_slice_that_is_not_blank(tmp_path):
    path = _write(tmp_path / "a.txt", b"first\n\n" + b" " * 2500 + b"second\n")
    with _short_slices():
        items = _read(path, document_separator="blank_line")
    assert [(item.text.strip(), item.first) for item in items] == [("first", True), ("", True), ("", True), ("second", True)]


@pytest.mark.parametrize(("separator", "kept"), [("line", ["one", "", "two", "three"]), ("blank_line", ["one", "two"])])
def test_documents_before_a_line_that_does_not_decode_are_kept(tmp_path, separator, kept):
    path = _write(tmp_path / "a.txt", b"one\n \ntwo\n\nthree\nfo\xffr\nfive")
    *items, fault = _read(path, document_separator=separator)
    assert [item.text for item in items] == kept
    assert fault == Fault(f"{path}:6", "is not UTF-8 (invalid start byte)")
