# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""What is learned: the rows of a batch with their labels, the loss of a micro-batch, the figures of an evaluation.

An objective is a class with `auto_class`, `rows`, `suit` and `collate`; `OBJECTIVES` names those that a recipe may choose.
What they share is in `Objective`: each label that is not -100 counts once, however the batch is divided.
"""

import math
from abc import ABC, abstractmethod
from inspect import signature
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForMaskedLM, PreTrainedTokenizerBase

from pretraining.data import (
    IGNORED,
    MaskedLMDataset,
    Masking,
    MaskingRate,
    at_masked_positions,
    collate,
    most_masked,
    unigram_cross_entropy,
)
from pretraining.recipe import Recipe


class Objective(ABC):
    """A sum over predicted tokens.

    Attributes:
        auto_class: what builds and loads the model.
        takes_positions: whether the model computes `masked_positions` alone if it is given them.
    """

    auto_class: type
    takes_positions = False

    @abstractmethod
    def rows(self, split: Path, shuffle: bool) -> torch.utils.data.Dataset:
        """Read a packed split by places of the run, as `MaskedLMDataset` does."""

    @abstractmethod
    def collate(self, rows: list) -> dict[str, torch.Tensor]:
        """Make a micro-batch with `labels`, (b, n) or where the model takes them at `masked_positions`, of rows."""

    @abstractmethod
    def suit(self, model: torch.nn.Module, sequence_length: int) -> None:
        """Prepare the micro-batches that `collate` makes for a model."""

    def num_predicted(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Count the tokens that a micro-batch predicts: ()."""
        return (batch["labels"] != IGNORED).sum()

    def loss_sum(self, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the summed cross-entropy in nats over the predicted tokens of a micro-batch: ().

        Every head returns the mean over them; not all honour `num_items_in_batch`, which would give the sum.
        """
        return model(**batch).loss.float() * self.num_predicted(batch)

    def evaluation_sums(
        self, model: torch.nn.Module, batch: dict[str, torch.Tensor], counted_b: torch.Tensor
    ) -> torch.Tensor:
        """Return summed cross-entropy, number of right guesses and number of tokens of the rows that count: (3,) float64."""
        if self.takes_positions and "masked_positions" not in batch:
            batch = at_masked_positions(batch)
        labels = batch.pop("labels")
        is_predicted = (labels != IGNORED) & counted_b[:, None]
        logits, labels = model(**batch).logits[is_predicted].float(), labels[is_predicted]
        sums = torch.zeros(3, dtype=torch.float64, device=labels.device)
        sums[0] += torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        sums[1] += (logits.argmax(-1) == labels).sum()
        sums[2] += len(labels)
        return sums

    def figures(self, sums: torch.Tensor) -> dict[str, float]:
        """Return loss, perplexity and accuracy of `evaluation_sums` added up."""
        loss_sum, correct, count = sums.tolist()
        loss = loss_sum / count
        return {"eval_loss": loss, "eval_perplexity": math.exp(min(loss, 700)), "eval_accuracy": correct / count}

    def baseline(self, rows: torch.utils.data.Dataset, num_rows: int, token_counts_v: np.ndarray) -> float:
        """Return the cross-entropy in nats of the first rows' labels under the training unigram frequencies."""
        labels = [
            row_labels[row_labels != IGNORED]
            for first in range(0, num_rows, 1024)
            for _, row_labels in rows.__getitems__(list(range(first, min(first + 1024, num_rows))))
        ]
        return unigram_cross_entropy(token_counts_v, np.concatenate(labels))


class MaskedLM(Objective):
    """BERT's: predict the chosen tokens, most of which are masked."""

    auto_class = AutoModelForMaskedLM

    def __init__(self, recipe: Recipe, tokenizer: PreTrainedTokenizerBase, vocab_size: int):
        specials = tuple(sorted(tokenizer.all_special_ids))
        replacements = recipe.mask_replace_prob, recipe.random_replace_prob
        self.masking = Masking(recipe.last_mlm_probability, tokenizer.mask_token_id, specials, vocab_size, *replacements)
        self.rate = MaskingRate(
            recipe.mlm_probability, recipe.last_mlm_probability, recipe.global_batch_size, recipe.max_steps
        )
        self.recipe, self.gives_positions, self.num_positions = recipe, False, None

    def rows(self, split: Path, shuffle: bool) -> MaskedLMDataset:
        """Read a packed split, masked; the share of masks follows the steps of training."""
        return MaskedLMDataset(split, self.masking, self.recipe.seed, shuffle, self.rate if shuffle else None)

    def suit(self, model: torch.nn.Module, sequence_length: int) -> None:
        """Find masked positions where no device is to be asked for them, and as many in each row for a compiled model."""
        self.takes_positions = "masked_positions" in signature(model.forward).parameters
        self.gives_positions = self.takes_positions and (self.recipe.compile or model.device.type != "cpu")
        if self.recipe.compile:
            highest = max(self.recipe.mlm_probability, self.recipe.last_mlm_probability)
            self.num_positions = most_masked(sequence_length, highest)

    def collate(self, rows: list) -> dict[str, torch.Tensor]:
        """Stack masked rows and their labels."""
        batch = collate(rows)
        return at_masked_positions(batch, self.num_positions) if self.gives_positions else batch


OBJECTIVES = {"masked_lm": MaskedLM}
