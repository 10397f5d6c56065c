# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""What the tests of the model share."""

import pytest
import torch
from luna_builders import make_tokenizer


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """On tensors as small as these, threads do nothing but wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()
