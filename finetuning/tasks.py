# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The tasks: where each one's data lies, its columns, labels, metrics, recipes and submission files."""

from dataclasses import dataclass
from typing import Literal

TaskKind = Literal["classification", "regression", "multiple_choice", "token_classification"]


@dataclass(frozen=True)
class Task:
    """One task. Splits, columns and labels are named as on the Hub, whatever the files on disk call them."""

    name: str
    kind: TaskKind
    metrics: tuple[str, ...]  # names in `metrics.METRICS`, in the order in which they are reported
    best_metric: str  # the one of them that picks the best checkpoint
    recipes: tuple[str, ...]  # files below `recipes/`; the folder is the recipe's name
    grid: str  # file below `grids/`: the sweep
    title: str = ""  # as papers write it
    hub_dataset: str | None = None
    hub_config: str | None = None
    folder: str | None = None  # the task's folder in the original download
    text_columns: tuple[str, ...] = ()  # one text or a pair of texts
    tsv_columns: tuple[str, ...] = ()  # the same and, last, the label, in GLUE's own TSV files
    labels: tuple[str, ...] | None = None  # names of the classes, in the order of their ids
    value_range: tuple[float, float] | None = None  # of a regression's labels
    validation_splits: tuple[str, ...] = ("validation",)  # the first one picks the best checkpoint
    test_splits: tuple[str, ...] = ("test",)
    submission_files: tuple[tuple[str, str], ...] = ()  # (test split, file name), on GLUE's server the names it knows
    submission_rows: tuple[int, ...] = ()  # how many rows GLUE's server wants of each submission file
    submits_label_names: bool = False  # predictions as names of classes, not as ids

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that a loaded split has besides `index` (the row's id, a string or an int) and `label`."""
        if self.kind == "multiple_choice":
            return ("passage", "question", "options")
        if self.kind == "token_classification":
            return ("words",)
        return ("text", "text_pair") if len(self.text_columns) == 2 else ("text",)


def _glue(name: str, title: str, text_columns: str, labels: str | None, metrics: str, **fields) -> Task:
    defaults = {
        "recipes": ("table9/glue.yaml",),
        "tsv_columns": (*text_columns.split(), "label"),
        "submission_files": (("test", f"{title}.tsv"),),
    }
    return Task(
        name=name,
        title=title,
        kind="classification" if labels else "regression",
        grid="glue.yaml",
        hub_dataset="nyu-mll/glue",
        hub_config=name,
        folder=title,
        text_columns=tuple(text_columns.split()),
        labels=tuple(labels.split()) if labels else None,
        metrics=tuple(metrics.split()),
        best_metric=metrics.split()[0],
        **defaults | fields,
    )


def _race(name: str, title: str, hub_config: str) -> Task:
    return Task(
        name=name,
        title=title,
        kind="multiple_choice",
        recipes=("table9/race.yaml", "official/race.yaml"),
        grid="qa.yaml",
        hub_dataset="ehovy/race",
        hub_config=hub_config,
        folder="RACE",
        metrics=("accuracy",),
        best_metric="accuracy",
        submission_files=(("test", f"{title}.tsv"),),
    )


_TASKS = (
    _glue("cola", "CoLA", "sentence", "unacceptable acceptable", "matthews_correlation", submission_rows=(1063,)),
    _glue(
        "sst2",
        "SST-2",
        "sentence",
        "negative positive",
        "accuracy",
        recipes=("table9/glue.yaml", "official/sst2.yaml"),
        submission_rows=(1821,),
    ),
    _glue(
        "mrpc",
        "MRPC",
        "sentence1 sentence2",
        "not_equivalent equivalent",
        "accuracy f1",
        tsv_columns=("#1 String", "#2 String", "Quality"),
        submission_rows=(1725,),
    ),
    _glue(
        "stsb",
        "STS-B",
        "sentence1 sentence2",
        None,
        "pearson spearmanr",
        tsv_columns=("sentence1", "sentence2", "score"),
        value_range=(0.0, 5.0),
        submission_rows=(1379,),
    ),
    _glue(
        "qqp",
        "QQP",
        "question1 question2",
        "not_duplicate duplicate",
        "accuracy f1",
        recipes=("table9/glue.yaml", "official/qqp.yaml"),
        tsv_columns=("question1", "question2", "is_duplicate"),
        submission_rows=(390_965,),
    ),
    _glue(
        "mnli",
        "MNLI",
        "premise hypothesis",
        "entailment neutral contradiction",
        "accuracy",
        tsv_columns=("sentence1", "sentence2", "gold_label"),
        validation_splits=("validation_matched", "validation_mismatched"),
        test_splits=("test_matched", "test_mismatched", "diagnostic"),
        submission_files=(
            ("test_matched", "MNLI-m.tsv"),
            ("test_mismatched", "MNLI-mm.tsv"),
            ("diagnostic", "AX.tsv"),
        ),
        submission_rows=(9796, 9847, 1104),
        submits_label_names=True,
    ),
    _glue(
        "qnli",
        "QNLI",
        "question sentence",
        "entailment not_entailment",
        "accuracy",
        recipes=("table9/glue.yaml", "official/qnli.yaml"),
        submission_rows=(5463,),
        submits_label_names=True,
    ),
    _glue(
        "rte",
        "RTE",
        "sentence1 sentence2",
        "entailment not_entailment",
        "accuracy",
        submission_rows=(3000,),
        submits_label_names=True,
    ),
    _glue("wnli", "WNLI", "sentence1 sentence2", "not_entailment entailment", "accuracy", submission_rows=(146,)),
    _race("race", "RACE", "all"),
    _race("race-middle", "RACE-M", "middle"),
    _race("race-high", "RACE-H", "high"),
    Task(
        name="csqa",
        title="CSQA",
        kind="multiple_choice",
        recipes=("table9/csqa.yaml", "official/csqa.yaml"),
        grid="qa.yaml",
        hub_dataset="tau/commonsense_qa",
        folder="CSQA",
        metrics=("accuracy",),
        best_metric="accuracy",
        submission_files=(("test", "test_predictions.csv"),),
    ),
)
TASKS = {task.name: task for task in _TASKS}
CUSTOM_METRICS = {
    "classification": ("accuracy", "f1_macro"),
    "regression": ("pearson", "spearmanr", "mean_squared_error"),
    "multiple_choice": ("accuracy",),
    "token_classification": ("f1_macro", "accuracy"),
}
CUSTOM_RECIPES = ("table9/custom.yaml",)


def custom_task(kind: TaskKind, text_columns: tuple[str, ...] = (), labels: tuple[str, ...] | None = None) -> Task:
    """A task over the user's own files. Its label names are known once the files, or the checkpoint, are read."""
    metrics = CUSTOM_METRICS[kind]
    return Task(
        name="custom",
        title="custom",
        kind=kind,
        recipes=CUSTOM_RECIPES,
        grid="glue.yaml",
        metrics=metrics,
        best_metric=metrics[0],
        text_columns=text_columns,
        labels=labels,
    )
