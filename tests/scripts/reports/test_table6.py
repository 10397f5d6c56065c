# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Table 6 is laid out from the folders of real runs."""

import json

import pytest

from luna_tools.errors import InputError
from scripts.reports.table6 import COLUMNS, MODELS, layout
from tests.support.finetuning import published, run_task, write_checkpoint

PAPER = """\
BERT-base 16GB 92.7 88.4 89.6 64.2 53.3
RoBERTa-base 16GB 93.1 90.9 90.9 65.6 -
Linformer-128 16GB 92.4 90.4 90.2 - -
Luna-128, tied kv 16GB 93.1 91.2 90.8 65.2 53.1
RoBERTa-base 160GB 94.8 92.8 91.9 73.5 63.61
Luna-128, tied kv 160GB 94.3 91.5 91.2 71.5 61.48
Luna-128 160GB 94.6 92.2 91.3 72.25 62.08"""


def lines_of(page: str) -> dict[str, list[str]]:
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    return {f"{row[0]} {row[1]}": row[2:] for row in rows if len(row) == 2 + len(COLUMNS)}


def write_run(folder, task, accuracy):
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"task": task}))
    (folder / "all_results.json").write_text(json.dumps({"eval_accuracy": accuracy}))


def test_the_papers_figures_stand_beside_what_is_not_run(tmp_path):
    page = layout(tmp_path)
    lines = lines_of(page)
    for line in PAPER.splitlines():
        *names, a, b, c, d, e = line.split(" ")
        assert lines[" ".join(names)] == [f"{figure} / not run" for figure in (a, b, c, d, e)]
    assert "transformers does not carry it" in page and page.count("--recipe official") == len(MODELS) - 1
    assert "`luna pretrain luna_base_16gb`" in page and "runs/luna_base_16gb/model" in page


def test_runs_are_read_with_the_median_of_their_seeds(tmp_path):
    for seed, accuracy in enumerate((0.91, 0.92, 0.96)):
        write_run(tmp_path / "luna_base_16gb" / "qnli" / f"seed_{seed}", "qnli", accuracy)
    write_run(tmp_path / "luna_base_160gb_untied" / "csqa", "csqa", 0.6208)
    lines = lines_of(layout(tmp_path))
    assert lines["Luna-128, tied kv 16GB"][1] == "91.2 / 92.00 (3 runs)"
    assert lines["Luna-128 160GB"][4] == "62.08 / 62.08" and lines["Luna-128 160GB"][0] == "94.6 / not run"
    write_run(tmp_path / "luna_base_16gb" / "qqp", "sst2", 0.9)
    with pytest.raises(InputError, match="holds a run of the task sst2"):
        layout(tmp_path)


def test_a_run_of_the_program_is_one_of_the_table(tmp_path):
    folder = tmp_path / "runs" / "luna_base_16gb" / "sst2"
    checkpoint = write_checkpoint(tmp_path / "model")
    data_dir = published("sst2", "hub", tmp_path)
    results = run_task("sst2", model_name_or_path=checkpoint, data_dir=data_dir, output_dir=folder, num_train_epochs=1)
    shown = lines_of(layout(tmp_path / "runs"))["Luna-128, tied kv 16GB"][0]
    assert shown == f"93.1 / {100 * results['eval_accuracy']:.2f}"
