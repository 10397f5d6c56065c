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

# Minutes of pretraining, what the last stage runs, and what to do next, by recipe; each has a corpus of its name.
RECIPES = {
    "quickstart": (
        "eight",
        "pretraining.fill_masks runs/quickstart/model --dataset data/python-docs",
        """
    python -m scripts.label_sentences "Send a request to the server."  # fine-tune on docstrings, label your sentence
    luna plot runs/quickstart/model "Return a list of the words in the string."  # what the packed vectors attend to""",
    ),
    "quickstart_causal": (
        "twelve",
        "pretraining.continue_text runs/quickstart_causal/model",
        """
    python -m pretraining.continue_text runs/quickstart_causal/model --text "Close the file" --temperature 0.5""",
    ),
}
NEXT = """
The loss over the steps: runs/{recipe}/loss.png. Next, after `source .venv/bin/activate`:
{commands}
    luna prepare --output_dir data/mine --sources FOLDER  # your own text, for `luna pretrain {recipe} --dataset`
"""


def pretraining(python, recipe):
    """The command that pretrains: by two processes where there is no GPU, for they wait less than two threads."""
    count = "import torch; print(torch.accelerator.device_count())"
    if os.cpu_count() == 1 or subprocess.check_output([python, "-c", count]).strip() != b"0":
        return ["luna_tools.command_line", "pretrain", recipe]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return [*launcher, "-m", "pretraining.train", recipe]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="quickstart", choices=list(RECIPES))
    recipe = parser.parse_args().recipe
    minutes, show, commands = RECIPES[recipe]
    print("[1/4] Set up the environment", flush=True)
    try:
        python = environment.ensure("pretrain,finetune")
        stages = (
            ("Prepare the docstrings of Python's standard library", ["luna_tools.command_line", "prepare", recipe]),
            (f"Pretrain (about {minutes} minutes on two cores)", pretraining(python, recipe)),
            ("Show what it has learned", show.split()),
        )
        for number, (title, arguments) in enumerate(stages, start=2):
            print(f"[{number}/4] {title}", flush=True)
            status = environment.run([python, "-m", *arguments])
            if status != 0:
                return status
    except KeyboardInterrupt:
        return 130
    print(NEXT.format(recipe=recipe, commands=commands))
    return 0


if __name__ == "__main__":
    sys.exit(main())
