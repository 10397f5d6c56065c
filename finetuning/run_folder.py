# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The folder of a run: what tells it from other runs, its checkpoints while it trains, and its results."""

import functools
import hashlib
import json
import logging
import math
import os
from dataclasses import asdict
from pathlib import Path

from transformers import TrainingArguments

from finetuning.arguments import Arguments
from luna_tools.errors import InputError

logger = logging.getLogger(__name__)

# What the result of a run depends on, besides all options of the model and the data.
TRAINING_FIELDS = (
    "seed data_seed learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps num_train_epochs max_steps "
    "weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm label_smoothing_factor neftune_noise_alpha optim "
    "optim_args bf16 fp16 eval_strategy eval_steps eval_delay save_strategy save_steps load_best_model_at_end "
    "metric_for_best_model"
).split()
# Options that name a file or folder, which a run that is published must not tell in full.
PATHS = ("model_name_or_path", "data_dir", "train_file", "validation_file", "test_file")


def describe(arguments: Arguments, args: TrainingArguments) -> dict:
    """The arguments that the result depends on, as plain values: equal for runs that are the same run.

    `digests` has one for the local files of each split, and one for those of the checkpoint: paths say only their names.
    """
    values = {"task": arguments.task.name, **asdict(arguments.model), **asdict(arguments.data)}
    values |= {name: public_path(values[name]) for name in PATHS if values[name] is not None}
    values |= {
        "total_train_batch_size": args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "early_stopping_patience": arguments.run.early_stopping_patience,
        "group_by_length": arguments.run.group_by_length,
        "do_train": arguments.run.do_train,
    }
    values |= {name: getattr(args, name) for name in TRAINING_FIELDS}
    for name in ("lr_scheduler_kwargs", "model"):
        values[name] = values[name] or None  # as runs of earlier versions say it
    values |= {"digests": digests(arguments)}
    return json.loads(json.dumps(values, default=str))


def public_path(path: str) -> str:
    """A path as a card may show it: an absolute one, or one that leads out of the folder, by its last part alone."""
    return Path(path).name if Path(path).is_absolute() or ".." in Path(path).parts else path


def digests(arguments: Arguments) -> dict[str, str]:
    """SHA-256 of what the run reads from the disk, by split, and of "model"; nothing for what lies on the Hub."""
    model = arguments.model
    files = {"model": [] if model.is_new else checkpoint_files(Path(model.model_name_or_path))}
    if arguments.task.name == "custom":
        files |= arguments.task.files(arguments.data)
    elif arguments.data.data_dir:
        files |= arguments.task.files(Path(arguments.data.data_dir))
    return {name: digest(paths) for name, paths in files.items() if paths}


def checkpoint_files(checkpoint: Path) -> list[Path]:
    """The files of a model's folder that its results depend on."""
    patterns = ("config.json", "*.safetensors", "pytorch_model*.bin", "tokenizer*")
    return [path for pattern in patterns for path in sorted(checkpoint.glob(pattern)) if path.is_file()]


def digest(paths: list[Path]) -> str:
    """SHA-256 of several files."""
    whole = hashlib.sha256()
    for path in paths:
        try:
            whole.update(file_digest(path, os.stat(path).st_mtime_ns))
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror}): give a readable file.") from error
    return whole.hexdigest()


@functools.cache  # the runs of a sweep share their files
def file_digest(path: Path, modified: int) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def read_results(output_dir: Path) -> dict | None:
    """The results of a finished run, or None."""
    path = output_dir / "all_results.json"
    return read_json(path) if path.is_file() else None


def read_json(path: Path) -> dict:
    """A file of a run.

    Raises:
        InputError: it is not a JSON object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise InputError(f"{path} is not a JSON object: choose another --output_dir, or remove the folder.")
    return values


def check_output_dir(output_dir: Path, description: dict) -> None:
    """Refuse a folder that holds another run's checkpoints or results; of a run that failed before, nothing is lost.

    Raises:
        InputError: naming the first option or the first files that differ.
    """
    place = next(path for path in (output_dir, *output_dir.absolute().parents) if path.exists())
    if not place.is_dir():
        raise InputError(f"--output_dir is {output_dir}, but {place} is a file: choose another --output_dir.")
    path = output_dir / "run.json"
    if not path.is_file():
        if output_dir.is_dir() and any(output_dir.iterdir()):
            raise InputError(f"{output_dir} holds files that are not a run of this program: choose another --output_dir.")
        return
    there = read_json(path)
    changed = [name for name in description if there.get(name) != description[name]]
    if not changed or (read_results(output_dir) is None and find_checkpoint(output_dir) is None):
        return
    remedy = "choose another --output_dir, or remove the folder"
    if changed != ["digests"]:
        name = changed[0]
        raise InputError(
            f"{output_dir} holds a run with {name} {there.get(name)!r}, and this one has {description[name]!r}: {remedy}."
        )
    old, new = there.get("digests", {}), description["digests"]
    name = next(name for name in old | new if old.get(name) != new.get(name))
    raise InputError(f"The files of `{name}` have changed since the run in {output_dir}: {remedy}.")


def list_checkpoints(output_dir: Path, last: float = math.inf) -> list[Path]:
    """The Trainer's checkpoints up to step `last`, the newest first; some may not be whole."""
    steps = {path: path.name.removeprefix("checkpoint-") for path in output_dir.glob("checkpoint-*")}
    steps = {path: int(step) for path, step in steps.items() if step.isdecimal() and int(step) <= last}
    return sorted(steps, key=steps.get, reverse=True)


def find_checkpoint(output_dir: Path, world_size: int | None = None) -> Path | None:
    """The newest whole checkpoint; a kill while the Trainer writes one leaves it without its last file.

    Args:
        world_size: the number of processes that go on from it; None takes one of any number.
    """
    needed = ["model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json"]
    if world_size is not None:
        needed += ["rng_state.pth"] if world_size == 1 else [f"rng_state_{rank}.pth" for rank in range(world_size)]
    for folder in list_checkpoints(output_dir):
        missing = [name for name in needed if not (folder / name).is_file()]
        try:
            json.loads((folder / "trainer_state.json").read_text())
        except (OSError, ValueError):
            missing = missing or ["trainer_state.json"]
        if not missing:
            return folder
        logger.warning("%s is incomplete (%s) and is not used.", folder, missing[0])
    return None
