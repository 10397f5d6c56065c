# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Data order is a function of seed and epoch, and processes only divide it."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pretraining.order import MicroBatchSampler, permute, places_of


@settings(deadline=None)
@given(length=st.integers(1, 3000), seed=st.integers(0, 2**32), epoch=st.integers(0, 10))
def test_every_epoch_holds_every_row_once(length, seed, epoch):
    rows = permute(np.arange(length), length, seed, epoch)
    assert sorted(rows.tolist()) == list(range(length))
    assert places_of(rows, length, seed, epoch).tolist() == list(range(length))


@settings(deadline=None)
@given(length=st.integers(2, 10**12), data=st.data())
def test_a_place_alone_gives_the_row_it_has_among_others(length, data):
    places = np.array(data.draw(st.lists(st.integers(0, length - 1), min_size=1, max_size=20)))
    together = permute(places, length, 5, 1)
    alone = [int(permute(np.array([place]), length, 5, 1)[0]) for place in places]
    assert together.tolist() == alone
    assert ((together >= 0) & (together < length)).all()
    assert places_of(together, length, 5, 1).tolist() == places.tolist()


def test_epochs_and_seeds_shuffle_differently_and_far():
    n = 10_000
    first, second, other = (permute(np.arange(n), n, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0)))
    # Two independent permutations agree at one place on average; 8 or more happens once in a million.
    assert (first == second).sum() < 8 and (first == other).sum() < 8
    # A good shuffle leaves no correlation of place and row: its standard deviation is 1 / sqrt(n) = 0.01.
    assert abs(np.corrcoef(np.arange(n), first)[0, 1]) < 0.05
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.05


def test_the_order_never_changes():
    # A run must be able to go on under a later version: these were written down once.
    assert permute(np.arange(8), 100, 1, 2).tolist() == [89, 60, 52, 32, 1, 27, 37, 3]


@settings(deadline=None)
@given(
    processes=st.sampled_from([1, 2, 4, 8]),
    micro_batch=st.integers(1, 4),
    accumulation=st.integers(1, 4),
    start=st.integers(0, 5),
    steps=st.integers(1, 5),
)
def test_processes_and_accumulation_only_divide_the_global_batch(processes, micro_batch, accumulation, start, steps):
    global_batch = processes * micro_batch * accumulation
    span = (start, start + steps, global_batch, micro_batch)
    samplers = [MicroBatchSampler(*span, rank, processes) for rank in range(processes)]
    assert [len(sampler) for sampler in samplers] == [steps * accumulation] * processes
    dealt = np.array([list(sampler) for sampler in samplers]).reshape(processes, steps, accumulation * micro_batch)
    places = np.sort(dealt.swapaxes(0, 1).reshape(steps, global_batch))
    assert places.tolist() == np.arange(start * global_batch, (start + steps) * global_batch).reshape(steps, -1).tolist()
