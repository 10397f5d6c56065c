# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Pathfinder of the Long Range Arena: are the two dots on the same dashed curve? The pictures themselves are in `snakes`.

On disk as in the official archive: folders of 1,000 pictures, imgs/K/sample_I.png, and for each a text file metadata/K.npy
(the name is the archive's) with a line for each picture: folder, file, number, label, and the parameters.
"""

import io
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image
from tqdm import tqdm

from finetuning.lra.folder import GeneratorOptions, locked, progress_bar, read_settings, write_settings
from finetuning.lra.snakes import Geometry, compose, draw
from luna_tools.errors import InputError
from luna_tools.files import staging_folder, write_text
from luna_tools.workers import map_in_order

SHARD = 1000  # pictures in a folder
BLOCK = 20  # pictures in a task of a worker


@dataclass(frozen=True)
class PathfinderOptions(GeneratorOptions):
    """What is generated. The defaults are the benchmark's."""

    num_samples: int = 200_000
    """Pictures, half of each class."""
    contour_length: int = 14
    """Paddles of each of the two long curves."""
    distractor_length: int = 4
    """Paddles of each of the short curves."""
    num_distractors: int = 0
    """Short curves, as far as they find room."""

    geometry: ClassVar[Geometry]

    def __post_init__(self):
        super().__post_init__()
        for name, least in {"num_samples": 2, "contour_length": 2, "distractor_length": 1, "num_distractors": 0}.items():
            if getattr(self, name) < least:
                raise InputError(f"`{name}` is {getattr(self, name)}, but must be at least {least}.")

    @property
    def folder(self) -> Path:
        return Path(self.output_dir) / f"pathfinder{self.geometry.size}" / f"curv_contour_length_{self.contour_length}"


@dataclass(frozen=True)
class Pathfinder32Options(PathfinderOptions):
    """32 x 32 pixels."""

    num_distractors: int = 5
    geometry: ClassVar[Geometry] = Geometry(32, 1, 7, 2, 0.5, (1,), 1.5, 1.0, 1.5, 2.0)


@dataclass(frozen=True)
class Pathfinder128Options(PathfinderOptions):
    """128 x 128 pixels."""

    num_distractors: int = 8
    geometry: ClassVar[Geometry] = Geometry(128, 1, 20, 5, 1.5, (2, 3), 3.0, 1.8, 0.9, 0.9)


def generate(options: PathfinderOptions) -> Path:
    """Write the pictures, go on where an earlier run stopped, or find them complete. Returns their folder.

    Raises:
        InputError: the folder cannot be used.
    """
    folder = options.folder
    if not read_settings(folder, options):
        (folder / "metadata").mkdir(parents=True, exist_ok=True)
        (folder / "imgs").mkdir(exist_ok=True)
        write_settings(folder, options)
    shards = range(-(-options.num_samples // SHARD))
    with locked(folder):
        missing = [shard for shard in shards if not metadata_file(folder, shard).exists()]
        blocks = [block for shard in missing for block in blocks_of(options, shard)]
        done = options.num_samples - sum(map(len, blocks))
        made = map_in_order(partial(make_pictures, options), blocks, options.num_workers, "num_workers")
        with closing(made), progress_bar(folder.parent.name, options.num_samples, "picture", done) as bar:
            for shard in missing:
                write_shard(options, shard, made, bar)
    return folder


def write_shard(options: PathfinderOptions, shard: int, made: Iterator[list[tuple[bytes, int]]], bar: tqdm) -> None:
    """Write one folder of pictures, and then its metadata, which says that the folder is complete.

    Args:
        made: what `make_pictures` returns for each of the blocks.
    """
    target = options.folder / "imgs" / str(shard)
    if target.exists():  # of a run that was killed before it wrote the metadata
        shutil.rmtree(target)
    lines = []
    with staging_folder(target) as staging:
        (staging / target.name).mkdir()
        for block in blocks_of(options, shard):
            for number, (picture, margin) in zip(block, next(made), strict=True):
                name = f"sample_{number % SHARD}.png"
                (staging / target.name / name).write_bytes(picture)
                lines.append(metadata_line(options, number, margin))
                bar.update()
        (staging / target.name).rename(target)
    write_text(metadata_file(options.folder, shard), "".join(lines))


def metadata_file(folder: Path, shard: int) -> Path:
    return folder / "metadata" / f"{shard}.npy"


def metadata_line(options: PathfinderOptions, number: int, margin: int) -> str:
    """A picture's line: where it is, its label, and how it was made, in the order of the authors' program."""
    shard, place = divmod(number, SHARD)
    geometry = options.geometry
    made = (geometry.continuity, options.contour_length, options.distractor_length)
    paddle = (geometry.paddle_length, geometry.paddle_thickness, margin, 1)
    fields = (f"imgs/{shard}", f"sample_{place}.png", place, labels_of(options, shard)[place], *made, *paddle)
    return " ".join(map(str, fields)) + "\n"


def blocks_of(options: PathfinderOptions, shard: int) -> list[range]:
    """The numbers of a folder's pictures, in the portions in which they are made."""
    end = min((shard + 1) * SHARD, options.num_samples)
    return [range(start, min(start + BLOCK, end)) for start in range(shard * SHARD, end, BLOCK)]


def labels_of(options: PathfinderOptions, shard: int) -> list[int]:
    """The labels of a folder's pictures: as many of one class as of the other, in random order."""
    count = min(SHARD, options.num_samples - shard * SHARD)
    return np.random.default_rng([options.seed, 0, shard]).permutation(np.arange(count) % 2).tolist()


def make_pictures(options: PathfinderOptions, numbers: range) -> list[tuple[bytes, int]]:
    """Pictures as PNG files, each by the seed and its own number, and their margins."""
    labels = labels_of(options, numbers[0] // SHARD)
    pictures = []
    for number in numbers:
        rng = np.random.default_rng([options.seed, 1, number])
        lengths = (options.contour_length, options.distractor_length, options.num_distractors)
        scene = compose(rng, options.geometry, labels[number % SHARD], *lengths)
        file = io.BytesIO()
        Image.fromarray(draw(scene)).save(file, "PNG")
        pictures.append((file.getvalue(), scene.tables.margin))
    return pictures
