# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Many runs of one task or of several: the paper's sweep, and comparisons of heads or checkpoints under equal seeds.

Each run has a folder of its own below the output folder; finished ones are not run again, so both resume where they stopped.
"""

import itertools
import logging
import statistics
from collections.abc import Callable
from pathlib import Path

import yaml
from transformers import AutoConfig

from finetuning.arguments import POOLINGS, Arguments, parse
from finetuning.errors import FinetuningError
from finetuning.tasks import TASKS
from finetuning.train import best_key, run, write_json

logger = logging.getLogger(__name__)

POOLING_NAMES = {
    "cls": "[CLS]",
    "packed_mean": "P",
    "packed_max": "P, max",
    "packed_attention": "P, attention",
    "mean": "mean of tokens",
}


def run_all(
    task_name: str, options: list[str], settings: list[dict[str, str]], output_dir: Path, run_one: Callable
) -> list[dict]:
    """Run every setting; returns one entry per run with its setting, folder and results, in order."""
    planned = []  # all settings are parsed before the first one runs
    for setting in settings:
        # The whole path of a checkpoint: pretraining calls each one "model".
        folder = output_dir / "-".join(f"{name}_{value.strip('/').replace('/', '-')}" for name, value in setting.items())
        tokens = [token for name, value in setting.items() for token in (f"--{name}", value)]
        planned.append((setting, folder, parse(task_name, [*options, *tokens, "--output_dir", str(folder)])))
    entries = []
    for number, (setting, folder, arguments) in enumerate(planned, start=1):
        logger.warning("Run %d of %d: %s", number, len(settings), ", ".join(f"{k} {v}" for k, v in setting.items()))
        entries.append({**setting, "folder": folder.name, "results": run_one(arguments)})
    return entries


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def percent(value: float) -> str:
    return f"{100 * value:.2f}"


# ---------------------------------------------------------------------------------------------------------------------
# Sweep


def read_grid(path: Path) -> dict[str, list[str]]:
    """Option -> its values, as the command line would spell them.

    Raises:
        FinetuningError: the file is missing or is not a grid.
    """
    try:
        grid = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise FinetuningError(
            f"`sweep_grid` {path} cannot be read as YAML: give a file of `option: [values]` lines."
        ) from error
    if not isinstance(grid, dict) or not all(isinstance(values, list) and values for values in grid.values()):
        raise FinetuningError(
            f"`sweep_grid` {path} must hold `option: [values]` lines, such as `learning_rate: [1e-5, 2e-5]`."
        )
    if "seed" in grid:
        raise FinetuningError(f"`sweep_grid` {path} holds seed: give the number of seeds with --num_seeds instead.")
    return {name: [str(value) for value in values] for name, values in grid.items()}


def sweep(task_name: str, options: list[str], run_one: Callable = run) -> Path:
    """Run the grid over the seeds; writes and prints every run's result, then median and maximum of each setting.

    Returns the table's path; `sweep.json` beside it holds the same with all results.
    """
    base = parse(task_name, options)
    paper_grid = "qa.yaml" if base.task.family in ("race", "csqa") else "glue.yaml"
    grid = read_grid(Path(base.run.sweep_grid or Path(__file__).parent / "grids" / paper_grid))
    output_dir = Path(base.training.output_dir)
    settings = [
        dict(zip(grid, values, strict=True)) | {"seed": str(base.training.seed + i)}
        for values in itertools.product(*grid.values())
        for i in range(base.run.num_seeds)
    ]
    entries = run_all(task_name, options, settings, output_dir, run_one)

    key = best_key(base.task)
    rows = [
        [entry["folder"], *(entry[name] for name in (*grid, "seed")), percent(entry["results"][key])] for entry in entries
    ]
    table = f"# Sweep of {base.task.title}: every run\n\n" + markdown_table(["run", *grid, "seed", key], rows)
    groups: dict[tuple[str, ...], list[float]] = {}
    for entry in entries:
        groups.setdefault(tuple(entry[name] for name in grid), []).append(entry["results"][key])
    rows = [
        [*values, percent(statistics.median(scores)), percent(max(scores))]
        for values, scores in sorted(groups.items(), key=lambda item: -statistics.median(item[1]))
    ]
    table += f"\nOver {base.run.num_seeds} seed(s), best median first:\n\n" + markdown_table(
        [*grid, "median", "maximum"], rows
    )
    return save(output_dir, "sweep", table, {"task": task_name, "metric": key, "runs": entries}, base)


def save(output_dir: Path, name: str, table: str, values: dict, arguments: Arguments) -> Path:
    """Write `<name>.md` and `<name>.json` and print the table, on the first process."""
    if arguments.training.should_save:
        output_dir.mkdir(parents=True, exist_ok=True)
        write_json(output_dir / f"{name}.json", values)
        (output_dir / f"{name}.md").write_text(table, encoding="utf-8")
        print(f"\n{table}\nSaved as {output_dir / name}.md and .json.")
    return output_dir / f"{name}.md"


# ---------------------------------------------------------------------------------------------------------------------
# Comparison


def contestants(arguments: Arguments) -> list[tuple[str, dict[str, str]]]:
    """Label and options of each contestant: the name of a head ("packed" is "packed_mean"), or a checkpoint.

    Raises:
        FinetuningError: a head for a model without the choice, or for a task whose head reads every token.
    """
    found = []
    for name in arguments.run.compare:
        pooling = "packed_mean" if name == "packed" else name
        if pooling not in POOLINGS:
            found.append((model_label(name), {"model_name_or_path": name}))
            continue
        if arguments.task.kind == "token_classification":
            raise FinetuningError(f"`compare` has {name}, but token classification reads every token: compare checkpoints.")
        label = f"{model_label(arguments.model.model_name_or_path)}, {POOLING_NAMES[pooling]}"
        found.append((label, {"classifier_pooling": pooling}))
    if len(found) < 2:
        raise FinetuningError("`compare` needs at least two heads or checkpoints, such as `--compare cls packed`.")
    return found


def model_label(name_or_path: str) -> str:
    """As Table 3 names a Luna, "Luna-16"; the name of any other checkpoint."""
    try:
        config = AutoConfig.from_pretrained(name_or_path)
    except (OSError, ValueError):
        return name_or_path  # the run itself says what is wrong with it
    return f"Luna-{config.projection_length}" if config.model_type == "luna" else Path(name_or_path).name


def compare(task_names: list[str], options: list[str], run_one: Callable = run) -> Path:
    """Run heads or checkpoints on each task under equal seeds; writes and prints a table in the layout of Table 3.

    Returns the table's path; `compare.json` beside it holds all results.
    """
    base = parse(task_names[0], options)
    output_dir = Path(base.training.output_dir)
    entrants = contestants(base)
    labels = [label for label, _ in entrants]
    if len(set(labels)) < len(labels):  # checkpoints of one architecture
        labels = [next(iter(setting.values())) for _, setting in entrants]
    seeds = [str(base.training.seed + i) for i in range(base.run.num_seeds)]
    runs, scores = [], {label: [] for label in labels}
    for task_name in task_names:
        settings = [setting | {"seed": seed} for _, setting in entrants for seed in seeds]
        folder = output_dir / task_name if len(task_names) > 1 else output_dir
        entries = run_all(task_name, options, settings, folder, run_one)
        key = best_key(parse(task_name, options).task)
        runs += [{"task": task_name, "metric": key, **entry} for entry in entries]
        for i, label in enumerate(labels):
            scores[label].append([entry["results"][key] for entry in entries[i * len(seeds) : (i + 1) * len(seeds)]])

    titles = [TASKS[name].title if name in TASKS else name for name in task_names]
    rows = []
    for label in labels:
        means = [statistics.mean(values) for values in scores[label]]
        cells = [
            percent(mean) + (f" ± {percent(statistics.stdev(values))}" if len(values) > 1 else "")
            for mean, values in zip(means, scores[label], strict=True)
        ]
        rows.append([label, *cells, percent(statistics.mean(means))])
    keys = {entry["task"]: entry["metric"] for entry in runs}
    metrics = ", ".join(f"{title}: {keys[name]}" for title, name in zip(titles, task_names, strict=True))
    table = markdown_table(["Models", *titles, "Avg."], rows)
    table += f"\n{metrics}, in %; mean{' ± standard deviation' if len(seeds) > 1 else ''} over {len(seeds)} seed(s).\n"
    return save(output_dir, "compare", table, {"tasks": task_names, "runs": runs}, base)
