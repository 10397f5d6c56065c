# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""From a fresh machine to a trained Luna: set up, prepare real text, pretrain, fill masks.

Every stage that is done is not done again; a stage that was interrupted goes on where it was.
"""

import sys

import environment

DATASET = "data/python-docs"
STAGES = (
    (
        "Prepare the docstrings of Python's standard library",
        ["-m", "pretraining.prepare", DATASET, "--source", "python-docs", "--vocab_size", "4096"]
        + ["--sequence_length", "128", "--validation_fraction", "0.05"],
    ),
    ("Pretrain (about five minutes on two cores)", ["-m", "pretraining.train", "quickstart"]),
    ("Fill masks in sentences that were held out", ["scripts/fill_masks.py", "runs/quickstart/model", DATASET]),
)


def main():
    print("[1/4] Set up the environment", flush=True)
    try:
        python = environment.ensure("pretrain,finetune")
        for number, (title, arguments) in enumerate(STAGES, start=2):
            print(f"[{number}/4] {title}", flush=True)
            status = environment.run([python, *arguments])
            if status != 0:
                return status
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
