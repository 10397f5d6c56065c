# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Every published format gives the same rows, the user's own files keep every text, and every fault is one sentence."""

import json
import logging
import math
import re
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetuning.data import CustomFiles, load_task
from finetuning.predictions import check_submission
from finetuning.tasks import TASKS, custom_task
from luna_tools.errors import InputError
from tests.support.published_files import write_published


def _rows(split):
    """The rows, with NaN as a word, since NaN is not itself."""
    return [{name: "NaN" if value != value else value for name, value in row.items()} for row in split]


def _all_rows(loaded):
    return {split: _rows(rows) for split, rows in loaded.splits.items()}


# ---- Published formats ----


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", TASKS)
def test_both_published_forms_give_the_same_rows(tmp_path, name, seed):
    task = TASKS[name]
    loaded = {}
    for form in ("hub", "original"):
        write_published(name, tmp_path / form, form, rows=12, seed=seed)
        loaded[form] = load_task(task, tmp_path / form)
        assert tuple(loaded[form].splits) == ("train", *task.validation_splits, *task.test_splits)
        for split in loaded[form].splits.values():
            assert split.column_names == ["index", *task.columns, "label"]
    hub, original = _all_rows(loaded["hub"]), _all_rows(loaded["original"])
    if name == "mrpc":  # the Hub has its test labels, GLUE's site has not
        assert {row.pop("label") for row in original["test"]} == {-1}
        assert {row.pop("label") for row in hub["test"]} == {0, 1}
    assert hub == original
    assert [split.features for split in loaded["hub"].splits.values()] == [
        split.features for split in loaded["original"].splits.values()
    ]


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("form", ["hub", "original"])
def test_the_folder_of_the_task_itself_will_do(tmp_path, name, form):
    task = TASKS[name]
    write_published(name, tmp_path, form, rows=12)
    whole = _all_rows(load_task(task, tmp_path))
    inner = tmp_path / ((task.hub_config or "data") if form == "hub" else task.folder)
    whole.pop("diagnostic", None)  # lies beside it
    assert _all_rows(load_task(task, inner)) == whole


def test_cola(tmp_path):
    (tmp_path / "train.tsv").write_text(
        'gj04\t1\t\t"Our friends" won\'t buy.\ngj04\t0\t*\tOne\u2028more.\n', encoding="utf-8"
    )
    (tmp_path / "dev.tsv").write_text("gj04\t1\t\tThe NA sailors rode.\n")
    (tmp_path / "test.tsv").write_text("index\tsentence\n0\tBill whistled.\n")
    assert _all_rows(load_task(TASKS["cola"], tmp_path)) == {
        "train": [
            {"index": 0, "text": '"Our friends" won\'t buy.', "label": 1},
            {"index": 1, "text": "One\u2028more.", "label": 0},
        ],
        "validation": [{"index": 0, "text": "The NA sailors rode.", "label": 1}],
        "test": [{"index": 0, "text": "Bill whistled.", "label": -1}],
    }


def test_labels_of_mnli_and_stsb_come_from_the_right_columns(tmp_path):
    parse = "promptID\tpairID\tgenre\tb1\tb2\tp1\tp2"
    line = "0\t1\t1n\tfiction\tb\tb\tp\tp\tA premise\tA hypothesis"
    for name in ("dev_matched", "dev_mismatched"):
        header = f"index\t{parse}\tsentence1\tsentence2\tlabel1\tlabel2\tlabel3\tlabel4\tlabel5\tgold_label\n"
        (tmp_path / f"{name}.tsv").write_text(f"{header}{line}\t" + "entailment\t" * 5 + "contradiction\n")
    (tmp_path / "train.tsv").write_text(
        f"index\t{parse}\tsentence1\tsentence2\tlabel1\tgold_label\n{line}\tentailment\tneutral\n"
    )
    loaded = load_task(TASKS["mnli"], tmp_path)
    expected = {"index": 0, "text": "A premise", "text_pair": "A hypothesis"}
    assert list(loaded.splits["train"]) == [expected | {"label": 1}]
    assert list(loaded.splits["validation_mismatched"]) == [expected | {"label": 2}]

    (tmp_path / "STS-B").mkdir()
    header = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2"
    row = "0\tmain-captions\tMSRvid\t2012test\t1\tnone\tnone\tA plane\tAn air plane"
    for name in ("train", "dev"):
        (tmp_path / "STS-B" / f"{name}.tsv").write_text(f"{header}\tscore\n{row}\t4.25\n")
    (tmp_path / "STS-B" / "test.tsv").write_text(f"{header}\n{row}\n")
    loaded = load_task(TASKS["stsb"], tmp_path)
    assert list(loaded.splits["train"]) == [{"index": 0, "text": "A plane", "text_pair": "An air plane", "label": 4.25}]
    assert math.isnan(loaded.splits["test"][0]["label"])


def test_race(tmp_path):
    article = {
        "id": "middle10.txt",
        "article": "One line.\nTwo.",
        "questions": ["It is _ .", "Who ?"],
        "options": [["a", "b", "c", "d"], ["e", "f", "g", "h"]],
        "answers": ["A", "D"],
    }
    for split in ("train", "dev"):
        (tmp_path / "RACE" / split / "middle").mkdir(parents=True)
        (tmp_path / "RACE" / split / "middle" / "10.txt").write_text(json.dumps(article))
    (tmp_path / "RACE" / "train" / "middle" / "9.txt").write_text(json.dumps(article | {"id": "middle9.txt"}))
    loaded = load_task(TASKS["race-middle"], tmp_path)
    assert loaded.splits["train"]["index"][:] == ["middle9.txt-0", "middle9.txt-1", "middle10.txt-0", "middle10.txt-1"]
    assert loaded.splits["validation"][1] == {
        "index": "middle10.txt-1",
        "passage": "One line.\nTwo.",
        "question": "Who ?",
        "options": ["e", "f", "g", "h"],
        "label": 3,
    }
    with pytest.raises(InputError, match=r"RACE/train/high holds no \*\.txt"):
        load_task(TASKS["race"], tmp_path)


def test_csqa(tmp_path):
    choices = [{"label": "A", "text": "bank"}, {"label": "B", "text": "mall"}]
    line = {"answerKey": "B", "id": "1afa", "question": {"question_concept": "door", "choices": choices, "stem": "Where ?"}}
    for name in ("train_rand_split", "dev_rand_split"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(line) + "\n")
    del line["answerKey"]
    (tmp_path / "test_rand_split_no_answers.jsonl").write_text(json.dumps(line) + "\n")
    loaded = load_task(TASKS["csqa"], tmp_path)
    expected = {"index": "1afa", "passage": "", "question": "Where ?", "options": ["bank", "mall"]}
    assert list(loaded.splits["validation"]) == [expected | {"label": 1}]
    assert list(loaded.splits["test"]) == [expected | {"label": -1}]


def test_windows_line_ends_and_byte_order_mark(tmp_path):
    write_published("rte", tmp_path, "original", rows=8)
    before = _all_rows(load_task(TASKS["rte"], tmp_path))
    for path in tmp_path.rglob("*.tsv"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert _all_rows(load_task(TASKS["rte"], tmp_path)) == before


def test_truncated_training_rows_are_left_out_with_one_warning(tmp_path, caplog):
    write_published("qqp", tmp_path, "original", rows=8)
    path = tmp_path / "QQP" / "train.tsv"
    path.write_text(path.read_text() + "9\tqid1\tqid2\ta question without another\n10\tq\tq\ta\tb\t\n")
    with caplog.at_level(logging.WARNING):
        loaded = load_task(TASKS["qqp"], tmp_path)
    assert loaded.splits["train"]["index"][:] == [0, 2, 3, 4, 5, 6, 7]
    assert loaded.splits["train"][0]["text_pair"] == ""
    [record] = caplog.records
    assert record.getMessage() == (
        f"Rows that lack fields and are left out, as in the Hub's version: 3, the first is {path}, line 3."
    )


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.grid == "glue.yaml"])
def test_the_index_of_test_rows_is_the_file_s(tmp_path, name):
    write_published(name, tmp_path, "original", rows=12)
    for path in tmp_path.glob("*/test*.tsv"):
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        path.write_text("\n".join(lines[:2] + lines[3:]))
    loaded = load_task(TASKS[name], tmp_path)
    split = TASKS[name].test_splits[0]
    assert loaded.splits[split]["index"][:] == [0, 2, 3, 4, 5]
    with pytest.raises(InputError, match=f"`index` of row 2 of the split '{split}' is 2, but GLUE's server wants 1"):
        check_submission(loaded)


@pytest.mark.parametrize("place", ["diagnostic/diagnostic.tsv", "AX/AX.tsv", "AX.tsv", "MNLI/diagnostic.tsv"])
def test_the_diagnostic_set_is_optional(tmp_path, place):
    write_published("mnli", tmp_path, "original", rows=9)
    path = tmp_path / "diagnostic" / "diagnostic.tsv"
    expected = _rows(load_task(TASKS["mnli"], tmp_path).splits["diagnostic"])
    (tmp_path / place).parent.mkdir(exist_ok=True)
    path.rename(tmp_path / place)
    assert _rows(load_task(TASKS["mnli"], tmp_path).splits["diagnostic"]) == expected
    (tmp_path / place).unlink()
    assert "diagnostic" not in load_task(TASKS["mnli"], tmp_path).splits


@pytest.mark.parametrize("name", ["sst2", "race"])
def test_shards(tmp_path, name):
    write_published(name, tmp_path, "hub", rows=12)
    whole = _rows(load_task(TASKS[name], tmp_path).splits["train"])
    path = tmp_path / TASKS[name].hub_config / "train-00000-of-00001.parquet"
    table = pq.read_table(path)
    path.unlink()
    pq.write_table(table[:5], path.with_name("train-00000-of-00002.parquet"))  # inside one of RACE's articles
    with pytest.raises(InputError, match="holds 1 of the 2 shards of 'train'"):
        load_task(TASKS[name], tmp_path)
    pq.write_table(table[5:], path.with_name("train-00001-of-00002.parquet"))
    assert _rows(load_task(TASKS[name], tmp_path).splits["train"]) == whole


@pytest.mark.parametrize("name", ["stsb", "mnli", "race-high", "csqa"])
def test_the_hub(tmp_path, monkeypatch, name):
    task = TASKS[name]
    write_published(name, tmp_path, "hub", rows=9)

    def load(repository, config=None, split=None):
        assert repository == task.hub_dataset
        files = sorted((tmp_path / (config or "data")).glob("*.parquet"))
        loaded = {path.name.split("-")[0]: datasets.Dataset.from_parquet(str(path), cache_dir=tmp_path) for path in files}
        return loaded[split] if split else datasets.DatasetDict(loaded)

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert _all_rows(load_task(task)) == _all_rows(load_task(task, tmp_path))


def test_a_hub_that_cannot_be_reached(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        InputError, match=r"^nyu-mll/glue \(cola\) cannot be read from the Hub \(.*\): .*`--data_dir`.*CoLA\.$"
    ):
        load_task(TASKS["cola"])


def test_a_hub_without_the_split(monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: {"test": datasets.Dataset.from_dict({"a": [1]})})
    with pytest.raises(InputError, match=r"tau/commonsense_qa on the Hub has no split 'train'"):
        load_task(TASKS["csqa"])


def _edit(path, old, new):
    def edit(folder):
        data = (folder / path).read_bytes()
        assert old in data
        (folder / path).write_bytes(data.replace(old, new, 1))

    return edit


def _edit_json(path, change):
    def edit(folder):
        article = json.loads((folder / path).read_text().split("\n")[0])
        change(article)
        (folder / path).write_text(json.dumps(article))

    return edit


def _edit_parquet(path, change):
    def edit(folder):
        rows = pq.read_table(folder / path).to_pylist()
        change(rows)
        pq.write_table(pa.Table.from_pylist(rows), folder / path)

    return edit


def _drop_column(column):
    return lambda rows: [row.pop(column) for row in rows]


RACE_FILE = "RACE/train/middle/8.txt"
CSQA_FILE = "CSQA/train_rand_split.jsonl"
SST2_FILE = "sst2/train-00000-of-00001.parquet"
WRONG_PUBLISHED = {
    "no split": (
        "rte",
        "original",
        lambda f: (f / "RTE/dev.tsv").unlink(),
        "lacks the split 'validation' of RTE: add RTE/dev.tsv",
    ),
    "no split on the Hub": (
        "race",
        "hub",
        lambda f: (f / "all/validation-00000-of-00001.parquet").unlink(),
        "lacks the split 'validation' of RACE: add all/validation-*.parquet",
    ),
    "missing column": (
        "rte",
        "original",
        _edit("RTE/train.tsv", b"sentence2", b"text"),
        "train.tsv has no column 'sentence2': its",
    ),
    "empty file": ("rte", "original", lambda f: (f / "RTE/train.tsv").write_text(""), "its columns are none"),
    "empty split": (
        "rte",
        "original",
        lambda f: (f / "RTE/dev.tsv").write_text("index\tsentence1\tsentence2\tlabel\n"),
        "RTE/dev.tsv holds no rows",
    ),
    "unknown label": (
        "rte",
        "original",
        _edit("RTE/dev.tsv", b"\tentailment", b"\tneutral"),
        "RTE/dev.tsv, line 3: the label is 'neutral', but RTE has entailment, not_entailment",
    ),
    "label id too high": (
        "cola",
        "original",
        _edit("CoLA/dev.tsv", b"source0\t0", b"source0\t2"),
        "dev.tsv, line 1: the label is '2', but CoLA has",
    ),
    "score that is text": (
        "stsb",
        "original",
        _edit("STS-B/dev.tsv", b".800", b".x"),
        "dev.tsv, line 2: the label is '0.x', but regression takes",
    ),
    "score out of range": (
        "stsb",
        "original",
        _edit("STS-B/train.tsv", b"\t4.800", b"\t9.9"),
        "the label is 9.9, but STS-B's are from 0 to 5; download",
    ),
    "index that is text": (
        "qqp",
        "original",
        _edit("QQP/test.tsv", b"\n3\t", b"\nx\t"),
        "test.tsv, line 5: the index is 'x', not a whole number",
    ),
    "test rows without an index": (
        "rte",
        "original",
        _edit("RTE/test.tsv", b"index", b"number"),
        "test.tsv has no column 'index'",
    ),
    "score that is NaN": (
        "stsb",
        "hub",
        _edit_parquet("stsb/train-00000-of-00001.parquet", lambda rows: rows[1].update(label=math.nan)),
        "row 2: the label is nan, but regression takes finite numbers",
    ),
    "truncated test row": (
        "rte",
        "original",
        _edit("RTE/test.tsv", b"\n1\t", b"\n1\n1\t"),
        "test.tsv, line 3: the row lacks fields",
    ),
    "undecodable": (
        "rte",
        "original",
        _edit("RTE/train.tsv", b"\n1\t", b"\n1\t\xff"),
        "train.tsv, line 3 is not UTF-8 (invalid start",
    ),
    "hidden training label": (
        "sst2",
        "hub",
        _edit_parquet(SST2_FILE, lambda rows: rows[2].update(label=-1)),
        "row 3: the row has no label, which only test rows may lack",
    ),
    "column missing on the Hub": ("sst2", "hub", _edit_parquet(SST2_FILE, _drop_column("sentence")), "no column 'sentence'"),
    "null text": (
        "sst2",
        "hub",
        _edit_parquet(SST2_FILE, lambda rows: rows[0].update(sentence=None)),
        "row 1: 'text' holds null where a text must be",
    ),
    "no parquet": ("sst2", "hub", lambda f: (f / SST2_FILE).write_text("PAR1"), "cannot be read as parquet (Parquet"),
    "answer out of range": (
        "race",
        "original",
        _edit_json(RACE_FILE, lambda article: article["answers"].__setitem__(1, "E")),
        "8.txt, question 2: the answer is 'E', but the row has 4 options; give a letter from A to D",
    ),
    "one option": (
        "race",
        "original",
        _edit_json(RACE_FILE, lambda article: article["options"].__setitem__(0, ["a"])),
        "8.txt, question 1: the row has 1 options to choose from",
    ),
    "more options": (
        "race",
        "original",
        _edit_json(RACE_FILE, lambda article: article["options"][1].append("e")),
        "8.txt, question 2: the row has 5 options, but the first row has 4",
    ),
    "fewer answers": (
        "race",
        "original",
        _edit_json(RACE_FILE, lambda article: article["answers"].pop()),
        "8.txt has 2 questions, 2 options, 1 answers",
    ),
    "no article": ("race", "original", _edit_json(RACE_FILE, lambda article: article.pop("article")), "field 'article'"),
    "broken article": ("race", "original", _edit(RACE_FILE, b"{", b"{,"), "8.txt is not valid JSON (Expecting"),
    "broken line": (
        "csqa",
        "original",
        _edit(CSQA_FILE, b"}\n{", b"}\n{{"),
        "train_rand_split.jsonl, line 2 is not valid JSON (",
    ),
    "no stem": (
        "csqa",
        "original",
        _edit(CSQA_FILE, b'"stem"', b'"text"'),
        "line 1 lacks the published format's field 'stem'",
    ),
    "number as an option": (
        "csqa",
        "original",
        _edit_json(CSQA_FILE, lambda row: row["question"]["choices"][2].update(text=5)),
        "line 1: 'options' holds int where a text must be",
    ),
    "answer that is a word": (
        "csqa",
        "original",
        _edit_json(CSQA_FILE, lambda row: row.update(answerKey="cat")),
        "line 1: the answer is 'cat', but the row has 5 options",
    ),
}


def _message(error):
    """The message, checked to be one sentence."""
    message = str(error.value)
    assert message.endswith(".") and "\n" not in message
    assert not re.search(r"[^.]\. [A-Z]", message)
    return message


@pytest.mark.parametrize(("name", "form", "change", "expected"), WRONG_PUBLISHED.values(), ids=WRONG_PUBLISHED)
def test_wrong_published_files(tmp_path, name, form, change, expected):
    write_published(name, tmp_path, form, rows=12)
    change(tmp_path)
    with pytest.raises(InputError) as error:
        load_task(TASKS[name], tmp_path)
    assert expected in _message(error)


def test_folders_that_hold_no_published_format(tmp_path):
    with pytest.raises(InputError, match=r"^`--data_dir` .*/absent: there is no such folder; .*MNLI\.$"):
        load_task(TASKS["mnli"], tmp_path / "absent")
    for name, hub, original in [
        ("mrpc", "mrpc/train-*.parquet", "MRPC/train.tsv"),
        ("race", "all/train-*.parquet", "RACE/train/middle/*.txt"),
        ("csqa", "data/train-*.parquet", "CSQA/train_rand_split.jsonl"),
    ]:
        with pytest.raises(InputError) as error:
            load_task(TASKS[name], tmp_path)
        assert f"in no published format: put in the Hub's {hub} or the original {original}" in _message(error)


# ---- The user's own files ----

TEXTS = ["NA", "null", "one, two", 'the "quoted" one', "ünï 漢字", "None", "1.0", "  spaces kept "]
LABELS = ["b", "a", "NA", "b", "a", "NA", "b", "a"]


def _write_rows(path, rows):
    columns = list(rows[0])
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix in (".jsonl", ".json"):
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    elif path.suffix == ".tsv":
        path.write_text("\n".join("\t".join(map(str, row)) for row in [columns, *(row.values() for row in rows)]))
    else:
        quoted = [
            [f'"{str(v).replace(chr(34), chr(34) * 2)}"' for v in row] for row in [columns, *(r.values() for r in rows)]
        ]
        path.write_bytes("\r\n".join(",".join(row) for row in quoted).encode("utf-8-sig"))
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json", ".parquet"])
def test_every_suffix_gives_the_same_rows(tmp_path, suffix):
    rows = [{"id": i, "body": text, "kind": label} for i, (text, label) in enumerate(zip(TEXTS, LABELS, strict=True))]
    train = _write_rows(tmp_path / f"train{suffix}", rows)
    test = _write_rows(tmp_path / f"test{suffix}", [{"body": text} for text in TEXTS])
    files = CustomFiles(train, train, test, text_columns=("body",), label_column="kind")
    loaded = load_task(custom_task("classification"), custom=files)
    assert (loaded.task.labels, loaded.task.text_columns) == (("NA", "a", "b"), ("body",))
    ids = [2, 1, 0, 2, 1, 0, 2, 1]
    expected = [{"index": i, "text": text, "label": label} for i, (text, label) in enumerate(zip(TEXTS, ids, strict=True))]
    assert list(loaded.splits["train"]) == list(loaded.splits["validation"]) == expected
    assert list(loaded.splits["test"]) == [row | {"label": -1} for row in expected]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip), min_size=1, max_size=5))
@settings(deadline=None, max_examples=50)
def test_any_text_comes_back_from_csv_and_json(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("texts")
    for suffix in (".csv", ".jsonl", ".parquet"):
        path = _write_rows(folder / f"a{suffix}", [{"text": text, "label": 1.5} for text in texts])
        files = CustomFiles(validation_file=path, text_columns=("text",))
        assert load_task(custom_task("regression"), custom=files).splits["validation"]["text"][:] == texts


def test_order_of_labels(tmp_path):
    def labels(values, **options):
        path = _write_rows(tmp_path / "a.jsonl", [{"text": "x", "label": value} for value in values])
        files = CustomFiles(path, path, text_columns=("text",), **options)
        loaded = load_task(custom_task("classification"), custom=files)
        return loaded.task.labels, loaded.splits["train"]["label"][:]

    assert labels([10, 9, -1, 9]) == (("-1", "9", "10"), [2, 1, 0, 1])
    assert labels(["10", "9", "x"]) == (("10", "9", "x"), [0, 1, 2])
    assert labels([True, False]) == (("false", "true"), [1, 0])
    assert labels(["b", "a"], class_names=("b", "c", "a")) == (("b", "c", "a"), [0, 2])


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_whole_numbers_that_pandas_made_decimal(tmp_path, suffix):
    """A column with one missing value: its whole numbers become 0.0, 1.0."""
    train = _write_rows(tmp_path / f"a{suffix}", [{"text": "x", "label": value} for value in (0.0, 1.0, 1.0)])
    loaded = load_task(custom_task("classification"), custom=CustomFiles(train, train, text_columns=("text",)))
    assert (loaded.task.labels, loaded.splits["train"]["label"][:]) == (("0", "1"), [0, 1, 1])
    rows = [{"question": "x", "a": "y", "b": "z", "label": value} for value in (0.0, 1.0)]
    choice = _write_rows(tmp_path / f"choice{suffix}", rows)
    loaded = load_task(custom_task("multiple_choice"), custom=CustomFiles(choice, choice, option_columns=("a", "b")))
    assert loaded.splits["train"]["label"][:] == [0, 1]


HIDDEN_LABELS = {  # kind -> the column of labels of a test file; what is read
    "classification": ([None, "", -1, "-1", -1.0, math.nan, "b"], [-1] * 6 + [1]),
    "regression": ([None, "", math.nan, -1], ["NaN"] * 3 + [-1.0]),
    "multiple_choice": ([None, "", -1, "-1", -1.0, math.nan, "B"], [-1] * 6 + [1]),
    "token_classification": ([None, "", [], "b"], [[], [], [], [1]]),
}


@pytest.mark.parametrize("kind", HIDDEN_LABELS)
def test_hidden_labels_in_a_test_file(tmp_path, kind):
    values, expected = HIDDEN_LABELS[kind]
    rows = [{"text": "x", "words": "x", "question": "x", "options": ["x", "y"], "label": value} for value in values]
    test = _write_rows(tmp_path / "a.jsonl", [*rows, {k: v for k, v in rows[0].items() if k != "label"}])
    names = ("a", "b") if "classification" in kind else None
    files = CustomFiles(test_file=test, text_columns=("text",), option_columns=("options",), class_names=names)
    loaded = load_task(custom_task(kind), custom=files)
    assert [row["label"] for row in _rows(loaded.splits["test"])] == [*expected, expected[0]]


def test_minus_one_is_a_label_where_it_is_trained_on(tmp_path):
    path = _write_rows(tmp_path / "a.csv", [{"text": "x", "label": value} for value in (-1, 0, 1)])
    loaded = load_task(custom_task("classification"), custom=CustomFiles(path, path, path, text_columns=("text",)))
    assert loaded.splits["test"]["label"][:] == [0, 1, 2]


def test_rows_of_two_splits_in_one_file_are_told(tmp_path, caplog):
    path = _write_rows(tmp_path / "a.csv", [{"text": "x", "label": 0.5}, {"text": "y", "label": 0.7}])
    (tmp_path / "link.csv").symlink_to(path)
    files = CustomFiles(path, tmp_path / "link.csv", text_columns=("text",))
    load_task(custom_task("regression"), custom=files)
    assert caplog.messages == [f"{path} is the file of both the train and the validation rows."]


def test_labels_that_differ_in_white_space_are_told(tmp_path, caplog):
    path = _write_rows(tmp_path / "a.csv", [{"text": "x", "label": label} for label in ("a b", "c", "a  b", "a b ")])
    loaded = load_task(
        custom_task("classification"), custom=CustomFiles(path, text_columns=("text",), validation_fraction=0.5)
    )
    assert loaded.task.labels == ("a  b", "a b", "a b ", "c")
    assert caplog.messages == ["Labels that differ in white space alone are taken as different: 'a  b', 'a b', 'a b '."]


def test_only_a_test_file_takes_the_given_names(tmp_path):
    path = _write_rows(tmp_path / "a.csv", [{"first": "x", "second": "y"}])
    files = CustomFiles(test_file=path, text_columns=("first", "second"), class_names=("no", "yes"))
    loaded = load_task(custom_task("classification"), custom=files)
    assert loaded.task.labels == ("no", "yes")
    assert {split: list(rows) for split, rows in loaded.splits.items()} == {
        "test": [{"index": 0, "text": "x", "text_pair": "y", "label": -1}]
    }


@given(st.lists(st.sampled_from("abc"), min_size=4, max_size=60), st.floats(0.05, 0.95), st.integers(0, 3))
@settings(deadline=None, max_examples=50)
def test_split_by_fraction(tmp_path_factory, labels, fraction, seed):
    labels = ["a", "b", *labels]
    path = _write_rows(tmp_path_factory.mktemp("rows") / "a.jsonl", [{"text": "x", "label": label} for label in labels])
    files = CustomFiles(path, text_columns=("text",), validation_fraction=fraction, seed=seed)
    count = math.floor(len(labels) * fraction + 0.5)
    if count in (0, len(labels)):
        with pytest.raises(InputError, match="leaves the training or the validation split empty"):
            load_task(custom_task("classification"), custom=files)
        return
    loaded = load_task(custom_task("classification"), custom=files)
    train, validation = loaded.splits["train"], loaded.splits["validation"]
    assert list(loaded.splits) == ["train", "validation"]
    assert len(validation) == count
    assert sorted([*train["index"], *validation["index"]]) == list(range(len(labels)))
    for row in (*train, *validation):
        assert loaded.task.labels[row["label"]] == labels[row["index"]]
    for number, name in enumerate(loaded.task.labels):  # each class gets its share, up to a row
        assert abs(validation["label"][:].count(number) - labels.count(name) * fraction) <= 1
    again = load_task(custom_task("classification"), custom=files)
    assert _all_rows(again) == _all_rows(loaded)


def test_the_seed_chooses_the_validation_rows(tmp_path):
    path = _write_rows(tmp_path / "a.jsonl", [{"text": "x", "label": i / 2} for i in range(100)])
    chosen = set()
    for seed in range(5):
        files = CustomFiles(path, text_columns=("text",), seed=seed)
        loaded = load_task(custom_task("regression"), custom=files)
        chosen.add(tuple(loaded.splits["validation"]["index"]))
    assert len(chosen) == 5 and all(len(rows) == 10 for rows in chosen)


def test_custom_regression(tmp_path):
    path = _write_rows(tmp_path / "a.csv", [{"text": "x", "label": "-1"}, {"text": "y", "label": "1e-3"}])
    loaded = load_task(custom_task("regression"), custom=CustomFiles(path, path, text_columns=("text",)))
    assert loaded.splits["train"]["label"][:] == [-1.0, pytest.approx(1e-3)]
    assert loaded.task.labels is None


def test_custom_multiple_choice(tmp_path):
    rows = [
        {"q": "which", "p": "a passage", "first": "x", "second": "y", "third": "z", "label": label} for label in ("B", 2)
    ]
    wide = _write_rows(tmp_path / "wide.csv", rows)
    lists = [{"q": row["q"], "p": row["p"], "options": ["x", "y", "z"], "label": i + 1} for i, row in enumerate(rows)]
    long = _write_rows(tmp_path / "long.parquet", lists)
    for path, names in ((wide, ("first", "second", "third")), (long, ("options",))):
        files = CustomFiles(path, path, question_column="q", passage_column="p", option_columns=names)
        loaded = load_task(custom_task("multiple_choice"), custom=files)
        expected = {"passage": "a passage", "question": "which", "options": ["x", "y", "z"]}
        assert list(loaded.splits["train"]) == [{"index": i, **expected, "label": i + 1} for i in range(2)]
    files = CustomFiles(test_file=long, question_column="q", option_columns=("options",))
    assert load_task(custom_task("multiple_choice"), custom=files).splits["test"][0]["passage"] == ""


def test_custom_token_classification(tmp_path):
    rows = [{"words": "Anna lives in Rome", "tags": "PER O O LOC"}, {"words": "NA null", "tags": "O O"}]
    text = _write_rows(tmp_path / "a.csv", rows)
    lists = _write_rows(tmp_path / "a.jsonl", [{name: value.split() for name, value in row.items()} for row in rows])
    bare = _write_rows(tmp_path / "bare.jsonl", [{"words": ["x"]}])
    for path in (text, lists):
        loaded = load_task(custom_task("token_classification"), custom=CustomFiles(path, path, bare, label_column="tags"))
        assert loaded.task.labels == ("LOC", "O", "PER")
        assert list(loaded.splits["validation"]) == [
            {"index": 0, "words": ["Anna", "lives", "in", "Rome"], "label": [2, 1, 1, 0]},
            {"index": 1, "words": ["NA", "null"], "label": [1, 1]},
        ]
        assert list(loaded.splits["test"]) == [{"index": 0, "words": ["x"], "label": []}]


CSV = "text,label\nfine,a\nbad,b\n"
CHOICE = {"option_columns": ("options",)}
WRONG_CUSTOM = {
    "unknown suffix": ("classification", "a.xlsx", CSV, {}, "a.xlsx has an unknown suffix: give one of .csv, .tsv,"),
    "no such file": ("classification", "a.csv", None, {}, "a.csv cannot be read (No such file or directory)"),
    "no rows": ("classification", "a.csv", "text,label\n", {}, "a.csv holds no rows"),
    "empty file": ("classification", "a.jsonl", "", {}, "a.jsonl holds no rows"),
    "missing column": (
        "classification",
        "a.csv",
        CSV,
        {"text_columns": ("body",)},
        "a.csv has no column 'body': its columns are text, label;",
    ),
    "missing label column": ("classification", "a.csv", CSV, {"label_column": "y"}, "a.csv has no column 'y'"),
    "no text columns": ("classification", "a.csv", CSV, {"text_columns": ()}, "`--text_columns` has 0 names"),
    "three text columns": ("regression", "a.csv", CSV, {"text_columns": ("a", "b", "c")}, "`--text_columns` has 3 names"),
    "column twice": ("classification", "a.csv", "text,label,text\nx,a,y\n", {}, "the column 'text' more than once"),
    "too few fields": (
        "classification",
        "a.csv",
        f"{CSV}x\n",
        {},
        "a.csv, line 4: the row has 1 fields, but the header has 2",
    ),
    "too many fields": ("classification", "a.tsv", "text\tlabel\nx\ta\tb\n", {}, "a.tsv, line 2: the row has 3 fields"),
    "open quote": ("classification", "a.csv", f'{CSV}"x,a\n', {}, "a.csv, line 4 is not valid CSV (unexpected end of data)"),
    "not UTF-8": (
        "classification",
        "a.csv",
        b"text,label\nx,a\n\xff,b\n",
        {},
        "a.csv, line 3 is not UTF-8 (invalid start byte)",
    ),
    "empty text": ("classification", "a.csv", f"{CSV},a\n", {}, "a.csv, line 4: the text in 'text' is empty"),
    "line after a long field": (
        "classification",
        "a.csv",
        'text,label\n"a\nb",a\n ,a\n',
        {},
        "line 4: the text in 'text' is empty",
    ),
    "white space": ("classification", "a.tsv", "text\tlabel\nx\ta\n \t\ta\n", {}, "line 3: the row has 3 fields"),
    "null text": ("classification", "a.jsonl", '{"text": null, "label": 1}', {}, "a.jsonl, line 1: 'text' holds null"),
    "number as text": ("classification", "a.jsonl", '{"text": 5, "label": 1}', {}, "line 1: 'text' holds int where a text"),
    "half a surrogate pair": ("classification", "a.jsonl", '{"text": "\\ud800", "label": 1}', {}, "half a surrogate pair"),
    "broken JSON": (
        "classification",
        "a.jsonl",
        '{"text": "x", "label": 1}\n{"text"\n',
        {},
        "line 2 is not valid JSON (Exp",
    ),
    "JSON array": (
        "classification",
        "a.json",
        '[{"text": "x"}]',
        {},
        "line 1 is a list, not an object: write one JSON object",
    ),
    "field missing in a line": (
        "classification",
        "a.jsonl",
        '{"text": "x", "label": 1}\n{"label": 2}',
        {},
        "a.jsonl, line 2 has no column 'text': its columns are label;",
    ),
    "empty label": ("classification", "a.csv", f"{CSV}x,\n", {}, "line 4: the label '' in 'label' is no name"),
    "null label": (
        "classification",
        "a.jsonl",
        '{"text": "x", "label": null}',
        {},
        "line 1: the label None in 'label' is no",
    ),
    "float label": ("classification", "a.jsonl", '{"text": "x", "label": 1.5}', {}, "the label 1.5 in 'label' is a decimal"),
    "float label in CSV": ("classification", "a.csv", "text,label\nx,1.5\n", {}, "the label 1.5 in 'label' is a decimal"),
    "missing among whole numbers": (
        "classification",
        "a.csv",
        "text,label\nx,0.0\ny,1.0\nz,\n",
        {},
        "line 4: the label '' in 'label' is no name; fill it in",
    ),
    "NaN label": (
        "classification",
        "a.jsonl",
        '{"text": "x", "label": NaN}',
        {},
        "line 1: the label nan in 'label' is no name",
    ),
    "labels as text": (
        "classification",
        "a.csv",
        CSV,
        {"label_column": "text"},
        "`--label_column` is 'text', which is a column",
    ),
    "labels as options": (
        "multiple_choice",
        "a.csv",
        "question,a,b\nx,y,z\n",
        {"option_columns": ("a", "b"), "label_column": "b"},
        "`--label_column` is 'b', which is a column of text too: name",
    ),
    "text as options": (
        "multiple_choice",
        "a.csv",
        "question,options,label\nx,y z,A\n",
        CHOICE,
        "line 2: 'options' holds str where a list of options must be; write a list, or name one column for each",
    ),
    "one class": ("classification", "a.csv", "text,label\nx,a\ny,a\n", {}, "has only the label 'a' in 'label'"),
    "label not given": (
        "classification",
        "a.csv",
        CSV,
        {"class_names": ("a", "c")},
        "line 3: the label 'b' in 'label' is not among a, c,",
    ),
    "same name twice": ("classification", "a.csv", CSV, {"class_names": ("a", "a")}, "`--class_names` is a, a: give"),
    "fraction 0": ("classification", "a.csv", CSV, {"validation_fraction": 0.0}, "`--validation_fraction` is 0.0: give a"),
    "fraction 1": ("classification", "a.csv", CSV, {"validation_fraction": 1.0}, "`--validation_fraction` is 1.0: give a"),
    "fraction NaN": ("classification", "a.csv", CSV, {"validation_fraction": math.nan}, "`--validation_fraction` is nan"),
    "fraction too small": ("classification", "a.csv", CSV, {"validation_fraction": 0.2}, "of the 2 rows of "),
    "score that is text": (
        "regression",
        "a.csv",
        CSV,
        {},
        "a.csv, line 2: the label is 'a', but regression takes finite numbers",
    ),
    "score NaN": ("regression", "a.jsonl", '{"text": "x", "label": NaN}', {}, "line 1: the label is nan, but regression"),
    "score infinite": ("regression", "a.csv", "text,label\nx,inf\n", {}, "line 2: the label is 'inf', but regression"),
    "score too large": ("regression", "a.csv", "text,label\nx,1e39\n", {}, "line 2: the label is '1e39', but regression"),
    "score true": ("regression", "a.jsonl", '{"text": "x", "label": true}', {}, "line 1: the label is True, but regression"),
    "score list": ("regression", "a.jsonl", '{"text": "x", "label": [1]}', {}, "line 1: the label is [1], but regression"),
    "no option columns": ("multiple_choice", "a.csv", CSV, {}, "`--option_columns` is missing"),
    "one option": (
        "multiple_choice",
        "a.jsonl",
        '{"question": "x", "options": ["a"], "label": 0}',
        CHOICE,
        "line 1: the row has 1 options to choose from",
    ),
    "other number of options": (
        "multiple_choice",
        "a.jsonl",
        '{"question": "x", "options": ["a", "b"], "label": 0}\n{"question": "x", "options": ["a", "b", "c"], "label": 0}',
        CHOICE,
        "line 2: the row has 3 options, but the first row has 2",
    ),
    "index too high": (
        "multiple_choice",
        "a.jsonl",
        '{"question": "x", "options": ["a", "b"], "label": 2}',
        CHOICE,
        "line 1: the answer is 2, but the row has 2 options; give a letter from A to B or an index from 0 to 1",
    ),
    "letter too high": (
        "multiple_choice",
        "a.jsonl",
        '{"question": "x", "options": ["a", "b"], "label": "C"}',
        CHOICE,
        "line 1: the answer is 'C', but the row has 2 options",
    ),
    "empty option": (
        "multiple_choice",
        "a.csv",
        "question,a,b,label\nx,y,,A\n",
        {"option_columns": ("a", "b")},
        "line 2: the text in 'b' is empty",
    ),
    "empty question": (
        "multiple_choice",
        "a.jsonl",
        '{"question": "", "options": ["a", "b"], "label": 0}',
        CHOICE,
        "line 1: the text in 'question' is empty",
    ),
    "unequal words and tags": (
        "token_classification",
        "a.csv",
        "words,label\na b c,O O\n",
        {},
        "line 2: 'label' holds 2 labels for 3 words",
    ),
    "no words": ("token_classification", "a.jsonl", '{"words": [], "label": []}', {}, "line 1: 'words' holds no words"),
    "empty word": ("token_classification", "a.jsonl", '{"words": [""], "label": ["O"]}', {}, "the text in 'words' is empty"),
    "tags that are a number": (
        "token_classification",
        "a.jsonl",
        '{"words": ["x"], "label": 1}',
        {},
        "line 1: 'label' holds no labels for 1 words",
    ),
}


@pytest.mark.parametrize(("kind", "name", "content", "options", "expected"), WRONG_CUSTOM.values(), ids=WRONG_CUSTOM)
def test_wrong_custom_files(tmp_path, kind, name, content, options, expected):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    files = CustomFiles(train_file=path, **({"text_columns": ("text",)} | options))
    with pytest.raises(InputError) as error:
        load_task(custom_task(kind), custom=files)
    assert expected in _message(error)


@pytest.mark.parametrize("split", ["validation_file", "test_file"])
def test_a_label_that_training_did_not_have(tmp_path, split):
    train = _write_rows(tmp_path / "train.csv", [{"text": "x", "label": "a"}, {"text": "y", "label": "b"}])
    other = _write_rows(tmp_path / "other.jsonl", [{"text": "x", "label": "a"}, {"text": "y", "label": "c"}])
    files = CustomFiles(**({"train_file": train, "validation_file": train} | {split: other}), text_columns=("text",))
    with pytest.raises(InputError) as error:
        load_task(custom_task("classification"), custom=files)
    assert f"{other}, line 2: the label 'c' in 'label' is not among a, b," in _message(error)


def test_custom_without_files_or_names(tmp_path):
    with pytest.raises(InputError, match="^The custom task has no data: give `--train_file`"):
        load_task(custom_task("classification"), custom=CustomFiles(text_columns=("text",)))
    path = _write_rows(tmp_path / "a.csv", [{"text": "x"}])
    with pytest.raises(InputError, match="^The names of the labels are not known: give `--train_file` or"):
        load_task(custom_task("classification"), custom=CustomFiles(test_file=Path(path), text_columns=("text",)))


def test_parquet_columns_twice(tmp_path):
    table = pa.Table.from_arrays([pa.array(["x"]), pa.array(["y"]), pa.array([1])], ["text", "text", "label"])
    pq.write_table(table, tmp_path / "a.parquet")
    files = CustomFiles(tmp_path / "a.parquet", text_columns=("text",))
    with pytest.raises(InputError, match="has the column 'text' more than once"):
        load_task(custom_task("classification"), custom=files)
