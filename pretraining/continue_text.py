# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Show what a causal model has learned: how it goes on with a text.

`python -m pretraining.continue_text MODEL [--text "Return the" ...] [--max_new_tokens 60] [--temperature 0.7]`
"""

import sys
from dataclasses import dataclass, field

from luna_tools.command_line import exit_status
from luna_tools.errors import InputError, told
from luna_tools.settings import Parser

TEXTS = ["Return the number of", "Open the file", "Raise an exception if"]


@dataclass
class ContinueOptions:
    text: list[str] = field(default_factory=lambda: list(TEXTS))
    """Beginnings to go on from."""
    max_new_tokens: int = 60
    """Tokens to add, at most."""
    temperature: float = 0.7
    """Of the samples; 0 always takes the likeliest token."""
    seed: int = 0
    """Of the samples."""


def main(argv: list[str]) -> None:
    parser = Parser("python -m pretraining.continue_text", __doc__.splitlines()[0], ContinueOptions, words=("MODEL",))
    (name,), options = parser.parse_command(argv)
    if options.max_new_tokens < 1:
        raise InputError(f"--max_new_tokens is {options.max_new_tokens}, but must be at least 1.")
    if options.temperature < 0:
        raise InputError(f"--temperature is {options.temperature:g}, but must not be negative.")

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import modeling_luna  # noqa: F401  (registers Luna with the Auto classes)
    from luna_tools.load import quiet_transformers
    from pretraining.model import max_sequence_length

    remedy = "give a folder of `luna pretrain` with `objective: clm`, or a causal language model's name on the Hub"
    with quiet_transformers(), told(f"{name!r} can't be loaded as a causal language model", remedy):
        tokenizer = AutoTokenizer.from_pretrained(name)
        model, found = AutoModelForCausalLM.from_pretrained(name, output_loading_info=True)
    if missing := sorted(found["missing_keys"]):
        raise InputError(f"{name!r} is no causal language model, which has weights such as {missing[0]}: {remedy}.")
    model.eval()
    longest = max_sequence_length(model.config)
    chance = {"do_sample": True, "temperature": options.temperature} if options.temperature else {"do_sample": False}
    for text in options.text:
        torch.manual_seed(options.seed)
        # The start of a row and the text, without the end that some tokenizers add.
        ids = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        ids += tokenizer(text, add_special_tokens=False)["input_ids"]
        if longest is not None and len(ids) + options.max_new_tokens > longest:
            raise InputError(
                f"--max_new_tokens is {options.max_new_tokens}, which after the {len(ids)} tokens of {text!r} is beyond the "
                f"{longest} of the model: give at most {longest - len(ids)}."
            )
        ids_1n = torch.tensor([ids])
        limits = {"max_new_tokens": options.max_new_tokens, "pad_token_id": tokenizer.pad_token_id}
        with quiet_transformers():
            written_1n = model.generate(ids_1n, attention_mask=torch.ones_like(ids_1n), **limits, **chance)
        print(f"\n[{text}]{tokenizer.decode(written_1n[0, len(ids) :], skip_special_tokens=True)}")


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:]), "python -m pretraining.continue_text", extra="pretrain"))
