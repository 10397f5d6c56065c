# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Average the weights of checkpoints, the last of a run as a rule, into one model.

`python -m pretraining.average CHECKPOINT CHECKPOINT ... --output_dir FOLDER`
"""

import argparse
import sys
from pathlib import Path

from luna_tools.command_line import exit_status
from luna_tools.errors import InputError

PROG = "python -m pretraining.average"


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog=PROG, description=__doc__.splitlines()[0])
    parser.add_argument(
        "checkpoints", nargs="+", type=Path, metavar="CHECKPOINT", help="a folder, runs/R/checkpoints/step-N"
    )
    parser.add_argument("--output_dir", required=True, type=Path, help="a new folder for the model")
    options = parser.parse_args(argv)
    if len(options.checkpoints) < 2:
        raise InputError("One checkpoint is given: give two or more to average.")
    if options.output_dir.exists():
        raise InputError(f"--output_dir {options.output_dir} is there already: choose another folder.")

    from luna_tools.average import average_weights

    weights = average_weights(options.checkpoints)

    from transformers import AutoTokenizer

    import modeling_luna  # noqa: F401  (registers Luna with the Auto classes)
    from luna_tools.load import quiet_transformers
    from pretraining.checkpoint import load_trainer_state
    from pretraining.objectives import OBJECTIVES

    auto_class = OBJECTIVES[load_trainer_state(options.checkpoints[-1])["recipe"]["objective"]].auto_class
    with quiet_transformers():
        model = auto_class.from_pretrained(options.checkpoints[-1])
        model.save_pretrained(options.output_dir, state_dict=weights)
        AutoTokenizer.from_pretrained(options.checkpoints[-1]).save_pretrained(options.output_dir)
    print(f"The mean of {len(options.checkpoints)} checkpoints is in {options.output_dir}.")


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:]), PROG, extra="pretrain"))
