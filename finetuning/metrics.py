# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Metrics: scikit-learn, SciPy and seqeval behind one `evaluate.Metric` that needs neither network nor cache.

They equal the Hub's `glue` metrics, with two differences. Regression keeps float64, where the Hub rounds to float32.
And a correlation that is undefined, because the predictions (or the labels) are constant, is reported as 0.0 with a
warning, where SciPy gives NaN: the Trainer would never take a checkpoint whose metric is NaN as the best.
"""

import logging
import warnings

import evaluate
import numpy as np
from datasets import Features, List, Value
from scipy.stats import pearsonr, spearmanr
from seqeval.metrics import f1_score as entity_f1
from seqeval.metrics import precision_score as entity_precision
from seqeval.metrics import recall_score as entity_recall
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, mean_squared_error

from finetuning.tasks import Task
from luna_tools.errors import InputError

logger = logging.getLogger(__name__)

PADDING = -100  # what the Trainer fills up labels and gathered logits with

# Functions of (predictions, references). Both are ids of classes (rows,), or values (rows,) for the correlations and the
# error. The entity metrics take one list of tag names per row, and count an entity where its extent and type are right.
METRICS = {
    "accuracy": lambda predictions, references: accuracy_score(references, predictions),
    "f1": lambda predictions, references: f1_score(references, predictions, pos_label=1, zero_division=0),
    "f1_macro": lambda predictions, references: f1_score(references, predictions, average="macro", zero_division=0),
    "matthews_correlation": lambda predictions, references: matthews_corrcoef(references, predictions),
    "pearson": lambda predictions, references: pearsonr(predictions, references).statistic,
    "spearmanr": lambda predictions, references: spearmanr(predictions, references).statistic,
    "mean_squared_error": lambda predictions, references: mean_squared_error(references, predictions),
    "entity_precision": lambda predictions, references: entity_precision(references, predictions, zero_division=0),
    "entity_recall": lambda predictions, references: entity_recall(references, predictions, zero_division=0),
    "entity_f1": lambda predictions, references: entity_f1(references, predictions, zero_division=0),
}
CORRELATIONS = ("pearson", "spearmanr")
ENTITY_METRICS = ("entity_precision", "entity_recall", "entity_f1")


def metric_names(task: Task) -> tuple[str, ...]:
    """The task's metrics and, where its labels are BIO tags, the entity metrics, in the order in which they are reported."""
    bio = task.kind == "token_classification" and all(name == "O" or name[:2] in ("B-", "I-") for name in task.labels)
    return task.metrics + (ENTITY_METRICS if bio else ())


class TaskMetric(evaluate.Metric):
    """All metrics of a task. A row is a class id, a value, or, for token classification, the list of its tags' ids."""

    def __init__(self, task: Task):
        self.task = task
        super().__init__(config_name=task.name, keep_in_memory=True)

    def _build_data_dir(self) -> str:
        return ""  # evaluate makes a folder in its cache here, but `keep_in_memory` never writes to it

    def _info(self) -> evaluate.MetricInfo:
        row = Value("float64" if self.task.kind == "regression" else "int64")
        row = List(row) if self.task.kind == "token_classification" else row
        features = Features(predictions=row, references=row)
        return evaluate.MetricInfo(description=f"Metrics of {self.task.title}", citation="", features=features)

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        inputs = rows = (predictions, references)
        if self.task.kind == "token_classification":
            rows = [[[self.task.labels[tag] for tag in row] for row in side] for side in inputs]
            inputs = [[tag for row in side for tag in row] for side in rows]
        constant = None
        if self.task.kind == "regression":
            sides = zip(("predictions", "labels"), inputs, strict=True)
            constant = next((which for which, side in sides if min(side) == max(side)), None)
        if constant:
            logger.warning(
                f"All {len(predictions)} {constant} are the same, so no correlation is defined: it is reported as 0.0."
            )
        values = {}
        for name in metric_names(self.task):
            undefined = name in CORRELATIONS and constant
            values[name] = 0.0 if undefined else float(METRICS[name](*(rows if name in ENTITY_METRICS else inputs)))
        return values


def decide(task: Task, logits: np.ndarray) -> np.ndarray:
    """What a model's scores say: ids of classes, options or tags, (rows,) or (rows, tokens); for regression values (rows,).

    Args:
        logits: (rows, classes), (rows, options), (rows, tokens, tags), or (rows,) or (rows, 1) for regression. Scores of
            exactly -100 are missing options, which the Trainer's gathering fills up rows with: they are never chosen.

    Raises:
        InputError: a score is NaN or infinite.
    """
    finite = np.isfinite(logits)
    if not finite.all():
        broken = sum(not row.all() for row in finite)
        raise InputError(
            f"The model's scores are NaN or infinite in {broken} of {len(logits)} rows, so the training has diverged: "
            "lower learning_rate."
        )
    if task.kind == "regression":
        return logits.reshape(len(logits)).astype(np.float64)
    if task.kind == "multiple_choice":
        logits = np.where(logits == PADDING, -np.inf, logits)
    return logits.argmax(axis=-1)


def compute_metrics(task: Task, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The metrics of one split, by name.

    Args:
        logits: as `decide` takes them.
        labels: (rows,), or (rows, tokens) for token classification, where -100 marks what does not count.

    Raises:
        InputError: a score is NaN or infinite, or no row has a label.
    """
    predictions = decide(task, logits)
    if task.kind == "token_classification":
        kept = labels != PADDING
        predictions, labels = ([row[keep] for row, keep in zip(side, kept, strict=True)] for side in (predictions, labels))
    if not sum(map(np.size, labels)):
        raise InputError("There is nothing to evaluate, because no row of the split has a label: give labelled data.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on classes that don't occur: the values are still defined
        return TaskMetric(task).compute(predictions=predictions, references=labels)
