# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The weights of an official checkpoint under our names, and back."""

import torch
from transformers import PreTrainedModel

from configuration_luna import LunaConfig
from luna_tools.convert.checkpoint import list_names
from luna_tools.errors import InputError
from modeling_luna import LunaForMaskedLM, LunaForSequenceClassification

HEAD_PREFIX = "classification_heads."

MODEL_NAMES = {
    "encoder.sentence_encoder.projected_embeddings": "luna.packed_embeddings.0.weight",
    "encoder.sentence_encoder.embed_tokens.weight": "luna.embeddings.word_embeddings.weight",
    "encoder.sentence_encoder.embed_positions.weight": "luna.embeddings.position_embeddings.weight",
    "encoder.lm_head.weight": "lm_head.decoder.weight",
    "encoder.lm_head.bias": "lm_head.decoder.bias",
}
# Modules with a weight and a bias each.
MODEL_MODULES = {
    "encoder.sentence_encoder.emb_layer_norm": "luna.embeddings.layer_norm",
    "encoder.sentence_encoder.proj_emb_layer_norm": "luna.packed_embeddings.0.layer_norm",
    "encoder.lm_head.dense": "lm_head.dense",
    "encoder.lm_head.layer_norm": "lm_head.layer_norm",
}
LAYER_MODULES = {
    "self_attn.pq_proj": "attention.pack_q_proj",
    "self_attn.q_proj": "attention.unpack_q_proj",
    "self_attn.out_proj": "attention.out_proj",
    "self_attn_layer_norm": "attention_layer_norm",
    "self_atten_proj_layer_norm": "packed_layer_norm",  # the official spelling
    "fc1": "fc1",
    "fc2": "fc2",
    "final_layer_norm": "final_layer_norm",
}
TIED_KEY_VALUE_MODULES = {
    "self_attn.pc_proj": "attention.pack_kv_proj",
    "self_attn.c_proj": "attention.unpack_kv_proj",
}
UNTIED_KEY_VALUE_MODULES = {
    "self_attn.pk_proj": "attention.pack_k_proj",
    "self_attn.pv_proj": "attention.pack_v_proj",
    "self_attn.k_proj": "attention.unpack_k_proj",
    "self_attn.v_proj": "attention.unpack_v_proj",
}
HEAD_MODULES = {
    "cls": {},
    "packed_max": {"in_proj": "in_proj"},
    "packed_attention": {f"attn.{name}": f"attention.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
    | {"layernorm": "attention.layer_norm"},
}


def map_names(config: LunaConfig, head: str | None = None) -> dict[str, str]:
    """Official parameter name to ours, for every parameter of a `luna_bert` model with this configuration.

    Args:
        head: official name of the classification head that the configuration describes, or None for none.
    """
    modules = dict(MODEL_MODULES)
    layer_modules = LAYER_MODULES | (TIED_KEY_VALUE_MODULES if config.tie_key_value else UNTIED_KEY_VALUE_MODULES)
    for i in range(1 if config.share_layer_weights else config.num_hidden_layers):
        for official, ours in layer_modules.items():
            modules[f"encoder.sentence_encoder.layers.{i}.{official}"] = f"luna.layers.{i}.{ours}"
    if head is not None:
        for official, ours in {"dense": "dense", "out_proj": "out_proj", **HEAD_MODULES[config.classifier_pooling]}.items():
            modules[f"{HEAD_PREFIX}{head}.{official}"] = f"classifier.{ours}"
    names = dict(MODEL_NAMES)
    for official, ours in modules.items():
        for parameter in ("weight", "bias"):
            names[f"{official}.{parameter}"] = f"{ours}.{parameter}"
    return names


def choose_head(state_dict: dict[str, torch.Tensor], wanted: str | None = None) -> str | None:
    """The name of the classification head to convert: the only one, the one that is wanted, or None.

    Args:
        wanted: a name, "none" for the language model alone, or None to take the only head if there is one.

    Raises:
        InputError: there is no such head, or there are several and none is wanted.
    """
    heads = list(dict.fromkeys(name.split(".")[1] for name in state_dict if name.startswith(HEAD_PREFIX)))
    if wanted == "none":
        return None
    if wanted is not None and wanted not in heads:
        raise InputError(f"The checkpoint has no classification head {wanted}, but {', '.join(heads) or 'no head'}.")
    if wanted is None and len(heads) > 1:
        raise InputError(
            f"The checkpoint has the classification heads {', '.join(heads)}: choose one of them with --head, or none."
        )
    return wanted or (heads[0] if heads else None)


def find_layer_norm_scale(state_dict: dict[str, torch.Tensor]) -> str:
    """Tell whether the LayerNorm weights of official parameters multiply as they are or after adding 1.

    The official code since January 2023 multiplies by `weight + 1` and stores weights centred on 0, of which about
    half are negative. Weights near 0 that are all positive are small factors: plus 1, not one would be below 1.

    Returns:
        "weight" or "weight_plus_one".

    Raises:
        InputError: there are no LayerNorm weights.
    """
    layer_norms = [tensor.flatten().float() for name, tensor in state_dict.items() if is_layer_norm_weight(name)]
    if not layer_norms:
        raise InputError("The checkpoint has no LayerNorm weights, so it is not a Luna model.")
    weights = torch.cat(layer_norms)
    return "weight_plus_one" if weights.mean() < 0.5 and weights.min() <= 0 else "weight"


def is_layer_norm_weight(official_name: str) -> bool:
    return official_name.endswith("norm.weight") or "layernorm_" in official_name and official_name.endswith(".weight")


def convert_state_dict(
    state_dict: dict[str, torch.Tensor], config: LunaConfig, layer_norm_scale: str = "weight", head: str | None = None
) -> dict[str, torch.Tensor]:
    """The official parameters of encoder, language model head and classification head under our names, in float32.

    Args:
        state_dict: official parameters, without other classification heads.
        layer_norm_scale: "weight", or "weight_plus_one" for LayerNorm weights to which 1 has to be added.
        head: official name of the classification head that the configuration describes, or None for none.

    Raises:
        InputError: as `convert_parameters`, or parameters are untied where the configuration says tied.
    """
    shapes = parameter_shapes(LunaForMaskedLM, config)
    if head is not None:
        shapes |= parameter_shapes(LunaForSequenceClassification, config)
    converted = convert_parameters(state_dict, map_names(config, head), shapes, layer_norm_scale)
    if config.tie_word_embeddings and not torch.equal(
        state_dict["encoder.lm_head.weight"], state_dict["encoder.sentence_encoder.embed_tokens.weight"]
    ):
        raise InputError(
            "encoder.lm_head.weight differs from encoder.sentence_encoder.embed_tokens.weight, although the "
            "checkpoint's args do not set untie_weights_luna."
        )
    return converted


def parameter_shapes(model_class: type[PreTrainedModel], config: LunaConfig) -> dict[str, tuple[int, ...]]:
    """Our parameter name to its shape, of a model with this configuration."""
    with torch.device("meta"):
        return {ours: tuple(tensor.shape) for ours, tensor in model_class(config).state_dict().items()}


def convert_parameters(
    state_dict: dict[str, torch.Tensor], names: dict[str, str], shapes: dict[str, tuple[int, ...]], layer_norm_scale: str
) -> dict[str, torch.Tensor]:
    """Official parameters under our names, in float32.

    Args:
        names: official parameter name to ours.
        shapes: our parameter name to its shape.

    Raises:
        InputError: parameters are missing, unknown, of another shape than the configuration says, or not finite in float32.
    """
    if missing := [name for name in names if name not in state_dict]:
        raise InputError(f"The checkpoint lacks {list_names(missing)}.")
    if unknown := [name for name in state_dict if name not in names]:
        raise InputError(f"The checkpoint's args do not account for its parameters {list_names(unknown)}.")
    converted = {}
    for name, ours in names.items():
        tensor = state_dict[name]
        if tuple(tensor.shape) != shapes[ours]:
            raise InputError(f"{name} has shape {tuple(tensor.shape)}, but the checkpoint's args make it {shapes[ours]}.")
        converted[ours] = tensor.float()
        if not converted[ours].isfinite().all():
            raise InputError(
                f"{name} holds values that are infinite in float32 or not a number, so the checkpoint is broken."
            )
    if layer_norm_scale == "weight_plus_one":
        for name in filter(is_layer_norm_weight, names):
            converted[names[name]] = converted[names[name]] + 1
    return converted


def official_state_dict(
    config: LunaConfig, weights: dict[str, torch.Tensor], head: str | None, layer_norm_scale: str
) -> dict[str, torch.Tensor]:
    """Our parameters under official names, in float32: the inverse of `convert_state_dict`.

    Raises:
        InputError: parameters are missing, unknown, or what `convert_state_dict` refuses.
    """
    state_dict = official_parameters(weights, map_names(config, head))
    convert_state_dict(state_dict, config, head=head)  # for what it refuses
    return shift_layer_norms(state_dict, layer_norm_scale)


def official_parameters(weights: dict[str, torch.Tensor], names: dict[str, str]) -> dict[str, torch.Tensor]:
    """Our parameters under official names, in float32, without those of other classifiers.

    Raises:
        InputError: parameters are missing or unknown.
    """
    if missing := [ours for ours in names.values() if ours not in weights]:
        raise InputError(f"The folder's weights lack {list_names(missing)}.")
    unknown = [ours for ours in weights if ours not in names.values() and not ours.startswith("classifier.")]
    if unknown:
        raise InputError(f"The folder's config does not account for its weights {list_names(unknown)}.")
    return {official: weights[ours].float() for official, ours in names.items()}


def shift_layer_norms(state_dict: dict[str, torch.Tensor], layer_norm_scale: str) -> dict[str, torch.Tensor]:
    """Official parameters of the published release as code of the given scale stores them."""
    if layer_norm_scale != "weight_plus_one":
        return state_dict
    return {name: x - 1 if is_layer_norm_weight(name) else x for name, x in state_dict.items()}
