# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Datasets of the Hub, streamed: `hub:NAME[@REVISION][:CONFIG[:SPLIT]]`."""

from collections.abc import Iterator
from contextlib import contextmanager

import datasets
from fsspec.core import url_to_fs

from luna_tools.errors import InputError, first_sentence

HUB_PREFIX = "hub:"


def parse_name(source: str) -> tuple[str, str | None, str | None, str]:
    """Return the name, revision, configuration and split of a Hub source.

    Raises:
        InputError: it is written otherwise.
    """
    name, *rest = source[len(HUB_PREFIX) :].split(":")
    name, _, revision = name.partition("@")
    if not name or len(rest) > 2:
        raise InputError(f"--sources {source}: write it as {HUB_PREFIX}NAME[:CONFIG[:SPLIT]], NAME perhaps with @REVISION.")
    return name, revision or None, (rest[0] or None) if rest else None, rest[1] if len(rest) > 1 and rest[1] else "train"


@contextmanager
def hub_errors(source: str) -> Iterator[None]:
    """Tell in one sentence what reading from the Hub raises."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise InputError(
            f"--sources {source}: the dataset cannot be read ({first_sentence(error)}); check the name, the configuration, "
            "the split and the connection, and run the same command again."
        ) from error


def open_dataset(source: str) -> tuple[datasets.IterableDataset, list[str], str]:
    """Open a dataset for streaming; return it, its files and its version (of one on the Hub, the commit).

    Raises:
        InputError: it cannot be opened.
    """
    name, revision, config, split = parse_name(source)
    with hub_errors(source):
        builder = datasets.load_dataset_builder(name, config, revision=revision)
        return builder.as_streaming_dataset(split=split), builder.config.data_files[split], str(builder.hash)


def file_sizes(source: str, files: list[str]) -> list[tuple[str, int]]:
    """Return the path and the bytes of each file of a dataset.

    Raises:
        InputError: one cannot be reached.
    """
    with hub_errors(source):
        places = [url_to_fs(url) for url in files]
        return [(path, system.info(path)["size"]) for system, path in places]
