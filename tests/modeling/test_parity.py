# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The model computes what the official code computes, within the official code's own float32 error."""

import math

import pytest
import torch
from safetensors import safe_open
from torch import nn

from configuration_luna import LunaConfig
from luna_tools.convert.checkpoint import load_fairseq_checkpoint
from luna_tools.convert.weights import find_layer_norm_scale, is_layer_norm_weight, map_names
from modeling_luna import LunaLayer, LunaModel, masked_mean, sinusoids
from tests.support.parity_kit import (
    HEAD_VARIANTS,
    MASKED_LM_VARIANTS,
    TOLERANCE_FACTOR,
    causal_params,
    compare_causal_attention,
    compare_classifier,
    compare_masked_lm,
    find_in_kit,
    find_variant,
    load_classifier,
    load_masked_lm,
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
# Encoders of the other official models, which their checkpoints hold under other names


def load_lra_encoder(variant: str) -> tuple[LunaModel, dict[str, str], dict[str, torch.Tensor]]:
    """The encoder of a Long Range Arena variant, its official parameter names, and all official parameters."""
    args, state_dict = load_fairseq_checkpoint(find_variant(variant) / "model.pt")
    config = LunaConfig(
        vocab_size=len(state_dict["encoder.encoder.embed_tokens.weight"]),
        hidden_size=args.encoder_embed_dim,
        num_hidden_layers=args.encoder_layers,
        num_attention_heads=args.encoder_attention_heads,
        intermediate_size=args.encoder_ffn_embed_dim,
        projection_length=args.encoder_projection_length,
        max_position_embeddings=args.max_positions + 2,
        tie_key_value=args.tie_kv,
        share_layer_weights=args.tie_layer_weights,
        hidden_act=args.activation_fn,
    )
    config._attn_implementation = "sdpa"
    names = {
        name.replace("encoder.sentence_encoder.", "encoder.encoder."): ours.removeprefix("luna.")
        for name, ours in map_names(config).items()
        if ours.startswith("luna.")
    }
    plus = 1 if find_layer_norm_scale(state_dict) == "weight_plus_one" else 0
    model = LunaModel(config).eval()
    model.load_state_dict({ours: state_dict[name] + plus * is_layer_norm_weight(name) for name, ours in names.items()})
    return model, names, state_dict


@pytest.mark.parametrize(
    "variant",
    variant_params(
        "lra/listop_tied_layers",
        "lra/listop_untied_layers",
        "lra/listop_tie_kv",
        "lra_head/listop_tied_layers",
        "lra_head/listop_untied_layers",
    ),
)
def test_lra_encoder(variant):
    goldens, facts = read_goldens(variant)
    model, names, state_dict = load_lra_encoder(variant)
    # No error of the states is recorded; this is that of luna_bert/fixed, the largest for states of this size.
    tolerance = TOLERANCE_FACTOR * 3e-6
    last = model.config.num_hidden_layers
    for batch in facts["batches"]:
        mask, packed_mask = goldens[f"{batch}.attention_mask"].bool(), goldens[f"{batch}.packed_mask"].bool()
        slots = packed_mask.shape[1]
        outputs = model(input_ids=goldens[f"{batch}.encoder_input_ids"], attention_mask=mask.long())
        assert max_abs_difference(outputs.last_hidden_state, goldens[f"{batch}.hidden.{last}"], mask) <= tolerance
        packed_state = outputs.packed_state[:, :slots]
        assert max_abs_difference(packed_state, goldens[f"{batch}.packed.{last}"], packed_mask) <= tolerance

        # The official classifier on the first token: with shared weights, a gradient is a sum over the layers.
        features = outputs.last_hidden_state[:, 0]
        if "classifier.0.weight" in state_dict:
            weight, bias = state_dict["classifier.0.weight"], state_dict["classifier.0.bias"]
            features = nn.functional.linear(features, weight, bias).relu()
        logits = nn.functional.linear(features, state_dict["sentence_projection_layer.weight"])
        logits_tolerance = TOLERANCE_FACTOR * facts["fp32_noise"]["logits"]["max_abs_err"]
        assert max_abs_difference(logits, goldens[f"{batch}.logits"]) <= logits_tolerance
        gradient_names = [name for name in names if f"{batch}.grad.{name}" in goldens]
        assert bool(gradient_names) == (batch == "mixed")
        if gradient_names:
            nn.functional.cross_entropy(logits, goldens[f"{batch}.labels"]).backward()
        for name in gradient_names:
            official = goldens[f"{batch}.grad.{name}"]
            gradient = model.get_parameter(names[name]).grad
            assert max_abs_difference(gradient, official) <= 1e-3 * official.abs().max(), name


@pytest.mark.parametrize("variant", variant_params("seq2seq/untied_prenorm_learned", "seq2seq/tied_shared"))
def test_layers_of_the_translation_encoder(variant):
    """Pre-norm layers, and post-norm layers over sinusoids; these encoders have no embedding norms."""
    goldens, facts = read_goldens(variant)
    args, state_dict = load_fairseq_checkpoint(find_variant(variant) / "model.pt")
    d = args.encoder_embed_dim
    noise, packed_noise = (facts["fp32_noise"][kind]["max_abs_err"] for kind in ("enc_out", "enc_packed_out"))
    config = LunaConfig(
        hidden_size=d,
        num_hidden_layers=args.encoder_layers,
        num_attention_heads=args.encoder_attention_heads,
        intermediate_size=args.encoder_ffn_embed_dim,
        tie_key_value=not args.untie_luna_kv,
        norm_first=args.encoder_normalize_before,
        hidden_act=args.activation_fn,
    )
    config._attn_implementation = "eager"
    layers = nn.ModuleList(LunaLayer(config) for _ in range(args.encoder_layers)).eval()
    layers.load_state_dict(
        {
            ours.removeprefix("luna.layers."): state_dict[name.replace("encoder.sentence_encoder.", "encoder.")]
            for name, ours in map_names(config).items()
            if ours.startswith("luna.layers.")
        }
    )

    def additive(mask: torch.Tensor) -> torch.Tensor:
        return torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)[:, None, None]

    for batch in facts["batches"]:
        mask, packed_mask = goldens[f"{batch}.src_mask"].bool(), goldens[f"{batch}.packed_mask"].bool()
        position_ids = mask.long().cumsum(-1) * mask + 1
        # Officially the embeddings are scaled whatever the positions are, unless `no_scale_embedding`.
        x = state_dict["encoder.embed_tokens.weight"][goldens[f"{batch}.src_tokens"]] * math.sqrt(d)
        p = state_dict["encoder.projected_embeddings"] * math.sqrt(d)
        if args.encoder_learned_pos:
            x = x + state_dict["encoder.embed_positions.weight"][position_ids]
        else:
            x = x + sinusoids(position_ids, d)
            p = p + sinusoids(torch.arange(len(p)), d)
        x, p = x * mask[..., None], p[: packed_mask.shape[1]] * packed_mask[..., None]

        with torch.no_grad():
            for i, layer in enumerate(layers, start=1):
                x, p = layer(x, p, additive(mask), additive(packed_mask))
                name, packed_name = f"{batch}.enc_hidden.{i}", f"{batch}.enc_packed.{i}"
                if i == len(layers):
                    name, packed_name = f"{batch}.enc_out", f"{batch}.enc_packed_out"
                    if config.norm_first:
                        x = layer_norm(x, state_dict, "encoder.layer_norm")
                        p = layer_norm(p, state_dict, "encoder.proj_layer_norm")
                assert max_abs_difference(x, goldens[name], mask) <= TOLERANCE_FACTOR * noise, name
                assert max_abs_difference(p, goldens[packed_name], packed_mask) <= TOLERANCE_FACTOR * packed_noise


def layer_norm(x: torch.Tensor, state_dict: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    return nn.functional.layer_norm(x, x.shape[-1:], state_dict[f"{name}.weight"], state_dict[f"{name}.bias"])


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
