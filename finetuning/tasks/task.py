# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""What all tasks have in common. A family extends `Task` by how its rows are read and what its benchmark wants submitted."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from finetuning.encoding import Encoder

TaskKind = Literal["classification", "regression", "multiple_choice", "token_classification"]
# The label of a row whose label is not known.
HIDDEN = {"classification": -1, "multiple_choice": -1, "regression": math.nan, "token_classification": []}


@dataclass(frozen=True)
class Task(ABC):
    """One task. Splits, columns and labels are named as on the Hub, whatever the files on disk call them."""

    name: str
    kind: TaskKind
    metrics: tuple[str, ...]  # names in `metrics.METRICS`, as they are reported; the first picks the best checkpoint
    recipes: tuple[str, ...]  # files below `recipes/`, besides the one for all tasks; the folder is the recipe's name
    grid: str  # file below `grids/`: the sweep
    title: str = ""  # as papers write it
    hub_dataset: str | None = None
    hub_config: str | None = None
    folder: str | None = None  # the task's folder in the original download
    text_columns: tuple[str, ...] = ()  # one text or a pair of texts
    labels: tuple[str, ...] | None = None  # names of the classes, in the order of their ids
    value_range: tuple[float, float] | None = None  # of a regression's labels
    validation_splits: tuple[str, ...] = ("validation",)  # the first one picks the best checkpoint
    test_splits: tuple[str, ...] = ("test",)
    submission_files: tuple[tuple[str, str], ...] = ()  # (test split, file name)

    @property
    def best_metric(self) -> str:
        return self.metrics[0]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that a loaded split has besides `index` (the row's id, a string or an int) and `label`."""
        if self.kind == "multiple_choice":
            return ("passage", "question", "options")
        if self.kind == "token_classification":
            return ("words",)
        return ("text", "text_pair") if len(self.text_columns) == 2 else ("text",)

    @abstractmethod
    def load(self, source: Any) -> "TaskData":
        """Read all splits from what the family reads: a folder or the Hub (None), or the user's files.

        Whatever the source, a split has the same columns: `index` (the row's id in the published file), `columns`, and
        `label`: an int, -1 where hidden (classification, multiple choice), a float32, NaN where hidden (regression), or a
        list of ints, empty where hidden (token classification). A test split that is not there is left out.

        Raises:
            InputError: a file, a column or a row is missing or wrong, or the Hub can't be reached.
        """

    @abstractmethod
    def files(self, source: Any) -> dict[str, list[Path]]:
        """The local files that `load` reads, by split; none where the data comes from the Hub."""

    def encoder(self) -> "type[Encoder]":
        """The form of the inputs and their batches: the kind's, or the family's own."""
        from finetuning.encoding import ENCODERS

        return ENCODERS[self.kind]

    def make_tokenizer(self) -> "PreTrainedTokenizerBase | None":
        """The tokenizer of a task whose inputs have a vocabulary of their own; None of one that reads any text."""
        return None

    def check_submission(self, data: "TaskData") -> None:
        """Refuse test rows that the benchmark's server would take for others. Most servers go by the rows' ids."""
        return


@dataclass(frozen=True)
class TaskData:
    """A task and its splits, which are named as in the task."""

    task: Task
    splits: "dict[str, Dataset]"


def letter(option: int) -> str:
    """A for the option 0."""
    return chr(ord("A") + option)


def class_names(task: Task, count: int) -> list[str]:
    """What the ids of classes, tags or options mean, of so many options."""
    return list(task.labels or map(letter, range(count)))
