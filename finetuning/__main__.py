# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""`python -m finetuning TASK ...`, which launchers need: the program `luna finetune`."""

import sys

from luna_tools.command_line import run

if __name__ == "__main__":
    sys.exit(run("finetune", sys.argv[1:]))
