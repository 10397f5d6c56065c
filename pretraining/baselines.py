# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""What counting alone predicts: tables of words and of neighbouring pairs, measured on the same masks as a model."""

from collections.abc import Iterator

import numpy as np

from pretraining.data import IGNORED

SMOOTHING = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # tried in turn; the best one counts
COPY_LENGTH = 12  # tokens in a row that two rows share by more than chance
CHUNK = 64  # positions at a time, each a distribution over the vocabulary


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
