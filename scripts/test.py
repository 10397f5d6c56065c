# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""From a fresh machine to passing tests: set up, lint, run all tests (`--fast`: without the slow ones)."""

import sys

import environment


def main():
    arguments = sys.argv[1:]
    if "--fast" in arguments:
        arguments = [a for a in arguments if a != "--fast"] + ["-m", "not slow"]
    try:
        python = environment.ensure("test", needs_compiler=True)
        status = environment.run([python, "-m", "ruff", "check", "."])
        return environment.run([python, "-m", "pytest", *arguments]) or status
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
