# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""All tasks by name. A new family is one file beside this one and its tasks in `TASKS`."""

from finetuning.tasks.custom import CUSTOM_RECIPES, custom_task
from finetuning.tasks.glue import GLUE_TASKS
from finetuning.tasks.lra import LRA_TASKS
from finetuning.tasks.question_answering import QUESTION_ANSWERING_TASKS
from finetuning.tasks.task import Task, TaskData, TaskKind

__all__ = ["CUSTOM_RECIPES", "TASKS", "Task", "TaskData", "TaskKind", "custom_task"]

TASKS: dict[str, Task] = {task.name: task for task in (*GLUE_TASKS, *QUESTION_ANSWERING_TASKS, *LRA_TASKS)}
