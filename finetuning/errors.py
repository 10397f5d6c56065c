# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The error that the command line turns into one sentence."""


class FinetuningError(ValueError):
    """An option, a file, a row or a checkpoint that cannot be used; the message is one sentence with the remedy."""
