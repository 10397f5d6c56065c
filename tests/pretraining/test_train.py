# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The command line: mistakes are told before anything heavy is imported, and a plan trains nothing."""

import subprocess
import sys

import pytest

from luna_tools import command_line
from tests.support.pretraining import error, pretrain
from tests.support.ranks import launch


@pytest.mark.parametrize(
    ("argv", "status", "said"),
    [
        (["--help"], 0, "Peak of the learning rate, which rises linearly over the warm-up"),
        ([], 2, "No recipe is given: give a YAML file or one of luna_base_160gb_tied"),
        (["quikstart"], 2, "There is no recipe 'quikstart': give a YAML file or one of luna_base_160gb_tied"),
        (["quickstart", "--max_step", "3"], 2, "'--max_step' is not an option, perhaps --max_steps is meant"),
        (["quickstart", "--max_steps", "many"], 2, "`max_steps` is 'many', but must be of type int"),
        (["quickstart", "--max_steps", "0"], 2, "`max_steps` is 0, but must be at least 1"),
        (["quickstart", "max_steps=3"], 2, "There is no recipe 'max_steps=3'"),
    ],
)
def test_help_and_mistakes_import_nothing_heavy(argv, status, said):
    program = (
        "import sys; from luna_tools.command_line import run; status = None\n"
        f"try: status = run('pretrain', {argv})\n"
        "except SystemExit as end: status = end.code\n"
        "heavy = {'torch', 'datasets', 'accelerate', 'matplotlib', 'modeling_luna'} & sys.modules.keys()\n"
        "print(status or 0, sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == f"{status} []", done.stderr
    assert said in " ".join((done.stdout + done.stderr).split())


def test_plan_prints_and_trains_nothing(recipe_file, tmp_path, capsys):
    assert pretrain(recipe_file, "--plan", "--num_processes", 4, "--engine", "fsdp2") == 0
    out = capsys.readouterr().out
    assert "Processes: 4, each 2 sequences at a time, accumulating 1 micro-batches a step" in out
    assert "Memory per device under fsdp2" in out
    assert not (tmp_path / "run").exists()


def test_a_plan_is_that_of_the_launch_and_printed_once(recipe_file):
    done = launch("pretrain", [recipe_file, "--plan"], 2, "zero3")
    assert done.stdout.count("Processes: 2, each") == done.stdout.count("Memory per device under zero3") == 1
    done = launch("pretrain", [recipe_file, "--plan", "--num_processes", 4], 2, check=False)
    assert "`num_processes` is 4, but the run has 2" in error(done.stderr)


def test_it_is_the_program_of_the_command_luna():
    assert command_line.PROGRAMS["pretrain"].module == "pretraining.train"
