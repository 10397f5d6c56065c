# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The docstring task: its rows, its baselines, its table, and its command line, with runs that train nothing."""

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from finetuning import experiments
from luna_tools.command_line import exit_status
from pretraining.prepare import sources
from scripts.reports import docstring_families
from scripts.reports.docstring_families import FAMILIES, baselines, make_dataset, report

WORDS = {family: modules.split()[0] for family, modules in FAMILIES.items()}


def docstrings(per_family=40):
    """Texts that name their family's first module; the families have more and more of them."""
    docs = [
        SimpleNamespace(module=f"{module}.part", text=f"Text number {i}\n of  {module}.")
        for extra, module in enumerate(WORDS.values())
        for i in range(per_family + extra)
    ]
    docs += [SimpleNamespace(module=module, text="One text of two families.") for module in list(WORDS.values())[:2]]
    docs += [SimpleNamespace(module=module, text="Too short text.") for module in WORDS.values()]
    return (*docs, *docs[:5], SimpleNamespace(module="os_like", text="A module of no family at all."))


@pytest.fixture(autouse=True)
def few_docstrings(monkeypatch):
    monkeypatch.setattr(sources, "python_docs", docstrings)


def test_the_rows_are_balanced_and_no_text_is_in_two_places(tmp_path):
    modules = [module for family in FAMILIES.values() for module in family.split()]
    assert len(FAMILIES) == 6 and len(modules) == len(set(modules))
    splits = make_dataset(tmp_path, seed=0)
    counts = {split: Counter(row["label"] for row in rows) for split, rows in splits.items()}
    sizes = {"train": 28, "validation": 4, "test": 8}
    assert counts == {split: dict.fromkeys(FAMILIES, count) for split, count in sizes.items()}
    rows = [row for rows in splits.values() for row in rows]
    assert len({row["text"] for row in rows}) == len(rows) == 6 * 40
    assert all(
        row["text"].startswith("Text number ") and row["text"].endswith(f" of {WORDS[row['label']]}.") for row in rows
    )
    for split, rows in splits.items():
        assert [json.loads(line) for line in (tmp_path / f"{split}.jsonl").read_text().splitlines()] == rows
    assert make_dataset(tmp_path, seed=0) == splits != make_dataset(tmp_path, seed=1)
    # The texts name their family, so that words alone tell it.
    scores = baselines(splits)
    assert scores["majority"] == (pytest.approx(1 / 6), pytest.approx(2 / 7 / 6))
    assert scores["TF-IDF + logistic regression"] == (1.0, 1.0)


@pytest.mark.parametrize("train_rows", [6, 7, 50, 168])
def test_fewer_training_rows_change_nothing_else(tmp_path, train_rows):
    whole, fewer = make_dataset(tmp_path, 0), make_dataset(tmp_path, 0, train_rows)
    counts = Counter(row["label"] for row in fewer["train"])
    assert len(fewer["train"]) == train_rows and len(counts) == 6 and max(counts.values()) - min(counts.values()) <= 1
    assert all(row in whole["train"] for row in fewer["train"])
    for split in ("validation", "test"):
        assert sorted(map(str, fewer[split])) == sorted(map(str, whole[split]))


def test_the_table():
    splits = {"train": [None] * 6, "validation": [None] * 2, "test": [None] * 4}
    entries = [
        {"classifier_pooling": pooling, "results": {"test_accuracy": value, "test_f1_macro": value / 2}}
        for pooling, value in (("cls", 0.5), ("cls", 0.7), ("packed_mean", 0.6), ("packed_mean", 0.9))
    ]
    lines = report(splits, {"majority": (0.25, 0.1)}, {"pretrained": entries}, num_seeds=2).splitlines()
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")] == [
        ["model", "weights", "seed 0", "seed 1", "test accuracy", "macro F1"],
        ["---"] * 6,
        ["majority", "", "", "", "25.00", "10.00"],
        ["Luna, [CLS]", "pretrained", "50.00", "70.00", "60.00 ± 14.14", "30.00 ± 7.07"],
        ["Luna, P", "pretrained", "60.00", "90.00", "75.00 ± 21.21", "37.50 ± 10.61"],
    ]
    assert "over 2 seeds. 6 train, 2 validation, 4 test rows of\n6 equally frequent families" in "\n".join(lines)


def run(monkeypatch, tmp_path, *options):
    """The program's exit code; its comparisons give the number of training rows as every result."""

    def compare(tasks, options, **kwargs):
        value = {name: options[options.index(name) + 1] for name in options if name.startswith("--")}
        rows = len(Path(value["--train_file"]).read_text().splitlines())
        folder = Path(value["--output_dir"])
        folder.mkdir(parents=True, exist_ok=True)
        runs = [{"classifier_pooling": "cls", "results": {"test_accuracy": rows / 100, "test_f1_macro": 0}}]
        (folder / "compare.json").write_text(json.dumps({"runs": runs}))

    monkeypatch.setattr(experiments, "compare", compare)
    argv = ["--model_name_or_path", str(tmp_path), "--output_dir", str(tmp_path / "out"), *options, "--num_seeds", "1"]
    return exit_status(lambda: docstring_families.main(argv), docstring_families.PROG)


def test_each_number_of_training_rows_has_a_folder_of_its_own(monkeypatch, tmp_path, capsys):
    for name, rows, options in (("60", 60, ["--train_rows", "60"]), ("all", 168, [])):
        assert run(monkeypatch, tmp_path, *options) == 0
        folder = tmp_path / "out" / f"train-{name}"
        assert len((folder / "data" / "train.jsonl").read_text().splitlines()) == rows
        table = (folder / "table.md").read_text()
        assert f"{rows} train" in table and f"| Luna, [CLS] | random | {rows}.00 |" in table
        assert table in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        *((["--train_rows", rows], f"--train_rows is {rows}: give from 6 to 168.") for rows in ("-1", "0", "5", "169")),
        (
            ["--output_dir", "{file}"],
            "{file}/train-all/data cannot be used (Not a directory): mend that and give the same command again.",
        ),
        (["--model_name_or_path", "{file}"], "{file} is not there: run `python3 scripts/quickstart.py` first."),
    ],
)
def test_wrong_options_are_refused_in_one_sentence(monkeypatch, tmp_path, capsys, options, sentence):
    file = tmp_path / "file"
    file.touch()
    assert run(monkeypatch, tmp_path, *(option.format(file=file) for option in options)) == 2
    assert capsys.readouterr().err == f"error: {sentence.format(file=file)}\n"
