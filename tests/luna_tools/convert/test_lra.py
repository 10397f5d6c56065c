# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Long Range Arena checkpoints become folders and official checkpoints again, or one sentence says why not."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from luna_tools.convert.checkpoint import load_fairseq_checkpoint
from modeling_luna import LunaForSequenceClassification
from tests.luna_tools.convert.test_to_fairseq import save_tiny
from tests.support.fairseq_files import convert, convert_back, same_tensors, save_changed
from tests.support.folders import refused
from tests.support.parity_kit import LRA_VARIANTS, find_variant, variant_params

# Of the official arguments, those that build the model; the newer code has no classifier_layers and none of what follows it.
MODEL_ARGS = (
    "encoder_layers encoder_embed_dim encoder_ffn_embed_dim encoder_attention_heads encoder_projection_length dropout "
    "attention_dropout act_dropout tie_kv tie_layer_weights max_positions activation_fn use_p layer_type sentence_class_num "
    "classifier_layers classifier_in_dim classifier_out_dim classifier_activation_fn"
).split()


@pytest.mark.parametrize("variant", variant_params(*LRA_VARIANTS))
def test_there_and_back(variant, tmp_path, capsys):
    source, is_newer = find_variant(variant), variant.startswith("lra_head/")
    goldens, dictionary = source / "goldens.safetensors", source / "dict.txt"
    convert(source / "model.pt", tmp_path / "out", "--verify", goldens, dictionary=dictionary)
    printed, config = capsys.readouterr().out, AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").config
    assert f"LayerNorm factor: weight{' + 1' if is_newer else ''} (detected)." in printed
    assert f"Classification head: classifier_pooling {config.classifier_pooling}, {config.num_labels} classes.\n" in printed
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| classification head | {config.classifier_pooling}, {config.num_labels} classes" in card

    scale = ["--layer_norm_scale", "weight_plus_one"] if is_newer else []
    convert_back(tmp_path / "out", tmp_path / "back.pt", "--dictionary", dictionary, *scale)
    args, state_dict = load_fairseq_checkpoint(source / "model.pt")
    back_args, back = load_fairseq_checkpoint(tmp_path / "back.pt")
    if is_newer:  # 1 was added and taken off again
        assert back.keys() == state_dict.keys()
        for name, tensor in state_dict.items():
            torch.testing.assert_close(back[name], tensor, rtol=0, atol=1e-7 if name.endswith("norm.weight") else 0)
    else:
        assert same_tensors(back, state_dict)
    names = MODEL_ARGS[: MODEL_ARGS.index("classifier_layers")] if is_newer else MODEL_ARGS
    assert {name: getattr(back_args, name) for name in names} == {name: getattr(args, name) for name in names}
    assert back_args.sen_rep_type == getattr(args, "sen_rep_type", None)


USE_P = "lra/listop_tied_layers_use_p"
REFUSED = [
    ({}, {"encoder_projection_length": None}, "lra/retrieval_dual", "The checkpoint's args do not describe a Luna model ("),
    (
        {},
        {"layer_type": "transformer"},
        USE_P,
        "The checkpoint's layer_type is transformer, but only luna can be converted.",
    ),
    ({}, {"classifier_layers": 2}, USE_P, "The checkpoint's classifier_layers is 2, but only 1 can be converted."),
    (
        {},
        {"classifier_activation_fn": "tanh"},
        USE_P,
        "The checkpoint's classifier_activation_fn is tanh, but only gelu, gelu_accurate, gelu_fast, relu can be converted.",
    ),
    (
        {"sentence_projection_layer.weight": None},
        {},
        USE_P,
        "The checkpoint lacks sentence_projection_layer.weight, the output of the classifier.",
    ),
    (
        {"classifier.0.weight": torch.zeros(48, 96)},
        {},
        USE_P,
        "The checkpoint's classifier reads 96 channels, which are not 1, 2 or 4 times its encoder_embed_dim, 32.",
    ),
    ({}, {"use_p": True}, "lra/retrieval_dual", "The checkpoint reads P of two texts (use_p), for which the official code"),
    ({"classifier.0.bias": None}, {}, USE_P, "The checkpoint lacks classifier.0.bias."),
    (
        {"classifier.1.weight": torch.zeros(1)},
        {},
        USE_P,
        "The checkpoint's args do not account for its parameters classifier.1.weight.",
    ),
]


@pytest.mark.skipif(find_variant(USE_P) is None, reason="the variants are not at hand")
@pytest.mark.parametrize("weights, args, variant, sentence", REFUSED)
def test_refused_checkpoints(weights, args, variant, sentence, tmp_path):
    checkpoint = save_changed(tmp_path / "model.pt", weights, args, variant)
    with refused(sentence, tmp_path):
        convert(checkpoint, tmp_path / "out", dictionary=find_variant(variant) / "dict.txt")


LRA = {"classifier_bias": False, "classifier_act": "relu"}
REFUSED_BACK = [
    ({"classifier_pooling": "packed_mean"}, "The model's classifier_pooling is packed_mean, but the official Long Range"),
    ({"dynamic_projection": False}, "The model's dynamic_projection is False, but the official Long Range Arena"),
    (
        {"classifier_act": "tanh"},
        "The model's classifier_act is tanh, but the official code has gelu, gelu_pytorch_tanh, relu.",
    ),
    (
        {"classifier_pooling": "packed_mean_unmasked"},
        "The model's classifier_pooling is packed_mean_unmasked with classifier_hidden_size None, but of the ",
    ),
]


@pytest.mark.parametrize("changes, sentence", REFUSED_BACK)
def test_models_that_the_official_code_has_not(changes, sentence, tmp_path):
    save_tiny(tmp_path / "folder", LunaForSequenceClassification, **LRA | changes)
    with refused(sentence, tmp_path):
        convert_back(tmp_path / "folder", tmp_path / "model.pt")


def test_a_head_of_the_masked_language_model_is_not_of_this_form(tmp_path):
    save_tiny(tmp_path / "folder", LunaForSequenceClassification, classifier_hidden_size=8)
    with refused("The model's classifier_hidden_size is 8, but the official heads have None.", tmp_path):
        convert_back(tmp_path / "folder", tmp_path / "model.pt")
