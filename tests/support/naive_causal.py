# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Section 3.3 of the Luna paper for one row and one head without padding, in float64: equation 7 as it is written.

Nothing here is shared with the implementation: numpy, every sum from its first term on.
"""

import numpy as np


def sum_of_products(y, z, t):
    """Sum over j <= t of Y_j^T Z_j, tokens counted from 1."""
    return sum((np.outer(y[j], z[j]) for j in range(t)), np.zeros((y.shape[1], z.shape[1])))


def f_at(t, x, y, z):
    """Equation 7 at token t: (1/t) X_t times the sum."""
    return x[t - 1] @ sum_of_products(y, z, t) / t


def softmax(scores):
    exponentials = np.exp(scores - scores.max())
    return exponentials / exponentials.sum()


def causal_attention_at(t, query, key, value, pack):
    """Output (k,) and unpack weights (l,) of token t; `query` (n, k) is scaled, `pack` (n, l) is omega of the scores."""
    weights = softmax(f_at(t, query, key, pack))
    return weights @ sum_of_products(pack, value, t) / t, weights


def causal_attention(query, key, value, pack):
    """Outputs (n, k), unpack weights (n, l), and after the last token the two sums, (k, l) and (l, k)."""
    n, l = pack.shape
    outputs, weights = np.zeros(query.shape), np.zeros((n, l))
    for t in range(1, n + 1):
        outputs[t - 1], weights[t - 1] = causal_attention_at(t, query, key, value, pack)
    return outputs, weights, sum_of_products(key, pack, n), sum_of_products(pack, value, n)
