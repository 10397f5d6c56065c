# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Model folders on the Hub: what is uploaded of one, and checkpoints as revisions while training goes on."""

import sys
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.utils import DEFAULT_IGNORE_PATTERNS, filter_repo_objects

from luna_tools.cards import named_card
from luna_tools.errors import one_line

# What only resuming needs, of a checkpoint of pretraining and of the Trainer.
TRAINING_STATE = ("optimizer.safetensors", "trainer_state.json", "COMPLETE")

UPLOADS = ThreadPoolExecutor(max_workers=1, thread_name_prefix="upload")
pending: list[Future] = []


def files_to_upload(folder: Path) -> list[str]:
    """By name relative to the folder: without TRAINING_STATE, and without what huggingface_hub never uploads (.git, ...)."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return list(filter_repo_objects(names, ignore_patterns=[*DEFAULT_IGNORE_PATTERNS, *TRAINING_STATE]))


def additions(folder: Path, names: list[str], repository: str, revision: str | None) -> list[CommitOperationAdd]:
    """The files as one commit adds them. The card's examples load the repository there; the folder's own card stays."""
    operations = []
    for name in names:
        content = folder / name
        if name == "README.md":
            content = named_card(content.read_bytes().decode("utf-8"), repository, revision).encode("utf-8")
        operations.append(CommitOperationAdd(name, content))
    return operations


def publish(folder: Path, repository: str, revision: str | None = None) -> None:
    """Upload model, tokenizer and card to a branch, by default step-N of a folder step-0000N, after the uploads before it.

    A repository that is missing is created, private. A failure is one line on stderr.
    """
    revision = revision or f"step-{int(folder.name.removeprefix('step-'))}"
    pending.append(UPLOADS.submit(upload, folder, repository, revision))


def upload(folder: Path, repository: str, revision: str) -> None:
    api = HfApi()
    try:
        repository = api.create_repo(repository, private=True, exist_ok=True).repo_id
        if revision != "main":
            api.create_branch(repository, branch=revision, exist_ok=True)
        operations = additions(folder, files_to_upload(folder), repository, revision)
        api.create_commit(repository, operations, commit_message=f"Upload {revision}", revision=revision)
    except Exception as error:  # whatever the network does, the run is worth more
        then = f"`luna push {folder} {repository}` does so" if revision == "main" else "training goes on"
        print(f"warning: {folder} was not published to {repository} ({one_line(error)}): {then}.", file=sys.stderr)


def wait_for_uploads() -> None:
    wait(pending)
    pending.clear()
