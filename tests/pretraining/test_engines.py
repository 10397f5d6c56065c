# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Data parallelism, FSDP2 and ZeRO 1, 2, 3 are the same run, really run on two CPU processes and more."""

import math
import os
import re
from pathlib import Path

import pytest
import torch
from compare_engines import (
    NO_DROPOUT,
    VALUES,
    command,
    curve,
    cut_back,
    launch,
    loads_whole,
    run_to_end,
    weight_difference,
    write_recipe,
)
from kill_ranks import run_and_kill
from safetensors.torch import load_file

from pretraining import checkpoint as ckpt
from pretraining import engines
from pretraining.recipe import InputError, recipe_from_values
from pretraining.train import read_metrics

DIVIDED = ("fsdp2", "zero1", "zero2", "zero3")
TOLERANCE = 1e-5  # of losses in nats and of weights after steps of 0.01: sums in another order, in float32


@pytest.fixture(scope="session")
def values(prepared):
    """With dropout, whose masks must be the same under every engine, and an odd number of validation rows."""
    return VALUES | {"dataset": str(prepared)}


@pytest.fixture(scope="session")
def plain(values, tmp_path_factory):
    """The run that all others must equal: DistributedDataParallel on two processes."""
    return launch("ddp", values, tmp_path_factory.mktemp("plain") / "run")


@pytest.mark.slow
@pytest.mark.parametrize("engine", DIVIDED)
def test_an_engine_is_plain_data_parallelism(engine, values, plain, tmp_path):
    output = launch(engine, values, tmp_path / "run")
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
    assert loads_whole(output)

    # Going on from the middle is exact, bit for bit ...
    resumed = launch(engine, values, cut_back(output, 3, tmp_path / "resumed"))
    assert curve(resumed) == curve(output)
    assert weight_difference(resumed, output) == 0
    # ... and under plain data parallelism it is the same run.
    changed = launch("ddp", values, cut_back(output, 3, tmp_path / "changed"))
    assert curve(changed) == pytest.approx(curve(plain), abs=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", *DIVIDED])
def test_another_number_of_processes_goes_on_with_the_same_run(engine, values, tmp_path):
    values = values | {"model": NO_DROPOUT, "save_steps": 2}
    two = launch(engine, values, tmp_path / "two")
    up = launch(engine, values, cut_back(two, 2, tmp_path / "up"), processes=4)
    down = launch(engine, values, cut_back(up, 4, tmp_path / "down"))
    for changed in (up, down):
        assert curve(changed) == pytest.approx(curve(two), abs=TOLERANCE)
        assert weight_difference(changed, two) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("engine", DIVIDED)
def test_bf16_computes_in_half_precision_and_keeps_weights_whole(engine, values, plain, tmp_path):
    is_half_precision(launch(engine, values, tmp_path / "run", mixed_precision="bf16"), plain)


def is_half_precision(output: Path, plain: Path) -> None:
    assert curve(output) == pytest.approx(curve(plain), rel=1e-2)
    assert curve(output) != pytest.approx(curve(plain), abs=TOLERANCE)
    assert {x.dtype for x in load_file(output / "model" / "model.safetensors").values()} == {torch.float32}


# Runs the program in fp16 on a CPU, which Accelerate refuses although PyTorch can: as Accelerate prepares it for a GPU.
FP16_ON_CPU = """
import dataclasses, sys, torch
from pretraining import engines, train
INITIAL_SCALE = {scale}
def make_accelerator(recipe, engine):
    if engine == "deepspeed":
        return real(recipe, engine)
    accelerator = real(dataclasses.replace(recipe, mixed_precision="no"), engine)
    accelerator.state._mixed_precision, accelerator.native_amp = "fp16", True
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=INITIAL_SCALE)
    return accelerator
real, train.make_accelerator, train.has_gpu = engines.make_accelerator, make_accelerator, lambda: True
engines.LossScaler.initial_scale = INITIAL_SCALE
sys.exit(train.main(sys.argv[1:]))
"""


def launch_fp16(engine: str, values: dict, output: Path, scale: float) -> None:
    program = output.parent / "fp16.py"
    program.write_text(FP16_ON_CPU.format(scale=scale), encoding="utf-8")
    recipe = write_recipe(values | {"mixed_precision": "fp16"}, output)
    done = run_to_end(engine, command(recipe, 2, (str(program),)))
    assert done.returncode == 0, done.stderr[-2000:]


def scaler_state(output: Path, step: int) -> dict:
    return ckpt.load_trainer_state(output / "checkpoints" / f"step-{step:08}")["scaler"]


@pytest.mark.slow
@pytest.mark.parametrize("engine", DIVIDED)
def test_fp16_scales_the_loss_and_clips_what_is_scaled_back(engine, values, plain, tmp_path):
    output = tmp_path / "run"
    launch_fp16(engine, values, output, scale=2.0**16)
    is_half_precision(output, plain)
    assert (scaler_state(output, 6)["scale"], scaler_state(output, 6)["_growth_tracker"]) == (2.0**16, 6)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["fsdp2", "zero2", "zero3"])
def test_fp16_leaves_out_steps_that_overflow(engine, values, tmp_path):
    """A scale far too large: each step halves it, a resumed run goes on with it, and the weights stay as they were."""
    output = tmp_path / "run"
    launch_fp16(engine, values, output, scale=2.0**120)
    resumed = cut_back(output, 3, tmp_path / "resumed")
    launch_fp16(engine, values, resumed, scale=2.0**16)
    for run in (output, resumed):
        assert scaler_state(run, 6)["scale"] == 2.0**114
        norms = [row["grad_norm"] for row in read_metrics(run / "metrics.jsonl") if "grad_norm" in row]
        assert len(norms) == 6 and not any(math.isfinite(norm) for norm in norms)
        first, last = (load_file(run / "checkpoints" / f"step-0000000{step}" / "model.safetensors") for step in (3, 6))
        assert all(torch.equal(first[name], last[name]) for name in first)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["fsdp2", "zero3"])
@pytest.mark.parametrize("kind", ["shared", "roberta"])
def test_weights_with_two_names_are_divided_once(engine, kind, values, tmp_path):
    """A layer that all layers share, and a model with a tied decoder whose bias has two names."""
    model = values["model"] | {"share_layer_weights": True}
    if kind == "roberta":
        model = values["model"] | {"model_type": "roberta"}
        del model["projection_length"]
    output = launch(engine, values, tmp_path / "run", model=model, max_steps=3)
    plain = launch("ddp", values, tmp_path / "plain", model=model, max_steps=3)
    assert curve(output) == pytest.approx(curve(plain), abs=TOLERANCE)
    assert weight_difference(output, plain) < TOLERANCE


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system can't bind processes to a core")
def test_more_processes_than_cores(values, plain, tmp_path):
    """Processes that wait for each other in busy loops would hang."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        output = launch("zero3", values, tmp_path / "run")
    finally:
        os.sched_setaffinity(0, cores)
    assert curve(output) == pytest.approx(curve(plain), abs=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["fsdp2", "zero3"])
def test_a_killed_rank_ends_all_and_the_run_goes_on_exactly(engine, values, tmp_path):
    values = values | {"max_steps": 40, "save_steps": 2, "eval_steps": 20}
    undisturbed = launch(engine, values, tmp_path / "undisturbed")
    hits = run_and_kill(engine, values, tmp_path / "killed", processes=2, kills=2, seed=1)
    assert sum(hits.values()) == 2
    assert curve(tmp_path / "killed") == curve(undisturbed)
    assert weight_difference(tmp_path / "killed", undisturbed) == 0
    assert not list((tmp_path / "killed" / "checkpoints").glob(".*"))


# Runs the program as if the signal had come before the first step.
STOPPED_AT_ONCE = """
import sys
from pretraining import train
real = train.StopRequest.__init__
def stopped(self):
    real(self)
    self.signal_number = 15
train.StopRequest.__init__ = stopped
sys.exit(train.main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp2", "zero2", "zero3"])
def test_a_run_that_was_stopped_before_its_first_step_goes_on(engine, values, plain, tmp_path):
    program = tmp_path / "stopped.py"
    program.write_text(STOPPED_AT_ONCE, encoding="utf-8")
    done = run_to_end(engine, command(write_recipe(values, tmp_path / "run"), 2, (str(program),)))
    assert "Stopped by a signal after step 0, which is saved" in done.stdout, done.stderr[-2000:]
    assert [path.name for path in ckpt.checkpoints(tmp_path / "run" / "checkpoints")] == ["step-00000000"]
    assert curve(launch(engine, values, tmp_path / "run")) == pytest.approx(curve(plain), abs=TOLERANCE)


# ---------------------------------------------------------------------------------------------------------------------
# What is refused


def test_the_launcher_chooses(monkeypatch):
    assert engines.launched_engine() == "ddp"
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InputError, match="asks for FSDP 1, which is not supported: set `fsdp_version: 2`"):
        engines.launched_engine()
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert engines.launched_engine() == "fsdp2"
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    assert engines.launched_engine() == "deepspeed"


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ("{", "can't be read .*: mend it"),
        ("{}", "`zero_optimization.stage` .* is None: choose 1, 2 or 3"),
        ('{"zero_optimization": {"stage": 0}}', "is 0: choose 1, 2 or 3, or launch without DeepSpeed"),
        ('{"zero_optimization": {"stage": 2}, "gradient_clipping": 2.0}', "`gradient_clipping` .* is 2.0, but the recipe"),
        ('{"zero_optimization": {"stage": 2}, "bf16": {"enabled": true}}', "`bf16` .*, but the recipe decides it"),
        (
            '{"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}',
            "`zero_optimization.offload_optimizer` .* is not supported",
        ),
    ],
)
def test_deepspeed_configurations_that_are_refused(config, sentence, tmp_path, monkeypatch):
    path = tmp_path / "ds.json"
    path.write_text(config, encoding="utf-8")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(path))
    with pytest.raises(InputError, match=sentence):
        engines.launched_engine()


@pytest.mark.parametrize(("launched", "said"), [("fp16", "no"), ("bf16", "fp16")])
def test_a_launcher_with_another_precision_is_refused(launched, said, recipe_values, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    recipe = recipe_from_values(recipe_values | {"mixed_precision": said}, "")
    sentence = f"asks for mixed precision {launched}, but the recipe's `mixed_precision` is {said}: say mixed_precision="
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


def test_without_deepspeed_one_sentence_says_so(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="DeepSpeed, which is not installed"):
        engines.launched_engine()


@pytest.mark.parametrize(("processes", "kind"), [(1, "NO"), (2, "FSDP")])
def test_launches_that_are_refused(processes, kind, recipe_values, monkeypatch):
    class Fake:
        num_processes, distributed_type = processes, engines.DistributedType(kind)

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(engines, "Accelerator", lambda **options: Fake())
    sentence = "started 2 processes, but Accelerate sees 1" if kind == "NO" else "asks for FSDP, which this program"
    with pytest.raises(InputError, match=sentence):
        engines.make_accelerator(recipe_from_values(recipe_values, ""), "ddp")
