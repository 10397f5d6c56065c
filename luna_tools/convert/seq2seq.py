# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The official translation models: their training arguments, parameter names and shapes, in both directions."""

import argparse

import torch

from configuration_luna import LunaConfig
from luna_tools.convert.checkpoint import list_names
from luna_tools.convert.configuration import ACTIVATIONS, OFFICIAL_ACTIVATIONS
from luna_tools.convert.weights import (
    LAYER_MODULES,
    TIED_KEY_VALUE_MODULES,
    UNTIED_KEY_VALUE_MODULES,
    convert_parameters,
    official_parameters,
    parameter_shapes,
    shift_layer_norms,
)
from luna_tools.errors import InputError, told
from modeling_luna import LunaForConditionalGeneration, sinusoids

CONFIG_OF_ARG = {
    "encoder_layers": "num_hidden_layers",
    "encoder_embed_dim": "hidden_size",
    "encoder_ffn_embed_dim": "intermediate_size",
    "encoder_attention_heads": "num_attention_heads",
    "encoder_projected_attention_heads": "packed_attention_heads",
    "decoder_layers": "decoder_layers",
    "decoder_ffn_embed_dim": "decoder_ffn_dim",
    "decoder_attention_heads": "decoder_attention_heads",
    "decoder_projected_attention_heads": "decoder_packed_attention_heads",
    "projection_length": "projection_length",
    "encoder_normalize_before": "norm_first",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "activation_dropout": "activation_dropout",
    "layernorm_embedding": "embedding_layer_norm",
}
CONFIG_WITHOUT_FLAG = {
    "untie_luna_kv": "tie_key_value",
    "fix_projection_length": "dynamic_projection",
    "no_scale_embedding": "scale_embedding",
}
# The decoder has args of its own for what is one field here.
SAME_ARGS = {
    "decoder_embed_dim": "encoder_embed_dim",
    "decoder_input_dim": "encoder_embed_dim",
    "decoder_output_dim": "encoder_embed_dim",
    "decoder_normalize_before": "encoder_normalize_before",
    "decoder_learned_pos": "encoder_learned_pos",
    "max_target_positions": "max_source_positions",
}
# Kinds of models that the official code has besides, and that are not here.
UNUSED_ARGS = {
    "adaptive_input": False,
    "adaptive_softmax_cutoff": None,
    "no_token_positional_embeddings": False,
    "encoder_layers_to_keep": None,
    "decoder_layers_to_keep": None,
}
# What no arg says.
OFFICIAL_CONFIG = {
    "contextual_projection": True,
    "share_layer_weights": False,
    "causal_activation": "softplus",
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
    "decoder_start_token_id": 2,
}
CAUSAL_MODULES = {
    "pq_proj": "pack_q_proj",
    "pc_proj": "pack_k_proj",
    "q_proj": "unpack_q_proj",
    "out_proj": "out_proj",
}
CAUSAL_KEY_VALUE_MODULES = {
    True: {"c_proj": "unpack_kv_proj"},
    False: {"k_proj": "unpack_k_proj", "v_proj": "unpack_v_proj"},
}


def is_seq2seq(args: argparse.Namespace) -> bool:
    return hasattr(args, "decoder_layers") and hasattr(args, "encoder_projected_attention_heads")


def config_from_seq2seq_args(args: argparse.Namespace, vocab_size: int, target_vocab_size: int) -> LunaConfig:
    """The configuration that the training args of a translation model describe.

    Raises:
        InputError: an arg is missing, or values that make no model here.
    """
    needed = (*CONFIG_OF_ARG, *SAME_ARGS, "max_source_positions", "activation_fn", "encoder_learned_pos")
    if missing := [arg for arg in needed if not hasattr(args, arg)]:
        raise InputError(f"The checkpoint's args lack {list_names(missing)}.")
    if str(args.activation_fn) not in ACTIVATIONS:
        raise InputError(
            f"The checkpoint's activation_fn is {args.activation_fn}, but only {', '.join(ACTIVATIONS)} can be converted."
        )
    for arg, same in SAME_ARGS.items():
        # Sinusoids have no end.
        if getattr(args, arg) != getattr(args, same) and (args.encoder_learned_pos or arg != "max_target_positions"):
            raise InputError(
                f"The checkpoint's {arg} is {getattr(args, arg)}, but {same} is {getattr(args, same)}: only models in which "
                "they are the same can be converted."
            )
    for arg, value in UNUSED_ARGS.items():
        if getattr(args, arg, value) != value:
            raise InputError(f"The checkpoint's {arg} is {getattr(args, arg)}, but only {value} can be converted.")
    share_all = getattr(args, "share_all_embeddings", False)
    if share_all and vocab_size != target_vocab_size:
        raise InputError(
            f"The checkpoint's source and target share their embeddings, but the dictionaries have {vocab_size} and "
            f"{target_vocab_size} entries: give the two that came with the checkpoint."
        )
    with told("The checkpoint's args do not describe a Luna model", "give a checkpoint of the official code"):
        return LunaConfig(
            is_encoder_decoder=True,
            vocab_size=vocab_size,
            target_vocab_size=None if share_all else target_vocab_size,
            tie_word_embeddings=share_all or args.share_decoder_input_output_embed,
            hidden_act=ACTIVATIONS[args.activation_fn],
            position_embedding_type="learned" if args.encoder_learned_pos else "sinusoidal",
            max_position_embeddings=args.max_source_positions + LunaConfig.pad_token_id + 1,
            **{ours: getattr(args, arg) for arg, ours in CONFIG_OF_ARG.items()},
            **{ours: not getattr(args, flag, False) for flag, ours in CONFIG_WITHOUT_FLAG.items()},
        )


def map_seq2seq_names(config: LunaConfig) -> dict[str, str]:
    """Official parameter name to ours, for every parameter of a translation model with this configuration.

    Where embeddings are shared, two or three official names stand for one of ours.
    """
    target = "luna" if config.target_vocab_size is None else "decoder"
    names = {
        "encoder.projected_embeddings": "luna.packed_embeddings.0.weight",
        "encoder.embed_tokens.weight": "luna.embeddings.word_embeddings.weight",
        "decoder.embed_tokens.weight": f"{target}.embeddings.word_embeddings.weight",
        "decoder.output_projection.weight": "lm_head.weight",
    }
    modules = {}
    if config.position_embedding_type == "learned":
        names["encoder.embed_positions.weight"] = "luna.embeddings.position_embeddings.weight"
        names["decoder.embed_positions.weight"] = "decoder.embeddings.position_embeddings.weight"
    if config.embedding_layer_norm:
        modules["encoder.layernorm_embedding"] = "luna.embeddings.layer_norm"
        modules["encoder.layernorm_porjected_embedding"] = "luna.packed_embeddings.0.layer_norm"  # the official spelling
        modules["decoder.layernorm_embedding"] = "decoder.embeddings.layer_norm"
    if config.norm_first:
        for official, ours in (("encoder", "luna"), ("decoder", "decoder")):
            modules[f"{official}.layer_norm"] = f"{ours}.final_layer_norm"
            modules[f"{official}.proj_layer_norm"] = f"{ours}.packed_final_layer_norm"

    layer_modules = LAYER_MODULES | (TIED_KEY_VALUE_MODULES if config.tie_key_value else UNTIED_KEY_VALUE_MODULES)
    for i in range(config.num_hidden_layers):
        for official, ours in layer_modules.items():
            modules[f"encoder.layers.{i}.{official}"] = f"luna.layers.{i}.{ours}"
    # A decoder's layer is a Luna layer on the source, after causal attention.
    decoder_modules = {
        official.replace("self_att", "encoder_att"): f"cross_{ours}" if ours.startswith("attention") else ours
        for official, ours in layer_modules.items()
    }
    causal_modules = CAUSAL_MODULES | CAUSAL_KEY_VALUE_MODULES[config.tie_key_value]
    decoder_modules |= {f"self_attn.{official}": f"self_attention.{ours}" for official, ours in causal_modules.items()}
    decoder_modules["self_attn_layer_norm"] = "self_attention_layer_norm"
    for i in range(config.decoder_size("decoder_layers")):
        for official, ours in decoder_modules.items():
            modules[f"decoder.layers.{i}.{official}"] = f"decoder.layers.{i}.{ours}"

    for official, ours in modules.items():
        for parameter in ("weight", "bias"):
            names[f"{official}.{parameter}"] = f"{ours}.{parameter}"
    return names


def official_constants(config: LunaConfig) -> dict[str, torch.Tensor]:
    """What the official code saves beside the parameters: the version of its format, and what it makes of sinusoids."""
    constants = {f"{part}.version": torch.tensor([3.0]) for part in ("encoder", "decoder")}
    if config.position_embedding_type == "sinusoidal":
        constants |= {f"{part}.embed_positions._float_tensor": torch.zeros(1) for part in ("encoder", "decoder")}
        slots = torch.arange(config.projection_length)
        constants["encoder.projected_positions"] = sinusoids(slots, config.hidden_size)
    return constants


def convert_seq2seq_state_dict(
    state_dict: dict[str, torch.Tensor], config: LunaConfig, layer_norm_scale: str = "weight"
) -> dict[str, torch.Tensor]:
    """The official parameters under our names, in float32.

    Raises:
        InputError: as `convert_parameters`, or embeddings that are shared by the args differ.
    """
    constants = official_constants(config)
    state_dict = {name: tensor for name, tensor in state_dict.items() if name not in constants}
    names = map_seq2seq_names(config)
    converted = convert_parameters(
        state_dict, names, parameter_shapes(LunaForConditionalGeneration, config), layer_norm_scale
    )
    shared = ["encoder.embed_tokens.weight"] if config.target_vocab_size is None else []
    shared += ["decoder.embed_tokens.weight"]
    shared += ["decoder.output_projection.weight"] if config.tie_word_embeddings else []
    for name in shared[1:]:
        if not torch.equal(state_dict[name], state_dict[shared[0]]):
            raise InputError(f"{name} differs from {shared[0]}, although the checkpoint's args say that they are shared.")
    return converted


# ---------------------------------------------------------------------------------------------------------------------
# And back


def args_from_seq2seq_config(config: LunaConfig) -> dict[str, object]:
    """The official args that describe the model: the inverse of `config_from_seq2seq_args`.

    Raises:
        InputError: the official translation model cannot be like that.
    """
    for name, value in OFFICIAL_CONFIG.items():
        if getattr(config, name) != value:
            raise InputError(
                f"The model's {name} is {getattr(config, name)}, but the official translation model has {value}."
            )
    if config.target_vocab_size is None and not config.tie_word_embeddings:
        raise InputError(
            "The model's tie_word_embeddings is False, but where source and target share their embeddings, the official "
            "translation model shares them with its output as well."
        )
    if config.hidden_act not in OFFICIAL_ACTIVATIONS:
        raise InputError(
            f"The model's hidden_act is {config.hidden_act}, but the official code has {', '.join(OFFICIAL_ACTIVATIONS)}."
        )
    sizes = {
        "packed_attention_heads": config.packed_attention_heads or config.num_attention_heads,
        **{name: config.decoder_size(name) for name in ("decoder_layers", "decoder_attention_heads", "decoder_ffn_dim")},
    }
    sizes["decoder_packed_attention_heads"] = (
        config.decoder_size("decoder_packed_attention_heads") or sizes["decoder_attention_heads"]
    )
    args = {arg: sizes.get(ours, getattr(config, ours)) for arg, ours in CONFIG_OF_ARG.items()}
    args |= {
        "untie_luna_kv": not config.tie_key_value,
        "fix_projection_length": not config.dynamic_projection,
        "no_scale_embedding": not config.scales_embeddings,
        "encoder_learned_pos": config.position_embedding_type == "learned",
        "max_source_positions": config.max_position_embeddings - config.pad_token_id - 1,
        "activation_fn": OFFICIAL_ACTIVATIONS[config.hidden_act],
        "share_all_embeddings": config.target_vocab_size is None,
        "share_decoder_input_output_embed": config.tie_word_embeddings,
    }
    return args | {arg: args[same] for arg, same in SAME_ARGS.items()} | UNUSED_ARGS | {"arch": "luna"}


def official_seq2seq_state_dict(
    config: LunaConfig, weights: dict[str, torch.Tensor], layer_norm_scale: str
) -> dict[str, torch.Tensor]:
    """Our parameters under official names, in float32: the inverse of `convert_seq2seq_state_dict`."""
    state_dict = official_parameters(weights, map_seq2seq_names(config))
    convert_seq2seq_state_dict(state_dict, config)  # for what it refuses
    return shift_layer_norms(state_dict, layer_norm_scale) | official_constants(config)
