# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""What `pip install .` carries: every module, recipe, launch file, corpus and grid."""

import configparser
import fnmatch
import importlib
import subprocess
from pathlib import Path

import pytest

from luna_tools.command_line import PROGRAMS

ROOT = Path(__file__).resolve().parents[1]
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")
FILES = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.parametrize("package", ["luna_tools", "pretraining", "finetuning"])
def test_every_file_of_the_packages_is_installed(package):
    patterns = SETUP["options.package_data"].get(package, "").replace(" ", "").split(",")
    for file in (Path(name) for name in FILES if name.startswith(f"{package}/")):
        if file.suffix == ".py":
            assert (ROOT / file.parent / "__init__.py").exists(), f"{file.parent} is no package"
        else:
            inside = file.relative_to(package)
            matched = [pattern for pattern in patterns if len(Path(pattern).parts) == len(inside.parts)]
            assert any(fnmatch.fnmatch(str(inside), pattern) for pattern in matched), f"{file} is not installed"
    assert f"{package}*" in SETUP["options.packages.find"]["include"].split()


def test_the_model_is_installed_as_flat_modules():
    flat = {Path(name).stem for name in FILES if "/" not in name and name.endswith(".py")}
    assert set(SETUP["options"]["py_modules"].split()) == flat


def test_the_command_and_its_programs_are_there():
    entry = SETUP["options.entry_points"]["console_scripts"].split()
    assert entry == ["luna", "=", "luna_tools.command_line:main"]
    for program in PROGRAMS.values():
        assert callable(importlib.import_module(program.module).main)
