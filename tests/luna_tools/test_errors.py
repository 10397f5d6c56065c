# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""A library's error becomes one sentence, and a signal undoes what is unfinished."""

import signal

import pytest

from luna_tools.errors import InputError, Stopped, first_sentence, told, undone_when_stopped

MESSAGES = [
    ("It is bad. See https://example.org for more.", "It is bad"),
    ("  one\ntwo", "one"),
    ("Class validation error:\n    ValueError: size is -3.", "Class validation error: ValueError: size is -3"),
    ("", "KeyError"),
]


@pytest.mark.parametrize("message, sentence", MESSAGES)
def test_the_first_sentence_says_what_is_wrong(message, sentence):
    class Error(Exception):
        pass

    Error.__name__ = "KeyError"
    assert first_sentence(Error(message)) == sentence


def test_errors_of_libraries_are_told_and_our_own_pass():
    with pytest.raises(InputError, match=r"^The file is bad \(odd\): mend it\.$"), told("The file is bad", "mend it"):
        raise RuntimeError("odd. Very odd.")
    with pytest.raises(InputError, match="^mine$"), told("The file is bad", "mend it"):
        raise InputError("mine")


def test_a_second_signal_does_not_stop_the_undoing():
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    undone = []
    with pytest.raises(Stopped, match="^Stopped by SIGTERM: nothing is half-written.$") as stopped, undone_when_stopped():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGINT)
            undone.append(True)
    assert stopped.value.signal_number == signal.SIGTERM and undone
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_signal_that_is_ignored_stays_so():
    """As under nohup, or behind an `&` in a script."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with undone_when_stopped():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, handler)
