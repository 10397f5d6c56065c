# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Sweeps and comparisons: which runs they make, what their tables say, and that they resume."""

import itertools
import json
from pathlib import Path

import pytest

from finetuning.experiments import compare, sweep
from finetuning.finetune import finetune
from finetuning.trainer import best_key
from luna_tools.errors import InputError
from tests.support.finetuning import outcome, read_results, run_main, to_options, write_checkpoint
from tests.support.published_files import write_published


@pytest.fixture
def options(values, tmp_path):
    return to_options(**values | {"learning_rate": None, "output_dir": tmp_path / "out"})  # the grids set the rate


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
    """Stands for `finetune`: remembers the arguments and gives the scores of a list, in order; of tests, half of them."""

    def __init__(self, scores, has_tests=False):
        self.scores, self.has_tests, self.calls = iter(scores), has_tests, []

    def __call__(self, arguments):
        self.calls.append(arguments)
        score = next(self.scores)
        test = {f"test_{arguments.task.best_metric}": score / 2} if self.has_tests else {}
        return {best_key(arguments.task): score} | test


def table_rows(text):
    """The cells of every row of every table."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


# ---------------------------------------------------------------------------------------------------------------------
# Sweep

QA_GRID = [(b, r, d) for b in (16, 32) for r in (1e-5, 2e-5, 3e-5) for d in (0.0, 0.1, 0.2)]


def test_the_grids_are_the_paper_s(checkpoints, tmp_path, caplog):
    glue = [(b, r, 0.1) for b in (16, 32) for r in (5e-6, 1e-5, 2e-5)]
    no_dropout = [(b, r, None) for b, r, d in QA_GRID if d == 0.0]  # ModernBERT calls its dropouts otherwise
    for task_name, architecture, settings in (
        *(("mnli", "luna", glue), ("race-high", "luna", QA_GRID), ("csqa", "luna", QA_GRID)),
        ("race", "modernbert", no_dropout),
    ):
        runs = FakeRuns([0.5] * len(settings))
        options = {"model_name_or_path": checkpoints[architecture], "output_dir": tmp_path / task_name}
        path = sweep(task_name, [*to_options(**options), "--sweep"], runs)
        found = [(a.run.total_train_batch_size, a.training.learning_rate, a.model.hidden_dropout_prob) for a in runs.calls]
        left_out = "The grid's hidden_dropout_prob does not apply to modernbert, and is left out."
        assert (left_out in caplog.messages) == (architecture == "modernbert")
        assert [call[:2] for call in found] == [setting[:2] for setting in settings]
        assert architecture != "luna" or found == settings
    assert table_rows(path.read_text())[0] == ["run", "total_train_batch_size", "learning_rate", "seed", "eval_accuracy"]


def test_the_table_has_every_run_and_each_setting_s_median_and_maximum(options, grid, tmp_path, capsys):
    scores = [0.5, 0.9, 0.2, 0.6, 0.61, 0.67]  # no median is a mean
    runs = FakeRuns(scores, has_tests=True)
    path = sweep("sst2", [*options, *grid, "--num_seeds", "3", "--seed", "5"], runs)
    assert [a.training.seed for a in runs.calls] == [5, 6, 7] * 2
    folders = [Path(a.training.output_dir).name for a in runs.calls]
    assert folders[0] == "learning_rate_0.001-seed_5" and len(set(folders)) == 6
    rows = table_rows(path.read_text())
    assert rows[0] == ["run", "learning_rate", "seed", "eval_accuracy", "test_accuracy"]
    rates = ["0.001"] * 3 + ["0.002"] * 3
    cells = zip(
        folders, rates, "567567", *([f"{share * score:.2f}" for score in scores] for share in (100, 50)), strict=True
    )
    assert rows[2:8] == [list(row) for row in cells]
    assert rows[8] == ["learning_rate", "mean", "median", "maximum", "mean test_accuracy"]
    assert rows[10:] == [["0.002", "62.67", "61.00", "67.00", "31.33"], ["0.001", "53.33", "50.00", "90.00", "26.67"]]
    assert path.read_text() in capsys.readouterr().out
    saved = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert [entry["results"]["eval_accuracy"] for entry in saved["runs"]] == scores


def test_seeds_without_a_grid(options, tmp_path):
    runs = FakeRuns([0.5, 0.7, 0.9])
    path = sweep("sst2", [*options, "--num_seeds", "3"], runs)
    assert [Path(a.training.output_dir).name for a in runs.calls] == ["seed_42", "seed_43", "seed_44"]
    assert table_rows(path.read_text())[-1] == ["70.00", "70.00", "90.00"]


def test_an_interrupted_sweep_goes_on_where_it_stopped(options, grid):
    options, trained = [*options, *grid, "--max_steps", "2"], []

    def run_one(arguments, limit=1):
        if not (Path(arguments.training.output_dir) / "all_results.json").exists():
            if len(trained) == limit:
                raise KeyboardInterrupt
            trained.append(arguments.training.output_dir)
        return finetune(arguments)

    with pytest.raises(KeyboardInterrupt):
        sweep("sst2", options, run_one)
    before = outcome(trained[0])
    path = sweep("sst2", options, lambda arguments: run_one(arguments, limit=9))
    assert len(trained) == len(set(trained)) == 2 and outcome(trained[0]) == before
    scores = [read_results(folder)["eval_accuracy"] for folder in trained]
    assert [row[3] for row in table_rows(path.read_text())[2:4]] == [f"{100 * score:.2f}" for score in scores]


# ---------------------------------------------------------------------------------------------------------------------
# Comparison


def test_heads_are_compared_in_the_layout_of_table_3(several, capsys):
    scores = [0.1, 0.2, 0.3, 0.5, 0.2, 0.4, 0.6, 0.8]  # cola: cls twice, P twice; then sst2
    runs = FakeRuns(scores, has_tests=True)
    path = compare(["cola", "sst2"], [*several, "--compare", "cls", "packed", "--num_seeds", "2"], runs)
    made = [(a.task.name, a.model.classifier_pooling, a.training.seed) for a in runs.calls]
    assert made == list(itertools.product(("cola", "sst2"), ("cls", "packed_mean"), (42, 43)))
    assert len({a.training.output_dir for a in runs.calls}) == 8
    text = path.read_text()
    head = [["Models", "CoLA", "SST-2", "Avg."], ["---"] * 4]
    assert table_rows(text) == [
        *head,
        ["Luna-4, [CLS]", "15.00 ± 7.07", "30.00 ± 14.14", "22.50"],
        ["Luna-4, P", "40.00 ± 14.14", "70.00 ± 14.14", "55.00"],
        *head,
        ["Luna-4, [CLS]", "7.50 ± 3.54", "15.00 ± 7.07", "11.25"],
        ["Luna-4, P", "20.00 ± 7.07", "35.00 ± 7.07", "27.50"],
    ]
    assert "CoLA: eval_matthews_correlation, SST-2: eval_accuracy, in %; mean ± standard deviation over 2 seed(s)." in text
    assert "CoLA: test_matthews_correlation, SST-2: test_accuracy, in %; mean ± standard" in text
    assert text in capsys.readouterr().out
    heads = ["cls", "packed", "packed_max", "packed_attention", "mean"]
    path = compare(["sst2", "mrpc", "stsb"], [*several, "--compare", *heads], FakeRuns([0.5] * 15))
    names = ["Luna-4, [CLS]", "Luna-4, P", "Luna-4, P, max", "Luna-4, P, attention", "Luna-4, mean of tokens"]
    assert [row[0] for row in table_rows(path.read_text())[2:]] == names
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
        ("sst2", "--sweep_grid {grid}", "`learning_rate` is 'fast'"),
        ("sst2", "--sweep --learning_rate 1", "^`learning_rate` was given, but the runs differ in it: leave it out"),
    ],
)
def test_wrong_runs_are_refused_before_the_first_one(tasks, changes, sentence, options, checkpoints, tmp_path):
    (tmp_path / "classifier_pooling_mean-seed_42").mkdir()
    (tmp_path / "classifier_pooling_mean-seed_42" / "thesis.txt").touch()
    (tmp_path / "wrong.yaml").write_text("learning_rate: [1e-3, fast]\n")
    options = [*options, *changes.format(**checkpoints, foreign=tmp_path, grid=tmp_path / "wrong.yaml").split()]
    runs = FakeRuns([])
    with pytest.raises(InputError, match=sentence):
        sweep(tasks, options, runs) if "sweep" in changes else compare(tasks.split(), options, runs)
    assert not runs.calls


def test_real_contestants_train_under_equal_seeds(values, tmp_path, capsys, caplog):
    assert run_main("sst2", *to_options(**values | {"compare": ["cls", "packed"], "max_steps": 1})) == 0
    text = (tmp_path / "run" / "compare.md").read_text()
    assert text in capsys.readouterr().out
    runs = json.loads((tmp_path / "run" / "compare.json").read_text())["runs"]
    configs = [json.loads((tmp_path / "run" / run["folder"] / "config.json").read_text()) for run in runs]
    assert [config["classifier_pooling"] for config in configs] == ["cls", "packed_mean"]
    scores = [f"{100 * read_results(tmp_path / 'run' / run['folder'])['eval_accuracy']:.2f}" for run in runs]
    names = ["Luna-4, [CLS]", "Luna-4, P"]
    assert table_rows(text)[2:] == [[name, score, score] for name, score in zip(names, scores, strict=True)]
    assert sum(line.startswith("Run 2 of 2") for line in caplog.messages) == 1


@pytest.mark.slow
def test_published_files_for_a_comparison_of_tasks_lie_in_one_folder(values, tmp_path):
    for name in ("rte", "wnli"):
        write_published(name, tmp_path / "glue", "original")
    values |= {"data_dir": tmp_path / "glue", "num_train_epochs": 1, "compare": ["cls", "packed"]}
    compare(["rte", "wnli"], to_options(**values))
    assert len(list((tmp_path / "run").glob("*/*/all_results.json"))) == 4
