# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""From a fresh machine to a trained Luna: set up, prepare real text, pretrain, show what was learned.

Every stage that is done is not done again; a stage that was interrupted goes on where it was.
"""

import argparse
import os
import subprocess
import sys

import environment

MODEL, DATASET = "runs/quickstart/model", "data/python-docs"
NEXT = f"""
The loss over the steps: runs/quickstart/loss.png. Next, after `source .venv/bin/activate`:

    python -m scripts.label_sentences "Send a request to the server."  # fine-tune on docstrings, label your sentence
    luna plot {MODEL} "Return a list of the words in the string."  # what the packed vectors attend to
    luna prepare --output_dir data/mine --sources FOLDER  # your own text, for `luna pretrain quickstart --dataset`
"""


def pretraining(python):
    """The command that pretrains: by two processes where there is no GPU, for they wait less than two threads."""
    count = "import torch; print(torch.accelerator.device_count())"
    if os.cpu_count() == 1 or subprocess.check_output([python, "-c", count]).strip() != b"0":
        return ["luna_tools.command_line", "pretrain", "quickstart"]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return [*launcher, "-m", "pretraining.train", "quickstart", "--micro_batch_size", "32"]


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print("[1/4] Set up the environment", flush=True)
    try:
        python = environment.ensure("pretrain,finetune")
        stages = (
            ("Prepare the docstrings of Python's standard library", ["luna_tools.command_line", "prepare", "quickstart"]),
            ("Pretrain (about eight minutes on two cores)", pretraining(python)),
            ("Show what it has learned", ["pretraining.fill_masks", MODEL, "--dataset", DATASET]),
        )
        for number, (title, arguments) in enumerate(stages, start=2):
            print(f"[{number}/4] {title}", flush=True)
            status = environment.run([python, "-m", *arguments])
            if status != 0:
                return status
    except KeyboardInterrupt:
        return 130
    print(NEXT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
