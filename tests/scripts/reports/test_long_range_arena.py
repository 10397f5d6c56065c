# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The tables have the paper's figures, ours where a run is the paper's cell, and why not elsewhere."""

import json

import pytest
import yaml

from finetuning.arguments import RECIPES
from scripts.reports.long_range_arena import TABLE_1, TABLE_3, is_of_the_paper, read_run, tables

MODEL = yaml.safe_load((RECIPES / "paper" / "listops.yaml").read_text())["model"]


def write_run(folder, **changes):
    """What a finished run of ListOps leaves, as far as the tables read it."""
    description = {"task": "listops", "recipe": None, "given": ["data_dir", "model", "seed"], "model_type": "luna"}
    description |= {"model": MODEL | {"projection_length": 128}, "classifier_pooling": "cls", "seed": 1} | changes
    results = {"train_samples": 96_000, "train_steps": 5000, "eval_accuracy": 0.3, "test_accuracy": 0.375}
    log = [{"step": 500, "loss": 2.0}, {"step": 500, "eval_accuracy": 0.2}, {"step": 5000, "eval_accuracy": 0.3}]
    folder.mkdir(parents=True)
    for name, values in {
        "run": description,
        "all_results": results | {name: changes[name] for name in results if name in changes},
        "timing": {"device": "a GPU", "steps": 10, "seconds_per_step": 0.5},
        "trainer_state": {"log_history": log},
    }.items():
        (folder / f"{name}.json").write_text(json.dumps(values))
    lines = [{"label": label} for label in "0012"]
    (folder / "predictions_test.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def test_a_run_is_read(tmp_path):
    run = read_run(write_run(tmp_path / "run"))
    assert (run["accuracy"], run["split"], run["majority"], run["seconds_per_step"]) == (0.375, "test", 0.5, 0.5)
    assert run["evaluations"] == {"500": 0.2, "5000": 0.3} and json.loads(json.dumps(run)) == run
    assert read_run(tmp_path) is None
    assert read_run(write_run(tmp_path / "other", task="sst2")) is None


OTHERS = [
    {"recipe": "reduced"},
    {"given": ["max_steps"]},
    {"train_samples": 1000},
    {"model": MODEL | {"hidden_size": 64}},
    {"task": "listops-no-brackets"},
]


@pytest.mark.parametrize("changes", OTHERS, ids=str)
def test_a_changed_run_is_no_cell_of_the_paper_s(changes, tmp_path):
    run = read_run(write_run(tmp_path / "run", **changes))
    assert not is_of_the_paper(run)
    assert "37.50" not in tables([run]) and "| 37.5 |" in tables([run])


def cells(text, model):
    return [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith(f"| {model} |")
    ]


def test_seeds_are_a_cell_beside_the_paper_s(tmp_path):
    runs = [read_run(write_run(tmp_path / str(i), seed=i, test_accuracy=0.37 + i / 100)) for i in range(3)]
    text = tables(runs)
    paper, ours = cells(text, "Luna-128")
    assert paper[1:] == ["paper", *(f"{value:.2f}" for value in TABLE_1["Luna-128"])]
    assert ours[1:3] == ["here", "38.00 ± 1.00 (3 seeds, paper)"]
    assert ours[3:5] == ["not run: needs the Hub's rows and a GPU", "not run: needs lra_release and a GPU"]
    assert ours[-2:] == ["", ""] and cells(text, "Luna-16")[1][2] == "not run: needs a GPU"
    assert cells(text, "Luna-128, [CLS]")[1][2] == "38.00 ± 1.00 (3 seeds, paper)"
    assert cells(text, "Luna-128, P")[0][2:] == [f"{value:.2f}" for value in TABLE_3["Luna-128, P"]]
    assert cells(text, "Luna-128, P")[1][2] == "not run: needs a GPU"
    official = read_run(write_run(tmp_path / "P", classifier_pooling="packed_mean_unmasked_no_cls"))
    own = "37.50 (1 seed, paper, packed_mean_unmasked_no_cls)"
    assert cells(tables([official]), "Luna-128, P")[1][2] == own
    plain = read_run(write_run(tmp_path / "mean", classifier_pooling="packed_mean", given=["compare"], test_accuracy=0.4))
    again = plain | {"seconds_per_step": 9.0}
    assert cells(tables([official, plain, again]), "Luna-128, P")[1][2] == f"40.00 (1 seed, paper); {own}"


def test_an_average_is_of_all_tasks(tmp_path):
    runs = []
    for name, rows in {"listops": 96_000, "text": 25_000, "image": 45_000, "pathfinder32": 160_000}.items():
        model = yaml.safe_load((RECIPES / "official" / f"{name}.yaml").read_text())["model"]
        pooling = "mean" if name == "pathfinder32" else "cls"
        changes = {"task": name, "recipe": "official", "model": model, "classifier_pooling": pooling, "train_samples": rows}
        runs.append(read_run(write_run(tmp_path / name, **changes)))
    assert cells(tables(runs), "Luna-16")[1][-2:] == ["", "37.50"]
    again = runs[0] | {"seconds_per_step": 9.0}  # the same seed: the later one counts, and once
    assert cells(tables([runs[0] | {"accuracy": 0.1}, *runs[1:], again]), "Luna-16")[1][-1] == "37.50"


def test_the_paper_s_averages():
    for row in TABLE_1.values():
        assert sum(row[:5]) / 5 == pytest.approx(row[5], abs=0.011)
        assert (sum(row[:5]) - row[2]) / 4 == pytest.approx(row[6], abs=0.011)
    for row in TABLE_3.values():
        assert sum(row[:3]) / 3 == pytest.approx(row[3], abs=0.011)
