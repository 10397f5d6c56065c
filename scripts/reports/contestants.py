# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The encoders that `scripts.reports.benchmark_speed` times: Luna, the Transformer, and others for long inputs.

Each is built with random weights, in one size, for one length, and takes `input_ids` alone. transformers carries no
Performer, Linformer, Linear Transformer, Synthesizer or Sinkhorn Transformer any more; its state-space models are causal.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import (
    AutoModel,
    BigBirdConfig,
    CanineConfig,
    FNetConfig,
    FunnelBaseModel,
    FunnelConfig,
    LongformerConfig,
    LongT5Config,
    LongT5EncoderModel,
    ModernBertConfig,
    MraConfig,
    NystromformerConfig,
    PegasusXConfig,
    PegasusXModel,
    PerceiverConfig,
    PerceiverModel,
    PreTrainedConfig,
    ReformerConfig,
    RobertaConfig,
    YosoConfig,
)
from transformers.models.mra import modeling_mra
from transformers.models.perceiver.modeling_perceiver import PerceiverTextPreprocessor

import modeling_luna
from configuration_luna import LunaConfig


@dataclass(frozen=True)
class Size:
    """Width and depth of all contestants.

    The vocabulary is small in both: the gradient of an embedding table is dense, and would cost each the same time.
    """

    num_layers: int
    hidden_size: int
    num_heads: int
    intermediate_size: int
    vocab_size: int


SIZES = {
    "text": Size(4, 256, 4, 1024, 260),  # Table 2: byte-level text classification of Long Range Arena
    "base": Size(12, 768, 12, 3072, 1000),  # RoBERTa-base
}


@dataclass(frozen=True)
class Contestant:
    """An encoder of the registry.

    Attributes:
        build: of a size, a number of tokens and a dropout, the model.
        note: what a reader has to know of its cost.
        paper: its name in tables 1 and 2 of the paper, if it is there.
        refuses: of (tokens, device, dtype), why it cannot be measured there; None where it can.
    """

    build: Callable[[Size, int, float], nn.Module]
    note: str = ""
    paper: str | None = None
    refuses: Callable[[int, str, str], str | None] = lambda n, device, dtype: None


# ---------------------------------------------------------------------------------------------------------------------
# Luna and the Transformer


def shared(size: Size, n: int, dropout: float) -> dict:
    """What most configurations call by the same names, with positions for n tokens and no more."""
    return {
        "vocab_size": size.vocab_size,
        "num_hidden_layers": size.num_layers,
        "hidden_size": size.hidden_size,
        "num_attention_heads": size.num_heads,
        "intermediate_size": size.intermediate_size,
        "max_position_embeddings": n + 2,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
        "pad_token_id": 1,
    }


def encoder(config: PreTrainedConfig, **options) -> nn.Module:
    """The bare encoder of a configuration, without a pooler where it would have one."""
    model = AutoModel.from_config(config, **options)
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    return model


def transformer(attention: str) -> Callable[[Size, int, float], nn.Module]:
    def build(size: Size, n: int, dropout: float) -> nn.Module:
        return encoder(RobertaConfig(**shared(size, n, dropout), type_vocab_size=1), attn_implementation=attention)

    return build


def no_flash(n: int, device: str, dtype: str) -> str | None:
    return None if device == "cuda" and dtype != "float32" else "needs CUDA and half precision"


def no_kernel(n: int, device: str, dtype: str) -> str | None:
    return None if device == "cuda" else "needs a CUDA kernel from the Hub, and gives zeros without it"


def luna(l: int, tied: bool = True, plain: bool = False) -> Callable[[Size, int, float], nn.Module]:
    """Luna with l packed vectors on SDPA; `plain` never absorbs a projection."""

    def build(size: Size, n: int, dropout: float) -> nn.Module:
        config = LunaConfig(**shared(size, n, dropout), projection_length=l, tie_key_value=tied)
        model = encoder(config, attn_implementation="sdpa")
        for layer in model.layers if plain else ():
            layer.attention.absorbs = lambda *args: False
        return model

    return build


# ---------------------------------------------------------------------------------------------------------------------
# Other encoders for long inputs


def longformer(size: Size, n: int, dropout: float) -> nn.Module:
    return encoder(LongformerConfig(**shared(size, n, dropout), attention_window=512, type_vocab_size=1))


def big_bird(size: Size, n: int, dropout: float) -> nn.Module:
    return encoder(BigBirdConfig(**shared(size, n, dropout), attention_type="block_sparse", type_vocab_size=1))


def nystromformer(size: Size, n: int, dropout: float) -> nn.Module:
    return encoder(NystromformerConfig(**shared(size, n, dropout), segment_means_seq_len=n, type_vocab_size=1))


def yoso(size: Size, n: int, dropout: float) -> nn.Module:
    return encoder(YosoConfig(**shared(size, n, dropout), use_expectation=True))


def mra(size: Size, n: int, dropout: float) -> nn.Module:
    model = encoder(MraConfig(**shared(size, n, dropout), type_vocab_size=1))
    if modeling_mra.mra_cuda_kernel is None:
        raise RuntimeError("its CUDA kernel could not be loaded from the Hub, without which it gives zeros")
    return model


def fnet(size: Size, n: int, dropout: float) -> nn.Module:
    values = shared(size, n, dropout)
    del values["num_attention_heads"], values["attention_probs_dropout_prob"]
    return encoder(FNetConfig(**values, type_vocab_size=1))


def reformer(size: Size, n: int, dropout: float) -> nn.Module:
    values = shared(size, n, dropout)
    for name in ("num_hidden_layers", "intermediate_size", "attention_probs_dropout_prob"):
        del values[name]
    config = ReformerConfig(
        **values,
        attn_layers=["lsh"] * size.num_layers,
        attention_head_size=size.hidden_size // size.num_heads,
        feed_forward_size=size.intermediate_size,
        lsh_attention_probs_dropout_prob=dropout,
        axial_pos_embds=False,
        hidden_act="gelu",
    )
    return encoder(config)


def funnel(size: Size, n: int, dropout: float) -> nn.Module:
    config = FunnelConfig(
        vocab_size=size.vocab_size,
        block_sizes=[size.num_layers - size.num_layers // 2, size.num_layers // 2],
        num_decoder_layers=0,
        d_model=size.hidden_size,
        n_head=size.num_heads,
        d_head=size.hidden_size // size.num_heads,
        d_inner=size.intermediate_size,
        hidden_dropout=dropout,
        attention_dropout=dropout,
    )
    return FunnelBaseModel(config)


def long_t5(size: Size, n: int, dropout: float) -> nn.Module:
    config = LongT5Config(
        vocab_size=size.vocab_size,
        d_model=size.hidden_size,
        d_kv=size.hidden_size // size.num_heads,
        d_ff=size.intermediate_size,
        num_layers=size.num_layers,
        num_heads=size.num_heads,
        dropout_rate=dropout,
        encoder_attention_type="transient-global",
    )
    return LongT5EncoderModel(config)


def pegasus_x(size: Size, n: int, dropout: float) -> nn.Module:
    config = PegasusXConfig(
        vocab_size=size.vocab_size,
        max_position_embeddings=n,
        encoder_layers=size.num_layers,
        encoder_ffn_dim=size.intermediate_size,
        encoder_attention_heads=size.num_heads,
        decoder_layers=1,
        d_model=size.hidden_size,
        dropout=dropout,
        attention_dropout=dropout,
    )
    return PegasusXModel(config).get_encoder()


def canine(size: Size, n: int, dropout: float) -> nn.Module:
    values = shared(size, n, dropout)
    del values["vocab_size"]
    # The number of its hash buckets is that of its positions, too.
    return encoder(CanineConfig(**values, num_hash_buckets=max(size.vocab_size, n + 2), type_vocab_size=1))


def modern_bert(size: Size, n: int, dropout: float) -> nn.Module:
    config = ModernBertConfig(
        vocab_size=size.vocab_size,
        hidden_size=size.hidden_size,
        intermediate_size=2 * size.intermediate_size // 3,  # three matrices in place of two
        num_hidden_layers=size.num_layers,
        num_attention_heads=size.num_heads,
        max_position_embeddings=n,
        attention_dropout=dropout,
        mlp_dropout=dropout,
        embedding_dropout=dropout,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        cls_token_id=0,
        sep_token_id=2,
    )
    return encoder(config, attn_implementation="sdpa")


def perceiver(size: Size, n: int, dropout: float) -> nn.Module:
    config = PerceiverConfig(
        vocab_size=size.vocab_size,
        max_position_embeddings=n,
        d_model=size.hidden_size,
        d_latents=size.hidden_size,
        num_latents=256,
        num_self_attends_per_block=size.num_layers - 1,
        num_self_attention_heads=size.num_heads,
        num_cross_attention_heads=size.num_heads,
        self_attention_widening_factor=size.intermediate_size // size.hidden_size,
        cross_attention_widening_factor=size.intermediate_size // size.hidden_size,
        attention_probs_dropout_prob=dropout,
    )
    return PerceiverModel(config, input_preprocessor=PerceiverTextPreprocessor(config))


def below(least: int, what: str) -> Callable[[int, str, str], str | None]:
    """Refuses fewer tokens than `least`."""
    return lambda n, device, dtype: f"at {n:,} tokens {what}" if n < least else None


BIG_BIRD_LEAST = (5 + 2 * 3) * 64 + 1
CONTESTANTS = {
    "Transformer, eager": Contestant(transformer("eager"), "RoBERTa; writes n x n matrices", "Transformer"),
    "Transformer, SDPA": Contestant(transformer("sdpa"), "RoBERTa on torch's fused attention"),
    "Transformer, flash": Contestant(transformer("flash_attention_2"), "RoBERTa on FlashAttention 2", refuses=no_flash),
    **{f"Luna-{l}": Contestant(luna(l), "tied keys and values", f"Luna-{l}") for l in (16, 128, 256)},
    **{f"Luna-{l}, untied": Contestant(luna(l, tied=False), "untied keys and values") for l in (16, 128, 256)},
    "Luna-16, plain": Contestant(luna(16, plain=True), "tied, no absorbed projections"),
    "Longformer": Contestant(longformer, "window 512, no global tokens; LED's encoder has the same attention", "Longformer"),
    "BigBird": Contestant(
        big_bird,
        "blocks of 64, 3 random ones; BigBird-Pegasus' encoder has the same attention",
        "BigBird",
        refuses=below(BIG_BIRD_LEAST, "it computes full attention"),
    ),
    "Nystromformer": Contestant(nystromformer, "64 landmarks"),
    "YOSO": Contestant(yoso, "by its expectation, which is n x n: its sampling is a CUDA kernel from the Hub"),
    "MRA": Contestant(mra, "blocks of several resolutions, by a CUDA kernel from the Hub", refuses=no_kernel),
    "FNet": Contestant(fnet, "Fourier transforms in place of attention: no heads, no masks"),
    "Reformer": Contestant(reformer, "LSH attention, one round, chunks of 64; recomputes its layers backwards", "Reformer"),
    "Funnel": Contestant(funnel, "n x n with relative positions; the second half of the layers on half the tokens"),
    "LongT5": Contestant(long_t5, "local radius 127 and transient global blocks of 16"),
    "Pegasus-X": Contestant(pegasus_x, "blocks of 512 and 32 global tokens"),
    "CANINE": Contestant(canine, "n x n on a quarter of the positions, between two local layers of its own"),
    "ModernBERT": Contestant(modern_bert, "SDPA; window 128 in two of three layers, by a mask"),
    "Perceiver": Contestant(perceiver, "256 latents read the tokens once; no states of the tokens come out"),
}


def build(name: str, size: Size, n: int, dropout: float) -> nn.Module:
    """A contestant with random weights.

    Args:
        n: the number of tokens that it will get.
    """
    torch.manual_seed(0)
    return CONTESTANTS[name].build(size, n, dropout)


# ---------------------------------------------------------------------------------------------------------------------
# Counts


def layer_multiply_adds(size: Size, n: int, contestant: str, read: int | None = None) -> float | None:
    """Multiply-adds of a layer's matrix products, forward, over one sequence; None where there is no count.

    Args:
        read: how many tokens' states are read, of a last layer that computes no others (Luna's alone).
    """
    d, ffn = size.hidden_size, 2 * size.hidden_size * size.intermediate_size
    if contestant.startswith("Transformer"):
        return n * (4 * d**2 + ffn + 2 * n * d)
    if not contestant.startswith("Luna-"):
        return None
    name, _, form = contestant.removeprefix("Luna-").partition(", ")
    l, read = min(int(name), n), n if read is None else read
    num_projections = 2 if form == "untied" else 1
    count = l * d**2 * (1 + num_projections)  # of P and Y_P: the pack's queries, the unpack's keys and values
    for tokens, projections in ((n, num_projections), (read, 2)):  # the pack, and the unpack with its output
        sizes = tokens, l, size.num_heads, d, projections
        absorbs = form != "plain" and modeling_luna.pays_to_absorb(*sizes)
        count += modeling_luna.multiply_adds(*sizes)[absorbs]
    return count + read * ffn
