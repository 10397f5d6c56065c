# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.

import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from datasets import Dataset
from scipy.special import softmax

from finetuning.data import TaskData
from finetuning.predictions import (
    GLUE_FILES,
    check_submission,
    main,
    merge_submissions,
    write_predictions,
    write_submission,
)
from finetuning.tasks import TASKS, custom_task
from luna_tools.errors import InputError

GLUE = [task for task in TASKS.values() if task.hub_config is not None and task.hub_dataset == "nyu-mll/glue"]
# What GLUE's server takes as the predictions of the classes 0, 1, 2.
GLUE_ANSWERS = {
    "cola": "0 1",
    "sst2": "0 1",
    "mrpc": "0 1",
    "qqp": "0 1",
    "mnli": "entailment neutral contradiction",
    "qnli": "entailment not_entailment",
    "rte": "entailment not_entailment",
    "wnli": "0 1",
}


def _data(task, splits=("test",), rows=7, index=None):
    hidden = float("nan") if task.kind == "regression" else -1
    columns = {"index": index or list(range(rows)), "label": [hidden] * rows}
    if task.kind == "multiple_choice":
        columns |= {"options": [["a", "b", "c", "d"]] * rows}
    return TaskData(task, {split: Dataset.from_dict(columns) for split in splits})


def _logits(task, seed, rows=7):
    random = np.random.default_rng(seed)
    if task.kind == "regression":
        return random.normal(2.5, 9, (rows, 1)).astype(np.float32)
    return random.normal(size=(rows, len(task.labels or "ABCD"))).astype(np.float32)


def _lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _submit(folder, task):
    splits = [split for split, _ in task.submission_files]
    logits = {split: _logits(task, seed) for seed, split in enumerate(splits)}
    return write_submission(folder, _data(task, splits), logits), logits


def test_glue_file_names():
    names = "CoLA SST-2 MRPC STS-B QQP MNLI-m MNLI-mm AX QNLI RTE WNLI".split()
    assert GLUE_FILES == tuple(f"{name}.tsv" for name in names)


@pytest.mark.parametrize("task", GLUE, ids=lambda task: task.name)
def test_glue_submission(tmp_path, task):
    path, logits = _submit(tmp_path / "run", task)
    assert path == tmp_path / "run" / "submission.zip"
    with zipfile.ZipFile(path) as archive:
        texts = {name: archive.read(name).decode() for name in archive.namelist()}
    assert sorted(texts) == sorted(name for _, name in task.submission_files)
    for split, name in task.submission_files:
        if task.kind == "regression":
            expected = [f"{min(max(float(value), 0), 5):.3f}" for value in logits[split][:, 0]]
            assert {"0.000", "5.000"} < set(expected)
        else:
            expected = [GLUE_ANSWERS[task.name].split()[label] for label in logits[split].argmax(1)]
        lines = ["index\tprediction", *(f"{row}\t{answer}" for row, answer in enumerate(expected))]
        assert texts[name] == "\n".join(lines) + "\n"
        assert (tmp_path / "run" / "submission" / name).read_bytes().decode() == texts[name]


@pytest.mark.parametrize(
    ("name", "file", "separator"),
    [("csqa", "test_predictions.csv", ","), ("race", "RACE.tsv", "\t"), ("race-high", "RACE-H.tsv", "\t")],
)
def test_multiple_choice_submission(tmp_path, name, file, separator):
    data = _data(TASKS[name], rows=3, index=["b7", "a1", "c2"])
    write_submission(tmp_path, data, {"test": np.eye(4)[[3, 0, 1]]})
    lines = [("id", "answer"), ("b7", "D"), ("a1", "A"), ("c2", "B")]
    assert (tmp_path / "submission" / file).read_text() == "".join(separator.join(line) + "\n" for line in lines)


def test_a_test_split_that_is_not_there_is_left_out(tmp_path):
    data = _data(TASKS["mnli"], ("test_matched", "test_mismatched"))
    logits = {split: _logits(TASKS["mnli"], 0) for split in data.splits}
    path = write_submission(tmp_path, data, logits)
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["MNLI-m.tsv", "MNLI-mm.tsv"]


def test_equal_predictions_make_equal_zips(tmp_path, monkeypatch):
    first, _ = _submit(tmp_path / "a", TASKS["mnli"])
    monkeypatch.setattr("time.time", lambda: 2e9)
    second, _ = _submit(tmp_path / "b", TASKS["mnli"])
    assert first.read_bytes() == second.read_bytes()


def test_glue_wants_every_row_in_order(caplog):
    data = _data(TASKS["rte"], rows=3, index=[0, 2, 1])
    message = r"^`index` of row 2 of the split 'test' is 2, but GLUE's server wants 1: predict all rows of RTE\.tsv"
    with pytest.raises(InputError, match=message):
        check_submission(data)
    check_submission(_data(TASKS["wnli"], rows=146))
    check_submission(_data(TASKS["race"], rows=3, index=["b7", "a1", "c2"]))
    assert not caplog.records
    check_submission(_data(TASKS["mnli"], ("test_matched", "diagnostic"), rows=1104))
    assert caplog.messages == ["The split 'test_matched' has 1104 rows, but GLUE's server wants 9796 in MNLI-m.tsv."]


@pytest.mark.parametrize("task", GLUE, ids=lambda task: task.name)
def test_every_glue_file_has_its_number_of_rows(task):
    assert len(task.submission_rows) == len(task.submission_files) and min(task.submission_rows) >= 146


def test_merged_submissions(tmp_path):
    for task in GLUE:
        _submit(tmp_path / task.name, task)
    path = tmp_path / "glue.zip"
    assert merge_submissions([tmp_path / "mnli", tmp_path / "stsb"], path) == [
        name for name in GLUE_FILES if not name.startswith(("MNLI", "AX", "STS-B"))
    ]
    assert merge_submissions([tmp_path / task.name for task in GLUE], path) == []
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == sorted(GLUE_FILES)
        assert archive.read("QQP.tsv") == (tmp_path / "qqp" / "submission" / "QQP.tsv").read_bytes()


def test_merging_from_the_command_line(tmp_path, capsys):
    _submit(tmp_path / "mnli", TASKS["mnli"])
    assert main([str(tmp_path / "glue.zip"), str(tmp_path / "mnli")]) == 0
    assert capsys.readouterr().out.endswith(
        "wants: CoLA.tsv, SST-2.tsv, MRPC.tsv, STS-B.tsv, QQP.tsv, QNLI.tsv, RTE.tsv, WNLI.tsv.\n"
    )
    assert main([str(tmp_path / "new" / "folder" / "glue.zip"), str(tmp_path / "mnli")]) == 0
    assert (tmp_path / "new" / "folder" / "glue.zip").read_bytes() == (tmp_path / "glue.zip").read_bytes()


def test_wrong_command_lines_of_merging(tmp_path, capsys):
    _submit(tmp_path / "mnli", TASKS["mnli"])
    (tmp_path / "a_folder.zip").mkdir()
    for path, folder, sentence in (
        ("glue.zip", "", f"{tmp_path} has no GLUE submission in `submission/`: give the output folder of a GLUE run."),
        ("mnli", "mnli", f"{tmp_path}/mnli is not named as a zip: give a file that ends in .zip, and then the folders."),
        ("a_folder.zip", "mnli", f"{tmp_path}/a_folder.zip cannot be used: Is a directory."),
    ):
        assert main([str(tmp_path / path), str(tmp_path / folder)]) == 2
        assert capsys.readouterr().err == f"error: {sentence}\n"


def test_submissions_that_cannot_be_merged(tmp_path):
    _submit(tmp_path / "a", TASKS["cola"])
    _submit(tmp_path / "b", TASKS["cola"])
    _submit(tmp_path / "c", TASKS["race"])
    with pytest.raises(InputError, match=r"a and .*b both have a CoLA\.tsv: give one run for each task\.$"):
        merge_submissions([tmp_path / "a", tmp_path / "b"], tmp_path / "glue.zip")
    with pytest.raises(InputError, match=r"c has no GLUE submission in `submission/`"):
        merge_submissions([tmp_path / "a", tmp_path / "c"], tmp_path / "glue.zip")
    assert not (tmp_path / "glue.zip").exists()


def test_predicted_classes(tmp_path):
    logits = np.array([[0.0, 1.0, 3.0], [5.0, 0.0, 0.0]], np.float32)
    columns = {"index": [4, 9], "text": ["x", "y"], "label": [1, -1]}
    data = TaskData(TASKS["mnli"], {"validation_matched": Dataset.from_dict(columns)})
    path = write_predictions(tmp_path / "run", data, "validation_matched", logits)
    assert path == tmp_path / "run" / "predictions_validation_matched.jsonl"
    first, second = _lines(path)
    assert list(first) == ["index", "prediction", "probabilities", "label"]
    assert (first["index"], first["prediction"], first["label"]) == (4, "contradiction", "neutral")
    assert list(first["probabilities"]) == ["entailment", "neutral", "contradiction"]
    np.testing.assert_allclose(list(first["probabilities"].values()), softmax([0.0, 1.0, 3.0]), rtol=1e-5)
    assert second["prediction"] == "entailment" and "label" not in second


def test_predicted_values(tmp_path):
    columns = {"index": [0, 1], "text": ["x", "y"], "label": np.array([3.8, np.nan], np.float32)}
    data = TaskData(TASKS["stsb"], {"validation": Dataset.from_dict(columns)})
    path = write_predictions(tmp_path, data, "validation", np.array([[2.345], [7]], np.float32))
    assert _lines(path) == [{"index": 0, "prediction": 2.345, "label": 3.8}, {"index": 1, "prediction": 7.0}]


def test_predicted_options(tmp_path):
    """The second question has two options only; the Trainer fills its scores up with -100."""
    columns = {"index": ["q1", "é\t2"], "options": [["a", "b", "c"], ["d", "e"]], "label": [2, 0]}
    data = TaskData(custom_task("multiple_choice"), {"test": Dataset.from_dict(columns)})
    path = write_predictions(tmp_path, data, "test", np.array([[0, 0, 9], [-102, -101, -100]], np.float32))
    first, second = _lines(path)
    assert (first["prediction"], first["label"], list(first["probabilities"])) == ("C", "C", ["A", "B", "C"])
    assert second == {"index": "é\t2", "prediction": "B", "probabilities": {"A": 0.268941, "B": 0.731059}, "label": "A"}


def test_predicted_tags(tmp_path):
    """The first row's words start at the tokens 1, 2 and 4, and its fourth was cut off; the second row is hidden."""
    task = custom_task("token_classification", labels=("O", "B-X"))
    columns = {"index": [0, 1], "words": [["a", "b", "c", "d"], ["e"]], "label": [[0, 1, 1, 0], []]}
    data = TaskData(task, {"test": Dataset.from_dict(columns)})
    logits = np.zeros((2, 6, 2), np.float32)
    logits[0, [1, 4], 1] = 2
    logits[1, 5, 1] = -2
    first, second = _lines(write_predictions(tmp_path, data, "test", logits, [[1, 2, 4, -1], [5]]))
    assert first["prediction"] == ["B-X", "O", "B-X", None]
    assert first["probabilities"] == [0.880797, 0.5, 0.880797, None]
    assert first["label"] == ["O", "B-X", "B-X", "O"]
    assert second == {"index": 1, "prediction": ["O"], "probabilities": [0.880797]}


def test_scores_of_another_number_of_rows(tmp_path):
    with pytest.raises(ValueError, match="zip"):
        write_predictions(tmp_path, _data(TASKS["cola"]), "test", np.zeros((6, 2)))


def test_predictions_of_a_diverged_model(tmp_path):
    task = replace(TASKS["cola"], submission_files=())
    with pytest.raises(InputError, match="lower learning_rate"):
        write_predictions(tmp_path, _data(task), "test", np.full((7, 2), np.nan))
