# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""ListOps of the Long Range Arena: nested lists of digits with an operator each, and the digit that they come to.

The benchmark draws a tree from the root: a node above the greatest depth is an operator with probability 1/4 and otherwise a
digit; an operator has from 2 to `max_args` arguments. Trees of other than the wanted lengths are thrown away, about two in
three of those whose root is an operator. Here many trees grow at once, one level after the other, and are thrown away as
soon as they are too long.
"""

import csv
import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np

from finetuning.lra.folder import GeneratorOptions, progress_bar, read_settings, write_settings
from luna_tools.errors import InputError
from luna_tools.files import put_in_place, staging_folder
from luna_tools.workers import map_in_order

FOLDER = "listops-1000"  # as in the official archive
FILES = ("basic_train.tsv", "basic_val.tsv", "basic_test.tsv")
OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")
END = "]"
OPERATOR_PROBABILITY = 0.25
DIGITS = 10
TEXTS = np.array([*map(str, range(DIGITS)), *OPERATORS], object)
TREES = 512  # that grow at once
BLOCK = 500  # expressions in a task of a worker
MAX_TRIES = 10_000_000  # trees for one block


@dataclass(frozen=True)
class ListOpsOptions(GeneratorOptions):
    """What is generated. The defaults are the benchmark's."""

    num_train_samples: int = 96_000
    """Expressions in basic_train.tsv."""
    num_valid_samples: int = 2_000
    """Expressions in basic_val.tsv."""
    num_test_samples: int = 2_000
    """Expressions in basic_test.tsv."""
    max_depth: int = 10
    """Levels of the tree, the root's and the deepest digits' included."""
    max_args: int = 10
    """Arguments of an operator, at most; at least it has 2."""
    min_length: int = 500
    """An expression has more tokens than this: digits, operators and closing brackets."""
    max_length: int = 2_000
    """An expression has fewer tokens than this."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("num_train_samples", "num_valid_samples", "num_test_samples", "min_length"):
            if getattr(self, name) < 1:
                raise InputError(f"`{name}` is {getattr(self, name)}, but must be at least 1.")
        for name in ("max_depth", "max_args"):
            if getattr(self, name) < 2:
                raise InputError(f"`{name}` is {getattr(self, name)}, but must be at least 2.")
        longest = 1
        for _ in range(self.max_depth - 1):
            longest = 2 + self.max_args * longest
        # The shortest expression with an operator has four tokens.
        if min(longest, self.max_length - 1) < max(self.min_length + 1, 4):
            raise InputError(
                f"No expression has more than `min_length` {self.min_length} and fewer than `max_length` {self.max_length} "
                f"tokens: with `max_depth` {self.max_depth} and `max_args` {self.max_args} they have 4 to {longest}."
            )

    @property
    def num_samples(self) -> tuple[int, int, int]:
        """Those of each file."""
        return self.num_train_samples, self.num_valid_samples, self.num_test_samples


class Level(NamedTuple):
    """The nodes of all trees at one depth, in the order of the trees and, in a tree, from left to right."""

    tree: np.ndarray  # the number of each node's tree
    kind: np.ndarray  # the digit, or DIGITS plus the number of the operator
    num_args: np.ndarray  # 0 for a digit


def generate(options: ListOpsOptions) -> Path:
    """Write the three files, or find them complete. Returns their folder.

    Raises:
        InputError: the folder cannot be used, or there are not enough distinct expressions of these lengths.
    """
    folder = Path(options.output_dir) / FOLDER
    if read_settings(folder, options):
        return folder
    total = sum(options.num_samples)
    # Which file each expression goes to: duplicates are left out as they come, so the first ones are the likelier ones.
    files = np.repeat(np.arange(3, dtype=np.int8), options.num_samples)
    np.random.default_rng([options.seed, 0]).shuffle(files)
    with staging_folder(folder) as staging:
        made = staging / FOLDER
        made.mkdir()
        write_settings(made, options)
        with ExitStack() as opened, progress_bar("ListOps", total, "expression") as bar:
            writers = []
            for name in FILES:
                file = opened.enter_context((made / name).open("w", encoding="utf-8", newline=""))
                writers.append(csv.writer(file, delimiter="\t"))
                writers[-1].writerow(("Source", "Target"))
            expressions = opened.enter_context(closing(distinct_expressions(options)))
            for file, expression in zip(files, expressions, strict=False):
                writers[file].writerow(expression)
                bar.update()
        put_in_place(made, folder)
    return folder


def distinct_expressions(options: ListOpsOptions) -> Iterator[tuple[str, int]]:
    """Endless pairs of an expression and its value, no expression twice.

    Raises:
        InputError: hardly any new expression comes.
    """
    seen = set()
    blocks = map_in_order(partial(make_block, options), count(1), options.num_workers, "num_workers")
    with closing(blocks):
        for block in blocks:
            before = len(seen)
            for source, value in block:
                digest = hashlib.blake2b(source.encode(), digest_size=16).digest()
                if digest not in seen:
                    seen.add(digest)
                    yield source, value
            if len(seen) - before < BLOCK / 100:
                raise InputError(
                    f"Hardly any expression but {len(seen)} comes with `min_length` {options.min_length}, `max_length` "
                    f"{options.max_length}, `max_depth` {options.max_depth} and `max_args` {options.max_args}: allow more, "
                    "or ask for fewer."
                )


def make_block(options: ListOpsOptions, number: int) -> list[tuple[str, int]]:
    """`BLOCK` expressions with their values, by the seed and the number of the block; fewer where they hardly ever come."""
    rng = np.random.default_rng([options.seed, number])
    block: list[tuple[str, int]] = []
    tries = 0
    while len(block) < BLOCK and tries < MAX_TRIES:
        levels = grow(rng, options)
        block += zip(to_strings(levels), evaluate(levels).tolist(), strict=True)
        tries += TREES
    return block[:BLOCK]


def grow(rng: np.random.Generator, options: ListOpsOptions) -> list[Level]:
    """The levels of those of `TREES` trees that have a length as wanted; the root of each is an operator."""
    levels = []
    length = np.zeros(TREES, np.int64)  # tokens so far
    tree = np.arange(TREES)
    for depth in range(1, options.max_depth + 1):
        kind = rng.integers(DIGITS, size=len(tree))
        if depth < options.max_depth:
            is_operator = rng.random(len(tree)) < OPERATOR_PROBABILITY if depth > 1 else np.ones(TREES, bool)
            kind[is_operator] = DIGITS + rng.integers(len(OPERATORS), size=is_operator.sum())
        num_args = np.zeros(len(tree), np.int64)
        num_args[kind >= DIGITS] = rng.integers(2, options.max_args, size=(kind >= DIGITS).sum(), endpoint=True)
        levels.append(Level(tree, kind, num_args))
        length += np.bincount(tree, 1 + (kind >= DIGITS), minlength=TREES).astype(np.int64)
        tree = np.repeat(tree, num_args)
        # What is to come is a token at least for each node.
        is_short = length + np.bincount(tree, minlength=TREES) < options.max_length
        tree = tree[is_short[tree]]
        length[~is_short] = 0
    is_wanted = length > options.min_length
    return [Level(*(column[is_wanted[level.tree]] for column in level)) for level in levels]


def evaluate(levels: list[Level]) -> np.ndarray:
    """The value of each tree."""
    values = levels[-1].kind
    for level in reversed(levels[:-1]):
        arguments, values = values, level.kind.copy()
        is_operator = level.num_args > 0
        if not is_operator.any():
            continue
        num_args = level.num_args[is_operator]
        ends = num_args.cumsum()
        starts = ends - num_args
        # Sorted, each operator's arguments in a row of their own: the places after the last one hold what is no digit.
        rows = np.full((len(num_args), num_args.max()), DIGITS)
        rows[np.arange(rows.shape[1]) < num_args[:, None]] = arguments
        rows.sort(axis=1)
        every = np.arange(len(rows))
        low, high = rows[every, (num_args - 1) // 2], rows[every, num_args // 2]
        results = (rows[:, 0], rows[every, num_args - 1], (low + high) // 2, np.add.reduceat(arguments, starts) % 10)
        values[is_operator] = np.choose(level.kind[is_operator] - DIGITS, results)
    return values


def to_strings(levels: list[Level]) -> list[str]:
    """Each tree as the benchmark writes it: an operator takes its arguments one by one, in a pair of parentheses each."""
    strings: list[str] = []
    for level in reversed(levels):
        arguments, strings = strings, TEXTS[level.kind].tolist()
        ends = level.num_args.cumsum()
        places = level.num_args.nonzero()[0]
        columns = (places, level.num_args[places], ends[places])
        for place, num_args, end in zip(*(column.tolist() for column in columns), strict=True):
            inside = " ) ".join(arguments[end - num_args : end])
            strings[place] = f"{'( ' * (num_args + 1)}{strings[place]} {inside} ) {END} )"
    return strings
