# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The trained tokenizer has RoBERTa's layout, and an existing one is checked."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from luna_tools.errors import InputError
from luna_tools.tokenizer import wrap_tokenizer
from pretraining.prepare.sources import python_docs
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


@pytest.fixture(scope="module")
def trained():
    return train_tokenizer([doc.text for doc in python_docs()[:200]], VOCAB_SIZE)


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    wrap_tokenizer(trained).save_pretrained(folder)
    return folder


def test_special_tokens_have_robertas_ids(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.is_fast
    assert tokenizer.convert_tokens_to_ids(["<s>", "<pad>", "</s>", "<unk>"]) == [0, 1, 2, 3]
    assert len(tokenizer) == VOCAB_SIZE
    assert tokenizer.mask_token_id == VOCAB_SIZE - 1
    assert (tokenizer.bos_token, tokenizer.cls_token) == ("<s>", "<s>")
    assert (tokenizer.eos_token, tokenizer.sep_token) == ("</s>", "</s>")


def test_template_and_mask(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    one, two = (tokenizer.encode(text, add_special_tokens=False) for text in ("the file", "a name"))
    encoded = tokenizer("the file", "a name")
    assert encoded["input_ids"] == [0, *one, 2, 2, *two, 2]
    assert set(encoded) == {"input_ids", "attention_mask"}
    assert tokenizer("the file")["input_ids"] == [0, *one, 2]
    # The mask takes the space before it, and a word at the start has none added.
    assert tokenizer.encode("the <mask>", add_special_tokens=False)[-1] == tokenizer.mask_token_id
    assert tokenizer.decode(tokenizer.encode("the", add_special_tokens=False)) == "the"


@given(st.text())
@settings(deadline=None)
def test_byte_level_coding_is_lossless(trained, text):
    tokenizer = Tokenizer.from_str(trained.to_str())
    tokenizer.encode_special_tokens = True
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids) == text
    assert 3 not in ids  # <unk>


def test_training_is_deterministic(trained):
    again = train_tokenizer([doc.text for doc in python_docs()[:200]], VOCAB_SIZE)
    assert again.to_str() == trained.to_str()


@pytest.mark.parametrize("text", ["<s>", "</s>", "<pad>", "<unk>", "<mask>", " <mask> "])
def test_names_of_special_tokens_in_text_are_text(folder, text):
    ids = load_for_text(folder).encode(text, add_special_tokens=False).ids
    assert min(ids) > 3
    assert max(ids) < VOCAB_SIZE - 1


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


@pytest.mark.parametrize(
    "text", ["a" * 300_000, " " * 1_000_000, "abcdefghij" * 100_000], ids=["letter", "spaces", "letters"]
)
def test_text_without_words_trains_with_a_sentence(text, capsys):
    """One word of so many characters takes the library minutes, or hours."""
    train_tokenizer([text], 270)
    sentence = "Words of more than 1,024 characters are cut to train the tokenizer: there are 1.\n"
    assert capsys.readouterr().out == sentence


def test_ordinary_text_is_not_cut(capsys):
    assert list(cut_long_words(doc.text for doc in python_docs())) == [doc.text for doc in python_docs()]
    assert capsys.readouterr().out == ""


def _existing(folder, **tokens):
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "word": 1}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **tokens).save_pretrained(folder)
    return str(folder)


def test_existing_tokenizer_with_bert_names(tmp_path):
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
    tokenizer = load_tokenizer(_existing(tmp_path, **names))
    assert row_start_id(tokenizer) == tokenizer.cls_token_id
    assert row_end_id(tokenizer) == tokenizer.sep_token_id


@pytest.mark.parametrize(
    ("tokens", "missing"),
    [
        ({"eos_token": "e", "pad_token": "p", "mask_token": "m"}, r"a first token \(bos or cls\)"),
        ({"bos_token": "b", "pad_token": "p", "mask_token": "m"}, r"a last token \(eos or sep\)"),
        ({"bos_token": "b", "eos_token": "e", "mask_token": "m"}, "a pad token"),
        ({"bos_token": "b", "eos_token": "e"}, "a pad token and a mask token"),
    ],
)
def test_existing_tokenizer_without_a_needed_token(tmp_path, tokens, missing):
    with pytest.raises(InputError, match=f"^--tokenizer .*: it lacks {missing}; add what is missing"):
        load_tokenizer(_existing(tmp_path, **tokens))


def test_existing_tokenizer_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"^--tokenizer .*absent: it cannot be loaded \(.*\); give a folder"):
        load_tokenizer(str(tmp_path / "absent"))
