# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""RoBERTa's special tokens, and the class in which a byte-level BPE with them is saved."""

from typing import TYPE_CHECKING

from tokenizers import AddedToken, Tokenizer

if TYPE_CHECKING:  # transformers is imported where it is used: what only tokenises has no use for it
    from transformers import PreTrainedTokenizerFast

FIRST_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")  # ids 0 to 3
MASK_TOKEN = "<mask>"  # the last id


def wrap_tokenizer(tokenizer: Tokenizer) -> "PreTrainedTokenizerFast":
    """A tokenizer as the transformers class that `AutoTokenizer` loads."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        cls_token="<s>",
        unk_token="<unk>",
        pad_token="<pad>",
        mask_token=AddedToken(MASK_TOKEN, lstrip=True, special=True),
        model_input_names=["input_ids", "attention_mask"],
    )
