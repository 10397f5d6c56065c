# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""GLUE's own files, with what is odd in them, and what its server wants."""

import pytest
from datasets import Dataset

from finetuning.tasks import TASKS, TaskData
from finetuning.tasks.glue import GLUE_FILES, GLUE_TASKS
from luna_tools.errors import InputError
from tests.support.published_files import rows_of, write_published


def test_cola(tmp_path):
    (tmp_path / "train.tsv").write_text('gj04\t1\t\t"Our friends" won\'t buy.\ngj04\t0\t*\tOne\u2028more.\n', "utf-8")
    (tmp_path / "dev.tsv").write_text("gj04\t1\t\tThe NA sailors rode.\n")
    (tmp_path / "test.tsv").write_text("index\tsentence\n0\tBill whistled.\n")
    assert rows_of(TASKS["cola"].load(tmp_path)) == {
        "train": [
            {"index": 0, "text": '"Our friends" won\'t buy.', "label": 1},
            {"index": 1, "text": "One\u2028more.", "label": 0},
        ],
        "validation": [{"index": 0, "text": "The NA sailors rode.", "label": 1}],
        "test": [{"index": 0, "text": "Bill whistled.", "label": -1}],
    }


def test_windows_line_ends_and_byte_order_mark(tmp_path):
    write_published("rte", tmp_path, "original", rows=8)
    before = rows_of(TASKS["rte"].load(tmp_path))
    for path in tmp_path.rglob("*.tsv"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert rows_of(TASKS["rte"].load(tmp_path)) == before


def test_truncated_training_rows_are_left_out_with_one_warning(tmp_path, caplog):
    write_published("qqp", tmp_path, "original", rows=8)
    path = tmp_path / "QQP" / "train.tsv"
    path.write_text(path.read_text() + "9\tqid1\tqid2\ta question without another\n10\tq\tq\ta\tb\t\n")
    loaded = TASKS["qqp"].load(tmp_path)
    assert loaded.splits["train"]["index"][:] == [0, 2, 3, 4, 5, 6, 7]
    assert loaded.splits["train"][0]["text_pair"] == ""
    assert caplog.messages == [
        f"Rows that lack fields and are left out, as in the Hub's version: 3, the first is {path}, line 3."
    ]


def test_the_diagnostic_set_may_lie_in_several_places_and_is_optional(tmp_path):
    write_published("mnli", tmp_path, "original", rows=9)
    path, expected = tmp_path / "diagnostic" / "diagnostic.tsv", rows_of(TASKS["mnli"].load(tmp_path))
    for place in ("AX/AX.tsv", "AX.tsv", "MNLI/diagnostic.tsv"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        path = path.rename(tmp_path / place)
        assert rows_of(TASKS["mnli"].load(tmp_path)) == expected
    path.unlink()
    assert "diagnostic" not in TASKS["mnli"].load(tmp_path).splits


# ---- The server ----


@pytest.mark.parametrize("task", GLUE_TASKS, ids=lambda task: task.name)
def test_test_rows_keep_the_index_of_their_file_and_must_be_all_there(tmp_path, caplog, task):
    write_published(task.name, tmp_path, "original", rows=12)
    loaded = task.load(tmp_path)
    caplog.clear()
    task.check_submission(loaded)  # in order, but fewer than the server wants
    assert caplog.messages == [
        f"The split {split!r} has 6 rows, but GLUE's server wants {wanted} in {name}."
        for (split, name), wanted in zip(task.submission_files, task.submission_rows, strict=True)
    ]
    for path in tmp_path.glob("*/test*.tsv"):
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        path.write_text("\n".join(lines[:2] + lines[3:]))
    loaded, split = task.load(tmp_path), task.test_splits[0]
    assert loaded.splits[split]["index"][:] == [0, 2, 3, 4, 5]
    message = f"^`index` of row 2 of the split '{split}' is 2, but GLUE's server wants 1: predict all rows of .*tsv"
    with pytest.raises(InputError, match=message):
        task.check_submission(loaded)


def test_all_test_rows_in_order_are_accepted_in_silence(caplog):
    TASKS["wnli"].check_submission(TaskData(TASKS["wnli"], {"test": Dataset.from_dict({"index": range(146)})}))
    by_ids = TaskData(TASKS["race"], {"test": Dataset.from_dict({"index": ["b7", "a1", "c2"]})})
    TASKS["race"].check_submission(by_ids)
    assert not caplog.messages


def test_files_and_rows_that_the_server_wants():
    """As counted in the published test sets."""
    wanted = {"CoLA": 1063, "SST-2": 1821, "MRPC": 1725, "STS-B": 1379, "QQP": 390_965, "MNLI-m": 9796, "MNLI-mm": 9847}
    wanted |= {"AX": 1104, "QNLI": 5463, "RTE": 3000, "WNLI": 146}
    assert GLUE_FILES == tuple(f"{name}.tsv" for name in wanted)
    assert [count for task in GLUE_TASKS for count in task.submission_rows] == list(wanted.values())
