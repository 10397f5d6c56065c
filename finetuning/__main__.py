# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""`python -m finetuning TASK [options.yaml] --model_name_or_path M ...`; also under `accelerate launch` and `torchrun`."""

import gc
import logging
import os
import sys

try:  # loading takes seconds, in which Ctrl-C would leave a traceback
    import datasets
    import torch
    from transformers.utils import logging as transformers_logging

    from finetuning.arguments import make_parser, parse, split_command_line
    from finetuning.experiments import compare, sweep
    from finetuning.train import Interrupted, run
    from luna_tools.errors import InputError, first_sentence
except KeyboardInterrupt:
    sys.exit(130)

logger = logging.getLogger(__name__)


def check_launch(world_size: int) -> None:
    """Refuse a launch whose processes do not know of each other: each would train alone."""
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != world_size:
        raise InputError(
            f"{launched} processes were launched, but the Trainer sees {world_size}: on CPU, launch with torchrun and give "
            "--use_cpu."
        )


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        make_parser().print_help()
        return 0
    is_first = os.environ.get("LOCAL_RANK", "0") == "0"
    logging.basicConfig(format="%(message)s", level=logging.WARNING if is_first else logging.ERROR)
    transformers_logging.disable_propagation()
    transformers_logging.disable_progress_bar()  # of loading and writing weights; the Trainer's own stays
    try:
        task_names, options = split_command_line(argv)
        if not any(token.split("=")[0] == "--output_dir" for token in options):
            options = [*options, "--output_dir", f"runs/finetuning/{'-'.join(task_names)}"]
        arguments = parse(task_names[0], options, together=tuple(task_names))
        check_launch(arguments.training.world_size)
        logger.warning("Processes: %d, on %s.", arguments.training.world_size, arguments.training.device.type)
        if arguments.training.disable_tqdm:
            datasets.disable_progress_bars()
        if arguments.run.compare and (arguments.run.sweep or arguments.run.sweep_grid):
            raise InputError("Give either --compare or --sweep: each has runs of its own.")
        if arguments.run.compare:
            compare(task_names, options)
            return 0
        if len(task_names) > 1:
            raise InputError(f"Several tasks ({', '.join(task_names)}) need --compare: otherwise run them one by one.")
        if arguments.run.sweep or arguments.run.sweep_grid:
            sweep(task_names[0], options)
            return 0
        results = run(arguments)
        if arguments.training.should_save:
            print("\n".join(f"{name}: {value}" for name, value in results.items()))
            print(f"Saved in {arguments.training.output_dir}.")
    except InputError as error:
        if is_first:  # all processes stop with the same sentence
            print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        what = f"{error.filename} cannot be used: {error.strerror}" if error.filename else first_sentence(error)
        print(f"error: {what}.", file=sys.stderr)
        return 2
    except Interrupted:
        if is_first:
            print("Interrupted: a checkpoint is saved; give the same command again to go on.", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print(
            "Interrupted: give the same command again to go on from the last checkpoint, if there is one.", file=sys.stderr
        )
        return 130
    finally:
        # Processes that keep a model at exit now and then abort in the backend's own clean-up.
        gc.collect()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
