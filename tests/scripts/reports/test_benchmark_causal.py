# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The benchmark of causal attention at tiny sizes: what it writes and that its contestants agree, not how fast they are."""

import json
import pickle
import sys

import pytest
import torch

from scripts.reports import benchmark_causal as benchmark
from tests.support.causal_inputs import make_inputs

SIZES = "--num_heads 2 --head_size 4 --projection_length 4 --chunk_sizes_at 16 --growth_lengths 16".split()


def one_step_each(makers: dict, **limits) -> dict:
    """In place of processes that take turns. A parallel step of 1,024 tokens is too greedy."""
    cells = {}
    for name, maker in makers.items():
        pickle.loads(pickle.dumps(maker))()()
        cells[name] = {"peak_mib": 1.0, "seconds": [0.2, 0.1, 0.4]}
        if maker.args[1:3] == (benchmark.PARALLEL, 1024):
            cells[name] = {"absent": "needs more than 1 GiB"}
    return cells


@pytest.mark.parametrize("name", benchmark.CONTESTANTS)
def test_contestants_compute_one_thing(name):
    inputs = [x.requires_grad_() for x in make_inputs(150)]
    results = []
    for attend in (benchmark.CONTESTANTS[name], benchmark.parallel_attention):
        output = attend(*inputs)
        results.append((output, *torch.autograd.grad(output.square().sum(), inputs)))
    torch.testing.assert_close(*results)


def test_writes_table_json_and_plot(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "take_turns", one_step_each)
    options = ["--lengths", "512", "1024", "2048", "--parallel_up_to", "1024", "--output_dir", str(tmp_path)]
    for only in benchmark.MEASURES:
        monkeypatch.setattr(sys, "argv", ["benchmark_causal.py", *SIZES, *options, "--only", only])
        assert benchmark.main() == 0
    results = json.loads((tmp_path / "results.json").read_text())

    found = results["lengths"]["results"]
    assert [(x["tokens"], x["mode"]) for x in found] == [
        (n, mode) for n in (512, 1024, 2048) for mode in ("forward", "training")
    ]
    for x in found:
        expected = {"chunked"} | ({"parallel"} if x["tokens"] <= 1024 else set())
        expected |= {"chunked, plain autograd"} if x["mode"] == "training" else set()
        assert set(x["cells"]) == expected
    assert [set(x["cells"]) for x in results["chunk_sizes"]["results"]] == [set(map(str, benchmark.CHUNK_SIZES))] * 2

    report = (tmp_path / "causal.md").read_text()
    assert "| chunked | 512 | 200.0 | 390.62 | 1.0 | 1.00 (1.00 to 1.00) | 1.0 |" in report
    assert "| parallel | 1,024 | needs more than 1 GiB |  |" in report
    assert "| chunked | 1,024 | 200.0 | 195.31 | 1.0 |  |  |" in report
    assert "| chunked | 2,048 |" in report and "| parallel | 2,048 |" not in report
    assert report.count("| Forward and backward | 16 | 100.0 | 6250.00 | 64.0 |") == 1
    assert "| Forward, ms | 200.0 | 200.0 | 200.0 | 200.0 | 200.0 |" in report
    assert (tmp_path / "causal.png").read_bytes().startswith(b"\x89PNG")


def test_an_interrupted_run_keeps_what_is_finished(tmp_path, monkeypatch):
    def interrupted(makers: dict, **limits) -> dict:
        if interrupted.calls == 3:
            raise KeyboardInterrupt
        interrupted.calls += 1
        return one_step_each(makers)

    interrupted.calls = 0
    monkeypatch.setattr(benchmark, "take_turns", interrupted)
    monkeypatch.setattr(sys, "argv", ["x", *SIZES, "--lengths", "16", "32", "--output_dir", str(tmp_path)])
    assert benchmark.main() == 130
    [(name, section)] = json.loads((tmp_path / "results.json").read_text()).items()
    assert name == "lengths" and [x["tokens"] for x in section["results"]] == [16, 16, 32]
    assert "| chunked | 32 |" in (tmp_path / "causal.md").read_text()


def test_by_default_it_writes_where_nothing_is_tracked(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmark_causal.py"])
    assert benchmark.parse_args().output_dir.parts[0] == "runs"
