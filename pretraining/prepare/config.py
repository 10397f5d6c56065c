# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The settings of a dataset, and which part of the work a run does. The fields are the options of the command line."""

import os
from dataclasses import asdict, dataclass, fields
from typing import Literal, get_args, get_origin

from luna_tools.errors import InputError

DEFAULT_VOCAB_SIZE = 50265
MIN_VOCAB_SIZE = 261  # the 256 bytes and 5 special tokens
OF_A_RUN = ("output_dir", "num_proc", "num_jobs", "plan", "job", "merge")  # what does not change the dataset


@dataclass
class PrepareConfig:
    """The settings of one dataset.

    Raises:
        InputError: a value that cannot be used.
    """

    output_dir: str
    """folder of the dataset"""
    sources: list[str]
    """python-docs (docstrings of the standard library), files or folders of .txt, .md, .rst, .jsonl, .csv, .tsv (each also
    .gz or .zst) and .parquet, or hub:NAME[@REVISION][:CONFIG[:SPLIT]]"""
    weights: list[float] | None = None
    """one for each source: 0.5 takes half of its documents, 2 takes them twice; 1 for each unless given"""
    text_column: str = "text"
    """field of .jsonl, .csv, .tsv, .parquet and Hub rows with the text"""
    document_separator: Literal["file", "blank_line", "line"] = "file"
    """what divides plain text into documents"""
    tokenizer: str | None = None
    """existing tokenizer, a folder or a name on the Hub; without it one is trained"""
    vocab_size: int | None = None
    """entries of the tokenizer to train; 50265 unless given"""
    tokenizer_sample_mb: float = 200
    """text to train the tokenizer on, at most"""
    sequence_length: int = 512
    """tokens in a row, first and last token included"""
    validation_fraction: float = 0.01
    """documents held out; 0 for none"""
    seed: int = 0
    """chooses which documents are held out"""
    shard_size_mb: float = 256
    """size of a shard, a file of the dataset, about"""
    on_error: Literal["skip", "fail"] = "fail"
    """what to do about input that cannot be read"""
    deduplicate: bool = False
    """leave out documents whose text came before"""
    num_proc: int | None = None
    """processes that tokenise; the result is the same; as many as CPUs unless given"""
    num_jobs: int | None = None
    """divide the work into so many jobs; the result is the same; with one of the next three"""
    plan: bool = False
    """first: divide the work and make the tokenizer"""
    job: int | None = None
    """then, for each number from 0: tokenise this share"""
    merge: bool = False
    """at last: make the dataset of what the jobs left"""

    def __post_init__(self):
        self.output_dir = str(self.output_dir)
        self.sources = [str(source) for source in self.sources]
        if self.num_proc is None:
            self.num_proc = os.cpu_count() or 1
        if self.weights is not None and set(self.weights) == {1}:
            self.weights = None
        if self.tokenizer is None and self.vocab_size is None:
            self.vocab_size = DEFAULT_VOCAB_SIZE
        self._check_text()
        self._check_tokens()
        self._check_division()

    def _check_text(self) -> None:
        _require(len(self.sources) > 0, "sources", "give at least one")
        for source in self.sources:
            _require(self.sources.count(source) == 1, f"sources {source}", "it is given twice, give it once")
        if self.weights is not None:
            count, given = len(self.sources), " ".join(f"{weight:g}" for weight in self.weights)
            _require(len(self.weights) == count, f"weights {given}", f"give {count}, one for each of --sources, or none")
            for weight in self.weights:
                _require(0 < weight < float("inf"), f"weights {weight}", "use numbers above 0")
        for field in fields(self):
            if get_origin(field.type) is Literal:
                value, choices = getattr(self, field.name), get_args(field.type)
                _require(value in choices, f"{field.name} {value}", f"use one of {', '.join(choices)}")
        fraction = self.validation_fraction
        _require(0 <= fraction < 1, f"validation_fraction {fraction}", "use a number from 0 to below 1")
        _require(0 <= self.seed < 2**64, f"seed {self.seed}", "use a whole number from 0 to 2**64 - 1")

    def _check_tokens(self) -> None:
        if self.tokenizer is None:
            remedy = f"use {MIN_VOCAB_SIZE} or more (256 bytes and {MIN_VOCAB_SIZE - 256} special tokens)"
            _require(self.vocab_size >= MIN_VOCAB_SIZE, f"vocab_size {self.vocab_size}", remedy)
        else:
            _require(self.vocab_size is None, f"vocab_size {self.vocab_size}", "leave it out, --tokenizer sets it")
        for name in ("tokenizer_sample_mb", "shard_size_mb"):
            _require(0 < getattr(self, name) < float("inf"), f"{name} {getattr(self, name)}", "use a number above 0")
        _require(self.sequence_length >= 3, f"sequence_length {self.sequence_length}", "use 3 or more")

    def _check_division(self) -> None:
        _require(self.num_proc >= 1, f"num_proc {self.num_proc}", "use 1 or more")
        chosen = [name for name in ("plan", "merge") if getattr(self, name)]
        if self.job is not None:
            chosen.append(f"job {self.job}")
        if self.num_jobs is None:
            _require(not chosen, " ".join(chosen[:1]), "add --num_jobs")
            return
        _require(self.num_jobs >= 1, f"num_jobs {self.num_jobs}", "use 1 or more")
        _require(len(chosen) == 1, f"num_jobs {self.num_jobs}", "add one of --plan, --job and --merge")
        last = self.num_jobs - 1
        _require(self.job is None or 0 <= self.job <= last, f"job {self.job}", f"use a number from 0 to {last}")

    def settings(self) -> dict:
        """Return the fields that can change the dataset; options that are off are left out."""
        values = {name: value for name, value in asdict(self).items() if name not in OF_A_RUN}
        for name in ("weights", "deduplicate"):
            if not values[name]:
                del values[name]
        return values


def _require(holds: bool, option: str, remedy: str) -> None:
    if not holds:
        raise InputError(f"--{option}: {remedy}.")
