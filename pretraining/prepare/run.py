# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Turn text into a tokenizer and a packed masked-LM dataset on disk: `luna prepare`. See docs/prepare.md.

A byte-level BPE is trained on the training documents (or an existing tokenizer is taken), the documents' tokens are packed
into rows of one length, and these are written as arrow shards. One job or several (`jobs`) read (`sources`, `readers`,
`documents`) and tokenise (`work`, `encoding`) into `streams`, and the merge cuts these into rows (`packing`, `finish`); an
interrupted run goes on from what it left (`state`). The bytes are the same for any number of jobs.
"""

import errno
from pathlib import Path

from luna_tools.errors import InputError
from luna_tools.settings import Parser, named_files, split_command_line
from pretraining.dataset_format import CORPORA, FORMAT_VERSION, MANIFEST
from pretraining.prepare.config import PrepareConfig


def main(argv: list[str]) -> None:
    """Run `luna prepare`; raise InputError or OSError where it cannot be done."""
    prepare(parse_arguments(argv))


def parse_arguments(argv: list[str]) -> PrepareConfig:
    """Read the command line: `[CORPUS] [more.yaml] --option value`."""
    corpora = named_files(CORPORA)
    words, options = split_command_line(argv, corpora)
    if words:
        raise InputError(
            f"{words[0]!r} is not a corpus: give one of {', '.join(corpora)}, a YAML file of options, or --sources; the "
            "folder of the dataset is --output_dir."
        )
    description = (
        "Turn text into a tokenizer and a packed dataset: luna prepare [CORPUS] [more.yaml] --option value. CORPUS is one "
        f"of {', '.join(corpora)}; it and the other files set options, and the later one wins."
    )
    (config,) = Parser("luna prepare", description, PrepareConfig).parse(options)
    return config


def prepare(config: PrepareConfig) -> dict:
    """Make the dataset in `config.output_dir`, go on with an interrupted one, or find it complete.

    Returns:
        The manifest, as in OUT/manifest.json; of a plan or a job of an unfinished dataset, its plan.json or result.json.

    Raises:
        InputError: an option, an input or the output folder cannot be used.
    """
    # Here, not above: a mistake on the command line is told before seconds of imports.
    from luna_tools.files import locked
    from pretraining.prepare.jobs import make_plan, merge, prepare_alone, run_job
    from pretraining.prepare.state import LOCK, difference_from, read_json, refuse_difference, remove_unfinished

    output = Path(config.output_dir)
    try:
        output.mkdir(parents=True, exist_ok=True)
        manifest = read_json(output / MANIFEST, FORMAT_VERSION)
        if manifest is not None:
            refuse_difference(difference_from(config.settings(), manifest), output)
            remove_unfinished(output)  # what a kill after the manifest was written left
            print(f"{output} is complete already, with these settings: nothing to do.")
            return manifest
        if config.job is not None:
            return run_job(config, output)
        with locked(output / LOCK):
            if config.plan:
                return make_plan(config, output)
            if config.merge:
                return merge(config, output)
            return prepare_alone(config, output)
    except OSError as error:
        # Reading faults are handled where they arise; what comes here is the output folder's.
        remedy = "choose a folder that can be written to"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "free some space and run the same command again to continue"
        raise InputError(f"{error.filename or output}: {error.strerror or error}; {remedy}.") from error
