# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The documents of a dataset: all inputs in order, each document with its split, and what the tokenizer learns from."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from math import ceil
from pathlib import Path
from typing import NamedTuple

from luna_tools.errors import InputError
from pretraining.prepare.config import PrepareConfig
from pretraining.prepare.progress import progress_bar
from pretraining.prepare.readers import Fault, read_input
from pretraining.prepare.slices import Slice, cut_up
from pretraining.prepare.sources import EXTENSIONS, Input, Part, find_inputs

LEFT_OUT = "left out"  # in the place of a split
BATCH_CHARS = 2**18  # of text that a worker process takes at a time
BATCH_ITEMS = 1024
SAMPLE_CHARS = 2**14  # the BPE trainer holds 256 texts, so they are kept short


def list_inputs(config: PrepareConfig, output: Path) -> tuple[list[Input], list[str]]:
    """List the inputs of all sources in order, then again those of a weight above 1, and the files that no reader takes."""
    inputs, ignored = [], []
    for source in config.sources:
        if os.path.isdir(source) and output.resolve().is_relative_to(Path(source).resolve()):
            raise InputError(f"--sources {source}: the output folder {output} is inside it; move one of them.")
        found, unknown = find_inputs(source)
        if not found:
            raise InputError(f"--sources {source}: it holds no file of a known kind ({', '.join(EXTENSIONS)}).")
        inputs.append(found)
        ignored += [os.path.join(source, path) for path in unknown]
    weights = config.weights or [1] * len(inputs)
    listed = []
    for repeat in range(ceil(max(weights))):
        for found, weight in zip(inputs, weights, strict=True):
            share = min(1.0, weight - repeat)
            listed += [replace(one, repeat=repeat, share=share) for one in found if share > 0]
    return listed, ignored


class Item(NamedTuple):
    """What is read from a part (its number in the list), with its place and the split of its document."""

    part: int
    number: int
    content: Slice | Fault
    split: str


def split_of(document: str, seed: int, validation_fraction: float) -> str:
    """Return the split of a document by a keyed hash of its text (its first slice), so that equal documents stay together.

    White space around the text does not count: formats differ in whether a document ends with a line end.
    """
    return "validation" if _draw(document, str(seed)) < validation_fraction * 2**64 else "train"


def is_taken(document: str, seed: int, share: float) -> bool:
    """Tell whether a document is in the share that a weight takes: by another hash than `split_of`'s, of the same text."""
    return share >= 1 or _draw(document, f"{seed} weight") < share * 2**64


def _draw(document: str, key: str) -> int:
    digest = hashlib.blake2b(document.strip().encode("utf-8"), digest_size=8, key=key.encode("ascii")).digest()
    return int.from_bytes(digest, "big")


def _read(config: PrepareConfig, inputs: list[Input], part: Part, part_number: int) -> Iterator[Item]:
    one = inputs[part.input]
    units = None if part.start is None else (part.start, part.stop)
    split = "train"
    for number, content in enumerate(read_input(one, config.text_column, config.document_separator, units)):
        if isinstance(content, Fault):
            if config.on_error == "fail":
                raise unreadable(content)
        elif content.first:
            split = split_of(content.text, config.seed, config.validation_fraction)
            # What is held out is there once: a repetition would only make it count more.
            repeated = one.repeat > 0 and split == "validation"
            if content.text and (repeated or not is_taken(content.text, config.seed, one.share)):
                split = LEFT_OUT
        yield Item(part_number, number, content, split)


def unreadable(fault: Fault) -> InputError:
    """Return the error that a fault is with `--on_error fail`."""
    return InputError(f"{fault.where} {fault.reason}: correct it, or pass --on_error skip.")


def read_from(config: PrepareConfig, inputs: list[Input], parts: list[Part], position: tuple[int, int]) -> Iterator[Item]:
    """Yield the items of all parts from a position on: (number of the part, number of the item in it)."""
    first, done = position
    for number in range(first, len(parts)):
        items = _read(config, inputs, parts[number], number)
        if number == first:
            read_before = islice(items, done)
            for _ in progress_bar("Reading up to where the work was interrupted", "document", done, over=read_before):
                pass
        yield from items


def batches(items: Iterable[Item]) -> Iterator[tuple[list[Item], list[str]]]:
    """Group items; with each group come the texts to tokenise."""
    batch, texts, chars = [], [], 0
    for item in items:
        batch.append(item)
        if isinstance(item.content, Slice) and item.split != LEFT_OUT:
            texts.append(item.content.text)
            chars += len(item.content.text)
        if chars >= BATCH_CHARS or len(batch) == BATCH_ITEMS:
            yield batch, texts
            batch, texts, chars = [], [], 0
    if batch:
        yield batch, texts


def sample_text(config: PrepareConfig, inputs: list[Input]) -> Iterator[str]:
    """Yield text of training documents: from the start of each input, in proportion to the inputs' sizes."""
    limit = config.tokenizer_sample_mb * 1e6
    sizes = [(limit if one.size is None else one.size) * one.share for one in inputs]
    total = max(1, sum(sizes))
    with_text = set()
    with progress_bar("Reading for the tokenizer", "B", int(min(limit, total))) as bar:
        for index, input_size in enumerate(sizes):
            left = int(limit * input_size / total)
            for item in _read(config, inputs, Part(index), index):
                if isinstance(item.content, Fault) or not item.content.text:
                    continue
                with_text.add(inputs[index].source)
                if item.split != "train":
                    continue
                text = item.content.text.encode("utf-8")[:left].decode("utf-8", "ignore")
                size = len(text.encode("utf-8"))
                left -= size
                bar.update(size)
                yield from cut_up(text, SAMPLE_CHARS)
                if left <= 0 or size < len(item.content.text):
                    break
    check_sources(config, with_text)


def check_sources(config: PrepareConfig, with_text: set[str]) -> None:
    """Raise InputError where a source is not among those `with_text`."""
    for source in config.sources:
        if source not in with_text:
            raise InputError(f"--sources {source}: no text could be read from it; correct its files or leave it out.")
