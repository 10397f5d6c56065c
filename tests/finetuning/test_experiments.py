# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Sweeps and comparisons: which runs they make, what their tables say, and that they resume."""

import itertools
import json
from pathlib import Path

import pytest
from transformers import AutoConfig

from finetuning.experiments import compare, sweep
from finetuning.finetune import finetune
from finetuning.trainer import best_key
from luna_tools.errors import InputError
from tests.support.finetuning import FAST, outcome, read_results, to_options, write_checkpoint
from tests.support.published_files import write_published


@pytest.fixture
def options(checkpoint, sst2, tmp_path):
    values = FAST | {"model_name_or_path": checkpoint, "data_dir": sst2, "output_dir": tmp_path / "out"}
    return to_options(**values | {"learning_rate": None})  # which the grids set


@pytest.fixture
def several(checkpoint, tmp_path):
    """The options of a comparison on many GLUE tasks, whose files lie in one folder."""
    for name in ("cola", "sst2", "mrpc", "stsb"):
        write_published(name, tmp_path / "glue", "original", rows=8)
    return to_options(model_name_or_path=checkpoint, data_dir=tmp_path / "glue", output_dir=tmp_path / "out")


@pytest.fixture
def grid(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text("learning_rate: [1e-3, 2e-3]\n")
    return ["--sweep_grid", str(path)]


class FakeRuns:
    """Stands for `finetune`: remembers the arguments and gives the scores of a list, in order."""

    def __init__(self, scores):
        self.scores, self.calls = iter(scores), []

    def __call__(self, arguments):
        self.calls.append(arguments)
        return {best_key(arguments.task): next(self.scores)}


def table_rows(text):
    """The cells of every row of every table."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


# ---------------------------------------------------------------------------------------------------------------------
# Sweep

QA_GRID = [(b, r, d) for b in (16, 32) for r in (1e-5, 2e-5, 3e-5) for d in (0.0, 0.1, 0.2)]


@pytest.mark.parametrize(
    ("task_name", "settings"),
    [("mnli", [(b, r, 0.1) for b in (16, 32) for r in (5e-6, 1e-5, 2e-5)]), ("race-high", QA_GRID), ("csqa", QA_GRID)],
)
def test_the_grids_are_the_paper_s(task_name, settings, checkpoint, tmp_path):
    runs = FakeRuns([0.5] * len(settings))
    sweep(task_name, to_options(model_name_or_path=checkpoint, output_dir=tmp_path), runs)
    values = [(a.run.total_train_batch_size, a.training.learning_rate, a.model.hidden_dropout_prob) for a in runs.calls]
    assert values == settings


def test_the_table_has_every_run_and_each_setting_s_median_and_maximum(options, grid, tmp_path, capsys):
    scores = [0.5, 0.9, 0.2, 0.6, 0.61, 0.67]  # no median is a mean
    runs = FakeRuns(scores)
    path = sweep("sst2", [*options, *grid, "--num_seeds", "3", "--seed", "5"], runs)
    assert [a.training.seed for a in runs.calls] == [5, 6, 7] * 2
    folders = [Path(a.training.output_dir).name for a in runs.calls]
    assert folders[0] == "learning_rate_0.001-seed_5" and len(set(folders)) == 6
    rows = table_rows(path.read_text())
    assert rows[0] == ["run", "learning_rate", "seed", "eval_accuracy"]
    assert rows[2:8] == [
        [folder, rate, seed, f"{100 * score:.2f}"]
        for folder, rate, seed, score in zip(folders, ["0.001"] * 3 + ["0.002"] * 3, "567567", scores, strict=True)
    ]
    assert rows[8] == ["learning_rate", "median", "maximum"]
    assert rows[10:] == [["0.002", "61.00", "67.00"], ["0.001", "50.00", "90.00"]]
    assert path.read_text() in capsys.readouterr().out
    saved = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert [entry["results"]["eval_accuracy"] for entry in saved["runs"]] == scores


def test_an_interrupted_sweep_goes_on_where_it_stopped(options, grid):
    options = [*options, *grid, "--num_seeds", "2", "--num_train_epochs", "1"]
    trained = []

    def run_one(arguments, limit=2):
        if not (Path(arguments.training.output_dir) / "all_results.json").exists():
            if len(trained) == limit:
                raise KeyboardInterrupt
            trained.append(arguments.training.output_dir)
        return finetune(arguments)

    with pytest.raises(KeyboardInterrupt):
        sweep("sst2", options, run_one)
    before = {folder: outcome(folder) for folder in trained}
    path = sweep("sst2", options, lambda arguments: run_one(arguments, limit=9))
    assert len(trained) == len(set(trained)) == 4
    assert {folder: outcome(folder) for folder in before} == before
    scores = [read_results(folder)["eval_accuracy"] for folder in trained]
    assert [row[3] for row in table_rows(path.read_text())[2:6]] == [f"{100 * score:.2f}" for score in scores]


def test_what_the_model_does_not_have_is_left_out_of_the_grid(checkpoints, tmp_path, caplog):
    """ModernBERT calls its dropouts otherwise."""
    runs = FakeRuns([0.5] * 6)
    path = sweep("race", to_options(model_name_or_path=checkpoints["modernbert"], output_dir=tmp_path), runs)
    found = [(a.run.total_train_batch_size, a.training.learning_rate) for a in runs.calls]
    assert found == list(itertools.product((16, 32), (1e-5, 2e-5, 3e-5)))
    assert caplog.messages[0] == "The grid's hidden_dropout_prob does not apply to modernbert, and is left out."
    assert table_rows(path.read_text())[0] == ["run", "total_train_batch_size", "learning_rate", "seed", "eval_accuracy"]


def test_a_wrong_value_anywhere_in_the_grid_is_refused_before_the_first_run(options, grid, tmp_path):
    runs = FakeRuns([])
    (tmp_path / "grid.yaml").write_text("learning_rate: [1e-3, fast]\n")
    with pytest.raises(InputError, match="`learning_rate` is 'fast'"):
        sweep("sst2", [*options, *grid], runs)
    with pytest.raises(InputError, match="^`learning_rate` was given, but the runs differ in it: leave it out"):
        sweep("sst2", [*options, "--sweep", "--learning_rate", "1"], runs)
    assert not runs.calls


# ---------------------------------------------------------------------------------------------------------------------
# Comparison


def test_heads_are_compared_in_the_layout_of_table_3(several, capsys):
    scores = [0.1, 0.2, 0.3, 0.5, 0.2, 0.4, 0.6, 0.8]  # cola: cls twice, P twice; then sst2
    runs = FakeRuns(scores)
    path = compare(["cola", "sst2"], [*several, "--compare", "cls", "packed", "--num_seeds", "2"], runs)
    made = [(a.task.name, a.model.classifier_pooling, a.training.seed) for a in runs.calls]
    assert made == list(itertools.product(("cola", "sst2"), ("cls", "packed_mean"), (42, 43)))
    assert len({a.training.output_dir for a in runs.calls}) == 8
    text = path.read_text()
    assert table_rows(text) == [
        ["Models", "CoLA", "SST-2", "Avg."],
        ["---", "---:", "---:", "---:"],
        ["Luna-4, [CLS]", "15.00 ± 7.07", "30.00 ± 14.14", "22.50"],
        ["Luna-4, P", "40.00 ± 14.14", "70.00 ± 14.14", "55.00"],
    ]
    assert "CoLA: eval_matthews_correlation, SST-2: eval_accuracy, in %; mean ± standard deviation over 2 seed(s)." in text
    assert text in capsys.readouterr().out
    path = compare(["sst2", "mrpc", "stsb"], [*several, "--compare", "cls", "mean"], FakeRuns([0.5] * 6))
    assert "SST-2: eval_accuracy, MRPC: eval_accuracy, STS-B: eval_pearson, in %; mean over 1 seed(s)." in path.read_text()


def test_checkpoints_are_compared_whatever_their_folders_are_called(options, tmp_path):
    """Pretraining calls every checkpoint `model`."""
    architectures = {"a": "luna", "b": "luna", "c": "roberta"}
    models = [write_checkpoint(tmp_path / name / "model", architecture) for name, architecture in architectures.items()]
    runs = FakeRuns([0.1, 0.2, 0.3])
    path = compare(["sst2"], [*options, "--compare", *map(str, models)], runs)
    assert [a.model.model_name_or_path for a in runs.calls] == [str(model) for model in models]
    assert len({a.training.output_dir for a in runs.calls}) == 3
    assert [row[0] for row in table_rows(path.read_text())[2:]] == [str(model) for model in models]
    path = compare(["sst2"], [*options, "--compare", *map(str, models[1:])], FakeRuns([0.1, 0.2]))
    assert [row[0] for row in table_rows(path.read_text())[2:]] == ["Luna-4", "model"]


@pytest.mark.parametrize(
    ("tasks", "changes", "sentence"),
    [
        ("sst2", "--compare cls pcked", r"`compare` has pcked, which is neither a head \(packed, cls.* nor a check"),
        ("sst2", "--compare cls cls", "run with sst2, classifier_pooling cls, seed 42 is there twice: leave out"),
        ("sst2", "--compare packed packed_mean", "classifier_pooling packed_mean, seed 42 is there twice: leave"),
        ("sst2", "--compare {luna} {luna}/", "is there twice: leave out one of them"),
        ("sst2 sst2", "--compare cls mean", "run with sst2, classifier_pooling cls, seed 42 is there twice"),
        ("sst2 custom", "--compare cls mean", "A custom task needs --kind: classification, regression, mult"),
        ("sst2 rte", "--compare cls mean", "holds RTE in no published format"),
        ("sst2 custom", "--compare cls mean --kind classification --train_file nowhere.csv", "nowhere.csv cannot be read"),
        ("sst2 custom", "--compare cls mean --kind token_classification", "has cls, but token classification reads every"),
        ("sst2", "--compare cls mean --model_name_or_path {roberta}", r"roberta \(roberta\) has no choice of heads: comp"),
        ("sst2", "--compare cls packed --model_name_or_path {modernbert}", "is 'packed_mean', which modernbert refuses"),
        ("sst2", "--compare cls mean --classifier_pooling cls", "`classifier_pooling` was given, but the runs differ"),
        ("sst2", "--compare cls mean --no_do_eval", "Runs are compared by their evaluation: give"),
        ("sst2", "--compare cls mean --output_dir {foreign}", "seed_42 holds files that are not a run of this program"),
    ],
)
def test_a_wrong_comparison_is_refused_before_the_first_run(tasks, changes, sentence, options, checkpoints, tmp_path):
    (tmp_path / "classifier_pooling_mean-seed_42").mkdir()
    (tmp_path / "classifier_pooling_mean-seed_42" / "thesis.txt").touch()
    runs = FakeRuns([])
    with pytest.raises(InputError, match=sentence):
        compare(tasks.split(), [*options, *changes.format(**checkpoints, foreign=tmp_path).split()], runs)
    assert not runs.calls


def test_real_contestants_train_under_equal_seeds(options, tmp_path):
    options = [*options, "--compare", "cls", "packed_max", "packed_attention", "mean", "packed"]
    path = compare(["sst2"], [*options, "--max_steps", "2"])
    folders = [entry["folder"] for entry in json.loads((tmp_path / "out" / "compare.json").read_text())["runs"]]
    poolings = [AutoConfig.from_pretrained(tmp_path / "out" / folder).classifier_pooling for folder in folders]
    assert poolings == ["cls", "packed_max", "packed_attention", "mean", "packed_mean"]
    names = ["Luna-4, [CLS]", "Luna-4, P, max", "Luna-4, P, attention", "Luna-4, mean of tokens", "Luna-4, P"]
    scores = [read_results(tmp_path / "out" / folder)["eval_accuracy"] for folder in folders]
    expected = [[name, f"{100 * score:.2f}", f"{100 * score:.2f}"] for name, score in zip(names, scores, strict=True)]
    assert table_rows(path.read_text())[2:] == expected


@pytest.mark.slow
def test_published_files_for_a_comparison_of_tasks_lie_in_one_folder(checkpoint, tmp_path):
    for name in ("rte", "wnli"):
        write_published(name, tmp_path / "glue", "original")
    values = FAST | {"model_name_or_path": checkpoint, "data_dir": tmp_path / "glue", "output_dir": tmp_path / "out"}
    compare(["rte", "wnli"], to_options(**values | {"num_train_epochs": 1, "compare": ["cls", "packed"]}))
    assert len(list((tmp_path / "out").glob("*/*/all_results.json"))) == 4
