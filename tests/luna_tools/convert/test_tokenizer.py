# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The tokenizer of an official checkpoint: texts have the ids that the official code gives them, and its files come back."""

import json
import re
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoTokenizer, RobertaTokenizerFast, pipeline

from luna_tools.convert.tokenizer import build_tokenizer, read_bpe, read_dictionary, recover_files
from luna_tools.tokenizer import wrap_tokenizer
from pretraining.prepare.tokenizer import train_tokenizer
from tests.support.fairseq_files import Bpe, convert, convert_back
from tests.support.folders import refused
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
    text, merged = "a moon \U0001f31b\U0001f31b", {piece for a, b in bpe.merges for piece in (a, b)}
    lacking = next(piece for piece in bpe.trained.encode("\U0001f31b").tokens if piece not in merged)
    symbols = [symbol for symbol in bpe.ids if symbol != str(bpe.numbers[lacking])]
    tokenizer = build_tokenizer(symbols, bpe.numbers, bpe.merges)
    expected = bpe.encode(text, {symbol: i for i, symbol in enumerate(symbols)})
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
        assert tokenizer(text)["input_ids"] == [0, *bpe.encode(text, ids), 2]
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


def change_object(**changes):
    """Of a JSON object; None takes an entry out."""
    return lambda text: json.dumps({name: x for name, x in (json.loads(text) | changes).items() if x is not None})


def change_line(number, *lines):
    """Put lines in the place of one."""

    def change(text):
        found = text.splitlines()
        found[number : number + 1] = lines
        return "".join(f"{line}\n" for line in found)

    return change


ENCODER, MERGES, DICT = "encoder.json", "vocab.bpe", "dict.txt"
NO_ENCODER, NO_PAIR = "{0}/encoder.json is not a BPE encoder file", "The dictionary and the BPE do not belong together: "
ENTRY = "but must be a symbol, a space and a count."
# The file, its new content (None: there is no file), and the sentence.
FILES_AND_SENTENCE = [
    (ENCODER, lambda text: None, "There is no BPE encoder file {0}/encoder.json."),
    (MERGES, lambda text: None, "There is no BPE merges file {0}/vocab.bpe."),
    (ENCODER, lambda text: "318", f"{NO_ENCODER} ("),
    (ENCODER, lambda text: text[:1000], f"{NO_ENCODER} ("),
    (ENCODER, change_object(**{"<x>": 5}), "{0}/encoder.json gives two pieces the same number."),
    (ENCODER, change_object(**{"~": None}), "{0}/encoder.json lacks pieces of single bytes, such as '~'."),
    (
        ENCODER,
        change_object(**{"<|endoftext|>": None, "<s>": 600}),
        "The piece '<s>' of encoder.json is also a symbol of the dictionary.",
    ),
    (MERGES, change_line(0), "{0}/vocab.bpe is not a BPE merges file: line 1 must start with #version."),
    (MERGES, change_line(1, "a b c"), "Line 2 of {0}/vocab.bpe is 'a b c', but must be two pieces."),
    (
        MERGES,
        change_line(1, "~ ~"),
        "Line 2 of {0}/vocab.bpe needs the piece '~~', which {0}/encoder.json lacks.",
    ),
    (
        MERGES,
        lambda text: "\n".join(text.splitlines()[:-10]),
        "{0}/encoder.json has 10 pieces that no merge of {0}/vocab.bpe makes, such as ",
    ),
    (DICT, change_line(0, "the 9"), f"{NO_PAIR}the symbol 'the' is no number of encoder.json."),
    (DICT, change_line(0, "50000 9"), f"{NO_PAIR}the symbol '50000' is no number of encoder.json."),
    (DICT, lambda text: "318 12\n13\n", f"Line 2 of {{0}}/dict.txt is '13', {ENTRY}"),
    (DICT, lambda text: "318 12\n\n13 1\n", f"Line 2 of {{0}}/dict.txt is '', {ENTRY}"),
    (DICT, lambda text: "318 many\n", f"Line 1 of {{0}}/dict.txt is '318 many', {ENTRY}"),
    (DICT, lambda text: "318 12\n13 1\n318 1\n", "Line 3 of {0}/dict.txt repeats the symbol '318'."),
    (DICT, lambda text: "\udcff 1\n", "{0}/dict.txt is not a dictionary file ("),
    (
        DICT,
        lambda text: "318 12\n",
        "{0}/dict.txt makes a vocabulary of 6 symbols with the special ones, but the checkpoint has embeddings for 608.",
    ),
    # Dictionaries of the parity kit have the most frequent pieces only.
    (
        DICT,
        lambda text: re.sub("^599 ", "madeupword0002 ", text, flags=re.MULTILINE),
        "The dictionary lacks 1 of the BPE's 601 pieces, such as 599 ('{1}'), which no fast tokenizer reads as the official "
        "code does: convert without --encoder_json and --vocab_bpe.",
    ),
]


@pytest.mark.parametrize("name, change, sentence", FILES_AND_SENTENCE)
def test_refused_files(name, change, sentence, bpe, tmp_path):
    for path in (bpe.encoder_json, bpe.vocab_bpe, bpe.dict):
        shutil.copy(path, tmp_path)
    content = change((tmp_path / name).read_text(encoding="utf-8"))
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_text(content, encoding="utf-8", errors="surrogateescape")
    options = ("--encoder_json", tmp_path / ENCODER, "--vocab_bpe", tmp_path / MERGES)
    last_piece = next(piece for piece, number in bpe.numbers.items() if number == 599)
    with refused(sentence.format(tmp_path, last_piece), tmp_path):
        convert(bpe.checkpoint, tmp_path / "out", *options, dictionary=tmp_path / DICT)


# ---------------------------------------------------------------------------------------------------------------------
# The way back


def test_files_come_back(bpe, converted_with_tokenizer, tmp_path, capsys):
    convert_back(converted_with_tokenizer, tmp_path / "model.pt")
    assert "Beside it: dict.txt, encoder.json, vocab.bpe." in capsys.readouterr().out
    assert (tmp_path / MERGES).read_bytes() == bpe.vocab_bpe.read_bytes()
    assert read_bpe(tmp_path / ENCODER, tmp_path / MERGES) == (bpe.numbers, bpe.merges)
    assert read_dictionary(tmp_path / DICT) == list(bpe.ids)
    # The counts are not known.
    assert [line.split() for line in (tmp_path / DICT).read_text().splitlines()] == [[s, "0"] for s in bpe.symbols]
    # Files that are there already stay, if they are the same.
    convert_back(converted_with_tokenizer, tmp_path / "again.pt")


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
    "damaged": (lambda content: "{", "{0} cannot be read ("),
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
    with refused(problem.format(path)):
        recover_files(path, vocab_size=330)
