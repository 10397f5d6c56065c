# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The benchmark of generation at tiny sizes: what it writes and asserts, not how fast anything is."""

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache

from modeling_luna import LunaForCausalLM
from scripts.reports import benchmark_generation as benchmark
from tests.support.luna_builders import build, make_tokenizer

SIZES = ["--hidden_size", "16", "--num_heads", "2", "--num_layers", "1", "--intermediate_size", "32", "--vocab_size", "100"]
SIZES += ["--lengths", "16", "32", "--new_tokens", "2", "--rounds", "2", "--stream_tokens", "400", "--lookup_tokens", "12"]


@pytest.fixture
def model(tmp_path) -> Path:
    tokenizer = make_tokenizer()
    sizes = {"vocab_size": len(tokenizer), "position_embedding_type": "sinusoidal"}
    build(LunaForCausalLM, dtype=torch.float32, **sizes).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.slow
def test_writes_tables_json_and_plots(model, tmp_path, monkeypatch):
    output = tmp_path / "output"
    monkeypatch.setattr(sys, "argv", ["benchmark", *SIZES, "--model", str(model), "--output_dir", str(output)])
    benchmark.main()
    results = json.loads((output / "results.json").read_text())
    short, long = (cell["rounds"][0] for cell in results["lengths"]["cells"])
    assert short["Luna"]["cache_bytes"] == long["Luna"]["cache_bytes"]
    assert short["GPT-2"]["cache_bytes"] == 2 * 16 * 4 * (16 + 2) and long["GPT-2"]["cache_bytes"] == 2 * 16 * 4 * (32 + 2)
    points = results["stream"]["points"]
    assert [point["tokens"] for point in points] == [100, 200, 300, 400]
    assert len({point["state_bytes"] for point in points}) == 1
    assert [set(seconds) for seconds in results["lookup"]["rounds"]] == [{"greedy", "prompt lookup"}] * 2
    report = (output / "generation.md").read_text()
    for row in ("| Luna | 32 |", "| GPT-2 | 16 |", "| last quarter |", "| prompt lookup |"):
        assert row in report
    for picture in ("lengths.png", "stream.png"):
        assert (output / picture).read_bytes().startswith(b"\x89PNG")


def test_the_bytes_of_a_cache_are_those_of_its_tensors_each_once():
    cache = DynamicCache()
    keys = torch.zeros(1, 2, 3, 4)
    cache.update(keys, torch.zeros(1, 2, 3, 4), 0)
    assert benchmark.cache_bytes(cache) == 2 * 24 * 4
    assert benchmark.cache_bytes([keys, {"view": keys[0]}, (keys.double(),)]) == 24 * 4 + 24 * 8
