# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Document readers: the standard library's docstrings, local text files and folders, Hub datasets.

`find_inputs` lists what a source holds; `read_input` streams one input as `Slice`s (documents, the long ones cut
up) and `Fault`s (what could not be read), in an order that depends on nothing but the content. So a place in an
input is named by the number of items read before it.
"""

import ast
import codecs
import functools
import gzip
import inspect
import io
import json
import os
import re
import stat
import sysconfig
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from pretraining.errors import PrepareError

PYTHON_DOCS = "python-docs"
HUB_PREFIX = "hub:"
PLAIN_TEXT = (".txt", ".md", ".rst")
COMPRESSIONS = (".gz", ".zst")
EXTENSIONS = tuple(e + c for e in (*PLAIN_TEXT, ".jsonl") for c in ("", *COMPRESSIONS)) + (".parquet",)
DOCUMENT_SEPARATORS = ("file", "blank_line", "line")

SLICE_CHARS = 2**20  # documents longer than this are cut up
CUT_WINDOW_CHARS = 2**16  # how far on from there to look for a place to cut at
# Before the white space that follows a word: GPT-2's pattern never joins characters across that place, so a byte-level
# BPE gives the two parts the tokens of the whole. (Python counts four control characters as white space, GPT-2 not.)
CUT = re.compile(r"(?<=\S)[^\S\x1c-\x1f]")
MAX_ZSTD_WINDOW = 2**31  # what `zstd --long=31` needs

_READ_ERRORS = (OSError, EOFError, zlib.error, zstandard.ZstdError, pa.ArrowException)


class Docstring(NamedTuple):
    """A docstring and where it stands: `module` is dotted, `name` is dotted inside it ("" for the module's own)."""

    module: str
    name: str
    text: str


@dataclass(frozen=True)
class Input:
    """One file, or one whole non-file source, of the list that a run reads.

    `path` is relative to the source folder ("" where the source is not a folder); `size` is in bytes on disk, and
    None where it is not known before reading; `version` changes when the content does (a file's time of change).
    """

    source: str
    path: str
    size: int | None
    version: str

    @property
    def name(self) -> str:
        return os.path.join(self.source, self.path) if self.path else self.source


class Slice(NamedTuple):
    """A document, or a part of a long one: `first` says that it starts the document. An empty text is no document."""

    text: str
    first: bool


class Fault(NamedTuple):
    """Something that could not be read: `where` is "FILE" or "FILE:LINE", `reason` completes the sentence."""

    where: str
    reason: str


def find_inputs(source: str) -> tuple[list[Input], list[str]]:
    """Lists the inputs of one `--source`, sorted by path, and the files of a folder that no reader takes.

    Raises:
        PrepareError: the source is no existing file or folder, nor one of the special names, or its kind of file
            is not known.
    """
    if source == PYTHON_DOCS:
        docs = python_docs()
        version = f"{len(docs)} docstrings, {zlib.crc32(''.join(doc.text for doc in docs).encode()):08x}"
        return [Input(source, "", sum(len(doc.text.encode()) for doc in docs), version)], []
    if source.startswith(HUB_PREFIX):
        _hub_parts(source)
        return [Input(source, "", None, "")], []
    if os.path.isfile(source):
        if not source.endswith(EXTENSIONS):
            raise PrepareError(f"--source {source}: unknown kind of file, use one of {', '.join(EXTENSIONS)}.")
        return [_file_input(source, "")], []
    if not os.path.isdir(source):
        raise PrepareError(
            f"--source {source}: no such file or folder; give an existing one, {PYTHON_DOCS}, or "
            f"{HUB_PREFIX}NAME[:CONFIG[:SPLIT]]."
        )
    paths = []
    for folder, _, names in os.walk(source, onerror=functools.partial(_unreadable_folder, source)):
        paths += [Path(folder, name).relative_to(source).as_posix() for name in names]
    paths.sort()
    inputs = [_file_input(source, path) for path in paths if path.endswith(EXTENSIONS)]
    return inputs, [path for path in paths if not path.endswith(EXTENSIONS)]


def _unreadable_folder(source: str, error: OSError) -> None:
    raise PrepareError(f"--source {source}: cannot list {error.filename} ({error.strerror}); make it readable.")


def _file_input(source: str, path: str) -> Input:
    try:
        status = os.stat(os.path.join(source, path) if path else source)
    except OSError:  # a broken link: reading it makes the fault
        return Input(source, path, None, "")
    return Input(source, path, status.st_size, str(status.st_mtime_ns))


def read_input(one: Input, text_column: str, document_separator: str) -> Iterator[Slice | Fault]:
    """Streams the documents of one input.

    Args:
        one: the input, from `find_inputs`.
        text_column: the field of .jsonl, .parquet and Hub rows that holds the text.
        document_separator: how plain text divides into documents: "file", "blank_line" or "line".

    Yields:
        Slices, and Faults in the place of what could not be read. After a fault of one line the file goes on;
        after a fault of the file as a whole it ends, with what came before the fault kept.

    Raises:
        PrepareError: a Hub dataset cannot be opened or read.
    """
    if one.source == PYTHON_DOCS:
        items = _slices((doc.text, True) for doc in python_docs())
    elif one.source.startswith(HUB_PREFIX):
        items = _read_hub(one.source, text_column)
    else:
        items = _read_file(one.name, text_column, document_separator)
    found = False
    for item in items:
        found = found or isinstance(item, Fault) or bool(item.text)
        yield item
    if not found:
        yield Fault(one.name, "holds no text")


@functools.cache
def python_docs() -> tuple[Docstring, ...]:
    """The distinct docstrings of the running Python's standard library, cleaned, in the order of the files.

    The files are parsed, never imported. Tests and installed packages are left out.

    Raises:
        PrepareError: a file of the standard library cannot be parsed.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    left_out = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
    docs: dict[str, Docstring] = {}
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root).with_suffix("")
        if left_out.intersection(relative.parts):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # old escapes in string literals
                tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, OSError) as error:
            raise PrepareError(f"--source {PYTHON_DOCS}: cannot read {path} ({error}).") from error
        parts = relative.parts[:-1] if relative.name == "__init__" else relative.parts
        for name, node in _definitions(tree, ""):
            text = ast.get_docstring(node, clean=False)
            text = inspect.cleandoc(text) if text else ""
            if text.strip() and text not in docs and _is_unicode(text):
                docs[text] = Docstring(".".join(parts), name, text)
    return tuple(docs.values())


def _definitions(node: ast.AST, name: str) -> Iterator[tuple[str, ast.AST]]:
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        yield name, node
    for child in ast.iter_child_nodes(node):
        below = name
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            below = f"{name}.{child.name}" if name else child.name
        yield from _definitions(child, below)


def cut_up(text: str, length: int) -> Iterator[str]:
    """Cuts a text, at `CUT` only, into parts of `length` characters or as much more as it takes to get there."""
    start = 0
    while place := CUT.search(text, start + length):
        yield text[start : place.start()]
        start = place.start()
    yield text[start:]


def _slices(pieces: Iterator[tuple[str, bool]]) -> Iterator[Slice]:
    """Joins pieces (text, starts a document) into documents, and cuts the long ones into slices."""
    text, first = "", True
    for piece, starts in pieces:
        if starts and text:
            yield Slice(text if text.strip() or not first else "", first)
        if starts:
            text, first = "", True
        text += piece
        while len(text) > SLICE_CHARS + CUT_WINDOW_CHARS:
            place = CUT.search(text, SLICE_CHARS, SLICE_CHARS + CUT_WINDOW_CHARS)
            cut = place.start() if place else SLICE_CHARS
            yield Slice(text[:cut], first)
            text, first = text[cut:], False
    if text:
        yield Slice(text if text.strip() or not first else "", first)


def _read_file(path: str, text_column: str, document_separator: str) -> Iterator[Slice | Fault]:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            yield Fault(path, "is not a regular file")
        elif path.endswith(".parquet"):
            yield from _read_parquet(path, text_column)
        elif path.removesuffix(".gz").removesuffix(".zst").endswith(".jsonl"):
            with _open(path) as stream:
                yield from _read_jsonl(stream, path, text_column)
        else:
            with _open(path) as stream:
                yield from _slices(_plain_text(stream, document_separator))
    except UnicodeDecodeError as error:
        yield Fault(f"{path}:{_line_that_does_not_decode(path)}", f"is not UTF-8 ({error.reason})")
    except _READ_ERRORS as error:
        yield Fault(path, f"cannot be read ({_first_line(getattr(error, 'strerror', None) or error)})")


def _first_line(error: object) -> str:
    return str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__


def _plain_text(stream: BinaryIO, document_separator: str) -> Iterator[tuple[str, bool]]:
    text = io.TextIOWrapper(stream, encoding="utf-8-sig")
    if document_separator == "file":
        starts = True
        while piece := text.read(SLICE_CHARS):
            yield piece, starts
            starts = False
        return
    line_starts = document_starts = True
    while piece := text.readline(SLICE_CHARS):  # a line can be as long as the file
        line_ends = piece.endswith("\n")
        if document_separator == "line":
            yield piece.removesuffix("\n"), line_starts
        elif line_starts and line_ends and piece.isspace():
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
    except _READ_ERRORS:  # a damaged file, and the damage follows closely
        return line
    return line  # the file ends inside a character


def _read_jsonl(stream: BinaryIO, path: str, text_column: str) -> Iterator[Slice | Fault]:
    for number, line in enumerate(stream, 1):
        where = f"{path}:{number}"
        try:
            row = json.loads(line.decode("utf-8-sig")) if line.strip() else None
        except UnicodeDecodeError as error:
            yield Fault(where, f"is not UTF-8 ({error.reason})")
            continue
        except (ValueError, RecursionError) as error:
            yield Fault(where, f"is not valid JSON ({_first_line(error)})")
            continue
        if not line.strip():
            continue
        if not isinstance(row, dict):
            yield Fault(where, f"is not a JSON object but {type(row).__name__}")
        elif text_column not in row:
            yield Fault(where, f"has no field {text_column!r} (--text_column)")
        else:
            yield from _row_text(row[text_column], where, text_column)


def _row_text(text: object, where: str, text_column: str) -> Iterator[Slice | Fault]:
    if not isinstance(text, str):
        yield Fault(where, f"has no string in {text_column!r} (--text_column) but {type(text).__name__}")
    elif not _is_unicode(text):
        yield Fault(where, f"has half a surrogate pair in {text_column!r} (--text_column)")
    elif not text.strip():
        yield Slice("", True)
    else:
        yield from _slices(iter([(text, True)]))


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _read_parquet(path: str, text_column: str) -> Iterator[Slice | Fault]:
    # Without pre_buffer, pages are read as they are needed and not a row group at a time.
    with pq.ParquetFile(path, pre_buffer=False, page_checksum_verification=True) as file:
        if text_column not in file.schema_arrow.names:
            names = ", ".join(file.schema_arrow.names)
            yield Fault(path, f"has no column {text_column!r} (--text_column); its columns are {names}")
            return
        kind = file.schema_arrow.field(text_column).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
            yield Fault(path, f"has no strings in {text_column!r} (--text_column) but {kind}")
            return
        number = 0
        for batch in file.iter_batches(batch_size=256, columns=[text_column]):
            for value in batch.column(0):
                number += 1
                where = f"{path}:{number}"
                try:
                    text = value.as_py()
                except UnicodeDecodeError as error:
                    yield Fault(where, f"is not UTF-8 ({error.reason})")
                    continue
                yield from _row_text(text, where, text_column)


def _hub_parts(source: str) -> tuple[str, str | None, str]:
    name, *rest = source[len(HUB_PREFIX) :].split(":")
    if not name or len(rest) > 2:
        raise PrepareError(f"--source {source}: write it as {HUB_PREFIX}NAME[:CONFIG[:SPLIT]].")
    return name, (rest[0] or None) if rest else None, rest[1] if len(rest) > 1 and rest[1] else "train"


def _read_hub(source: str, text_column: str) -> Iterator[Slice | Fault]:
    import datasets  # here, not above: the worker processes import this file and have no use for it

    name, config, split = _hub_parts(source)
    try:
        for number, row in enumerate(datasets.load_dataset(name, config, split=split, streaming=True), 1):
            if text_column not in row:
                yield Fault(source, f"has no column {text_column!r} (--text_column); its columns are {', '.join(row)}")
                return
            yield from _row_text(row[text_column], f"{source}:{number}", text_column)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise PrepareError(
            f"--source {source}: the dataset cannot be read ({_first_line(error)}); check the name, the "
            "configuration, the split and the connection, and run the same command again."
        ) from error


def _open(path: str) -> BinaryIO:
    if path.endswith(".gz"):
        return gzip.open(path, "rb")
    if path.endswith(".zst"):
        return io.BufferedReader(_ZstdFile(path), 2**17)
    return open(path, "rb")


class _ZstdFile(io.RawIOBase):
    """Reads .zst, one or more frames; unlike zstandard's own reader it raises when the file ends inside a frame."""

    def __init__(self, path: str):
        self._file = open(path, "rb")
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW)
        self._frame = None
        self._compressed = b""
        self._plain = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._plain:
            self._compressed = self._compressed or self._file.read(2**13)
            if not self._compressed:
                if self._frame is not None:
                    raise EOFError("the file ends inside a zstd frame")
                return 0
            if self._frame is None:
                self._frame = self._decompressor.decompressobj()
            self._plain = memoryview(self._frame.decompress(self._compressed))
            self._compressed = b""
            if self._frame.eof:
                self._compressed, self._frame = self._frame.unused_data, None
        count = min(len(buffer), len(self._plain))
        buffer[:count] = self._plain[:count]
        self._plain = self._plain[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()
