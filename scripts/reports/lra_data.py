# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
r"""Describe ListOps and Pathfinder as they lie on disk, generated or official; print markdown tables, draw examples.

    luna generate listops --output_dir data/lra_release
    luna generate pathfinder32 --output_dir data/lra_release --num_samples 10000
    luna generate pathfinder128 --output_dir data/lra_release --num_samples 1000
    python -m scripts.reports.lra_data --lra_dir data/lra_release --picture docs/lra_pathfinder.png

What is not there is left out.
"""

import argparse
import csv
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

LISTOPS = ("basic_train.tsv", "basic_val.tsv", "basic_test.tsv")
PATHFINDER = "curv_contour_length_14"
OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")
QUANTILES = (0, 0.05, 0.5, 0.95, 1)
SIZES = (32, 128)
GAP, SIDE, PICTURES = 8, 128, 6  # pixels between pictures and on their sides, pictures in a row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lra_dir", type=Path, default=Path("data/lra_release"), help="folder of the benchmark's data")
    parser.add_argument("--max_samples", type=int, default=10_000, help="pictures of a size to describe, at most")
    parser.add_argument("--picture", type=Path, help="where to draw Pathfinder's examples")
    options = parser.parse_args()
    if (options.lra_dir / "listops-1000").is_dir():
        describe_listops(options.lra_dir / "listops-1000")
    folders = {size: options.lra_dir / f"pathfinder{size}" / PATHFINDER for size in SIZES}
    folders = {size: folder for size, folder in folders.items() if folder.is_dir()}
    if folders:
        describe_pathfinder(folders, options.max_samples)
    if folders and options.picture:
        draw_examples(folders, options.picture)


def describe_listops(folder: Path) -> None:
    """Print lengths, depths and values of ListOps."""
    rows = {}
    for name in LISTOPS:
        with (folder / name).open(newline="", encoding="utf-8") as file:
            rows[name] = [describe_expression(row["Source"], row["Target"]) for row in csv.DictReader(file, delimiter="\t")]
    print(
        "| file | expressions | tokens: "
        + ", ".join(f"{q:.0%}" for q in QUANTILES)
        + " | depth, mean | operators of tokens |"
    )
    print("|---|---:|---|---:|---:|")
    for name, described in rows.items():
        tokens, depths, operators, _ = (np.array(column) for column in zip(*described, strict=True))
        quantiles = ", ".join(f"{value:,.0f}" for value in np.quantile(tokens, QUANTILES))
        print(f"| {name} | {len(tokens):,} | {quantiles} | {depths.mean():.2f} | {operators.sum() / tokens.sum():.1%} |")
    print("\n| file | " + " | ".join(f"value {value}" for value in range(10)) + " |")
    print("|---|" + "---:|" * 10)
    for name, described in rows.items():
        counts = np.bincount([value for *_, value in described], minlength=10)
        print(f"| {name} | " + " | ".join(f"{share:.1%}" for share in counts / counts.sum()) + " |")
    print()


def describe_expression(source: str, target: str) -> tuple[int, int, int, int]:
    """Tokens, levels, operators and value of an expression."""
    tokens = [token for token in source.split() if token not in "()"]
    depth = np.cumsum([1 if token in OPERATORS else -1 if token == "]" else 0 for token in tokens])
    return len(tokens), int(depth.max()) + 1, sum(token in OPERATORS for token in tokens), int(target)


def read_pathfinder(folder: Path):
    """Pictures with their labels, in the order of the folders."""
    for file in sorted(folder.glob("metadata/*.npy"), key=lambda path: int(path.stem)):
        for line in file.read_text().splitlines():
            subfolder, name, _, label, *_ = line.split()
            with Image.open(folder / subfolder / name) as picture:
                yield np.asarray(picture.convert("L")), int(label)


def describe_pathfinder(folders: dict[int, Path], max_samples: int) -> None:
    """Print how the pictures of both classes look."""
    print("| pictures | label | number | mean of pixels | pixels above 64 | pixels of 255 |")
    print("|---|---:|---:|---:|---:|---:|")
    for size, folder in folders.items():
        rows = [(label, picture.mean(), (picture > 64).sum(), (picture == 255).sum()) for picture, label in
                islice(read_pathfinder(folder), max_samples)]  # fmt: skip
        counts = Counter(label for label, *_ in rows)
        for label in sorted(counts):
            means = np.mean([values for own, *values in rows if own == label], axis=0)
            print(f"| {size} x {size} | {label} | {counts[label]:,} | " + " | ".join(f"{mean:.1f}" for mean in means) + " |")


def draw_examples(folders: dict[int, Path], target: Path) -> None:
    """Draw a row of pictures of each class and size."""
    step = SIDE + GAP
    image = Image.new("L", (PICTURES * step + GAP, 2 * len(folders) * (step + 2 * GAP)), 255)
    text, top = ImageDraw.Draw(image), 0
    for size, folder in folders.items():
        for wanted in (1, 0):
            examples = (picture for picture, label in read_pathfinder(folder) if label == wanted)
            text.text((GAP, top + 2), f"{size} x {size}, label {wanted}", fill=0)
            for place, picture in enumerate(islice(examples, PICTURES)):
                large = Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.NEAREST)
                image.paste(large, (GAP + place * step, top + 2 * GAP))
            top += step + 2 * GAP
    image.save(target, optimize=True)


if __name__ == "__main__":
    main()
