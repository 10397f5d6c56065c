# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""What a launcher tells its processes by their environment: their number and the engine. Nothing here imports torch."""

import importlib.util
import json
import os
from pathlib import Path
from typing import Literal, get_args

from luna_tools.errors import InputError

EngineName = Literal["ddp", "fsdp2", "zero1", "zero2", "zero3"]
ENGINE_NAMES = get_args(EngineName)

LAUNCH = Path(__file__).parent / "launch"

# What a DeepSpeed configuration leaves to the recipe.
RECIPE_DECIDES = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "optimizer",
    "scheduler",
    "bf16",
    "fp16",
    "torch_autocast",
)


def launched_processes() -> int | None:
    """Return the number of processes that the launcher has started; None without a launcher."""
    return int(os.environ["WORLD_SIZE"]) if "WORLD_SIZE" in os.environ else None


def launched_engine() -> EngineName:
    """Return the engine that the launcher asks for.

    Raises:
        InputError: it asks for what this program does not support.
    """
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        if importlib.util.find_spec("deepspeed") is None:
            raise InputError(
                "The launcher asks for DeepSpeed, which is not installed: `pip install 'luna-transformers[deepspeed]'`."
            )
        return f"zero{check_deepspeed_config(find_deepspeed_config())}"
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        if os.environ.get("FSDP_VERSION", "1") != "2":
            raise InputError("The launcher asks for FSDP 1, which is not supported: set `fsdp_version: 2`.")
        return "fsdp2"
    return "ddp"


def find_deepspeed_config() -> Path:
    """Return the DeepSpeed configuration that the launcher names by its path or its stage, and tell Accelerate where it is.

    A path that leads nowhere from the working folder is that of a configuration in `pretraining/launch`, wherever that is
    installed.
    """
    named = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    if named == "none":
        named = f"zero{os.environ.get('ACCELERATE_DEEPSPEED_ZERO_STAGE', '2')}.json"
        os.environ.pop("ACCELERATE_CONFIG_DS_FIELDS", None)  # with which Accelerate would refuse the file
    path = Path(named)
    if not path.exists() and (LAUNCH / path.name).exists():
        path = LAUNCH / path.name
    os.environ["ACCELERATE_DEEPSPEED_CONFIG_FILE"] = str(path)
    return path


def check_deepspeed_config(path: Path) -> int:
    """Return the ZeRO stage of a DeepSpeed configuration.

    Raises:
        InputError: it cannot be read, sets what the recipe decides, or is not supported.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"The DeepSpeed configuration {path} can't be read ({error}): mend it.") from error
    for name in RECIPE_DECIDES:
        if config.get(name, "auto") not in ("auto", {"enabled": False}):
            raise InputError(
                f"`{name}` of the DeepSpeed configuration {path} is {config[name]}, but the recipe decides it: leave it out."
            )
    zero = config.get("zero_optimization", {})
    if zero.get("stage") not in (1, 2, 3):
        raise InputError(
            f"`zero_optimization.stage` of the DeepSpeed configuration {path} is {zero.get('stage')}: choose 1, 2 or 3, or "
            "launch without DeepSpeed."
        )
    for name in ("offload_optimizer", "offload_param"):
        if zero.get(name, {}).get("device", "none") != "none":
            raise InputError(
                f"`zero_optimization.{name}` of the DeepSpeed configuration {path} is not supported: remove it."
            )
    return zero["stage"]
