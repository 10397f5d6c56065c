# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The Long Range Arena's files become the rows that the benchmark says, its known traps included."""

import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetuning.tasks import TASKS
from finetuning.tasks.lra import LEVEL, LRA_TASKS
from luna_tools.errors import InputError
from tests.support.published_files import message_of, png, rows_of, write_published

NAMES = [task.name for task in LRA_TASKS if task.name != "listops-no-brackets"]
SPLITS = {name: ["train", "validation", "test"] for name in NAMES} | {"text": ["train", "validation"]}


@pytest.mark.parametrize("name", NAMES)
def test_published_files(name, tmp_path):
    task = TASKS[name]
    write_published(name, tmp_path, "original", rows=20)
    data = task.load(tmp_path)
    assert list(data.splits) == SPLITS[name]
    for split in data.splits.values():
        assert split.column_names == ["index", *task.columns, "label"] and len(split) > 0
        assert set(split["label"]) <= set(range(len(task.labels)))
    first = data.splits["train"][0]
    if name == "listops":
        words = first["text"].replace("(", "").replace(")", "").split()
        operator = {"[MAX": max, "[MIN": min}[words[0]]
        assert words[-1] == "]" and first["label"] == operator(map(int, words[1:-1]))
    if name in ("image", "pathfinder32", "pathfinder128"):
        assert len(first["pixels"]) == (128 if name == "pathfinder128" else 32) ** 2


def test_text_is_validated_on_the_test_rows_and_says_so(tmp_path, caplog):
    write_published("text", tmp_path, "hub", rows=8)
    splits = TASKS["text"].load(tmp_path).splits
    assert [path.name for path in TASKS["text"].files(tmp_path)["validation"]] == ["test-00000-of-00001.parquet"]
    assert len(splits["validation"]) == 4 and TASKS["text"].test_splits == ()
    assert "Text: the checkpoint is picked on the published test rows, as the Long Range Arena does." in caplog.messages


def test_image_keeps_the_last_tenth_for_validation_in_the_published_order(tmp_path):
    write_published("image", tmp_path, "hub", rows=20)
    rows = rows_of(TASKS["image"].load(tmp_path))
    assert [row["index"] for row in rows["train"]] == list(range(18))
    assert [row["index"] for row in rows["validation"]] == [18, 19] and len(rows["test"]) == 10


def test_pathfinder_takes_eight_tenths_one_and_one_of_all_pictures(tmp_path):
    write_published("pathfinder32", tmp_path, "original", rows=20)
    folder = tmp_path / "pathfinder32" / LEVEL
    splits = TASKS["pathfinder32"].load(tmp_path).splits
    assert [len(split) for split in splits.values()] == [32, 4, 4]
    indices = [index for split in splits.values() for index in split["index"]]
    assert sorted(indices) == sorted(f"{k}/sample_{i}.png" for k in range(2) for i in range(20))
    # Wherever the folder is given, the same rows.
    for place in (tmp_path / "pathfinder32", folder):
        assert rows_of(TASKS["pathfinder32"].load(place)) == rows_of(TASKS["pathfinder32"].load(tmp_path))
    lines = [line.split() for k in range(2) for line in (folder / "metadata" / f"{k}.npy").read_text().splitlines()]
    labels = {f"{line[0].removeprefix('imgs/')}/{line[1]}": int(line[3]) for line in lines}
    assert {row["index"]: row["label"] for split in splits.values() for row in split} == labels


def test_the_empty_picture_is_left_out(tmp_path, caplog):
    write_published("pathfinder32", tmp_path, "original", rows=20)
    empty = tmp_path / "pathfinder32" / LEVEL / "imgs" / "0" / "sample_17.png"
    empty.write_bytes(b"")
    splits = TASKS["pathfinder32"].load(tmp_path).splits
    assert sum(map(len, splits.values())) == 39
    assert all("0/sample_17.png" not in split["index"] for split in splits.values())
    assert f"Empty pictures that are left out: 1, the first is {empty}." in caplog.messages


@pytest.mark.parametrize("name", ["listops", "pathfinder128", "retrieval"])
def test_two_folders_of_one_name_are_refused_and_either_can_be_given(name, tmp_path):
    """The archive holds two pathfinder128."""
    task = TASKS[name]
    write_published(name, tmp_path / "lra_release", "original", rows=10)
    inner = tmp_path / "lra_release" / "lra_release"
    assert len(task.load(tmp_path).splits) == 3
    shutil.copytree(tmp_path / "lra_release" / task.folder, inner / task.folder)
    with pytest.raises(InputError) as error:
        task.load(tmp_path)
    assert f"holds two folders {task.folder}, {tmp_path / 'lra_release' / task.folder} and " in message_of(error)
    assert rows_of(task.load(inner)) == rows_of(task.load(inner / task.folder))


METADATA = f"pathfinder32/{LEVEL}/metadata/0.npy"
LISTOPS, PAIRS = "listops-1000/basic_train.tsv", "tsv_data/new_aan_pairs.train.tsv"
WRONG = [
    ("listops", LISTOPS, lambda text: text.replace("Target", "Value"), "has no column 'Target': its columns are Source, V"),
    ("listops", LISTOPS, lambda text: text + "( [MAX 1 )\n", "the row has 1 fields, but must have 2; write it again"),
    ("listops", LISTOPS, lambda text: text + "( [MAX 1 )\t10\n", "the label is '10', but ListOps has 0, 1, 2"),
    ("retrieval", PAIRS, lambda text: "1\ta\tb\tc\n" + text, "line 1: the row has 4 fields, but must have 5, the label"),
    (
        "retrieval",
        PAIRS,
        lambda text: "2.0\ta\tb\tc\td\n" + text,
        "line 1: the label is '2', but Retrieval has unrel",
    ),
    (
        "pathfinder32",
        METADATA,
        lambda text: "imgs/0 sample_0.png\n" + text,
        "line 1 has 2 fields, but must have folder, f",
    ),
    (
        "pathfinder32",
        METADATA,
        lambda text: "imgs/0 a.png 0 1\n" + text,
        "line 1 names .*a.png, which is not there: e",
    ),
    ("pathfinder32", METADATA, lambda text: text.replace(" 1 1.8", " 7 1.8"), "the label is '7', but Pathfinder has apart"),
]


@pytest.mark.parametrize(("name", "file", "change", "expected"), WRONG, ids=[row[-1] for row in WRONG])
def test_wrong_files(name, file, change, expected, tmp_path):
    write_published(name, tmp_path, "original", rows=10)
    path = tmp_path / file
    path.write_text(change(path.read_text()))
    with pytest.raises(InputError, match=expected) as error:
        TASKS[name].load(tmp_path)
    message_of(error)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"no picture", "sample_3.png is no picture that can be read ("),
        (png(np.zeros((8, 9), np.uint8)), "9 x 8 pixels, but"),
    ],
)
def test_wrong_pictures(content, expected, tmp_path):
    write_published("pathfinder32", tmp_path, "original", rows=10)
    (tmp_path / "pathfinder32" / LEVEL / "imgs" / "1" / "sample_3.png").write_bytes(content)
    with pytest.raises(InputError) as error:
        TASKS["pathfinder32"].load(tmp_path)
    assert expected in message_of(error)


def test_what_is_missing_is_said(tmp_path):
    for name, expected in [
        ("listops", "no published format: put in the original listops-1000/basic_train.tsv, and the other splits."),
        ("pathfinder32", f"put in the original pathfinder32/{LEVEL}/metadata/*.npy, and the other splits."),
        ("text", "put in the Hub's plain_text/train-*.parquet, and the other splits."),
    ]:
        with pytest.raises(InputError) as error:
            TASKS[name].load(tmp_path)
        assert expected in message_of(error)
    with pytest.raises(InputError) as error:
        TASKS["pathfinder128"].load(None)
    assert "Pathfinder-128 is not on the Hub: give `--data_dir` with pathfinder128 of lra_release, or" in message_of(error)


# ---- Tokenizers ----

EXPRESSION = "( ( ( ( [MAX 2 ) 9 ) ( ( ( [SM 1 ) 0 ) ] ) ) ] )"


def test_listops_with_and_without_brackets():
    """A closing bracket stays a token; without brackets it is lost, and with it where an operation ends."""
    for name, tokens in (
        ("listops", ["<s>", "[MAX", "2", "9", "[SM", "1", "0", "]", "]"]),
        ("listops-no-brackets", ["<s>", "MAX", "2", "9", "SM", "1", "0"]),
    ):
        tokenizer = TASKS[name].make_tokenizer()
        assert tokenizer.convert_ids_to_tokens(tokenizer(EXPRESSION)["input_ids"]) == tokens
        vocabulary = tokenizer.get_vocab()
        assert [vocabulary[token] for token in ("<s>", "<pad>", "</s>", "<unk>", "0", "9")] == [0, 1, 2, 3, 4, 13]
        assert len(vocabulary) == (20 if name == "listops" else 19) and vocabulary["<mask>"] == len(vocabulary) - 1


@settings(max_examples=40, deadline=None)
@given(text=st.text(max_size=30))
def test_bytes(text):
    ids = TASKS["text"].make_tokenizer()(text)["input_ids"]
    assert ids == [0, *(value + 4 for value in text.encode())]


def test_every_tokenizer_survives_saving(tmp_path):
    from transformers import AutoTokenizer

    for task in LRA_TASKS:
        tokenizer = task.make_tokenizer()
        tokenizer.save_pretrained(tmp_path / task.name)
        loaded = AutoTokenizer.from_pretrained(tmp_path / task.name)
        assert loaded.get_vocab() == tokenizer.get_vocab() and len(loaded) == len(tokenizer)
        assert loaded("0 [MAX")["input_ids"] == tokenizer("0 [MAX")["input_ids"]
