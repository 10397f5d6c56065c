# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""What a layer of the causal cache remembers, takes back and refuses."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.cache_utils import Cache, EncoderDecoderCache

from causal_luna import CHUNK_SIZE, KEPT_TOKENS, LunaCausalCacheLayer, causal_attention
from tests.support.causal_inputs import assert_same, cut, make_inputs, random_mask

PROPERTY = settings(deadline=None, max_examples=100, print_blob=True)


def read(layer, inputs, mask_bn, lengths, start=0):
    """Let a layer attend to pieces of `lengths` from token `start` on."""
    outputs = []
    with torch.no_grad():
        for length in lengths:
            *arguments, mask = cut((*inputs, mask_bn), start, start + length)
            outputs.append(layer.attend(*arguments, mask)[0])
            start += length
    return torch.cat(outputs, dim=2)


def recording_layer():
    layer = LunaCausalCacheLayer()
    layer.activate_past_recording()
    return layer


def without_last(lengths, n):
    """The pieces that are left when the last n tokens had never come."""
    lengths = list(lengths)
    while n > 0:
        last = lengths.pop()
        if last > n:
            lengths.append(last - n)
        n -= last
    return lengths


PIECE = st.one_of(st.just(1), st.integers(1, 12), st.integers(1, 2 * KEPT_TOKENS + 5 * CHUNK_SIZE))
PIECES = st.lists(PIECE, min_size=1, max_size=12)


@PROPERTY
@given(data=st.data(), lengths=PIECES, dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_crop_is_never_having_read(data, lengths, dtype):
    """To the bit, and so is all that follows; a second crop goes on from there."""
    n = sum(lengths) + 10
    inputs = make_inputs(n, b=2, dtype=dtype)
    mask_bn = data.draw(st.sampled_from([None, random_mask(2, n)]), label="mask")
    cropped, never_read = recording_layer(), recording_layer()
    read(cropped, inputs, mask_bn, lengths)
    for _ in range(2):
        removed = data.draw(st.integers(0, min(KEPT_TOKENS // 2, sum(lengths))), label="removed")
        cropped.crop(-removed)
        lengths = without_last(lengths, removed)
    kept = sum(lengths)
    if kept:
        read(never_read, inputs, mask_bn, lengths)
        assert_same(cropped.state, never_read.state)
    assert (cropped.state is None) == (kept == 0)
    assert cropped.get_seq_length() == kept

    following = data.draw(st.sampled_from([[1, 1, 1], [3], [1, 9]]), label="following")
    outputs, expected = (read(layer, inputs, mask_bn, following, kept) for layer in (cropped, never_read))
    assert torch.equal(outputs, expected)
    assert_same(cropped.state, never_read.state)


@PROPERTY
@given(lengths=PIECES)
def test_recording_changes_no_result_and_keeps_a_bounded_number_of_tokens(lengths):
    inputs = make_inputs(sum(lengths), dtype=torch.float32)
    recording, plain = recording_layer(), LunaCausalCacheLayer()
    assert torch.equal(read(recording, inputs, None, lengths), read(plain, inputs, None, lengths))
    assert_same(recording.state, plain.state)
    recorded = sum(span.num_tokens for span in recording.spans)
    assert min(KEPT_TOKENS, sum(lengths)) <= recorded <= 4 * KEPT_TOKENS + 2 * CHUNK_SIZE
    assert not plain.spans


def test_a_long_prompt_leaves_no_storage_behind():
    layer = recording_layer()
    layer.attend(*make_inputs(4096))
    blocks = [block for span in layer.spans for block in span.blocks]
    assert blocks
    assert all(x.untyped_storage().nbytes() == x.nbytes for block in blocks for x in block)


def test_attending_through_a_layer_is_causal_attention():
    n = 3 * KEPT_TOKENS
    inputs = make_inputs(n, b=2, dtype=torch.float32)
    mask_bn, is_read = random_mask(2, n), torch.tensor([[1, 1, 1], [1, 1, 0]])
    for layer in (LunaCausalCacheLayer(), recording_layer()):
        attended = layer.attend(*inputs, mask_bn, packed_attention_mask=is_read)
        *expected, state = causal_attention(*inputs, mask_bn, packed_attention_mask=is_read)
        assert_same((*attended, *layer.state), (*expected, *state))
        assert layer.attend(*inputs, output_weights=False)[1] is None


def test_update_reads_without_attending():
    n = CHUNK_SIZE + 5
    query, key, value, pack = make_inputs(n, b=2)
    cache = Cache(layers=[LunaCausalCacheLayer()])
    cache.update(key, value, 0, pack, random_mask(2, n))
    expected = causal_attention(query, key, value, pack, random_mask(2, n))[2]
    assert_same(cache.layers[0].state, expected)
    assert cache.get_seq_length() == n


CROPS = {
    "more than there is": (
        -6,
        "`tokens_to_remove` is -6, but this cache can take back the last 5 of 5 tokens: take back at most 128 at once.",
    ),
    "a length": (3, "`tokens_to_remove` is 3, but must be 0 or below: -3 takes back the last 3 tokens."),
}


@pytest.mark.parametrize("case", CROPS)
def test_a_crop_that_cannot_be_is_refused(case):
    tokens_to_remove, message = CROPS[case]
    layer = recording_layer()
    read(layer, make_inputs(5), None, [5])
    state = layer.state
    with pytest.raises(ValueError, match=message):
        layer.crop(tokens_to_remove)
    assert layer.state is state and layer.get_seq_length() == 5


def test_without_recording_nothing_can_be_taken_back():
    layer = LunaCausalCacheLayer()
    read(layer, make_inputs(5), None, [5])
    layer.crop(0)
    with pytest.raises(ValueError, match=r"the last 0 of 5 tokens: call `activate_past_recording\(\)` before it reads them"):
        layer.crop(-1)


CHANGES = {
    "reorder_cache": (torch.tensor([2, 0, 0]), torch.tensor([2, 0, 0])),
    "batch_select_indices": (torch.tensor([1]), torch.tensor([1])),
    "batch_repeat_interleave": (2, torch.tensor([0, 0, 1, 1, 2, 2])),
}


@pytest.mark.parametrize("name", CHANGES)
def test_rows_of_a_cache_change_as_rows_of_the_text_do(name):
    argument, rows = CHANGES[name]
    lengths = [KEPT_TOKENS, 30, 1, 1]
    n = sum(lengths) + 20
    inputs, mask_bn = make_inputs(n, b=3, dtype=torch.float32), random_mask(3, n)
    changed, expected = recording_layer(), recording_layer()
    cache = Cache(layers=[changed])
    getattr(cache, name)(argument)  # before anything was read
    read(changed, inputs, mask_bn, lengths)
    getattr(cache, name)(argument)
    inputs, mask_bn = [x[rows] for x in inputs], mask_bn[rows]
    read(expected, inputs, mask_bn, lengths)
    for removed in (0, 5, 9, 60):
        outputs = []
        for layer in (changed, expected):
            layer.crop(-removed)
            outputs.append(read(layer, inputs, mask_bn, [4, 1], start=layer.get_seq_length()))
        torch.testing.assert_close(*outputs)
        torch.testing.assert_close(changed.state, expected.state)


def test_a_cache_of_such_layers_does_what_the_library_asks_of_it():
    inputs = make_inputs(12)
    layers = [LunaCausalCacheLayer(), LunaCausalCacheLayer()]
    cache = EncoderDecoderCache(Cache(layers=layers), Cache(layers=[LunaCausalCacheLayer()]))
    assert cache.get_seq_length() == 0 and cache.get_mask_sizes(3, 0) == (3, 0)
    cache.activate_past_recording()
    first = [read(layer, inputs, None, [12]) for layer in layers]
    assert cache.get_seq_length() == 12 and cache.get_mask_sizes(3, 0) == (15, 0) and cache.get_max_length() == -1
    assert cache.is_croppable and not cache.is_compileable
    cache.self_attention_cache.crop(-2)
    assert cache.get_seq_length(1) == 10 and layers[0].state.count.tolist() == [10]
    for layer in layers:
        layer.offload()
        layer.prefetch()
        assert layer.state.count.tolist() == [10]
    cache.reset()
    assert cache.get_seq_length() == 0
    assert_same([read(layer, inputs, None, [12]) for layer in layers], first)


@pytest.mark.parametrize("make_layer", [LunaCausalCacheLayer, recording_layer])
def test_a_layer_is_of_one_size_however_much_it_has_read(make_layer):
    """What it holds after 3,000 tokens, one by one, is at most what it holds after a multiple of what it keeps."""
    layer, inputs, start, sizes = make_layer(), make_inputs(3000, dtype=torch.float32), 0, []
    for length in (2 * KEPT_TOKENS - 1, 3000 - 2 * KEPT_TOKENS + 1):
        read(layer, inputs, None, [1] * length, start)
        start += length
        recorded = [x for span in layer.spans for block in span.blocks for x in block]
        states = [x for span in layer.spans for x in span.state or ()]
        sizes.append(sum(x.nbytes for x in (*layer.state, *recorded, *states)))
    before, after = sizes
    assert after <= before + sum(x.nbytes for x in layer.state)
