# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""What the families read with: files of rows, checks of values that name the place, and the dataset that comes of them."""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from finetuning.tasks.task import Task
from luna_tools.errors import InputError, told

if TYPE_CHECKING:  # imported where they are used: the names of the tasks are known without them
    from datasets import Dataset

FLOAT32_MAX = 3.4028234663852886e38


class Row(NamedTuple):
    """The columns of a row, and where it stands: "FILE, line 3"."""

    place: str
    columns: dict[str, Any]


Line = tuple[str, list[str]]  # where it stands, and its fields


def make_dataset(task: Task, where: str, rows: list[Row]) -> "Dataset":
    """The rows of a split, which have the task's columns, `index` and `label`.

    Raises:
        InputError: there are none, or they differ in their numbers of options.
    """
    from datasets import Dataset, Features, List, Value

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
    text = {name: Value("large_binary" if name == "pixels" else "string") for name in task.columns}
    lists = {name: List(Value("string")) for name in ("options", "words") if name in text}
    index = Value("string" if isinstance(first["index"], str) else "int64")
    features = Features({"index": index, **text, **lists, "label": label})
    return Dataset.from_dict({name: [row.columns[name] for row in rows] for name in features}, features=features)


# ---- Checks of values, which name the place ----


def need_columns(names: Iterable[str], columns: list[str], where: str) -> None:
    missing = [name for name in names if name not in columns]
    if missing:
        raise InputError(
            f"{where} has no column {missing[0]!r}: its columns are {', '.join(map(str, columns)) or 'none'}; name one of "
            "them, or correct the file."
        )


def need_fields(value: Any, names: tuple[str, ...], place: str, kind: type = object) -> dict[str, Any]:
    for name in names:
        if not isinstance(value, dict) or not isinstance(value.get(name), kind) or value.get(name) is None:
            raise InputError(f"{place} lacks the published format's field {name!r}: download the file again.")
    return value


def check_texts(value: Any, column: str, place: str, may_be_blank: bool = True) -> None:
    """Check one text, or each of a list."""
    for text in value if isinstance(value, list) else [value]:
        if not isinstance(text, str):
            kind = "null" if text is None else type(text).__name__
            raise InputError(f"{place}: {column!r} holds {kind} where a text must be; write it as a string.")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{place}: {column!r} holds half a surrogate pair; correct the text.") from error
        if not may_be_blank and not text.strip():
            raise InputError(f"{place}: the text in {column!r} is empty; fill it in or leave the row out.")


def check_options(options: Any, column: str, place: str) -> None:
    if not isinstance(options, list):
        raise InputError(
            f"{place}: {column!r} holds {type(options).__name__} where a list of options must be; write a list, or name one "
            "column for each option in `--option_columns`."
        )
    if len(options) < 2:
        raise InputError(f"{place}: the row has {len(options)} options to choose from; give at least two.")


def option_id(value: Any, count: int, place: str) -> int:
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


def finite_number(value: Any, place: str) -> float:
    try:
        number = float(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else None
    except (ValueError, OverflowError):
        number = None
    if number is None or not abs(number) <= FLOAT32_MAX:
        raise InputError(f"{place}: the label is {value!r}, but regression takes finite numbers; correct it.")
    return number


# ---- Files ----


def read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(f"{path}, line {line} is not UTF-8 ({error.reason}): convert the file.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): give a readable file.") from error


def table_lines(path: Path) -> Iterator[Line]:
    """The non-empty lines of a CSV file, or of a TSV file, where quotes mean nothing: texts of GLUE have single ones."""
    csv.field_size_limit(2**31 - 1)  # the default of 131,072 characters is less than a long document
    form = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if path.suffix == ".tsv" else {}
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True, **form)
    number = 1
    try:
        for fields in reader:
            if fields:
                yield f"{path}, line {number}", fields
            number = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}, line {number} is not valid CSV ({error}): correct its quotes.") from error


def parse_json(text: str, place: str) -> Any:
    with told(f"{place} is not valid JSON", "correct it"):
        return json.loads(text)


def json_lines(path: Path) -> Iterator[Row]:
    for number, line in enumerate(io.StringIO(read_text(path), newline=None), 1):
        place = f"{path}, line {number}"
        if line.strip():
            row = parse_json(line, place)
            if not isinstance(row, dict):
                raise InputError(f"{place} is a {type(row).__name__}, not an object: write one JSON object in each line.")
            yield Row(place, row)


def read_parquet(path: Path) -> tuple[list[str], Iterator[Row]]:
    """The columns and the rows of a parquet file."""
    import pyarrow.parquet as pq

    with told(f"{path} cannot be read as parquet", "give a readable file"):
        file = pq.ParquetFile(path)
        check_unique(file.schema_arrow.names, path)
        rows = file.read().to_pylist()
    return file.schema_arrow.names, (Row(f"{path}, row {number}", row) for number, row in enumerate(rows, 1))


def check_unique(columns: list[str], path: Path) -> None:
    twice = [name for name, count in Counter(columns).items() if count > 1]
    if twice:
        raise InputError(f"{path} has the column {twice[0]!r} more than once: rename one of them.")
