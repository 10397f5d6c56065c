# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Pathfinder on disk: the official layout, classes of one size, the same bytes however it is made, and what is refused."""

import dataclasses
import errno
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetuning.lra import pathfinder
from finetuning.lra.pathfinder import Pathfinder32Options, Pathfinder128Options, generate
from luna_tools.errors import InputError
from luna_tools.files import hold_lock, writing

EASY = {"contour_length": 5, "num_distractors": 1, "num_workers": 1}


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(pathfinder, "SHARD", 12)
    monkeypatch.setattr(pathfinder, "BLOCK", 5)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def whole(tmp_path) -> tuple[Pathfinder32Options, dict[str, bytes]]:
    """Options of a small set, and its files as made in one go."""
    generate(Pathfinder32Options(str(tmp_path / "whole"), num_samples=30, **EASY))
    return Pathfinder32Options(str(tmp_path / "out"), num_samples=30, **EASY), contents(tmp_path / "whole")


def test_layout_is_the_official_one(tmp_path):
    """As any reader of the official archive goes through it."""
    options = Pathfinder32Options(str(tmp_path), num_samples=24, num_workers=1)
    assert generate(options) == tmp_path / "pathfinder32" / "curv_contour_length_14"
    labels, seen = [], set()
    files = sorted(options.folder.glob("metadata/*.npy"), key=lambda path: int(path.stem))
    for file in files:
        for line in file.read_text().splitlines():
            folder, name, number, label, *made = line.split(" ")
            assert (folder, name) == (f"imgs/{file.stem}", f"sample_{number}.png")
            assert made == ["1.0", "14", "4", "2", "0.5", "1", "1"]
            with Image.open(options.folder / folder / name) as picture:
                assert (picture.format, picture.mode, picture.size) == ("PNG", "L", (32, 32))
                pixels = np.asarray(picture)
            assert pixels.max() == 255 and 100 < (pixels > 40).sum() < 500
            seen.add(pixels.tobytes())
            labels.append(int(label))
    assert [path.name for path in files] == ["0.npy", "1.npy"]
    assert sum(labels[:12]) == sum(labels[12:]) == 6 and labels[:12] != labels[12:]
    assert len(seen) == 24
    assert len(list(options.folder.rglob("*.png"))) == 24


def test_larger_pictures_have_their_own_parameters(tmp_path):
    options = Pathfinder128Options(str(tmp_path), num_samples=2, num_workers=1, contour_length=6)
    lines = (generate(options) / "metadata" / "0.npy").read_text().splitlines()
    assert {tuple(line.split(" ")[4:9]) for line in lines} == {("1.8", "6", "4", "5", "1.5")}
    assert {line.split(" ")[9] for line in lines} <= {"2", "3"}
    with Image.open(tmp_path / "pathfinder128" / "curv_contour_length_6" / "imgs" / "0" / "sample_1.png") as picture:
        assert picture.size == (128, 128)


def test_seed_and_nothing_else_decides(whole, tmp_path):
    options, expected = whole
    generate(dataclasses.replace(options, num_workers=2))
    assert contents(tmp_path / "out") == expected
    other = generate(Pathfinder32Options(str(tmp_path / "other"), 1, num_samples=30, **EASY))
    assert contents(other).keys() == contents(options.folder).keys()
    assert contents(other)["imgs/0/sample_0.png"] != contents(options.folder)["imgs/0/sample_0.png"]


@pytest.mark.parametrize("picture", [0, 7, 12, 20, 29])
def test_an_interrupted_run_goes_on(picture, whole, tmp_path, monkeypatch):
    options, expected = whole
    made, write_bytes = [], Path.write_bytes

    def interrupt(self, data):
        made.append(self)
        if len(made) == picture + 1:
            write_bytes(self, data[:20])
            raise KeyboardInterrupt
        return write_bytes(self, data)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "write_bytes", interrupt)
        generate(options)
    left = contents(tmp_path / "out")
    assert left.items() <= expected.items()  # what is there is whole
    assert sum(name.endswith(".png") for name in left) == picture // 12 * 12
    generate(options)
    assert contents(tmp_path / "out") == expected


def test_pictures_without_metadata_are_of_a_run_that_was_killed(whole, tmp_path):
    options, expected = whole
    generate(options)
    (options.folder / "metadata" / "1.npy").unlink()
    (options.folder / "imgs" / "1" / "sample_3.png").write_bytes(b"half")
    shutil.copytree(options.folder / "imgs" / "0", options.folder / "imgs" / ".unfinished-x")
    generate(options)
    assert contents(tmp_path / "out") == expected


def test_a_complete_set_is_left_alone(whole, monkeypatch):
    options, _ = whole
    folder = generate(options)
    monkeypatch.setattr(pathfinder, "write_shards", None)
    assert generate(options) == folder


def refused(sentence: str):
    return pytest.raises(InputError, match=f"^{re.escape(sentence)}$")


def test_folders_that_cannot_be_used(whole):
    options, _ = whole
    folder = generate(options)
    remedy = "use another --output_dir, or delete it."
    with refused(f"{folder} was made with --seed 0, and this is 1: {remedy}"):
        generate(Pathfinder32Options(options.output_dir, 1, num_samples=30, **EASY))
    with (
        hold_lock(folder / "generated.json"),
        refused(f"{folder}: another run is writing here; wait for it, or use another folder."),
    ):
        generate(options)
    (folder / "generated.json").write_text("[]")
    with refused(f"{folder / 'generated.json'} is not what this program wrote: {remedy}"):
        generate(options)
    (folder / "generated.json").unlink()
    with refused(f"{folder} holds other data, which this program did not make: {remedy}"):
        generate(options)


def test_a_full_disk_is_told_and_costs_one_folder_at_most(whole, tmp_path, monkeypatch):
    options, expected = whole
    write_bytes = Path.write_bytes

    def fail(self, data):
        if self.name == "sample_3.png" and "1" in self.parts:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_bytes(self, data)

    with monkeypatch.context() as patched, writing(tmp_path / "out"):
        patched.setattr(Path, "write_bytes", fail)
        with pytest.raises(OSError, match="No space left"):
            generate(options)
    assert sum(name.endswith(".png") for name in contents(tmp_path / "out")) == 12
    generate(options)
    assert contents(tmp_path / "out") == expected


@pytest.mark.parametrize("number", [2, 5, 1000, 1001])
def test_classes_are_of_one_size(number, monkeypatch):
    monkeypatch.setattr(pathfinder, "SHARD", 1000)
    options = Pathfinder32Options("unused", num_samples=number)
    labels = [label for shard in range(-(-number // 1000)) for label in pathfinder.labels_of(options, shard)]
    assert len(labels) == number and sum(labels) == number // 2


def test_settings_are_written_beside_the_data(whole):
    options, _ = whole
    settings = json.loads((generate(options) / "generated.json").read_text())
    assert settings == {
        "seed": 0,
        "num_samples": 30,
        "contour_length": 5,
        "distractor_length": 4,
        "num_distractors": 1,
    }


@pytest.mark.parametrize(
    "name, least", [("num_samples", 2), ("contour_length", 2), ("distractor_length", 1), ("num_distractors", 0)]
)
def test_wrong_options(name, least):
    with refused(f"`{name}` is {least - 1}, but must be at least {least}."):
        Pathfinder32Options("unused", **{name: least - 1})
