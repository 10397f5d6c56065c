# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The speed benchmark at tiny sizes: what it counts and writes, not how fast anything is."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from scripts.reports import benchmark_speed as benchmark
from scripts.reports import results, speed_report, steps
from scripts.reports.contestants import CONTESTANTS, Size, build, layer_multiply_adds
from scripts.reports.turns import MIN_ROUNDS, SERVER, take_turns

ROOT = Path(__file__).parents[3]
TINY = Size(num_layers=2, hidden_size=64, num_heads=2, intermediate_size=128, vocab_size=64)


def multiply_adds_of(step) -> float:
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops() / 2


# ---------------------------------------------------------------------------------------------------------------------
# Contestants and their counts


@pytest.mark.slow
@pytest.mark.parametrize("name", CONTESTANTS)
def test_a_contestant_takes_every_length_that_it_does_not_refuse(name):
    for n in (1024, 1536):
        if CONTESTANTS[name].refuses(n, "cpu", "float32") is not None:
            continue
        model = build(name, TINY, n, dropout=0.1).train()
        hidden = model(torch.randint(2, TINY.vocab_size, (2, n)))[0]
        hidden.pow(3).mean().backward()
        assert hidden.shape[0] == 2 and hidden.isfinite().all()
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_what_a_machine_cannot_run_is_refused_by_name():
    flash = CONTESTANTS["Transformer, flash"].refuses
    assert flash(64, "cpu", "bfloat16") and flash(64, "cuda", "float32") and flash(64, "cuda", "bfloat16") is None
    assert "full attention" in CONTESTANTS["BigBird"].refuses(704, "cpu", "float32")
    assert CONTESTANTS["BigBird"].refuses(768, "cpu", "float32") is None
    assert "CUDA kernel" in CONTESTANTS["MRA"].refuses(768, "cpu", "float32")


@pytest.mark.parametrize(
    ("name", "attention"),
    [("Transformer, eager", "eager"), ("Luna-16, plain", "eager"), ("Luna-128", "eager"), ("Luna-128, untied", "eager")],
)
@pytest.mark.parametrize("n", [96, 160])
def test_counts_are_those_of_the_matrix_products(name, attention, n):
    model = build(name, TINY, n, dropout=0.0).eval()
    model.config._attn_implementation = attention
    ids = torch.randint(2, TINY.vocab_size, (3, n))
    counted = 3 * TINY.num_layers * layer_multiply_adds(TINY, n, name)
    assert multiply_adds_of(lambda: model(ids)) == counted
    assert steps.encoder_count(name, TINY, 3, n, "training") == 3 * counted


def test_counts_of_absorbed_projections_and_of_a_pruned_last_layer_are_those_of_the_matrix_products(monkeypatch):
    monkeypatch.setattr("modeling_luna.ABSORBED_COST", 0.0)  # all are absorbed
    model = build("Luna-16", TINY, 96, dropout=0.0).eval()
    ids = torch.randint(2, TINY.vocab_size, (1, 96))
    bias = 16 * TINY.hidden_size  # of the queries, which meets the keys; it is no matrix product
    whole, pruned = (layer_multiply_adds(TINY, 96, "Luna-16", read=read) + bias for read in (None, 7))
    assert multiply_adds_of(lambda: model(ids)) == 2 * whole
    assert multiply_adds_of(lambda: model(ids, read_positions=torch.arange(7)[None])) == whole + pruned


@pytest.mark.parametrize("name", steps.PRETRAINING)
def test_counts_of_a_pretraining_step_are_those_of_the_programs_own(name):
    changes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    recipe = steps.pretraining_recipe(name, 2, "training with dropout", "float32", changes)
    assert recipe.model["hidden_dropout_prob"] == 0.1 and recipe.global_batch_size == 2
    run = steps.StandingRun(replace(recipe, attn_implementation="eager"), steps.PRETRAINING[name].objective, "cpu")
    before = [parameter.detach().clone() for parameter in run.engine.module.parameters()]
    counted = steps.pretraining_count(name, 2, "training with dropout", "float32", changes)
    if name not in ("RoBERTa", "Luna-128, all positions"):  # chance masks a few more or less
        counted += 3 * (run.num_predicted - 2 * round(0.15 * 512)) * 32 * (32 + 50265)
    assert multiply_adds_of(run.step_again) == pytest.approx(counted, rel=0.01)
    assert run.done == 1 and 120 < run.num_predicted < 190
    assert not all(map(torch.equal, before, run.engine.module.parameters())), "the step ends with an update"


def test_both_forms_of_an_attention_give_the_same():
    shape = steps.AttentionShape(b=2, n=24, l=4, h=2, d=32)
    for attention in steps.ATTENTIONS:
        assert set(steps.attention_counts(attention, shape)) == set(steps.FORMS)
        for form in steps.FORMS:
            steps.attention_step(attention, form, shape, "cpu", "float32")()


# ---------------------------------------------------------------------------------------------------------------------
# Turns


def sleeping(seconds: float):
    return partial(time.sleep, seconds)


def greedy():
    return lambda: torch.zeros(2**28).sum()  # 1 GiB


def failing():
    def step():
        raise ValueError("no step. And more")

    return step


def killed():
    return lambda: os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_turns_measure_who_can_and_say_why_others_cannot():
    SERVER.set_forkserver_preload(["scripts.reports.turns"])
    makers = {
        "quick": partial(sleeping, 0.0),
        "greedy": greedy,
        "failing": failing,
        "killed": killed,
        "hungry": partial(torch.zeros, 2**40),
    }
    lines = []
    cells = take_turns(makers, "cpu", 3 * 2**28, rounds=5, longest=300.0, budget=0.0, say=lines.append)
    assert list(cells) == list(makers)
    assert len(cells["quick"]["seconds"]) == MIN_ROUNDS, "the budget is used up"
    assert cells["greedy"] == {"absent": "needs more than 1 GiB"} == cells["hungry"]
    assert cells["failing"] == {"absent": "no step"}
    assert "was ended" in cells["killed"]["absent"]
    assert len(lines) == len(makers) + MIN_ROUNDS
    late = take_turns({"late": partial(sleeping, 600.0)}, "cpu", 2**32, rounds=3, longest=0.5, budget=0.0, say=lines.append)
    assert late == {"late": {"absent": "a step takes more than 0.5 s"}}
    cells = take_turns({"greedy": greedy}, "cpu", 2**32, rounds=3, longest=300.0, budget=0.0, say=lines.append)
    assert 1024 <= cells["greedy"]["peak_mib"] < 1100


# ---------------------------------------------------------------------------------------------------------------------
# The report


def result(n: int, cells: dict, counts: dict | None = None, **group) -> dict:
    name = {"section": "encoders", "size": "text", "mode": "training", "tokens": n, "num_layers": 4, "batch_size": 1}
    machine = {"device": "CPU", "cpu": "one", "cores": 2, "threads": 2, "memory_gib": 8, "dtype": "float32", "torch": "2"}
    machine |= {"transformers": "5", "allocator_settings": {}}
    counts = dict.fromkeys(cells, 1.0) if counts is None else counts
    return {"group": name | group, "machine": machine, "command": "python", "multiply_adds": counts, "cells": cells}


def cell(*seconds: float, mib: float = 1.0) -> dict:
    return {"peak_mib": mib, "seconds": list(seconds)}


def test_a_ratio_is_between_two_steps_of_one_round():
    found = result(1024, {"a": cell(1.0, 30.0, 5.0, mib=4.0), "b": cell(2.0, 10.0, 5.0), "c": {"absent": "why"}})
    assert results.ratios(found, "a", "b") == [0.5, 3.0, 1.0]
    assert results.memory_ratio(found, "a", "b") == 0.25
    assert results.ratios(found, "a", "c") == [] and results.memory_ratio(found, "a", "c") is None


def test_the_report_has_the_papers_figures_beside_ours_and_says_why_others_are_absent(tmp_path):
    product = speed_report.PRODUCT
    cells = {
        "Transformer, eager": cell(4.0, 4.0, 4.2, mib=100.0),
        "Transformer, SDPA": cell(2.0, 2.0, 2.0, mib=20.0),
        "Luna-16": cell(0.5, 0.5, 0.5, mib=10.0),
        "YOSO": {"absent": "needs more than 7 GiB"},
        product: cell(0.1, 0.1, 0.1),
    }
    counts = {"Transformer, eager": 8.0, "Transformer, SDPA": 8.0, "Luna-16": 2.0, product: 1.0}
    text = speed_report.report([result(4096, cells, counts)], tmp_path)
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in text.splitlines() if line.startswith("| ")}
    assert "| Performer (not in transformers) | (1.2) | (1.9) | (3.8) | (5.7) |" in text
    assert "| Luna-16 | (1.2) | (1.8) | (3.7) | 8.00 (5.5) | (0.44) | (0.23) | (0.17) | 0.10 (0.10) |" in text
    assert "| YOSO | 4,096 |  | needs more than 7 GiB |" in text
    row = next(line for line in text.splitlines() if line.startswith("| Luna-16 | 4,096 | 2 | 500 (500 to 500) | 10 |"))
    assert "| 8.00 (8.00 to 8.40) | 4.00 | 0.10 | 4.00 (4.00 to 4.00) | 4.00 | 0.50 | 40% |" in row
    assert "Luna-16" in lines and "![Figure 1 of the paper, redrawn](figure1.png)" in text
    for picture in ("encoders.png", "figure1.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")


def test_the_report_tells_a_pretraining_step_beside_its_count(tmp_path):
    names = {"section": "pretraining", "mode": "training with dropout", "tokens": 512, "num_layers": 12, "batch_size": 4}
    cells = {name: cell(4.0, 4.0, 4.0) for name in steps.PRETRAINING} | {"Luna-128": cell(2.0, 2.5, 1.0)}
    cells[speed_report.PRODUCT] = cell(0.5, 0.5, 0.5)
    counts = {name: 16.0 for name in steps.PRETRAINING} | {"Luna-128": 10.0, speed_report.PRODUCT: 4.0}
    text = speed_report.report([result(512, cells, counts) | {"group": names}], tmp_path)
    assert "### 4 sequences a step, with dropout 0.1, as in Table 8" in text and "without dropout" not in text
    row = next(line for line in text.splitlines() if line.startswith("| Luna-128 | 0.5 | 2000 (1000 to 2500) | 1 |"))
    assert "| 2.00 (1.60 to 4.00) | 1.60 | 1.00 | 2.00 (1.60 to 4.00) | 1.60 | 1.00 | 62% |" in row


def test_a_threshold_loses_what_the_faster_form_would_have_saved(tmp_path):
    names = {"section": "attention", "attention": "pack, tied", "b": 1, "n": 128, "l": 8, "h": 4, "d": 128}
    found = result(0, {"plain": cell(1.0, 1.0, 1.0), "absorbed": cell(2.0, 2.0, 2.0)}, {"plain": 1.6, "absorbed": 1.0})
    text = speed_report.report([found | {"group": names}], tmp_path)
    assert "| pack, tied | 1 | 128 | 8 | 4 | 128 | 1.60 | 0.50 (0.50 to 0.50) | 3.20 | absorbed | plain |" in text
    assert "| 1.5 | 100.0% | 100.0% |" in text and "| 2 | 0.0% | 0.0% |" in text


def test_a_part_that_is_measured_again_replaces_itself_alone():
    one, other = result(1024, {}), result(2048, {})
    assert benchmark.identity(one) != benchmark.identity(other)
    assert benchmark.identity(one) != benchmark.identity(result(1024, {}, batch_size=8))
    assert benchmark.identity(one) == benchmark.identity(result(1024, {"a": cell(1.0)}, num_layers=1))
    on_gpu = one | {"machine": one["machine"] | {"device": "GPU"}}
    assert benchmark.identity(one) != benchmark.identity(on_gpu)


def test_who_fails_is_not_tried_at_greater_lengths(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmark", "encoders", "--contestants", "Luna-16", "YOSO", "--num_layers", "1"])
    args, failed = benchmark.parse_args(), {}
    groups = benchmark.encoder_groups(args)
    assert [group.name["tokens"] for group in groups[:8]] == args.lengths
    made = []

    def turns(makers, **limits):
        made.append(set(makers))
        return {name: {"absent": "needs more than 1 GiB"} if name == "YOSO" else cell(1.0) for name in makers}

    monkeypatch.setattr(benchmark, "take_turns", turns)
    first, second = (benchmark.measure(group, args, failed) for group in groups[:2])
    assert made == [{"Luna-16", "YOSO", steps.PRODUCT}, {"Luna-16", steps.PRODUCT}]
    assert first["cells"]["YOSO"]["absent"] == "needs more than 1 GiB"
    assert second["cells"]["YOSO"]["absent"] == "at 1,024 tokens: needs more than 1 GiB"


def test_by_default_it_writes_where_nothing_is_tracked(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmark_speed.py"])
    assert benchmark.parse_args().output_dir.parts[0] == "runs"


@pytest.mark.slow
def test_the_program_shows_progress_and_keeps_what_is_finished_when_it_is_interrupted(tmp_path):
    options = "encoders --sizes text --num_layers 1 --modes forward --lengths 64 96 --rounds 3 --contestants Luna-16".split()
    command = [sys.executable, "-u", "-m", "scripts.reports.benchmark_speed", *options, "--output_dir", str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    shown = []
    for line in process.stdout:
        shown.append(line)
        if line.startswith("[2 of 2]"):
            process.send_signal(signal.SIGINT)
    stderr = process.stderr.read()
    assert process.wait(60) == 130 and "Interrupted: what is finished is kept." in stderr, stderr
    assert any("Luna-16: " in line and "(warm-up)" in line for line in shown) and any("round 3" in line for line in shown)
    assert [x["group"]["tokens"] for x in json.loads((tmp_path / "results.json").read_text())["results"]] == [64]
    assert "| Luna-16 | 64 |" in (tmp_path / "speed.md").read_text()
