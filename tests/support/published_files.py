# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Small files of toy text in the exact formats in which the tasks are published, and a tokenizer for that text.

The label of a row can be learned: each class has a marker word, and the right option holds the first marker.
"""

import io
import json
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
from datasets import ClassLabel, Dataset, Features, List, Value
from PIL import Image

from finetuning.tasks import TASKS, Task, TaskData
from luna_tools.tokenizer import wrap_tokenizer
from pretraining.prepare.tokenizer import train_tokenizer

MARKERS = ("red", "blue", "green", "white", "black")
WORDS = ("the", "cat", "sat", "on", '"that', 'mat"', "it's", "café", "NA", "null", "runs", "far", "away", "now", "here")
PAIR = "index sentence1 sentence2"
STSB = "index genre filename year old_index source1 source2 sentence1 sentence2"
MNLI = "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse sentence1_parse sentence2_parse"
MNLI += " sentence1 sentence2"
SITE_HEADERS = {  # of the training and validation files; of the test files
    "CoLA": ("", "index sentence"),
    "SST-2": ("sentence label", "index sentence"),
    "MRPC": ("Quality,#1 ID,#2 ID,#1 String,#2 String", "index,#1 ID,#2 ID,#1 String,#2 String"),
    "STS-B": (f"{STSB} score", STSB),
    "QQP": ("id qid1 qid2 question1 question2 is_duplicate", "id question1 question2"),
    "MNLI": (f"{MNLI} label1 label2 label3 label4 label5 gold_label", MNLI),
    "QNLI": ("index question sentence label", "index question sentence"),
    "RTE": (f"{PAIR} label", PAIR),
    "WNLI": (f"{PAIR} label", PAIR),
}


def write_published(task_name: str, folder: Path, form: Literal["hub", "original"], rows: int = 32, seed: int = 0) -> None:
    """Write all splits of a task below `folder`: a clone of the Hub's repository, or the original download.

    Args:
        task_name: a name in `TASKS`.
        folder: what `--data_dir` gets.
        form: the Hub's parquet files, or the original site's TSV, JSON or JSON lines.
        rows: of the training split; the others have half as many. RACE's have as many for the two levels together.
        seed: the same rows are written for the same seed, in either form.
    """
    task = TASKS[task_name]
    write = WRITERS.get(task.folder) or WRITERS.get(task.name, _write_glue)
    generator = np.random.default_rng(seed)
    for split in task.split_names:
        write(task, folder, form, split, rows if split == "train" else rows // 2, generator)


def write_tokenizer(folder: Path) -> None:
    """Save a RoBERTa-style tokenizer that knows the words of the toy text and that `AutoTokenizer` loads."""
    words = " ".join((*WORDS, *MARKERS, "Q: what A: is _ ?", "Q: which"))
    wrap_tokenizer(train_tokenizer([words, words, f" {words}"], 330)).save_pretrained(folder)


def rows_of(data: TaskData) -> dict[str, list[dict[str, Any]]]:
    """The rows of all splits, with NaN as a word, since NaN is not itself."""
    return {
        split: [{name: "NaN" if value != value else value for name, value in row.items()} for row in rows]
        for split, rows in data.splits.items()
    }


def message_of(error) -> str:
    """The message of what `pytest.raises` caught, checked to be one sentence."""
    message = str(error.value)
    assert message.endswith(".") and "\n" not in message
    assert not re.search(r"[^.]\. [A-Z]", message)
    return message


def _text(generator: np.random.Generator, marker: str | None = None) -> str:
    words = list(generator.choice(WORDS, generator.integers(3, 9)))
    if marker is not None:
        words.insert(int(generator.integers(len(words) + 1)), marker)
    return " ".join(words)


def _write_hub(folder: Path, config: str, split: str, rows: list[dict[str, Any]], **features) -> None:
    (folder / config).mkdir(parents=True, exist_ok=True)
    columns = {name: [row[name] for row in rows] for name in features}
    Dataset.from_dict(columns, Features(features)).to_parquet(folder / config / f"{split}-00000-of-00001.parquet")


def _strings(*names: str) -> dict[str, Value]:
    return {name: Value("string") for name in names}


def _write_glue(task: Task, folder: Path, form: str, split: str, count: int, generator: np.random.Generator) -> None:
    classes = len(task.labels or MARKERS)
    rows = []
    for idx, label in enumerate(generator.permutation(np.arange(count) % classes).tolist()):
        texts = [_text(generator) for _ in task.text_columns[1:]] + [_text(generator, MARKERS[label])]
        label = label if task.labels else float(np.float32(label + 0.8))
        rows.append(dict(zip(task.text_columns, texts, strict=True)) | {"label": label, "idx": idx})
    if task.name == "qqp" and split == "train":
        rows[0]["question2"] = ""  # there are such
        rows[1]["truncated"] = True
    is_test = split in task.test_splits
    if form == "original":
        _write_glue_tsv(task, folder, split, rows, is_test)
        return
    if is_test and task.name != "mrpc":  # whose test labels the Hub has
        rows = [row | {"label": -1 if task.labels else -1.0} for row in rows]
    label = ClassLabel(names=list(task.labels)) if task.labels else Value("float32")
    config, split = ("ax", "test") if split == "diagnostic" else (task.hub_config, split)
    rows = [row for row in rows if "truncated" not in row]
    _write_hub(folder, config, split, rows, **_strings(*task.text_columns), label=label, idx=Value("int32"))


def _write_glue_tsv(task: Task, folder: Path, split: str, rows: list[dict[str, Any]], is_test: bool) -> None:
    header = SITE_HEADERS[task.folder][is_test]
    path = folder / task.folder / f"{split.replace('validation', 'dev')}.tsv"
    if split == "diagnostic":
        header, path = PAIR, folder / "diagnostic" / "diagnostic.tsv"
    names = header.split("," if "," in header else " ") if header else ["source", "label", "mark", "sentence"]
    lines = ["\t".join(names)] if header else []
    text_names = {"mnli": ("sentence1", "sentence2"), "mrpc": ("#1 String", "#2 String")}.get(task.name, task.text_columns)
    label_names = {"mrpc": "Quality", "stsb": "score", "qqp": "is_duplicate", "mnli": "gold_label"}
    for row in rows:
        label = task.labels[row["label"]] if task.submits_label_names else row["label"]
        fields = {name: row[column] for name, column in zip(text_names, task.text_columns, strict=True)}
        fields[label_names.get(task.name, "label")] = label if task.labels else f"{label:.3f}"
        fields |= {"index": row["idx"], "id": row["idx"], "mark": "" if label else "*"}
        values = [str(fields.get(name, f"{name}{row['idx']}")) for name in names]
        lines.append("\t".join(values[:4] if "truncated" in row else values))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8-sig" if task.name == "mrpc" else "utf-8")


def _write_race(task: Task, folder: Path, form: str, split: str, count: int, generator: np.random.Generator) -> None:
    rows = {"all": [], "middle": [], "high": []}
    for level in ("middle", "high"):
        for number in range(8, 8 - (-count // 4)):  # 8.txt, 9.txt, 10.txt: not in the order of the alphabet
            passage = f"{_text(generator)}\n{_text(generator)}"
            questions = [f"what is _ {_text(generator)}?", f"which {_text(generator)} ?"]
            options, answers = [], []
            for _ in questions:
                right = int(generator.integers(4))
                options.append([_text(generator, MARKERS[i != right]) for i in range(4)])
                answers.append("ABCD"[right])
            article = {"article": passage, "questions": questions, "options": options, "answers": answers}
            if form == "original":
                path = folder / "RACE" / split.replace("validation", "dev") / level / f"{number}.txt"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps({"id": f"{level}{number}.txt"} | article), encoding="utf-8")
            for question, choices, answer in zip(questions, options, answers, strict=True):
                row = {"example_id": f"{level}{number}.txt", "article": passage, "answer": answer}
                row |= {"question": question, "options": choices}
                rows["all"].append(row)
                rows[level].append(row)
    if form == "hub":
        features = _strings("example_id", "article", "answer", "question") | {"options": List(Value("string"))}
        for config, config_rows in rows.items():
            _write_hub(folder, config, split, config_rows, **features)


def _write_csqa(task: Task, folder: Path, form: str, split: str, count: int, generator: np.random.Generator) -> None:
    rows, lines = [], []
    for _ in range(count):
        right = int(generator.integers(5))
        choices = {"label": list("ABCDE"), "text": [_text(generator, MARKERS[i != right]) for i in range(5)]}
        row = {"id": generator.bytes(16).hex(), "question": f"what {_text(generator)}?", "question_concept": "cat"}
        row |= {"choices": choices, "answerKey": "" if split == "test" else "ABCDE"[right]}
        rows.append(row)
        pairs = [{"label": label, "text": text} for label, text in zip(*choices.values(), strict=True)]
        question = {"question_concept": row["question_concept"], "choices": pairs, "stem": row["question"]}
        answer = {} if split == "test" else {"answerKey": row["answerKey"]}
        lines.append(json.dumps({**answer, "id": row["id"], "question": question}))
    if form == "hub":
        choices = {"label": List(Value("string")), "text": List(Value("string"))}
        features = _strings("id", "question", "question_concept") | {"choices": choices, "answerKey": Value("string")}
        _write_hub(folder, "data", split, rows, **features)
        return
    name = {"train": "train_rand_split", "validation": "dev_rand_split", "test": "test_rand_split_no_answers"}[split]
    (folder / "CSQA").mkdir(parents=True, exist_ok=True)
    (folder / "CSQA" / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


# ---- The Long Range Arena: each task in the one form in which it is published ----


def _write_listops(task: Task, folder: Path, form: str, split: str, count: int, generator: np.random.Generator) -> None:
    lines = ["Source\tTarget"]
    for _ in range(count):
        low, high = sorted(generator.integers(10, size=2))
        operator, value = [("[MAX", high), ("[MIN", low)][int(generator.integers(2))]
        lines.append(f"( ( ( {operator} {low} ) {high} ) ] )\t{value}")
    path = folder / "listops-1000" / f"basic_{split.replace('validation', 'val')}.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def _write_retrieval(task: Task, folder: Path, form: str, split: str, count: int, generator: np.random.Generator) -> None:
    lines = []
    for number in range(count):
        texts = [_text(generator, MARKERS[label]) for label in (0, number % 2)]
        lines.append("\t".join([f"{float(number % 2 == 0)}", f"P{number}", f"Q{number}", *texts]))
    path = folder / "tsv_data" / f"new_aan_pairs.{split.replace('validation', 'eval')}.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_text_task(task: Task, folder: Path, form: str, split: str, count: int, generator: np.random.Generator) -> None:
    if split == "validation":  # the test rows
        return _write_text_task(task, folder, form, "test", count, generator)
    rows = [{"text": _text(generator, MARKERS[number % 2]), "label": number % 2} for number in range(count)]
    _write_hub(folder, "plain_text", split, rows, **_strings("text"), label=ClassLabel(names=list(task.labels)))


def _write_image(task: Task, folder: Path, form: str, split: str, count: int, generator: np.random.Generator) -> None:
    rows = []
    for number in range(count):
        grey = generator.integers(20, size=(32, 32, 3)).astype(np.uint8) + 20 * (number % 10)
        rows.append({"img": {"bytes": png(grey), "path": None}, "label": number % 10})
    picture = {"bytes": Value("binary"), "path": Value("string")}
    _write_hub(folder, "plain_text", split, rows, img=picture, label=ClassLabel(names=list(task.labels)))


def _write_pathfinder(task: Task, folder: Path, form: str, split: str, count: int, generator: np.random.Generator) -> None:
    """All pictures, of which every split is a part, in two folders."""
    if split != "train":
        return
    level = folder / task.folder / "curv_contour_length_14"
    for shard, numbers in enumerate(np.array_split(np.arange(2 * count), 2)):
        lines = []
        (level / "imgs" / str(shard)).mkdir(parents=True, exist_ok=True)
        for number, label in enumerate(generator.permutation(numbers % 2)):
            grey = generator.integers(100, size=(task.size, task.size)).astype(np.uint8) + 100 * np.uint8(label)
            (level / "imgs" / str(shard) / f"sample_{number}.png").write_bytes(png(grey))
            lines.append(f"imgs/{shard} sample_{number}.png {number} {label} 1.8 6 2 5 1.5 4 1\n")
        (level / "metadata").mkdir(exist_ok=True)
        (level / "metadata" / f"{shard}.npy").write_text("".join(lines))


def png(pixels: np.ndarray) -> bytes:
    """A picture file of (height, width) grey levels, or (height, width, 3)."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


WRITERS = {
    "RACE": _write_race,
    "CSQA": _write_csqa,
    "listops-1000": _write_listops,
    "tsv_data": _write_retrieval,
    "text": _write_text_task,
    "image": _write_image,
    "pathfinder32": _write_pathfinder,
    "pathfinder128": _write_pathfinder,
}
