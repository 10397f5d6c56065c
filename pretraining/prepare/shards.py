# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The work divided among several jobs: a plan with the tokenizer, the shards, and the merge.

A shard tokenises a contiguous share of the inputs into streams, and the merge packs the streams one after the other:
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
from pretraining.prepare.config import PrepareConfig
from pretraining.prepare.documents import list_inputs, unreadable
from pretraining.prepare.packing import SplitWriter
from pretraining.prepare.sources import HUB_PREFIX, Fault, Input, Part, divide, measure_input, no_text
from pretraining.prepare.stages import (
    PLAN,
    PROGRESS,
    SHARDS,
    WORK_VERSION,
    check_disk_space,
    difference_from,
    dtype_of,
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
    require_empty,
    sum_up,
    used_splits,
)
from pretraining.prepare.streams import SPLITS, DocumentLog, Records, StreamWriter, find_duplicates, kept_runs, read_stream
from pretraining.prepare.tokenizer import row_end_id

RESULT = "result.json"  # of a shard, written last
LOG = "documents.log"


def make_plan(config: PrepareConfig, output: Path) -> dict:
    """Divides the work and makes the tokenizer; with the tokenizer's checksum in it, the plan is complete."""
    plan = read_json(output / PLAN)
    if plan is None:
        if (output / PROGRESS).exists():
            raise InputError(f"{output} was begun as one job: leave out --num_shards, use another folder, or delete it.")
        require_empty(output)
    else:
        difference = _difference_from_plan(config, plan)
        if difference is None and plan["tokenizer_sha256"] is not None:
            print(f"{output} is planned already, with these settings.")
            return plan
        if (output / SHARDS).exists():
            refuse_difference(difference, output)
    inputs, ignored = list_inputs(config, output)
    measures = [measure_input(one, config.document_separator) for one in inputs]
    inputs = [replace(one, version=version) for one, (_, _, version) in zip(inputs, measures, strict=True)]
    measures = [(units, int(size * one.share)) for one, (units, size, _) in zip(inputs, measures, strict=True)]
    check_disk_space(config, inputs, 0, output, copies=2)  # the streams and, while they are merged, the dataset
    plan = {
        "format_version": WORK_VERSION,
        "settings": config.settings(),
        "skipped": {"count": 0},
        "num_shards": config.num_shards,
        "tokenizer_sha256": None,
        "tokenizers_version": importlib.metadata.version("tokenizers"),
        "text_bytes": sum(size for _, size in measures),  # about
        "inputs": [list(astuple(one)) for one in inputs],
        "ignored": ignored,
        "shards": divide(measures, config.num_shards),
    }
    write_json(output / PLAN, plan, indent=None)
    plan["tokenizer_sha256"] = make_tokenizer(config, inputs, output)
    write_json(output / PLAN, plan, indent=None)
    print(f"{output} is planned: now run --shard 0 to {config.num_shards - 1}, together or one by one, and then --merge.")
    return plan


def _difference_from_plan(config: PrepareConfig, plan: dict) -> str | None:
    difference = difference_from(config, plan, WORK_VERSION)
    if difference is None and plan["num_shards"] != config.num_shards:
        difference = f"was made with --num_shards {plan['num_shards']}, and this is {config.num_shards}"
    installed = importlib.metadata.version("tokenizers")
    if difference is None and plan["tokenizers_version"] != installed:
        difference = f"was made with tokenizers {plan['tokenizers_version']}, and this is {installed}"
    return difference


def _read_plan(config: PrepareConfig, output: Path) -> dict:
    plan = read_json(output / PLAN)
    if plan is None:
        raise InputError(f"{output}: there is no plan; run the same command with --plan in place of --shard or --merge.")
    refuse_difference(_difference_from_plan(config, plan), output)
    if plan["tokenizer_sha256"] is None:
        raise InputError(f"{output}: the plan has no tokenizer yet; wait for the run with --plan, or run it again.")
    return plan


def make_shard(config: PrepareConfig, output: Path) -> dict:
    """Tokenises one share of the work; returns the shard's result.json."""
    plan = _read_plan(config, output)
    inputs = [Input(*one) for one in plan["inputs"]]
    _check_inputs(config, inputs, output)
    tokenizer = load_made_tokenizer(plan["tokenizer_sha256"], output)
    folder = _shard_folder(output, config.shard)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        result = read_json(folder / RESULT)
        if result is not None:
            _check_origin(result, plan, config.shard, output)
            print(f"{folder} is complete already.")
            return result
        progress = read_json(folder / PROGRESS)
        if progress is None:
            progress = new_progress() | {"made_from": _origin(plan, config.shard)}
            write_json(folder / PROGRESS, progress, indent=None)
        else:
            _check_origin(progress, plan, config.shard, output)
        parts = [Part(*part) for part in plan["shards"][config.shard]]
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
    print(f"Shard {config.shard} of {config.num_shards} is complete: {documents:,} documents, {size / 1e6:,.1f} MB.")
    return result


def _write_streams(
    config: PrepareConfig, inputs: list[Input], parts: list[Part], progress: dict, plan: dict, tokenizer, output: Path
) -> list[Path]:
    """Writes the token streams of a shard, and its document log where duplicates are to be found; returns the files."""
    folder = _shard_folder(output, config.shard)
    writers, log = {}, None
    try:
        for split in used_splits(config):
            path = folder / f"{split}.tokens"
            checkpoint_bytes = config.shard_size_mb * 1e6
            state = progress["splits"][split]
            writers[split] = StreamWriter(path, row_end_id(tokenizer), dtype_of(tokenizer), checkpoint_bytes, state)
        if config.deduplicate:
            log = DocumentLog(folder / LOG, progress["log"])
        name = f"Shard {config.shard} of {config.num_shards}"
        total = plan["text_bytes"] // config.num_shards
        done = packed_bytes(progress)
        with tqdm(desc=name, total=total, unit="B", unit_scale=True, mininterval=1, initial=done) as bar:
            pack(config, inputs, parts, progress, writers, log, output / "tokenizer", folder / PROGRESS, bar)
        written = [*writers.values(), *([log] if log else [])]
        for one in written:
            one.checkpoint()
        return [one.path for one in written]
    except FileNotFoundError as error:
        raise InputError(f"{error} is not as the interrupted run left it: delete {folder} and run again.") from error
    finally:
        for one in (*writers.values(), *([log] if log else [])):
            one.close()


def _shard_folder(output: Path, shard: int) -> Path:
    return output / SHARDS / f"{shard:05d}"


def _sha256_of(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode("utf-8")).hexdigest()


def _origin(plan: dict, shard: int) -> dict:
    """What a shard depends on; the keys complete the sentence of `_check_origin`."""
    settings = {name: value for name, value in plan["settings"].items() if name != "on_error"}  # may become skip
    return {
        "number": shard,
        "number of shards": plan["num_shards"],
        "settings": settings,
        "input": _sha256_of(plan["inputs"]),
        "tokenizer": plan["tokenizer_sha256"],
    }


def _check_origin(made: dict, plan: dict, shard: int, output: Path) -> None:
    folder = _shard_folder(output, shard)
    for name, value in _origin(plan, shard).items():
        if made["format_version"] != WORK_VERSION or made["made_from"][name] != value:
            raise InputError(f"{folder} was made with another {name}: delete it and run --shard {shard} again.")


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
    """What a shard has of one part: the counts, and where its tokens and records start in the shard's files."""

    part: Part
    counts: dict
    folder: Path
    first_token: dict[str, int]
    first_record: int

    @property
    def records(self) -> Records:
        return Records(self.folder / LOG, self.first_record, sum(self.counts["documents"].values()))


def merge(config: PrepareConfig, output: Path) -> dict:
    """Makes the dataset of the complete shards; returns the manifest."""
    plan = _read_plan(config, output)
    inputs = [Input(*one) for one in plan["inputs"]]
    tokenizer = load_made_tokenizer(plan["tokenizer_sha256"], output)
    pieces = _find_pieces(config, inputs, plan, _read_results(plan, output), output)
    is_duplicate = find_duplicates([piece.records for piece in pieces]) if config.deduplicate else None
    writers = make_writers(config, tokenizer, dict.fromkeys(SPLITS), output)
    total = sum(piece.counts["tokens"][split] for piece in pieces for split in writers)
    try:
        with tqdm(desc="Merging", total=total, unit="token", unit_scale=True, mininterval=1) as bar:
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
        dropped = {split: writer.finish() for split, writer in writers.items()}
    finally:
        for writer in writers.values():
            writer.close()
    totals = sum_up(inputs, [piece.part for piece in pieces], [piece.counts for piece in pieces])
    return finish(config, inputs, plan["ignored"], totals, tokenizer, writers, dropped, output)


def _read_results(plan: dict, output: Path) -> list[dict]:
    """Returns the results of all shards, whole and of this plan."""
    results = [read_json(_shard_folder(output, shard) / RESULT) for shard in range(plan["num_shards"])]
    missing = [str(shard) for shard, result in enumerate(results) if result is None]
    if missing:
        raise InputError(
            f"{output}: {len(missing)} of {len(results)} shards are not complete; run --shard {','.join(missing)} first."
        )
    total = sum(file["bytes"] for result in results for file in result["files"].values())
    with tqdm(desc="Checking", total=total, unit="B", unit_scale=True, mininterval=1) as bar:
        for shard, result in enumerate(results):
            _check_origin(result, plan, shard, output)
            folder = _shard_folder(output, shard)
            damaged = None
            if result.pop("sha256") != _sha256_of(result):
                damaged = folder / RESULT
            for name, file in result["files"].items():
                path = folder / name
                if not path.is_file() or path.stat().st_size != file["bytes"] or sha256(path) != file["sha256"]:
                    damaged = path
                bar.update(file["bytes"])
            if damaged is not None:
                raise InputError(f"{damaged} is damaged: delete {folder} and run --shard {shard} again.")
    return results


def _find_pieces(config: PrepareConfig, inputs: list[Input], plan: dict, results: list[dict], output: Path) -> list[_Piece]:
    """Lists the parts in order, without those after a fault that ends their input, and with the faults of whole inputs."""
    pieces, ended = [], set()
    for shard, result in enumerate(results):
        tokens, record = dict.fromkeys(SPLITS, 0), 0
        for part, counts in zip(plan["shards"][shard], result["counts"], strict=True):
            piece = _Piece(Part(*part), counts, _shard_folder(output, shard), dict(tokens), record)
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
    """Copies the documents that are no duplicates, and takes the others from the counts."""
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
