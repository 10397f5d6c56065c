# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The tokenizer of both languages: one byte-level BPE, or the tokenizer of a model that is trained further."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from luna_tools.errors import InputError, told
from luna_tools.tokenizer import FIRST_TOKENS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MIN_FREQUENCY = 2  # a pair of tokens seen once is not merged


def train_tokenizer(lines: Iterable[str], vocab_size: int) -> "PreTrainedTokenizerBase":
    """Train a joint byte-level BPE that ends each line by `</s>`; ids 0 to 3 are `<s>`, `<pad>`, `</s>`, `<unk>`.

    No text is unknown to it, and decoding gives back the text, so that translations need no detokenisation.

    Args:
        lines: of both languages; read once.
        vocab_size: entries, special tokens and bytes included.

    Raises:
        InputError: the lines give fewer entries than that, or there is no room for all bytes.
    """
    from transformers import PreTrainedTokenizerFast

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    smallest = len(FIRST_TOKENS) + len(alphabet)
    if vocab_size < smallest:
        raise InputError(f"`vocab_size` is {vocab_size}, but the bytes and special tokens are {smallest}: give more.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)  # a word is the same at the start of a line
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=MIN_FREQUENCY,
        special_tokens=list(FIRST_TOKENS),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    if tokenizer.get_vocab_size() < vocab_size:
        raise InputError(
            f"`vocab_size` is {vocab_size}, but the training lines give only {tokenizer.get_vocab_size()} entries: lower "
            "it, or add lines."
        )
    end = FIRST_TOKENS.index("</s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", end)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def load_tokenizer(name: str, source_language: str | None, target_language: str | None) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model that translates; one of many languages is set to the two.

    Raises:
        InputError: it cannot be loaded, has no pad or end token, does not end a line, or does not know a language.
    """
    from transformers import AutoTokenizer

    with told(f"`tokenizer` is {name}, which cannot be loaded", "give a model's folder or its name on the Hub"):
        tokenizer = AutoTokenizer.from_pretrained(name)
    for field in ("pad_token", "eos_token"):
        if getattr(tokenizer, field) is None:
            raise InputError(f"The tokenizer {name} has no {field}, which translation needs: give one that has it.")
    codes = getattr(tokenizer, "lang_code_to_id", None)
    if codes:
        for field, language in (("src_lang", source_language), ("tgt_lang", target_language)):
            if language not in codes:
                raise InputError(
                    f"The tokenizer {name} does not know the language {language}: give codes of its own, such as "
                    f"{next(iter(codes))}, by --source_language and --target_language."
                )
            setattr(tokenizer, field, language)
    elif hasattr(tokenizer, "src_lang"):  # its languages are tokens
        for field, language in (("src_lang", source_language), ("tgt_lang", target_language)):
            if language is None or tokenizer.convert_tokens_to_ids(language) in (None, tokenizer.unk_token_id):
                raise InputError(
                    f"The tokenizer {name} does not know the language {language}: give codes of its own, such as "
                    f"{getattr(tokenizer, field)}, by --source_language and --target_language."
                )
            setattr(tokenizer, field, language)
    if tokenizer.eos_token_id not in tokenizer(text_target="a")["input_ids"]:
        raise InputError(
            f"The tokenizer {name} does not end a line by its end token {tokenizer.eos_token}: give an encoder-decoder's."
        )
    return tokenizer


def decode(tokenizer: "PreTrainedTokenizerBase", ids) -> list[str]:
    """The texts of generated ids (b, n), one line each."""
    return [" ".join(text.split()) for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
