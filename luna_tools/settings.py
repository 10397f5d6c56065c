# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The one dialect of all command lines: `PROGRAM [RECIPE or TASK] [options.yaml] --snake_case value`, the later one winning.

A program's options are the fields of its dataclasses, with a docstring under each. A YAML file holds the same options by
name; it is spelled out as the command line would spell it, so that everything is parsed and checked in one place. Values
inside a field of type dict are set by `--field.name value`. Nothing here imports torch: a mistake is told at once.
"""

import argparse
import ast
import difflib
import inspect
import json
import re
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from transformers import HfArgumentParser

from luna_tools.errors import InputError

SUFFIXES = (".yaml", ".yml", ".json")


class Loader(yaml.SafeLoader):
    """YAML 1.2 where 1.1 surprises: 1e-5 is a number, and a bare no is a string."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF"))
Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+"), list("-+0123456789"))


def read_yaml(path: Path) -> dict[str, Any]:
    """The `name: value` lines of a YAML or JSON file.

    Raises:
        InputError: it cannot be read, or holds something else.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except OSError as error:
        raise InputError(f"The file {path} cannot be read ({error.strerror}): give a YAML file of options.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        place = getattr(error, "problem_mark", None)
        where = f" at line {place.line + 1}" if place else ""
        raise InputError(f"The file {path} is not valid YAML or JSON{where}: correct it.") from error
    if not isinstance(values, dict):
        raise InputError(f"The file {path} holds a {type(values).__name__}: write `option: value` lines.")
    return values


def to_options(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Values by name as the command line spells them. None and an empty list say nothing."""
    options = []
    for name, value in values.items():
        if isinstance(value, dict):
            options += to_options(value, f"{prefix}{name}.")
        elif value is not None and value != []:
            items = value if isinstance(value, list) and not prefix else [value]
            options += [f"--{prefix}{name}", *(json.dumps(x) if prefix or not isinstance(x, str) else x for x in items)]
    return options


def split_command_line(argv: list[str], named: Mapping[str, Path]) -> tuple[list[str], list[str]]:
    """What stands before the first option, and all options, those of files spelled out in their place.

    Args:
        named: files by the name that stands for them, such as the recipes that come with a program.

    Returns:
        The words that are no file (tasks, folders, ...), in order, and the options.

    Raises:
        InputError: a file cannot be read.
    """
    first = next((i for i, token in enumerate(argv) if token.startswith("-")), len(argv))
    words, options = [], []
    for token in argv[:first]:
        if token in named:
            options += to_options(read_yaml(named[token]))
        elif Path(token).suffix in SUFFIXES:
            options += to_options(read_yaml(Path(token)))
        else:
            words.append(token)
    return words, options + argv[first:]


def named_files(folder: Path) -> dict[str, Path]:
    """The YAML files of a folder by their names without the ending, sorted."""
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def option_names(options: Iterable[str]) -> set[str]:
    """The fields that options set: `--model.hidden_size` sets model, and `--no_do_train` sets do_train."""
    names = (re.split("[.=]", token[2:], maxsplit=1)[0] for token in options if token.startswith("--"))
    return {name.replace("-", "_").removeprefix("no_") for name in names}


def field_docs(dataclass: type) -> dict[str, str]:
    """The docstring under each field of a dataclass and of those that it extends."""
    docs = {}
    for cls in reversed(dataclass.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body
        for statement, following in zip(body, body[1:], strict=False):
            if isinstance(statement, ast.AnnAssign) and isinstance(following, ast.Expr):
                docs[statement.target.id] = " ".join(ast.literal_eval(following.value).split())
    return docs


# What argparse says of a value, and how this project says it.
REWORDED = (
    (r"argument --(\w+)\S*: invalid (\w+) value: (.*)", r"`\1` is \3, but must be of type \2"),
    (r"argument --(\w+)\S*: invalid choice: (.*) \(choose from (.*)\)", r"`\1` is \2, but must be one of \3"),
    (r"argument --(\w+)\S*: (.*)", r"`\1`: \2"),
    (r"the following arguments are required: --(\w+).*", r"`\1` is missing: give --\1"),
)


class Parser(HfArgumentParser):
    """Options by the fields of dataclasses.

    Args:
        prog: the program as the user calls it.
        description: what it does.
        dataclasses: each field is an option; a field without a default must be given.
        words: what stands before the options, as the help names it.
    """

    def __init__(self, prog: str, description: str, *dataclasses: type, words: tuple[str, ...] = ()):
        usage = " ".join([prog, *words, "[options.yaml] [--name value ...]"])
        formatter = argparse.HelpFormatter
        super().__init__(
            dataclasses, prog=prog, usage=usage, description=description, formatter_class=formatter, allow_abbrev=False
        )
        self.words = words
        docs = {name: doc for cls in dataclasses for name, doc in field_docs(cls).items()}
        # Every field, with the one whose values are set by name.
        self.field_types = {field.name: field.type for cls in dataclasses for field in fields(cls)}
        for action in self._actions:
            action.option_strings = [name for name in action.option_strings if "-" not in name[2:]]
            if action.dest in docs:
                action.help = docs[action.dest].replace("%", "%%")
            if action.default not in (None, "", [], argparse.SUPPRESS):
                action.help = f"{action.help or ''} (default: %(default)s)"
            if self.is_dict(action.dest):
                action.type, action.metavar = json.loads, f"--{action.dest}.NAME VALUE"

    def is_dict(self, name: str) -> bool:
        annotation = self.field_types.get(name)
        return dict in (annotation, *map(get_origin, (annotation, *get_args(annotation))))

    def error(self, message: str):
        for pattern, wording in REWORDED:
            message = re.sub(f"^{pattern}$", wording, message)
        raise InputError(f"{message[0].upper()}{message[1:].rstrip('.')}; `{self.prog} --help` lists the options.")

    def parse(self, options: list[str]) -> tuple[Any, ...]:
        """One object of each dataclass.

        Raises:
            InputError: an unknown option, or a value of the wrong type or that a dataclass refuses.
        """
        values: dict[str, dict] = {}
        plain, tokens = [], iter(options)
        for token in tokens:
            path, equals, text = token.removeprefix("--").partition("=")
            name, *sections = path.split(".")
            if not (token.startswith("--") and self.is_dict(name)):
                plain.append(token)
                continue
            text = text if equals else next(tokens, "")
            try:
                value = yaml.load(text, Loader)
            except yaml.YAMLError:
                self.error(f"the value {text!r} of --{path} is not valid YAML")
            inside = values
            for section in [name, *sections][:-1]:
                inside = inside.setdefault(section, {})
                if not isinstance(inside, dict):
                    self.error(f"--{path} goes into {section}, which is a single value")
            inside[[name, *sections][-1]] = value
            if not isinstance(values[name], dict):
                self.error(f"--{name} is {text!r}, but must be `name: value` pairs, set by --{name}.NAME VALUE")
        for name, inside in values.items():
            plain += [f"--{name}", json.dumps(inside)]
        *objects, unknown = self.parse_args_into_dataclasses(plain, return_remaining_strings=True, look_for_args_file=False)
        if unknown:
            name = re.split("[.=]", unknown[0].removeprefix("--"), maxsplit=1)[0]
            near = difflib.get_close_matches(name, self.field_types, n=1)
            self.error(f"{unknown[0]!r} is not an option" + (f", perhaps --{near[0]} is meant" if near else ""))
        return tuple(objects)

    def parse_command(self, argv: list[str]) -> tuple[list[str], Any]:
        """The words of a command line, and the object of the one dataclass.

        Raises:
            InputError: as `parse`, and for more or fewer words than there have to be.
        """
        words, options = split_command_line(argv, {})
        (values,) = self.parse(options)
        if len(words) != len(self.words):
            self.error(f"give {' '.join(self.words)} before the options, not {' '.join(words) or 'nothing'}")
        return words, values
