# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""RACE and CommonsenseQA: the readers of their files, and submissions of letters by the rows' ids."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetuning.tasks.published import PublishedTask
from finetuning.tasks.reading import Row, json_lines, need_fields, parse_json, read_text
from finetuning.tasks.task import letter
from luna_tools.errors import InputError

if TYPE_CHECKING:
    import numpy as np

CSQA_FILES = {
    "train": "train_rand_split.jsonl",
    "validation": "dev_rand_split.jsonl",
    "test": "test_rand_split_no_answers.jsonl",
}


class QuestionAnswering(PublishedTask):
    def submission(self, decided: "np.ndarray") -> tuple[tuple[str, str], list[str]]:
        return ("id", "answer"), [letter(option) for option in decided]


def make_row(place: str, index: str, passage: str, question: str, options: list[str], label: Any) -> Row:
    columns = {"index": index, "passage": passage, "question": question, "options": options, "label": label}
    return Row(place, columns)


class Race(QuestionAnswering):
    """An article's questions are counted from 0: together they are a row's id."""

    hub_columns = ("example_id", "article", "question", "options", "answer")

    def hub_rows(self, rows: Iterable[Row]) -> Iterator[Row]:
        asked = Counter()
        for place, raw in rows:
            index = f"{raw['example_id']}-{asked[raw['example_id']]}"
            asked[raw["example_id"]] += 1
            yield make_row(place, index, raw["article"], raw["question"], raw["options"], raw["answer"])

    @property
    def levels(self) -> tuple[str, ...]:
        return ("middle", "high") if self.hub_config == "all" else (self.hub_config,)

    def original_pattern(self, split: str) -> str:
        return f"RACE/{split.replace('validation', 'dev')}/{self.levels[0]}/*.txt"

    def original_files(self, folder: Path, split: str) -> list[Path]:
        """All articles, by level and number."""
        for parent in (folder / self.folder, folder):
            folders = [parent / split.replace("validation", "dev") / level for level in self.levels]
            articles = [sorted(f.glob("*.txt"), key=lambda path: (len(path.stem), path.stem)) for f in folders]
            if any(articles) and not all(articles):
                raise InputError(f"{folders[articles.index([])]} holds no *.txt: add them, or take one level alone.")
            if any(articles):
                return sum(articles, [])
        return []

    def original_rows(self, split: str, path: Path) -> Iterator[Row]:
        raw = parse_json(read_text(path), str(path))
        lists = ("questions", "options", "answers")
        need_fields(need_fields(raw, ("id", "article"), str(path)), lists, str(path), list)
        if len({len(raw[name]) for name in lists}) > 1:
            counts = ", ".join(f"{len(raw[name])} {name}" for name in lists)
            raise InputError(f"{path} has {counts}: it needs as many of each.")
        for number, (question, options, answer) in enumerate(zip(*(raw[name] for name in lists), strict=True)):
            place, index = f"{path}, question {number + 1}", f"{raw['id']}-{number}"
            yield make_row(place, index, raw["article"], question, options, answer)


class CommonsenseQA(QuestionAnswering):
    hub_columns = ("id", "question", "choices", "answerKey")

    def hub_rows(self, rows: Iterable[Row]) -> Iterator[Row]:
        for place, raw in rows:
            options = need_fields(raw["choices"], ("text",), place)["text"]
            yield make_row(place, raw["id"], "", raw["question"], options, raw["answerKey"])

    def original_names(self, split: str) -> tuple[str, ...]:
        return (CSQA_FILES[split],)

    def original_rows(self, split: str, path: Path) -> Iterator[Row]:
        for place, raw in json_lines(path):
            question = need_fields(raw, ("id", "question"), place)["question"]
            need_fields(need_fields(question, ("stem",), place), ("choices",), place, list)
            options = [need_fields(choice, ("text",), place)["text"] for choice in question["choices"]]
            yield make_row(place, raw["id"], "", question["stem"], options, raw.get("answerKey"))


def _task(family: type[QuestionAnswering], name: str, title: str, file: str, **fields) -> QuestionAnswering:
    return family(
        name=name,
        title=title,
        kind="multiple_choice",
        recipes=tuple(f"{recipe}/{fields['folder'].lower()}.yaml" for recipe in ("table9", "official")),
        grid="qa.yaml",
        metrics=("accuracy",),
        submission_files=(("test", file),),
        **fields,
    )


RACE = {"hub_dataset": "ehovy/race", "folder": "RACE"}
QUESTION_ANSWERING_TASKS = (
    _task(Race, "race", "RACE", "RACE.tsv", hub_config="all", **RACE),
    _task(Race, "race-middle", "RACE-M", "RACE-M.tsv", hub_config="middle", **RACE),
    _task(Race, "race-high", "RACE-H", "RACE-H.tsv", hub_config="high", **RACE),
    _task(CommonsenseQA, "csqa", "CSQA", "test_predictions.csv", hub_dataset="tau/commonsense_qa", folder="CSQA"),
)
