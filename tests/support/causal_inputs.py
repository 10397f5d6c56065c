# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Inputs of causal attention."""

import torch

from causal_luna import CAUSAL_ACTIVATIONS


def make_inputs(n, b=1, h=2, k=4, l=3, dtype=torch.float64, seed=0):
    """Query, key, value (b, h, n, k) and pack weights (b, h, n, l), laid out as a model's projections give them."""
    generator = torch.Generator().manual_seed(seed)

    def normal(size):
        return torch.randn(b, n, h, size, generator=generator, dtype=torch.float64)

    pack = CAUSAL_ACTIVATIONS["softplus"](normal(l))
    return tuple(x.to(dtype).transpose(1, 2) for x in (normal(k), normal(k), normal(k), pack))


def random_mask(b, n):
    return torch.rand(b, n, generator=torch.Generator().manual_seed(n)) < 0.7


def cut(inputs, *bounds):
    """The tokens of one piece; None, for no mask, stays None."""
    piece = slice(*bounds)
    return tuple(x if x is None else x[:, :, piece] if x.ndim == 4 else x[:, piece] for x in inputs)


def assert_same(actual, expected):
    """Equal to the bit."""
    for x, y in zip(actual, expected, strict=True):
        assert torch.equal(x, y)
