# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""What a model predicts, line by line, and the files that the benchmarks' servers want."""

import zipfile

import numpy as np
import pytest
from datasets import Dataset

from finetuning.predictions import write_predictions, write_submission
from finetuning.tasks import TASKS, TaskData, custom_task
from finetuning.tasks.glue import GLUE_FILES, GLUE_TASKS
from luna_tools.command_line import main as luna
from tests.support.finetuning import read_lines

GLUE = "index\tprediction"
SUBMISSIONS = [  # what the servers want: task, files, header, the answers of the classes or options 0, 1, 2
    ("cola", "CoLA.tsv", GLUE, "0 1"),
    ("sst2", "SST-2.tsv", GLUE, "0 1"),
    ("mrpc", "MRPC.tsv", GLUE, "0 1"),
    ("stsb", "STS-B.tsv", GLUE, None),
    ("qqp", "QQP.tsv", GLUE, "0 1"),
    ("mnli", "MNLI-m.tsv MNLI-mm.tsv AX.tsv", GLUE, "entailment neutral contradiction"),
    ("qnli", "QNLI.tsv", GLUE, "entailment not_entailment"),
    ("rte", "RTE.tsv", GLUE, "entailment not_entailment"),
    ("wnli", "WNLI.tsv", GLUE, "0 1"),
    ("race", "RACE.tsv", "id\tanswer", "A B C D"),
    ("race-middle", "RACE-M.tsv", "id\tanswer", "A B C D"),
    ("race-high", "RACE-H.tsv", "id\tanswer", "A B C D"),
    ("csqa", "test_predictions.csv", "id,answer", "A B C D E"),
]


def _data(task, splits=("test",), rows=7):
    columns = {"index": list(range(rows)), "label": [-1] * rows, "text": ["x"] * rows}
    if task.kind == "multiple_choice":
        columns["index"] = [f"é{row}" for row in range(rows)]
    return TaskData(task, {split: Dataset.from_dict(columns) for split in splits})


def _logits(task, seed, rows=7):
    random = np.random.default_rng(seed)
    if task.kind == "regression":
        return random.normal(2.5, 9, (rows, 1)).astype(np.float32)
    return random.normal(size=(rows, len(task.labels or "ABCD"))).astype(np.float32)


def _submit(folder, task):
    splits = [split for split, _ in task.submission_files]
    logits = {split: _logits(task, seed) for seed, split in enumerate(splits)}
    return write_submission(folder, _data(task, splits), logits), logits


@pytest.mark.parametrize(("name", "files", "header", "answers"), SUBMISSIONS)
def test_submissions(tmp_path, name, files, header, answers):
    path, logits = _submit(tmp_path, TASKS[name])
    assert path == tmp_path / "submission.zip"
    texts = {}
    for file, scores in zip(files.split(), logits.values(), strict=True):
        if answers:
            expected = [answers.split()[option] for option in scores.argmax(1)]
        else:
            expected = [f"{min(max(float(value), 0), 5):.3f}" for value in scores[:, 0]]
            assert {"0.000", "5.000"} < set(expected)
        separator, letter = ("," if "," in header else "\t"), "é" * header.startswith("id")
        lines = [header, *(f"{letter}{row}{separator}{answer}" for row, answer in enumerate(expected))]
        texts[file] = ("\n".join(lines) + "\n").encode()
    with zipfile.ZipFile(path) as archive:
        assert {file: archive.read(file) for file in archive.namelist()} == texts
    assert {file.name: file.read_bytes() for file in (tmp_path / "submission").iterdir()} == texts


def test_every_task_has_its_submission():
    assert [row[0] for row in SUBMISSIONS] == [name for name, task in TASKS.items() if task.submission_files]


def test_a_test_split_that_is_not_there_is_left_out(tmp_path):
    data = _data(TASKS["mnli"], ("test_matched", "test_mismatched"))
    path = write_submission(tmp_path, data, {split: _logits(TASKS["mnli"], 0) for split in data.splits})
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["MNLI-m.tsv", "MNLI-mm.tsv"]


def test_merged_submissions(tmp_path, capsys, monkeypatch):
    for task in GLUE_TASKS:
        _submit(tmp_path / task.name, task)
    folders, path = [str(tmp_path / task.name) for task in GLUE_TASKS], tmp_path / "new" / "glue.zip"
    assert luna(["merge", str(path), *folders[:5]]) == 0
    assert capsys.readouterr().out == (
        f"Wrote {path}; GLUE's server also wants: MNLI-m.tsv, MNLI-mm.tsv, AX.tsv, QNLI.tsv, RTE.tsv, WNLI.tsv.\n"
    )
    assert luna(["merge", str(path), *folders]) == 0 and capsys.readouterr().out.endswith("wants: nothing more.\n")
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == sorted(GLUE_FILES)
        assert archive.read("QQP.tsv") == (tmp_path / "qqp" / "submission" / "QQP.tsv").read_bytes()
    monkeypatch.setattr("time.time", lambda: 2e9)
    assert luna(["merge", str(tmp_path / "later.zip"), *folders]) == 0
    assert (tmp_path / "later.zip").read_bytes() == path.read_bytes()  # equal predictions, equal bytes


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["glue.zip", "."], ". has no GLUE submission in `submission/`: give the output folder of a GLUE run."),
        (["glue.zip", "race"], "race has no GLUE submission in `submission/`: give the output folder of a GLUE run."),
        (["glue.zip", "cola", "again"], "cola and again both have a CoLA.tsv: give one run for each task."),
        (["cola", "cola"], "cola is not named as a zip: give a file that ends in .zip, and then the folders."),
        (["a_folder.zip", "cola"], "a_folder.zip cannot be used (Is a directory): "),
        (["glue.zip"], "Name the zip to write, and then the output folders of runs, one for each task"),
        (["glue.zip", "cola", "--force"], "'--force' is not an option; "),
    ],
)
def test_wrong_command_lines_of_merging(tmp_path, monkeypatch, capsys, argv, sentence):
    monkeypatch.chdir(tmp_path)
    for folder, name in (("cola", "cola"), ("again", "cola"), ("race", "race")):
        _submit(tmp_path / folder, TASKS[name])
    (tmp_path / "a_folder.zip").mkdir()
    assert luna(["merge", *argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {sentence}") and error.count("\n") == 1
    assert not (tmp_path / "glue.zip").exists()


def _predict(folder, task, columns, logits, first_tokens=None):
    data = TaskData(task, {"test": Dataset.from_dict(columns)})
    path = write_predictions(folder / "run", data, "test", logits, first_tokens)
    assert path == folder / "run" / "predictions_test.jsonl"
    return read_lines(path)


def test_predicted_values(tmp_path):
    columns = {"index": [0, 1], "text": ["x", "y"], "text_pair": ["z", "z"], "label": np.array([3.8, np.nan], np.float32)}
    assert _predict(tmp_path, TASKS["stsb"], columns, np.array([[2.345], [7]], np.float32)) == [
        {"index": 0, "text": "x", "text_pair": "z", "prediction": 2.345, "label": 3.8},
        {"index": 1, "text": "y", "text_pair": "z", "prediction": 7.0},
    ]


def test_predicted_options(tmp_path):
    """The second question has two options only; the Trainer fills its scores up with -100."""
    texts = {"passage": ["p", ""], "question": ["Who?", "é?"], "options": [["a", "b", "c"], ["d", "e"]]}
    columns = {"index": ["q1", "é\t2"], **texts, "label": [2, 0]}
    logits = np.array([[0, 0, 9], [-102, -101, -100]], np.float32)
    first, second = _predict(tmp_path, custom_task("multiple_choice"), columns, logits)
    assert (first["prediction"], first["label"], list(first["probabilities"])) == ("C", "C", ["A", "B", "C"])
    assert (first["passage"], first["question"], first["options"]) == ("p", "Who?", ["a", "b", "c"])
    probabilities = {"A": 0.268941, "B": 0.731059}
    expected = {"index": "é\t2", "passage": "", "question": "é?", "options": ["d", "e"], "prediction": "B"}
    assert second == expected | {"probabilities": probabilities, "label": "A"}


def test_predicted_tags(tmp_path):
    """The first row's words start at the tokens 1, 2 and 4, and its fourth was cut off; the second row is hidden."""
    task = custom_task("token_classification", labels=("O", "B-X"))
    columns = {"index": [0, 1], "words": [["a", "b", "c", "d"], ["e"]], "label": [[0, 1, 1, 0], []]}
    logits = np.zeros((2, 6, 2), np.float32)
    logits[0, [1, 4], 1] = 2
    logits[1, 5, 1] = -2
    first, second = _predict(tmp_path, task, columns, logits, [[1, 2, 4, -1], [5]])
    assert first["words"] == ["a", "b", "c", "d"]
    assert first["prediction"] == ["B-X", "O", "B-X", None]
    assert first["probabilities"] == [0.880797, 0.5, 0.880797, None]
    assert first["label"] == ["O", "B-X", "B-X", "O"]
    assert second == {"index": 1, "words": ["e"], "prediction": ["O"], "probabilities": [0.880797]}


def test_long_texts_are_shown_by_their_start(tmp_path):
    columns = {"index": [0, 1], "text": ["é" * 500, "é" * 501], "label": [0, 1]}
    first, second = _predict(tmp_path, TASKS["sst2"], columns, np.eye(2, dtype=np.float32))
    assert (first["text"], second["text"]) == ("é" * 500, "é" * 500 + " …")


@pytest.mark.parametrize(
    ("logits", "sentence"), [(np.zeros((6, 2)), "zip"), (np.full((7, 2), np.nan), "lower learning_rate")]
)
def test_scores_of_other_rows_or_of_a_diverged_model(tmp_path, logits, sentence):
    with pytest.raises(ValueError, match=sentence):
        write_predictions(tmp_path, _data(TASKS["cola"]), "test", logits)
