# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The tokenizer, and the texts as tokens."""

import shutil
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from luna_tools.errors import InputError
from luna_tools.files import sha256, write_json
from luna_tools.tokenizer import wrap_tokenizer
from pretraining.dataset_format import SPLITS, TOKENIZER
from pretraining.prepare.config import PrepareConfig
from pretraining.prepare.documents import LEFT_OUT, Item, batches, read_from, sample_text
from pretraining.prepare.encoding import encode_in_order
from pretraining.prepare.progress import progress_bar
from pretraining.prepare.readers import Fault, FinalFault
from pretraining.prepare.sources import Input, Part
from pretraining.prepare.state import PROGRESS, left_as_it_was
from pretraining.prepare.streams import DocumentLog, StreamWriter
from pretraining.prepare.tokenizer import load_tokenizer, row_end_id, train_tokenizer

LOG = "documents.log"
MAX_NAMES = 1000  # of skipped or ignored things in the manifest; all are counted
MAX_BYTES_PER_TOKEN = 5  # text that packs denser than this is rare, so less disk than this implies is not enough


def check_disk_space(config: PrepareConfig, inputs: list[Input], output: Path) -> None:
    """Raise InputError where the disk cannot hold the token streams and, while they are merged, the dataset."""
    itemsize = 2 if config.vocab_size is None or config.vocab_size < 2**16 else 4
    needed = 2 * sum((one.size or 0) * one.share for one in inputs) / MAX_BYTES_PER_TOKEN * itemsize
    free = shutil.disk_usage(output).free
    if needed > free:
        raise InputError(
            f"{output}: the token streams and the dataset take at least {needed / 1e6:.0f} MB and {free / 1e6:.0f} MB are "
            "free; free some space or use another folder."
        )


def make_tokenizer(config: PrepareConfig, inputs: list[Input], output: Path) -> str:
    """Save the tokenizer, trained or given, and return the SHA-256 of its file."""
    folder = output / TOKENIZER
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
    """Load the tokenizer that `make_tokenizer` saved.

    Raises:
        InputError: it is not there, or another one.
    """
    file = output / TOKENIZER / "tokenizer.json"
    with left_as_it_was(output):
        if not file.is_file() or sha256(file) != expected_sha256:
            raise FileNotFoundError(file)
    return load_tokenizer(str(output / TOKENIZER))


def vocab_size_of(tokenizer) -> int:
    """Return the size of the embedding that the ids need."""
    return max(tokenizer.get_vocab().values()) + 1


def dtype_of(tokenizer) -> np.dtype:
    """Return the smaller integer type that holds all ids."""
    return np.dtype("uint16" if vocab_size_of(tokenizer) < 2**16 else "int32")


def used_splits(config: PrepareConfig) -> tuple[str, ...]:
    """Return the splits that are not empty."""
    return SPLITS if config.validation_fraction else SPLITS[:1]


@dataclass
class Share:
    """A share of the inputs on its way to token streams, from where its progress is; saved after about a shard's tokens."""

    config: PrepareConfig
    inputs: list[Input]
    """all of them"""
    parts: list[Part]
    """those of the share"""
    progress: dict
    """its position, counts and files; they are kept up to date"""
    folder: Path
    """of the progress, the streams and the log"""

    def write_streams(self, tokenizer, tokenizer_folder: Path, title: str, total: int) -> list[Path]:
        """Tokenise under a bar with this title that counts the `total` bytes of text; return the files.

        Raises:
            InputError: a file is not as the progress tells.
        """
        # Names that are listed: so many of the first part, which a merge may drop, and so many of all others.
        self._names = [0, 0]
        for number, counts in enumerate(self.progress["counts"]):
            self._names[number > 0] += len(counts["skipped"]["first"])
        with ExitStack() as opened:

            def reopen(name: str, kind: type, *options):
                file = kind(self.folder / name, self.progress["files"].get(name), *options)
                return opened.enter_context(closing(file))

            with left_as_it_was(self.folder):
                ids = row_end_id(tokenizer), dtype_of(tokenizer)
                self._writers = {split: reopen(f"{split}.tokens", StreamWriter, *ids) for split in used_splits(self.config)}
                self._log = reopen(LOG, DocumentLog) if self.config.deduplicate else None
            self._files = [*self._writers.values(), *([self._log] if self._log else [])]
            self._saved_bytes = self._written_bytes()
            self._tokenise(tokenizer_folder, title, total)
            self._sync()
        return [file.path for file in self._files]

    def _tokenise(self, tokenizer_folder: Path, title: str, total: int) -> None:
        items = read_from(self.config, self.inputs, self.parts, self.progress["position"])
        done = sum(sum(counts["text_bytes"].values()) for counts in self.progress["counts"])
        with progress_bar(title, "B", total, done) as bar:
            for group, encoded in encode_in_order(batches(items), tokenizer_folder, self.config.num_proc):
                tokens = iter(encoded)
                for item in group:
                    self._save_when_due(item)
                    self._count_up_to(item.part + 1)
                    self.progress["position"] = [item.part, item.number + 1]
                    if isinstance(item.content, Fault):
                        self._add_fault(item)
                    elif item.split != LEFT_OUT:
                        bar.update(self._add_slice(item, next(tokens)))
                    elif item.content.first:
                        self._count_once(item, "left_out")
        self._count_up_to(len(self.parts))  # in the last ones, no document may start

    def _written_bytes(self) -> int:
        return sum(writer.bytes for writer in self._writers.values())

    def _sync(self) -> None:
        self.progress["files"] = {file.path.name: file.checkpoint() for file in self._files}

    def _save_when_due(self, item: Item) -> None:
        if self._written_bytes() - self._saved_bytes < self.config.shard_size_mb * 1e6:
            return
        # The log's hash of a document that is begun cannot be kept.
        if self._log is None or isinstance(item.content, Fault) or item.content.first:
            self._sync()
            self._saved_bytes = self._written_bytes()
            write_json(self.folder / PROGRESS, self.progress, indent=None)

    def _count_up_to(self, parts: int) -> None:
        while len(self.progress["counts"]) < parts:
            self.progress["counts"].append(_new_counts())

    def _count_once(self, item: Item, name: str) -> None:
        """Count what is no document in the first repetition of an input alone."""
        self.progress["counts"][item.part][name] += self.inputs[self.parts[item.part].input].repeat == 0

    def _add_fault(self, item: Item) -> None:
        counts = self.progress["counts"][item.part]
        counts["ended"] |= isinstance(item.content, FinalFault)
        if self.inputs[self.parts[item.part].input].repeat > 0:
            return
        counts["skipped"]["count"] += 1
        if self._names[item.part > 0] < MAX_NAMES:
            self._names[item.part > 0] += 1
            counts["skipped"]["first"].append(item.content._asdict())

    def _add_slice(self, item: Item, tokens: np.ndarray) -> int:
        """Return its bytes of text."""
        content, counts = item.content, self.progress["counts"][item.part]
        if not content.text:
            self._count_once(item, "empty_documents")
            return 0
        size = len(content.text.encode("utf-8"))
        counts["documents"][item.split] += content.first
        counts["text_bytes"][item.split] += size
        counts["tokens"][item.split] += len(tokens) + content.first
        self._writers[item.split].add(tokens, content.first)
        if self._log is not None:
            repeat = self.inputs[self.parts[item.part].input].repeat
            self._log.add(content.text, len(tokens) + content.first, content.first, item.split, repeat)
        return size


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
