# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Checkpoints and published files that all runs of the fine-tuning program share."""

import pytest
import torch

from finetuning import finetune
from tests.support.finetuning import ARCHITECTURES, published, write_checkpoint

torch.set_num_threads(1)  # several threads only wait for each other in models this small


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    return tmp_path_factory.mktemp("finetuning")


@pytest.fixture(scope="session")
def checkpoints(base):
    """Architecture -> the folder of a tiny pretrained checkpoint with its tokenizer."""
    return {name: write_checkpoint(base / name, name) for name in ARCHITECTURES}


@pytest.fixture(scope="session")
def checkpoint(checkpoints):
    return checkpoints["luna"]


@pytest.fixture(scope="session")
def sst2(base):
    return published("sst2", "hub", base)


@pytest.fixture
def pictures():
    """For tests that want a run's pictures."""


@pytest.fixture(autouse=True)
def no_pictures(request, monkeypatch):
    """Pictures take half of a short run: it writes empty files instead."""
    if "pictures" not in request.fixturenames:
        for name in ("plot_learning_curve", "plot_confusion_matrix", "plot_regression"):
            monkeypatch.setattr(finetune, name, lambda path, *args, **kwargs: path.touch())
