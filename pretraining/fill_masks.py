# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Show what a model has learned: its guesses on held-out masks beside those of counting tables, and held-out sentences.

`python -m pretraining.fill_masks MODEL --dataset DATASET [--sentences 6]`
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from luna_tools.command_line import exit_status
from luna_tools.errors import InputError
from luna_tools.settings import Parser

SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n\s*\n")
MOST_VALIDATION_ROWS, MOST_TRAINING_ROWS = 2_000, 500_000


@dataclass
class FillOptions:
    dataset: str
    """Folder of `luna prepare` that the model was pretrained on."""
    sentences: int = 6
    """Held-out sentences to show."""


def held_out_sentences(rows_bn: np.ndarray, tokenizer) -> list[str]:
    """Return the plainest sentences of packed rows in their order: 6 to 24 words, mostly letters; or else whole rows."""
    stream = rows_bn[:, 1:-1].ravel()
    documents = np.split(stream, np.flatnonzero(stream == tokenizer.eos_token_id))
    texts = tokenizer.batch_decode([document.tolist() for document in documents], skip_special_tokens=True)
    pieces = [piece.strip() for text in texts for piece in SENTENCE_END.split(text)[:-1]]
    pieces = [piece for piece in dict.fromkeys(pieces) if 6 <= len(piece.split()) <= 24]
    plain = [piece for piece in pieces if sum(c.isalpha() or c in " \n,.'-" for c in piece) >= 0.97 * len(piece)]
    return plain or pieces or tokenizer.batch_decode(rows_bn.tolist(), skip_special_tokens=True)


def mask_a_word(ids: list[int], tokenizer) -> int:
    """Return the place to mask: the middle-most token that is a word of over three letters, or else the middle."""
    texts = [tokenizer.decode([token]) for token in ids] + [" "]
    inner = sorted(range(1, len(ids) - 1), key=lambda i: abs(i - len(ids) // 2))
    words = [
        i for i in inner if len(texts[i].strip()) > 3 and texts[i].strip().isalpha() and not texts[i + 1][:1].isalnum()
    ]
    return ([i for i in words if texts[i][0].isspace()] or words or inner)[0]


def measure(model, ids_bn: np.ndarray, labels_bn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rank (from 1) and the loss of each masked token under the model, row by row."""
    import torch

    parts = []
    for ids, labels in zip(np.array_split(ids_bn, len(ids_bn) // 64 + 1), np.array_split(labels_bn, len(ids_bn) // 64 + 1)):
        logits_rv = model(input_ids=torch.from_numpy(ids)).logits[torch.from_numpy(labels != -100)]
        parts.append(ranks_and_losses(logits_rv.float().log_softmax(-1).numpy(), labels[labels != -100]))
    return tuple(np.concatenate(part) for part in zip(*parts, strict=True))
