# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The tokenizer of an official checkpoint: texts have the ids that the official code gives them, and its files come back."""

import json
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoTokenizer, RobertaTokenizerFast, pipeline

from luna_tools.convert.tokenizer import build_tokenizer, read_bpe, read_dictionary, recover_files
from luna_tools.errors import InputError
from luna_tools.tokenizer import wrap_tokenizer
from pretraining.prepare.tokenizer import train_tokenizer
from tests.support.fairseq_files import BYTE_PIECES, Bpe, convert, gpt2_pieces
from tests.support.fresh_process import run_program

TEXTS = [
    "Luna attends through a short packed sequence.",
    "  Two spaces, don't, they'll; 3.14 and 1,000!\n\n\ttab ",
    "na\u00efve caf\u00e9 \u4e2d\u6587 \U0001f31b\u200d x\u0301 \u2028 <|endoftext|> madeupword0000",
    "",
]


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    return Bpe(tmp_path_factory.mktemp("bpe"))


@pytest.fixture(scope="module")
def converted_with_tokenizer(bpe, tmp_path_factory):
    out = tmp_path_factory.mktemp("converted") / "out"
    convert(bpe.checkpoint, out, *bpe.options, dictionary=bpe.dict)
    return out


@pytest.fixture(scope="module")
def tokenizer(converted_with_tokenizer):
    return AutoTokenizer.from_pretrained(converted_with_tokenizer)


@pytest.mark.slow
def test_tokenizer_loads_without_the_code_of_the_folder(bpe, converted_with_tokenizer, tmp_path):
    program = """
import json
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=False)
print(json.dumps([tokenizer.is_fast, *tokenizer(json.loads(sys.argv[2]))["input_ids"]]))
"""
    result = run_program(program, tmp_path / "home", converted_with_tokenizer, json.dumps(TEXTS))
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == [True, *([0, *bpe.encode(text), 2] for text in TEXTS)]


def test_special_tokens(bpe, tokenizer, converted_with_tokenizer):
    special = ("bos", "cls", "pad", "eos", "sep", "unk", "mask")
    assert [getattr(tokenizer, f"{name}_token_id") for name in special] == [0, 0, 1, 2, 2, 3, len(bpe.ids) - 1]
    assert len(tokenizer) == len(bpe.ids) == AutoConfig.from_pretrained(converted_with_tokenizer).vocab_size
    assert tokenizer.get_vocab()["madeupword0001"] == bpe.ids["madeupword0001"]
    assert tokenizer.model_max_length == 64 and tokenizer.model_input_names == ["input_ids", "attention_mask"]
    # The mask takes the space before it, as in fairseq's fill_mask, and two texts have two separators between them.
    encoded = tokenizer("a <mask> c", " d")["input_ids"]
    assert encoded == [0, *bpe.encode("a"), len(bpe.ids) - 1, *bpe.encode(" c"), 2, 2, *bpe.encode(" d"), 2]


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=30) | st.text("abcde '.\n1\u00e9", max_size=60))
def test_texts_become_the_ids_of_the_dictionary_and_back(bpe, tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == bpe.encode(text)
    assert tokenizer.decode(ids) == text


def test_is_that_of_roberta(bpe, tokenizer):
    roberta = RobertaTokenizerFast(vocab=tokenizer.get_vocab(), merges=bpe.merges)
    for text in TEXTS:
        for inputs in ((text,), (text, TEXTS[0])):
            ours, theirs = tokenizer(*inputs, return_offsets_mapping=True), roberta(*inputs, return_offsets_mapping=True)
            assert ours["input_ids"] == theirs["input_ids"] and ours["offset_mapping"] == theirs["offset_mapping"]
        assert tokenizer.decode(ours["input_ids"]) == roberta.decode(ours["input_ids"])


def test_bytes_that_the_dictionary_lacks_are_unknown(bpe):
    merged = {piece for a, b in bpe.merges for piece in (a, b)}
    lacking = next(piece for piece in (BYTE_PIECES[byte] for byte in "\U0001f31b".encode()) if piece not in merged)
    symbols = [symbol for symbol in bpe.ids if symbol != str(bpe.numbers[lacking])]
    ids = {symbol: i for i, symbol in enumerate(symbols)}
    tokenizer = build_tokenizer(symbols, bpe.numbers, bpe.merges)
    text = "a moon \U0001f31b\U0001f31b"
    expected = [ids.get(str(bpe.numbers[piece]), 3) for piece in gpt2_pieces(text, bpe.merges)]
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == expected and expected.count(3) >= 2


def test_overwritten_symbols_have_their_later_id(bpe, tmp_path):
    """And what overwrites a special symbol does not change the ids that the official code starts with."""
    dictionary = tmp_path / "dict.txt"
    repeated = bpe.symbols[0]
    flag = "#fairseq:overwrite"
    dictionary.write_text(f"{bpe.dict.read_text()}{repeated} 1 {flag}\n<s> 1 {flag}\n")
    symbols = read_dictionary(dictionary)
    ids = bpe.ids | {repeated: len(bpe.ids) - 1, "<mask>": len(bpe.ids) + 1}
    tokenizer = build_tokenizer(symbols, bpe.numbers, bpe.merges)
    for text in TEXTS:
        expected = [ids[str(bpe.numbers[piece])] for piece in gpt2_pieces(text, bpe.merges)]
        assert tokenizer(text)["input_ids"] == [0, *expected, 2]
    assert tokenizer.mask_token_id == len(bpe.ids) + 1
    # Each id has one entry, so that the dictionary can be made of them again: fillers have the overwritten ids.
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(symbols)))
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "again.txt").write_text(recover_files(tmp_path / "tokenizer.json", len(symbols))["dict.txt"])
    again = read_dictionary(tmp_path / "again.txt")
    assert [again.index(symbol) for symbol in (repeated, "<s>", "<mask>")] == [ids[repeated], 0, ids["<mask>"]]
    assert again[4] == "madeupword0002" and len(again) == len(symbols)


def test_dictionaries(tmp_path):
    path = tmp_path / "dict.txt"
    path.write_text("318 12\n\u00e9\u2028x 3\nmadeupword0000 0\n", encoding="utf-8")
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    assert read_dictionary(path) == [*special, "318", "\u00e9\u2028x", "madeupword0000", "<mask>"]
    path.write_text("318 12\n<mask> 0\n13 1\n", encoding="utf-8")
    assert read_dictionary(path) == [*special, "318", "<mask>", "13"]
    path.write_bytes(b"\xef\xbb\xbf" + b"318 12\n")  # a byte order mark
    assert read_dictionary(path) == [*special, "318", "<mask>"]
    # The official code gives a symbol that is overwritten a new id, and the old one stays.
    path.write_text("318 12\n318 5 #fairseq:overwrite\n<s> 1 #fairseq:overwrite\n13 1 #fairseq:overwrite\n")
    assert read_dictionary(path) == [*special, "318", "318", "<s>", "13", "<mask>"]


def test_fill_mask_pipeline(converted_with_tokenizer):
    answers = pipeline("fill-mask", model=str(converted_with_tokenizer), device="cpu")("The moon is<mask>.")
    assert len(answers) == 5 and all(isinstance(answer["token_str"], str) for answer in answers)


# ---------------------------------------------------------------------------------------------------------------------
# What is refused


def assert_refused(tmp_path, sentence: str, bpe, *options, dictionary) -> None:
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(InputError) as refused:
        convert(bpe.checkpoint, tmp_path / "out", *options, dictionary=dictionary)
    assert str(refused.value).startswith(sentence) and "\n" not in str(refused.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def change_json(path, change):
    numbers = json.loads(path.read_text())
    change(numbers)
    path.write_text(json.dumps(numbers))


def change_lines(path, change):
    lines = path.read_text(encoding="utf-8").splitlines()
    change(lines)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


TOKENIZER_FILES_AND_SENTENCE = {
    "no encoder": (lambda d: (d / "encoder.json").unlink(), "There is no BPE encoder file {0}/encoder.json."),
    "no merges": (lambda d: (d / "vocab.bpe").unlink(), "There is no BPE merges file {0}/vocab.bpe."),
    "encoder is text": (
        lambda d: (d / "encoder.json").write_text("318"),
        "{0}/encoder.json is not a BPE encoder file: it must be a JSON object of pieces and numbers.",
    ),
    "number twice": (
        lambda d: change_json(d / "encoder.json", lambda numbers: numbers.update({"<x>": 5})),
        "{0}/encoder.json gives two pieces the same number.",
    ),
    "byte": (
        lambda d: change_json(d / "encoder.json", lambda numbers: numbers.pop("~")),
        "{0}/encoder.json lacks pieces of single bytes, such as '~'.",
    ),
    "header": (
        lambda d: change_lines(d / "vocab.bpe", lambda lines: lines.pop(0)),
        "{0}/vocab.bpe is not a BPE merges file: line 1 must start with #version.",
    ),
    "merge of three": (
        lambda d: change_lines(d / "vocab.bpe", lambda lines: lines.insert(1, "a b c")),
        "Line 2 of {0}/vocab.bpe is 'a b c', but must be two pieces.",
    ),
    "merge without piece": (
        lambda d: change_lines(d / "vocab.bpe", lambda lines: lines.insert(1, "~ ~")),
        "Line 2 of {0}/vocab.bpe needs the piece '~~', which {0}/encoder.json lacks.",
    ),
    "symbol without number": (
        lambda d: change_lines(d / "dict.txt", lambda lines: lines.__setitem__(0, "the 9")),
        "The dictionary and the BPE do not belong together: the symbol 'the' is no number of encoder.json.",
    ),
    "number of another BPE": (
        lambda d: change_lines(d / "dict.txt", lambda lines: lines.__setitem__(0, "50000 9")),
        "The dictionary and the BPE do not belong together: the symbol '50000' is no number of encoder.json.",
    ),
    "special piece": (
        lambda d: change_json(d / "encoder.json", lambda numbers: numbers.update({"<s>": numbers.pop("<|endoftext|>")})),
        "The piece '<s>' of encoder.json is also a symbol of the dictionary.",
    ),
}


@pytest.mark.parametrize("case", TOKENIZER_FILES_AND_SENTENCE)
def test_refused_tokenizer_files(case, bpe, tmp_path):
    change, sentence = TOKENIZER_FILES_AND_SENTENCE[case]
    for path in (bpe.encoder_json, bpe.vocab_bpe, bpe.dict):
        shutil.copy(path, tmp_path)
    change(tmp_path)
    options = ("--encoder_json", str(tmp_path / "encoder.json"), "--vocab_bpe", str(tmp_path / "vocab.bpe"))
    assert_refused(tmp_path, sentence.format(tmp_path), bpe, *options, dictionary=tmp_path / "dict.txt")


def test_truncated_tokenizer_files(bpe, tmp_path):
    merges, encoder = tmp_path / "vocab.bpe", tmp_path / "encoder.json"
    merges.write_text("".join(bpe.vocab_bpe.read_text(encoding="utf-8").splitlines(keepends=True)[:-10]), encoding="utf-8")
    first = "".join(bpe.merges[-10])
    options = ("--encoder_json", str(bpe.encoder_json), "--vocab_bpe", str(merges))
    sentence = f"{bpe.encoder_json} has 10 pieces that no merge of {merges} makes, such as {first!r}."
    assert_refused(tmp_path, sentence, bpe, *options, dictionary=bpe.dict)

    encoder.write_text(bpe.encoder_json.read_text()[:1000])
    options = ("--encoder_json", str(encoder), "--vocab_bpe", str(merges))
    sentence = f"{encoder} is not a BPE encoder file, since it is not JSON: "
    assert_refused(tmp_path, sentence, bpe, *options, dictionary=bpe.dict)


def test_a_dictionary_without_merged_pieces(bpe, tmp_path):
    """Those of the parity kit have the most frequent pieces only."""
    symbols = [symbol for symbol in bpe.symbols if symbol != "599"]
    piece = next(piece for piece, number in bpe.numbers.items() if number == 599)
    dictionary = tmp_path / "dict.txt"
    dictionary.write_text("".join(f"{symbol} 1\n" for symbol in [*symbols, "madeupword0002"]))
    sentence = (
        f"The dictionary lacks 1 of the BPE's 601 pieces, such as 599 ({piece!r}), which no fast tokenizer reads as the "
        "official code does: convert without --encoder_json and --vocab_bpe."
    )
    assert_refused(tmp_path, sentence, bpe, *bpe.options, dictionary=dictionary)


# ---------------------------------------------------------------------------------------------------------------------
# The way back


def test_files_come_back(bpe, converted_with_tokenizer, tmp_path):
    (tmp_path / "files").mkdir()
    files = recover_files(converted_with_tokenizer / "tokenizer.json", vocab_size=len(bpe.ids))
    for name, content in files.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    assert read_dictionary(tmp_path / "dict.txt") == list(bpe.ids)
    assert read_bpe(tmp_path / "encoder.json", tmp_path / "vocab.bpe") == (bpe.numbers, bpe.merges)


def test_files_of_a_tokenizer_of_this_project(tmp_path):
    """Its ids come back when its files are converted again."""
    trained = wrap_tokenizer(train_tokenizer(TEXTS * 20, vocab_size=330))
    trained.save_pretrained(tmp_path)
    for name, content in recover_files(tmp_path / "tokenizer.json", vocab_size=330).items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    symbols = read_dictionary(tmp_path / "dict.txt")
    again = build_tokenizer(symbols, *read_bpe(tmp_path / "encoder.json", tmp_path / "vocab.bpe"))
    assert again.get_vocab() == trained.get_vocab()
    for text in TEXTS:
        assert again(text)["input_ids"] == trained(text)["input_ids"]
    # The numbers are GPT-2's: bytes first, then the merges.
    assert symbols[4] == "0" and json.loads((tmp_path / "encoder.json").read_text())["!"] == 0


TOKENIZERS_AND_PROBLEM = {
    "none": (lambda content: None, "There is no tokenizer {0}."),
    "damaged": (lambda content: "{", "{0} cannot be read: "),
    "prefix space": (
        lambda content: content["pre_tokenizer"].update(add_prefix_space=True),
        "{0} is not GPT-2's byte-level BPE without a prefix space.",
    ),
    "lower case": (
        lambda content: content.update(normalizer={"type": "Lowercase"}),
        "{0} is not GPT-2's byte-level BPE without a prefix space.",
    ),
    "special ids": (
        lambda content: content["model"]["vocab"].update({"<s>": 1, "<pad>": 0}) or content.update(added_tokens=[]),
        "{0} does not give <s>, <pad>, </s>, <unk> the ids 0 to 3, or has no <mask>.",
    ),
    "size": (
        lambda content: content["model"]["vocab"].update({"extra": 330}),
        "{0} has 331 entries, but the model's vocabulary has 330.",
    ),
}


@pytest.mark.parametrize("case", TOKENIZERS_AND_PROBLEM)
def test_tokenizers_that_the_official_code_has_not(case, tmp_path):
    change, problem = TOKENIZERS_AND_PROBLEM[case]
    path = tmp_path / "tokenizer.json"
    if case != "none":
        content = json.loads(train_tokenizer(TEXTS * 20, vocab_size=330).to_str())
        path.write_text(change(content) or json.dumps(content))
    with pytest.raises(InputError) as raised:
        recover_files(path, vocab_size=330)
    assert str(raised.value).startswith(problem.format(path))
