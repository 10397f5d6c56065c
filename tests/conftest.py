# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""What the tests need of the process they run in."""

import os
import signal

# No test reaches the Hub: without this, each look-up of a name that is not there would be tried for half a minute.
os.environ["HF_HUB_OFFLINE"] = "1"
# A shell starts background jobs with SIGINT ignored, which the programs under test would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)
