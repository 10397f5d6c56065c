# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The tokenizer: a RoBERTa-style byte-level BPE trained on text, or an existing one that fits masked-LM rows."""

import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from luna_tools.errors import InputError, first_sentence
from luna_tools.tokenizer import FIRST_TOKENS, MASK_TOKEN
from pretraining.prepare.progress import clock

if TYPE_CHECKING:  # transformers is imported where it is used: the worker processes have no use for it
    from transformers import PreTrainedTokenizerFast

MIN_FREQUENCY = 2  # a pair of tokens seen once is not merged
# Training takes time with the square of a word's length. Words as long as this are none of a language.
MAX_WORD_CHARS = 2**10
LONG_RUN = re.compile(rf"[\S\x1c-\x1f]{{{MAX_WORD_CHARS}}}|\s{{{MAX_WORD_CHARS}}}")  # a space may belong to the word


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE with RoBERTa's special tokens and their ids.

    Args:
        texts: the text to learn from; read once.
        vocab_size: the number of entries, special tokens and bytes included.

    Raises:
        InputError: the text gives fewer entries than that.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        min_frequency=MIN_FREQUENCY,
        special_tokens=list(FIRST_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    with ExitStack() as training:

        def read_then_learn() -> Iterator[str]:
            yield from cut_long_words(texts)
            training.enter_context(clock("Training the tokenizer"))

        tokenizer.train_from_iterator(read_then_learn(), trainer)
    tokenizer.add_special_tokens([AddedToken(MASK_TOKEN, lstrip=True)])
    reached = tokenizer.get_vocab_size()
    if reached < vocab_size:
        raise InputError(
            f"--vocab_size {vocab_size}: the training text gives only {reached} entries; lower it to {reached} or "
            "less, or add text."
        )
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", FIRST_TOKENS.index("</s>")), ("<s>", FIRST_TOKENS.index("<s>")), add_prefix_space=False
    )
    return tokenizer


def cut_long_words(texts: Iterable[str]) -> Iterator[str]:
    """Yield the texts, cut inside words of more than `MAX_WORD_CHARS`; say at the end how many there are."""
    count = 0
    pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for text in texts:
        start = 0
        words = pre_tokenizer.pre_tokenize_str(text) if LONG_RUN.search(text) else []
        for _, (first, stop) in words:
            count += stop - first > MAX_WORD_CHARS
            for cut in range(first + MAX_WORD_CHARS, stop, MAX_WORD_CHARS):
                yield text[start:cut]
                start = cut
        yield text[start:]
    if count:
        print(f"Words of more than {MAX_WORD_CHARS:,} characters are cut to train the tokenizer: there are {count:,}.")


def load_tokenizer(name_or_path: str) -> "PreTrainedTokenizerFast":
    """Load an existing tokenizer and check that packed masked-LM rows can be made with it.

    Raises:
        InputError: it cannot be loaded, is not a fast one, or lacks a token that the rows or the masking need.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"--tokenizer {name_or_path}: it cannot be loaded ({first_sentence(error)}); give a folder that "
            "save_pretrained wrote, or a name on the Hub."
        ) from error
    if not tokenizer.is_fast:
        raise InputError(f"--tokenizer {name_or_path}: it has no fast version (tokenizer.json); use one that has.")
    needs = {
        "a first token (bos or cls)": row_start_id(tokenizer),
        "a last token (eos or sep)": row_end_id(tokenizer),
        "a pad token": tokenizer.pad_token_id,
        "a mask token": tokenizer.mask_token_id,
    }
    missing = [name for name, token in needs.items() if token is None]
    if missing:
        raise InputError(
            f"--tokenizer {name_or_path}: it lacks {' and '.join(missing)}; add what is missing, or leave the option "
            "out to train one."
        )
    return tokenizer


def row_start_id(tokenizer: "PreTrainedTokenizerFast") -> int | None:
    """Return the id of the token that starts a row."""
    return tokenizer.cls_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id


def row_end_id(tokenizer: "PreTrainedTokenizerFast") -> int | None:
    """Return the id of the token that ends a row and stands between documents."""
    return tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id


def load_for_text(folder: Path) -> Tokenizer:
    """Load the tokenizer saved in a folder for plain text: nothing cut or padded, and "<s>" in a text is text."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer
