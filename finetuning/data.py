# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""A task's rows: from the Hub, from local files in a published format, or from the user's own files.

Whatever the source, a loaded split has the same columns: `index` (the row's id in the published file), `Task.columns`
and `label`: an int, -1 where hidden (classification, multiple choice), a float32, NaN where hidden (regression), or a
list of ints, empty where hidden (token classification).
"""

from pathlib import Path

from finetuning.tasks import CustomFiles, Task, TaskData

__all__ = ["CustomFiles", "TaskData", "load_task", "local_files"]


def load_task(task: Task, data_dir: Path | None = None, custom: CustomFiles | None = None) -> TaskData:
    """Read all splits of a task; a test split that is not there is left out.

    Args:
        task: from `TASKS`, or from `custom_task`.
        data_dir: a folder with the published files; the Hub is asked where it is None.
        custom: the files of a custom task, whose returned task has its text columns and labels filled in.

    Raises:
        InputError: a file, a column or a row is missing or wrong, or the Hub can't be reached.
    """
    return task.load(data_dir if custom is None else custom)


def local_files(task: Task, data_dir: Path | None = None, custom: CustomFiles | None = None) -> dict[str, list[Path]]:
    """The files that `load_task` reads, by split; none where the data comes from the Hub."""
    return task.files(data_dir if custom is None else custom)
