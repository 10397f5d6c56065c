# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Show what a model has learned: its guesses on held-out masks beside those of counting tables, and held-out sentences.

`python -m pretraining.fill_masks MODEL --dataset DATASET [--sentences 6]`
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from luna_tools.command_line import exit_status
from luna_tools.errors import InputError
from luna_tools.settings import Parser


@dataclass
class FillOptions:
    dataset: str
    """Folder of `luna prepare` that the model was pretrained on."""
    sentences: int = 6
    """Held-out sentences to show."""


def main(argv: list[str]) -> None:
    parser = Parser("python -m pretraining.fill_masks", __doc__.splitlines()[0], FillOptions, words=("MODEL",))
    (name,), options = parser.parse_command(argv)
    dataset = Path(options.dataset)
    if not (dataset / "validation").is_dir():
        raise InputError(
            f"--dataset is {options.dataset!r}, which has no validation split: give a folder of `luna prepare`."
        )
    if options.sentences < 1:
        raise InputError(f"--sentences is {options.sentences}, but must be at least 1.")

    import torch
    from transformers import AutoTokenizer

    from luna_tools.load import load_luna, quiet_transformers
    from modeling_luna import LunaForMaskedLM
    from pretraining.held_out import show_sentences, show_tables

    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = load_luna(name, LunaForMaskedLM).eval()
    with torch.inference_mode():
        show_tables(model, tokenizer, dataset)
        show_sentences(model, tokenizer, dataset, options.sentences)


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:]), "python -m pretraining.fill_masks", extra="pretrain"))
