# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The configuration: its defaults, its round trip through a file, and one clear sentence for each wrong field."""

import dataclasses
import json

import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from transformers import AutoConfig

import modeling_luna  # noqa: F401  (registers the Auto classes)
from configuration_luna import DECODER_SIZES, LunaConfig

DEFAULTS = {
    "vocab_size": 50265,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "projection_length": 128,
    "tie_key_value": True,
    "dynamic_projection": True,
    "contextual_projection": True,
    "packed_attention_heads": None,
    "position_embedding_type": "learned",
    "scale_embedding": None,
    "embedding_layer_norm": True,
    "norm_first": False,
    "share_layer_weights": False,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "activation_dropout": 0.0,
    "causal_activation": "softplus",
    "is_decoder": False,
    "is_encoder_decoder": False,
    "decoder_layers": None,
    "decoder_attention_heads": None,
    "decoder_packed_attention_heads": None,
    "decoder_ffn_dim": None,
    "target_vocab_size": None,
    "decoder_start_token_id": 2,
    "use_cache": True,
    "max_position_embeddings": 514,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "tie_word_embeddings": True,
    "classifier_pooling": "cls",
    "classifier_hidden_size": None,
    "classifier_act": "tanh",
    "classifier_bias": True,
    "classifier_pair": None,
    "classifier_dropout": 0.0,
    "output_logits": False,
}

OTHER_VALUES = {
    "vocab_size": 100,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "projection_length": 16,
    "tie_key_value": False,
    "dynamic_projection": False,
    "contextual_projection": False,
    "packed_attention_heads": 2,
    "position_embedding_type": "sinusoidal",
    "scale_embedding": False,
    "embedding_layer_norm": False,
    "norm_first": True,
    "share_layer_weights": True,
    "hidden_act": "relu",
    "hidden_dropout_prob": 0,
    "attention_probs_dropout_prob": 0.25,
    "activation_dropout": 0.3,
    "causal_activation": "elu",
    "is_decoder": True,
    "is_encoder_decoder": True,
    "decoder_layers": 2,
    "decoder_attention_heads": 8,
    "decoder_packed_attention_heads": 6,
    "decoder_ffn_dim": 64,
    "target_vocab_size": 90,
    "decoder_start_token_id": 4,
    "use_cache": False,
    "max_position_embeddings": 66,
    "initializer_range": 0.01,
    "layer_norm_eps": 1e-6,
    "pad_token_id": 3,
    "bos_token_id": None,
    "eos_token_id": [2, 4],
    "tie_word_embeddings": False,
    "classifier_pooling": "packed_mean",
    "classifier_hidden_size": 0,
    "classifier_act": "relu",
    "classifier_bias": False,
    "classifier_pair": "interact",
    "classifier_dropout": 0.2,
    "output_logits": True,
}


# Without an encoder these are refused.
OF_ENCODER_DECODERS = ("target_vocab_size", *DECODER_SIZES)


def test_defaults_are_those_of_the_paper_and_of_roberta():
    config = LunaConfig()
    assert {name: getattr(config, name) for name in DEFAULTS} == DEFAULTS
    assert config.model_type == "luna"


@pytest.mark.parametrize("name", DEFAULTS)
def test_field_is_given_assigned_saved_and_loaded(name, tmp_path):
    changes = {name: OTHER_VALUES[name]} | ({"is_encoder_decoder": True} if name in OF_ENCODER_DECODERS else {})
    expected = DEFAULTS | changes
    assert expected != DEFAULTS
    given, assigned = LunaConfig(**changes), LunaConfig()
    for changed, value in changes.items():
        setattr(assigned, changed, value)
    for config in (given, assigned):
        config.save_pretrained(tmp_path)
        loaded = LunaConfig.from_pretrained(tmp_path)
        assert {key: getattr(loaded, key) for key in DEFAULTS} == expected


def test_all_fields_together_survive_the_round_trip(tmp_path):
    values = OTHER_VALUES | {"is_decoder": False}  # beside an encoder it is refused
    config = LunaConfig(**values)
    config.save_pretrained(tmp_path)
    assert LunaConfig.from_pretrained(tmp_path).to_dict() == LunaConfig.from_dict(config.to_dict()).to_dict()
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == "luna"
    assert {name: saved.get(name, False) for name in values} == values


def test_every_own_field_is_in_these_tables():
    own = set(LunaConfig.__annotations__)
    assert own == set(DEFAULTS) == set(OTHER_VALUES)
    assert own <= {field.name for field in dataclasses.fields(LunaConfig)}


def test_auto_config_makes_and_loads_a_luna_config(tmp_path):
    assert type(AutoConfig.for_model("luna", projection_length=7)) is LunaConfig
    LunaConfig(projection_length=7).save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is LunaConfig and loaded.projection_length == 7


def test_keys_from_a_newer_version_are_kept():
    assert LunaConfig(a_field_of_the_future=3).a_field_of_the_future == 3


def test_an_unknown_pooling_is_answered_with_the_known_ones():
    with pytest.raises(StrictDataclassFieldValidationError) as caught:
        LunaConfig(classifier_pooling="packed")
    for pooling in ("'cls'", "'packed_mean'", "'packed_max'", "'packed_attention'", "'mean'"):
        assert pooling in str(caught.value)


def test_checkpoints_of_earlier_versions_have_heads_without_dropout(tmp_path):
    """They say null where nothing was chosen; given as a value it is refused."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "luna", "classifier_dropout": None}))
    for loader in (LunaConfig, AutoConfig):
        assert loader.from_pretrained(tmp_path).classifier_dropout == 0.0


def test_labels_and_label_names():
    config = LunaConfig(num_labels=3)
    assert config.num_labels == 3 and set(config.id2label) == {0, 1, 2}


@pytest.mark.parametrize(
    ("changes", "limit"),
    [
        ({}, 512),
        ({"max_position_embeddings": 40}, 38),
        ({"max_position_embeddings": 40, "pad_token_id": 0}, 39),
        ({"max_position_embeddings": 40, "pad_token_id": 3}, 36),
        ({"position_embedding_type": "sinusoidal"}, None),
    ],
)
def test_max_sequence_length(changes, limit):
    assert LunaConfig(**changes).max_sequence_length == limit


def test_sizes_of_a_decoder_are_by_default_those_of_the_encoder():
    config = LunaConfig(is_encoder_decoder=True, num_hidden_layers=3, decoder_ffn_dim=64)
    sizes = [config.decoder_size(name) for name in DECODER_SIZES]
    assert sizes == [3, 12, None, 64]
    assert config.get_text_config(decoder=True) is config


# Changes, and what the message must name: the field, its value, and the remedy.
WRONG_VALUES = [
    *[
        ({name: value}, (f"`{name}`", str(value), "must be at least 1"))
        for name in (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "projection_length",
            "max_position_embeddings",
        )
        for value in (0, -3)
    ],
    ({"hidden_size": 100, "num_attention_heads": 3}, ("`hidden_size` is 100", "`num_attention_heads` = 3", "choose")),
    (
        {"hidden_size": 33, "num_attention_heads": 3, "position_embedding_type": "sinusoidal"},
        ("`hidden_size` is 33", "even number", "`position_embedding_type`"),
    ),
    (
        {"hidden_size": 2, "num_attention_heads": 1, "position_embedding_type": "sinusoidal"},
        ("`hidden_size` is 2", "at least 4", "`position_embedding_type`"),
    ),
    ({"packed_attention_heads": 5}, ("`hidden_size` is 768", "`packed_attention_heads` = 5", "choose")),
    (
        {"is_encoder_decoder": True, "decoder_attention_heads": 7},
        ("`hidden_size` is 768", "`decoder_attention_heads` = 7", "choose"),
    ),
    ({"is_encoder_decoder": True, "decoder_layers": 0}, ("`decoder_layers` is 0", "at least 1, or None")),
    ({"is_encoder_decoder": True, "is_decoder": True}, ("`is_decoder` and `is_encoder_decoder` are both True", "set the")),
    *[
        ({name: 12}, (f"`{name}` is 12", "only an encoder-decoder has it", "`is_encoder_decoder`", "leave"))
        for name in OF_ENCODER_DECODERS
    ],
    (
        {"is_encoder_decoder": True, "target_vocab_size": 30, "pad_token_id": 30, "max_position_embeddings": 50},
        ("`pad_token_id` is 30", "target's vocabulary too, 0 to 29"),
    ),
    (
        {"is_encoder_decoder": True, "target_vocab_size": 30, "decoder_start_token_id": 30},
        ("`decoder_start_token_id` is 30", "0 to 29"),
    ),
    ({"pad_token_id": -1}, ("`pad_token_id` is -1", "0 to 50264")),
    ({"pad_token_id": 50265}, ("`pad_token_id` is 50265", "0 to 50264")),
    (
        {"max_position_embeddings": 2},
        ("`max_position_embeddings` is 2", "`pad_token_id` = 1", "plus 2"),
    ),
    ({"hidden_act": "gulu"}, ("`hidden_act` is 'gulu'", '"gelu"')),
    ({"classifier_act": "rely"}, ("`classifier_act` is 'rely'", '"relu"')),
    ({"classifier_hidden_size": -1}, ("`classifier_hidden_size` is -1", "0 for no hidden layer")),
    *[
        ({name: value}, (f"`{name}` is {value}", "[0, 1)"))
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "activation_dropout", "classifier_dropout")
        for value in (-0.1, 1.0, 10)
    ],
    ({"initializer_range": 0.0}, ("`initializer_range` is 0.0", "above 0")),
    ({"layer_norm_eps": -1e-5}, ("`layer_norm_eps` is -1e-05", "above 0")),
]


def wrong_id(changes):
    return ",".join(f"{name}={value}" for name, value in changes.items()) if isinstance(changes, dict) else ""


@pytest.mark.parametrize(("changes", "parts"), WRONG_VALUES, ids=wrong_id)
def test_wrong_value_is_named_with_its_remedy(changes, parts, tmp_path):
    """Given, in a file, and assigned, when it would be saved."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "luna"} | changes))
    config = LunaConfig()
    for name, value in changes.items():
        setattr(config, name, value)
    for refused in (
        lambda: LunaConfig(**changes),
        lambda: AutoConfig.from_pretrained(tmp_path),
        lambda: config.save_pretrained(tmp_path / "saved"),
    ):
        with pytest.raises(StrictDataclassClassValidationError) as caught:
            refused()
        message = str(caught.value.__cause__)  # the sentence of the validator inside huggingface_hub's wrapper
        assert isinstance(caught.value.__cause__, ValueError) and message in str(caught.value)
        for part in parts:
            assert part in message
        assert message.endswith(".") and message.count(". ") == 0, "one sentence"
    assert not (tmp_path / "saved").exists()


WRONG_TYPES = [
    ("vocab_size", "many"),
    ("hidden_size", 768.0),
    ("num_hidden_layers", None),
    ("num_attention_heads", "12"),
    ("projection_length", 12.5),
    ("tie_key_value", "yes"),
    ("dynamic_projection", 1),
    ("contextual_projection", None),
    ("position_embedding_type", "rotary"),
    ("norm_first", "pre"),
    ("share_layer_weights", 0),
    ("hidden_act", None),
    ("hidden_dropout_prob", "0.1"),
    ("attention_probs_dropout_prob", None),
    ("activation_dropout", [0.1]),
    ("max_position_embeddings", 514.0),
    ("layer_norm_eps", "1e-5"),
    ("pad_token_id", None),
    ("eos_token_id", "</s>"),
    ("classifier_pooling", "packed"),
    ("classifier_pooling", None),
    ("classifier_hidden_size", "none"),
    ("classifier_act", None),
    ("classifier_bias", "no"),
    ("classifier_pair", "sum"),
    ("classifier_dropout", "none"),
    ("classifier_dropout", None),
    ("output_logits", "no"),
    ("causal_activation", "softmax"),
    ("decoder_layers", "two"),
    ("is_encoder_decoder", None),
    ("scale_embedding", "yes"),
]


@pytest.mark.parametrize(("name", "value"), WRONG_TYPES)
def test_wrong_type_is_refused(name, value):
    config = LunaConfig()
    for refused in (lambda: LunaConfig(**{name: value}), lambda: setattr(config, name, value)):
        with pytest.raises(StrictDataclassFieldValidationError, match=name) as caught:
            refused()
        assert str(value) in str(caught.value) or type(value).__name__ in str(caught.value)
    assert getattr(config, name) == DEFAULTS[name], "a refused value must not stick"
