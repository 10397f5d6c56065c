# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Bytes and pixels to ids, without a tokenizer's detour: long documents would take it hours."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import BatchEncoding

from finetuning.encoding import Encoder
from finetuning.tasks.lra import FIRST_SYMBOL
from luna_tools.errors import InputError


class SymbolPadding:
    """What makes a batch of rows of ids: the padding's id, and the number that the length is made a multiple of."""

    def __init__(self, tokenizer, pad_to_multiple_of: int | None = None):
        self.pad_id, self.multiple = tokenizer.pad_token_id, pad_to_multiple_of or 1

    def __call__(self, rows: list[np.ndarray]) -> dict[str, torch.Tensor]:
        """`input_ids` (rows, tokens), and `attention_mask` where there is padding."""
        longest = max(map(len, rows))
        width = -(-longest // self.multiple) * self.multiple
        ids = np.full((len(rows), width), self.pad_id)
        for row, values in zip(ids, rows, strict=True):
            row[: len(values)] = values
        batch = {"input_ids": torch.from_numpy(ids)}
        if any(len(row) < width for row in rows):
            lengths = np.array([len(row) for row in rows])
            batch["attention_mask"] = torch.from_numpy((np.arange(width) < lengths[:, None]).astype(np.int64))
        return batch


class SymbolEncoder(Encoder):
    """Ids are stored in two bytes each, and the masks follow from the lengths."""

    make_padding = SymbolPadding
    input_types = {"input_ids": "uint16"}

    def check_room(self) -> None:
        if self.max_sequence_length < 2:
            raise InputError(
                f"`--max_sequence_length` is {self.max_sequence_length}, which leaves no room: give at least 2."
            )

    @staticmethod
    def collate(padding: Callable, names: set[str], rows: list[dict[str, Any]]) -> BatchEncoding:
        batch = padding([np.asarray(row["input_ids"]) for row in rows])
        if "labels" in rows[0]:
            batch["labels"] = torch.tensor([row["labels"] for row in rows])
        return BatchEncoding(batch)


class ByteEncoder(SymbolEncoder):
    """One text: the first token, and its bytes as far as there is room."""

    def to_ids(self, texts: list[str]) -> list[np.ndarray]:
        room = self.max_sequence_length - 1
        # A character is a byte at least: what comes after as many of them is cut in any case.
        encoded = [text[: room + 1].encode() for text in texts]
        self.cut["max_sequence_length"] += sum(len(data) > room for data in encoded)
        first = np.array([self.tokenizer.cls_token_id], np.uint16)
        symbols = (np.frombuffer(data[:room], np.uint8).astype(np.uint16) + FIRST_SYMBOL for data in encoded)
        return [np.concatenate([first, ids]) for ids in symbols]

    def encode_batch(self, batch: dict[str, list]) -> dict[str, list]:
        ids = self.to_ids(batch["text"])
        return {"input_ids": ids, "labels": batch["label"], "length": list(map(len, ids))}


class TwoTextsEncoder(ByteEncoder):
    """Two texts, each an input of its own."""

    inputs_per_row = 2

    @staticmethod
    def collate(padding: Callable, names: set[str], rows: list[dict[str, Any]]) -> BatchEncoding:
        batch = padding([np.asarray(ids) for row in rows for ids in row["input_ids"]])
        batch = {name: tensor.unflatten(0, (-1, 2)) for name, tensor in batch.items()}
        if "labels" in rows[0]:
            batch["labels"] = torch.tensor([row["labels"] for row in rows])
        return BatchEncoding(batch)

    def encode_batch(self, batch: dict[str, list]) -> dict[str, list]:
        pairs = list(zip(self.to_ids(batch["text"]), self.to_ids(batch["text_pair"]), strict=True))
        lengths = [max(map(len, pair)) for pair in pairs]
        return {"input_ids": list(map(list, pairs)), "labels": batch["label"], "length": lengths}


class PixelEncoder(SymbolEncoder):
    """The grey levels of a picture."""

    def encode_batch(self, batch: dict[str, list]) -> dict[str, list]:
        ids = [np.frombuffer(pixels, np.uint8).astype(np.uint16) + FIRST_SYMBOL for pixels in batch["pixels"]]
        if len(ids[0]) > self.max_sequence_length:
            raise InputError(
                f"`--max_sequence_length` is {self.max_sequence_length}, but the pictures of {self.task.title} have "
                f"{len(ids[0])} pixels: raise it, and the model's max_position_embeddings."
            )
        return {"input_ids": ids, "labels": batch["label"], "length": list(map(len, ids))}
