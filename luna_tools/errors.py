# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The one error that a command turns into one sentence, and how a library's error becomes it."""

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """What the user gave cannot be used. The message is one sentence that names the field, its value and the remedy."""


class Stopped(Exception):
    """A signal ended the work in order: nothing is lost or half-written.

    Args:
        signal_number: the exit status is 128 + this.
        sentence: what was saved, and how to go on.
    """

    def __init__(self, signal_number: int, sentence: str):
        super().__init__(sentence)
        self.signal_number = signal_number


@contextmanager
def told(what: str, remedy: str) -> Iterator[None]:
    """Tell any error of a library in one sentence: "WHAT (its own first sentence): REMEDY."."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{what} ({first_sentence(error)}): {remedy}.") from error


def first_sentence(error: Exception) -> str:
    """The start of a library's message, which goes on for lines. After a colon the next line belongs to it."""
    text = re.sub(r":\s*\n\s*", ": ", str(error).strip()) or type(error).__name__
    return text.splitlines()[0].split(". ")[0].rstrip(".: ")


def one_line(error: BaseException) -> str:
    """All of a library's message, on one line."""
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def undone_when_stopped() -> Iterator[None]:
    """Let SIGINT and SIGTERM raise inside, so that what is unfinished is undone, and then `Stopped`."""

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
        raise Stopped(number, f"Stopped by {signal.Signals(number).name}: nothing is half-written.") from None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
