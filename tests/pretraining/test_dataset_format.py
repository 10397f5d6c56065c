# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""What is no prepared dataset is told with the command that makes one; shards are checked by all processes together."""

import json
import subprocess
import sys

import pytest

from luna_tools.errors import InputError
from luna_tools.files import sha256
from pretraining.dataset_format import DATASET_FILES, read_manifest, verify_shards

READ = {"sequence_length": 8, "vocab_size": 300, "fingerprint": "f", "splits": {}, "sources": []}
MANIFEST = READ | {"format_version": 1, "settings": {}}


@pytest.fixture
def dataset(tmp_path):
    """A manifest with five shards of some bytes, and empty files where only their presence is asked for."""
    for name in DATASET_FILES:
        (tmp_path / name).mkdir() if name == "train" else (tmp_path / name).touch()
    (tmp_path / "validation").mkdir()
    splits = {}
    for split, count in (("train", 4), ("validation", 1)):
        paths = [tmp_path / split / f"data-0000{i}.arrow" for i in range(count)]
        for i, path in enumerate(paths):
            path.write_text(f"{split} {i}")
        splits[split] = {"shards": [{"file": path.name, "sha256": sha256(path)} for path in paths]}
    (tmp_path / "manifest.json").write_text(json.dumps(MANIFEST | {"splits": splits}))
    return tmp_path


def test_what_training_reads(dataset):
    manifest = read_manifest(dataset)
    assert manifest == READ | {"splits": manifest["splits"]}


@pytest.mark.parametrize("name", DATASET_FILES)
def test_a_file_that_is_missing(dataset, name):
    (dataset / name).rename(dataset / "elsewhere")
    with pytest.raises(InputError, match=f"^`dataset` is {dataset}, which has no {name}: prepare it first by"):
        read_manifest(dataset)


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("corpus-16gb", "luna prepare paper_16gb --output_dir"),
        ("corpus-160gb", "luna prepare paper_160gb --output_dir"),
        ("python-docs", "luna prepare quickstart --output_dir"),
        ("mine", "luna prepare --sources YOUR_TEXT_FOLDER --output_dir"),
    ],
)
def test_the_command_for_a_folder(tmp_path, name, command):
    with pytest.raises(InputError) as caught:
        read_manifest(tmp_path / name)
    assert str(caught.value).endswith(f"which has no manifest.json: prepare it first by `{command} {tmp_path / name}`.")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        *((text, "whose manifest.json is damaged: prepare it anew") for text in ("", "[]", "{}", '{"format_version": 1}')),
        ('{"format_version": 7}', "which is of format 7, and this version reads format 1: prepare it anew"),
    ],
)
def test_a_manifest_that_cannot_be_read(dataset, text, sentence):
    (dataset / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=sentence):
        read_manifest(dataset)


@pytest.mark.parametrize("num_processes", [1, 2, 7])
@pytest.mark.parametrize("harm", ["missing", "damaged"])
def test_each_shard_is_checked_by_one_process(dataset, num_processes, harm):
    splits = read_manifest(dataset)["splits"]
    for index in range(num_processes):
        verify_shards(dataset, splits, index, num_processes)
    for path in sorted(dataset.glob("*/*.arrow")):
        whole = path.read_bytes()
        path.unlink() if harm == "missing" else path.write_bytes(whole[:-1] + b"x")
        found = 0
        for index in range(num_processes):
            try:
                verify_shards(dataset, splits, index, num_processes)
            except InputError as error:
                assert str(error).startswith(f"{path} is missing or not as it was prepared")
                found += 1
        assert found == 1
        path.write_bytes(whole)


def test_it_is_light():
    code = "import pretraining.dataset_format, sys; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
