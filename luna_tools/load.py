# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Load a Luna for a command: all of its weights, or one sentence that says what is wrong."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoConfig, logging

import modeling_luna
from luna_tools.errors import InputError, told
from modeling_luna import LunaPreTrainedModel

REMEDY = "give a folder that `save_pretrained` wrote, or a name on the Hub"


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without progress bars and reports of what was loaded: what matters of these is an error here."""
    verbosity, had_progress_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_progress_bar:
            logging.enable_progress_bar()


def load_luna(name: str, model_class: type[LunaPreTrainedModel] | None = None, **options) -> LunaPreTrainedModel:
    """The model in float32 and eval mode, in the class that its config.json names or in another.

    Args:
        name: a folder that save_pretrained wrote, or a name on the Hub.
        options: of from_pretrained.

    Raises:
        InputError: there is no such model, it is no Luna, or its weights are not whole.
    """
    with told(f"The config.json of {name!r} makes no model", REMEDY):  # of transformers, huggingface_hub, or any of Python's
        try:
            config = AutoConfig.from_pretrained(name)
        except OSError as error:
            if Path(name).is_dir():
                raise
            raise InputError(f"There is no model {name!r}: {REMEDY}.") from error
    if config.model_type != "luna":
        raise InputError(f"{name!r} is a {config.model_type} model, not a Luna: {REMEDY}.")
    if model_class is None:
        model_class = getattr(modeling_luna, (config.architectures or ["none"])[0], None)
        if model_class is None:
            found = config.architectures
            raise InputError(f"`architectures` in the config.json of {name!r} is {found}, no Luna: {REMEDY}.")
    with told(f"The weights of {name!r} cannot be loaded", REMEDY):
        # Mismatched sizes are in the information instead of an error that points at a report.
        model, found = model_class.from_pretrained(
            name, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    if wrong := sorted([*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])]):
        raise InputError(
            f"{name!r} does not hold the weights of a {model_class.__name__}: {len(wrong)} are missing or of another shape, "
            f"such as {wrong[0]}: {REMEDY}."
        )
    return model.eval()
