# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Tiny models with weights at unit scale, batches with padding anywhere, and flash attention without a GPU."""

import gc
import math
import sys
from contextlib import contextmanager, nullcontext
from functools import cache
from itertools import product
from types import ModuleType
from unittest import mock

import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from tokenizers.processors import RobertaProcessing
from torch.nn.attention import flex_attention as torch_flex
from transformers import PreTrainedTokenizerFast, masking_utils, modeling_flash_attention_utils
from transformers.integrations import flex_attention as transformers_flex

from configuration_luna import LunaConfig
from modeling_luna import LunaForMaskedLM, LunaModel, LunaPackedEmbeddings

OPTION_VALUES = {
    "tie_key_value": (True, False),
    "contextual_projection": (True, False),
    "position_embedding_type": ("learned", "sinusoidal"),
    "norm_first": (False, True),
    "share_layer_weights": (False, True),
    "dynamic_projection": (True, False),
}
ALL_OPTIONS = [dict(zip(OPTION_VALUES, values, strict=True)) for values in product(*OPTION_VALUES.values())]
# Each option away from its default, alone.
SINGLE_OPTIONS = [{}] + [{name: values[1]} for name, values in OPTION_VALUES.items()]


def option_id(options):
    if isinstance(options, str):
        return options
    return "-".join(str(value) for value in options.values()) or "default"


def tiny_config(**changes):
    values = {
        "vocab_size": 41,
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "projection_length": 5,
        "max_position_embeddings": 40,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return LunaConfig(**(values | changes))


def randomise(model, seed=0):
    """Weights at unit scale: attention far from uniform, norms and biases that matter, nonzero padding rows."""
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor, mean, std):
        values = torch.randn(tensor.shape, generator=generator, dtype=torch.float64) * std + mean
        tensor.copy_(values.to(tensor.dtype))

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                normal(module.weight, 0, 1.5 * module.in_features**-0.5)
                normal(module.bias, 0, 0.5)
            elif isinstance(module, torch.nn.LayerNorm):
                normal(module.weight, 1, 0.3)
                normal(module.bias, 0, 0.5)
            elif isinstance(module, torch.nn.Embedding | LunaPackedEmbeddings):
                normal(module.weight, 0, 1)
    return model


def build(model_class=LunaModel, *, attention="eager", dtype=torch.float64, seed=0, **changes):
    """A randomised tiny model in evaluation mode; `attention` may be "flash_attention_2" under `emulated_flash`."""
    model = model_class(tiny_config(**changes))
    model.config._attn_implementation = attention
    return randomise(model, seed).to(dtype).eval()


@cache
def cached_masked_lm(attention, dtype, items):
    return build(LunaForMaskedLM, attention=attention, dtype=dtype, **dict(items))


def masked_lm(attention, dtype=torch.float64, **changes):
    """Like `build(LunaForMaskedLM, ...)`, built once: do not change it."""
    return cached_masked_lm(attention, dtype, tuple(sorted(changes.items())))


def random_ids(n, seed=0, vocab_size=41):
    """n ids from 4 up: no special tokens."""
    return torch.randint(4, vocab_size, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def ids_of(*rows):
    return torch.tensor(rows)


def place(rows, columns, width, pad):
    """Rows of values at their columns of a (len(rows), width) tensor, `pad` elsewhere."""
    result = torch.full((len(rows), width), pad)
    for i, (row, columns_of_row) in enumerate(zip(rows, columns, strict=True)):
        result[i, columns_of_row] = torch.tensor(row, dtype=torch.long)
    return result


def columns_for(lengths, width, side="right"):
    """The columns of each row's tokens when it is padded on the right or on the left."""
    return [list(range(n)) if side == "right" else list(range(width - n, width)) for n in lengths]


def pad_batch(rows, width=None, side="right", pad=1):
    width = max(len(row) for row in rows) if width is None else width
    columns = columns_for([len(row) for row in rows], width, side)
    return {
        "input_ids": place(rows, columns, width, pad),
        "attention_mask": place([[1] * len(row) for row in rows], columns, width, 0),
    }


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


SENTENCES = [
    "Luna packs a long text into a short one and unpacks it again.",
    "Attention over a packed text costs time in proportion to the length.",
    "The moon goes around the earth, and the earth goes around the sun.",
]


def make_tokenizer():
    """A byte-level BPE with the special ids of RoBERTa: 0 to 3, and <mask> last."""
    bpe = ByteLevelBPETokenizer(add_prefix_space=True)
    bpe.train_from_iterator(
        SENTENCES,
        vocab_size=320,
        min_frequency=1,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        show_progress=False,
    )
    bpe._tokenizer.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        cls_token="<s>",
        sep_token="</s>",
        mask_token="<mask>",
        model_input_names=["input_ids", "attention_mask"],
    )
    assert tokenizer.convert_tokens_to_ids(["<s>", "<pad>", "</s>", "<unk>"]) == [0, 1, 2, 3]
    assert tokenizer.mask_token_id == len(tokenizer) - 1
    return tokenizer


BACKENDS = ["eager", "sdpa", "flash_attention_2", "flex_attention"]
# Float64 results of the same sums of some tens of terms in another order, amplified by three layers at unit scale
# (1e-14 measured).
TOLERANCE = 1e-10


def backend_context(attention):
    """What a backend needs to run on a CPU."""
    if attention == "flash_attention_2":
        return emulated_flash()
    return uncompiled_flex() if attention == "flex_attention" else nullcontext()


def assert_close(actual, expected, tolerance):
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual.detach(), expected.detach(), rtol=tolerance, atol=tolerance)


def assert_initialised(weight, std):
    """Normal(0, std): mean and standard deviation within five standard errors."""
    n = weight.numel()
    assert abs(weight.mean().item()) < 5 * std / math.sqrt(n)
    assert weight.std().item() == pytest.approx(std, abs=5 * std / math.sqrt(2 * n))


def train_under_ddp(rank, world_size, init_file, options, queue, model_class=LunaForMaskedLM):
    """One process of a DistributedDataParallel run without find_unused_parameters: puts losses and sums of weights."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{init_file}", rank=rank, world_size=world_size)
    try:
        model = build(model_class, attention="sdpa", **options).train()
        parallel = torch.nn.parallel.DistributedDataParallel(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        losses = []
        for step in range(3):  # an unused parameter is noticed at the start of the step after it
            batch = pad_batch([random_ids(7, seed=10 * step + rank), random_ids(3, seed=20 * step + rank)])
            if model_class is LunaForMaskedLM:
                labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
            else:
                labels = torch.tensor([rank, step % 2])
            loss = parallel(**batch, labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        queue.put((rank, losses, [parameter.detach().sum().item() for parameter in model.parameters()]))
        # A reducer that outlives its process group may hang or abort the process.
        del parallel, model, optimizer, loss
        gc.collect()
        torch.distributed.barrier()
    finally:
        torch.distributed.destroy_process_group()
