# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The user's own files keep every text, and every fault in them is one sentence."""

import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetuning.arguments import DataArguments
from finetuning.tasks import custom_task
from luna_tools.errors import InputError
from tests.support.finetuning import write_rows
from tests.support.published_files import message_of, rows_of

TEXTS = ["NA", "null", "one, two", 'the "quoted" one', "ünï 漢字", "None", "1.0", "  spaces kept "]
LABELS = ["b", "a", "NA", "b", "a", "NA", "b", "a"]


def _texts(path, labels, text="x"):
    return write_rows(path, [{"text": text, "label": label} for label in labels])


def _options(train=None, validation=None, test=None, **options):
    return DataArguments(train_file=train, validation_file=validation, test_file=test, **options)


def _load(kind, train=None, validation=None, test=None, **options):
    return custom_task(kind).load(_options(train, validation, test, **options))


SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_suffix_gives_the_same_rows(tmp_path, suffix):
    rows = [{"id": i, "body": text, "kind": label} for i, (text, label) in enumerate(zip(TEXTS, LABELS, strict=True))]
    train = write_rows(tmp_path / f"train{suffix}", rows)
    test = write_rows(tmp_path / f"test{suffix}", [{"body": text} for text in TEXTS])
    files = _options(train, train, test, text_columns=("body",), label_column="kind")
    loaded = custom_task("classification").load(files)
    assert (loaded.task.labels, loaded.task.text_columns) == (("NA", "a", "b"), ("body",))
    ids = [2, 1, 0, 2, 1, 0, 2, 1]
    expected = [{"index": i, "text": text, "label": label} for i, (text, label) in enumerate(zip(TEXTS, ids, strict=True))]
    assert list(loaded.splits["train"]) == list(loaded.splits["validation"]) == expected
    assert list(loaded.splits["test"]) == [row | {"label": -1} for row in expected]
    assert loaded.task.files(files) == {"train": [train], "validation": [train], "test": [test]}


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip), min_size=1, max_size=5))
@settings(deadline=None, max_examples=50)
def test_any_text_comes_back_from_csv_and_json(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("texts")
    for suffix in (".csv", ".jsonl", ".parquet"):
        path = write_rows(folder / f"a{suffix}", [{"text": text, "label": 1.5} for text in texts])
        assert _load("regression", validation=path).splits["validation"]["text"][:] == texts


NAMES = [  # labels, options; the classes, the ids
    ([10, 9, -1, 9], {}, ("-1", "9", "10"), [2, 1, 0, 1]),  # -1 hides no label where it is trained on
    (["10", "9", "x"], {}, ("10", "9", "x"), [0, 1, 2]),
    (["b", "a"], {"class_names": ("b", "c", "a")}, ("b", "c", "a"), [0, 2]),
    ([0.0, 1.0, 1.0], {}, ("0", "1"), [0, 1, 1]),  # as pandas writes whole numbers where one is missing
    ([True, False], {}, ("false", "true"), [1, 0]),
]


@pytest.mark.parametrize("suffix", [suffix for suffix in SUFFIXES if suffix != ".json"])
def test_the_order_of_labels_and_what_pandas_made_decimal(tmp_path, suffix):
    for values, options, names, ids in NAMES:
        if values[0] is True and suffix in (".csv", ".tsv"):  # which know no truth values
            continue
        path = _texts(tmp_path / f"a{suffix}", values)
        loaded = _load("classification", path, path, path, **options)
        assert (loaded.task.labels, [rows["label"][:] for rows in loaded.splits.values()]) == (names, [ids] * 3)
    rows = [{"question": "x", "a": "y", "b": "z", "label": value} for value in (0.0, 1.0)]
    path = write_rows(tmp_path / f"choices{suffix}", rows)
    assert _load("multiple_choice", path, path, option_columns=("a", "b")).splits["train"]["label"][:] == [0, 1]
    path = _texts(tmp_path / f"values{suffix}", ("-1", "1e-3"))
    loaded = _load("regression", path, path)
    assert (loaded.task.labels, loaded.splits["train"]["label"][:]) == (None, [-1.0, pytest.approx(1e-3)])


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
    test = write_rows(tmp_path / "a.jsonl", [*rows, {k: v for k, v in rows[0].items() if k != "label"}])
    names = ("a", "b") if "classification" in kind else None
    loaded = _load(kind, test=test, option_columns=("options",), class_names=names)
    assert [row["label"] for row in rows_of(loaded)["test"]] == [*expected, expected[0]]


ALIKE = [  # labels; those that are told
    (["a b", "c", "a  b", "a b "], "'a  b', 'a b', 'a b '"),
    (["net", "Net", "sql", "net"], "'Net', 'net'"),
    (["x Y", "X  y", "y x", "z"], "'X  y', 'x Y'"),
    (["net", "nets", "sql", "net"], None),
]


def test_what_may_be_a_mistake_is_told(tmp_path, caplog):
    for labels, alike in ALIKE:
        caplog.clear()
        loaded = _load("classification", _texts(tmp_path / "a.csv", labels), validation_fraction=0.5)
        assert loaded.task.labels == tuple(sorted(set(labels)))
        told = f"Labels that differ in case or white space alone are taken as different: {alike}."
        assert caplog.messages == ([told] if alike else [])
    path = _texts(tmp_path / "b.csv", (0.5, 0.7))
    (tmp_path / "link.csv").symlink_to(path)
    _load("regression", path, tmp_path / "link.csv")
    assert caplog.messages == [f"{path} is the file of both the train and the validation rows."]


def test_only_a_test_file_takes_the_given_names(tmp_path):
    path = write_rows(tmp_path / "a.csv", [{"first": "x", "second": "y"}])
    loaded = _load("classification", test=path, text_columns=("first", "second"), class_names=("no", "yes"))
    assert loaded.task.labels == ("no", "yes")
    assert rows_of(loaded) == {"test": [{"index": 0, "text": "x", "text_pair": "y", "label": -1}]}


@given(st.lists(st.sampled_from("abc"), min_size=4, max_size=60), st.floats(0.05, 0.95))
@settings(deadline=None, max_examples=50)
def test_split_by_fraction(tmp_path_factory, labels, fraction):
    labels = ["a", "b", *labels]
    path = _texts(tmp_path_factory.mktemp("rows") / "a.jsonl", labels)
    count = math.floor(len(labels) * fraction + 0.5)
    if count in (0, len(labels)):
        with pytest.raises(InputError, match="leaves the training or the validation split empty"):
            _load("classification", path, validation_fraction=fraction)
        return
    loaded = _load("classification", path, validation_fraction=fraction)
    train, validation = loaded.splits["train"], loaded.splits["validation"]
    assert list(loaded.splits) == ["train", "validation"]
    assert len(validation) == count
    assert sorted([*train["index"], *validation["index"]]) == list(range(len(labels)))
    for row in (*train, *validation):
        assert loaded.task.labels[row["label"]] == labels[row["index"]]
    for number, name in enumerate(loaded.task.labels):  # each class gets its share, up to a row
        assert abs(validation["label"][:].count(number) - labels.count(name) * fraction) <= 1
    assert rows_of(_load("classification", path, validation_fraction=fraction)) == rows_of(loaded)


def test_custom_multiple_choice(tmp_path):
    columns = {"q": "which", "p": "a passage", "first": "x", "second": "y", "third": "z"}
    wide = write_rows(tmp_path / "wide.csv", [columns | {"label": label} for label in ("B", 2)])
    lists = [{"q": "which", "p": "a passage", "options": ["x", "y", "z"], "label": label} for label in (1, 2)]
    long = write_rows(tmp_path / "long.parquet", lists)
    for path, names in ((wide, ("first", "second", "third")), (long, ("options",))):
        loaded = _load("multiple_choice", path, path, question_column="q", passage_column="p", option_columns=names)
        expected = {"passage": "a passage", "question": "which", "options": ["x", "y", "z"]}
        assert list(loaded.splits["train"]) == [{"index": i, **expected, "label": i + 1} for i in range(2)]
    alone = _load("multiple_choice", test=long, question_column="q", option_columns=("options",))
    assert alone.splits["test"][0]["passage"] == ""


def test_custom_token_classification(tmp_path):
    rows = [{"words": "Anna lives in Rome", "tags": "PER O O LOC"}, {"words": "NA null", "tags": "O O"}]
    text = write_rows(tmp_path / "a.csv", rows)
    lists = write_rows(tmp_path / "a.jsonl", [{name: value.split() for name, value in row.items()} for row in rows])
    bare = write_rows(tmp_path / "bare.jsonl", [{"words": ["x"]}])
    for path in (text, lists):
        loaded = _load("token_classification", path, path, bare, label_column="tags")
        assert loaded.task.labels == ("LOC", "O", "PER")
        assert list(loaded.splits["validation"]) == [
            {"index": 0, "words": ["Anna", "lives", "in", "Rome"], "label": [2, 1, 1, 0]},
            {"index": 1, "words": ["NA", "null"], "label": [1, 1]},
        ]
        assert list(loaded.splits["test"]) == [{"index": 0, "words": ["x"], "label": []}]


# ---- Wrong files and options ----

CSV = "text,label\nfine,a\nbad,b\n"
CHOICES = '{"question": "x", "options": ["a", "b"], "label": 0}\n'
THREE_CHOICES = CHOICES.replace('"a", ', '"a", "c", ')
NOT_UTF8 = "text,label\nx,a\n\udcff,b\n"  # written as the byte ff
WRONG_FILES = {  # kind -> the training file's name and content (None: no file), and what the message says
    "classification": [
        ("a.xlsx", CSV, "a.xlsx has an unknown suffix: give one of .csv, .tsv,"),
        ("a.csv", None, "a.csv cannot be read (No such file or directory)"),
        ("a.csv", "text,label\n", "a.csv holds no rows"),
        ("a.jsonl", "", "a.jsonl holds no rows"),
        ("a.csv", "text,label,text\nx,a,y\n", "the column 'text' more than once"),
        ("a.csv", f"{CSV}x\n", "a.csv, line 4: the row has 1 fields, but the header has 2"),
        ("a.tsv", "text\tlabel\nx\ta\tb\n", "a.tsv, line 2: the row has 3 fields"),
        ("a.tsv", "text\tlabel\nx\ta\n \t\ta\n", "line 3: the row has 3 fields"),
        ("a.csv", f'{CSV}"x,a\n', "a.csv, line 4 is not valid CSV (unexpected end of data)"),
        ("a.csv", NOT_UTF8, "a.csv, line 3 is not UTF-8 (invalid start byte)"),
        ("a.csv", f"{CSV},a\n", "a.csv, line 4: the text in 'text' is empty"),
        ("a.csv", 'text,label\n"a\nb",a\n ,a\n', "line 4: the text in 'text' is empty"),  # after a field of two lines
        ("a.jsonl", '{"text": null, "label": 1}', "a.jsonl, line 1: 'text' holds null"),
        ("a.jsonl", '{"text": 5, "label": 1}', "line 1: 'text' holds int where a text"),
        ("a.jsonl", '{"text": "\\ud800", "label": 1}', "half a surrogate pair"),
        ("a.jsonl", '{"text": "x", "label": 1}\n{"text"\n', "line 2 is not valid JSON (Exp"),
        ("a.json", '[{"text": "x"}]', "line 1 is a list, not an object: write one JSON object"),
        ("a.jsonl", '{"text": "x", "label": 1}\n{"label": 2}', "line 2 has no column 'text': its columns are label;"),
        ("a.csv", f"{CSV}x,\n", "line 4: the label '' in 'label' is no name"),
        ("a.csv", "text,label\nx,0.0\ny,1.0\nz,\n", "line 4: the label '' in 'label' is no name; fill it in"),
        ("a.jsonl", '{"text": "x", "label": null}', "line 1: the label None in 'label' is no name"),
        ("a.jsonl", '{"text": "x", "label": NaN}', "line 1: the label nan in 'label' is no name"),
        ("a.jsonl", '{"text": "x", "label": 1.5}', "line 1: the label 1.5 in 'label' is a decimal"),
        ("a.csv", "text,label\nx,1.5\n", "line 2: the label 1.5 in 'label' is a decimal"),
        ("a.csv", "text,label\nx,a\ny,a\n", "has only the label 'a' in 'label'"),
    ],
    "regression": [
        ("a.csv", CSV, "a.csv, line 2: the label is 'a', but regression takes finite numbers"),
        ("a.jsonl", '{"text": "x", "label": NaN}', "line 1: the label is nan, but regression"),
        ("a.csv", "text,label\nx,inf\n", "line 2: the label is 'inf', but regression"),
        ("a.csv", "text,label\nx,1e39\n", "line 2: the label is '1e39', but regression"),
        ("a.jsonl", '{"text": "x", "label": true}', "line 1: the label is True, but regression"),
        ("a.jsonl", '{"text": "x", "label": [1]}', "line 1: the label is [1], but regression"),
    ],
    "multiple_choice": [
        ("a.csv", "question,options,label\nx,y z,A\n", "line 2: 'options' holds str where a list of options must be; write"),
        ("a.jsonl", CHOICES.replace('"a", ', ""), "line 1: the row has 1 options to choose from"),
        ("a.jsonl", CHOICES + THREE_CHOICES, "line 2: the row has 3 options, but the first row has 2"),
        ("a.jsonl", CHOICES.replace("0", "2"), "is 2, but the row has 2 options; give a letter from A to B or an"),
        ("a.jsonl", CHOICES.replace("0", '"C"'), "line 1: the answer is 'C', but the row has 2 options"),
        ("a.jsonl", CHOICES.replace('"b"', '" "'), "line 1: the text in 'options' is empty"),
        ("a.jsonl", CHOICES.replace("x", ""), "line 1: the text in 'question' is empty"),
    ],
    "token_classification": [
        ("a.csv", "words,label\na b c,O O\n", "line 2: 'label' holds 2 labels for 3 words"),
        ("a.jsonl", '{"words": [], "label": []}', "line 1: 'words' holds no words"),
        ("a.jsonl", '{"words": [""], "label": ["O"]}', "the text in 'words' is empty"),
        ("a.jsonl", '{"words": ["x"], "label": 1}', "line 1: 'label' holds no labels for 1 words"),
    ],
}
WRONG_OPTIONS = [  # with the file `CSV`
    ("classification", {"text_columns": ("body",)}, "a.csv has no column 'body': its columns are text, label;"),
    ("classification", {"label_column": "y"}, "a.csv has no column 'y'"),
    ("classification", {"text_columns": ()}, "`--text_columns` has 0 names"),
    ("regression", {"text_columns": ("a", "b", "c")}, "`--text_columns` has 3 names"),
    ("classification", {"label_column": "text"}, "`--label_column` is 'text', which is a column of text too: name"),
    ("multiple_choice", {"option_columns": ("a", "label")}, "`--label_column` is 'label', which is a column of text too"),
    ("multiple_choice", {"option_columns": ()}, "`--option_columns` is missing"),
    ("classification", {"class_names": ("a", "c")}, "line 3: the label 'b' in 'label' is not among a, c,"),
    ("classification", {"class_names": ("a", "a")}, "`--class_names` is a, a: give"),
    ("classification", {"validation_fraction": 0.0}, "`--validation_fraction` is 0.0: give a"),
    ("classification", {"validation_fraction": 1.0}, "`--validation_fraction` is 1.0: give a"),
    ("classification", {"validation_fraction": math.nan}, "`--validation_fraction` is nan"),
    ("classification", {"validation_fraction": 0.2}, "`--validation_fraction` 0.2 of the 2 rows of "),
]
WRONG = [(kind, name, content, {}, expected) for kind, rows in WRONG_FILES.items() for name, content, expected in rows]
WRONG += [(kind, "a.csv", CSV, options, expected) for kind, options, expected in WRONG_OPTIONS]


@pytest.mark.parametrize(("kind", "name", "content", "options", "expected"), WRONG, ids=[row[-1] for row in WRONG])
def test_wrong_custom_files(tmp_path, kind, name, content, options, expected):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError) as error:
        _load(kind, path, **({"option_columns": ("options",)} | options))
    assert expected in message_of(error)


def test_wrong_custom_splits(tmp_path):
    train, other = _texts(tmp_path / "train.csv", "ab"), _texts(tmp_path / "other.jsonl", "ac")
    unlabelled = write_rows(tmp_path / "unlabelled.csv", [{"text": "x"}])
    for files, expected in (
        ({"train": train, "validation": other}, f"{other}, line 2: the label 'c' in 'label' is not among a, b,"),
        ({"train": train, "validation": train, "test": other}, f"{other}, line 2: the label 'c' in 'label' is not among"),
        ({}, "The custom task has no data: give `--train_file`"),
        ({"test": unlabelled}, "The names of the labels are not known: give `--train_file` or"),
    ):
        with pytest.raises(InputError) as error:
            _load("classification", **files)
        assert message_of(error).startswith(expected)


def test_parquet_columns_twice(tmp_path):
    table = pa.Table.from_arrays([pa.array(["x"]), pa.array(["y"]), pa.array([1])], ["text", "text", "label"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match="has the column 'text' more than once"):
        _load("classification", tmp_path / "a.parquet")
