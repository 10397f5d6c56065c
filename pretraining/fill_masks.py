# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Fill one masked word in each of three validation sentences: `python -m pretraining.fill_masks MODEL DATASET`."""

import argparse
import re
from pathlib import Path

from datasets import load_from_disk
from transformers import AutoTokenizer, pipeline
from transformers.utils import logging as transformers_logging

import modeling_luna  # noqa: F401  (registers Luna with the Auto classes)

SENTENCE = re.compile(r"(?<=\n)[A-Z][a-z]+(?: [a-z]+){6,16}\.")


def held_out_sentences(dataset: Path, tokenizer) -> list[str]:
    """Find plain sentences of the validation split, in order."""
    text = tokenizer.batch_decode(load_from_disk(str(dataset / "validation"))["input_ids"][:])
    return SENTENCE.findall("".join(text).replace("<s>", "").replace("</s>", "\n"))


def mask_a_word(sentence: str, tokenizer) -> tuple[str, str] | None:
    """Mask the middle-most word that is one token of over three letters. Returns the sentence, and the word."""
    words = sentence[:-1].split(" ")
    for i in sorted(range(2, len(words)), key=lambda i: abs(i - len(words) // 2)):
        if len(words[i]) > 3 and len(tokenizer.tokenize(" " + words[i])) == 1:
            return " ".join([*words[:i], tokenizer.mask_token, *words[i + 1 :]]) + ".", words[i]
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("dataset", type=Path)
    args = parser.parse_args()
    transformers_logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    fill_mask = pipeline("fill-mask", model=str(args.model), tokenizer=tokenizer, device="cpu")
    masked = [mask_a_word(sentence, tokenizer) for sentence in held_out_sentences(args.dataset, tokenizer)]
    found = [pair for pair in masked if pair is not None][:3]
    if not found:
        print(f"The validation split of {args.dataset} has no plain sentence to mask a word of.")
    for sentence, word in found:
        guesses = fill_mask(sentence, top_k=5)
        print(f"\n{sentence}   (was: {word})")
        print("   " + ", ".join(f"{guess['token_str']!r} {guess['score']:.0%}" for guess in guesses))


if __name__ == "__main__":
    main()
