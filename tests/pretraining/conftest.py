# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""A small prepared dataset of real text, a recipe for a tiny model on it, and a finished run of it."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml
from accelerate.state import AcceleratorState

from pretraining.prepare.run import prepare
from tests.support.preparing import MODULES, docstrings, make_config
from tests.support.pretraining import cut_back, pretrain, write_recipe
from tests.support.ranks import FIXED, engine_variables

VOCAB_SIZE = 600
SEQUENCE_LENGTH = 32


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """Accelerate keeps its state per process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """Docstrings of a few standard modules as a prepared dataset of 32-token rows."""
    folder = tmp_path_factory.mktemp("prepared")
    text = folder / "text"
    text.mkdir()
    for name in MODULES:
        (text / f"{name}.txt").write_text("\n\n".join(docstrings(name)), encoding="utf-8")
    sizes = {"vocab_size": VOCAB_SIZE, "sequence_length": SEQUENCE_LENGTH, "shard_size_mb": 256}
    prepare(make_config(folder / "dataset", text, validation_fraction=0.1, **sizes))
    return folder / "dataset"


@pytest.fixture(scope="session")
def values(prepared):
    """A recipe of a few seconds but for its output folder."""
    return {
        "dataset": str(prepared),
        "model": {
            "model_type": "luna",
            "vocab_size": VOCAB_SIZE,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "projection_length": 8,
            "max_position_embeddings": SEQUENCE_LENGTH + 2,
        },
        "max_steps": 8,
        "global_batch_size": 8,
        "micro_batch_size": 2,
        "learning_rate": 1e-3,
        "warmup_steps": 2,
        "logging_steps": 1,
        "eval_steps": 4,
        "save_steps": 4,
    }


@pytest.fixture(scope="session")
def causal_values(values):
    """The same for a causal model."""
    return values | {"objective": "clm"}


@pytest.fixture
def recipe_values(values, tmp_path):
    """A recipe of a few seconds; tests change single values."""
    return values | {"output_dir": str(tmp_path / "run")}


@pytest.fixture
def recipe_file(recipe_values, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe_values), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def finished(values, tmp_path_factory) -> Path:
    """The folder of a finished run of the recipe, not to be changed."""
    output = tmp_path_factory.mktemp("finished") / "run"
    assert pretrain(write_recipe(values, output)) == 0
    return output


@pytest.fixture(scope="session")
def finished_causal(causal_values, tmp_path_factory) -> Path:
    """The folder of a finished run of a causal model, not to be changed."""
    output = tmp_path_factory.mktemp("finished-causal") / "run"
    assert pretrain(write_recipe(causal_values, output)) == 0
    return output


@pytest.fixture
def stopped(finished, tmp_path) -> Path:
    """A run in the recipe's output folder that has a checkpoint of step 4 and none of step 8."""
    return cut_back(finished, 4, tmp_path / "run")


class Job(subprocess.Popen):
    """A launcher with its ranks."""

    def family(self) -> list[psutil.Process]:
        """List the launcher's descendants and the launcher."""
        launcher = psutil.Process(self.pid)
        return [*launcher.children(recursive=True), launcher]


@pytest.fixture
def torchrun(tmp_path):
    """A function that starts the program on two processes under an engine, by the real launcher."""
    jobs = []

    def started(engine: str, *argv) -> Job:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        command += ["-m", "pretraining.train", *(str(token) for token in argv)]
        path = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}  # DeepSpeed looks for ninja there
        with (tmp_path / "torchrun.log").open("w", encoding="utf-8") as log:
            jobs.append(Job(command, env=os.environ | FIXED | path | engine_variables(engine), stdout=log, stderr=log))
        return jobs[-1]

    yield started
    for job in jobs:
        if job.poll() is None:
            for process in job.family():
                process.kill()
            job.wait()
