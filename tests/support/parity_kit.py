# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""What the official code computes, and how far the model is from it.

A parity variant is a folder with an official checkpoint and, in `goldens.safetensors`, inputs and results of the
official code. Those in `tests/data/parity` come with the repository; the others lie in `../shared/parity` beside it or
where the environment variable LUNA_PARITY_KIT says.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from configuration_luna import LunaConfig
from luna_tools.convert.checkpoint import (
    HEAD_PREFIX,
    TOLERANCE_FACTOR,
    config_from_args,
    convert_state_dict,
    find_layer_norm_scale,
    load_fairseq_checkpoint,
    map_names,
    max_abs_difference,
    read_dictionary,
)
from modeling_luna import LunaForMaskedLM, LunaForSequenceClassification

REPOSITORY = Path(__file__).resolve().parents[1]
MASKED_LM_VARIANTS = (
    "luna_bert/tied",
    "luna_bert/untied",
    "luna_bert/fixed",
    "luna_bert/fixed_untied_long_l",
    "luna_bert/untied_lm_head",
    "luna_bert/long_l",
    "luna_bert/short_l",
    "luna_bert/smallscale",
    "luna_bert/relu_legacy_format",
    "luna_bert/cls_head",
    "luna_bert/pooling_head",
    "luna_bert/pooling_head_fixed",
    "luna_bert/attention_head",
    "head_variants/luna_bert/tied",
)
# The name of the head in each.
HEAD_VARIANTS = {
    "luna_bert/cls_head": "cls_classification_head",
    "luna_bert/pooling_head": "pooling_classification_head",
    "luna_bert/pooling_head_fixed": "pooling_classification_head",
    "luna_bert/attention_head": "attention_classification_head",
}


@dataclass
class Difference:
    """How far one tensor of ours is from the official one, and how far it may be."""

    kind: str  # the class of tensors that shares a tolerance, such as "hidden" or "grad"
    name: str
    max_abs: float
    tolerance: float


def find_variant(name: str) -> Path | None:
    """The folder of a variant such as "luna_bert/tied", or None where it is in none of the three places."""
    roots = [REPOSITORY / "tests" / "data" / "parity", REPOSITORY.parent / "shared" / "parity"]
    if "LUNA_PARITY_KIT" in os.environ:
        roots.append(Path(os.environ["LUNA_PARITY_KIT"]))
    for root in roots:
        if (root / name / "model.pt").is_file():
            return root / name
    return None


def variant_params(*names: str) -> list:
    """Pytest parameters, one per variant, that skip where the variant's folder is missing."""
    reason = "{0} is neither in tests/data/parity nor in ../shared/parity nor under LUNA_PARITY_KIT"
    return [
        pytest.param(name, marks=pytest.mark.skipif(find_variant(name) is None, reason=reason.format(name)))
        for name in names
    ]


def read_goldens(name: str) -> tuple[dict[str, torch.Tensor], dict]:
    """Tensors of the official code for a variant, and the facts about them."""
    # The same model in the newer format computes the same.
    with safe_open(find_variant(name.removeprefix("head_variants/")) / "goldens.safetensors", "pt") as file:
        facts = json.loads(file.metadata()["luna_parity"])
        return {key: file.get_tensor(key) for key in file.keys()}, facts


def read_variant(name: str, attention: str, head: str | None = None) -> tuple[LunaConfig, dict[str, torch.Tensor]]:
    """The configuration of a `luna_bert` variant and its converted parameters, with one of its heads or without."""
    folder = find_variant(name)
    args, state_dict = load_fairseq_checkpoint(folder / "model.pt")
    if head is None:
        state_dict = {key: tensor for key, tensor in state_dict.items() if not key.startswith(HEAD_PREFIX)}
        num_labels = None
    else:
        num_labels = len(state_dict[f"{HEAD_PREFIX}{head}.out_proj.bias"])
    config = config_from_args(args, len(read_dictionary(folder / "dict.txt")), head, num_labels)
    config._attn_implementation = attention
    return config, convert_state_dict(state_dict, config, find_layer_norm_scale(state_dict), head)


def load_masked_lm(name: str, attention: str = "eager") -> LunaForMaskedLM:
    """The model of a `luna_bert` variant, in eval mode, without its classification heads."""
    config, weights = read_variant(name, attention)
    model = LunaForMaskedLM(config).eval()
    model.load_state_dict(weights)
    return model


def load_classifier(name: str, attention: str = "eager") -> LunaForSequenceClassification:
    """The model of one of HEAD_VARIANTS with its classification head, in eval mode."""
    config, weights = read_variant(name, attention, HEAD_VARIANTS[name])
    model = LunaForSequenceClassification(config).eval()
    model.load_state_dict({key: tensor for key, tensor in weights.items() if not key.startswith("lm_head.")})
    return model


class Comparison:
    """The differences of a model from the goldens of a variant, and the goldens that were not read yet."""

    def __init__(self, goldens: dict[str, torch.Tensor], facts: dict, of_heads: bool):
        """Without `of_heads` everything but the results of classification heads is to be read, with it only these."""
        self.goldens, self.facts = goldens, facts
        self.differences: list[Difference] = []
        self.unread = {key for key in goldens if key.split(".")[1].startswith("cls_") == of_heads}

    def take(self, key: str) -> torch.Tensor:
        self.unread.discard(key)
        return self.goldens[key]

    def compare(
        self, kind: str, key: str, ours: torch.Tensor, mask: torch.Tensor | None = None, tolerance_scale: int = 1
    ) -> None:
        noise = self.facts["fp32_noise"][{"cls_loss": "loss", "cls_grad": "grad"}.get(kind, kind)]["max_abs_err"]
        difference = max_abs_difference(ours, self.take(key), mask)
        self.differences.append(Difference(kind, key, difference, TOLERANCE_FACTOR * tolerance_scale * noise))

    def finish(self) -> list[Difference]:
        assert not self.unread, f"not compared: {sorted(self.unread)}"
        return self.differences


def compare_masked_lm(model: LunaForMaskedLM, goldens: dict[str, torch.Tensor], facts: dict) -> list[Difference]:
    """Compare encoder, language model head, losses and gradients on every batch of the goldens.

    Raises:
        AssertionError: the goldens hold a tensor that is neither an input nor compared nor of a classification head, or
            a mask differs.
    """
    names = map_names(model.config)
    comparison = Comparison(goldens, facts, of_heads=False)
    take, compare = comparison.take, comparison.compare

    for batch in facts["batches"]:
        inputs = {"input_ids": take(f"{batch}.input_ids"), "attention_mask": take(f"{batch}.attention_mask")}
        labels = take(f"{batch}.labels")
        is_token = inputs["attention_mask"].bool()

        model.zero_grad()
        outputs = model(**inputs, labels=labels, output_logits=True, output_hidden_states=True, output_packed_states=True)
        # Ours cuts P to the padded length and masks the rest, where the official code cuts it to the longest row.
        packed_mask = take(f"{batch}.packed_mask").bool()
        slots = packed_mask.shape[1]
        surplus = outputs.packed_attention_mask.shape[1] - slots
        official_mask = torch.nn.functional.pad(packed_mask, (0, surplus))
        assert torch.equal(outputs.packed_attention_mask, official_mask), f"{batch}.packed_mask"

        # The states before the first layer are compared with their padding, which both codes set to zero.
        for i, hidden in enumerate(outputs.hidden_states):
            compare("hidden", f"{batch}.hidden.{i}", hidden, is_token if i > 0 else None)
        for i, packed in enumerate(outputs.packed_states):
            compare("packed", f"{batch}.packed.{i}", packed[:, :slots], packed_mask if i > 0 else None)
        compare("logits", f"{batch}.logits", outputs.logits, is_token)
        compare("loss", f"{batch}.loss", outputs.loss)
        with torch.no_grad():
            loss_sum = model(**inputs, labels=labels, num_items_in_batch=1).loss
        # The recorded error is that of the mean.
        compare("loss", f"{batch}.loss_sum", loss_sum, tolerance_scale=int((labels != -100).sum()))
        if batch in facts["grad_batches"]:
            outputs.loss.backward()
            prefix = f"{batch}.grad."
            for key in [key for key in goldens if key.startswith(prefix)]:
                compare("grad", key, model.get_parameter(names[key.removeprefix(prefix)]).grad)

    return comparison.finish()


def compare_classifier(
    model: LunaForSequenceClassification, goldens: dict[str, torch.Tensor], facts: dict
) -> list[Difference]:
    """Compare the logits, losses and gradients of a classification head on every batch of the goldens.

    Raises:
        AssertionError: the goldens hold a tensor of the head that was not compared.
    """
    names = map_names(model.config, facts["classification_head"])
    comparison = Comparison(goldens, facts, of_heads=True)
    for batch in facts["batches"]:
        model.zero_grad()
        outputs = model(
            input_ids=goldens[f"{batch}.input_ids"],
            attention_mask=goldens[f"{batch}.attention_mask"],
            labels=comparison.take(f"{batch}.cls_labels"),
        )
        comparison.compare("cls_logits", f"{batch}.cls_logits", outputs.logits)
        comparison.compare("cls_loss", f"{batch}.cls_loss", outputs.loss)
        if batch in facts["grad_batches"]:
            outputs.loss.backward()
            prefix = f"{batch}.cls_grad."
            for key in [key for key in goldens if key.startswith(prefix)]:
                comparison.compare("cls_grad", key, model.get_parameter(names[key.removeprefix(prefix)]).grad)
    return comparison.finish()
