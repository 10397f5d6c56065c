# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""What a source holds: its inputs, what each can be divided into, and their division into shares.

A source is the standard library's docstrings, a file, a folder or a Hub dataset; `readers` reads the inputs.
"""

import ast
import functools
import inspect
import os
import sysconfig
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from luna_tools.errors import InputError
from pretraining.prepare.hub import HUB_PREFIX, file_sizes, open_dataset, parse_name
from pretraining.prepare.progress import progress_bar
from pretraining.prepare.slices import is_unicode

PYTHON_DOCS = "python-docs"
PLAIN_TEXT = (".txt", ".md", ".rst")
CSV = {".csv": ",", ".tsv": "\t"}
COMPRESSIONS = (".gz", ".zst")
EXTENSIONS = tuple(e + c for e in (*PLAIN_TEXT, ".jsonl", *CSV) for c in ("", *COMPRESSIONS)) + (".parquet",)

TEXT_PER_COMPRESSED_BYTE = 3  # about, to balance the work of jobs
TEXT_PER_PARQUET_BYTE = 2  # about; of a local file the metadata tells it

READ_ERRORS = (OSError, EOFError, zlib.error, zstandard.ZstdError, pa.ArrowException)


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


class Part(NamedTuple):
    """Units `start` to `stop` of an input (its number in the list), or all of it where they are None.

    The units are what the kind of input can be divided into: bytes of .jsonl and of plain text whose documents are
    lines or paragraphs, row groups of .parquet, files of a Hub dataset. Anything else is one unit.
    """

    input: int
    start: int | None = None
    stop: int | None = None


def find_inputs(source: str) -> tuple[list[Input], list[str]]:
    """List the inputs of one source, sorted by path, and the files of a folder that no reader takes.

    Raises:
        InputError: the source is no existing file or folder, nor one of the special names, or its kind of file
            is not known.
    """
    if source == PYTHON_DOCS:
        docs = python_docs()
        version = f"{len(docs)} docstrings, {zlib.crc32(''.join(doc.text for doc in docs).encode()):08x}"
        return [Input(source, "", sum(len(doc.text.encode()) for doc in docs), version)], []
    if source.startswith(HUB_PREFIX):
        parse_name(source)
        return [Input(source, "", None, "")], []
    if os.path.isfile(source):
        if not source.endswith(EXTENSIONS):
            raise InputError(f"--sources {source}: unknown kind of file, use one of {', '.join(EXTENSIONS)}.")
        return [_file_input(source, "")], []
    if not os.path.isdir(source):
        raise InputError(
            f"--sources {source}: no such file or folder; give an existing one, {PYTHON_DOCS}, or "
            f"{HUB_PREFIX}NAME[:CONFIG[:SPLIT]]."
        )

    def refuse(error: OSError) -> None:
        raise InputError(f"--sources {source}: cannot list {error.filename} ({error.strerror}); make it readable.")

    paths = []
    with progress_bar(f"Listing {source}", "file") as bar:
        for folder, _, names in os.walk(source, onerror=refuse):
            paths += [Path(folder, name).relative_to(source).as_posix() for name in names]
            bar.update(len(names))
    paths.sort()
    inputs = [_file_input(source, path) for path in paths if path.endswith(EXTENSIONS)]
    return inputs, [path for path in paths if not path.endswith(EXTENSIONS)]


def _file_input(source: str, path: str) -> Input:
    try:
        status = os.stat(os.path.join(source, path) if path else source)
    except OSError:  # a broken link: reading it makes the fault
        return Input(source, path, None, "")
    return Input(source, path, status.st_size, str(status.st_mtime_ns))


def measure_input(one: Input, document_separator: str) -> tuple[int, int, str]:
    """Return the units that an input can be divided into, its bytes of text, about, and its version.

    Raises:
        InputError: a Hub dataset cannot be opened.
    """
    if one.source.startswith(HUB_PREFIX):
        dataset, files, version = open_dataset(one.source)
        return dataset.num_shards, sum(_text_bytes(*file) for file in file_sizes(one.source, files)), version
    units, size = 1, _text_bytes(one.name, one.size or 0)
    if one.name.endswith(".parquet"):
        try:
            metadata = pq.read_metadata(one.name)
        except READ_ERRORS:  # told when the file is read
            return 1, one.size or 0, one.version
        units = max(1, metadata.num_row_groups)
        size = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    elif one.name.endswith(".jsonl") or (one.name.endswith(PLAIN_TEXT) and document_separator != "file"):
        units = max(1, size)
    return units, size, one.version


def _text_bytes(path: str, size: int) -> int:
    if path.endswith(COMPRESSIONS):
        return size * TEXT_PER_COMPRESSED_BYTE
    return size * TEXT_PER_PARQUET_BYTE if path.endswith(".parquet") else size


def divide(measures: list[tuple[int, int]], num_jobs: int) -> list[list[Part]]:
    """Cut a list of inputs into contiguous shares of about equal size.

    Args:
        measures: the units and the bytes of each input.
        num_jobs: the number of shares.

    Returns:
        The parts of each share; all of them, one after the other, are the inputs in their order.
    """
    shares: list[list[Part]] = [[] for _ in range(num_jobs)]
    total = sum(max(1, size) for _, size in measures)
    before = 0
    for index, (units, size) in enumerate(measures):
        size = max(1, size)
        first, last = before * num_jobs // total, (before + size - 1) * num_jobs // total  # shares that it falls in
        start = 0
        for share in range(first, last + 1):
            stop = units
            if share < last:
                stop = min(units, round((total * (share + 1) / num_jobs - before) * units / size))
            if start < stop:
                shares[share].append(Part(index) if stop - start == units else Part(index, start, stop))
            start = stop
        before += size
    return shares


class Docstring(NamedTuple):
    """A docstring and the dotted name of the module that it stands in."""

    module: str
    text: str


@functools.cache
def python_docs() -> tuple[Docstring, ...]:
    """Return the distinct docstrings of the running Python's standard library, cleaned, in the order of the files.

    The files are parsed, never imported. Tests and installed packages are left out.

    Raises:
        InputError: a file of the standard library cannot be parsed.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    left_out = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
    docs: dict[str, Docstring] = {}
    for path in progress_bar("Reading the standard library", "file", over=sorted(root.rglob("*.py"))):
        relative = path.relative_to(root).with_suffix("")
        if left_out.intersection(relative.parts):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # old escapes in string literals
                tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, OSError) as error:
            raise InputError(f"--sources {PYTHON_DOCS}: cannot read {path} ({error}).") from error
        parts = relative.parts[:-1] if relative.name == "__init__" else relative.parts
        for node in _definitions(tree):
            text = ast.get_docstring(node, clean=False)
            text = inspect.cleandoc(text) if text else ""
            if text.strip() and text not in docs and is_unicode(text):
                docs[text] = Docstring(".".join(parts), text)
    return tuple(docs.values())


def _definitions(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        yield node
    for child in ast.iter_child_nodes(node):
        yield from _definitions(child)
