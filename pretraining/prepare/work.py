# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The work that one job and several share: the tokenizer, and the texts as tokens."""

import shutil
from pathlib import Path

import numpy as np

from luna_tools.errors import InputError
from luna_tools.files import sha256, write_json
from luna_tools.tokenizer import wrap_tokenizer
from pretraining.dataset_format import SPLITS, TOKENIZER
from pretraining.prepare.config import PrepareConfig
from pretraining.prepare.documents import LEFT_OUT, Item, batches, read_from, sample_text
from pretraining.prepare.encoding import encode_in_order
from pretraining.prepare.packing import SplitWriter
from pretraining.prepare.progress import progress_bar
from pretraining.prepare.readers import Fault, FinalFault
from pretraining.prepare.sources import Input, Part
from pretraining.prepare.state import left_as_it_was
from pretraining.prepare.streams import DocumentLog, StreamWriter
from pretraining.prepare.tokenizer import load_tokenizer, row_end_id, row_start_id, train_tokenizer

MAX_NAMES = 1000  # of skipped or ignored things in the manifest; all are counted
MAX_BYTES_PER_TOKEN = 5  # text that packs denser than this is rare, so less disk than this implies is not enough


def check_disk_space(config: PrepareConfig, inputs: list[Input], packed: int, output: Path, copies: int = 1) -> None:
    """Raise InputError where the disk cannot hold what is still to be written, so many times."""
    itemsize = 2 if config.vocab_size is None or config.vocab_size < 2**16 else 4
    text = sum((one.size or 0) * one.share for one in inputs)
    needed = copies * (text - packed) / MAX_BYTES_PER_TOKEN * itemsize
    free = shutil.disk_usage(output).free
    if needed > free:
        raise InputError(
            f"{output}: the dataset takes at least {needed / 1e6:.0f} MB and {free / 1e6:.0f} MB are free; free some "
            "space or use another folder."
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


def make_writers(config: PrepareConfig, tokenizer, states: dict, output: Path) -> dict[str, SplitWriter]:
    """Open the writers of the splits, anew or from the states of their checkpoints.

    Raises:
        InputError: a shard is not as a state tells.
    """
    with left_as_it_was(output):
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


class Packing:
    """Parts of the inputs on their way to tokens, from where the progress is; it is saved at every finished shard.

    Args:
        config, inputs, parts: the settings, all inputs, and the parts of them to tokenise.
        progress: as of `new_progress`; it is kept up to date.
        progress_file: where to save it.
        writers: of the splits.
        log: of the documents, where duplicates are to be found.
    """

    def __init__(
        self,
        config: PrepareConfig,
        inputs: list[Input],
        parts: list[Part],
        progress: dict,
        progress_file: Path,
        writers: dict[str, SplitWriter] | dict[str, StreamWriter],
        log: DocumentLog | None = None,
    ):
        self.config = config
        self.inputs = inputs
        self.parts = parts
        self.progress = progress
        self.progress_file = progress_file
        self.writers = writers
        self.log = log
        # Names that are listed: so many of the first part, which a merge may drop, and so many of all others.
        self._names = [0, 0]
        for number, counts in enumerate(progress["counts"]):
            self._names[number > 0] += len(counts["skipped"]["first"])

    def run(self, tokenizer_folder: Path, title: str, total: int | None) -> None:
        """Do all of it, under a bar with this title that counts the `total` bytes of text."""
        items = read_from(self.config, self.inputs, self.parts, self.progress["position"])
        with progress_bar(title, "B", total, packed_bytes(self.progress)) as bar:
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

    def _save_when_due(self, item: Item) -> None:
        between_documents = isinstance(item.content, Fault) or item.content.first
        if any(writer.due for writer in self.writers.values()) and (self.log is None or between_documents):
            self.progress["splits"].update({split: writer.checkpoint() for split, writer in self.writers.items()})
            self.progress["log"] = self.log.checkpoint() if self.log else None
            write_json(self.progress_file, self.progress, indent=None)

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
        self.progress["skipped"]["count"] += 1
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
        self.writers[item.split].add(tokens, content.first)
        if self.log is not None:
            repeat = self.inputs[self.parts[item.part].input].repeat
            self.log.add(content.text, len(tokens) + content.first, content.first, item.split, repeat)
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


def packed_bytes(progress: dict) -> int:
    """Return the bytes of text that are done."""
    return sum(sum(counts["text_bytes"].values()) for counts in progress["counts"])
