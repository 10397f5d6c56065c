# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""What scripts/test.py and scripts/environment.py run, without running it."""

import configparser
import importlib.util
import os
import re
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture
def scripts(monkeypatch):
    """The two modules as they import each other when one is run, and a list for commands."""
    monkeypatch.syspath_prepend(SCRIPTS)
    modules = []
    for name in ("environment", "test"):
        spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
        modules.append(importlib.util.module_from_spec(spec))
        if name == "environment":
            monkeypatch.setitem(sys.modules, name, modules[-1])
        spec.loader.exec_module(modules[-1])
    environment, test = modules
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return environment, test, []


@pytest.mark.parametrize("options, marks", [([], ["-m", "not slow"]), (["--all"], [])])
def test_the_default_leaves_out_what_is_slow_and_a_lint_error_does_not_hide(options, marks, scripts, monkeypatch):
    """Options that are not its own go to pytest."""
    environment, test, commands = scripts
    monkeypatch.setattr(environment, "ensure", lambda extra, needs_compiler, libraries: f"{extra}-{libraries}")
    monkeypatch.setattr(environment, "library_tests", lambda python, libraries: f"tests of {libraries}")
    monkeypatch.setattr(environment, "run", lambda command: commands.append(command) or int("ruff" in command))
    monkeypatch.delenv("LUNA_TRANSFORMERS_TESTS", raising=False)
    monkeypatch.setattr(sys, "argv", ["test.py", *options, "-x", "tests/luna_tools"])
    assert test.main() == 1
    assert os.environ.get("LUNA_TRANSFORMERS_TESTS") == ("tests of usual" if options else None)
    lint, tests = commands
    assert lint == ["test-usual", "-m", "ruff", "check", "."]
    parallel = ["--numprocesses", str(os.cpu_count()), "--dist", "loadgroup"]
    assert tests == ["test-usual", "-m", "pytest", *parallel, *marks, "-x", "tests/luna_tools"]


@pytest.mark.parametrize("libraries, suffix", [("usual", ""), ("oldest", "-oldest"), ("newest", "-newest")])
def test_each_pair_of_libraries_has_an_environment_of_its_own(libraries, suffix, scripts, tmp_path, monkeypatch):
    environment, _, _ = scripts
    (tmp_path / "setup.cfg").write_text("")
    monkeypatch.setattr(environment, "ROOT", str(tmp_path))
    monkeypatch.setattr(environment, "check_machine", lambda needs_compiler: None)
    monkeypatch.setattr(environment, "check_disk", lambda: None)
    calls = []

    def call(command):
        (tmp_path / f".venv{suffix}").mkdir(exist_ok=True)
        calls.append(command)
        return 0

    monkeypatch.setattr(environment.subprocess, "call", call)
    assert environment.ensure("test", libraries=libraries) == str(tmp_path / f".venv{suffix}" / "bin" / "python")
    make, install = calls
    assert make[-1] == str(tmp_path / f".venv{suffix}")
    assert install[-2:] == environment.LIBRARIES[libraries] and environment.CONSTRAINTS in install
    # Done once.
    environment.ensure("test", libraries=libraries)
    assert len(calls) == 2


def test_the_pairs_are_the_ends_of_the_ranges(scripts):
    environment, _, _ = scripts
    setup = configparser.ConfigParser()
    setup.read(SCRIPTS.parent / "setup.cfg")
    pins = {kind: dict(pin.split("==") for pin in pins) for kind, pins in environment.LIBRARIES.items()}
    for name in ("torch", "transformers"):
        lower, upper = re.search(rf"{name}>=([\d.]+),<([\d.]+)", setup["options"]["install_requires"]).groups()
        major, minor = upper.split(".")
        assert pins["oldest"][name] == f"{lower}.0" and pins["newest"][name] == f"{major}.{int(minor) - 1}.0"
