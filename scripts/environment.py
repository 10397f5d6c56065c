# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Set up the project's virtual environment, with nothing but Python's standard library.

Written for old Pythons too, so that they can be told that they are too old.
"""

import hashlib
import os
import shutil
import signal
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CONSTRAINTS = os.path.join(ROOT, "scripts", "constraints.txt")
# Pairs that the tests ran with: the usual one, and the ends of setup.cfg's ranges.
LIBRARIES = {
    "usual": ["torch==2.13.0", "transformers==5.23.0"],
    "oldest": ["torch==2.11.0", "transformers==5.17.0"],
    "newest": ["torch==2.15.0", "transformers==5.24.0"],
}
MINIMUM_PYTHON = (3, 11)
# PyTorch for Linux comes with its CUDA libraries unless the user's pip is told otherwise.
NEEDED_GIB = 10 if sys.platform == "linux" else 4


def stop(sentence):
    sys.exit("error: " + sentence)


def check_machine(needs_compiler):
    """Say what is missing before anything is downloaded."""
    if sys.version_info < MINIMUM_PYTHON:
        stop(
            "Python {}.{} is too old: Luna needs Python {}.{} or newer; run this script with one, for example "
            "`python3.11 scripts/quickstart.py`.".format(*(sys.version_info[:2] + MINIMUM_PYTHON))
        )
    if os.name == "nt":
        stop("Windows is not supported, because the training program locks files as Unix does: use WSL.")
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        stop(
            "This Python has no venv module: install it (Debian and Ubuntu: `apt install python3-venv`) and run this "
            "command again."
        )
    if needs_compiler and not (shutil.which("g++") or shutil.which("clang++")):
        stop(
            "There is no C++ compiler (g++ or clang++), which the tests of torch.compile need: install one (Debian and "
            "Ubuntu: `apt install g++`) and run this command again."
        )


def check_disk():
    free_gib = shutil.disk_usage(ROOT).free / 2.0**30
    if free_gib < NEEDED_GIB:
        stop(
            f"{ROOT} has {free_gib:.1f} GiB of free disk, but the environment may take {NEEDED_GIB} GiB: make room and run "
            "this command again."
        )


def ensure(extra, needs_compiler=False, libraries="usual"):
    """Create .venv with the project and `extra` installed, unless that is done. Returns its Python.

    Other `libraries` than the usual ones have an environment of their own: .venv-oldest or .venv-newest.
    """
    check_machine(needs_compiler)
    environment = os.path.join(ROOT, ".venv" if libraries == "usual" else f".venv-{libraries}")
    digest = hashlib.sha256(" ".join(LIBRARIES[libraries]).encode())
    for path in (os.path.join(ROOT, "setup.cfg"), CONSTRAINTS):
        with open(path, "rb") as file:
            digest.update(file.read())
    stamp = os.path.join(environment, f"luna-{extra}-{digest.hexdigest()[:16]}")
    python = os.path.join(environment, "bin", "python")
    if os.path.exists(stamp):
        return python
    check_disk()
    print(f"Installing Luna and what it needs into {environment} (once, a few minutes).", flush=True)
    # Harmless where the environment is whole, and mends one whose making was interrupted.
    if subprocess.call([sys.executable, "-m", "venv", environment]) != 0:
        stop(f"The environment {environment} could not be made; Python's own message is above.")
    command = [python, "-m", "pip", "install", "-c", CONSTRAINTS, "-e", f"{ROOT}[{extra}]", *LIBRARIES[libraries]]
    if subprocess.call(command) != 0:
        stop("pip could not install the packages; its own message is above. Run this command again when that is mended.")
    with open(stamp, "w"):
        pass
    return python


def library_tests(python, libraries):
    """The common tests of models in transformers' source distribution: a folder, fetched once; None where pip fails."""
    package = LIBRARIES[libraries][1]
    folder = os.path.join(os.path.dirname(os.path.dirname(python)), "source")
    tests = os.path.join(folder, package.replace("==", "-"), "tests")
    if not os.path.isdir(tests):
        command = [python, "-m", "pip", "download", "--no-deps", "--no-binary", "transformers", "--dest", folder, package]
        if subprocess.call(command) != 0:
            return None
        shutil.unpack_archive(os.path.join(folder, package.replace("==", "-") + ".tar.gz"), folder)
    return tests


def run(command):
    """Run a command in the project's folder. On Ctrl-C, which the command gets too, wait until it has saved its work."""
    process = subprocess.Popen(command, cwd=ROOT)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, frame: process.send_signal(received))
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            print("Interrupted: saving; run the same command again to go on.", flush=True)
