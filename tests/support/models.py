# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The table of models that the common tests go through: a new class is one row of MODELS."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations, product

import pytest
import torch
import transformers

import modeling_luna
from configuration_luna import AUTO_CLASSES
from tests.support import naive
from tests.support.luna_builders import build

# Values of the options of the encoder, the default first.
OPTION_VALUES = {
    "tie_key_value": (True, False),
    "contextual_projection": (True, False),
    "position_embedding_type": ("learned", "sinusoidal"),
    "norm_first": (False, True),
    "share_layer_weights": (False, True),
    "dynamic_projection": (True, False),
}
POOLINGS = ("cls", "packed_mean", "packed_max", "packed_attention", "mean")


def combine(values: dict[str, tuple]) -> list[dict]:
    """All combinations of the values of several options."""
    return [dict(zip(values, row, strict=True)) for row in product(*values.values())]


def cover(values: dict[str, tuple]) -> list[dict]:
    """Few combinations in which every two options meet in all pairs of their values; the first has all defaults."""
    rows, chosen, left = combine(values), [], None
    while left is None or left:
        row = rows[0] if left is None else max(rows, key=lambda row: len(left & pairs_of(row)))
        left = set().union(*map(pairs_of, rows)) if left is None else left
        left -= pairs_of(row)
        chosen.append(row)
    return chosen


def pairs_of(row: dict) -> set:
    return set(combinations(row.items(), 2))


ALL_OPTIONS, COVERING_OPTIONS = combine(OPTION_VALUES), cover(OPTION_VALUES)


def option_id(options) -> str:
    """A test's name for the options that are not the default."""
    if not isinstance(options, dict):
        return str(options)
    return ",".join(f"{name}={value}" for name, value in options.items() if value != OPTION_VALUES[name][0]) or "default"


# What has one value or vector per token.
TOKEN_INPUTS = ("input_ids", "attention_mask", "position_ids", "inputs_embeds")


def is_text(value) -> bool:
    return isinstance(value, str)


@dataclass(frozen=True, eq=False)
class Row:
    """A class of the model files with the options that make it one more kind of model."""

    auto_name: str
    reads: str  # which of X and P the results depend on
    oracle: Callable  # (weights, config, ids) -> the naive result
    labels: Callable  # batch -> the arguments that ask for a loss
    options: dict = field(default_factory=dict)
    new_weights: tuple[str, ...] = ()  # modules that a pretrained encoder lacks
    per_token: bool = False  # results are (b, n, ...), not (b, ...)
    takes_choices: bool = False  # inputs are (b, c, n)
    has_encoder: bool = True
    has_decoder: bool = False

    @property
    def model_class(self) -> type:
        return getattr(modeling_luna, AUTO_CLASSES[self.auto_name])

    @property
    def auto_class(self) -> type:
        return getattr(transformers, self.auto_name)

    @property
    def name(self) -> str:
        return "-".join([self.model_class.__name__.removeprefix("Luna"), *filter(is_text, self.options.values())])

    def build(self, **changes):
        return build(self.model_class, **({"num_labels": 3} | self.options | changes))

    def shared(self, attention="eager", dtype=torch.float64, **changes):
        """Like `build`, but built once: do not change it."""
        return build_once(self, attention, dtype, tuple(sorted(changes.items())))

    def inputs(self, batch: dict) -> dict:
        """The batch as the model takes it: for multiple choice its rows are the choices of one question.

        An encoder-decoder reads it as source and as target.
        """
        if self.takes_choices:
            return {name: x[None] for name, x in batch.items()}
        if self.has_encoder and self.has_decoder:
            return batch | {f"decoder_{name}": batch[name] for name in TOKEN_INPUTS if name in batch}
        return batch

    def training_inputs(self, batch: dict) -> dict:
        return self.inputs(batch) | self.labels(batch)

    def results(self, model, batch: dict) -> torch.Tensor:
        """What the model is for, of each row of the batch: (b, n, ...) or (b, ...)."""
        output = model(**self.inputs(batch))
        if "start_logits" in output:
            return torch.stack([output.start_logits, output.end_logits], dim=-1)
        if "logits" not in output:
            return output.last_hidden_state
        return output.logits.view(-1, 1) if self.takes_choices else output.logits

    def loss(self, model, batch: dict) -> torch.Tensor:
        """The model's loss; of the encoder, which has none, a function of both of its outputs."""
        output = model(**self.training_inputs(batch))
        if "loss" in output:
            return output.loss
        kept = batch["attention_mask"].bool()
        return output.last_hidden_state[kept].square().mean() + output.packed_mean.square().mean()

    def __str__(self) -> str:
        return self.name


@cache
def build_once(row, attention, dtype, changes):
    return row.build(attention=attention, dtype=dtype, **dict(changes))


def token_labels(batch: dict, classes: int | None = None) -> dict:
    ids = batch["input_ids"] if classes is None else batch["input_ids"] % classes
    return {"labels": ids.masked_fill(batch["attention_mask"] == 0, -100)}


def labels_of_the_rest(batch: dict) -> dict:
    """Each token but a row's first, which nothing comes before."""
    labels, is_token = token_labels(batch)["labels"], batch["attention_mask"].bool()
    return {"labels": labels.masked_fill(is_token & (is_token.cumsum(-1) == 1), -100)}


def answers(batch: dict) -> dict:
    first = batch["attention_mask"].argmax(dim=-1)
    return {"start_positions": first, "end_positions": first + 1}


def of_encoder(weights, config, ids):
    return naive.luna(naive.encoder_of(weights), config, ids).last_hidden_state


HEAD_WEIGHTS = {
    "packed_max": ("classifier.in_proj",),
    "packed_attention": tuple(f"classifier.attention.{x}" for x in ("q_proj", "k_proj", "v_proj", "out_proj", "layer_norm")),
}


def classifier(auto_name: str, pooling: str, **fields) -> Row:
    return Row(
        auto_name,
        reads={"cls": "X", "mean": "X", "packed_attention": "XP"}.get(pooling, "P"),
        oracle=naive.classifier_logits,
        options={"classifier_pooling": pooling},
        new_weights=("classifier.dense", "classifier.out_proj", *HEAD_WEIGHTS.get(pooling, ())),
        **fields,
    )


MODELS = [
    Row("AutoModel", "XP", of_encoder, labels=lambda batch: {}, per_token=True),
    Row("AutoModelForMaskedLM", "X", naive.masked_lm_logits, token_labels, new_weights=("lm_head",), per_token=True),
    *[
        classifier(
            "AutoModelForSequenceClassification",
            pooling,
            labels=lambda batch: {"labels": torch.arange(len(batch["input_ids"])) % 3},
        )
        for pooling in POOLINGS
    ],
    *[
        classifier(
            "AutoModelForMultipleChoice",
            pooling,
            labels=lambda batch: {"labels": torch.tensor([len(batch["input_ids"]) - 1])},
            takes_choices=True,
        )
        for pooling in ("cls", "packed_attention")
    ],
    Row(
        "AutoModelForTokenClassification",
        "X",
        lambda weights, config, ids: naive.linear(weights, "classifier", of_encoder(weights, config, ids)),
        lambda batch: token_labels(batch, classes=3),
        new_weights=("classifier",),
        per_token=True,
    ),
    Row(
        "AutoModelForQuestionAnswering",
        "X",
        lambda weights, config, ids: naive.linear(weights, "qa_outputs", of_encoder(weights, config, ids)),
        answers,
        new_weights=("qa_outputs",),
        per_token=True,
    ),
    Row(
        "AutoModelForCausalLM",
        "X",
        naive.causal_lm_logits,
        labels_of_the_rest,
        per_token=True,
        has_encoder=False,
        has_decoder=True,
    ),
    Row(
        "AutoModelForSeq2SeqLM",
        "X",
        naive.translation_logits,
        token_labels,
        options={"is_encoder_decoder": True},
        new_weights=("decoder",),
        per_token=True,
        has_decoder=True,
    ),
]
ENCODER, MASKED_LM, CLASSIFIER, CLASSIFIER_OF_P, _, CLASSIFIER_OF_BOTH, _, CHOICE, _, TAGGER, ANSWERER, *GENERATORS = MODELS
CAUSAL_LM, TRANSLATOR = GENERATORS
# Those with an encoder and nothing but a head on it, which hand on the encoder's outputs; and those with any encoder.
ENCODERS = [row for row in MODELS if not row.has_decoder]
HEADS = ENCODERS[1:]
each_model = pytest.mark.parametrize("row", MODELS, ids=str)
each_encoder = pytest.mark.parametrize("row", ENCODERS, ids=str)
each_generator = pytest.mark.parametrize("row", GENERATORS, ids=str)
each_with_an_encoder = pytest.mark.parametrize("row", [row for row in MODELS if row.has_encoder], ids=str)
each_head = pytest.mark.parametrize("row", HEADS, ids=str)
each_option = pytest.mark.parametrize("options", COVERING_OPTIONS, ids=option_id)
