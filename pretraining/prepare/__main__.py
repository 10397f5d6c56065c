# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""`python -m pretraining.prepare` is `luna prepare`."""

import sys

from luna_tools.command_line import run

sys.exit(run("prepare", sys.argv[1:]))
