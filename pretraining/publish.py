# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Checkpoints as revisions of a Hub repository, uploaded while training goes on."""

import sys
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

from huggingface_hub import HfApi

from pretraining.checkpoint import SEAL, checkpoint_step

# What only resuming needs.
TRAINING_STATE = ("optimizer.safetensors", "trainer_state.json", SEAL)

UPLOADS = ThreadPoolExecutor(max_workers=1, thread_name_prefix="upload")
pending: list[Future] = []


def publish(checkpoint: Path, repository: str) -> None:
    """Upload model and tokenizer of a checkpoint to the branch step-N, after the uploads before it.

    A repository that is missing is created, private. A failure is one line on stderr: training goes on.
    """
    pending.append(UPLOADS.submit(upload, checkpoint, repository))


def upload(checkpoint: Path, repository: str) -> None:
    revision = f"step-{checkpoint_step(checkpoint)}"
    api = HfApi()
    try:
        repository = api.create_repo(repository, private=True, exist_ok=True).repo_id
        api.create_branch(repository, branch=revision, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=checkpoint,
            revision=revision,
            ignore_patterns=list(TRAINING_STATE),
            commit_message=f"Upload {revision}",
        )
    except Exception as error:  # whatever the network does, the run is worth more
        reason = " ".join(str(error).split())
        print(f"warning: {checkpoint} was not published to {repository} ({reason}): training goes on.", file=sys.stderr)


def wait_for_uploads() -> None:
    wait(pending)
    pending.clear()
