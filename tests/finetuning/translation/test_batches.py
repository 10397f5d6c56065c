# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Batches by tokens: every pair once, no batch too large, and the same updates on any number of processes."""

import numpy as np
import pytest
from accelerate.data_loader import skip_first_batches
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from finetuning.translation.batches import EpochBatches, make_batches
from luna_tools.errors import InputError


@st.composite
def cases(draw):
    """Lengths of both sides, the most tokens, and batches per update."""
    pairs = draw(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=80))
    source, target = np.array(pairs).T
    per_step = draw(st.sampled_from([number for number in range(1, 7) if number == 1 or 2 * number <= len(pairs)]))
    least = int(np.max(pairs))
    # Two pairs fit, so that there is a batch to cut in two.
    return source, target, draw(st.integers(2 * least, 200)), per_step, draw(st.integers(0, 9))


@settings(max_examples=50, deadline=None)
@given(case=cases())
def test_each_pair_is_in_one_batch_that_is_not_too_large(case):
    source, target, max_tokens, per_step, _ = case
    batches = make_batches(*case)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(source)))
    longest = np.maximum(source, target)
    assert all(0 < len(batch) * longest[batch].max() <= max_tokens for batch in batches)
    assert len(batches) % per_step == 0
    assert [batch.tolist() for batch in make_batches(*case)] == [batch.tolist() for batch in batches]


@settings(max_examples=30, deadline=None)
@given(case=cases(), epoch=st.integers(0, 5), skipped=st.integers(0, 4))
def test_processes_share_the_updates_of_one_and_a_run_goes_on_with_what_is_due(case, epoch, skipped):
    *_, per_step, seed = case
    batches = make_batches(*case)
    alone = list(EpochBatches(batches, seed, lambda: epoch, 0, 1))
    steps = [alone[start : start + per_step] for start in range(0, len(alone), per_step)]
    for world_size in (size for size in range(1, per_step + 1) if per_step % size == 0):
        ranks = [EpochBatches(batches, seed, lambda: epoch, rank, world_size) for rank in range(world_size)]
        read, share = [list(rank) for rank in ranks], per_step // world_size
        assert {len(own) for own in read} == {len(rank) for rank in ranks} == {len(alone) // world_size}
        for i, step in enumerate(steps):
            together = [batch for own in read for batch in own[i * share : (i + 1) * share]]
            assert sorted(together) == sorted(step)
        loader = DataLoader(range(len(case[0])), batch_sampler=ranks[0], collate_fn=list)
        due = min(skipped, len(read[0]))
        assert list(skip_first_batches(loader, due)) == read[0][due:]


def test_epochs_and_seeds_have_orders_of_their_own():
    lengths = np.random.default_rng(0).integers(1, 60, (2, 2000))
    batches = make_batches(*lengths, 300, 1, seed=0)
    orders = [list(EpochBatches(batches, seed, lambda e=epoch: e, 0, 1)) for seed in (0, 1) for epoch in (0, 1)]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])
    assert [b.tolist() for b in batches] != [b.tolist() for b in make_batches(*lengths, 300, 1, seed=1)]


def test_batches_of_similar_lengths_are_full_and_have_little_padding():
    generator = np.random.default_rng(0)
    source = generator.integers(5, 80, 5000)
    target = np.maximum(1, source + generator.integers(-3, 4, 5000))
    batches, longest = make_batches(source, target, 1000, 8, seed=0), np.maximum(source, target)
    costs = np.array([len(batch) * longest[batch].max() for batch in batches])
    assert np.median(costs) > 900 and costs.sum() < 1.1 * longest.sum()


def test_what_makes_no_batches_is_refused():
    lengths = np.array([5, 9, 6])
    with pytest.raises(
        InputError, match="`max_tokens` is 8, but the longest training pair, number 2, has 9 tokens: give at"
    ):
        make_batches(lengths, lengths, 8, 1, seed=0)
    for max_tokens, per_step in ((90, 4), (9, 2)):
        with pytest.raises(
            InputError, match=f"per_step` is {per_step}, but the training pairs make 3 batches of one pair: lower"
        ):
            make_batches(lengths, lengths, max_tokens, per_step, seed=0)
