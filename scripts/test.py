# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""From a fresh machine to passing tests: set up, lint, run the tests."""

import argparse
import os
import sys

import environment

DESCRIPTION = "Set up the environment, lint, and run the tests. Options that are not its own go to pytest."


def pytest_arguments(everything, others):
    """As many processes as cores; launches of several processes stay in one of them."""
    arguments = ["--numprocesses", str(os.cpu_count()), "--dist", "loadgroup"]
    if not everything:
        arguments += ["-m", "not slow"]
    return arguments + others


def main():
    parser = argparse.ArgumentParser(description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--all", action="store_true", help="also the tests that are marked slow")
    parser.add_argument(
        "--libraries",
        choices=list(environment.LIBRARIES),
        default="usual",
        help="oldest, newest: in an environment of its own, with the oldest or newest transformers and torch of setup.cfg",
    )
    options, others = parser.parse_known_args()
    try:
        python = environment.ensure("test", needs_compiler=True, libraries=options.libraries)
        # Workers share the cores: on tensors as small as the tests', threads do nothing but wait for each other.
        os.environ["OMP_NUM_THREADS"] = "1"
        tests = environment.library_tests(python, options.libraries) if options.all else None
        if tests is not None:
            os.environ["LUNA_TRANSFORMERS_TESTS"] = tests
        status = environment.run([python, "-m", "ruff", "check", "."])
        return environment.run([python, "-m", "pytest", *pytest_arguments(options.all, others)]) or status
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
