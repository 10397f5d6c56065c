# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The arguments of a checkpoint and the configuration describe each other, or one sentence says why not."""

import argparse

import pytest

from luna_tools.convert.checkpoint import load_fairseq_checkpoint
from luna_tools.convert.configuration import ARCHITECTURES, config_from_args
from tests.support.fairseq_files import TIED
from tests.support.folders import refused

ARGS = vars(load_fairseq_checkpoint(TIED / "model.pt")[0])


def config_of(head=None, num_labels=None, without=(), **changed):
    args = {name: value for name, value in (ARGS | changed).items() if name not in without}
    return config_from_args(argparse.Namespace(**args), 96, head, num_labels)


EXPECTED = [
    ({"dropout": 0.3}, {"hidden_dropout_prob": 0.3}),
    ({"attention_dropout": 0.2}, {"attention_probs_dropout_prob": 0.2}),
    ({"activation_dropout": 0.4}, {"activation_dropout": 0.4}),
    ({"encoder_layers": 7}, {"num_hidden_layers": 7}),
    ({"encoder_attention_heads": 8}, {"num_attention_heads": 8}),
    ({"encoder_embed_dim": 40}, {"hidden_size": 40}),
    ({"encoder_ffn_embed_dim": 48}, {"intermediate_size": 48}),
    ({"projection_length": 16}, {"projection_length": 16}),
    ({"max_positions": 512}, {"max_position_embeddings": 514}),
    ({"fix_projection_length": True}, {"dynamic_projection": False}),
    ({"untie_luna_kv": True}, {"tie_key_value": False}),
    ({"untie_weights_luna": True}, {"tie_word_embeddings": False}),
    ({"activation_fn": "relu"}, {"hidden_act": "relu"}),
    ({"activation_fn": "gelu_accurate"}, {"hidden_act": "gelu_pytorch_tanh"}),
    ({"activation_fn": "gelu_fast"}, {"hidden_act": "gelu_pytorch_tanh"}),
    ({"arch": "luna_base_untied_512"}, {}),
]


@pytest.mark.parametrize("changed, expected", EXPECTED)
def test_each_argument_is_one_field(changed, expected):
    before, after = config_of().to_dict(), config_of(**changed).to_dict()
    assert {name: value for name, value in after.items() if value != before[name]} == expected


def test_flags_that_older_code_did_not_have_are_off():
    after = config_of(without=("fix_projection_length", "untie_luna_kv", "untie_weights_luna"))
    assert after.to_dict() == config_of().to_dict()
    assert after.dynamic_projection and after.tie_key_value and after.tie_word_embeddings


@pytest.mark.parametrize("head, pooling", [("pooling_classification_head", "packed_max"), ("sst2", "cls")])
def test_a_head_has_the_dropout_that_it_was_trained_with(head, pooling):
    config = config_of(head, 3, pooler_dropout=0.25, dropout=0.1)
    assert (config.classifier_pooling, config.num_labels, config.classifier_dropout) == (pooling, 3, 0.25)
    assert config_of(head, 3, without=["pooler_dropout"]).classifier_dropout == 0.0


ONLY = "but only gelu, gelu_accurate, gelu_fast, relu can be converted."
REFUSED = [
    (
        {"arch": "roberta_base"},
        "The checkpoint's architecture is roberta_base, but only the masked language model "
        f"({', '.join(ARCHITECTURES)}), translation models and those of the Long Range Arena can be converted.",
    ),
    ({"without": ["projection_length"]}, "The checkpoint's args lack projection_length."),
    (
        {"without": ["dropout", "max_positions", "activation_fn", "encoder_layers"]},
        "The checkpoint's args lack encoder_layers, dropout, max_positions and 1 more.",
    ),
    ({"activation_fn": "swish"}, f"The checkpoint's activation_fn is swish, {ONLY}"),
    ({"activation_fn": ["gelu"]}, f"The checkpoint's activation_fn is ['gelu'], {ONLY}"),
    (
        {"head": "rte", "num_labels": 2, "pooler_activation_fn": "relu"},
        "The checkpoint's pooler_activation_fn is relu, but must be tanh.",
    ),
    *(
        (changed, "The checkpoint's args do not describe a Luna model (")
        for changed in ({"encoder_attention_heads": 5}, {"dropout": "0.1"}, {"max_positions": "64"})
    ),
]


@pytest.mark.parametrize("changed, sentence", REFUSED)
def test_refused_arguments(changed, sentence):
    with refused(sentence):
        config_of(**changed)
