# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""What counting alone predicts of the tokens that a model is measured on: words, neighbouring pairs, n-grams."""

from collections.abc import Iterator

import numpy as np

from pretraining.data import IGNORED

SMOOTHING = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # tried in turn; the best one counts
COPY_LENGTH = 12  # tokens in a row that two rows share by more than chance
CHUNK = 64  # positions at a time, each a distribution over the vocabulary
NGRAM_ORDER = 5


def token_stream(rows_bn: np.ndarray) -> np.ndarray:
    """Return the text of packed rows one after the other, without the start and the end of each row."""
    return rows_bn[:, 1:-1].astype(np.int64).ravel()


class PairCounts:
    """How often each token follows each other one; looked up by the first of a pair."""

    def __init__(self, first: np.ndarray, second: np.ndarray, vocab_size: int):
        codes, self.counts = np.unique(first * vocab_size + second, return_counts=True)
        self.seconds = codes % vocab_size
        self.starts = np.searchsorted(codes, np.arange(vocab_size + 1) * vocab_size)

    def smoothed(self, first: int, prior_v: np.ndarray, smoothing: float) -> np.ndarray:
        """Return the distribution of what goes with `first`, `smoothing` counts of `prior_v` added: (v,)."""
        found = slice(self.starts[first], self.starts[first + 1])
        counts_v = smoothing * prior_v
        counts_v[self.seconds[found]] += self.counts[found]
        return counts_v / counts_v.sum()


class NeighbourTable:
    """Predicts a token from those to its left and right: p(w | left) p(w | right) / p(w), each counted in the training rows.

    A neighbour that is masked, or that the row does not have, says nothing.

    Args:
        mask_token_id: of a neighbour that cannot be seen.
    """

    def __init__(self, train_rows_bn: np.ndarray, vocab_size: int, mask_token_id: int):
        stream = token_stream(train_rows_bn)
        self.prior_v = (np.bincount(stream, minlength=vocab_size) + 1.0) / (len(stream) + vocab_size)
        self.after = PairCounts(stream[:-1], stream[1:], vocab_size)
        self.before = PairCounts(stream[1:], stream[:-1], vocab_size)
        self.mask_token_id = mask_token_id

    def scores(self, lefts: np.ndarray, rights: np.ndarray, smoothing: float) -> Iterator[np.ndarray]:
        """Yield log-probabilities for positions with these neighbours, some at a time: (at most CHUNK, v)."""
        log_prior_v = np.log(self.prior_v)
        for first in range(0, len(lefts), CHUNK):
            neighbours = zip(lefts[first : first + CHUNK], rights[first : first + CHUNK], strict=True)
            scores_cv = np.stack([self.score(*pair, log_prior_v, smoothing) for pair in neighbours])
            highest_c1 = scores_cv.max(-1, keepdims=True)
            yield scores_cv - highest_c1 - np.log(np.exp(scores_cv - highest_c1).sum(-1, keepdims=True))

    def score(self, left: int, right: int, log_prior_v: np.ndarray, smoothing: float) -> np.ndarray:
        """Return the unnormalised log-probabilities of one position: (v,)."""
        score_v = log_prior_v.copy()
        for token, pairs in ((left, self.after), (right, self.before)):
            if token != self.mask_token_id:
                score_v += np.log(pairs.smoothed(token, self.prior_v, smoothing)) - log_prior_v
        return score_v

    def measure(self, ids_bn: np.ndarray, labels_bn: np.ndarray) -> dict[str, float]:
        """Return `figures` of the masked positions, with the smoothing that gives the lowest loss."""
        rows, places = np.nonzero(labels_bn != IGNORED)
        lefts, rights, labels = ids_bn[rows, places - 1], ids_bn[rows, places + 1], labels_bn[rows, places]
        measured = []
        for smoothing in SMOOTHING:
            scores = self.scores(lefts, rights, smoothing)
            chunks = np.split(labels, range(CHUNK, len(labels), CHUNK))
            parts = [ranks_and_losses(scores_cv, labels_c) for scores_cv, labels_c in zip(scores, chunks, strict=True)]
            measured.append(figures(*(np.concatenate(part) for part in zip(*parts, strict=True))))
        return min(measured, key=lambda row: row["loss"])

    def measure_unigram(self, labels_bn: np.ndarray) -> dict[str, float]:
        """Return `figures` of the training frequencies alone."""
        labels = labels_bn[labels_bn != IGNORED]
        log_prior_v = np.log(self.prior_v)
        ranks_v = np.argsort(np.argsort(-log_prior_v, kind="stable"), kind="stable") + 1
        return figures(ranks_v[labels], -log_prior_v[labels])


def ranks_and_losses(scores_cv: np.ndarray, labels_c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rank (from 1) and the negative log-probability of each label under log-probabilities."""
    right_c1 = np.take_along_axis(scores_cv, labels_c[:, None], -1)
    return (scores_cv > right_c1).sum(-1) + 1, -right_c1[:, 0]


def figures(ranks: np.ndarray, losses: np.ndarray) -> dict[str, float]:
    """Return loss in nats, and the shares of positions whose right token is first and among the first five."""
    return {"loss": float(losses.mean()), "first": float((ranks == 1).mean()), "among five": float((ranks <= 5).mean())}


def rows_seen(train_rows_bn: np.ndarray, rows_bn: np.ndarray, length: int = COPY_LENGTH) -> np.ndarray:
    """Tell which rows share `length` tokens in a row with the training rows, as near-copies do: (b,) bool."""
    windows = np.lib.stride_tricks.sliding_window_view
    width = min(length, rows_bn.shape[1] - 2)
    dtype = np.dtype((np.void, 8 * width))
    known = np.ascontiguousarray(windows(token_stream(train_rows_bn), width)).view(dtype).ravel()
    asked = np.ascontiguousarray(windows(rows_bn[:, 1:-1].astype(np.int64), width, axis=1)).view(dtype)
    return np.isin(asked.ravel(), known).reshape(asked.shape[:2]).any(-1)


class NGrams:
    """Predicts a token from the `order` - 1 before it: interpolated modified Kneser-Ney (Chen and Goodman, 1999, section 3).

    The highest order counts its k-grams, the lower ones the different tokens that were seen before each. Every count gives
    up a discount, of which each order has three, for counts of 1, 2 and more; what the discounts of a context add up to goes
    to the next lower order, and from single tokens to all of the vocabulary alike.

    A k-gram is a number: its place among all of its length, sorted by the number of its first k - 1 tokens and the last one.

    Args:
        stream: tokens to count, in their order.
    """

    def __init__(self, stream: np.ndarray, vocab_size: int, order: int = NGRAM_ORDER):
        self.vocab_size = vocab_size
        self.codes, firsts, counts = [], [], []  # by k - 1; where each k-gram occurs first, and how often
        at = [np.zeros(len(stream) + 1, dtype=np.int64)]  # [k][i]: which k-gram begins with token i
        for k in range(1, min(order, len(stream)) + 1):
            codes = at[-1][:-1] * vocab_size + stream[k - 1 :]
            found, first, which, times = np.unique(codes, return_index=True, return_inverse=True, return_counts=True)
            self.codes.append(found)
            firsts.append(first)
            counts.append(times)
            at.append(which)
        # Each (k + 1)-gram is one more token that was seen before the k-gram at its end.
        for k in range(1, len(counts)):
            counts[k - 1] = np.bincount(at[k][firsts[k] + 1], minlength=len(self.codes[k - 1]))
        self.tables = [self.discounted(codes, times) for codes, times in zip(self.codes, counts, strict=True)]

    def discounted(self, codes: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return each k-gram's count less its discount, and of each context (k - 1)-gram all counts and all discounts."""
        discounts = discounts_of(counts)[np.minimum(counts, 3)]
        contexts = codes // self.vocab_size
        return counts - discounts, np.bincount(contexts, weights=counts), np.bincount(contexts, weights=discounts)

    def probabilities(self, stream: np.ndarray) -> np.ndarray:
        """Return the probability of each token of a stream after those before it: (n,)."""
        probability_n = np.full(len(stream), 1 / self.vocab_size)
        at = np.zeros(len(stream) + 1, dtype=np.int64)  # which k-gram begins with token i; -1: none that was counted
        for k, (codes, (kept, totals, given)) in enumerate(zip(self.codes, self.tables, strict=True), start=1):
            contexts = at[:-1]
            wanted = contexts * self.vocab_size + stream[k - 1 :]
            places = np.minimum(np.searchsorted(codes, wanted), len(codes) - 1)
            is_counted = codes[places] == wanted
            # Of a context that was counted at the stream's end alone, or never (-1), there is nothing to go by.
            is_known = np.append(totals, 0)[np.minimum(contexts, len(totals))] > 0
            known, shorter = contexts[is_known], probability_n[k - 1 :]
            own = np.where(is_counted, kept[places], 0)[is_known]
            shorter[is_known] = (own + given[known] * shorter[is_known]) / totals[known]
            at = np.where(is_counted, places, -1)
        return probability_n


def discounts_of(counts: np.ndarray) -> np.ndarray:
    """Return the discounts of counts of 0, 1, 2 and at least 3, estimated from how many counts are 1 to 4: (4,).

    Where there are hardly any the estimates may leave their range: none takes more than the count or less than that of 1.
    """
    n1, n2, n3, n4 = np.maximum(np.bincount(np.minimum(counts, 5), minlength=6)[1:5], 1)
    y = n1 / (n1 + 2 * n2)
    return np.array([0.0, *np.clip([y, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3], y, [1, 2, 3])])
