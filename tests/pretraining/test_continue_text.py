# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""A causal model goes on with texts, the same way for the same seed."""

import shutil

import pytest
from transformers import AutoTokenizer

from configuration_luna import LunaConfig
from luna_tools.errors import InputError
from modeling_luna import LunaForCausalLM
from pretraining import continue_text


def test_a_model_goes_on_with_each_text(finished_causal, capfd):
    argv = [str(finished_causal / "model"), "--text", "Return the", "Open", "--max_new_tokens", "5"]
    shown = []
    for more in ([], [], ["--seed", "1"], ["--temperature", "0"], ["--temperature", "0", "--seed", "1"]):
        continue_text.main([*argv, *more])
        shown.append("".join(capfd.readouterr()))
    assert shown[0].count("\n[Return the]") == shown[0].count("\n[Open]") == 1
    assert shown[0] == shown[1] != shown[2] and shown[0] != shown[3] == shown[4]


def test_a_masked_model_and_a_text_beyond_the_last_position_are_refused(finished, finished_causal, tmp_path):
    with pytest.raises(InputError, match="is no causal language model, which has weights such as"):
        continue_text.main([str(finished / "model")])
    shutil.copytree(finished_causal / "model", tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    config = LunaConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    config.max_position_embeddings = 12
    LunaForCausalLM(config).save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match="--max_new_tokens is 60, which after the .* of the model: give at most"):
        continue_text.main([str(tmp_path / "model"), "--text", "Open"])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--max_new_tokens", "0"], "--max_new_tokens is 0, but must be at least 1"),
        (["--temperature", "-1"], "--temperature is -1, but must not be negative"),
        ([], "'nowhere' can't be loaded as a causal language model"),
    ],
)
def test_wrong_options_are_refused(options, sentence):
    with pytest.raises(InputError, match=sentence):
        continue_text.main(["nowhere", *options])
