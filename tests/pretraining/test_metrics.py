# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Metrics go on where a checkpoint is; a log gets lines and no bars."""

import json

import pytest

from pretraining import metrics


def test_rows_after_the_checkpoint_and_half_lines_go(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": 1, "loss": 3}, {"step": 2, "loss": 2}, {"step": 2, "eval_loss": 2}, {"step": 3, "loss": 1}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 4, "lo', encoding="utf-8")
    assert metrics.read_metrics(path) == rows
    again = metrics.Metrics(path, start_step=2)
    again.write({"step": 3, "loss": 0})
    again.close()
    assert metrics.read_metrics(path) == [*rows[:2], {"step": 3, "loss": 0}]
    assert metrics.read_metrics(tmp_path / "none") == []


@pytest.mark.parametrize(("seconds", "expected"), [(4.9, [1, 3, 5, 7, 8]), (5.0, [1, 2, 3, 4, 5, 6, 7, 8])])
def test_a_log_gets_a_line_every_few_seconds(seconds, expected, capsys, monkeypatch):
    times = iter([0.0, *(seconds * i for i in range(8))])
    monkeypatch.setattr(metrics.time, "monotonic", lambda: next(times))
    progress = metrics.Progress(total=8, done=0, is_shown=True)
    lines = []
    for step in range(1, 9):
        progress.logged(step, "loss 1")
        lines += [step] if capsys.readouterr().err else []
    assert lines == expected
