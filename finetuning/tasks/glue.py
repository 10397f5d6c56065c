# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""GLUE: its nine tasks and the diagnostic set, the readers of its files, and submissions for its server."""

import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finetuning.tasks.published import PublishedTask
from finetuning.tasks.reading import Row, need_columns, table_lines
from finetuning.tasks.task import TaskData
from luna_tools.errors import InputError

if TYPE_CHECKING:
    import numpy as np

logger = logging.getLogger(__name__)

COLA_HEADER = ["source", "label", "mark", "sentence"]  # which its training and validation files lack
DIAGNOSTIC_FILES = ("diagnostic/diagnostic.tsv", "diagnostic.tsv", "AX/AX.tsv", "AX/diagnostic.tsv", "AX.tsv")


@dataclass(frozen=True)
class GlueTask(PublishedTask):
    """A task of GLUE. On its server, submission files have the names that the server knows."""

    tsv_columns: tuple[str, ...] = ()  # the text columns and, last, the label, in GLUE's own TSV files
    submission_rows: tuple[int, ...] = ()  # how many rows the server wants of each submission file
    submits_label_names: bool = False  # predictions as names of classes, not as ids

    @property
    def hub_columns(self) -> tuple[str, ...]:
        return (*self.text_columns, "label", "idx")

    def hub_rows(self, rows: Iterable[Row]) -> Iterator[Row]:
        for place, raw in rows:
            texts = dict(zip(self.columns, (raw[name] for name in self.text_columns), strict=True))
            yield Row(place, {"index": raw["idx"], **texts, "label": raw["label"]})

    def hub_split(self, split: str) -> tuple[str | None, str]:
        return ("ax", "test") if split == "diagnostic" else super().hub_split(split)

    def original_names(self, split: str) -> tuple[str, ...]:
        return DIAGNOSTIC_FILES if split == "diagnostic" else (f"{split.replace('validation', 'dev')}.tsv",)

    def original_rows(self, split: str, path: Path) -> Iterator[Row]:
        """Rows of one of GLUE's own TSV files.

        As on the Hub, `index` counts all rows and the truncated ones are left out. Test rows have the `index` of the file.
        """
        is_test = split in self.test_splits
        lines = table_lines(path)
        columns = COLA_HEADER if self.name == "cola" and not is_test else next(lines, ("", []))[1]
        *text_columns, label_column = self.tsv_columns
        index_column = "id" if "id" in columns else "index"
        needed = [index_column, *text_columns] if is_test else [*text_columns, label_column]
        need_columns(needed, columns, str(path))
        truncated = []
        for index, (place, fields) in enumerate(lines):
            row = dict(zip(columns, fields, strict=False))
            if not all(name in row for name in needed) or row.get(label_column) == "":
                truncated.append(place)
                continue
            if is_test and not re.fullmatch(r"\d+", row[index_column], re.ASCII):
                raise InputError(f"{place}: the index is {row[index_column]!r}, not a whole number; download it again.")
            index = int(row[index_column]) if is_test else index
            texts = dict(zip(self.columns, (row[name] for name in text_columns), strict=True))
            yield Row(place, {"index": index, **texts, "label": row.get(label_column)})
        if truncated and is_test:  # the server wants a prediction for every row
            raise InputError(f"{truncated[0]}: the row lacks fields, which no test file of GLUE does; download it again.")
        if truncated:
            logger.warning(
                "Rows that lack fields and are left out, as in the Hub's version: %d, the first is %s.",
                len(truncated),
                truncated[0],
            )

    def check_submission(self, data: TaskData) -> None:
        """Refuse test rows that are not in their published order, for the server takes them by it; warn of missing ones."""
        for (split, name), wanted in zip(self.submission_files, self.submission_rows, strict=True):
            indices = data.splits[split]["index"][:] if split in data.splits else []
            row = next((row for row, index in enumerate(indices) if index != row), None)
            if row is not None:
                raise InputError(
                    f"`index` of row {row + 1} of the split {split!r} is {indices[row]}, but GLUE's server wants {row}: "
                    f"predict all rows of {name} in their published order, or give --no_do_predict."
                )
            if indices and len(indices) != wanted:
                logger.warning(
                    "The split %r has %d rows, but GLUE's server wants %d in %s.", split, len(indices), wanted, name
                )

    def submission(self, decided: "np.ndarray") -> tuple[tuple[str, str], list[str]]:
        """Names of classes for MNLI, the diagnostic set, QNLI and RTE, ids for the others, numbers from 0 to 5 for STS-B."""
        if self.kind == "regression":
            answers = [f"{value:.3f}" for value in decided.clip(*self.value_range)]
        else:
            answers = [self.labels[label] if self.submits_label_names else str(label) for label in decided]
        return ("index", "prediction"), answers


def _glue(name: str, title: str, text_columns: str, labels: str | None, metrics: str, rows: int, **fields) -> GlueTask:
    """A task with one test file of so many rows, where the fields say nothing else."""
    official = (f"official/{name}.yaml",) if name in OFFICIAL else ()
    defaults = {
        "kind": "classification" if labels else "regression",
        "labels": tuple(labels.split()) if labels else None,
        "metrics": tuple(metrics.split()),
        "recipes": ("table9/glue.yaml", *official),
        "grid": "glue.yaml",
        "text_columns": tuple(text_columns.split()),
        "tsv_columns": (*text_columns.split(), "label"),
        "submission_files": (("test", f"{title}.tsv"),),
        "submission_rows": (rows,),
    }
    return GlueTask(name, title=title, hub_dataset="nyu-mll/glue", hub_config=name, folder=title, **defaults | fields)


OFFICIAL = ("sst2", "qqp", "qnli")  # the tasks with a recipe of the authors
PAIR, ENTAILMENT = "sentence1 sentence2", "entailment not_entailment"
MNLI = {
    "tsv_columns": ("sentence1", "sentence2", "gold_label"),
    "validation_splits": ("validation_matched", "validation_mismatched"),
    "test_splits": ("test_matched", "test_mismatched", "diagnostic"),
    "submission_files": (("test_matched", "MNLI-m.tsv"), ("test_mismatched", "MNLI-mm.tsv"), ("diagnostic", "AX.tsv")),
    "submission_rows": (9796, 9847, 1104),
    "submits_label_names": True,
}
MRPC = {"tsv_columns": ("#1 String", "#2 String", "Quality")}
STSB = {"tsv_columns": ("sentence1", "sentence2", "score"), "value_range": (0.0, 5.0)}
QQP = {"tsv_columns": ("question1", "question2", "is_duplicate")}
GLUE_TASKS = (
    _glue("cola", "CoLA", "sentence", "unacceptable acceptable", "matthews_correlation", 1063),
    _glue("sst2", "SST-2", "sentence", "negative positive", "accuracy", 1821),
    _glue("mrpc", "MRPC", PAIR, "not_equivalent equivalent", "accuracy f1", 1725, **MRPC),
    _glue("stsb", "STS-B", PAIR, None, "pearson spearmanr", 1379, **STSB),
    _glue("qqp", "QQP", "question1 question2", "not_duplicate duplicate", "accuracy f1", 390_965, **QQP),
    _glue("mnli", "MNLI", "premise hypothesis", "entailment neutral contradiction", "accuracy", 0, **MNLI),
    _glue("qnli", "QNLI", "question sentence", ENTAILMENT, "accuracy", 5463, submits_label_names=True),
    _glue("rte", "RTE", PAIR, ENTAILMENT, "accuracy", 3000, submits_label_names=True),
    _glue("wnli", "WNLI", PAIR, "not_entailment entailment", "accuracy", 146),
)
# What the server wants in one zip.
GLUE_FILES = tuple(name for task in GLUE_TASKS for _, name in task.submission_files)
