# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Pretraining runs of the reports: a small dataset and recipe, `torchrun` under each engine, and how two runs differ."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import yaml
from safetensors.torch import load_file

from pretraining import checkpoint as ckpt
from pretraining.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[2]

VOCAB_SIZE, SEQUENCE_LENGTH = 600, 32
# Sizes that no number of processes divides, dropout, clipping that has something to do, an odd number of validation rows.
VALUES = {
    "model": {
        "model_type": "luna",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 36,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 50,
        "projection_length": 7,
        "max_position_embeddings": SEQUENCE_LENGTH + 2,
    },
    "max_steps": 6,
    "global_batch_size": 8,
    "micro_batch_size": 1,
    "learning_rate": 1e-2,
    "max_grad_norm": 0.5,
    "warmup_steps": 1,
    "logging_steps": 1,
    "eval_steps": 3,
    "eval_micro_batch_size": 4,
    "max_eval_sequences": 11,
    "save_steps": 3,
}


def prepare(output: Path) -> None:
    """Make the dataset: the docstrings of Python's standard library."""
    sizes = ["--vocab_size", str(VOCAB_SIZE), "--sequence_length", str(SEQUENCE_LENGTH), "--validation_fraction", "0.05"]
    command = [sys.executable, "-m", "pretraining.prepare", "--output_dir", str(output), "--sources", "python-docs", *sizes]
    subprocess.run(command, env=environment("ddp"), stdout=subprocess.DEVNULL, check=True)


def environment(engine: str) -> dict[str, str]:
    """Return the environment that `accelerate launch` sets for the processes, on CPUs."""
    own = {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    own |= {"DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
    if engine == "fsdp2":
        own |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    elif engine.startswith("zero"):
        own |= {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": f"{engine}.json"}
    return os.environ | own


def command(values: dict, output: Path, processes: int) -> list[str]:
    """Write a recipe beside the folder of its run. Returns the command that runs it."""
    recipe = output.parent / f"{output.name}.yaml"
    recipe.write_text(yaml.safe_dump(values | {"output_dir": str(output)}), encoding="utf-8")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return [*torchrun, "--monitor-interval=0.1", "-m", "pretraining.train", str(recipe)]


def launch(engine: str, values: dict, output: Path, processes: int = 2) -> Path:
    """Run the program under an engine. Returns `output`, the run's folder.

    Raises:
        RuntimeError: it failed.
    """
    started = command(values, output, processes)
    with subprocess.Popen(
        started, env=environment(engine), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            _, err = process.communicate()
        except BaseException:  # the ranks are sessions of their own
            for member in [*psutil.Process(process.pid).children(recursive=True), process]:
                member.kill()
            raise
    if process.returncode != 0:
        raise RuntimeError(f"{engine} on {processes} processes failed:\n{err[-3000:]}")
    return output


def curve(output: Path) -> list[float]:
    """Read losses, gradient norms and evaluations in their order."""
    rows = read_metrics(output / "metrics.jsonl")
    return [row[name] for row in rows for name in ("loss", "grad_norm", "eval_loss") if name in row]


def curve_difference(a: Path, b: Path) -> float:
    """Return the largest difference of two runs' curves."""
    return max(abs(x - y) for x, y in zip(curve(a), curve(b), strict=True))


def weight_difference(a: Path, b: Path) -> float:
    """Return the largest difference of two runs' final weights."""
    a, b = (load_file(run / "model" / "model.safetensors") for run in (a, b))
    if a.keys() != b.keys():
        raise RuntimeError("the runs' weights have other names")
    return max((a[name] - b[name]).abs().max().item() for name in a)


def cut_back(output: Path, step: int, copy: Path) -> Path:
    """Copy a run as it was after `step`."""
    shutil.copytree(output, copy)
    (copy / "results.json").unlink()
    for checkpoint in ckpt.checkpoints(copy / "checkpoints"):
        if ckpt.checkpoint_step(checkpoint) > step:
            shutil.rmtree(checkpoint)
    return copy
