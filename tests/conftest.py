# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""No test reaches the Hub: without this, each look-up of a name that is not there would be tried for half a minute."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
