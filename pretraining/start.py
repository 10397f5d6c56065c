# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Where a run begins: all that can be checked before anything is loaded, the lock, and what an earlier run left."""

import importlib.util
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import yaml
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError
from transformers import PreTrainedConfig

from luna_tools.errors import InputError
from luna_tools.files import hold_lock
from pretraining import checkpoint as ckpt
from pretraining.dataset_format import read_manifest
from pretraining.engines import has_gpu
from pretraining.launcher import launched_engine
from pretraining.model import model_config
from pretraining.plan import check_engine, check_run
from pretraining.recipe import CHANGEABLE_ON_RESUME, Recipe, difference_from_run

TRACKERS = ("tensorboard", "wandb", "trackio")


@dataclass
class Start:
    """Where a run begins: its data, its model, its lock, and what an earlier run left."""

    manifest: dict
    config: PreTrainedConfig
    held: IO | None
    finished: bool
    checkpoint: Path | None
    state: dict

    def place(self) -> tuple:
        """Return what all processes must agree on."""
        return self.finished, self.state["step"], self.manifest["fingerprint"]


def check_environment(recipe: Recipe) -> None:
    """Refuse what this machine cannot do, before anything is loaded.

    Raises:
        InputError: with what to change.
    """
    if recipe.mixed_precision == "fp16" and not has_gpu():
        raise InputError("`mixed_precision` is fp16, which needs a GPU: use bf16 or no.")
    check_engine(recipe, launched_engine())
    if recipe.compile and not (shutil.which("g++") or shutil.which("clang++")):
        raise InputError("`compile` is true, but there is no C++ compiler: install g++ or clang++, or set it to false.")
    for tracker in recipe.report_to:
        if tracker not in TRACKERS:
            raise InputError(f"`report_to` names {tracker!r}: the trackers are {', '.join(TRACKERS)}.")
        if importlib.util.find_spec(tracker) is None:
            raise InputError(f"`report_to` names {tracker}, which is not installed: run `pip install {tracker}`.")


def find_start(recipe: Recipe, accelerator: Accelerator) -> Start:
    """Check recipe, dataset and model, hold the output folder, and find the last checkpoint; all processes together.

    Raises:
        InputError: on all of them, with one sentence for the user.
    """
    start = together(lambda: _find_start(recipe, accelerator))
    if len(set(gather_object([start.place()]))) > 1:
        raise InputError(
            f"The processes see different files in `output_dir` = {recipe.output_dir} or `dataset` = {recipe.dataset}: put "
            "both on a file system that all nodes share."
        )
    return start


def _find_start(recipe: Recipe, accelerator: Accelerator) -> Start:
    manifest = read_manifest(Path(recipe.dataset))
    config = model_config(recipe)
    check_run(recipe, config, manifest, accelerator.num_processes)
    output_dir = Path(recipe.output_dir)
    held = None
    if accelerator.is_main_process:
        output_dir.mkdir(parents=True, exist_ok=True)
        held = hold_lock(output_dir / ".lock")
        if held is None:
            raise InputError(f"Another run is writing to `output_dir` = {output_dir}: wait for it or choose another folder.")
    start = Start(manifest, config, held, finished=False, checkpoint=None, state={"step": 0, "scaler": None})
    results_path = output_dir / "results.json"
    if results_path.exists():
        check_resumable(json.loads(results_path.read_text(encoding="utf-8")), recipe, manifest, output_dir)
        start.finished, start.state = True, {"step": recipe.max_steps}
    elif saved := ckpt.checkpoints(output_dir / "checkpoints"):
        if accelerator.is_main_process:
            ckpt.verify_checkpoint(saved[-1])
        start.checkpoint, start.state = saved[-1], ckpt.load_trainer_state(saved[-1])
        check_resumable(start.state, recipe, manifest, saved[-1])
    return start


def check_resumable(state: dict, recipe: Recipe, manifest: dict, source: Path) -> None:
    """Refuse to go on with a run under another recipe or on other data.

    Raises:
        InputError: naming the first field that differs.
    """
    if difference := difference_from_run(state["recipe"], recipe):
        name, old, new = difference
        raise InputError(
            f"`{name}` is {new!r}, but the run in {source} was started with {old!r}: set it back to go on, or choose "
            "another `output_dir` for a new run."
        )
    if state["dataset_fingerprint"] != manifest["fingerprint"]:
        raise InputError(
            f"The dataset {recipe.dataset} is not the one that the run in {source} was started on: prepare it as it was, "
            "or choose another `output_dir` for a new run."
        )


def allowed_changes(recipe: Recipe) -> list[str]:
    """Write a sentence for each value that the run had at its last start and that alters neither weights nor data."""
    path = Path(recipe.output_dir) / "recipe.yaml"
    if not path.exists():
        return []
    try:
        old, new = dict(yaml.safe_load(path.read_text(encoding="utf-8"))), asdict(recipe)
    except (yaml.YAMLError, TypeError, ValueError):  # it is only a copy
        return []
    return [
        f"warning: `{name}` is {new[name]!r} now and was {old[name]!r} when the run was last started."
        for name in CHANGEABLE_ON_RESUME
        if name in old and old[name] != new[name] and name != "output_dir"
    ]


def together(action: Callable):
    """Run `action` on this process and return its result; if it fails on any process, all raise the same error.

    An error on one process alone would leave the others waiting for it.

    Raises:
        InputError: on all processes.
    """
    result, sentence = None, None
    try:
        result = action()
    except InputError as error:
        sentence = str(error)
    except (OSError, SafetensorError) as error:
        sentence = file_error(error)
    failures = [failure for failure in gather_object([sentence]) if failure is not None]
    if failures:
        raise InputError(failures[0])
    return result


def file_error(error: OSError | SafetensorError) -> str:
    """Say in one sentence which file can't be used."""
    name, reason = getattr(error, "filename", None) or "A file", getattr(error, "strerror", None) or error
    return f"{name} can't be used ({reason}): mend that and give the same command again."
