# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""What a model predicts, as files: one JSON line per row for people, and the benchmarks' submission files."""

import argparse
import json
import logging
import sys
import zipfile
from pathlib import Path

import numpy as np
from scipy.special import softmax

from finetuning.data import TaskData
from finetuning.metrics import decide
from finetuning.tasks import TASKS
from luna_tools.errors import InputError

logger = logging.getLogger(__name__)

SUBMISSION = "submission"  # the folder of submission files; the zip of them lies beside it
GLUE_FILES = tuple(
    name for task in TASKS.values() if task.hub_dataset == "nyu-mll/glue" for _, name in task.submission_files
)


def write_predictions(
    output_dir: Path, data: TaskData, split: str, logits: np.ndarray, first_tokens: list[list[int]] | None = None
) -> Path:
    """Writes `predictions_<split>.jsonl`, one row of the split per line, and returns its path.

    A line holds `index`, `prediction` and, where it is known, `label`. Classes are given by name, options by letter.
    `probabilities` has one entry for each class or option. For token classification the predictions, labels and
    `probabilities` (of the predicted tags) are lists with one entry per word, null for words without a token.

    Args:
        logits: of all rows of the split in order, as `metrics.decide` takes them.
        first_tokens: for token classification, the place in `logits` of each word's first token, -1 where there is
            none: the column of `encode`, if batches are padded on the right.

    Raises:
        InputError: a score is NaN or infinite.
    """
    task, dataset = data.task, data.splits[split]
    decided = decide(task, logits)
    output_dir.mkdir(parents=True, exist_ok=True)
    path = output_dir / f"predictions_{split}.jsonl"
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for number, (row, scores, prediction) in enumerate(zip(dataset, logits, decided, strict=True)):
            line = {"index": row["index"]}
            label = row["label"]
            if task.kind == "regression":
                line["prediction"] = _short(prediction)
                label = None if np.isnan(label) else _short(label)  # stored as float32: 3.8 comes back as 3.7999999523
            elif task.kind == "token_classification":
                shares = softmax(scores.astype(np.float64), axis=-1).max(axis=-1)
                places = first_tokens[number]
                line["prediction"] = [None if place < 0 else task.labels[prediction[place]] for place in places]
                line["probabilities"] = [None if place < 0 else _short(shares[place]) for place in places]
                label = [task.labels[tag] for tag in label] or None
            else:
                names = task.labels or [letter(option) for option in range(len(row["options"]))]
                probabilities = softmax(scores[: len(names)].astype(np.float64))
                line["prediction"] = names[prediction]
                line["probabilities"] = {name: _short(p) for name, p in zip(names, probabilities, strict=True)}
                label = None if label == -1 else names[label]
            if label is not None:
                line["label"] = label
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return path


def letter(option: int) -> str:
    """A for the option 0."""
    return chr(ord("A") + option)


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def check_submission(data: TaskData) -> None:
    """Refuse test rows that GLUE's server would take for others, and warn where it would miss some.

    Raises:
        InputError: the rows of a test split of GLUE are not in their published order, or not all there.
    """
    for (split, name), wanted in zip(data.task.submission_files, data.task.submission_rows, strict=False):  # GLUE's alone
        indices = data.splits[split]["index"][:] if split in data.splits else []
        row = next((row for row, index in enumerate(indices) if index != row), None)
        if row is not None:
            raise InputError(
                f"`index` of row {row + 1} of the split {split!r} is {indices[row]}, but GLUE's server wants {row}: "
                f"predict all rows of {name} in their published order, or give --no_do_predict."
            )
        if indices and len(indices) != wanted:
            logger.warning("The split %r has %d rows, but GLUE's server wants %d in %s.", split, len(indices), wanted, name)


def write_submission(output_dir: Path, data: TaskData, logits: dict[str, np.ndarray]) -> Path:
    """Writes the submission files of a benchmark's task to `submission/`, and all of them to `submission.zip`.

    GLUE's server reads rows of `index` and `prediction`: names of classes for MNLI, the diagnostic set, QNLI and RTE,
    ids for the others, numbers from 0 to 5 for STS-B. For RACE and CommonsenseQA, rows are `id` and the letter of the
    `answer`. Equal predictions give equal bytes.

    Args:
        data: whose rows `check_submission` has seen.
        logits: test split -> scores of all its rows in order, as `metrics.decide` takes them.

    Returns:
        The path of the zip.

    Raises:
        InputError: a score is NaN or infinite.
    """
    task = data.task
    texts = {}
    for split, name in task.submission_files:
        if split not in logits:
            continue
        indices, decided = data.splits[split]["index"][:], decide(task, logits[split])
        if task.kind == "regression":
            answers = [f"{value:.3f}" for value in decided.clip(*task.value_range)]
        elif task.kind == "multiple_choice":
            answers = [letter(option) for option in decided]
        else:
            answers = [task.labels[label] if task.submits_label_names else str(label) for label in decided]
        separator = "," if name.endswith(".csv") else "\t"
        header = ("index", "prediction") if name in GLUE_FILES else ("id", "answer")
        lines = [header, *((str(index), answer) for index, answer in zip(indices, answers, strict=True))]
        texts[name] = "".join(separator.join(line) + "\n" for line in lines)
    (output_dir / SUBMISSION).mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (output_dir / SUBMISSION / name).write_text(text, encoding="utf-8", newline="\n")
    return _write_zip(output_dir / f"{SUBMISSION}.zip", texts)


def merge_submissions(folders: list[Path], path: Path) -> list[str]:
    """Puts the GLUE submission files of several runs into one zip, as GLUE's server wants it.

    Args:
        folders: the output folders of runs, one for each task.
        path: of the zip to write.

    Returns:
        The names of GLUE's eleven files that are still missing.

    Raises:
        InputError: a folder has no GLUE submission, two folders have one for the same task, or the file to write
            is no zip.
    """
    if path.suffix != ".zip":
        raise InputError(f"{path} is not named as a zip: give a file that ends in .zip, and then the folders.")
    texts, sources = {}, {}
    for folder in folders:
        names = [name for name in GLUE_FILES if (folder / SUBMISSION / name).is_file()]
        if not names:
            raise InputError(
                f"{folder} has no GLUE submission in `{SUBMISSION}/`: give the output folder of a GLUE run."
            )
        for name in names:
            if name in sources:
                raise InputError(f"{sources[name]} and {folder} both have a {name}: give one run for each task.")
            sources[name] = folder
            texts[name] = (folder / SUBMISSION / name).read_text(encoding="utf-8")
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_zip(path, texts)
    return [name for name in GLUE_FILES if name not in texts]


def _write_zip(path: Path, texts: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in sorted(texts):
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))  # or the bytes would tell the time
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, texts[name], zipfile.ZIP_DEFLATED)
    return path


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m finetuning.predictions", description="Merge the GLUE submissions of several runs into one zip."
    )
    parser.add_argument("zip", type=Path, help="file to write")
    parser.add_argument("folders", type=Path, nargs="+", help="output folders of runs, one for each task")
    options = parser.parse_args(argv)
    try:
        missing = merge_submissions(options.folders, options.zip)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename} cannot be used: {error.strerror}.", file=sys.stderr)
        return 2
    print(f"Wrote {options.zip}; GLUE's server also wants: {', '.join(missing) if missing else 'nothing more'}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
