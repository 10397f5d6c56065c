# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The encoder and the masked language model, judged by a naive float64 oracle, by padding, by the library's rules."""

import json
import math
from unittest import mock

import naive
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from luna_builders import (
    ALL_OPTIONS,
    BACKENDS,
    OPTION_VALUES,
    SENTENCES,
    SINGLE_OPTIONS,
    TOLERANCE,
    assert_close,
    assert_initialised,
    backend_context,
    build,
    columns_for,
    emulated_flash,
    ids_of,
    masked_lm,
    option_id,
    pad_batch,
    place,
    random_ids,
    randomise,
    tiny_config,
    train_under_ddp,
)
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    RobertaConfig,
    RobertaModel,
    Trainer,
    TrainingArguments,
    pipeline,
)

from configuration_luna import LunaConfig
from modeling_luna import LunaAttention, LunaForMaskedLM, LunaModel, LunaPackedEmbeddings

TEXT = random_ids(9, seed=3)


def labelled(batch):
    """The batch with a label at every token."""
    return batch | {"labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}


# ---------------------------------------------------------------------------------------------------------------------
# Against the equations

# Everything is float64 but Luna's sinusoids, which are float32 (1e-7 measured on these weights).
NAIVE_TOLERANCE = {"learned": TOLERANCE, "sinusoidal": 5e-6}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("options", ALL_OPTIONS, ids=option_id)
def test_model_is_the_equations(options, attention):
    model = masked_lm(attention, **options)
    weights = naive.as_weights(model.state_dict())
    encoder = naive.as_weights(model.luna.state_dict())
    tolerance = NAIVE_TOLERANCE[options["position_embedding_type"]]
    for ids in (TEXT[:3], TEXT):
        expected = naive.luna(encoder, model.config, ids)
        # Nothing is told apart by weights that make attention uniform.
        assert max(w.max() * w.shape[2] for w in expected.attentions + expected.pack_attentions) > 2
        with torch.no_grad():
            output = model.luna(ids_of(ids), output_hidden_states=True, output_packed_states=True)
            logits = model(ids_of(ids)).logits
        assert_close(output.last_hidden_state[0], expected.last_hidden_state, tolerance)
        assert_close(output.packed_state[0], expected.packed_state, tolerance)
        assert_close(logits[0], naive.masked_lm_logits(weights, model.config, ids), tolerance)
        for actual, wanted in zip(output.hidden_states[:-1], expected.hidden_states[:-1], strict=True):
            assert_close(actual[0], wanted, tolerance)
        for actual, wanted in zip(output.packed_states[:-1], expected.packed_states[:-1], strict=True):
            assert_close(actual[0], wanted, tolerance)


@pytest.mark.parametrize("options", ALL_OPTIONS, ids=option_id)
def test_attentions_are_those_of_the_equations(options):
    model = masked_lm("eager", **options).luna
    expected = naive.luna(naive.as_weights(model.state_dict()), model.config, TEXT)
    with torch.no_grad():
        output = model(ids_of(TEXT), output_attentions=True)
    tolerance = NAIVE_TOLERANCE[options["position_embedding_type"]]
    for actual, wanted in zip(output.attentions, expected.attentions, strict=True):
        assert_close(actual[0], wanted, tolerance)
    for actual, wanted in zip(output.pack_attentions, expected.pack_attentions, strict=True):
        assert_close(actual[0], wanted, tolerance)


@pytest.mark.parametrize(("hidden_act", "function"), [("gelu", None), ("relu", lambda x: np.maximum(x, 0))])
def test_activation_is_the_configured_one(hidden_act, function, monkeypatch):
    """The exact form of GELU: its tanh approximation is off by up to 5e-4 and would fail here."""
    if function is not None:
        monkeypatch.setattr(naive, "gelu", function)
    model = build(LunaForMaskedLM, attention="sdpa", hidden_act=hidden_act)
    expected = naive.masked_lm_logits(naive.as_weights(model.state_dict()), model.config, TEXT)
    assert_close(model(ids_of(TEXT)).logits[0], expected, TOLERANCE)


@pytest.mark.parametrize("pad_token_id", [0, 1, 3])
def test_positions_start_after_the_padding_id(pad_token_id):
    model = build(attention="sdpa", pad_token_id=pad_token_id)
    expected = naive.luna(naive.as_weights(model.state_dict()), model.config, TEXT)
    assert_close(model(ids_of(TEXT)).last_hidden_state[0], expected.last_hidden_state, TOLERANCE)


def test_one_layer_one_head_and_one_slot():
    model = build(attention="sdpa", num_hidden_layers=1, num_attention_heads=1, projection_length=1)
    expected = naive.luna(naive.as_weights(model.state_dict()), model.config, TEXT)
    assert_close(model(ids_of(TEXT)).last_hidden_state[0], expected.last_hidden_state, TOLERANCE)


# ---------------------------------------------------------------------------------------------------------------------
# Padding

PROPERTY = settings(deadline=None, max_examples=40, print_blob=True)


def backends_with(combinations):
    """Each backend with each combination of options; flex attention, slow on a CPU, with one option at a time."""
    few = [options for options in combinations if sum(value != OPTION_VALUES[k][0] for k, value in options.items()) < 2]
    return [(name, options) for name in BACKENDS for options in (few if name == "flex_attention" else combinations)]


@st.composite
def padded_batches(draw):
    """Rows of 0 to 9 tokens (l is 5), each padded on the right, on the left or in between, to any width."""
    lengths = draw(st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(any))
    width = max(lengths) + draw(st.integers(0, 4))
    columns = []
    for n in lengths:
        side = draw(st.sampled_from(["right", "left", "scattered"]))
        if side == "scattered":
            columns.append(sorted(draw(st.permutations(range(width)))[:n]))
        else:
            columns += columns_for([n], width, side)
    seed = draw(st.integers(0, 10**6))
    rows = [random_ids(n, seed + i) for i, n in enumerate(lengths)]
    return rows, columns, width


def check_rows_equal_rows_alone(model, rows, columns, width, tolerance):
    mask = place([[1] * len(row) for row in rows], columns, width, 0)
    inputs = {"input_ids": place(rows, columns, width, 1), "attention_mask": mask}
    labels = [[-100] + row[1:] if len(row) > 2 else row for row in rows]
    with torch.no_grad():
        output = model(**inputs, output_hidden_states=True)
        batch_loss = model(**inputs, labels=place(labels, columns, width, -100), num_items_in_batch=1).loss
    assert torch.isfinite(output.logits).all() and torch.isfinite(output.packed_state).all()

    summed_loss = torch.zeros_like(batch_loss)
    for i, row in enumerate(rows):
        used = output.packed_attention_mask[i].sum().item()
        if not row:
            assert used == (0 if model.config.dynamic_projection else model.config.projection_length)
            continue
        with torch.no_grad():
            alone = model(ids_of(row), output_hidden_states=True)
            summed_loss += model(ids_of(row), labels=ids_of(labels[i]), num_items_in_batch=1).loss
        assert alone.packed_attention_mask.all()
        assert alone.packed_state.shape[1] == used
        assert output.packed_attention_mask[i, :used].all()
        assert_close(output.packed_state[i, :used], alone.packed_state[0], tolerance)
        assert_close(output.logits[i, columns[i]], alone.logits[0], tolerance)
        for batched, single in zip(output.hidden_states, alone.hidden_states, strict=True):
            assert_close(batched[i, columns[i]], single[0], tolerance)
    # The library's loss is float32 in every dtype.
    assert_close(batch_loss, summed_loss, max(tolerance, 1e-6))


@pytest.mark.parametrize("attention", BACKENDS)
@PROPERTY
@given(batch=padded_batches(), options=st.sampled_from(ALL_OPTIONS))
def test_padding_never_changes_a_result(attention, batch, options):
    with backend_context(attention):
        check_rows_equal_rows_alone(masked_lm(attention, **options), *batch, TOLERANCE)


@pytest.mark.parametrize(("attention", "options"), backends_with(ALL_OPTIONS), ids=option_id)
def test_padding_never_changes_a_result_for_any_combination(attention, options):
    """Rows below, at and above l, one empty, on either side, in a batch that is wider than any of them."""
    rows = [random_ids(n, n) for n in (2, 5, 8, 0, 3)]
    columns = columns_for([2, 5], 11, "left") + columns_for([8, 0, 3], 11, "right")
    with backend_context(attention):
        check_rows_equal_rows_alone(masked_lm(attention, **options), rows, columns, 11, TOLERANCE)


@pytest.mark.slow
def test_padding_never_changes_a_result_with_compiled_flex_attention():
    """Flex attention compiled for the CPU: without gradients, in float32, whose rounding sets the tolerance."""
    model = masked_lm("flex_attention", torch.float32)
    rows = [random_ids(n, n) for n in (2, 8)]
    check_rows_equal_rows_alone(model, rows, columns_for([2, 8], 9, "left"), 9, 5e-5)


def test_emulated_flash_attention_takes_the_path_without_padded_keys():
    with emulated_flash() as (dense, varlen), torch.no_grad():
        model = masked_lm("flash_attention_2").luna
        layers = model.config.num_hidden_layers
        model(**pad_batch([TEXT, TEXT[:3]]))
        assert (dense.call_count, varlen.call_count) == (0, 2 * layers)
        # Rows of at least l tokens use every slot: only the first attention has padded keys.
        model(**pad_batch([TEXT, TEXT[:6]]))
        assert (dense.call_count, varlen.call_count) == (layers, 3 * layers)
        model(ids_of(TEXT))
        assert (dense.call_count, varlen.call_count) == (3 * layers, 3 * layers)


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flash_attention_2"])
@pytest.mark.parametrize("options", SINGLE_OPTIONS, ids=option_id)
def test_an_empty_row_and_padding_never_change_a_gradient(options, attention):
    model = build(LunaForMaskedLM, attention=attention, **options)

    def gradients(**batch):
        model.zero_grad()
        model(**batch, num_items_in_batch=10).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    with backend_context(attention):
        plain = gradients(input_ids=ids_of(TEXT[:3]), labels=ids_of(TEXT[:3]))
        padded = gradients(**labelled(pad_batch([TEXT[:3], []], width=7, side="left")))
    assert plain.keys() == padded.keys()
    scale = max(gradient.abs().max() for gradient in plain.values())
    for name, gradient in plain.items():
        if name == "luna.embeddings.word_embeddings.weight":
            assert (padded[name][1] - gradient[1]).abs().max() < TOLERANCE * scale
        assert (padded[name] - gradient).abs().max() < TOLERANCE * scale, name


@pytest.mark.parametrize("attention", BACKENDS)
def test_padded_columns_hold_no_information(attention):
    """What stands at a padded position, id or embedding, does not matter."""
    model = masked_lm(attention).luna
    batch = pad_batch([TEXT, TEXT[:4]])
    other = batch["input_ids"].where(batch["attention_mask"].bool(), 17)
    kept = batch["attention_mask"].bool()
    with backend_context(attention), torch.no_grad():
        expected, actual = model(**batch), model(other, attention_mask=batch["attention_mask"])
    assert torch.equal(actual.last_hidden_state[kept], expected.last_hidden_state[kept])
    assert torch.equal(actual.packed_state, expected.packed_state)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float32, torch.float64])
@pytest.mark.parametrize("attention", BACKENDS)
def test_mask_of_any_dtype(attention, dtype):
    model = masked_lm(attention).luna
    batch = pad_batch([TEXT, TEXT[:4]])
    with backend_context(attention), torch.no_grad():
        expected = model(**batch)
        actual = model(batch["input_ids"], attention_mask=batch["attention_mask"].to(dtype))
    assert torch.equal(actual.last_hidden_state, expected.last_hidden_state)
    assert torch.equal(actual.packed_attention_mask, expected.packed_attention_mask)


@pytest.mark.parametrize("attention", BACKENDS)
@pytest.mark.parametrize("options", SINGLE_OPTIONS, ids=option_id)
def test_mask_of_ones_is_no_mask(options, attention):
    model = masked_lm(attention, **options)
    ids = ids_of(TEXT[:4], TEXT[1:5])
    with backend_context(attention), torch.no_grad():
        expected, actual = model(ids), model(ids, attention_mask=torch.ones_like(ids))
    assert_close(actual.logits, expected.logits, TOLERANCE)
    assert_close(actual.packed_state, expected.packed_state, TOLERANCE)
    assert actual.packed_attention_mask.all() and expected.packed_attention_mask.all()


@pytest.mark.parametrize(("dynamic", "slots"), [(True, [1, 4, 5, 5]), (False, [5, 5, 5, 5])])
def test_slots_in_use(dynamic, slots):
    output = build(dynamic_projection=dynamic)(**pad_batch([TEXT[:n] for n in (1, 4, 5, 9)], side="left"))
    assert output.packed_attention_mask.dtype == torch.bool
    assert output.packed_attention_mask.tolist() == [[True] * n + [False] * (5 - n) for n in slots]
    assert output.packed_state.shape == (4, 5, 16)


@pytest.mark.parametrize(("dynamic", "slots"), [(True, 3), (False, 5)])
def test_p_is_cut_to_a_short_input(dynamic, slots):
    output = build(dynamic_projection=dynamic)(ids_of(TEXT[:3]))
    assert output.packed_state.shape == (1, slots, 16)
    assert output.packed_attention_mask.shape == (1, slots) and output.packed_attention_mask.all()


def test_embeddings_of_padding_are_zero():
    model = build()
    output = model(**pad_batch([TEXT, TEXT[:2]]), output_hidden_states=True, output_packed_states=True)
    assert output.hidden_states[0][1, 2:].count_nonzero() == 0
    assert output.hidden_states[0][1, :2].count_nonzero() > 0
    assert output.packed_states[0][1, 2:].count_nonzero() == 0
    assert output.packed_states[0][1, :2].count_nonzero() > 0


def test_explicit_position_ids_replace_the_count():
    model = build(attention="sdpa")
    batch = pad_batch([TEXT[:4], TEXT[:6]], side="left")
    counted = (batch["attention_mask"].cumsum(-1) * batch["attention_mask"]) + 1
    assert_close(model(**batch, position_ids=counted).last_hidden_state, model(**batch).last_hidden_state, TOLERANCE)
    shifted = model(**batch, position_ids=counted + 1).last_hidden_state
    assert (shifted - model(**batch).last_hidden_state).abs().max() > 0.1


@pytest.mark.parametrize("attention", BACKENDS)
def test_every_token_sees_every_other_token(attention):
    """Nothing is causal, with a mask or without."""
    model = masked_lm(attention).luna
    for mask in (None, torch.ones(1, 9, dtype=torch.long)):
        with backend_context(attention), torch.no_grad():
            reference = model(ids_of(TEXT), attention_mask=mask)
            for position in (0, 4, 8):
                changed = list(TEXT)
                changed[position] = 40 if TEXT[position] != 40 else 39
                output = model(ids_of(changed), attention_mask=mask)
                moved = (output.last_hidden_state - reference.last_hidden_state).abs().amax(-1)
                assert (moved > 1e-6).all()
                assert ((output.packed_state - reference.packed_state).abs().amax(-1) > 1e-6).all()


# ---------------------------------------------------------------------------------------------------------------------
# A text in segments

CONTEXTUAL = [options for options in ALL_OPTIONS if options["contextual_projection"]]


def read_in_segments(model, batches):
    """The output of each batch of segments, P handed on from one to the next."""
    outputs, state = [], {}
    for batch in batches:
        outputs.append(model(**batch, **state))
        state = {
            "packed_state": outputs[-1].packed_state,
            "packed_attention_mask": outputs[-1].packed_attention_mask,
        }
    return outputs


@pytest.mark.parametrize("options", CONTEXTUAL, ids=option_id)
def test_segments_are_a_chain_of_the_equations(options):
    model = build(attention="sdpa", **options)
    weights, packed = naive.as_weights(model.state_dict()), None
    segments = [TEXT[:6], TEXT[2:9], TEXT[:2]]
    outputs = read_in_segments(model, [{"input_ids": ids_of(segment)} for segment in segments])
    for segment, output in zip(segments, outputs, strict=True):
        expected = naive.luna(weights, model.config, segment, packed)
        packed = expected.packed_state
        assert output.packed_state.shape == (1, 5, 16)
        tolerance = NAIVE_TOLERANCE[options["position_embedding_type"]]
        assert_close(output.packed_state[0], packed, tolerance)
        assert_close(output.last_hidden_state[0], expected.last_hidden_state, tolerance)


@pytest.mark.parametrize(("attention", "options"), backends_with(CONTEXTUAL), ids=option_id)
def test_texts_of_different_lengths_in_one_batch_equal_each_alone(attention, options):
    model = masked_lm(attention, **options).luna
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


def test_segments_are_deterministic_and_leave_their_input_alone():
    model = build()
    first = model(ids_of(TEXT))
    packed = first.packed_state.detach()
    before = packed.clone()
    second = model(ids_of(TEXT[:4]), packed_state=packed)
    again = model(ids_of(TEXT[:4]), packed_state=packed)
    assert torch.equal(packed, before)
    assert torch.equal(second.packed_state, again.packed_state)
    assert torch.equal(second.last_hidden_state, again.last_hidden_state)
    assert (second.last_hidden_state - model(ids_of(TEXT[:4])).last_hidden_state).abs().max() > 0.1


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flash_attention_2"])
def test_gradient_reaches_the_tokens_of_the_first_segment(attention):
    model = build(attention=attention)
    embeds = model.get_input_embeddings()(ids_of(TEXT)).detach().requires_grad_()
    mask = torch.ones(1, 9)
    mask[0, 6:] = 0
    with backend_context(attention):
        first = model(inputs_embeds=embeds, attention_mask=mask)
        second = model(ids_of(TEXT[:4]), packed_state=first.packed_state, packed_attention_mask=first.packed_attention_mask)
    second.last_hidden_state.square().sum().backward()
    reached = embeds.grad[0].abs().amax(-1)
    assert (reached[:6] > 1e-6).all() and reached[6:].count_nonzero() == 0


def test_masked_language_model_hands_the_packed_state_on():
    model = build(LunaForMaskedLM, attention="sdpa")
    first, first_alone = model(ids_of(TEXT)), model.luna(ids_of(TEXT))
    assert torch.equal(first.packed_state, first_alone.packed_state)
    state = {"packed_state": first.packed_state, "packed_attention_mask": first.packed_attention_mask}
    second = model(ids_of(TEXT[:3]), **state)
    expected = model.lm_head(model.luna(ids_of(TEXT[:3]), **state).last_hidden_state)
    assert torch.equal(second.logits, expected)


def test_slots_outside_the_given_packed_mask_are_not_read():
    model = build(attention="sdpa")
    packed = model(ids_of(TEXT)).packed_state.detach()
    expected = model(ids_of(TEXT[:4]), packed_state=packed[:, :3]).last_hidden_state
    mask = torch.tensor([[1, 1, 1, 0, 0]])
    actual = model(ids_of(TEXT[:4]), packed_state=packed, packed_attention_mask=mask)
    assert_close(actual.last_hidden_state, expected, TOLERANCE)
    assert actual.packed_attention_mask.dtype == torch.bool
    assert actual.packed_attention_mask.tolist() == [[True, True, True, False, False]]


# ---------------------------------------------------------------------------------------------------------------------
# Outputs


@pytest.mark.parametrize("model_class", [LunaModel, LunaForMaskedLM])
@pytest.mark.parametrize("options", ALL_OPTIONS, ids=option_id)
def test_recorded_outputs(options, model_class):
    model = masked_lm("eager", **options)
    model = model.luna if model_class is LunaModel else model
    batch = pad_batch([TEXT, TEXT[:3]])
    with torch.no_grad():
        output = model(**batch, output_hidden_states=True, output_packed_states=True, output_attentions=True)
    layers, heads = model.config.num_hidden_layers, model.config.num_attention_heads
    assert [tuple(x.shape) for x in output.hidden_states] == [(2, 9, 16)] * (layers + 1)
    assert [tuple(p.shape) for p in output.packed_states] == [(2, 5, 16)] * (layers + 1)
    assert [tuple(a.shape) for a in output.attentions] == [(2, heads, 9, 5)] * layers
    assert [tuple(a.shape) for a in output.pack_attentions] == [(2, heads, 5, 9)] * layers
    slots = output.packed_attention_mask[:, None, None, :]
    tokens = batch["attention_mask"].bool()[:, None, None, :]
    for weights, keys in [(a, slots) for a in output.attentions] + [(a, tokens) for a in output.pack_attentions]:
        assert weights.masked_select(~keys).count_nonzero() == 0
        assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]), TOLERANCE)
    # Layers differ: none was recorded twice.
    for recorded in (output.hidden_states, output.packed_states, output.attentions, output.pack_attentions):
        for one, next_one in zip(recorded, recorded[1:], strict=False):
            assert (one - next_one).abs().max() > 1e-3


@pytest.mark.parametrize("options", SINGLE_OPTIONS, ids=option_id)
def test_last_recorded_states_are_the_results(options):
    output = build(**options)(**pad_batch([TEXT, TEXT[:3]]), output_hidden_states=True, output_packed_states=True)
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
    assert torch.equal(output.packed_states[-1], output.packed_state)


@pytest.mark.parametrize("model_class", [LunaModel, LunaForMaskedLM])
def test_first_recorded_packed_state_of_a_later_segment_is_the_given_one(model_class):
    model = build(model_class)
    packed = model(ids_of(TEXT)).packed_state
    output = model(ids_of(TEXT[:4]), packed_state=packed, output_packed_states=True)
    assert len(output.packed_states) == model.config.num_hidden_layers + 1
    assert torch.equal(output.packed_states[0], packed)


def test_nothing_is_recorded_unasked():
    output = build()(ids_of(TEXT))
    assert list(output) == ["last_hidden_state", "packed_state", "packed_attention_mask"]


@pytest.mark.parametrize(
    ("flag", "recorded"),
    [
        ("output_hidden_states", {"hidden_states"}),
        ("output_packed_states", {"packed_states"}),
        ("output_attentions", {"attentions", "pack_attentions"}),
    ],
)
@pytest.mark.parametrize("model_class", [LunaModel, LunaForMaskedLM])
def test_each_argument_records_its_own_outputs(model_class, flag, recorded):
    output = build(model_class)(ids_of(TEXT), **{flag: True})
    assert set(output) & {"hidden_states", "packed_states", "attentions", "pack_attentions"} == recorded


@pytest.mark.parametrize(
    ("flag", "recorded"),
    [("output_hidden_states", {"hidden_states"}), ("output_attentions", {"attentions", "pack_attentions"})],
)
@pytest.mark.parametrize("model_class", [LunaModel, LunaForMaskedLM])
def test_each_field_of_the_config_records_its_own_outputs(model_class, flag, recorded):
    model = build(model_class)
    setattr(model.config, flag, True)
    output = model(ids_of(TEXT))
    assert set(output) & {"hidden_states", "packed_states", "attentions", "pack_attentions"} == recorded


def test_argument_overrides_the_config():
    model = build()
    model.config.output_attentions = model.config.output_hidden_states = True
    output = model(ids_of(TEXT), output_attentions=False, output_hidden_states=False)
    assert list(output) == ["last_hidden_state", "packed_state", "packed_attention_mask"]


def test_attentions_without_eager_attention_behave_as_in_the_library():
    roberta = RobertaModel(
        RobertaConfig(vocab_size=41, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24)
    )
    roberta.config._attn_implementation = "sdpa"
    expected = roberta(ids_of(TEXT), output_attentions=True).attentions
    output = build(attention="sdpa")(ids_of(TEXT), output_attentions=True)
    assert output.attentions == expected
    assert output.pack_attentions == expected


def test_tuple_order():
    model = build()
    flags = {"output_hidden_states": True, "output_packed_states": True, "output_attentions": True}
    output = model(ids_of(TEXT), **flags)
    assert list(output) == [
        "last_hidden_state",
        "packed_state",
        "packed_attention_mask",
        "packed_states",
        "hidden_states",
        "attentions",
        "pack_attentions",
    ]
    values = model(ids_of(TEXT), **flags, return_dict=False)
    assert isinstance(values, tuple) and len(values) == 7
    for value, wanted in zip(values, output.values(), strict=True):
        for one, other in zip(value, wanted, strict=True) if isinstance(wanted, tuple) else [(value, wanted)]:
            assert torch.equal(one, other)


@pytest.mark.parametrize("where", ["argument", "config"])
def test_tuple_order_of_the_masked_language_model(where):
    model = build(LunaForMaskedLM)
    flags = {"output_hidden_states": True, "output_packed_states": True, "output_attentions": True}
    encoder_order = list(model.luna(ids_of(TEXT), **flags))[1:]
    assert list(model(ids_of(TEXT), **flags)) == ["logits", *encoder_order]
    arguments = {"input_ids": ids_of(TEXT), "labels": ids_of(TEXT), "output_logits": True}
    output = model(**arguments)
    assert list(output) == ["loss", "logits", "packed_state", "packed_attention_mask"]
    if where == "config":
        model.config.return_dict = False
    values = model(**arguments, **({"return_dict": False} if where == "argument" else {}))
    assert isinstance(values, tuple)
    for value, wanted in zip(values, output.values(), strict=True):
        assert torch.equal(value, wanted)


# ---------------------------------------------------------------------------------------------------------------------
# Loss


def some_labels(batch, every=2):
    """Labels at every second token."""
    columns = torch.arange(batch["input_ids"].shape[1])
    return batch["input_ids"].masked_fill((batch["attention_mask"] == 0) | (columns % every != 0), -100)


@pytest.mark.parametrize("options", SINGLE_OPTIONS + [{"tie_word_embeddings": False}], ids=option_id)
def test_loss_is_that_of_the_equations(options):
    model = build(LunaForMaskedLM, attention="sdpa", **options)
    weights = naive.as_weights(model.state_dict())
    batch = pad_batch([TEXT, TEXT[:4]])
    labels = some_labels(batch)
    total = sum(
        naive.cross_entropy(naive.masked_lm_logits(weights, model.config, row), row_labels[: len(row)].tolist())
        for row, row_labels in zip([TEXT, TEXT[:4]], labels, strict=True)
    )
    loss = model(**batch, labels=labels).loss
    # The library's loss casts logits to float32.
    assert loss.item() == pytest.approx(total / (labels != -100).sum().item(), rel=1e-6)


def test_labels_give_no_logits_unless_asked_for():
    model = build(LunaForMaskedLM)
    batch = pad_batch([TEXT, TEXT[:4]])
    labels = some_labels(batch)
    short = model(**batch, labels=labels)
    assert short.logits is None and "logits" not in short
    full = model(**batch, labels=labels, output_logits=True)
    assert torch.equal(full.logits, model(**batch).logits)
    assert_close(short.loss, full.loss, 1e-6)
    expected = nn.functional.cross_entropy(full.logits.flatten(0, 1), labels.flatten())
    assert_close(full.loss, expected, 1e-6)

    model.config.output_logits = True
    assert torch.equal(model(**batch, labels=labels).logits, full.logits)
    assert model(**batch, labels=labels, output_logits=False).logits is None


def test_only_masked_positions_are_projected():
    model = build(LunaForMaskedLM)
    batch = pad_batch([TEXT, TEXT[:4]])
    labels = some_labels(batch)
    with mock.patch.object(model.lm_head, "forward", wraps=model.lm_head.forward) as head:
        model(**batch, labels=labels)
    assert [call.args[0].shape for call in head.call_args_list] == [((labels != -100).sum(), 16)]


@pytest.mark.parametrize("output_logits", [False, True])
def test_num_items_in_batch_divides_the_sum(output_logits):
    model = build(LunaForMaskedLM)
    batch = labelled(pad_batch([TEXT, TEXT[:4]]))
    mean = model(**batch, output_logits=output_logits).loss
    for items in (26, torch.tensor(26)):
        loss = model(**batch, output_logits=output_logits, num_items_in_batch=items).loss
        assert_close(loss, mean * 13 / 26, 1e-6)


def test_losses_of_micro_batches_sum_to_the_loss_of_the_batch():
    model = build(LunaForMaskedLM, attention="sdpa")
    rows = [random_ids(n, n) for n in (9, 2, 5, 3)]
    whole = model(**labelled(pad_batch(rows)), num_items_in_batch=19).loss
    parts = [model(**labelled(pad_batch([row])), num_items_in_batch=19).loss for row in rows]
    assert_close(sum(parts), whole, 1e-6)
    assert_close(model(**labelled(pad_batch(rows))).loss, whole, 1e-6)


def test_micro_batch_without_a_masked_position():
    """Possible in a small micro-batch: its share of the loss is 0, and parameters still have a gradient for DDP."""
    model = build(LunaForMaskedLM)
    output = model(ids_of(TEXT), labels=torch.full((1, 9), -100), num_items_in_batch=7)
    assert output.loss.item() == 0
    output.loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.count_nonzero() == 0, name


class Rows(torch.utils.data.Dataset):
    """Rows of different lengths with different numbers of labels: the mean of means is not the mean."""

    def __init__(self, count):
        self.rows = []
        for i in range(count):
            ids = random_ids(3 + (5 * i) % 7, i)
            labels = [token if (j + i) % (1 + i % 4) == 0 else -100 for j, token in enumerate(ids)]
            self.rows.append({"input_ids": ids, "labels": labels})

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


def collate(rows):
    batch = pad_batch([row["input_ids"] for row in rows])
    columns = columns_for([len(row["input_ids"]) for row in rows], batch["input_ids"].shape[1])
    return batch | {"labels": place([row["labels"] for row in rows], columns, batch["input_ids"].shape[1], -100)}


def train(folder, batch_size, accumulation):
    model = build(LunaForMaskedLM, attention="sdpa", dtype=torch.float32).train()
    arguments = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        max_steps=3,
        learning_rate=0.05,
        optim="sgd",
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        seed=5,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=Rows(24), data_collator=collate)
    trainer.train()
    return [log["loss"] for log in trainer.state.log_history if "loss" in log], model


def test_trainer_gives_the_same_result_with_and_without_accumulation(tmp_path):
    losses, model = train(tmp_path / "whole", batch_size=8, accumulation=1)
    accumulated_losses, accumulated_model = train(tmp_path / "accumulated", batch_size=2, accumulation=4)
    assert len(losses) == 3 and losses[0] != losses[-1]
    # float32 sums in another order; a loss multiplied by the number of micro-batches would be off by a factor of 4.
    assert accumulated_losses == pytest.approx(losses, rel=1e-3)
    start = build(LunaForMaskedLM, dtype=torch.float32)
    moved = []
    for actual, expected, initial in zip(
        accumulated_model.parameters(), model.parameters(), start.parameters(), strict=True
    ):
        assert_close(actual, expected, 1e-5)
        moved.append((expected - initial).abs().max().item())
    assert max(moved) > 1e-2, "the tolerance above is small beside what training changed"


def test_trainer_logs_the_cross_entropy_itself(tmp_path):
    losses, _ = train(tmp_path, batch_size=24, accumulation=1)
    model = build(LunaForMaskedLM, attention="sdpa", dtype=torch.float32)
    batch = collate(Rows(24).rows)
    labels = batch.pop("labels")
    logits = model(**batch).logits
    expected = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()).item()
    # The Trainer rounds what it logs to four digits behind the point.
    assert losses[0] == pytest.approx(expected, abs=2e-4)


def test_trainer_evaluates_without_taking_packed_outputs_for_predictions(tmp_path):
    model = build(LunaForMaskedLM, attention="sdpa", dtype=torch.float32, output_logits=True)
    arguments = TrainingArguments(
        output_dir=tmp_path, per_device_eval_batch_size=4, report_to=[], disable_tqdm=True, use_cpu=True
    )
    rows = [{"input_ids": random_ids(6, i), "labels": random_ids(6, i)} for i in range(8)]
    prediction = Trainer(model=model, args=arguments, data_collator=collate).predict(rows)
    assert isinstance(prediction.predictions, np.ndarray) and prediction.predictions.shape == (8, 6, 41)
    assert np.isfinite(prediction.metrics["test_loss"])


# ---------------------------------------------------------------------------------------------------------------------
# Gradients


@pytest.mark.parametrize("arguments", [None, {"use_reentrant": False}, {"use_reentrant": True}], ids=str)
@pytest.mark.parametrize("options", SINGLE_OPTIONS, ids=option_id)
def test_gradient_checkpointing_changes_nothing(options, arguments):
    model = build(LunaForMaskedLM, attention="sdpa", **options).train()
    batch = labelled(pad_batch([TEXT, TEXT[:3]]))

    def loss_and_gradients():
        model.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    loss, gradients = loss_and_gradients()
    model.gradient_checkpointing_enable(arguments)
    assert model.is_gradient_checkpointing
    with mock.patch.object(LunaAttention, "forward", autospec=True, side_effect=LunaAttention.forward) as forward:
        checkpointed_loss, checkpointed = loss_and_gradients()
    assert forward.call_count == 2 * model.config.num_hidden_layers, "each layer is computed again for backward"
    assert checkpointed_loss == loss
    assert checkpointed.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert torch.equal(checkpointed[name], gradient), name


def both_outputs(model):
    output = model(**pad_batch([TEXT, TEXT[:3]]))
    return output.last_hidden_state.square().sum() + output.packed_state.square().sum()


def masked_lm_loss(model):
    return model(**labelled(pad_batch([TEXT, TEXT[:3]]))).loss


def frozen_parameters(model):
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def unread_parameters(model, loss):
    """The parameters that backward never reaches when none is frozen."""
    model.requires_grad_(True)
    loss(model).backward()
    return {name for name, parameter in model.named_parameters() if parameter.grad is None}


@pytest.mark.parametrize(("model_class", "loss"), [(LunaModel, both_outputs), (LunaForMaskedLM, masked_lm_loss)])
@pytest.mark.parametrize("num_hidden_layers", [1, 3])
@pytest.mark.parametrize("options", ALL_OPTIONS, ids=option_id)
def test_frozen_parameters_are_those_without_a_reader(options, num_hidden_layers, model_class, loss):
    model = build(model_class, num_hidden_layers=num_hidden_layers, **options).train()
    frozen = frozen_parameters(model)
    assert all("packed" in name and "layer_norm" in name for name in frozen)
    assert frozen == unread_parameters(model, loss)


@pytest.mark.parametrize("saved_class", [LunaModel, LunaForMaskedLM])
@pytest.mark.parametrize("loaded_class", [LunaModel, LunaForMaskedLM])
@pytest.mark.parametrize("options", SINGLE_OPTIONS + [{"norm_first": True, "contextual_projection": False}], ids=option_id)
def test_frozen_parameters_survive_loading(options, loaded_class, saved_class, tmp_path):
    build(saved_class, dtype=torch.float32, **options).save_pretrained(tmp_path)
    loaded = loaded_class.from_pretrained(tmp_path).train()
    assert frozen_parameters(loaded) == frozen_parameters(loaded_class(tiny_config(**options)))
    assert frozen_parameters(loaded) == unread_parameters(
        loaded, {LunaModel: both_outputs}.get(loaded_class, masked_lm_loss)
    )


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"contextual_projection": False}, {"norm_first": True}], ids=option_id)
def test_distributed_data_parallel_without_find_unused_parameters(options, tmp_path):
    context = torch.multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    torch.multiprocessing.spawn(train_under_ddp, (2, tmp_path / "init", options, queue), nprocs=2)
    results = sorted(queue.get() for _ in range(2))
    (_, losses, sums), (_, other_losses, other_sums) = results
    assert all(math.isfinite(loss) for loss in losses + other_losses)
    assert losses != other_losses, "each process has its own data"
    assert sums == other_sums, "and all have the same weights"


# ---------------------------------------------------------------------------------------------------------------------
# Saving, loading, initialising


@pytest.mark.parametrize("auto_class", [None, "auto"])
@pytest.mark.parametrize("model_class", [LunaModel, LunaForMaskedLM])
@pytest.mark.parametrize("options", SINGLE_OPTIONS + [{"tie_word_embeddings": False}], ids=option_id)
def test_save_and_load(options, model_class, auto_class, tmp_path):
    model = build(model_class, dtype=torch.float32, **options)
    model.save_pretrained(tmp_path)
    loader = model_class if auto_class is None else {LunaModel: AutoModel}.get(model_class, AutoModelForMaskedLM)
    loaded, info = loader.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is model_class
    assert not any(info.values()), info
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert not loaded.training
    batch = pad_batch([TEXT, TEXT[:3]])
    loaded.config._attn_implementation = "eager"
    assert torch.equal(loaded(**batch)[0], model(**batch)[0])


@pytest.mark.parametrize("tied", [True, False])
def test_tied_weights_are_saved_once(tied, tmp_path):
    model = build(LunaForMaskedLM, dtype=torch.float32, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    keys = set(load_file(tmp_path / "model.safetensors"))
    assert set(model.state_dict()) - keys == ({"lm_head.decoder.weight"} if tied else set())
    loaded = LunaForMaskedLM.from_pretrained(tmp_path)
    for one in (model, loaded):
        assert (one.lm_head.decoder.weight is one.luna.embeddings.word_embeddings.weight) == tied


def test_base_model_of_a_masked_language_model_checkpoint(tmp_path):
    model = build(LunaForMaskedLM, dtype=torch.float32)
    model.save_pretrained(tmp_path)
    base, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(base) is LunaModel
    assert not info["missing_keys"] and not info["mismatched_keys"]
    for name, value in model.luna.state_dict().items():
        assert torch.equal(base.state_dict()[name], value), name


def test_masked_language_model_of_a_base_checkpoint(tmp_path):
    model = build(dtype=torch.float32)
    model.save_pretrained(tmp_path)
    loaded, info = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert all(key.startswith("lm_head.") for key in info["missing_keys"]) and not info["unexpected_keys"]
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.luna.state_dict()[name], value), name
    assert loaded.lm_head.decoder.weight is loaded.luna.embeddings.word_embeddings.weight
    assert_initialised(loaded.lm_head.dense.weight, std=0.02)
    assert loaded.lm_head.dense.bias.count_nonzero() == 0 and loaded.lm_head.decoder.bias.count_nonzero() == 0
    assert torch.equal(loaded.lm_head.layer_norm.weight, torch.ones(16))


def check_initialisation(model, std, only=None):
    for name, module in model.named_modules():
        if only is not None and name not in only:
            continue
        if isinstance(module, nn.Embedding):
            assert module.weight[module.padding_idx].count_nonzero() == 0, name
            kept = torch.arange(module.num_embeddings) != module.padding_idx
            assert_initialised(module.weight[kept], std)
        elif isinstance(module, nn.Linear):
            if name != "lm_head.decoder":
                assert_initialised(module.weight, std)
            assert module.bias.count_nonzero() == 0, name
        elif isinstance(module, nn.LayerNorm):
            assert torch.equal(module.weight, torch.ones_like(module.weight)), name
            assert module.bias.count_nonzero() == 0, name
        elif isinstance(module, LunaPackedEmbeddings):
            assert_initialised(module.weight, std)


@pytest.mark.parametrize("std", [0.02, 0.5])
@pytest.mark.parametrize("contextual", [True, False])
def test_initialisation(contextual, std):
    torch.manual_seed(1)
    sizes = {"vocab_size": 300, "hidden_size": 64, "projection_length": 32, "max_position_embeddings": 100}
    model = LunaForMaskedLM(tiny_config(**sizes, contextual_projection=contextual, initializer_range=std))
    check_initialisation(model, std)
    packed = [module.weight for module in model.luna.packed_embeddings]
    assert len(packed) == (1 if contextual else 3)
    assert all(not torch.equal(packed[0], other) for other in packed[1:])


@pytest.mark.parametrize(
    "missing",
    [
        "packed_embeddings.0.weight",
        "packed_embeddings.2.weight",
        "packed_embeddings.1.layer_norm.weight",
        "embeddings.word_embeddings.weight",
        "embeddings.position_embeddings.weight",
        "layers.1.attention.pack_kv_proj.weight",
        "layers.2.packed_layer_norm.bias",
    ],
)
def test_what_a_checkpoint_lacks_is_initialised(missing, tmp_path):
    torch.manual_seed(2)
    model = build(dtype=torch.float32, contextual_projection=False)
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights[missing]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, info = LunaModel.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == {missing}
    for name, value in weights.items():
        assert torch.equal(loaded.state_dict()[name], value), name
    module, parameter = missing.rsplit(".", 1)
    value = getattr(loaded.get_submodule(module), parameter)
    if "layer_norm" in missing:
        assert torch.equal(value, torch.ones(16) if parameter == "weight" else torch.zeros(16))
    elif missing.startswith("embeddings."):
        assert value[1].count_nonzero() == 0
        assert_initialised(value[[i for i in range(len(value)) if i != 1]], std=0.02)
    else:
        assert_initialised(value, std=0.02)


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


# ---------------------------------------------------------------------------------------------------------------------
# Embeddings of the tokens


@pytest.mark.parametrize("options", SINGLE_OPTIONS, ids=option_id)
def test_inputs_embeds_are_input_ids(options):
    model = build(LunaForMaskedLM, **options)
    batch = pad_batch([TEXT, TEXT[:3]], side="left")
    embeds = model.get_input_embeddings()(batch["input_ids"])
    actual = model(inputs_embeds=embeds, attention_mask=batch["attention_mask"])
    expected = model(**batch)
    assert torch.equal(actual.logits, expected.logits)
    assert torch.equal(actual.packed_state, expected.packed_state)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("size", [50, 30])
def test_resize_token_embeddings(size, tied, tmp_path):
    model = build(LunaForMaskedLM, dtype=torch.float32, tie_word_embeddings=tied)
    ids = ids_of([token % 30 for token in TEXT])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        logits = model(ids).logits
    model.resize_token_embeddings(size)

    kept = min(size, 41)
    decoder, words = model.lm_head.decoder, model.luna.embeddings.word_embeddings
    assert model.config.vocab_size == words.num_embeddings == decoder.out_features == size
    assert words.weight.shape == decoder.weight.shape == (size, 16) and decoder.bias.shape == (size,)
    assert (decoder.weight is words.weight) == tied
    assert torch.equal(words.weight[:kept], before["luna.embeddings.word_embeddings.weight"][:kept])
    assert torch.equal(decoder.weight[:kept], before["lm_head.decoder.weight"][:kept])
    assert torch.equal(decoder.bias[:kept], before["lm_head.decoder.bias"][:kept])
    output = model(ids, labels=torch.full_like(ids, size - 1), output_logits=True)
    # Matrices of another width are multiplied in another order: float32 rounding.
    assert_close(output.logits[..., :kept], logits[..., :kept], 1e-5)
    expected = nn.functional.cross_entropy(output.logits.flatten(0, 1), torch.full((9,), size - 1))
    assert_close(output.loss, expected, 1e-6)
    output.loss.backward()
    assert decoder.weight.grad[size - 1].count_nonzero() > 0

    model.save_pretrained(tmp_path)
    loaded = LunaForMaskedLM.from_pretrained(tmp_path)
    assert torch.equal(loaded.lm_head.decoder.weight, decoder.weight)
    assert torch.equal(loaded.lm_head.decoder.bias, decoder.bias)


def test_untied_decoder_has_its_own_weights():
    model = build(LunaForMaskedLM, tie_word_embeddings=False)
    assert (model.lm_head.decoder.weight - model.luna.embeddings.word_embeddings.weight).abs().max() > 0.1
    expected = naive.masked_lm_logits(naive.as_weights(model.state_dict()), model.config, TEXT)
    assert_close(model(ids_of(TEXT)).logits[0], expected, TOLERANCE)


def test_set_input_and_output_embeddings():
    model = build(LunaForMaskedLM, tie_word_embeddings=False)
    words, decoder = nn.Embedding(41, 16), nn.Linear(16, 41)
    model.set_input_embeddings(words)
    model.set_output_embeddings(decoder)
    assert model.get_input_embeddings() is words and model.luna.embeddings.word_embeddings is words
    assert model.get_output_embeddings() is decoder and model.lm_head.decoder is decoder


# ---------------------------------------------------------------------------------------------------------------------
# Precision

# Relative to the norm of the result, after three layers at unit scale: measured 0.009 with the 8 bits of bfloat16 and
# 0.0013 with the 11 of float16; three times that for other machines' order of summation.
HALF_PRECISION = [(torch.bfloat16, 0.03), (torch.float16, 0.004)]


def relative_error(actual, expected):
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


@pytest.mark.parametrize(("dtype", "tolerance"), HALF_PRECISION)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("options", SINGLE_OPTIONS, ids=option_id)
def test_half_precision_is_near_float32(options, attention, dtype, tolerance):
    batch = pad_batch([TEXT, TEXT[:3], []])
    kept = batch["attention_mask"].bool()
    with torch.no_grad():
        expected = masked_lm(attention, torch.float32, **options)(**batch)
        output = masked_lm(attention, dtype, **options)(**batch)
    assert output.logits.dtype == output.packed_state.dtype == dtype
    assert torch.isfinite(output.logits).all() and torch.isfinite(output.packed_state).all()
    slots = output.packed_attention_mask
    assert relative_error(output.logits[kept], expected.logits[kept]) < tolerance
    assert relative_error(output.packed_state[slots], expected.packed_state[slots]) < tolerance


@pytest.mark.parametrize("options", SINGLE_OPTIONS, ids=option_id)
def test_autocast_trains_near_float32(options):
    model = build(LunaForMaskedLM, attention="sdpa", dtype=torch.float32, **options).train()
    batch = labelled(pad_batch([TEXT, TEXT[:3], []]))
    expected = model(**batch).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**batch).loss
    loss.backward()
    assert loss.dtype == torch.float32
    # Measured 8e-4: the products are rounded to 8 bits, and their errors average out over the positions.
    assert loss.item() == pytest.approx(expected.item(), rel=5e-3)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.dtype == torch.float32 and torch.isfinite(parameter.grad).all(), name


def test_load_in_bfloat16(tmp_path):
    build(LunaForMaskedLM, dtype=torch.float32).save_pretrained(tmp_path)
    model = LunaForMaskedLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model(ids_of(TEXT)).logits.dtype == torch.bfloat16


# ---------------------------------------------------------------------------------------------------------------------
# Compilation


@pytest.fixture
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compile_inputs(masked):
    """Inputs of different batch sizes and lengths, below and above l."""
    rows = [[TEXT[:8], TEXT[:6]], [TEXT, TEXT[:2], TEXT[:5]], [TEXT[:3], TEXT[:2]]]
    batches = [pad_batch(row) for row in rows]
    return batches if masked else [{"input_ids": batch["input_ids"]} for batch in batches]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(
    ("attention", "options"),
    [("sdpa", {})]
    + [
        pytest.param(attention, options, marks=pytest.mark.slow)
        for attention, options in [("eager", {})] + [("sdpa", options) for options in SINGLE_OPTIONS[1:]]
    ],
    ids=option_id,
)
def test_compiles_to_one_graph(attention, options, masked, fresh_dynamo):
    model = masked_lm(attention, **options).luna
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        for batch in compile_inputs(masked):
            expected, actual = model(**batch), compiled(**batch)
            assert_close(actual.last_hidden_state, expected.last_hidden_state, TOLERANCE)
            assert_close(actual.packed_state, expected.packed_state, TOLERANCE)


@pytest.mark.filterwarnings("ignore")
def test_graph_breaks(fresh_dynamo):
    model = masked_lm("sdpa").luna
    for masked in (True, False):
        explanation = torch._dynamo.explain(model)(**compile_inputs(masked)[0])
        assert explanation.graph_break_count == 0, explanation.break_reasons
        assert explanation.graph_count == 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_training_step(backend, fresh_dynamo):
    """Forward and backward of the encoder with lengths that change."""
    model = build(attention="sdpa")
    compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=True)
    for batch in compile_inputs(masked=True)[:2]:
        gradients = []
        for one in (model, compiled):
            model.zero_grad()
            output = one(**batch)
            kept = batch["attention_mask"].bool()
            (output.last_hidden_state[kept].square().sum() + output.packed_state.square().sum()).backward()
            gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        assert gradients[0].keys() == gradients[1].keys()
        scale = max(gradient.abs().max() for gradient in gradients[0].values())
        for name, gradient in gradients[0].items():
            assert (gradients[1][name] - gradient).abs().max() < TOLERANCE * scale, name


# ---------------------------------------------------------------------------------------------------------------------
# Pipelines


def test_fill_mask_pipeline(tokenizer, tmp_path):
    model = build(LunaForMaskedLM, dtype=torch.float32, vocab_size=len(tokenizer), max_position_embeddings=66)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    fill = pipeline("fill-mask", model=str(tmp_path), device="cpu")
    assert type(fill.model) is LunaForMaskedLM
    texts = ["The <mask> goes around the earth.", "Luna packs a long <mask> into a short one and unpacks it again."]
    for text, answers in zip(texts, fill(texts, top_k=3, batch_size=2), strict=True):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        position = (ids[0] == tokenizer.mask_token_id).nonzero().item()
        expected = model(ids).logits[0, position].softmax(-1).topk(3)
        assert [answer["token"] for answer in answers] == expected.indices.tolist()
        # float32, in a padded batch and alone
        assert [answer["score"] for answer in answers] == pytest.approx(expected.values.tolist(), rel=1e-4)


def test_feature_extraction_pipeline(tokenizer, tmp_path):
    model = build(dtype=torch.float32, vocab_size=len(tokenizer), max_position_embeddings=66)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    extract = pipeline("feature-extraction", model=str(tmp_path), device="cpu")
    for text, features in zip(SENTENCES, extract(SENTENCES, batch_size=1), strict=True):
        expected = model(tokenizer(text, return_tensors="pt")["input_ids"]).last_hidden_state
        assert_close(torch.tensor(features), expected, 1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# Wrong inputs

ONES = torch.ones(2, 4, dtype=torch.long)
PACKED = torch.zeros(2, 5, 16)
WRONG_INPUTS = {
    "neither": ({}, {}, ("either `input_ids` or `inputs_embeds`",)),
    "both": ({}, {"input_ids": ONES, "inputs_embeds": torch.zeros(2, 4, 16)}, ("not both",)),
    "too long": (
        {},
        {"input_ids": torch.full((1, 39), 5)},
        ("39 tokens", "`max_position_embeddings` = 40", "positions for 38", "truncate", "segments"),
    ),
    "mask of another length": (
        {},
        {"input_ids": ONES, "attention_mask": torch.ones(2, 5)},
        ("`attention_mask` has shape (2, 5)", "(2, 4)"),
    ),
    "mask of another batch": (
        {},
        {"input_ids": ONES, "attention_mask": torch.ones(1, 4)},
        ("`attention_mask` has shape (1, 4)", "(2, 4)"),
    ),
    "square mask": (
        {},
        {"input_ids": ONES, "attention_mask": torch.ones(2, 1, 4, 4)},
        ("`attention_mask` has shape (2, 1, 4, 4)", "(2, 4)"),
    ),
    "packed mask alone": (
        {},
        {"input_ids": ONES, "packed_attention_mask": torch.ones(2, 5)},
        ("`packed_attention_mask` describes `packed_state`", "both or neither"),
    ),
    "packed state without context": (
        {"contextual_projection": False},
        {"input_ids": ONES, "packed_state": PACKED},
        ("`contextual_projection=False`",),
    ),
    "packed state of another batch": (
        {},
        {"input_ids": ONES, "packed_state": PACKED[:1]},
        ("`packed_state` has shape (1, 5, 16)", "batch_size = 2", "hidden_size = 16"),
    ),
    "packed state of another size": (
        {},
        {"input_ids": ONES, "packed_state": PACKED[..., :8]},
        ("`packed_state` has shape (2, 5, 8)", "hidden_size = 16"),
    ),
    "packed state without a batch": (
        {},
        {"input_ids": ONES, "packed_state": PACKED[0]},
        ("`packed_state` has shape (5, 16)", "batch_size = 2"),
    ),
    "packed mask of another length": (
        {},
        {"input_ids": ONES, "packed_state": PACKED, "packed_attention_mask": torch.ones(2, 4)},
        ("`packed_attention_mask` has shape (2, 4)", "(2, 5)"),
    ),
}


@pytest.mark.parametrize("model_class", [LunaModel, LunaForMaskedLM])
@pytest.mark.parametrize("case", WRONG_INPUTS)
def test_wrong_input_is_named(case, model_class):
    options, inputs, parts = WRONG_INPUTS[case]
    with pytest.raises(ValueError) as caught:
        build(model_class, dtype=torch.float32, **options)(**inputs)
    for part in parts:
        assert part in str(caught.value)


def test_labels_of_another_shape_are_named():
    with pytest.raises(ValueError, match=r"`labels` has shape \(2, 3\), but must be .* \(2, 4\)"):
        build(LunaForMaskedLM)(ONES, labels=ONES[:, :3])


@pytest.mark.parametrize(("options", "length"), [({}, 38), ({"position_embedding_type": "sinusoidal"}, 60)])
def test_longest_input(options, length):
    assert build(**options)(torch.full((1, length), 5)).last_hidden_state.shape == (1, length, 16)


# ---------------------------------------------------------------------------------------------------------------------
# Dropout


def dropout_model(attention="eager", **probabilities):
    return build(LunaForMaskedLM, attention=attention, **probabilities).train()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["hidden_dropout_prob", "attention_probs_dropout_prob", "activation_dropout"])
def test_each_dropout_acts_in_training_only(name, attention):
    torch.manual_seed(0)
    model = dropout_model(attention, **{name: 0.5})
    batch = pad_batch([TEXT, TEXT[:3]])
    first, second = model(**batch), model(**batch)
    assert (first.logits - second.logits).abs().max() > 0.1
    if name != "activation_dropout":
        assert (first.packed_state - second.packed_state).abs().max() > 0.1
    without = dropout_model(attention)
    expected = without(**batch).logits
    assert torch.equal(model.eval()(**batch).logits, expected)
    assert torch.equal(without.eval()(**batch).logits, expected)


@pytest.mark.parametrize("contextual", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
def test_dropout_sites(norm_first, contextual):
    probabilities = {
        "hidden_dropout_prob": 0.125,
        "attention_probs_dropout_prob": 0.25,
        "activation_dropout": 0.375,
    }
    model = dropout_model(norm_first=norm_first, contextual_projection=contextual, **probabilities)
    seen = []

    def dropout(x, p=0.5, training=True, inplace=False):
        assert training
        seen.append((p, tuple(x.shape)))
        return x

    with mock.patch.object(nn.functional, "dropout", dropout):
        model(ids_of(TEXT, TEXT))
    layers, x, p = 3, (2, 9, 16), (2, 5, 16)
    expected = [(0.125, x), (0.125, p) if contextual else None]
    expected += [] if contextual else [(0.125, p)] * layers
    expected += [
        (0.25, (2, 2, 5, 9)),
        (0.25, (2, 2, 9, 5)),
        (0.125, x),
        (0.125, p),
        (0.375, (2, 9, 24)),
        (0.125, x),
    ] * 3
    assert sorted(seen) == sorted(site for site in expected if site)


def test_attention_dropout_of_sdpa_and_flash_acts_on_both_attentions():
    batch = pad_batch([TEXT, TEXT[:3]])
    with mock.patch.object(
        nn.functional, "scaled_dot_product_attention", wraps=nn.functional.scaled_dot_product_attention
    ) as sdpa:
        model = dropout_model("sdpa", attention_probs_dropout_prob=0.25)
        model(**batch)
        model.eval()(**batch)
    assert [call.kwargs["dropout_p"] for call in sdpa.call_args_list] == [0.25] * 6 + [0.0] * 6
    with emulated_flash() as (dense, varlen):
        model = dropout_model("flash_attention_2", attention_probs_dropout_prob=0.25)
        for inputs in (batch, {"input_ids": ids_of(TEXT)}):
            model.train()(**inputs)
            model.eval()(**inputs)
    for kernel in (dense, varlen):
        assert [call.kwargs["dropout_p"] for call in kernel.call_args_list] == [0.25] * 6 + [0.0] * 6


def test_dropout_of_p_differs_between_the_rows_of_a_batch():
    torch.manual_seed(0)
    model = dropout_model(hidden_dropout_prob=0.5)
    packed = model(ids_of(TEXT, TEXT), output_packed_states=True).packed_states[0]
    assert (packed[0] - packed[1]).abs().max() > 0.1


# ---------------------------------------------------------------------------------------------------------------------
# The library


def test_every_backend_is_declared():
    assert LunaModel._supports_sdpa and LunaModel._supports_flash_attn and LunaModel._supports_flex_attn
    assert LunaModel(tiny_config()).config._attn_implementation == "sdpa"


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flex_attention"])
def test_attention_implementation_can_be_chosen_at_loading_and_later(attention, tmp_path):
    build(dtype=torch.float32).save_pretrained(tmp_path)
    model = LunaModel.from_pretrained(tmp_path, attn_implementation=attention)
    assert model.config._attn_implementation == attention
    model.set_attn_implementation("eager")
    assert model.layers[0].attention.config._attn_implementation == "eager"


def test_attention_implementation_is_not_saved(tmp_path):
    build(dtype=torch.float32, attention="eager").save_pretrained(tmp_path)
    assert not any("attn_implementation" in key for key in json.loads((tmp_path / "config.json").read_text()))


def test_registered_attention_is_used():
    """A user's own attention function, with the mask of an existing one."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    from modeling_luna import eager_attention_forward

    calls = []

    def counting(module, query, key, value, attention_mask, **kwargs):
        calls.append(None if attention_mask is None else tuple(attention_mask.shape))
        mask = None
        if attention_mask is not None:
            mask = torch.zeros_like(attention_mask, dtype=query.dtype).masked_fill(~attention_mask, -1e9)
        return eager_attention_forward(module, query, key, value, mask, **kwargs)

    AttentionInterface.register("luna_test_counting", counting)
    AttentionMaskInterface.register("luna_test_counting", sdpa_mask)
    model = build(attention="luna_test_counting")
    batch = pad_batch([TEXT, TEXT[:3]])
    output = model(**batch)
    assert len(calls) == 2 * model.config.num_hidden_layers
    assert {shape[-2:] for shape in calls} == {(5, 9), (9, 5)}
    assert_close(output.last_hidden_state, build()(**batch).last_hidden_state, TOLERANCE)


def test_randomised_weights_are_not_nearly_linear():
    """The guard of this file: at unit scale, padding that is read shows."""
    model = build(attention="sdpa")
    batch = pad_batch([TEXT, TEXT[:3]])
    read, ignored = model(batch["input_ids"]), model(**batch)
    assert (read.last_hidden_state[1, :3] - ignored.last_hidden_state[1, :3]).abs().max() > 0.1
    assert randomise(LunaModel(tiny_config())).packed_embeddings[0].weight.std() > 0.5
