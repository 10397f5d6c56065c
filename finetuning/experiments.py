# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Many runs of one task or of several: the paper's sweep, and comparisons of heads or checkpoints under equal seeds.

Each run has a folder of its own below the output folder; finished ones are not run again, so both resume where they stopped.
"""

import itertools
import logging
import os
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from transformers import AutoConfig

from finetuning.arguments import POOLINGS, Arguments, parse
from finetuning.finetune import finetune, fit_recipe
from finetuning.model import load_config
from finetuning.run_folder import check_output_dir, describe
from finetuning.tasks import Task
from finetuning.trainer import best_key, make_training_arguments, test_key
from luna_tools.cards import table
from luna_tools.errors import InputError, told
from luna_tools.files import write_json, write_text
from luna_tools.settings import read_yaml, to_options

logger = logging.getLogger(__name__)

POOLING_NAMES = {
    "cls": "[CLS]",
    "packed_mean": "P",
    "packed_max": "P, max",
    "packed_attention": "P, attention",
    "mean": "mean of tokens",
    "mean_unmasked": "mean of tokens, unmasked",
    "packed_mean_unmasked": "P, unmasked",
    "packed_mean_unmasked_no_cls": "P, official",
}


Plan = dict[Path, tuple[dict[str, str], Arguments]]


def plan(task_names: list[str], options: list[str], settings: list[dict[str, str]]) -> Plan:
    """Check every setting of every task before the first one runs.

    Returns:
        By the folder of each run, in order: its task and the options in which it differs, by name, and its arguments.

    Raises:
        InputError: wrong options or a wrong checkpoint in any run, two equal runs, or an option that is set twice.
    """
    planned = {}
    for task_name in task_names:
        base = parse(task_name, options, task_names)
        twice = sorted(base.given & ({name for setting in settings for name in setting} - {"seed", "model_name_or_path"}))
        if twice:
            raise InputError(f"`{twice[0]}` was given, but the runs differ in it: leave it out.")
        has_labels = base.task.name != "custom" or base.data.train_file or base.data.validation_file
        if not (base.run.do_eval and has_labels):
            raise InputError("Runs are compared by their evaluation: give validation rows and no --no_do_eval.")
        for setting in settings:
            # The whole path of a checkpoint: pretraining calls each one "model".
            name = "-".join(f"{name}_{value.strip('/').replace('/', '-')}" for name, value in setting.items())
            folder = Path(base.training.output_dir, *([task_name] if len(task_names) > 1 else []), name)
            if folder in planned:
                values = ", ".join([task_name, *(f"{name} {value}" for name, value in setting.items())])
                raise InputError(f"The run with {values} is there twice: leave out one of them.")
            tokens = to_options(setting | {"output_dir": str(folder)})
            arguments = fit_recipe(parse(task_name, [*options, *tokens], task_names))
            args = make_training_arguments(arguments)
            load_config(arguments)
            check_output_dir(folder, describe(arguments, args))
            planned[folder] = {"task": task_name, **setting}, arguments
    return planned


def run_all(planned: Plan, run_one: Callable) -> list[dict]:
    """Run what was planned; returns one entry per run with its setting, folder and results, in order."""
    entries = []
    for number, (folder, (setting, arguments)) in enumerate(planned.items(), start=1):
        described = ", ".join(f"{name} {value}" for name, value in setting.items())
        logger.warning("Run %d of %d: %s", number, len(planned), described)
        entries.append({**setting, "folder": folder.name, "results": run_one(arguments)})
    return entries


def percent(value: float) -> str:
    return f"{100 * value:.2f}"


# ---------------------------------------------------------------------------------------------------------------------
# Sweep


def read_grid(path: Path) -> dict[str, list[str]]:
    """Option -> its values, as the command line would spell them.

    Raises:
        InputError: the file is missing or is not a grid.
    """
    grid = read_yaml(path)
    if not all(isinstance(values, list) and values for values in grid.values()):
        raise InputError(f"`sweep_grid` {path} must hold `option: [values]` lines, such as `learning_rate: [1e-5, 2e-5]`.")
    if "seed" in grid:
        raise InputError(f"`sweep_grid` {path} holds seed: give the number of seeds with --num_seeds instead.")
    return {name: [str(value) for value in values] for name, values in grid.items()}


def sweep(task_name: str, options: list[str], run_one: Callable = finetune) -> Path:
    """Run the grid, or without one the one setting, over the seeds; writes and prints every run's result, then mean, median
    and maximum of each setting.

    Returns the table's path; `sweep.json` beside it holds the same with all results.
    """
    base = parse(task_name, options)
    grid = {}
    if base.run.sweep or base.run.sweep_grid:
        grid = read_grid(Path(base.run.sweep_grid or Path(__file__).parent / "grids" / base.task.grid))
    config = load_config(base)
    for name in [name for name in grid if hasattr(base.model, name) and not hasattr(config, name)]:
        logger.warning("The grid's %s does not apply to %s, and is left out.", name, config.model_type)
        del grid[name]
    output_dir = Path(base.training.output_dir)
    settings = [
        dict(zip(grid, values, strict=True)) | {"seed": str(base.training.seed + i)}
        for values in itertools.product(*grid.values())
        for i in range(base.run.num_seeds)
    ]
    entries = run_all(plan([task_name], options, settings), run_one)

    key = best_key(base.task)
    keys = [name for name in (key, test_key(base.task)) if all(name in entry["results"] for entry in entries)]
    every_run = [
        [entry["folder"], *(entry[name] for name in (*grid, "seed")), *(percent(entry["results"][name]) for name in keys)]
        for entry in entries
    ]
    groups: dict[tuple[str, ...], list[dict]] = {}
    for entry in entries:
        groups.setdefault(tuple(entry[name] for name in grid), []).append(entry["results"])
    rows = []
    for values, results in groups.items():
        scores = [result[key] for result in results]
        test_means = [statistics.mean(result[name] for result in results) for name in keys[1:]]
        rows.append((*values, statistics.mean(scores), statistics.median(scores), max(scores), *test_means))
    rows.sort(key=lambda row: -row[len(grid) + 1])
    best_first = [[*row[: len(grid)], *map(percent, row[len(grid) :])] for row in rows]
    text = f"""# Sweep of {base.task.title}: every run

{table(("run", *grid, "seed", *keys), every_run)}

Over {base.run.num_seeds} seed(s), best median first:

{table((*grid, "mean", "median", "maximum", *(f"mean {name}" for name in keys[1:])), best_first)}
"""
    return save(output_dir, "sweep", text, {"task": task_name, "metric": key, "runs": entries})


def save(output_dir: Path, name: str, text: str, values: dict) -> Path:
    """Write `<name>.md` and `<name>.json` and print the text, on the first process."""
    if os.environ.get("RANK", "0") == "0":
        output_dir.mkdir(parents=True, exist_ok=True)
        write_json(output_dir / f"{name}.json", values)
        write_text(output_dir / f"{name}.md", text)
        print(f"\n{text}\nSaved as {output_dir / name}.md and .json.")
    return output_dir / f"{name}.md"


# ---------------------------------------------------------------------------------------------------------------------
# Comparison


def contestants(bases: list[Arguments]) -> list[tuple[str, dict[str, str]]]:
    """Label and options of each contestant: the name of a head ("packed" is "packed_mean"), or a checkpoint.

    Args:
        bases: the arguments of each task.

    Raises:
        InputError: a name that is neither, a head for a model without the choice, or for a task whose head reads
            every token.
    """
    model, found = bases[0].model, []
    for name in bases[0].run.compare:
        pooling = "packed_mean" if name == "packed" else name
        checkpoint = model.model_name_or_path if pooling in POOLINGS else name
        neither = f"`compare` has {name}, which is neither a head (packed, {', '.join(POOLINGS)}) nor a checkpoint"
        if checkpoint is None:
            config = load_config(bases[0])
        else:
            with told(neither if checkpoint == name else f"{checkpoint} cannot be read", "correct it"):
                config = AutoConfig.from_pretrained(**replace(model, model_name_or_path=checkpoint).source)
        label = (
            f"Luna-{config.projection_length}" if config.model_type == "luna" else Path(checkpoint or config.model_type).name
        )
        if pooling not in POOLINGS:
            found.append((label, {"model_name_or_path": name}))
            continue
        if any(base.task.kind == "token_classification" for base in bases):
            raise InputError(f"`compare` has {name}, but token classification reads every token: compare checkpoints.")
        if not hasattr(config, "classifier_pooling"):
            raise InputError(
                f"`compare` has {name}, but {model.name} ({config.model_type}) has no choice of heads: compare checkpoints."
            )
        found.append((f"{label}, {POOLING_NAMES[pooling]}", {"classifier_pooling": pooling}))
    if len(found) < 2:
        raise InputError("`compare` needs at least two heads or checkpoints, such as `--compare cls packed`.")
    return found


def compare(task_names: list[str], options: list[str], run_one: Callable = finetune) -> Path:
    """Run heads or checkpoints on each task under equal seeds; writes and prints a table in the layout of Table 3.

    Returns the table's path; `compare.json` beside it holds all results.
    """
    bases = [parse(name, options, task_names) for name in task_names]
    base = bases[0]
    entrants = contestants(bases)
    labels = [label for label, _ in entrants]
    if len(set(labels)) < len(labels):  # checkpoints of one architecture
        labels = [next(iter(setting.values())) for _, setting in entrants]
    seeds = [str(base.training.seed + i) for i in range(base.run.num_seeds)]
    settings = [setting | {"seed": seed} for _, setting in entrants for seed in seeds]
    tasks = {name: each.task for name, each in zip(task_names, bases, strict=True)}
    validation = {name: best_key(task) for name, task in tasks.items()}
    entries = run_all(plan(task_names, options, settings), run_one)
    runs = [{"metric": validation[entry["task"]], **entry} for entry in entries]
    test = {name: test_key(task) for name, task in tasks.items()}
    text = score_table(labels, tasks, runs, validation, len(seeds))
    if all(test[entry["task"]] in entry["results"] for entry in runs):  # the test rows' labels are given
        text += "\n" + score_table(labels, tasks, runs, test, len(seeds))
    return save(Path(base.training.output_dir), "compare", text, {"tasks": task_names, "runs": runs})


def score_table(labels: list[str], tasks: dict[str, Task], runs: list[dict], keys: dict[str, str], num_seeds: int) -> str:
    """A line per contestant and a column per task, in the layout of Table 3.

    Args:
        runs: by task, contestant and seed, in this order.
        keys: by task, the result that counts.
    """
    values = iter([entry["results"][keys[entry["task"]]] for entry in runs])
    scores = {label: [] for label in labels}
    for _, label in itertools.product(tasks, labels):
        scores[label].append(list(itertools.islice(values, num_seeds)))
    rows = []
    for label, of_tasks in scores.items():
        means = [statistics.mean(seeds) for seeds in of_tasks]
        spreads = [f" ± {percent(statistics.stdev(seeds))}" if num_seeds > 1 else "" for seeds in of_tasks]
        cells = [percent(mean) + spread for mean, spread in zip(means, spreads, strict=True)]
        rows.append([label, *cells, percent(statistics.mean(means))])
    titles = {name: task.title for name, task in tasks.items()}
    metrics = ", ".join(f"{title}: {keys[name]}" for name, title in titles.items())
    spread = " ± standard deviation" if num_seeds > 1 else ""
    return f"""{table(("Models", *titles.values(), "Avg."), rows)}

{metrics}, in %; mean{spread} over {num_seeds} seed(s).
"""
