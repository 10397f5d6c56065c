# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Speeds by a clock that the test turns, and a real trace."""

from pathlib import Path

import pytest

from pretraining import throughput
from pretraining.cluster import flops_per_sequence
from pretraining.model import model_config
from pretraining.recipe import Recipe


@pytest.fixture
def clock(monkeypatch):
    """A clock; `clock.now` is its time in seconds."""

    class Clock:
        now = 100.0

    monkeypatch.setattr(throughput.time, "perf_counter", lambda: Clock.now)
    return Clock


def test_figures_are_those_of_the_clock(recipe_values, clock):
    recipe = Recipe(**recipe_values | {"peak_tflops": 2.0})
    counted = throughput.Throughput(recipe, model_config(recipe), sequence_length=32, num_processes=4)
    for _ in range(5):
        counted.begin_step()
        clock.now += 0.5
        counted.data_is_there()
        clock.now += 1.5
        counted.end_step()
        clock.now += 100  # an evaluation, a checkpoint
    flops = 8 * flops_per_sequence(recipe, model_config(recipe), 32)
    expected = {"tokens_per_second": 8 * 32 / 2, "data_wait": 0.25, "mfu": flops / 2 / (4 * 2e12)}
    assert counted.figures() == pytest.approx(expected)
    counted.begin_step()
    clock.now += 1
    counted.data_is_there()
    counted.end_step()
    assert counted.figures()["data_wait"] == 1


def test_a_run_that_ends_early_keeps_its_trace(recipe_values, tmp_path):
    profiler = throughput.Profiler(Recipe(**recipe_values | {"profile_step": 2}), tmp_path, 1)
    for step in (1, 2):
        profiler.before_step(step)
        profiler.after_step(step)
    assert not Path(tmp_path / "profile" / "rank-1.json").exists()
    profiler.write()
    assert (tmp_path / "profile" / "rank-1.json").exists()
