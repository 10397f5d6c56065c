# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The program `luna generate`: the data of the Long Range Arena that needs no download. See docs/lra_data.md."""

from pathlib import Path

from finetuning.lra import listops, pathfinder
from luna_tools.errors import InputError, Stopped, undone_when_stopped
from luna_tools.files import writing
from luna_tools.settings import Parser, split_command_line

GENERATORS = {
    "listops": (listops.ListOpsOptions, listops.generate),
    "pathfinder32": (pathfinder.Pathfinder32Options, pathfinder.generate),
    "pathfinder128": (pathfinder.Pathfinder128Options, pathfinder.generate),
}
USAGE = f"""usage: luna generate TASK [options.yaml] [--name value ...]

Generate data of the Long Range Arena as its official archive lays it out. TASK is one of {", ".join(GENERATORS)};
luna generate TASK --help lists its options, of which only --output_dir has no default."""


def main(argv: list[str]) -> None:
    """Generate what the command line asks for.

    Raises:
        InputError: wrong input.
        Stopped: a signal came.
    """
    words, options = split_command_line(argv, {})
    if not words and (not argv or {"-h", "--help"} & set(argv)):
        print(USAGE)
        return
    if len(words) != 1 or words[0] not in GENERATORS:
        given = " ".join(words) or "nothing"
        raise InputError(f"Give one of {', '.join(GENERATORS)} before the options, not {given}.")
    dataclass, generate = GENERATORS[words[0]]
    (values,) = Parser(f"luna generate {words[0]}", f"Generate {words[0]}.", dataclass).parse(options)
    try:
        with undone_when_stopped(), writing(Path(values.output_dir)):
            print(f"{generate(values)} is complete.")
    except Stopped as stopped:
        raise Stopped(stopped.signal_number, f"{stopped} Give the same command again: what is complete is kept.") from None
