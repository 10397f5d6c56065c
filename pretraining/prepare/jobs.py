# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The work divided among several jobs: a plan with the tokenizer, the jobs, and the merge.

A job tokenises a contiguous share of the inputs into streams, and the merge packs the streams one after the other:
the rows are those of one job, since packing depends on nothing but the order of the tokens.
"""

import hashlib
import importlib.metadata
import json
from dataclasses import astuple, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from luna_tools.errors import InputError
from luna_tools.files import sha256, write_json
from pretraining.dataset_format import SPLITS, TOKENIZER
from pretraining.prepare.config import PrepareConfig
from pretraining.prepare.documents import list_inputs, unreadable
from pretraining.prepare.finish import finish
from pretraining.prepare.hub import HUB_PREFIX
from pretraining.prepare.packing import SplitWriter
from pretraining.prepare.progress import progress_bar
from pretraining.prepare.readers import Fault, no_text
from pretraining.prepare.sources import Input, Part, divide, measure_input
from pretraining.prepare.state import (
    JOBS,
    PLAN,
    PROGRESS,
    WORK_VERSION,
    difference_from,
    first_change,
    left_as_it_was,
    locked,
    new_progress,
    read_json,
    refuse_difference,
    require_empty,
)
from pretraining.prepare.streams import DocumentLog, Records, StreamWriter, find_duplicates, kept_runs, read_stream
from pretraining.prepare.tokenizer import row_end_id
from pretraining.prepare.work import (
    Packing,
    check_disk_space,
    dtype_of,
    load_made_tokenizer,
    make_tokenizer,
    make_writers,
    used_splits,
)

RESULT = "result.json"  # of a job, written last
LOG = "documents.log"


def make_plan(config: PrepareConfig, output: Path) -> dict:
    """Divide the work and make the tokenizer; with the tokenizer's checksum in it, the plan is complete."""
    plan = read_json(output / PLAN, WORK_VERSION)
    if plan is None:
        if (output / PROGRESS).exists():
            raise InputError(f"{output} was begun as one job: leave out --num_jobs, use another folder, or delete it.")
        require_empty(output)
    else:
        difference = _difference_from_plan(config, plan)
        if difference is None and plan["tokenizer_sha256"] is not None:
            print(f"{output} is planned already, with these settings.")
            return plan
        if (output / JOBS).exists():
            refuse_difference(difference, output)
    inputs, ignored = list_inputs(config, output)
    measuring = progress_bar("Measuring", "input", over=inputs)
    measures = [measure_input(one, config.document_separator) for one in measuring]
    inputs = [replace(one, version=version) for one, (_, _, version) in zip(inputs, measures, strict=True)]
    measures = [(units, int(size * one.share)) for one, (units, size, _) in zip(inputs, measures, strict=True)]
    check_disk_space(config, inputs, 0, output, copies=2)  # the streams and, while they are merged, the dataset
    plan = {
        "format_version": WORK_VERSION,
        "settings": config.settings(),
        "skipped": {"count": 0},
        "num_jobs": config.num_jobs,
        "tokenizer_sha256": None,
        "tokenizers_version": importlib.metadata.version("tokenizers"),
        "text_bytes": sum(size for _, size in measures),  # about
        "inputs": [list(astuple(one)) for one in inputs],
        "ignored": ignored,
        "jobs": divide(measures, config.num_jobs),
    }
    write_json(output / PLAN, plan, indent=None)
    plan["tokenizer_sha256"] = make_tokenizer(config, inputs, output)
    write_json(output / PLAN, plan, indent=None)
    print(f"{output} is planned: now run --job 0 to {config.num_jobs - 1}, together or one by one, and then --merge.")
    return plan


def _difference_from_plan(config: PrepareConfig, plan: dict) -> str | None:
    difference = difference_from(config, plan)
    if difference is None and plan["num_jobs"] != config.num_jobs:
        difference = f"was made with --num_jobs {plan['num_jobs']}, and this is {config.num_jobs}"
    installed = importlib.metadata.version("tokenizers")
    if difference is None and plan["tokenizers_version"] != installed:
        difference = f"was made with tokenizers {plan['tokenizers_version']}, and this is {installed}"
    return difference


def _read_plan(config: PrepareConfig, output: Path) -> dict:
    plan = read_json(output / PLAN, WORK_VERSION)
    if plan is None:
        raise InputError(f"{output}: there is no plan; run the same command with --plan in place of --job or --merge.")
    refuse_difference(_difference_from_plan(config, plan), output)
    if plan["tokenizer_sha256"] is None:
        raise InputError(f"{output}: the plan has no tokenizer yet; wait for the run with --plan, or run it again.")
    return plan


def run_job(config: PrepareConfig, output: Path) -> dict:
    """Tokenise one share of the work; return the job's result.json."""
    plan = _read_plan(config, output)
    inputs = [Input(*one) for one in plan["inputs"]]
    _check_inputs(config, inputs, output)
    tokenizer = load_made_tokenizer(plan["tokenizer_sha256"], output)
    folder = _job_folder(output, config.job)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        result = read_json(folder / RESULT, WORK_VERSION)
        if result is not None:
            _check_origin(result, plan, config.job, output)
            print(f"{folder} is complete already.")
            return result
        progress = read_json(folder / PROGRESS, WORK_VERSION)
        if progress is None:
            progress = new_progress() | {"made_from": _origin(plan, config.job)}
            write_json(folder / PROGRESS, progress, indent=None)
        else:
            _check_origin(progress, plan, config.job, output)
        parts = [Part(*part) for part in plan["jobs"][config.job]]
        files = _write_streams(config, inputs, parts, progress, plan, tokenizer, output)
        result = {
            "format_version": WORK_VERSION,
            "made_from": progress["made_from"],
            "counts": progress["counts"],
            "files": {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in files},
        }
        write_json(folder / RESULT, result | {"sha256": _sha256_of(result)}, indent=None)
        (folder / PROGRESS).unlink()
    documents = sum(sum(counts["documents"].values()) for counts in progress["counts"])
    size = sum(file["bytes"] for file in result["files"].values())
    print(f"Job {config.job} of {config.num_jobs} is complete: {documents:,} documents, {size / 1e6:,.1f} MB.")
    return result


def _write_streams(
    config: PrepareConfig, inputs: list[Input], parts: list[Part], progress: dict, plan: dict, tokenizer, output: Path
) -> list[Path]:
    """Write the token streams of a job, and its document log where duplicates are to be found; return the files."""
    folder = _job_folder(output, config.job)
    written, log = [], None
    try:
        with left_as_it_was(folder):
            for split in used_splits(config):
                path, state = folder / f"{split}.tokens", progress["splits"][split]
                checkpoint_bytes = config.shard_size_mb * 1e6
                written.append(StreamWriter(path, row_end_id(tokenizer), dtype_of(tokenizer), checkpoint_bytes, state))
            writers = dict(zip(used_splits(config), written, strict=True))
            if config.deduplicate:
                log = DocumentLog(folder / LOG, progress["log"])
                written.append(log)
        packing = Packing(config, inputs, parts, progress, folder / PROGRESS, writers, log)
        total = plan["text_bytes"] // config.num_jobs
        packing.run(output / TOKENIZER, f"Job {config.job} of {config.num_jobs}", total)
        for one in written:
            one.checkpoint()
        return [one.path for one in written]
    finally:
        for one in written:
            one.close()


def _job_folder(output: Path, job: int) -> Path:
    return output / JOBS / f"{job:05d}"


def _sha256_of(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode("utf-8")).hexdigest()


def _origin(plan: dict, job: int) -> dict:
    """Return what a job depends on; the keys complete the sentence of `_check_origin`."""
    settings = {name: value for name, value in plan["settings"].items() if name != "on_error"}  # may become skip
    return {
        "number": job,
        "number of jobs": plan["num_jobs"],
        "settings": settings,
        "input": _sha256_of(plan["inputs"]),
        "tokenizer": plan["tokenizer_sha256"],
    }


def _check_origin(made: dict, plan: dict, job: int, output: Path) -> None:
    folder = _job_folder(output, job)
    for name, value in _origin(plan, job).items():
        if made["made_from"][name] != value:
            raise InputError(f"{folder} was made with another {name}: delete it and run --job {job} again.")


def _check_inputs(config: PrepareConfig, planned: list[Input], output: Path) -> None:
    versions = {one.source: one.version for one in planned if one.source.startswith(HUB_PREFIX)}  # known once opened
    inputs, _ = list_inputs(config, output)
    inputs = [replace(one, version=versions.get(one.source, one.version)) for one in inputs]
    if inputs != planned:
        change = first_change([astuple(one) for one in planned], [astuple(one) for one in inputs])
        raise InputError(
            f"{output} was planned with other input (first change: {change}): bring it back, or plan in another folder."
        )


class _Piece(NamedTuple):
    """What a job has of one part: the counts, and where its tokens and records start in the job's files."""

    part: Part
    counts: dict
    folder: Path
    first_token: dict[str, int]
    first_record: int

    @property
    def records(self) -> Records:
        return Records(self.folder / LOG, self.first_record, sum(self.counts["documents"].values()))


def merge(config: PrepareConfig, output: Path) -> dict:
    """Make the dataset of the complete jobs; return the manifest."""
    plan = _read_plan(config, output)
    inputs = [Input(*one) for one in plan["inputs"]]
    tokenizer = load_made_tokenizer(plan["tokenizer_sha256"], output)
    pieces = _find_pieces(config, inputs, plan, _read_results(plan, output), output)
    is_duplicate = find_duplicates([piece.records for piece in pieces]) if config.deduplicate else None
    writers = make_writers(config, tokenizer, dict.fromkeys(SPLITS), output)
    total = sum(piece.counts["tokens"][split] for piece in pieces for split in writers)
    try:
        with progress_bar("Merging", "token", total) as bar:
            place = 0
            for piece in pieces:
                if is_duplicate is None:
                    for split, writer in writers.items():
                        span = piece.first_token[split], piece.counts["tokens"][split], piece.counts["documents"][split]
                        _copy(piece.folder, split, writer, *span, bar)
                else:
                    documents = piece.records.count
                    _copy_distinct(piece, is_duplicate[place : place + documents], writers, bar)
                    place += documents
        parts, counts = [piece.part for piece in pieces], [piece.counts for piece in pieces]
        return finish(config, inputs, plan["ignored"], parts, counts, tokenizer, writers, output)
    finally:
        for writer in writers.values():
            writer.close()


def _read_results(plan: dict, output: Path) -> list[dict]:
    """Return the results of all jobs, whole and of this plan."""
    results = [read_json(_job_folder(output, job) / RESULT, WORK_VERSION) for job in range(plan["num_jobs"])]
    missing = [str(job) for job, result in enumerate(results) if result is None]
    if missing:
        raise InputError(
            f"{output}: {len(missing)} of {len(results)} jobs are not complete; run --job {','.join(missing)} first."
        )
    total = sum(file["bytes"] for result in results for file in result["files"].values())
    with progress_bar("Checking", "B", total) as bar:
        for job, result in enumerate(results):
            _check_origin(result, plan, job, output)
            folder = _job_folder(output, job)
            damaged = None
            if result.pop("sha256") != _sha256_of(result):
                damaged = folder / RESULT
            for name, file in result["files"].items():
                path = folder / name
                if not path.is_file() or path.stat().st_size != file["bytes"] or sha256(path) != file["sha256"]:
                    damaged = path
                bar.update(file["bytes"])
            if damaged is not None:
                raise InputError(f"{damaged} is damaged: delete {folder} and run --job {job} again.")
    return results


def _find_pieces(config: PrepareConfig, inputs: list[Input], plan: dict, results: list[dict], output: Path) -> list[_Piece]:
    """List the parts in order, without those after a fault that ends their input, and with the faults of whole inputs."""
    pieces, ended = [], set()
    for job, result in enumerate(results):
        tokens, record = dict.fromkeys(SPLITS, 0), 0
        for part, counts in zip(plan["jobs"][job], result["counts"], strict=True):
            piece = _Piece(Part(*part), counts, _job_folder(output, job), dict(tokens), record)
            if piece.part.input not in ended:
                pieces.append(piece)
            if counts["ended"]:
                ended.add(piece.part.input)
            for split in SPLITS:
                tokens[split] += counts["tokens"][split]
            record += piece.records.count
    last, found = {}, set()
    for piece in pieces:
        last[piece.part.input] = piece
        if any(piece.counts["text_bytes"].values()) or piece.counts["left_out"] or piece.counts["skipped"]["count"]:
            found.add(piece.part.input)
    for index, piece in last.items():
        if piece.part.start is not None and index not in found and inputs[index].repeat == 0:
            piece.counts["skipped"] = {"count": 1, "first": [no_text(inputs[index])._asdict()]}
    faults = (fault for piece in pieces for fault in piece.counts["skipped"]["first"])
    if config.on_error == "fail" and (fault := next(faults, None)):
        raise unreadable(Fault(**fault))
    return pieces


def _copy(folder: Path, split: str, writer: SplitWriter, first_token: int, tokens: int, documents: int, bar: tqdm) -> None:
    for chunk in read_stream(folder / f"{split}.tokens", writer.dtype, first_token, tokens):
        writer.add_stream(chunk, documents)
        documents = 0  # all are counted with the first chunk
        bar.update(len(chunk))


def _copy_distinct(piece: _Piece, is_duplicate: np.ndarray, writers: dict[str, SplitWriter], bar: tqdm) -> None:
    """Copy the documents that are no duplicates, and take the others from the counts."""
    counts, first_token, place = piece.counts, dict(piece.first_token), 0
    for records in piece.records.read():
        duplicate = is_duplicate[place : place + len(records)]
        place += len(records)
        for split, writer in writers.items():
            mine = records["split"] == SPLITS.index(split)
            for start, tokens, documents in kept_runs(records["tokens"][mine], ~duplicate[mine]):
                _copy(piece.folder, split, writer, first_token[split] + start, tokens, documents, bar)
            first_token[split] += int(records["tokens"][mine].sum())
            dropped = records[mine & duplicate]
            counts["documents"][split] -= len(dropped)
            counts["text_bytes"][split] -= int(dropped["text_bytes"].sum())
            counts["duplicates"] += len(dropped)
            bar.update(int(dropped["tokens"].sum()))
