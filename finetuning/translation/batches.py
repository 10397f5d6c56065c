# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Batches of pairs by their number of tokens, in an order that depends on seed and epoch alone."""

from collections.abc import Callable, Iterator

import numpy as np
from torch.utils.data import Sampler

from luna_tools.errors import InputError


def make_batches(
    source_lengths: np.ndarray, target_lengths: np.ndarray, max_tokens: int, batches_per_step: int, seed: int
) -> list[np.ndarray]:
    """Divide all pairs into batches of similar length: every pair is in one, the same in all epochs.

    A batch costs its number of pairs times its longest side, so that padding counts. The number of batches is a multiple of
    `batches_per_step`, for which the largest are cut in two: every update of an epoch has equally many, and on any number
    of processes that divides it the same ones.

    Args:
        source_lengths, target_lengths: (pairs,), in tokens.
        max_tokens: the most that a batch may cost.
        batches_per_step: of an update, over all processes.
        seed: of the order among pairs of the same lengths.

    Raises:
        InputError: a pair is longer than `max_tokens`, or so few pairs fit that the batches cannot be made a multiple.
    """
    longest = np.maximum(source_lengths, target_lengths)
    if longest.max() > max_tokens:
        row = int(longest.argmax())
        raise InputError(
            f"`max_tokens` is {max_tokens}, but the longest training pair, number {row + 1}, has {longest[row]} tokens: "
            "give at least as many, or prepare the dataset with a --max_length."
        )
    shuffled = np.random.default_rng(seed).permutation(len(longest))
    order = shuffled[np.lexsort((source_lengths[shuffled], target_lengths[shuffled]))]
    batches, start, width = [], 0, 0
    for place, length in enumerate(longest[order].tolist()):
        width = max(width, length)
        if width * (place + 1 - start) > max_tokens:
            batches.append(order[start:place])
            start, width = place, length
    batches.append(order[start:])
    while len(batches) % batches_per_step:
        largest = max(range(len(batches)), key=lambda i: len(batches[i]))
        batch = batches[largest]
        if len(batch) == 1:
            raise InputError(
                f"`batches_per_step` is {batches_per_step}, but the training pairs make {len(batches)} batches of one pair: "
                "lower it, or raise `max_tokens`."
            )
        batches[largest : largest + 1] = [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
    return batches


class EpochBatches(Sampler[list[int]]):
    """The batches of one of several processes, shuffled anew in each epoch.

    The order is drawn from seed and epoch, so that a run that goes on within an epoch reads what is due.

    Args:
        batches: of `make_batches`.
        epoch: tells the current one.
        rank, world_size: of this process.
    """

    def __init__(self, batches: list[np.ndarray], seed: int, epoch: Callable[[], int], rank: int, world_size: int):
        self.batches, self.seed, self.epoch, self.rank, self.world_size = batches, seed, epoch, rank, world_size

    def __len__(self) -> int:
        return len(self.batches) // self.world_size

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng((self.seed, self.epoch())).permutation(len(self.batches))
        for i in order[self.rank :: self.world_size]:
            yield self.batches[i].tolist()
