# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Every attention backend of the library on a CPU: flash attention by its definition, flex attention uncompiled."""

import sys
from contextlib import contextmanager, nullcontext
from types import ModuleType
from unittest import mock

import torch
from torch.nn.attention import flex_attention as torch_flex
from transformers import masking_utils, modeling_flash_attention_utils
from transformers.integrations import flex_attention as transformers_flex

BACKENDS = ["eager", "sdpa", "flash_attention_2", "flex_attention"]


def dense_attention(query, key, value, scale, causal):
    """Attention of one row, (queries, h, k) and (keys, h, k), as flash attention defines it: no keys give zeros."""
    if key.shape[0] == 0:
        return torch.zeros_like(query)
    scores = torch.einsum("qhk,mhk->hqm", query, key) * (scale if scale is not None else query.shape[-1] ** -0.5)
    if causal:  # aligned to the lower right corner
        allowed = torch.ones(scores.shape[1:], dtype=torch.bool).tril(key.shape[0] - query.shape[0])
        scores = scores.masked_fill(~allowed, float("-inf"))
    return torch.einsum("hqm,mhk->qhk", scores.softmax(-1).nan_to_num(), value)


def flash_attn_func(
    q,
    k,
    v,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    return_attn_probs=False,
):
    assert window_size == (-1, -1) and softcap == 0 and alibi_slopes is None
    assert q.shape[0] == k.shape[0] and k.shape == v.shape
    return torch.stack(
        [dense_attention(*row, softmax_scale, causal) for row in zip(q, k, v, strict=True)],
    )


def flash_attn_varlen_func(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    return_attn_probs=False,
    block_table=None,
):
    assert window_size == (-1, -1) and softcap == 0 and alibi_slopes is None and block_table is None
    # What the kernels demand of their arguments, and what they compute wrongly without a word.
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert cu_seqlens_q.is_contiguous() and cu_seqlens_k.is_contiguous()
    assert cu_seqlens_q.shape == cu_seqlens_k.shape and cu_seqlens_q[0] == 0 and cu_seqlens_k[0] == 0
    assert cu_seqlens_q[-1] == q.shape[0] and cu_seqlens_k[-1] == k.shape[0] and k.shape == v.shape
    assert isinstance(max_seqlen_q, int) and isinstance(max_seqlen_k, int)
    assert max_seqlen_q >= cu_seqlens_q.diff().max() and max_seqlen_k >= cu_seqlens_k.diff().max()
    bounds_q, bounds_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    rows = []
    for i in range(len(bounds_q) - 1):
        keys = slice(bounds_k[i], bounds_k[i + 1])
        rows.append(dense_attention(q[bounds_q[i] : bounds_q[i + 1]], k[keys], v[keys], softmax_scale, causal))
    return torch.cat(rows)


def unused_kernel(*args, **kwargs):
    raise AssertionError("Luna has no use for this flash attention kernel")


@contextmanager
def emulated_flash():
    """The `flash_attn` package with its kernels in plain torch, as `flash_attention_2` of transformers imports it.

    Yields mocks that wrap the dense and the varlen kernel, to count calls.
    """
    dense, varlen = mock.Mock(side_effect=flash_attn_func), mock.Mock(side_effect=flash_attn_varlen_func)
    package, padding = ModuleType("flash_attn"), ModuleType("flash_attn.bert_padding")

    # transformers reads the signature to learn what a kernel supports: give it real functions.
    def dense_kernel(*args, **kwargs):
        return dense(*args, **kwargs)

    def varlen_kernel(*args, **kwargs):
        return varlen(*args, **kwargs)

    dense_kernel.__wrapped__, varlen_kernel.__wrapped__ = flash_attn_func, flash_attn_varlen_func
    package.flash_attn_func, package.flash_attn_varlen_func = dense_kernel, varlen_kernel
    package.flash_attn_with_kvcache = unused_kernel
    padding.pad_input = padding.unpad_input = unused_kernel
    utils = modeling_flash_attention_utils
    loaded = [
        name
        for name in (
            "_flash_fn",
            "_flash_varlen_fn",
            "_flash_with_kvcache_fn",
            "_pad_fn",
            "_unpad_fn",
            "_process_flash_kwargs_fn",
            "_process_with_kvcache_kwargs_fn",
            "_loaded_implementation",
        )
        if hasattr(utils, name)
    ]
    with (
        mock.patch.dict(sys.modules, {"flash_attn": package, "flash_attn.bert_padding": padding}),
        mock.patch.object(utils, "is_flash_attn_2_available", lambda: True),
        mock.patch.multiple(utils, **{name: None for name in loaded}),
    ):
        yield dense, varlen


@contextmanager
def uncompiled_flex():
    """Flex attention by its reference formula, in any dtype: compiling for the CPU takes 20 seconds per shape."""

    def create_block_mask(*args, **kwargs):
        return torch_flex.create_block_mask(*args, **(kwargs | {"_compile": False}))

    with (
        mock.patch.object(masking_utils, "create_block_mask", create_block_mask),
        mock.patch.object(transformers_flex, "WrappedFlexAttention", lambda _: lambda: torch_flex.flex_attention),
        mock.patch.object(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True),
    ):
        yield


def backend_context(attention):
    """What a backend needs to run on a CPU."""
    if attention == "flash_attention_2":
        return emulated_flash()
    return uncompiled_flex() if attention == "flex_attention" else nullcontext()
