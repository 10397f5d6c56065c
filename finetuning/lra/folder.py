# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""What all generators have in common: options, and a folder that tells how it was made."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from luna_tools.errors import InputError
from luna_tools.files import write_json

SETTINGS = "generated.json"  # how the data beside it was made


@dataclass(frozen=True)
class GeneratorOptions:
    """Where the data goes, and how it is made."""

    output_dir: str
    """Folder of the benchmark's data; what is generated goes into a folder of its own in it, named as in the official
    archive."""
    seed: int = 0
    """Of all random choices: the same seed makes the same files, by any number of workers."""
    num_workers: int = os.cpu_count() or 1
    """Processes that generate."""

    def __post_init__(self):
        if self.seed < 0:
            raise InputError(f"`seed` is {self.seed}, but must not be negative.")
        if self.num_workers < 1:
            raise InputError(f"`num_workers` is {self.num_workers}, but must be at least 1.")

    def settings(self) -> dict:
        """What the data depends on."""
        return {name: value for name, value in asdict(self).items() if name not in ("output_dir", "num_workers")}


def read_settings(folder: Path, options: GeneratorOptions) -> bool:
    """Whether the folder holds data of these settings, finished or not.

    Raises:
        InputError: it holds something else.
    """
    remedy = "use another --output_dir, or delete it"
    try:
        earlier = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        if folder.exists() and any(folder.iterdir()):
            raise InputError(f"{folder} holds other data, which this program did not make: {remedy}.") from None
        return False
    except ValueError:
        earlier = None
    if not isinstance(earlier, dict):
        raise InputError(f"{folder / SETTINGS} is not what this program wrote: {remedy}.")
    now = options.settings()
    for name in now | earlier:
        if earlier.get(name) != now.get(name):
            raise InputError(f"{folder} was made with --{name} {earlier.get(name)}, and this is {now.get(name)}: {remedy}.")
    return True


def write_settings(folder: Path, options: GeneratorOptions) -> None:
    """Tell how the data in the folder is made."""
    write_json(folder / SETTINGS, options.settings())


def progress_bar(title: str, total: int, unit: str, initial: int = 0) -> tqdm:
    """A bar; what takes less than two seconds shows nothing."""
    return tqdm(desc=title, total=total, initial=initial, unit=f" {unit}s", mininterval=1, delay=2)
