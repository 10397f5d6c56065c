# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""What the tests of the model share."""

import pytest
import torch

from tests.support.luna_builders import make_tokenizer

# The marks of the library's common tests, which test_library.py runs.
LIBRARY_MARKS = "accelerate_tests flash_attn_test flash_attn_3_test flash_attn_4_test generate order torch_compile_test"


def pytest_configure(config):
    for name in LIBRARY_MARKS.split():
        config.addinivalue_line("markers", f"{name}: a mark of transformers")


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


@pytest.fixture
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
