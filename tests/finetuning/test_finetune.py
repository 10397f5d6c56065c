# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Whole runs: every task from its published files, resumed runs bit by bit, custom data, any architecture."""

import csv
import itertools
import json
import os
import shutil
import signal
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from finetuning import finetune
from finetuning.encoding import encode, make_collator
from finetuning.model import HEAD_CLASSES
from finetuning.tasks import TASKS
from finetuning.trainer import FinetuningTrainer, make_loss
from luna_tools.errors import InputError, Stopped
from tests.support.finetuning import change_json, outcome, published, read_lines, read_results, run_task, write_other

LEFTOVERS = ("checkpoint-*", "*.bin", "*.pt", "*.pth", "*.pkl", "*.tmp")
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0}


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture
def values(checkpoint, sst2, tmp_path):
    """The options of a run of SST-2."""
    return {"model_name_or_path": checkpoint, "data_dir": sst2, "output_dir": tmp_path / "run"}


# ---------------------------------------------------------------------------------------------------------------------
# Every task, from files to submission


@pytest.fixture
def logits(monkeypatch):
    """Split -> the logits from which a run wrote its predictions."""
    seen = {}
    write = finetune.write_predictions

    def spy(output_dir, data, split, values, first_tokens=None):
        seen[split] = values
        return write(output_dir, data, split, values, first_tokens)

    monkeypatch.setattr(finetune, "write_predictions", spy)
    return seen


def check_metrics(task, folder, logits):
    """The results against the files of predictions, by NumPy: Matthews' correlation is Pearson's of two classes."""
    results = read_results(folder)
    for split in (*task.validation_splits, *task.test_splits):
        lines = read_lines(folder / f"predictions_{split}.jsonl")
        prefix = {"validation": "eval"}.get(split, f"eval_{split}" if split in task.validation_splits else split)
        assert results[f"{prefix}_samples"] == len(lines) == len(logits[split])
        if "label" not in lines[0]:
            assert f"{prefix}_{task.best_metric}" not in results and split not in task.validation_splits
            continue
        predicted, labels = (np.array([line[name] for line in lines]) for name in ("prediction", "label"))
        value = np.mean(predicted == labels)
        if task.best_metric != "accuracy":
            sides = (
                [predicted, labels] if task.kind == "regression" else [predicted == task.labels[1], labels == task.labels[1]]
            )
            with np.errstate(invalid="ignore"):  # of equal predictions, which the program reports as 0
                value = np.nan_to_num(np.corrcoef(sides)[0, 1])
        assert results[f"{prefix}_{task.best_metric}"] == pytest.approx(value, abs=1e-4), split


def check_submission(task, folder):
    """What is submitted is what was predicted."""
    with zipfile.ZipFile(folder / "submission.zip") as archive:
        assert sorted(archive.namelist()) == sorted(name for _, name in task.submission_files)
    for split, name in task.submission_files:
        lines = read_lines(folder / f"predictions_{split}.jsonl")
        text = (folder / "submission" / name).read_text()
        _, *rows = csv.reader(text.splitlines(), delimiter="," if name.endswith(".csv") else "\t")
        assert [row[0] for row in rows] == [str(line["index"]) for line in lines]
        answers = [line["prediction"] for line in lines]
        if task.kind == "regression":
            assert [float(row[1]) for row in rows] == pytest.approx(np.clip(answers, 0, 5), abs=6e-4)
        elif task.kind == "multiple_choice" or task.submits_label_names:
            assert [row[1] for row in rows] == answers
        else:
            assert [row[1] for row in rows] == [str(task.labels.index(answer)) for answer in answers]


def reloaded_scores(data, folder, split, max_sequence_length=96, max_option_length=40):
    """The scores of the saved model, one row at a time."""
    model = HEAD_CLASSES[data.task.kind].from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = encode(data, tokenizer, max_sequence_length, max_option_length)[split]
    collate = make_collator(data.task, tokenizer)
    with torch.no_grad():
        batches = [collate([row]) for row in rows]
        return [model(**{k: v for k, v in b.items() if k != "labels"}).logits[0].numpy() for b in batches]


EVERY_KIND = ("cola", "stsb", "mnli", "race", "csqa")


@pytest.mark.parametrize("task_name", [name if name in EVERY_KIND else slow(name) for name in TASKS])
def test_a_task_runs_from_the_hub_s_files_to_the_submission(task_name, checkpoint, base, tmp_path, logits, pictures):
    task, folder = TASKS[task_name], tmp_path / "run"
    data_dir = published(task_name, "hub", base)
    results = run_task(task_name, model_name_or_path=checkpoint, data_dir=data_dir, output_dir=folder)
    assert results == read_results(folder)
    assert results["train_steps"] == 2 * -(-results["train_samples"] // 8) and results["train_epochs"] == 2
    check_metrics(task, folder, logits)
    check_submission(task, folder)
    data = task.load(data_dir)
    for split in task.test_splits:
        again = np.array(reloaded_scores(data, folder, split))
        assert again.reshape(logits[split].shape) == pytest.approx(logits[split], abs=1e-4)
    names = {path.name for path in folder.iterdir()}
    drawn = {f"confusion_matrix_{split}.png" for split in task.validation_splits}
    if task.kind == "regression":
        drawn = {"predictions_validation.png"}
    files = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "run.json", "trainer_state.json"}
    assert files | drawn | {"learning_curve.png"} <= names
    for name in drawn | {"learning_curve.png"}:
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    assert not [path for pattern in LEFTOVERS for path in folder.rglob(pattern)]
    assert json.loads((folder / "run.json").read_text())["metric_for_best_model"].endswith(task.best_metric)


@pytest.mark.parametrize("task_name", ["csqa", slow("cola"), slow("mnli"), slow("race-high")])
def test_the_original_files_give_the_same_run(task_name, checkpoint, base, tmp_path):
    for form in ("hub", "original"):
        values = {"data_dir": published(task_name, form, base), "num_train_epochs": 1, "output_dir": tmp_path / form}
        run_task(task_name, model_name_or_path=checkpoint, **values)
    assert outcome(tmp_path / "hub") == outcome(tmp_path / "original")


@pytest.mark.parametrize("pooling", [slow("cls"), "packed_mean"])
def test_training_learns(values, pooling, base):
    values |= {"data_dir": published("sst2", "hub", base, rows=128), "classifier_pooling": pooling, "learning_rate": 6e-3}
    results = run_task("sst2", **values, num_train_epochs=5, **NO_DROPOUT)
    assert results["eval_accuracy"] >= 0.95


def test_the_best_checkpoint_is_kept(values, tmp_path):
    """With a learning rate that falls apart, the epochs differ: the saved model is the best one's, not the last one's."""
    results = run_task("sst2", **values, num_train_epochs=6, learning_rate=0.05, **NO_DROPOUT)
    log = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    scores = {entry["step"]: entry["eval_accuracy"] for entry in log if "eval_accuracy" in entry}
    assert len(scores) == 6 and len(set(scores.values())) > 1
    (trainer_s_mean,) = [entry["train_loss"] for entry in log if "train_loss" in entry]
    assert results["train_loss"] == pytest.approx(trainer_s_mean, rel=1e-5) != results["last_train_loss"]
    assert results["eval_accuracy"] == max(scores.values())
    assert results["best_step"] == min(step for step, score in scores.items() if score == max(scores.values()))


def test_a_finished_run_is_not_run_again(values, monkeypatch):
    results = run_task("sst2", **values)
    monkeypatch.setattr(finetune, "load_config", None)  # what comes next is never reached
    assert run_task("sst2", **values) == results
    with pytest.raises(InputError, match="holds a run with learning_rate 0.001, and this one has 0.002: choose"):
        run_task("sst2", **values | {"learning_rate": 2e-3})


def test_results_of_other_files_are_refused(checkpoint, sst2, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "model")
    shutil.copytree(sst2, tmp_path / "data")
    values = {"model_name_or_path": tmp_path / "model", "data_dir": tmp_path / "data", "output_dir": tmp_path / "run"}
    run_task("sst2", **values, num_train_epochs=1)
    (tmp_path / "model" / "README.md").write_text("This is not read.")
    run_task("sst2", **values, num_train_epochs=1)
    for path, name in (
        (tmp_path / "model" / "config.json", "model"),
        (tmp_path / "data" / "sst2" / "test-00000-of-00001.parquet", "test"),
    ):
        before = path.read_bytes()
        path.write_bytes(before + b"\n")
        with pytest.raises(InputError, match=f"^The files of `{name}` have changed since the run in .*run: choose anot"):
            run_task("sst2", **values, num_train_epochs=1)
        path.write_bytes(before)
    run_task("sst2", **values, num_train_epochs=1)


def test_a_run_that_left_nothing_behind_does_not_hold_its_folder(values, tmp_path):
    with pytest.raises(InputError, match="lower learning_rate"):
        run_task("sst2", **values, learning_rate=1e6)
    run_task("sst2", **values, learning_rate=1e-4)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["learning_rate"] == 1e-4


def test_checkpoints_hold_their_folder(values, tmp_path, monkeypatch):
    run_interrupted(monkeypatch, "signal", 1, values)
    with pytest.raises(InputError, match="holds a run with learning_rate 0.001, and this one has 0.002: choose"):
        run_task("sst2", **values, learning_rate=2e-3)
    (tmp_path / "run" / "checkpoint-2" / "rng_state.pth").rename(tmp_path / "run" / "checkpoint-2" / "rng_state_0.pth")
    with pytest.raises(InputError, match="holds a run with learning_rate"):  # one of several processes
        run_task("sst2", **values, learning_rate=2e-3)


@pytest.mark.parametrize("left_out", [slow(["do_predict"]), ["do_eval"], slow(["do_eval", "do_predict"])])
def test_what_a_run_left_out_is_run_later_from_its_model(values, left_out, tmp_path, monkeypatch):
    values |= {"classifier_pooling": "packed_mean"}
    run_task("sst2", **values | {"output_dir": tmp_path / "whole" / "run"})
    first = run_task("sst2", **values, **dict.fromkeys(left_out, False))
    assert ("eval_accuracy" in first) == ("do_eval" not in left_out)
    assert (tmp_path / "run" / "submission.zip").exists() == ("do_predict" not in left_out)
    monkeypatch.setattr(finetune.Run, "train", None)
    run_task("sst2", **values)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole" / "run")
    cards = [(folder / "run" / "README.md").read_text() for folder in (tmp_path, tmp_path / "whole")]
    assert cards[0] == cards[1]
    monkeypatch.setattr(finetune, "load_config", None)
    assert run_task("sst2", **values) == read_results(tmp_path / "run")


def test_a_folder_of_the_user_s_among_the_checkpoints_stays(values, tmp_path, monkeypatch):
    run_interrupted(monkeypatch, "crash", 5, values)
    (tmp_path / "run" / "checkpoint-best").mkdir()
    run_task("sst2", **values)
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-best"]


def test_a_broken_file_of_a_run_is_named(values):
    values |= {"max_steps": 1}
    run_task("sst2", **values)
    for name, text in itertools.product(("run.json", "all_results.json"), ("{", "[]")):
        whole = (values["output_dir"] / name).read_text()
        (values["output_dir"] / name).write_text(text)
        with pytest.raises(InputError, match=f"{name} is not a JSON object: choose another --output_dir, or remove"):
            run_task("sst2", **values)
        (values["output_dir"] / name).write_text(whole)


def test_checkpoints_within_an_epoch(values, tmp_path, monkeypatch):
    """The options that the docs name for it."""
    values |= {"save_strategy": "steps", "save_steps": 3, "eval_strategy": "steps", "eval_steps": 3}
    run_interrupted(monkeypatch, "crash", 7, values)
    assert (tmp_path / "run" / "checkpoint-6").is_dir()
    run_task("sst2", **values)
    run_task("sst2", **values | {"output_dir": tmp_path / "whole"})
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_misplaced_test_rows_are_refused_before_the_training(checkpoint, tmp_path, monkeypatch):
    shutil.copytree(published("rte", "original", tmp_path), tmp_path / "data")
    path = tmp_path / "data" / "RTE" / "test.tsv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:4] + lines[5:]))
    monkeypatch.setattr(finetune, "load_model", None)
    values = {"model_name_or_path": checkpoint, "data_dir": tmp_path / "data", "output_dir": tmp_path / "run"}
    with pytest.raises(InputError, match="`index` of row 4 of the split 'test' is 4, but GLUE's server wants 3"):
        run_task("rte", **values)


# ---------------------------------------------------------------------------------------------------------------------
# Stopped runs. 32 rows in batches of 8: an epoch has 4 steps, and a run of 3 epochs 12


class Crash(Exception):
    pass


def run_interrupted(monkeypatch, how, steps, values):
    """A run of SST-2 with Ctrl-C, or an exception as of a broken machine, within its step `steps` + 1."""
    training_step, done = FinetuningTrainer.training_step, []

    def step(self, *args, **kwargs):
        if self.state.global_step == steps and not done:
            done.append(True)
            if how == "crash":
                raise Crash
            os.kill(os.getpid(), signal.SIGINT)
        return training_step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(FinetuningTrainer, "training_step", step)
        with pytest.raises(Crash if how == "crash" else Stopped):
            run_task("sst2", **values)


def evaluations(folder):
    """The logged evaluations, without timings."""
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [
        {k: v for k, v in entry.items() if not k.endswith(("_runtime", "_per_second"))}
        for entry in log
        if any(name.startswith("eval_") for name in entry)
    ]


RUNS = {
    "grouped": {"num_train_epochs": 3, "group_by_length": True},
    "ungrouped": {"num_train_epochs": 3, "logging_steps": 3},
    "accumulated": {"num_train_epochs": 3, "total_train_batch_size": 8, "per_device_train_batch_size": 4},
    "early": {"num_train_epochs": 8, "learning_rate": 1e-6, "early_stopping_patience": 2},
}


@pytest.fixture(scope="module")
def undisturbed(checkpoint, sst2, base):
    """Name in RUNS -> the folder of the whole run; made once."""
    folders = {}

    def get(name):
        if name not in folders:
            folders[name] = base / f"undisturbed-{name}"
            run_task("sst2", model_name_or_path=checkpoint, data_dir=sst2, output_dir=folders[name], **RUNS[name])
        return folders[name]

    return get


@pytest.mark.parametrize(
    ("name", "how", "steps"),
    [
        slow("grouped", "signal", 1),  # in the first epoch, before any other checkpoint
        slow("grouped", "signal", 5),
        slow("grouped", "signal", 7),  # in an epoch's last step
        slow("grouped", "crash", 6),
        slow("ungrouped", "signal", 5),
        ("ungrouped", "crash", 6),
        ("accumulated", "signal", 5),
        ("early", "signal", 9),
        slow("early", "crash", 9),
    ],
)
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(values, name, how, steps, undisturbed, tmp_path, monkeypatch):
    values |= RUNS[name]
    handler = signal.getsignal(signal.SIGINT)
    run_interrupted(monkeypatch, how, steps, values)
    assert signal.getsignal(signal.SIGINT) is handler
    assert (tmp_path / "run" / f"checkpoint-{steps + 1 if how == 'signal' else 4 * (steps // 4)}").is_dir()
    assert not (tmp_path / "run" / "all_results.json").exists()
    run_task("sst2", **values)
    assert outcome(tmp_path / "run") == outcome(undisturbed(name))
    assert evaluations(tmp_path / "run") == evaluations(undisturbed(name))
    assert not [path for pattern in LEFTOVERS for path in (tmp_path / "run").glob(pattern)]


def test_early_stopping_stops_after_its_patience(undisturbed):
    """At this learning rate no evaluation is better than the first."""
    results = read_results(undisturbed("early"))
    assert results["best_step"] == 4 and results["train_epochs"] == 3
    assert [entry["step"] for entry in evaluations(undisturbed("early"))] == [4, 8, 12]


@pytest.mark.parametrize(
    "change", [slow({"num_train_epochs": 2}), slow({"max_steps": 6}), RUNS["early"] | {"save_total_limit": 9}]
)
def test_a_crash_after_the_training_trains_no_further(values, change, tmp_path, monkeypatch):
    values |= change
    run_task("sst2", **values | {"output_dir": tmp_path / "whole"})
    with monkeypatch.context() as patch:
        patch.setattr(finetune.Run, "evaluate", lambda run: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_task("sst2", **values)
    run_task("sst2", **values)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_a_checkpoint_that_is_not_whole_is_passed_over(values, undisturbed, tmp_path, monkeypatch, caplog):
    values |= RUNS["grouped"]
    run_interrupted(monkeypatch, "signal", 5, values)
    (tmp_path / "run" / "checkpoint-6" / "trainer_state.json").write_text('{"epoch": 1')
    run_task("sst2", **values)
    assert "checkpoint-6 is incomplete (trainer_state.json) and is not used." in caplog.text
    assert "Going on from" in caplog.text and "checkpoint-4." in caplog.text
    assert outcome(tmp_path / "run") == outcome(undisturbed("grouped"))


# ---------------------------------------------------------------------------------------------------------------------
# Your own data

WORDS = ("the", "cat", "sat", "far", "away", "now")
MARKERS = ("red", "blue", "green")


def custom_rows(kind, count, labels=True, seed=0):
    """Rows whose label is the place or the kind of a marker word."""
    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        words = [str(word) for word in generator.choice(WORDS, generator.integers(2, 7))]
        kind_of_row = int(generator.integers(3))
        words.insert(int(generator.integers(len(words) + 1)), MARKERS[kind_of_row])
        if kind == "token_classification":
            row = {"words": words, "label": ["B-X" if word in MARKERS else "O" for word in words]}
        elif kind == "multiple_choice":
            options = ["cat", "now", "far"]
            options[kind_of_row] = "red"
            row = {"question": " ".join(words), "options": options, "label": "ABC"[kind_of_row]}
        else:
            row = {"text": " ".join(words), "label": float(kind_of_row) if kind == "regression" else MARKERS[kind_of_row]}
        rows.append(row if labels else {name: value for name, value in row.items() if name != "label"})
    return rows


def write_rows(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows({k: " ".join(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows)
    return path


@pytest.mark.parametrize(
    ("kind", "suffix"),
    [
        ("classification", ".csv"),
        slow("classification", ".jsonl"),
        ("regression", ".csv"),
        ("multiple_choice", ".jsonl"),
        ("token_classification", ".csv"),
        slow("token_classification", ".jsonl"),
    ],
)
def test_custom_data_trains_and_the_model_predicts_alone(kind, suffix, checkpoint, tmp_path):
    one_file = write_rows(tmp_path / f"rows{suffix}", custom_rows(kind, 40))
    hidden = write_rows(tmp_path / f"hidden{suffix}", custom_rows(kind, 7, labels=False, seed=1))
    folder = tmp_path / "run"
    values = {"kind": kind, "train_file": one_file, "validation_fraction": 0.25, "test_file": hidden, "output_dir": folder}
    results = run_task("custom", model_name_or_path=checkpoint, **values)
    assert results["train_samples"] == 30 and results["eval_samples"] == 10 and results["test_samples"] == 7
    names = ("pearson", "spearmanr", "mean_squared_error") if kind == "regression" else ("accuracy",)
    assert all(f"eval_{name}" in results for name in names)
    if kind == "token_classification":
        assert "eval_entity_f1" in results
    lines = read_lines(folder / "predictions_test.jsonl")
    assert [line["index"] for line in lines] == list(range(7)) and "label" not in lines[0]
    assert not (folder / "submission.zip").exists()

    alone = {"kind": kind, "test_file": hidden, "do_train": False, "output_dir": tmp_path / "alone"}
    results = run_task("custom", model_name_or_path=folder, **alone)
    assert results == {"test_samples": 7}
    assert (tmp_path / "alone" / "predictions_test.jsonl").read_bytes() == (folder / "predictions_test.jsonl").read_bytes()
    assert not (tmp_path / "alone" / "model.safetensors").exists()


def test_the_best_checkpoint_has_the_smallest_error(checkpoint, tmp_path):
    rows = write_rows(tmp_path / "rows.csv", custom_rows("regression", 40))
    values = {"kind": "regression", "train_file": rows, "metric_for_best_model": "mean_squared_error", "learning_rate": 0.05}
    results = run_task("custom", model_name_or_path=checkpoint, output_dir=tmp_path / "run", num_train_epochs=6, **values)
    errors = [entry["eval_mean_squared_error"] for entry in evaluations(tmp_path / "run")]
    assert len(errors) == 6 and results["eval_mean_squared_error"] == min(errors) < max(errors)


def test_tags_lie_at_their_words_whatever_the_side_of_padding(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "left")
    change_json(tmp_path / "left" / "tokenizer_config.json", padding_side="left")
    assert AutoTokenizer.from_pretrained(tmp_path / "left").padding_side == "left"
    rows = write_rows(tmp_path / "rows.jsonl", custom_rows("token_classification", 40))
    values = {"kind": "token_classification", "train_file": rows, "learning_rate": 2e-2, "num_train_epochs": 8}
    results = run_task("custom", model_name_or_path=tmp_path / "left", output_dir=tmp_path / "run", **values)
    lines = read_lines(tmp_path / "run" / "predictions_validation.jsonl")
    right = [pair[0] == pair[1] for line in lines for pair in zip(line["prediction"], line["label"], strict=True)]
    assert np.mean(right) == pytest.approx(results["eval_accuracy"]) and np.mean(right) > 0.95


def test_a_fine_tuned_model_is_evaluated_on_labelled_rows(checkpoint, sst2, tmp_path):
    trained = run_task("sst2", model_name_or_path=checkpoint, data_dir=sst2, output_dir=tmp_path / "run")
    alone = {"do_train": False, "do_predict": False, "output_dir": tmp_path / "alone"}
    results = run_task("sst2", model_name_or_path=tmp_path / "run", data_dir=sst2, **alone)
    assert results == {name: value for name, value in trained.items() if name.startswith("eval_")}


# ---------------------------------------------------------------------------------------------------------------------
# Any model


@pytest.mark.parametrize(
    ("architecture", "task_name"),
    [("roberta", "mrpc"), ("modernbert", "race"), slow("roberta", "race"), slow("modernbert", "mrpc")],
)
def test_any_auto_model_runs(architecture, task_name, checkpoints, base, tmp_path, logits, caplog):
    task, folder = TASKS[task_name], tmp_path / "run"
    data_dir = published(task_name, "hub", base)
    values = {"recipe": "table9", "num_train_epochs": 1, "max_steps": 4, "total_train_batch_size": 8}
    run_task(task_name, model_name_or_path=checkpoints[architecture], data_dir=data_dir, output_dir=folder, **values)
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == architecture and "activation_dropout" not in config
    card = (folder / "README.md").read_text()
    assert "| max_steps | 4 |" in card and "num_train_epochs" not in card and "eval_steps" not in card
    assert "activation_dropout" not in card and ("| hidden_dropout_prob | 0.1 |" in card) == (architecture == "roberta")
    unread = {"modernbert": "hidden_dropout_prob, attention_probs_dropout_prob, "}.get(architecture, "")
    assert f"The recipe's {unread}activation_dropout do not apply to {architecture}." in caplog.messages
    check_metrics(task, folder, logits)
    again = np.array(reloaded_scores(task.load(data_dir), folder, "test"))
    assert again.reshape(logits["test"].shape) == pytest.approx(logits["test"], abs=1e-4)


def test_a_model_without_a_pad_token(sst2, tmp_path, logits):
    checkpoint = write_other(tmp_path / "gpt2", "gpt2")
    run_task("sst2", model_name_or_path=checkpoint, data_dir=sst2, output_dir=tmp_path / "run")
    check_metrics(TASKS["sst2"], tmp_path / "run", logits)
    again = np.array(reloaded_scores(TASKS["sst2"].load(sst2), tmp_path / "run", "test"))
    assert again == pytest.approx(logits["test"], abs=1e-4)


@pytest.mark.parametrize("architecture", [slow("luna"), "roberta", slow("modernbert")])
@pytest.mark.parametrize(
    "kind", [slow("classification"), slow("regression"), slow("multiple_choice"), "token_classification"]
)
def test_accumulation_changes_nothing(architecture, kind, checkpoints, tmp_path):
    """Rows have different numbers of tags: a mean of the micro-batches' means would be another gradient."""
    rows = write_rows(tmp_path / "rows.jsonl", custom_rows(kind, 20))
    weights = []
    for size, steps in ((16, 1), (4, 4)):
        folder = tmp_path / f"{size}"
        values = {"kind": kind, "train_file": rows, "validation_fraction": 0.2, "optim": "sgd", "learning_rate": 0.5}
        values |= {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "do_predict": False}
        values |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0} if architecture != "modernbert" else {}
        run_task("custom", model_name_or_path=checkpoints[architecture], output_dir=folder, max_steps=3, **values)
        weights.append((load_file(folder / "model.safetensors"), read_results(folder)["train_loss"]))
    (whole, loss), (divided, divided_loss) = weights
    assert divided_loss == pytest.approx(loss, rel=1e-5)
    start = load_file(checkpoints[architecture] / "model.safetensors")
    assert max((whole[name] - start[name]).abs().max() for name in whole if name in start) > 1e-4
    for name, tensor in whole.items():
        torch.testing.assert_close(divided[name], tensor, rtol=1e-4, atol=1e-6)


def test_the_evaluation_is_not_smoothed(values, sst2, logits, monkeypatch):
    values |= {"label_smoothing_factor": 0.5, "max_steps": 2}
    drawn = {}
    monkeypatch.setattr(finetune, "plot_learning_curve", lambda *args, **kwargs: drawn.update(kwargs))
    results = run_task("sst2", **values)
    labels = torch.tensor(TASKS["sst2"].load(sst2).splits["validation"]["label"][:])
    scores = torch.from_numpy(logits["validation"])
    assert results["eval_loss"] == pytest.approx(make_loss(TASKS["sst2"])({"logits": scores}, labels).item(), rel=1e-6)
    assert results["eval_loss"] != pytest.approx(make_loss(TASKS["sst2"], 0.5)({"logits": scores}, labels).item(), rel=1e-6)
    assert drawn["loss_name"] == "cross-entropy (nats)\nin training with label smoothing 0.5"


@pytest.mark.parametrize(("architecture", "expected"), [("luna", False), ("roberta", None)])
def test_luna_needs_no_search_for_unused_parameters(architecture, expected, checkpoints, sst2, tmp_path, monkeypatch):
    """Its heads freeze what they do not read; with two processes, the search would warn of finding none."""
    seen = []
    monkeypatch.setattr(finetune.Run, "check_forward", lambda run: seen.append(run.args))
    values = {"model_name_or_path": checkpoints[architecture], "data_dir": sst2, "output_dir": tmp_path / "run"}
    run_task("sst2", **values, max_steps=1)
    assert seen[0].ddp_find_unused_parameters is expected


def test_random_weights_are_those_of_a_new_model(values, checkpoint, tmp_path):
    run_task("sst2", **values, random_weights=True, learning_rate=0.0)
    weights, start = load_file(tmp_path / "run" / "model.safetensors"), load_file(checkpoint / "model.safetensors")
    shared = [key for key in weights if key in start and weights[key].std() > 0]
    assert shared and not any(torch.equal(weights[key], start[key]) for key in shared)


def test_a_head_for_other_labels_is_made_new_when_asked(checkpoint, sst2, base, tmp_path):
    run_task("sst2", model_name_or_path=checkpoint, data_dir=sst2, output_dir=tmp_path / "sst2")
    values = {"data_dir": published("mnli", "hub", base), "ignore_mismatched_sizes": True, "output_dir": tmp_path / "mnli"}
    results = run_task("mnli", model_name_or_path=tmp_path / "sst2", **values)
    assert results["train_steps"] == 8
    names = json.loads((tmp_path / "mnli" / "config.json").read_text())["id2label"]
    assert [names[str(i)] for i in range(3)] == list(TASKS["mnli"].labels)
