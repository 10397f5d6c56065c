# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Checkpoints, published files and finished runs that the tests of the fine-tuning program share."""

import gc
from functools import cache

import pytest
import torch

from finetuning import finetune, plots
from tests.support.finetuning import ARCHITECTURES, FAST, published, run_task, write_checkpoint

torch.set_num_threads(1)  # several threads only wait for each other in models this small


@pytest.fixture(scope="session", autouse=True)
def imports_are_no_garbage():
    """The Trainer collects garbage when it starts, which takes half of a short run if it goes through all libraries."""
    gc.collect()
    gc.freeze()


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
def values(checkpoint, sst2, tmp_path):
    """The options of a run of SST-2: 32 rows in batches of 8, so 4 steps an epoch."""
    return FAST | {"model_name_or_path": checkpoint, "data_dir": sst2, "output_dir": tmp_path / "run"}


@pytest.fixture(scope="session")
def finished(checkpoint, base):
    """Task -> the folder of a finished run, which no test changes; made once."""

    @cache
    def get(task_name):
        folder, data_dir = base / f"finished-{task_name}" / "run", published(task_name, "hub", base)
        values = {"data_dir": data_dir, "output_dir": folder, "classifier_pooling": "packed_mean"}
        run_task(task_name, model_name_or_path=checkpoint, **values)
        return folder

    return get


PICTURES = ("plot_learning_curve", "plot_confusion_matrix", "plot_regression")


@pytest.fixture(scope="module", autouse=True)
def no_pictures():
    """Pictures take half of a short run: it writes empty files instead."""
    with pytest.MonkeyPatch.context() as patch:
        for name in PICTURES:
            patch.setattr(finetune, name, lambda path, *args, **kwargs: path.touch())
        yield


@pytest.fixture
def pictures(no_pictures, monkeypatch):
    """For tests that want a run's pictures."""
    for name in PICTURES:
        monkeypatch.setattr(finetune, name, getattr(plots, name))
