# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Optimizers of a recipe. Each group has a `relative_lr`: its learning rate is so many times that of the step."""

import importlib.util

import torch
from transformers import PreTrainedModel

from luna_tools.errors import InputError
from pretraining.launcher import EngineName
from pretraining.recipe import Recipe

# The engines that an optimizer is exact under. Muon and StableAdamW measure whole tensors, of which ZeRO hands out pieces.
ENGINES_OF = {"adamw": ("ddp", "fsdp2", "zero1", "zero2", "zero3"), "muon": ("ddp",), "stable_adamw": ("ddp",)}


def check_optimizer(recipe: Recipe, engine: EngineName) -> None:
    """Refuse an optimizer that the engine would not run exactly, or that is not installed.

    Raises:
        InputError: with what to choose.
    """
    if engine not in ENGINES_OF[recipe.optimizer]:
        raise InputError(
            f"`optimizer` is {recipe.optimizer}, whose update needs whole tensors, but {engine} divides them over the "
            f"processes: launch with {' or '.join(ENGINES_OF[recipe.optimizer])}, or choose adamw."
        )
    if recipe.optimizer == "stable_adamw" and importlib.util.find_spec("pytorch_optimizer") is None:
        raise InputError(
            "`optimizer` is stable_adamw, which is in a package that is not installed: run `pip install pytorch-optimizer`."
        )


def hidden_matrices(model: PreTrainedModel) -> list[torch.nn.Parameter]:
    """Return the weights of the linear layers below the head: Muon's. Embeddings and P are none."""
    linears = [module for module in model.base_model.modules() if isinstance(module, torch.nn.Linear)]
    return [linear.weight for linear in linears if linear.weight.requires_grad]


def build_optimizer(model: PreTrainedModel, recipe: Recipe) -> torch.optim.Optimizer:
    """Build the recipe's optimizer, which decays matrices only, not norms and biases."""
    taken = {id(weight) for weight in hidden_matrices(model)} if recipe.optimizer == "muon" else ()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    left = [parameter for parameter in trained if id(parameter) not in taken]
    relative = (recipe.adamw_learning_rate or recipe.learning_rate) / recipe.learning_rate
    groups = [
        {"params": [p for p in left if p.ndim >= 2], "weight_decay": recipe.weight_decay, "relative_lr": relative},
        {"params": [p for p in left if p.ndim < 2], "weight_decay": 0.0, "relative_lr": relative},
    ]
    options = {"betas": (recipe.adam_beta1, recipe.adam_beta2), "eps": recipe.adam_epsilon, "lr": recipe.learning_rate}
    if recipe.optimizer == "stable_adamw":
        from pytorch_optimizer import StableAdamW

        return StableAdamW(groups, **options)
    adamw = torch.optim.AdamW(groups, fused=True, **options)
    if recipe.optimizer == "adamw":
        return adamw
    matrices = {"params": [p for p in trained if id(p) in taken], "relative_lr": 1.0}
    options = {"momentum": recipe.muon_momentum, "weight_decay": recipe.weight_decay, "lr": recipe.learning_rate}
    return MuonWithAdamW(BatchedMuon([matrices], **options), adamw)


class BatchedMuon(torch.optim.Muon):
    """torch's Muon, with the same state and rounding, but all matrices of a shape orthogonalised together.

    One by one, small matrices take as long as the training step that they follow.
    """

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """Update all weights."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            for shape in dict.fromkeys(weight.shape for weight in weights):
                self.update([weight for weight in weights if weight.shape == shape], group)

    def update(self, weights: list[torch.nn.Parameter], group: dict) -> None:
        """Update matrices of one shape (p, q)."""
        gradients = [weight.grad for weight in weights]
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        buffers = [self.state[weight]["momentum_buffer"] for weight in weights]
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
        nesterov = torch._foreach_lerp(gradients, buffers, group["momentum"])
        updates_bpq = orthogonalize(torch.stack(nesterov), group["ns_coefficients"], group["ns_steps"], group["eps"])
        p, q = weights[0].shape
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(weights, list(updates_bpq.float().unbind()), alpha=-group["lr"] * max(1, p / q) ** 0.5)


def orthogonalize(x_bpq: torch.Tensor, coefficients: tuple, steps: int, eps: float) -> torch.Tensor:
    """Bring the singular values of each matrix near 1 by the quintic Newton-Schulz iteration of Muon, in bfloat16."""
    a, b, c = coefficients
    x_bpq = x_bpq.bfloat16()
    is_tall = x_bpq.shape[1] > x_bpq.shape[2]
    if is_tall:
        x_bpq = x_bpq.mT
    x_bpq = x_bpq / x_bpq.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram_bpp = x_bpq @ x_bpq.mT
        x_bpq = torch.baddbmm(x_bpq, torch.baddbmm(gram_bpp, gram_bpp, gram_bpp, beta=b, alpha=c), x_bpq, beta=a)
    return x_bpq.mT if is_tall else x_bpq


class MuonWithAdamW(torch.optim.Optimizer):
    """Two optimizers as one, with one state and one answer to a loss scale."""

    def __init__(self, muon: torch.optim.Muon, adamw: torch.optim.AdamW):
        self.muon, self.adamw = muon, adamw
        super().__init__([*muon.param_groups, *adamw.param_groups], {})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """Update all weights."""
        first = len(self.muon.param_groups)
        for optimizer, groups in ((self.muon, self.param_groups[:first]), (self.adamw, self.param_groups[first:])):
            optimizer.param_groups, optimizer.state = groups, self.state  # loading a state replaces both
            optimizer.step()
