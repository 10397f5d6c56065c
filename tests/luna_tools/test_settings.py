# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""One dialect: words, files and options become dataclasses, the later one winning; mistakes are one sentence."""

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from luna_tools.settings import Parser, named_files, option_names, read_yaml, split_command_line
from tests.support.folders import refused


@dataclass
class Base:
    output_dir: str
    """where the run writes: 100 % of it"""


@dataclass
class Options(Base):
    steps: int = 10
    """optimizer updates"""
    rate: float = 1e-4
    """the peak
    of the schedule"""
    kind: Literal["one", "two"] = "one"
    tracker: str | None = None
    sources: list[str] = field(default_factory=list)
    model: dict[str, Any] = field(default_factory=dict)
    is_fast: bool = False
    is_whole: bool = True


def parse(*tokens: str) -> Options:
    (options,) = Parser("program", "It runs.", Options).parse(["--output_dir", "out", *tokens])
    return options


VALUES = [
    ("--steps 3 --steps 4", {"steps": 4}),
    ("--rate 1e-3", {"rate": 0.001}),
    ("--rate=2", {"rate": 2.0}),
    ("--kind two", {"kind": "two"}),
    ("--tracker wandb", {"tracker": "wandb"}),
    ("--sources a b --steps 1", {"sources": ["a", "b"], "steps": 1}),
    ("--is_fast --no_is_whole", {"is_fast": True, "is_whole": False}),
    ("--is_fast true --is_whole false", {"is_fast": True, "is_whole": False}),
    (
        "--model.hidden_size 64 --model.layer.norm=1e-5 --model.tie no --model.act null --model.sizes [1,2]",
        {"model": {"hidden_size": 64, "layer": {"norm": 1e-5}, "tie": "no", "act": None, "sizes": [1, 2]}},
    ),
    ("--model.a 1 --model.a 2 --model.b x", {"model": {"a": 2, "b": "x"}}),
]


@pytest.mark.parametrize("line, expected", VALUES)
def test_values(line, expected):
    options = vars(parse(*line.split()))
    assert options == vars(parse()) | expected


def test_a_file_stands_where_it_is_named_and_later_wins(tmp_path):
    file = tmp_path / "options.yaml"
    file.write_text("steps: 5\nrate: 1e-2\nis_whole: false\nmodel:\n  a: 1\n  tie: true\nsources: [x, y]\ntracker: null\n")
    named = {"recipe": tmp_path / "recipe.yaml"}
    named["recipe"].write_text("steps: 6\nkind: two\n")
    words, options = split_command_line(["task", "recipe", str(file), "--steps", "7"], named)
    assert words == ["task"]
    found = parse(*options)
    assert (found.steps, found.rate, found.kind, found.is_whole, found.tracker) == (7, 0.01, "two", False, None)
    assert found.model == {"a": 1, "tie": True} and found.sources == ["x", "y"]
    assert parse(*split_command_line([str(file), "recipe"], named)[1]).steps == 6


REFUSED = [
    ("--stepz 3", "'--stepz' is not an option, perhaps --steps is meant; `program --help` lists the options."),
    ("--modle.hidden_size 3", "'--modle.hidden_size' is not an option, perhaps --model is meant"),
    ("--steps many", "`steps` is 'many', but must be of type int"),
    ("--kind three", "`kind` is 'three', but must be one of "),
    ("--steps", "`steps`: expected one argument"),
    ("--model.a 1 --model.a.b 2", "--model.a.b goes into a, which is a single value"),
    ("--model.a [1", "The value '[1' of --model.a is not valid YAML"),
    ("--model 5", "--model is '5', but must be `name: value` pairs, set by --model.NAME VALUE"),
    ("word", "'word' is not an option"),
]


@pytest.mark.parametrize("line, sentence", REFUSED)
def test_mistakes_are_one_sentence(line, sentence):
    with refused(sentence):
        parse(*line.split())


def test_a_field_without_a_default_must_be_given():
    with refused("`output_dir` is missing: give --output_dir; `program --help` lists"):
        Parser("program", "It runs.", Options).parse([])


FILES = [
    ("a: [1", "is not valid YAML or JSON at line 1: correct it."),
    ("- a\n", "holds a list: write `option: value` lines."),
    (None, "cannot be read (No such file or directory): give a YAML file of options."),
]


@pytest.mark.parametrize("content, sentence", FILES)
def test_files_that_hold_no_options(content, sentence, tmp_path):
    if content is not None:
        (tmp_path / "options.yaml").write_text(content)
    with refused(sentence):
        split_command_line([str(tmp_path / "options.yaml")], {})


def test_numbers_and_booleans_are_those_of_yaml_1_2(tmp_path):
    (tmp_path / "a.yaml").write_text("a: 1e-5\nb: on\nc: false\nd: 1_000\n")
    assert read_yaml(tmp_path / "a.yaml") == {"a": 1e-5, "b": "on", "c": False, "d": 1000}
    (tmp_path / "b.yaml").write_text("{}")
    assert list(named_files(tmp_path)) == ["a", "b"]


def test_help_has_the_docstrings_the_defaults_and_one_name_each():
    text = " ".join(Parser("luna program", "It runs.", Options, words=("FILE",)).format_help().split())
    assert "usage: luna program FILE [options.yaml] [--name value ...]" in text and "It runs." in text
    assert "where the run writes: 100 % of it" in text and "the peak of the schedule (default: 0.0001)" in text
    assert "--model.NAME VALUE" in text and "--output-dir" not in text and "default: None" not in text


def test_words_are_counted():
    parser = Parser("luna program", "It runs.", Options, words=("FOLDER", "NAME"))
    words, options = parser.parse_command(["a", "b", "--output_dir", "out"])
    assert words == ["a", "b"] and options.output_dir == "out"
    for found in ([], ["a"], ["a", "b", "c"]):
        with refused(f"Give FOLDER NAME before the options, not {' '.join(found) or 'nothing'}; "):
            parser.parse_command([*found, "--output_dir", "out"])


def test_which_options_are_set():
    assert option_names(["--steps", "3", "--model.a=1", "--no_do_train", "-x", "y"]) == {"steps", "model", "do_train"}
