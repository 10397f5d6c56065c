# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The command `luna`, and what all programs do about errors, signals and packages that are not installed."""

import importlib
import os
import signal
import sys
from collections.abc import Callable
from typing import NamedTuple

from luna_tools.errors import InputError, Stopped
from luna_tools.files import is_disk_full


class Program(NamedTuple):
    """A subcommand: where its `main(argv)` is, the extra that installs what it needs, and what it does."""

    module: str
    extra: str | None
    summary: str


PROGRAMS = {
    "prepare": Program("pretraining.prepare.run", "pretrain", "turn text into a tokenizer and a packed dataset"),
    "pretrain": Program("pretraining.train", "pretrain", "pretrain a masked or causal language model from a recipe"),
    "finetune": Program("finetuning.run", "finetune", "fine-tune a checkpoint on a task"),
    "self_pretrain": Program("finetuning.lra.self_pretrain", "finetune", "train on the inputs of a Long Range Arena task"),
    "generate": Program("finetuning.lra.generate", "finetune", "generate data of the Long Range Arena"),
    "prepare_pairs": Program("finetuning.translation.prepare", "translate", "turn pairs of lines into a dataset"),
    "translate": Program("finetuning.translation.translate", "translate", "translate lines by a model"),
    "merge": Program("finetuning.predictions", "finetune", "merge the GLUE submissions of several runs into one zip"),
    "convert": Program("luna_tools.convert.run", None, "convert the authors' checkpoints, or a model back"),
    "push": Program("luna_tools.push", None, "check a model folder as a stranger would use it, then upload it"),
    "export": Program("luna_tools.export_onnx", "onnx", "export a model to ONNX"),
    "plot": Program("luna_tools.plot_attention", "plot", "draw what the packed vectors attend to"),
}


def main(argv: list[str] | None = None) -> int:
    """Run `luna PROGRAM ...`. Returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in PROGRAMS:
        return run(argv[0], argv[1:])
    width = max(map(len, PROGRAMS))
    usage = ["usage: luna PROGRAM ...", "", "programs (luna PROGRAM --help tells more):"]
    usage += [f"  {name:<{width}}  {program.summary}" for name, program in PROGRAMS.items()]
    if not argv or argv[0] in ("-h", "--help"):
        return exit_status(lambda: print("\n".join(usage)), "luna")
    print(f"error: {argv[0]!r} is not a program of luna: choose one of {', '.join(PROGRAMS)}.", file=sys.stderr)
    return 2


def run(name: str, argv: list[str]) -> int:
    """Run a program's `main(argv)`. Returns the exit status."""
    program = PROGRAMS[name]
    return exit_status(lambda: importlib.import_module(program.module).main(argv), f"luna {name}", program.extra)


def exit_status(act: Callable[[], int | None], prog: str, extra: str | None = None) -> int:
    """What a program ends with: 0, or what it returns; 2 for wrong input; 128 + the number of a signal.

    Of several processes on a machine, which all stop with the same sentence, the first one says it.

    Args:
        prog: the program as the user calls it.
        extra: what installs the packages that it needs beside the base.
    """
    is_first = os.environ.get("LOCAL_RANK", "0") == "0"

    def fail(sentence: str) -> int:
        if is_first:
            print(f"error: {sentence}", file=sys.stderr)
        return 2

    try:
        try:
            status = act() or 0
        except SystemExit as ended:  # of argparse, after the help
            if ended.code:
                raise
            status = 0
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        try:
            print(flush=True)
        except BrokenPipeError:  # its reader has gone, as `| head` does: nobody is to be told
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + signal.SIGPIPE
        raise
    except InputError as error:
        return fail(str(error))
    except ModuleNotFoundError as error:
        if extra is None or (error.name or "").split(".")[0] in sys.modules:
            raise
        return fail(
            f"`{prog}` needs the package {error.name}, which is not installed: run "
            f"`pip install 'luna-transformers[{extra}]'`."
        )
    except OSError as error:
        if error.filename is None:
            raise
        remedy = "free some space" if is_disk_full(error) else "mend that"
        return fail(f"{error.filename} cannot be used ({error.strerror}): {remedy} and give the same command again.")
    except Stopped as stopped:
        if is_first:
            print(stopped, file=sys.stderr)
        return 128 + stopped.signal_number
    except KeyboardInterrupt:
        if is_first:
            print("Interrupted: give the same command again.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
