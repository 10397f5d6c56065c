# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Lay out tables 1 and 3 of the paper, with its figures and those of runs of the fine-tuning program, and the reduced runs.

`python -m scripts.reports.long_range_arena [FOLDER ...] > docs/benchmarks/long_range_arena/tables.md` adds the finished runs
below the folders to `results.json` beside that file, and prints the tables of all that it holds. A cell counts runs of a
recipe of the paper or the official repository on the whole data; what was changed otherwise is no cell of the paper's.
"""

import argparse
import json
import statistics
from collections import Counter
from pathlib import Path

import yaml

from finetuning.arguments import RECIPES
from finetuning.tasks.lra import LRA_TASKS
from luna_tools.cards import table
from luna_tools.files import write_json

RESULTS = Path("docs/benchmarks/long_range_arena/results.json")
# Rows of training, and what a cell needs that is not run.
TASKS = {
    "listops": ("ListOps", 96_000, "a GPU"),
    "text": ("Text", 25_000, "the Hub's rows and a GPU"),
    "retrieval": ("Retrieval", 147_086, "lra_release and a GPU"),
    "image": ("Image", 45_000, "the Hub's rows and a GPU"),
    "pathfinder32": ("Pathfinder", 160_000, "a GPU"),
}
# Table 1, in the order of the tasks; the average of all, and without Retrieval.
TABLE_1 = {
    "Transformer": (36.37, 64.27, 57.46, 42.44, 71.40, 54.39, 53.62),
    "Transformer (re-impl)": (37.11, 65.21, 79.14, 42.94, 71.83, 59.24, 54.27),
    "Luna-16": (37.43, 65.74, 79.38, 46.39, 78.36, 61.46, 56.98),
    "Luna-128": (38.01, 65.74, 79.55, 47.47, 78.89, 61.93, 57.53),
    "Luna-256": (37.98, 65.78, 79.56, 47.86, 78.55, 61.95, 57.54),
}
# Table 3, of the first three tasks and their average.
TABLE_3 = {
    "Luna-16, [CLS]": (37.43, 65.74, 79.38, 60.85),
    "Luna-16, P": (38.06, 65.81, 80.22, 61.36),
    "Luna-128, [CLS]": (38.01, 65.74, 79.55, 61.10),
    "Luna-128, P": (38.27, 65.89, 80.27, 61.48),
    "Luna-256, [CLS]": (37.98, 65.78, 79.56, 61.11),
    "Luna-256, P": (38.36, 66.07, 80.25, 61.56),
}
REPRESENTATIONS = {"[CLS]": ("cls",), "P": ("packed_mean", "packed_mean_unmasked", "packed_mean_unmasked_no_cls")}
# Options that change where and how fast a run is, and those that choose a cell.
HARMLESS = set("data_dir output_dir seed num_seeds recipe disable_tqdm use_cpu dataloader_num_workers".split())
HARMLESS |= set("per_device_train_batch_size per_device_eval_batch_size logging_steps license language report_to".split())
CHOOSING = {"model_type", "model", "classifier_pooling", "compare"}


def read_run(folder: Path) -> dict | None:
    """What the tables need of a finished run of one of these tasks; None of any other folder."""
    read = {}
    for name in ("run", "all_results", "timing", "trainer_state"):
        path = folder / f"{name}.json"
        if not path.is_file():
            return None
        read[name] = json.loads(path.read_text(encoding="utf-8"))
    run, results = read["run"], read["all_results"]
    if run["task"] not in {task.name for task in LRA_TASKS}:
        return None
    split = "test" if "test_accuracy" in results else "validation"
    prefix = "test" if split == "test" else "eval"
    predictions = (folder / f"predictions_{split}.jsonl").read_text(encoding="utf-8").splitlines()
    labels = Counter(json.loads(line)["label"] for line in predictions)
    return {
        **{name: run[name] for name in ("task", "recipe", "given", "model_type", "model", "classifier_pooling", "seed")},
        "train_rows": results["train_samples"],
        "steps": results["train_steps"],
        "split": split,
        "accuracy": results[f"{prefix}_accuracy"],
        "majority": max(labels.values()) / labels.total(),
        "evaluations": {
            str(entry["step"]): entry["eval_accuracy"]  # as JSON has it
            for entry in read["trainer_state"]["log_history"]
            if "eval_accuracy" in entry
        },
        **{name: read["timing"][name] for name in ("device", "seconds_per_step")},
    }


def recipe_model(run: dict) -> dict:
    """The model's fields in the recipe of a run."""
    files = {task.name: task.recipes for task in LRA_TASKS}[run["task"]]
    recipe = run["recipe"] or Path(files[0]).parent.name
    file = next((file for file in files if Path(file).parent.name == recipe), None)
    return yaml.safe_load((RECIPES / file).read_text(encoding="utf-8"))["model"] if file else {}


def is_of_the_paper(run: dict) -> bool:
    """Whether a run is a cell of the paper's: a published recipe, unchanged but for what chooses the cell, on all rows."""
    if run["task"] not in TASKS or run["recipe"] not in (None, "paper", "official"):
        return False
    fields = {name: value for name, value in run["model"].items() if name != "projection_length"}
    unchanged = fields == {name: value for name, value in recipe_model(run).items() if name != "projection_length"}
    return unchanged and set(run["given"]) <= HARMLESS | CHOOSING and run["train_rows"] == TASKS[run["task"]][1]


def label(run: dict) -> str:
    return f"Luna-{run['model']['projection_length']}" if run["model_type"] == "luna" else "Transformer (re-impl)"


def experiments(runs: list[dict]) -> dict[str, dict[int, float]]:
    """Accuracy in % by seed, of each recipe and pooling; a seed that was trained again counts once."""
    found: dict[str, dict[int, float]] = {}
    for run in runs:
        name = run["recipe"] or "paper"
        if run["classifier_pooling"] not in ("cls", "mean", "packed_mean"):
            name += f", {run['classifier_pooling']}"
        found.setdefault(name, {})[run["seed"]] = 100 * run["accuracy"]
    return found


def cell(runs: list[dict], needs: str) -> str:
    """Mean and standard deviation over the seeds in %, of each recipe and pooling, or why there are none."""
    if not runs:
        return f"not run: needs {needs}"
    entries = []
    for name, scores in sorted(experiments(runs).items()):
        spread = f" ± {statistics.stdev(scores.values()):.2f}" if len(scores) > 1 else ""
        count = f"{len(scores)} seed{'s' * (len(scores) > 1)}"
        entries.append(f"{statistics.mean(scores.values()):.2f}{spread} ({count}, {name})")
    return "; ".join(entries)


def average(cells: list[list[dict]]) -> str:
    """The mean over the tasks, where all of them are run by one recipe with one pooling."""
    found = [experiments(runs) for runs in cells]
    if not all(found) or len({name for of_cell in found for name in of_cell}) > 1:
        return ""
    means = [statistics.mean(scores.values()) for of_cell in found for scores in of_cell.values()]
    return f"{statistics.mean(means):.2f}"


def lay_out(
    figures: dict[str, tuple[float, ...]], titles: list[str], averages: int, chosen: dict[str, list[list[dict]]]
) -> str:
    """The paper's line and ours of each model.

    Args:
        figures: by model, the paper's.
        titles: of the tasks, then of the averages.
        averages: how many; the first is over all tasks, the second leaves out Retrieval.
        chosen: by model, the runs of each task; a model that is not in it has the paper's line alone.
    """
    tasks = list(TASKS)[: len(titles) - averages]
    rows = []
    for model, values in figures.items():
        rows.append([model, "paper", *(f"{value:.2f}" for value in values)])
        if model in chosen:
            cells = chosen[model]
            ours = [cell(runs, TASKS[name][2]) for name, runs in zip(tasks, cells, strict=True)]
            others = [runs for name, runs in zip(tasks, cells, strict=True) if name != "retrieval"]
            rows.append([model, "here", *ours, *[average(cells), average(others)][:averages]])
    return table(("Models", "", *titles), rows)


def reduced_table(runs: list[dict]) -> str:
    """Every run that is no cell of the paper's, grouped by what was trained."""
    groups: dict[tuple, list[dict]] = {}
    for run in runs:
        key = (run["task"], run["recipe"], label(run), run["classifier_pooling"], run["train_rows"], run["steps"])
        groups.setdefault(key, []).append(run)
    rows = []
    for (task, recipe, model, pooling, train_rows, steps), group in groups.items():
        scores = ", ".join(f"{100 * run['accuracy']:.1f}" for run in sorted(group, key=lambda run: run["seed"]))
        seconds = statistics.mean(run["seconds_per_step"] for run in group)
        what = [task, recipe or "paper", f"{model}, {pooling}", f"{train_rows:,}", f"{steps:,}", scores]
        rows.append([*what, f"{100 * group[0]['majority']:.1f}", f"{seconds:.2f}", group[0]["device"]])
    header = ("task", "recipe", "model", "rows", "steps", "accuracy of each seed", "majority class", "s per step", "device")
    return table(header, rows)


def tables(runs: list[dict]) -> str:
    """The whole document."""
    own, others = [], []
    for run in runs:
        (own if is_of_the_paper(run) else others).append(run)

    def of(model: str, name: str, poolings: tuple[str, ...] | None = None) -> list[dict]:
        wanted = poolings or (("mean",) if name.startswith("pathfinder") else ("cls",))
        return [r for r in own if (label(r), r["task"]) == (model, name) and r["classifier_pooling"] in wanted]

    table_1 = {model: [of(model, name) for name in TASKS] for model in TABLE_1 if model != "Transformer"}
    table_3 = {}
    for row in TABLE_3:
        model, representation = row.split(", ")
        table_3[row] = [of(model, name, REPRESENTATIONS[representation]) for name in list(TASKS)[:3]]
    titles = [title for title, *_ in TASKS.values()]
    return f"""# The Long Range Arena: tables

Accuracy in %, of the test rows (of Text, which the benchmark validates on them, the best evaluation). The paper's figures
are means of five seeds. [long_range_arena.md](../../long_range_arena.md) has the command of each cell, and of this file.

## Table 1

{lay_out(TABLE_1, [*titles, "Avg.", "Avg. (w/o rtl)"], 2, table_1)}

## Table 3

{lay_out(TABLE_3, [*titles[:3], "Avg."], 1, table_3)}

## Reduced runs

Smaller models on smaller data, to see that the program learns: no figures of the paper's.

{reduced_table(others) if others else "None."}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path, help="whose finished runs are added")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file that they are added to")
    arguments = parser.parse_args()
    runs = json.loads(arguments.results.read_text(encoding="utf-8")) if arguments.results.is_file() else []
    found = [read_run(path.parent) for folder in arguments.folders for path in sorted(folder.rglob("all_results.json"))]
    runs += [run for run in found if run is not None and run not in runs]
    if arguments.folders:
        arguments.results.parent.mkdir(parents=True, exist_ok=True)
        write_json(arguments.results, runs)
    print(tables(runs), end="")


if __name__ == "__main__":
    main()
