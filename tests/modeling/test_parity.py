# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The model computes what the official code computes, within the official code's own float32 error."""

import pytest
import torch
from safetensors import safe_open

from causal_luna import CAUSAL_ACTIVATIONS
from configuration_luna import LunaConfig
from luna_tools.convert.checkpoint import load_fairseq_checkpoint
from modeling_luna import LunaForSequenceClassification, masked_mean, sinusoids
from tests.support.parity_kit import (
    HEAD_VARIANTS,
    LRA_VARIANTS,
    MASKED_LM_VARIANTS,
    SEQ2SEQ_VARIANTS,
    TOLERANCE_FACTOR,
    causal_params,
    compare_causal_attention,
    compare_classifier,
    compare_lra,
    compare_masked_lm,
    compare_seq2seq,
    find_in_kit,
    find_variant,
    load_classifier,
    load_lra,
    load_masked_lm,
    load_seq2seq,
    max_abs_difference,
    read_goldens,
    variant_params,
)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("variant", variant_params(*MASKED_LM_VARIANTS))
def test_masked_lm(variant, attention):
    goldens, facts = read_goldens(variant)
    differences = compare_masked_lm(load_masked_lm(variant, attention), goldens, facts)

    too_large = [difference for difference in differences if not difference.max_abs <= difference.tolerance]
    assert not too_large
    assert {difference.kind for difference in differences} == {"hidden", "packed", "logits", "loss", "grad"}


def test_a_packed_norm_in_the_place_of_the_other_is_noticed():
    model = load_masked_lm("luna_bert/tied")
    layer = model.luna.layers[0]
    layer.attention_layer_norm, layer.packed_layer_norm = layer.packed_layer_norm, layer.attention_layer_norm
    differences = compare_masked_lm(model, *read_goldens("luna_bert/tied"))

    too_large = {difference.kind for difference in differences if difference.max_abs > difference.tolerance}
    assert too_large == {"hidden", "packed", "logits", "loss", "grad"}


HEAD_KINDS = {"cls_logits", "cls_loss", "cls_grad"}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("variant", variant_params(*HEAD_VARIANTS))
def test_classification_head(variant, attention):
    goldens, facts = read_goldens(variant)
    differences = compare_classifier(load_classifier(variant, attention), goldens, facts)

    too_large = [difference for difference in differences if not difference.max_abs <= difference.tolerance]
    assert not too_large
    assert {difference.kind for difference in differences} == HEAD_KINDS


# Each with the parameters of the right one, so that only the pooling itself differs.
WRONG_POOLINGS = {
    "cls: mean over the tokens": ("cls_head", lambda head, x, p, mask, used: masked_mean(x, mask)),
    "cls: last column": ("cls_head", lambda head, x, p, mask, used: x[:, -1]),
    "max: mean": ("pooling_head", lambda head, x, p, mask, used: masked_mean(head.in_proj(p), used)),
    "max: unused slots": ("pooling_head", lambda head, x, p, mask, used: head.in_proj(p).amax(dim=1)),
    "max: projection after it": (
        "pooling_head",
        lambda head, x, p, mask, used: head.in_proj(p.masked_fill(~used[..., None], -1e4).amax(dim=1)),
    ),
    "fixed max: mean": ("pooling_head_fixed", lambda head, x, p, mask, used: masked_mean(head.in_proj(p), used)),
    "attention: of the mean": (
        "attention_head",
        lambda head, x, p, mask, used: head.attention(masked_mean(x, mask), p, used),
    ),
    "attention: unused slots": (
        "attention_head",
        lambda head, x, p, mask, used: head.attention(x[:, 0], p, torch.ones_like(used)),
    ),
}


@pytest.mark.parametrize("case", WRONG_POOLINGS)
def test_another_pooling_is_noticed(case):
    variant, pool = WRONG_POOLINGS[case]
    variant = f"luna_bert/{variant}"
    if find_variant(variant) is None:
        pytest.skip(f"{variant} is not at hand")
    model = load_classifier(variant)
    model.classifier.pool = lambda *states: pool(model.classifier, *states)
    model.classifier.read_positions = lambda *inputs: None  # some read other tokens than the first
    differences = compare_classifier(model, *read_goldens(variant))

    too_large = {difference.kind for difference in differences if difference.max_abs > difference.tolerance}
    # In the batch with gradients each row uses all slots of P.
    assert too_large == HEAD_KINDS - ({"cls_grad"} if case == "max: unused slots" else set())


# ---------------------------------------------------------------------------------------------------------------------
# Long Range Arena
# Translation

SEQ2SEQ_KINDS = {"enc_hidden", "enc_packed", "enc_out", "enc_packed_out", "dec_hidden", "logits", "loss", "grad"}
SEQ2SEQ_KINDS |= {"step_logits", "tokens", "score"}


def too_large_kinds(differences):
    return {difference.kind for difference in differences if not difference.max_abs <= difference.tolerance}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("variant", variant_params(*SEQ2SEQ_VARIANTS))
def test_seq2seq(variant, attention):
    """All tensors, and the tokens of greedy and of beam search, to the last one."""
    differences = compare_seq2seq(load_seq2seq(variant, attention), *read_goldens(variant))
    assert not [difference for difference in differences if not difference.max_abs <= difference.tolerance]
    assert {difference.kind for difference in differences} == SEQ2SEQ_KINDS


def exchange_norms(model):
    layer = model.decoder.layers[0]
    layer.cross_attention_layer_norm, layer.packed_layer_norm = layer.packed_layer_norm, layer.cross_attention_layer_norm


def change_activation(model):
    for layer in model.decoder.layers:
        layer.self_attention.causal_activation = CAUSAL_ACTIVATIONS["softplus_natural"]


WRONG_DECODERS = {"a norm in the place of another": exchange_norms, "another activation": change_activation}


@pytest.mark.parametrize("change", WRONG_DECODERS.values(), ids=WRONG_DECODERS)
@pytest.mark.parametrize("variant", variant_params("seq2seq/tied_shared"))
def test_another_decoder_is_noticed(variant, change):
    model = load_seq2seq(variant)
    change(model)
    too_large = too_large_kinds(compare_seq2seq(model, *read_goldens(variant)))
    assert too_large >= {"dec_hidden", "logits", "loss", "grad", "step_logits", "tokens", "score"}
    assert not too_large & {"enc_hidden", "enc_packed", "enc_out", "enc_packed_out"}


# ---------------------------------------------------------------------------------------------------------------------
# Long Range Arena


LRA_KINDS = {"hidden", "packed", "sentence_rep", "logits", "loss", "grad"}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("variant", variant_params(*LRA_VARIANTS))
def test_long_range_arena(variant, attention):
    differences = compare_lra(load_lra(variant, attention), *read_goldens(variant))

    assert not [difference for difference in differences if not difference.max_abs <= difference.tolerance]
    assert {difference.kind for difference in differences} == LRA_KINDS


# What each change makes of the model, in a variant that notices.
WRONG_LRA_MODELS = {
    "masked mean of P": ("listop_tied_layers_use_p", {"classifier_pooling": "packed_mean"}),
    "with the first token": ("listop_tied_layers_use_p", {"classifier_pooling": "packed_mean_unmasked"}),
    "masked mean of X": ("listop_mean_pool", {"classifier_pooling": "mean"}),
    "first token for the mean": ("listop_mean_pool", {"classifier_pooling": "cls"}),
    "tanh": ("listop_tie_kv", {"classifier_act": "tanh"}),
}


@pytest.mark.parametrize("case", WRONG_LRA_MODELS)
def test_another_long_range_arena_model_is_noticed(case):
    variant, changes = WRONG_LRA_MODELS[case]
    if find_variant(f"lra/{variant}") is None:
        pytest.skip(f"lra/{variant} is not at hand")
    right = load_lra(f"lra/{variant}")
    wrong = LunaForSequenceClassification(LunaConfig.from_dict(right.config.to_dict() | changes)).eval()
    wrong.load_state_dict(right.state_dict())
    goldens, facts = read_goldens(f"lra/{variant}")
    # Inputs of which the wrong model takes one token more have other states: the logits tell.
    logits = wrong(goldens["mixed.input_ids"], goldens["mixed.attention_mask"]).logits
    tolerance = TOLERANCE_FACTOR * facts["fp32_noise"]["logits"]["max_abs_err"]
    assert max_abs_difference(logits, goldens["mixed.logits"]) > tolerance


def test_the_order_of_two_texts_is_noticed():
    if find_variant("lra/retrieval_dual") is None:
        pytest.skip("lra/retrieval_dual is not at hand")
    goldens, facts = read_goldens("lra/retrieval_dual")
    batch = torch.stack([goldens["mixed.input_ids_1"], goldens["mixed.input_ids"]], dim=1)
    logits = load_lra("lra/retrieval_dual")(batch, (batch != 1).long()).logits
    tolerance = TOLERANCE_FACTOR * facts["fp32_noise"]["logits"]["max_abs_err"]
    assert max_abs_difference(logits, goldens["mixed.logits"]) > tolerance


@pytest.mark.parametrize("variant", variant_params("seq2seq/tied_shared", "seq2seq/tied_fixed_lnemb"))
def test_sinusoids(variant):
    _, state_dict = load_fairseq_checkpoint(find_variant(variant) / "model.pt")
    official = state_dict["encoder.projected_positions"]
    torch.testing.assert_close(sinusoids(torch.arange(len(official)), official.shape[1]), official, rtol=0, atol=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# Causal attention


CAUSAL_KINDS = {"out_parallel", "out_incremental", "unpack_weights", "state", "grad"}


@pytest.mark.parametrize("name", causal_params())
def test_causal_attention(name):
    differences = compare_causal_attention(find_in_kit(name))

    too_large = [difference for difference in differences if not difference.max_abs <= difference.tolerance]
    assert not too_large
    assert {difference.kind for difference in differences} == CAUSAL_KINDS
    compared = {difference.name for difference in differences}
    with safe_open(find_in_kit(name), "pt") as file:
        results = {key for key in file.keys() if key.startswith(("nomask.", "masked."))}
    # `pq_scaled` is the projected P, which is no part of our state.
    assert {key.split(".", 1)[1] for key in results - compared} == {"probe", "state.pq_scaled"}
