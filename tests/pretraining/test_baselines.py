# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Counting tables predict what was counted, from neighbours that can be seen."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pretraining.baselines import IGNORED, NeighbourTable, NGrams, figures, ranks_and_losses, rows_seen

BOS, EOS, MASK, A, B, C = range(6)
TRAIN = np.array([[BOS, A, B, C, A, B, C, EOS]] * 5)  # A is followed by B, B by C, C by A


@pytest.fixture
def table():
    return NeighbourTable(TRAIN, 6, MASK)


def measured(table, row: list[int], place: int) -> dict[str, float]:
    ids, labels = np.array([row]), np.full((1, len(row)), IGNORED)
    labels[0, place], ids[0, place] = row[place], MASK
    return table.measure(ids, labels)


def test_either_neighbour_tells_the_token(table):
    assert measured(table, [BOS, A, B, C, EOS], 2)["loss"] < 0.01
    assert measured(table, [BOS, A, B, MASK, EOS], 2)["loss"] < 0.1
    assert measured(table, [BOS, MASK, B, C, EOS], 2)["loss"] < 0.1
    assert measured(table, [BOS, A, C, C, EOS], 2)["first"] == 0


def test_neighbours_that_are_masked_leave_the_frequencies(table):
    both = measured(table, [BOS, MASK, B, MASK, EOS], 2)
    labels = np.array([[IGNORED, IGNORED, B, IGNORED, IGNORED]])
    assert both["loss"] == pytest.approx(table.measure_unigram(labels)["loss"]) == pytest.approx(-np.log(11 / 36))
    assert both["among five"] == 1


def test_scores_are_distributions_by_the_rule(table):
    (scores_cv,) = table.scores(np.array([A, MASK]), np.array([C, A]), smoothing=3.0)
    np.testing.assert_allclose(np.exp(scores_cv).sum(-1), 1)
    prior = table.prior_v
    after_a, before_c = 3 * prior, 3 * prior
    after_a[B] += 10
    before_c[B] += 10
    by_hand = (after_a / after_a.sum()) * (before_c / before_c.sum()) / prior
    np.testing.assert_allclose(np.exp(scores_cv[0]), by_hand / by_hand.sum())


def test_ranks_count_from_one():
    scores = np.log(np.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]]))
    ranks, losses = ranks_and_losses(scores, np.array([0, 0]))
    assert ranks.tolist() == [1, 3] and losses == pytest.approx(-np.log([0.5, 0.1]))
    assert figures(ranks, losses) == pytest.approx({"loss": -np.log([0.5, 0.1]).mean(), "first": 0.5, "among five": 1.0})


def test_copies_are_found_wherever_they_start():
    train = np.arange(100).reshape(5, 20)
    fresh = np.arange(200, 220)
    copied = np.concatenate([fresh[:5], train[2, 3:15], fresh[5:8]])
    assert rows_seen(train, np.stack([fresh, copied])).tolist() == [False, True]


def kneser_ney(stream: list[int], context: list[int], token: int, vocab_size: int, order: int) -> float:
    """The definition, with tuples and dictionaries: p(token | the last `order` - 1 of the context)."""

    def counts(k: int) -> Counter:
        grams = [tuple(stream[i : i + k]) for i in range(len(stream) - k + 1)]
        if k == order:
            return Counter(grams)
        return Counter(gram[1:] for gram in {tuple(stream[i : i + k + 1]) for i in range(len(stream) - k)})

    def discount(count: int, of: Counter) -> float:
        n1, n2, n3, n4 = (max(1, sum(x == number for x in of.values())) for number in (1, 2, 3, 4))
        y = n1 / (n1 + 2 * n2)
        return {0: 0, 1: y, 2: min(2, max(y, 2 - 3 * y * n3 / n2))}.get(count, min(3, max(y, 3 - 4 * y * n4 / n3)))

    def probability(k: int) -> float:
        if k == 0:
            return 1 / vocab_size
        lower, before = probability(k - 1), tuple(context[len(context) - (k - 1) :])
        of = counts(k)
        behind = {gram[-1]: count for gram, count in of.items() if gram[:-1] == before}
        if len(before) < k - 1 or not behind:
            return lower
        own = behind.get(token, 0)
        given = sum(discount(count, of) for count in behind.values())
        return (own - discount(own, of) + given * lower) / sum(behind.values())

    return probability(order)


tokens = st.lists(st.integers(0, 3), max_size=30)


@given(stream=tokens.filter(len), measured=tokens, order=st.integers(1, 5))
@example(stream=[0, 1, 2, 3] * 6, measured=[0, 1, 2, 3, 3, 3], order=5)
def test_ngrams_are_interpolated_by_the_definition(stream, measured, order):
    vocab_size, order = 4, min(order, len(stream))
    found = NGrams(np.array(stream), vocab_size, order).probabilities(np.array(measured, dtype=np.int64))
    expected = [kneser_ney(stream, measured[:i], token, vocab_size, order) for i, token in enumerate(measured)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@given(stream=tokens.filter(len), context=tokens, order=st.integers(1, 5))
def test_ngrams_give_every_token_a_share_of_one(stream, context, order):
    table = NGrams(np.array(stream), 4, order)
    shares = [table.probabilities(np.array([*context, token]))[-1] for token in range(4)]
    assert min(shares) > 0 and sum(shares) == pytest.approx(1)
