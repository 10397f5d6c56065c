# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The contestants are recipes that a run accepts, and the table says what the runs did."""

from dataclasses import replace

import pytest
from transformers import CONFIG_MAPPING

import modeling_luna  # noqa: F401  (registers Luna)
from pretraining.recipe import load_recipe
from pretraining.schedules import check_schedule
from scripts.reports import compare_pretraining
from scripts.reports.compare_pretraining import COMPARISONS


@pytest.mark.parametrize("comparison", COMPARISONS)
def test_the_contestants_are_recipes_and_all_differ(comparison):
    recipe = load_recipe("quickstart")
    recipes = [replace(recipe, **changes) for changes in COMPARISONS[comparison](recipe).values()]
    assert len({str(recipe) for recipe in recipes}) == len(recipes) >= 2
    for recipe in recipes:
        check_schedule(recipe)
        CONFIG_MAPPING[recipe.model["model_type"]](**recipe.model)


def test_a_row_has_the_mean_and_the_spread_of_its_seeds(monkeypatch, tmp_path):
    losses = {"roberta_seed0": 2.0, "roberta_seed1": 4.0, "luna_l_16_seed0": 1.0, "luna_l_16_seed1": 1.5}

    def finished(output_dir, recipe, changes, seed):
        loss = losses[output_dir.name]
        figures = {"eval_loss": loss, "eval_accuracy": 0.25, "tokens_per_second": 1000.0 * seed, "curve": [(1, loss)]}
        return figures | {"parameters": 1000, "steps": recipe.max_steps, "unigram_cross_entropy": 6.5}

    monkeypatch.setattr(compare_pretraining, "train", finished)
    arguments = ["luna_and_roberta", "--seeds", "0,1", "--max_steps", "7", "--warmup_steps", "1"]
    compare_pretraining.main([*arguments, "--output", str(tmp_path / "page.md")])
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "| RoBERTa | 1,000 | 7 | 2.000 | 4.000 | 3.000 | 1.414 | 25.0% | 500 |" in page
    assert "| Luna, l = 16 | 1,000 | 7 | 1.000 | 1.500 | 1.250 | 0.354 | 25.0% | 500 |" in page
    assert (tmp_path / "page.png").stat().st_size > 1000
