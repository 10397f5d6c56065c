# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The steps that `scripts.reports.benchmark_speed` times, each with the count of its matrix products.

A step is made in the process that makes it again and again; what makes it can be pickled.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers.utils import logging as transformers_logging

from configuration_luna import LunaConfig
from modeling_luna import LunaAttention, multiply_adds
from pretraining.data import IGNORED, mask_tokens
from pretraining.engines import ENGINES, make_accelerator
from pretraining.model import build_model, model_config
from pretraining.objectives import MaskedLM
from pretraining.recipe import Recipe, load_recipe
from pretraining.run import Run
from scripts.reports.contestants import Size, build, layer_multiply_adds

Step = Callable[[], None]
PRODUCT = "a matrix product"  # takes its turn with the others: its speed is the peak in whose share theirs is told
PRODUCT_SIZE = {"cpu": 2048, "cuda": 8192}


def matrix_product_step(device: str, dtype: str) -> Step:
    size = PRODUCT_SIZE[device]
    a, b = torch.randn(2, size, size, device=device, dtype=getattr(torch, dtype))
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out)


# ---------------------------------------------------------------------------------------------------------------------
# An encoder


def encoder_step(name: str, size: Size, b: int, n: int, mode: str, device: str, dtype: str) -> Step:
    """A step of a contestant's encoder on a batch (b, n): `mode` is forward, training, or training with dropout."""
    transformers_logging.set_verbosity_error()
    model = build(name, size, n, 0.1 if mode == "training with dropout" else 0.0)
    model = model.to(device, getattr(torch, dtype)).train(mode != "forward")
    input_ids = torch.randint(2, size.vocab_size, (b, n), device=device)

    def forward() -> None:
        with torch.no_grad():
            model(input_ids)

    gradients = []

    def training() -> None:
        model.zero_grad()
        hidden = model(input_ids)[0]
        # A random gradient of the output: that of a sum of squares would be zero, since every token was just normalised.
        if not gradients:
            gradients.append(torch.randn_like(hidden))
        hidden.backward(gradients[0])

    return forward if mode == "forward" else training


def encoder_count(name: str, size: Size, b: int, n: int, mode: str) -> float | None:
    """Multiply-adds of its layers' matrix products; the backward pass has twice those of the forward pass."""
    count = layer_multiply_adds(size, n, name)
    return None if count is None else b * size.num_layers * count * (1 if mode == "forward" else 3)


# ---------------------------------------------------------------------------------------------------------------------
# A step of pretraining


class MaskedPositionsOnly(MaskedLM):
    """The head of RoBERTa on the masked positions alone, which its own class projects among all others."""

    def loss_sum(self, model, batch) -> torch.Tensor:
        is_masked = batch["labels"] != IGNORED
        logits = model.lm_head(model.roberta(batch["input_ids"]).last_hidden_state[is_masked])
        return torch.nn.functional.cross_entropy(logits.float(), batch["labels"][is_masked], reduction="sum")


class AllPositions(MaskedLM):
    """Luna's head and last layer at all positions."""

    def suit(self, model, sequence_length: int) -> None:
        super().suit(model, sequence_length)
        self.gives_positions = False


@dataclass(frozen=True)
class Pretraining:
    """A contestant of a pretraining step: a recipe of the package, changes to its model, and what is learned how."""

    recipe: str
    changes: dict[str, Any] = field(default_factory=dict)
    objective: type[MaskedLM] = MaskedLM


PRETRAINING = {
    "RoBERTa": Pretraining("roberta_base_16gb"),
    "RoBERTa, masked positions only": Pretraining("roberta_base_16gb", objective=MaskedPositionsOnly),
    "Luna-128, all positions": Pretraining("luna_base_16gb", {"output_logits": True}, AllPositions),
    "Luna-128": Pretraining("luna_base_16gb"),
    "Luna-16": Pretraining("luna_base_16gb", {"projection_length": 16}),
}
PRETRAINING_TOKENS = 512
DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob")


def pretraining_recipe(name: str, b: int, mode: str, dtype: str, changes: dict[str, Any]) -> Recipe:
    """A contestant's recipe with one micro-batch of b sequences a step."""
    model = PRETRAINING[name].changes | changes | ({} if mode == "training with dropout" else dict.fromkeys(DROPOUTS, 0.0))
    options = {"global_batch_size": b, "micro_batch_size": b, "dataloader_num_workers": 0}
    options["mixed_precision"] = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}[dtype]
    options |= {f"model.{field}": str(value).lower() for field, value in model.items()}
    recipe = PRETRAINING[name].recipe
    return load_recipe(recipe, *(token for option, value in options.items() for token in (f"--{option}", str(value))))


class StandingRun(Run):
    """A run of the pretraining program without dataset, folder or end, whose step is made on one batch again and again."""

    def __init__(self, recipe: Recipe, objective: type[MaskedLM], device: str):
        if device == "cpu":
            os.environ["ACCELERATE_USE_CPU"] = "true"
        self.recipe, self.done = recipe, 0
        self.accelerator = make_accelerator(recipe, "ddp")
        config = model_config(recipe)
        special = config.bos_token_id, config.pad_token_id, config.eos_token_id, 3
        tokenizer = SimpleNamespace(all_special_ids=special, mask_token_id=config.vocab_size - 1)
        self.objective = objective(recipe, tokenizer, {"vocab_size": config.vocab_size})
        model = build_model(recipe, config, None).to(self.accelerator.device).train()
        self.objective.suit(model, PRETRAINING_TOKENS)
        self.engine = ENGINES["ddp"](self.accelerator, model, recipe)
        shape = recipe.micro_batch_size, PRETRAINING_TOKENS
        ids_bn = np.random.default_rng(0).integers(4, config.vocab_size - 1, shape)
        rows = [mask_tokens(ids_n, self.objective.masking, recipe.seed, 0, i) for i, ids_n in enumerate(ids_bn)]
        self.batch = self.to_device(self.objective.collate(rows))
        self.num_predicted = int(self.objective.num_predicted(self.batch))

    def step_again(self) -> None:
        self.step([self.batch], self.num_predicted)


def pretraining_step(name: str, b: int, mode: str, device: str, dtype: str, changes: dict[str, Any]) -> Step:
    """A whole step: forward, backward, clipping and AdamW's update, of b sequences of 512 tokens with 15 % masked.

    Args:
        changes: to the model's configuration.
    """
    run = StandingRun(pretraining_recipe(name, b, mode, dtype, changes), PRETRAINING[name].objective, device)
    return run.step_again


def pretraining_count(name: str, b: int, mode: str, dtype: str, changes: dict[str, Any]) -> float:
    """Multiply-adds of the matrix products of layers and head, of last layer and head at the tokens that are read."""
    recipe = pretraining_recipe(name, b, mode, dtype, changes)
    config, n = model_config(recipe), PRETRAINING_TOKENS
    d, v = config.hidden_size, config.vocab_size
    size = Size(config.num_hidden_layers, d, config.num_attention_heads, config.intermediate_size, v)
    encoder = "Transformer" if config.model_type == "roberta" else f"Luna-{config.projection_length}"
    masked = round(recipe.mlm_probability * n)
    projected = n if name in ("RoBERTa", "Luna-128, all positions") else masked
    last = layer_multiply_adds(size, n, encoder, read=projected)
    layers = (size.num_layers - 1) * layer_multiply_adds(size, n, encoder) + last
    return 3 * b * (layers + projected * d * (d + v))


# ---------------------------------------------------------------------------------------------------------------------
# One attention, with plain and with absorbed projections


@dataclass(frozen=True)
class AttentionShape:
    """Batch, tokens, packed slots, heads and hidden size of one attention."""

    b: int
    n: int
    l: int
    h: int
    d: int


ATTENTION_SHAPES = [
    AttentionShape(64, 128, 8, 4, 128),
    AttentionShape(64, 128, 16, 4, 128),
    AttentionShape(4, 1024, 16, 4, 256),
    AttentionShape(4, 1024, 32, 4, 256),
    AttentionShape(4, 512, 16, 8, 512),
    AttentionShape(4, 512, 32, 8, 512),
    AttentionShape(4, 512, 16, 12, 768),
    AttentionShape(4, 512, 32, 12, 768),
    AttentionShape(4, 512, 48, 12, 768),
    AttentionShape(1, 4096, 16, 12, 768),
    AttentionShape(1, 4096, 32, 12, 768),
]
# Number of projections that can be absorbed, and whether keys and values are tied.
ATTENTIONS = {"pack, tied": (1, True), "pack, untied": (2, False), "unpack": (2, True)}
FORMS = ("plain", "absorbed")


def attention_counts(attention: str, shape: AttentionShape) -> dict[str, int]:
    """Multiply-adds forward of one sequence, by form."""
    counts = multiply_adds(shape.n, shape.l, shape.h, shape.d, ATTENTIONS[attention][0])
    return dict(zip(FORMS, counts, strict=True))


def attention_step(attention: str, form: str, shape: AttentionShape, device: str, dtype: str) -> Step:
    """A forward and a backward pass of one attention in one form, without dropout or masks."""
    torch.manual_seed(0)
    tied = ATTENTIONS[attention][1]
    config = LunaConfig(hidden_size=shape.d, num_attention_heads=shape.h, projection_length=shape.l, tie_key_value=tied)
    config._attn_implementation = "sdpa"
    module = LunaAttention(config).to(device, getattr(torch, dtype)).eval()
    module.absorbs = lambda *args: form == "absorbed"
    options = {"device": device, "dtype": getattr(torch, dtype), "requires_grad": True}
    x_bnd = torch.randn(shape.b, shape.n, shape.d, **options)
    p_bld = torch.randn(shape.b, shape.l, shape.d, **options)
    attend = module.unpack if attention == "unpack" else module.pack
    gradient = torch.randn_like(x_bnd if attention == "unpack" else p_bld)

    def step() -> None:
        module.zero_grad()
        x_bnd.grad = p_bld.grad = None
        attend(x_bnd, p_bld, None)[0].backward(gradient)

    return step
