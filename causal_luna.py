# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Luna's causal attention on tensors (section 3.3), and the layer of a cache that remembers what it has read.

Equation 7 defines f(x, y, z)_t = (1/t) x_t sum over j <= t of y_j^T z_j. With pack weights A = omega(P K^T), the unpack
weights are softmax(f(Q, K, A)), and the output is f(unpack weights, A, V). All that a token needs of those before it is two
sums, of k x l and l x k numbers in each head, and how many there were.

Shape suffixes: b batch, n tokens, l packed slots, h heads, k head size, and in the two sums of f, i and o the sizes of what
is multiplied from the left and of what comes out.
"""

import math
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import nn
from transformers.cache_utils import CacheLayerMixin

# omega: what makes pack weights of scores, any function onto positive numbers that looks at one token at a time.
CAUSAL_ACTIVATIONS = {
    "softplus": partial(nn.functional.softplus, beta=math.log(2)),  # log2(1 + 2^x), the official code's
    "softplus_natural": nn.functional.softplus,
    "elu": lambda scores: nn.functional.elu(scores) + 1,
}

# Tokens that are taken together; docs/benchmarks/causal has the measurement.
CHUNK_SIZE = 64


class CausalState(NamedTuple):
    """What is remembered of the tokens read: two sums in float32 (in float64 for such inputs), and their number."""

    key_slots: torch.Tensor  # (b, h, k, l), sum of k_j^T a_j
    slot_values: torch.Tensor  # (b, h, l, k), sum of a_j^T v_j
    count: torch.Tensor  # (b,), int64: tokens that are not padding


def sum_dtype(x: torch.Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


# ---------------------------------------------------------------------------------------------------------------------
# Sums of outer products


def take_chunk(x_bhni: torch.Tensor, start: int, dtype: torch.dtype) -> torch.Tensor:
    """Tokens from `start` on, always CHUNK_SIZE of them: after the last one, zeros.

    Products of one shape are computed in one way. So a token's result is the same, to the bit, whatever comes after it.
    """
    chunk = x_bhni[:, :, start : start + CHUNK_SIZE].to(dtype).contiguous()
    missing = CHUNK_SIZE - chunk.shape[2]
    return nn.functional.pad(chunk, (0, 0, 0, missing)) if missing else chunk


class CausalSums(torch.autograd.Function):
    """x_t (state + sum over j <= t of y_j^T z_j) for all t, or with `reverse` over j >= t, and the last state.

    Chunk by chunk: products of CHUNK_SIZE x CHUNK_SIZE within one, and the state for all those before it. The gradients
    are three such sums again, so that nothing but the inputs is kept for them.
    """

    @staticmethod
    def forward(
        x_bhni: torch.Tensor, y_bhni: torch.Tensor, z_bhno: torch.Tensor, state_bhio: torch.Tensor, reverse: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        dtype = state_bhio.dtype
        n = x_bhni.shape[2]
        output_bhno = state_bhio.new_empty(*z_bhno.shape)
        starts = range(0, n, CHUNK_SIZE)
        with torch.autocast(state_bhio.device.type, enabled=False):
            for start in reversed(starts) if reverse else starts:
                x, y, z = (take_chunk(tensor, start, dtype) for tensor in (x_bhni, y_bhni, z_bhno))
                scores = x @ y.mT
                scores = scores.triu_() if reverse else scores.tril_()
                output = x @ state_bhio + scores @ z
                output_bhno[:, :, start : start + CHUNK_SIZE] = output[:, :, : n - start]
                state_bhio = state_bhio + y.mT @ z
        return output_bhno, state_bhio

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        *tensors, ctx.reverse = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, grad_bhno: torch.Tensor, grad_state_bhio: torch.Tensor):
        x, y, z, state = ctx.saved_tensors
        grad_x, _ = CausalSums.apply(grad_bhno, z, y, state.mT, ctx.reverse)
        grad_y, _ = CausalSums.apply(z, grad_bhno, x, grad_state_bhio.mT, not ctx.reverse)
        grad_z, grad_state = CausalSums.apply(y, x, grad_bhno, grad_state_bhio, not ctx.reverse)
        return grad_x.to(x.dtype), grad_y.to(y.dtype), grad_z.to(z.dtype), grad_state, None


def causal_sums(
    x_bhni: torch.Tensor, y_bhni: torch.Tensor, z_bhno: torch.Tensor, state_bhio: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """x_t (state + sum over j <= t of y_j^T z_j) for all t, and the last state: chunked, or one step of the recurrence."""
    # To prepare for gradients takes longer than the sums of a few tokens.
    chunked = CausalSums.apply if torch.is_grad_enabled() else CausalSums.forward
    if state_bhio is None:
        b, h, _, i = y_bhni.shape
        zeros = z_bhno.new_zeros(b, h, i, z_bhno.shape[-1], dtype=sum_dtype(z_bhno))
        return chunked(x_bhni, y_bhni, z_bhno, zeros, False)
    if x_bhni.shape[2] > 1:
        return chunked(x_bhni, y_bhni, z_bhno, state_bhio, False)
    # No matrix products, which autocast would round in the backward pass.
    state_bhio = add_products(y_bhni, z_bhno, state_bhio)
    return (x_bhni.mT.to(state_bhio.dtype) * state_bhio).sum(dim=2, keepdim=True), state_bhio


def add_products(y_bhni: torch.Tensor, z_bhno: torch.Tensor, state_bhio: torch.Tensor) -> torch.Tensor:
    """The state after some tokens alone, to the bit that of `CausalSums`."""
    dtype = state_bhio.dtype
    if y_bhni.shape[2] == 1:  # a product and a sum, as in a chunk of one token and zeros
        return state_bhio + y_bhni.mT.to(dtype) * z_bhno.to(dtype)
    for start in range(0, y_bhni.shape[2], CHUNK_SIZE):
        state_bhio = state_bhio + take_chunk(y_bhni, start, dtype).mT @ take_chunk(z_bhno, start, dtype)
    return state_bhio


# ---------------------------------------------------------------------------------------------------------------------
# Attention


def causal_attention(
    query_bhnk: torch.Tensor,
    key_bhnk: torch.Tensor,
    value_bhnk: torch.Tensor,
    pack_bhnl: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    state: CausalState | None = None,
    dropout: float = 0.0,
    packed_attention_mask: torch.Tensor | None = None,
    output_weights: bool = True,
) -> tuple[torch.Tensor, torch.Tensor | None, CausalState]:
    """Luna's causal attention, each token reading itself and those before it.

    Args:
        query_bhnk: already divided by the square root of the head size.
        pack_bhnl: omega of the pack attention's scores.
        attention_mask: (b, n), False where a token is padding, anywhere in its row: it is not counted, adds nothing and
            gets zeros.
        state: of the tokens before these; None where there are none.
        dropout: of the unpack weights.
        packed_attention_mask: (b, l), False where a slot of P is not to be read.
        output_weights: without them a GPU kernel may do the work.

    Returns:
        The output (b, h, n, k), the unpack weights (b, h, n, l) before dropout or None, and the state after the last token.
    """
    is_token_b1n1 = None if attention_mask is None else attention_mask.bool()[:, None, :, None]
    pack_bhnl, count_bn = without_padding(pack_bhnl, attention_mask, state)
    share_b1n1 = count_bn.clamp(min=1)[:, None, :, None].to(sum_dtype(query_bhnk)).reciprocal()
    inputs = query_bhnk, key_bhnk, value_bhnk, pack_bhnl, share_b1n1, state
    with torch.autocast(query_bhnk.device.type, enabled=False):
        if fits_kernel(query_bhnk) and dropout == 0 and packed_attention_mask is None and not output_weights:
            weights_bhnl = None
            output_bhnk, *sums = attend_by_kernel(find_kernel(), *inputs)
            if is_token_b1n1 is not None:
                output_bhnk = output_bhnk.masked_fill(~is_token_b1n1, 0)
        else:
            output_bhnk, weights_bhnl, *sums = attend_by_sums(*inputs, is_token_b1n1, dropout, packed_attention_mask)
    state = CausalState(*sums, count_bn[:, -1])
    return output_bhnk.to(value_bhnk.dtype), weights_bhnl.to(query_bhnk.dtype) if output_weights else None, state


def attend_by_sums(query, key, value, pack, share_b1n1, state, is_token_b1n1, dropout, packed_attention_mask):
    """Equation 7 twice, and the softmax between: output, unpack weights and the two sums."""
    key_slots, slot_values, _ = state or (None, None, None)
    scores_bhnl, key_slots = causal_sums(query, key, pack, key_slots)
    scores_bhnl = scores_bhnl * share_b1n1
    if packed_attention_mask is not None:
        is_read_b11l = packed_attention_mask.bool()[:, None, None]
        scores_bhnl = scores_bhnl.masked_fill(~is_read_b11l, torch.finfo(scores_bhnl.dtype).min)
    weights_bhnl = scores_bhnl.softmax(dim=-1)
    if is_token_b1n1 is not None:
        weights_bhnl = weights_bhnl.masked_fill(~is_token_b1n1, 0)
    dropped_bhnl = nn.functional.dropout(weights_bhnl, dropout) if dropout > 0 else weights_bhnl
    # The 1/t of the output where it has l numbers a token, not k.
    output_bhnk, slot_values = causal_sums(dropped_bhnl * share_b1n1, pack, value, slot_values)
    return output_bhnk, weights_bhnl, key_slots, slot_values


def without_padding(
    pack_bhnl: torch.Tensor, attention_mask: torch.Tensor | None, state: CausalState | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pack weights that are zero where a token is padding, and the t of each token, (b, n), from the row's first one on."""
    b, _, n, _ = pack_bhnl.shape
    if attention_mask is None:
        count_bn = torch.arange(1, n + 1, device=pack_bhnl.device).expand(b, n)
    else:
        is_token_bn = attention_mask.bool()
        count_bn = is_token_bn.cumsum(dim=-1)
        pack_bhnl = pack_bhnl.masked_fill(~is_token_bn[:, None, :, None], 0)
    return pack_bhnl, count_bn if state is None else count_bn + state.count[:, None]


# ---------------------------------------------------------------------------------------------------------------------
# Attention by a GPU kernel


# From here on the kernel is used: more tokens than a cache layer records, so that what it adds up again is always a sum of
# the chunked form.
KERNEL_MIN_TOKENS = 256


@cache
def find_kernel() -> Callable | None:
    """Gated slot attention of flash-linear-attention, or None where that is not installed."""
    try:
        from fla.ops.gsa import chunk_gsa
    except ImportError:
        return None
    return chunk_gsa


def fits_kernel(query_bhnk: torch.Tensor) -> bool:
    """Whether there is a kernel for these inputs.

    It reads its sums in the dtype of the inputs: in float16 they overflow, in float32 it multiplies in TF32.
    """
    if query_bhnk.device.type != "cuda" or query_bhnk.dtype != torch.bfloat16 or torch.compiler.is_exporting():
        return False
    return query_bhnk.shape[2] >= KERNEL_MIN_TOKENS and find_kernel() is not None


def attend_by_kernel(chunk_gsa: Callable, query, key, value, pack, share_b1n1, state):
    """The output and the two sums: gated slot attention whose gates forget nothing is the same recurrence without 1/t."""
    dtype = query.dtype
    query_bnhk, key_bnhk, value_bnhk, pack_bnhl = (
        x.to(dtype).transpose(1, 2).contiguous() for x in (query * share_b1n1, key, value, pack)
    )
    log_gates_bnhl = torch.zeros_like(pack_bnhl, dtype=share_b1n1.dtype)  # without any it would normalize the pack weights
    output_bnhk, sums = chunk_gsa(
        query_bnhk,
        key_bnhk,
        value_bnhk,
        s=pack_bnhl,
        g=log_gates_bnhl,
        scale=1.0,
        initial_state=None if state is None else (state.key_slots, state.slot_values),
        output_final_state=True,
    )
    return output_bnhk.transpose(1, 2) * share_b1n1, *sums


# ---------------------------------------------------------------------------------------------------------------------
# Cache


class Block(NamedTuple):
    """The tokens of one call: what they added to the sums, so that some of them can be taken back."""

    key_bhnk: torch.Tensor
    value_bhnk: torch.Tensor
    pack_bhnl: torch.Tensor  # zero for padding
    is_token_bn: torch.Tensor  # bool

    def first(self, n: int) -> "Block":
        return Block(self.key_bhnk[:, :, :n], self.value_bhnk[:, :, :n], self.pack_bhnl[:, :, :n], self.is_token_bn[:, :n])

    @property
    def num_tokens(self) -> int:
        return self.is_token_bn.shape[1]


def make_block(
    key_bhnk: torch.Tensor, value_bhnk: torch.Tensor, pack_bhnl: torch.Tensor, attention_mask: torch.Tensor | None
) -> Block:
    b, _, n, _ = pack_bhnl.shape
    if attention_mask is None:
        attention_mask = torch.ones(b, n, dtype=torch.bool, device=pack_bhnl.device)
    pack_bhnl, _ = without_padding(pack_bhnl, attention_mask, None)
    return Block(key_bhnk, value_bhnk, pack_bhnl, attention_mask.bool())


def read_block(block: Block, state: CausalState | None) -> CausalState:
    """The state after a block, the same to the bit as that which `causal_attention` gives."""
    key, value, pack = block.key_bhnk, block.value_bhnk, block.pack_bhnl
    if state is None:
        (b, h, _, k), l, dtype = key.shape, pack.shape[-1], sum_dtype(key)
        state = CausalState(key.new_zeros(b, h, k, l, dtype=dtype), key.new_zeros(b, h, l, k, dtype=dtype), 0)
    with torch.autocast(key.device.type, enabled=False):
        sums = add_products(key, pack, state.key_slots), add_products(pack, value, state.slot_values)
    return CausalState(*sums, state.count + block.is_token_bn.sum(dim=-1))


# How many tokens a recording layer can always take back; it keeps those of at most twice as many, and of one chunk.
KEPT_TOKENS = 128


class Span:
    """Blocks one after the other, and the state before them."""

    def __init__(self, state: CausalState | None):
        self.state = state
        self.blocks: list[Block] = []

    @property
    def num_tokens(self) -> int:
        return sum(block.num_tokens for block in self.blocks)

    def remove_last(self, n: int) -> None:
        """Let go of the last tokens, n of them."""
        while n > 0:
            block = self.blocks.pop()
            if block.num_tokens > n:
                self.blocks.append(block.first(block.num_tokens - n))
            n -= block.num_tokens

    def read(self) -> CausalState | None:
        """The state after the last block."""
        state = self.state
        for block in self.blocks:
            state = read_block(block, state)
        return state


class LunaCausalCacheLayer(CacheLayerMixin):
    """What one layer of a causal Luna remembers: a `CausalState`, of the same size however many tokens it has read.

    After `activate_past_recording`, which the library calls before assisted decoding, it also keeps what the last tokens
    added to the sums: `crop` takes some back by adding up the others again, in the order in which they came.
    """

    is_sliding = False
    is_croppable = True
    supports_early_init = False  # the sizes of the sums are not among its arguments

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.record_past = False
        self.forget()

    def forget(self) -> None:
        self.is_initialized = False
        self.state: CausalState | None = None
        self.num_seen = 0  # tokens, and padding between them, of every row
        self.spans: list[Span] = []  # the last two while recording: new blocks join the second

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.num_seen} tokens)"

    # Reading

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.device, self.dtype = key_states.device, key_states.dtype
        self.is_initialized = True

    def attend(
        self,
        query_bhnk: torch.Tensor,
        key_bhnk: torch.Tensor,
        value_bhnk: torch.Tensor,
        pack_bhnl: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`causal_attention` that goes on from the tokens read before, and remembers these: output and unpack weights.

        `kwargs` are those of `causal_attention`.
        """
        n = query_bhnk.shape[2]
        # What is recorded begins at a whole chunk, so that a long prompt leaves no more behind than a short one.
        unrecorded = max(n - KEPT_TOKENS, 0) // CHUNK_SIZE * CHUNK_SIZE if self.record_past else 0
        pieces = []
        for piece in (slice(0, unrecorded), slice(unrecorded, n)) if unrecorded else (slice(0, n),):
            query, key, value, pack = (x[:, :, piece] for x in (query_bhnk, key_bhnk, value_bhnk, pack_bhnl))
            mask = None if attention_mask is None else attention_mask[:, piece]
            *attended, state = causal_attention(query, key, value, pack, mask, self.state, **kwargs)
            pieces.append(attended)
            self.update(key, value, pack, mask, state)
        if len(pieces) == 1:
            return tuple(pieces[0])
        outputs, weights = zip(*pieces, strict=True)
        return torch.cat(outputs, dim=2), None if weights[0] is None else torch.cat(weights, dim=2)

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        pack_bhnl: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        state: CausalState | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take note of tokens, and of `state`, which `causal_attention` gave after them. Returns its two sums."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self.record_past or state is None:
            block = make_block(key_states, value_states, pack_bhnl, attention_mask)
            state = state or read_block(block, self.state)
        if self.record_past:
            self.record(block)
        self.state = state
        self.num_seen += key_states.shape[2]
        return state.key_slots, state.slot_values

    def record(self, block: Block) -> None:
        """Keep a block, which `self.state` is before, and let go of those that are too far back."""
        if block.num_tokens > KEPT_TOKENS + CHUNK_SIZE:  # the first piece of a long prompt
            self.spans = []
            return
        if not self.spans or self.spans[-1].num_tokens >= KEPT_TOKENS:
            self.spans = [*self.spans[-1:], Span(self.state)]
        self.spans[-1].blocks.append(Block(*(x.clone() for x in block)))

    # Taking back

    def activate_past_recording(self) -> None:
        """From here on keep what the tokens added, for `crop`."""
        self.record_past = True

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last tokens, -tokens_to_remove of them: the state is, to the bit, as if they had not been read.

        Raises:
            ValueError: a number above 0, or one of more tokens than were recorded.
        """
        if tokens_to_remove > 0:
            raise ValueError(
                f"`tokens_to_remove` is {tokens_to_remove}, but must be 0 or below: -{tokens_to_remove} takes back the last "
                f"{tokens_to_remove} tokens."
            )
        remaining = -tokens_to_remove
        recorded = sum(span.num_tokens for span in self.spans)
        if remaining > recorded:
            raise ValueError(
                f"`tokens_to_remove` is {tokens_to_remove}, but this cache can take back the last {recorded} of "
                f"{self.num_seen} tokens: "
                + ("" if self.record_past else "call `activate_past_recording()` before it reads them, and ")
                + f"take back at most {KEPT_TOKENS} at once."
            )
        self.num_seen -= remaining
        while self.spans and remaining >= self.spans[-1].num_tokens:
            span = self.spans.pop()
            self.state = span.state
            remaining -= span.num_tokens
        if remaining:
            self.spans[-1].remove_last(remaining)
            self.state = self.spans[-1].read()

    # What the library asks

    def get_seq_length(self) -> int:
        return self.num_seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.num_seen + query_length, 0

    def get_max_length(self) -> int:
        """-1: there is no limit."""
        return -1

    def reset(self) -> None:
        self.forget()

    def change_tensors(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Apply `change` to all that is remembered; the batch is the first axis of every tensor."""
        if self.state is not None:
            self.state = CausalState(*map(change, self.state))
        for span in self.spans:
            span.state = None if span.state is None else CausalState(*map(change, span.state))
            span.blocks = [Block(*map(change, block)) for block in span.blocks]

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self.change_tensors(lambda x: x[indices.to(x.device)])

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.change_tensors(lambda x: x.repeat_interleave(repeats, dim=0))

    def offload(self) -> None:
        self.change_tensors(lambda x: x.to("cpu", non_blocking=True))

    def prefetch(self) -> None:
        if self.is_initialized:
            self.change_tensors(lambda x: x.to(self.device, non_blocking=True))
