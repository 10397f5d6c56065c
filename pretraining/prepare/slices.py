# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Documents in slices: the long ones are cut up, where a byte-level BPE gives the parts the tokens of the whole."""

import re
from collections.abc import Iterator
from typing import NamedTuple

SLICE_CHARS = 2**20  # documents longer than this are cut up
CUT_WINDOW_CHARS = 2**16  # how far on from there to look for a place to cut at
# Before the white space that follows a word: GPT-2's pattern never joins characters across that place, so a byte-level
# BPE gives the two parts the tokens of the whole. (Python counts four control characters as white space, GPT-2 not.)
CUT = re.compile(r"(?<=\S)[^\S\x1c-\x1f]")


class Slice(NamedTuple):
    """A document, or a part of a long one: `first` says that it starts the document. An empty text is no document."""

    text: str
    first: bool


def cut_up(text: str, length: int) -> Iterator[str]:
    """Cut a text, at `CUT` only, into parts of `length` characters or as much more as it takes to get there."""
    start = 0
    while place := CUT.search(text, start + length):
        yield text[start : place.start()]
        start = place.start()
    yield text[start:]


def slices(pieces: Iterator[tuple[str, bool]]) -> Iterator[Slice]:
    """Join pieces (text, starts a document) into documents, and cut the long ones into slices."""
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


def slices_of(text: str) -> Iterator[Slice]:
    """Cut up one document; one of white space alone is an empty slice."""
    if text.strip():
        yield from slices(iter([(text, True)]))
    else:
        yield Slice("", True)


def is_unicode(text: str) -> bool:
    """Tell whether a text can be written as UTF-8: half a surrogate pair cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
