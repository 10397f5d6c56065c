# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The learning rate at any step, by the names of transformers."""

from typing import get_args

import pytest

from luna_tools.errors import InputError
from pretraining.recipe import Recipe, Schedule
from pretraining.schedules import check_schedule, learning_rate_at

OPTIONS = {"warmup_stable_decay": {"num_decay_steps": 4, "decay_type": "1-sqrt"}, "cosine_with_min_lr": {"min_lr": 0.1}}


def recipe_of(values: dict, **changes) -> Recipe:
    return Recipe(**values | {"output_dir": "", "max_steps": 12, "warmup_steps": 3, "learning_rate": 0.5} | changes)


@pytest.mark.parametrize("name", get_args(Schedule))
@pytest.mark.parametrize("warmup_steps", [0, 3])
def test_a_schedule_rises_to_its_peak_and_never_again(values, name, warmup_steps):
    recipe = recipe_of(values, lr_scheduler_type=name, lr_scheduler_kwargs=OPTIONS.get(name, {}), warmup_steps=warmup_steps)
    rates = [learning_rate_at(step, recipe) for step in range(12)]
    assert rates[:warmup_steps] == [0.5 * (step + 1) / (warmup_steps + 1) for step in range(warmup_steps)]
    assert rates[warmup_steps] == pytest.approx(0.5)
    assert rates[warmup_steps:] == sorted(rates[warmup_steps:], reverse=True) and rates[-1] > 0
    assert (rates[-1] == 0.5) == (name == "constant_with_warmup")


def test_a_stable_rate_decays_as_one_minus_a_root(values):
    options = {"num_decay_steps": 4, "decay_type": "1-sqrt"}
    recipe = recipe_of(values, lr_scheduler_type="warmup_stable_decay", lr_scheduler_kwargs=options)
    rates = [learning_rate_at(step, recipe) / 0.5 for step in range(3, 12)]
    assert rates == pytest.approx([1, 1, 1, 1, 1, 1, *(1 - (k / 4) ** 0.5 for k in (1, 2, 3))])


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("warmup_stable_decay", {}, "`lr_scheduler_kwargs` is {}, but warmup_stable_decay refuses it .*num_decay_steps"),
        ("warmup_stable_decay", {"num_decay_steps": 4, "decay_type": "root"}, "Unknown decay type: root"),
        ("cosine", {"cycles": 2}, "but cosine refuses it .*unexpected keyword argument 'cycles'"),
        ("linear", {"power": 2}, "but linear refuses it .*unexpected keyword argument 'power'"),
        ("cosine", {"num_cycles": "two"}, "`lr_scheduler_kwargs` is {'num_cycles': 'two'}, but cosine refuses it"),
    ],
)
def test_options_that_a_schedule_does_not_take_are_refused(values, name, options, sentence):
    with pytest.raises(InputError, match=sentence):
        check_schedule(recipe_of(values, lr_scheduler_type=name, lr_scheduler_kwargs=options))
