# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""From a fresh machine to a trained Luna: set up, prepare real text, pretrain, fill masks.

Every stage that is done is not done again; a stage that was interrupted goes on where it was.
"""

import argparse
import sys

import environment

STAGES = (
    ("Prepare the docstrings of Python's standard library", ["luna_tools.command_line", "prepare", "quickstart"]),
    ("Pretrain (about five minutes on two cores)", ["luna_tools.command_line", "pretrain", "quickstart"]),
    (
        "Fill masks in sentences that were held out",
        ["pretraining.fill_masks", "runs/quickstart/model", "--dataset", "data/python-docs"],
    ),
)


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print("[1/4] Set up the environment", flush=True)
    try:
        python = environment.ensure("pretrain,finetune")
        for number, (title, arguments) in enumerate(STAGES, start=2):
            print(f"[{number}/4] {title}", flush=True)
            status = environment.run([python, "-m", *arguments])
            if status != 0:
                return status
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
