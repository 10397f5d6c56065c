# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""A real task of pairs that any machine can make: from the signature of a function to the first line of its docstring.

    python -m scripts.reports.signature_summaries

Reads Python's standard library, prepares the pairs, trains a small Luna that translates them, and sets its beam search
beside two baselines: the signature itself, and the docstring of the most similar signature. A finished part is not run
again, and an interrupted training goes on.
"""

import argparse
import ast
import hashlib
import json
import platform
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from luna_tools.command_line import exit_status, run
from luna_tools.errors import InputError
from luna_tools.files import write_json, write_text
from luna_tools.settings import to_options

PROG = "python -m scripts.reports.signature_summaries"
LEFT_OUT = {"test", "tests", "idlelib", "site-packages", "dist-packages", "lib2to3", "turtledemo", "__pycache__"}
MINIMUM_WORDS, MAXIMUM_CHARS = 3, 160
MINIMUM_PAIRS = 1000
SHARES = {"test": 0.08, "validation": 0.06}  # of all pairs, at least
VOCAB_SIZE = 1500
SAMPLES = 8
MODEL = {
    "model_type": "luna",
    "is_encoder_decoder": True,
    "hidden_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 384,
    "projection_length": 16,
    "hidden_act": "relu",
    "position_embedding_type": "sinusoidal",
    "embedding_layer_norm": False,
}
OPTIONS = (
    "--dropout 0.1 --max_tokens 1024 --batches_per_step 1 --num_train_epochs 15 --learning_rate 1e-3 --warmup_steps 400 "
    "--weight_decay 0.01 --max_grad_norm 1 --num_averaged_checkpoints 5 --generation_max_length 64"
).split()


def pairs_of(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield signature and docstring's first line of each function of a module, in the order of its text."""

    def walk(node: ast.AST, names: tuple[str, ...]) -> Iterator[tuple[str, str]]:
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield from walk(child, names)
                continue
            if not isinstance(child, ast.ClassDef) and (docstring := ast.get_docstring(child)):
                yield f"{'.'.join((*names, child.name))}({ast.unparse(child.args)})", docstring.strip().split("\n")[0]
            yield from walk(child, (*names, child.name) if isinstance(child, ast.ClassDef) else names)

    yield from walk(tree, ())


def module_pairs(library: Path) -> dict[str, list[tuple[str, str]]]:
    """The pairs by top-level module; `_pydatetime` is `datetime`, so that near-copies are on one side of the division."""
    found: dict[str, list[tuple[str, str]]] = {}
    for path in sorted(library.rglob("*.py")):
        parts = path.relative_to(library).with_suffix("").parts
        if LEFT_OUT.intersection(parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, ValueError, OSError):  # samples of wrong code
            continue
        for signature, line in pairs_of(tree):
            line = re.sub(r"\s+", " ", line)
            if len(line.split()) >= MINIMUM_WORDS and len(line) <= MAXIMUM_CHARS and len(signature) <= MAXIMUM_CHARS:
                found.setdefault(re.sub("^_(py)?", "", parts[0]), []).append((signature, line))
    return found


def make_splits(library: Path) -> dict[str, list[tuple[str, str]]]:
    """Divide whole modules, in the order of their names' hashes: first test, then validation, the rest is for training.

    A module with more than a tenth of all pairs is for training. A pair that several modules have is taken once.

    Raises:
        InputError: this Python's library has too few texts.
    """
    modules, seen = {}, set()
    for module, pairs in module_pairs(library).items():
        modules[module] = [pair for pair in dict.fromkeys(pairs) if pair not in seen]
        seen.update(pairs)
    splits: dict[str, list[tuple[str, str]]] = {"test": [], "validation": [], "train": []}
    wanted = {split: share * len(seen) for split, share in SHARES.items()}
    for module in sorted(modules, key=lambda name: hashlib.sha256(name.encode()).hexdigest()):
        open_splits = (split for split in SHARES if len(splits[split]) < wanted[split])
        is_large = len(modules[module]) > len(seen) / 10
        splits["train" if is_large else next(open_splits, "train")] += modules[module]
    if len(seen) < MINIMUM_PAIRS:
        raise InputError(f"The library in {library} has only {len(seen)} functions with docstrings: run another Python.")
    return splits


def write_pairs(folder: Path, splits: dict[str, list[tuple[str, str]]]) -> list[str]:
    """Write the pairs as line files; returns the options that name them."""
    folder.mkdir(parents=True, exist_ok=True)
    options = []
    for split, pairs in splits.items():
        paths = [folder / f"{split}.{side}" for side in ("signatures", "summaries")]
        for path, lines in zip(paths, zip(*pairs, strict=True), strict=True):
            write_text(path, "".join(f"{line}\n" for line in lines))
        options += [f"--{split}_files", *map(str, paths)]
    return options


def nearest_summaries(splits: dict[str, list[tuple[str, str]]]) -> list[str]:
    """For each test signature the summary of the training signature that is nearest by TF-IDF of its characters."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.neighbors import NearestNeighbors

    known, asked = ([signature for signature, _ in splits[split]] for split in ("train", "test"))
    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
    search = NearestNeighbors(n_neighbors=1, metric="cosine").fit(vectorizer.fit_transform(known))
    nearest = search.kneighbors(vectorizer.transform(asked), return_distance=False)[:, 0]
    return [splits["train"][i][1] for i in nearest]


def report(splits: dict, scores: dict[str, dict[str, float]], results: dict, samples: list[tuple[str, ...]]) -> str:
    """The table, what it was made from, and samples, as markdown."""
    from luna_tools.cards import table

    rows = [(name, *(f"{values[metric]:.1f}" for metric in ("bleu", "chrf"))) for name, values in scores.items()]
    counts = ", ".join(f"{len(splits[split]):,} {split}" for split in ("train", "validation", "test"))
    shown = [tuple(text.replace("|", "\\|") for text in sample) for sample in samples]
    return f"""{table(("", "BLEU", "chrF"), rows)}

On the test pairs, by sacreBLEU: `{results["signatures"]["bleu"]}`, `{results["signatures"]["chrf"]}`. Pairs: {counts}, of
Python {platform.python_version()}. Luna's loss on them: {results["test_loss"]:.2f} nats a token.

{table(("signature", "first line of the docstring", "Luna, 5 beams", "nearest signature's"), shown)}
"""


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog=PROG, description=__doc__.split("\n")[0])
    parser.add_argument("--output_dir", type=Path, default=Path("runs/signature-summaries"))
    options, overrides = parser.parse_known_args(argv)
    folder = options.output_dir
    splits = make_splits(Path(sysconfig.get_path("stdlib")))
    files = write_pairs(folder / "lines", splits)
    if not (folder / "data").is_dir():
        arguments = [*files, "--source_language", "py", "--target_language", "en", "--vocab_size", str(VOCAB_SIZE)]
        succeed(run("prepare_pairs", [*arguments, "--output_dir", str(folder / "data")]))
    places = ["--dataset", str(folder / "data"), "--output_dir", str(folder / "model")]
    succeed(run("finetune", ["translation", *places, *to_options({"model": MODEL}), *OPTIONS, *overrides]))

    from finetuning.translation.bleu import scores

    signatures, summaries = map(list, zip(*splits["test"], strict=True))
    translations = (folder / "model" / "translations_test.txt").read_text(encoding="utf-8").splitlines()
    nearest = nearest_summaries(splits)
    found = {"the signature itself": signatures, "nearest signature's summary": nearest, "Luna, 5 beams": translations}
    found_scores = {name: scores(lines, summaries) for name, lines in found.items()}
    results = json.loads((folder / "model" / "all_results.json").read_text(encoding="utf-8"))
    together = list(zip(signatures, summaries, translations, nearest, strict=True))
    table = report(splits, found_scores, results, together[:: max(1, len(together) // SAMPLES)][:SAMPLES])
    write_json(folder / "results.json", found_scores)
    write_text(folder / "table.md", table)
    print(f"\n{table}\nSaved in {folder}.")


def succeed(status: int) -> None:
    """End as the program that was run has ended, unless it has done its work."""
    if status:
        raise SystemExit(status)


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:]), PROG, extra="translate"))
