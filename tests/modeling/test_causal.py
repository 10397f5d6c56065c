# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Causal attention, chunked, recurrent and by a kernel, against equation 7 as it is written."""

import math
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import causal_luna
from causal_luna import (
    CAUSAL_ACTIVATIONS,
    CHUNK_SIZE,
    KEPT_TOKENS,
    CausalState,
    causal_attention,
)
from tests.support import naive_causal
from tests.support.causal_inputs import assert_same, cut, make_inputs, random_mask

PROPERTY = settings(deadline=None, max_examples=100, print_blob=True)
# What rounding may change, relative to the largest number: results of half precision are rounded once, at the end.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2**-8, torch.float16: 2**-10}


def assert_close(actual, expected, dtype):
    difference = np.abs(actual.double().numpy() - expected).max(initial=0)
    assert difference <= TOLERANCES[dtype] * max(1.0, np.abs(expected).max(initial=0))


def assert_agrees_with_equation_7(outputs, weights, state, inputs, mask_bn, dtype):
    b, h, n, _ = inputs[0].shape
    for row in range(b):
        tokens = np.arange(n) if mask_bn is None else mask_bn[row].nonzero().flatten().numpy()
        padding = np.setdiff1d(np.arange(n), tokens)
        assert not outputs[row, :, padding].any() and not weights[row, :, padding].any()
        assert state.count[row] == len(tokens)
        for head in range(h):
            expected = naive_causal.causal_attention(*(x[row, head].double().numpy()[tokens] for x in inputs))
            assert_close(outputs[row, head][tokens], expected[0], dtype)
            assert_close(weights[row, head][tokens], expected[1], dtype)
            # The sums are float32 whatever the inputs are.
            for ours, sums in zip((state.key_slots, state.slot_values), expected[2:], strict=True):
                assert ours.dtype == torch.promote_types(dtype, torch.float32)
                assert_close(ours[row, head], sums, ours.dtype)


def attend_in_pieces(inputs, mask_bn, lengths):
    """Attention to pieces of `lengths`, one after the other, each from the state that the last left."""
    pieces, state, start = [], None, 0
    for length in lengths:
        *arguments, mask = cut((*inputs, mask_bn), start, start + length)
        output, weights, state = causal_attention(*arguments, mask, state)
        pieces.append((output, weights))
        start += length
    outputs, weights = (torch.cat(x, dim=2) for x in zip(*pieces, strict=True))
    return outputs, weights, state


def masks(b, n):
    """None, padding on the left, on the right, or anywhere, up to all of a row."""
    lengths = st.lists(st.integers(0, n), min_size=b, max_size=b).map(torch.tensor)
    right = lengths.map(lambda x: torch.arange(n) < x[:, None])
    row = st.lists(st.booleans(), min_size=n, max_size=n)
    anywhere = st.lists(row, min_size=b, max_size=b).map(torch.tensor)
    return st.one_of(st.none(), right, right.map(lambda x: x.flip(1)), anywhere)


def splits(n):
    """Lengths of pieces that a text of n tokens is fed in, among them all of one token."""
    bounds = st.lists(st.integers(1, n - 1), unique=True).map(sorted) if n > 1 else st.just([])
    return st.one_of(st.just(list(range(1, n))), bounds).map(lambda x: np.diff([0, *x, n]).tolist())


# ---------------------------------------------------------------------------------------------------------------------
# Equation 7


@PROPERTY
@given(data=st.data(), n=st.integers(1, 20), chunk_size=st.integers(1, 9), dtype=st.sampled_from(list(TOLERANCES)))
def test_chunked_and_recurrent_forms_are_equation_7(data, n, chunk_size, dtype):
    b, h, k, l = (data.draw(st.integers(1, 3), label=name) for name in "bhkl")
    mask_bn = data.draw(masks(b, n), label="mask")
    lengths = data.draw(splits(n), label="pieces")
    inputs = make_inputs(n, b, h, k, l, dtype, seed=data.draw(st.integers(0, 99), label="seed"))
    with mock.patch.object(causal_luna, "CHUNK_SIZE", chunk_size):
        whole = causal_attention(*inputs, mask_bn)
        pieces = attend_in_pieces(inputs, mask_bn, lengths)

    assert whole[0].dtype == whole[1].dtype == dtype
    assert_agrees_with_equation_7(*whole, inputs, mask_bn, dtype)
    assert_agrees_with_equation_7(*pieces, inputs, mask_bn, dtype)


@PROPERTY
@given(data=st.data(), n=st.integers(2, 3 * CHUNK_SIZE), dtype=st.sampled_from(list(TOLERANCES)))
def test_the_future_never_changes_the_past(data, n, dtype):
    """Exactly: whether other tokens follow, none, or padding."""
    t = data.draw(st.integers(1, n - 1), label="t")
    mask_bn = data.draw(st.sampled_from([None, random_mask(2, n)]), label="mask")
    state = data.draw(st.sampled_from([None, causal_attention(*make_inputs(5, 2, dtype=dtype, seed=8))[2]]))
    first, second = (make_inputs(n, 2, dtype=dtype, seed=seed) for seed in (1, 2))
    other_future = tuple(torch.cat([x[:, :, :t], y[:, :, t:]], dim=2) for x, y in zip(first, second, strict=True))

    whole, other = (causal_attention(*inputs, mask_bn, state)[:2] for inputs in (first, other_future))
    assert_same(cut(other, t), cut(whole, t))
    if t > 1 or state is None:  # a single token that goes on from a state takes the recurrent form
        *arguments, mask = cut((*first, mask_bn), t)
        assert_same(cut(whole, t), causal_attention(*arguments, mask, state)[:2])


OMEGAS = {
    "softplus": lambda x: math.log2(1 + 2**x),
    "softplus_natural": lambda x: math.log(1 + math.exp(x)),
    "elu": lambda x: x + 1 if x > 0 else math.exp(x),
}


@pytest.mark.parametrize("name", CAUSAL_ACTIVATIONS)
def test_activations(name):
    scores = torch.linspace(-9, 9, 37, dtype=torch.float64)
    expected = torch.tensor([OMEGAS[name](x) for x in scores.tolist()], dtype=torch.float64)
    torch.testing.assert_close(CAUSAL_ACTIVATIONS[name](scores), expected, rtol=1e-11, atol=0)


def test_slots_that_are_not_to_be_read_get_no_weight():
    inputs = make_inputs(CHUNK_SIZE + 3, b=2, l=5)
    is_read = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 0, 0]])
    output, weights, _ = causal_attention(*inputs, packed_attention_mask=is_read)

    *others, pack = inputs
    for row, slots in enumerate(is_read.bool()):
        expected = causal_attention(*(x[row : row + 1] for x in others), pack[row : row + 1, ..., slots])
        torch.testing.assert_close(output[row : row + 1], expected[0])
        torch.testing.assert_close(weights[row : row + 1, ..., slots], expected[1])
        assert not weights[row, ..., ~slots].any()


def test_dropout_drops_unpack_weights_and_returns_them_whole():
    n = CHUNK_SIZE + 3
    inputs = make_inputs(n)
    torch.manual_seed(5)
    output, weights, state = causal_attention(*inputs, dropout=0.4)

    torch.testing.assert_close((weights, state), causal_attention(*inputs)[1:])
    torch.manual_seed(5)
    dropped = torch.nn.functional.dropout(weights, 0.4)
    *_, value, pack = inputs
    slot_values = (pack[..., None] * value[..., None, :]).cumsum(dim=2)
    t = torch.arange(1, n + 1)[:, None]
    torch.testing.assert_close(output, (dropped[..., None, :] @ slot_values).squeeze(-2) / t)


# ---------------------------------------------------------------------------------------------------------------------
# Gradients


def parallel_attention(query, key, value, pack, mask_bn, state):
    """The same with all running sums written down, for autograd."""
    pack = pack * mask_bn[:, None, :, None]
    t = (mask_bn.cumsum(1) + state.count[:, None]).clamp(min=1)[:, None, :, None]
    key_slots = state.key_slots[:, :, None] + (key[..., None] * pack[..., None, :]).cumsum(dim=2)
    slot_values = state.slot_values[:, :, None] + (pack[..., None] * value[..., None, :]).cumsum(dim=2)
    weights = ((query[..., None, :] @ key_slots).squeeze(-2) / t).softmax(-1)
    output = (weights[..., None, :] @ slot_values).squeeze(-2) / t
    return output * mask_bn[:, None, :, None], key_slots[:, :, -1], slot_values[:, :, -1]


@pytest.mark.parametrize("chunk_size", [CHUNK_SIZE, 7])
def test_gradients_are_those_of_the_parallel_form(chunk_size):
    """Of inputs and of the state that a text goes on from, through outputs and through the last state."""
    n = 2 * CHUNK_SIZE + 5
    mask_bn = random_mask(2, n)
    start = causal_attention(*make_inputs(9, b=2, seed=3))[2]
    tensors = [x.requires_grad_() for x in (*make_inputs(n, b=2), start.key_slots, start.slot_values)]
    state = CausalState(*tensors[4:], start.count)
    expected = parallel_attention(*tensors[:4], mask_bn, state)
    probes = [torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype) for x in expected]
    with mock.patch.object(causal_luna, "CHUNK_SIZE", chunk_size):
        output, _, last = causal_attention(*tensors[:4], mask_bn, state)
        actual = output, last.key_slots, last.slot_values
        gradients = torch.autograd.grad(actual, tensors, probes)

    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, tensors, probes), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("n", [1, 5])
def test_gradcheck(n):
    mask_bn = torch.ones(1, n, dtype=torch.bool)
    mask_bn[0, n // 2] = n == 1
    start = causal_attention(*make_inputs(2, h=1, k=2, l=2, seed=3))[2]
    tensors = [x.requires_grad_() for x in (*make_inputs(n, h=1, k=2, l=2), start.key_slots, start.slot_values)]

    def attend(query, key, value, pack, key_slots, slot_values):
        state = CausalState(key_slots, slot_values, start.count)
        output, weights, last = causal_attention(query, key, value, pack, mask_bn, state)
        return output, weights, last.key_slots, last.slot_values

    with mock.patch.object(causal_luna, "CHUNK_SIZE", 2):
        assert torch.autograd.gradcheck(attend, tensors)
        assert torch.autograd.gradgradcheck(attend, tensors)


def test_gradients_of_half_precision_come_in_the_dtype_of_each_input():
    inputs = [x.requires_grad_() for x in make_inputs(CHUNK_SIZE + 1)]
    dtypes = [torch.bfloat16, torch.bfloat16, torch.bfloat16, torch.float32]
    halves = [x.detach().to(dtype).requires_grad_() for x, dtype in zip(inputs, dtypes, strict=True)]
    probe = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = torch.autograd.grad(causal_attention(*inputs)[0], inputs, probe)
    actual = torch.autograd.grad(causal_attention(*halves)[0], halves, probe.bfloat16())

    for half, gradient, exact in zip(halves, actual, expected, strict=True):
        assert gradient.dtype == half.dtype
        assert (gradient.double() - exact).abs().max() < 0.02 * exact.abs().max()


def test_padding_gets_no_gradient():
    mask_bn = torch.tensor([[0, 1, 0, 1, 1, 0]])
    inputs = [x.requires_grad_() for x in make_inputs(6)]
    output, _, state = causal_attention(*inputs, mask_bn)
    for gradient in torch.autograd.grad(output.square().sum() + state.key_slots.square().sum(), inputs):
        assert not gradient[:, :, mask_bn[0] == 0].any() and gradient[:, :, 3].any()


# ---------------------------------------------------------------------------------------------------------------------
# Numerics


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_32768_tokens_against_float64(dtype):
    """At positions all along the text, and the state at its end, chunked and with the last tokens one by one."""
    n, one_by_one = 32768, 100
    inputs = make_inputs(n, h=1, k=8, l=4, dtype=dtype)
    whole = causal_attention(*inputs)
    steps = attend_in_pieces(inputs, None, [n - one_by_one] + [1] * one_by_one)

    query, key, value, pack = (x[0, 0].double().numpy() for x in inputs)
    for t in (1, 2, CHUNK_SIZE, CHUNK_SIZE + 1, 1000, 8193, n - one_by_one + 1, n):
        expected = naive_causal.causal_attention_at(t, query, key, value, pack)
        for outputs, weights, _ in (whole, steps):
            assert_close(outputs[0, 0, t - 1], expected[0], dtype)
            assert_close(weights[0, 0, t - 1], expected[1], dtype)
    for *_, state in (whole, steps):
        assert_close(state.key_slots[0, 0], key.T @ pack, torch.float32)
        assert_close(state.slot_values[0, 0], pack.T @ value, torch.float32)


def test_sums_beyond_the_range_of_float16_do_not_overflow():
    query, key, value, pack = make_inputs(4096, dtype=torch.float16)
    key, value, pack = key.abs() + 10, value.abs() + 10, pack + 10
    output, _, state = causal_attention(query, key, value, pack)
    assert state.slot_values.min() > torch.finfo(torch.float16).max
    assert output.isfinite().all() and output.dtype == torch.float16


@pytest.mark.parametrize("n", [1, CHUNK_SIZE + 3])
def test_autocast_does_not_round_the_sums(n):
    inputs = [x.requires_grad_() for x in make_inputs(n, dtype=torch.float32)]
    state = causal_attention(*make_inputs(7, dtype=torch.float32, seed=2))[2]
    output, weights, last = causal_attention(*inputs, state=state)
    with torch.autocast("cpu", torch.bfloat16):
        cast_output, cast_weights, cast_last = causal_attention(*inputs, state=state)
        gradients = torch.autograd.grad(cast_output.square().sum(), inputs)

    assert_same((cast_output, cast_weights, *cast_last), (output, weights, *last))
    assert_same(gradients, torch.autograd.grad(output.square().sum(), inputs))


@pytest.mark.parametrize("n", [1, 2 * CHUNK_SIZE])
def test_compiles_to_one_graph(n, fresh_dynamo):
    inputs = [x.requires_grad_() for x in make_inputs(n, b=2)]
    mask_bn = torch.ones(2, n, dtype=torch.bool)
    mask_bn[1, : n // 3] = False
    state = causal_attention(*make_inputs(7, b=2, seed=2))[2]
    results = []
    for attend in (causal_attention, torch.compile(causal_attention, backend="aot_eager", fullgraph=True)):
        output, weights, last = attend(*inputs, mask_bn, state)
        results.append((output, weights, *last, *torch.autograd.grad(output.square().sum(), inputs)))
    torch.testing.assert_close(*results)


# ---------------------------------------------------------------------------------------------------------------------
# The kernel


def recurrent_gsa(q, k, v, s=None, g=None, scale=None, initial_state=None, output_final_state=False):
    """What flash-linear-attention's `chunk_gsa` computes, token by token, for a slot's log gate g at each token."""
    b, n, h, k_size = q.shape
    slots = s.shape[-1]
    key_slots, slot_values = initial_state or (q.new_zeros(b, h, k_size, slots), q.new_zeros(b, h, slots, v.shape[-1]))
    outputs = []
    for t in range(n):
        gate = g[:, t].exp()
        key_slots = key_slots * gate[..., None, :] + k[:, t, :, :, None] * s[:, t, :, None]
        slot_values = slot_values * gate[..., None] + s[:, t, :, :, None] * v[:, t, :, None]
        weights = ((q[:, t, :, None] * scale) @ key_slots).softmax(dim=-1)
        outputs.append((weights @ slot_values).squeeze(-2))
    return torch.stack(outputs, dim=1), [key_slots, slot_values] if output_final_state else None


@pytest.mark.parametrize("goes_on", [False, True])
def test_gated_slot_attention_is_causal_attention(goes_on):
    """The call, by a stand-in that computes in float64 what the kernel does; the kernel itself needs a GPU."""
    n = 20
    inputs = make_inputs(n, b=2, l=5)
    mask_bn = random_mask(2, n)
    state = causal_attention(*make_inputs(7, b=2, l=5, seed=2))[2] if goes_on else None
    output, _, last = causal_attention(*inputs, mask_bn, state)
    with (
        mock.patch.object(causal_luna, "fits_kernel", lambda query: True),
        mock.patch.object(causal_luna, "find_kernel", lambda: recurrent_gsa),
    ):
        by_kernel, weights, kernel_last = causal_attention(*inputs, mask_bn, state, output_weights=False)
    assert weights is None
    torch.testing.assert_close((by_kernel, kernel_last), (output, last), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "wanted", [{"dropout": 0.5}, {"packed_attention_mask": torch.ones(1, 3)}, {"output_weights": True}], ids=str
)
def test_what_the_kernel_cannot_do_is_done_by_sums(wanted):
    inputs = make_inputs(5)
    with (
        mock.patch.object(causal_luna, "fits_kernel", lambda query: True),
        mock.patch.object(causal_luna, "find_kernel", lambda: pytest.fail("the kernel was called")),
    ):
        torch.manual_seed(0)
        output, _, state = causal_attention(*inputs, **({"output_weights": False} | wanted))
    torch.manual_seed(0)
    expected, _, expected_state = causal_attention(*inputs, **wanted)
    assert_same((output, *state), (expected, *expected_state))


def test_the_kernel_is_for_long_rows_of_bfloat16_on_a_gpu():
    def fits(device="cuda", dtype=torch.bfloat16, n=causal_luna.KERNEL_MIN_TOKENS, kernel=recurrent_gsa):
        query = mock.Mock(device=torch.device(device), dtype=dtype, shape=(1, 2, n, 4))
        with mock.patch.object(causal_luna, "find_kernel", lambda: kernel):
            return causal_luna.fits_kernel(query)

    assert fits()
    assert not any([fits(device="cpu"), fits(dtype=torch.float32), fits(dtype=torch.float16), fits(kernel=None)])
    assert not fits(n=causal_luna.KERNEL_MIN_TOKENS - 1)
    # What a recording layer adds up again was never added up by the kernel.
    assert KEPT_TOKENS + CHUNK_SIZE < causal_luna.KERNEL_MIN_TOKENS
