# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""What a run would do on a number of processes, and whether it can be done at all."""

from collections import Counter
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from luna_tools.errors import InputError
from pretraining.cluster import bytes_sent, deepspeed_estimate, flops_per_sequence, largest_world, state_bytes
from pretraining.launcher import EngineName
from pretraining.model import enable_gradient_checkpointing, max_sequence_length, model_config
from pretraining.objectives import OBJECTIVES
from pretraining.optimizers import check_optimizer, hidden_matrices
from pretraining.recipe import Recipe
from pretraining.schedules import check_schedule

GIB = 2**30


def check_run(recipe: Recipe, config: PreTrainedConfig, manifest: dict, num_processes: int) -> None:
    """Refuse a run that cannot be made of this recipe, dataset and number of processes.

    Raises:
        InputError: with the field, its value and the remedy.
    """
    if recipe.num_processes is not None and recipe.num_processes != num_processes:
        raise InputError(
            f"`num_processes` is {recipe.num_processes}, but the run has {num_processes}: start it with as many, on CPU by "
            f"`torchrun --nproc_per_node {recipe.num_processes} -m pretraining.train` (`accelerate launch --cpu` starts "
            "only one), or change the recipe."
        )
    share = recipe.micro_batch_size * num_processes
    if recipe.global_batch_size % share:
        raise InputError(
            f"`global_batch_size` is {recipe.global_batch_size}, which `micro_batch_size` = {recipe.micro_batch_size} x "
            f"{num_processes} processes does not divide: choose a multiple of {share}."
        )
    sequence_length = manifest["sequence_length"]
    check_schedule(recipe)
    positions = max_sequence_length(config)
    if positions is not None and sequence_length > positions:
        raise InputError(
            f"The dataset {recipe.dataset} has sequences of {sequence_length} tokens, but the model has positions for "
            f"{positions}: raise `model.max_position_embeddings` or prepare the dataset with a smaller sequence_length."
        )
    if manifest["vocab_size"] != config.vocab_size:
        raise InputError(
            f"`model.vocab_size` is {config.vocab_size}, but the tokenizer of the dataset {recipe.dataset} has "
            f"{manifest['vocab_size']} entries: set it to that."
        )


def check_engine(recipe: Recipe, engine: EngineName) -> None:
    """Refuse a recipe that the engine would not run exactly.

    Raises:
        InputError: with what to choose.
    """
    check_optimizer(recipe, engine)
    if recipe.compile and engine != "ddp":
        raise InputError(
            f"`compile` is true, but {engine} brings weights together inside the graph: launch with data parallelism, or "
            "set it to false."
        )


def check_tokenizer(recipe: Recipe, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer whose special ids the model takes for something else.

    Raises:
        InputError: naming the field and both ids.
    """
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        ours, theirs = getattr(config, name, None), getattr(tokenizer, name)
        if ours is not None and theirs is not None and theirs not in (ours if isinstance(ours, list) else [ours]):
            raise InputError(
                f"`model.{name}` is {ours}, but the tokenizer of the dataset {recipe.dataset} has {theirs}: set it to that."
            )


def parameters_by_part(model: torch.nn.Module) -> dict[str, int]:
    """Count parameters by part, a tied weight once, summed over the layers."""
    parts = Counter()
    for name, parameter in model.named_parameters():
        # The layers of a stack share one line: drop their numbers and the last name, weight or bias.
        pieces = [piece for piece in name.split(".")[:-1] if not piece.isdigit()]
        parts[".".join(pieces[:4])] += parameter.numel()
    return dict(parts)


def activation_bytes(recipe: Recipe, config: PreTrainedConfig, sequence_length: int) -> int:
    """Count the bytes that autograd keeps for the backward pass of one micro-batch, counted on tensors without data.

    The count runs the real model under a fake device, so it holds for any architecture and precision; transient buffers
    and the allocator's slack come on top.
    """
    kept, objective = {}, OBJECTIVES[recipe.objective]

    def record(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    dtype = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[recipe.mixed_precision]
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = objective.auto_class.from_config(config, attn_implementation=recipe.attn_implementation)
        if recipe.gradient_checkpointing:
            enable_gradient_checkpointing(model)
        model.train()
        ids = torch.zeros(recipe.micro_batch_size, sequence_length, dtype=torch.long)
        with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
            with torch.autocast("cpu", dtype=dtype, enabled=recipe.mixed_precision != "no"):
                # The head as it trains: Luna's reads the masked positions alone, and so does its last layer.
                share = max(objective.projected_shares(recipe, config))
                reads = {"read_positions": ids[:, : max(1, round(share * sequence_length))]} if share < 1 else {}
                rows = model.base_model(input_ids=ids, **reads)[0].flatten(0, 1)
                logits = rows.new_empty(rows.shape[0], config.vocab_size, dtype=torch.float32)
        weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    activations = sum(nbytes for storage, nbytes in kept.items() if storage not in weights)
    # Logits, their softmax for the backward pass, and the head's own hidden rows.
    return activations + 2 * logits.numel() * 4 + 3 * objective.head_layers * rows.numel() * 4


@dataclass(frozen=True)
class Cluster:
    """What a plan is made for. Speeds are what the user states; without them nothing is said of time."""

    num_processes: int
    engine: EngineName = "ddp"
    tflops: float | None = None  # model FLOP/s that a device reaches, not its peak, in 10^12
    link_gb_per_second: float | None = None  # of each device, one way, in 10^9 bytes


def cost_lines(
    recipe: Recipe, cluster: Cluster, config: PreTrainedConfig, sequence_length: int, parameters: int
) -> list[str]:
    """Tell computation and communication of a step, in time where the cluster's speeds are stated."""
    micro_batches = recipe.global_batch_size // (recipe.micro_batch_size * cluster.num_processes)
    flops = flops_per_sequence(recipe, config, sequence_length) * recipe.global_batch_size
    line = f"Computation: {flops / 1e12:,.1f} TFLOP a step, {flops / cluster.num_processes / 1e12:,.2f} a device"
    if cluster.tflops is not None:
        seconds = flops / cluster.num_processes / (cluster.tflops * 1e12)
        line += (
            f"; at {cluster.tflops:g} TFLOP/s a device {seconds:.3f} s, "
            f"{recipe.global_batch_size * sequence_length / seconds:,.0f} tokens/s, "
            f"{seconds * recipe.max_steps / 86400:.1f} days of computation in all"
        )
    sent = bytes_sent(cluster.engine, parameters, cluster.num_processes, micro_batches)
    lines = [line, f"Communication: each device sends {sent / 1e9:.2f} GB a step"]
    if cluster.link_gb_per_second is not None:
        seconds = sent / (cluster.link_gb_per_second * 1e9)
        lines[1] += f"; at {cluster.link_gb_per_second:g} GB/s {seconds:.3f} s, where none of it is hidden by computation"
    return lines


def describe_learning_rate(recipe: Recipe) -> str:
    """Tell peak and course of the learning rate, and the optimizer."""
    peak, course = f"{recipe.learning_rate:g}", "linearly to 0"
    if recipe.adamw_learning_rate is not None:
        peak += f" (AdamW's {recipe.adamw_learning_rate:g})"
    if recipe.lr_scheduler_type != "linear":
        options = (f"{name}={value}" for name, value in recipe.lr_scheduler_kwargs.items())
        course = f"by {recipe.lr_scheduler_type}({', '.join(options)})"
    return f"learning rate to {peak}, then {course}; optimizer {recipe.optimizer}"


def describe_objective(recipe: Recipe) -> str:
    """Tell what is predicted."""
    if recipe.objective == "clm":
        return "clm, each token of a row from those before it"
    return f"masked_lm, {recipe.mlm_probability:.1%} of the tokens at first, {recipe.last_mlm_probability:.1%} at last"


def plan(recipe: Recipe, cluster: Cluster, manifest: dict | None) -> str:
    """Write the text of `--plan`: what the run would do on a cluster.

    Raises:
        InputError: the plan cannot be met.
    """
    check_engine(recipe, cluster.engine)
    config, num_processes = model_config(recipe), cluster.num_processes
    if manifest is not None:
        check_run(recipe, config, manifest, num_processes)
        sequence_length = manifest["sequence_length"]
    else:
        sequence_length = max_sequence_length(config) or 512
        check_run(recipe, config, {"sequence_length": sequence_length, "vocab_size": config.vocab_size}, num_processes)
    auto_class = OBJECTIVES[recipe.objective].auto_class
    try:
        with torch.device("meta"):
            model = auto_class.from_config(config, attn_implementation=recipe.attn_implementation)
    except (ValueError, ImportError) as error:
        raise InputError(f"The model can't be built: {' '.join(str(error).split())}") from error
    parts = parameters_by_part(model)
    total = sum(parts.values())
    tokens_per_step = recipe.global_batch_size * sequence_length
    states = state_bytes(cluster.engine, total, num_processes)
    if recipe.optimizer == "muon":  # which keeps one number for a weight, not two
        states["optimizer"] -= 4 * sum(weight.numel() for weight in hidden_matrices(model))
    activations = activation_bytes(recipe, config, sequence_length)

    lines = [f"Model: {type(model).__name__}, {total:,} parameters"]
    width = max(len(name) for name in parts)
    lines += [f"  {name:<{width}}  {count:>13,}" for name, count in parts.items()]
    lines += [
        f"Steps: {recipe.max_steps:,}, of which warm-up {recipe.warmup_steps:,}; {describe_learning_rate(recipe)}",
        f"Objective: {describe_objective(recipe)}",
        f"Batch: {recipe.global_batch_size:,} sequences of {sequence_length} tokens = {tokens_per_step:,} tokens a step, "
        f"{tokens_per_step * recipe.max_steps:,} in all",
        f"Processes: {num_processes}, each {recipe.micro_batch_size} sequences at a time, accumulating "
        f"{recipe.global_batch_size // (recipe.micro_batch_size * num_processes)} micro-batches a step",
    ]
    if manifest is None:
        lines.append(
            f"Dataset: {recipe.dataset} is not prepared yet; lengths and vocabulary are those that the model allows"
        )
    else:
        rows = manifest["splits"]["train"]["rows"]
        epochs = recipe.global_batch_size * recipe.max_steps / rows
        lines.append(f"Dataset: {recipe.dataset}, {rows:,} sequences, read {epochs:.2f} times")
    memory = states | {"activations": activations}
    lines.append(
        f"Memory per device under {cluster.engine}: {sum(memory.values()) / GIB:.2f} GiB ("
        + ", ".join(f"{name} {nbytes / GIB:.2f}" for name, nbytes in memory.items())
        + "; activations are those kept for the backward pass of one micro-batch; transient buffers come on top)"
    )
    if (estimate := deepspeed_estimate(cluster.engine, total, num_processes)) is not None:
        lines.append(
            f"DeepSpeed's own estimate of weights, gradients and optimizer, in half precision: {estimate / GIB:.2f} GiB"
        )
    lines += cost_lines(recipe, cluster, config, sequence_length, total)
    with_micro, with_one = largest_world(recipe)
    lines.append(
        f"Largest number of processes: {with_micro:,} with `micro_batch_size` = {recipe.micro_batch_size}, {with_one:,} "
        "with 1"
    )
    return "\n".join(lines)
