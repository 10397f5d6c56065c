# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Rows of a packed split, masked or whole, as pure functions of seed, epoch and sequence index.

Nothing here keeps state: the sequence at any place of the run and its masked tokens can be computed at once, on any
process, in constant memory. That is why a run resumes in constant time and why processes, micro-batches and accumulation
only divide a global batch and never change it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from datasets import load_from_disk

from modeling_luna import positions_with_labels
from pretraining.order import permute

# The "epoch" under which validation rows are masked: the same masks at every evaluation, shared with no training epoch.
VALIDATION_EPOCH = 2**64 - 1
IGNORED = -100  # the label where nothing is to be predicted


@dataclass(frozen=True)
class Masking:
    """How tokens are masked: most of the chosen ones become the mask token, some a random one, the others stay."""

    mlm_probability: float
    mask_token_id: int
    special_token_ids: tuple[int, ...]
    vocab_size: int
    mask_replace_prob: float = 0.8
    random_replace_prob: float = 0.1

    @cached_property
    def is_special_v(self) -> np.ndarray:
        is_special_v = np.zeros(self.vocab_size, dtype=bool)
        is_special_v[list(self.special_token_ids)] = True
        return is_special_v

    @cached_property
    def replacement_ids(self) -> np.ndarray:
        return np.flatnonzero(~self.is_special_v)


@dataclass(frozen=True)
class MaskingRate:
    """The share of the tokens to predict at each place of a run, linear in the step from `first` to `last`."""

    first: float
    last: float
    global_batch_size: int
    max_steps: int

    def at(self, place: int) -> float:
        """Return the share at a place: a function of its step alone, and so of no process or micro-batch."""
        return self.first + (self.last - self.first) * (place // self.global_batch_size) / max(1, self.max_steps - 1)


def mask_tokens(
    input_ids_n: np.ndarray, masking: Masking, seed: int, epoch: int, index: int, mlm_probability: float | None = None
):
    """Mask one sequence: (masked ids, labels), each (n,) int64, labels -100 where nothing is to be predicted.

    Each token that is not special is chosen with `mlm_probability` (default: that of `masking`); where chance chooses none,
    the nearest to being chosen is, so that every sequence has a loss. The raw output of a counter-based generator is used,
    whose stream no version of NumPy will change.
    """
    ids = input_ids_n.astype(np.int64)
    n = len(ids)
    generator = np.random.Philox(
        key=np.array([seed, epoch], dtype=np.uint64), counter=np.array([0, 0, 0, index], dtype=np.uint64)
    )
    raw = generator.random_raw(3 * n).reshape(3, n)
    chance, action = (raw[:2] >> np.uint64(11)) * 2.0**-53
    chance[masking.is_special_v[ids]] = 1.0

    chosen = chance < (masking.mlm_probability if mlm_probability is None else mlm_probability)
    if not chosen.any():
        chosen = chance == chance.min()
        chosen &= chance < 1.0
    labels = np.where(chosen, ids, IGNORED)
    replacements = masking.replacement_ids
    random_ids = replacements[(raw[2] % np.uint64(len(replacements))).astype(np.int64)]
    mask_share, replaced_share = masking.mask_replace_prob, masking.mask_replace_prob + masking.random_replace_prob
    masked = np.where(chosen & (action < mask_share), masking.mask_token_id, ids)
    masked = np.where(chosen & (action >= mask_share) & (action < replaced_share), random_ids, masked)
    return masked, labels


class PackedDataset(torch.utils.data.Dataset):
    """Rows of a packed split with their labels by place in the run: place p is row permute(p mod rows) of epoch p // rows.

    With `shuffle=False` place p is row p (validation). Here a row is its own label but for its first and last token, which
    every row has.
    """

    def __init__(self, split: Path, seed: int, shuffle: bool):
        self.rows = load_from_disk(str(split)).with_format("numpy")
        self.seed = seed
        self.shuffle = shuffle

    def __len__(self) -> int:
        return len(self.rows)

    def locate(self, places: Sequence[int]) -> list[tuple[int, int]]:
        """Return (epoch, row index) of places in the run."""
        if not self.shuffle:
            return [(VALIDATION_EPOCH, place) for place in places]
        epochs, offsets = np.divmod(np.asarray(places), len(self.rows))
        rows = np.empty_like(offsets)
        for epoch in np.unique(epochs):
            of_epoch = epochs == epoch
            rows[of_epoch] = permute(offsets[of_epoch], len(self.rows), self.seed, int(epoch))
        return list(zip(epochs.tolist(), rows.tolist(), strict=True))

    def __getitems__(self, places: list[int]) -> list[tuple[np.ndarray, np.ndarray]]:
        located = self.locate(places)
        input_ids_bn = self.rows[[index for _, index in located]]["input_ids"]
        return [self.example(*row) for row in zip(input_ids_bn, places, located, strict=True)]

    def example(self, input_ids_n: np.ndarray, place: int, located: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Return ids and labels of a row, each (n,) int64."""
        ids_n = input_ids_n.astype(np.int64)
        labels_n = ids_n.copy()
        labels_n[[0, -1]] = IGNORED
        return ids_n, labels_n


class MaskedLMDataset(PackedDataset):
    """The rows masked; those of validation the same way each time.

    Args:
        rate: the share of tokens to predict by place (default: that of `masking`, everywhere).
    """

    def __init__(self, split: Path, masking: Masking, seed: int, shuffle: bool, rate: MaskingRate | None = None):
        super().__init__(split, seed, shuffle)
        self.masking = masking
        self.rate = rate

    def example(self, input_ids_n: np.ndarray, place: int, located: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        return mask_tokens(input_ids_n, self.masking, self.seed, *located, self.rate.at(place) if self.rate else None)


def collate(rows: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, torch.Tensor]:
    """Stack rows, which have one length and no padding, so that a batch needs no attention mask."""
    input_ids, labels = zip(*rows, strict=True)
    return {"input_ids": torch.from_numpy(np.stack(input_ids)), "labels": torch.from_numpy(np.stack(labels))}


def at_masked_positions(batch: dict[str, torch.Tensor], num_positions: int | None = None) -> dict[str, torch.Tensor]:
    """Give labels at `masked_positions` alone, both (b, k), filled up with -100 and -1.

    Args:
        num_positions: k, whatever the batch; a row's masks beyond it have no label. Default: as many as the batch needs.
    """
    k = num_positions or int((batch["labels"] != IGNORED).sum(-1).max())
    positions_bk = positions_with_labels(batch["labels"], k)
    labels_bk = batch["labels"].gather(1, positions_bk)
    return batch | {"labels": labels_bk, "masked_positions": positions_bk.masked_fill(labels_bk == IGNORED, -1)}


def most_masked(num_tokens: int, mlm_probability: float) -> int:
    """Return a number of masks that a row exceeds with a probability below 1e-12, by Chernoff's bound; a multiple of 8."""
    for k in range(math.ceil(num_tokens * mlm_probability), num_tokens):
        share = k / num_tokens
        divergence = share * math.log(share / mlm_probability) + (1 - share) * math.log((1 - share) / (1 - mlm_probability))
        if num_tokens * divergence > 12 * math.log(10):
            return min(num_tokens, -8 * (-k // 8))
    return num_tokens


def unigram_cross_entropy(token_counts_v: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean -log p of `labels` in nats, p being the training tokens' frequencies with one added to each count."""
    log_p_v = np.log(token_counts_v + 1.0) - np.log(token_counts_v.sum() + len(token_counts_v))
    return float(-log_p_v[labels].mean())
