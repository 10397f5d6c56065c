# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""A document's split is a function of its text, and the tokenizer's sample is spread over the training documents."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretraining.prepare.documents import list_inputs, sample_text, split_of
from tests.support.preparing import make_config


@given(st.text(), st.integers(0, 2**64 - 1), st.floats(0, 1, exclude_max=True))
def test_split_is_a_function_of_the_text(text, seed, fraction):
    split = split_of(text, seed, fraction)
    assert split_of(text, seed, 0) == "train"
    assert split == split_of(f"\n{text} ", seed, fraction)
    if split == "validation":
        assert split_of(text, seed, min(1, fraction * 1.5)) == "validation"


def test_split_has_the_fraction_and_depends_on_the_seed():
    documents = [f"document {i}" for i in range(20_000)]
    held_out = {seed: [split_of(text, seed, 0.1) == "validation" for text in documents] for seed in (0, 1)}
    for chosen in held_out.values():
        assert 0.09 < sum(chosen) / len(chosen) < 0.11  # 0.1 is 0.0021 to a standard deviation
    both = sum(a and b for a, b in zip(*held_out.values(), strict=True)) / len(documents)
    assert 0.007 < both < 0.013


@pytest.fixture
def sample_of(corpus, tmp_path):
    def sample(**options):
        config = make_config(tmp_path / "out", corpus, **options)
        return list(sample_text(config, list_inputs(config, tmp_path / "out")[0]))

    return sample


def test_sample_is_of_training_documents_limited_and_spread(sample_of, texts):
    assert sample_of() == [text for text in texts if split_of(text, 0, 0.2) == "train"]
    whole = "".join(sample_of())
    sample = sample_of(tokenizer_sample_mb=0.005)
    assert 4000 < sum(len(text.encode()) for text in sample) <= 5000
    places = [whole.index(text) for text in sample if len(text) > 30]
    assert places == sorted(places)
    assert max(places) > len(whole) * 0.6  # the third file starts about there
