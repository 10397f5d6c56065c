# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The mean of the weights of checkpoints."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from luna_tools.errors import InputError


def average_weights(folders: list[Path]) -> dict:
    """Return the mean of each tensor of the checkpoints, added up in float64.

    Raises:
        InputError: a folder is no checkpoint, or of another model than the first.
    """
    sums, shapes, dtypes = {}, None, {}
    for folder in folders:
        try:
            tensors = load_file(folder / "model.safetensors")
        except (OSError, SafetensorError) as error:
            raise InputError(f"{folder} has no model.safetensors that can be read ({error}): give checkpoints.") from error
        these = {name: tensor.shape for name, tensor in tensors.items()}
        if shapes is not None and these != shapes:
            raise InputError(f"{folder} is of another model than {folders[0]}: give checkpoints of one.")
        shapes, dtypes = these, {name: tensor.dtype for name, tensor in tensors.items()}
        for name, tensor in tensors.items():
            sums[name] = sums.get(name, torch.zeros(())) + tensor.double()
    return {name: (total / len(folders)).to(dtypes[name]).contiguous() for name, total in sums.items()}
