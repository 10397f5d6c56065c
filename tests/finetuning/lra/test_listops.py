# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""ListOps: the grammar, the values by a stack machine, the distribution of the published process, the files."""

import csv
import random
import re
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, ks_2samp

from finetuning.lra import listops
from finetuning.lra.listops import BLOCK, FILES, FOLDER, ListOpsOptions, generate, make_block
from luna_tools.errors import InputError

APPLY = {
    "[MIN": min,
    "[MAX": max,
    "[MED": lambda digits: int(statistics.median(digits)),
    "[SM": lambda digits: sum(digits) % 10,
}


def run_stack_machine(source: str, max_depth: int, max_args: int) -> int:
    """The value of an expression from its tokens alone, parentheses left out; checks the grammar on the way."""
    stack = [[]]
    for token in source.replace("(", " ").replace(")", " ").split():
        if token == "]":
            operator, *digits = stack.pop()
            assert 2 <= len(digits) <= max_args
            stack[-1].append(APPLY[operator](digits))
        elif token in APPLY:
            stack.append([token])
            assert len(stack) <= max_depth
        else:
            assert re.fullmatch("[0-9]", token) and len(stack) <= max_depth
            stack[-1].append(int(token))
    ((value,),) = stack
    return value


def count_tokens(source: str) -> int:
    return len(re.findall(r"[^ ()]+", source))


def reduce_parentheses(source: str) -> str:
    """Apply the benchmark's pairs until one is left: an operator takes an argument, and a closing bracket ends it."""
    source, count = re.subn(r"\( (\[\w+) \d \)", r"\1", source)
    source, ends = re.subn(r"\( \[\w+ \] \)", "0", source)
    return reduce_parentheses(source) if count or ends else source


def published_tree(depth: int, max_depth: int, max_args: int, rng: random.Random) -> list | int:
    """The process as the benchmark describes it, one node after the other."""
    if depth == max_depth or rng.random() > 0.25:
        return rng.randrange(10)
    return [
        rng.choice(list(APPLY)),
        *(published_tree(depth + 1, max_depth, max_args, rng) for _ in range(rng.randint(2, max_args))),
    ]


def tree_tokens(tree: list | int) -> int:
    return 1 if isinstance(tree, int) else 2 + sum(map(tree_tokens, tree[1:]))


def tree_value(tree: list | int) -> int:
    return tree if isinstance(tree, int) else APPLY[tree[0]]([tree_value(argument) for argument in tree[1:]])


@pytest.fixture(scope="module")
def official() -> list[tuple[str, int]]:
    """Expressions by the benchmark's parameters."""
    return make_block(ListOpsOptions("unused"), 1) + make_block(ListOpsOptions("unused"), 2)


def test_every_value_is_what_a_stack_machine_finds(official):
    assert len(official) == 2 * BLOCK
    for source, value in official:
        assert run_stack_machine(source, max_depth=10, max_args=10) == value
        assert 500 < count_tokens(source) < 2000


def test_parentheses_are_the_benchmarks(official):
    for source, _ in official[:50]:
        assert reduce_parentheses(source) == "0"


@given(
    max_depth=st.integers(2, 5),
    max_args=st.integers(2, 6),
    min_length=st.integers(1, 12),
    spread=st.integers(2, 40),
    seed=st.integers(0, 2**32),
)
@settings(deadline=None, max_examples=60)
def test_values_of_any_shape(max_depth, max_args, min_length, spread, seed):
    try:
        options = ListOpsOptions(
            "unused", seed, max_depth=max_depth, max_args=max_args, min_length=min_length, max_length=min_length + spread
        )
    except InputError:
        return
    levels = listops.grow(np.random.default_rng(seed), options)
    sources, values = listops.to_strings(levels), listops.evaluate(levels)
    assert len(sources) == len(values)
    for source, value in zip(sources, values.tolist(), strict=True):
        assert run_stack_machine(source, max_depth, max_args) == value
        assert min_length < count_tokens(source) < min_length + spread


def test_lengths_and_values_are_distributed_as_published():
    options = ListOpsOptions("unused", max_depth=6, min_length=20, max_length=120)
    ours = [pair for number in (1, 2, 3, 4) for pair in make_block(options, number)]
    rng, theirs = random.Random(0), []
    while len(theirs) < len(ours):
        tree = published_tree(1, 6, 10, rng)
        if 20 < tree_tokens(tree) < 120:
            theirs.append(tree)
    assert ks_2samp([count_tokens(source) for source, _ in ours], [*map(tree_tokens, theirs)]).pvalue > 0.01
    counts = np.array([np.bincount(values, minlength=10) for values in ([v for _, v in ours], [*map(tree_value, theirs)])])
    assert chi2_contingency(counts).pvalue > 0.01


def read(path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file, delimiter="\t"))


SMALL = {"num_valid_samples": 60, "num_test_samples": 40, "max_depth": 4, "min_length": 5, "max_length": 40}


def test_files_are_the_same_by_any_number_of_workers(tmp_path):
    made = {}
    for name, seed, num_workers in (("one", 3, 1), ("two", 3, 2), ("other", 4, 1)):
        folder = generate(ListOpsOptions(str(tmp_path / name), seed, num_workers, num_train_samples=1200, **SMALL))
        assert folder == tmp_path / name / FOLDER
        assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, "generated.json"])
        made[name] = [(folder / file).read_bytes() for file in FILES]
    assert made["one"] == made["two"]
    assert made["one"] != made["other"]
    assert [data.count(b"\r\n") for data in made["one"]] == [1201, 61, 41]  # as Python's csv writer ends lines
    rows = [row for file in FILES for row in read(tmp_path / "one" / FOLDER / file)[1:]]
    assert all(run_stack_machine(source, 4, 10) == int(target) for source, target in rows)
    assert len({source for source, _ in rows}) == 1300
    assert read(tmp_path / "one" / FOLDER / FILES[0])[0] == ["Source", "Target"]


def test_splits_are_alike_where_duplicates_are_many(tmp_path):
    """The short, likely expressions come first; they are not all for training."""
    tiny = SMALL | {"max_depth": 2, "max_args": 3, "num_valid_samples": 400, "max_length": 7, "min_length": 3}
    folder = generate(ListOpsOptions(str(tmp_path), num_workers=1, num_train_samples=800, **tiny))
    short = [np.mean([count_tokens(source) == 4 for source, _ in read(folder / file)[1:]]) for file in FILES[:2]]
    assert 0.05 < short[0] and abs(short[0] - short[1]) < 0.08


def test_too_few_distinct_expressions(tmp_path):
    tiny = SMALL | {"max_depth": 2, "max_args": 2, "min_length": 3, "max_length": 5}
    with pytest.raises(InputError, match="^Hardly any expression but 399 comes with `min_length` 3, `max_length` 5, "):
        generate(ListOpsOptions(str(tmp_path / "out"), num_workers=1, num_train_samples=1000, **tiny))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"min_length": 0}, "`min_length` is 0, but must be at least 1."),
        ({"max_args": 1}, "`max_args` is 1, but must be at least 2."),
        ({"num_test_samples": 0}, "`num_test_samples` is 0, but must be at least 1."),
        ({"seed": -1}, "`seed` is -1, but must not be negative."),
        ({"num_workers": 0}, "`num_workers` is 0, but must be at least 1."),
        (
            {"min_length": 50, "max_length": 51},
            "No expression has more than `min_length` 50 and fewer than `max_length` 51 ",
        ),
        ({"max_depth": 2}, "with `max_depth` 2 and `max_args` 10 they have 4 to 12."),
        ({"min_length": 1, "max_length": 4}, "No expression has more than `min_length` 1 and fewer than `max_length` 4 "),
    ],
)
def test_wrong_options(values, sentence):
    with pytest.raises(InputError, match=re.escape(sentence)):
        ListOpsOptions("unused", **values)
