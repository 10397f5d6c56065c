# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""What a model has learned is shown for any corpus, without bars between the lines."""

import re

import numpy as np
import pytest
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from luna_tools.errors import InputError
from pretraining import fill_masks
from pretraining.held_out import held_out_sentences, mask_a_word
from pretraining.metrics import read_metrics


@pytest.fixture
def bars():
    """Bars as a fresh process has them."""
    transformers_logging.enable_progress_bar()
    yield
    transformers_logging.disable_progress_bar()


@pytest.fixture(scope="module")
def tokenizer(prepared):
    return AutoTokenizer.from_pretrained(prepared / "tokenizer")


def test_a_model_is_shown_beside_tables_and_on_sentences(finished, prepared, capfd, bars):
    fill_masks.main([str(finished / "model"), "--dataset", str(prepared), "--sentences", "4"])
    shown = "".join(capfd.readouterr())
    assert "Loading weights" not in shown and "\r" not in shown
    losses = dict(re.findall(r"^(word freq.*?|table.*?|this model)  +(\d+\.\d\d) ", shown, flags=re.MULTILINE))
    assert len(losses) == 3 and float(losses["table of left and right neighbours"]) < float(losses["word frequencies"])
    # The masks are those of the run's own evaluations.
    evaluated = [row["eval_loss"] for row in read_metrics(finished / "metrics.jsonl") if "eval_loss" in row]
    assert float(losses["this model"]) == pytest.approx(evaluated[-1], abs=0.006)
    assert len(re.findall(r"it was: \S+, rank [\d,]+; guesses: ", shown)) == 4 == shown.count("[____]")


@pytest.mark.parametrize("text", ["Return the number of items in the list.", "0x1F 0x2A 0x3B", "日本語のテキスト"])
def test_a_place_to_mask_is_found_in_any_text(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    place = mask_a_word(ids, tokenizer)
    assert 0 < place < len(ids) - 1
    if text.startswith("Return"):
        assert tokenizer.decode([ids[place]]).strip() in text.split() and len(tokenizer.decode([ids[place]])) > 4


def test_plain_sentences_are_preferred_and_numbers_will_do(tokenizer):
    plain = "This sentence has only words in it, and ends."
    numbers = "1 2 3 4 5 6 7 8 9."

    def rows(*texts: str) -> np.ndarray:
        ids = tokenizer("\n\n".join([*texts, "The end"]), add_special_tokens=False)["input_ids"]
        return np.array([[tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]])

    assert held_out_sentences(rows(numbers, plain), tokenizer) == [plain]
    assert held_out_sentences(rows(numbers), tokenizer) == [numbers]
    assert held_out_sentences(rows("word"), tokenizer) == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--dataset", "elsewhere"], "--dataset is 'elsewhere', which has no validation split"),
        (["--dataset", "{prepared}", "--sentences", "0"], "--sentences is 0, but must be at least 1"),
    ],
)
def test_wrong_options_are_refused(options, sentence, prepared):
    with pytest.raises(InputError, match=sentence):
        fill_masks.main(["model", *(option.format(prepared=prepared) for option in options)])
