# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Words of held-out sentences are masked and guessed, without bars between the lines."""

import pytest
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from pretraining import fill_masks


@pytest.fixture
def bars():
    """Bars as a fresh process has them."""
    transformers_logging.enable_progress_bar()
    yield
    transformers_logging.disable_progress_bar()


def test_guesses_are_shown_without_bars(finished, prepared, capfd, monkeypatch, bars):
    sentences = ["Return the number of items in the given list of all values."]
    monkeypatch.setattr(fill_masks, "held_out_sentences", lambda dataset, tokenizer: sentences)
    masked, word = fill_masks.mask_a_word(sentences[0], AutoTokenizer.from_pretrained(finished / "model"))
    fill_masks.main([str(finished / "model"), "--dataset", str(prepared)])
    shown = "".join(capfd.readouterr())
    assert f"{masked}   (was: {word})" in shown
    assert "Loading weights" not in shown and "\r" not in shown
