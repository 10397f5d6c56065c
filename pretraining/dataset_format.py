# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""A prepared dataset on disk: what prepare writes and training reads.

FOLDER/train/, FOLDER/validation/   for `datasets.load_from_disk`: column input_ids; no validation where it is not wanted
FOLDER/tokenizer/                   for `AutoTokenizer.from_pretrained`
FOLDER/token_counts.npy             int64, (vocab_size,): how often each entry occurs in the rows of train
FOLDER/manifest.json                settings, sources, counts, the SHA-256 of each shard; written last
"""

import json
from pathlib import Path

from tqdm import tqdm

from luna_tools.errors import InputError
from luna_tools.files import sha256

FORMAT_VERSION = 1
TRAIN, VALIDATION = SPLITS = ("train", "validation")
TOKENIZER = "tokenizer"
TOKEN_COUNTS = "token_counts.npy"
MANIFEST = "manifest.json"
DATASET_FILES = (MANIFEST, TOKENIZER, TRAIN, TOKEN_COUNTS)  # what no dataset is without

CORPORA = Path(__file__).parent / "corpora"


def read_manifest(folder: Path) -> dict:
    """Return the `sequence_length`, `vocab_size`, `fingerprint`, `splits` and `sources` of a prepared dataset.

    Raises:
        InputError: the dataset is absent, not finished, damaged or of another format.
    """
    for name in DATASET_FILES:
        if not (folder / name).exists():
            raise InputError(f"`dataset` is {folder}, which has no {name}: prepare it first by `{_command_for(folder)}`.")
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format_version"] != FORMAT_VERSION:
            raise InputError(
                f"`dataset` is {folder}, which is of format {manifest['format_version']}, and this version reads format "
                f"{FORMAT_VERSION}: prepare it anew."
            )
        return {name: manifest[name] for name in ("sequence_length", "vocab_size", "fingerprint", "splits", "sources")}
    except InputError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"`dataset` is {folder}, whose {MANIFEST} is damaged: prepare it anew.") from error


def _command_for(folder: Path) -> str:
    """The command that prepares a folder: of the corpus that has it by default, or an example."""
    from luna_tools.settings import named_files, read_yaml  # here: they take half a second, which only a mistake needs

    for name, path in named_files(CORPORA).items():
        if Path(read_yaml(path)["output_dir"]).name == folder.name:
            return f"luna prepare {name} --output_dir {folder}"
    return f"luna prepare --sources YOUR_TEXT_FOLDER --output_dir {folder}"


def verify_shards(folder: Path, splits: dict, process_index: int, num_processes: int) -> None:
    """Compare a share of a dataset's shards with the SHA-256 in its manifest; all processes together check all.

    Raises:
        InputError: a shard is missing or damaged.
    """
    shards = [(folder / split / shard["file"], shard["sha256"]) for split, of in splits.items() for shard in of["shards"]]
    for path, expected in tqdm(shards[process_index::num_processes], desc="Checking the dataset", delay=2, mininterval=1):
        if not path.exists() or sha256(path) != expected:
            raise InputError(
                f"{path} is missing or not as it was prepared (its SHA-256 is another): copy it again, or prepare the "
                "dataset anew."
            )
