# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""RACE and CommonsenseQA as their sites publish them, written by hand."""

import json

import pytest

from finetuning.tasks import TASKS
from luna_tools.errors import InputError


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
    loaded = TASKS["race-middle"].load(tmp_path)
    assert loaded.splits["train"]["index"][:] == ["middle9.txt-0", "middle9.txt-1", "middle10.txt-0", "middle10.txt-1"]
    assert loaded.splits["validation"][1] == {
        "index": "middle10.txt-1",
        "passage": "One line.\nTwo.",
        "question": "Who ?",
        "options": ["e", "f", "g", "h"],
        "label": 3,
    }
    with pytest.raises(InputError, match=r"RACE/train/high holds no \*\.txt"):
        TASKS["race"].load(tmp_path)


def test_csqa(tmp_path):
    choices = [{"label": "A", "text": "bank"}, {"label": "B", "text": "mall"}]
    line = {"answerKey": "B", "id": "1afa", "question": {"question_concept": "door", "choices": choices, "stem": "Where ?"}}
    for name in ("train_rand_split", "dev_rand_split"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(line) + "\n")
    del line["answerKey"]
    (tmp_path / "test_rand_split_no_answers.jsonl").write_text(json.dumps(line) + "\n")
    loaded = TASKS["csqa"].load(tmp_path)
    expected = {"index": "1afa", "passage": "", "question": "Where ?", "options": ["bank", "mall"]}
    assert list(loaded.splits["validation"]) == [expected | {"label": 1}]
    assert list(loaded.splits["test"]) == [expected | {"label": -1}]
