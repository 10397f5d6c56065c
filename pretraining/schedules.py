# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The learning rate as a function of the step: the schedules of transformers, without their state."""

import json
from collections.abc import Callable
from functools import cache

import torch
from transformers import get_scheduler

from luna_tools.errors import InputError
from pretraining.recipe import Recipe


@cache
def schedule(name: str, warmup_steps: int, max_steps: int, peak: float, kwargs: str) -> Callable[[int], float]:
    """Return the function from transformers' step to the share of the peak; `kwargs` is JSON."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=peak)  # whose rate some schedules read
    return get_scheduler(name, optimizer, warmup_steps, max_steps, json.loads(kwargs)).lr_lambdas[0]


def learning_rate_at(step: int, recipe: Recipe) -> float:
    """Return the rate of update `step` (from 0).

    The first update of a warm-up of transformers has the rate 0 and learns nothing: here it has the second one's.
    """
    shift = int(recipe.warmup_steps > 0)
    share = schedule(
        recipe.lr_scheduler_type,
        recipe.warmup_steps + shift,
        recipe.max_steps + shift,
        recipe.learning_rate,
        json.dumps(recipe.lr_scheduler_kwargs, sort_keys=True),
    )
    return recipe.learning_rate * share(step + shift)


def check_schedule(recipe: Recipe) -> None:
    """Refuse options that the schedule does not take.

    Raises:
        InputError: with the message of transformers.
    """
    try:
        for step in (0, recipe.warmup_steps, recipe.max_steps - 1):
            learning_rate_at(step, recipe)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise InputError(
            f"`lr_scheduler_kwargs` is {recipe.lr_scheduler_kwargs}, but {recipe.lr_scheduler_type} refuses it "
            f"({' '.join(str(error).split())}): give what this schedule of transformers takes."
        ) from error
