# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Turns text into a tokenizer and a packed masked-LM dataset on disk.

`python -m pretraining.prepare OUT --source S` trains a byte-level BPE on the training documents (or takes an existing
tokenizer), packs the documents' tokens into rows of one length, and writes them as arrow shards. An interrupted run
goes on where it was when the same command is run again, with the same bytes in the end. With --num_shards, several
jobs do the same: a plan, shards at the same time, and a merge. See docs/prepare.md.
"""

import argparse
import errno
import shutil
import sys
from dataclasses import fields, replace
from pathlib import Path

from tqdm import tqdm

from luna_tools.errors import InputError
from luna_tools.files import write_json
from pretraining.prepare.config import PrepareConfig
from pretraining.prepare.corpora import load_corpus
from pretraining.prepare.documents import list_inputs
from pretraining.prepare.shards import make_plan, make_shard, merge
from pretraining.prepare.sources import EXTENSIONS, PLAIN_TEXT, PYTHON_DOCS, Input, Part
from pretraining.prepare.stages import (
    FORMAT_VERSION,
    MANIFEST,
    PLAN,
    PROGRESS,
    WORK_VERSION,
    check_disk_space,
    difference_from,
    finish,
    first_change,
    load_made_tokenizer,
    locked,
    make_tokenizer,
    make_writers,
    new_progress,
    pack,
    packed_bytes,
    read_json,
    refuse_difference,
    remove_unfinished,
    require_empty,
    sum_up,
)
from pretraining.prepare.streams import SPLITS


def prepare(config: PrepareConfig) -> dict:
    """Makes the dataset in `config.output`, goes on with an interrupted one, or finds it complete.

    Returns:
        The manifest, as in OUT/manifest.json; of a plan or a shard of an unfinished dataset, its plan.json or result.json.

    Raises:
        InputError: an option, an input or the output folder cannot be used.
    """
    output = Path(config.output)
    try:
        output.mkdir(parents=True, exist_ok=True)
        manifest = read_json(output / MANIFEST)
        if manifest is not None:
            refuse_difference(difference_from(config, manifest, FORMAT_VERSION), output)
            remove_unfinished(output)  # what a kill after the manifest was written left
            print(f"{output} is complete already, with these settings: nothing to do.")
            return manifest
        if config.shard is not None:
            return make_shard(config, output)
        with locked(output):
            if config.plan:
                return make_plan(config, output)
            if config.merge:
                return merge(config, output)
            if config.deduplicate:  # duplicates are left out while merging
                alone = replace(config, num_shards=1, shard=0)
                make_plan(alone, output)
                make_shard(alone, output)
                return merge(alone, output)
            return _run_alone(config, output)
    except OSError as error:
        # Reading faults are handled where they arise; what comes here is the output folder's.
        remedy = "choose a folder that can be written to"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "free some space and run the same command again to continue"
        raise InputError(f"{error.filename or output}: {error.strerror or error}; {remedy}.") from error


def _run_alone(config: PrepareConfig, output: Path) -> dict:
    """The whole work in one job."""
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
        done = packed_bytes(progress)
        with tqdm(desc="Packing", total=total, unit="B", unit_scale=True, mininterval=1, initial=done) as bar:
            pack(config, inputs, parts, progress, writers, None, output / "tokenizer", output / PROGRESS, bar)
        dropped = {split: writer.finish() for split, writer in writers.items()}
    finally:
        for writer in writers.values():
            writer.close()
    totals = sum_up(inputs, parts, progress["counts"])
    return finish(config, inputs, ignored, totals, tokenizer, writers, dropped, output)


def _read_progress(config: PrepareConfig, inputs: list[Input], output: Path) -> dict:
    """Returns the progress to go on from: that of an interrupted run of the same settings, or none."""
    listed = [[one.source, one.path, one.size, one.version] for one in inputs]
    progress = read_json(output / PROGRESS)
    if progress is None:
        if (plan := read_json(output / PLAN)) is not None:
            raise InputError(
                f"{output} is prepared by several jobs: add --num_shards {plan['num_shards']} and --plan, --shard or "
                "--merge, or use another folder."
            )
        require_empty(output)
    else:
        difference = difference_from(config, progress, WORK_VERSION)
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
        for name in ("tokenizer", *SPLITS):
            shutil.rmtree(output / name, ignore_errors=True)
    progress = new_progress() | {"settings": config.settings(), "inputs": listed, "tokenizer_sha256": None}
    write_json(output / PROGRESS, progress, indent=None)
    return progress


# ---------------------------------------------------------------------------------------------------------------------
# Command line


def parse_arguments(arguments: list[str] | None = None) -> PrepareConfig:
    """Reads the command line into a config."""
    parser = argparse.ArgumentParser(
        prog="python -m pretraining.prepare",
        description="Turn text into a tokenizer and a packed masked-LM dataset.",
        argument_default=argparse.SUPPRESS,  # what is not given is the corpus's, or else the config's default
        allow_abbrev=False,
    )
    parser.add_argument("output", metavar="OUT", help="folder of the dataset")
    parser.add_argument(
        "--source",
        dest="sources",
        metavar="SOURCE",
        action="append",
        help="python-docs (docstrings of the standard library), a file or folder of "
        f"{', '.join(EXTENSIONS)}, or hub:NAME[@REVISION][:CONFIG[:SPLIT]]; repeat for more",
    )
    parser.add_argument(
        "--weight",
        dest="weights",
        metavar="WEIGHT",
        action="append",
        type=float,
        help="of a source, once for each --source in their order: 0.5 takes half of its documents, 2 takes them twice",
    )
    parser.add_argument("--corpus", help="YAML file with sources, weights and other options, or the name of one in corpora/")
    types = {int | None: int, str | None: str}
    for option in fields(PrepareConfig):
        if not option.metadata:
            continue
        if option.type is bool:
            parser.add_argument(f"--{option.name}", action="store_true", help=option.metadata["help"])
            continue
        shown = "" if option.default is None else f" (default: {option.default})"
        parser.add_argument(
            f"--{option.name}",
            type=types.get(option.type, option.type),
            choices=option.metadata.get("choices"),
            help=option.metadata["help"] + shown,
        )
    given = vars(parser.parse_args(arguments))
    corpus = load_corpus(given.pop("corpus")) if "corpus" in given else {"sources": []}
    for name in ("sources", "weights"):
        if name in given and corpus["sources"]:
            raise InputError(f"--{name.removesuffix('s')} {given[name][0]}: leave it out, --corpus sets it.")
    return PrepareConfig(**(corpus | given))


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns 0, 2 for an error of the user's, 130 when interrupted."""
    try:
        prepare(parse_arguments(arguments))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted: run the same command again to continue.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
