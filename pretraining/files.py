# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Files that are there whole or not at all, and a lock that no kill leaves behind."""

import fcntl
import hashlib
import json
import os
from pathlib import Path
from typing import IO


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file: whenever the run is killed, the file is the old one or the new one."""
    beside = path.with_name(f"{path.name}.tmp")
    beside.write_text(text, encoding="utf-8")
    flush(beside)
    os.replace(beside, path)
    flush(path.parent)


def write_json(path: Path, values: dict, indent: int | None = 2) -> None:
    """Write a JSON file as `write_text` does."""
    write_text(path, json.dumps(values, indent=indent, ensure_ascii=False) + "\n")


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def hold_lock(path: Path) -> IO | None:
    """Hold a lock file until the returned file is closed or the process ends, however it ends; None if another holds it."""
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file
