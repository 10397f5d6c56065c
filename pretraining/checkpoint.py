# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Checkpoints that are complete or absent.

A checkpoint is written beside its final name, flushed to disk, sealed by a file COMPLETE with the size and SHA-256 of
every other file, and renamed. Whatever moment the machine dies at, a folder named `step-*` is whole. All tensors are
safetensors; no pickle is written or read.
"""

import json
import re
import shutil
from pathlib import Path

import torch
from huggingface_hub import ModelCard
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from luna_tools.errors import InputError
from luna_tools.files import flush, sha256, write_json

SEAL = "COMPLETE"
STEP_NAME = re.compile(r"step-(\d+)")


def save_checkpoint(
    folder: Path,
    model: PreTrainedModel,
    weights: dict[str, torch.Tensor],
    optimizer_state: dict[str, torch.Tensor],
    tokenizer: PreTrainedTokenizerBase,
    trainer_state: dict,
    limit: int,
    card: ModelCard | None = None,
) -> Path:
    """Write `folder`/step-NNNNNNNN, itself a `from_pretrained` folder, and prune all but the newest `limit`.

    Args:
        model: whose class and configuration to save; its own weights are not read.
        weights, optimizer_state: whole, by parameter name.
        card: README.md, in place of the one that some models write.

    Raises:
        InputError: the disk is full or not writable; older checkpoints are untouched.
    """
    final = folder / f"step-{trainer_state['step']:08d}"
    if (final / SEAL).exists():
        return final
    try:
        write_checkpoint(final, model, weights, optimizer_state, tokenizer, trainer_state, card)
        for old in checkpoints(folder)[:-limit]:
            # Unsealed first: a removal that is cut short must not leave a folder that looks whole.
            (old / SEAL).unlink()
            shutil.rmtree(old)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"The checkpoint {final} can't be written ({error}): make room and give the same command again; the "
            "checkpoints before it are untouched."
        ) from error
    return final


def write_checkpoint(final: Path, model, weights, optimizer_state, tokenizer, trainer_state: dict, card) -> None:
    """Write a checkpoint beside its name, seal it, and rename it."""
    folder = final.parent
    folder.mkdir(parents=True, exist_ok=True)
    remove_unfinished(folder)
    beside = folder / f".tmp-{final.name}"
    beside.mkdir()
    model.save_pretrained(beside, state_dict=weights)
    tokenizer.save_pretrained(beside)
    if card is not None:
        card.save(beside / "README.md")
    save_file(optimizer_state, beside / "optimizer.safetensors")
    (beside / "trainer_state.json").write_text(json.dumps(trainer_state, indent=2) + "\n", encoding="utf-8")
    files = sorted(path for path in beside.rglob("*") if path.is_file())
    for path in files:
        flush(path)
    seal = {str(path.relative_to(beside)): {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in files}
    write_json(beside / SEAL, seal)
    beside.rename(final)
    flush(folder)


def remove_unfinished(folder: Path) -> None:
    """Remove what an interrupted save or removal left behind."""
    for path in folder.iterdir():
        if path.name.startswith(".tmp-step-") or (STEP_NAME.fullmatch(path.name) and not (path / SEAL).exists()):
            shutil.rmtree(path)


def checkpoints(folder: Path) -> list[Path]:
    """List the sealed checkpoints of a folder, oldest first."""
    if not folder.is_dir():
        return []
    sealed = [path for path in folder.iterdir() if STEP_NAME.fullmatch(path.name) and (path / SEAL).exists()]
    return sorted(sealed, key=checkpoint_step)


def checkpoint_step(checkpoint: Path) -> int:
    """Return the number in a checkpoint's name."""
    return int(STEP_NAME.fullmatch(checkpoint.name)[1])


def verify_checkpoint(checkpoint: Path) -> None:
    """Compare every file with the seal.

    Raises:
        InputError: naming the first file that is missing or damaged.
    """
    remedy = f"remove the folder {checkpoint} to resume from the checkpoint before it"
    for name, expected in json.loads((checkpoint / SEAL).read_text(encoding="utf-8")).items():
        path = checkpoint / name
        if not path.exists():
            raise InputError(f"The checkpoint {checkpoint} lacks its file {name}: {remedy}.")
        if path.stat().st_size != expected["bytes"] or sha256(path) != expected["sha256"]:
            raise InputError(f"The file {name} of the checkpoint {checkpoint} is damaged: {remedy}.")


def load_trainer_state(checkpoint: Path) -> dict:
    """Load what `save_checkpoint` was given as `trainer_state`."""
    return json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))


def load_optimizer_state(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Load optimizer state by parameter name: `name.exp_avg`, `name.exp_avg_sq`, `name.step`."""
    return load_file(checkpoint / "optimizer.safetensors")
