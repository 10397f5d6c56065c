# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The training arguments of an official checkpoint, and the configuration that they describe."""

import argparse

from configuration_luna import LunaConfig
from luna_tools.convert.checkpoint import list_names
from luna_tools.errors import InputError, told

# The names under which the official code registers its masked language model.
ARCHITECTURES = (
    "luna_bert",
    "luna_base_512",
    "luna_base_tied_512",
    "luna_base_untied_512",
    "luna_base_2048",
    "luna_large_512",
    "luna_large_2048",
)
CONFIG_OF_ARG = {
    "encoder_layers": "num_hidden_layers",
    "encoder_embed_dim": "hidden_size",
    "encoder_ffn_embed_dim": "intermediate_size",
    "encoder_attention_heads": "num_attention_heads",
    "projection_length": "projection_length",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "activation_dropout": "activation_dropout",
}
# On the command line of fairseq these are flags: a checkpoint from before the flag existed was trained without it.
CONFIG_WITHOUT_FLAG = {
    "untie_luna_kv": "tie_key_value",
    "fix_projection_length": "dynamic_projection",
    "untie_weights_luna": "tie_word_embeddings",
}
# In fairseq "gelu" is the exact form, and both its other names stand for the tanh approximation.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_accurate": "gelu_pytorch_tanh",
    "gelu_fast": "gelu_pytorch_tanh",
    "relu": "relu",
}


# The official code builds a head by its name: these two, and a head on the first token under any other name.
POOLING_OF_HEAD = {
    "pooling_classification_head": "packed_max",
    "attention_classification_head": "packed_attention",
}
NAME_OF_HEAD = {pooling: name for name, pooling in POOLING_OF_HEAD.items()} | {"cls": "cls_classification_head"}


def config_from_args(
    args: argparse.Namespace, vocab_size: int, head: str | None = None, num_labels: int | None = None
) -> LunaConfig:
    """The configuration that the training args of a masked language model describe.

    Args:
        head, num_labels: official name of the classification head to describe and its number of classes, or None for none.

    Raises:
        InputError: another architecture, an arg that is missing, or values that make no Luna model.
    """
    arch = getattr(args, "arch", None)
    if arch not in ARCHITECTURES:
        # Another family of the official code: its models are not here yet.
        if str(arch).startswith("luna_lra"):
            raise InputError(
                f"The checkpoint's architecture is {arch}, of the lra family, which is not supported yet: only the masked "
                "language model and translation models are."
            )
        raise InputError(
            f"The checkpoint's architecture is {arch}, but only the masked language model can be converted: "
            f"{', '.join(ARCHITECTURES)}."
        )
    missing = [arg for arg in (*CONFIG_OF_ARG, "max_positions", "activation_fn") if not hasattr(args, arg)]
    if missing:
        raise InputError(f"The checkpoint's args lack {list_names(missing)}.")
    if str(args.activation_fn) not in ACTIVATIONS:
        raise InputError(
            f"The checkpoint's activation_fn is {args.activation_fn}, but only {', '.join(ACTIVATIONS)} can be converted."
        )
    head_fields = {}
    if head is not None:
        if getattr(args, "pooler_activation_fn", "tanh") != "tanh":
            raise InputError(f"The checkpoint's pooler_activation_fn is {args.pooler_activation_fn}, but must be tanh.")
        head_fields = {"classifier_pooling": POOLING_OF_HEAD.get(head, "cls"), "num_labels": num_labels}
        head_fields["classifier_dropout"] = getattr(args, "pooler_dropout", 0.0)
    with told("The checkpoint's args do not describe a Luna model", "give a checkpoint of the official code"):
        return LunaConfig(
            vocab_size=vocab_size,
            hidden_act=ACTIVATIONS[args.activation_fn],
            **{ours: getattr(args, arg) for arg, ours in CONFIG_OF_ARG.items()},
            # Positions start after the id of the padding.
            max_position_embeddings=args.max_positions + LunaConfig.pad_token_id + 1,
            **{ours: not getattr(args, flag, False) for flag, ours in CONFIG_WITHOUT_FLAG.items()},
            **head_fields,
        )


# ---------------------------------------------------------------------------------------------------------------------
# And back

# What the official masked language model has without an arg for it.
OFFICIAL_CONFIG = {
    "contextual_projection": True,
    "position_embedding_type": "learned",
    "norm_first": False,
    "share_layer_weights": False,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
}
OFFICIAL_ACTIVATIONS = {ours: official for official, ours in ACTIVATIONS.items() if official != "gelu_fast"}


def args_from_config(config: LunaConfig) -> dict[str, object]:
    """The official args that describe the model: the inverse of `config_from_args`.

    Raises:
        InputError: the official masked language model cannot be like that.
    """
    for name, value in OFFICIAL_CONFIG.items():
        if getattr(config, name) != value:
            raise InputError(
                f"The model's {name} is {getattr(config, name)}, but the official masked language model has {value}."
            )
    if config.hidden_act not in OFFICIAL_ACTIVATIONS:
        raise InputError(
            f"The model's hidden_act is {config.hidden_act}, but the official code has {', '.join(OFFICIAL_ACTIVATIONS)}."
        )
    return {
        **{arg: getattr(config, ours) for arg, ours in CONFIG_OF_ARG.items()},
        **{flag: not getattr(config, ours) for flag, ours in CONFIG_WITHOUT_FLAG.items()},
        "max_positions": config.max_sequence_length,
        "tokens_per_sample": config.max_sequence_length,
        "activation_fn": OFFICIAL_ACTIVATIONS[config.hidden_act],
        "pooler_dropout": config.classifier_dropout or 0.0,
    }
