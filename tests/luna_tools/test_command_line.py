# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""One command with one way to end: 0, 2 with one sentence, 130, 143; help and mistakes without torch."""

import configparser
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from luna_tools import command_line
from luna_tools.command_line import PROGRAMS, main, run
from luna_tools.errors import InputError, Stopped
from tests.support.fresh_process import ROOT, run_program


@pytest.fixture
def program(monkeypatch):
    """Make `luna push` do what a test says."""

    def set_program(act):
        module = SimpleNamespace(main=lambda argv: act())
        monkeypatch.setattr(command_line.importlib, "import_module", lambda name: module)

    return set_program


def raises(error):
    def act():
        raise error

    return act


UNUSABLE, AGAIN = "error: runs/a cannot be used", "and give the same command again.\n"
ENDINGS = {
    "done": (lambda: None, 0, ""),
    "told": (raises(InputError("It is bad: mend it.")), 2, "error: It is bad: mend it.\n"),
    "full": (raises(OSError(28, "Full", "runs/a")), 2, f"{UNUSABLE} (Full): free some space {AGAIN}"),
    "forbidden": (raises(PermissionError(13, "Denied", "runs/a")), 2, f"{UNUSABLE} (Denied): mend that {AGAIN}"),
    "SIGTERM": (raises(Stopped(signal.SIGTERM, "Saved.")), 143, "Saved.\n"),
    "SIGINT": (raises(Stopped(signal.SIGINT, "Saved.")), 130, "Saved.\n"),
    "Ctrl-C": (raises(KeyboardInterrupt()), 130, "Interrupted: give the same command again.\n"),
}


@pytest.mark.parametrize("case", ENDINGS)
def test_exit_statuses(case, program, capsys, monkeypatch):
    act, status, sentence = ENDINGS[case]
    program(act)
    assert run("push", []) == status
    assert capsys.readouterr().err == sentence
    # Of several processes on a machine the first one says it.
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert run("push", []) == status
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError("without a file"), BrokenPipeError("of a worker")])
def test_what_is_no_wrong_input_is_a_traceback(error, program):
    program(raises(error))
    with pytest.raises(type(error)):
        run("push", [])


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["--help"], ["push", "--help"]])
def test_a_reader_that_has_gone_is_no_error(arguments, unbuffered):
    """As `luna --help | head` leaves."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "luna_tools.command_line", *arguments]
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    # argparse goes on where it cannot write at once
    assert done.stderr == "" and done.returncode in (0, 128 + signal.SIGPIPE)


def test_programs_are_listed_and_mistyped_ones_told(capsys):
    assert main([]) == main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in PROGRAMS)
    assert main(["pretrian"]) == 2
    assert capsys.readouterr().err.startswith("error: 'pretrian' is not a program of luna: choose one of prepare, ")


# Each program in the parts of one process: each part would import torch if it could.
WITHOUT_TORCH = """
import contextlib, io
from luna_tools.command_line import main
for argv in ARGVS:
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as told:
            status = main(argv)
    except SystemExit as ended:
        status = ended.code
    print(argv, status, told.getvalue().count("\\n"), "torch" in sys.modules)
"""


def test_help_and_mistakes_come_without_torch(tmp_path):
    argvs = [["--help"]]
    for name in PROGRAMS:
        argvs += [[name, "--no_such_option", "1"], [name, "--help"]]
    done = run_program(WITHOUT_TORCH.replace("ARGVS", repr(argvs)), tmp_path, project=True)
    expected = [f"{argv} {2 if '--no_such_option' in argv else 0} {int('--no_such_option' in argv)} False" for argv in argvs]
    assert done.stdout.splitlines() == expected, done.stderr


# As in an environment that lacks the extra's packages: a finder that knows nothing of them.
WITHOUT_EXTRA = """
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in MISSING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
from luna_tools.command_line import main
sys.stderr = sys.stdout
print(main(ARGV))
"""
# What the base has not; numpy, tqdm and pyyaml come with transformers.
BARE = "accelerate datasets evaluate matplotlib onnx onnxruntime onnxscript pyarrow scipy seqeval sklearn zstandard".split()
ARGUMENTS = {
    "prepare": ["quickstart", "--output_dir", "out"],
    "pretrain": ["quickstart"],
    "generate": ["listops", "--output_dir", "out"],
    "self_pretrain": ["listops", "--data_dir", "nowhere"],
    "finetune": ["sst2", "--model_name_or_path", "nowhere"],
    "export": ["nowhere", "--output_dir", "out"],
    "plot": ["nowhere", "text"],
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_missing_extra_is_one_sentence_that_names_it(name, tmp_path):
    program = WITHOUT_EXTRA.replace("MISSING", repr(BARE)).replace("ARGV", repr([name, *ARGUMENTS[name]]))
    *_, sentence, status = run_program(program, tmp_path, project=True).stdout.splitlines()
    assert status == "2" and sentence.startswith(f"error: `luna {name}` needs the package ")
    assert sentence.endswith(f"run `pip install 'luna-transformers[{PROGRAMS[name].extra}]'`.")
    assert not list(tmp_path.iterdir())


def test_every_extra_that_is_named_is_one_of_the_distribution():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert {program.extra for program in PROGRAMS.values()} - {None} <= set(setup["options.extras_require"])
