# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Encoding keeps the order, reads little ahead, and gives the tokens of the uncut text."""

import multiprocessing
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luna_tools.errors import InputError
from luna_tools.workers import TASKS_PER_PROCESS
from pretraining.prepare import encoding
from pretraining.prepare.encoding import encode, encode_in_order
from pretraining.prepare.tokenizer import load_for_text

TEXT = st.text(st.sampled_from("ab1 .'\n\t\r\u00a0\u3000\x1cé漢<s>"), max_size=60)


@given(st.lists(TEXT))
@settings(deadline=None, max_examples=60)
def test_pieces_give_the_tokens_of_the_whole(tokenizer, texts):
    encoder = load_for_text(tokenizer)
    texts += ["".join(texts) * (3 * encoding.PIECE_CHARS // (1 + len("".join(texts))))]  # long enough to be cut
    expected = [encoder.encode(text, add_special_tokens=False).ids for text in texts]
    assert [ids.tolist() for ids in encode(encoder, texts)] == expected


@pytest.mark.parametrize("num_proc", [1, 2])
def test_order_is_kept_and_little_is_read_ahead(tokenizer, num_proc):
    read = 0

    def batches():
        nonlocal read
        for number in range(40):
            read += 1
            yield number, [f"text {number}", "the same"] if number % 3 else []

    decode = load_for_text(tokenizer).decode
    done = 0
    for note, arrays in encode_in_order(batches(), tokenizer, num_proc):
        assert note == done
        texts = [f"text {note}", "the same"] if note % 3 else []
        assert [decode(ids.tolist()) for ids in arrays] == texts
        assert all(ids.dtype == np.int32 for ids in arrays)
        done += 1
        assert read - done <= TASKS_PER_PROCESS * num_proc
    assert done == 40


def test_a_dead_worker_is_an_error(tokenizer):
    def batches():
        for number in range(100):
            if number == 5:
                for worker in multiprocessing.active_children():
                    os.kill(worker.pid, 9)
            yield number, ["text"]

    with pytest.raises(InputError, match="^--num_proc 2: a worker process died"):
        list(encode_in_order(batches(), tokenizer, 2))
