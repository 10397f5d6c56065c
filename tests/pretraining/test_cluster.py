# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Costs of a step against counts by hand."""

from pathlib import Path

import pytest

from pretraining.cluster import bytes_sent, deepspeed_estimate, flops_per_sequence, largest_world, state_bytes
from pretraining.launcher import ENGINE_NAMES
from pretraining.model import model_config
from pretraining.recipe import Recipe, load_recipe

DOCS = Path(__file__).parents[2] / "docs"
ROWS = {"luna_base_16gb": "| 16 GB,", "luna_base_160gb_tied": "| 160 GB tied", "luna_base_160gb_untied": "| 160 GB untied"}


@pytest.mark.parametrize("recipe_name", list(ROWS))
def test_operations_are_those_of_the_equations(recipe_name):
    recipe = load_recipe(recipe_name)
    n, l, d, f, v = 512, 128, 768, 3072, 50265
    key_value = 1 if recipe.model["tie_key_value"] else 2
    on_tokens = 2 * n * d * d * (2 + key_value) + 2 * 2 * n * d * f  # unpack query, output; pack key and value; both FFN
    on_slots = 2 * l * d * d * (1 + key_value)  # pack query; unpack key and value
    attention = 2 * 2 * 2 * n * l * d  # scores and sums, pack and unpack
    head = 2 * round(0.15 * n) * d * (d + v)
    expected = 3 * (12 * (on_tokens + on_slots + attention) + head)  # the backward pass does each twice
    assert flops_per_sequence(recipe, model_config(recipe), n) == expected

    # The table of docs/clusters.md: 64 V100, 64 A100 and 8 H100 at 35, 40 and 40 % of their peak.
    table = (DOCS / "clusters.md").read_text().partition(ROWS[recipe_name])[2]
    shown = [float(row.split("|")[-4]) for row in table.splitlines()[:3]]
    speeds = [processes * peak * 1e12 for processes, peak in ((64, 0.35 * 125), (64, 0.4 * 312), (8, 0.4 * 989))]
    assert shown == [round(expected * recipe.global_batch_size / speed, 3) for speed in speeds]


def test_operations_of_roberta_grow_with_the_square_and_project_every_token(recipe_values):
    model = recipe_values["model"] | {"model_type": "roberta"}
    del model["projection_length"]
    recipe = Recipe(**recipe_values | {"model": model})
    n, d, f, v = 32, 32, 64, 600
    layer = 2 * n * d * d * 4 + 2 * 2 * n * d * f + 2 * 2 * n * n * d
    assert flops_per_sequence(recipe, model_config(recipe), n) == 3 * (2 * layer + 2 * n * d * (d + v))


@pytest.mark.parametrize("engine", ENGINE_NAMES)
def test_one_process_holds_all_and_sends_nothing(engine):
    optimizer = 12000 if engine.startswith("zero") else 8000
    assert state_bytes(engine, 1000, 1) == {"weights": 4000, "gradients": 4000, "optimizer": optimizer}
    assert bytes_sent(engine, 1000, 1, 4) == 0


@pytest.mark.parametrize(
    ("engine", "weights", "gradients", "optimizer", "sent"),
    [
        ("ddp", 4000, 8000, 8000, 6000),
        ("zero1", 4000, 4000, 3000, 6000),
        ("zero2", 4000, 1000, 3000, 3 * 3000),
        ("zero3", 1000, 1000, 3000, 6 * 3000),
        ("fsdp2", 1000, 4000, 2000, 5 * 3000),
    ],
)
def test_each_engine_divides_what_it_says(engine, weights, gradients, optimizer, sent):
    """4 processes, 1,000 parameters: an all-gather or reduce-scatter sends three parts of 1,000 bytes."""
    assert state_bytes(engine, 1000, 4) == {"weights": weights, "gradients": gradients, "optimizer": optimizer}
    assert bytes_sent(engine, 1000, 4, micro_batches=2) == sent


def test_the_largest_world_divides_the_global_batch(recipe_values):
    assert largest_world(load_recipe("luna_base_160gb_tied")) == (256, 8192)
    assert largest_world(Recipe(**recipe_values | {"global_batch_size": 9, "micro_batch_size": 2})) == (0, 9)


def test_deepspeeds_estimate_is_below_ours_in_float32():
    pytest.importorskip("deepspeed", reason="deepspeed: pip install -e '.[deepspeed]'")
    for engine in ("zero2", "zero3"):
        assert 0 < deepspeed_estimate(engine, 131_902_041, 64) < sum(state_bytes(engine, 131_902_041, 64).values())
    assert deepspeed_estimate("ddp", 131_902_041, 64) is None
