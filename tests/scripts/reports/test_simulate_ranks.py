# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Many ranks read an epoch once, and an index of any size is a permutation; a broken program is found out."""

import subprocess
import sys

import pytest

OPTIONS = "--recipe quickstart --sequences 2000 --num_processes 1".split()


def simulate(*options: str, broken: str = "") -> subprocess.CompletedProcess:
    """Run the report, the program changed by the code `broken` before."""
    program = f"import runpy, sys\n{broken}\nrunpy.run_module('scripts.reports.simulate_ranks', run_name='__main__')"
    return subprocess.run([sys.executable, "-c", program, *options], capture_output=True, text=True)


def test_the_command_shows_all_parts(prepared):
    options = f"--sequences 20000 --num_processes 4 --every_place 500000 --num_proc 2 --steps 1 --dataset {prepared}"
    command = [sys.executable, "-m", "scripts.reports.simulate_ranks", *options.split()]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Index of 500,000: 500,000 places hold rows that lead back to them" in done.stdout
    assert "Epoch of 20,000 over 4 ranks: 3 global batches of 8,192, each that of one rank" in done.stdout
    assert "{1: 20000}" in done.stdout
    assert "Learning rate: 2.5e-08 at update 1, 0.0006 at update 24,001, 1.26e-09 at update 500,000;" in done.stdout
    assert "the batches of 4 ranks are those of one, masks and" in done.stdout


@pytest.mark.parametrize(
    ("broken", "options", "sentence"),
    [
        (
            "from pretraining import run; real = run.learning_rate_at\n"
            "run.learning_rate_at = lambda step, recipe: real(step, recipe) * (1 + 1e-6 * (step == 777))",
            (),
            "update 778: not the schedule's learning rate",
        ),
        pytest.param(
            "from pretraining.order import MicroBatchSampler as M; real = M.__iter__\n"
            "M.__iter__ = lambda self: ([p + (self.process_index == 1) for p in places] for places in real(self))",
            ("--recipe", "luna_base_16gb", "--num_processes", "4"),
            "step 0: the global batch of 4 ranks is not that of one",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "from pretraining import order; real = order.permute\n"
            "order.permute = lambda places, *key: real(places + (places == 5), *key)",
            (),
            "sequences by the times they were read: {0: 1, 1: 1998, 2: 1}",
            marks=pytest.mark.slow,
        ),
        ("", ("--num_processes", "3"), "error: `--num_processes` is 3: 96 does not divide the global batch"),
    ],
    ids=["schedule", "sampler", "order", "processes"],
)
def test_what_is_wrong_is_found_out(broken, options, sentence):
    done = simulate(*OPTIONS, *options, broken=broken)
    assert done.returncode != 0
    assert sentence in done.stdout + done.stderr
