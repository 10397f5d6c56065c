# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""A plan tells what a run would do; what no run can do is refused in `test_start` and `test_train`."""

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM

from pretraining.dataset_format import read_manifest
from pretraining.model import model_config
from pretraining.plan import Cluster, activation_bytes, parameters_by_part, plan
from pretraining.recipe import Recipe, load_recipe


def test_the_plan_of_the_papers_run_is_that_of_table_8():
    text = plan(load_recipe("luna_base_160gb_tied", "--micro_batch_size", "32"), Cluster(64), None)
    assert "131,902,041 parameters" in text
    assert "Steps: 500,000, of which warm-up 24,000; learning rate to 0.0006" in text
    assert "8,192 sequences of 512 tokens = 4,194,304 tokens a step, 2,097,152,000,000 in all" in text
    assert "64, each 32 sequences at a time, accumulating 4 micro-batches a step" in text
    parts = re.findall(r"^  \S+ +([\d,]+)$", text, re.MULTILINE)
    assert sum(int(part.replace(",", "")) for part in parts) == 131_902_041


@pytest.mark.parametrize(
    ("name", "parameters", "batch"),
    [
        ("roberta_base_16gb", 124_697_433, "2,048 sequences of 512 tokens"),
        ("luna_base_2048", 131_902_041 + 1536 * 768 + 128 * 768, "2,048 sequences of 2048 tokens"),
        pytest.param("luna_large_512", 380_783_705, "8,192 sequences of 512 tokens", marks=pytest.mark.slow),
        pytest.param("luna_large_2048", 382_487_641, "2,048 sequences of 2048 tokens", marks=pytest.mark.slow),
    ],
)
def test_the_plans_of_the_baseline_and_the_larger_shapes(name, parameters, batch):
    text = plan(load_recipe(name), Cluster(64), None)
    assert f"{parameters:,} parameters" in text and f"Batch: {batch} = " in text


def test_the_plan_counts_epochs_of_a_prepared_dataset(recipe_values):
    recipe = Recipe(**recipe_values)
    manifest = read_manifest(Path(recipe.dataset))
    rows = manifest["splits"]["train"]["rows"]
    assert f"{rows:,} sequences, read {64 / rows:.2f} times" in plan(recipe, Cluster(2), manifest)


def test_parts_count_a_tied_weight_once(recipe_values):
    with torch.device("meta"):
        model = AutoModelForMaskedLM.from_config(model_config(Recipe(**recipe_values)))
    assert sum(parameters_by_part(model).values()) == model.num_parameters()


def test_activations_grow_with_the_batch_and_shrink_with_checkpointing(recipe_values):
    def measured(**change):
        recipe = Recipe(**recipe_values | change)
        return activation_bytes(recipe, model_config(recipe), 32)

    assert measured(micro_batch_size=4) == pytest.approx(2 * measured(), rel=0.05)
    assert measured(gradient_checkpointing=True) < measured()
    assert measured(mixed_precision="bf16") < measured()


def test_activations_are_those_that_a_real_step_keeps(recipe_values):
    """The count on tensors without data against the bytes that autograd really holds after a forward pass."""
    recipe = Recipe(**recipe_values | {"attn_implementation": "eager"})
    config = model_config(recipe)
    model = AutoModelForMaskedLM.from_config(config, attn_implementation="eager")
    held = {}

    def record(tensor):
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    ids = torch.randint(4, 600, (2, 32))
    labels = torch.where(torch.arange(32) < 5, ids, -100)
    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        loss = model(input_ids=ids, labels=labels).loss
    assert loss.requires_grad
    for parameter in model.parameters():
        held.pop(parameter.data_ptr(), None)
    assert activation_bytes(recipe, config, 32) == pytest.approx(sum(held.values()), rel=0.15)
