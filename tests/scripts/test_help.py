# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""`--help` of every script prints help and starts nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = [["scripts/quickstart.py"], ["scripts/test.py"]]
FILES = [path for path in sorted((ROOT / "scripts" / "reports").glob("*.py")) if "__main__" in path.read_text()]
REPORTS = [["-m", f"scripts.reports.{path.stem}"] for path in FILES]
assert len(REPORTS) >= 8
OTHERS = [["-m", "scripts.label_sentences"], ["-m", "pretraining.average"]]


# The reports load the programs that they measure, which takes seconds.
@pytest.mark.parametrize(
    "program", [*PROGRAMS, *(pytest.param(report, marks=pytest.mark.slow) for report in [*REPORTS, *OTHERS])]
)
def test_help_starts_nothing(program):
    before = sorted(os.listdir(ROOT)), sorted(os.listdir(ROOT / "docs"))
    done = subprocess.run([sys.executable, *program, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.startswith("usage: "), done.stderr
    assert "Installing" not in done.stdout and "-h, --help" in done.stdout
    assert (sorted(os.listdir(ROOT)), sorted(os.listdir(ROOT / "docs"))) == before
