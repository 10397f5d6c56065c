# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The command line of pretraining: `luna pretrain`, and `python -m pretraining.train` for launchers.

    luna pretrain RECIPE [file.yaml ...] [--max_steps 10] [--model.hidden_size 256]
    accelerate launch -m pretraining.train RECIPE ...
    torchrun --nproc_per_node 2 -m pretraining.train RECIPE ...
    luna pretrain RECIPE --plan

Options are checked before anything heavy is imported.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from luna_tools.command_line import run
from pretraining.dataset_format import MANIFEST, read_manifest
from pretraining.launcher import EngineName, launched_engine, launched_processes
from pretraining.recipe import Recipe, parse_recipe


@dataclass(frozen=True)
class PlanOptions:
    """What a plan is made for, besides the recipe."""

    plan: bool = False
    """Print what the run would do, without training."""
    engine: EngineName | None = None
    """With --plan: the engine (default: the launcher's)."""
    tflops: float | None = None
    """With --plan: model TFLOP/s that a device reaches, to plan time."""
    link_gb_per_second: float | None = None
    """With --plan: GB that a device sends in a second, to plan communication."""


def main(argv: list[str] | None = None) -> None:
    """Train, or plan. See `luna_tools.command_line.run` for what becomes of errors.

    Raises:
        InputError: with one sentence for the user.
        Stopped: a signal came, and the run is saved.
    """
    recipe, options = parse_recipe(sys.argv[1:] if argv is None else argv, PlanOptions)
    if options.plan:
        show_plan(recipe, options)
        return
    from pretraining.run import pretrain

    pretrain(recipe)


def show_plan(recipe: Recipe, options: PlanOptions) -> None:
    """Print the plan of the launch, or of the one that the options describe, on its first process."""
    from pretraining.plan import Cluster, plan

    processes = launched_processes() or recipe.num_processes or 1
    engine = options.engine or launched_engine()
    cluster = Cluster(processes, engine, options.tflops, options.link_gb_per_second)
    is_prepared = (Path(recipe.dataset) / MANIFEST).exists()
    text = plan(recipe, cluster, read_manifest(Path(recipe.dataset)) if is_prepared else None)
    if os.environ.get("RANK", "0") == "0":
        print(text)


if __name__ == "__main__":
    sys.exit(run("pretrain", sys.argv[1:]))
