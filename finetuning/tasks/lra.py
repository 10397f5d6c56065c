# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The Long Range Arena: ListOps, Text, Retrieval, Image and Pathfinder, as sequences of symbols from small vocabularies.

ListOps, Retrieval and Pathfinder are read from the official archive `lra_release`, or from what `luna generate` writes in
the same form; Text and Image from the Hub. Splits are the benchmark's: Text picks its checkpoint on its test rows.
"""

import io
import logging
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finetuning.tasks.published import PublishedTask
from finetuning.tasks.reading import Row, make_dataset, need_columns, read_text, table_lines
from finetuning.tasks.task import TaskData
from luna_tools.errors import InputError, told
from luna_tools.tokenizer import FIRST_TOKENS, MASK_TOKEN

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

    from finetuning.encoding import Encoder

logger = logging.getLogger(__name__)

FIRST_SYMBOL = len(FIRST_TOKENS)  # the id of the first symbol: after the special tokens
BYTE_VALUES = 256
SPLIT_SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}  # of Pathfinder's pictures
VALIDATION_SHARE = 0.1  # of CIFAR-10's training pictures, the last ones


@dataclass(frozen=True)
class LraTask(PublishedTask):
    """A task whose inputs are symbols of a small vocabulary, and whose models start from random weights."""

    what: str = ""  # what `--data_dir` has to hold where the Hub has no copy

    @abstractmethod
    def backend_tokenizer(self) -> "Tokenizer":
        """The tokenizer of the inputs, without its special tokens."""

    def make_tokenizer(self) -> "PreTrainedTokenizerBase":
        """The special tokens, the symbols, and last the mask."""
        from luna_tools.tokenizer import wrap_tokenizer

        return wrap_tokenizer(self.backend_tokenizer())

    def original_files(self, folder: Path, split: str) -> list[Path]:
        paths = [self.find_folder(folder) / name for name in self.original_names(split)]
        return [path for path in paths if path.is_file()]

    def find_folder(self, source: Path) -> Path:
        """The task's folder below that of the archive, or the folder that is given.

        Raises:
            InputError: there are two, as there are two pathfinder128 in the archive.
        """
        parents = (source, source / "lra_release", source / "lra_release" / "lra_release")
        found = [parent / self.folder for parent in parents if (parent / self.folder).is_dir()]
        if len(found) > 1:
            raise InputError(
                f"`--data_dir` {source} holds two folders {self.folder}, {found[0]} and {found[1]}: give the one to read."
            )
        return found[0] if found else source

    def _download(self) -> Path:
        if self.hub_dataset is None:
            raise InputError(f"{self.title} is not on the Hub: give `--data_dir` with {self.what}.")
        return super()._download()


# ---------------------------------------------------------------------------------------------------------------------
# ListOps

LISTOPS_OPERATORS = ("MIN", "MAX", "MED", "SM")


@dataclass(frozen=True)
class ListOps(LraTask):
    """Nested operations on digits. The parentheses say nothing that the brackets do not say, and are left out.

    Without brackets no model can know where an operation ends: that is what the widely used preprocessing leaves, whose
    tokenizer keeps letters and digits alone.
    """

    keeps_brackets: bool = True

    def original_names(self, split: str) -> tuple[str, ...]:
        return (f"basic_{split.removesuffix('idation')}.tsv",)

    def original_rows(self, split: str, path: Path) -> Iterator[Row]:
        lines = table_lines(path)
        columns = next(lines, ("", []))[1]
        need_columns(("Source", "Target"), columns, str(path))
        for index, (place, fields) in enumerate(lines):
            if len(fields) != len(columns):
                raise InputError(f"{place}: the row has {len(fields)} fields, but must have {len(columns)}; write it again.")
            row = dict(zip(columns, fields, strict=True))
            yield Row(place, {"index": index, "text": row["Source"], "label": row["Target"]})

    def backend_tokenizer(self) -> "Tokenizer":
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

        operators = [f"[{name}" if self.keeps_brackets else name for name in LISTOPS_OPERATORS]
        symbols = [*map(str, range(10)), *operators, *(["]"] if self.keeps_brackets else [])]
        vocab = {token: i for i, token in enumerate((*FIRST_TOKENS, *symbols, MASK_TOKEN))}
        tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
        dropped = "()" if self.keeps_brackets else "()[]"
        tokenizer.normalizer = normalizers.Sequence([normalizers.Replace(mark, "") for mark in dropped])
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
        return tokenizer


# ---------------------------------------------------------------------------------------------------------------------
# Bytes of text


class Bytes(LraTask):
    """Texts as their bytes in UTF-8."""

    def backend_tokenizer(self) -> "Tokenizer":
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

        pieces = byte_pieces()
        vocab = {token: i for i, token in enumerate((*FIRST_TOKENS, *pieces, MASK_TOKEN))}
        tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
        return tokenizer

    def encoder(self) -> "type[Encoder]":
        from finetuning.lra.encoding import ByteEncoder

        return ByteEncoder


def byte_pieces() -> list[str]:
    """The character that stands for each byte in a byte-level BPE, in the order of the bytes."""
    from tokenizers import pre_tokenizers

    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set(map(chr, printable))))
    return [chr(value) if value in printable else next(others) for value in range(BYTE_VALUES)]


class Text(Bytes):
    """Reviews of films. The benchmark picks the checkpoint on the test rows, so there is no other split to report."""

    hub_columns = ("text", "label")

    def hub_split(self, split: str) -> tuple[str | None, str]:
        return self.hub_config, "test" if split == "validation" else split

    def hub_rows(self, rows: Iterable[Row]) -> Iterator[Row]:
        for index, (place, raw) in enumerate(rows):
            yield Row(place, {"index": index, "text": raw["text"], "label": raw["label"]})

    def load(self, source: Path | None) -> TaskData:
        logger.warning("%s: the checkpoint is picked on the published test rows, as the Long Range Arena does.", self.title)
        return super().load(source)


class Retrieval(Bytes):
    """Pairs of papers: does one cite the other? Each is read alone. The files have no header."""

    def original_names(self, split: str) -> tuple[str, ...]:
        return (f"new_aan_pairs.{split.replace('validation', 'eval')}.tsv",)

    def original_rows(self, split: str, path: Path) -> Iterator[Row]:
        for index, (place, fields) in enumerate(table_lines(path)):
            if len(fields) != 5:
                raise InputError(
                    f"{place}: the row has {len(fields)} fields, but must have 5, the label, two ids and two texts; "
                    "download the file again."
                )
            label, _, _, text, text_pair = fields
            columns = {"index": index, "text": text, "text_pair": text_pair, "label": label.removesuffix(".0")}
            yield Row(place, columns)

    def encoder(self) -> "type[Encoder]":
        from finetuning.lra.encoding import TwoTextsEncoder

        return TwoTextsEncoder


# ---------------------------------------------------------------------------------------------------------------------
# Pixels


class Pixels(LraTask):
    """Pictures row by row, each pixel's grey level one of 256 symbols. There is no room for a first token."""

    @property
    def columns(self) -> tuple[str, ...]:
        return ("pixels",)

    def backend_tokenizer(self) -> "Tokenizer":
        from tokenizers import Tokenizer, models, pre_tokenizers

        symbols = map(str, range(BYTE_VALUES))
        vocab = {token: i for i, token in enumerate((*FIRST_TOKENS, *symbols, MASK_TOKEN))}
        tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return tokenizer

    def encoder(self) -> "type[Encoder]":
        from finetuning.lra.encoding import PixelEncoder

        return PixelEncoder


def grey_levels(data: bytes, size: int, place: str) -> bytes:
    """The pixels of a picture file of size x size, row by row."""
    from PIL import Image

    with told(f"{place} is no picture that can be read", "download it again"):
        picture = Image.open(io.BytesIO(data)).convert("L")
    if picture.size != (size, size):
        raise InputError(f"{place} has {picture.width} x {picture.height} pixels, but must have {size} x {size}.")
    return picture.tobytes()


class CifarImage(Pixels):
    """CIFAR-10 in grey. As in the benchmark, the last tenth of the training pictures is the validation split."""

    hub_columns = ("img", "label")

    @property
    def split_names(self) -> tuple[str, ...]:
        return ("train", "test")

    def hub_rows(self, rows: Iterable[Row]) -> Iterator[Row]:
        for index, (place, raw) in enumerate(rows):
            data = raw["img"].get("bytes") if isinstance(raw["img"], dict) else None
            if not data:
                raise InputError(f"{place}: 'img' holds no picture; download the file again.")
            yield Row(place, {"index": index, "pixels": grey_levels(data, 32, place), "label": raw["label"]})

    def load(self, source: Path | None) -> TaskData:
        splits = super().load(source).splits
        train = splits.pop("train")
        count = max(1, round(len(train) * VALIDATION_SHARE))
        if len(train) == count:
            raise InputError(
                f"{self.title} has {len(train)} training pictures, which leaves none for validation: give more."
            )
        parts = {
            "train": train.select(range(len(train) - count)),
            "validation": train.select(range(len(train) - count, len(train))),
        }
        return TaskData(self, parts | splits)


@dataclass(frozen=True)
class Pathfinder(Pixels):
    """Two dots: are they on the same dashed curve? Contours of 14 paddles, the benchmark's hard set.

    The benchmark takes eight tenths of the pictures for training and a tenth each for validation and test; which ones, no
    description says: here by a random order that is always the same.
    """

    size: int = 32

    def original_pattern(self, split: str) -> str:
        return f"{self.folder}/{LEVEL}/metadata/*.npy"

    def original_files(self, folder: Path, split: str) -> list[Path]:
        """The lists of all pictures, for every split."""
        parent = self.find_folder(folder)
        for place in (parent / LEVEL, parent):
            if files := sorted((place / "metadata").glob("*.npy"), key=lambda path: (len(path.stem), path.stem)):
                return files
        return []

    def load(self, source: Path | None) -> TaskData:
        files = self.files(self._download() if source is None else source)["train"]
        pictures = [picture for file in files for picture in self.listed(file)]
        order = np.random.default_rng(0).permutation(len(pictures))
        bounds = np.round(np.cumsum([0.0, *SPLIT_SHARES.values()]) * len(pictures)).astype(int)
        rows = [self._checked(row, hidden_allowed=False) for row in self.read(pictures)]
        splits = {}
        for split, start, end in zip(SPLIT_SHARES, bounds, bounds[1:], strict=False):
            where = f"{files[0].parent.parent}, split {split!r}"
            splits[split] = make_dataset(self, where, [rows[i] for i in order[start:end]])
        return TaskData(self, splits)

    def listed(self, file: Path) -> Iterator[tuple[str, Path, str]]:
        """Where a picture is listed, its file, and its label; empty files, of which the archive has one, are left out."""
        empty = []
        for number, line in enumerate(read_text(file).splitlines(), start=1):
            place, fields = f"{file}, line {number}", line.split()
            if len(fields) < 4:
                raise InputError(f"{place} has {len(fields)} fields, but must have folder, file, number and label.")
            path = file.parent.parent / fields[0] / fields[1]
            if not path.is_file():
                raise InputError(f"{place} names {path}, which is not there: extract the archive again.")
            if path.stat().st_size == 0:
                empty.append(path)
            else:
                yield place, path, fields[3]
        if empty:
            logger.warning("Empty pictures that are left out: %d, the first is %s.", len(empty), empty[0])

    def read(self, pictures: list[tuple[str, Path, str]]) -> Iterator[Row]:
        from tqdm import tqdm

        for place, path, label in tqdm(pictures, "Pictures", mininterval=1, delay=5):
            index = f"{path.parent.name}/{path.name}"
            yield Row(
                place, {"index": index, "pixels": grey_levels(path.read_bytes(), self.size, str(path)), "label": label}
            )


LEVEL = "curv_contour_length_14"

# ---------------------------------------------------------------------------------------------------------------------
# The tasks


def _task(family: type[LraTask], name: str, title: str, recipe: str, **fields: Any) -> LraTask:
    return family(
        name=name,
        title=title,
        kind="classification",
        metrics=("accuracy",),
        recipes=tuple(f"{folder}/{recipe}.yaml" for folder in ("paper", "official", *fields.pop("others", ()))),
        grid="lra.yaml",
        **fields,
    )


LISTOPS = {
    "folder": "listops-1000",
    "text_columns": ("Source",),
    "labels": tuple(map(str, range(10))),
    "others": ("reduced",),
    "what": "listops-1000 of lra_release, or make it with `luna generate listops`",
}
PATHFINDER = {"labels": ("apart", "connected"), "test_splits": ("test",)}
LRA_TASKS = (
    _task(ListOps, "listops", "ListOps", "listops", **LISTOPS),
    _task(ListOps, "listops-no-brackets", "ListOps without brackets", "listops", keeps_brackets=False, **LISTOPS),
    _task(
        Text,
        "text",
        "Text",
        "text",
        hub_dataset="stanfordnlp/imdb",
        hub_config="plain_text",
        text_columns=("text",),
        labels=("neg", "pos"),
        test_splits=(),
    ),
    _task(
        Retrieval,
        "retrieval",
        "Retrieval",
        "retrieval",
        folder="tsv_data",
        text_columns=("text1", "text2"),
        labels=("unrelated", "related"),
        what="tsv_data of lra_release",
    ),
    _task(
        CifarImage,
        "image",
        "Image",
        "image",
        hub_dataset="uoft-cs/cifar10",
        hub_config="plain_text",
        labels=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    ),
    *(
        _task(
            Pathfinder,
            f"pathfinder{size}",
            "Pathfinder" if size == 32 else f"Pathfinder-{size}",
            f"pathfinder{size}",
            folder=f"pathfinder{size}",
            size=size,
            what=f"pathfinder{size} of lra_release, or make it with `luna generate pathfinder{size}`",
            others=("reduced",) if size == 32 else (),
            **PATHFINDER,
        )
        for size in (32, 128)
    ),
)
