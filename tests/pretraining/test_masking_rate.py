# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The share of masked tokens, which may change over a run, and what masked tokens become."""

import numpy as np
import pytest
from transformers import AutoTokenizer

from luna_tools.errors import InputError
from pretraining.data import Masking, MaskingRate, mask_tokens
from pretraining.objectives import IGNORED, MaskedLM
from pretraining.recipe import Recipe
from tests.support.pretraining import cut_back, exact_rows, pretrain, weights, write_recipe


def test_the_share_is_linear_in_the_step():
    rate = MaskingRate(0.3, 0.15, global_batch_size=4, max_steps=11)
    assert [rate.at(place) for place in range(4)] == [0.3] * 4
    assert rate.at(4 * 5 + 3) == pytest.approx(0.225) and rate.at(43) == pytest.approx(0.15)
    assert MaskingRate(0.15, 0.15, 4, 11).at(17) == 0.15 and MaskingRate(0.3, 0.15, 4, 1).at(3) == 0.3


def test_rows_are_masked_at_the_rate_of_their_step(recipe_values, prepared):
    recipe = Recipe(**recipe_values | {"mlm_probability": 0.6, "final_mlm_probability": 0.1, "max_steps": 101})
    objective = MaskedLM(recipe, AutoTokenizer.from_pretrained(prepared / "tokenizer"), {"vocab_size": 600})
    train, validation = objective.rows(prepared / "train", True), objective.rows(prepared / "validation", False)

    def share(rows, places) -> float:
        ids, labels = map(np.stack, zip(*rows.__getitems__(list(places)), strict=True))
        can_be_masked = ~objective.masking.is_special_v[np.where(labels == IGNORED, ids, labels)]
        return float((labels != IGNORED)[can_be_masked].mean())

    # About 11,000 tokens: a standard deviation is at most 0.005.
    assert share(train, range(400)) == pytest.approx(0.6 - 0.5 * 0.25, abs=0.02)
    assert share(train, range(404, 804)) == pytest.approx(0.6 - 0.5 * 0.75, abs=0.02)
    assert share(validation, range(len(validation))) == pytest.approx(0.1, abs=0.04)


@pytest.mark.parametrize(("mask", "random"), [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0)])
def test_masked_tokens_become_what_the_shares_say(mask, random):
    ids = np.arange(5, 95)
    masking = Masking(0.5, 4, (0, 1, 2, 3, 4), 95, mask, random)
    masked, labels = mask_tokens(ids, masking, 0, 0, 0)
    chosen = labels != IGNORED
    assert (masked == 4).sum() == chosen.sum() * mask
    if random:
        assert (masked[chosen] != ids[chosen]).mean() > 0.9
    elif not mask:
        assert (masked == ids).all() and chosen.any()


def test_a_falling_rate_resumes_bit_for_bit(values, tmp_path):
    changes = {"mlm_probability": 0.4, "final_mlm_probability": 0.1, "mask_replace_prob": 0.9, "random_replace_prob": 0.0}
    whole = tmp_path / "whole"
    assert pretrain(write_recipe(values, whole, **changes)) == 0
    resumed = cut_back(whole, 4, tmp_path / "resumed")
    assert pretrain(write_recipe(values, resumed, **changes)) == 0
    assert exact_rows(resumed) == exact_rows(whole) and weights(resumed) == weights(whole)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"final_mlm_probability": 0.0}, "`final_mlm_probability` is 0.0, but must be between 0 and 1"),
        ({"mask_replace_prob": 1.1}, r"`mask_replace_prob` is 1.1, but must be in \[0, 1\]"),
        ({"random_replace_prob": 0.3}, "`random_replace_prob` is 0.3, but must be between 0 and the 0.2 that"),
    ],
)
def test_shares_that_are_none_are_refused(recipe_values, change, sentence):
    with pytest.raises(InputError, match=sentence):
        Recipe(**recipe_values | change)
