# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Every task's metrics against scikit-learn and SciPy, called directly on the same predictions."""

import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, mean_squared_error

from finetuning.metrics import METRICS, compute_metrics, decide, metric_names
from finetuning.tasks import TASKS, custom_task
from luna_tools.errors import InputError

REGRESSION = custom_task("regression", ("text",))
TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
TAGGING = custom_task("token_classification", labels=TAGS)
ALL_TASKS = [
    *TASKS.values(),
    custom_task("classification", ("text",), ("a", "b", "c")),
    REGRESSION,
    custom_task("multiple_choice"),
    replace(TAGGING, labels=("noun", "verb", "other")),
]
DIRECT = {
    "accuracy": accuracy_score,
    "f1": f1_score,
    "f1_macro": lambda labels, predictions: f1_score(labels, predictions, average="macro"),
    "matthews_correlation": matthews_corrcoef,
    "pearson": lambda labels, predictions: pearsonr(labels, predictions)[0],
    "spearmanr": lambda labels, predictions: spearmanr(labels, predictions)[0],
    "mean_squared_error": mean_squared_error,
}


def _classes(task):
    return len(task.labels) if task.labels else 5


def _check(task, logits, labels, predictions, references):
    metrics = compute_metrics(task, logits, labels)
    assert tuple(metrics) == task.metrics
    for name, value in metrics.items():
        assert type(value) is float
        assert value == pytest.approx(DIRECT[name](references, predictions), rel=0, abs=1e-9), name


@pytest.mark.parametrize("task", ALL_TASKS, ids=lambda task: f"{task.name}-{task.kind}")
@pytest.mark.parametrize("rows", [2, 40, 1000])
def test_metrics_are_those_of_scikit_learn_and_scipy(task, rows):
    random = np.random.default_rng(rows)
    if task.kind == "regression":
        logits, labels = random.normal(2.5, 2, (rows, 1)).astype(np.float32), random.uniform(0, 5, rows)
        _check(task, logits, labels, logits[:, 0].astype(np.float64), labels)
    elif task.kind == "token_classification":
        logits = random.normal(size=(rows, 7, 3)).astype(np.float32)
        labels = random.choice([-100, 0, 1, 2], (rows, 7))
        _check(task, logits, labels, logits.argmax(-1)[labels != -100], labels[labels != -100])
    else:
        logits = random.normal(size=(rows, _classes(task))).astype(np.float32)
        labels = random.integers(0, _classes(task), rows)
        _check(task, logits, labels, logits.argmax(-1), labels)


@pytest.mark.filterwarnings("ignore::UserWarning")  # scikit-learn on classes that don't occur
@given(st.data())
@settings(deadline=None, max_examples=60)
def test_metrics_of_any_classes(data):
    task = data.draw(st.sampled_from([task for task in ALL_TASKS if task.kind in ("classification", "multiple_choice")]))
    rows = data.draw(st.integers(1, 12))
    ids = arrays(np.int64, rows, elements=st.integers(0, _classes(task) - 1))
    predictions, labels = data.draw(ids), data.draw(ids)
    _check(task, np.eye(_classes(task))[predictions], labels, predictions, labels)


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_metrics_of_any_values(data):
    rows = data.draw(st.integers(2, 12))
    values = arrays(np.float64, rows, elements=st.integers(-50, 50).map(lambda value: value / 10))
    predictions, labels = data.draw(values), data.draw(values)
    if len(set(predictions)) > 1 and len(set(labels)) > 1:
        _check(REGRESSION, predictions, labels, predictions, labels)


@pytest.mark.parametrize("shape", [(6,), (6, 1)])
def test_shapes_of_regression_scores(shape):
    values = np.array([0.5, 3, 1, 4, 2, 5], np.float32)
    decided = decide(TASKS["stsb"], values.reshape(shape))
    assert decided.dtype == np.float64 and decided.tolist() == values.tolist()


@pytest.mark.parametrize(("predictions", "labels"), [([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [4, 4, 4]), ([1], [2])])
def test_correlations_of_constants_are_zero(predictions, labels, caplog):
    """A NaN would never be the best checkpoint's metric, nor would the Trainer say why."""
    metrics = compute_metrics(REGRESSION, np.array(predictions, np.float32), np.array(labels, np.float64))
    error = mean_squared_error(labels, predictions)
    assert metrics == {"pearson": 0.0, "spearmanr": 0.0, "mean_squared_error": error}
    [record] = caplog.records
    which = "labels" if len(predictions) == 3 and len(set(labels)) == 1 else "predictions"
    assert record.levelno == logging.WARNING
    assert record.message.startswith(f"All {len(predictions)} {which} are the same")


def test_classes_that_do_not_occur(recwarn):
    logits = np.eye(2)[[0, 0, 0]]
    assert compute_metrics(TASKS["cola"], logits, np.array([1, 0, 1])) == {"matthews_correlation": 0.0}
    assert compute_metrics(TASKS["mrpc"], logits, np.array([0, 0, 0])) == {"accuracy": 1.0, "f1": 0.0}
    assert not [warning for warning in recwarn if issubclass(warning.category, UserWarning)]


def test_a_missing_option_is_never_chosen():
    logits = np.array([[-150.0, -120.0, -100.0], [1.0, 2.0, -100.0], [-100.0, -300.0, -200.0]])
    assert decide(TASKS["race"], logits).tolist() == [1, 1, 2]
    assert decide(TASKS["mnli"], logits).tolist() == [2, 1, 0]


def test_entities():
    """The two rows hold four entities: one found, one of the wrong type, one cut short, one missed."""
    labels = np.array([[-100, 1, 2, 0, 3, -100], [-100, 3, 4, 0, 1, -100]])
    predictions = np.array([[0, 1, 2, 0, 1, 0], [0, 3, 0, 0, 0, 0]])
    metrics = compute_metrics(TAGGING, np.eye(5)[predictions], labels)
    assert tuple(metrics) == metric_names(TAGGING)
    assert metrics["accuracy"] == pytest.approx(5 / 8)
    assert metrics["entity_precision"] == pytest.approx(1 / 3)
    assert metrics["entity_recall"] == pytest.approx(1 / 4)
    assert metrics["entity_f1"] == pytest.approx(2 / 7)


def test_rows_without_a_labelled_token():
    labels = np.array([[-100, -100], [0, 1]])
    assert compute_metrics(TAGGING, np.eye(5)[[[1, 1], [0, 1]]], labels)["accuracy"] == 1.0


def test_names():
    known = set(METRICS)
    for task in ALL_TASKS:
        assert known.issuperset(task.metrics) and task.best_metric in task.metrics
    assert metric_names(TAGGING) == ("f1_macro", "accuracy", "entity_precision", "entity_recall", "entity_f1")
    assert metric_names(replace(TAGGING, labels=("O", "B-X", "verb"))) == ("f1_macro", "accuracy")
    assert metric_names(TASKS["mrpc"]) == ("accuracy", "f1")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["cola", "race"])
def test_scores_that_are_no_numbers(name, value):
    logits = np.zeros((3, 2), np.float32)
    logits[1] = value
    with pytest.raises(InputError, match=r"NaN or infinite in 1 of 3 rows, .* lower learning_rate\.$"):
        compute_metrics(TASKS[name], logits, np.zeros(3, int))


@pytest.mark.parametrize(
    ("task", "logits", "labels"),
    [(TASKS["sst2"], np.zeros((0, 2)), np.zeros(0, int)), (TAGGING, np.zeros((1, 2, 5)), np.full((1, 2), -100))],
)
def test_no_labels(task, logits, labels):
    with pytest.raises(InputError, match=r"^There is nothing to evaluate.*give labelled data\.$"):
        compute_metrics(task, logits, labels)


def test_no_network_and_no_cache(tmp_path):
    """Two processes at once, without a home that could be written to, leave nothing behind."""
    home = tmp_path / "file"
    home.write_text("no folder can be made in here")
    code = (
        "import numpy, finetuning.metrics as metrics, finetuning.tasks as tasks\n"
        "labels = numpy.arange(2_000) % 2\n"
        "print(metrics.compute_metrics(tasks.TASKS['mrpc'], numpy.eye(2)[labels], labels))"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HOME": str(home), "HF_HOME": str(home / "hf")}
    environment |= {"XDG_CACHE_HOME": str(home / "cache"), "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", code]
    processes = [
        subprocess.Popen(command, env=environment, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    for process in processes:
        out, error = process.communicate()
        assert out == "{'accuracy': 1.0, 'f1': 1.0}\n", error
    assert os.listdir(tmp_path) == ["file"]
