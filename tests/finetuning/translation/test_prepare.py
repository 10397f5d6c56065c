# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""`luna prepare_pairs`: what it reads and leaves out, the tokenizer, and wrong input in one sentence."""

import gzip
import json
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_from_disk
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, NllbTokenizer

from finetuning.translation.prepare import read_manifest
from finetuning.translation.vocabulary import decode, load_tokenizer
from luna_tools.errors import InputError
from tests.support.finetuning import change_json, write_checkpoint
from tests.support.translation import prepare, write_lines


@pytest.fixture(scope="module")
def tokenizer(dataset):
    return AutoTokenizer.from_pretrained(dataset / "tokenizer")


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_comes_back_but_for_its_white_space(tokenizer, text):
    if not any(special in text for special in tokenizer.all_special_tokens):
        assert decode(tokenizer, [tokenizer(text)["input_ids"]]) == [" ".join(text.split())]


def test_lines_end_with_the_end_token_and_both_languages_share_the_entries(dataset, files, tokenizer):
    assert (tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1, 2) and len(tokenizer) == 300
    rows = load_from_disk(dataset / "test")
    for name, path, column in (
        ("source", files["test_files"][0], "input_ids"),
        ("target", files["test_files"][1], "labels"),
    ):
        lines = Path(path).read_text().splitlines()
        assert rows[name][:] == lines == decode(tokenizer, rows[column][:])
        assert all(ids[-1] == 2 and 2 not in ids[:-1] for ids in rows[column])
        assert rows[f"{name}_length"][:] == [len(ids) for ids in rows[column]]
    manifest = read_manifest(dataset)
    assert manifest["splits"]["train"]["pairs"] == 120 and manifest["splits"]["train"]["left_out"] == {}
    assert str(dataset.parent) not in json.dumps(manifest)


def test_training_pairs_are_left_out_by_length_ratio_and_emptiness_and_others_stay(files, tmp_path, capsys):
    source = ["the cat sees", "", "the cat sees " * 9, "the cat sees", "a dog"]
    target = ["eht tac sees", "eht", "eht tac sees " * 9, "x " * 30, "a god"]
    train = [str(write_lines(tmp_path / f"train.{i}", lines * 9)) for i, lines in enumerate((source, target))]
    values = files | {"train_files": train, "max_length": 40, "max_ratio": 3, "vocab_size": 266}
    assert prepare(tmp_path / "pairs", **values) == 0
    assert "left out: empty 9, long 9, ratio 9" in capsys.readouterr().out
    assert read_manifest(tmp_path / "pairs")["splits"]["train"]["left_out"] == {"empty": 9, "long": 9, "ratio": 9}
    assert len(load_from_disk(tmp_path / "pairs" / "train")) == 18
    assert read_manifest(tmp_path / "pairs")["splits"]["validation"]["pairs"] == 10


def test_packed_files_and_a_dataset_of_the_hub_give_the_same_ids(files, dataset, tmp_path):
    packed = {}
    for name, paths in files.items():
        packed[name] = []
        for path in map(Path, paths):
            with gzip.open(tmp_path / f"{path.name}.gz", "wb") as file:
                file.write(path.read_bytes().replace(b"\n", b"\r\n"))
            packed[name].append(str(tmp_path / f"{path.name}.gz"))
    assert prepare(tmp_path / "packed", **packed) == 0
    hub = tmp_path / "wmt" / "xx-en"
    hub.mkdir(parents=True)
    for name, paths in files.items():
        sides = (Path(path).read_text().splitlines() for path in paths)
        rows = [{"translation": {"xx": target, "en": source}} for source, target in zip(*sides, strict=True)]
        pq.write_table(pa.Table.from_pylist(rows), hub / f"{name.removesuffix('_files')}-00000-of-00001.parquet")
    values = {"hub_dataset": str(hub), "source_language": "en", "target_language": "xx"}
    assert prepare(tmp_path / "hub", **values) == 0
    for split in ("train", "validation", "test"):
        rows = [load_from_disk(folder / split) for folder in (dataset, tmp_path / "packed", tmp_path / "hub")]
        assert rows[0]["input_ids"][:] == rows[1]["input_ids"][:] == rows[2]["input_ids"][:]
        assert rows[0]["labels"][:] == rows[1]["labels"][:] == rows[2]["labels"][:]
    assert prepare(tmp_path / "other", **values | {"target_language": "de"}) == 2


def test_the_tokenizer_of_a_model_is_taken_as_it_is(files, finished, tmp_path):
    assert prepare(tmp_path / "again", **files | {"vocab_size": None, "tokenizer": str(finished)}) == 0
    texts = AutoTokenizer.from_pretrained(finished), AutoTokenizer.from_pretrained(tmp_path / "again" / "tokenizer")
    assert texts[0].get_vocab() == texts[1].get_vocab()


WRONG = [
    ({"train_files": []}, "Give --train_files and --validation_files, or --hub_dataset: one of the two"),
    ({"hub_dataset": "wmt/wmt14"}, "Give --train_files and --validation_files, or --hub_dataset: one of the two"),
    ({"train_files": ["one"]}, "`train_files` names 1 files: give two, source and target"),
    ({"validation_files": []}, "`validation_files` is missing: give two files to evaluate on"),
    ({"train_files": ["EMPTY", "EMPTY"]}, "empty is empty: give a file with one sentence a line"),
    ({"train_files": ["SHORT", "LONG"]}, "short has 1 lines, but .*long has 2: give files whose lines belong together"),
    ({"train_files": ["LATIN", "LONG"]}, "Line 2 of .*latin is not UTF-8: convert the file"),
    ({"train_files": ["NOWHERE", "LONG"]}, r"nowhere cannot be read \(No such file or directory\): give a text file"),
    ({"train_files": ["CUT.gz", "LONG"]}, r"cut.gz cannot be read \(.*\): give a text file, or a whole .gz"),
    ({"train_files": ["BLANK", "LONG"], "vocab_size": 260}, r"No training pair is left \(empty 2\): raise --max_length or"),
    ({"max_length": 0}, "`max_length` is 0: give at least 1"),
    ({"max_ratio": 0.5}, "`max_ratio` is 0.5: give at least 1"),
    ({"vocab_size": 200}, "`vocab_size` is 200, but the bytes and special tokens are 260: give more"),
    ({"vocab_size": 5000}, r"`vocab_size` is 5000, but the training lines give only \d+ entries: lower it"),
    ({"output_dir": "."}, r"`output_dir` is \., which is there already: choose another"),
    ({"tokenizer": "NOWHERE"}, r"`tokenizer` is .*nowhere, which cannot be loaded \(.*\): give a model's folder"),
    ({"tokenizer": "NOEND"}, "The tokenizer .*noend has no eos_token, which translation needs: give one"),
    ({"vocab_sizes": 9}, "'--vocab_sizes' is not an option, perhaps --vocab_size is meant"),
    ({"HUB": "no_languages"}, "`hub_dataset` has columns by language: give --source_language and --target_language"),
    ({"HUB": "unknown"}, r"The dataset nowhere/at_all, configuration None, cannot be loaded \(.*\): correct --hub_dataset"),
]


@pytest.mark.parametrize(("values", "sentence"), WRONG)
def test_wrong_input_is_refused_in_one_sentence_and_leaves_nothing(values, sentence, files, places, tmp_path, capsys):
    values = {
        name: [places.get(v, v) for v in value] if isinstance(value, list) else value for name, value in values.items()
    }
    values = {name: places.get(value, value) if isinstance(value, str) else value for name, value in values.items()}
    if case := values.pop("HUB", None):
        files = {"hub_dataset": "nowhere/at_all"} | ({} if case == "no_languages" else LANGUAGES)
    capsys.readouterr()
    assert prepare(tmp_path / "pairs", **files | values) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert re.search(sentence, line) and line.endswith("."), line
    assert not (tmp_path / "pairs").exists() and not list(tmp_path.glob(".unfinished*"))


LANGUAGES = {"source_language": "en", "target_language": "de"}


@pytest.fixture(scope="module")
def places(base):
    """Name -> a file or folder that the cases above speak of."""
    folder = base / "wrong-lines"
    folder.mkdir()
    contents = {"EMPTY": b"", "SHORT": b"one\n", "LONG": b"one\ntwo\n", "LATIN": b"one\nzw\xf6lf\n", "BLANK": b"\n \n"}
    for name, content in (contents | {"CUT.gz": gzip.compress(b"one\n" * 99)[:-9]}).items():
        (folder / name.lower()).write_bytes(content)
    shutil.copytree(write_checkpoint(base / "with-end"), folder / "noend")
    change_json(folder / "noend" / "tokenizer_config.json", eos_token=None)
    return {name: str(folder / name.lower()) for name in (*contents, "CUT.gz", "NOWHERE", "NOEND")}


def test_languages_that_are_tokens_are_set_and_known(tmp_path):
    """As NLLB's are, whose tokenizer has no table of them."""
    vocab = {token: i for i, token in enumerate(("<s>", "<pad>", "</s>", "<unk>", "\u2581", "a", "\u2581a"))}
    NllbTokenizer(vocab=vocab, merges=[("\u2581", "a")]).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path), "fra_Latn", "deu_Latn")
    first = [tokenizer("a")["input_ids"][0], tokenizer(text_target="a")["input_ids"][0]]
    assert tokenizer.convert_ids_to_tokens(first) == ["fra_Latn", "deu_Latn"]
    for languages in (("english", "deu_Latn"), ("fra_Latn", None)):
        with pytest.raises(InputError, match="does not know the language (english|None): give codes of its own, such as"):
            load_tokenizer(str(tmp_path), *languages)
