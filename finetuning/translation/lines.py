# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Text files whose lines are sentences: line i of one file is the translation of line i of another."""

import gzip
import zlib
from pathlib import Path

from luna_tools.errors import InputError


def decode_line(line: bytes, number: int, name: str) -> str:
    """A line without its end.

    Args:
        number: of the line, from 1.
        name: of the file, for the error.

    Raises:
        InputError: it is not UTF-8.
    """
    try:
        return line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise InputError(f"Line {number} of {name} is not UTF-8: convert the file, as by `iconv -t UTF-8`.") from error


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, or of one that gzip has packed (.gz). Only line feeds end a line.

    Raises:
        InputError: it cannot be read, has no lines, or is not UTF-8.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            lines = [decode_line(line, number, str(path)) for number, line in enumerate(file, start=1)]
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{path} cannot be read ({reason}): give a text file, or a whole .gz of one.") from error
    if not lines:
        raise InputError(f"{path} is empty: give a file with one sentence a line.")
    return lines


def read_pair_files(paths: list[str]) -> tuple[list[str], list[str]]:
    """The lines of a source file and of its target file.

    Raises:
        InputError: as `read_lines`, or the files have different numbers of lines.
    """
    source, target = (read_lines(Path(path)) for path in paths)
    if len(source) != len(target):
        raise InputError(
            f"{paths[0]} has {len(source):,} lines, but {paths[1]} has {len(target):,}: give files whose lines belong "
            "together."
        )
    return source, target
