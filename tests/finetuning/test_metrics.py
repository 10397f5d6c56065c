# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Every metric against its formula on counts, written out here, and against published and hand-counted values."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from finetuning.metrics import METRICS, compute_metrics, decide, metric_names
from finetuning.tasks import TASKS, custom_task
from luna_tools.errors import InputError

CLASSES = custom_task("classification", ("text",), ("a", "b", "c"))
REGRESSION = custom_task("regression", ("text",))
TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
TAGGING = custom_task("token_classification", labels=TAGS)
ALL_TASKS = [*TASKS.values(), CLASSES, REGRESSION, custom_task("multiple_choice")]
ALL_TASKS += [replace(TAGGING, labels=("noun", "verb", "other"))]


# ---- The oracle: the formulas, on arrays of predictions and labels ----


def _f1(p, y, positive=1):
    hits = np.sum((p == positive) & (y == positive))
    return 2 * hits / max(np.sum(p == positive) + np.sum(y == positive), 1)


def _correlation(p, y):
    p, y = p - np.mean(p), y - np.mean(y)
    return np.sum(p * y) / (np.sqrt(np.sum(p * p) * np.sum(y * y)) or 1.0)


def _ranks(values):
    """From 1; equal values share the mean of their ranks."""
    return np.array([np.sum(values < value) + (np.sum(values == value) + 1) / 2 for value in values])


ORACLE = {
    "accuracy": lambda p, y: np.mean(p == y),
    "f1": _f1,
    "f1_macro": lambda p, y: np.mean([_f1(p, y, positive) for positive in {*p, *y}]),
    "matthews_correlation": _correlation,  # which it is, of the two classes 0 and 1
    "pearson": _correlation,
    "spearmanr": lambda p, y: _correlation(_ranks(p), _ranks(y)),
    "mean_squared_error": lambda p, y: np.mean((p - y) ** 2),
}


@given(st.data())
@settings(deadline=None, max_examples=100)
def test_metrics_follow_their_formulas(data):
    """Few rows, so that ties and classes that do not occur are frequent."""
    task, rows = data.draw(st.sampled_from(ALL_TASKS)), data.draw(st.integers(2, 12))
    classes = len(task.labels) if task.labels else 5
    values = st.integers(0, classes - 1) if task.kind != "regression" else st.integers(-20, 20).map(lambda value: value / 4)
    predictions, labels = (np.array(data.draw(st.lists(values, min_size=rows, max_size=rows))) for _ in range(2))
    kept, shape = np.full(rows, True), (rows,)
    if task.kind == "regression":
        assume(np.ptp(predictions) and np.ptp(labels))
        logits = predictions.astype(np.float32).reshape(data.draw(st.sampled_from([(rows,), (rows, 1)])))
    else:
        if task.kind == "token_classification":
            kept = np.array(data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows).filter(any)))
            shape = (2, rows // 2) if rows % 2 == 0 else (1, rows)
        logits = np.eye(classes)[predictions].reshape(*shape, classes)
    metrics = compute_metrics(task, logits, np.where(kept, labels, -100).reshape(shape))
    assert tuple(metrics) == task.metrics
    for name, value in metrics.items():
        assert type(value) is float
        assert value == pytest.approx(ORACLE[name](predictions[kept], labels[kept]), rel=0, abs=1e-9), name


# ---- Published values, and cases counted by hand ----

# Cats (1) and dogs (0) of Wikipedia's article on the confusion matrix: 6 hits, 2 missed, 1 wrong, 3 right dogs.
CATS = [1] * 8 + [0] * 4, [1] * 6 + [0] * 2 + [1] + [0] * 3
ANSCOMBE_X = [10, 8, 13, 9, 11, 14, 6, 4, 12, 7, 5]
ANSCOMBE_Y = [8.04, 6.95, 7.58, 8.81, 8.33, 9.96, 7.24, 4.26, 10.84, 4.82, 5.68]
IQ_AND_HOURS = [106, 100, 86, 101, 99, 103, 97, 113, 112, 110], [7, 27, 2, 50, 28, 29, 20, 12, 6, 17]


@pytest.mark.parametrize(
    ("name", "labels", "predictions", "expected"),
    [
        ("accuracy", *CATS, 9 / 12),
        ("f1", *CATS, 12 / 15),
        ("matthews_correlation", *CATS, 16 / math.sqrt(7 * 8 * 4 * 5)),
        ("f1_macro", *CATS, (12 / 15 + 6 / 9) / 2),
        ("f1_macro", [0, 0, 1, 2], [0, 1, 1, 1], (2 / 3 + 1 / 2 + 0) / 3),
        ("pearson", ANSCOMBE_X, ANSCOMBE_Y, 0.81642051634484),
        ("spearmanr", *IQ_AND_HOURS, -29 / 165),
        ("spearmanr", [1, 2, 2, 3], [1, 2, 3, 4], 4.5 / math.sqrt(4.5 * 5)),
        ("mean_squared_error", [1, 2, 3], [1, 4, 0], 13 / 3),
    ],
)
def test_known_values(name, labels, predictions, expected):
    for function in (METRICS[name], ORACLE[name]):  # the oracle needs a proof as well
        assert function(np.array(predictions), np.array(labels)) == pytest.approx(expected, abs=1e-12)


O, BP, IP, BL, IL = range(5)
ENTITIES = [  # labels and predictions by row; tags that are right of all; entities that are right, predicted, there
    ([[BP, IP, O, BL], [BL, IL, O, BP]], [[BP, IP, O, BP], [BL, O, O, O]], (5, 8), (1, 3, 4)),
    ([[O, O, O, BL, IL, IL, O], [BP, IP, O]], [[O, O, BL, IL, IL, IL, O], [BP, IP, O]], (8, 10), (1, 2, 2)),  # seqeval's own
    ([[BP, BP, O]], [[BP, IP, O]], (2, 3), (0, 1, 2)),  # two neighbours are not one of two words
    ([[O, BP, IP]], [[O, IP, IP]], (2, 3), (1, 1, 1)),  # an entity may begin without its B
    ([[BP, IP, O]], [[BP, IL, O]], (2, 3), (0, 2, 1)),  # another type begins another entity
    ([[O, O], []], [[O, O], []], (2, 2), (0, 0, 0)),
]


@pytest.mark.parametrize(("labels", "predictions", "tags", "entities"), ENTITIES)
def test_entities(labels, predictions, tags, entities):
    length = max(map(len, labels)) + 2  # with the special tokens at both ends
    padded = np.array([[-100, *row, *[-100] * (length - 1 - len(row))] for row in labels])
    decided = np.array([[BP, *row, *[IP] * (length - 1 - len(row))] for row in predictions])
    metrics = compute_metrics(TAGGING, np.eye(5)[decided], padded)
    right, predicted, there = entities
    counts = {"accuracy": tags, "entity_precision": (right, predicted), "entity_recall": (right, there)}
    counts |= {"entity_f1": (2 * right, predicted + there)}
    expected = {name: part / max(whole, 1) for name, (part, whole) in counts.items()}
    assert tuple(metrics) == metric_names(TAGGING) and metrics == pytest.approx(metrics | expected)


# ---- What is odd ----


@pytest.mark.parametrize(
    ("predictions", "labels", "which", "error"),
    [([1, 1, 1], [1, 2, 3], "predictions", 5 / 3), ([1, 2, 3], [4, 4, 4], "labels", 14 / 3), ([1], [2], "predictions", 1.0)],
)
def test_correlations_of_constants_are_zero(predictions, labels, which, error, caplog):
    """A NaN would never be the best checkpoint's metric, nor would the Trainer say why."""
    metrics = compute_metrics(REGRESSION, np.array(predictions, np.float32), np.array(labels, np.float64))
    assert metrics == {"pearson": 0.0, "spearmanr": 0.0, "mean_squared_error": pytest.approx(error)}
    [message] = caplog.messages
    assert message.startswith(f"All {len(predictions)} {which} are the same")


@pytest.mark.filterwarnings("error::UserWarning")
def test_classes_that_do_not_occur():
    logits = np.eye(2)[[0, 0, 0]]
    for labels in ([1, 0, 1], [0, 0, 0]):
        assert compute_metrics(TASKS["cola"], logits, np.array(labels)) == {"matthews_correlation": 0.0}
    assert compute_metrics(TASKS["mrpc"], logits, np.array([0, 0, 0])) == {"accuracy": 1.0, "f1": 0.0}


def test_a_missing_option_is_never_chosen():
    logits = np.array([[-150.0, -120.0, -100.0], [1.0, 2.0, -100.0], [-100.0, -300.0, -200.0]])
    assert decide(TASKS["race"], logits).tolist() == [1, 1, 2]
    assert decide(TASKS["mnli"], logits).tolist() == [2, 1, 0]


def test_names():
    for task in ALL_TASKS:
        assert METRICS.keys() >= {*task.metrics} and task.best_metric in task.metrics
    assert metric_names(TAGGING) == ("f1_macro", "accuracy", "entity_precision", "entity_recall", "entity_f1")
    assert metric_names(replace(TAGGING, labels=("O", "B-X", "verb"))) == ("f1_macro", "accuracy")
    assert metric_names(TASKS["mrpc"]) == ("accuracy", "f1")


BROKEN, NOTHING = (
    r"NaN or infinite in 1 of 3 rows, .* lower learning_rate\.$",
    "^There is nothing to evaluate.*give labelled",
)
WRONG = [(TASKS["cola"], np.array([[0, 1], [value] * 2, [0, 1]]), [0, 1, 0], BROKEN) for value in (np.nan, np.inf, -np.inf)]
WRONG += [(TASKS["race"], np.array([[0, 1], [np.nan, 0], [0, 1]]), [0, 1, 0], BROKEN)]
WRONG += [(TASKS["sst2"], np.zeros((0, 2)), [], NOTHING), (TAGGING, np.zeros((1, 2, 5)), [[-100, -100]], NOTHING)]


@pytest.mark.parametrize(("task", "logits", "labels", "sentence"), WRONG)
def test_wrong_scores_and_labels(task, logits, labels, sentence):
    with pytest.raises(InputError, match=sentence):
        compute_metrics(task, logits, np.array(labels, int))
