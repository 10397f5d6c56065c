# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""What the encoder need not compute: projections absorbed by the packed side, and tokens that no head reads."""

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import modeling_luna
from modeling_luna import LunaAttention, multiply_adds
from tests.support import naive
from tests.support.backends import BACKENDS, backend_context
from tests.support.luna_builders import (
    TOLERANCE,
    assert_close,
    build,
    ids_of,
    pad_batch,
    projections,
    random_ids,
    randomise,
    tiny_config,
)
from tests.support.models import ALL_OPTIONS, ENCODER, MASKED_LM, each_head, each_model, each_option, option_id

TEXT = random_ids(9, seed=3)
BATCH = pad_batch([TEXT, TEXT[:3], []])
FORMS = ("plain", "absorbed")
PROPERTY = settings(deadline=None, max_examples=40, print_blob=True)


def attention_of(attention="sdpa", dtype=torch.float64, **changes):
    config = tiny_config(**changes)
    config._attn_implementation = attention
    return randomise(LunaAttention(config)).to(dtype)


def outputs_and_gradients(module, arguments, states):
    """Results on copies of `states`, and the gradients of a function of all results: of the states and the parameters."""
    states = [state.detach().clone().requires_grad_() for state in states]
    outputs = [output for output in module(*states, *arguments) if output is not None]
    module.zero_grad()
    sum((output.double() * weights_like(output)).sum() for output in outputs).backward()
    return outputs, [x.grad for x in (*states, *module.parameters())]


def weights_like(x):
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(x.ndim), dtype=torch.float64)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---------------------------------------------------------------------------------------------------------------------
# Absorbed is plain


@pytest.mark.parametrize("n", [3, 9])
@pytest.mark.parametrize("options", ALL_OPTIONS, ids=option_id)
def test_absorbed_projections_give_the_states_of_the_equations(options, n):
    model = build(attention="sdpa", **options)
    expected = naive.luna(naive.as_weights(model.state_dict()), model.config, TEXT[:n])
    with torch.no_grad(), projections("absorbed"), mock.patch.object(LunaAttention, "attend") as attend:
        output = model(ids_of(TEXT[:n]))
    assert not attend.called
    tolerance = TOLERANCE if model.config.position_embedding_type == "learned" else 5e-6  # Luna's sinusoids are float32
    assert_close(output.last_hidden_state[0], expected.last_hidden_state, tolerance)
    assert_close(output.packed_state[0], expected.packed_state, tolerance)


@PROPERTY
@given(
    b=st.integers(1, 3),
    n=st.integers(1, 9),
    l=st.integers(1, 6),
    heads=st.sampled_from([1, 2, 4, 16]),
    tied=st.booleans(),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_absorbed_is_plain_with_its_gradients(b, n, l, heads, tied, seed, data):
    """Also of rows of which all tokens, or all slots, are padding."""
    attention = attention_of(num_attention_heads=heads, tie_key_value=tied)
    rows = st.lists(st.booleans(), min_size=1, max_size=9)

    def mask(queries, keys):
        if data.draw(st.booleans()):
            return None
        kept = [data.draw(rows) for _ in range(b)]
        return torch.tensor([(row * keys)[:keys] for row in kept])[:, None, None].expand(-1, 1, queries, -1)

    found, arguments = {}, (mask(l, n), mask(n, l))
    for form in FORMS:
        with projections(form):
            found[form] = outputs_and_gradients(
                attention, arguments, (normal(b, n, 16, seed=seed), normal(b, l, 16, seed=1))
            )
    for expected, actual in zip(*found.values(), strict=True):
        for one, other in zip(expected, actual, strict=True):
            assert_close(other, one, TOLERANCE)


@pytest.mark.parametrize("side", ["right", "left"])
@each_option
@each_model
def test_a_model_with_absorbed_projections_trains_as_with_plain_ones(row, options, side):
    """Loss and gradients of whole models, with padding, and with gradient checkpointing in both its forms."""
    model, batch, found = row.build(attention="sdpa", **options).train(), pad_batch([TEXT, TEXT[:3]], side=side), []
    for form, checkpointing in (("plain", None), ("absorbed", None), ("absorbed", True), ("absorbed", False)):
        if checkpointing is not None:
            model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
        model.zero_grad()
        with projections(form):
            loss = row.loss(model, batch)
            loss.backward()
        found.append([loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())])
    scale = max(gradient.abs().max() for gradient in found[0])
    for other in found[1:]:
        for expected, actual in zip(found[0], other, strict=True):
            assert (actual - expected).abs().max() <= 1e-6 * scale  # the library's losses are float32


# Half precision against float64: how much further than the plain form the absorbed one may be off.
NOISE = 2.0


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, "autocast"], ids=str)
def test_absorbed_is_as_near_to_the_truth_as_plain_in_half_precision(dtype, tied):
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "tie_key_value": tied}
    states, exact = (normal(2, 50, 64), normal(2, 7, 64, seed=1)), attention_of(**sizes)
    masks = torch.ones(2, 1, 7, 50).bool(), torch.ones(2, 1, 50, 7).bool()
    masks[0][1, ..., 40:], masks[1][1, ..., 5:] = False, False
    with projections("plain"):
        truth, true_gradients = outputs_and_gradients(exact, masks, states)
    attention = attention_of(dtype=torch.float32 if dtype == "autocast" else dtype, **sizes)
    states = [state.to(attention.out_proj.weight.dtype) for state in states]
    errors = {}
    for form in FORMS:
        with projections(form), torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "autocast"):
            outputs, gradients = outputs_and_gradients(attention, masks, states)
        assert {output.dtype for output in outputs} == {torch.bfloat16 if dtype == "autocast" else dtype}
        errors[form] = [
            ((actual.double() - wanted).norm() / max(gradient.norm() for gradient in group)).item()
            for group, results in ((truth, outputs), (true_gradients, gradients))
            for wanted, actual in zip(group, results, strict=True)
        ]
    for plain, absorbed in zip(errors["plain"], errors["absorbed"], strict=True):
        assert absorbed <= NOISE * plain + 0.2 * torch.finfo(torch.bfloat16 if dtype == "autocast" else dtype).eps


def test_dropout_drops_the_same_of_both_forms():
    """With one pattern for both, weight by weight, and the biases weighted by what is left."""

    def dropout(x, p, training=True):
        pattern = normal(2, 2, *sorted(x.shape[2:])) if x.shape[1] == 2 else normal(2, 2, 5, 9).permute(0, 3, 1, 2)
        if x.shape[1:] == (2, 9, 5):
            pattern = normal(2, 2, 5, 9).transpose(2, 3)
        return x * (pattern > -0.3) / 0.7

    found = []
    for attention, form in (("eager", "plain"), ("sdpa", "absorbed")):
        module = attention_of(attention, attention_probs_dropout_prob=0.25, tie_key_value=False).train()
        with projections(form), mock.patch.object(nn.functional, "dropout", dropout):
            (y_bnd, y_bld, *_), gradients = outputs_and_gradients(module, (), (normal(2, 9, 16), normal(2, 5, 16, seed=1)))
        found.append([y_bnd, y_bld])
    for expected, actual in zip(*found, strict=True):
        assert_close(actual, expected, TOLERANCE)


def test_dropout_of_absorbed_attention_has_the_mean_of_no_dropout():
    torch.manual_seed(0)
    states = normal(400, 9, 16)[:1].expand(400, -1, -1), normal(1, 5, 16, seed=1).expand(400, -1, -1)
    module = attention_of(attention_probs_dropout_prob=0.25)
    with torch.no_grad(), projections("absorbed"):
        expected, dropped = module.eval().pack(*states, None)[0][0], module.train().pack(*states, None)[0]
    assert (dropped[0] - dropped[1]).abs().max() > 0.1
    standard_error = dropped.std(dim=0) / 400**0.5
    assert ((dropped.mean(dim=0) - expected).abs() < 5 * standard_error).all()


# ---------------------------------------------------------------------------------------------------------------------
# When it is chosen


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("n", "l", "heads"), [(40, 4, 4), (40, 16, 8), (7, 7, 2)])
def test_counted_operations_are_those_of_the_two_forms(n, l, heads, tied):
    d, states = 64, (normal(1, n, 64), normal(1, l, 64, seed=1))
    # What both forms do to P and Y_P; biases, of which one term or another is a matrix product, are not counted.
    projected = {"pack": l * d * d, "unpack": (1 if tied else 2) * l * d * d}
    for index, form in enumerate(FORMS):
        attention = attention_of(
            "eager" if form == "plain" else "sdpa", hidden_size=d, num_attention_heads=heads, tie_key_value=tied
        )
        for name, num_projections in (("pack", 1 if tied else 2), ("unpack", 2)):
            with projections(form), FlopCounterMode(display=False) as counter:
                getattr(attention, name)(*states, None)
            counted = multiply_adds(n, l, heads, d, num_projections)[index] + projected[name]
            assert 0 <= counter.get_total_flops() / 2 - counted <= l * d


@pytest.mark.parametrize(
    ("n", "l", "tied", "pack", "unpack"),
    [
        (512, 16, True, True, True),
        (4096, 32, True, True, True),
        (512, 40, True, False, True),
        (512, 40, False, True, True),
        (512, 128, True, False, False),
        (16, 16, True, False, False),
    ],
)
def test_the_cheaper_form_is_chosen_for_each_attention(n, l, tied, pack, unpack):
    """At d = 768 and 12 heads: for the pack below some 32 slots, for the unpack and untied keys and values some 64."""
    for num_projections, expected in ((1 if tied else 2, pack), (2, unpack)):
        plain, absorbed = multiply_adds(n, l, 12, 768, num_projections)
        assert (absorbed < plain) == expected


@pytest.mark.parametrize("attention", BACKENDS)
def test_only_sdpa_has_absorbed_projections(attention):
    model = ENCODER.shared(attention)
    kernel = mock.patch.object(modeling_luna, "absorbed_pack")
    with torch.no_grad(), projections("absorbed"), backend_context(attention), kernel as pack:
        pack.side_effect = AssertionError if attention != "sdpa" else lambda query, *_: query.transpose(1, 2).flatten(2)
        model(ids_of(TEXT))
    assert pack.called == (attention == "sdpa")


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class OtherWeight(torch.Tensor):
    """As quantization puts it into a plain module."""


def as_subclass(linear):
    linear.__class__ = Doubled


def with_parametrization(linear):
    nn.utils.parametrize.register_parametrization(linear, "weight", nn.Tanh())


def with_own_forward(linear):
    linear.forward = lambda x: 2 * nn.Linear.forward(linear, x)


def with_gathered_weight(linear):
    """As under ZeRO-3: the weight is there during the module's own forward only."""
    weight = linear.weight.data.clone()
    linear.weight.data = torch.empty(0, dtype=weight.dtype)
    linear.forward = lambda x: nn.functional.linear(x, weight, linear.bias)


def with_weight_norm(linear):
    nn.utils.weight_norm(linear)


def with_other_weight(linear):
    linear.weight = nn.Parameter(linear.weight.data.as_subclass(OtherWeight), requires_grad=False)


CHANGES = {
    "subclass": as_subclass,
    "parametrization": with_parametrization,
    "own forward": with_own_forward,
    "gathered weight": with_gathered_weight,
    "weight norm": with_weight_norm,
    "forward hook": lambda linear: linear.register_forward_hook(lambda module, inputs, output: 2 * output),
    "forward pre-hook": lambda linear: linear.register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],)),
    "backward hook": lambda linear: linear.register_full_backward_hook(lambda module, inputs, outputs: None),
    "backward pre-hook": lambda linear: linear.register_full_backward_pre_hook(lambda module, outputs: None),
    "weight of another kind": with_other_weight,
}
READ = {"pack": ("pack_k_proj", "pack_v_proj"), "unpack": ("unpack_q_proj", "out_proj")}


@pytest.mark.parametrize("name", [name for names in READ.values() for name in names])
@pytest.mark.parametrize("change", CHANGES)
def test_a_projection_that_is_no_plain_linear_layer_is_called(change, name):
    states, changed = (normal(2, 9, 16), normal(2, 5, 16, seed=1)), next(kind for kind in READ if name in READ[kind])
    attention = attention_of(tie_key_value=False)
    CHANGES[change](getattr(attention, name))
    with projections("plain"):
        expected = attention(*states)
    with (
        projections("absorbed"),
        mock.patch.object(modeling_luna, "absorbed_pack", wraps=modeling_luna.absorbed_pack) as pack,
        mock.patch.object(modeling_luna, "absorbed_unpack", wraps=modeling_luna.absorbed_unpack) as unpack,
    ):
        actual = attention(*states)
    assert {"pack": pack.called, "unpack": unpack.called} == {kind: kind != changed for kind in READ}
    for one, other in zip(actual[:2], expected[:2], strict=True):
        assert_close(one, other, TOLERANCE)


def test_adapters_of_peft_are_called():
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install 'luna-transformers[peft]'")
    model = build(attention="sdpa")
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["pack_kv_proj", "out_proj"]))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.5)
    found = []
    for form in FORMS:
        with projections(form):
            found.append(adapted(**BATCH).last_hidden_state)
    assert_close(found[1], found[0], TOLERANCE)
    with adapted.disable_adapter():
        assert (adapted(**BATCH).last_hidden_state - found[0]).abs().max() > 0.1


# ---------------------------------------------------------------------------------------------------------------------
# Tokens that no head reads

POSITIONS = torch.tensor([[8, 0, 3], [2, 1, -1], [-1, -1, -1]])


@pytest.mark.parametrize("attention", BACKENDS)
@each_option
def test_states_at_the_positions_that_are_read(options, attention):
    """All of P, and of X these tokens in this order: those of the model that computes all."""
    model = ENCODER.shared(attention, **options)
    with backend_context(attention), torch.no_grad():
        expected, actual = model(**BATCH), model(**BATCH, read_positions=POSITIONS)
    wanted = expected.last_hidden_state.gather(1, POSITIONS.clamp(min=0)[..., None].expand(-1, -1, 16))
    assert_close(actual.last_hidden_state[POSITIONS >= 0], wanted[POSITIONS >= 0], TOLERANCE)
    assert_close(actual.packed_state[:2], expected.packed_state[:2], TOLERANCE)


def recorded_widths(model, **inputs):
    """How many tokens of each row the feed-forward network of each layer is given."""
    widths = []
    hooks = [
        layer.fc1.register_forward_pre_hook(lambda module, args: widths.append(args[0].shape[1]))
        for layer in model.luna.layers
    ]
    model(**inputs)
    for hook in hooks:
        hook.remove()
    return widths


POOLED = {"cls": 1, "packed_mean": 1, "packed_max": 1, "packed_attention": 1, "mean": 9}


@each_head
def test_the_last_layer_computes_what_the_head_reads(row):
    model, inputs = row.shared("sdpa"), row.inputs(BATCH)
    pooling = row.options.get("classifier_pooling")
    assert recorded_widths(model, **inputs) == [9, 9, POOLED.get(pooling, 9)]
    for flag in ("output_hidden_states", "output_attentions"):
        assert recorded_widths(model, **inputs, **{flag: True}) == [9, 9, 9]


def test_the_last_layer_of_a_masked_language_model_computes_the_tokens_with_a_label():
    model, labels = MASKED_LM.shared("sdpa"), torch.full((3, 9), -100)
    labels[0, [1, 4, 8]], labels[1, 2] = 5, 6
    assert recorded_widths(model, **BATCH, labels=labels) == [9, 9, 3]
    assert recorded_widths(model, **BATCH, labels=labels, output_logits=True) == [9, 9, 9]
    assert recorded_widths(model, **BATCH, labels=labels, output_hidden_states=True) == [9, 9, 9]
    assert recorded_widths(model, **BATCH, masked_positions=POSITIONS[:, :2]) == [9, 9, 2]
    assert recorded_widths(model, **BATCH, labels=torch.full((3, 9), -100), num_items_in_batch=3) == [9, 9, 1]


@pytest.mark.parametrize("form", FORMS)
@each_head
def test_gradients_are_those_of_computing_all_tokens(row, form):
    model, found = row.build(attention="sdpa").train(), []
    batch = {name: x[:2] for name, x in BATCH.items()}

    def all_tokens(luna, *args, read_positions=None, **kwargs):
        output = forward(luna, *args, **kwargs)
        output.last_hidden_state = modeling_luna.take_positions(output.last_hidden_state, read_positions)
        return output

    forward = type(model.luna).forward
    for replaced in (forward, all_tokens):
        model.zero_grad()
        with projections(form), mock.patch.object(type(model.luna), "forward", replaced):
            row.loss(model, batch).backward()
        found.append([parameter.grad.clone() for parameter in model.parameters()])
    scale = max(gradient.abs().max() for gradient in found[1])
    for actual, expected in zip(*found, strict=True):
        assert (actual - expected).abs().max() <= 1e-6 * scale


def test_positions_of_another_shape_are_named():
    with pytest.raises(
        ValueError, match=r"`read_positions` has shape \(3,\), but must be \(batch_size.*= 3: fill up .* -1\.$"
    ):
        build()(**BATCH, read_positions=POSITIONS[0])


# ---------------------------------------------------------------------------------------------------------------------
# Compilation


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", FORMS)
def test_a_compiled_step_of_masked_positions_is_one_graph_that_is_compiled_once(form, fresh_dynamo):
    model = MASKED_LM.build(attention="sdpa", num_hidden_layers=2, tie_key_value=False).train()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for i in range(3):
        ids = ids_of(random_ids(9, seed=i), random_ids(9, seed=i + 9))
        positions = torch.tensor([[i, i + 1, 8], [i + 2, -1, -1]])
        labels = ids.gather(1, positions.clamp(min=0)).masked_fill(positions < 0, -100)
        found = []
        for one in (model, compiled):
            model.zero_grad()
            with projections(form), torch._dynamo.config.patch(error_on_recompile=i > 0):
                loss = one(ids, labels=labels, masked_positions=positions).loss
                loss.backward()
            found.append([loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())])
        for expected, actual in zip(*found, strict=True):
            assert_close(actual, expected, 1e-6)
