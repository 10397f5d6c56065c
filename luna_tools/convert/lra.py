# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The official Long Range Arena models: their training arguments, parameter names and shapes, in both directions.

A model is an encoder with a classifier: Linear, an activation, and an output without a bias; since January 2023 the output
alone. It reads the first token's state, the mean of the states, or the mean of P, of one text or of two; until then the mean
of P was of the text without its first token.
"""

import argparse

import torch

from configuration_luna import LunaConfig
from luna_tools.convert.checkpoint import list_names
from luna_tools.convert.configuration import ACTIVATIONS, OFFICIAL_ACTIVATIONS, OFFICIAL_CONFIG
from luna_tools.convert.weights import convert_parameters, map_names, parameter_shapes
from luna_tools.errors import InputError, told
from modeling_luna import LunaForSequenceClassification

ARCHITECTURE = "luna_lra_"  # how the names of all of them start
CONFIG_OF_ARG = {
    "encoder_layers": "num_hidden_layers",
    "encoder_embed_dim": "hidden_size",
    "encoder_ffn_embed_dim": "intermediate_size",
    "encoder_attention_heads": "num_attention_heads",
    "encoder_projection_length": "projection_length",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "act_dropout": "activation_dropout",
    "tie_kv": "tie_key_value",
    "tie_layer_weights": "share_layer_weights",
}
HIDDEN_LAYER, OUTPUT = "classifier.0", "sentence_projection_layer.weight"
PAIRS = {1: None, 2: "concat", 4: "interact"}  # by the number of vectors that the classifier reads


def is_lra(args: argparse.Namespace) -> bool:
    return str(getattr(args, "arch", None)).startswith(ARCHITECTURE)


def config_from_lra_args(args: argparse.Namespace, vocab_size: int, state_dict: dict[str, torch.Tensor]) -> LunaConfig:
    """The configuration that the training args and the shapes of the classifier describe.

    Raises:
        InputError: an arg or the classifier is missing, or values that make no model of this family.
    """
    missing = [arg for arg in (*CONFIG_OF_ARG, "max_positions", "activation_fn") if not hasattr(args, arg)]
    if missing:
        raise InputError(f"The checkpoint's args lack {list_names(missing)}.")
    has_hidden_layer = f"{HIDDEN_LAYER}.weight" in state_dict
    reads = state_dict.get(f"{HIDDEN_LAYER}.weight" if has_hidden_layer else OUTPUT)
    if reads is None or reads.ndim != 2 or OUTPUT not in state_dict:
        raise InputError(f"The checkpoint lacks {OUTPUT}, the output of the classifier.")
    wanted = {
        "layer_type": ("luna", getattr(args, "layer_type", "luna")),
        "encoder_learned_pos": (True, getattr(args, "encoder_learned_pos", True)),
        "classifier_layers": (1, getattr(args, "classifier_layers", None) or 1),
    }
    for name, (value, found) in wanted.items():
        if found != value:
            raise InputError(f"The checkpoint's {name} is {found}, but only {value} can be converted.")
    activations = {"activation_fn": args.activation_fn}
    if has_hidden_layer:
        activations["classifier_activation_fn"] = getattr(args, "classifier_activation_fn", "relu")
    for name, value in activations.items():
        if str(value) not in ACTIVATIONS:
            raise InputError(f"The checkpoint's {name} is {value}, but only {', '.join(ACTIVATIONS)} can be converted.")
    vectors = reads.shape[1] / args.encoder_embed_dim if args.encoder_embed_dim else 0
    if vectors not in PAIRS:
        raise InputError(
            f"The checkpoint's classifier reads {reads.shape[1]} channels, which are not 1, 2 or 4 times its "
            f"encoder_embed_dim, {args.encoder_embed_dim}."
        )
    use_p = getattr(args, "use_p", False)
    if use_p and has_hidden_layer and PAIRS[vectors]:
        raise InputError(
            "The checkpoint reads P of two texts (use_p), for which the official code drops the first token of one of them "
            "alone: no model here does so."
        )
    packed = "packed_mean_unmasked_no_cls" if has_hidden_layer else "packed_mean_unmasked"
    is_mean = getattr(args, "sen_rep_type", None) == "mp"
    with told("The checkpoint's args do not describe a Luna model", "give a checkpoint of the official code"):
        return LunaConfig(
            vocab_size=vocab_size,
            hidden_act=ACTIVATIONS[args.activation_fn],
            **{ours: getattr(args, arg) for arg, ours in CONFIG_OF_ARG.items()},
            max_position_embeddings=args.max_positions + LunaConfig.pad_token_id + 1,
            classifier_pooling=packed if use_p else "mean_unmasked" if is_mean else "cls",
            classifier_hidden_size=len(reads) if has_hidden_layer else 0,
            classifier_act=ACTIVATIONS[activations.get("classifier_activation_fn", "relu")],
            classifier_bias=False,
            classifier_pair=PAIRS[vectors],
            num_labels=len(state_dict[OUTPUT]),
        )


def map_lra_names(config: LunaConfig) -> dict[str, str]:
    """Official parameter name to ours, for every parameter of a Long Range Arena model with this configuration."""
    names = {
        official.replace("encoder.sentence_encoder.", "encoder.encoder."): ours
        for official, ours in map_names(config).items()
        if ours.startswith("luna.")
    }
    if config.classifier_hidden_size != 0:
        names |= {f"{HIDDEN_LAYER}.{parameter}": f"classifier.dense.{parameter}" for parameter in ("weight", "bias")}
    return names | {OUTPUT: "classifier.out_proj.weight"}


def convert_lra_state_dict(
    state_dict: dict[str, torch.Tensor], config: LunaConfig, layer_norm_scale: str = "weight"
) -> dict[str, torch.Tensor]:
    """The official parameters under our names, in float32; raises InputError as `convert_parameters`."""
    shapes = parameter_shapes(LunaForSequenceClassification, config)
    return convert_parameters(state_dict, map_lra_names(config), shapes, layer_norm_scale)


# ---------------------------------------------------------------------------------------------------------------------
# And back

REPRESENTATIONS = {
    "cls": (False, None),
    "mean_unmasked": (False, "mp"),
    "packed_mean_unmasked": (True, None),
    "packed_mean_unmasked_no_cls": (True, None),
}


def is_lra_config(config: LunaConfig) -> bool:
    """Whether a classifier has the form of this family's: no other official head is without a bias."""
    return config.architectures == [LunaForSequenceClassification.__name__] and not config.classifier_bias


def args_from_lra_config(config: LunaConfig) -> dict[str, object]:
    """The official args that describe the model: the inverse of `config_from_lra_args`.

    Raises:
        InputError: the official Long Range Arena model cannot be like that.
    """
    wanted = OFFICIAL_CONFIG | {"dynamic_projection": True, "share_layer_weights": config.share_layer_weights}
    for name, value in wanted.items():
        if getattr(config, name) != value:
            raise InputError(
                f"The model's {name} is {getattr(config, name)}, but the official Long Range Arena model has {value}."
            )
    for name in ("hidden_act", "classifier_act"):
        if getattr(config, name) not in OFFICIAL_ACTIVATIONS:
            raise InputError(
                f"The model's {name} is {getattr(config, name)}, but the official code has "
                f"{', '.join(OFFICIAL_ACTIVATIONS)}."
            )
    if config.classifier_pooling not in REPRESENTATIONS:
        raise InputError(
            f"The model's classifier_pooling is {config.classifier_pooling}, but the official Long Range Arena models have "
            f"{', '.join(REPRESENTATIONS)}."
        )
    use_p, representation = REPRESENTATIONS[config.classifier_pooling]
    if use_p and (config.classifier_pooling == "packed_mean_unmasked") != (config.classifier_hidden_size == 0):
        raise InputError(
            f"The model's classifier_pooling is {config.classifier_pooling} with classifier_hidden_size "
            f"{config.classifier_hidden_size}, but of the official models those without a hidden layer have "
            "packed_mean_unmasked, and the others packed_mean_unmasked_no_cls."
        )
    hidden_size = config.hidden_size if config.classifier_hidden_size is None else config.classifier_hidden_size
    vectors = {pair: vectors for vectors, pair in PAIRS.items()}[config.classifier_pair]
    hidden_layer = {
        "classifier_layers": 1,
        "classifier_in_dim": vectors * config.hidden_size,
        "classifier_out_dim": hidden_size,
        "classifier_activation_fn": OFFICIAL_ACTIVATIONS[config.classifier_act],
    }
    if not hidden_size:  # the newer code
        hidden_layer, representation = {}, representation or "cls"
    return {
        **{arg: getattr(config, ours) for arg, ours in CONFIG_OF_ARG.items()},
        "arch": "luna_lra_listop" if config.classifier_pair is None else "luna_lra_aan",
        "task": "long_range_arena",
        "layer_type": "luna",
        "encoder_learned_pos": True,
        "max_positions": config.max_sequence_length,
        "tokens_per_sample": config.max_sequence_length,
        "activation_fn": OFFICIAL_ACTIVATIONS[config.hidden_act],
        "use_p": use_p,
        "sen_rep_type": representation,
        "sentence_class_num": config.num_labels,
        **hidden_layer,
        "criterion": "lra_cross_entropy",
    }
