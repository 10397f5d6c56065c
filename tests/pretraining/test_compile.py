# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Compiled runs: one graph, no recompilation, the same curve, exact on resume; and masks at a fixed number of positions."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._dynamo.utils import counters

from luna_tools.errors import InputError
from pretraining.data import at_masked_positions, most_masked
from pretraining.plan import check_engine
from pretraining.recipe import Recipe
from pretraining.run import Run
from tests.support.pretraining import GPT2, NO_DROPOUT, curve, cut_back, exact_rows, pretrain, weights, write_recipe
from tests.support.ranks import launch


@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=4), st.sampled_from([None, 4, 6]))
def test_masked_positions_hold_every_label_in_order(rows, num_positions):
    is_masked = torch.tensor(rows)
    labels = torch.where(is_masked, torch.arange(is_masked.numel()).view_as(is_masked) + 10, -100)
    batch = at_masked_positions({"labels": labels}, num_positions)
    k = batch["labels"].shape[1]
    assert k == (num_positions or is_masked.sum(-1).max()) and batch["masked_positions"].shape == batch["labels"].shape
    for row, found, places in zip(labels, batch["labels"], batch["masked_positions"], strict=True):
        expected = (row != -100).nonzero().flatten()[:k]
        filling = k - len(expected)
        assert places.tolist() == expected.tolist() + [-1] * filling
        assert found.tolist() == row[expected].tolist() + [-100] * filling


@pytest.mark.parametrize(("n", "p"), [(30, 0.15), (510, 0.15), (510, 0.3), (4, 0.5)])
def test_a_row_hardly_ever_has_more_masks(n, p):
    k = most_masked(n, p)
    assert k == n or k % 8 == 0
    drawn = np.random.default_rng(0).binomial(n, p, size=100_000)
    assert drawn.max() <= k <= n and (k == n or k < n * p + 10 * (n * p * (1 - p)) ** 0.5 + 8)


@pytest.fixture(scope="module")
def graphs():
    """Compiled graphs after each step of the runs of this module."""
    counted, real = [], Run.step

    def step(self, *args):
        result = real(self, *args)
        counted.append(counters["stats"]["unique_graphs"])
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "step", step)
        yield counted


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "model_type"), [("masked_lm", "luna"), ("masked_lm", "roberta"), ("clm", "luna"), ("clm", "gpt2")]
)
def test_a_compiled_run_is_one_graph_and_the_same_run(values, graphs, tmp_path, objective, model_type):
    model = values["model"] | NO_DROPOUT | {"model_type": model_type}
    if model_type == "roberta":
        del model["projection_length"]
    if model_type == "gpt2":
        model = GPT2
    values = values | {"objective": objective, "model": model, "micro_batch_size": 8}
    torch._dynamo.reset()
    counters.clear()
    graphs.clear()
    assert pretrain(write_recipe(values, tmp_path / "compiled", compile=True)) == 0
    assert graphs == [1] * 8 and not counters["graph_break"]
    assert pretrain(write_recipe(values, tmp_path / "plain")) == 0
    assert len(graphs) == 16 and curve(tmp_path / "compiled") == pytest.approx(curve(tmp_path / "plain"), abs=1e-4)
    assert weights(tmp_path / "compiled") != weights(tmp_path / "plain")


def print_graphs():
    """Have a rank print how many graphs it has compiled after each step."""
    real = Run.step

    def step(self, *args):
        result = real(self, *args)
        print("graphs", counters["stats"]["unique_graphs"], flush=True)
        return result

    Run.step = step


@pytest.mark.slow
def test_two_compiled_processes_are_the_same_run_as_one(values, tmp_path):
    values = values | {"model": values["model"] | NO_DROPOUT, "micro_batch_size": 4}
    compiled = write_recipe(values, tmp_path / "compiled", compile=True)
    ranks = launch("pretrain", [compiled], processes=2, before=print_graphs)
    graphs = [int(line.split()[1]) for line in ranks.stdout.splitlines() if line.startswith("graphs")]
    assert len(graphs) == 16 and len(set(graphs)) == 1, "none is compiled after the first step"
    assert pretrain(write_recipe(values, tmp_path / "plain")) == 0
    assert curve(tmp_path / "compiled") == pytest.approx(curve(tmp_path / "plain"), abs=1e-4)


@pytest.mark.slow
def test_a_compiled_run_resumes_bit_for_bit(values, tmp_path):
    whole = tmp_path / "whole"
    assert pretrain(write_recipe(values, whole, compile=True)) == 0
    resumed = cut_back(whole, 4, tmp_path / "resumed")
    assert pretrain(write_recipe(values, resumed, compile=True)) == 0
    assert exact_rows(resumed) == exact_rows(whole) and weights(resumed) == weights(whole)


def test_what_cannot_be_one_graph_is_refused(recipe_values):
    recipe = Recipe(**recipe_values | {"compile": True})
    check_engine(recipe, "ddp")
    with pytest.raises(InputError, match="`compile` is true, but zero3 brings weights together"):
        check_engine(recipe, "zero3")


def test_a_machine_without_a_compiler_is_told(recipe_values, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert pretrain(write_recipe(recipe_values, tmp_path / "run", compile=True)) == 2
    assert "`compile` is true, but there is no C++ compiler" in capsys.readouterr().err
