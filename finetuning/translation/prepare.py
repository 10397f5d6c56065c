# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The program `luna prepare_pairs`: line files or a dataset of the Hub to a joint tokenizer and the token ids of each split.

It runs once, before any training: the rows of Table 4 share its folder, and no process waits for another to tokenise.
"""

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from finetuning.translation.arguments import check_packages
from finetuning.translation.lines import read_pair_files
from luna_tools.errors import InputError, told, undone_when_stopped
from luna_tools.files import put_in_place, sha256, staging_folder, write_json, writing
from luna_tools.settings import Parser, named_files, split_command_line

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

PROG = "luna prepare_pairs"
CORPORA = named_files(Path(__file__).parent / "corpora")
SPLITS = ("train", "validation", "test")
MANIFEST = "manifest.json"
VERSION = 1  # of the folder's format


@dataclass(frozen=True)
class PairOptions:
    """What to read and how. Lengths are in tokens, the end token included."""

    output_dir: str
    """The folder to make."""
    train_files: list[str] = field(default_factory=list)
    """Two files, source and target, whose lines belong together; .gz is unpacked."""
    validation_files: list[str] = field(default_factory=list)
    """Two files to evaluate on while training."""
    test_files: list[str] = field(default_factory=list)
    """Two files to translate at the end."""
    hub_dataset: str | None = None
    """In place of files: a dataset of the Hub, or its folder, whose rows have `translation: {language: text}`."""
    hub_config: str | None = None
    """The dataset's configuration, such as de-en."""
    source_language: str | None = None
    """The language that is read: en, ..."""
    target_language: str | None = None
    """The language that is written: de, ..."""
    vocab_size: int = 37000
    """Entries of the joint BPE."""
    tokenizer: str | None = None
    """In place of a new BPE: the tokenizer of a model, for training that model further."""
    max_length: int | None = None
    """Leave out training pairs with a side of more tokens."""
    max_ratio: float | None = None
    """Leave out training pairs of which one side has more than so many times the tokens of the other."""
    num_processes: int = 1
    """Processes that tokenise."""


def main(argv: list[str]) -> None:
    """Make the folder.

    Raises:
        InputError: wrong input.
        Stopped: a signal came, and nothing is left behind.
    """
    words, options = split_command_line(argv, CORPORA)
    parser = Parser(PROG, f"Turn pairs of lines into a tokenizer and a dataset. Corpora: {', '.join(CORPORA)}.", PairOptions)
    parser.usage = f"{PROG} [CORPUS or options.yaml] [--name value ...]"
    if not argv:
        parser.print_help()
        return
    (values,) = parser.parse(options)
    if words:
        parser.error(f"{words[0]} is neither a corpus ({', '.join(CORPORA)}) nor a file of options")
    check_options(values)
    check_packages("datasets", "tokenizers")
    with undone_when_stopped():
        manifest = prepare(values)
    print("\n".join(describe(manifest)))
    print(f"Saved in {values.output_dir}.")


def check_options(options: PairOptions) -> None:
    """Refuse options that contradict each other or name too little.

    Raises:
        InputError: the first one.
    """
    if bool(options.train_files) == bool(options.hub_dataset):
        raise InputError("Give --train_files and --validation_files, or --hub_dataset: one of the two.")
    for name in ("train_files", "validation_files", "test_files"):
        paths = getattr(options, name)
        if options.hub_dataset and paths:
            raise InputError(f"`{name}` was given beside `hub_dataset`, which has splits of its own: leave one of them out.")
        if len(paths) not in (0, 2):
            raise InputError(f"`{name}` names {len(paths)} files: give two, source and target.")
    if options.train_files and not options.validation_files:
        raise InputError("`validation_files` is missing: give two files to evaluate on, source and target.")
    if options.hub_dataset and not (options.source_language and options.target_language):
        raise InputError("`hub_dataset` has columns by language: give --source_language and --target_language.")
    for name, least in (("max_length", 1), ("max_ratio", 1), ("num_processes", 1)):
        value = getattr(options, name)
        if value is not None and not value >= least:
            raise InputError(f"`{name}` is {value}: give at least {least}.")
    if Path(options.output_dir).exists():
        raise InputError(
            f"`output_dir` is {options.output_dir}, which is there already: choose another folder, or remove it."
        )


def prepare(options: PairOptions) -> dict:
    """Read, learn the tokenizer, encode, and write the folder, whole or not at all; returns its manifest."""
    import datasets

    datasets.disable_progress_bars()
    target = Path(options.output_dir)
    with writing(target), staging_folder(target) as staging:
        pairs = read_splits(options)
        if options.tokenizer is None:
            print(f"Learning {options.vocab_size:,} entries from {pairs['train'].num_rows:,} pairs ...", flush=True)
        tokenizer = make_tokenizer(pairs["train"], options)
        folder = staging / "pairs"
        tokenizer.save_pretrained(folder / "tokenizer")
        manifest = {"version": VERSION, "options": public(options), "vocab_size": len(tokenizer), "splits": {}}
        for split, rows in pairs.items():
            print(f"Encoding {split}: {rows.num_rows:,} pairs ...", flush=True)
            encoded = encode(rows, tokenizer, options.num_processes)
            left_out = Counter()
            if split == "train":
                encoded, left_out = leave_out(encoded, options)
            encoded.save_to_disk(folder / split)
            manifest["splits"][split] = summarise(encoded) | {"left_out": dict(left_out)}
        files = sorted(path for path in folder.rglob("*") if path.suffix in (".arrow", ".json"))
        hashed = {str(path.relative_to(folder)): sha256(path) for path in files if path.name != "state.json"}
        write_json(folder / MANIFEST, manifest | {"sha256": hashed})
        put_in_place(folder, target)
    return manifest


def public(options: PairOptions) -> dict:
    """The options without folders: who gets the dataset has no use for them."""
    values = asdict(options) | {"output_dir": None, "num_processes": None}
    values |= {
        name: [Path(path).name for path in values[name]] for name in ("train_files", "validation_files", "test_files")
    }
    return {name: value for name, value in values.items() if value not in (None, [])}


def read_splits(options: PairOptions) -> "dict[str, Dataset]":
    """The splits that there are, with the columns `source` and `target`.

    Raises:
        InputError: a file cannot be used, or the Hub has no such dataset, languages, or splits.
    """
    from datasets import Dataset

    if options.hub_dataset is None:
        files = {split: getattr(options, f"{split}_files") for split in SPLITS}
        read = {split: read_pair_files(paths) for split, paths in files.items() if paths}
        return {split: Dataset.from_dict({"source": pair[0], "target": pair[1]}) for split, pair in read.items()}
    return read_hub(options)


def read_hub(options: PairOptions) -> "dict[str, Dataset]":
    """The splits of a dataset with the column `translation`."""
    from datasets import load_dataset

    name, languages = options.hub_dataset, (options.source_language, options.target_language)
    what = f"The dataset {name}, configuration {options.hub_config}, cannot be loaded"
    with told(what, "correct --hub_dataset and --hub_config"):
        loaded = load_dataset(name, options.hub_config)
    for split in ("train", "validation"):
        if split not in loaded:
            raise InputError(f"The dataset {name} has no split {split}, but {', '.join(loaded)}: give another one.")
    column = loaded["train"].features.get("translation")
    known = list(getattr(column, "languages", None) or column or ())
    if not known:
        raise InputError(f"The dataset {name} has no column `translation`: give one of pairs, such as wmt/wmt14.")
    for language in languages:
        if language not in known:
            raise InputError(
                f"The dataset {name} translates between {' and '.join(known)}, not {language}: correct the languages, or "
                "--hub_config."
            )

    def sides(batch: dict) -> dict:
        texts = {"source": languages[0], "target": languages[1]}
        return {side: [row[language] for row in batch["translation"]] for side, language in texts.items()}

    names = [split for split in SPLITS if split in loaded]
    return {split: loaded[split].map(sides, batched=True, remove_columns=loaded[split].column_names) for split in names}


def make_tokenizer(train: "Dataset", options: PairOptions) -> "PreTrainedTokenizerBase":
    """A BPE of the training pairs, or the tokenizer that is named."""
    from finetuning.translation.vocabulary import load_tokenizer, train_tokenizer

    if options.tokenizer is not None:
        return load_tokenizer(options.tokenizer, options.source_language, options.target_language)
    batches = train.iter(1000)
    return train_tokenizer(
        (line for batch in batches for side in ("source", "target") for line in batch[side]), options.vocab_size
    )


def encode(rows: "Dataset", tokenizer: "PreTrainedTokenizerBase", num_processes: int) -> "Dataset":
    """Add `input_ids` and `labels`, which end with the end token, and the number of tokens of each."""

    def ids(batch: dict) -> dict:
        source = tokenizer(batch["source"])["input_ids"]
        target = tokenizer(text_target=batch["target"])["input_ids"]
        lengths = {"source_length": list(map(len, source)), "target_length": list(map(len, target))}
        return {"input_ids": source, "labels": target} | lengths

    return rows.map(ids, batched=True, num_proc=num_processes if num_processes > 1 else None)


def leave_out(rows: "Dataset", options: PairOptions) -> "tuple[Dataset, Counter]":
    """The training pairs without those of an empty side, and those that the options leave out; and how many, by reason.

    Raises:
        InputError: none is left.
    """
    left_out = Counter()

    def reason(pair: dict) -> str | None:
        lengths = (pair["source_length"], pair["target_length"])
        if not (pair["source"].strip() and pair["target"].strip()):
            return "empty"
        if options.max_length is not None and max(lengths) > options.max_length:
            return "long"
        if options.max_ratio is not None and max(lengths) > options.max_ratio * min(lengths):
            return "ratio"
        return None

    kept = []
    for start in range(0, len(rows), 10_000):
        batch = rows.select_columns(["source", "target", "source_length", "target_length"])[start : start + 10_000]
        for i, pair in enumerate(dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)):
            found = reason(pair)
            left_out.update([found] if found else [])
            if found is None:
                kept.append(start + i)
    if not kept:
        counts = ", ".join(f"{name} {count:,}" for name, count in left_out.items())
        raise InputError(f"No training pair is left ({counts}): raise --max_length or --max_ratio, or give other files.")
    # The texts of the training pairs are not read again.
    return rows.select(kept).remove_columns(["source", "target"]).flatten_indices(), left_out


def summarise(rows: "Dataset") -> dict:
    """Pairs, tokens, and the longest side of a split."""
    source, target = rows["source_length"][:], rows["target_length"][:]
    return {
        "pairs": len(rows),
        "source_tokens": sum(source),
        "target_tokens": sum(target),
        "longest": max(max(source), max(target)),
    }


def describe(manifest: dict) -> list[str]:
    """What the folder holds, for people."""
    lines = [f"Tokenizer: {manifest['vocab_size']:,} entries"]
    for split, values in manifest["splits"].items():
        left = ", ".join(f"{name} {count:,}" for name, count in values["left_out"].items())
        lines.append(
            f"{split}: {values['pairs']:,} pairs, {values['source_tokens']:,} and {values['target_tokens']:,} tokens, the "
            f"longest side {values['longest']:,}" + (f"; left out: {left}" if left else "")
        )
    return lines


def read_manifest(folder: Path) -> dict:
    """The manifest of a folder that `luna prepare_pairs` made.

    Raises:
        InputError: there is none, or it is of another version.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        version = manifest["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"`dataset` is {folder}, which `luna prepare_pairs` did not make: give one of its.") from error
    if version != VERSION:
        raise InputError(f"`dataset` is {folder}, of version {version}, but this is version {VERSION}: make it again.")
    return manifest
