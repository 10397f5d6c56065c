# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""What a step costs on a cluster, worked out: floating-point operations, memory of the model's states, bytes on the wire.

P parameters, N processes (one a device); weights, gradients and Adam's moments are float32, 4 bytes each.
"""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedConfig

from pretraining.launcher import EngineName
from pretraining.objectives import OBJECTIVES
from pretraining.recipe import Recipe


def flops_per_sequence(recipe: Recipe, config: PreTrainedConfig, sequence_length: int) -> int:
    """Count multiplications and additions of the matrix products of forward and backward pass over one sequence.

    torch's counter counts them on tensors without data, so it holds for any architecture. What activation checkpointing
    computes again is not counted (model FLOPs, as MFU wants them). The head is that of training, which may project only some
    of the positions to the vocabulary.
    """
    objective = OBJECTIVES[recipe.objective]
    with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter:
        model = objective.auto_class.from_config(config, attn_implementation="eager")  # whose products are all counted
        hidden = model.base_model(input_ids=torch.zeros(1, sequence_length, dtype=torch.long))[0]
        hidden.sum().backward()
    rows = round(sum(objective.projected_shares(recipe, config)) / 2 * sequence_length)
    width = hidden.shape[-1]
    return counter.get_total_flops() + 3 * 2 * rows * width * (objective.head_layers * width + config.vocab_size)


def state_bytes(engine: EngineName, parameters: int, processes: int) -> dict[str, float]:
    """Return the bytes a device holds between steps and while gradients add up: weights, gradients, optimizer state.

    Under ZeRO the optimizer state includes the float32 copy of the weights that DeepSpeed updates.
    """
    whole, part = 4 * parameters, 4 * parameters / processes
    if engine == "ddp":  # which keeps its gradient buckets beside the gradients
        return {"weights": whole, "gradients": whole * (1 if processes == 1 else 2), "optimizer": 2 * whole}
    if engine == "fsdp2":  # gradients stay whole until the last micro-batch of a step, then travel once
        return {"weights": part, "gradients": whole, "optimizer": 2 * part}
    gradients = whole if engine == "zero1" else part
    return {"weights": part if engine == "zero3" else whole, "gradients": gradients, "optimizer": 3 * part}


def bytes_sent(engine: EngineName, parameters: int, processes: int, micro_batches: int) -> float:
    """Return the bytes that each device sends in one step, by rings.

    An all-gather or reduce-scatter of B bytes sends B (N - 1) / N, and an all-reduce is one of each. `micro_batches` is the
    number of them in a step. With bf16 or fp16 ZeRO sends gradients of linear layers, and stage 3 their weights, in half the
    bytes: for it this is an upper bound.
    """
    ring = 4 * parameters * (processes - 1) / processes
    return {
        "ddp": 2 * ring,  # one all-reduce of the gradients
        "fsdp2": (2 * micro_batches + 1) * ring,  # weights for each forward and backward, gradients once
        "zero1": 2 * ring,  # gradients scattered, new weights gathered
        "zero2": (micro_batches + 1) * ring,  # gradients are scattered at each micro-batch
        "zero3": 3 * micro_batches * ring,  # weights for each forward and backward, gradients at each micro-batch
    }[engine]


def largest_world(recipe: Recipe) -> tuple[int, int]:
    """Return the most processes that divide the global batch: with the recipe's micro-batch, and with one sequence each."""
    sequences, micro = recipe.global_batch_size, recipe.micro_batch_size
    return sequences // micro if sequences % micro == 0 else 0, sequences


def deepspeed_estimate(engine: EngineName, parameters: int, processes: int, devices_per_node: int = 8) -> float | None:
    """Return the bytes a device holds of the model's states by DeepSpeed's own estimator.

    None where it has none or is not installed. It assumes half-precision weights and gradients, and adds half for buffers.
    """
    if engine not in ("zero2", "zero3"):
        return None
    try:
        from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
        from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs
    except ImportError:
        return None
    devices = min(devices_per_node, processes)
    nodes = max(1, processes // devices)
    if engine == "zero2":
        return estimate_zero2_model_states_mem_needs(parameters, devices, nodes, cpu_offload=False)[1]
    return estimate_zero3_model_states_mem_needs(parameters, 0, devices, nodes, False, False, True)[1]
