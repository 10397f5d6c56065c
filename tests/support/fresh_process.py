# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Python programs on a stranger's machine: another folder, an empty cache, and, unless asked for, without this project."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
WITHOUT_PROJECT = "import sys\nsys.modules.update(dict.fromkeys(['modeling_luna', 'configuration_luna']))\n"
WITH_PROJECT = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n"


def stranger_environment(home: Path, **variables: str) -> dict[str, str]:
    """Nothing of this process's environment but the search path; offline unless `variables` say otherwise."""
    home.mkdir(parents=True, exist_ok=True)
    fixed = {"PATH": os.environ["PATH"], "HOME": str(home), "HF_HOME": str(home / "hf"), "HF_HUB_DISABLE_XET": "1"}
    return fixed | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"} | variables


def run_program(
    program: str, home: Path, *arguments: object, project: bool = False, **variables: str
) -> subprocess.CompletedProcess:
    """Run a program's text in `home`, which holds its cache too; `sys.argv[1:]` are the arguments.

    LUNA_PYTHON names another interpreter for it, one with other versions of the libraries.
    """
    python = os.environ.get("LUNA_PYTHON", sys.executable)
    command = [python, "-I", "-c", (WITH_PROJECT if project else WITHOUT_PROJECT) + program, *map(str, arguments)]
    environment = stranger_environment(home, **variables)
    return subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
