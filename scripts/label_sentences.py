# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Fine-tune the quick start's model on docstrings of six parts of the standard library (half a minute), and label sentences.

    python -m scripts.label_sentences ["Open a socket and wait for an answer." ...]

Other options are those of `luna finetune`. A model that is fine-tuned already is used as it is.
"""

import argparse
import sys
from pathlib import Path

from luna_tools.command_line import exit_status, run
from luna_tools.errors import InputError
from scripts.reports.docstring_families import OPTIONS, make_dataset

PROG = "python -m scripts.label_sentences"
SENTENCES = (
    "Open a socket and wait for the answer of the server.",
    "Wait until another thread has released the lock.",
    "Copy a folder with all its files and permissions.",
    "Return the mean of the numbers as a fraction.",
    "Decode the header of a message and its attachments.",
    "Print the traceback of a test that failed.",
)


def finetune(model: str, folder: Path, overrides: list[str]) -> int:
    """Fine-tune a head on the packed vectors. Returns the exit status."""
    data = folder.parent / f"{folder.name}-data"
    make_dataset(data, seed=0)
    files = [
        token for split in ("train", "validation", "test") for token in (f"--{split}_file", str(data / f"{split}.jsonl"))
    ]
    options = ["--classifier_pooling", "packed_mean", "--model_name_or_path", model, "--output_dir", str(folder)]
    return run("finetune", ["custom", *OPTIONS, *files, *options, *overrides])


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog=PROG, description=__doc__.split("\n")[0])
    parser.add_argument("sentences", nargs="*", default=SENTENCES, metavar="SENTENCE")
    parser.add_argument("--model_name_or_path", default="runs/quickstart/model")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/docstring-labels"))
    options, overrides = parser.parse_known_args(argv)
    if not Path(options.model_name_or_path).is_dir():
        raise InputError(f"{options.model_name_or_path} is not there: run `python3 scripts/quickstart.py` first.")
    if not (options.output_dir / "all_results.json").exists():
        if status := finetune(options.model_name_or_path, options.output_dir, overrides):
            return status

    from transformers import pipeline

    from luna_tools.load import quiet_transformers

    with quiet_transformers():
        classify = pipeline("text-classification", model=str(options.output_dir), device="cpu")
    print()
    for sentence, guess in zip(options.sentences, classify(list(options.sentences)), strict=True):
        print(f"{guess['label']:<18}{guess['score']:>4.0%}  {sentence}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:]), PROG, extra="finetune"))
