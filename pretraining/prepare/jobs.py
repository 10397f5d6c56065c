# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The work in steps: a plan with the tokenizer, one job or several that divide the work, and the merge.

A job tokenises a contiguous share of the inputs into streams, and the merge packs the streams one after the other:
the rows are those of one job, since packing depends on nothing but the order of the tokens.
"""

import hashlib
import importlib.metadata
import json
import shutil
from collections.abc import Iterator
from dataclasses import astuple, replace
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np

from luna_tools.errors import InputError
from luna_tools.files import locked, sha256, write_json
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
    LOCK,
    PLAN,
    PROGRESS,
    WORK_VERSION,
    difference_from,
    read_json,
    refuse_difference,
    require_empty,
)
from pretraining.prepare.streams import Records, find_duplicates, kept_runs, read_stream
from pretraining.prepare.tokenizer import row_end_id, row_start_id
from pretraining.prepare.work import (
    LOG,
    Share,
    check_disk_space,
    dtype_of,
    load_made_tokenizer,
    make_tokenizer,
    used_splits,
)

RESULT = "result.json"  # of a job, written last


def prepare_alone(config: PrepareConfig, output: Path) -> dict:
    """Do all steps, with one job, or go on where an earlier run of this was interrupted; return the manifest."""
    alone = replace(config, num_jobs=1, job=0)
    plan = read_json(output / PLAN, WORK_VERSION)
    if plan is not None:
        if (num_jobs := plan["settings"]["num_jobs"]) > 1:
            raise InputError(
                f"{output} is prepared by several jobs: add --num_jobs {num_jobs} and --plan, --job or --merge, or use "
                "another folder."
            )
        difference = _difference_from_plan(alone, plan) or _other_input(alone, plan, output)
        done = sum(path.stat().st_size for path in output.glob(f"{JOBS}/*/*.tokens"))
        if difference is None:
            print(f"Going on with the interrupted run in {output}.")
        elif done < plan["settings"]["shard_size_mb"] * 1e6:
            print(f"{output} {difference}; less than a shard is done, so it is begun anew.")
            for name in (JOBS, *SPLITS):
                shutil.rmtree(output / name, ignore_errors=True)
            write_json(output / PLAN, plan | {"tokenizer_sha256": None}, indent=None)
    make_plan(alone, output)
    run_job(alone, output)
    return merge(alone, output)


def make_plan(config: PrepareConfig, output: Path) -> dict:
    """Divide the work and make the tokenizer; with the tokenizer's checksum in it, the plan is complete."""
    plan = read_json(output / PLAN, WORK_VERSION)
    if plan is None:
        require_empty(output)
    else:
        difference = _difference_from_plan(config, plan)
        if difference is None and plan["tokenizer_sha256"] is not None:
            if config.plan:
                print(f"{output} is planned already, with these settings.")
            return plan
        if (output / JOBS).exists():
            refuse_difference(difference, output)
    inputs, ignored = list_inputs(config, output)
    if ignored:
        print(f"Ignored {len(ignored)} files of other kinds, first {ignored[0]}.")
    measuring = progress_bar("Measuring", "input", over=inputs)
    measures = [measure_input(one, config.document_separator) for one in measuring]
    inputs = [replace(one, version=version) for one, (_, _, version) in zip(inputs, measures, strict=True)]
    measures = [(units, int(size * one.share)) for one, (units, size, _) in zip(inputs, measures, strict=True)]
    check_disk_space(config, inputs, output)
    plan = {
        "format_version": WORK_VERSION,
        "settings": _settings(config),
        "skipped": {"count": 0},
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
    if config.plan:
        print(f"{output} is planned: now run --job 0 to {config.num_jobs - 1}, together or one by one, and then --merge.")
    return plan


def _settings(config: PrepareConfig) -> dict:
    return config.settings() | {"num_jobs": config.num_jobs}


def _difference_from_plan(config: PrepareConfig, plan: dict) -> str | None:
    difference = difference_from(_settings(config), plan)
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
    if (difference := _other_input(config, plan, output)) is not None:
        raise InputError(f"{output} {difference}: bring it back, or plan in another folder.")
    tokenizer = load_made_tokenizer(plan["tokenizer_sha256"], output)
    folder = _job_folder(output, config.job)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / LOCK):
        result = read_json(folder / RESULT, WORK_VERSION)
        if result is not None:
            _check_origin(result, plan, config.job, output)
            print(f"{folder} is complete already.")
            return result
        progress = read_json(folder / PROGRESS, WORK_VERSION)
        if progress is None:
            progress = {
                "format_version": WORK_VERSION,
                "made_from": _origin(plan, config.job),
                "position": [0, 0],  # part, items of it that are done
                "counts": [],  # of each part that is begun
                "files": {},  # the states of those that are written
            }
            write_json(folder / PROGRESS, progress, indent=None)
        else:
            _check_origin(progress, plan, config.job, output)
        title = f"Job {config.job} of {config.num_jobs}" if config.num_jobs > 1 else "Tokenising"
        share = Share(config, inputs, [Part(*part) for part in plan["jobs"][config.job]], progress, folder)
        files = share.write_streams(tokenizer, output / TOKENIZER, title, plan["text_bytes"] // config.num_jobs)
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
    if config.num_jobs > 1:
        print(f"Job {config.job} of {config.num_jobs} is complete: {documents:,} documents, {size / 1e6:,.1f} MB.")
    return result


def _job_folder(output: Path, job: int) -> Path:
    return output / JOBS / f"{job:05d}"


def _sha256_of(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode("utf-8")).hexdigest()


def _origin(plan: dict, job: int) -> dict:
    """Return what a job depends on; the keys complete the sentence of `_check_origin`."""
    settings = {name: value for name, value in plan["settings"].items() if name != "on_error"}  # may become skip
    return {
        "number": job,
        "settings": settings,
        "input": _sha256_of(plan["inputs"]),
        "tokenizer": plan["tokenizer_sha256"],
    }


def _check_origin(made: dict, plan: dict, job: int, output: Path) -> None:
    folder = _job_folder(output, job)
    for name, value in _origin(plan, job).items():
        if made["made_from"][name] != value:
            raise InputError(f"{folder} was made with another {name}: delete it and run --job {job} again.")


def _other_input(config: PrepareConfig, plan: dict, output: Path) -> str | None:
    """Return how the input differs from the planned one, in words, or None."""
    planned = [Input(*one) for one in plan["inputs"]]
    versions = {one.source: one.version for one in planned if one.source.startswith(HUB_PREFIX)}  # known once opened
    inputs = [replace(one, version=versions.get(one.source, one.version)) for one in list_inputs(config, output)[0]]
    if inputs == planned:
        return None
    before, after = next(pair for pair in zip_longest(planned, inputs) if pair[0] != pair[1])
    return f"was planned with other input (first change: {(after or before).name})"


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
    ids, dtype = (row_start_id(tokenizer), row_end_id(tokenizer)), dtype_of(tokenizer)
    writers = {
        split: SplitWriter(output / split, config.sequence_length, *ids, dtype, config.shard_size_mb * 1e6)
        for split in used_splits(config)
    }
    total = sum(piece.counts["tokens"][split] for piece in pieces for split in writers)
    try:
        with progress_bar("Merging", "token", total) as bar:
            for folder, split, first_token, tokens, documents in _runs(pieces, is_duplicate, list(writers)):
                for chunk in read_stream(folder / f"{split}.tokens", dtype, first_token, tokens):
                    writers[split].add(chunk, documents)
                    documents = 0  # all are counted with the first chunk
                    bar.update(len(chunk))
        counted = [(inputs[piece.part.input], piece.counts) for piece in pieces]
        return finish(config, inputs, plan["ignored"], counted, tokenizer, writers, output)
    finally:
        for writer in writers.values():
            writer.close()


def _read_results(plan: dict, output: Path) -> list[dict]:
    """Return the results of all jobs, whole and of this plan."""
    results = [read_json(_job_folder(output, job) / RESULT, WORK_VERSION) for job in range(len(plan["jobs"]))]
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


def _runs(
    pieces: list[_Piece], is_duplicate: np.ndarray | None, splits: list[str]
) -> Iterator[tuple[Path, str, int, int, int]]:
    """Find what to copy, and take the duplicates from the counts.

    Yields:
        The folder, the split, the first token, the number of tokens and that of documents.
    """
    place = 0
    for piece in pieces:
        folder, counts, first_token = piece.folder, piece.counts, dict(piece.first_token)
        if is_duplicate is None:
            for split in splits:
                yield folder, split, first_token[split], counts["tokens"][split], counts["documents"][split]
            continue
        for records in piece.records.read():
            duplicate = is_duplicate[place : place + len(records)]
            place += len(records)
            for split in splits:
                mine = records["split"] == SPLITS.index(split)
                for start, tokens, documents in kept_runs(records["tokens"][mine], ~duplicate[mine]):
                    yield folder, split, first_token[split] + start, tokens, documents
                first_token[split] += int(records["tokens"][mine].sum())
                dropped = records[mine & duplicate]
                counts["documents"][split] -= len(dropped)
                counts["text_bytes"][split] -= int(dropped["text_bytes"].sum())
                counts["duplicates"] += len(dropped)
