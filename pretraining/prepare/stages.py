# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The stages that one job and several share: what is there already, tokenising, and finishing the dataset."""

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
from tqdm import tqdm

from luna_tools.errors import InputError
from luna_tools.files import hold_lock, sha256, write_json
from pretraining.prepare.config import PrepareConfig
from pretraining.prepare.documents import LEFT_OUT, batches, check_sources, read_from, sample_text
from pretraining.prepare.encoding import encode_in_order
from pretraining.prepare.packing import SplitWriter, count_tokens, write_dataset_files
from pretraining.prepare.sources import Fault, FinalFault, Input, Part
from pretraining.prepare.streams import SPLITS, DocumentLog, StreamWriter
from pretraining.prepare.tokenizer import load_tokenizer, row_end_id, row_start_id, train_tokenizer, wrap_tokenizer

FORMAT_VERSION = 1  # of the dataset
WORK_VERSION = 2  # of the files of unfinished work
MANIFEST = "manifest.json"  # written last: where it is, the dataset is complete
PROGRESS = "progress.json"  # where an interrupted run goes on; removed at the end
PLAN = "plan.json"  # how the work is divided among shards
SHARDS = "shards"  # a folder for each; it and the plan are removed at the end
LOCK = ".lock"
MAX_NAMES = 1000  # of skipped or ignored things in the manifest; all are counted
MAX_BYTES_PER_TOKEN = 5  # text that packs denser than this is rare, so less disk than this implies is not enough


# ---------------------------------------------------------------------------------------------------------------------
# What is there already


@contextmanager
def locked(output: Path) -> Iterator[None]:
    file = hold_lock(output / LOCK)
    if file is None:
        raise InputError(f"{output}: another run is writing here; wait for it or use another folder.")
    with file:
        yield


def read_json(path: Path) -> dict | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        value = None
    if not isinstance(value, dict) or "format_version" not in value:
        raise InputError(f"{path}: this file is not from an earlier run; choose another folder.")
    return value


def difference_from(config: PrepareConfig, earlier: dict, version: int) -> str | None:
    """What an earlier run (its manifest, progress or plan) and this one differ in, in words, or None."""
    if earlier["format_version"] != version:
        return f"was made in format {earlier['format_version']}, and this version writes format {version}"
    settings = config.settings()
    for name in settings | earlier["settings"]:
        old, new = (values.get(name) for values in (earlier["settings"], settings))
        if old != new and not (name == "on_error" and earlier["skipped"]["count"] == 0):
            old, new = (" ".join(map(str, value)) if isinstance(value, list) else value for value in (old, new))
            option = {"sources": "source", "weights": "weight"}.get(name, name)
            return f"was made with --{option} {old}, and this is {new}"
    return None


def refuse_difference(difference: str | None, output: Path) -> None:
    if difference is not None:
        raise InputError(f"{output} {difference}: use the old value, another folder, or delete this one.")


def require_empty(output: Path) -> None:
    names = set(os.listdir(output)) - {LOCK, f"{PROGRESS}.tmp", f"{PLAN}.tmp"}
    if names:
        raise InputError(
            f"{output}: the folder is not empty ({min(names)}) and not from an earlier run; choose another one."
        )


def first_change(old: list[list], new: list[list]) -> str:
    before, after = next(pair for pair in zip_longest(old, new) if pair[0] != pair[1])
    return os.path.join(*(after or before)[:2])


def new_progress() -> dict:
    return {
        "format_version": WORK_VERSION,
        "position": [0, 0],  # part, items of it that are done
        "counts": [],  # of each part that is begun
        "skipped": {"count": 0},  # in all parts
        "splits": dict.fromkeys(SPLITS),
        "log": None,
    }


def _new_counts() -> dict:
    return {
        "documents": dict.fromkeys(SPLITS, 0),
        "text_bytes": dict.fromkeys(SPLITS, 0),
        "tokens": dict.fromkeys(SPLITS, 0),  # one before each document included
        "empty_documents": 0,
        "left_out": 0,
        "duplicates": 0,  # known after the merge
        "skipped": {"count": 0, "first": []},
        "ended": False,  # by a fault after which nothing of the input is read
    }


def packed_bytes(progress: dict) -> int:
    """The bytes of text that are done."""
    return sum(sum(counts["text_bytes"].values()) for counts in progress["counts"])


def check_disk_space(config: PrepareConfig, inputs: list[Input], packed: int, output: Path, copies: int = 1) -> None:
    itemsize = 2 if config.vocab_size is None or config.vocab_size < 2**16 else 4
    text = sum((one.size or 0) * one.share for one in inputs)
    needed = copies * (text - packed) / MAX_BYTES_PER_TOKEN * itemsize
    free = shutil.disk_usage(output).free
    if needed > free:
        raise InputError(
            f"{output}: the dataset takes at least {needed / 1e6:.0f} MB and {free / 1e6:.0f} MB are free; free some "
            "space or use another folder."
        )


# ---------------------------------------------------------------------------------------------------------------------
# Work


def make_tokenizer(config: PrepareConfig, inputs: list[Input], output: Path) -> str:
    """Saves the tokenizer, trained or given, and returns the SHA-256 of its file."""
    folder = output / "tokenizer"
    if config.tokenizer is None:
        tokenizer = wrap_tokenizer(train_tokenizer(sample_text(config, inputs), config.vocab_size))
    else:
        tokenizer = load_tokenizer(config.tokenizer)
    tokenizer.model_max_length = config.sequence_length
    if folder.exists():  # of a run that was killed while saving
        shutil.rmtree(folder)
    tokenizer.save_pretrained(str(folder))
    return sha256(folder / "tokenizer.json")


def load_made_tokenizer(expected_sha256: str, output: Path):
    file = output / "tokenizer" / "tokenizer.json"
    if not file.is_file() or sha256(file) != expected_sha256:
        raise InputError(f"{file} is not as the interrupted run left it: delete {output} and run again.")
    return load_tokenizer(str(output / "tokenizer"))


def _vocab_size(tokenizer) -> int:
    return max(tokenizer.get_vocab().values()) + 1


def dtype_of(tokenizer) -> np.dtype:
    return np.dtype("uint16" if _vocab_size(tokenizer) < 2**16 else "int32")


def used_splits(config: PrepareConfig) -> tuple[str, ...]:
    return SPLITS if config.validation_fraction else SPLITS[:1]


def make_writers(config: PrepareConfig, tokenizer, states: dict, output: Path) -> dict[str, SplitWriter]:
    try:
        return {
            split: SplitWriter(
                output / split,
                config.sequence_length,
                row_start_id(tokenizer),
                row_end_id(tokenizer),
                dtype_of(tokenizer),
                config.shard_size_mb * 1e6,
                states[split],
            )
            for split in used_splits(config)
        }
    except FileNotFoundError as error:
        raise InputError(f"{error} is not as the interrupted run left it: delete {output} and run again.") from error


def pack(
    config: PrepareConfig,
    inputs: list[Input],
    parts: list[Part],
    progress: dict,
    writers: dict[str, SplitWriter] | dict[str, StreamWriter],
    log: DocumentLog | None,
    tokenizer_folder: Path,
    progress_file: Path,
    bar: tqdm,
) -> None:
    """Tokenises the parts from where the progress is, hands the tokens to the writers, and saves the progress on the way."""
    names = [0, 0]  # listed of the first part (a merge may drop it) and of all others
    for number, counts in enumerate(progress["counts"]):
        names[number > 0] += len(counts["skipped"]["first"])
    groups = batches(read_from(config, inputs, parts, progress["position"]))
    for items, encoded in encode_in_order(groups, tokenizer_folder, config.num_proc):
        tokens = iter(encoded)
        for item in items:
            content, is_fault = item.content, isinstance(item.content, Fault)
            if any(writer.due for writer in writers.values()) and (log is None or is_fault or content.first):
                progress["splits"].update({split: writer.checkpoint() for split, writer in writers.items()})
                progress["log"] = log.checkpoint() if log else None
                write_json(progress_file, progress, indent=None)
            while len(progress["counts"]) <= item.part:
                progress["counts"].append(_new_counts())
            counts = progress["counts"][item.part]
            progress["position"] = [item.part, item.number + 1]
            repeat = inputs[parts[item.part].input].repeat  # what is not a document is counted the first time
            if is_fault:
                counts["ended"] |= isinstance(content, FinalFault)
                if repeat == 0:
                    progress["skipped"]["count"] += 1
                    counts["skipped"]["count"] += 1
                    if names[item.part > 0] < MAX_NAMES:
                        names[item.part > 0] += 1
                        counts["skipped"]["first"].append(content._asdict())
                continue
            if item.split == LEFT_OUT:
                counts["left_out"] += repeat == 0 and content.first
                continue
            tokens_of_item = next(tokens)
            if not content.text:
                counts["empty_documents"] += repeat == 0
                continue
            size = len(content.text.encode("utf-8"))
            counts["documents"][item.split] += content.first
            counts["text_bytes"][item.split] += size
            counts["tokens"][item.split] += len(tokens_of_item) + content.first
            bar.update(size)
            writers[item.split].add(tokens_of_item, content.first)
            if log is not None:
                log.add(content.text, len(tokens_of_item) + content.first, content.first, item.split, repeat)
    while len(progress["counts"]) < len(parts):  # parts in which no document starts
        progress["counts"].append(_new_counts())


@dataclass
class Totals:
    """What is told of all parts together; `documents` is per input."""

    documents: list[int]
    text_bytes: dict[str, int]
    empty_documents: int
    left_out: int
    duplicates: int
    skipped: dict
    with_text: set[str]  # sources


def sum_up(inputs: list[Input], parts: list[Part], all_counts: list[dict]) -> Totals:
    totals = Totals([0] * len(inputs), dict.fromkeys(SPLITS, 0), 0, 0, 0, {"count": 0, "first": []}, set())
    for part, counts in zip(parts, all_counts, strict=True):
        documents = sum(counts["documents"].values())
        totals.documents[part.input] += documents
        for split in SPLITS:
            totals.text_bytes[split] += counts["text_bytes"][split]
        totals.empty_documents += counts["empty_documents"]
        totals.left_out += counts["left_out"]
        totals.duplicates += counts["duplicates"]
        totals.skipped["count"] += counts["skipped"]["count"]
        totals.skipped["first"] += counts["skipped"]["first"]
        if documents or counts["left_out"] or counts["duplicates"]:
            totals.with_text.add(inputs[part.input].source)
    del totals.skipped["first"][MAX_NAMES:]
    return totals


def _check_enough_text(config: PrepareConfig, totals: Totals, writers: dict[str, SplitWriter], dropped: dict) -> None:
    check_sources(config, totals.with_text)
    length = f"--sequence_length {config.sequence_length}"
    if writers["train"].rows == 0:
        raise InputError(
            f"{length}: the training documents have {dropped['train']} tokens, too few for one row; lower it, or add text."
        )
    if "validation" in writers and writers["validation"].rows == 0:
        raise InputError(
            f"--validation_fraction {config.validation_fraction}: the documents held out have {dropped['validation']} "
            f"tokens, too few for one row; raise it, set it to 0, lower {length}, or add text."
        )


def finish(
    config: PrepareConfig,
    inputs: list[Input],
    ignored: list[str],
    totals: Totals,
    tokenizer,
    writers: dict[str, SplitWriter],
    dropped: dict[str, int],
    output: Path,
) -> dict:
    """Writes what describes the finished shards, the manifest last."""
    _check_enough_text(config, totals, writers, dropped)
    splits = {}
    for split, writer in writers.items():
        shards = [shard | {"sha256": sha256(writer.folder / shard["file"])} for shard in writer.shards]
        splits[split] = {
            "documents": writer.documents,
            "text_bytes": totals.text_bytes[split],
            "tokens": writer.rows * (config.sequence_length - 2) + dropped[split],
            "rows": writer.rows,
            "dropped_tokens": dropped[split],
            "shards": shards,
        }
        digest = hashlib.sha256("".join(shard["sha256"] for shard in shards).encode("ascii"))
        write_dataset_files(writer, digest.hexdigest()[:16])
    train = writers["train"]
    vocab_size = _vocab_size(tokenizer)
    np.save(output / "token_counts.npy", count_tokens([train.folder / shard["file"] for shard in train.shards], vocab_size))

    documents_of = dict.fromkeys(((one.source, one.path) for one in inputs), 0)  # of all repetitions of an input
    for one, documents in zip(inputs, totals.documents, strict=True):
        documents_of[one.source, one.path] += documents
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
        "tokenizer_sha256": sha256(output / "tokenizer" / "tokenizer.json"),
        "splits": splits,
        "empty_documents": totals.empty_documents,
        **({"left_out_documents": totals.left_out} if config.weights else {}),
        **({"duplicate_documents": totals.duplicates} if config.deduplicate else {}),
        "skipped": totals.skipped,
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


def remove_unfinished(output: Path) -> None:
    for name in (PROGRESS, PLAN):
        (output / name).unlink(missing_ok=True)
    shutil.rmtree(output / SHARDS, ignore_errors=True)


def _fingerprint(manifest: dict) -> str:
    """A hash of the data alone: the same for any place, time, number of processes and version that made it."""
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
