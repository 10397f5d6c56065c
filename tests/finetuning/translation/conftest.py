# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Prepared pairs and a finished run that the tests of translation share."""

import pytest

from finetuning import plots
from tests.support.translation import FAST, LUNA, prepare, run_translation, write_pair_files


@pytest.fixture(scope="session")
def files(base):
    """The options that name line files."""
    return write_pair_files(base / "lines")


@pytest.fixture(scope="session")
def dataset(files, base):
    assert prepare(base / "pairs", **files) == 0
    return base / "pairs"


@pytest.fixture
def options(dataset, tmp_path):
    """The options of a run of a tiny Luna: 8 updates."""
    return FAST | {"dataset": str(dataset), "output_dir": str(tmp_path / "run"), "model": LUNA}


@pytest.fixture(scope="module", autouse=True)
def no_curves():
    """A picture takes half of a short run: it writes an empty file instead."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "plot_learning_curve", lambda path, *args, **kwargs: path.touch())
        yield


@pytest.fixture(scope="session")
def finished(dataset, base):
    """The folder of a finished run, which no test changes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "plot_learning_curve", lambda path, *args, **kwargs: path.touch())
        folder = base / "translation" / "run"
        values = FAST | {"dataset": str(dataset), "output_dir": str(folder), "model": LUNA}
        assert run_translation(**values) == 0
    return folder
