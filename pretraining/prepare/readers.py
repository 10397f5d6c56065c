# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""One input as documents, cut into slices, and what could not be read, in an order that depends on the content alone.

So a place in an input is named by the number of items read before it, and reading an input in parts, one after the other,
gives what reading the whole gives.
"""

import codecs
import csv
import functools
import gzip
import io
import itertools
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from luna_tools.errors import InputError, first_sentence
from pretraining.prepare.hub import HUB_PREFIX, hub_errors, open_dataset
from pretraining.prepare.slices import Slice, is_unicode, slices, slices_of
from pretraining.prepare.sources import CSV, PYTHON_DOCS, READ_ERRORS, Input, python_docs

READ_CHARS = 2**20  # at a time, of lines that can be as long as the file
MAX_ZSTD_WINDOW = 2**31  # what `zstd --long=31` needs
MAX_CSV_FIELD = 2**27  # characters; a quote that nothing closes makes a field of the rest of the file


class Fault(NamedTuple):
    """Something that could not be read: `where` is "FILE" or "FILE:LINE", `reason` completes the sentence."""

    where: str
    reason: str


class FinalFault(Fault):
    """A fault after which the rest of the input is not read."""


class BadRow(NamedTuple):
    """In the place of a row's text: why it has none."""

    reason: str


def read_input(
    one: Input, text_column: str, document_separator: str, units: tuple[int, int] | None = None
) -> Iterator[Slice | Fault]:
    """Stream the documents of one input, or of a part of it.

    Args:
        one: the input, from `find_inputs`.
        text_column: the field of .jsonl, .csv, .tsv, .parquet and Hub rows that holds the text.
        document_separator: how plain text divides into documents: "file", "blank_line" or "line".
        units: the first unit to read and the one to stop before, as in `Part`; all by default. A part in bytes
            starts and ends with a document: at the first one that starts at these bytes or after them.

    Yields:
        Slices, and Faults in the place of what could not be read. After a fault of one row the file goes on;
        after a fault of the file as a whole (a FinalFault) it ends, with what came before the fault kept. That an
        input holds no text is a fault of the whole, which reading parts cannot tell.

    Raises:
        InputError: a Hub dataset cannot be opened or read.
    """
    if one.source == PYTHON_DOCS:
        items = slices((doc.text, True) for doc in python_docs())
    elif one.source.startswith(HUB_PREFIX):
        items = _read_hub(one, text_column, units)
    else:
        items = _read_file(one.name, text_column, document_separator, units)
    found = False
    for item in items:
        found = found or isinstance(item, Fault) or bool(item.text)
        yield item
    if not found and units is None:
        yield no_text(one)


def no_text(one: Input) -> Fault:
    """Return the fault of an input in which nothing was found."""
    return FinalFault(one.name, "holds no text")


def _read_file(
    path: str, text_column: str, document_separator: str, units: tuple[int, int] | None
) -> Iterator[Slice | Fault]:
    plain_path = path.removesuffix(".gz").removesuffix(".zst")
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            yield FinalFault(path, "is not a regular file")
        elif path.endswith(".parquet"):
            yield from _read_parquet(path, text_column, units)
        elif plain_path.endswith(tuple(CSV)):
            with _open(path) as stream:
                yield from _read_csv(stream, path, text_column, CSV[os.path.splitext(plain_path)[1]])
        else:
            is_rows = plain_path.endswith(".jsonl")
            separator = "line" if is_rows else document_separator
            start, stop = (_document_start(path, offset, separator) for offset in units) if units else (0, None)
            with _open(path) if stop is None else _open_range(path, start, stop) as stream:
                if is_rows:
                    yield from _read_jsonl(stream, path, text_column, start)
                else:
                    yield from slices(_plain_text(stream, document_separator, start))
    except UnicodeDecodeError as error:
        yield FinalFault(f"{path}:{_line_that_does_not_decode(path)}", f"is not UTF-8 ({error.reason})")
    except READ_ERRORS as error:
        yield FinalFault(path, f"cannot be read ({first_sentence(getattr(error, 'strerror', None) or error)})")


def _document_start(path: str, offset: int, separator: str) -> int:
    """Return the first place at `offset` or after it where a line starts, for paragraphs one after a blank line."""
    if offset == 0:
        return 0
    with open(path, "rb") as file:
        file.seek(offset - 1)
        line_starts = False
        while line := file.readline(2**16):  # a line can be as long as the file
            line_ends = line.endswith(b"\n")
            if line_ends and (separator == "line" or (line_starts and line.isspace())):
                break
            line_starts = line_ends
        return file.tell()


# ---------------------------------------------------------------------------------------------------------------------
# Plain text


def _plain_text(stream: BinaryIO, document_separator: str, start: int) -> Iterator[tuple[str, bool]]:
    encoding = "utf-8" if start else "utf-8-sig"
    if document_separator == "file":
        text = io.TextIOWrapper(stream, encoding)
        starts = True
        while piece := text.read(READ_CHARS):
            yield piece, starts
            starts = False
        return
    # Not decoded strictly: that fails for a whole block of bytes, and the lines before the fault would be lost with it.
    text = io.TextIOWrapper(stream, encoding, errors="surrogateescape")
    line_starts = document_starts = True
    while piece := text.readline(READ_CHARS):  # a line can be as long as the file
        if not (piece.isascii() or is_unicode(piece)):
            piece.encode("utf-8", "surrogateescape").decode("utf-8")  # raises
        line_ends = piece.endswith("\n")
        if document_separator == "line":
            yield piece.removesuffix("\n"), line_starts
            if line_ends:
                yield "", True  # ends the document, should a fault come next
        elif line_starts and line_ends and piece.isspace():
            yield "", True
            document_starts = True
        else:  # a line end goes with the line after it, so that a document does not end with one
            line_end = "\n" if line_starts and not document_starts else ""
            yield line_end + piece.removesuffix("\n"), document_starts
            document_starts = False
        line_starts = line_ends


def _line_that_does_not_decode(path: str) -> int:
    decoder = codecs.getincrementaldecoder("utf-8")()
    line = 1
    try:
        with _open(path) as stream:
            while chunk := stream.read(2**10):
                decoder.decode(chunk)
                line += chunk.count(b"\n")
    except UnicodeDecodeError as error:
        return line + error.object[: error.start].count(b"\n")
    except READ_ERRORS:  # a damaged file, and the damage follows closely
        return line
    return line  # the file ends inside a character


# ---------------------------------------------------------------------------------------------------------------------
# Rows with a text in one column


def _documents(rows: Iterable[tuple[int, object]], where: Callable[[int], str], text_column: str) -> Iterator[Slice | Fault]:
    """Turn numbered rows (the text column's value, or a BadRow) into documents; `where` is asked of a row with a fault."""
    for number, text in rows:
        if isinstance(text, BadRow):
            yield Fault(where(number), text.reason)
        elif not isinstance(text, str):
            yield Fault(where(number), f"has no string in {text_column!r} (--text_column) but {type(text).__name__}")
        elif not is_unicode(text):
            yield Fault(where(number), f"has half a surrogate pair in {text_column!r} (--text_column)")
        else:
            yield from slices_of(text)


def _no_column(where: str, text_column: str, columns: Iterable[str]) -> FinalFault:
    return FinalFault(where, f"has no column {text_column!r} (--text_column); its columns are {', '.join(columns)}")


def _read_jsonl(stream: BinaryIO, path: str, text_column: str, start: int) -> Iterator[Slice | Fault]:
    @functools.cache
    def lines_before() -> int:  # asked for at a fault only: it takes reading the file up to `start`
        with open(path, "rb") as file:
            return sum(file.read(min(2**20, start - at)).count(b"\n") for at in range(0, start, 2**20))

    lines = enumerate(stream, 1)
    rows = ((number, _jsonl_text(line, text_column)) for number, line in lines if line.strip())
    return _documents(rows, lambda number: f"{path}:{lines_before() + number}", text_column)


def _jsonl_text(line: bytes, text_column: str) -> object:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return BadRow(f"is not UTF-8 ({error.reason})")
    except (ValueError, RecursionError) as error:
        return BadRow(f"is not valid JSON ({first_sentence(error)})")
    if not isinstance(row, dict):
        return BadRow(f"is not a JSON object but {type(row).__name__}")
    return row.get(text_column, BadRow(f"has no field {text_column!r} (--text_column)"))


def _read_csv(stream: BinaryIO, path: str, text_column: str, delimiter: str) -> Iterator[Slice | Fault]:
    csv.field_size_limit(MAX_CSV_FIELD)
    # Not decoded strictly: that fails for a whole block of bytes, and the rows before the fault would be lost with it.
    text = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
    except csv.Error as error:
        yield FinalFault(f"{path}:1", f"is not valid CSV ({error})")
        return
    if not header:
        return
    if text_column not in header:
        yield _no_column(path, text_column, (name.encode("utf-8", "replace").decode("utf-8") for name in header))
        return
    rows = _csv_texts(reader, header.index(text_column), len(header))
    yield from _documents(rows, lambda line: f"{path}:{line}", text_column)


def _csv_texts(reader, column: int, columns: int) -> Iterator[tuple[int, str | BadRow]]:
    """Yield the first line of each row that is not blank, with its text."""
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            yield line, BadRow(f"is not valid CSV ({error})")
            continue
        if row is None:
            return
        if row and len(row) != columns:
            yield line, BadRow(f"has {len(row)} fields, and the header {columns}: quote the text")
        elif row:
            try:
                text = row[column]
                yield line, text if is_unicode(text) else text.encode("utf-8", "surrogateescape").decode("utf-8")
            except UnicodeDecodeError as error:
                yield line, BadRow(f"is not UTF-8 ({error.reason})")


def _read_parquet(path: str, text_column: str, units: tuple[int, int] | None) -> Iterator[Slice | Fault]:
    # Without pre_buffer, pages are read as they are needed and not a row group at a time.
    with pq.ParquetFile(path, pre_buffer=False, page_checksum_verification=True) as file:
        if text_column not in file.schema_arrow.names:
            yield _no_column(path, text_column, file.schema_arrow.names)
            return
        kind = file.schema_arrow.field(text_column).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
            yield FinalFault(path, f"has no strings in {text_column!r} (--text_column) but {kind}")
            return
        start, stop = units or (0, file.num_row_groups)
        before = sum(file.metadata.row_group(group).num_rows for group in range(start))
        rows = enumerate(_parquet_texts(file, text_column, range(start, stop)), before + 1)
        yield from _documents(rows, lambda number: f"{path}:{number}", text_column)


def _parquet_texts(file: pq.ParquetFile, text_column: str, groups: range) -> Iterator[object]:
    for group in groups:  # one by one: a batch over two of them would be lost with a fault in the second
        for batch in file.iter_batches(batch_size=256, row_groups=[group], columns=[text_column]):
            for value in batch.column(0):
                try:
                    yield value.as_py()
                except UnicodeDecodeError as error:
                    yield BadRow(f"is not UTF-8 ({error.reason})")


def _read_hub(one: Input, text_column: str, units: tuple[int, int] | None) -> Iterator[Slice | Fault]:
    dataset, _, version = open_dataset(one.source)
    if version != (one.version or version):
        raise InputError(
            f"--sources {one.source}: the dataset has changed since the work was divided; begin anew in another folder, "
            f"with {HUB_PREFIX}NAME@REVISION, which stays as it is."
        )
    files = dataset.num_shards
    with hub_errors(one.source):
        for file in range(*(units or (0, files))):
            name = one.source if files == 1 else f"{one.source}, file {file + 1} of {files}"
            rows = iter(dataset.shard(files, file))
            if (first := next(rows, None)) is None:
                continue
            if text_column not in first:
                yield _no_column(one.source, text_column, first)
                return
            absent = BadRow(f"has no field {text_column!r} (--text_column)")
            texts = enumerate((row.get(text_column, absent) for row in itertools.chain([first], rows)), 1)
            yield from _documents(texts, lambda number, name=name: f"{name}:{number}", text_column)


# ---------------------------------------------------------------------------------------------------------------------
# Files


def _open(path: str) -> BinaryIO:
    if path.endswith(".gz"):
        return gzip.open(path, "rb")
    if path.endswith(".zst"):
        return io.BufferedReader(_Chunks(_zstd_chunks(path)), 2**17)
    return open(path, "rb")


def _open_range(path: str, start: int, stop: int) -> BinaryIO:
    return io.BufferedReader(_Chunks(_range_chunks(path, start, stop)), 2**17)


def _range_chunks(path: str, start: int, stop: int) -> Iterator[bytes]:
    with open(path, "rb") as file:
        file.seek(start)
        while chunk := file.read(min(2**17, stop - start)):
            yield chunk
            start += len(chunk)


def _zstd_chunks(path: str) -> Iterator[bytes]:
    """Decompress one or more frames; unlike zstandard's own reader, raise when the file ends inside a frame."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW)
    frame = None
    with open(path, "rb") as file:
        while compressed := file.read(2**13):
            while compressed:
                frame = decompressor.decompressobj() if frame is None else frame
                yield frame.decompress(compressed)
                compressed, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    if frame is not None:
        raise EOFError("the file ends inside a zstd frame")


class _Chunks(io.RawIOBase):
    """Read chunks of bytes as a file."""

    def __init__(self, chunks: Iterator[bytes]):
        self._chunks = chunks
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._left:
            if (chunk := next(self._chunks, None)) is None:
                return 0
            self._left = memoryview(chunk)
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count

    def close(self) -> None:
        self._chunks.close()
        super().close()
