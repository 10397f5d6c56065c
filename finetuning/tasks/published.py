# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Tasks that are published twice: as parquet on the Hub, or clones of it, and as the original site's files."""

import functools
import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetuning.tasks.reading import (
    Row,
    check_options,
    check_texts,
    finite_number,
    make_dataset,
    need_columns,
    option_id,
    read_parquet,
)
from finetuning.tasks.task import HIDDEN, Task, TaskData
from luna_tools.errors import InputError, told

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class PublishedTask(Task):
    """A family says which columns the Hub's rows have, which files the original download, and what the rows of each say."""

    # ---- What a family says ----

    hub_columns = ()  # the columns that are read on the Hub

    def hub_rows(self, rows: Iterable[Row]) -> Iterator[Row]:
        """With a `hub_dataset`: the rows of a split as the Hub has them, with the task's columns, `index` and `label`."""
        raise NotImplementedError

    def hub_split(self, split: str) -> tuple[str | None, str]:
        """The configuration on the Hub that has a split, and the split's name there."""
        return self.hub_config, split

    def original_names(self, split: str) -> tuple[str, ...]:
        """The names that the one file of a split may have in the original download."""
        return ()

    def original_rows(self, split: str, path: Path) -> Iterator[Row]:
        """With a `folder`: the rows of an original file, with the task's columns, `index` and `label`."""
        raise NotImplementedError

    def submission(self, decided: "np.ndarray") -> tuple[tuple[str, str], list[str]]:
        """With `submission_files`: the header of one, and each row's answer from what `metrics.decide` says of it."""
        raise NotImplementedError

    # ---- What follows from that ----

    @property
    def split_names(self) -> tuple[str, ...]:
        return ("train", *self.validation_splits, *self.test_splits)

    def load(self, source: Path | None) -> TaskData:
        splits = {}
        for split, paths in self.files(self._download() if source is None else source).items():
            parquet, hidden_allowed = paths[0].suffix == ".parquet", split in self.test_splits
            read = self._parquet_rows if parquet else functools.partial(self.original_rows, split)
            rows = itertools.chain.from_iterable(map(read, paths))
            checked = [self._checked(row, hidden_allowed) for row in (self.hub_rows(rows) if parquet else rows)]
            splits[split] = make_dataset(self, str(paths[0] if len(paths) == 1 else paths[0].parent), checked)
        return TaskData(self, splits)

    def files(self, source: Path | None) -> dict[str, list[Path]]:
        if source is None:
            return {}
        if not source.is_dir():
            raise InputError(f"`--data_dir` {source}: there is no such folder; give the one with the files of {self.title}.")
        parquet = {split: self._parquet_files(source, split) if self.hub_dataset else [] for split in self.split_names}
        original = {split: self.original_files(source, split) if self.folder else [] for split in self.split_names}
        files, pattern = (parquet, self._parquet_pattern) if any(parquet.values()) else (original, self.original_pattern)
        if not any(files.values()):
            forms = [f"the Hub's {self._parquet_pattern('train')}"] if self.hub_dataset else []
            forms += [f"the original {self.original_pattern('train')}"] if self.folder else []
            raise InputError(
                f"`--data_dir` {source} holds {self.title} in no published format: put in {' or '.join(forms)}, and the "
                "other splits."
            )
        for split, paths in files.items():
            if not paths and split not in self.test_splits:
                raise InputError(f"`--data_dir` {source} lacks the split {split!r} of {self.title}: add {pattern(split)}.")
        return {split: paths for split, paths in files.items() if paths}

    def original_pattern(self, split: str) -> str:
        return f"{self.folder}/{self.original_names(split)[0]}"

    def original_files(self, folder: Path, split: str) -> list[Path]:
        """The files of a split: the first that is there, below the task's folder or in the folder itself."""
        places = [parent / name for parent in (folder / self.folder, folder) for name in self.original_names(split)]
        return [path for path in places if path.is_file()][:1]

    def _download(self) -> Path:
        """The folder with the Hub's parquet files of all splits, in the Hub's own cache."""
        from huggingface_hub import snapshot_download

        name = f"{self.hub_dataset} ({self.hub_config})" if self.hub_config else self.hub_dataset
        patterns = [self._parquet_pattern(split) for split in self.split_names]
        remedy = f"check the connection, or give `--data_dir` with the local files of {self.title}"
        with told(f"{name} cannot be read from the Hub", remedy):
            return Path(snapshot_download(self.hub_dataset, repo_type="dataset", allow_patterns=patterns))

    def _parquet_rows(self, path: Path) -> Iterator[Row]:
        columns, rows = read_parquet(path)
        need_columns(self.hub_columns, columns, str(path))
        return rows

    def _parquet_pattern(self, split: str) -> str:
        config, hub_split = self.hub_split(split)
        return f"{config or 'data'}/{hub_split}-*.parquet"

    def _parquet_files(self, folder: Path, split: str) -> list[Path]:
        """The shards of a split: in the configuration's folder, as in the Hub's repository, or in the folder itself."""
        pattern = self._parquet_pattern(split)
        files = sorted(folder.glob(pattern))
        if not files and self.hub_split(split) == (self.hub_config, split):
            files = sorted(folder.glob(Path(pattern).name))
        count = re.search(r"-of-(\d+)", files[0].name) if files else None
        if count and int(count[1]) != len(files):
            raise InputError(
                f"{files[0].parent} holds {len(files)} of the {int(count[1])} shards of {split!r}: add the missing ones."
            )
        return files

    def _checked(self, row: Row, hidden_allowed: bool) -> Row:
        """The checked row with its label as an id or a number. An empty text is no error: QQP has some."""
        place, columns = row
        for name in self.columns:
            if name == "options":
                check_options(columns["options"], name, place)
            if name != "pixels":
                check_texts(columns[name], name, place)
        label = columns["label"]
        if label not in (None, "", -1, "-1"):
            return Row(place, columns | {"label": self._label_id(label, columns, place)})
        if not hidden_allowed:
            raise InputError(f"{place}: the row has no label, which only test rows may lack; download the file again.")
        return Row(place, columns | {"label": HIDDEN[self.kind]})

    def _label_id(self, label: Any, columns: dict[str, Any], place: str) -> int | float:
        if self.kind == "multiple_choice":
            return option_id(label, len(columns["options"]), place)
        if self.kind == "regression":
            value, (low, high) = finite_number(label, place), self.value_range
            if not low <= value <= high:
                raise InputError(
                    f"{place}: the label is {value:g}, but {self.title}'s are from {low:g} to {high:g}; download the file "
                    "again."
                )
            return value
        if label in self.labels:
            return self.labels.index(label)
        if str(label) in map(str, range(len(self.labels))):
            return int(label)
        raise InputError(
            f"{place}: the label is {label!r}, but {self.title} has {', '.join(self.labels)}; give the published files."
        )
