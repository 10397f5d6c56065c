# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Bytes, pairs and pixels become the ids of the tasks' tokenizers, and batches hold what the rows hold."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finetuning.encoding import encode, make_collator
from finetuning.tasks import TASKS, TaskData
from finetuning.tasks.reading import Row, make_dataset
from luna_tools.errors import InputError
from tests.support.published_files import message_of


def data_of(name, rows):
    task = TASKS[name]
    columns = [dict(zip(("index", *task.columns, "label"), (i, *row, i % 2), strict=True)) for i, row in enumerate(rows)]
    return TaskData(task, {"train": make_dataset(task, "here", [Row("here", row) for row in columns])})


def batch_of(name, rows, length=64):
    task, tokenizer = TASKS[name], TASKS[name].make_tokenizer()
    encoded = encode(data_of(name, rows), tokenizer, length)["train"]
    return encoded, make_collator(task, tokenizer)(list(encoded))


@settings(max_examples=30, deadline=None)
@given(texts=st.lists(st.text(max_size=20), min_size=1, max_size=4), length=st.integers(2, 30))
def test_bytes_are_those_of_the_tokenizer(texts, length):
    encoded, batch = batch_of("text", [(text,) for text in texts], length)
    tokenizer = TASKS["text"].make_tokenizer()
    expected = [tokenizer(text, truncation=True, max_length=length)["input_ids"] for text in texts]
    assert list(encoded["input_ids"]) == expected and list(encoded["length"]) == list(map(len, expected))
    mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
    assert [row[kept == 1].tolist() for row, kept in zip(batch["input_ids"], mask, strict=True)] == expected
    assert (batch["input_ids"][mask == 0] == 1).all() and batch["labels"].tolist() == [i % 2 for i in range(len(texts))]
    assert ("attention_mask" in batch) == (len(set(map(len, expected))) > 1)


def test_two_texts_are_two_inputs():
    rows = [("one", "another"), ("é", "")]
    encoded, batch = batch_of("retrieval", rows, length=6)
    tokenizer = TASKS["retrieval"].make_tokenizer()
    expected = [[tokenizer(text, truncation=True, max_length=6)["input_ids"] for text in row] for row in rows]
    assert list(encoded["input_ids"]) == expected and list(encoded["length"]) == [6, 3]
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, 2, 6)
    assert batch["input_ids"][batch["attention_mask"] == 1].tolist() == [i for row in expected for ids in row for i in ids]


def test_pixels():
    pixels = bytes(range(256)) * 4
    encoded, batch = batch_of("pathfinder32", [(pixels,), (pixels[::-1],)], length=1024)
    assert batch["input_ids"].tolist() == [[value + 4 for value in row] for row in (pixels, pixels[::-1])]
    assert set(batch) == {"input_ids", "labels"}
    # As a person would write them, for the tokenizer that is saved.
    assert TASKS["image"].make_tokenizer()("0 255")["input_ids"] == [4, 259]
    with pytest.raises(InputError, match="is 1000, but the pictures of Pathfinder have 1024 pixels: raise it") as error:
        batch_of("pathfinder32", [(pixels,)], length=1000)
    message_of(error)


def test_rows_that_are_cut_are_counted(caplog):
    batch_of("text", [("x" * n,) for n in (3, 4, 5, 4000)], length=5)
    assert "2 of 4 rows of the split 'train' are cut at 5 tokens: raise --max_sequence_length, as far as the " in caplog.text
    with pytest.raises(InputError, match="is 1, which leaves no room: give at least 2"):
        batch_of("text", [("x",)], length=1)
