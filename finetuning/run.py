# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The program `luna finetune`, or `python -m finetuning` under `torchrun` and `accelerate launch`.

The command line is read and checked before torch and transformers are imported, which takes seconds.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from finetuning.arguments import USAGE, make_parser, parse, split_command_line


def main(argv: list[str]) -> None:
    """Run what the command line asks for.

    Raises:
        InputError: wrong input.
        Stopped: a signal came, and a checkpoint is saved.
    """
    if argv[:1] == ["translation"]:
        from finetuning.translation.run import main as train_translation

        train_translation(argv[1:])
        return
    if not argv:
        print(USAGE)
        return
    if {"-h", "--help"} & set(argv):
        make_parser().print_help()
        return
    task_names, options = split_command_line(argv)
    arguments = parse(task_names[0], options, task_names)
    with libraries_set(arguments.training.disable_tqdm):
        from finetuning.experiments import compare, sweep
        from finetuning.finetune import finetune, fit_recipe
        from finetuning.trainer import make_training_arguments

        args = make_training_arguments(arguments)
        logging.getLogger(__name__).warning("Processes: %d, on %s.", args.world_size, args.device.type)
        if arguments.run.compare:
            compare(task_names, options)
        elif arguments.run.sweep or arguments.run.sweep_grid or arguments.run.num_seeds > 1:
            sweep(task_names[0], options)
        else:
            results = finetune(fit_recipe(arguments))
            if args.should_save:
                print("\n".join(f"{name}: {value}" for name, value in results.items()))
                print(f"Saved in {args.output_dir}.")


@contextmanager
def libraries_set(disable_tqdm: bool) -> Iterator[None]:
    """The libraries as the programs want them: what they tell, and on which device; at the end the processes part."""
    is_first = os.environ.get("LOCAL_RANK", "0") == "0"
    logging.basicConfig(format="%(message)s", level=logging.WARNING if is_first else logging.ERROR)

    import datasets
    import torch
    from transformers.utils import logging as transformers_logging

    from finetuning.trainer import end_processes

    transformers_logging.disable_propagation()
    transformers_logging.disable_progress_bar()  # of loading and writing weights; the Trainer's own stays
    if disable_tqdm:
        datasets.disable_progress_bars()
    if not torch.accelerator.is_available():
        os.environ.setdefault("ACCELERATE_TORCH_DEVICE", "cpu")  # and not cpu:0, to which torch 2.11 loads nothing
    try:
        yield
    finally:
        end_processes()
