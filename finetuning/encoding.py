# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""From a task's rows to the token ids of the model's inputs, and from those to padded batches.

Any fast tokenizer does; below, `<s>` and `</s>` stand for its first and its separating token.
"""

import copy
import functools
import logging
import re
from abc import ABC, abstractmethod
from collections import Counter
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

from finetuning.tasks import Task, TaskData
from finetuning.tasks.task import HIDDEN
from luna_tools.errors import InputError

logger = logging.getLogger(__name__)

IGNORED_LABEL = -100  # of the tokens that carry no label of a word
INPUT_NAMES = ("input_ids", "attention_mask", "token_type_ids")


def encode(
    data: TaskData, tokenizer: PreTrainedTokenizerBase, max_sequence_length: int, max_option_length: int = 128
) -> dict[str, Dataset]:
    """Tokenize all splits, and say how many rows of each were cut.

    - One text or two: as the tokenizer has it, cut from the longer one.
    - Multiple choice with a passage: `<s> question option </s> </s> passage </s>` in the tokenizer's form for pairs. The
      option takes the place of each "_" of the question, or follows it.
    - Multiple choice without: `<s> Q: question </s> A: option </s>`.
    - Token classification: the first token of each word has its label, all others have -100.

    Args:
        data: from `Task.load`.
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
    tokenizer = copy.deepcopy(tokenizer)  # truncation is a setting inside it, and would be saved with it
    encoder_class = data.task.encoder().suited(data)
    encoder = encoder_class(data.task, tokenizer, max_sequence_length, max_option_length)
    return {split: encoder.encode_split(split, rows) for split, rows in data.splits.items()}


class Encoder(ABC):
    """One form of input, and its batches. The lengths are checked for room, and the rows that they cut are counted."""

    make_padding = DataCollatorWithPadding
    input_types: dict[str, str] | None = None  # of the stored inputs, where they are not those of the tokenizer
    inputs_per_row: int | None = 1  # None for as many as a row has options

    def __init__(self, task: Task, tokenizer: PreTrainedTokenizerBase, max_sequence_length: int, max_option_length: int):
        self.task, self.tokenizer = task, tokenizer
        self.max_sequence_length, self.max_option_length = max_sequence_length, max_option_length
        self.cut: Counter[str] = Counter()  # rows of the present split, by the option that cut them
        self.check_room()

    @classmethod
    def suited(cls, data: TaskData) -> "type[Encoder]":
        """The class, or the one of its forms that these rows need."""
        return cls

    @staticmethod
    def collate(padding: Callable, names: set[str], rows: list[dict[str, Any]]) -> BatchEncoding:
        """A batch of tensors of the named columns, with `padding` by the library."""
        return padding([{name: row[name] for name in row if name in names} for row in rows])

    @abstractmethod
    def check_room(self) -> None:
        """Refuse lengths that leave no room for text, and tokenizers that lack what the form needs."""

    @abstractmethod
    def encode_batch(self, batch: dict[str, list]) -> dict[str, list]:
        """The columns that `encode` returns, and others, which are dropped."""

    def encode_split(self, split: str, rows: Dataset) -> Dataset:
        kind = self.task.kind
        types = {name: "int32" if name == "input_ids" else "int8" for name in input_names(self.tokenizer)}
        types = {name: Value(type) for name, type in (self.input_types or types).items()}
        features = {name: List(type if self.inputs_per_row == 1 else List(type)) for name, type in types.items()}
        features["length"] = Value("int32")
        if kind == "token_classification":
            features["first_tokens"] = List(Value("int32"))
        if all(label == label and label != HIDDEN[kind] for label in rows["label"]):  # NaN is not itself
            features["labels"] = rows.features["label"]
        self.cut.clear()
        encoded = rows.map(
            lambda batch: {name: column for name, column in self.encode_batch(batch).items() if name in features},
            batched=True,
            remove_columns=rows.column_names,
            features=Features(features),
            load_from_cache_file=False,
            keep_in_memory=True,
            new_fingerprint=split,  # names a file of the cache, and would take a hash of the tokenizer
            desc="Tokenizing",
        )
        for option, count in sorted((+self.cut).items()):  # those above 0
            logger.warning(
                f"{count} of {len(rows)} rows of the split {split!r} are cut at {getattr(self, option)} tokens: raise "
                f"--{option}, as far as the model reads, to keep more."
            )
        return encoded


class TextEncoder(Encoder):
    """One text or two."""

    def check_room(self) -> None:
        texts = len(self.task.columns)
        needed = self.tokenizer.num_special_tokens_to_add(pair=texts == 2) + texts
        if self.max_sequence_length < needed:
            raise InputError(
                f"`--max_sequence_length` is {self.max_sequence_length}, which leaves no room for text: give at least "
                f"{needed}."
            )

    def tokenize(self, *texts: list, **settings) -> BatchEncoding:
        encoded = self.tokenizer(*texts, max_length=self.max_sequence_length, **settings)
        self.cut["max_sequence_length"] += sum(bool(encoding.overflowing) for encoding in encoded.encodings)
        encoded["length"] = [len(ids) for ids in encoded["input_ids"]]
        return encoded

    def encode_batch(self, batch: dict[str, list]) -> dict[str, list]:
        encoded = self.tokenize(batch["text"], batch.get("text_pair"), truncation="longest_first")
        return {**encoded, "labels": batch["label"]}


class WordEncoder(TextEncoder):
    """Words, each with a label."""

    make_padding = DataCollatorForTokenClassification

    def encode_batch(self, batch: dict[str, list]) -> dict[str, list]:
        # Byte-level tokens start with the space before the word, which words alone don't have.
        space = " " if self.tokens_hold_spaces else ""
        words = [[row[0], *(space + word for word in row[1:])] for row in batch["words"]]
        encoded = self.tokenize(words, is_split_into_words=True, truncation=True)
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
        return {**encoded, "labels": labels, "first_tokens": first_tokens}

    @functools.cached_property
    def tokens_hold_spaces(self) -> bool:
        together = self.tokenizer("a a", add_special_tokens=False)["input_ids"]
        words = functools.partial(self.tokenizer, is_split_into_words=True, add_special_tokens=False)
        return together != words(["a", "a"])["input_ids"] and together == words(["a", " a"])["input_ids"]


class ChoiceEncoder(Encoder):
    """The options of a question, each in an input of its own."""

    inputs_per_row = None

    @classmethod
    def suited(cls, data: TaskData) -> type[Encoder]:
        has_passages = any(passage for split in data.splits.values() for passage in split["passage"])
        return PassageEncoder if has_passages else QuestionEncoder

    @staticmethod
    def collate(padding: Callable, names: set[str], rows: list[dict[str, Any]]) -> BatchEncoding:
        """transformers' own collator for multiple choice fails on rows without labels."""
        options = len(rows[0]["input_ids"])
        inputs = names - {"labels"}
        flat = [{name: row[name][option] for name in row if name in inputs} for row in rows for option in range(options)]
        batch = padding(flat)
        for name, tensor in batch.items():
            batch[name] = tensor.view(len(rows), options, -1)
        if "labels" in rows[0]:
            batch["labels"] = torch.tensor([row["labels"] for row in rows])
        return batch

    def encode_batch(self, batch: dict[str, list]) -> dict[str, list]:
        backend = self.tokenizer.backend_tokenizer
        backend.no_padding()
        backend.no_truncation()
        rows = self.choices(batch)
        return {
            "input_ids": [[ids for ids, _ in row] for row in rows],
            "attention_mask": [[[1] * len(ids) for ids, _ in row] for row in rows],
            "token_type_ids": [[types for _, types in row] for row in rows],
            "labels": batch["label"],
            "length": [max(len(ids) for ids, _ in row) for row in rows],
        }

    @abstractmethod
    def choices(self, batch: dict[str, list]) -> list[list[tuple[list[int], list[int]]]]:
        """Each row's options as ids and token types."""


class PassageEncoder(ChoiceEncoder):
    """Question and option, then the passage: RACE's form."""

    def check_room(self) -> None:
        alone, pair = (self.tokenizer.num_special_tokens_to_add(pair=pair) for pair in (False, True))
        if self.max_option_length <= alone:
            raise InputError(f"`--max_option_length` is {self.max_option_length}, which leaves no room for text: raise it.")
        if self.max_sequence_length <= self.max_option_length + pair - alone:
            raise InputError(
                f"`--max_option_length` is {self.max_option_length}, which leaves no room for a passage in the "
                f"{self.max_sequence_length} tokens of `--max_sequence_length`, or of the model: lower it, to "
                f"{self.max_sequence_length // 2} for example."
            )

    def choices(self, batch: dict[str, list]) -> list[list[tuple[list[int], list[int]]]]:
        backend = self.tokenizer.backend_tokenizer
        # The official preprocessing makes all white space, line ends too, one space.
        passages = backend.encode_batch([single_spaces(text) for text in batch["passage"]], add_special_tokens=False)
        alone, pair = (self.tokenizer.num_special_tokens_to_add(pair=pair) for pair in (False, True))
        option_tokens = self.max_option_length - alone
        rows = []
        for question, options, passage in zip(batch["question"], batch["options"], passages, strict=True):
            texts = [question.replace("_", option) if "_" in question else f"{question} {option}" for option in options]
            backend.no_truncation()
            asked = backend.encode_batch([single_spaces(text) for text in texts], add_special_tokens=False)
            self.cut["max_option_length"] += any(len(encoding) > option_tokens for encoding in asked)
            for encoding in asked:
                encoding.truncate(option_tokens)
            room = self.max_sequence_length - pair - len(passage)
            self.cut["max_sequence_length"] += any(len(encoding) > room for encoding in asked)
            backend.enable_truncation(self.max_sequence_length, strategy="only_second")
            rows.append([(e.ids, e.type_ids) for e in (backend.post_process(encoding, passage) for encoding in asked)])
        return rows


class QuestionEncoder(ChoiceEncoder):
    """Question and option, with one separator: CommonsenseQA's form."""

    def check_room(self) -> None:
        if None in self.first_and_separator:
            raise InputError(
                f"The tokenizer {self.tokenizer.name_or_path} lacks a cls or sep token: multiple choice needs both."
            )
        # 3 special tokens, "Q", ":", "A", ":" and one of the option
        if min(self.max_sequence_length, self.max_option_length) < 8:
            raise InputError(
                f"`--max_option_length` is {self.max_option_length} and `--max_sequence_length` is "
                f"{self.max_sequence_length}: give at least 8."
            )

    @property
    def first_and_separator(self) -> tuple[int | None, int | None]:
        tokens = self.tokenizer
        first = tokens.bos_token_id if tokens.cls_token_id is None else tokens.cls_token_id
        return first, tokens.eos_token_id if tokens.sep_token_id is None else tokens.sep_token_id

    def choices(self, batch: dict[str, list]) -> list[list[tuple[list[int], list[int]]]]:
        first, separator = self.first_and_separator
        limit = min("max_option_length", "max_sequence_length", key=lambda option: getattr(self, option))
        room = getattr(self, limit) - 3
        rows = []
        for question, options in zip(batch["question"], batch["options"], strict=True):
            texts = [f"Q: {question}", *(f"A: {option}" for option in options)]
            encodings = self.tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
            question_ids, *options_ids = (encoding.ids for encoding in encodings)
            self.cut[limit] += len(question_ids) + max(map(len, options_ids)) > room
            rows.append([])
            for option_ids in options_ids:
                option_ids = option_ids[:room]
                head = [first, *question_ids[: room - len(option_ids)], separator]
                tail = [*option_ids, separator]
                rows[-1].append((head + tail, [0] * len(head) + [1] * len(tail)))
        return rows


ENCODERS = {
    "classification": TextEncoder,
    "regression": TextEncoder,
    "multiple_choice": ChoiceEncoder,
    "token_classification": WordEncoder,
}


def input_names(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return [name for name in INPUT_NAMES if name in tokenizer.model_input_names]


def single_spaces(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def make_collator(
    task: Task, tokenizer: PreTrainedTokenizerBase, pad_to_multiple_of: int | None = None
) -> Callable[[list[dict[str, Any]]], BatchEncoding]:
    """Return the function that pads rows of `encode` to the longest one and makes them a batch of tensors.

    It keeps the model's inputs and `labels` only: (rows, tokens), or (rows, options, tokens) for multiple choice.
    """
    form = task.encoder()
    padding = form.make_padding(tokenizer, pad_to_multiple_of=pad_to_multiple_of)
    return functools.partial(form.collate, padding, {*input_names(tokenizer), "labels"})
