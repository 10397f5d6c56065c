# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Files that are there whole or not at all, what is said where they cannot be, and a lock that no kill leaves behind."""

import errno
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from safetensors import SafetensorError

from luna_tools.errors import InputError, first_sentence


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


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file, and so keep other runs out of its folder.

    Raises:
        InputError: another run is in it.
    """
    file = hold_lock(path)
    if file is None:
        raise InputError(f"{path.parent}: another run is writing here; wait for it, or use another folder.")
    with file:
        yield


@contextmanager
def staging_folder(target: Path) -> Iterator[Path]:
    """An empty hidden folder for what is to become `target`: in `target` where that is a folder, otherwise beside it.

    At the end it is removed with what is left in it, and so are the parents of `target` that were made for nothing.

    Raises:
        OSError: it cannot be made.
    """
    parent = target if target.is_dir() else target.parent
    made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=parent, prefix=".unfinished-") as staging:
            yield Path(staging)
    finally:
        for folder in made:
            with suppress(OSError):  # it holds the target
                folder.rmdir()


def put_in_place(folder: Path, target: Path) -> None:
    """Rename `folder` to `target`; where `target` is a folder, move into it all that `folder` holds, or nothing.

    An existing folder stays the same one: it may be where the user is, a link or a mounted disk.

    Raises:
        OSError: `target` cannot be written.
    """
    if not target.is_dir():
        folder.rename(target)
        return
    moved = []
    try:
        for path in sorted(folder.iterdir()):
            if (target / path.name).exists():
                raise FileExistsError(f"{target / path.name} already exists")
            path.rename(target / path.name)
            moved.append(path)
    except BaseException:
        for path in moved:
            (target / path.name).rename(path)
        raise


def is_disk_full(error: BaseException) -> bool:
    """Whether a library failed because a file could not be written whole: torch's writer and safetensors have no errno."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return True
    signs = ("No space left", "File too large", "Disk quota exceeded", "PytorchStreamWriter", "inline_container")
    return any(sign in str(error) for sign in signs)


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Tell in one sentence, of `target`, that what is written inside the block cannot be written.

    Raises:
        InputError: for what the system, safetensors or torch says of files; other errors pass.
    """
    try:
        yield
    except Exception as error:
        if is_disk_full(error):
            reason, remedy = "the disk is full", "free some space and give the same command again"
        elif isinstance(error, (OSError, SafetensorError)):
            reason, remedy = getattr(error, "strerror", None) or first_sentence(error), "choose another place"
        else:
            raise
        raise InputError(f"{target} cannot be written ({reason}): {remedy}.") from error
