# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""What an earlier run left in the folder of the dataset, and whether this one may go on with it."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from luna_tools.errors import InputError

WORK_VERSION = 4  # of the files of unfinished work
PLAN = "plan.json"  # how the work is divided among jobs
JOBS = "jobs"  # a folder for each; it and the plan are removed at the end
PROGRESS = "progress.json"  # of a job that is not complete
LOCK = ".lock"


def read_json(path: Path, version: int) -> dict | None:
    """Return what an earlier run wrote, or None.

    Raises:
        InputError: something else, or another version of the program, wrote it.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        value = None
    if not isinstance(value, dict) or "format_version" not in value:
        raise InputError(f"{path}: this file is not from an earlier run; choose another folder.")
    if value["format_version"] != version:
        raise InputError(
            f"{path} is of format {value['format_version']}, and this version of the program goes on with format {version}: "
            "use the version that wrote it, another folder, or delete this one."
        )
    return value


def difference_from(settings: dict, earlier: dict) -> str | None:
    """Return what an earlier run (its manifest or plan) and this one differ in, in words, or None."""
    for name in settings | earlier["settings"]:
        old, new = (values.get(name) for values in (earlier["settings"], settings))
        if old != new and not (name == "on_error" and earlier["skipped"]["count"] == 0):
            old, new = (" ".join(map(str, value)) if isinstance(value, list) else value for value in (old, new))
            return f"was made with --{name} {old}, and this is {new}"
    return None


def refuse_difference(difference: str | None, output: Path) -> None:
    """Raise InputError where there is a difference."""
    if difference is not None:
        raise InputError(f"{output} {difference}: use the old value, another folder, or delete this one.")


def require_empty(output: Path) -> None:
    """Raise InputError where a folder to begin in holds something."""
    names = set(os.listdir(output)) - {LOCK, f"{PLAN}.tmp"}
    if names:
        raise InputError(
            f"{output}: the folder is not empty ({min(names)}) and not from an earlier run; choose another one."
        )


def remove_unfinished(output: Path) -> None:
    """Remove what is of no use beside a finished dataset."""
    (output / PLAN).unlink(missing_ok=True)
    shutil.rmtree(output / JOBS, ignore_errors=True)


@contextmanager
def left_as_it_was(folder: Path) -> Iterator[None]:
    """Tell of a file that was there when the work was interrupted, and is not or is another, what to delete."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{error} is not as the interrupted run left it: delete {folder} and run again.") from error
