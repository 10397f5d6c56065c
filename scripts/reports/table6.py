# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Lay out Table 6: the paper's figures, those of the fine-tuning runs below a folder, and what the others need.

    python -m scripts.reports.table6 --runs_dir runs/table6 > docs/table6.md

The runs of a cell are those in `runs_dir/MODEL/TASK` or in folders below it, one a seed; the table gives their median.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from finetuning.run_folder import read_json, read_results
from finetuning.tasks import TASKS
from finetuning.trainer import best_key
from luna_tools.cards import table
from luna_tools.command_line import exit_status
from luna_tools.errors import InputError

COLUMNS = ("sst2", "qnli", "qqp", "race", "csqa")


@dataclass(frozen=True)
class Model:
    """A line of the table.

    Attributes:
        title, data: as the paper has them.
        paper: accuracy on each task's development set, in %; None where the paper has none.
        checkpoint: what is fine-tuned, a folder or a name on the Hub; None where there is nothing to fine-tune.
        source: where the checkpoint comes from.
    """

    title: str
    data: str
    paper: tuple[float | None, ...]
    checkpoint: str | None
    source: str


MODELS = {
    "bert_base": Model(
        "BERT-base",
        "16GB",
        (92.7, 88.4, 89.6, 64.2, 53.3),
        "google-bert/bert-base-uncased",
        "the Hub has its authors' weights",
    ),
    "roberta_base_16gb": Model(
        "RoBERTa-base",
        "16GB",
        (93.1, 90.9, 90.9, 65.6, None),
        "runs/roberta_base_16gb/model",
        "`luna pretrain roberta_base_16gb`",
    ),
    "linformer": Model("Linformer-128", "16GB", (92.4, 90.4, 90.2, None, None), None, "transformers does not carry it"),
    "luna_base_16gb": Model(
        "Luna-128, tied kv",
        "16GB",
        (93.1, 91.2, 90.8, 65.2, 53.1),
        "runs/luna_base_16gb/model",
        "`luna pretrain luna_base_16gb`",
    ),
    "roberta_base_160gb": Model(
        "RoBERTa-base",
        "160GB",
        (94.8, 92.8, 91.9, 73.50, 63.61),
        "FacebookAI/roberta-base",
        "the Hub has its authors' weights; `luna pretrain roberta_base_160gb` makes new ones",
    ),
    "luna_base_160gb_tied": Model(
        "Luna-128, tied kv",
        "160GB",
        (94.3, 91.5, 91.2, 71.50, 61.48),
        "runs/luna_base_160gb_tied/model",
        "`luna pretrain luna_base_160gb_tied`, or the authors' checkpoint by `luna convert`",
    ),
    "luna_base_160gb_untied": Model(
        "Luna-128",
        "160GB",
        (94.6, 92.2, 91.3, 72.25, 62.08),
        "runs/luna_base_160gb_untied/model",
        "`luna pretrain luna_base_160gb_untied`, or the authors' checkpoint by `luna convert`",
    ),
}


def scores(folder: Path, task_name: str) -> list[float]:
    """Development accuracy in % of the finished runs in a folder and below it.

    Raises:
        InputError: a run is of another task.
    """
    found = []
    for path in sorted(folder.rglob("all_results.json")):
        task = read_json(path.with_name("run.json"))["task"]
        if task != task_name:
            raise InputError(f"{path.parent} holds a run of the task {task}: move it to the folder of that task.")
        found.append(100 * read_results(path.parent)[best_key(TASKS[task_name])])
    return found


def finetune_command(name: str, runs_dir: Path) -> str:
    """What runs all tasks of a line, one after the other."""
    return (
        f"for task in {' '.join(COLUMNS)}; do luna finetune $task --recipe official --model_name_or_path "
        f"{MODELS[name].checkpoint} --output_dir {runs_dir / name}/$task; done"
    )


def missing(model: Model) -> str:
    """What the cells of a line need that have no run."""
    if model.checkpoint is None:
        return model.source
    if model.checkpoint.startswith("runs/") and not Path(model.checkpoint).is_dir():
        return f"{model.checkpoint}: {model.source}; then the tasks' rows"
    return f"the tasks' rows; {model.source}"


def layout(runs_dir: Path) -> str:
    """The page.

    Raises:
        InputError: a run lies in the folder of another task.
    """
    rows, needs, commands = [], [], []
    for name, model in MODELS.items():
        cells, lacking = [], []
        for task_name, paper in zip(COLUMNS, model.paper, strict=True):
            found = scores(runs_dir / name / task_name, task_name)
            own = f"{median(found):.2f}" + (f" ({len(found)} runs)" if len(found) > 1 else "") if found else "not run"
            cells.append(f"{'-' if paper is None else f'{paper:g}'} / {own}")
            if not found:
                lacking.append(TASKS[task_name].title)
        rows.append([model.title, model.data, *cells])
        if lacking:
            needs.append([f"{model.title}, {model.data}", ", ".join(lacking), missing(model)])
            if model.checkpoint is not None:
                commands.append(finetune_command(name, runs_dir))
    titles = [f"{TASKS[name].title}" for name in COLUMNS]
    page = [
        "# Table 6",
        "Accuracy on the development sets, in %: the paper's figure / ours.",
        table(("Model", "data", *titles), rows),
    ]
    if needs:
        page += [
            "What is not run, and needs:",
            table(("Model", "tasks", "needs"), needs),
            "Pretraining needs the corpora ([corpora.md](corpora.md)) and, to end in days, 64 GPUs "
            "([clusters.md](clusters.md)); the tasks' rows come from the Hub, or from `--data_dir` "
            "([finetuning.md](finetuning.md)). The commands, a line of the table each, by the official recipes:",
            "```bash\n# needs the Hub, the checkpoints and a GPU\n" + "\n".join(commands) + "\n```",
        ]
    page.append(
        "This page is what the following command prints. It reads every run that is finished in these folders.\n\n"
        f"```bash\npython -m scripts.reports.table6 --runs_dir {runs_dir}\n```"
    )
    return "\n\n".join(page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs_dir", type=Path, default=Path("runs/table6"))
    print(layout(parser.parse_args().runs_dir))


if __name__ == "__main__":
    sys.exit(exit_status(main, "table6"))
