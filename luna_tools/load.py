# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Load a Luna for a command: all of its weights, or one sentence that says what is wrong."""

import sys
import textwrap
from pathlib import Path

import torch
from transformers import AutoConfig, logging

import modeling_luna
from modeling_luna import LunaPreTrainedModel


def load_luna(name: str, model_class: type[LunaPreTrainedModel] | None = None, **options) -> LunaPreTrainedModel:
    """The model in float32 and eval mode, in the class that its config.json names or in another. Exits with one sentence.

    Args:
        name: a folder that save_pretrained wrote, or a name on the Hub.
        options: of from_pretrained.
    """
    logging.set_verbosity_error()  # what matters of its reports is an error here
    logging.disable_progress_bar()
    remedy = "give a folder that `save_pretrained` wrote, or a name on the Hub"
    try:
        config = AutoConfig.from_pretrained(name)
    except Exception as error:  # by what is wrong: of transformers, of huggingface_hub, or any of Python's
        if isinstance(error, OSError) and not Path(name).is_dir():
            sys.exit(f"error: there is no model {name!r}: {remedy}.")
        sys.exit(f"error: the config.json of {name!r} makes no model ({one_line(error)}): {remedy}.")
    if config.model_type != "luna":
        sys.exit(f"error: {name!r} is a {config.model_type} model, not a Luna: {remedy}.")
    if model_class is None:
        model_class = getattr(modeling_luna, (config.architectures or ["none"])[0], None)
        if model_class is None:
            sys.exit(f"error: `architectures` in the config.json of {name!r} is {config.architectures}, no Luna: {remedy}.")
    try:
        # Mismatched sizes are in the information instead of an error that points at a report.
        model, found = model_class.from_pretrained(
            name, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    except Exception as error:
        sys.exit(f"error: the weights of {name!r} cannot be loaded ({one_line(error)}): {remedy}.")
    if wrong := sorted([*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])]):
        sys.exit(
            f"error: {name!r} does not hold the weights of a {model_class.__name__}: {len(wrong)} are missing or of another "
            f"shape, such as {wrong[0]}: {remedy}."
        )
    return model.eval()


def one_line(error: Exception) -> str:
    return textwrap.shorten(str(error), 300, placeholder=" ...").rstrip(".:") or type(error).__name__
