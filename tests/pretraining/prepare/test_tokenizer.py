# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The trained tokenizer has RoBERTa's layout, and an existing one is checked."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from luna_tools.errors import InputError
from luna_tools.tokenizer import wrap_tokenizer
from pretraining.prepare.tokenizer import (
    MAX_WORD_CHARS,
    cut_long_words,
    load_for_text,
    load_tokenizer,
    row_end_id,
    row_start_id,
    train_tokenizer,
)

VOCAB_SIZE = 400


def test_layout_is_robertas(tokenizer, texts):
    again = wrap_tokenizer(train_tokenizer(texts, VOCAB_SIZE)).backend_tokenizer.to_str()
    assert Tokenizer.from_file(str(tokenizer / "tokenizer.json")).to_str() == again
    tokenizer = AutoTokenizer.from_pretrained(tokenizer)
    assert tokenizer.convert_tokens_to_ids(["<s>", "<pad>", "</s>", "<unk>"]) == [0, 1, 2, 3]
    assert len(tokenizer) == VOCAB_SIZE
    assert tokenizer.mask_token_id == VOCAB_SIZE - 1
    assert (tokenizer.bos_token, tokenizer.cls_token) == ("<s>", "<s>")
    assert (tokenizer.eos_token, tokenizer.sep_token) == ("</s>", "</s>")
    one, two = (tokenizer.encode(text, add_special_tokens=False) for text in ("the file", "a name"))
    encoded = tokenizer("the file", "a name")
    assert encoded["input_ids"] == [0, *one, 2, 2, *two, 2]
    assert set(encoded) == {"input_ids", "attention_mask"}
    assert tokenizer("the file")["input_ids"] == [0, *one, 2]
    # The mask takes the space before it, and a word at the start has none added.
    assert tokenizer.encode("the <mask>", add_special_tokens=False)[-1] == tokenizer.mask_token_id
    assert tokenizer.decode(tokenizer.encode("the", add_special_tokens=False)) == "the"


@given(st.text())
@example("<s></s><pad><unk> <mask> ")
@settings(deadline=None)
def test_text_is_coded_without_loss_and_names_of_special_tokens_in_it_are_text(tokenizer, text):
    coder = load_for_text(tokenizer)
    ids = coder.encode(text, add_special_tokens=False).ids
    assert coder.decode(ids) == text
    assert all(3 < i < VOCAB_SIZE - 1 for i in ids)


def test_too_little_text_for_the_vocabulary():
    with pytest.raises(InputError, match=r"^--vocab_size 5000: the training text gives only 26\d entries; lower it"):
        train_tokenizer(["hello hello hello"], 5000)


WORDS = st.tuples(st.sampled_from(["a", "漢", "1", "!", " ", "ab"]), st.sampled_from([1, 3, 1023, 1024, 1025, 3000]))


@given(st.lists(WORDS, max_size=6))
@settings(deadline=None)
def test_long_words_are_cut_and_nothing_else(words):
    text = "".join(unit * times for unit, times in words)
    words_of = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str
    *pieces, last = cut_long_words([text, "the end"])
    assert "".join(pieces) == text and last == "the end"
    long = [stop - first for _, (first, stop) in words_of(text) if stop - first > MAX_WORD_CHARS]
    assert len(pieces) - 1 == sum(-(-length // MAX_WORD_CHARS) - 1 for length in long)
    assert all(stop - first <= MAX_WORD_CHARS for piece in pieces for _, (first, stop) in words_of(piece))


@pytest.mark.parametrize("text", ["a" * 300_000, " " * 1_000_000], ids=["letter", "spaces"])
def test_text_without_words_trains_with_a_sentence(text, capsys):
    """One word of so many characters takes the library minutes, or hours."""
    train_tokenizer([text], 270)
    sentence = "Words of more than 1,024 characters are cut to train the tokenizer: there are 1.\n"
    assert capsys.readouterr().out == sentence


def _existing(folder, *names):
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "word": 1}, unk_token="[UNK]"))
    tokens = {f"{name}_token": f"[{name}]" for name in names}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **tokens).save_pretrained(folder)
    return str(folder)


def test_existing_tokenizer_with_bert_names(tmp_path):
    tokenizer = load_tokenizer(_existing(tmp_path, "cls", "sep", "pad", "mask"))
    assert row_start_id(tokenizer) == tokenizer.cls_token_id
    assert row_end_id(tokenizer) == tokenizer.sep_token_id


@pytest.mark.parametrize(
    ("tokens", "missing"),
    [
        ("sep pad mask", r"a first token \(bos or cls\)"),
        ("cls pad mask", r"a last token \(eos or sep\)"),
        ("cls sep mask", "a pad token"),
        ("cls sep", "a pad token and a mask token"),
    ],
)
def test_existing_tokenizer_without_a_needed_token(tmp_path, tokens, missing):
    with pytest.raises(InputError, match=f"^--tokenizer .*: it lacks {missing}; add what is missing"):
        load_tokenizer(_existing(tmp_path, *tokens.split()))
