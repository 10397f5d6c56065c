# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Small datasets made in this process, as one job or by several, and runs that are killed while they write."""

import importlib
import inspect
import json
from contextlib import suppress

import pytest

from pretraining.prepare import finish, jobs, work
from pretraining.prepare.config import PrepareConfig
from pretraining.prepare.run import prepare

DEFAULTS = {
    "vocab_size": 350,
    "sequence_length": 16,
    "validation_fraction": 0.2,
    "shard_size_mb": 0.01,
    "document_separator": "blank_line",
    "num_proc": 1,
}


MODULES = ("argparse", "collections", "datetime", "decimal", "functools", "inspect", "logging", "pathlib", "random")


def docstrings(module: str) -> list[str]:
    """Return the distinct docstrings of what a module holds, by its names."""
    documents = (inspect.getdoc(item) for _, item in sorted(vars(importlib.import_module(module)).items()))
    return list(dict.fromkeys(document for document in documents if document))


def make_config(output, source, **options) -> PrepareConfig:
    sources = source if isinstance(source, list) else [source]
    if "tokenizer" in options:
        options["vocab_size"] = None
    return PrepareConfig(output, sources, **(DEFAULTS | options))


def command_line(output, source, **options) -> list[str]:
    pairs = (DEFAULTS | options).items()
    return ["--output_dir", str(output), "--sources", str(source), *(t for k, v in pairs for t in (f"--{k}", str(v)))]


def steps(num_jobs: int | None) -> list[dict]:
    """Return the options of the runs that make a dataset, one after the other: one run, or those of so many jobs."""
    if num_jobs is None:
        return [{}]
    jobs_alone = [{"job": job} for job in range(num_jobs)]
    return [step | {"num_jobs": num_jobs} for step in ({"plan": True}, *jobs_alone, {"merge": True})]


def prepare_in_jobs(output, source, num_jobs: int | None, **options) -> dict:
    for step in steps(num_jobs):
        made = prepare(make_config(output, source, **options, **step))
    return made


def contents(output) -> dict[str, bytes]:
    return {str(path.relative_to(output)): path.read_bytes() for path in sorted(output.rglob("*")) if path.is_file()}


def write_rows(path, texts) -> None:
    """Write a .jsonl file."""
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))


class Killed(BaseException):
    pass


def prepare_until_killed(config: PrepareConfig, writes: int) -> dict | None:
    """Return what `prepare` does; None where it was killed after so many writes of a plan, a progress, a result or the
    manifest.
    """
    write = work.write_json
    left = iter(range(writes))

    def dying(path, value, indent=2):
        if next(left, None) is None:
            path.with_name(path.name + ".tmp").write_text("{")  # what a write that was cut short leaves
            raise Killed
        write(path, value, indent)

    with pytest.MonkeyPatch.context() as patch, suppress(Killed):
        for module in (finish, jobs, work):
            patch.setattr(module, "write_json", dying)
        return prepare(config)
