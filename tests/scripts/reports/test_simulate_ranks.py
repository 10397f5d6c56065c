# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Many ranks read an epoch once, and an index of any size is a permutation; a broken one is found out."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import simulate_ranks

from pretraining import train
from pretraining.recipe import load_recipe

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("processes", [1, 8, 64])
def test_an_epoch_is_read_once(processes):
    """The global batch of Table 8 over a number of sequences that it does not divide."""
    result = simulate_ranks.simulate_epoch(8192, 32, 100_003, processes, seed=3)
    assert result == {"steps": 13, "readings": {1: 100_003}}


def test_a_sampler_that_repeats_is_found_out(monkeypatch):
    monkeypatch.setattr(simulate_ranks, "permute", lambda places, *key: np.minimum(places, 998))
    assert simulate_ranks.simulate_epoch(64, 8, 1000, 4, seed=3)["readings"] == {0: 1, 1: 998, 2: 1}

    class Wrong(simulate_ranks.MicroBatchSampler):
        def __iter__(self):
            for places in super().__iter__():
                yield [place + (self.process_index == 1) for place in places]

    monkeypatch.setattr(simulate_ranks, "MicroBatchSampler", Wrong)
    with pytest.raises(AssertionError, match="step 0: the global batch of 4 ranks is not that of one"):
        simulate_ranks.simulate_epoch(64, 8, 1000, 4, seed=3)


def test_every_place_is_checked(monkeypatch):
    assert simulate_ranks.check_places(0, 300_001, 300_001, seed=1) == 300_001
    real = simulate_ranks.permute
    monkeypatch.setattr(
        simulate_ranks, "permute", lambda places, *key: np.where(places == 5, real(places + 1, *key), real(places, *key))
    )
    assert simulate_ranks.check_places(0, 1000, 1000, seed=1) == 999


def test_the_command_shows_both_parts():
    options = "--sequences 20000 --num_processes 4 --every_place 500000 --num_proc 2".split()
    command = [sys.executable, "scripts/simulate_ranks.py", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Index of 500,000: 500,000 places hold rows that lead back to them" in done.stdout
    assert "Epoch of 20,000 over 4 ranks: 3 global batches of 8,192, each that of one rank" in done.stdout
    assert "{1: 20000}" in done.stdout
    assert "Learning rate: 2.5e-08 at update 1, 0.0006 at update 24,001, 1.26e-09 at update 500,000;" in done.stdout


def test_real_batches_are_those_of_one_rank():
    class Rows(list):
        def __getitems__(self, places):
            return [(np.arange(4) + place, np.where(np.arange(4) == place % 4, place, -100)) for place in places]

    assert simulate_ranks.simulate_steps(Rows(range(64)), 32, 2, 8, steps=2) == 64

    class Unsteady(Rows):
        calls = 0

        def __getitems__(self, places):
            Unsteady.calls += 1
            return super().__getitems__([place + (Unsteady.calls == 20) for place in places])

    with pytest.raises(AssertionError, match="a rank has another batch"):
        simulate_ranks.simulate_steps(Unsteady(range(64)), 32, 2, 8, steps=2)


def test_a_schedule_that_is_another_is_found_out(monkeypatch):
    recipe = load_recipe("quickstart", [])
    simulate_ranks.check_schedule(recipe)
    real = train.learning_rate_at
    monkeypatch.setattr(train, "learning_rate_at", lambda step, recipe: real(step, recipe) * (1 + 1e-6 * (step == 777)))
    with pytest.raises(AssertionError, match="update 778"):
        simulate_ranks.check_schedule(recipe)


def test_a_number_of_processes_that_does_not_divide_is_refused(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["simulate_ranks.py", "--num_processes", "3"])
    assert simulate_ranks.main() == 2
    assert "`--num_processes` is 3: 96 does not divide the global batch" in capsys.readouterr().err
