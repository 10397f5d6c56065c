# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Fill one masked word in each of three validation sentences of the dataset that a model was pretrained on.

`python -m pretraining.fill_masks MODEL --dataset DATASET`
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from luna_tools.command_line import exit_status
from luna_tools.errors import InputError
from luna_tools.settings import Parser

SENTENCE = re.compile(r"(?<=\n)[A-Z][a-z]+(?: [a-z]+){6,16}\.")


def held_out_sentences(dataset: Path, tokenizer) -> list[str]:
    """Plain sentences of the validation split, in order."""
    from datasets import load_from_disk

    text = tokenizer.batch_decode(load_from_disk(str(dataset / "validation"))["input_ids"][:])
    return SENTENCE.findall("".join(text).replace("<s>", "").replace("</s>", "\n"))


def mask_a_word(sentence: str, tokenizer) -> tuple[str, str] | None:
    """The sentence with its middle-most word that is one token and has over three letters masked, and that word."""
    words = sentence[:-1].split(" ")
    for i in sorted(range(2, len(words)), key=lambda i: abs(i - len(words) // 2)):
        if len(words[i]) > 3 and len(tokenizer.tokenize(" " + words[i])) == 1:
            return " ".join([*words[:i], tokenizer.mask_token, *words[i + 1 :]]) + ".", words[i]
    return None


@dataclass
class FillOptions:
    dataset: str
    """Folder of `luna prepare` whose validation split the sentences are of."""


def main(argv: list[str]) -> None:
    parser = Parser("python -m pretraining.fill_masks", __doc__.splitlines()[0], FillOptions, words=("MODEL",))
    (name,), options = parser.parse_command(argv)
    dataset = Path(options.dataset)
    if not (dataset / "validation").is_dir():
        raise InputError(
            f"--dataset is {options.dataset!r}, which has no validation split: give a folder of `luna prepare`."
        )

    from transformers import AutoTokenizer, pipeline

    from luna_tools.load import load_luna, quiet_transformers
    from modeling_luna import LunaForMaskedLM

    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(name)
        fill_mask = pipeline("fill-mask", model=load_luna(name, LunaForMaskedLM), tokenizer=tokenizer, device="cpu")
    masked = [mask_a_word(sentence, tokenizer) for sentence in held_out_sentences(dataset, tokenizer)]
    found = [pair for pair in masked if pair is not None][:3]
    if not found:
        print(f"The validation split of {dataset} has no plain sentence to mask a word of.")
    for sentence, word in found:
        guesses = fill_mask(sentence, top_k=5)
        print(f"\n{sentence}   (was: {word})")
        print("   " + ", ".join(f"{guess['token_str']!r} {guess['score']:.0%}" for guess in guesses))


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:]), "python -m pretraining.fill_masks", extra="pretrain"))
