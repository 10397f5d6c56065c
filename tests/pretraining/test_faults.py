# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""What goes wrong on real machines: each ends with one sentence, and nothing is lost. Others are in test_train.py."""

import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from accelerate.state import AcceleratorState

from pretraining import checkpoint as ckpt
from pretraining import train
from pretraining.train import read_metrics

ROOT = Path(__file__).parents[2]


def run_program(*arguments) -> int:
    AcceleratorState._reset_state(reset_partial_state=True)
    return train.main([str(argument) for argument in arguments])


def errors(text: str) -> list[str]:
    assert "Traceback" not in text, text
    return [line for line in text.splitlines() if line.startswith("error: ")]


def launch(program: list[str], processes: int = 1, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, *program]
    if processes > 1:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", *program]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, **options)


def weights(output: Path) -> bytes:
    return (output / "model" / "model.safetensors").read_bytes()


def last_checkpoint(output: Path) -> int:
    newest = ckpt.checkpoints(output / "checkpoints")[-1]
    ckpt.verify_checkpoint(newest)
    return ckpt.checkpoint_step(newest)


@pytest.fixture
def own_dataset(prepared, tmp_path):
    """A copy of the dataset that a test may damage."""
    shutil.copytree(prepared, tmp_path / "dataset")
    return tmp_path / "dataset"


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("damage", ["bit", "missing"])
def test_a_damaged_dataset_is_refused_by_file(split, damage, own_dataset, recipe_file, tmp_path, capfd):
    manifest = json.loads((own_dataset / "manifest.json").read_text())
    shard = own_dataset / split / manifest["splits"][split]["shards"][-1]["file"]
    if damage == "missing":
        shard.unlink()
    else:
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 4
        shard.write_bytes(content)
    assert run_program(recipe_file, f"dataset={own_dataset}") == 2
    (sentence,) = errors(capfd.readouterr().err)
    assert sentence.startswith(
        f"error: {shard} is missing or not as it was prepared (its SHA-256 is another): copy it again"
    )
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_processes_divide_the_check_of_the_dataset(own_dataset, monkeypatch):
    manifest = json.loads((own_dataset / "manifest.json").read_text())
    splits = {"train": {"shards": manifest["splits"]["train"]["shards"] * 5}}
    checked = []
    monkeypatch.setattr(
        "pretraining.data.sha256", lambda path: checked.append(path) or splits["train"]["shards"][0]["sha256"]
    )
    train.verify_shards(own_dataset, splits, 1, 2)
    assert len(checked) == 2
    train.verify_shards(own_dataset, splits, 0, 2)
    assert len(checked) == 5


def test_a_lock_that_a_dead_run_left_is_no_obstacle(recipe_file, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").write_text("4242", encoding="utf-8")
    assert run_program(recipe_file) == 0


def test_changes_that_are_allowed_on_resume_are_told(recipe_file, tmp_path, capfd):
    assert run_program(recipe_file) == 0
    run = tmp_path / "run"
    shutil.rmtree(ckpt.checkpoints(run / "checkpoints")[-1])
    (run / "results.json").unlink()
    capfd.readouterr()
    assert run_program(recipe_file, "micro_batch_size=4", "save_steps=2") == 0
    warnings = [line for line in capfd.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert warnings == [
        "warning: `micro_batch_size` is 4 now and was 2 when the run was last started.",
        "warning: `save_steps` is 2 now and was 4 when the run was last started.",
    ]


@pytest.mark.slow
def test_a_clock_that_jumps_changes_nothing(recipe_file, tmp_path, monkeypatch):
    assert run_program(recipe_file) == 0
    jumps, real = itertools.cycle([0, 1e6, -1e6, 5e8]), time.time
    monkeypatch.setattr(time, "time", lambda: real() + next(jumps))
    assert run_program(recipe_file, f"output_dir={tmp_path / 'jumped'}") == 0
    rows = [
        [{name: row[name] for name in row if name not in ("tokens_per_second", "data_wait")} for row in read_metrics(path)]
        for path in (tmp_path / "run" / "metrics.jsonl", tmp_path / "jumped" / "metrics.jsonl")
    ]
    assert rows[0] == rows[1] and weights(tmp_path / "run") == weights(tmp_path / "jumped")
    assert all(row["tokens_per_second"] > 0 for row in read_metrics(tmp_path / "jumped" / "metrics.jsonl") if "loss" in row)


@pytest.mark.slow
def test_a_disk_that_takes_no_more_ends_the_run_and_loses_nothing(recipe_values, recipe_file, tmp_path):
    """The limit is the operating system's own, on the size of a file."""
    whole = tmp_path / "whole"
    assert launch(["-m", "pretraining.train", str(recipe_file), f"output_dir={whole}"]).returncode == 0
    assert launch(["-m", "pretraining.train", str(recipe_file), "max_steps=8", "save_steps=4"]).returncode == 0
    run = tmp_path / "run"
    shutil.rmtree(ckpt.checkpoints(run / "checkpoints")[-1])
    (run / "results.json").unlink()

    size = (run / "checkpoints" / "step-00000004" / "optimizer.safetensors").stat().st_size
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))  # noqa: E731
    done = launch(["-m", "pretraining.train", str(recipe_file)], preexec_fn=limit)
    assert done.returncode == 2
    (sentence,) = errors(done.stderr)
    assert "step-00000008 can't be written" in sentence and "make room and give the same command again" in sentence
    assert last_checkpoint(run) == 4
    assert launch(["-m", "pretraining.train", str(recipe_file)]).returncode == 0
    assert weights(run) == weights(whole)


@pytest.mark.slow
def test_a_signal_to_launcher_and_ranks_saves_once(recipe_values, tmp_path):
    """As schedulers send it: to every process of a step. The launcher passes it on to the ranks, who have it twice."""
    recipe = tmp_path / "long.yaml"
    recipe.write_text(yaml.safe_dump(recipe_values | {"max_steps": 4000, "save_steps": 4000}), encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    run = subprocess.Popen(
        [*command, "-m", "pretraining.train", str(recipe)],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    while len(read_metrics(metrics)) < 3:
        assert run.poll() is None
        time.sleep(0.05)
    launcher = psutil.Process(run.pid)
    for process in [*launcher.children(recursive=True), launcher]:
        process.terminate()
    assert run.wait(timeout=120) != 0
    steps = [row["step"] for row in read_metrics(metrics) if "loss" in row]
    assert last_checkpoint(tmp_path / "run") == steps[-1]


@pytest.mark.slow
def test_a_trace_of_the_last_steps_is_kept(recipe_file, tmp_path):
    done = launch(["-m", "pretraining.train", str(recipe_file), "profile_step=8"])
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "run" / "profile" / "rank-0.json").read_text())["traceEvents"]


@pytest.mark.slow
@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_a_damaged_copy_of_the_recipe_is_no_obstacle(content, recipe_file, tmp_path):
    assert run_program(recipe_file) == 0
    run = tmp_path / "run"
    (run / "results.json").unlink()
    shutil.rmtree(ckpt.checkpoints(run / "checkpoints")[-1])
    (run / "recipe.yaml").write_text(content, encoding="utf-8")
    assert run_program(recipe_file) == 0


# Runs the program with a loss on rank 1 that is no number from step 6 on.
POISON = """
import os, sys
from pretraining import train
real, calls = train.masked_sum, []
def poisoned(model, batch):
    calls.append(1)
    value = real(model, batch)
    return value * float("nan") if os.environ["RANK"] == "1" and len(calls) > 5 * 2 else value
train.masked_sum = poisoned
sys.exit(train.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_loss_that_is_no_number_on_one_rank_ends_all(recipe_file, tmp_path):
    program = tmp_path / "poison.py"
    program.write_text(POISON, encoding="utf-8")
    done = launch([str(program), str(recipe_file)], processes=2)
    assert done.returncode != 0
    found = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(found) == 1 and "The loss is nan at step 6: the last good checkpoint is" in found[0]
    assert last_checkpoint(tmp_path / "run") == 4
    assert launch(["-m", "pretraining.train", str(recipe_file)], processes=2).returncode == 0


# Runs the program with an output folder that rank 1 has for itself, as on nodes without a file system in common.
APART = """
import os, sys
from pretraining import train
sys.exit(train.main([*sys.argv[1:], f"output_dir={os.environ['FOLDER']}-{os.environ['RANK']}"]))
"""


@pytest.mark.slow
def test_ranks_that_see_different_files_are_told(recipe_file, tmp_path, monkeypatch):
    assert run_program(recipe_file, f"output_dir={tmp_path / 'run-1'}") == 0
    program = tmp_path / "apart.py"
    program.write_text(APART, encoding="utf-8")
    monkeypatch.setenv("FOLDER", str(tmp_path / "run"))
    done = launch([str(program), str(recipe_file)], processes=2)
    found = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode != 0 and len(found) == 1
    assert "The processes see different files in `output_dir`" in found[0] and "file system that all nodes share" in found[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["optimizer.safetensors", "config.json"])
def test_a_checkpoint_without_a_file_ends_all_ranks_with_one_sentence(name, recipe_values, recipe_file, tmp_path):
    assert run_program(recipe_file) == 0
    run = tmp_path / "run"
    (run / "results.json").unlink()
    (ckpt.checkpoints(run / "checkpoints")[-1] / name).unlink()
    done = launch(["-m", "pretraining.train", str(recipe_file)], processes=2)
    found = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode != 0 and len(found) == 1
    assert f"lacks its file {name}: remove the folder" in found[0]
    # The remedy of the sentence.
    shutil.rmtree(ckpt.checkpoints(run / "checkpoints")[-1])
    assert run_program(recipe_file) == 0


def test_a_recipe_that_was_saved_by_an_older_version_is_no_obstacle(recipe_file, tmp_path):
    """Its recipe.yaml lacks fields that are new since."""
    assert run_program(recipe_file) == 0
    run = tmp_path / "run"
    (run / "results.json").unlink()
    shutil.rmtree(ckpt.checkpoints(run / "checkpoints")[-1])
    old = yaml.safe_load((run / "recipe.yaml").read_text())
    del old["profile_step"], old["peak_tflops"]
    (run / "recipe.yaml").write_text(yaml.safe_dump(old), encoding="utf-8")
    assert run_program(recipe_file) == 0
