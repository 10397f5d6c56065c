# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Corpus files: which sources a dataset is made of, with what weights, and other options of prepare, in YAML."""

from dataclasses import fields
from pathlib import Path
from typing import get_args

import yaml

from luna_tools.errors import InputError
from pretraining.prepare.config import PrepareConfig

CORPORA = Path(__file__).parent / "corpora"
OF_A_RUN = ("output", "sources", "weights", "num_proc", "num_shards", "plan", "shard", "merge")


def load_corpus(name_or_path: str) -> dict:
    """Reads a corpus file.

    Args:
        name_or_path: a YAML file, or the name of one in `CORPORA` without its ending.

    Returns:
        `sources`, `weights` and the options that the file sets, as arguments of `PrepareConfig`.

    Raises:
        InputError: the file is not there or not such a file.
    """
    path = Path(name_or_path)
    names = sorted(file.stem for file in CORPORA.glob("*.yaml"))
    if name_or_path in names:
        path = CORPORA / f"{name_or_path}.yaml"
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"--corpus {name_or_path}: {error.strerror}; give a YAML file, or one of {', '.join(names)}."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"--corpus {path}: not valid YAML ({' '.join(str(error).split())}); correct it.") from error
    if not isinstance(values, dict) or not isinstance(values.get("sources"), list) or not values["sources"]:
        raise InputError(f"--corpus {path}: it has no list `sources`; add one of `source: ...` and `weight: ...`.")
    sources, weights = [], []
    for number, entry in enumerate(values.pop("sources"), 1):
        source, weight = (entry.get(name, 1.0) for name in ("source", "weight")) if isinstance(entry, dict) else (None, 1.0)
        if not isinstance(source, str) or set(entry) - {"source", "weight"}:
            raise InputError(
                f"--corpus {path}: source {number} is {entry}; write `source: ...` and perhaps `weight: ...`."
            )
        if isinstance(weight, bool) or not isinstance(weight, (int, float)):
            raise InputError(f"--corpus {path}: the weight of {source} is {weight}; use a number above 0.")
        sources.append(source)
        weights.append(float(weight))
    types = {field.name: get_args(field.type) or (field.type,) for field in fields(PrepareConfig)}
    for name, value in values.items():
        if name not in types or name in OF_A_RUN:
            raise InputError(f"--corpus {path}: `{name}` is not an option of a dataset; leave it out.")
        of_type = isinstance(value, types[name]) or (types[name] == (float,) and isinstance(value, int))
        if not of_type or (isinstance(value, bool) and types[name] != (bool,)):
            wanted = " or ".join(kind.__name__ for kind in types[name])
            raise InputError(f"--corpus {path}: `{name}` is {value!r}; give a value of type {wanted}.")
    return {"sources": sources, "weights": weights, **values}
