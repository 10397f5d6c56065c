# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The user's own files: one task of each kind, whose columns and classes are the files'."""

import itertools
import logging
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finetuning.tasks.reading import (
    Row,
    check_options,
    check_texts,
    check_unique,
    finite_number,
    json_lines,
    make_dataset,
    need_columns,
    option_id,
    read_parquet,
    table_lines,
)
from finetuning.tasks.task import HIDDEN, Task, TaskData, TaskKind
from luna_tools.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

    from finetuning.arguments import DataArguments

logger = logging.getLogger(__name__)

CUSTOM_RECIPES = ("table9/glue.yaml",)
CUSTOM_METRICS = {
    "classification": ("accuracy", "f1_macro"),
    "regression": ("pearson", "spearmanr", "mean_squared_error"),
    "multiple_choice": ("accuracy",),
    "token_classification": ("f1_macro", "accuracy"),
}
SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
DECIMAL = re.compile(r"[-+]?(\d+\.\d*|\.\d+)([eE][-+]?\d+)?")


class CustomTask(Task):
    """A task over the user's own files: CSV (quoted as usual), TSV (never quoted, as GLUE's), JSON lines or parquet.

    Labels are names or whole numbers (classification), numbers (regression), the option's letter or its index from 0
    (multiple choice), or a name per word (token classification: a list, or one string with spaces between). Their names
    are known once the files, or the checkpoint, are read. A test file may lack them.
    """

    def load(self, source: "DataArguments") -> TaskData:
        """Read the files that are given, and fill in the task's text columns and labels."""
        task = replace(self, text_columns=tuple(source.text_columns))
        paths = {split: path for split, (path,) in self.files(source).items()}
        if not paths:
            raise InputError("The custom task has no data: give `--train_file`, `--validation_file` or `--test_file`.")
        without_validation = "train" in paths and "validation" not in paths
        if without_validation and not 0 < source.validation_fraction < 1:
            raise InputError(
                f"`--validation_fraction` is {source.validation_fraction}: give a number between 0 and 1, both excluded, or "
                "a `--validation_file`."
            )
        if task.kind in ("classification", "regression") and len(task.text_columns) not in (1, 2):
            raise InputError(f"`--text_columns` has {len(task.text_columns)} names: give one, or two for pairs of texts.")
        if task.kind == "multiple_choice" and not source.option_columns:
            raise InputError("`--option_columns` is missing: name the column of each option, or the column of lists.")
        if source.label_column in _input_columns(task, source):
            raise InputError(
                f"`--label_column` is {source.label_column!r}, which is a column of text too: name the column of the labels."
            )
        for one, other in itertools.combinations(paths, 2):
            if paths[one].resolve() == paths[other].resolve():
                logger.warning("%s is the file of both the %s and the %s rows.", paths[one], one, other)
        rows = {split: _custom_rows(task, source, split, path) for split, path in paths.items()}
        if task.kind in ("classification", "token_classification"):
            task = replace(task, labels=_label_names(source, rows.get("train")))
            for split, split_rows in rows.items():
                for place, columns in split_rows:
                    if split == "test" and columns["label"] == "-1" and "-1" not in task.labels:
                        columns["label"] = -1
                    columns["label"] = _label_ids(columns["label"], task, source.label_column, place)
        splits = {split: make_dataset(task, str(paths[split]), split_rows) for split, split_rows in rows.items()}
        if without_validation:
            splits = _split_off_validation(task, splits.pop("train"), source) | splits
        return TaskData(task, splits)

    def files(self, source: "DataArguments") -> dict[str, list[Path]]:
        paths = {"train": source.train_file, "validation": source.validation_file, "test": source.test_file}
        return {split: [Path(path)] for split, path in paths.items() if path is not None}


def custom_task(kind: TaskKind, text_columns: tuple[str, ...] = (), labels: tuple[str, ...] | None = None) -> CustomTask:
    """A task whose text columns and, for classes, labels may wait for the files."""
    fields = {"recipes": CUSTOM_RECIPES, "grid": "glue.yaml", "metrics": CUSTOM_METRICS[kind]}
    return CustomTask(name="custom", title="custom", kind=kind, text_columns=text_columns, labels=labels, **fields)


def _input_columns(task: Task, options: "DataArguments") -> list[str]:
    if task.kind == "multiple_choice":
        passage = [options.passage_column] if options.passage_column else []
        return [options.question_column, *passage, *options.option_columns]
    return [options.words_column] if task.kind == "token_classification" else options.text_columns


def _custom_rows(task: Task, files: "DataArguments", split: str, path: Path) -> list[Row]:
    """The rows of one file as `make_dataset` takes them, but with the names of classes; `HIDDEN` where a test row's is."""
    columns, raw_rows = _read_file(path)
    needed = (*_input_columns(task, files), *([] if split == "test" else [files.label_column]))
    need_columns(needed, columns, str(path))
    rows = []
    for index, (place, raw) in enumerate(raw_rows):
        need_columns(needed, list(raw), place)  # the rows of JSON lines may differ
        row = _custom_inputs(task, files, raw, place)
        value = _whole(raw.get(files.label_column))
        hidden = split == "test" and (
            value in (None, "", []) or value != value or (task.kind == "multiple_choice" and value in (-1, "-1"))
        )
        label = HIDDEN[task.kind] if hidden else _custom_label(task, value, row, files.label_column, place)
        rows.append(Row(place, {"index": index, **row, "label": label}))
    return rows


def _whole(value: Any) -> Any:
    """1 for 1.0, "1" for "1.0": so pandas writes a column of whole numbers where one is missing."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and DECIMAL.fullmatch(value) and float(value).is_integer():
        return str(int(float(value)))
    return value


def _custom_inputs(task: Task, files: "DataArguments", raw: dict[str, Any], place: str) -> dict[str, Any]:
    """The row's texts, none of which may be empty."""
    if task.kind == "multiple_choice":
        names = files.option_columns
        options = raw[names[0]] if len(names) == 1 else [raw[name] for name in names]
        check_options(options, names[0], place)
        passage = raw[files.passage_column] if files.passage_column else ""
        inputs = {"passage": passage, "question": raw[files.question_column], "options": options}
    elif task.kind == "token_classification":
        words = raw[files.words_column]
        words = words.split() if isinstance(words, str) else words
        if not isinstance(words, list) or not words:
            raise InputError(
                f"{place}: {files.words_column!r} holds no words; give a list of strings, or words with spaces between."
            )
        inputs = {"words": words}
    else:
        inputs = dict(zip(task.columns, (raw[name] for name in files.text_columns), strict=True))
    for name in _input_columns(task, files):
        check_texts(raw[name], name, place, may_be_blank=False)
    return inputs


def _custom_label(task: Task, value: Any, row: dict[str, Any], column: str, place: str) -> Any:
    if task.kind == "regression":
        return finite_number(value, place)
    if task.kind == "multiple_choice":
        return option_id(value, len(row["options"]), place)
    if task.kind == "classification":
        return _label_name(value, column, place)
    tags = value.split() if isinstance(value, str) else value
    if not isinstance(tags, list) or len(tags) != len(row["words"]):
        count = len(tags) if isinstance(tags, list) else "no"
        raise InputError(f"{place}: {column!r} holds {count} labels for {len(row['words'])} words; give one for each word.")
    return [_label_name(_whole(tag), column, place) for tag in tags]


def _label_name(value: Any, column: str, place: str) -> str:
    if isinstance(value, bool):
        return str(value).lower()  # as JSON writes it
    if (isinstance(value, float) and value == value) or (isinstance(value, str) and DECIMAL.fullmatch(value)):
        raise InputError(
            f"{place}: the label {value} in {column!r} is a decimal number; classes are names or whole numbers, and "
            "for scores there is the regression task."
        )
    if not isinstance(value, (str, int)) or not str(value).strip():
        raise InputError(f"{place}: the label {value!r} in {column!r} is no name; fill it in or leave the row out.")
    check_texts(str(value), column, place)
    return str(value)


def _label_names(files: "DataArguments", train: list[Row] | None) -> tuple[str, ...]:
    """The given names, or those of the training rows: sorted, as numbers where all are numbers."""
    if files.class_names is not None:
        if len(set(files.class_names)) < max(2, len(files.class_names)):
            raise InputError(f"`--class_names` is {', '.join(files.class_names)}: give at least two names, all different.")
        return tuple(files.class_names)
    if train is None:
        raise InputError("The names of the labels are not known: give `--train_file` or `--class_names`.")
    labels = [row.columns["label"] for row in train]
    names = {name for label in labels for name in (label if isinstance(label, list) else [label])}
    if train and len(names) < 2:
        raise InputError(
            f"{files.train_file} has only the label {names.pop()!r} in {files.label_column!r}: training takes at least two."
        )
    spelt = {name: " ".join(name.split()).casefold() for name in names}
    counts = Counter(spelt.values())
    alike = sorted(name for name in names if counts[spelt[name]] > 1)
    if alike:
        logger.warning(
            "Labels that differ in case or white space alone are taken as different: %s.", ", ".join(map(repr, alike))
        )
    whole_numbers = all(re.fullmatch(r"-?\d+", name, re.ASCII) for name in names)
    return tuple(sorted(names, key=int if whole_numbers else None))


def _label_ids(label: Any, task: Task, column: str, place: str) -> Any:
    """The id of a name, or of each of a list; a hidden label stays as it is."""
    if isinstance(label, list):
        return [_label_ids(name, task, column, place) for name in label]
    if label != -1 and label not in task.labels:
        raise InputError(
            f"{place}: the label {label!r} in {column!r} is not among {', '.join(task.labels)}, which the training data or "
            "the model has; correct it, or train with it."
        )
    return label if label == -1 else task.labels.index(label)


def _split_off_validation(task: Task, train: "Dataset", files: "DataArguments") -> "dict[str, Dataset]":
    """Takes validation rows at equal steps from the rows in random order, sorted by class where there are classes."""
    order = np.random.default_rng(0).permutation(len(train))
    if task.kind == "classification":
        order = order[np.argsort(np.array(train["label"])[order], kind="stable")]
    steps = np.floor(np.arange(len(train) + 1) * files.validation_fraction + 0.5)
    chosen = np.diff(steps) > 0
    if chosen.all() or not chosen.any():
        raise InputError(
            f"`--validation_fraction` {files.validation_fraction} of the {len(train)} rows of {files.train_file} leaves "
            "the training or the validation split empty: change it, or give a `--validation_file`."
        )
    return {"train": train.select(np.sort(order[~chosen])), "validation": train.select(np.sort(order[chosen]))}


def _read_file(path: Path) -> tuple[list[str], list[Row]]:
    """The columns and the rows of one of the user's files; JSON lines have the columns of all rows."""
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path} has an unknown suffix: give one of {', '.join(SUFFIXES)}.")
    if path.suffix == ".parquet":
        columns, rows = read_parquet(path)
    elif path.suffix in (".jsonl", ".json"):
        rows = list(json_lines(path))
        columns = list(dict.fromkeys(name for row in rows for name in row.columns))
    else:
        lines = table_lines(path)
        columns = next(lines, ("", []))[1]
        rows = (Row(place, _named(columns, fields, place)) for place, fields in lines)
        check_unique(columns, path)
    rows = list(rows)
    if not rows:
        raise InputError(f"{path} holds no rows: give a file that does.")
    return columns, rows


def _named(columns: list[str], fields: list[str], place: str) -> dict[str, str]:
    if len(fields) != len(columns):
        raise InputError(f"{place}: the row has {len(fields)} fields, but the header has {len(columns)}; correct the row.")
    return dict(zip(columns, fields, strict=True))
