# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The whole work in one job, which goes on after any end."""

import shutil
from pathlib import Path

from luna_tools.errors import InputError
from luna_tools.files import write_json
from pretraining.dataset_format import SPLITS, TOKENIZER
from pretraining.prepare.config import PrepareConfig
from pretraining.prepare.documents import list_inputs
from pretraining.prepare.finish import finish
from pretraining.prepare.sources import PLAIN_TEXT, PYTHON_DOCS, Input, Part
from pretraining.prepare.state import (
    PLAN,
    PROGRESS,
    WORK_VERSION,
    difference_from,
    first_change,
    new_progress,
    read_json,
    require_empty,
)
from pretraining.prepare.work import (
    Packing,
    check_disk_space,
    load_made_tokenizer,
    make_tokenizer,
    make_writers,
    packed_bytes,
)


def prepare_in_one_job(config: PrepareConfig, output: Path) -> dict:
    """Make the dataset in `output`; return the manifest."""
    inputs, ignored = list_inputs(config, output)
    progress = _read_progress(config, inputs, output)
    check_disk_space(config, inputs, packed_bytes(progress), output)
    if progress["tokenizer_sha256"] is None:
        progress["tokenizer_sha256"] = make_tokenizer(config, inputs, output)
        write_json(output / PROGRESS, progress, indent=None)
    tokenizer = load_made_tokenizer(progress["tokenizer_sha256"], output)
    writers = make_writers(config, tokenizer, progress["splits"], output)
    parts = [Part(index) for index in range(len(inputs))]
    total = None  # of text, known where the files hold nothing else
    if all(one.name.endswith((PYTHON_DOCS, *PLAIN_TEXT)) for one in inputs):
        total = int(sum((one.size or 0) * one.share for one in inputs))
    try:
        Packing(config, inputs, parts, progress, output / PROGRESS, writers).run(output / TOKENIZER, "Packing", total)
        return finish(config, inputs, ignored, parts, progress["counts"], tokenizer, writers, output)
    finally:
        for writer in writers.values():
            writer.close()


def _read_progress(config: PrepareConfig, inputs: list[Input], output: Path) -> dict:
    """Return the progress to go on from: that of an interrupted run of the same settings, or none."""
    listed = [[one.source, one.path, one.size, one.version] for one in inputs]
    progress = read_json(output / PROGRESS, WORK_VERSION)
    if progress is None:
        if (plan := read_json(output / PLAN, WORK_VERSION)) is not None:
            raise InputError(
                f"{output} is prepared by several jobs: add --num_jobs {plan['num_jobs']} and --plan, --job or --merge, "
                "or use another folder."
            )
        require_empty(output)
    else:
        difference = difference_from(config, progress)
        if difference is None and progress["inputs"] != listed:
            difference = f"was begun with other input (first change: {first_change(progress['inputs'], listed)})"
        if difference is None:
            print(f"Going on with the interrupted run in {output}.")
            progress["settings"] = config.settings()  # on_error may have changed
            return progress
        if any(state and state["shards"] for state in progress["splits"].values()):
            raise InputError(
                f"{output} {difference}: go on with what it was begun with, use another folder, or delete this one."
            )
        print(f"{output} {difference}; no shard was finished, so it is begun anew.")
        for name in (TOKENIZER, *SPLITS):
            shutil.rmtree(output / name, ignore_errors=True)
    progress = new_progress() | {"settings": config.settings(), "inputs": listed, "tokenizer_sha256": None}
    write_json(output / PROGRESS, progress, indent=None)
    return progress
