# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The inputs match the recipe token by token, and batches hold what the rows hold."""

import itertools
import pickle
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from finetuning.encoding import TextEncoder, encode, make_collator
from finetuning.tasks import TASKS, TaskData, custom_task
from finetuning.tasks.custom import CustomTask
from finetuning.tasks.reading import Row, make_dataset
from luna_tools.errors import InputError
from luna_tools.tokenizer import wrap_tokenizer
from pretraining.prepare.tokenizer import train_tokenizer
from tests.support.published_files import write_published, write_tokenizer

WORDS = "Q: A: Who sat ? The cat dog ran fast and slow on the mat . He _ it red blue".split()
VOCAB_SIZE = 310


@pytest.fixture(scope="module")
def roberta():
    """Byte-level BPE like RoBERTa's that knows each of the words whole, with and without the space before it."""
    return wrap_tokenizer(train_tokenizer([f"{word} {word}" for word in WORDS] * 2, VOCAB_SIZE))


@pytest.fixture(scope="module")
def bert():
    """Words as tokens, `[CLS] a [SEP] b [SEP]` with token types, lower case; the word "\u200b" gives no token."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ":", *(word.strip(":").lower() for word in WORDS)]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]"}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=inputs, **names)


def _data(task, *rows):
    rows = [Row("", {"index": i, "label": 0} | row) for i, row in enumerate(rows)]
    return TaskData(task, {"train": make_dataset(task, "rows", rows)})


def _cats(count):
    return " ".join(["cat"] * count)


def _pair(one, other):
    return {"text": _cats(one), "text_pair": _cats(other)}


def _choice(passage, question, *options):
    return {"passage": passage, "question": question, "options": options}


def _tokens(tokenizer, encoded):
    """The tokens of the first row's options."""
    return [" ".join(tokenizer.convert_ids_to_tokens(ids)) for ids in encoded["train"][0]["input_ids"]]


# ---- RACE and CommonsenseQA by hand. A Ġ is the space before a word. ----

RACE, CSQA, CUSTOM = TASKS["race"], TASKS["csqa"], custom_task("multiple_choice")
TAGS = custom_task("token_classification")
MAT = "The cat sat on the mat ."
CHOICES = [  # task, passage, question, options, lengths; the inputs of the two options
    # A gap or none; line ends and white space become one space.
    (RACE, "The cat\nsat .", "_ ran and _ sat", ["The dog", "He"], (512,),
     "<s> The Ġdog Ġran Ġand ĠThe Ġdog Ġsat </s> </s> The Ġcat Ġsat Ġ. </s>",
     "<s> He Ġran Ġand ĠHe Ġsat </s> </s> The Ġcat Ġsat Ġ. </s>"),
    (RACE, "The  cat\n\n sat .", "Who sat ?", ["The cat", "dog"], (512,),
     "<s> Who Ġsat Ġ? ĠThe Ġcat </s> </s> The Ġcat Ġsat Ġ. </s>", "<s> Who Ġsat Ġ? Ġdog </s> </s> The Ġcat Ġsat Ġ. </s>"),
    # <s> and 126 tokens and </s> are 128; </s> and 382 tokens and </s> fill up to 512.
    (RACE, _cats(600), " ".join(["mat"] * 150), ["He", "red"], (512,),
     *[" ".join(["<s> mat", *["Ġmat"] * 125, "</s> </s> cat", *["Ġcat"] * 381, "</s>"])] * 2),
    (RACE, MAT, "Who sat on the mat ?", ["The cat", "He"], (14, 9),
     "<s> Who Ġsat Ġon Ġthe Ġmat Ġ? ĠThe </s> </s> The Ġcat Ġsat </s>",
     "<s> Who Ġsat Ġon Ġthe Ġmat Ġ? ĠHe </s> </s> The Ġcat Ġsat </s>"),
    # The room that a short option leaves goes to the passage.
    (RACE, MAT, "Who ?", ["red and blue", "He"], (14, 9),
     "<s> Who Ġ? Ġred Ġand Ġblue </s> </s> The Ġcat Ġsat Ġon Ġthe </s>",
     "<s> Who Ġ? ĠHe </s> </s> The Ġcat Ġsat Ġon Ġthe Ġmat Ġ. </s>"),
    (RACE, "The cat", "Who ?", ["cat", "dog"], (131, 128),  # the least that has room
     "<s> Who Ġ? Ġcat </s> </s> The Ġcat </s>", "<s> Who Ġ? Ġdog </s> </s> The Ġcat </s>"),
    # The official form of CommonsenseQA: `<s> Q: ... </s> A: ... </s>`, with one separator.
    (CSQA, "", "Who sat ?", ["cat", "The dog"], (512,),
     "<s> Q : ĠWho Ġsat Ġ? </s> A : Ġcat </s>", "<s> Q : ĠWho Ġsat Ġ? </s> A : ĠThe Ġdog </s>"),
    (CSQA, "", "He _ it", ["red", "the _"], (512,),
     "<s> Q : ĠHe Ġ_ Ġit </s> A : Ġred </s>", "<s> Q : ĠHe Ġ_ Ġit </s> A : Ġthe Ġ_ </s>"),
    # The question is cut and the answer kept; one that is too long by itself is cut at its end.
    (CSQA, "", "Who sat on the mat and ran ?", ["cat", "The dog and the cat"], (512, 11),
     "<s> Q : ĠWho Ġsat Ġon </s> A : Ġcat </s>", "<s> Q </s> A : ĠThe Ġdog Ġand Ġthe Ġcat </s>"),
    (CSQA, "", "Who sat on the mat and ran ?", ["cat", "The dog and the cat"], (8,),
     "<s> Q : </s> A : Ġcat </s>", "<s> </s> A : ĠThe Ġdog Ġand </s>"),
    # The user's own rows have one of the two forms.
    (CUSTOM, "He ran", "Who _ ?", ["cat", "dog"], (64, 16),
     "<s> Who Ġcat Ġ? </s> </s> He Ġran </s>", "<s> Who Ġdog Ġ? </s> </s> He Ġran </s>"),
    (CUSTOM, "", "Who _ ?", ["cat", "dog"], (64, 16),
     "<s> Q : ĠWho Ġ_ Ġ? </s> A : Ġcat </s>", "<s> Q : ĠWho Ġ_ Ġ? </s> A : Ġdog </s>"),
]  # fmt: skip


@pytest.mark.parametrize(("task", "passage", "question", "options", "lengths", "first", "second"), CHOICES)
def test_choices(roberta, task, passage, question, options, lengths, first, second):
    encoded = encode(_data(task, _choice(passage, question, *options)), roberta, *lengths)
    assert _tokens(roberta, encoded) == [first, second]
    counts = [len(tokens.split()) for tokens in (first, second)]
    assert encoded["train"][0]["length"] == max(counts)
    assert encoded["train"][0]["attention_mask"] == [[1] * count for count in counts]


def test_multiple_choice_of_a_tokenizer_with_token_types(bert):
    for task, passage, tokens, types in (
        (RACE, "The cat sat", "[CLS] who ? red dog [SEP] the cat sat [SEP]", [[0] * 5 + [1] * 4, [0] * 6 + [1] * 4]),
        (CSQA, "", "[CLS] q : who ? [SEP] a : red dog [SEP]", [[0] * 6 + [1] * 4, [0] * 6 + [1] * 5]),
    ):
        encoded = encode(_data(task, _choice(passage, "Who ?", "cat", "red dog")), bert, max_sequence_length=512)
        assert _tokens(bert, encoded)[1] == tokens and encoded["train"][0]["token_type_ids"] == types


# ---- Texts and words ----


def test_texts(roberta, bert):
    one = encode(_data(TASKS["cola"], {"text": "The cat sat on the mat", "label": 1}), roberta, 6)
    assert one["train"][:] == {
        "input_ids": [roberta.convert_tokens_to_ids("<s> The Ġcat Ġsat Ġon </s>".split())],
        "attention_mask": [[1] * 6],
        "length": [6],
        "labels": [1],
    }
    row = {"text": "The cat sat on the mat", "text_pair": "He ran"}
    for tokenizer, expected in (
        (roberta, "<s> The Ġcat Ġsat </s> </s> He Ġran </s>"),
        (bert, "[CLS] the cat sat on [SEP] he ran [SEP]"),
    ):
        pair = encode(_data(TASKS["rte"], row), tokenizer, 9)["train"]
        assert tokenizer.convert_ids_to_tokens(pair[0]["input_ids"]) == expected.split()
        assert ("token_type_ids" in pair.column_names) == (tokenizer is bert)


def test_words_are_tokenized_as_in_a_text(roberta):
    data = _data(TAGS, {"words": ["The", "café", "sat"], "label": [5, 6, 7]})
    encoded = encode(data, roberta, 64)["train"][0]
    assert encoded["input_ids"] == roberta("The café sat")["input_ids"]
    [start, the, *cafe, sat, end] = encoded["labels"]
    assert (start, the, cafe[0], sat, end) == (-100, 5, 6, 7, -100)
    assert len(cafe) > 2 and set(cafe[1:]) == {-100}
    assert encoded["first_tokens"] == [1, 2, len(cafe) + 2]
    assert encoded["length"] == len(cafe) + 4


def test_words_without_tokens_and_words_cut_off(bert):
    words = ["The", "\u200b", "cat", "sat", "on"]
    data = _data(TAGS, {"words": words, "label": [5, 6, 7, 8, 9]})
    encoded = encode(data, bert, 5)["train"][0]
    assert bert.convert_ids_to_tokens(encoded["input_ids"]) == ["[CLS]", "the", "cat", "sat", "[SEP]"]
    assert encoded["labels"] == [-100, 5, 7, 8, -100]
    assert encoded["first_tokens"] == [1, -1, 2, 3, -1]


# ---- What is cut is told ----


CUT = [  # task, rows, lengths; how many rows are cut at how many tokens by which option
    (TASKS["cola"], [{"text": _cats(count)} for count in (7, 8, 9, 1200)], (10,), [(2, 10, "max_sequence_length")]),
    (TASKS["cola"], [{"text": _cats(count)} for count in (7, 8)], (10,), []),
    (TASKS["rte"], [_pair(3, 3), _pair(5, 1), _pair(1, 6), _pair(40, 40)], (10,), [(2, 10, "max_sequence_length")]),
    (TAGS, [{"words": ["cat"] * n, "label": [0] * n} for n in (8, 9)], (10,), [(1, 10, "max_sequence_length")]),
    (RACE, [_choice(_cats(5), "Who ?", "He", "The dog")], (13, 9), []),
    (RACE, [_choice(_cats(6), "Who ?", "He", "The dog")], (13, 9), [(1, 13, "max_sequence_length")]),
    (RACE, [_choice("cat", "Who sat on the mat", "He", "The dog"), _choice(_cats(9), _cats(7), "red", "blue")], (13, 8),
     [(2, 8, "max_option_length"), (1, 13, "max_sequence_length")]),
    (RACE, [_choice("cat", "Who sat on the mat", "He", "red")], (13, 8), []),
    (CSQA, [_choice("", "Who sat ?", "cat", "The dog")], (512, 12), []),
    (CSQA, [_choice("", "Who sat ?", "cat", "The dog")] * 2, (512, 11), [(2, 11, "max_option_length")]),
    (CSQA, [_choice("", "Who sat ?", "cat", "The dog")], (11, 128), [(1, 11, "max_sequence_length")]),
]  # fmt: skip


@pytest.mark.parametrize(("task", "rows", "lengths", "told"), CUT)
def test_rows_that_are_cut_are_told_once_per_split(roberta, caplog, task, rows, lengths, told):
    data, before = _data(task, *rows), roberta.backend_tokenizer.to_str()
    encode(replace(data, splits=data.splits | {"validation": data.splits["train"]}), roberta, *lengths)
    assert caplog.messages == [
        f"{count} of {len(rows)} rows of the split {split!r} are cut at {tokens} tokens: raise --{option}, as far as the "
        "model reads, to keep more."
        for split in data.splits | {"validation": None}
        for count, tokens, option in told
    ]
    assert roberta.backend_tokenizer.to_str() == before


# ---- Whole tasks ----


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_no_input_is_longer_than_asked(roberta, bert, data):
    tokenizer = data.draw(st.sampled_from([roberta, bert]))
    text = st.lists(st.sampled_from([*WORDS, "é", "漢"]), min_size=1, max_size=20).map(" ".join)
    option_length = data.draw(st.integers(8, 20))
    length = data.draw(st.integers(option_length + 3, 40))
    passage = data.draw(st.one_of(st.just(""), text))
    row = {"passage": passage, "question": data.draw(text), "options": data.draw(st.lists(text, min_size=2, max_size=4))}
    [encoded] = encode(_data(RACE, row), tokenizer, length, option_length)["train"]
    assert encoded["length"] == max(len(ids) for ids in encoded["input_ids"])
    for ids in encoded["input_ids"]:
        special = [i for i, token in enumerate(ids) if token in (tokenizer.cls_token_id, tokenizer.sep_token_id)]
        assert len(ids) <= (length if passage else min(length, option_length))
        assert special[1] + 1 <= option_length
        assert special[-1] == len(ids) - 1
        if passage:
            assert len(ids) == length or special[-1] - special[-2] - 1 == len(
                tokenizer(passage, add_special_tokens=False)["input_ids"]
            )


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["stsb", "mnli", "race", "csqa"])
def test_batches(tmp_path, toy, name, side):
    write_published(name, tmp_path, "hub", rows=12)
    loaded, toy.padding_side = TASKS[name].load(tmp_path), side
    encoded = encode(loaded, toy, max_sequence_length=64, max_option_length=40)
    collate = pickle.loads(pickle.dumps(make_collator(loaded.task, toy, pad_to_multiple_of=8)))  # as for loader processes
    for split, rows in encoded.items():
        hidden = split in loaded.task.test_splits and name != "race"
        batch = collate(list(rows))
        assert set(batch) == {"input_ids", "attention_mask"} | (set() if hidden else {"labels"})
        kind = torch.float32 if name == "stsb" else torch.int64
        assert hidden or torch.equal(batch["labels"], torch.tensor(loaded.splits[split]["label"][:], dtype=kind))
        length = -(-max(rows["length"]) // 8) * 8
        nested = [row["input_ids"] if name in ("race", "csqa") else [row["input_ids"]] for row in rows]
        padded = [[[toy.pad_token_id] * (length - len(ids)) for ids in row] for row in nested]
        pairs = zip(itertools.chain(*nested), itertools.chain(*padded), strict=True)
        expected = torch.tensor([padding + ids if side == "left" else ids + padding for ids, padding in pairs])
        assert torch.equal(batch["input_ids"], expected.view(batch["input_ids"].shape))
        assert torch.equal(batch["attention_mask"] == 1, batch["input_ids"] != toy.pad_token_id)
        assert batch["input_ids"].shape == (len(rows), *[len(nested[0])] * (name in ("race", "csqa")), length)


@pytest.mark.parametrize("side", ["left", "right"])
def test_batches_of_words(bert, side):
    rows = [{"words": ["The", "cat"], "label": [1, 2]}, {"words": ["He"], "label": [3]}]
    bert.padding_side = side
    encoded = encode(_data(TAGS, *rows), bert, 16)["train"]
    batch = make_collator(TAGS, bert)(list(encoded))
    assert set(batch) == {"input_ids", "attention_mask", "token_type_ids", "labels"}
    short = [-100, 3, -100]
    assert batch["labels"].tolist() == [[-100, 1, 2, -100], [-100, *short] if side == "left" else [*short, -100]]
    hidden = encode(_data(TAGS, *(row | {"label": []} for row in rows)), bert, 16)["train"]
    assert set(make_collator(TAGS, bert)(list(hidden))) == {"input_ids", "attention_mask", "token_type_ids"}


class _Reversed(TextEncoder):
    def encode_batch(self, batch):
        return super().encode_batch(batch | {"text": [text[::-1] for text in batch["text"]]})

    @staticmethod
    def collate(padding, names, rows):
        return TextEncoder.collate(padding, names, rows[::-1])


class _Family(CustomTask):
    def encoder(self):
        return _Reversed


def test_a_family_brings_its_own_inputs_and_batches(roberta):
    task = _Family(**vars(custom_task("classification", ("text",), ("a", "b"))))
    rows = encode(_data(task, {"text": "tac"}, {"text": "tas tac", "label": 1}), roberta, 16)["train"]
    assert [roberta.decode(ids) for ids in rows["input_ids"]] == ["<s>cat</s>", "<s>cat sat</s>"]
    assert make_collator(task, roberta)(list(rows))["labels"].tolist() == [1, 0]


# ---- Wrong inputs ----

CHOICE = _choice("", "Who ?", "cat", "dog")
PASSAGE = _choice("The cat", "Who ?", "cat", "dog")


WRONG_LENGTHS = [
    (TASKS["cola"], {"text": "x"}, (2,), r"`--max_sequence_length` is 2, which leaves no room for text: give at least 3\."),
    (TASKS["rte"], _pair(1, 1), (5,), r"`--max_sequence_length` is 5, .*: give at least 6\."),
    (
        RACE,
        PASSAGE,
        (130, 128),
        r"`--max_option_length` is 128, .* in the 130 tokens of .* of the model: lower it, to 65 .*",
    ),
    (RACE, PASSAGE, (130, 2), r"`--max_option_length` is 2, which leaves no room for text: raise it\."),
    (CSQA, CHOICE, (7, 128), r"`--max_option_length` is 128 and `--max_sequence_length` is 7: give at least 8\."),
]


@pytest.mark.parametrize(("task", "row", "lengths", "expected"), WRONG_LENGTHS)
def test_lengths_without_room(roberta, task, row, lengths, expected):
    with pytest.raises(InputError, match=f"^{expected}$"):
        encode(_data(task, row), roberta, *lengths)


def test_tokenizers_that_do_not_fit(roberta):
    bare = PreTrainedTokenizerFast(tokenizer_object=roberta.backend_tokenizer, pad_token="<pad>")
    with pytest.raises(InputError, match=r"lacks a cls or sep token: multiple choice needs both\.$"):
        encode(_data(CSQA, CHOICE), bare, 64)

    class Slow:
        is_fast, name_or_path = False, "some/name"

    with pytest.raises(InputError, match=r"^The tokenizer some/name has no tokenizer\.json: use one that is fast\.$"):
        encode(_data(TASKS["cola"], {"text": "x"}), Slow(), 64)
