# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Every parameter has a gradient, whichever of X and P a head reads: with DDP, FSDP, checkpointing, freezing, segments."""

import gc
import math
from unittest import mock

import pytest
import torch
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModel

import modeling_luna
from modeling_luna import LunaAttention, LunaCausalAttention
from tests.support.luna_builders import build, ids_of, pad_batch, projections, random_ids
from tests.support.models import CLASSIFIER_OF_P, ENCODER, MASKED_LM, MODELS, each_model, each_option

TEXT = random_ids(9, seed=3)
BATCH = pad_batch([TEXT, TEXT[:3]])
CHECKPOINTING = [None, {"use_reentrant": False}, {"use_reentrant": True}]


def gradients_of(model, loss):
    """The gradient of every parameter, zeros where autograd left none, and the names of these."""
    model.zero_grad()
    loss.backward()
    missing = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for name, parameter in model.named_parameters()
    }, missing


def assert_same_gradients(actual, expected):
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.equal(actual[name], gradient), name


@pytest.mark.parametrize("num_hidden_layers", [1, 3])
@each_option
@each_model
def test_every_parameter_has_a_gradient_and_it_is_autograd_s_own(row, options, num_hidden_layers):
    """Against the naive way: what autograd leaves without a gradient gets zeros, and nothing else is touched."""
    model = row.build(attention="sdpa", num_hidden_layers=num_hidden_layers, **options).train()
    gradients, missing = gradients_of(model, row.loss(model, BATCH))
    assert not missing
    with mock.patch.object(modeling_luna, "join_gradients", lambda x, p: (x, p)):
        naive_gradients, unread = gradients_of(model, row.loss(model, BATCH))
    assert_same_gradients(gradients, naive_gradients)
    if row.has_encoder and not any(options.get(name) for name in ("norm_first", "share_layer_weights")):
        last = f"layers.{num_hidden_layers - 1}"
        assert ("P" in row.reads) or any(f"{last}.packed_layer_norm" in name for name in unread)
        assert ("X" in row.reads) or any(f"{last}.final_layer_norm" in name for name in unread)


@pytest.mark.parametrize("arguments", CHECKPOINTING, ids=str)
@each_model
def test_gradient_checkpointing_changes_nothing(row, arguments):
    attention = LunaAttention if row.has_encoder else LunaCausalAttention
    for options in ({}, {"contextual_projection": False}, {"share_layer_weights": True, "norm_first": True}):
        model = row.build(attention="sdpa", **options).train()
        loss = row.loss(model, BATCH)
        gradients, _ = gradients_of(model, loss)
        model.gradient_checkpointing_enable(arguments)
        assert model.is_gradient_checkpointing
        with mock.patch.object(attention, "forward", autospec=True, side_effect=attention.forward) as forward:
            checkpointed_loss = row.loss(model, BATCH)
            checkpointed, missing = gradients_of(model, checkpointed_loss)
        assert forward.call_count == 2 * model.config.num_hidden_layers, "each layer is computed again for backward"
        assert torch.equal(checkpointed_loss, loss) and not missing
        assert_same_gradients(checkpointed, gradients)


@each_model
def test_padding_never_changes_a_gradient(row):
    """Wider padding on either side; of classes of whole texts also a row without a token, whose label is left out."""
    model, found = row.build(attention="sdpa"), []
    for width, side in ((3, "right"), (8, "right"), (8, "left")):
        found.append(gradients_of(model, row.loss(model, pad_batch([TEXT[:3], TEXT[3:6]], width, side)))[0])
    scale = max(gradient.abs().max() for gradient in found[0].values())
    for padded in found[1:]:
        for name, gradient in found[0].items():
            assert (padded[name] - gradient).abs().max() <= 1e-6 * scale, name  # the library's losses are float32


@each_option
def test_an_empty_row_never_changes_a_gradient(options):
    model = MASKED_LM.build(attention="sdpa", **options)
    plain, padded = (
        gradients_of(model, model(**MASKED_LM.training_inputs(batch), num_items_in_batch=10).loss)[0]
        for batch in (pad_batch([TEXT[:3]]), pad_batch([TEXT[:3], []], width=7, side="left"))
    )
    scale = max(gradient.abs().max() for gradient in plain.values())
    for name, gradient in plain.items():
        assert (padded[name] - gradient).abs().max() < 1e-10 * scale, name


# ---------------------------------------------------------------------------------------------------------------------
# What users do


def test_the_encoder_of_a_masked_language_model_trains_all_of_it_under_a_head_on_p(tmp_path):
    MASKED_LM.build(dtype=torch.float32).save_pretrained(tmp_path)
    luna = MASKED_LM.model_class.from_pretrained(tmp_path).luna.train()
    norm = luna.layers[-1].packed_layer_norm
    assert all(parameter.requires_grad for parameter in luna.parameters())
    luna(**BATCH).packed_mean.square().sum().backward()
    assert norm.weight.grad.count_nonzero() > 0 and norm.bias.grad.count_nonzero() > 0
    assert all(parameter.requires_grad for parameter in AutoModel.from_pretrained(tmp_path).parameters())


@pytest.mark.parametrize("row", [MASKED_LM, CLASSIFIER_OF_P], ids=str)
def test_freezing_the_encoder_and_thawing_it_does_no_harm(row):
    model = row.build(attention="sdpa").train()
    expected, _ = gradients_of(model, row.loss(model, BATCH))
    model.luna.requires_grad_(False)
    _, missing = gradients_of(model, row.loss(model, BATCH))
    assert missing == {name for name, _ in model.named_parameters() if name.startswith("luna.")}
    model.luna.requires_grad_(True)
    thawed, missing = gradients_of(model, row.loss(model, BATCH))
    assert not missing
    assert_same_gradients(thawed, expected)


def test_training_in_segments_trains_the_last_packed_norm():
    model = MASKED_LM.build(attention="sdpa").train()
    first = model(**BATCH)
    state = {"packed_state": first.packed_state, "packed_attention_mask": first.packed_attention_mask}
    ids = ids_of(TEXT[2:7], TEXT[4:9])
    gradients, missing = gradients_of(model, model(ids, labels=ids, **state).loss)
    assert not missing
    assert all(gradient.count_nonzero() > 0 for gradient in gradients.values())


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_gradient_reaches_the_tokens_of_the_first_segment(attention):
    model = build(attention=attention)
    embeds = model.get_input_embeddings()(ids_of(TEXT)).detach().requires_grad_()
    mask = torch.ones(1, 9)
    mask[0, 6:] = 0
    first = model(inputs_embeds=embeds, attention_mask=mask)
    second = model(ids_of(TEXT[:4]), packed_state=first.packed_state, packed_attention_mask=first.packed_attention_mask)
    second.last_hidden_state.square().sum().backward()
    reached = embeds.grad[0].abs().amax(-1)
    assert (reached[:6] > 1e-6).all() and reached[6:].count_nonzero() == 0


def test_outputs_can_be_changed_in_place():
    """As pooling layers do that set padded positions to a low number."""
    model = ENCODER.build().train()
    output = model(**BATCH)
    output.last_hidden_state[BATCH["attention_mask"] == 0] = -1e9
    output.packed_state.mul_(2)
    output.last_hidden_state.amax(dim=1).sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_functional_gradients_are_those_of_backward():
    model = CLASSIFIER_OF_P.build().train()
    expected, _ = gradients_of(model, CLASSIFIER_OF_P.loss(model, BATCH))

    def loss(parameters):
        inputs = CLASSIFIER_OF_P.training_inputs(BATCH)
        return torch.func.functional_call(model, parameters, kwargs=inputs).loss

    assert_same_gradients(torch.func.grad(loss)(dict(model.named_parameters())), expected)


# ---------------------------------------------------------------------------------------------------------------------
# Distributed


@pytest.fixture(scope="module")
def process_group(tmp_path_factory):
    """A group of this process alone: what has no gradient is an error to it as to a larger one."""
    init = tmp_path_factory.mktemp("group") / "init"
    torch.distributed.init_process_group("gloo", init_method=f"file://{init}", rank=0, world_size=1)
    yield
    gc.collect()  # a reducer that outlives its process group may abort the process
    torch.distributed.destroy_process_group()


def train(model, parallel, row, batches, checkpointing=None):
    if checkpointing is not None:
        model.gradient_checkpointing_enable(checkpointing)
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.1), []
    for batch in batches:
        inputs = row.training_inputs(batch) if row is not ENCODER else batch
        output = parallel(**inputs)
        loss = output.loss if "loss" in output else output.last_hidden_state.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


THREE = [pad_batch([random_ids(n, seed=n), random_ids(3, seed=n)]) for n in (7, 4, 9)]


@pytest.mark.parametrize("checkpointing", CHECKPOINTING, ids=str)
@pytest.mark.parametrize("row", [row for row in MODELS if row is not ENCODER], ids=str)
def test_distributed_data_parallel_finds_no_unused_parameter(row, checkpointing, process_group):
    for options in ({"tie_key_value": False}, {"contextual_projection": False}, {"norm_first": True}):
        model, alone = (row.build(attention="sdpa", **options).train() for _ in range(2))
        model.luna.requires_grad_(False)
        model.luna.requires_grad_(True)
        # An unused parameter is noticed at the start of the step after it.
        with projections("absorbed"):
            losses = train(model, DistributedDataParallel(model), row, THREE, checkpointing)
            assert losses == train(alone, alone, row, THREE)


@pytest.mark.parametrize("checkpointing", CHECKPOINTING[:2], ids=str)
@pytest.mark.parametrize("row", [ENCODER, MASKED_LM, CLASSIFIER_OF_P], ids=str)
def test_fully_sharded_layers_train_as_the_model_alone(row, checkpointing, process_group):
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    for options in ({"tie_key_value": False}, {"contextual_projection": False}):
        model, alone = (row.build(attention="sdpa", **options).train() for _ in range(2))
        for layer in (model if row is ENCODER else model.luna).layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        with projections("absorbed"):
            losses = train(model, model, row, THREE, checkpointing)
        with projections("plain"):
            assert losses == pytest.approx(train(alone, alone, row, THREE), rel=1e-6)


CASES = [(MASKED_LM, {}), (MASKED_LM, {"contextual_projection": False}), (CLASSIFIER_OF_P, {})]


def train_as_rank(rank, world_size, init_file, queue):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{init_file}", rank=rank, world_size=world_size)
    try:
        for row, options in CASES:
            model = row.build(attention="sdpa", **options).train()
            parallel = DistributedDataParallel(model)
            batches = [pad_batch([random_ids(7, seed=10 * i + rank), random_ids(3, seed=20 * i + rank)]) for i in range(3)]
            losses = train(model, parallel, row, batches, {"use_reentrant": False})
            queue.put((rank, losses, [parameter.detach().sum().item() for parameter in model.parameters()]))
            del parallel, model
            gc.collect()
        torch.distributed.barrier()
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_distributed_data_parallel_in_two_processes(tmp_path):
    queue = torch.multiprocessing.get_context("spawn").SimpleQueue()
    torch.multiprocessing.spawn(train_as_rank, (2, tmp_path / "init", queue), nprocs=2)
    results = [queue.get() for _ in range(2 * len(CASES))]
    by_rank = [[result[1:] for result in results if result[0] == rank] for rank in (0, 1)]
    for (losses, sums), (other_losses, other_sums) in zip(*by_rank, strict=True):
        assert all(math.isfinite(loss) for loss in losses + other_losses)
        assert losses != other_losses, "each process has its own data"
        assert sums == other_sums, "and all have the same weights"
