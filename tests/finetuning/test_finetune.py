# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Whole runs: every task from its published files, resumed runs bit by bit, custom data, any architecture."""

import json
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.special import softmax
from transformers import AutoTokenizer

from finetuning import finetune
from finetuning.encoding import encode, make_collator
from finetuning.finetune import draw, epochs_for, fit_recipe, learning_rate_for, one_class_remark
from finetuning.model import HEAD_CLASSES
from finetuning.tasks import TASKS, custom_task
from finetuning.trainer import FinetuningTrainer
from luna_tools.errors import InputError, Stopped
from tests.support.finetuning import (
    arguments_of,
    change_json,
    outcome,
    published,
    read_lines,
    read_results,
    run_task,
    write_other,
    write_rows,
)

pytestmark = pytest.mark.xdist_group("finetuning")  # which share finished runs
LEFTOVERS = ("checkpoint-*", "*.bin", "*.pt", "*.pth", "*.pkl", "*.tmp")
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0}


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


# ---------------------------------------------------------------------------------------------------------------------
# Every task, from files to submission


def check_predictions(task, folder, data_dir, max_option_length=40):
    """The files of predictions against the saved model, one row at a time, and the results against these files.

    Matthews' correlation is Pearson's of two classes.
    """
    results, data = read_results(folder), task.load(data_dir)
    model = HEAD_CLASSES[task.kind].from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoded, collate = encode(data, tokenizer, 96, max_option_length), make_collator(task, tokenizer)
    for split in (*task.validation_splits, *task.test_splits):
        lines = read_lines(folder / f"predictions_{split}.jsonl")
        for line, row in zip(lines, encoded[split], strict=True):
            batch = {name: tensor for name, tensor in collate([row]).items() if name != "labels"}
            scores = model(**batch).logits[0].detach().numpy()
            value = [line["prediction"]] if task.kind == "regression" else softmax(scores)
            assert [*line.get("probabilities", {0: scores[0]}).values()] == pytest.approx([*value], abs=1e-4)
        prefix = {"validation": "eval"}.get(split, f"eval_{split}" if split in task.validation_splits else split)
        assert results[f"{prefix}_samples"] == len(lines)
        if "label" not in lines[0]:
            assert f"{prefix}_{task.best_metric}" not in results and split not in task.validation_splits
            continue
        sides = [np.array([line[name] for line in lines]) for name in ("prediction", "label")]
        value = np.mean(sides[0] == sides[1])
        if task.best_metric != "accuracy":
            sides = sides if task.kind == "regression" else [side == task.labels[1] for side in sides]
            with np.errstate(invalid="ignore"):  # of equal predictions, which the program reports as 0
                value = np.nan_to_num(np.corrcoef(sides)[0, 1])
        assert results[f"{prefix}_{task.best_metric}"] == pytest.approx(value, abs=1e-4), split


EVERY_KIND = ("cola", "stsb", "mnli", "race", "csqa")
# The Long Range Arena submits nothing and has vocabularies of its own: lra/test_runs.py.
SUBMITTED = [name for name, task in TASKS.items() if task.submission_files]


@pytest.mark.parametrize("task_name", [name if name in EVERY_KIND else slow(name) for name in SUBMITTED])
def test_a_task_runs_from_the_hub_s_files_to_the_submission(task_name, finished, base):
    task, folder = TASKS[task_name], finished(task_name)
    results = read_results(folder)
    assert results["train_steps"] == 2 * -(-results["train_samples"] // 8) and results["train_epochs"] == 2
    check_predictions(task, folder, published(task_name, "hub", base))
    names = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    drawn = "predictions" if task.kind == "regression" else "confusion_matrix"
    assert {"submission.zip", *(f"submission/{name}" for _, name in task.submission_files)} <= names
    assert {"learning_curve.png", *(f"{drawn}_{split}.png" for split in task.validation_splits)} <= names
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json", "run.json", "trainer_state.json"} <= names
    assert not [path for pattern in LEFTOVERS for path in folder.rglob(pattern)]
    assert json.loads((folder / "run.json").read_text())["metric_for_best_model"].endswith(task.best_metric)


def test_predictions_of_every_kind_are_drawn_and_those_of_one_class_told(tmp_path, pictures):
    one = "All predictions of the split 'dev' are {}: the model tells nothing apart, so train longer."
    tags = custom_task("token_classification", labels=("O", "B-X"))
    for task, shape, labels, name in (
        (TASKS["cola"], (4, 2), [0, 1, 1, 0], "'acceptable'"),
        (TASKS["race"], (4, 4), [0, 3, 1, 2], "'B'"),
        (tags, (2, 3, 2), [[-100, 0, 1], [-100, 1, -100]], "'B-X'"),
        (TASKS["stsb"], (4, 1), [0.5, 4.0, 1.0, 5.0], None),
    ):
        logits, labels = np.zeros(shape), np.array(labels)
        logits[..., 1 % shape[-1]] = 1.0
        draw(task, tmp_path, task.name, logits, labels)
        assert next(tmp_path.glob(f"*_{task.name}.png")).read_bytes().startswith(b"\x89PNG")
        assert one_class_remark(task, "dev", logits, labels) == (name and one.format(name))
        if name:
            assert one_class_remark(task, "dev", logits, np.where(labels < 0, labels, 1)) is None  # nor do the labels differ
            logits[-1, ..., 0] = 2.0
            assert one_class_remark(task, "dev", logits, labels) is None


@pytest.mark.parametrize("pooling", [slow("cls"), "packed_mean"])
def test_training_learns(values, pooling, base):
    values |= {"data_dir": published("sst2", "hub", base, rows=128), "classifier_pooling": pooling, "learning_rate": 6e-3}
    results = run_task("sst2", **values | NO_DROPOUT | {"num_train_epochs": 5})
    assert results["eval_accuracy"] >= 0.95 and "warning" not in results


@pytest.mark.parametrize(("task_name", "metric", "best"), [("sst2", "accuracy", max), ("stsb", "loss", min)])
def test_the_best_checkpoint_is_kept(task_name, metric, best, values, base, tmp_path):
    """With a learning rate that falls apart, the epochs differ: the saved model is the best one's, not the last one's."""
    values |= NO_DROPOUT | {"data_dir": published(task_name, "hub", base), "metric_for_best_model": metric}
    results = run_task(task_name, **values | {"num_train_epochs": 6, "learning_rate": 0.05})
    log = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    scores = {entry["step"]: entry[f"eval_{metric}"] for entry in log if f"eval_{metric}" in entry}
    assert len(scores) == 6 and len(set(scores.values())) > 1
    (trainer_s_mean,) = [entry["train_loss"] for entry in log if "train_loss" in entry]
    assert results["train_loss"] == pytest.approx(trainer_s_mean, rel=1e-5) != results["last_train_loss"]
    assert results[f"eval_{metric}"] == best(scores.values())
    assert results["best_step"] == min(step for step, score in scores.items() if score == best(scores.values()))


# ---------------------------------------------------------------------------------------------------------------------
# The recipe for small checkpoints


def test_the_small_recipe_goes_by_the_model_s_size_and_the_rows(values, tmp_path, caplog):
    assert [learning_rate_for(n) for n in (1_000_000, 10_000_000, 20_000_000, 130_000_000)] == [5e-4, 5e-4, 1.8e-4, 1.1e-5]
    assert [epochs_for(n) for n in (32, 1154, 4000, 400_000)] == [100, 22, 6, 3]
    open_values = {name: values[name] for name in ("model_name_or_path", "data_dir", "output_dir", "use_cpu")}
    for given in ({}, {"learning_rate": 1e-3}, {"max_steps": 7}, {"num_train_epochs": 2}):
        arguments = arguments_of("sst2", **dict.fromkeys(values) | open_values | {"recipe": "small"} | given)
        training = fit_recipe(arguments).training
        assert training.learning_rate == given.get("learning_rate", 5e-4)
        assert training.num_train_epochs == given.get("num_train_epochs", 3.0 if "max_steps" in given else 100.0)
    run_task("sst2", **values | {"learning_rate": None, "max_steps": 1})
    pattern = "The learning rate 5e-05 is for larger models than this one of 0.0 million parameters: try --recipe small."
    assert pattern in caplog.messages


# ---------------------------------------------------------------------------------------------------------------------
# Finished runs


def test_a_folder_holds_its_run(checkpoint, sst2, tmp_path, monkeypatch):
    shutil.copytree(checkpoint, tmp_path / "model")
    shutil.copytree(sst2, tmp_path / "data")
    values = {"model_name_or_path": tmp_path / "model", "data_dir": tmp_path / "data", "output_dir": tmp_path / "run"}
    values |= {"max_steps": 1}
    with pytest.raises(InputError, match="lower learning_rate"):
        run_task("sst2", **values, learning_rate=1e30)
    results = run_task("sst2", **values)  # a run that left nothing behind does not hold its folder
    monkeypatch.setattr(finetune, "load_config", None)  # what comes next is never reached
    (tmp_path / "model" / "README.md").write_text("This is not read.")
    assert run_task("sst2", **values) == results
    with pytest.raises(InputError, match="holds a run with learning_rate 0.001, and this one has 0.002: choose"):
        run_task("sst2", **values, learning_rate=2e-3)
    changed, broken = "^The files of `{}` have changed since the run in .*run: choose", "{} is not a JSON object: choose"
    for name, text, sentence in (
        ("model/config.json", "\n", changed.format("model")),
        ("data/sst2/test-00000-of-00001.parquet", "\n", changed.format("test")),
        *((f"run/{name}", text, broken.format(name)) for name in ("run.json", "all_results.json") for text in ("{", "[]")),
    ):
        before = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes((before if text == "\n" else b"") + text.encode())
        with pytest.raises(InputError, match=sentence):
            run_task("sst2", **values)
        (tmp_path / name).write_bytes(before)
    assert run_task("sst2", **values) == results


@pytest.mark.parametrize("left_out", [slow(["do_predict"]), ["do_eval"], slow(["do_eval", "do_predict"])])
def test_what_a_run_left_out_is_run_later_from_its_model(values, left_out, finished, tmp_path, monkeypatch):
    whole, values = finished("sst2"), values | {"classifier_pooling": "packed_mean"}
    first = run_task("sst2", **values, **dict.fromkeys(left_out, False))
    assert ("eval_accuracy" in first) == ("do_eval" not in left_out)
    assert (tmp_path / "run" / "submission.zip").exists() == ("do_predict" not in left_out)
    monkeypatch.setattr(finetune.Run, "train", None)
    run_task("sst2", **values)
    assert outcome(tmp_path / "run") == outcome(whole)
    assert (tmp_path / "run" / "README.md").read_text() == (whole / "README.md").read_text()
    monkeypatch.setattr(finetune, "load_config", None)
    assert run_task("sst2", **values) == read_results(tmp_path / "run")


def test_a_fine_tuned_model_is_evaluated_or_gets_a_new_head(values, finished, base, tmp_path):
    values |= {"model_name_or_path": finished("sst2"), "output_dir": tmp_path / "alone"}
    results = run_task("sst2", **values, do_train=False, do_predict=False)
    trained = read_results(finished("sst2"))
    assert {name: value for name, value in results.items() if name.startswith("eval_")} == {
        name: value for name, value in trained.items() if name.startswith("eval_")
    }
    values |= {"data_dir": published("mnli", "hub", base), "output_dir": tmp_path / "mnli", "max_steps": 1}
    run_task("mnli", **values, ignore_mismatched_sizes=True)
    names = json.loads((tmp_path / "mnli" / "config.json").read_text())["id2label"]
    assert [names[str(i)] for i in range(3)] == list(TASKS["mnli"].labels)


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
# Stopped runs


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


BY_STEPS = {"save_strategy": "steps", "save_steps": 3, "eval_strategy": "steps", "eval_steps": 3}
RUNS = {
    "grouped": {"num_train_epochs": 3, "group_by_length": True, "logging_steps": 3},
    "accumulated": {"num_train_epochs": 3, "total_train_batch_size": 8, "per_device_train_batch_size": 4},
    "by steps": {"num_train_epochs": 3} | BY_STEPS,  # as the docs name it
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
    ("name", "how", "steps", "checkpoint_step"),
    [
        slow("grouped", "signal", 1, 2),  # in the first epoch, before any other checkpoint
        ("grouped", "signal", 5, 6),
        slow("grouped", "signal", 7, 8),  # in an epoch's last step
        slow("grouped", "crash", 6, 4),
        slow("accumulated", "signal", 5, 6),
        slow("accumulated", "crash", 6, 4),
        ("by steps", "crash", 7, 6),
        ("early", "signal", 9, 10),
        slow("early", "crash", 9, 8),
    ],
)
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(
    values, name, how, steps, checkpoint_step, undisturbed, tmp_path, monkeypatch, caplog
):
    values |= RUNS[name]
    handler, folder = signal.getsignal(signal.SIGINT), tmp_path / "run"
    run_interrupted(monkeypatch, how, steps, values)
    assert signal.getsignal(signal.SIGINT) is handler
    saved = folder / f"checkpoint-{checkpoint_step}"
    assert saved.is_dir() and not (folder / "all_results.json").exists()
    with pytest.raises(InputError, match="holds a run with learning_rate .*, and this one has 0.002: choose"):
        run_task("sst2", **values | {"learning_rate": 2e-3})
    (saved / "rng_state.pth").rename(saved / "rng_state_0.pth")  # one of several processes holds its folder as well
    with pytest.raises(InputError, match="holds a run with learning_rate"):
        run_task("sst2", **values | {"learning_rate": 2e-3})
    (saved / "rng_state_0.pth").rename(saved / "rng_state.pth")
    broken = shutil.copytree(saved, folder / f"checkpoint-{checkpoint_step + 1}")  # is passed over
    (broken / "trainer_state.json").write_text('{"epoch": 1')
    (folder / "checkpoint-best").mkdir()  # the user's own
    run_task("sst2", **values)
    told = [f"{broken} is incomplete (trainer_state.json) and is not used.", f"Going on from {saved}."]
    assert [message for message in caplog.messages if "checkpoint-" in message][-2:] == told
    assert outcome(folder) == outcome(undisturbed(name))
    assert evaluations(folder) == evaluations(undisturbed(name))
    (folder / "checkpoint-best").rmdir()
    assert not [path for pattern in LEFTOVERS for path in folder.glob(pattern)]


def test_early_stopping_stops_after_its_patience(undisturbed):
    """At this learning rate no evaluation is better than the first."""
    results = read_results(undisturbed("early"))
    assert results["best_step"] == 4 and results["train_epochs"] == 3
    assert [entry["step"] for entry in evaluations(undisturbed("early"))] == [4, 8, 12]


@pytest.mark.parametrize("name", [slow("grouped"), "early"])
def test_a_crash_after_the_training_trains_no_further(values, name, undisturbed, tmp_path, monkeypatch):
    values |= RUNS[name] | {"save_total_limit": 9}
    expected = outcome(undisturbed(name))
    with monkeypatch.context() as patch:
        patch.setattr(finetune.Run, "evaluate", lambda run: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_task("sst2", **values)
    monkeypatch.setattr(FinetuningTrainer, "training_step", None)
    run_task("sst2", **values)
    assert outcome(tmp_path / "run") == expected


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
    """Tags lie at their words although the tokenizer pads on the left."""
    model, tags = tmp_path / "left", kind == "token_classification"
    shutil.copytree(checkpoint, model)
    change_json(model / "tokenizer_config.json", padding_side="left")
    one_file = write_rows(tmp_path / f"rows{suffix}", custom_rows(kind, 40))
    hidden = write_rows(tmp_path / f"hidden{suffix}", custom_rows(kind, 7, labels=False, seed=1))
    folder = tmp_path / "run"
    values = {"kind": kind, "train_file": one_file, "validation_fraction": 0.25, "test_file": hidden, "output_dir": folder}
    values |= {"learning_rate": 2e-2, "num_train_epochs": 8} if tags else {}
    results = run_task("custom", model_name_or_path=model, **values)
    assert results["train_samples"] == 30 and results["eval_samples"] == 10 and results["test_samples"] == 7
    names = ("pearson", "spearmanr", "mean_squared_error") if kind == "regression" else ("accuracy",)
    assert all(f"eval_{name}" in results for name in (*names, *["entity_f1"] * tags))
    lines = read_lines(folder / "predictions_test.jsonl")
    assert [line["index"] for line in lines] == list(range(7)) and "label" not in lines[0]
    assert not (folder / "submission.zip").exists()
    if tags:
        lines = read_lines(folder / "predictions_validation.jsonl")
        right = [pair[0] == pair[1] for line in lines for pair in zip(line["prediction"], line["label"], strict=True)]
        assert np.mean(right) == pytest.approx(results["eval_accuracy"]) and np.mean(right) > 0.95

    alone = {"kind": kind, "test_file": hidden, "do_train": False, "output_dir": tmp_path / "alone"}
    assert run_task("custom", model_name_or_path=folder, **alone) == {"test_samples": 7}
    assert (tmp_path / "alone" / "predictions_test.jsonl").read_bytes() == (folder / "predictions_test.jsonl").read_bytes()
    assert not (tmp_path / "alone" / "model.safetensors").exists()


# ---------------------------------------------------------------------------------------------------------------------
# Any model


@pytest.mark.parametrize(
    ("architecture", "task_name"),
    [("roberta", "mrpc"), ("modernbert", "race"), slow("roberta", "race"), slow("modernbert", "mrpc")],
)
def test_any_auto_model_runs(architecture, task_name, checkpoints, base, tmp_path, caplog, monkeypatch):
    seen, check = [], finetune.Run.check_forward
    monkeypatch.setattr(finetune.Run, "check_forward", lambda run: seen.append(run.args) or check(run))
    folder, data_dir = tmp_path / "run", published(task_name, "hub", base)
    values = {"recipe": "table9", "num_train_epochs": 1, "max_steps": 4, "total_train_batch_size": 8}
    run_task(task_name, model_name_or_path=checkpoints[architecture], data_dir=data_dir, output_dir=folder, **values)
    assert seen[0].ddp_find_unused_parameters is None
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == architecture and "activation_dropout" not in config
    card = (folder / "README.md").read_text()
    assert "| max_steps | 4 |" in card and "num_train_epochs" not in card and "eval_steps" not in card
    assert "activation_dropout" not in card and ("| hidden_dropout_prob | 0.1 |" in card) == (architecture == "roberta")
    unread = {"modernbert": "hidden_dropout_prob, attention_probs_dropout_prob, "}.get(architecture, "")
    assert f"The recipe's {unread}activation_dropout do not apply to {architecture}." in caplog.messages
    check_predictions(TASKS[task_name], folder, data_dir)


def test_a_model_without_a_pad_token_and_an_evaluation_that_is_not_smoothed(sst2, tmp_path, monkeypatch):
    drawn, folder = {}, tmp_path / "run"
    monkeypatch.setattr(finetune, "plot_learning_curve", lambda *args, **kwargs: drawn.update(kwargs))
    values = {"model_name_or_path": write_other(tmp_path / "gpt2", "gpt2"), "label_smoothing_factor": 0.5, "max_steps": 2}
    results = run_task("sst2", data_dir=sst2, output_dir=folder, **values)
    check_predictions(TASKS["sst2"], folder, sst2)
    lines = read_lines(folder / "predictions_validation.jsonl")
    losses = [-np.log(line["probabilities"][line["label"]]) for line in lines]
    assert results["eval_loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert drawn["loss_name"] == "cross-entropy (nats)\nin training with label smoothing 0.5"


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


def test_random_weights_are_new_and_luna_needs_no_search_for_unused_ones(values, checkpoint, tmp_path, monkeypatch):
    """Its heads freeze what they do not read; with two processes, the search would warn of finding none."""
    seen = []
    monkeypatch.setattr(finetune.Run, "check_forward", lambda run: seen.append(run.args))
    run_task("sst2", **values | {"random_weights": True, "learning_rate": 0.0, "max_steps": 1})
    assert seen[0].ddp_find_unused_parameters is False
    weights, start = load_file(tmp_path / "run" / "model.safetensors"), load_file(checkpoint / "model.safetensors")
    shared = [key for key in weights if key in start and weights[key].std() > 0]
    assert shared and not any(torch.equal(weights[key], start[key]) for key in shared)
