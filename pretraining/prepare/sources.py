# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Document readers: the standard library's docstrings, local text files and folders, Hub datasets.

`find_inputs` lists what a source holds; `read_input` streams one input as `Slice`s (documents, the long ones cut
up) and `Fault`s (what could not be read), in an order that depends on nothing but the content. So a place in an
input is named by the number of items read before it. `measure_input` and `divide` cut the inputs into shares for
several jobs, such that reading the parts one after the other gives what reading the whole gives.
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
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from luna_tools.errors import InputError

if TYPE_CHECKING:
    from datasets import IterableDataset

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
TEXT_PER_COMPRESSED_BYTE = 3  # about, to balance the work of jobs
TEXT_PER_PARQUET_BYTE = 2  # about; of a local file the metadata tells it

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
    An input of a weight above 1 is in the list several times: `repeat` counts them, and `share` is the part of its
    documents that is taken.
    """

    source: str
    path: str
    size: int | None
    version: str
    repeat: int = 0
    share: float = 1.0

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


class FinalFault(Fault):
    """A fault after which the rest of the input is not read."""


class Part(NamedTuple):
    """Units `start` to `stop` of an input (its number in the list), or all of it where they are None.

    The units are what the kind of input can be divided into: bytes of .jsonl and of plain text whose documents are
    lines or paragraphs, row groups of .parquet, files of a Hub dataset. Anything else is one unit.
    """

    input: int
    start: int | None = None
    stop: int | None = None


def find_inputs(source: str) -> tuple[list[Input], list[str]]:
    """Lists the inputs of one `--source`, sorted by path, and the files of a folder that no reader takes.

    Raises:
        InputError: the source is no existing file or folder, nor one of the special names, or its kind of file
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
            raise InputError(f"--source {source}: unknown kind of file, use one of {', '.join(EXTENSIONS)}.")
        return [_file_input(source, "")], []
    if not os.path.isdir(source):
        raise InputError(
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
    raise InputError(f"--source {source}: cannot list {error.filename} ({error.strerror}); make it readable.")


def _file_input(source: str, path: str) -> Input:
    try:
        status = os.stat(os.path.join(source, path) if path else source)
    except OSError:  # a broken link: reading it makes the fault
        return Input(source, path, None, "")
    return Input(source, path, status.st_size, str(status.st_mtime_ns))


def measure_input(one: Input, document_separator: str) -> tuple[int, int, str]:
    """Returns the units that an input can be divided into, its bytes of text, about, and its version.

    Raises:
        InputError: a Hub dataset cannot be opened.
    """
    if one.source.startswith(HUB_PREFIX):
        with _hub_errors(one.source):
            dataset, files, version = _open_hub(one.source)
            return dataset.num_shards, sum(map(_text_bytes_of_hub_file, files)), version
    size = one.size or 0
    if one.name.endswith(".parquet"):
        try:
            groups = pq.read_metadata(one.name)
        except _READ_ERRORS:  # told when the file is read
            return 1, size, one.version
        text = sum(groups.row_group(group).total_byte_size for group in range(groups.num_row_groups))
        return max(1, groups.num_row_groups), text, one.version
    if one.name.endswith(COMPRESSIONS):
        return 1, size * TEXT_PER_COMPRESSED_BYTE, one.version
    if one.name.endswith(".jsonl") or (one.name.endswith(PLAIN_TEXT) and document_separator != "file"):
        return max(1, size), size, one.version
    return 1, size, one.version


def divide(measures: list[tuple[int, int]], num_shards: int) -> list[list[Part]]:
    """Cuts a list of inputs into contiguous shares of about equal size.

    Args:
        measures: the units and the bytes of each input.
        num_shards: the number of shares.

    Returns:
        The parts of each share; all of them, one after the other, are the inputs in their order.
    """
    shares: list[list[Part]] = [[] for _ in range(num_shards)]
    total = sum(max(1, size) for _, size in measures)
    before = 0
    for index, (units, size) in enumerate(measures):
        size = max(1, size)
        first, last = before * num_shards // total, (before + size - 1) * num_shards // total  # shares that it falls in
        start = 0
        for share in range(first, last + 1):
            stop = units
            if share < last:
                stop = min(units, round((total * (share + 1) / num_shards - before) * units / size))
            if start < stop:
                shares[share].append(Part(index) if stop - start == units else Part(index, start, stop))
            start = stop
        before += size
    return shares


def read_input(
    one: Input, text_column: str, document_separator: str, units: tuple[int, int] | None = None
) -> Iterator[Slice | Fault]:
    """Streams the documents of one input, or of a part of it.

    Args:
        one: the input, from `find_inputs`.
        text_column: the field of .jsonl, .parquet and Hub rows that holds the text.
        document_separator: how plain text divides into documents: "file", "blank_line" or "line".
        units: the first unit to read and the one to stop before, as in `Part`; all by default. A part in bytes
            starts and ends with a document: at the first one that starts at these bytes or after them.

    Yields:
        Slices, and Faults in the place of what could not be read. After a fault of one line the file goes on;
        after a fault of the file as a whole (a FinalFault) it ends, with what came before the fault kept. That an
        input holds no text is a fault of the whole, which reading parts cannot tell.

    Raises:
        InputError: a Hub dataset cannot be opened or read.
    """
    if one.source == PYTHON_DOCS:
        items = _slices((doc.text, True) for doc in python_docs())
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
    """The fault of an input in which nothing was found."""
    return FinalFault(one.name, "holds no text")


@functools.cache
def python_docs() -> tuple[Docstring, ...]:
    """The distinct docstrings of the running Python's standard library, cleaned, in the order of the files.

    The files are parsed, never imported. Tests and installed packages are left out.

    Raises:
        InputError: a file of the standard library cannot be parsed.
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
            raise InputError(f"--source {PYTHON_DOCS}: cannot read {path} ({error}).") from error
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
            blank = first and not text[:cut].strip()
            yield Slice("" if blank else text[:cut], first)
            text, first = text[cut:], blank  # the document starts with its first slice that is not blank
    if text:
        yield Slice(text if text.strip() or not first else "", first)


def _read_file(
    path: str, text_column: str, document_separator: str, units: tuple[int, int] | None
) -> Iterator[Slice | Fault]:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            yield FinalFault(path, "is not a regular file")
        elif path.endswith(".parquet"):
            yield from _read_parquet(path, text_column, units)
        elif path.removesuffix(".gz").removesuffix(".zst").endswith(".jsonl"):
            start, stop = _documents_at(path, units, "line")
            with _open(path) if stop is None else _open_range(path, start, stop) as stream:
                yield from _read_jsonl(stream, path, text_column, start)
        else:
            start, stop = _documents_at(path, units, document_separator)
            with _open(path) if stop is None else _open_range(path, start, stop) as stream:
                yield from _slices(_plain_text(stream, document_separator, start))
    except UnicodeDecodeError as error:
        yield FinalFault(f"{path}:{_line_that_does_not_decode(path)}", f"is not UTF-8 ({error.reason})")
    except _READ_ERRORS as error:
        yield FinalFault(path, f"cannot be read ({_first_line(getattr(error, 'strerror', None) or error)})")


def _documents_at(path: str, units: tuple[int, int] | None, separator: str) -> tuple[int, int | None]:
    """The byte range of the documents that start in a byte range; None for the end stands for that of the file."""
    if units is None:
        return 0, None
    start, stop = (_document_start(path, offset, separator) for offset in units)
    return start, stop


def _document_start(path: str, offset: int, separator: str) -> int:
    """The first place at `offset` or after it where a line starts, for paragraphs one after a blank line."""
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


def _first_line(error: object) -> str:
    return str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__


def _plain_text(stream: BinaryIO, document_separator: str, start: int) -> Iterator[tuple[str, bool]]:
    encoding = "utf-8" if start else "utf-8-sig"
    if document_separator == "file":
        text = io.TextIOWrapper(stream, encoding)
        starts = True
        while piece := text.read(SLICE_CHARS):
            yield piece, starts
            starts = False
        return
    # Not decoded strictly: that fails for a whole block of bytes, and the lines before the fault would be lost with it.
    text = io.TextIOWrapper(stream, encoding, errors="surrogateescape")
    line_starts = document_starts = True
    while piece := text.readline(SLICE_CHARS):  # a line can be as long as the file
        if not (piece.isascii() or _is_unicode(piece)):
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
    except _READ_ERRORS:  # a damaged file, and the damage follows closely
        return line
    return line  # the file ends inside a character


def _read_jsonl(stream: BinaryIO, path: str, text_column: str, start: int) -> Iterator[Slice | Fault]:
    @functools.cache
    def lines_before() -> int:  # asked for at a fault only: it takes reading the file up to `start`
        with open(path, "rb") as file:
            return sum(file.read(min(2**20, start - at)).count(b"\n") for at in range(0, start, 2**20))

    for number, line in enumerate(stream, 1):
        try:
            row = json.loads(line.decode("utf-8-sig")) if line.strip() else None
        except UnicodeDecodeError as error:
            yield Fault(f"{path}:{lines_before() + number}", f"is not UTF-8 ({error.reason})")
            continue
        except (ValueError, RecursionError) as error:
            yield Fault(f"{path}:{lines_before() + number}", f"is not valid JSON ({_first_line(error)})")
            continue
        if not line.strip():
            continue
        if not isinstance(row, dict):
            yield Fault(f"{path}:{lines_before() + number}", f"is not a JSON object but {type(row).__name__}")
        elif text_column not in row:
            yield Fault(f"{path}:{lines_before() + number}", f"has no field {text_column!r} (--text_column)")
        elif reason := _text_fault(row[text_column], text_column):
            yield Fault(f"{path}:{lines_before() + number}", reason)
        else:
            yield from _row_text(row[text_column])


def _text_fault(text: object, text_column: str) -> str | None:
    if not isinstance(text, str):
        return f"has no string in {text_column!r} (--text_column) but {type(text).__name__}"
    if not _is_unicode(text):
        return f"has half a surrogate pair in {text_column!r} (--text_column)"
    return None


def _row_text(text: str) -> Iterator[Slice]:
    if text.strip():
        yield from _slices(iter([(text, True)]))
    else:
        yield Slice("", True)


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _read_parquet(path: str, text_column: str, units: tuple[int, int] | None) -> Iterator[Slice | Fault]:
    # Without pre_buffer, pages are read as they are needed and not a row group at a time.
    with pq.ParquetFile(path, pre_buffer=False, page_checksum_verification=True) as file:
        if text_column not in file.schema_arrow.names:
            names = ", ".join(file.schema_arrow.names)
            yield FinalFault(path, f"has no column {text_column!r} (--text_column); its columns are {names}")
            return
        kind = file.schema_arrow.field(text_column).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
            yield FinalFault(path, f"has no strings in {text_column!r} (--text_column) but {kind}")
            return
        start, stop = units or (0, file.num_row_groups)
        number = sum(file.metadata.row_group(group).num_rows for group in range(start))
        for group in range(start, stop):  # one by one: a batch over two of them would be lost with a fault in the second
            for batch in file.iter_batches(batch_size=256, row_groups=[group], columns=[text_column]):
                for value in batch.column(0):
                    number += 1
                    try:
                        text = value.as_py()
                    except UnicodeDecodeError as error:
                        yield Fault(f"{path}:{number}", f"is not UTF-8 ({error.reason})")
                        continue
                    if reason := _text_fault(text, text_column):
                        yield Fault(f"{path}:{number}", reason)
                    else:
                        yield from _row_text(text)


def _hub_parts(source: str) -> tuple[str, str | None, str | None, str]:
    """The name, revision, configuration and split of a Hub source."""
    name, *rest = source[len(HUB_PREFIX) :].split(":")
    name, _, revision = name.partition("@")
    if not name or len(rest) > 2:
        raise InputError(f"--source {source}: write it as {HUB_PREFIX}NAME[:CONFIG[:SPLIT]], NAME perhaps with @REVISION.")
    return name, revision or None, (rest[0] or None) if rest else None, rest[1] if len(rest) > 1 and rest[1] else "train"


def _open_hub(source: str) -> tuple["IterableDataset", list[str], str]:
    """Opens a Hub dataset for streaming; returns it, its files and its version (of one on the Hub, the commit)."""
    import datasets  # here, not above: the worker processes import this file and have no use for it

    name, revision, config, split = _hub_parts(source)
    builder = datasets.load_dataset_builder(name, config, revision=revision)
    return builder.as_streaming_dataset(split=split), builder.config.data_files[split], str(builder.hash)


def _text_bytes_of_hub_file(url: str) -> int:
    from fsspec.core import url_to_fs

    system, path = url_to_fs(url)
    factor = TEXT_PER_PARQUET_BYTE if path.endswith(".parquet") else 1
    return system.info(path)["size"] * (TEXT_PER_COMPRESSED_BYTE if path.endswith(COMPRESSIONS) else factor)


@contextmanager
def _hub_errors(source: str) -> Iterator[None]:
    import datasets

    try:
        yield
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise InputError(
            f"--source {source}: the dataset cannot be read ({_first_line(error)}); check the name, the "
            "configuration, the split and the connection, and run the same command again."
        ) from error


def _read_hub(one: Input, text_column: str, units: tuple[int, int] | None) -> Iterator[Slice | Fault]:
    with _hub_errors(one.source):
        dataset, _, version = _open_hub(one.source)
    if version != (one.version or version):
        raise InputError(
            f"--source {one.source}: the dataset has changed since the work was divided; begin anew in another folder, "
            f"with {HUB_PREFIX}NAME@REVISION, which stays as it is."
        )
    files = dataset.num_shards
    with _hub_errors(one.source):
        for file in range(*(units or (0, files))):
            name = one.source if files == 1 else f"{one.source}, file {file + 1} of {files}"
            for number, row in enumerate(dataset.shard(files, file), 1):
                if text_column not in row:
                    columns = ", ".join(row)
                    yield FinalFault(one.source, f"has no column {text_column!r} (--text_column); its columns are {columns}")
                    return
                if reason := _text_fault(row[text_column], text_column):
                    yield Fault(f"{name}:{number}", reason)
                else:
                    yield from _row_text(row[text_column])


def _open(path: str) -> BinaryIO:
    if path.endswith(".gz"):
        return gzip.open(path, "rb")
    if path.endswith(".zst"):
        return io.BufferedReader(_ZstdFile(path), 2**17)
    return open(path, "rb")


def _open_range(path: str, start: int, stop: int) -> BinaryIO:
    return io.BufferedReader(_ByteRange(path, start, stop), 2**17)


class _ByteRange(io.RawIOBase):
    """Reads the bytes of a file from `start` to before `stop`."""

    def __init__(self, path: str, start: int, stop: int):
        self._file = open(path, "rb", buffering=0)
        self._file.seek(start)
        self._left = stop - start

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        count = self._file.readinto(memoryview(buffer)[: self._left])
        self._left -= count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


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
