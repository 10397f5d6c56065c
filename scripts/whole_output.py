# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Output of a command that is whole or absent, whatever stops the command."""

import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


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


@contextmanager
def one_sentence_when_stopped() -> Iterator[None]:
    """Let SIGINT and SIGTERM undo what is unfinished, say one sentence, and exit with 128 + the signal's number."""

    def stop(number: int, frame: object) -> None:
        for other in handlers:
            signal.signal(other, signal.SIG_IGN)  # a second one does not stop the undoing
        raise KeyboardInterrupt(number)

    numbers = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN]
    handlers = {number: signal.getsignal(number) for number in numbers}
    try:
        for number in numbers:
            signal.signal(number, stop)
        yield
    except KeyboardInterrupt as error:
        (number,) = error.args
        print(f"error: stopped by {signal.Signals(number).name}: nothing is half-written.", file=sys.stderr)
        sys.exit(128 + number)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
