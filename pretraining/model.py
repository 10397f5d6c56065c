# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The model of a recipe: its configuration, its weights at the start, and what its architecture calls things."""

from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel

import modeling_luna  # noqa: F401  (registers Luna with the Auto classes)
from luna_tools.errors import InputError, first_sentence
from pretraining.recipe import Recipe

# RoBERTa and its kin count positions from pad_token_id + 1.
COUNT_FROM_PADDING = (
    "roberta",
    "xlm-roberta",
    "xlm-roberta-xl",
    "roberta-prelayernorm",
    "camembert",
    "data2vec-text",
    "longformer",
)


def model_config(recipe: Recipe) -> PreTrainedConfig:
    """Return the configuration of the recipe's model: `model_name_or_path`'s if given, else built from `model`.

    Raises:
        InputError: the configuration is refused; the message is the configuration's own.
    """
    values = dict(recipe.model)
    try:
        if recipe.model_name_or_path is not None:
            values.pop("model_type", None)
            config = AutoConfig.from_pretrained(recipe.model_name_or_path, **values)
        else:
            if "model_type" not in values:
                raise InputError("`model` has no `model_type`: add for example `model_type: luna`.")
            config = AutoConfig.for_model(**values)
    except InputError:
        raise
    except StrictDataclassError as error:
        raise InputError(f"`model` is refused: {str(error).split('Error: ', 1)[-1]}") from error
    except (OSError, ValueError) as error:
        if recipe.model_name_or_path is not None:
            raise InputError(
                f"`model_name_or_path` is {recipe.model_name_or_path}, which can't be loaded ({first_sentence(error)}): "
                "give a model's folder or its name on the Hub."
            ) from error
        raise InputError(f"`model` can't be built: {' '.join(str(error).split())}") from error
    unknown = [name for name in values if name != "model_type" and name not in type(config)().to_dict()]
    if unknown:
        raise InputError(f"`model.{unknown[0]}` is not a field of {type(config).__name__}: check its spelling.")
    return config


def build_model(
    recipe: Recipe, config: PreTrainedConfig, checkpoint: Path | None, auto_class: type = AutoModelForMaskedLM
) -> PreTrainedModel:
    """Build the recipe's model in float32: from `checkpoint`, else from `model_name_or_path`, else from the seed.

    Raises:
        InputError: transformers refuses to build it.
    """
    torch.manual_seed(recipe.seed)
    options = {"attn_implementation": recipe.attn_implementation, "dtype": torch.float32}
    try:
        if source := checkpoint or recipe.model_name_or_path:
            model = auto_class.from_pretrained(source, config=config, **options)
        else:
            model = auto_class.from_config(config, **options)
    except (ValueError, ImportError, OSError, RuntimeError) as error:
        raise InputError(f"The model can't be built: {' '.join(str(error).split())}") from error
    if recipe.gradient_checkpointing:
        enable_gradient_checkpointing(model)
    return model


def enable_gradient_checkpointing(model: PreTrainedModel) -> None:
    """Keep one activation a layer and compute the others again (the method's name differs between versions)."""
    name = "activation_checkpointing_enable"
    getattr(model, name if hasattr(model, name) else "gradient_checkpointing_enable")()


def max_sequence_length(config: PreTrainedConfig) -> int | None:
    """Return the longest input in tokens that a model has positions for; None where there is no limit."""
    if hasattr(config, "max_sequence_length"):
        return config.max_sequence_length
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and config.model_type in COUNT_FROM_PADDING:
        return positions - config.pad_token_id - 1
    return positions
