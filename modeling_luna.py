# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""PyTorch Luna model: linear unified nested attention (Ma et al., NeurIPS 2021).

Read top to bottom: attention, layers, embeddings, encoder, masked language model, heads for fine-tuning, decoder, models
that generate.

Shape suffixes: b batch, n tokens, l packed slots, q and m queries and keys of one attention (n and l in some order),
d hidden size, h heads, k head size, v vocabulary, r tokens that a head reads, c classes or choices.
"""

import copy
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps

import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicLayer, EncoderDecoderCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPastAndCrossAttentions,
    CausalLMOutputWithPast,
    ModelOutput,
    Seq2SeqLMOutput,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.processing_utils import Unpack
from transformers.utils import auto_docstring
from transformers.utils.generic import TransformersKwargs, can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

# From the Hub this file is part of a package and its sibling lies beside it; installed, all are top-level modules.
# A Hub folder without a sibling must fail rather than pick up an installed copy of another version.
try:
    from .causal_luna import CAUSAL_ACTIVATIONS, CausalState, LunaCausalCacheLayer, causal_attention
    from .configuration_luna import AUTO_CLASSES, LunaConfig
except ImportError:
    if __package__:
        raise
    from causal_luna import CAUSAL_ACTIVATIONS, CausalState, LunaCausalCacheLayer, causal_attention
    from configuration_luna import AUTO_CLASSES, LunaConfig


# ---------------------------------------------------------------------------------------------------------------------
# What is read, and gradients of what is not


def check_positions(name: str, positions: torch.Tensor, b: int) -> None:
    """Raise a ValueError unless `positions` is (b, r)."""
    if positions.ndim != 2 or positions.shape[0] != b:
        raise ValueError(
            f"`{name}` has shape {tuple(positions.shape)}, but must be (batch_size, number of positions) with batch_size = "
            f"{b}: fill up rows that have fewer with -1."
        )


def take_positions(x_bnd: torch.Tensor, positions_br: torch.Tensor | None) -> torch.Tensor:
    """The tokens at `positions_br`, (b, r, d); -1 takes some token that is not to be read. None takes all of them."""
    if positions_br is None:
        return x_bnd
    rows_b1 = torch.arange(x_bnd.shape[0], device=x_bnd.device)[:, None]
    return x_bnd[rows_b1, positions_br.to(x_bnd.device).clamp(min=0)]


class JoinedGradients(torch.autograd.Function):
    """The identity of several tensors, whose backward gives zeros to those that nothing reads.

    Autograd itself turns missing gradients of a function's outputs into zeros.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(tensor.detach() for tensor in tensors)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        """Nothing to keep."""

    @staticmethod
    def backward(ctx, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return gradients


def join_gradients(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same tensors, such that a loss of one of them gives a gradient, if of zeros, to every parameter of both.

    DistributedDataParallel takes a parameter without a gradient for an error, and FSDP and ZeRO want the same of all ranks.
    """
    return JoinedGradients.apply(first, second) if torch.is_grad_enabled() else (first, second)


# ---------------------------------------------------------------------------------------------------------------------
# Attention: the paper's form


def eager_attention_forward(
    module: nn.Module,
    query_bhqk: torch.Tensor,
    key_bhmk: torch.Tensor,
    value_bhmk: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax attention of equation 1 that also returns its weights: (b, q, h, k) and (b, h, q, m)."""
    scores_bhqm = torch.matmul(query_bhqk, key_bhmk.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores_bhqm = scores_bhqm + attention_mask
    softmax_dtype = torch.promote_types(scores_bhqm.dtype, torch.float32)
    weights_bhqm = nn.functional.softmax(scores_bhqm, dim=-1, dtype=softmax_dtype).to(query_bhqk.dtype)
    dropped_bhqm = nn.functional.dropout(weights_bhqm, p=dropout, training=module.training)
    output_bqhk = torch.matmul(dropped_bhqm, value_bhmk).transpose(1, 2).contiguous()
    return output_bqhk, weights_bhqm


def flash_attention_over_padded_keys(
    attention_interface: Callable,
    module: nn.Module,
    query_bhqk: torch.Tensor,
    key_bhmk: torch.Tensor,
    value_bhmk: torch.Tensor,
    key_mask_bm: torch.Tensor,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """Flash attention where queries and keys differ in number and some keys are padding.

    The library's own unpadding assumes that one mask describes queries and keys, which holds for neither pack nor unpack.
    Here the padded keys are dropped and every query is kept, as ragged rows that flash attention knows natively.
    """
    b, h, q, k = query_bhqk.shape
    kept = key_mask_bm.flatten().nonzero().flatten()
    lengths_b = key_mask_bm.sum(dim=-1, dtype=torch.int32)

    def flatten(x_bhmk: torch.Tensor) -> torch.Tensor:
        return x_bhmk.transpose(1, 2).reshape(1, -1, h, k)

    output, _ = attention_interface(
        module,
        flatten(query_bhqk).transpose(1, 2),
        flatten(key_bhmk)[:, kept].transpose(1, 2),
        flatten(value_bhmk)[:, kept].transpose(1, 2),
        None,
        cu_seq_lens_q=torch.arange(0, (b + 1) * q, q, dtype=torch.int32, device=query_bhqk.device),
        cu_seq_lens_k=nn.functional.pad(lengths_b.cumsum(0, dtype=torch.int32), (1, 0)),
        max_length_q=q,
        max_length_k=int(lengths_b.max()),
        **kwargs,
    )
    return output.reshape(b, q, h, k), None


# ---------------------------------------------------------------------------------------------------------------------
# Attention: the same with absorbed projections
#
# A product with a weight is moved from the n tokens of X to the l slots of P: the heads then meet X itself, in all of its
# d channels, and where l is small, n x d x d multiply-adds for each projection of X become h x l x n x d.


# What a multiply-add of the absorbed form costs on a CPU, in those of the plain one: its products are of few rows, and its
# attention weights are written down.
ABSORBED_COST = 1.5


def multiply_adds(n: int, l: int, h: int, d: int, num_projections: int) -> tuple[int, int]:
    """Those of one attention between n tokens and l slots, with plain and with absorbed projections of the tokens.

    The pack projects tokens to keys and values, by one or two matrices; the unpack to queries, and its own output again.
    """
    plain = n * (num_projections * d * d + 2 * l * d)
    absorbed = n * 2 * h * l * d + 2 * l * d * d
    return plain, absorbed


def pays_to_absorb(n: int, l: int, h: int, d: int, num_projections: int) -> bool:
    plain, absorbed = multiply_adds(n, l, h, d, num_projections)
    return ABSORBED_COST * absorbed < plain


def is_plain_linear(module: nn.Module) -> bool:
    """Whether a module is its weight and its bias and no more, so that they may be used without a call.

    LoRA, quantization, offloading, tensor parallelism and ZeRO-3 put another class, another kind of weight or hooks there.
    """
    return (
        type(module) is nn.Linear
        and type(module.weight) in (nn.Parameter, torch.Tensor)
        and module.weight.shape == (module.out_features, module.in_features)
        and "forward" not in module.__dict__
        and not (module._forward_pre_hooks or module._forward_hooks)
        and not (module._backward_pre_hooks or module._backward_hooks)
    )


def masked_softmax(scores: torch.Tensor, key_mask_b11m: torch.Tensor | None) -> torch.Tensor:
    """Attention weights over the last axis, in the dtype of the scores; equal ones where a row has no key."""
    if key_mask_b11m is not None:
        scores = scores.masked_fill(~key_mask_b11m, torch.finfo(scores.dtype).min)
    softmax_dtype = torch.promote_types(scores.dtype, torch.float32)
    return nn.functional.softmax(scores, dim=-1, dtype=softmax_dtype).to(scores.dtype)


def key_mask(mask_b1qm: torch.Tensor | None) -> torch.Tensor | None:
    """The mask of SDPA's form, which is the same for all queries, as (b, 1, 1, m)."""
    return None if mask_b1qm is None else mask_b1qm[:, :, :1]


def zero_without_keys(x: torch.Tensor, key_mask_b11m: torch.Tensor | None) -> torch.Tensor:
    """Zeros in place of the values (b, ., ., .) of a row that has no key, as scaled dot product attention gives them."""
    return x if key_mask_b11m is None else x.masked_fill(~key_mask_b11m.any(dim=-1, keepdim=True), 0)


def absorbed_pack(
    query_bhlk: torch.Tensor,
    x_bnd: torch.Tensor,
    key_proj: nn.Linear,
    value_proj: nn.Linear,
    key_mask_b11n: torch.Tensor | None,
    scaling: float,
    dropout: float,
) -> torch.Tensor:
    """The pack attention (b, l, d) without keys and values of X.

    q . (W x + b) is (W' q) . x and a number that all keys share, which the softmax takes out. The sum of a (W x + b) over
    the tokens is W times the sum of a x, and b times the sum of the weights a, which is not one after dropout.
    """
    heads = query_bhlk.shape[1], query_bhlk.shape[3]
    key_weight_hkd, value_weight_hkd = key_proj.weight.unflatten(0, heads), value_proj.weight.unflatten(0, heads)
    absorbed_query_bhld = torch.einsum("bhlk,hkd->bhld", query_bhlk * scaling, key_weight_hkd)
    weights_bhln = masked_softmax(torch.einsum("bhld,bnd->bhln", absorbed_query_bhld, x_bnd), key_mask_b11n)
    if dropout > 0:
        weights_bhln = nn.functional.dropout(weights_bhln, p=dropout)
    context_bhld = torch.einsum("bhln,bnd->bhld", weights_bhln, x_bnd)
    y_blhk = torch.einsum("bhld,hkd->blhk", context_bhld, value_weight_hkd)
    bias_blhk = weights_bhln.sum(dim=-1).transpose(1, 2)[..., None] * value_proj.bias.unflatten(0, heads)
    y_bld = zero_without_keys(y_blhk + bias_blhk.to(y_blhk.dtype), key_mask_b11n).flatten(2)
    if key_proj is not value_proj:  # nothing depends on the bias of the keys: its gradient is zero
        y_bld, _ = join_gradients(y_bld, key_proj.bias)
    return y_bld


def absorbed_unpack(
    x_bnd: torch.Tensor,
    key_bhlk: torch.Tensor,
    value_bhlk: torch.Tensor,
    query_proj: nn.Linear,
    out_proj: nn.Linear,
    key_mask_b11l: torch.Tensor | None,
    scaling: float,
    dropout: float,
) -> torch.Tensor:
    """The unpack attention with its output projection, (b, n, d), without queries of X.

    (W x + b) . k is x . (W' k) and b . k, one number for each key; the output projection of the sum of a v over the slots
    is the sum of a times the output projection of v.
    """
    heads = key_bhlk.shape[1], key_bhlk.shape[3]
    key_bhlk = key_bhlk * scaling
    absorbed_key_bhld = torch.einsum("bhlk,hkd->bhld", key_bhlk, query_proj.weight.unflatten(0, heads))
    bias_bhl = torch.einsum("bhlk,hk->bhl", key_bhlk, query_proj.bias.unflatten(0, heads))
    scores_bnhl = torch.einsum("bnd,bhld->bnhl", x_bnd, absorbed_key_bhld)
    weights_bnhl = masked_softmax(scores_bnhl + bias_bhl[:, None].to(scores_bnhl.dtype), key_mask_b11l)
    if dropout > 0:  # in the plain form's order, so that a seed drops the same on a CPU, whichever form an engine allows
        weights_bnhl = nn.functional.dropout(weights_bnhl.transpose(1, 2).contiguous(), p=dropout).transpose(1, 2)
    absorbed_value_bhld = torch.einsum("bhlk,dhk->bhld", value_bhlk, out_proj.weight.unflatten(1, heads))
    absorbed_value_bhld = zero_without_keys(absorbed_value_bhld, key_mask_b11l)
    y_bnd = torch.einsum("bnhl,bhld->bnd", weights_bnhl, absorbed_value_bhld)
    return y_bnd + out_proj.bias.to(y_bnd.dtype)


# ---------------------------------------------------------------------------------------------------------------------
# Attention: the modules


def split_heads(x_bqd: torch.Tensor, num_heads: int) -> torch.Tensor:
    """(b, q, d) to (b, h, q, k)."""
    return x_bqd.unflatten(-1, (num_heads, -1)).transpose(1, 2)


class LunaAttention(nn.Module):
    """The nested attention of section 3.1: `LunaAttn(X, P, C)` of equation 5 with C = X.

    Pack (equation 3): P attends to X and gives the packed context Y_P. Unpack (equation 4): X attends to Y_P. Each is
    computed as the paper writes it or with absorbed projections, whichever is cheaper by its multiply-adds.
    """

    def __init__(self, config: LunaConfig, num_heads: int | None = None, num_packed_heads: int | None = None):
        super().__init__()
        self.config = config
        self.num_heads = num_heads or config.num_attention_heads
        self.num_packed_heads = num_packed_heads or config.packed_attention_heads or self.num_heads
        self.attention_dropout = config.attention_probs_dropout_prob
        self.is_causal = False  # SDPA and flash attention are causal by default

        d = config.hidden_size
        self.pack_q_proj = nn.Linear(d, d)
        self.unpack_q_proj = nn.Linear(d, d)
        if config.tie_key_value:
            self.pack_kv_proj = nn.Linear(d, d)
            self.unpack_kv_proj = nn.Linear(d, d)
        else:
            self.pack_k_proj = nn.Linear(d, d)
            self.pack_v_proj = nn.Linear(d, d)
            self.unpack_k_proj = nn.Linear(d, d)
            self.unpack_v_proj = nn.Linear(d, d)
        self.out_proj = nn.Linear(d, d)

    def forward(
        self,
        hidden_states: torch.Tensor,
        packed_state: torch.Tensor,
        pack_mask: torch.Tensor | None = None,
        unpack_mask: torch.Tensor | None = None,
        read_positions: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Returns Y_X (b, n, d), Y_P (b, l, d), and, from eager attention, unpack (b, h, n, l) and pack (b, h, l, n).

        With `read_positions` (b, r), Y_X and the unpack attention are of these tokens only.
        """
        x_bnd, p_bld = hidden_states, packed_state
        y_bld, pack_weights_bhln = self.pack(x_bnd, p_bld, pack_mask, **kwargs)
        y_bnd, unpack_weights_bhnl = self.unpack(take_positions(x_bnd, read_positions), y_bld, unpack_mask, **kwargs)
        return y_bnd, y_bld, unpack_weights_bhnl, pack_weights_bhln

    def pack(self, x_bnd, p_bld, mask, **kwargs) -> tuple[torch.Tensor, torch.Tensor | None]:
        """P attends to X: Y_P (b, l, d) and the weights (b, h, l, n)."""
        query = split_heads(self.pack_q_proj(p_bld), self.num_packed_heads)
        if self.config.tie_key_value:
            key_proj = value_proj = self.pack_kv_proj
        else:
            key_proj, value_proj = self.pack_k_proj, self.pack_v_proj
        num_projections = 1 if key_proj is value_proj else 2
        if self.absorbs(x_bnd.shape[1], p_bld.shape[1], self.num_packed_heads, num_projections, key_proj, value_proj):
            scaling = query.shape[-1] ** -0.5
            return absorbed_pack(query, x_bnd, key_proj, value_proj, key_mask(mask), scaling, self.dropout_now()), None
        key = split_heads(key_proj(x_bnd), self.num_packed_heads)
        value = key if value_proj is key_proj else split_heads(value_proj(x_bnd), self.num_packed_heads)
        return self.attend(query, key, value, mask, **kwargs)

    def unpack(self, x_bnd, y_bld, mask, **kwargs) -> tuple[torch.Tensor, torch.Tensor | None]:
        """X attends to Y_P: Y_X (b, n, d), after the output projection, and the weights (b, h, n, l)."""
        return self.unpack_projected(x_bnd, *self.project_packed_context(y_bld), mask, **kwargs)

    def project_packed_context(self, y_bld: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The keys and the values (b, h, l, k) that Y_P is for the unpack attention; one tensor where they are tied."""
        if self.config.tie_key_value:
            key = split_heads(self.unpack_kv_proj(y_bld), self.num_heads)
            return key, key
        return split_heads(self.unpack_k_proj(y_bld), self.num_heads), split_heads(self.unpack_v_proj(y_bld), self.num_heads)

    def unpack_projected(self, x_bnd, key_bhlk, value_bhlk, mask, **kwargs) -> tuple[torch.Tensor, torch.Tensor | None]:
        query_proj, out_proj = self.unpack_q_proj, self.out_proj
        if self.absorbs(x_bnd.shape[1], key_bhlk.shape[2], self.num_heads, 2, query_proj, out_proj):
            mask, scaling = key_mask(mask), key_bhlk.shape[-1] ** -0.5
            absorbed = absorbed_unpack(x_bnd, key_bhlk, value_bhlk, query_proj, out_proj, mask, scaling, self.dropout_now())
            return absorbed, None
        query = split_heads(query_proj(x_bnd), self.num_heads)
        y_bnd, weights_bhnl = self.attend(query, key_bhlk, value_bhlk, mask, **kwargs)
        return out_proj(y_bnd), weights_bhnl

    def absorbs(self, n: int, l: int, num_heads: int, num_projections: int, *projections: nn.Module) -> bool:
        """Whether to absorb `projections` of n tokens: where no backend but SDPA is asked for, and it saves work.

        An exported program is one for all lengths: it keeps the paper's form.
        """
        if self.config._attn_implementation != "sdpa" or torch.compiler.is_exporting():
            return False
        if not all(map(is_plain_linear, projections)):
            return False
        return pays_to_absorb(n, l, num_heads, self.config.hidden_size, num_projections)

    def dropout_now(self) -> float:
        return self.attention_dropout if self.training else 0.0

    def attend(self, query, key, value, mask, **kwargs) -> tuple[torch.Tensor, torch.Tensor | None]:
        """One softmax attention by the configured backend: (b, q, d) and, from eager, its weights (b, h, q, m)."""
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        kwargs |= {"scaling": query.shape[-1] ** -0.5, "dropout": self.dropout_now()}
        if mask is not None and "flash" in (self.config._attn_implementation or ""):
            output, weights = flash_attention_over_padded_keys(attention_interface, self, query, key, value, mask, **kwargs)
        else:
            output, weights = attention_interface(self, query, key, value, mask, **kwargs)
        return output.flatten(2), weights


class LunaCrossAttention(LunaAttention):
    """`LunaAttn(X, P, C)` of equation 5 where C is the encoder's output, in two parts.

    The first does not depend on X: generation computes it once for all of the tokens to come.
    """

    def __init__(self, config: LunaConfig):
        super().__init__(
            config, config.decoder_size("decoder_attention_heads"), config.decoder_size("decoder_packed_attention_heads")
        )

    def pack_context(self, context_bmd, p_bld, mask, **kwargs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """P attends to C: Y_P (b, l, d), and the keys and the values (b, h, l, k) that it is for X."""
        y_bld, _ = self.pack(context_bmd, p_bld, mask, **kwargs)
        return y_bld, *self.project_packed_context(y_bld)

    def forward(
        self,
        hidden_states: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        unpack_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """X attends to Y_P: Y_X (b, n, d) and, from eager attention, the weights (b, h, n, l)."""
        return self.unpack_projected(hidden_states, key, value, unpack_mask, **kwargs)


class LunaCausalAttention(nn.Module):
    """The causal attention of section 3.3, whose P holds nothing of X.

    A_pack = omega(P X'), which no later token changes; A_unpack = softmax(f(X, X, A_pack)) over the slots of P; and
    Y = f(A_unpack, A_pack, X), with f of equation 7. Keys of the pack attention have a projection of their own also where
    key and value are tied: these are those of f.
    """

    def __init__(self, config: LunaConfig):
        super().__init__()
        self.config = config
        self.num_heads = config.decoder_size("decoder_attention_heads")
        self.attention_dropout = config.attention_probs_dropout_prob
        self.causal_activation = CAUSAL_ACTIVATIONS[config.causal_activation]
        d = config.hidden_size
        self.pack_q_proj = nn.Linear(d, d)
        self.pack_k_proj = nn.Linear(d, d)
        self.unpack_q_proj = nn.Linear(d, d)
        if config.tie_key_value:
            self.unpack_kv_proj = nn.Linear(d, d)
        else:
            self.unpack_k_proj = nn.Linear(d, d)
            self.unpack_v_proj = nn.Linear(d, d)
        self.out_proj = nn.Linear(d, d)

    def pack_queries(self, p_bld: torch.Tensor) -> torch.Tensor:
        """What P asks of each token, (b, h, l, k): the same for all of X, so that generation computes it once."""
        queries_bhlk = split_heads(self.pack_q_proj(p_bld), self.num_heads)
        return queries_bhlk * queries_bhlk.shape[-1] ** -0.5

    def forward(
        self,
        hidden_states: torch.Tensor,
        pack_queries: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        packed_attention_mask: torch.Tensor | None = None,
        state: LunaCausalCacheLayer | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Y (b, n, d) and, from eager attention, A_unpack (b, h, n, l). A `state` of the tokens before goes on with these.

        Args:
            pack_queries: of P, (b or 1, h, l, k).
            attention_mask: (b, n), True for tokens; packed_attention_mask: (b, l), True for the slots that a row uses.
        """
        x_bnd = hidden_states
        pack_key_bhnk, query_bhnk = (
            split_heads(proj(x_bnd), self.num_heads) for proj in (self.pack_k_proj, self.unpack_q_proj)
        )
        if self.config.tie_key_value:
            key_bhnk = value_bhnk = split_heads(self.unpack_kv_proj(x_bnd), self.num_heads)
        else:
            key_bhnk, value_bhnk = (
                split_heads(proj(x_bnd), self.num_heads) for proj in (self.unpack_k_proj, self.unpack_v_proj)
            )
        pack_bhnl = self.causal_activation(torch.matmul(pack_key_bhnk, pack_queries.transpose(2, 3)))
        # With a state the same attention, which goes on from it.
        attend = causal_attention if state is None else state.attend
        y_bhnk, unpack_weights_bhnl, *_ = attend(
            query_bhnk * query_bhnk.shape[-1] ** -0.5,
            key_bhnk,
            value_bhnk,
            pack_bhnl,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            packed_attention_mask=packed_attention_mask,
            output_weights=self.config._attn_implementation == "eager",
        )
        return self.out_proj(y_bhnk.transpose(1, 2).flatten(2)), unpack_weights_bhnl


# ---------------------------------------------------------------------------------------------------------------------
# Layers


class LunaResidualLayer(GradientCheckpointingLayer):
    """What the layers of encoder and decoder share: residual connections with norms, and the feed-forward network."""

    def add_feed_forward(self, config: LunaConfig, intermediate_size: int) -> None:
        """Add the modules that come last in a layer."""
        self.norm_first = config.norm_first
        self.fc1 = nn.Linear(config.hidden_size, intermediate_size)
        self.fc2 = nn.Linear(intermediate_size, config.hidden_size)
        self.final_layer_norm = new_layer_norm(config)
        self.activation = ACT2FN[config.hidden_act]
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.activation_dropout = nn.Dropout(config.activation_dropout)

    def enter(self, norm: nn.LayerNorm, x: torch.Tensor) -> torch.Tensor:
        """What a sublayer reads of its stream: `norm_first` norms it."""
        return norm(x) if self.norm_first else x

    def leave(self, norm: nn.LayerNorm, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The stream after a sublayer whose result is y: normed here unless it was before."""
        x = x + self.dropout(y)
        return x if self.norm_first else norm(x)

    def feed_forward(self, x_bnd: torch.Tensor) -> torch.Tensor:
        """The feed-forward network with its residual connection."""
        h_bnf = self.activation_dropout(self.activation(self.fc1(self.enter(self.final_layer_norm, x_bnd))))
        return self.leave(self.final_layer_norm, x_bnd, self.fc2(h_bnf))


def new_layer_norm(config: LunaConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


class LunaLayer(LunaResidualLayer):
    """One Luna layer, equation 6. Only X passes through the output projection and the feed-forward network."""

    def __init__(self, config: LunaConfig):
        super().__init__()
        self.attention = LunaAttention(config)
        self.attention_layer_norm = new_layer_norm(config)
        self.packed_layer_norm = new_layer_norm(config)
        self.add_feed_forward(config, config.intermediate_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        packed_state: torch.Tensor,
        pack_mask: torch.Tensor | None = None,
        unpack_mask: torch.Tensor | None = None,
        read_positions: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """X (b, n, d) and P (b, l, d) to X' and P'; with `read_positions` (b, r), X' is (b, r, d), of these tokens only."""
        x_bnd, p_bld = hidden_states, packed_state
        y_bnd, y_bld, *_ = self.attention(
            self.enter(self.attention_layer_norm, x_bnd),
            self.enter(self.packed_layer_norm, p_bld),
            pack_mask,
            unpack_mask,
            read_positions,
            **kwargs,
        )
        x_bnd = self.leave(self.attention_layer_norm, take_positions(x_bnd, read_positions), y_bnd)
        p_bld = self.leave(self.packed_layer_norm, p_bld, y_bld)
        return self.feed_forward(x_bnd), p_bld


class LunaDecoderLayer(LunaResidualLayer):
    """Causal attention over the target; in an encoder-decoder, cross attention to the source; feed-forward network.

    P is what the causal attention packs with, as it is (also with `norm_first`), and what the cross attention packs the
    source with, which makes the P of the next layer. No token of the target enters P.
    """

    def __init__(self, config: LunaConfig):
        super().__init__()
        self.self_attention = LunaCausalAttention(config)
        self.self_attention_layer_norm = new_layer_norm(config)
        self.has_source = config.is_encoder_decoder
        if self.has_source:
            self.cross_attention = LunaCrossAttention(config)
            self.cross_attention_layer_norm = new_layer_norm(config)
            self.packed_layer_norm = new_layer_norm(config)
        self.add_feed_forward(config, config.decoder_size("decoder_ffn_dim"))

    def pack_source(
        self, packed_state: torch.Tensor, context: torch.Tensor | None, pack_mask: torch.Tensor | None, **kwargs
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """P (b, l, d) to P', and all that the layer's tokens read of P and the source.

        These are the pack queries (b, h, l, k) and, in an encoder-decoder, the keys and values of the packed context.
        """
        p_bld, queries_bhlk = packed_state, self.self_attention.pack_queries(packed_state)
        if not self.has_source:
            return p_bld, (queries_bhlk,)
        y_bld, key_bhlk, value_bhlk = self.cross_attention.pack_context(
            context, self.enter(self.packed_layer_norm, p_bld), pack_mask, **kwargs
        )
        return self.leave(self.packed_layer_norm, p_bld, y_bld), (queries_bhlk, key_bhlk, value_bhlk)

    def forward(
        self,
        hidden_states: torch.Tensor,
        packed_state: torch.Tensor | None,
        context: torch.Tensor | None = None,
        packed_source: tuple[torch.Tensor, ...] | None = None,
        attention_mask: torch.Tensor | None = None,
        packed_attention_mask: torch.Tensor | None = None,
        pack_mask: torch.Tensor | None = None,
        unpack_mask: torch.Tensor | None = None,
        state: LunaCausalCacheLayer | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None, tuple[torch.Tensor, ...]]:
        """X (b, n, d), P (b, l, d) and the source (b, m, d) to X', P' and what `pack_source` gave.

        Where that is given as `packed_source`, neither P nor the source is read.
        """
        x_bnd, p_bld = hidden_states, packed_state
        if packed_source is None:
            p_bld, packed_source = self.pack_source(p_bld, context, pack_mask, **kwargs)
        pack_queries, *key_value = packed_source
        y_bnd, _ = self.self_attention(
            self.enter(self.self_attention_layer_norm, x_bnd), pack_queries, attention_mask, packed_attention_mask, state
        )
        x_bnd = self.leave(self.self_attention_layer_norm, x_bnd, y_bnd)
        if self.has_source:
            y_bnd, _ = self.cross_attention(
                self.enter(self.cross_attention_layer_norm, x_bnd), *key_value, unpack_mask, **kwargs
            )
            x_bnd = self.leave(self.cross_attention_layer_norm, x_bnd, y_bnd)
        return self.feed_forward(x_bnd), p_bld, packed_source


# ---------------------------------------------------------------------------------------------------------------------
# Embeddings


def sinusoids(positions: torch.Tensor, dim: int) -> torch.Tensor:
    """Sines, then cosines, of `positions` (...) at dim / 2 wavelengths from 2 pi to 20,000 pi: (..., dim), float32."""
    half = dim // 2
    frequencies = torch.exp(torch.arange(half, device=positions.device) * (-math.log(10000) / (half - 1)))
    angles = positions[..., None].float() * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def scale_embeddings(x: torch.Tensor, config: LunaConfig) -> torch.Tensor:
    return x * math.sqrt(config.hidden_size) if config.scales_embeddings else x


class LunaEmbeddings(nn.Module):
    """Token and position embeddings with a layer norm; padded positions are zeroed."""

    def __init__(self, config: LunaConfig, vocab_size: int | None):
        """A `vocab_size` of None makes the embeddings of positions alone, beside word embeddings of another module."""
        super().__init__()
        self.config = config
        if vocab_size is not None:
            self.word_embeddings = nn.Embedding(vocab_size, config.hidden_size, config.pad_token_id)
        if config.position_embedding_type == "learned":
            self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size, config.pad_token_id)
        self.layer_norm = new_layer_norm(config) if config.embedding_layer_norm else nn.Identity()
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, inputs_embeds: torch.Tensor, position_ids: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> torch.Tensor:
        x_bnd = scale_embeddings(inputs_embeds, self.config)
        if self.config.position_embedding_type == "learned":
            x_bnd = x_bnd + self.position_embeddings(position_ids)
        else:
            x_bnd = x_bnd + sinusoids(position_ids, self.config.hidden_size).to(x_bnd.dtype)
        x_bnd = self.dropout(self.layer_norm(x_bnd))
        if attention_mask is not None:
            x_bnd = x_bnd * attention_mask[..., None].to(x_bnd.dtype)
        return x_bnd


class LunaPackedEmbeddings(nn.Module):
    """The l learned vectors that start P, with a layer norm; slots that a row does not use are zeroed."""

    def __init__(self, config: LunaConfig):
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.projection_length, config.hidden_size))
        self.layer_norm = new_layer_norm(config) if config.embedding_layer_norm else nn.Identity()
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, batch_size: int, length: int, packed_attention_mask: torch.Tensor | None) -> torch.Tensor:
        p_ld = scale_embeddings(self.weight[:length], self.config)
        if self.config.position_embedding_type == "sinusoidal":
            p_ld = p_ld + sinusoids(torch.arange(length, device=p_ld.device), p_ld.shape[-1]).to(p_ld.dtype)
        p_bld = self.dropout(self.layer_norm(p_ld).expand(batch_size, -1, -1))
        if packed_attention_mask is not None:
            p_bld = p_bld * packed_attention_mask[..., None].to(p_bld.dtype)
        return p_bld


# ---------------------------------------------------------------------------------------------------------------------
# Masks


# How collators for flash attention describe rows that they put one behind the other.
FLATTENED_BATCH_ARGUMENTS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")


def check_shape(name: str, tensor: torch.Tensor, axes: str, shape: tuple[int, ...], meaning: str) -> None:
    """Raise a ValueError unless `tensor` has `shape`, whose axes are named `axes` and whose values are `meaning`."""
    if tensor.shape != shape:
        raise ValueError(f"`{name}` has shape {tuple(tensor.shape)}, but must be {axes} = {tuple(shape)}, {meaning}.")


def to_bool_mask(name: str, mask: torch.Tensor | None) -> torch.Tensor | None:
    """A mask of any type as one of booleans: a value is zero, or it is not.

    Raises:
        ValueError: the mask is one of 0 and -inf, to be added to scores.
    """
    if mask is None:
        return None
    # Asking for values makes the host wait for the device: the usual masks, of integers and booleans, are not asked.
    if mask.is_floating_point() and not torch.compiler.is_compiling() and ((mask < 0).any() or not mask.any()):
        raise ValueError(
            f"`{name}` has values below zero, or none above, as masks that are added to scores have: give 1 for tokens and "
            "0 for padding."
        )
    return mask != 0


# ---------------------------------------------------------------------------------------------------------------------
# Models


# What auto_docstring says of arguments and outputs: of each class those that it has.
ARGUMENTS = r"""
    packed_state (`torch.FloatTensor` of shape `(batch_size, packed_length, hidden_size)`, *optional*):
        P to start from, in place of the learned vectors: the `packed_state` of the previous segment of a text that is read
        in segments. A row whose tokens are all padding hands it on unchanged.
    packed_attention_mask (`torch.Tensor` of shape `(batch_size, packed_length)`, *optional*):
        Which slots of the given `packed_state` each row uses: the `packed_attention_mask` that came with it.
    read_positions (`torch.LongTensor` of shape `(batch_size, num_read)`, *optional*):
        The tokens whose states are read: of others the last layer computes no more than P needs. `last_hidden_state`, also
        among the `hidden_states`, and the last layer's unpack attention are then of these tokens, in this order; -1 stands
        for a token that is not to be read.
    output_packed_states (`bool`, *optional*, defaults to `False`):
        Whether to give P as it enters the first layer and as it leaves each layer.
    labels (`torch.Tensor`, *optional*):
        For the masked language model, the original ids at masked positions, and for token classification class ids, both of
        shape `(batch_size, sequence_length)` with -100 elsewhere; with `masked_positions`, the ids at these and of their
        shape. For multiple choice, of shape `(batch_size,)`, the index of the right candidate. For sequence classification,
        of shape `(batch_size,)` or `(batch_size, num_labels)`, class ids; for multi label 0 or 1 for each class; for
        regression the values.
    masked_positions (`torch.LongTensor` of shape `(batch_size, num_masked)`, *optional*):
        The positions whose logits are wanted, filled up with -1 where a row has fewer. Logits and labels are then of the
        masked positions, in this order, and the label at a -1 is -100. Shapes stay the same from batch to batch, and the
        last layer computes nothing for other tokens.
    start_positions (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
        Index of the answer's first token; an index beyond the text is left out of the loss.
    end_positions (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
        Index of the answer's last token; an index beyond the text is left out of the loss.
    output_logits (`bool`, *optional*, defaults to `config.output_logits`):
        Whether to give logits also when labels are given. Without it only the positions with a label are projected to the
        vocabulary, which saves most of the head's time and memory. Without labels logits are always given.
    num_items_in_batch (`torch.Tensor` or `int`, *optional*):
        Number of labels in the whole batch, over all its micro-batches and processes: the loss is then the sum over the
        labels given here, divided by it.
"""
CHOICES_ARGUMENTS = r"""
    input_ids (`torch.LongTensor` of shape `(batch_size, num_choices, sequence_length)`):
        Token ids of each candidate.
    attention_mask (`torch.Tensor` of shape `(batch_size, num_choices, sequence_length)`, *optional*):
        1 for tokens, 0 for padding.
    position_ids (`torch.LongTensor` of shape `(batch_size, num_choices, sequence_length)`, *optional*):
        Positions of the tokens.
    inputs_embeds (`torch.FloatTensor` of shape `(batch_size, num_choices, sequence_length, hidden_size)`, *optional*):
        Embeddings in place of `input_ids`.
"""
DECODER_ARGUMENTS = r"""
    past_key_values (`LunaCache` or `LunaEncoderDecoderCache`, *optional*):
        What the model keeps of the tokens before these, of constant size: `model.new_cache()`, which is empty, or one that
        an earlier call filled. It is changed in place. Also called `cache`, as transformers does since 5.24.
    labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
        Ids to predict, -100 where none is: of a decoder-only model those of the tokens themselves, which are shifted
        inside; of an encoder-decoder those of the target, from which `decoder_input_ids` are made if these are not given.
    logits_to_keep (`int` or `torch.Tensor`, *optional*, defaults to 0):
        Give the logits of the last so many tokens only, or of those with these indices; 0 for all.
    encoder_outputs (`LunaModelOutput`, *optional*):
        What `model.get_encoder()` returned for the source; not needed once a cache has read it.
    decoder_position_ids (`torch.LongTensor` of shape `(batch_size, target_sequence_length)`, *optional*):
        Positions of the target's tokens, by default from `pad_token_id` + 1 on.
    use_cache (`bool`, *optional*):
        Whether to make and return a cache where none is given; by default `config.use_cache`, but not in training.
"""
OUTPUTS = r"""
    loss (`torch.FloatTensor` of shape `(1,)`, *optional*, with labels):
        Mean over the labels, or their sum / `num_items_in_batch`: cross-entropy in nats, or what `problem_type` says. For
        question answering the mean of the losses of the start and of the end.
    logits (`torch.FloatTensor`, *optional*):
        Scores, of shape `(batch_size, sequence_length, vocab_size)` from the masked language model, which with labels gives
        them only when asked for by `output_logits=True`, and with `masked_positions` `(batch_size, num_masked,
        vocab_size)`; `(batch_size, num_labels)` from sequence classification;
        `(batch_size, num_choices)` from multiple choice; `(batch_size, sequence_length, num_labels)` from token
        classification.
    start_logits (`torch.FloatTensor` of shape `(batch_size, sequence_length)`, *optional*, from question answering):
        Score of each token as the first of the answer; the lowest number at padding.
    end_logits (`torch.FloatTensor` of shape `(batch_size, sequence_length)`, *optional*, from question answering):
        Score of each token as the last of the answer; the lowest number at padding.
    last_hidden_state (`torch.FloatTensor` of shape `(batch_size, sequence_length, hidden_size)`):
        X after the last layer.
    packed_state (`torch.FloatTensor` of shape `(batch_size, packed_length, hidden_size)`):
        P after the last layer; for multiple choice one per choice, `(batch_size * num_choices, ...)`, and for pairs of
        texts (`classifier_pair`) one per text.
    packed_attention_mask (`torch.LongTensor` of shape `(batch_size, packed_length)`):
        1 for the slots of P that a row uses, 0 for the others.
    packed_states (`tuple(torch.FloatTensor)`, *optional*, with `output_packed_states=True`):
        P after the embeddings and after each layer.
    attentions (`tuple(torch.FloatTensor)`, *optional*, with `output_attentions=True` and eager attention):
        Unpack attention of each layer, `(batch_size, num_heads, sequence_length, packed_length)`.
    pack_attentions (`tuple(torch.FloatTensor)`, *optional*, with `output_attentions=True` and eager attention):
        Pack attention of each layer, `(batch_size, num_heads, packed_length, sequence_length)`.
"""


@auto_docstring(custom_intro="Output of [`LunaModel`].", custom_args=OUTPUTS)
@dataclass
class LunaModelOutput(ModelOutput):
    last_hidden_state: torch.FloatTensor | None = None
    packed_state: torch.FloatTensor | None = None
    packed_attention_mask: torch.LongTensor | None = None
    packed_states: tuple[torch.FloatTensor, ...] | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    pack_attentions: tuple[torch.FloatTensor, ...] | None = None

    @property
    def packed_mean(self) -> torch.FloatTensor:
        """Mean of P over the slots that a row uses, (b, d): a sentence embedding."""
        return masked_mean(self.packed_state, self.packed_attention_mask)


@auto_docstring(custom_intro="Output of Luna with a head.", custom_args=OUTPUTS)
@dataclass
class LunaHeadOutput(ModelOutput):
    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    start_logits: torch.FloatTensor | None = None
    end_logits: torch.FloatTensor | None = None
    packed_state: torch.FloatTensor | None = None
    packed_attention_mask: torch.LongTensor | None = None
    packed_states: tuple[torch.FloatTensor, ...] | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    pack_attentions: tuple[torch.FloatTensor, ...] | None = None


def encoder_fields(outputs: LunaModelOutput) -> dict[str, torch.Tensor]:
    """What a head's output hands on of the encoder's."""
    return {name: value for name, value in outputs.items() if name != "last_hidden_state"}


def with_encoder_defaults(forward: Callable) -> Callable:
    """`output_attentions=True` asks for both attentions of a layer, where `capture_outputs` would record one per flag.

    And an encoder has no cache, whatever `config.use_cache` says of a decoder.
    """

    @wraps(forward)
    def wrapper(self, *args, **kwargs):
        kwargs.setdefault("output_pack_attentions", kwargs.get("output_attentions", self.config.output_attentions) or False)
        return forward(self, *args, **kwargs | {"use_cache": False})

    return wrapper


@auto_docstring
class LunaPreTrainedModel(PreTrainedModel):
    config: LunaConfig
    base_model_prefix = "luna"
    supports_gradient_checkpointing = True
    _no_split_modules = ["LunaLayer", "LunaDecoderLayer", "LunaEmbeddings", "LunaPackedEmbeddings"]
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _keys_to_ignore_on_load_unexpected = [r"^lm_head\.", r"^decoder\."]  # a pretrained model as the encoder of another
    _can_record_outputs = {
        "hidden_states": LunaLayer,
        "attentions": OutputRecorder(LunaAttention, index=2),
        "pack_attentions": OutputRecorder(LunaAttention, index=3),
    }

    def encode(
        self, *inputs, read_positions: torch.Tensor | None, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[LunaModelOutput, torch.Tensor]:
        """Run the encoder of a model with a head that reads P and, of X, the tokens at `read_positions` (b, r) or all.

        Returns its outputs and the tokens that are read, (b, r, d). States and attentions that are asked for are of all
        tokens, which the last layer then computes.
        """
        flags = [f"output_{name}" for name in self._can_record_outputs]
        if any(kwargs.get(flag, getattr(self.config, flag, False)) for flag in flags):
            outputs = self.luna(*inputs, return_dict=True, **kwargs)
            return outputs, take_positions(outputs.last_hidden_state, read_positions)
        outputs = self.luna(*inputs, read_positions=read_positions, return_dict=True, **kwargs)
        return outputs, outputs.last_hidden_state

    def classify(
        self, input_ids, attention_mask, position_ids, inputs_embeds, *packed, **kwargs
    ) -> tuple[torch.Tensor, LunaModelOutput]:
        """Logits (b, c) of a model with a classification head over whole texts, and the encoder's outputs."""
        inputs = input_ids, attention_mask, position_ids, inputs_embeds
        if self.classifier.pooling == "packed_mean_unmasked_no_cls":
            inputs = tuple(None if x is None else x[:, 1:] for x in inputs)
        input_ids, attention_mask, _, inputs_embeds = inputs
        given = input_ids if input_ids is not None else inputs_embeds
        read_positions = self.classifier.read_positions(given, attention_mask)
        outputs, x_brd = self.encode(*inputs, *packed, read_positions=read_positions, **kwargs)
        is_used_bl = outputs.packed_attention_mask != 0
        return self.classifier(x_brd, outputs.packed_state, is_used_bl, attention_mask), outputs

    def embed_inputs(
        self, input_ids: torch.Tensor | None, attention_mask: torch.Tensor | None, inputs_embeds: torch.Tensor | None
    ) -> torch.Tensor:
        """Word embeddings (b, n, d) of the one of `input_ids` and `inputs_embeds` that is given."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give either `input_ids` or `inputs_embeds`, and not both.")
        if inputs_embeds is not None:
            return inputs_embeds
        self.warn_if_padding_and_no_attention_mask(input_ids, attention_mask)
        return self.embeddings.word_embeddings(input_ids)

    def make_position_ids(
        self, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor | None, count_b: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Positions as RoBERTa counts them, from `pad_token_id` + 1 at the first token that is not padding.

        After `count_b` tokens of each row they go on.
        """
        count_b1 = 0 if count_b is None else count_b[:, None]
        if attention_mask is None:
            positions_n = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device)
            return (positions_n + self.config.pad_token_id + 1)[None] + count_b1
        is_token_bn = attention_mask.long()
        return (is_token_bn.cumsum(-1) + count_b1) * is_token_bn + self.config.pad_token_id

    def make_mask(self, queries: torch.Tensor, keys: torch.Tensor, key_mask: torch.Tensor | None):
        """The mask of one attention in the form of the configured backend; None where no key is padding."""
        if key_mask is None:
            return None
        return create_bidirectional_mask(
            config=self.config, inputs_embeds=queries, attention_mask=key_mask, encoder_hidden_states=keys
        )

    def refuse_flattened_batch(self, inputs_embeds, attention_mask, position_ids, kwargs: dict) -> None:
        flattening = [name for name in FLATTENED_BATCH_ARGUMENTS if kwargs.pop(name, None) is not None]
        may_restart = position_ids is not None and attention_mask is None and inputs_embeds.shape[0] == 1
        # Asking for values makes the host wait for the device: only where nothing else tells.
        if not flattening and may_restart and not torch.compiler.is_compiling():
            flattening = ["position_ids"] if (position_ids.diff(dim=-1) < 0).any() else []
        if flattening:
            raise ValueError(
                f"`{flattening[0]}` says that the rows of the batch are flattened into one, which Luna would pack into one "
                "P: pad the rows, with an ordinary padding collator in place of DataCollatorWithFlattening, and with "
                "`unpad_inputs=False` in sentence-transformers."
            )

    def check_length(self, n: int, position_ids: torch.Tensor | None, instead: str) -> None:
        """Raise a ValueError where there are no positions for n tokens; `instead` says what to do."""
        limit = self.config.max_sequence_length
        if limit is not None and n > limit and position_ids is None:
            raise ValueError(
                f"The input has {n} tokens, but `max_position_embeddings` = {self.config.max_position_embeddings} has "
                f"positions for {limit}: {instead}."
            )

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, LunaPackedEmbeddings):
            init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)


@auto_docstring
class LunaModel(LunaPreTrainedModel):
    def __init__(self, config: LunaConfig):
        super().__init__(config)
        if config.is_decoder:
            raise ValueError(
                "`is_decoder` is True: the configuration is that of a decoder-only model, which has no encoder: load it "
                "with AutoModelForCausalLM."
            )
        self.embeddings = LunaEmbeddings(config, config.vocab_size)
        self.packed_embeddings = nn.ModuleList(
            LunaPackedEmbeddings(config) for _ in range(1 if config.contextual_projection else config.num_hidden_layers)
        )
        self.layers = nn.ModuleList(
            LunaLayer(config) for _ in range(1 if config.share_layer_weights else config.num_hidden_layers)
        )
        if config.norm_first:
            self.final_layer_norm = new_layer_norm(config)
            self.packed_final_layer_norm = new_layer_norm(config)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embeddings.word_embeddings = value

    @with_encoder_defaults
    @merge_with_config_defaults
    @capture_outputs
    @auto_docstring(custom_args=ARGUMENTS)
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        packed_state: torch.FloatTensor | None = None,
        packed_attention_mask: torch.Tensor | None = None,
        read_positions: torch.LongTensor | None = None,
        output_packed_states: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | LunaModelOutput:
        kwargs.pop("use_cache")
        inputs_embeds = self.embed_inputs(input_ids, attention_mask, inputs_embeds)
        self.refuse_flattened_batch(inputs_embeds, attention_mask, position_ids, kwargs)
        self.check_shapes(inputs_embeds, attention_mask, position_ids, packed_state, packed_attention_mask)
        attention_mask = to_bool_mask("attention_mask", attention_mask)
        packed_attention_mask = to_bool_mask("packed_attention_mask", packed_attention_mask)
        b, n, _ = inputs_embeds.shape
        if read_positions is not None:
            check_positions("read_positions", read_positions, b)

        if position_ids is None:
            position_ids = self.make_position_ids(inputs_embeds, attention_mask)
        x_bnd = self.embeddings(inputs_embeds, position_ids, attention_mask)

        given_packed_state = packed_state
        if packed_state is None:
            # P is cut to the padded length, not to the longest row: the mask gives the same result without making the
            # host wait for the device, and the shapes stay static for torch.compile.
            l = min(self.config.projection_length, n) if self.config.dynamic_projection else self.config.projection_length
            if self.config.dynamic_projection and attention_mask is not None:
                slots_l = torch.arange(l, device=x_bnd.device)
                packed_attention_mask = slots_l < attention_mask.sum(-1, keepdim=True)
            packed_state = self.packed_embeddings[0](b, l, packed_attention_mask)

        pack_mask = self.make_mask(packed_state, x_bnd, attention_mask)
        unpack_mask = self.make_mask(x_bnd, packed_state, packed_attention_mask)

        packed_states = [packed_state]
        for i in range(self.config.num_hidden_layers):
            if i > 0 and not self.config.contextual_projection:
                packed_state = self.packed_embeddings[i](b, packed_state.shape[1], packed_attention_mask)
            layer = self.layers[0 if self.config.share_layer_weights else i]
            read_of_layer = read_positions if i == self.config.num_hidden_layers - 1 else None
            if read_of_layer is not None:
                queries = x_bnd[:, :1].expand(-1, read_of_layer.shape[1], -1)  # the mask has their shape
                unpack_mask = self.make_mask(queries, packed_state, packed_attention_mask)
            x_bnd, packed_state = layer(x_bnd, packed_state, pack_mask, unpack_mask, read_of_layer, **kwargs)
            if not self.config.contextual_projection:  # the next layer does not read this P
                x_bnd, packed_state = join_gradients(x_bnd, packed_state)
            if output_packed_states:
                packed_states.append(packed_state)

        if self.config.norm_first:
            x_bnd, packed_state = self.final_layer_norm(x_bnd), self.packed_final_layer_norm(packed_state)
        if given_packed_state is not None and attention_mask is not None:
            has_tokens_b11 = attention_mask.any(dim=-1)[:, None, None]
            packed_state = torch.where(has_tokens_b11, packed_state, given_packed_state.to(packed_state.dtype))
        x_bnd, packed_state = join_gradients(x_bnd, packed_state)
        if packed_attention_mask is None:
            packed_attention_mask = packed_state.new_ones(packed_state.shape[:2])

        return LunaModelOutput(
            last_hidden_state=x_bnd,
            packed_state=packed_state,
            packed_attention_mask=packed_attention_mask.long(),
            packed_states=(*packed_states[:-1], packed_state) if output_packed_states else None,
        )

    def check_shapes(self, inputs_embeds, attention_mask, position_ids, packed_state, packed_attention_mask) -> None:
        b, n, d = inputs_embeds.shape
        self.check_length(n, position_ids, "truncate it, or read it in segments with `packed_state`")
        if attention_mask is not None:
            check_shape(
                "attention_mask", attention_mask, "(batch_size, sequence_length)", (b, n), "1 for tokens and 0 for padding"
            )
        if packed_state is None:
            if packed_attention_mask is not None:
                raise ValueError("`packed_attention_mask` describes `packed_state`: give both or neither.")
            return
        if not self.config.contextual_projection:
            raise ValueError(
                "`packed_state` was given to a model with `contextual_projection=False`, whose layers each start from "
                "learned vectors and cannot read it."
            )
        if packed_state.ndim != 3 or packed_state.shape[0] != b or packed_state.shape[2] != d:
            raise ValueError(
                f"`packed_state` has shape {tuple(packed_state.shape)}, but must be (batch_size, packed_length, "
                f"hidden_size) with batch_size = {b} and hidden_size = {d}."
            )
        if packed_attention_mask is not None:
            check_shape(
                "packed_attention_mask",
                packed_attention_mask,
                "(batch_size, packed_length)",
                packed_state.shape[:2],
                "the mask that came with `packed_state`",
            )


class LunaLMHead(nn.Module):
    """Dense, activation, layer norm, and a decoder that is tied to the token embeddings unless the config unties it."""

    def __init__(self, config: LunaConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.layer_norm = new_layer_norm(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.layer_norm(self.activation(self.dense(hidden_states))))


def positions_with_labels(labels_bn: torch.Tensor, r: int) -> torch.Tensor:
    """The first r positions of each row whose label is not -100, in order, (b, r); where there are fewer, others follow."""
    return (labels_bn != -100).int().argsort(dim=-1, descending=True, stable=True)[:, :r]


@auto_docstring
class LunaForMaskedLM(LunaPreTrainedModel):
    _tied_weights_keys = {"lm_head.decoder.weight": "luna.embeddings.word_embeddings.weight"}

    def __init__(self, config: LunaConfig):
        super().__init__(config)
        self.luna = LunaModel(config)
        self.lm_head = LunaLMHead(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.lm_head.decoder = new_embeddings

    @can_return_tuple
    @auto_docstring(custom_args=ARGUMENTS)
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        packed_state: torch.FloatTensor | None = None,
        packed_attention_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        masked_positions: torch.LongTensor | None = None,
        output_logits: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | LunaHeadOutput:
        given = input_ids if input_ids is not None else inputs_embeds
        if given is not None:
            self.check_positions_and_labels(masked_positions, labels, *given.shape[:2])
        if output_logits is None:
            output_logits = self.config.output_logits
        gives_logits = labels is None or output_logits or masked_positions is not None
        read_positions = masked_positions
        # How many tokens have a label is known to no compiler: a compiled model is to be given `masked_positions`.
        if not gives_logits and not torch.compiler.is_compiling():
            most = int((labels != -100).sum(dim=-1).max())
            read_positions = positions_with_labels(labels, max(most, 1))
            labels = labels.gather(1, read_positions)

        inputs = input_ids, attention_mask, position_ids, inputs_embeds, packed_state, packed_attention_mask
        outputs, x_brd = self.encode(*inputs, read_positions=read_positions, **kwargs)
        logits_brv = self.lm_head(x_brd) if gives_logits else None
        loss = None
        if labels is not None:
            if masked_positions is not None:  # all of a fixed number, without waiting for the labels' values
                logits_rv, labels_r = logits_brv.flatten(0, 1), labels.flatten()
            else:
                has_label_br = labels != -100
                logits_rv = logits_brv[has_label_br] if gives_logits else self.lm_head(x_brd[has_label_br])
                labels_r = labels[has_label_br]
            loss = self.loss_function(logits_rv, labels_r, vocab_size=self.config.vocab_size, **kwargs)

        return LunaHeadOutput(loss=loss, logits=logits_brv, **encoder_fields(outputs))

    def check_positions_and_labels(self, masked_positions, labels, b: int, n: int) -> None:
        shape, axes, meaning = (b, n), "(batch_size, sequence_length)", "-100 where no token is to be predicted"
        if masked_positions is not None:
            check_positions("masked_positions", masked_positions, b)
            shape, axes = masked_positions.shape, "(batch_size, num_masked)"
            meaning = "as `masked_positions` is, -100 where that is -1"
        if labels is not None:
            check_shape("labels", labels, axes, shape, meaning)


# ---------------------------------------------------------------------------------------------------------------------
# Heads for fine-tuning


def sequence_classification_loss(
    logits_bc: torch.Tensor,
    labels: torch.Tensor,
    config: LunaConfig,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """The loss of `config.problem_type`, which is inferred from the labels, and kept, where the config names none.

    Single label: labels (b,) of integers, -100 where there is none. Multi label: (b, c) of 0 and 1. Regression: (b,) or
    (b, c). The library's own function leaves `num_items_in_batch` out for the last two.
    """
    b, c = logits_bc.shape
    problem_type = config.problem_type
    if problem_type is None:
        if c == 1:
            problem_type = "regression"
        else:
            problem_type = "multi_label_classification" if labels.is_floating_point() else "single_label_classification"
    shape = (b,) if problem_type == "single_label_classification" else (b, c)
    if labels.shape != shape and not (c == 1 and labels.shape == (b,)):
        raise ValueError(
            f"`labels` has shape {tuple(labels.shape)}, but `problem_type` {problem_type!r} with `num_labels` = {c} "
            f"needs {shape}."
        )
    config.problem_type = problem_type
    if problem_type == "single_label_classification":
        return mean_loss(nn.functional.cross_entropy, logits_bc, labels.view(b), num_items_in_batch)
    multi_label = problem_type == "multi_label_classification"
    loss_function = nn.functional.binary_cross_entropy_with_logits if multi_label else nn.functional.mse_loss
    return mean_loss(loss_function, logits_bc, labels.view(b, c).float(), num_items_in_batch)


def mean_loss(
    loss_function: Callable, logits: torch.Tensor, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None
) -> torch.Tensor:
    """The mean over the labels, or, of a part of a batch, their sum / `num_items_in_batch`; in float32."""
    logits, labels = logits.float(), labels.to(logits.device)
    if num_items_in_batch is None:
        return loss_function(logits, labels)
    return loss_function(logits, labels, reduction="sum") / num_items_in_batch


class LunaPackedAttentionPooling(nn.Module):
    """Attention of the first token over P, with an output projection and a layer norm."""

    def __init__(self, config: LunaConfig):
        super().__init__()
        d = config.hidden_size
        self.head_dim = d // config.num_attention_heads
        self.attention_dropout = config.attention_probs_dropout_prob
        self.q_proj = nn.Linear(d, d)
        self.k_proj = nn.Linear(d, d)
        self.v_proj = nn.Linear(d, d)
        self.out_proj = nn.Linear(d, d)
        self.layer_norm = nn.LayerNorm(d, eps=config.layer_norm_eps)

    def forward(self, first_bd: torch.Tensor, p_bld: torch.Tensor, is_used_bl: torch.Tensor) -> torch.Tensor:
        """The first token and P to one vector per row, (b, d)."""
        query, key, value = (
            x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for x in (self.q_proj(first_bd)[:, None], self.k_proj(p_bld), self.v_proj(p_bld))
        )
        mask = torch.zeros_like(is_used_bl, dtype=query.dtype).masked_fill(~is_used_bl, torch.finfo(query.dtype).min)
        y_b1hk, _ = eager_attention_forward(
            self, query, key, value, mask[:, None, None], scaling=self.head_dim**-0.5, dropout=self.attention_dropout
        )
        return self.layer_norm(self.out_proj(y_b1hk.flatten(1)))


class LunaClassificationHead(nn.Module):
    """One vector per row, as `classifier_pooling` says; then dense, an activation and the output projection.

    With `pair`, a value of `classifier_pair`, two rows after each other are one pair of texts.
    """

    def __init__(self, config: LunaConfig, num_labels: int, pair: str | None = None):
        super().__init__()
        self.pooling = config.classifier_pooling
        self.pair = pair
        if self.pooling == "packed_max":
            self.in_proj = nn.Linear(config.hidden_size, config.hidden_size)
        elif self.pooling == "packed_attention":
            self.attention = LunaPackedAttentionPooling(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        size = config.hidden_size * {None: 1, "concat": 2, "interact": 4}[pair]
        hidden_size = config.hidden_size if config.classifier_hidden_size is None else config.classifier_hidden_size
        self.dense = nn.Linear(size, hidden_size) if hidden_size else None
        self.activation = ACT2FN[config.classifier_act]
        self.out_proj = nn.Linear(hidden_size or size, num_labels, bias=config.classifier_bias)

    def read_positions(self, inputs: torch.Tensor | None, attention_mask: torch.Tensor | None) -> torch.Tensor | None:
        """The tokens that are read, (b, 1): the first that is not padding; None for all, of which the mean is taken.

        Where only P is read, the first token stands for none: it costs next to nothing, and no shape is empty.
        """
        if self.pooling in ("mean", "mean_unmasked") or inputs is None:
            return None
        if attention_mask is None:
            return inputs.new_zeros((inputs.shape[0], 1), dtype=torch.long)
        return (attention_mask != 0).int().argmax(dim=-1, keepdim=True)  # with left padding it is not at 0

    def forward(
        self, x_brd: torch.Tensor, p_bld: torch.Tensor, is_used_bl: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """The tokens at `read_positions`, P and its slots in use to logits (b, c), or (b / 2, c) of pairs."""
        is_token_bn = None if attention_mask is None else attention_mask != 0
        features = self.pool(x_brd, p_bld, is_token_bn, is_used_bl)
        if self.pair is not None:
            first, second = features.unflatten(0, (-1, 2)).unbind(dim=1)
            others = [second * first, second - first] if self.pair == "interact" else []
            features = torch.cat([second, first, *others], dim=-1)
        if self.dense is not None:
            features = self.activation(self.dense(self.dropout(features)))
        return self.out_proj(self.dropout(features))

    def pool(
        self,
        x_brd: torch.Tensor,
        p_bld: torch.Tensor,
        is_token_bn: torch.Tensor | None,
        is_used_bl: torch.Tensor,
    ) -> torch.Tensor:
        """The sentence representation (b, d): it depends on no padded position and on no unused slot of P.

        The unmasked means do, as in the official Long Range Arena models: over all positions, and over the slots of P
        that any row uses.
        """
        if self.pooling == "packed_mean":
            return masked_mean(p_bld, is_used_bl)
        if self.pooling in ("packed_mean_unmasked", "packed_mean_unmasked_no_cls"):
            return masked_mean(p_bld, is_used_bl.any(dim=0, keepdim=True))
        if self.pooling == "packed_max":
            projected_bld = self.in_proj(p_bld)
            pooled_bd = projected_bld.masked_fill(~is_used_bl[..., None], torch.finfo(projected_bld.dtype).min).amax(dim=1)
            # A row without tokens uses no slot: the linear map after this would overflow, to NaN.
            return pooled_bd.masked_fill(~is_used_bl.any(dim=1, keepdim=True), 0)
        if self.pooling == "mean_unmasked" or (self.pooling == "mean" and is_token_bn is None):
            return x_brd.mean(dim=1)
        if self.pooling == "mean":
            return masked_mean(x_brd, is_token_bn)
        first_bd = x_brd[:, 0]
        return first_bd if self.pooling == "cls" else self.attention(first_bd, p_bld, is_used_bl)


def masked_mean(x_bqd: torch.Tensor, mask_bq: torch.Tensor) -> torch.Tensor:
    mask_bq1 = mask_bq[..., None].to(x_bqd.dtype)
    return (x_bqd * mask_bq1).sum(dim=1) / mask_bq1.sum(dim=1).clamp(min=1)


def flatten_texts(
    what: str, num_texts: int | None, input_ids, attention_mask, position_ids, inputs_embeds
) -> tuple[torch.Tensor | None, ...]:
    """The inputs of several texts per row, of `num_texts` or any number, with each text in a row of its own."""
    given = input_ids if input_ids is not None else inputs_embeds
    ndim = 3 if given is input_ids else 4
    if given is not None and (given.ndim != ndim or num_texts not in (None, given.shape[1])):
        raise ValueError(
            f"{what} needs `input_ids` of shape (batch_size, {num_texts or 'num_choices'}, sequence_length), or "
            f"`inputs_embeds` with hidden_size after these, but got {tuple(given.shape)}."
        )
    return tuple(None if x is None else x.flatten(0, 1) for x in (input_ids, attention_mask, position_ids, inputs_embeds))


@auto_docstring(custom_intro="Luna with a head over whole texts: single label, multi label or regression by `problem_type`.")
class LunaForSequenceClassification(LunaPreTrainedModel):
    def __init__(self, config: LunaConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.luna = LunaModel(config)
        self.classifier = LunaClassificationHead(config, config.num_labels, config.classifier_pair)
        self.post_init()

    @can_return_tuple
    @auto_docstring(custom_args=ARGUMENTS)
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        packed_state: torch.FloatTensor | None = None,
        packed_attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | LunaHeadOutput:
        inputs = input_ids, attention_mask, position_ids, inputs_embeds
        if self.config.classifier_pair is not None:
            inputs = flatten_texts("A pair of texts", 2, *inputs)
        logits_bc, outputs = self.classify(*inputs, packed_state, packed_attention_mask, **kwargs)
        loss = None
        if labels is not None:
            loss = sequence_classification_loss(logits_bc, labels, self.config, num_items_in_batch)
        return LunaHeadOutput(loss=loss, logits=logits_bc, **encoder_fields(outputs))


@auto_docstring(
    custom_intro="Luna with a head that scores each of several candidate texts, such as the answers to a question."
)
class LunaForMultipleChoice(LunaPreTrainedModel):
    def __init__(self, config: LunaConfig):
        super().__init__(config)
        self.luna = LunaModel(config)
        self.classifier = LunaClassificationHead(config, num_labels=1)
        self.post_init()

    @can_return_tuple
    @auto_docstring(custom_args=ARGUMENTS + CHOICES_ARGUMENTS)
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | LunaHeadOutput:
        given = input_ids if input_ids is not None else inputs_embeds
        inputs = flatten_texts("Multiple choice", None, input_ids, attention_mask, position_ids, inputs_embeds)
        logits_bc, outputs = self.classify(*inputs, **kwargs)
        logits_bc = logits_bc.view(given.shape[:2])
        loss = None
        if labels is not None:
            check_shape("labels", labels, "(batch_size,)", given.shape[:1], "the index of the right candidate")
            loss = mean_loss(nn.functional.cross_entropy, logits_bc, labels, num_items_in_batch)
        return LunaHeadOutput(loss=loss, logits=logits_bc, **encoder_fields(outputs))


@auto_docstring(custom_intro="Luna with a head over each token, for tagging.")
class LunaForTokenClassification(LunaPreTrainedModel):
    def __init__(self, config: LunaConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.luna = LunaModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    @auto_docstring(custom_args=ARGUMENTS)
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        packed_state: torch.FloatTensor | None = None,
        packed_attention_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | LunaHeadOutput:
        outputs = self.luna(
            input_ids,
            attention_mask,
            position_ids,
            inputs_embeds,
            packed_state,
            packed_attention_mask,
            return_dict=True,
            **kwargs,
        )
        logits_bnc = self.classifier(self.dropout(outputs.last_hidden_state))
        loss = None
        if labels is not None:
            meaning = "-100 where no token is to be tagged"
            check_shape("labels", labels, "(batch_size, sequence_length)", logits_bnc.shape[:2], meaning)
            loss = self.loss_function(logits_bnc, labels, self.config, **kwargs)
        return LunaHeadOutput(loss=loss, logits=logits_bnc, **encoder_fields(outputs))


@auto_docstring(custom_intro="Luna with a head that marks the first and the last token of an answer in the text.")
class LunaForQuestionAnswering(LunaPreTrainedModel):
    def __init__(self, config: LunaConfig):
        super().__init__(config)
        self.luna = LunaModel(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    @can_return_tuple
    @auto_docstring(custom_args=ARGUMENTS)
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        packed_state: torch.FloatTensor | None = None,
        packed_attention_mask: torch.Tensor | None = None,
        start_positions: torch.LongTensor | None = None,
        end_positions: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | LunaHeadOutput:
        outputs = self.luna(
            input_ids,
            attention_mask,
            position_ids,
            inputs_embeds,
            packed_state,
            packed_attention_mask,
            return_dict=True,
            **kwargs,
        )
        logits_bn2 = self.qa_outputs(outputs.last_hidden_state)
        if attention_mask is not None:  # otherwise the loss would depend on how much padding there is
            logits_bn2 = logits_bn2.masked_fill((attention_mask == 0)[..., None], torch.finfo(logits_bn2.dtype).min)
        start_logits_bn, end_logits_bn = logits_bn2.unbind(dim=-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            for name, positions_b in (("start_positions", start_positions), ("end_positions", end_positions)):
                check_shape(name, positions_b, "(batch_size,)", logits_bn2.shape[:1], "the index of a token")
            loss = self.loss_function(
                start_logits_bn.float(), end_logits_bn.float(), start_positions, end_positions, **kwargs
            )
        return LunaHeadOutput(loss=loss, start_logits=start_logits_bn, end_logits=end_logits_bn, **encoder_fields(outputs))


# ---------------------------------------------------------------------------------------------------------------------
# Decoder

# How the library's outputs and generate() call the cache: "cache" since transformers 5.24.
CACHE_NAME = "cache" if "cache" in Seq2SeqLMOutput.__dataclass_fields__ else "past_key_values"


class LunaCache(Cache):
    """What a decoder-only model keeps of the tokens before: the sums of each layer's causal attention and their number.

    It takes the same memory after any number of tokens. What P asks of a token depends on the weights alone, and is kept
    beside the state of the rows: once, for all of them.
    """

    def __init__(self, config: LunaConfig):
        super().__init__(layers=[LunaCausalCacheLayer() for _ in range(config.num_hidden_layers)])
        self.packed_sources: dict[int, tuple[torch.Tensor, ...]] = {}
        self.packed_attention_mask = None

    def read_source(self, i: int) -> tuple[torch.Tensor, ...] | None:
        """What layer i gave as `packed_source`, or None; with gradients, P is to get its own from every call."""
        return None if torch.is_grad_enabled() else self.packed_sources.get(i)

    def write_source(self, i: int, packed_source: tuple[torch.Tensor, ...]) -> None:
        if not torch.is_grad_enabled():
            self.packed_sources[i] = packed_source

    def reset(self) -> None:
        super().reset()
        self.packed_sources = {}


class LunaEncoderDecoderCache(EncoderDecoderCache):
    """What an encoder-decoder keeps: of the target the same as `LunaCache`, and of the source its packed context.

    The cross half has one ordinary layer, of length l, for each layer of the decoder: its keys are the pack queries, its
    values the keys and, where they are not tied, the values of the packed context, side by side. One more holds the slots
    of P that each row uses. The encoder's output is not needed once these are written.
    """

    def __init__(self, config: LunaConfig):
        self.config = config
        self.num_layers = config.decoder_size("decoder_layers")
        super().__init__(Cache(layers=[LunaCausalCacheLayer() for _ in range(self.num_layers)]), self.new_cross_half())
        self.is_updated = {}

    def new_cross_half(self) -> Cache:
        return Cache(layers=[DynamicLayer() for _ in range(self.num_layers + 1)])

    def check_dynamic_cache(self, method: str) -> None:
        """Nothing to check: both halves can be cropped, repeated and selected."""

    def reset(self) -> None:
        self.self_attention_cache.reset()
        self.cross_attention_cache, self.is_updated = self.new_cross_half(), {}

    @property
    def packed_attention_mask(self) -> torch.Tensor | None:
        """The slots of P that each row uses, (b, l) of booleans; None for all."""
        layer = self.cross_attention_cache.layers[-1]
        return layer.keys[:, 0, :, 0] if layer.is_initialized else None

    @packed_attention_mask.setter
    def packed_attention_mask(self, mask_bl: torch.Tensor | None) -> None:
        if mask_bl is not None:
            self.cross_attention_cache.update(mask_bl[:, None, :, None], mask_bl[:, None, :, None], self.num_layers)

    def read_source(self, i: int) -> tuple[torch.Tensor, ...] | None:
        if not self.is_updated.get(i):
            return None
        layer = self.cross_attention_cache.layers[i]
        if self.config.tie_key_value:
            return layer.keys, layer.values, layer.values
        return layer.keys, *layer.values.chunk(2, dim=-1)

    def write_source(self, i: int, packed_source: tuple[torch.Tensor, ...]) -> None:
        queries_bhlk, key_bhlk, value_bhlk = packed_source
        values = key_bhlk if self.config.tie_key_value else torch.cat([key_bhlk, value_bhlk], dim=-1)
        self.cross_attention_cache.update(queries_bhlk, values, i)
        self.is_updated[i] = True


def causal_half(cache: LunaCache | LunaEncoderDecoderCache) -> Cache:
    return cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache


def tokens_read(cache: Cache | None) -> torch.Tensor | None:
    """How many tokens of each row a cache has read, (b,), without padding; None where it has read nothing."""
    state = None if cache is None else causal_half(cache).layers[0].state
    return None if state is None else state.count


def with_either_cache_name(forward: Callable) -> Callable:
    """Take `cache`, as transformers calls it since 5.24, and `past_key_values`, as before, for the same argument."""

    @wraps(forward)
    def wrapper(self, *args, cache=None, **kwargs):
        if cache is not None:
            if kwargs.get("past_key_values") is not None:
                raise ValueError("`cache` and `past_key_values` are two names of one argument: give one of them.")
            kwargs["past_key_values"] = cache
        return forward(self, *args, **kwargs)

    return wrapper


@auto_docstring(
    custom_intro="The decoder: all of [`LunaForCausalLM`], and in [`LunaForConditionalGeneration`] what follows the encoder."
)
class LunaDecoder(LunaPreTrainedModel):
    _can_record_outputs = {
        "hidden_states": LunaDecoderLayer,
        "attentions": OutputRecorder(LunaCausalAttention, index=1),
        "cross_attentions": OutputRecorder(LunaCrossAttention, index=1),
    }

    def __init__(self, config: LunaConfig):
        super().__init__(config)
        self.num_layers = config.decoder_size("decoder_layers")
        # An encoder-decoder has one vocabulary, embedded by the encoder's module, unless the target has its own.
        self.embeddings = LunaEmbeddings(
            config, config.target_vocab_size if config.is_encoder_decoder else config.vocab_size
        )
        self.reads_packed_state = config.is_encoder_decoder and config.contextual_projection
        if not self.reads_packed_state:
            self.packed_embeddings = nn.ModuleList(LunaPackedEmbeddings(config) for _ in range(self.num_layers))
        self.layers = nn.ModuleList(
            LunaDecoderLayer(config) for _ in range(1 if config.share_layer_weights else self.num_layers)
        )
        if config.norm_first:
            self.final_layer_norm = new_layer_norm(config)
            if config.is_encoder_decoder:
                self.packed_final_layer_norm = new_layer_norm(config)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding | None:
        return getattr(self.embeddings, "word_embeddings", None)

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embeddings.word_embeddings = value

    def new_cache(self) -> LunaCache | LunaEncoderDecoderCache:
        """The state before the first token."""
        return (LunaEncoderDecoderCache if self.config.is_encoder_decoder else LunaCache)(self.config)

    @with_either_cache_name
    @merge_with_config_defaults
    @capture_outputs
    @auto_docstring(custom_args=ARGUMENTS + DECODER_ARGUMENTS)
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        packed_state: torch.FloatTensor | None = None,
        packed_attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.FloatTensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | BaseModelOutputWithPastAndCrossAttentions:
        inputs_embeds = self.embed_inputs(input_ids, attention_mask, inputs_embeds)
        self.refuse_flattened_batch(inputs_embeds, attention_mask, position_ids, kwargs)
        cache = self.new_cache() if past_key_values is None and use_cache else past_key_values
        b, n, _ = inputs_embeds.shape
        self.check_cache(cache, b)
        if cache is not None and self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            raise ValueError(
                "`past_key_values` is given while gradient checkpointing computes layers again, which would read the text "
                "twice: call `model.gradient_checkpointing_disable()`, or leave the cache out."
            )
        num_before = 0 if cache is None else cache.get_seq_length()
        self.check_length(
            num_before + n, position_ids, 'shorten it, or train a model with `position_embedding_type="sinusoidal"`'
        )
        attention_mask = self.mask_of_new_tokens(attention_mask, b, n, num_before)
        if position_ids is None:
            position_ids = self.make_position_ids(inputs_embeds, attention_mask, tokens_read(cache))
        x_bnd = self.embeddings(inputs_embeds, position_ids, attention_mask)

        first = None if cache is None else cache.read_source(0)
        if first is not None:
            packed_attention_mask, l = cache.packed_attention_mask, first[0].shape[2]
        elif self.config.is_encoder_decoder:
            self.check_source(encoder_hidden_states, packed_state, b)
            packed_attention_mask, l = to_bool_mask("packed_attention_mask", packed_attention_mask), packed_state.shape[1]
        else:
            packed_attention_mask, l = None, self.config.projection_length
        pack_mask = unpack_mask = None
        if self.config.is_encoder_decoder:
            slots_bl0 = x_bnd.new_empty(b, l, 0)  # the masks have their shape
            unpack_mask = self.make_mask(x_bnd, slots_bl0, packed_attention_mask)
            if first is None:
                encoder_attention_mask = to_bool_mask("encoder_attention_mask", encoder_attention_mask)
                pack_mask = self.make_mask(slots_bl0, encoder_hidden_states, encoder_attention_mask)
                if cache is not None:
                    cache.packed_attention_mask = packed_attention_mask

        for i in range(self.num_layers):
            packed_source = None if cache is None else cache.read_source(i)
            if packed_source is None and not self.reads_packed_state:
                # Without a source P is the same for all rows.
                packed_state = self.packed_embeddings[i](
                    b if self.config.is_encoder_decoder else 1, l, packed_attention_mask
                )
            state = None if cache is None else causal_half(cache).layers[i]
            x_bnd, packed_state, packed_source = self.layers[0 if self.config.share_layer_weights else i](
                x_bnd,
                packed_state,
                encoder_hidden_states,
                packed_source,
                attention_mask,
                packed_attention_mask,
                pack_mask,
                unpack_mask,
                state,
                **kwargs,
            )
            if first is None:
                if cache is not None:
                    cache.write_source(i, packed_source)
                if not self.reads_packed_state:  # the next layer does not read this P
                    x_bnd, packed_state = join_gradients(x_bnd, packed_state)

        if self.config.norm_first:
            x_bnd = self.final_layer_norm(x_bnd)
            if self.config.is_encoder_decoder and first is None:
                packed_state = self.packed_final_layer_norm(packed_state)
        if first is None:  # nothing reads the last P
            x_bnd, _ = join_gradients(x_bnd, packed_state)
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=x_bnd, **{CACHE_NAME: cache})

    def mask_of_new_tokens(
        self, attention_mask: torch.Tensor | None, b: int, n: int, num_before: int
    ) -> torch.Tensor | None:
        """The last n columns of a mask that may also describe the tokens before, as booleans (b, n)."""
        if attention_mask is None:
            return None
        shape = (b, n if attention_mask.shape[-1] == n else num_before + n)
        meaning = "1 for tokens and 0 for padding, with or without those that the cache has read"
        check_shape("attention_mask", attention_mask, "(batch_size, sequence_length)", shape, meaning)
        return to_bool_mask("attention_mask", attention_mask)[:, -n:]

    def check_source(self, encoder_hidden_states, packed_state, b: int) -> None:
        d = self.config.hidden_size
        for name, states in (("encoder_hidden_states", encoder_hidden_states), ("packed_state", packed_state)):
            if states is None:
                raise ValueError(
                    f"`{name}` is missing: a decoder with a source needs the encoder's output, unless its cache has read it."
                )
            if states.ndim != 3 or states.shape[0] != b or states.shape[2] != d:
                raise ValueError(
                    f"`{name}` has shape {tuple(states.shape)}, but must be (batch_size, length, hidden_size) with "
                    f"batch_size = {b} and hidden_size = {d}."
                )

    def check_cache(self, cache: Cache | None, b: int | None = None) -> None:
        """Raise a ValueError unless the cache is one of this model and, with `b`, has read so many rows, or nothing."""
        if cache is None:
            return
        cache_class = LunaEncoderDecoderCache if self.config.is_encoder_decoder else LunaCache
        if not isinstance(cache, cache_class):
            raise ValueError(
                f"`past_key_values` is a {type(cache).__name__}, but Luna remembers sums and not tokens: give a "
                f"{cache_class.__name__}, which `model.new_cache()` makes."
            )
        layers = causal_half(cache).layers
        if len(layers) != self.num_layers:
            raise ValueError(
                f"`past_key_values` is of another model: it has {len(layers)} layers, but this model {self.num_layers}."
            )
        state = layers[0].state
        if state is None:
            return
        h = self.config.decoder_size("decoder_attention_heads")
        found, own = tuple(state.key_slots.shape[1:3]), (h, self.config.hidden_size // h)
        if found != own:
            raise ValueError(
                f"`past_key_values` is of another model: it has {found[0]} heads of size {found[1]}, but this model "
                f"{own[0]} of size {own[1]}."
            )
        slots = state.key_slots.shape[3], self.config.projection_length
        if slots[0] != slots[1] and not self.config.is_encoder_decoder:  # where there is a source, its length decides
            raise ValueError(
                f"`past_key_values` is of another model: its P has {slots[0]} slots, but this model's {slots[1]}."
            )
        if b is not None and state.count.shape[0] != b:
            raise ValueError(
                f"`past_key_values` has read {state.count.shape[0]} rows, but the batch has {b}: give each batch a cache of "
                "its own, or use its `batch_repeat_interleave` or `batch_select_indices`."
            )


# ---------------------------------------------------------------------------------------------------------------------
# Models that generate


class LunaGenerationMixin(GenerationMixin):
    """What generate() needs to know of Luna's cache."""

    def _prepare_cache_for_generation(self, generation_config, model_kwargs: dict, *args, **kwargs) -> None:
        """As in transformers, but a new cache is one of Luna's."""
        if model_kwargs.get(CACHE_NAME) is not None or generation_config.use_cache is False:
            super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
            return
        if generation_config.cache_implementation not in (None, "dynamic"):
            raise ValueError(
                f"`cache_implementation` is {generation_config.cache_implementation!r}, but Luna has one kind of cache, "
                "whose size does not grow: leave the argument out."
            )
        model_kwargs[CACHE_NAME] = self.new_cache()
        if generation_config.is_assistant:
            model_kwargs[CACHE_NAME].activate_past_recording()

    def _prepare_position_ids_for_generation(self, inputs_tensor, model_kwargs) -> None:
        """None: the decoder counts positions from its cache and the mask, and from `pad_token_id` + 1, not from 0."""

    @wraps(GenerationMixin.prepare_inputs_for_generation)  # by its signature generate() knows that it takes inputs_embeds
    def prepare_inputs_for_generation(self, input_ids, next_sequence_length: int | None = None, *args, **kwargs) -> dict:
        # The library takes all tokens for new ones where the cache has read them all.
        if next_sequence_length is not None and next_sequence_length < 1:
            raise ValueError(
                f"`{CACHE_NAME}` has read {input_ids.shape[1] - next_sequence_length} tokens, and `input_ids` has "
                f"{input_ids.shape[1]}: give all that it has read, and at least one more."
            )
        return super().prepare_inputs_for_generation(input_ids, next_sequence_length, *args, **kwargs)

    def save_cache(self, cache: LunaCache | LunaEncoderDecoderCache, path: str | os.PathLike) -> None:
        """Write what the model keeps of a text to a file in safetensors, from which `load_cache` goes on, bit for bit.

        What is kept for taking tokens back is left out.

        Raises:
            ValueError: the cache is not one of this model, or has read nothing.
        """
        self.get_decoder().check_cache(cache)
        states = [layer.state for layer in causal_half(cache).layers]
        if None in states:
            raise ValueError("`cache` has read no token: there is nothing to save.")
        tensors = {f"layers.{i}.{name}": x for i, state in enumerate(states) for name, x in state._asdict().items()}
        if isinstance(cache, EncoderDecoderCache):
            for i, layer in enumerate(cache.cross_attention_cache.layers):
                if layer.is_initialized:
                    tensors |= {f"source.{i}.keys": layer.keys, f"source.{i}.values": layer.values}
        facts = {"num_layers": len(states), "num_seen": cache.get_seq_length()}
        # Some may be views of one tensor, which the format does not have.
        tensors = {name: x.clone(memory_format=torch.contiguous_format) for name, x in tensors.items()}
        save_file(tensors, path, metadata={"luna_cache": json.dumps(facts)})

    def load_cache(self, path: str | os.PathLike) -> LunaCache | LunaEncoderDecoderCache:
        """Read a file that `save_cache` wrote, onto the model's device.

        Raises:
            ValueError: it is no such file, or of another model.
        """
        try:
            with safe_open(path, "pt", device=str(self.device)) as file:
                facts = json.loads(file.metadata()["luna_cache"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (SafetensorError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a cache that `save_cache` wrote.") from error
        cache = self.new_cache()
        layers = causal_half(cache).layers
        if ("source.0.keys" in tensors) != isinstance(cache, EncoderDecoderCache):
            raise ValueError(f"{path} is of another kind of model: only one of both has a source.")
        if facts["num_layers"] != len(layers):
            raise ValueError(f"{path} is of another model: it has {facts['num_layers']} layers, this model {len(layers)}.")
        for i, layer in enumerate(layers):
            state = CausalState(*(tensors[f"layers.{i}.{name}"] for name in CausalState._fields))
            layer.lazy_initialization(state.key_slots, state.slot_values)
            layer.state, layer.num_seen = state, facts["num_seen"]
        if isinstance(cache, EncoderDecoderCache):
            for i in range(len(layers) + 1):
                if f"source.{i}.keys" in tensors:
                    cache.cross_attention_cache.update(tensors[f"source.{i}.keys"], tensors[f"source.{i}.values"], i)
            cache.is_updated = dict.fromkeys(range(len(layers)), True)
        self.get_decoder().check_cache(cache)
        return cache


@auto_docstring(
    custom_intro="Luna as a language model that reads from left to right: a decoder, with learned P in each layer."
)
class LunaForCausalLM(LunaPreTrainedModel, LunaGenerationMixin):
    _tied_weights_keys = {"lm_head.weight": "luna.embeddings.word_embeddings.weight"}

    def __init__(self, config: LunaConfig):
        if config.is_encoder_decoder:
            raise ValueError(
                "`is_encoder_decoder` is True, but a decoder-only model has no encoder: set it to False, or load the model "
                "with AutoModelForSeq2SeqLM."
            )
        config = copy.deepcopy(config)
        config.is_decoder = True
        super().__init__(config)
        self.luna = LunaDecoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_decoder(self, *args, **kwargs) -> LunaDecoder:
        return self.luna

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.lm_head = new_embeddings

    def new_cache(self) -> LunaCache:
        """The state before the first token, to be given as `past_key_values` (or `cache`) with each piece of a text."""
        return self.luna.new_cache()

    @with_either_cache_name
    @can_return_tuple
    @auto_docstring(custom_args=ARGUMENTS + DECODER_ARGUMENTS)
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        past_key_values: LunaCache | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | CausalLMOutputWithPast:
        if kwargs.get("packed_state") is not None:
            raise ValueError(
                "`packed_state` was given to a decoder-only model, whose layers each have a learned P: to go on with a "
                "text, give the cache that has read it as `past_key_values`."
            )
        outputs = self.luna(
            input_ids,
            attention_mask,
            position_ids,
            inputs_embeds,
            past_key_values=past_key_values,
            use_cache=keeps_cache(self, use_cache, labels),
            return_dict=True,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits_bnv = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            meaning = "the ids of the tokens themselves, -100 where none is to be predicted"
            check_shape("labels", labels, "(batch_size, sequence_length)", logits_bnv.shape[:2], meaning)
            loss = self.loss_function(logits_bnv, labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits_bnv,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{CACHE_NAME: outputs[CACHE_NAME] if CACHE_NAME in outputs else None},
        )


def keeps_cache(model: LunaPreTrainedModel, use_cache: bool | None, labels: torch.Tensor | None) -> bool:
    """Whether a model makes a cache where it was given none: training does not read it."""
    if use_cache is None:
        return model.config.use_cache and labels is None and not model.training
    return use_cache


@auto_docstring(custom_intro="Luna as an encoder-decoder, for translation and other tasks from text to text.")
class LunaForConditionalGeneration(LunaPreTrainedModel, LunaGenerationMixin):
    def __init__(self, config: LunaConfig):
        if not config.is_encoder_decoder:
            raise ValueError(
                "`is_encoder_decoder` is False, but the model has an encoder and a decoder: set it to True, or load the "
                "model with AutoModelForCausalLM."
            )
        super().__init__(config)
        self.luna = LunaModel(config)
        self.decoder = LunaDecoder(config)
        self.lm_head = nn.Linear(config.hidden_size, self.target_embeddings.num_embeddings, bias=False)
        owner = "luna" if config.target_vocab_size is None else "decoder"
        self._tied_weights_keys = {"lm_head.weight": f"{owner}.embeddings.word_embeddings.weight"}
        self.post_init()

    @property
    def target_embeddings(self) -> nn.Embedding:
        """The word embeddings of the target: the source's, unless the target has a vocabulary of its own."""
        return (self.luna if self.config.target_vocab_size is None else self.decoder).get_input_embeddings()

    def get_encoder(self, *args, **kwargs) -> LunaModel:
        return self.luna

    def get_decoder(self, *args, **kwargs) -> LunaDecoder:
        return self.decoder

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.lm_head = new_embeddings

    def resize_token_embeddings(self, *args, **kwargs) -> nn.Embedding:
        """As in transformers, for the one vocabulary of source and target."""
        if self.config.target_vocab_size is not None and (args or kwargs):
            raise ValueError(
                f"The target has a vocabulary of its own, `target_vocab_size` = {self.config.target_vocab_size}: only one "
                "that source and target share can be resized."
            )
        return super().resize_token_embeddings(*args, **kwargs)

    def new_cache(self) -> LunaEncoderDecoderCache:
        """The state before the first token, to be given as `past_key_values` (or `cache`)."""
        return self.decoder.new_cache()

    def prepare_decoder_input_ids_from_labels(self, labels: torch.LongTensor) -> torch.LongTensor:
        """The tokens that the decoder reads to predict `labels`: these, one place later, after the start."""
        if self.config.decoder_start_token_id is None:
            raise ValueError("`decoder_start_token_id` is None: set it in the configuration, or give `decoder_input_ids`.")
        start = labels.new_full((labels.shape[0], 1), self.config.decoder_start_token_id)
        return torch.cat([start, labels[:, :-1].masked_fill(labels[:, :-1] == -100, self.config.pad_token_id)], dim=1)

    @with_either_cache_name
    @can_return_tuple
    @auto_docstring(custom_args=ARGUMENTS + DECODER_ARGUMENTS)
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: LunaModelOutput | None = None,
        past_key_values: LunaEncoderDecoderCache | None = None,
        position_ids: torch.LongTensor | None = None,
        decoder_position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        decoder_inputs_embeds: torch.FloatTensor | None = None,
        packed_state: torch.FloatTensor | None = None,
        packed_attention_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | Seq2SeqLMOutput:
        is_read = isinstance(past_key_values, LunaEncoderDecoderCache) and past_key_values.read_source(0) is not None
        if encoder_outputs is None and not is_read and (input_ids is not None or inputs_embeds is not None):
            inputs = input_ids, attention_mask, position_ids, inputs_embeds, packed_state, packed_attention_mask
            encoder_outputs = self.luna(*inputs, return_dict=True, **kwargs)
        encoder_outputs = self.check_encoder_outputs(encoder_outputs)
        if decoder_input_ids is None and decoder_inputs_embeds is None:
            if labels is None:
                raise ValueError("Give `decoder_input_ids`, or `labels` to make them of; generate() makes them itself.")
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        if decoder_input_ids is not None and decoder_input_ids.ndim != 2:
            raise ValueError(
                f"`decoder_input_ids` has shape {tuple(decoder_input_ids.shape)}, but must be (batch_size, "
                "target_sequence_length)."
            )
        if decoder_inputs_embeds is None:
            decoder_inputs_embeds = self.target_embeddings(decoder_input_ids)
        outputs = self.decoder(
            attention_mask=decoder_attention_mask,
            position_ids=decoder_position_ids,
            inputs_embeds=decoder_inputs_embeds,
            packed_state=encoder_outputs.packed_state,
            packed_attention_mask=encoder_outputs.packed_attention_mask,
            encoder_hidden_states=encoder_outputs.last_hidden_state,
            encoder_attention_mask=attention_mask,
            past_key_values=past_key_values,
            use_cache=keeps_cache(self, use_cache, labels),
            return_dict=True,
            **kwargs,
        )
        logits_bnv = self.lm_head(outputs.last_hidden_state)
        loss = None
        if labels is not None:
            meaning = "the ids that the decoder is to predict, -100 where none is"
            check_shape("labels", labels, "(batch_size, target_sequence_length)", logits_bnv.shape[:2], meaning)
            loss = self.loss_function(logits_bnv, labels, vocab_size=logits_bnv.shape[-1], shift_labels=labels, **kwargs)
        return Seq2SeqLMOutput(
            loss=loss,
            logits=logits_bnv,
            decoder_hidden_states=outputs.hidden_states,
            decoder_attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
            encoder_last_hidden_state=encoder_outputs.last_hidden_state,
            encoder_hidden_states=encoder_outputs.hidden_states,
            encoder_attentions=encoder_outputs.attentions,
            **{CACHE_NAME: outputs[CACHE_NAME] if CACHE_NAME in outputs else None},
        )

    def check_encoder_outputs(self, encoder_outputs) -> LunaModelOutput:
        if encoder_outputs is None:
            return LunaModelOutput()
        if isinstance(encoder_outputs, (tuple, list)):
            encoder_outputs = LunaModelOutput(*encoder_outputs[:3])
        if getattr(encoder_outputs, "packed_state", None) is None:
            raise ValueError(
                "`encoder_outputs` has no `packed_state`, which the decoder starts from: give what `model.get_encoder()` "
                "returns."
            )
        return encoder_outputs


# ---------------------------------------------------------------------------------------------------------------------
# The Hub and the Auto classes


for auto_name, class_name in AUTO_CLASSES.items():
    globals()[class_name].register_for_auto_class(auto_name)  # save_pretrained brings the code
# Code that was loaded from a Hub repository must not replace the classes that other repositories use.
if not __name__.startswith("transformers_modules."):
    transformers.AutoConfig.register("luna", LunaConfig, exist_ok=True)
    for auto_name, class_name in AUTO_CLASSES.items():
        getattr(transformers, auto_name).register(LunaConfig, globals()[class_name], exist_ok=True)
    # By this table the Trainer's label smoothing knows whose labels it has to shift.
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["luna"] = AUTO_CLASSES["AutoModelForCausalLM"]


__all__ = [
    "LunaForCausalLM",
    "LunaForConditionalGeneration",
    "LunaForMaskedLM",
    "LunaForMultipleChoice",
    "LunaForQuestionAnswering",
    "LunaForSequenceClassification",
    "LunaForTokenClassification",
    "LunaModel",
    "LunaPreTrainedModel",
]
