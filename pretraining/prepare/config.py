# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The settings of a dataset, and which part of the work a run of prepare does."""

import os
from dataclasses import asdict, dataclass, field, fields

from luna_tools.errors import InputError
from pretraining.prepare.sources import DOCUMENT_SEPARATORS
from pretraining.prepare.tokenizer import MIN_VOCAB_SIZE

DEFAULT_VOCAB_SIZE = 50265


@dataclass
class PrepareConfig:
    """The settings of one dataset; the fields are the options of the command line.

    Raises:
        InputError: a value that cannot be used.
    """

    output: str
    sources: list[str]
    weights: list[float] | None = None  # one for each source
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
    deduplicate: bool = field(default=False, metadata={"help": "leave out documents whose text came before"})
    num_proc: int | None = field(
        default=None, metadata={"help": "processes that tokenise; the result is the same (default: number of CPUs)"}
    )
    num_shards: int | None = field(
        default=None,
        metadata={"help": "divide the work into so many jobs; the result is the same; with one of the next three"},
    )
    plan: bool = field(default=False, metadata={"help": "first: divide the work and make the tokenizer"})
    shard: int | None = field(default=None, metadata={"help": "then, for each number from 0: tokenise this share"})
    merge: bool = field(default=False, metadata={"help": "at last: make the dataset of the complete shards"})

    def __post_init__(self):
        if self.num_proc is None:
            self.num_proc = os.cpu_count() or 1
        self.output = str(self.output)
        self.sources = [str(source) for source in self.sources]
        _require(len(self.sources) > 0, "source", "none", "give at least one")
        for source in self.sources:
            _require(self.sources.count(source) == 1, "source", source, "it is given twice, give it once")
        if self.weights is not None:
            _require(
                len(self.weights) == len(self.sources),
                "weight",
                " ".join(f"{weight:g}" for weight in self.weights),
                f"give {len(self.sources)}, one for each --source, or none",
            )
            for weight in self.weights:
                _require(0 < weight < float("inf"), "weight", weight, "use a number above 0")
            if set(self.weights) == {1}:
                self.weights = None
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
        if self.num_shards is None:
            for name in ("plan", "shard", "merge"):
                value = getattr(self, name)
                _require(value is None or value is False, name, value, "add --num_shards")
        else:
            _require(self.num_shards >= 1, "num_shards", self.num_shards, "use 1 or more")
            chosen = self.plan + self.merge + (self.shard is not None)
            _require(chosen == 1, "num_shards", self.num_shards, "add one of --plan, --shard and --merge")
            last = self.num_shards - 1
            _require(self.shard is None or 0 <= self.shard <= last, "shard", self.shard, f"use a number from 0 to {last}")
        for name in ("document_separator", "on_error"):
            choices = next(f.metadata["choices"] for f in fields(self) if f.name == name)
            _require(getattr(self, name) in choices, name, getattr(self, name), f"use one of {', '.join(choices)}")

    def settings(self) -> dict:
        """The fields that can change the dataset; options that are off are left out."""
        values = asdict(self)
        for name in ("output", "num_proc", "num_shards", "plan", "shard", "merge"):
            del values[name]
        for name in ("weights", "deduplicate"):
            if not values[name]:
                del values[name]
        return values


def _require(holds: bool, name: str, value: object, remedy: str) -> None:
    if not holds:
        raise InputError(f"--{name} {value}: {remedy}.")
