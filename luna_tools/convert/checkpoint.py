# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The checkpoint file of the official (fairseq) code: a pickle that is read without running anything in it."""

import argparse
import re
import warnings
from pathlib import Path

import torch

from luna_tools.errors import InputError

WEIGHT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def load_fairseq_checkpoint(path: str | Path) -> tuple[argparse.Namespace, dict[str, torch.Tensor]]:
    """Read the training args and the weights of an official checkpoint, in torch's zip or its legacy format.

    Nothing in the file is executed: of all classes that a pickle can name, only `argparse.Namespace` and what torch
    allows for weights are built.

    Raises:
        InputError: no such file, not a checkpoint, truncated, damaged, naming any other class, or with weights that are
            no dense floating-point numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"There is no checkpoint file {path}.")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's readers of the two formats raise nearly any
        if refused := re.search(r"GLOBAL (\S+)", str(error)):
            raise InputError(
                f"{path} is refused because its pickle names {refused[1]}, and a Luna checkpoint holds nothing but "
                "tensors, plain values and an argparse.Namespace."
            ) from error
        # Torch warns of protocols above its own, 2; since protocol 4 classes are named in a way that it does not read.
        for protocol in re.findall(r"pickle protocol (\d+)", " ".join(str(warning.message) for warning in caught)):
            if int(protocol) >= 4:
                raise InputError(
                    f"{path} is refused because its pickle has protocol {protocol}, but without running code torch reads "
                    "only its own protocol, 2: it has to be saved again with that."
                ) from error
        raise InputError(f"{path} is truncated, damaged or not a PyTorch checkpoint.") from error

    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("args"), argparse.Namespace):
        raise InputError(f'{path} has no argparse.Namespace under "args", so it is not a checkpoint of fairseq.')
    state_dict = checkpoint.get("model")
    if not isinstance(state_dict, dict) or not all(
        isinstance(name, str) and torch.is_tensor(tensor) for name, tensor in state_dict.items()
    ):
        raise InputError(f'{path} has no dictionary of named tensors under "model".')
    check_kinds(state_dict)
    return checkpoint["args"], state_dict


def check_kinds(weights: dict[str, torch.Tensor]) -> None:
    """Raises InputError for what is no dense tensor of floating-point numbers with values."""
    for name, tensor in weights.items():
        if tensor.dtype not in WEIGHT_DTYPES:
            names = ", ".join(str(dtype).removeprefix("torch.") for dtype in WEIGHT_DTYPES)
            raise InputError(f"{name} holds {name_dtype(tensor)}, but weights must be one of {names}.")
        if tensor.layout != torch.strided or tensor.is_nested or tensor.is_meta:
            kind = "a meta tensor, without values" if tensor.is_meta else "a sparse or nested tensor"
            raise InputError(f"{name} is {kind}, but weights must be dense tensors.")


def name_dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def list_names(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
