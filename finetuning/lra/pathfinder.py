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
from typing import ClassVar, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from finetuning.lra.folder import SETTINGS, GeneratorOptions, progress_bar, read_settings, write_settings
from finetuning.lra.snakes import Geometry, compose, draw
from luna_tools.errors import InputError
from luna_tools.files import locked, staging_folder, write_text
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


class Picture(NamedTuple):
    """A PNG file, its label and the margin of its paddles."""

    png: bytes
    label: int
    margin: int


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
    with locked(folder / SETTINGS):
        for left in (folder / "imgs").glob(".unfinished-*"):  # of a run that was killed
            shutil.rmtree(left)
        missing = [shard for shard in shards if not metadata_file(folder, shard).exists()]
        if missing:
            write_shards(options, missing)
    return folder


def write_shards(options: PathfinderOptions, shards: list[int]) -> None:
    """Make and write folders of pictures, under a bar that counts those of all folders."""
    blocks = [block for shard in shards for block in blocks_of(options, shard)]
    done = options.num_samples - sum(map(len, blocks))
    made = map_in_order(partial(make_pictures, options), blocks, options.num_workers, "num_workers")
    with closing(made), progress_bar(options.folder.parent.name, options.num_samples, "picture", done) as bar:
        for shard in shards:
            write_shard(options, shard, made, bar)


def write_shard(options: PathfinderOptions, shard: int, made: Iterator[list[Picture]], bar: tqdm) -> None:
    """Write one folder of pictures, and then its metadata, which says that the folder is complete."""
    target = options.folder / "imgs" / str(shard)
    if target.exists():  # of a run that was killed before it wrote the metadata
        shutil.rmtree(target)
    lines = []
    with staging_folder(target) as staging:
        unfinished = staging / target.name
        unfinished.mkdir()
        while len(lines) < len(labels_of(options, shard)):
            for picture in next(made):
                name = f"sample_{len(lines)}.png"
                (unfinished / name).write_bytes(picture.png)
                lines.append(metadata_line(options, shard, name, len(lines), picture))
                bar.update()
        unfinished.rename(target)
    write_text(metadata_file(options.folder, shard), "".join(lines))


def metadata_file(folder: Path, shard: int) -> Path:
    return folder / "metadata" / f"{shard}.npy"


def metadata_line(options: PathfinderOptions, shard: int, name: str, place: int, picture: Picture) -> str:
    """A picture's line: where it is, its label, and how it was made, in the order of the authors' program."""
    geometry = options.geometry
    made = (geometry.continuity, options.contour_length, options.distractor_length)
    paddle = (geometry.paddle_length, geometry.paddle_thickness, picture.margin, 1)  # one brightness
    return " ".join(map(str, (f"imgs/{shard}", name, place, picture.label, *made, *paddle))) + "\n"


def labels_of(options: PathfinderOptions, shard: int) -> list[int]:
    """The labels of a folder's pictures: as many of one class as of the other, in random order."""
    count = min(SHARD, options.num_samples - shard * SHARD)
    return np.random.default_rng([options.seed, 0, shard]).permutation(np.arange(count) % 2).tolist()


def blocks_of(options: PathfinderOptions, shard: int) -> list[list[tuple[int, int]]]:
    """The numbers and labels of a folder's pictures, in the portions in which they are made."""
    pictures = list(enumerate(labels_of(options, shard), start=shard * SHARD))
    return [pictures[start : start + BLOCK] for start in range(0, len(pictures), BLOCK)]


def make_pictures(options: PathfinderOptions, block: list[tuple[int, int]]) -> list[Picture]:
    """Pictures by their numbers and labels: the seed and the number decide all the rest."""
    lengths = (options.contour_length, options.distractor_length, options.num_distractors)
    pictures = []
    for number, label in block:
        scene = compose(np.random.default_rng([options.seed, 1, number]), options.geometry, label, *lengths)
        file = io.BytesIO()
        Image.fromarray(draw(scene)).save(file, "PNG")
        pictures.append(Picture(file.getvalue(), label, scene.tables.margin))
    return pictures
