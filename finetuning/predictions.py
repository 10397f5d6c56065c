# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""What a model predicts, as files: one JSON line per row for people, and the benchmarks' submission files."""

import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from finetuning.tasks import TaskData
from finetuning.tasks.glue import GLUE_FILES
from finetuning.tasks.task import class_names
from luna_tools.command_line import run
from luna_tools.errors import InputError
from luna_tools.settings import Parser, split_command_line

SUBMISSION = "submission"  # the folder of submission files; the zip of them lies beside it
SHOWN = 500  # characters of a text: enough to know it by


def write_predictions(
    output_dir: Path, data: TaskData, split: str, logits: np.ndarray, first_tokens: list[list[int]] | None = None
) -> Path:
    """Write `predictions_<split>.jsonl`, one row of the split per line, and return its path.

    A line holds `index`, the row's columns (of texts above 500 characters the start and " …"), `prediction` and, where it
    is known, `label`. Classes are given by name, options by letter. `probabilities` has one entry for each class or
    option. For token classification the predictions, labels and `probabilities` (of the predicted tags) are lists with
    one entry per word, null for words without a token.

    Args:
        logits: of all rows of the split in order, as `metrics.decide` takes them.
        first_tokens: for token classification, the place in `logits` of each word's first token, -1 where there is
            none: the column of `encode`, if batches are padded on the right.

    Raises:
        InputError: a score is NaN or infinite.
    """
    from scipy.special import softmax

    from finetuning.metrics import decide

    task, dataset = data.task, data.splits[split]
    decided = decide(task, logits)
    output_dir.mkdir(parents=True, exist_ok=True)
    path = output_dir / f"predictions_{split}.jsonl"
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for number, (row, scores, prediction) in enumerate(zip(dataset, logits, decided, strict=True)):
            texts = {name: shown(row[name]) for name in task.columns if not isinstance(row[name], bytes)}
            line = {"index": row["index"], **texts}
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
                names = class_names(task, len(row.get("options", ())))
                probabilities = softmax(scores[: len(names)].astype(np.float64))
                line["prediction"] = names[prediction]
                line["probabilities"] = {name: _short(p) for name, p in zip(names, probabilities, strict=True)}
                label = None if label == -1 else names[label]
            if label is not None:
                line["label"] = label
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return path


def shown(value: Any) -> Any:
    """A text, or each of a list, at a length that a person reads."""
    if isinstance(value, list):
        return [shown(text) for text in value]
    return value if len(value) <= SHOWN else f"{value[:SHOWN]} …"


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def write_submission(output_dir: Path, data: TaskData, logits: dict[str, np.ndarray]) -> Path:
    """Write the submission files of a benchmark's task to `submission/`, and all of them to `submission.zip`.

    Each row has its id and the answer as the task's family writes it. Equal predictions give equal bytes.

    Args:
        data: whose rows `Task.check_submission` has seen.
        logits: test split -> scores of all its rows in order, as `metrics.decide` takes them.

    Returns:
        The path of the zip.

    Raises:
        InputError: a score is NaN or infinite.
    """
    from finetuning.metrics import decide

    texts = {}
    for split, name in data.task.submission_files:
        if split in logits:
            header, answers = data.task.submission(decide(data.task, logits[split]))
            indices = map(str, data.splits[split]["index"][:])
            separator = "," if name.endswith(".csv") else "\t"
            lines = [header, *zip(indices, answers, strict=True)]
            texts[name] = "".join(separator.join(line) + "\n" for line in lines)
    (output_dir / SUBMISSION).mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (output_dir / SUBMISSION / name).write_text(text, encoding="utf-8", newline="\n")
    return _write_zip(output_dir / f"{SUBMISSION}.zip", texts)


def merge_submissions(folders: list[Path], path: Path) -> list[str]:
    """Put the GLUE submission files of several runs into one zip, as GLUE's server wants it.

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
            raise InputError(f"{folder} has no GLUE submission in `{SUBMISSION}/`: give the output folder of a GLUE run.")
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


def main(argv: list[str]) -> None:
    """Merge the GLUE submissions of several runs into one zip."""
    words, options = split_command_line(argv, {})
    parser = Parser("luna merge OUT.zip RUN [RUN ...]", main.__doc__)
    parser.parse(options)
    if len(words) < 2:
        parser.error("name the zip to write, and then the output folders of runs, one for each task")
    path, *folders = map(Path, words)
    missing = merge_submissions(folders, path)
    print(f"Wrote {path}; GLUE's server also wants: {', '.join(missing) if missing else 'nothing more'}.")


if __name__ == "__main__":
    sys.exit(run("merge", sys.argv[1:]))
