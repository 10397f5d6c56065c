# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The error that the command line turns into one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager


class FinetuningError(ValueError):
    """An option, a file, a row or a checkpoint that cannot be used; the message is one sentence with the remedy."""


@contextmanager
def told(what: str, remedy: str) -> Iterator[None]:
    """Tell any error of a library in one sentence: "WHAT (its own first sentence): REMEDY."."""
    try:
        yield
    except FinetuningError:
        raise
    except Exception as error:
        raise FinetuningError(f"{what} ({first_sentence(error)}): {remedy}.") from error


def first_sentence(error: Exception) -> str:
    """The start of a library's message, which goes on for lines."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].split(". ")[0].rstrip(".: ")
