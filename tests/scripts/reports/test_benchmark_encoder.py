# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The encoder benchmark at tiny sizes: what it writes, not how fast anything is."""

import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from scripts.reports import benchmark_encoder as benchmark

SIZES = ["--hidden_size", "32", "--num_heads", "2", "--intermediate_size", "64", "--vocab_size", "100"]


def run(monkeypatch, output_dir: Path, *options: str) -> dict:
    command = ["benchmark_encoder.py", *SIZES, "--rounds", "3", *options, "--output_dir", str(output_dir)]
    monkeypatch.setattr(sys, "argv", command)
    benchmark.main()
    return json.loads((output_dir / "results.json").read_text())


@pytest.mark.slow
def test_writes_table_json_and_plot(tmp_path, monkeypatch):
    run(monkeypatch, tmp_path, "--only", "mlm_head")
    results = run(monkeypatch, tmp_path, "--only", "encoder", "--lengths", "16", "--projection_lengths", "4")

    assert [(cell["tokens"], cell["mode"]) for cell in results["encoder"]["cells"]] == [
        (16, "forward"),
        (16, "training"),
        (16, "training with dropout"),
    ]
    contestants = {"RoBERTa SDPA", "RoBERTa eager", "Luna l = 4", "Luna l = 4, plain projections"}
    for cell in results["encoder"]["cells"]:
        assert set(cell["peak_mib"]) == contestants
        assert [set(seconds) for seconds in cell["seconds"]] == [contestants] * 3
    assert len(results["mlm_head"]["cells"][0]["seconds"]) == 3

    report = (tmp_path / "encoder.md").read_text()
    assert "| Luna l = 4 | 16 |" in report
    assert "| Luna, masked positions only |" in report
    assert (tmp_path / "encoder.png").read_bytes().startswith(b"\x89PNG")


def test_a_ratio_is_between_two_steps_of_one_round():
    rounds = [{"a": 1.0, "b": 2.0}, {"a": 30.0, "b": 10.0}, {"b": 5.0}]
    assert benchmark.ratios(rounds, "a", "b") == [0.5, 3.0]


def test_time_budget_leaves_the_minimum_of_rounds():
    args = Namespace(rounds=5, time_budget=0.0, device="cpu")
    calls = []
    steps = {name: lambda name=name: calls.append(name) for name in ("a", "b")}
    assert len(benchmark.time_in_turns(steps, ["a"], args)) == benchmark.MIN_ROUNDS
    assert calls == ["a", "b"] * (1 + benchmark.MIN_ROUNDS)


def test_predicted_counts_match_the_matrix_products():
    args = Namespace(hidden_size=768, intermediate_size=3072, num_heads=12, projection_lengths=[16, 128])
    d = 768
    assert benchmark.multiply_adds(args, "RoBERTa eager", 2 * d) == 16 * d**2
    assert benchmark.multiply_adds(args, "Luna l = 128", 1024) == (11 + 0.25) * d**2 + 4 * 128 * d
    absorbed, plain = "Luna l = 16", "Luna l = 16, plain projections"
    assert benchmark.multiply_adds(args, plain, 1024) == (11 + 2 * 16 / 1024) * d**2 + 4 * 16 * d
    assert benchmark.multiply_adds(args, absorbed, 1024) == (8 + 6 * 16 / 1024) * d**2 + 4 * 12 * 16 * d
    assert benchmark.luna_names(args, 1024) == [absorbed, plain, "Luna l = 128"]


def test_attention_that_does_not_fit_is_left_out(monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark, "available_bytes", lambda device: 0)
    monkeypatch.setattr(benchmark, "peak_mebibytes", lambda make_step, device: 1.0)
    results = run(monkeypatch, tmp_path, "--only", "encoder", "--lengths", "8")
    assert "| RoBERTa eager | 8 | left out" in (tmp_path / "encoder.md").read_text()
    modes = {cell["mode"] for cell in results["encoder"]["cells"]}
    assert modes == {"forward", "training"}, "with dropout SDPA does not fit either, and nothing is left to compare with"


def test_by_default_it_writes_where_nothing_is_tracked(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmark_encoder.py"])
    assert benchmark.parse_args().output_dir.parts[0] == "runs"
