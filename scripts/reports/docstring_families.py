# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""A real labelled task that any machine can make: which part of Python's standard library does a docstring come from?

    python -m scripts.reports.docstring_families

Fine-tunes the quickstart's checkpoint with a [CLS] head and with a head on pooled P, from its pretrained and from random
weights, under three seeds, and sets them beside two baselines. Finished runs are not run again. Each `--train_rows` has
a folder of its own below `--output_dir`.
"""

import argparse
import json
import platform
import random
import re
import statistics
import sys
from collections import Counter
from pathlib import Path

from luna_tools.command_line import exit_status
from luna_tools.errors import InputError
from luna_tools.files import write_json, write_text

PROG = "python -m scripts.reports.docstring_families"
FAMILIES = {
    "concurrency": "asyncio multiprocessing threading concurrent subprocess queue selectors sched signal",
    "files": "tarfile zipfile pathlib shutil tempfile os _pyio io gzip bz2 lzma filecmp fileinput glob fnmatch stat "
    "posixpath ntpath genericpath pickle pickletools shelve dbm mmap linecache",
    "internet": "http urllib ftplib smtplib imaplib poplib socketserver ssl socket wsgiref xmlrpc webbrowser ipaddress "
    "netrc",
    "mail_and_markup": "email mailbox xml html json csv configparser plistlib quopri base64",
    "numbers_and_time": "_pydecimal fractions statistics numbers datetime _pydatetime calendar random colorsys zoneinfo "
    "_strptime",
    "programming_tools": "unittest doctest pdb bdb inspect ast dis traceback pydoc symtable tokenize profile cProfile "
    "timeit trace tracemalloc code codeop compileall py_compile pyclbr",
}
TEST_SHARE, VALIDATION_SHARE = 0.2, 0.1
MINIMUM_WORDS = 4
OPTIONS = (
    "--kind classification --recipe none --total_train_batch_size 32 --per_device_train_batch_size 32 --learning_rate 5e-4 "
    "--num_train_epochs 5 --warmup_steps 0.06 --weight_decay 0.1 --adam_beta2 0.98 --adam_epsilon 1e-6 --max_grad_norm 0 "
    "--max_sequence_length 128 --per_device_eval_batch_size 64"
).split()


def make_dataset(folder: Path, seed: int, train_rows: int | None = None) -> dict[str, list[dict[str, str]]]:
    """Equally many docstrings of each family, divided at random; write train, validation and test as JSON lines.

    A text that more than one family has, or that has less than four words, is left out; a text is taken once. With
    `train_rows`, only so many of the training rows are kept, with families as equal as they can be.

    Raises:
        InputError: there are not so many training rows, or fewer than families are asked for.
    """
    from pretraining.prepare.sources import python_docs

    families = {module: family for family, modules in FAMILIES.items() for module in modules.split()}
    found: dict[str, set[str]] = {}
    for docstring in python_docs():
        family = families.get(docstring.module.split(".")[0])
        text = re.sub(r"\s+", " ", docstring.text).strip()
        if family is not None and len(text.split()) >= MINIMUM_WORDS:
            found.setdefault(text, set()).add(family)
    by_family: dict[str, list[str]] = {family: [] for family in FAMILIES}
    for text in sorted(found):
        if len(found[text]) == 1:
            by_family[found[text].pop()].append(text)
    count = min(len(texts) for texts in by_family.values())
    splits: dict[str, list[dict[str, str]]] = {"train": [], "validation": [], "test": []}
    chooser = random.Random(seed)
    for family, texts in by_family.items():
        chooser.shuffle(texts)
        test, validation = round(TEST_SHARE * count), round(VALIDATION_SHARE * count)
        for i, text in enumerate(texts[:count]):
            split = "test" if i < test else "validation" if i < test + validation else "train"
            splits[split].append({"text": text, "label": family})
    if train_rows is not None:
        if not len(FAMILIES) <= train_rows <= len(splits["train"]):
            raise InputError(f"--train_rows is {train_rows}: give from {len(FAMILIES)} to {len(splits['train'])}.")
        by_label = [[row for row in splits["train"] if row["label"] == family] for family in FAMILIES]
        splits["train"] = [row for group in zip(*by_label, strict=True) for row in group][:train_rows]
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        chooser.shuffle(rows)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    return splits


def baselines(splits: dict[str, list[dict[str, str]]]) -> dict[str, tuple[float, float]]:
    """Accuracy and macro F1 on the test rows."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import accuracy_score, f1_score
    from sklearn.pipeline import make_pipeline

    texts, labels = ({split: [row[name] for row in rows] for split, rows in splits.items()} for name in ("text", "label"))
    most_common = Counter(labels["train"]).most_common(1)[0][0]
    majority = [most_common] * len(labels["test"])
    best, best_accuracy = None, -1.0
    for c in (0.1, 1, 10, 100):
        model = make_pipeline(
            TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=c, max_iter=2000)
        ).fit(texts["train"], labels["train"])
        accuracy = accuracy_score(labels["validation"], model.predict(texts["validation"]))
        if accuracy > best_accuracy:
            best, best_accuracy = model, accuracy
    scores = {}
    for name, predictions in (("majority", majority), ("TF-IDF + logistic regression", best.predict(texts["test"]))):
        macro_f1 = f1_score(labels["test"], predictions, average="macro", zero_division=0)
        scores[name] = (accuracy_score(labels["test"], predictions), macro_f1)
    return scores


def spread(values: list[float]) -> str:
    from finetuning.experiments import percent

    return percent(statistics.mean(values)) + (f" ± {percent(statistics.stdev(values))}" if len(values) > 1 else "")


def report(splits: dict, scores: dict[str, tuple[float, float]], runs: dict[str, list[dict]], num_seeds: int) -> str:
    """The table, and what it was made from, as markdown."""
    from finetuning.experiments import POOLING_NAMES, percent
    from luna_tools.cards import table

    rows = [[name, "", *("" for _ in range(num_seeds)), percent(a), percent(f)] for name, (a, f) in scores.items()]
    for start, entries in runs.items():
        for pooling in dict.fromkeys(entry["classifier_pooling"] for entry in entries):
            results = [entry["results"] for entry in entries if entry["classifier_pooling"] == pooling]
            accuracies = [result["test_accuracy"] for result in results]
            macro_f1s = [result["test_f1_macro"] for result in results]
            rows.append(
                [f"Luna, {POOLING_NAMES[pooling]}", start, *map(percent, accuracies), spread(accuracies), spread(macro_f1s)]
            )
    header = ["model", "weights", *(f"seed {i}" for i in range(num_seeds)), "test accuracy", "macro F1"]
    counts = ", ".join(f"{len(rows)} {split}" for split, rows in splits.items())
    return f"""{table(header, rows)}

In %, on the test rows; mean ± standard deviation over {num_seeds} seeds. {counts.capitalize()} rows of
{len(FAMILIES)} equally frequent families, from the docstrings of Python {platform.python_version()}.
"""


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog=PROG, description=__doc__.split("\n")[0])
    parser.add_argument("--model_name_or_path", default="runs/quickstart/model")
    parser.add_argument("--train_rows", type=int, help="train on so many labelled rows only; default: all")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/docstring-families"))
    parser.add_argument("--heads", nargs="+", default=["cls", "packed"])
    parser.add_argument("--num_seeds", type=int, default=3)
    options, overrides = parser.parse_known_args(argv)
    if not Path(options.model_name_or_path).is_dir():
        raise InputError(f"{options.model_name_or_path} is not there: run `python3 scripts/quickstart.py` first.")

    from finetuning.experiments import compare

    output_dir = options.output_dir / f"train-{'all' if options.train_rows is None else options.train_rows}"
    data_dir = output_dir / "data"
    runs = {}
    splits = make_dataset(data_dir, seed=0, train_rows=options.train_rows)
    scores = baselines(splits)
    for start, flag in (("pretrained", "false"), ("random", "true")):
        folder = output_dir / start
        arguments = [*OPTIONS, *overrides, "--model_name_or_path", options.model_name_or_path, "--random_weights", flag]
        for split in splits:
            arguments += [f"--{split}_file", str(data_dir / f"{split}.jsonl")]
        arguments += ["--seed", "0", "--num_seeds", str(options.num_seeds), "--output_dir", str(folder)]
        compare(["custom"], [*arguments, "--compare", *options.heads])
        runs[start] = json.loads((folder / "compare.json").read_text(encoding="utf-8"))["runs"]
    table = report(splits, scores, runs, options.num_seeds)
    write_json(output_dir / "results.json", {"baselines": scores, "runs": runs})
    write_text(output_dir / "table.md", table)
    print(f"\n{table}\nSaved in {output_dir}.")


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:]), PROG, extra="finetune"))
