# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Turns text into a tokenizer and a packed masked-LM dataset on disk.

`python -m pretraining.prepare OUT --source S` trains a byte-level BPE on the training documents (or takes an existing
tokenizer), packs the documents' tokens into rows of one length, and writes them as arrow shards. An interrupted run
goes on where it was when the same command is run again, with the same bytes in the end. See docs/prepare.md.
"""

import argparse
import errno
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from pretraining.encoding import encode_in_order
from pretraining.errors import PrepareError
from pretraining.files import hold_lock, sha256, write_json
from pretraining.packing import SplitWriter, count_tokens, write_dataset_files
from pretraining.sources import (
    DOCUMENT_SEPARATORS,
    EXTENSIONS,
    PLAIN_TEXT,
    PYTHON_DOCS,
    Fault,
    Input,
    Slice,
    cut_up,
    find_inputs,
    read_input,
)
from pretraining.tokenizer import (
    MIN_VOCAB_SIZE,
    load_tokenizer,
    row_end_id,
    row_start_id,
    train_tokenizer,
    wrap_tokenizer,
)

FORMAT_VERSION = 1
MANIFEST = "manifest.json"  # written last: where it is, the dataset is complete
PROGRESS = "progress.json"  # where an interrupted run goes on; removed at the end
LOCK = ".lock"
DEFAULT_VOCAB_SIZE = 50265
BATCH_CHARS = 2**18  # of text that a worker process takes at a time
BATCH_ITEMS = 1024
SAMPLE_CHARS = 2**14  # the BPE trainer holds 256 texts, so they are kept short
MAX_NAMES = 1000  # of skipped or ignored things in the manifest; all are counted
MAX_BYTES_PER_TOKEN = 5  # text that packs denser than this is rare, so less disk than this implies is not enough


@dataclass
class PrepareConfig:
    """The settings of one dataset; the fields are the options of the command line.

    Raises:
        PrepareError: a value that cannot be used.
    """

    output: str
    sources: list[str]
    text_column: str = field(default="text", metadata={"help": "field of .jsonl, .parquet and Hub rows with the text"})
    document_separator: str = field(
        default="file",
        metadata={"help": "what divides plain text into documents", "choices": DOCUMENT_SEPARATORS},
    )
    tokenizer: str | None = field(
        default=None, metadata={"help": "existing tokenizer, a folder or a name on the Hub (default: train one)"}
    )
    vocab_size: int | None = field(
        default=None, metadata={"help": f"entries of the tokenizer to train (default: {DEFAULT_VOCAB_SIZE})"}
    )
    tokenizer_sample_mb: float = field(default=200, metadata={"help": "text to train the tokenizer on, at most"})
    sequence_length: int = field(default=512, metadata={"help": "tokens in a row, first and last token included"})
    validation_fraction: float = field(default=0.01, metadata={"help": "documents held out; 0 for none"})
    seed: int = field(default=0, metadata={"help": "chooses which documents are held out"})
    shard_size_mb: float = field(default=256, metadata={"help": "size of a shard, about"})
    on_error: str = field(
        default="fail", metadata={"help": "what to do about input that cannot be read", "choices": ("skip", "fail")}
    )
    num_proc: int | None = field(
        default=None, metadata={"help": "processes that tokenise; the result is the same (default: number of CPUs)"}
    )

    def __post_init__(self):
        if self.num_proc is None:
            self.num_proc = os.cpu_count() or 1
        self.output = str(self.output)
        self.sources = [str(source) for source in self.sources]
        _require(len(self.sources) > 0, "source", "none", "give at least one")
        for source in self.sources:
            _require(self.sources.count(source) == 1, "source", source, "it is given twice, give it once")
        if self.tokenizer is None:
            if self.vocab_size is None:
                self.vocab_size = DEFAULT_VOCAB_SIZE
            _require(
                self.vocab_size >= MIN_VOCAB_SIZE,
                "vocab_size",
                self.vocab_size,
                f"use {MIN_VOCAB_SIZE} or more (256 bytes and {MIN_VOCAB_SIZE - 256} special tokens)",
            )
        else:
            _require(self.vocab_size is None, "vocab_size", self.vocab_size, "leave it out, --tokenizer sets it")
        for name in ("tokenizer_sample_mb", "shard_size_mb"):
            _require(0 < getattr(self, name) < float("inf"), name, getattr(self, name), "use a number above 0")
        _require(self.sequence_length >= 3, "sequence_length", self.sequence_length, "use 3 or more")
        _require(
            0 <= self.validation_fraction < 1,
            "validation_fraction",
            self.validation_fraction,
            "use a number from 0 to below 1",
        )
        _require(0 <= self.seed < 2**64, "seed", self.seed, "use a whole number from 0 to 2**64 - 1")
        _require(self.num_proc >= 1, "num_proc", self.num_proc, "use 1 or more")
        for name in ("document_separator", "on_error"):
            choices = next(f.metadata["choices"] for f in fields(self) if f.name == name)
            _require(getattr(self, name) in choices, name, getattr(self, name), f"use one of {', '.join(choices)}")

    def settings(self) -> dict:
        """The fields that can change the dataset."""
        values = asdict(self)
        del values["output"], values["num_proc"]
        return values


def _require(holds: bool, name: str, value: object, remedy: str) -> None:
    if not holds:
        raise PrepareError(f"--{name} {value}: {remedy}.")


# ---------------------------------------------------------------------------------------------------------------------
# The run


def prepare(config: PrepareConfig) -> dict:
    """Makes the dataset in `config.output`, goes on with an interrupted one, or finds it complete.

    Returns:
        The manifest, as in OUT/manifest.json.

    Raises:
        PrepareError: an option, an input or the output folder cannot be used.
    """
    output = Path(config.output)
    try:
        output.mkdir(parents=True, exist_ok=True)
        manifest = _read_json(output / MANIFEST)
        if manifest is not None:
            _check_settings(config, manifest)
            print(f"{output} is complete already, with these settings: nothing to do.")
            return manifest
        with _locked(output):
            return _prepare(config, output)
    except OSError as error:
        # Reading faults are handled where they arise; what comes here is the output folder's.
        remedy = "choose a folder that can be written to"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "free some space and run the same command again to continue"
        raise PrepareError(f"{error.filename or output}: {error.strerror or error}; {remedy}.") from error


def _prepare(config: PrepareConfig, output: Path) -> dict:
    inputs, ignored = _list_inputs(config, output)
    progress = _read_progress(config, inputs, output)
    _check_disk_space(config, inputs, progress, output)
    tokenizer = _make_tokenizer(config, inputs, progress, output)
    writers = _make_writers(config, tokenizer, progress, output)
    try:
        _pack(config, inputs, progress, writers, output)
        dropped = {split: writer.finish() for split, writer in writers.items()}
    finally:
        for writer in writers.values():
            writer.close()
    _check_enough_text(config, inputs, progress, writers, dropped)
    return _finish(config, inputs, ignored, progress, writers, dropped, output)


@contextmanager
def _locked(output: Path) -> Iterator[None]:
    file = hold_lock(output / LOCK)
    if file is None:
        raise PrepareError(f"{output}: another run is writing here; wait for it or use another folder.")
    with file:
        yield


def _read_json(path: Path) -> dict | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        value = None
    if not isinstance(value, dict) or "format_version" not in value:
        raise PrepareError(f"{path}: this file is not from an earlier run; choose another folder.")
    return value


def _difference(config: PrepareConfig, earlier: dict) -> str | None:
    """What the settings of an earlier run (its manifest or progress) and these differ in, in words, or None."""
    if earlier["format_version"] != FORMAT_VERSION:
        return f"was made in format {earlier['format_version']}, and this version writes format {FORMAT_VERSION}"
    for name, new in config.settings().items():
        old = earlier["settings"].get(name)
        if old != new and not (name == "on_error" and earlier["skipped"]["count"] == 0):
            old, new = (" ".join(value) if isinstance(value, list) else value for value in (old, new))
            return f"was made with --{'source' if name == 'sources' else name} {old}, and this is {new}"
    return None


def _check_settings(config: PrepareConfig, earlier: dict) -> None:
    difference = _difference(config, earlier)
    if difference is not None:
        raise PrepareError(f"{config.output} {difference}: use the old value, another folder, or delete this one.")


# ---------------------------------------------------------------------------------------------------------------------
# Inputs and progress


def _list_inputs(config: PrepareConfig, output: Path) -> tuple[list[Input], list[str]]:
    inputs, ignored = [], []
    for source in config.sources:
        if os.path.isdir(source) and output.resolve().is_relative_to(Path(source).resolve()):
            raise PrepareError(f"--source {source}: the output folder {output} is inside it; move one of them.")
        found, unknown = find_inputs(source)
        if not found:
            raise PrepareError(f"--source {source}: it holds no file of a known kind ({', '.join(EXTENSIONS)}).")
        inputs += found
        ignored += [os.path.join(source, path) for path in unknown]
    if ignored:
        print(f"Ignored {len(ignored)} files of other kinds, first {ignored[0]}.")
    return inputs, ignored


def _read_progress(config: PrepareConfig, inputs: list[Input], output: Path) -> dict:
    """Returns the progress to go on from: that of an interrupted run of the same settings, or none."""
    listed = [[one.source, one.path, one.size, one.version] for one in inputs]
    progress = _read_json(output / PROGRESS)
    if progress is None:
        names = set(os.listdir(output)) - {LOCK, f"{PROGRESS}.tmp"}
        if names:
            raise PrepareError(
                f"{output}: the folder is not empty ({min(names)}) and not from an earlier run; choose another one."
            )
    else:
        difference = _difference(config, progress)
        if difference is None and progress["inputs"] != listed:
            old, new = next(pair for pair in zip_longest(progress["inputs"], listed) if pair[0] != pair[1])
            difference = f"was begun with other input (first change: {os.path.join(*(new or old)[:2])})"
        if difference is None:
            print(f"Going on with the interrupted run in {output}.")
            progress["settings"] = config.settings()  # on_error may have changed
            return progress
        if any(state and state["shards"] for state in progress["splits"].values()):
            raise PrepareError(
                f"{output} {difference}: go on with what it was begun with, use another folder, or delete this one."
            )
        print(f"{output} {difference}; no shard was finished, so it is begun anew.")
        for name in ("tokenizer", "train", "validation"):
            shutil.rmtree(output / name, ignore_errors=True)
    progress = {
        "format_version": FORMAT_VERSION,
        "settings": config.settings(),
        "inputs": listed,
        "tokenizer_sha256": None,
        "position": [0, 0],  # input, items of it that are packed
        "documents": [0] * len(inputs),
        "empty_documents": 0,
        "skipped": {"count": 0, "first": []},
        "text_bytes": {"train": 0, "validation": 0},
        "splits": {"train": None, "validation": None},
    }
    write_json(output / PROGRESS, progress, indent=None)
    return progress


def _check_disk_space(config: PrepareConfig, inputs: list[Input], progress: dict, output: Path) -> None:
    packed = sum(progress["text_bytes"].values())
    itemsize = 2 if config.vocab_size is None or config.vocab_size < 2**16 else 4
    needed = (sum(one.size or 0 for one in inputs) - packed) / MAX_BYTES_PER_TOKEN * itemsize
    free = shutil.disk_usage(output).free
    if needed > free:
        raise PrepareError(
            f"{output}: the dataset takes at least {needed / 1e6:.0f} MB and {free / 1e6:.0f} MB are free; free some "
            "space or use another folder."
        )


# ---------------------------------------------------------------------------------------------------------------------
# Documents


class Item(NamedTuple):
    """What is read from an input, with its place and the split of its document."""

    input: int
    number: int
    content: Slice | Fault
    split: str


def split_of(document: str, seed: int, validation_fraction: float) -> str:
    """The split of a document: a keyed hash of its text (its first slice), so that equal documents stay together.

    White space around the text does not count: formats differ in whether a document ends with a line end.
    """
    digest = hashlib.blake2b(document.strip().encode("utf-8"), digest_size=8, key=str(seed).encode("ascii")).digest()
    return "validation" if int.from_bytes(digest, "big") < validation_fraction * 2**64 else "train"


def _read(config: PrepareConfig, inputs: list[Input], index: int) -> Iterator[Item]:
    split = "train"
    for number, content in enumerate(read_input(inputs[index], config.text_column, config.document_separator)):
        if isinstance(content, Fault):
            if config.on_error == "fail":
                raise PrepareError(f"{content.where} {content.reason}: correct it, or pass --on_error skip.")
        elif content.first:
            split = split_of(content.text, config.seed, config.validation_fraction)
        yield Item(index, number, content, split)


def _read_from(config: PrepareConfig, inputs: list[Input], position: list[int]) -> Iterator[Item]:
    for index in range(position[0], len(inputs)):
        for item in _read(config, inputs, index):
            if [item.input, item.number] >= position:
                yield item


def _batches(items: Iterable[Item]) -> Iterator[tuple[list[Item], list[str]]]:
    batch, chars = [], 0
    for item in items:
        batch.append(item)
        if isinstance(item.content, Slice):
            chars += len(item.content.text)
        if chars >= BATCH_CHARS or len(batch) == BATCH_ITEMS:
            yield batch, [i.content.text for i in batch if isinstance(i.content, Slice)]
            batch, chars = [], 0
    if batch:
        yield batch, [i.content.text for i in batch if isinstance(i.content, Slice)]


# ---------------------------------------------------------------------------------------------------------------------
# Stages


def _make_tokenizer(config: PrepareConfig, inputs: list[Input], progress: dict, output: Path):
    folder = output / "tokenizer"
    if progress["tokenizer_sha256"] is not None:
        file = folder / "tokenizer.json"
        if not file.is_file() or sha256(file) != progress["tokenizer_sha256"]:
            raise PrepareError(f"{file} is not as the interrupted run left it: delete {output} and run again.")
        return load_tokenizer(str(folder))
    if config.tokenizer is None:
        tokenizer = wrap_tokenizer(train_tokenizer(_sample(config, inputs), config.vocab_size))
    else:
        tokenizer = load_tokenizer(config.tokenizer)
    tokenizer.model_max_length = config.sequence_length
    if folder.exists():  # of a run that was killed while saving
        shutil.rmtree(folder)
    tokenizer.save_pretrained(str(folder))
    progress["tokenizer_sha256"] = sha256(folder / "tokenizer.json")
    write_json(output / PROGRESS, progress, indent=None)
    return tokenizer


def _sample(config: PrepareConfig, inputs: list[Input]) -> Iterator[str]:
    """Text of training documents: from the start of each input, in proportion to the inputs' sizes."""
    limit = config.tokenizer_sample_mb * 1e6
    sizes = [limit if one.size is None else one.size for one in inputs]
    total = max(1, sum(sizes))
    with_text = set()
    with tqdm(desc="Reading for the tokenizer", unit="B", unit_scale=True, mininterval=1) as bar:
        for index, input_size in enumerate(sizes):
            left = int(limit * input_size / total)
            for item in _read(config, inputs, index):
                if isinstance(item.content, Fault) or not item.content.text:
                    continue
                with_text.add(inputs[index].source)
                if item.split == "validation":
                    continue
                text = item.content.text.encode("utf-8")[:left].decode("utf-8", "ignore")
                size = len(text.encode("utf-8"))
                left -= size
                bar.update(size)
                yield from cut_up(text, SAMPLE_CHARS)
                if left <= 0 or size < len(item.content.text):
                    break
    _check_sources(config, with_text)


def _check_sources(config: PrepareConfig, with_text: set[str]) -> None:
    for source in config.sources:
        if source not in with_text:
            raise PrepareError(f"--source {source}: no text could be read from it; correct its files or leave it out.")


def _make_writers(config: PrepareConfig, tokenizer, progress: dict, output: Path) -> dict[str, SplitWriter]:
    progress["vocab_size"] = max(tokenizer.get_vocab().values()) + 1
    try:
        return {
            split: SplitWriter(
                output / split,
                config.sequence_length,
                row_start_id(tokenizer),
                row_end_id(tokenizer),
                np.dtype("uint16" if progress["vocab_size"] < 2**16 else "int32"),
                config.shard_size_mb * 1e6,
                progress["splits"][split],
            )
            for split in (("train", "validation") if config.validation_fraction else ("train",))
        }
    except FileNotFoundError as error:
        raise PrepareError(f"{error} is not as the interrupted run left it: delete {output} and run again.") from error


def _pack(config: PrepareConfig, inputs: list[Input], progress: dict, writers: dict[str, SplitWriter], output: Path) -> None:
    batches = _batches(_read_from(config, inputs, progress["position"]))
    finished = sum(len(writer.shards) for writer in writers.values())
    packed = sum(progress["text_bytes"].values())
    total = None  # of text, known where the files hold nothing else
    if all(one.name.endswith((PYTHON_DOCS, *PLAIN_TEXT)) for one in inputs):
        total = sum(one.size or 0 for one in inputs)
    with tqdm(desc="Packing", total=total, unit="B", unit_scale=True, mininterval=1, initial=packed) as bar:
        for items, encoded in encode_in_order(batches, output / "tokenizer", config.num_proc):
            tokens = iter(encoded)
            for item in items:
                progress["position"] = [item.input, item.number + 1]
                if isinstance(item.content, Fault):
                    progress["skipped"]["count"] += 1
                    if len(progress["skipped"]["first"]) < MAX_NAMES:
                        progress["skipped"]["first"].append(item.content._asdict())
                    continue
                tokens_of_item = next(tokens)
                if not item.content.text:
                    progress["empty_documents"] += 1
                    continue
                progress["documents"][item.input] += item.content.first
                size = len(item.content.text.encode("utf-8"))
                progress["text_bytes"][item.split] += size
                bar.update(size)
                writers[item.split].add(tokens_of_item, item.content.first)
                if sum(len(writer.shards) for writer in writers.values()) > finished:
                    finished = sum(len(writer.shards) for writer in writers.values())
                    progress["splits"].update({split: writer.checkpoint() for split, writer in writers.items()})
                    write_json(output / PROGRESS, progress, indent=None)
            bar.set_postfix(documents=sum(writer.documents for writer in writers.values()), refresh=False)


def _check_enough_text(
    config: PrepareConfig, inputs: list[Input], progress: dict, writers: dict[str, SplitWriter], dropped: dict
) -> None:
    counts = zip(inputs, progress["documents"], strict=True)
    _check_sources(config, {one.source for one, documents in counts if documents})
    length = f"--sequence_length {config.sequence_length}"
    if writers["train"].rows == 0:
        raise PrepareError(
            f"{length}: the training documents have {dropped['train']} tokens, too few for one row; lower it, or add text."
        )
    if "validation" in writers and writers["validation"].rows == 0:
        raise PrepareError(
            f"--validation_fraction {config.validation_fraction}: the documents held out have {dropped['validation']} "
            f"tokens, too few for one row; raise it, set it to 0, lower {length}, or add text."
        )


def _finish(
    config: PrepareConfig,
    inputs: list[Input],
    ignored: list[str],
    progress: dict,
    writers: dict[str, SplitWriter],
    dropped: dict[str, int],
    output: Path,
) -> dict:
    """Writes what describes the finished shards, the manifest last."""
    splits = {}
    for split, writer in writers.items():
        shards = [shard | {"sha256": sha256(writer.folder / shard["file"])} for shard in writer.shards]
        splits[split] = {
            "documents": writer.documents,
            "text_bytes": progress["text_bytes"][split],
            "tokens": writer.rows * (config.sequence_length - 2) + dropped[split],
            "rows": writer.rows,
            "dropped_tokens": dropped[split],
            "shards": shards,
        }
        digest = hashlib.sha256("".join(shard["sha256"] for shard in shards).encode("ascii"))
        write_dataset_files(writer, digest.hexdigest()[:16])
    train = writers["train"]
    counts = count_tokens([train.folder / shard["file"] for shard in train.shards], progress["vocab_size"])
    np.save(output / "token_counts.npy", counts)

    sources = []
    for source in config.sources:
        files = [
            {"path": one.path or one.source, "bytes": one.size, "documents": documents}
            for one, documents in zip(inputs, progress["documents"], strict=True)
            if one.source == source
        ]
        totals = {name: sum(file[name] or 0 for file in files) for name in ("bytes", "documents")}
        sources.append({"source": source, **totals, "files": files})
    manifest = {
        "format_version": FORMAT_VERSION,
        "fingerprint": None,
        "sequence_length": config.sequence_length,
        "vocab_size": progress["vocab_size"],
        "seed": config.seed,
        "tokenizer_sha256": progress["tokenizer_sha256"],
        "splits": splits,
        "empty_documents": progress["empty_documents"],
        "skipped": progress["skipped"],
        "ignored": {"count": len(ignored), "first": ignored[:MAX_NAMES]},
        "sources": sources,
        "settings": config.settings(),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in ("datasets", "pyarrow", "tokenizers", "transformers")},
    }
    manifest["fingerprint"] = _fingerprint(manifest)
    write_json(output / MANIFEST, manifest)
    (output / PROGRESS).unlink()
    (output / LOCK).unlink()
    _print_summary(manifest, output)
    return manifest


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


# ---------------------------------------------------------------------------------------------------------------------
# Command line


def parse_arguments(arguments: list[str] | None = None) -> PrepareConfig:
    """Reads the command line into a config."""
    parser = argparse.ArgumentParser(
        prog="python -m pretraining.prepare",
        description="Turn text into a tokenizer and a packed masked-LM dataset.",
        allow_abbrev=False,
    )
    parser.add_argument("output", metavar="OUT", help="folder of the dataset")
    parser.add_argument(
        "--source",
        dest="sources",
        metavar="SOURCE",
        action="append",
        required=True,
        help="python-docs (docstrings of the standard library), a file or folder of "
        f"{', '.join(EXTENSIONS)}, or hub:NAME[:CONFIG[:SPLIT]]; repeat for more",
    )
    types = {int | None: int, str | None: str}
    for option in fields(PrepareConfig)[2:]:
        shown = "" if option.default is None else f" (default: {option.default})"
        parser.add_argument(
            f"--{option.name}",
            type=types.get(option.type, option.type),
            default=option.default,
            choices=option.metadata.get("choices"),
            help=option.metadata["help"] + shown,
        )
    return PrepareConfig(**vars(parser.parse_args(arguments)))


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns 0, 2 for an error of the user's, 130 when interrupted."""
    try:
        prepare(parse_arguments(arguments))
    except PrepareError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted: run the same command again to continue.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
