# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The dataset of the tests of pretraining."""

from tests.pretraining.conftest import prepared  # noqa: F401
