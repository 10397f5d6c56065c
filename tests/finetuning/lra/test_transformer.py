# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The Transformer under Luna's head."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from finetuning.lra.transformer import TransformerForSequenceClassification

SIZES = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
SIZES |= {"max_position_embeddings": 20, "num_labels": 3, "initializer_range": 0.3}
HEAD = {"classifier_hidden_size": 12, "classifier_act": "relu", "classifier_bias": False}


def make(**changes):
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(
        AutoConfig.for_model("transformer", **SIZES | HEAD | changes)
    ).eval()


def pooled(model, text):
    states = model.roberta(torch.tensor([text])).last_hidden_state[0]
    return states[0] if model.config.classifier_pooling == "cls" else states.mean(dim=0)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_row_is_the_encoder_s_states_under_the_head_whatever_the_padding(pooling):
    model = make(classifier_pooling=pooling)
    assert type(model) is TransformerForSequenceClassification
    texts = [[0, 5, 6, 7], [0, 8]]
    ids = torch.tensor([[*texts[0], 1], [*texts[1], 1, 1, 1]])
    output = model(ids, (ids != 1).long(), labels=torch.tensor([2, 0]))
    head = model.classifier
    expected = torch.stack([head.out_proj(head.dense(pooled(model, text)).relu()) for text in texts])
    torch.testing.assert_close(output.logits, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.loss, torch.nn.functional.cross_entropy(output.logits, torch.tensor([2, 0])))
    part = model(ids, (ids != 1).long(), labels=torch.tensor([2, 0]), num_items_in_batch=8).loss
    torch.testing.assert_close(part, output.loss / 4)


def test_two_texts(tmp_path):
    model = make(classifier_pair="concat")
    texts = [[0, 5, 6], [0, 8, 9]]
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    first, second = (pooled(model, text) for text in texts)
    head = model.classifier
    expected = head.out_proj(head.dense(torch.cat([second, first])).relu())
    for one in (model, loaded):
        torch.testing.assert_close(one(torch.tensor([texts])).logits[0], expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(model(torch.tensor([texts[::-1]])).logits[0], expected)
