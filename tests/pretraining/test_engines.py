# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Data parallelism, FSDP2 and ZeRO 1, 2, 3 are the same run, really run on two CPU processes and more."""

import math
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM

from luna_tools.errors import InputError
from pretraining import checkpoint as ckpt
from pretraining import engines
from pretraining.metrics import read_metrics
from pretraining.model import build_model, model_config
from pretraining.recipe import Recipe
from tests.support import faults
from tests.support.pretraining import NO_DROPOUT, curve, cut_back, weight_difference, write_recipe
from tests.support.ranks import launch

DIVIDED = ("fsdp2", "zero1", "zero2", "zero3")
TOLERANCE = 1e-5  # of losses in nats and of weights after steps of 0.01: sums in another order, in float32


def default(first: str, *others: str) -> list:
    """One for the default run of the tests, and others that take long."""
    return [first, *(pytest.param(other, marks=pytest.mark.slow) for other in others)]


@pytest.fixture(scope="session")
def odd(values):
    """Sizes that no number of processes divides, dropout, clipping that has something to do, 11 validation rows."""
    model = values["model"] | {"hidden_size": 36, "intermediate_size": 50, "projection_length": 7}
    steps = {"max_steps": 6, "eval_steps": 3, "save_steps": 3, "warmup_steps": 1}
    sizes = {"micro_batch_size": 1, "eval_micro_batch_size": 4, "max_eval_sequences": 11}
    return values | {"model": model, "learning_rate": 1e-2, "max_grad_norm": 0.5} | steps | sizes


def run(engine: str, values: dict, output: Path, processes: int = 2, before=None, **changes) -> Path:
    """Run the program under an engine. Returns `output`, the run's folder."""
    launch("pretrain", [write_recipe(values, output, **changes)], processes, engine, before=before)
    return output


@pytest.fixture(scope="session")
def plain(odd, tmp_path_factory):
    """The run that all others must equal: DistributedDataParallel on two processes."""
    return run("ddp", odd, tmp_path_factory.mktemp("plain") / "run")


@pytest.mark.parametrize("engine", DIVIDED)
def test_an_engine_is_plain_data_parallelism(engine, odd, plain, tmp_path):
    output = run(engine, odd, tmp_path / "run")
    assert curve(output) == pytest.approx(curve(plain), abs=TOLERANCE)
    norms = [row["grad_norm"] for row in read_metrics(plain / "metrics.jsonl") if "grad_norm" in row]
    assert len(norms) == 6 and max(norms) > 0.5, "clipping had something to do"

    final, saved = ("model", "checkpoints/step-00000006")
    for folder in (final, saved):
        assert weight_difference(output, plain, f"{folder}/model.safetensors") < TOLERANCE
        names = sorted(path.name for path in (output / folder).iterdir())
        assert names == sorted(path.name for path in (plain / folder).iterdir())
        # All but the digits of the results.
        cards = [re.sub(r"\d+\.\d+", "", (run / folder / "README.md").read_text()) for run in (output, plain)]
        assert cards[0] == cards[1]
    assert weight_difference(output, plain, f"{saved}/optimizer.safetensors") < TOLERANCE
    _, loading = AutoModelForMaskedLM.from_pretrained(output / "model", output_loading_info=True)
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))

    # Going on from the middle is exact, bit for bit ...
    resumed = run(engine, odd, cut_back(output, 3, tmp_path / "resumed"))
    assert curve(resumed) == curve(output)
    assert weight_difference(resumed, output) == 0
    # ... and under plain data parallelism it is the same run.
    changed = run("ddp", odd, cut_back(output, 3, tmp_path / "changed"))
    assert curve(changed) == pytest.approx(curve(plain), abs=TOLERANCE)


@pytest.mark.parametrize("engine", default("zero3", "fsdp2", "zero1", "zero2"))
def test_an_engine_is_plain_data_parallelism_for_causal_models(engine, causal_values, tmp_path):
    values = causal_values | {"micro_batch_size": 1, "max_steps": 6, "save_steps": 3, "eval_steps": 3}
    plain, output = (run(name, values, tmp_path / name) for name in ("ddp", engine))
    assert curve(output) == pytest.approx(curve(plain), abs=TOLERANCE)
    assert weight_difference(output, plain) < TOLERANCE
    resumed = run(engine, values, cut_back(output, 3, tmp_path / "resumed"))
    assert curve(resumed) == curve(output) and weight_difference(resumed, output) == 0


# Each engine grows and shrinks once, from or to another one: the checkpoint is the same under all.
PATHS = [("ddp", "zero3", "fsdp2"), ("fsdp2", "zero1", "ddp"), ("zero2", "fsdp2", "zero1"), ("zero3", "ddp", "zero2")]


@pytest.mark.parametrize("path", [PATHS[0], *(pytest.param(path, marks=pytest.mark.slow) for path in PATHS[1:])])
def test_another_number_of_processes_goes_on_with_the_same_run(path, odd, tmp_path):
    odd = odd | {"model": odd["model"] | NO_DROPOUT, "save_steps": 2}
    two = run(path[0], odd, tmp_path / "two")
    up = run(path[1], odd, cut_back(two, 2, tmp_path / "up"), processes=4)
    down = run(path[2], odd, cut_back(up, 4, tmp_path / "down"))
    for changed in (up, down):
        assert curve(changed) == pytest.approx(curve(two), abs=TOLERANCE)
        assert weight_difference(changed, two) < TOLERANCE


def scaler_state(output: Path, step: int) -> dict:
    return ckpt.load_trainer_state(output / "checkpoints" / f"step-{step:08}")["scaler"]


@pytest.mark.parametrize("precision", default("fp16", "bf16"))
@pytest.mark.parametrize("engine", default("zero2", "fsdp2", "zero1", "zero3"))
def test_half_precision_computes_so_and_keeps_weights_whole(engine, precision, odd, plain, tmp_path):
    before = faults.fp16_on_cpu(2.0**16) if precision == "fp16" else None
    output = run(engine, odd, tmp_path / "run", before=before, mixed_precision=precision)
    assert curve(output) == pytest.approx(curve(plain), rel=1e-2)
    assert curve(output) != pytest.approx(curve(plain), abs=TOLERANCE)
    assert {x.dtype for x in load_file(output / "model" / "model.safetensors").values()} == {torch.float32}
    if precision == "fp16":
        assert (scaler_state(output, 6)["scale"], scaler_state(output, 6)["_growth_tracker"]) == (2.0**16, 6)


@pytest.mark.parametrize("engine", default("fsdp2", "zero2", "zero3"))
def test_fp16_leaves_out_steps_that_overflow(engine, odd, tmp_path):
    """A scale far too large: each step halves it, a resumed run goes on with it, and the weights stay as they were."""
    odd = odd | {"mixed_precision": "fp16"}
    output = run(engine, odd, tmp_path / "run", before=faults.fp16_on_cpu(2.0**120))
    resumed = run(engine, odd, cut_back(output, 3, tmp_path / "resumed"), before=faults.fp16_on_cpu(2.0**16))
    for folder in (output, resumed):
        assert scaler_state(folder, 6)["scale"] == 2.0**114
        norms = [row["grad_norm"] for row in read_metrics(folder / "metrics.jsonl") if "grad_norm" in row]
        assert len(norms) == 6 and not any(math.isfinite(norm) for norm in norms)
        first, last = (load_file(folder / "checkpoints" / f"step-0000000{step}" / "model.safetensors") for step in (3, 6))
        assert all(torch.equal(first[name], last[name]) for name in first)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["fsdp2", "zero3"])
@pytest.mark.parametrize("kind", ["shared", "roberta"])
def test_weights_with_two_names_are_divided_once(engine, kind, odd, tmp_path):
    """A layer that all layers share, and a model with a tied decoder whose bias has two names."""
    model = odd["model"] | {"share_layer_weights": True}
    if kind == "roberta":
        model = odd["model"] | {"model_type": "roberta"}
        del model["projection_length"]
    output, plain = (run(name, odd, tmp_path / name, model=model, max_steps=3) for name in (engine, "ddp"))
    assert curve(output) == pytest.approx(curve(plain), abs=TOLERANCE)
    assert weight_difference(output, plain) < TOLERANCE


def bind_to_one_core() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system can't bind processes to a core")
def test_more_processes_than_cores(odd, plain, tmp_path):
    """Processes that wait for each other in busy loops would hang."""
    output = run("zero3", odd, tmp_path / "run", before=bind_to_one_core)
    assert curve(output) == pytest.approx(curve(plain), abs=TOLERANCE)


@pytest.mark.parametrize("engine", default("zero2", "ddp", "fsdp2", "zero3"))
def test_a_run_that_was_stopped_before_its_first_step_goes_on(engine, odd, plain, tmp_path):
    recipe = write_recipe(odd, tmp_path / "run")
    done = launch("pretrain", [recipe], 2, engine, check=False, before=faults.stopped_at_once)
    assert "Stopped by a signal after step 0, which is saved" in done.stderr
    assert [path.name for path in ckpt.checkpoints(tmp_path / "run" / "checkpoints")] == ["step-00000000"]
    assert curve(run(engine, odd, tmp_path / "run")) == pytest.approx(curve(plain), abs=TOLERANCE)


# ---------------------------------------------------------------------------------------------------------------------
# Parts, and what is refused


def test_weights_decay_but_norms_and_biases_do_not(recipe_values):
    recipe = Recipe(**recipe_values)
    model = build_model(recipe, model_config(recipe), None)
    decayed, free = engines.build_optimizer(model, recipe).param_groups
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert decayed["weight_decay"] == 0.01 and free["weight_decay"] == 0
    assert all("norm" in names[p] or names[p].endswith("bias") for p in free["params"])
    assert not any("norm" in names[p] or names[p].endswith("bias") for p in decayed["params"])
    assert len(decayed["params"]) + len(free["params"]) == sum(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(("launched", "said"), [("fp16", "no"), ("bf16", "fp16")])
def test_a_launcher_with_another_precision_is_refused(launched, said, recipe_values, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    recipe = Recipe(**recipe_values | {"mixed_precision": said})
    sentence = f"asks for mixed precision {launched}, but the recipe's `mixed_precision` is {said}: say `--mixed_precision"
    with pytest.raises(InputError, match=sentence):
        engines.make_accelerator(recipe, "ddp")


def test_the_loss_scale_follows_the_rule_of_torch(monkeypatch):
    monkeypatch.setattr(engines.LossScaler, "growth_interval", 3)
    ours, weight = engines.LossScaler(), torch.nn.Parameter(torch.ones(1))
    theirs, optimizer = torch.amp.GradScaler("cpu", growth_interval=3), torch.optim.SGD([weight])
    for gradient in (1, 1, math.inf, 1, 1, 1, 1, 1, 1, math.nan, math.inf, 1, 1, 1):
        theirs.scale(weight.sum()).backward()
        weight.grad.fill_(gradient)
        theirs.step(optimizer)
        theirs.update()
        ours.update(has_overflowed=not math.isfinite(gradient))
        assert ours.state_dict() == theirs.state_dict()
    again = engines.LossScaler()
    again.load_state_dict(theirs.state_dict())
    assert again.state_dict() == ours.state_dict()


def test_no_loss_scale_hides_gradients_that_are_no_numbers():
    engine = object.__new__(engines.ZeRO)
    engine.scaler = engines.LossScaler()
    while engine.scaler.get_scale() >= 1:
        engine.require_finite(math.nan)
        engine.scaler.update(has_overflowed=True)
    engine.require_finite(1.0)
    with pytest.raises(engines.NonFiniteError, match="The gradient norm is nan"):
        engine.require_finite(math.nan)


@pytest.mark.parametrize(("processes", "kind"), [(1, "NO"), (2, "FSDP")])
def test_launches_that_are_refused(processes, kind, recipe_values, monkeypatch):
    class Fake:
        num_processes, distributed_type = processes, engines.DistributedType(kind)

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(engines, "Accelerator", lambda **options: Fake())
    sentence = "started 2 processes, but Accelerate sees 1" if kind == "NO" else "asks for FSDP, which this program"
    with pytest.raises(InputError, match=sentence):
        engines.make_accelerator(Recipe(**recipe_values), "ddp")
