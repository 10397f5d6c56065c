# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""What is the encoder's own: the equations in all parts, P and its slots, segments, dropout, backends, wrong inputs."""

from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    DataCollatorWithFlattening,
    RobertaConfig,
    RobertaModel,
)
from transformers.masking_utils import sdpa_mask

from configuration_luna import LunaConfig
from modeling_luna import LunaForMaskedLM, LunaModel, eager_attention_forward, to_bool_mask
from tests.support import naive
from tests.support.backends import BACKENDS, backend_context, emulated_flash
from tests.support.luna_builders import (
    TOLERANCE,
    assert_close,
    assert_refused_in_one_sentence,
    build,
    ids_of,
    pad_batch,
    projections,
    random_ids,
    tiny_config,
)
from tests.support.models import ALL_OPTIONS, COVERING_OPTIONS, ENCODER, each_model, each_option, option_id

TEXT = random_ids(9, seed=3)
BATCH = pad_batch([TEXT, TEXT[:3]])
NAIVE_TOLERANCE = {"learned": TOLERANCE, "sinusoidal": 5e-6}  # Luna's sinusoids are float32
CONTEXTUAL = [options for options in COVERING_OPTIONS if options["contextual_projection"]]


def naive_luna(model, ids, packed_state=None):
    return naive.luna(naive.as_weights(model.state_dict()), model.config, ids, packed_state)


# ---------------------------------------------------------------------------------------------------------------------
# Against the equations


@pytest.mark.parametrize("options", ALL_OPTIONS, ids=option_id)
def test_states_and_attentions_of_each_layer_are_those_of_the_equations(options):
    model = build(**options)
    expected = naive_luna(model, TEXT)
    # Nothing is told apart by weights that make attention uniform.
    assert max(w.max() * w.shape[2] for w in expected.attentions + expected.pack_attentions) > 2
    with torch.no_grad():
        output = model(ids_of(TEXT), output_hidden_states=True, output_packed_states=True, output_attentions=True)
    # The recorded states after the last layer are the results, after the final norms.
    expected.hidden_states[-1], expected.packed_states[-1] = expected.last_hidden_state, expected.packed_state
    tolerance = NAIVE_TOLERANCE[options["position_embedding_type"]]
    for name in ("last_hidden_state", "packed_state"):
        assert_close(output[name][0], getattr(expected, name), tolerance)
    for name in ("hidden_states", "packed_states", "attentions", "pack_attentions"):
        for actual, wanted in zip(output[name], getattr(expected, name), strict=True):
            assert_close(actual[0], wanted, tolerance)


@pytest.mark.parametrize(
    ("changes", "activation"),
    [
        ({"hidden_act": "gelu"}, naive.gelu),  # the exact form: its tanh approximation is off by up to 5e-4
        ({"hidden_act": "relu"}, lambda x: np.maximum(x, 0)),
        ({"pad_token_id": 0}, naive.gelu),
        ({"pad_token_id": 3}, naive.gelu),
        ({"num_hidden_layers": 1, "num_attention_heads": 1, "projection_length": 1}, naive.gelu),
    ],
    ids=["gelu", "relu", "padding 0", "padding 3", "smallest"],
)
def test_other_fields_are_those_of_the_equations(changes, activation, monkeypatch):
    monkeypatch.setattr(naive, "gelu", activation)
    model = build(attention="sdpa", **changes)
    assert_close(model(ids_of(TEXT)).last_hidden_state[0], naive_luna(model, TEXT).last_hidden_state, TOLERANCE)


@each_option
def test_attentions_are_zero_at_padding_and_sum_to_one(options):
    output = build(**options)(**BATCH, output_attentions=True)
    slots, tokens = (x.bool()[:, None, None] for x in (output.packed_attention_mask, BATCH["attention_mask"]))
    for weights, keys in [(a, slots) for a in output.attentions] + [(a, tokens) for a in output.pack_attentions]:
        assert weights.masked_select(~keys).count_nonzero() == 0
        assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]), TOLERANCE)


@pytest.mark.parametrize("attention", BACKENDS)
def test_every_token_sees_every_other_token(attention):
    """Nothing is causal, with a mask or without."""
    model = ENCODER.shared(attention)
    for mask in (None, torch.ones(1, 9, dtype=torch.long)):
        with backend_context(attention), torch.no_grad():
            reference = model(ids_of(TEXT), attention_mask=mask)
            for position in (0, 4, 8):
                changed = [*TEXT[:position], 44 - TEXT[position], *TEXT[position + 1 :]]
                output = model(ids_of(changed), attention_mask=mask)
                for name in ("last_hidden_state", "packed_state"):
                    assert ((output[name] - reference[name]).abs().amax(-1) > 1e-6).all()


# ---------------------------------------------------------------------------------------------------------------------
# P and its slots


@pytest.mark.parametrize(("dynamic", "slots"), [(True, [1, 4, 5, 5]), (False, [5, 5, 5, 5])])
def test_slots_in_use(dynamic, slots):
    output = build(dynamic_projection=dynamic)(**pad_batch([TEXT[:n] for n in (1, 4, 5, 9)], side="left"))
    assert output.packed_attention_mask.tolist() == [[1] * n + [0] * (5 - n) for n in slots]
    assert output.packed_state.shape == (4, 5, 16)


@pytest.mark.parametrize(("dynamic", "slots"), [(True, 3), (False, 5)])
def test_p_is_cut_to_a_short_input(dynamic, slots):
    output = build(dynamic_projection=dynamic)(ids_of(TEXT[:3]))
    assert output.packed_state.shape == (1, slots, 16)
    assert output.packed_attention_mask.tolist() == [[1] * slots]


def test_packed_mean_is_the_mean_over_the_slots_in_use():
    output = build()(**BATCH)
    expected = torch.stack([output.packed_state[0].mean(dim=0), output.packed_state[1, :3].mean(dim=0)])
    assert_close(output.packed_mean, expected, TOLERANCE)


def test_embeddings_of_padding_are_zero():
    output = build()(**BATCH, output_hidden_states=True, output_packed_states=True)
    for states in (output.hidden_states, output.packed_states):
        assert states[0][1, 3:].count_nonzero() == 0 and states[0][1, :3].count_nonzero() > 0


# ---------------------------------------------------------------------------------------------------------------------
# A text in segments


def read_in_segments(model, batches):
    """The output of each batch of segments, P handed on from one to the next."""
    outputs, state = [], {}
    for batch in batches:
        outputs.append(model(**batch, **state))
        state = {name: outputs[-1][name] for name in ("packed_state", "packed_attention_mask")}
    return outputs


@pytest.mark.parametrize("options", CONTEXTUAL, ids=option_id)
def test_segments_are_a_chain_of_the_equations(options):
    model, packed = build(attention="sdpa", **options), None
    segments = [TEXT[:6], TEXT[2:9], TEXT[:2]]
    outputs = read_in_segments(model, [{"input_ids": ids_of(segment)} for segment in segments])
    for segment, output in zip(segments, outputs, strict=True):
        expected = naive_luna(model, segment, packed)
        packed = expected.packed_state
        tolerance = NAIVE_TOLERANCE[options["position_embedding_type"]]
        assert_close(output.packed_state[0], packed, tolerance)
        assert_close(output.last_hidden_state[0], expected.last_hidden_state, tolerance)


@pytest.mark.parametrize("attention", BACKENDS)
@pytest.mark.parametrize("options", CONTEXTUAL, ids=option_id)
def test_texts_of_different_lengths_in_one_batch_equal_each_alone(options, attention):
    model = ENCODER.shared(attention, **options)
    texts = [[TEXT[:6], TEXT[3:7], TEXT], [TEXT[4:7], TEXT[:5]], [TEXT[:1], TEXT[:7], TEXT[5:]]]
    batches = [pad_batch([text[i] if i < len(text) else [] for text in texts], width=10) for i in range(3)]
    with backend_context(attention), torch.no_grad():
        together = read_in_segments(model, batches)
        for row, text in enumerate(texts):
            alone = read_in_segments(model, [{"input_ids": ids_of(segment)} for segment in text])
            for segment, batched, single in zip(text, together, alone, strict=False):
                used = single.packed_state.shape[1]
                assert batched.packed_attention_mask[row].sum() == used
                assert_close(batched.packed_state[row, :used], single.packed_state[0], TOLERANCE)
                assert_close(batched.last_hidden_state[row, : len(segment)], single.last_hidden_state[0], TOLERANCE)
            for output in together[len(text) :]:
                assert torch.equal(output.packed_state[row], together[len(text) - 1].packed_state[row])


def test_segments_leave_their_input_alone():
    model = build()
    packed = model(ids_of(TEXT)).packed_state.detach()
    before = packed.clone()
    second = model(ids_of(TEXT[:4]), packed_state=packed, output_packed_states=True)
    assert torch.equal(packed, before) and torch.equal(second.packed_states[0], packed)
    assert torch.equal(second.packed_state, model(ids_of(TEXT[:4]), packed_state=packed).packed_state)
    assert (second.last_hidden_state - model(ids_of(TEXT[:4])).last_hidden_state).abs().max() > 0.1


# ---------------------------------------------------------------------------------------------------------------------
# Wrong inputs

ONES = torch.ones(2, 4, dtype=torch.long)
PACKED = torch.zeros(2, 5, 16)
ADDITIVE = torch.tensor([[0, 0, -torch.inf, -torch.inf]] * 2)
# Inputs, what the message must name, and options of the model.
WRONG_INPUTS = {
    "neither": ({}, ("either `input_ids` or `inputs_embeds`",)),
    "both": ({"input_ids": ONES, "inputs_embeds": torch.zeros(2, 4, 16)}, ("not both",)),
    "too long": (
        {"input_ids": torch.full((1, 39), 5)},
        ("39 tokens", "`max_position_embeddings` = 40", "positions for 38", "truncate", "segments"),
    ),
    "mask of another length": ({"attention_mask": torch.ones(2, 5)}, ("`attention_mask` has shape (2, 5)", "(2, 4)")),
    "mask of another batch": ({"attention_mask": torch.ones(1, 4)}, ("`attention_mask` has shape (1, 4)", "(2, 4)")),
    "square mask": ({"attention_mask": torch.ones(2, 1, 4, 4)}, ("`attention_mask` has shape (2, 1, 4, 4)", "(2, 4)")),
    "additive mask": ({"attention_mask": ADDITIVE}, ("`attention_mask` has values below zero", "1 for tokens and 0 for")),
    "additive mask of a number": ({"attention_mask": ADDITIVE.clamp(min=-1e4)}, ("`attention_mask` has values below zero",)),
    "additive mask without padding": ({"attention_mask": torch.zeros(2, 4)}, ("or none above", "1 for tokens and 0 for")),
    "additive packed mask": (
        {"packed_state": PACKED, "packed_attention_mask": torch.full((2, 5), -torch.inf)},
        ("`packed_attention_mask` has values below zero",),
    ),
    "packed mask alone": ({"packed_attention_mask": torch.ones(2, 5)}, ("describes `packed_state`", "both or neither")),
    "packed state of another batch": (
        {"packed_state": PACKED[:1]},
        ("`packed_state` has shape (1, 5, 16)", "batch_size = 2", "hidden_size = 16"),
    ),
    "packed state of another size": (
        {"packed_state": PACKED[..., :8]},
        ("`packed_state` has shape (2, 5, 8)", "hidden_size = 16"),
    ),
    "packed state without a batch": ({"packed_state": PACKED[0]}, ("`packed_state` has shape (5, 16)", "batch_size = 2")),
    "packed mask of another length": (
        {"packed_state": PACKED, "packed_attention_mask": torch.ones(2, 4)},
        ("`packed_attention_mask` has shape (2, 4)", "(2, 5)"),
    ),
}


@pytest.mark.parametrize("model_class", [LunaModel, LunaForMaskedLM])
@pytest.mark.parametrize("case", WRONG_INPUTS)
def test_wrong_input_is_named(case, model_class):
    inputs, parts = WRONG_INPUTS[case]
    if case != "neither" and "input_ids" not in inputs:
        inputs = inputs | {"input_ids": ONES}
    model = build(model_class, dtype=torch.float32)
    assert_refused_in_one_sentence(lambda: model(**inputs), parts)


def test_packed_state_without_context_is_named():
    model = build(dtype=torch.float32, contextual_projection=False)
    assert_refused_in_one_sentence(lambda: model(ONES, packed_state=PACKED), ("`contextual_projection=False`",))


@pytest.mark.parametrize(("options", "length"), [({}, 38), ({"position_embedding_type": "sinusoidal"}, 60)])
def test_longest_input(options, length):
    assert build(**options)(torch.full((1, length), 5)).last_hidden_state.shape == (1, length, 16)


class Waits(TorchDispatchMode):
    """Counts the operations that make the host wait for the device."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("dtype", "waits"), [(torch.long, False), (torch.bool, False), (torch.float32, True)], ids=str)
def test_masks_of_integers_are_not_waited_for(dtype, waits):
    with Waits() as mode:
        to_bool_mask("attention_mask", torch.ones(2, 4, dtype=dtype))
    assert bool(mode.count) == waits


# ---------------------------------------------------------------------------------------------------------------------
# Flattened batches


def flattened(**options):
    rows = [{"input_ids": [0, *random_ids(n, n), 2]} for n in (3, 5)]
    batch = DataCollatorWithFlattening(**options)(rows)
    batch.pop("labels")
    assert batch["input_ids"].shape == (1, 12)
    return batch


FLATTENED = {
    "positions": ({}, "position_ids"),
    "positions from 2": ({"position_ids_start": 2}, "position_ids"),
    "bounds for flash attention": ({"return_flash_attn_kwargs": True}, "cu_seq_lens_q"),
    "bounds alone": ({"return_flash_attn_kwargs": True, "return_position_ids": False}, "cu_seq_lens_q"),
    "numbers of rows": ({"return_seq_idx": True}, "seq_idx"),
}


@pytest.mark.parametrize("case", FLATTENED)
@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2"])
@each_model
def test_a_flattened_batch_is_refused(row, attention, case):
    options, name = FLATTENED[case]
    model, inputs = row.shared(attention), flattened(**options)
    if row.takes_choices:
        inputs |= {key: inputs[key][None] for key in ("input_ids", "position_ids") if key in inputs}
    remedies = ("an ordinary padding collator", "DataCollatorWithFlattening", "`unpad_inputs=False`")
    with backend_context(attention):
        assert_refused_in_one_sentence(lambda: model(**inputs), (f"`{name}` says", *remedies))


def test_positions_that_do_not_restart_and_bounds_that_are_none_are_no_flattened_batch():
    for attention in ("sdpa", "flash_attention_2"):
        with backend_context(attention):
            model = ENCODER.shared(attention)
            expected = model(**BATCH).last_hidden_state
            nothing = dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"))
            assert torch.equal(model(**BATCH, **nothing).last_hidden_state, expected)
            model(ids_of(TEXT), position_ids=torch.arange(4, 13)[None])
            restarting = torch.tensor([[2, 3, 4, 2, 3, 4, 5, 6, 7]])
            model(ids_of(TEXT, TEXT), position_ids=restarting)
            model(ids_of(TEXT), attention_mask=torch.ones(1, 9), position_ids=restarting)


# ---------------------------------------------------------------------------------------------------------------------
# Dropout

PROBABILITIES = {"hidden_dropout_prob": 0.125, "attention_probs_dropout_prob": 0.25, "activation_dropout": 0.375}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", PROBABILITIES)
def test_each_dropout_acts_in_training_only(name, attention):
    torch.manual_seed(0)
    model, without = build(attention=attention, **{name: 0.5}).train(), build(attention=attention).train()
    first, second = model(**BATCH), model(**BATCH)
    assert (first.last_hidden_state - second.last_hidden_state).abs().max() > 0.1
    if name != "activation_dropout":
        assert (first.packed_state - second.packed_state).abs().max() > 0.1
    expected = without(**BATCH).last_hidden_state
    assert torch.equal(model.eval()(**BATCH).last_hidden_state, expected)
    assert torch.equal(without.eval()(**BATCH).last_hidden_state, expected)


@pytest.mark.parametrize("contextual", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
def test_dropout_sites(norm_first, contextual):
    model = build(norm_first=norm_first, contextual_projection=contextual, **PROBABILITIES).train()
    seen = []

    def dropout(x, p=0.5, training=True, inplace=False):
        assert training
        seen.append((p, tuple(x.shape)))
        return x

    with mock.patch.object(nn.functional, "dropout", dropout):
        model(ids_of(TEXT, TEXT))
    layers, x, p = 3, (2, 9, 16), (2, 5, 16)
    in_layer = [(0.25, (2, 2, 5, 9)), (0.25, (2, 2, 9, 5)), (0.125, x), (0.125, p), (0.375, (2, 9, 24)), (0.125, x)]
    assert sorted(seen) == sorted([(0.125, x)] + [(0.125, p)] * (1 if contextual else layers) + in_layer * layers)


def test_attention_dropout_of_sdpa_and_flash_acts_on_both_attentions():
    def calls(attention, mocks, inputs):
        model = build(attention=attention, attention_probs_dropout_prob=0.25)
        model.train()(**inputs)
        model.eval()(**inputs)
        return [call.kwargs["dropout_p"] for kernel in mocks for call in kernel.call_args_list]

    real = nn.functional.scaled_dot_product_attention
    kernel = mock.patch.object(nn.functional, "scaled_dot_product_attention", wraps=real)
    with kernel as sdpa, projections("plain"):
        assert calls("sdpa", [sdpa], BATCH) == [0.25] * 6 + [0.0] * 6
    for inputs in (BATCH, {"input_ids": ids_of(TEXT)}):
        with emulated_flash() as kernels:
            assert calls("flash_attention_2", kernels, inputs) == [0.25] * 6 + [0.0] * 6


def test_dropout_of_p_differs_between_the_rows_of_a_batch():
    torch.manual_seed(0)
    packed = build(hidden_dropout_prob=0.5).train()(ids_of(TEXT, TEXT), output_packed_states=True).packed_states[0]
    assert (packed[0] - packed[1]).abs().max() > 0.1


# ---------------------------------------------------------------------------------------------------------------------
# The library


def test_emulated_flash_attention_takes_the_path_without_padded_keys():
    with emulated_flash() as (dense, varlen), torch.no_grad():
        model = ENCODER.shared("flash_attention_2")
        model(**BATCH)
        assert (dense.call_count, varlen.call_count) == (0, 6)
        # Rows of at least l tokens use every slot: only the first attention has padded keys.
        model(**pad_batch([TEXT, TEXT[:6]]))
        assert (dense.call_count, varlen.call_count) == (3, 9)
        model(ids_of(TEXT))
        assert (dense.call_count, varlen.call_count) == (9, 9)


def test_attentions_without_eager_attention_behave_as_in_the_library():
    sizes = {"vocab_size": 41, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
    roberta = RobertaModel(RobertaConfig(**sizes))
    roberta.config._attn_implementation = "sdpa"
    expected = roberta(ids_of(TEXT), output_attentions=True).attentions
    output = build(attention="sdpa")(ids_of(TEXT), output_attentions=True)
    assert output.attentions == output.pack_attentions == expected


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flex_attention"])
def test_attention_implementation_can_be_chosen_at_loading_and_later(attention, tmp_path):
    build(dtype=torch.float32).save_pretrained(tmp_path)
    assert LunaModel(tiny_config()).config._attn_implementation == "sdpa"
    model = LunaModel.from_pretrained(tmp_path, attn_implementation=attention)
    assert model.config._attn_implementation == attention
    model.set_attn_implementation("eager")
    assert model.layers[0].attention.config._attn_implementation == "eager"


def test_registered_attention_is_used():
    """A user's own attention function, with the mask of an existing one."""
    calls = []

    def counting(module, query, key, value, attention_mask, **kwargs):
        calls.append(tuple(attention_mask.shape))
        mask = torch.zeros_like(attention_mask, dtype=query.dtype).masked_fill(~attention_mask, -1e9)
        return eager_attention_forward(module, query, key, value, mask, **kwargs)

    AttentionInterface.register("luna_test_counting", counting)
    AttentionMaskInterface.register("luna_test_counting", sdpa_mask)
    output = build(attention="luna_test_counting")(**BATCH)
    assert len(calls) == 6 and {shape[-2:] for shape in calls} == {(5, 9), (9, 5)}
    assert_close(output.last_hidden_state, build()(**BATCH).last_hidden_state, TOLERANCE)


def parameter_count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("tied", "total", "attention"), [(True, 131_902_041, 35_435_520), (False, 146_076_249, 49_609_728)])
def test_parameter_counts_of_the_paper(tied, total, attention):
    with torch.device("meta"):
        model = LunaForMaskedLM(LunaConfig(tie_key_value=tied))
    luna = model.luna
    norms = ("attention_layer_norm", "packed_layer_norm", "final_layer_norm")
    parts = {
        "embed_tokens": parameter_count(luna.embeddings.word_embeddings),
        "positions": parameter_count(luna.embeddings.position_embeddings),
        "packed": luna.packed_embeddings[0].weight.numel(),
        "attention": sum(parameter_count(layer.attention) for layer in luna.layers),
        "feed_forward": sum(parameter_count(layer.fc1) + parameter_count(layer.fc2) for layer in luna.layers),
        "norms": sum(parameter_count(getattr(layer, norm)) for layer in luna.layers for norm in norms),
        "embedding_norms": parameter_count(luna.embeddings.layer_norm)
        + parameter_count(luna.packed_embeddings[0].layer_norm),
        "head": parameter_count(model.lm_head) - model.lm_head.decoder.weight.numel(),
    }
    assert parts == {
        "embed_tokens": 38_603_520,
        "positions": 394_752,
        "packed": 98_304,
        "attention": attention,
        "feed_forward": 56_669_184,
        "norms": 55_296,
        "embedding_norms": 3_072,
        "head": 642_393,
    }
    assert parameter_count(model) == sum(parts.values()) == total
