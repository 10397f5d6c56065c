# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Where the parity variants are, and their models.

A parity variant is a folder with an official checkpoint and, in `goldens.safetensors`, inputs and results of the
official code. Those in `tests/data/parity` come with the repository; the others lie in `../shared/parity` beside it or
where the environment variable LUNA_PARITY_KIT says. `luna_tools.convert.goldens` compares.
"""

import os
from pathlib import Path

import pytest
import torch

from luna_tools.convert import goldens
from luna_tools.convert.from_fairseq import read_checkpoint
from luna_tools.convert.goldens import (  # noqa: F401  (for the tests, which find all of parity here)
    TOLERANCE_FACTOR,
    Difference,
    compare_causal_attention,
    compare_classifier,
    compare_masked_lm,
    max_abs_difference,
)
from modeling_luna import LunaForMaskedLM, LunaForSequenceClassification, LunaPreTrainedModel

REPOSITORY = Path(__file__).resolve().parents[2]
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


def find_in_kit(name: str) -> Path | None:
    """A file or folder of the kit such as "causal/tied_l8.safetensors", or None where it is in none of the three places."""
    roots = [REPOSITORY / "tests" / "data" / "parity", REPOSITORY.parent / "shared" / "parity"]
    if "LUNA_PARITY_KIT" in os.environ:
        roots.append(Path(os.environ["LUNA_PARITY_KIT"]))
    for root in roots:
        if (root / name).exists():
            return root / name
    return None


def find_variant(name: str) -> Path | None:
    """The folder of a variant such as "luna_bert/tied", or None where it is in none of the three places."""
    checkpoint = find_in_kit(f"{name}/model.pt")
    return None if checkpoint is None else checkpoint.parent


def variant_params(*names: str) -> list:
    """Pytest parameters, one per variant, that skip where the variant's folder is missing."""
    return [pytest.param(name, marks=skip_unless(find_variant(name), name)) for name in names]


def skip_unless(found: Path | None, name: str) -> pytest.MarkDecorator:
    reason = f"{name} is neither in tests/data/parity nor in ../shared/parity nor under LUNA_PARITY_KIT"
    return pytest.mark.skipif(found is None, reason=reason)


def causal_params() -> list:
    """Pytest parameters, the name of each file of goldens of the causal attention, as `variant_params`."""
    names = [f"causal/{tied}_l{l}.safetensors" for tied in ("tied", "untied") for l in (8, 16)]
    return [pytest.param(name, marks=skip_unless(find_in_kit(name), name)) for name in names]


def read_goldens(name: str) -> tuple[dict[str, torch.Tensor], dict]:
    """Tensors of the official code for a variant, and the facts about them."""
    # The same model in the newer format computes the same.
    return goldens.read_goldens(find_variant(name.removeprefix("head_variants/")) / "goldens.safetensors")


def load_variant(name: str, model_class: type[LunaPreTrainedModel], attention: str, head: str | None) -> LunaPreTrainedModel:
    folder = find_variant(name)
    converted = read_checkpoint(folder / "model.pt", folder / "dict.txt", head)
    return goldens.build_model(model_class, converted.config, converted.weights, attention)


def load_masked_lm(name: str, attention: str = "eager") -> LunaForMaskedLM:
    """The model of a `luna_bert` variant, in eval mode, without its classification heads."""
    return load_variant(name, LunaForMaskedLM, attention, "none")


def load_classifier(name: str, attention: str = "eager") -> LunaForSequenceClassification:
    """The model of one of HEAD_VARIANTS with its classification head, in eval mode."""
    return load_variant(name, LunaForSequenceClassification, attention, HEAD_VARIANTS[name])
