# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""What is learned: the rows of a batch with their labels, the loss of a micro-batch, the figures of an evaluation.

An objective is a subclass of `Objective`; `OBJECTIVES` names those that a recipe may choose. What they share is in the base:
each label that is not -100 counts once, however the batch is divided.
"""

import math
from abc import ABC, abstractmethod
from inspect import signature
from pathlib import Path

import numpy as np
import torch
from datasets import load_from_disk
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedConfig, PreTrainedTokenizerBase

from luna_tools.errors import InputError
from pretraining.baselines import NGrams, token_stream
from pretraining.data import (
    IGNORED,
    MaskedLMDataset,
    Masking,
    MaskingRate,
    PackedDataset,
    at_masked_positions,
    collate,
    most_masked,
    unigram_cross_entropy,
)
from pretraining.dataset_format import TOKEN_COUNTS, TRAIN, VALIDATION
from pretraining.recipe import Recipe

MOST_COUNTED_TOKENS = 20_000_000  # of the training split, by n-grams: about a minute and two gigabytes


class Objective(ABC):
    """A sum over predicted tokens, made of a recipe, the dataset's tokenizer and its manifest.

    Attributes:
        auto_class: what builds and loads the model.
        head_layers: square matrices of the usual head before the one that projects to the vocabulary.
        takes_positions: whether the model computes `masked_positions` alone if it is given them.
    """

    auto_class: type
    head_layers: int
    takes_positions = False

    @staticmethod
    @abstractmethod
    def projected_shares(recipe: Recipe, config: PreTrainedConfig) -> tuple[float, float]:
        """Return which share of the positions is projected to the vocabulary in training, at the first and the last step."""

    @abstractmethod
    def rows(self, split: Path, shuffle: bool) -> PackedDataset:
        """Open a packed split."""

    @abstractmethod
    def suit(self, model: torch.nn.Module, sequence_length: int) -> None:
        """Prepare the micro-batches that `collate` makes for a model.

        Raises:
            InputError: the model cannot learn this.
        """

    def collate(self, rows: list) -> dict[str, torch.Tensor]:
        """Make a micro-batch with `labels`, (b, n) or where the model takes them at `masked_positions`, of rows."""
        return collate(rows)

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
        logits, labels = self.aligned(model(**batch).logits, labels)
        is_predicted = (labels != IGNORED) & counted_b[:, None]
        logits, labels = logits[is_predicted].float(), labels[is_predicted]
        sums = torch.zeros(3, dtype=torch.float64, device=labels.device)
        sums[0] += torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        sums[1] += (logits.argmax(-1) == labels).sum()
        sums[2] += len(labels)
        return sums

    def aligned(self, logits_bnv: torch.Tensor, labels_bn: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Bring the logits and labels of a model's output to the same places."""
        return logits_bnv, labels_bn

    def figures(self, sums: torch.Tensor) -> dict[str, float]:
        """Return loss, perplexity and accuracy of `evaluation_sums` added up."""
        loss_sum, correct, count = sums.tolist()
        loss = loss_sum / count
        return {"eval_loss": loss, "eval_perplexity": math.exp(min(loss, 700)), "eval_accuracy": correct / count}

    def baselines(self, dataset: Path, rows: PackedDataset, num_rows: int) -> dict[str, float]:
        """Return what counting alone makes of the first rows' labels: the cross-entropy in nats under the frequencies of
        the training tokens."""
        labels = [
            row_labels[row_labels != IGNORED]
            for first in range(0, num_rows, 1024)
            for _, row_labels in rows.__getitems__(list(range(first, min(first + 1024, num_rows))))
        ]
        counts_v = np.load(dataset / TOKEN_COUNTS)
        return {"unigram_cross_entropy": unigram_cross_entropy(counts_v, np.concatenate(labels))}


class MaskedLM(Objective):
    """BERT's: predict the chosen tokens, most of which are masked."""

    auto_class, head_layers = AutoModelForMaskedLM, 1

    def __init__(self, recipe: Recipe, tokenizer: PreTrainedTokenizerBase, manifest: dict):
        specials = tuple(sorted(tokenizer.all_special_ids))
        sizes = specials, manifest["vocab_size"]
        replacements = recipe.mask_replace_prob, recipe.random_replace_prob
        self.masking = Masking(recipe.last_mlm_probability, tokenizer.mask_token_id, *sizes, *replacements)
        self.rate = MaskingRate(
            recipe.mlm_probability, recipe.last_mlm_probability, recipe.global_batch_size, recipe.max_steps
        )
        self.recipe, self.gives_positions, self.num_positions = recipe, False, None

    @staticmethod
    def projected_shares(recipe: Recipe, config: PreTrainedConfig) -> tuple[float, float]:
        """Luna projects the masked positions alone, other models all."""
        return (recipe.mlm_probability, recipe.last_mlm_probability) if config.model_type == "luna" else (1.0, 1.0)

    def rows(self, split: Path, shuffle: bool) -> MaskedLMDataset:
        """Open a packed split, masked; the share of masks follows the steps of training."""
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


class CausalLM(Objective):
    """GPT's: predict each token from those before it in its row.

    A row and its labels are the same tokens: every causal model of transformers shifts labels in its own loss. So do
    `aligned`, for evaluations, and nothing else here.
    """

    auto_class, head_layers = AutoModelForCausalLM, 0

    def __init__(self, recipe: Recipe, tokenizer: PreTrainedTokenizerBase, manifest: dict):
        self.recipe, self.vocab_size = recipe, manifest["vocab_size"]
        told = manifest["splits"].get(VALIDATION, {})
        self.bytes_per_token = told["text_bytes"] / told["tokens"] if told.get("text_bytes") else None

    @staticmethod
    def projected_shares(recipe: Recipe, config: PreTrainedConfig) -> tuple[float, float]:
        """All positions are."""
        return 1.0, 1.0

    def rows(self, split: Path, shuffle: bool) -> PackedDataset:
        """Open a packed split as it is."""
        return PackedDataset(split, self.recipe.seed, shuffle)

    @torch.no_grad()
    def suit(self, model: torch.nn.Module, sequence_length: int) -> None:
        """Refuse a model whose logits depend on what comes later: it would copy what it is to predict.

        Raises:
            InputError: it is such a model.
        """
        if model.loss_type is None:  # of GPT2LMHeadModel: the library takes this one, with a warning that breaks the graph
            model.loss_type = "ForCausalLM"
        was_training = model.training
        model.eval()
        ids_bn = torch.arange(min(8, sequence_length), device=model.device).repeat(2, 1) % self.vocab_size
        ids_bn[1, -1] = (ids_bn[1, -1] + 1) % self.vocab_size
        one_nv, other_nv = model(input_ids=ids_bn).logits[:, :-1].float()
        model.train(was_training)
        if (one_nv - other_nv).abs().max() > 1e-4 * one_nv.abs().max():
            raise InputError(
                f"`objective` is clm, but {type(model).__name__} reads tokens that come later: set `model.is_decoder` to "
                "true where its configuration has that field, or choose another `model.model_type`."
            )

    def aligned(self, logits_bnv: torch.Tensor, labels_bn: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits are of the next token."""
        return logits_bnv[:, :-1], labels_bn[:, 1:]

    def bits_per_byte(self, nats_per_token: float) -> float:
        """Convert a cross-entropy by the bytes of the validation split's text, which do not depend on the tokenizer."""
        return nats_per_token / math.log(2) / self.bytes_per_token

    def figures(self, sums: torch.Tensor) -> dict[str, float]:
        """Return bits per byte too, where the dataset knows its bytes."""
        figures = super().figures(sums)
        if self.bytes_per_token is not None:
            figures["eval_bits_per_byte"] = self.bits_per_byte(figures["eval_loss"])
        return figures

    def baselines(self, dataset: Path, rows: PackedDataset, num_rows: int) -> dict[str, float]:
        """Return the figures of 5-grams too, counted on the first tokens of the training split.

        They see more than the model, which begins anew with each row: the tokens before a row as well.
        """
        training = load_from_disk(str(dataset / TRAIN)).with_format("numpy")
        most_rows = max(1, MOST_COUNTED_TOKENS // len(training[0]["input_ids"]))
        counted = token_stream(training[:most_rows]["input_ids"])
        measured = token_stream(rows.rows[:num_rows]["input_ids"])
        nats = float(-np.log(NGrams(counted, self.vocab_size).probabilities(measured)).mean())
        found = super().baselines(dataset, rows, num_rows) | {"five_gram_cross_entropy": nats}
        if self.bytes_per_token is not None:
            found["five_gram_bits_per_byte"] = self.bits_per_byte(nats)
        return found


OBJECTIVES = {"masked_lm": MaskedLM, "clm": CausalLM}
