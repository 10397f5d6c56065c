# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""A small prepared dataset of real text, and a recipe for a tiny model on it."""

import inspect
import sys

import pytest
import yaml
from accelerate.state import AcceleratorState

from pretraining.prepare.run import PrepareConfig, prepare

VOCAB_SIZE = 600
SEQUENCE_LENGTH = 32
TEXT_MODULES = ("argparse", "collections", "datetime", "decimal", "functools", "inspect", "logging", "pathlib", "random")


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """Each run in this process is a launch of its own; Accelerate keeps its state per process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """Docstrings of a few standard modules as a prepared dataset of 32-token rows."""
    folder = tmp_path_factory.mktemp("prepared")
    text = folder / "text"
    text.mkdir()
    for name in TEXT_MODULES:
        __import__(name)
        documents = [inspect.getdoc(item) for _, item in sorted(vars(sys.modules[name]).items())]
        (text / f"{name}.txt").write_text("\n\n".join(d for d in documents if d), encoding="utf-8")
    prepare(
        PrepareConfig(
            output_dir=str(folder / "dataset"),
            sources=[str(text)],
            document_separator="blank_line",
            vocab_size=VOCAB_SIZE,
            sequence_length=SEQUENCE_LENGTH,
            validation_fraction=0.1,
            num_proc=1,
        )
    )
    return folder / "dataset"


@pytest.fixture
def recipe_values(prepared, tmp_path):
    """A recipe of a few seconds; tests change single values."""
    return {
        "dataset": str(prepared),
        "output_dir": str(tmp_path / "run"),
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


@pytest.fixture
def recipe_file(recipe_values, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe_values), encoding="utf-8")
    return path
