# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Which sequence comes when: a permutation for each epoch that is computed and not stored, and its division over processes.

Nothing here grows with the number of sequences: an index of a billion costs what one of a thousand does.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

FEISTEL_ROUNDS = 6


def scramble(x: np.ndarray) -> np.ndarray:
    """Mix 64-bit integers so that every input bit reaches every output bit (the finaliser of SplitMix64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class Feistel:
    """A random permutation of 0 .. length - 1 that belongs to (seed, epoch), and its inverse.

    A Feistel network is a permutation of all numbers of an even number of bits, whatever its round function; numbers
    beyond `length` are sent through it again until they fall inside.
    """

    def __init__(self, length: int, seed: int, epoch: int):
        self.length = length
        self.half_bits = np.uint64(max(1, ((length - 1).bit_length() + 1) // 2))
        self.half_mask = (np.uint64(1) << self.half_bits) - np.uint64(1)
        self.keys = np.random.SeedSequence([seed, epoch]).generate_state(FEISTEL_ROUNDS, np.uint64)

    def once(self, x: np.ndarray) -> np.ndarray:
        left, right = x >> self.half_bits, x & self.half_mask
        for key in self.keys:
            left, right = right, left ^ (scramble(right + key) & self.half_mask)
        return (left << self.half_bits) | right

    def once_back(self, x: np.ndarray) -> np.ndarray:
        left, right = x >> self.half_bits, x & self.half_mask
        for key in self.keys[::-1]:
            left, right = right ^ (scramble(left + key) & self.half_mask), left
        return (left << self.half_bits) | right

    def walk(self, step, x: np.ndarray) -> np.ndarray:
        x = step(np.array(x, dtype=np.uint64))
        while (outside := x >= self.length).any():
            x[outside] = step(x[outside])
        return x.astype(np.int64)


def permute(places: np.ndarray, length: int, seed: int, epoch: int) -> np.ndarray:
    """Return the rows that stand at `places` of the permutation of (seed, epoch)."""
    network = Feistel(length, seed, epoch)
    return network.walk(network.once, places)


def places_of(rows: np.ndarray, length: int, seed: int, epoch: int) -> np.ndarray:
    """Return the places at which `rows` stand: the inverse of `permute`."""
    network = Feistel(length, seed, epoch)
    return network.walk(network.once_back, rows)


@dataclass(frozen=True)
class MicroBatchSampler:
    """The places that one process reads, micro-batch by micro-batch, from `start_step` to `max_steps`.

    Step s is made of places s * B to (s + 1) * B - 1, B being the global batch; its micro-batches are dealt to the
    processes in turn.
    """

    start_step: int
    max_steps: int
    global_batch_size: int
    micro_batch_size: int
    process_index: int
    num_processes: int

    @property
    def accumulation_steps(self) -> int:
        return self.global_batch_size // (self.micro_batch_size * self.num_processes)

    def __len__(self) -> int:
        return (self.max_steps - self.start_step) * self.accumulation_steps

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start_step, self.max_steps):
            for i in range(self.accumulation_steps):
                turn = i * self.num_processes + self.process_index
                first = step * self.global_batch_size + turn * self.micro_batch_size
                yield list(range(first, first + self.micro_batch_size))
