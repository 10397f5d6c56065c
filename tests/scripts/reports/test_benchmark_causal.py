# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The benchmark of causal attention at tiny sizes: what it writes and that its contestants agree, not how fast they are."""

import json
import sys

import pytest
import torch

from scripts.reports import benchmark_causal as benchmark
from tests.support.causal_inputs import make_inputs

SIZES = ["--num_heads", "2", "--head_size", "4", "--projection_length", "4", "--chunk_sizes_at", "16", "--rounds", "3"]


@pytest.mark.parametrize("name", benchmark.CONTESTANTS)
def test_contestants_compute_one_thing(name):
    inputs = [x.requires_grad_() for x in make_inputs(150)]
    results = []
    for attend in (benchmark.CONTESTANTS[name], benchmark.parallel_attention):
        output = attend(*inputs)
        results.append((output, *torch.autograd.grad(output.square().sum(), inputs)))
    torch.testing.assert_close(*results)


def test_writes_table_json_and_plot(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "peak_mebibytes", lambda make_step, device: make_step()() or 1.0)
    options = ["--lengths", "512", "1024", "2048", "--parallel_up_to", "1024", "--output_dir", str(tmp_path)]
    for only in benchmark.MEASURES:
        monkeypatch.setattr(sys, "argv", ["benchmark_causal.py", *SIZES, *options, "--only", only])
        benchmark.main()
    results = json.loads((tmp_path / "results.json").read_text())

    cells = results["lengths"]["cells"]
    assert [(cell["tokens"], cell["mode"]) for cell in cells] == [
        (n, mode) for n in (512, 1024, 2048) for mode in ("forward", "training")
    ]
    for cell in cells:
        expected = {"chunked"} | ({"parallel"} if cell["tokens"] <= 1024 else set())
        expected |= {"chunked, plain autograd"} if cell["mode"] == "training" else set()
        assert set(cell["peak_mib"]) == expected
        assert [set(seconds) for seconds in cell["seconds"]] == [expected] * 3
    assert [set(cell["peak_mib"]) for cell in results["chunk_sizes"]["cells"]] == [set(map(str, benchmark.CHUNK_SIZES))] * 2

    report = (tmp_path / "causal.md").read_text()
    assert "| chunked | 1,024 |" in report and "| parallel | 2,048 |" not in report
    assert report.count("From 1,024 to 2,048 tokens, 2 times as many") == 2
    assert (tmp_path / "causal.png").read_bytes().startswith(b"\x89PNG")


def test_by_default_it_writes_where_nothing_is_tracked(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmark_causal.py"])
    assert benchmark.parse_args().output_dir.parts[0] == "runs"
