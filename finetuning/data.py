# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Reading of a task's rows: from the Hub, from local files in a published format, or from the user's own files.

Whatever the source, a loaded split has the same columns: `index` (the row's id in the published file), `Task.columns`
and `label`: an int, -1 where hidden (classification, multiple choice), a float32, NaN where hidden (regression), or a
list of ints, empty where hidden (token classification).
"""

import csv
import io
import itertools
import json
import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, List, Value, load_dataset
from datasets.exceptions import DatasetsError

from finetuning.tasks import Task
from luna_tools.errors import InputError

logger = logging.getLogger(__name__)

COLA_HEADER = ["source", "label", "mark", "sentence"]  # which its training and validation files lack
DIAGNOSTIC_FILES = ("diagnostic/diagnostic.tsv", "diagnostic.tsv", "AX/AX.tsv", "AX/diagnostic.tsv", "AX.tsv")
CSQA_FILES = {
    "train": "train_rand_split.jsonl",
    "validation": "dev_rand_split.jsonl",
    "test": "test_rand_split_no_answers.jsonl",
}
SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
HIDDEN = {"classification": -1, "multiple_choice": -1, "regression": math.nan, "token_classification": []}
FLOAT32_MAX = float(np.finfo(np.float32).max)
DECIMAL = re.compile(r"[-+]?(\d+\.\d*|\.\d+)([eE][-+]?\d+)?")


@dataclass(frozen=True)
class CustomFiles:
    """The user's own data: CSV (quoted as usual), TSV (never quoted, as GLUE's), JSON lines or parquet, by suffix.

    Labels are names or whole numbers (classification), numbers (regression), the option's letter or its index from 0
    (multiple choice), or a name per word (token classification: a list, or one string with spaces between).
    """

    train_file: Path | None = None
    validation_file: Path | None = None
    test_file: Path | None = None  # may lack the label column
    text_columns: tuple[str, ...] = ()  # one or two
    label_column: str = "label"
    question_column: str = "question"
    passage_column: str | None = None
    option_columns: tuple[str, ...] = ()  # a column for each option, or the one column that holds lists
    words_column: str = "words"  # a list, or one string with spaces between
    validation_fraction: float = 0.1  # of the training rows, where there is no validation file
    class_names: tuple[str, ...] | None = None  # in the order of their ids; by default the training file's, sorted
    seed: int = 0  # of the choice of the validation rows


@dataclass(frozen=True)
class TaskData:
    """A task and its splits, which are named as in the task."""

    task: Task
    splits: dict[str, Dataset]


class Row(NamedTuple):
    """The columns of a row, and where it stands: "FILE, line 3"."""

    place: str
    columns: dict[str, Any]


def load_task(task: Task, data_dir: Path | None = None, custom: CustomFiles | None = None) -> TaskData:
    """Reads all splits of a task; a test split that is not there is left out.

    Args:
        task: from `TASKS`, or from `custom_task`.
        data_dir: a folder with the published files; the Hub is asked where it is None.
        custom: the files of a custom task, whose returned task has its text columns and labels filled in.

    Raises:
        InputError: a file, a column or a row is missing or wrong, or the Hub can't be reached.
    """
    if custom is not None:
        return _load_custom(task, custom)
    found = _find_on_hub(task) if data_dir is None else _find_in_folder(task, Path(data_dir))
    splits = {}
    for split, (where, rows) in found.items():
        hidden_allowed = split in task.test_splits
        splits[split] = _dataset(task, where, [_with_label_id(task, row, hidden_allowed) for row in rows])
    return TaskData(task, splits)


def local_files(task: Task, data_dir: Path | None = None, custom: CustomFiles | None = None) -> dict[str, list[Path]]:
    """The files that `load_task` reads, by split; none where the data comes from the Hub."""
    if custom is not None:
        paths = {"train": custom.train_file, "validation": custom.validation_file, "test": custom.test_file}
        return {split: [Path(path)] for split, path in paths.items() if path is not None}
    return {} if data_dir is None else _published_files(task, Path(data_dir))


def _dataset(task: Task, where: str, rows: list[Row]) -> Dataset:
    if not rows:
        raise InputError(f"{where} holds no rows: give a file that does.")
    first = rows[0].columns
    if task.kind == "multiple_choice":
        for place, row in rows:
            if len(row["options"]) != len(first["options"]):
                raise InputError(
                    f"{place}: the row has {len(row['options'])} options, but the first row has {len(first['options'])}; "
                    "give every row as many."
                )
    label = {"regression": Value("float32"), "token_classification": List(Value("int64"))}.get(task.kind, Value("int64"))
    text = {name: Value("string") for name in task.columns}
    lists = {name: List(Value("string")) for name in ("options", "words") if name in text}
    index = Value("string" if isinstance(first["index"], str) else "int64")
    features = Features({"index": index, **text, **lists, "label": label})
    return Dataset.from_dict({name: [row.columns[name] for row in rows] for name in features}, features=features)


# ---- Published formats ----

Found = dict[str, tuple[str, Iterator[Row]]]  # split -> its file or folder, and its rows with the columns of `_dataset`


def _split_names(task: Task) -> tuple[str, ...]:
    return ("train", *task.validation_splits, *task.test_splits)


def _find_on_hub(task: Task) -> Found:
    name = f"{task.hub_dataset} ({task.hub_config})" if task.hub_config else task.hub_dataset
    try:
        loaded = dict(load_dataset(task.hub_dataset, task.hub_config))
        if "diagnostic" in task.test_splits:
            loaded["diagnostic"] = load_dataset(task.hub_dataset, "ax", split="test")
    except (OSError, ValueError, DatasetsError) as error:
        raise InputError(
            f"{name} cannot be read from the Hub ({_first_line(error)}): check the connection, or give `--data_dir` "
            f"with the local files of {task.title}."
        ) from error
    found = {}
    for split in _split_names(task):
        if split in loaded:
            where = f"{name}, split {split}"
            rows = _rows_of_batches(loaded[split].with_format("arrow").iter(1000), where)
            found[split] = where, _rename_hub_columns(task, rows, where, loaded[split].column_names, Counter())
        elif split not in task.test_splits:
            raise InputError(f"{name} on the Hub has no split {split!r}: give `--data_dir` with the local files.")
    return found


def _find_in_folder(task: Task, folder: Path) -> Found:
    return {
        split: (str(paths[0] if len(paths) == 1 else paths[0].parent), _published_rows(task, split, paths))
        for split, paths in _published_files(task, folder).items()
    }


def _published_files(task: Task, folder: Path) -> dict[str, list[Path]]:
    if not folder.is_dir():
        raise InputError(
            f"`--data_dir` {folder}: there is no such folder; give the one with the files of {task.title}."
        )
    parquet = {split: _parquet_files(task, folder, split) for split in _split_names(task)}
    original = {split: _original_files(task, folder, split) for split in _split_names(task)}
    files, pattern = (parquet, _parquet_pattern) if any(parquet.values()) else (original, _original_pattern)
    if not any(files.values()):
        raise InputError(
            f"`--data_dir` {folder} holds {task.title} in no published format: put in the Hub's "
            f"{_parquet_pattern(task, 'train')} or the original {_original_pattern(task, 'train')}, and the other splits."
        )
    for split, paths in files.items():
        if not paths and split not in task.test_splits:
            raise InputError(
                f"`--data_dir` {folder} lacks the split {split!r} of {task.title}: add {pattern(task, split)}."
            )
    return {split: paths for split, paths in files.items() if paths}


def _parquet_pattern(task: Task, split: str) -> str:
    return "ax/test-*.parquet" if split == "diagnostic" else f"{task.hub_config or 'data'}/{split}-*.parquet"


def _parquet_files(task: Task, folder: Path, split: str) -> list[Path]:
    """The shards of a split: in the configuration's folder, as in the Hub's repository, or in the folder itself."""
    pattern = _parquet_pattern(task, split)
    files = sorted(folder.glob(pattern))
    if not files and split != "diagnostic":
        files = sorted(folder.glob(Path(pattern).name))
    count = re.search(r"-of-(\d+)", files[0].name) if files else None
    if count and int(count[1]) != len(files):
        raise InputError(
            f"{files[0].parent} holds {len(files)} of the {int(count[1])} shards of {split!r}: add the missing ones."
        )
    return files


def _original_pattern(task: Task, split: str) -> str:
    site_split = split.replace("validation", "dev")
    if task.folder == "RACE":
        return f"RACE/{site_split}/{'middle' if task.hub_config == 'all' else task.hub_config}/*.txt"
    return f"{task.folder}/{CSQA_FILES[split] if task.folder == 'CSQA' else f'{site_split}.tsv'}"


def _original_files(task: Task, folder: Path, split: str) -> list[Path]:
    """The one file of a split; for RACE all its articles, by level and number."""
    for parent in (folder / task.folder, folder):
        if task.folder == "RACE":
            levels = ("middle", "high") if task.hub_config == "all" else (task.hub_config,)
            folders = [parent / split.replace("validation", "dev") / level for level in levels]
            articles = [sorted(f.glob("*.txt"), key=lambda path: (len(path.stem), path.stem)) for f in folders]
            if any(articles) and not all(articles):
                raise InputError(f"{folders[articles.index([])]} holds no *.txt: add them, or take one level alone.")
            files = sum(articles, [])
        else:
            names = DIAGNOSTIC_FILES if split == "diagnostic" else (Path(_original_pattern(task, split)).name,)
            files = [parent / name for name in names if (parent / name).is_file()][:1]
        if files:
            return files
    return []


def _published_rows(task: Task, split: str, paths: list[Path]) -> Iterator[Row]:
    asked = Counter()
    for path in paths:
        if path.suffix == ".parquet":
            columns, rows = _read_parquet(path)
            yield from _rename_hub_columns(task, rows, str(path), columns, asked)
        elif task.folder == "RACE":
            yield from _race_rows(path)
        elif task.folder == "CSQA":
            for place, raw in _json_lines(path):
                question = _fields(raw, ("id", "question"), place)["question"]
                _fields(_fields(question, ("stem",), place), ("choices",), place, list)
                options = [_fields(choice, ("text",), place)["text"] for choice in question["choices"]]
                label = raw.get("answerKey")
                yield Row(place, _multiple_choice(raw["id"], "", question["stem"], options, label))
        else:
            yield from _glue_rows(task, split, path)


def _multiple_choice(index: str, passage: str, question: str, options: list[str], label: Any) -> dict[str, Any]:
    return {"index": index, "passage": passage, "question": question, "options": options, "label": label}


def _rename_hub_columns(
    task: Task, rows: Iterable[Row], where: str, columns: list[str], asked: Counter[str]
) -> Iterator[Row]:
    """Renames, and counts in `asked` the questions so far about each of RACE's articles, in all files of a split."""
    if task.folder == "RACE":
        _need_columns(("example_id", "article", "question", "options", "answer"), columns, where)
        for place, raw in rows:
            index = f"{raw['example_id']}-{asked[raw['example_id']]}"
            asked[raw["example_id"]] += 1
            yield Row(place, _multiple_choice(index, raw["article"], raw["question"], raw["options"], raw["answer"]))
    elif task.folder == "CSQA":
        _need_columns(("id", "question", "choices", "answerKey"), columns, where)
        for place, raw in rows:
            options = _fields(raw["choices"], ("text",), place)["text"]
            yield Row(place, _multiple_choice(raw["id"], "", raw["question"], options, raw["answerKey"]))
    else:
        _need_columns((*task.text_columns, "label", "idx"), columns, where)
        for place, raw in rows:
            texts = dict(zip(task.columns, (raw[name] for name in task.text_columns), strict=True))
            yield Row(place, {"index": raw["idx"], **texts, "label": raw["label"]})


def _race_rows(path: Path) -> Iterator[Row]:
    raw = _json(_read_text(path), str(path))
    lists = ("questions", "options", "answers")
    _fields(_fields(raw, ("id", "article"), str(path)), lists, str(path), list)
    if len({len(raw[name]) for name in lists}) > 1:
        counts = ", ".join(f"{len(raw[name])} {name}" for name in lists)
        raise InputError(f"{path} has {counts}: it needs as many of each.")
    for number, (question, options, answer) in enumerate(zip(*(raw[name] for name in lists), strict=True)):
        index = f"{raw['id']}-{number}"
        yield Row(f"{path}, question {number + 1}", _multiple_choice(index, raw["article"], question, options, answer))


def _glue_rows(task: Task, split: str, path: Path) -> Iterator[Row]:
    """Rows of one of GLUE's own TSV files.

    As on the Hub, `index` counts all rows and the truncated ones are left out. Test rows have the `index` of the file.
    """
    is_test = split in task.test_splits
    lines = _tsv_lines(path)
    if task.folder == "CoLA" and not is_test:
        columns = COLA_HEADER
    else:
        columns = next(lines, Row("", {"fields": []})).columns["fields"]
    *text_columns, label_column = task.tsv_columns
    index_column = "id" if "id" in columns else "index"
    needed = [index_column, *text_columns] if is_test else [*text_columns, label_column]
    _need_columns(needed, columns, str(path))
    truncated = []
    for index, (place, raw) in enumerate(lines):
        row = dict(zip(columns, raw["fields"], strict=False))
        if not all(name in row for name in needed) or row.get(label_column) == "":
            truncated.append(place)
            continue
        if is_test and not re.fullmatch(r"\d+", row[index_column], re.ASCII):
            raise InputError(f"{place}: the index is {row[index_column]!r}, not a whole number; download it again.")
        index = int(row[index_column]) if is_test else index
        texts = dict(zip(task.columns, (row[name] for name in text_columns), strict=True))
        yield Row(place, {"index": index, **texts, "label": row.get(label_column)})
    if truncated and is_test:  # the server wants a prediction for every row
        raise InputError(f"{truncated[0]}: the row lacks fields, which no test file of GLUE does; download it again.")
    if truncated:
        logger.warning(
            "Rows that lack fields and are left out, as in the Hub's version: %d, the first is %s.",
            len(truncated),
            truncated[0],
        )


def _with_label_id(task: Task, row: Row, hidden_allowed: bool) -> Row:
    """The checked row with its label as an id or a number. An empty text is no error: QQP has some."""
    place, columns = row
    for name in task.columns:
        if name == "options":
            _check_options(columns["options"], name, place)
        _check_strings(columns[name], name, place)
    label = columns["label"]
    if label in (None, "", -1, "-1"):
        if not hidden_allowed:
            raise InputError(f"{place}: the row has no label, which only test rows may lack; download the file again.")
        label = HIDDEN[task.kind]
    elif task.kind == "multiple_choice":
        label = _option_id(label, len(columns["options"]), place)
    elif task.kind == "regression":
        label = _number(label, place)
        low, high = task.value_range
        if not low <= label <= high:
            raise InputError(
                f"{place}: the label is {label:g}, but {task.title}'s are from {low:g} to {high:g}; download the file again."
            )
    elif label in task.labels:
        label = task.labels.index(label)
    elif str(label) in map(str, range(len(task.labels))):
        label = int(label)
    else:
        raise InputError(
            f"{place}: the label is {label!r}, but {task.title} has {', '.join(task.labels)}; give the published files."
        )
    return Row(place, columns | {"label": label})


# ---- The user's own files ----


def _load_custom(task: Task, files: CustomFiles) -> TaskData:
    paths = {split: path for split, (path,) in local_files(task, custom=files).items()}
    if not paths:
        raise InputError("The custom task has no data: give `--train_file`, `--validation_file` or `--test_file`.")
    if "train" in paths and "validation" not in paths and not 0 < files.validation_fraction < 1:
        raise InputError(
            f"`--validation_fraction` is {files.validation_fraction}: give a number between 0 and 1, both excluded, or "
            "a `--validation_file`."
        )
    if task.kind in ("classification", "regression") and len(files.text_columns) not in (1, 2):
        raise InputError(f"`--text_columns` has {len(files.text_columns)} names: give one, or two for pairs of texts.")
    if task.kind == "multiple_choice" and not files.option_columns:
        raise InputError("`--option_columns` is missing: name the column of each option, or the column of lists.")
    if files.label_column in _input_columns(task, files):
        raise InputError(
            f"`--label_column` is {files.label_column!r}, which is a column of text too: name the column of the labels."
        )
    for one, other in itertools.combinations(paths, 2):
        if paths[one].resolve() == paths[other].resolve():
            logger.warning("%s is the file of both the %s and the %s rows.", paths[one], one, other)
    task = replace(task, text_columns=files.text_columns)
    rows = {split: _custom_rows(task, files, split, path) for split, path in paths.items()}
    if task.kind in ("classification", "token_classification"):
        task = replace(task, labels=_label_names(task, files, rows.get("train")))
        for split, split_rows in rows.items():
            for place, columns in split_rows:
                if split == "test" and columns["label"] == "-1" and "-1" not in task.labels:
                    columns["label"] = -1
                columns["label"] = _label_ids(columns["label"], task, files.label_column, place)
    splits = {split: _dataset(task, str(paths[split]), split_rows) for split, split_rows in rows.items()}
    if "train" in paths and "validation" not in paths:
        splits = _split_off_validation(task, splits.pop("train"), files) | splits
    return TaskData(task, splits)


def _input_columns(task: Task, files: CustomFiles) -> tuple[str, ...]:
    return {
        "multiple_choice": (files.question_column, *filter(None, [files.passage_column]), *files.option_columns),
        "token_classification": (files.words_column,),
    }.get(task.kind, files.text_columns)


def _custom_rows(task: Task, files: CustomFiles, split: str, path: Path) -> list[Row]:
    """The rows of one file with the columns of `_dataset`; class labels are still names, `HIDDEN` where a test row's is."""
    columns, raw_rows = _read_file(path)
    needed = (*_input_columns(task, files), *([] if split == "test" else [files.label_column]))
    _need_columns(needed, columns, str(path))
    rows = []
    for index, (place, raw) in enumerate(raw_rows):
        _need_columns(needed, list(raw), place)  # the rows of JSON lines may differ
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


def _custom_inputs(task: Task, files: CustomFiles, raw: dict[str, Any], place: str) -> dict[str, Any]:
    if task.kind == "multiple_choice":
        names = files.option_columns
        options = raw[names[0]] if len(names) == 1 else [raw[name] for name in names]
        _check_options(options, names[0], place)
        for name, option in zip(names * len(options) if len(names) == 1 else names, options, strict=True):
            _check_not_blank(option, name, place)
        for name in filter(None, (files.passage_column, files.question_column)):
            _check_not_blank(raw[name], name, place)
        passage = raw[files.passage_column] if files.passage_column else ""
        return {"passage": passage, "question": raw[files.question_column], "options": options}
    if task.kind == "token_classification":
        words = raw[files.words_column]
        words = words.split() if isinstance(words, str) else words
        if not isinstance(words, list) or not words:
            raise InputError(
                f"{place}: {files.words_column!r} holds no words; give a list of strings, or words with spaces between."
            )
        for word in words:
            _check_not_blank(word, files.words_column, place)
        return {"words": words}
    for name in files.text_columns:
        _check_not_blank(raw[name], name, place)
    return dict(zip(task.columns, (raw[name] for name in files.text_columns), strict=True))


def _custom_label(task: Task, value: Any, row: dict[str, Any], column: str, place: str) -> Any:
    if task.kind == "regression":
        return _number(value, place)
    if task.kind == "multiple_choice":
        return _option_id(value, len(row["options"]), place)
    if task.kind == "classification":
        return _label_name(value, column, place)
    tags = value.split() if isinstance(value, str) else value
    if not isinstance(tags, list) or len(tags) != len(row["words"]):
        count = len(tags) if isinstance(tags, list) else "no"
        raise InputError(
            f"{place}: {column!r} holds {count} labels for {len(row['words'])} words; give one for each word."
        )
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
    _check_strings(str(value), column, place)
    return str(value)


def _label_names(task: Task, files: CustomFiles, train: list[Row] | None) -> tuple[str, ...]:
    """The given names, or those of the training rows: sorted, as numbers where all are numbers."""
    if files.class_names is not None:
        if len(set(files.class_names)) < max(2, len(files.class_names)):
            raise InputError(
                f"`--class_names` is {', '.join(files.class_names)}: give at least two names, all different."
            )
        return tuple(files.class_names)
    if train is None:
        raise InputError("The names of the labels are not known: give `--train_file` or `--class_names`.")
    labels = [row.columns["label"] for row in train]
    names = set(labels) if task.kind == "classification" else {tag for tags in labels for tag in tags}
    if train and len(names) < 2:
        raise InputError(
            f"{files.train_file} has only the label {names.pop()!r} in {files.label_column!r}: training takes at least two."
        )
    spelt = Counter(" ".join(name.split()) for name in names)
    alike = sorted(name for name in names if spelt[" ".join(name.split())] > 1)
    if alike:
        logger.warning("Labels that differ in white space alone are taken as different: %s.", ", ".join(map(repr, alike)))
    if all(re.fullmatch(r"-?\d+", name, re.ASCII) for name in names):
        return tuple(sorted(names, key=int))
    return tuple(sorted(names))


def _label_ids(label: Any, task: Task, column: str, place: str) -> Any:
    if label in (-1, []):
        return label
    names = [label] if task.kind == "classification" else label
    for name in names:
        if name not in task.labels:
            raise InputError(
                f"{place}: the label {name!r} in {column!r} is not among {', '.join(task.labels)}, which the training "
                "data or the model has; correct it, or train with it."
            )
    ids = [task.labels.index(name) for name in names]
    return ids[0] if task.kind == "classification" else ids


def _split_off_validation(task: Task, train: Dataset, files: CustomFiles) -> dict[str, Dataset]:
    """Takes validation rows at equal steps from the rows in random order, sorted by class where there are classes."""
    order = np.random.default_rng(files.seed).permutation(len(train))
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


# ---- Checks of values, which name the place ----


def _need_columns(names: Iterable[str], columns: list[str], where: str) -> None:
    missing = [name for name in names if name not in columns]
    if missing:
        raise InputError(
            f"{where} has no column {missing[0]!r}: its columns are {', '.join(map(str, columns)) or 'none'}; name one of "
            "them, or correct the file."
        )


def _fields(value: Any, names: tuple[str, ...], place: str, kind: type = object) -> dict[str, Any]:
    for name in names:
        if not isinstance(value, dict) or not isinstance(value.get(name), kind) or value.get(name) is None:
            raise InputError(f"{place} lacks the published format's field {name!r}: download the file again.")
    return value


def _check_strings(value: Any, column: str, place: str) -> None:
    for text in value if isinstance(value, list) else [value]:
        if not isinstance(text, str):
            kind = "null" if text is None else type(text).__name__
            raise InputError(f"{place}: {column!r} holds {kind} where a text must be; write it as a string.")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{place}: {column!r} holds half a surrogate pair; correct the text.") from error


def _check_not_blank(value: Any, column: str, place: str) -> None:
    _check_strings(value, column, place)
    if not value.strip():
        raise InputError(f"{place}: the text in {column!r} is empty; fill it in or leave the row out.")


def _check_options(options: Any, column: str, place: str) -> None:
    if not isinstance(options, list):
        raise InputError(
            f"{place}: {column!r} holds {type(options).__name__} where a list of options must be; write a list, or name one "
            "column for each option in `--option_columns`."
        )
    if len(options) < 2:
        raise InputError(f"{place}: the row has {len(options)} options to choose from; give at least two.")


def _option_id(value: Any, count: int, place: str) -> int:
    """The index of the right option, given as that or as a letter."""
    if isinstance(value, str) and re.fullmatch(r"[A-Z]", value):
        index = ord(value) - ord("A")
    elif isinstance(value, int) and not isinstance(value, bool):
        index = value
    else:
        index = int(value) if isinstance(value, str) and re.fullmatch(r"\d+", value, re.ASCII) else -1
    if not 0 <= index < count:
        raise InputError(
            f"{place}: the answer is {value!r}, but the row has {count} options; give a letter from A to "
            f"{chr(ord('A') + count - 1)} or an index from 0 to {count - 1}."
        )
    return index


def _number(value: Any, place: str) -> float:
    try:
        number = float(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else None
    except (ValueError, OverflowError):
        number = None
    if number is None or not abs(number) <= FLOAT32_MAX:
        raise InputError(f"{place}: the label is {value!r}, but regression takes finite numbers; correct it.")
    return number


# ---- Files ----


def _read_file(path: Path) -> tuple[list[str], list[Row]]:
    """The columns and the rows of one of the user's files; JSON lines have the columns of all rows."""
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path} has an unknown suffix: give one of {', '.join(SUFFIXES)}.")
    if path.suffix == ".parquet":
        columns, rows = _read_parquet(path)
    elif path.suffix in (".jsonl", ".json"):
        rows = list(_json_lines(path))
        columns = list(dict.fromkeys(name for row in rows for name in row.columns))
    else:
        lines = _tsv_lines(path) if path.suffix == ".tsv" else _csv_lines(path)
        columns = next(lines, Row("", {"fields": []})).columns["fields"]
        rows = (Row(place, _named(columns, raw["fields"], place)) for place, raw in lines)
        _check_unique(columns, path)
    rows = list(rows)
    if not rows:
        raise InputError(f"{path} holds no rows: give a file that does.")
    return columns, rows


def _named(columns: list[str], fields: list[str], place: str) -> dict[str, str]:
    if len(fields) != len(columns):
        raise InputError(
            f"{place}: the row has {len(fields)} fields, but the header has {len(columns)}; correct the row."
        )
    return dict(zip(columns, fields, strict=True))


def _check_unique(columns: list[str], path: Path) -> None:
    twice = [name for name, count in Counter(columns).items() if count > 1]
    if twice:
        raise InputError(f"{path} has the column {twice[0]!r} more than once: rename one of them.")


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(f"{path}, line {line} is not UTF-8 ({error.reason}): convert the file.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): give a readable file.") from error


def _tsv_lines(path: Path) -> Iterator[Row]:
    """The non-empty lines, cut at tabs. Quotes mean nothing: texts of GLUE have single ones."""
    for number, line in enumerate(io.StringIO(_read_text(path), newline=None), 1):
        line = line.removesuffix("\n")
        if line:
            yield Row(f"{path}, line {number}", {"fields": line.split("\t")})


def _csv_lines(path: Path) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)  # the default of 131,072 characters is less than a long document
    reader = csv.reader(io.StringIO(_read_text(path), newline=""), strict=True)
    number = 1
    try:
        for fields in reader:
            if fields:
                yield Row(f"{path}, line {number}", {"fields": fields})
            number = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}, line {number} is not valid CSV ({error}): correct its quotes.") from error


def _json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place} is not valid JSON ({_first_line(error)}): correct it.") from error


def _json_lines(path: Path) -> Iterator[Row]:
    for number, line in enumerate(io.StringIO(_read_text(path), newline=None), 1):
        place = f"{path}, line {number}"
        if line.strip():
            row = _json(line, place)
            if not isinstance(row, dict):
                raise InputError(
                    f"{place} is a {type(row).__name__}, not an object: write one JSON object in each line."
                )
            yield Row(place, row)


def _read_parquet(path: Path) -> tuple[list[str], Iterator[Row]]:
    try:
        file = pq.ParquetFile(path)
        _check_unique(file.schema_arrow.names, path)
        return file.schema_arrow.names, _rows_of_batches(file.iter_batches(), str(path))
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read as parquet ({_first_line(error)}): give a readable file.") from error


def _rows_of_batches(batches: Iterable[pa.RecordBatch | pa.Table], where: str) -> Iterator[Row]:
    number = 0
    try:
        for batch in batches:
            for columns in batch.to_pylist():
                number += 1
                yield Row(f"{where}, row {number}", columns)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{where} cannot be read ({_first_line(error)}): download it again.") from error


def _first_line(error: object) -> str:
    return str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
