# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Every published format gives the same rows, and every fault in it is one sentence."""

import json
import math
import shutil
import subprocess
import sys

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetuning.tasks import TASKS
from luna_tools.errors import InputError
from tests.support.published_files import message_of, rows_of, write_published


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.hub_dataset and task.folder])
def test_both_published_forms_give_the_same_rows_also_from_the_task_s_own_folder(tmp_path, name):
    task, loaded = TASKS[name], {}
    for form in ("hub", "original"):
        write_published(name, tmp_path / form, form, rows=12)
        loaded[form] = task.load(tmp_path / form)
        inner = tmp_path / form / ((task.hub_config or "data") if form == "hub" else task.folder)
        rows = rows_of(loaded[form])
        rows.pop("diagnostic", None)  # lies beside it
        assert rows_of(task.load(inner)) == rows
        assert all(path.is_relative_to(inner) for paths in task.files(inner).values() for path in paths)
        assert tuple(loaded[form].splits) == ("train", *task.validation_splits, *task.test_splits)
        for split in loaded[form].splits.values():
            assert split.column_names == ["index", *task.columns, "label"]
    hub, original = rows_of(loaded["hub"]), rows_of(loaded["original"])
    if name == "mrpc":  # the Hub has its test labels, GLUE's site has not
        assert {row.pop("label") for row in original["test"]} == {-1}
        assert {row.pop("label") for row in hub["test"]} == {0, 1}
    assert hub == original
    features = [[split.features for split in data.splits.values()] for data in loaded.values()]
    assert features[0] == features[1]


@pytest.mark.parametrize("name", ["sst2", "race"])
def test_shards(tmp_path, name):
    write_published(name, tmp_path, "hub", rows=12)
    whole = rows_of(TASKS[name].load(tmp_path))
    path = tmp_path / TASKS[name].hub_config / "train-00000-of-00001.parquet"
    table = pq.read_table(path)
    path.unlink()
    pq.write_table(table[:5], path.with_name("train-00000-of-00002.parquet"))  # inside one of RACE's articles
    with pytest.raises(InputError, match="holds 1 of the 2 shards of 'train'"):
        TASKS[name].load(tmp_path)
    pq.write_table(table[5:], path.with_name("train-00001-of-00002.parquet"))
    assert rows_of(TASKS[name].load(tmp_path)) == whole


def test_the_hub_s_files_are_read_as_a_folder_s(tmp_path, monkeypatch):
    for name in ("stsb", "mnli", "race-high", "csqa"):
        task, folder = TASKS[name], tmp_path / name
        write_published(name, folder, "hub", rows=9)

        def download(repository, repo_type, allow_patterns, task=task, folder=folder):
            assert (repository, repo_type) == (task.hub_dataset, "dataset")
            wanted = {path for pattern in allow_patterns for path in folder.glob(pattern)}
            assert wanted >= {path for paths in task.files(folder).values() for path in paths}
            return str(folder)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        assert rows_of(task.load(None)) == rows_of(task.load(folder)) and task.files(None) == {}


def test_a_hub_that_cannot_be_reached():
    message = r"^nyu-mll/glue \(cola\) cannot be read from the Hub \(.*\): .*`--data_dir`.*CoLA\.$"
    with pytest.raises(InputError, match=message):
        TASKS["cola"].load(None)


def test_names_of_tasks_are_known_at_once():
    """A mistyped name is told without seconds of imports."""
    heavy = ("torch", "datasets", "pyarrow", "scipy", "sklearn", "transformers")
    code = f"import sys, finetuning.tasks; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# ---- Wrong files. A change is None (removed), a text (instead), a pair of bytes (replaced once), or a function of what a
# JSON file's first line, or the rows of a parquet file, hold. ----

RACE, CSQA, SST2 = "RACE/train/middle/8.txt", "CSQA/train_rand_split.jsonl", "sst2/train-00000-of-00001.parquet"
STSB, NO_ROWS = "stsb/train-00000-of-00001.parquet", "index\tsentence1\tsentence2\tlabel\n"
WRONG = [
    ("rte", "RTE/dev.tsv", None, "lacks the split 'validation' of RTE: add RTE/dev.tsv"),
    ("race", "all/validation-00000-of-00001.parquet", None, "lacks the split 'validation' of RACE: add all/validation-*"),
    ("rte", "RTE/train.tsv", (b"sentence2", b"text"), "train.tsv has no column 'sentence2': its columns are index, "),
    ("rte", "RTE/train.tsv", "", "its columns are none"),
    ("rte", "RTE/dev.tsv", NO_ROWS, "RTE/dev.tsv holds no rows"),
    ("rte", "RTE/dev.tsv", (b"\tentailment", b"\tneutral"), "line 3: the label is 'neutral', but RTE has entailment, not_"),
    ("cola", "CoLA/dev.tsv", (b"source0\t0", b"source0\t2"), "dev.tsv, line 1: the label is '2', but CoLA has unacceptable"),
    ("stsb", "STS-B/dev.tsv", (b".800", b".x"), "dev.tsv, line 2: the label is '0.x', but regression takes"),
    ("stsb", "STS-B/train.tsv", (b"\t4.800", b"\t9.9"), "the label is 9.9, but STS-B's are from 0 to 5; download"),
    ("stsb", STSB, lambda rows: rows[1].update(label=math.nan), "row 2: the label is nan, but regression takes finite"),
    ("qqp", "QQP/test.tsv", (b"\n3\t", b"\nx\t"), "test.tsv, line 5: the index is 'x', not a whole number"),
    ("rte", "RTE/test.tsv", (b"index", b"number"), "test.tsv has no column 'index'"),
    ("rte", "RTE/test.tsv", (b"\n1\t", b"\n1\n1\t"), "test.tsv, line 3: the row lacks fields"),
    ("rte", "RTE/train.tsv", (b"\n1\t", b"\n1\t\xff"), "train.tsv, line 3 is not UTF-8 (invalid start"),
    ("sst2", SST2, lambda rows: rows[2].update(label=-1), "row 3: the row has no label, which only test rows may lack"),
    ("sst2", SST2, lambda rows: [row.pop("sentence") for row in rows], "no column 'sentence'"),
    ("sst2", SST2, lambda rows: rows[0].update(sentence=None), "row 1: 'text' holds null where a text must be"),
    ("sst2", SST2, "PAR1", "cannot be read as parquet (Parquet"),
    ("race", RACE, lambda a: a["answers"].__setitem__(1, "E"), "2: the answer is 'E', but the row has 4 options"),
    ("race", RACE, lambda a: a["options"][0].__delitem__(slice(1, 4)), "8.txt, question 1: the row has 1 options to choose"),
    ("race", RACE, lambda a: a["options"][1].append("e"), "question 2: the row has 5 options, but the first row has 4"),
    ("race", RACE, lambda a: a["answers"].pop(), "8.txt has 2 questions, 2 options, 1 answers"),
    ("race", RACE, lambda a: a.pop("article"), "lacks the published format's field 'article'"),
    ("race", "RACE/train/high", None, "RACE/train/high holds no *.txt: add them, or take one level alone"),
    ("race", RACE, (b"{", b"{,"), "8.txt is not valid JSON (Expecting"),
    ("csqa", CSQA, (b"}\n{", b"}\n{{"), "train_rand_split.jsonl, line 2 is not valid JSON ("),
    ("csqa", CSQA, (b'"stem"', b'"text"'), "line 1 lacks the published format's field 'stem'"),
    ("csqa", CSQA, lambda row: row["question"]["choices"][2].update(text=5), "line 1: 'options' holds int where a text"),
    ("csqa", CSQA, lambda row: row.update(answerKey="cat"), "line 1: the answer is 'cat', but the row has 5 options"),
]


def _damage(path, change):
    if change is None:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    elif isinstance(change, str):
        path.write_text(change)
    elif isinstance(change, tuple):
        data = path.read_bytes()
        assert change[0] in data
        path.write_bytes(data.replace(*change, 1))
    elif path.suffix == ".parquet":
        rows = pq.read_table(path).to_pylist()
        change(rows)
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        values = json.loads(path.read_text().split("\n")[0])
        change(values)
        path.write_text(json.dumps(values))


@pytest.mark.parametrize(("name", "file", "change", "expected"), WRONG, ids=[row[-1] for row in WRONG])
def test_wrong_published_files(tmp_path, name, file, change, expected):
    write_published(name, tmp_path, "hub" if file.endswith("parquet") else "original", rows=12)
    _damage(tmp_path / file, change)
    with pytest.raises(InputError) as error:
        TASKS[name].load(tmp_path)
    assert expected in message_of(error)


def test_folders_that_hold_no_published_format(tmp_path):
    published = "holds {} in no published format: put in the Hub's {} or the original {}, and"
    for name, folder, expected in [
        (
            "mnli",
            tmp_path / "absent",
            "`--data_dir` {folder}: there is no such folder; give the one with the files of MN",
        ),
        ("mrpc", tmp_path, published.format("MRPC", "mrpc/train-*.parquet", "MRPC/train.tsv")),
        ("race", tmp_path, published.format("RACE", "all/train-*.parquet", "RACE/train/middle/*.txt")),
        ("csqa", tmp_path, published.format("CSQA", "data/train-*.parquet", "CSQA/train_rand_split.jsonl")),
    ]:
        with pytest.raises(InputError) as error:
            TASKS[name].load(folder)
        assert expected.replace("{folder}", str(folder)) in message_of(error)
