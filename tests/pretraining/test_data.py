# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Masking is a function of seed, epoch and index."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretraining.data import (
    VALIDATION_EPOCH,
    MaskedLMDataset,
    Masking,
    mask_tokens,
    unigram_cross_entropy,
)

MASKING = Masking(mlm_probability=0.15, mask_token_id=99, special_token_ids=(0, 1, 2, 3, 99), vocab_size=100)


@pytest.mark.parametrize("epoch", [0, 7, VALIDATION_EPOCH])
def test_masking_chooses_15_percent_and_treats_them_80_10_10(epoch):
    rng = np.random.default_rng(0)
    ids = rng.integers(4, 99, size=(400, 512))
    masked, labels = (
        np.stack(x) for x in zip(*(mask_tokens(row, MASKING, 3, epoch, i) for i, row in enumerate(ids)), strict=True)
    )
    chosen = labels != -100
    assert (labels[chosen] == ids[chosen]).all() and (masked[~chosen] == ids[~chosen]).all()
    # 204,800 draws: a standard deviation is 0.0008 of 0.15, and 0.0023 of 0.8, 0.0017 of 0.1 among the 30,720 chosen.
    assert chosen.mean() == pytest.approx(0.15, abs=0.004)
    assert (masked[chosen] == 99).mean() == pytest.approx(0.8, abs=0.012)
    # A random id hits the original one time in 95.
    assert (masked[chosen] == ids[chosen]).mean() == pytest.approx(0.1 + 0.1 / 95, abs=0.009)
    randomised = chosen & (masked != 99) & (masked != ids)
    assert not np.isin(masked[randomised], MASKING.special_token_ids).any()
    assert len(np.unique(masked[randomised])) == 95


@settings(deadline=None)
@given(
    ids=st.lists(st.integers(0, 99), min_size=1, max_size=60),
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 2**64 - 1),
    index=st.integers(0, 2**64 - 1),
)
def test_special_tokens_are_never_masked_and_something_always_is(ids, seed, epoch, index):
    ids = np.array(ids, dtype=np.uint16)
    masked, labels = mask_tokens(ids, MASKING, seed, epoch, index)
    special = np.isin(ids, MASKING.special_token_ids)
    assert (labels[special] == -100).all() and (masked[special] == ids[special]).all()
    assert (labels != -100).any() == (~special).any()
    again = mask_tokens(ids, MASKING, seed, epoch, index)
    assert (again[0] == masked).all() and (again[1] == labels).all()


def test_masks_differ_by_seed_epoch_and_index_and_never_change():
    ids = np.arange(4, 99)
    labels = [mask_tokens(ids, MASKING, *key)[1].tolist() for key in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))]
    assert len({tuple(row) for row in labels}) == 4
    # The masks of a run must not depend on the version of NumPy: these were written down once.
    chosen = [int(i) for i in np.flatnonzero(mask_tokens(np.arange(4, 68), MASKING, 1, 2, 3)[1] != -100)]
    assert chosen == [0, 9, 10, 11, 20, 28, 29, 39, 42, 43, 49, 60, 61]


def test_a_dataset_is_read_once_an_epoch_and_validation_always_alike(prepared):
    masking = replace(MASKING, vocab_size=600)
    train = MaskedLMDataset(prepared / "train", masking, seed=4, shuffle=True)
    n = len(train)
    located = train.locate(range(2 * n))
    assert [epoch for epoch, _ in located] == [0] * n + [1] * n
    assert sorted(i for _, i in located[:n]) == sorted(i for _, i in located[n:]) == list(range(n))
    assert [i for _, i in located[:n]] != [i for _, i in located[n:]]

    validation = MaskedLMDataset(prepared / "validation", masking, seed=4, shuffle=False)
    assert validation.locate(range(len(validation))) == [(VALIDATION_EPOCH, i) for i in range(len(validation))]
    (ids, labels), *_ = validation.__getitems__([0])
    restored = np.where(labels != -100, labels, ids)
    assert (restored == validation.rows[0]["input_ids"]).all()


def test_unigram_cross_entropy_is_that_of_the_definition():
    counts = np.array([0, 6, 2])
    expected = -(np.log(7 / 11) + np.log(3 / 11) + np.log(1 / 11)) / 3
    assert unigram_cross_entropy(counts, np.array([1, 2, 0])) == pytest.approx(expected, rel=1e-12)
