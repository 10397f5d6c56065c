# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""From a task's rows to the token ids of the model's inputs, and from those to padded batches.

Any fast tokenizer does; below, `<s>` and `</s>` stand for its first and its separating token.
"""

import copy
import functools
import re
from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset, Features, List, Value
from transformers import (
    BatchEncoding,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    PreTrainedTokenizerBase,
)

from finetuning.data import TaskData
from finetuning.tasks import Task
from luna_tools.errors import InputError

IGNORED_LABEL = -100  # of the tokens that carry no label of a word
INPUT_NAMES = ("input_ids", "attention_mask", "token_type_ids")


def encode(
    data: TaskData, tokenizer: PreTrainedTokenizerBase, max_sequence_length: int, max_option_length: int = 128
) -> dict[str, Dataset]:
    """Tokenizes all splits.

    - One text or two: as the tokenizer has it, cut from the longer one.
    - Multiple choice with a passage: `<s> question option </s> </s> passage </s>` in the tokenizer's form for pairs. The
      option takes the place of each "_" of the question, or follows it.
    - Multiple choice without: `<s> Q: question </s> A: option </s>`.
    - Token classification: the first token of each word has its label, all others have -100.

    Args:
        data: from `load_task`.
        tokenizer: a fast one. It is not changed.
        max_sequence_length: the most tokens of an input, special ones included. A passage is cut at its end to fit.
        max_option_length: the most tokens of `<s> question option </s>` (cut at its end) or of the whole input where
            there is no passage (cut at the end of the question, then of the option).

    Returns:
        For each split a dataset with `input_ids`, `attention_mask` and, where the tokenizer makes them,
        `token_type_ids`, per row (tokens,) or for multiple choice (options, tokens); `labels`, where the split has all
        of them; and `length`, the tokens of the row or of its longest option. Token classification adds
        `first_tokens`, the position of each word's first token, -1 for a word that is cut off or gave no token.

    Raises:
        InputError: the tokenizer does not fit the task, or the lengths leave no room for the text.
    """
    if not tokenizer.is_fast:
        raise InputError(f"The tokenizer {tokenizer.name_or_path} has no tokenizer.json: use one that is fast.")
    task, tokenizer = data.task, copy.deepcopy(tokenizer)  # truncation is a setting inside it, and would be saved with it
    if task.kind == "multiple_choice":
        has_passages = any(passage for split in data.splits.values() for passage in split["passage"])
        encoder = _encode_with_passage if has_passages else _encode_without_passage
        _check_option_length(tokenizer, max_sequence_length, max_option_length, has_passages)
        lengths = (max_sequence_length, max_option_length)
    else:
        encoder = _encode_words if task.kind == "token_classification" else _encode_texts
        texts = len(task.columns)
        needed = tokenizer.num_special_tokens_to_add(pair=texts == 2) + texts
        if max_sequence_length < needed:
            raise InputError(
                f"`--max_sequence_length` is {max_sequence_length}, which leaves no room for text: give at least {needed}."
            )
        lengths = (max_sequence_length,)
    encoder = functools.partial(encoder, tokenizer, *lengths)
    return {split: _encode_split(task, rows, tokenizer, encoder) for split, rows in data.splits.items()}


def _check_option_length(
    tokenizer: PreTrainedTokenizerBase, max_sequence_length: int, max_option_length: int, has_passages: bool
) -> None:
    if not has_passages:
        if None in _first_and_separator(tokenizer):
            raise InputError(
                f"The tokenizer {tokenizer.name_or_path} lacks a cls or sep token: multiple choice needs both."
            )
        if min(max_sequence_length, max_option_length) < 8:  # 3 special tokens, "Q", ":", "A", ":" and one of the option
            raise InputError(
                f"`--max_option_length` is {max_option_length} and `--max_sequence_length` is {max_sequence_length}: give "
                "at least 8."
            )
        return
    if max_option_length <= tokenizer.num_special_tokens_to_add(pair=False):
        raise InputError(f"`--max_option_length` is {max_option_length}, which leaves no room for text: raise it.")
    added = tokenizer.num_special_tokens_to_add(pair=True) - tokenizer.num_special_tokens_to_add(pair=False)
    if max_sequence_length <= max_option_length + added:
        raise InputError(
            f"`--max_option_length` is {max_option_length}, which leaves no room for a passage in the {max_sequence_length} "
            f"tokens of `--max_sequence_length`, or of the model: lower it, to {max_sequence_length // 2} for example."
        )


def _encode_split(task: Task, rows: Dataset, tokenizer: PreTrainedTokenizerBase, encoder: Callable) -> Dataset:
    types = {name: Value("int32" if name == "input_ids" else "int8") for name in _input_names(tokenizer)}
    nested = {name: List(List(kind) if task.kind == "multiple_choice" else kind) for name, kind in types.items()}
    features = nested | {"length": Value("int32"), "labels": rows.features["label"]}
    if task.kind == "token_classification":
        features["first_tokens"] = List(Value("int32"))
        has_labels = all(rows["label"])
    elif task.kind == "regression":
        has_labels = all(label == label for label in rows["label"])
    else:
        has_labels = min(rows["label"]) >= 0
    if not has_labels:
        features.pop("labels")
    return rows.map(
        lambda batch: {name: column for name, column in encoder(batch).items() if name in features},
        batched=True,
        remove_columns=rows.column_names,
        features=Features(features),
        load_from_cache_file=False,
        keep_in_memory=True,
        desc="Tokenizing",
    )


def _input_names(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return [name for name in INPUT_NAMES if name in tokenizer.model_input_names]


def _encode_texts(tokenizer: PreTrainedTokenizerBase, max_sequence_length: int, batch: dict[str, list]) -> dict[str, list]:
    encoded = tokenizer(batch["text"], batch.get("text_pair"), truncation="longest_first", max_length=max_sequence_length)
    return {**encoded, "labels": batch["label"], "length": [len(ids) for ids in encoded["input_ids"]]}


def _encode_words(tokenizer: PreTrainedTokenizerBase, max_sequence_length: int, batch: dict[str, list]) -> dict[str, list]:
    # Byte-level tokens start with the space before the word, which words alone don't have.
    space = " " if _tokens_hold_spaces(tokenizer) else ""
    words = [[row[0], *(space + word for word in row[1:])] for row in batch["words"]]
    encoded = tokenizer(words, is_split_into_words=True, truncation=True, max_length=max_sequence_length)
    labels, first_tokens = [], []
    for number, (row, row_labels) in enumerate(zip(words, batch["label"], strict=True)):
        first = {}
        for position, word in enumerate(encoded.word_ids(number)):
            if word is not None:
                first.setdefault(word, position)
        first_tokens.append([first.get(word, -1) for word in range(len(row))])
        labels.append([IGNORED_LABEL] * len(encoded["input_ids"][number]))
        for word, label in enumerate(row_labels):
            if word in first:
                labels[-1][first[word]] = label
    length = [len(ids) for ids in encoded["input_ids"]]
    return {**encoded, "labels": labels, "length": length, "first_tokens": first_tokens}


def _tokens_hold_spaces(tokenizer: PreTrainedTokenizerBase) -> bool:
    together = tokenizer("a a", add_special_tokens=False)["input_ids"]
    return together != tokenizer(["a", "a"], is_split_into_words=True, add_special_tokens=False)["input_ids"] and (
        together == tokenizer(["a", " a"], is_split_into_words=True, add_special_tokens=False)["input_ids"]
    )


def _encode_with_passage(
    tokenizer: PreTrainedTokenizerBase, max_sequence_length: int, max_option_length: int, batch: dict[str, list]
) -> dict[str, list]:
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    # The official preprocessing makes all white space, line ends too, one space.
    passages = backend.encode_batch([_single_spaces(text) for text in batch["passage"]], add_special_tokens=False)
    option_tokens = max_option_length - tokenizer.num_special_tokens_to_add(pair=False)
    encodings = []
    for question, options, passage in zip(batch["question"], batch["options"], passages, strict=True):
        texts = [question.replace("_", option) if "_" in question else f"{question} {option}" for option in options]
        backend.no_truncation()
        asked = backend.encode_batch([_single_spaces(text) for text in texts], add_special_tokens=False)
        for encoding in asked:
            encoding.truncate(option_tokens)
        backend.enable_truncation(max_sequence_length, strategy="only_second")
        encodings.append([backend.post_process(encoding, passage) for encoding in asked])
    return _choices(batch, [[(e.ids, e.type_ids) for e in row] for row in encodings])


def _encode_without_passage(
    tokenizer, max_sequence_length: int, max_option_length: int, batch: dict[str, list]
) -> dict[str, list]:
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    first, separator = _first_and_separator(tokenizer)
    room = min(max_sequence_length, max_option_length) - 3
    rows = []
    for question, options in zip(batch["question"], batch["options"], strict=True):
        texts = [f"Q: {question}", *(f"A: {option}" for option in options)]
        question_ids, *options_ids = (e.ids for e in backend.encode_batch(texts, add_special_tokens=False))
        rows.append([])
        for option_ids in options_ids:
            option_ids = option_ids[:room]
            head = [first, *question_ids[: room - len(option_ids)], separator]
            tail = [*option_ids, separator]
            rows[-1].append((head + tail, [0] * len(head) + [1] * len(tail)))
    return _choices(batch, rows)


def _choices(batch: dict[str, list], rows: list[list[tuple[list[int], list[int]]]]) -> dict[str, list]:
    """Columns from each option's ids and token types."""
    return {
        "input_ids": [[ids for ids, _ in row] for row in rows],
        "attention_mask": [[[1] * len(ids) for ids, _ in row] for row in rows],
        "token_type_ids": [[types for _, types in row] for row in rows],
        "labels": batch["label"],
        "length": [max(len(ids) for ids, _ in row) for row in rows],
    }


def _first_and_separator(tokenizer: PreTrainedTokenizerBase) -> tuple[int | None, int | None]:
    first = tokenizer.bos_token_id if tokenizer.cls_token_id is None else tokenizer.cls_token_id
    return first, tokenizer.eos_token_id if tokenizer.sep_token_id is None else tokenizer.sep_token_id


def _single_spaces(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def make_collator(
    task: Task, tokenizer: PreTrainedTokenizerBase, pad_to_multiple_of: int | None = None
) -> Callable[[list[dict[str, Any]]], BatchEncoding]:
    """Returns the function that pads rows of `encode` to the longest one and makes them a batch of tensors.

    It keeps the model's inputs and `labels` only: (rows, tokens), or (rows, options, tokens) for multiple choice.
    """
    if task.kind == "token_classification":
        collator = DataCollatorForTokenClassification(tokenizer, pad_to_multiple_of=pad_to_multiple_of)
    else:
        collator = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=pad_to_multiple_of)
    collate = _collate_choices if task.kind == "multiple_choice" else _collate
    return functools.partial(collate, collator, {*_input_names(tokenizer), "labels"})


def _collate(collator: Callable, names: set[str], rows: list[dict[str, Any]]) -> BatchEncoding:
    return collator([{name: row[name] for name in row if name in names} for row in rows])


def _collate_choices(collator: Callable, names: set[str], rows: list[dict[str, Any]]) -> BatchEncoding:
    """transformers' own collator for multiple choice fails on rows without labels."""
    options = len(rows[0]["input_ids"])
    inputs = names - {"labels"}
    flat = [{name: row[name][option] for name in row if name in inputs} for row in rows for option in range(options)]
    batch = collator(flat)
    for name, tensor in batch.items():
        batch[name] = tensor.view(len(rows), options, -1)
    if "labels" in rows[0]:
        batch["labels"] = torch.tensor([row["labels"] for row in rows])
    return batch
