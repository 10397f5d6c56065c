# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The end of the work: what describes the finished shards, the manifest last."""

import hashlib
import importlib.metadata
import json
import platform
from pathlib import Path

import numpy as np

from luna_tools.errors import InputError
from luna_tools.files import sha256, write_json
from pretraining.dataset_format import FORMAT_VERSION, MANIFEST, TOKEN_COUNTS, TOKENIZER, TRAIN, VALIDATION
from pretraining.prepare.config import PrepareConfig
from pretraining.prepare.documents import check_sources
from pretraining.prepare.packing import SplitWriter, count_tokens, write_dataset_files
from pretraining.prepare.progress import progress_bar
from pretraining.prepare.sources import Input
from pretraining.prepare.state import LOCK, remove_unfinished
from pretraining.prepare.work import MAX_NAMES, vocab_size_of


def add_up(values: list) -> int | list | dict:
    """Add up numbers or lists, or dictionaries of such, key by key."""
    if isinstance(values[0], dict):
        return {key: add_up([value[key] for value in values]) for key in values[0]}
    return sum(values[1:], values[0])


def _check_enough_text(config: PrepareConfig, writers: dict[str, SplitWriter], dropped: dict[str, int]) -> None:
    length = f"--sequence_length {config.sequence_length}"
    if writers[TRAIN].rows == 0:
        raise InputError(
            f"{length}: the training documents have {dropped[TRAIN]} tokens, too few for one row; lower it, or add text."
        )
    if VALIDATION in writers and writers[VALIDATION].rows == 0:
        raise InputError(
            f"--validation_fraction {config.validation_fraction}: the documents held out have {dropped[VALIDATION]} "
            f"tokens, too few for one row; raise it, set it to 0, lower {length}, or add text."
        )


def finish(
    config: PrepareConfig,
    inputs: list[Input],
    ignored: list[str],
    counted: list[tuple[Input, dict]],
    tokenizer,
    writers: dict[str, SplitWriter],
    output: Path,
) -> dict:
    """End the shards of all parts, `counted` with the inputs that they are of, and write what describes them."""
    dropped = {split: writer.finish() for split, writer in writers.items()}
    documents_of = dict.fromkeys(((one.source, one.path) for one in inputs), 0)  # of all repetitions of an input
    with_text = set()
    for one, of in counted:
        documents = sum(of["documents"].values())
        documents_of[one.source, one.path] += documents
        if documents or of["left_out"] or of["duplicates"]:
            with_text.add(one.source)
    check_sources(config, with_text)
    _check_enough_text(config, writers, dropped)
    totals = add_up([of for _, of in counted])
    skipped = totals["skipped"]
    splits = {}
    for split, writer in writers.items():
        shards = [
            shard | {"sha256": sha256(writer.folder / shard["file"])}
            for shard in progress_bar(f"Checksums of {split}", "shard", over=writer.shards)
        ]
        splits[split] = {
            "documents": writer.documents,
            "text_bytes": totals["text_bytes"][split],
            "tokens": writer.rows * (config.sequence_length - 2) + dropped[split],
            "rows": writer.rows,
            "dropped_tokens": dropped[split],
            "shards": shards,
        }
        digest = hashlib.sha256("".join(shard["sha256"] for shard in shards).encode("ascii"))
        write_dataset_files(writer, digest.hexdigest()[:16])
    train = writers[TRAIN]
    vocab_size = vocab_size_of(tokenizer)
    np.save(output / TOKEN_COUNTS, count_tokens([train.folder / shard["file"] for shard in train.shards], vocab_size))

    sources = []
    for source in config.sources:
        files = [
            {"path": one.path or one.source, "bytes": one.size, "documents": documents_of[one.source, one.path]}
            for one in inputs
            if one.source == source and one.repeat == 0
        ]
        sums = {name: sum(file[name] or 0 for file in files) for name in ("bytes", "documents")}
        sources.append({"source": source, **sums, "files": files})
    manifest = {
        "format_version": FORMAT_VERSION,
        "fingerprint": None,
        "sequence_length": config.sequence_length,
        "vocab_size": vocab_size,
        "seed": config.seed,
        "tokenizer_sha256": sha256(output / TOKENIZER / "tokenizer.json"),
        "splits": splits,
        "empty_documents": totals["empty_documents"],
        **({"left_out_documents": totals["left_out"]} if config.weights else {}),
        **({"duplicate_documents": totals["duplicates"]} if config.deduplicate else {}),
        "skipped": {"count": skipped["count"], "first": skipped["first"][:MAX_NAMES]},
        "ignored": {"count": len(ignored), "first": ignored[:MAX_NAMES]},
        "sources": sources,
        "settings": config.settings(),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in ("datasets", "pyarrow", "tokenizers", "transformers")},
    }
    manifest["fingerprint"] = _fingerprint(manifest)
    write_json(output / MANIFEST, manifest)
    remove_unfinished(output)
    (output / LOCK).unlink()
    _print_summary(manifest, output)
    return manifest


def _fingerprint(manifest: dict) -> str:
    """Return a hash of the data alone: the same for any place, time, number of processes and version that made it."""
    parts = {
        "format_version": manifest["format_version"],
        "sequence_length": manifest["sequence_length"],
        "vocab_size": manifest["vocab_size"],
        "seed": manifest["seed"],
        "validation_fraction": manifest["settings"]["validation_fraction"],
        "tokenizer": manifest["tokenizer_sha256"],
        "shards": {split: [shard["sha256"] for shard in of["shards"]] for split, of in manifest["splits"].items()},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode("utf-8")).hexdigest()


def _print_summary(manifest: dict, output: Path) -> None:
    for split, of in manifest["splits"].items():
        print(
            f"{split}: {of['documents']:,} documents, {of['tokens']:,} tokens, {of['rows']:,} rows of "
            f"{manifest['sequence_length']}, {of['dropped_tokens']} tokens dropped at the end."
        )
    skipped = manifest["skipped"]
    if skipped["count"]:
        first = skipped["first"][0]
        print(
            f"Skipped {skipped['count']} that could not be read, first: {first['where']} {first['reason']}; the names "
            f"are in {output / MANIFEST}."
        )
    print(f"Done: {output}, vocabulary {manifest['vocab_size']:,}, fingerprint {manifest['fingerprint'][:16]}.")
