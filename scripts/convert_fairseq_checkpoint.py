# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Convert a checkpoint of the official (fairseq) Luna code into a folder that `from_pretrained` loads.

    python scripts/convert_fairseq_checkpoint.py model.pt OUT --dict dict.txt

Read top to bottom: the checkpoint file, its args, its weights, the output folder, the command line.
"""

import argparse
import pickle
import re
import struct
import sys
import tempfile
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForMaskedLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the model of this clone, installed or not

from configuration_luna import LunaConfig  # noqa: E402
from modeling_luna import LunaForMaskedLM  # noqa: E402

HEAD_PREFIX = "classification_heads."
LAYER_NORM_SCALES = ("weight", "weight_plus_one")


class ConversionError(ValueError):
    """The checkpoint cannot be converted; the message says why in one sentence."""


# ---------------------------------------------------------------------------------------------------------------------
# The checkpoint file


# What torch's readers of the two formats raise when a file ends early, is damaged or is something else.
UNREADABLE_FILE_ERRORS = (
    pickle.UnpicklingError,
    struct.error,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


def load_fairseq_checkpoint(path: str | Path) -> tuple[argparse.Namespace, dict[str, torch.Tensor]]:
    """Read the training args and the weights of an official checkpoint, in torch's zip or its legacy format.

    Nothing in the file is executed: of all classes that a pickle can name, only `argparse.Namespace` and what torch
    allows for weights are built.

    Raises:
        ConversionError: no such file, not a checkpoint, truncated, damaged, or naming any other class.
    """
    path = Path(path)
    if not path.is_file():
        raise ConversionError(f"There is no checkpoint file {path}.")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE_FILE_ERRORS as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused is None:
            raise ConversionError(f"{path} is truncated, damaged or not a PyTorch checkpoint.") from error
        raise ConversionError(
            f"{path} is refused because its pickle names {refused[1]}, and a Luna checkpoint holds nothing but "
            "tensors, plain values and an argparse.Namespace."
        ) from error

    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("args"), argparse.Namespace):
        raise ConversionError(f'{path} has no argparse.Namespace under "args", so it is not a checkpoint of fairseq.')
    state_dict = checkpoint.get("model")
    if not isinstance(state_dict, dict) or not all(
        isinstance(name, str) and torch.is_tensor(tensor) for name, tensor in state_dict.items()
    ):
        raise ConversionError(f'{path} has no dictionary of named tensors under "model".')
    return checkpoint["args"], state_dict


def read_dictionary(path: str | Path) -> list[str]:
    """The symbols of a fairseq `dict.txt` in the order of their ids, with the special symbols that it leaves out.

    Raises:
        ConversionError: no such file, or a line that is not "symbol count", or a symbol twice.
    """
    path = Path(path)
    if not path.is_file():
        raise ConversionError(f"There is no dictionary file {path}.")
    symbols = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ConversionError(f"{path} is not UTF-8 text, so it is not a fairseq dictionary.") from error
    if lines[-1] == "":
        lines.pop()
    for number, line in enumerate(lines, start=1):
        symbol, _, count = line.rstrip().rpartition(" ")
        if not symbol or not count.isdecimal():
            raise ConversionError(f"Line {number} of {path} is {line!r}, but must be a symbol, a space and a count.")
        if symbol in symbols:
            raise ConversionError(f"Line {number} of {path} repeats the symbol {symbol!r}.")
        symbols[symbol] = len(symbols)
    symbols.setdefault("<mask>", len(symbols))
    return list(symbols)


# ---------------------------------------------------------------------------------------------------------------------
# The args

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


def config_from_args(args: argparse.Namespace, vocab_size: int) -> LunaConfig:
    """The configuration that the training args of a masked language model describe.

    Raises:
        ConversionError: another architecture, an arg that is missing, or values that make no Luna model.
    """
    arch = getattr(args, "arch", None)
    if arch not in ARCHITECTURES:
        raise ConversionError(
            f"The checkpoint's architecture is {arch}, but only the masked language model can be converted: "
            f"{', '.join(ARCHITECTURES)}."
        )
    missing = [arg for arg in (*CONFIG_OF_ARG, "max_positions", "activation_fn") if not hasattr(args, arg)]
    if missing:
        raise ConversionError(f"The checkpoint's args lack {list_names(missing)}.")
    if args.activation_fn not in ACTIVATIONS:
        raise ConversionError(
            f"The checkpoint's activation_fn is {args.activation_fn}, but only {', '.join(ACTIVATIONS)} can be converted."
        )
    try:
        return LunaConfig(
            vocab_size=vocab_size,
            hidden_act=ACTIVATIONS[args.activation_fn],
            **{ours: getattr(args, arg) for arg, ours in CONFIG_OF_ARG.items()},
            # Positions start after the id of the padding.
            max_position_embeddings=args.max_positions + LunaConfig.pad_token_id + 1,
            **{ours: not getattr(args, flag, False) for flag, ours in CONFIG_WITHOUT_FLAG.items()},
        )
    except (StrictDataclassError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ConversionError(f"The checkpoint's args do not describe a Luna model: {reason}") from error


# ---------------------------------------------------------------------------------------------------------------------
# The weights

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


def map_names(config: LunaConfig) -> dict[str, str]:
    """Official parameter name to ours, for every parameter of a `luna_bert` model with this configuration."""
    modules = dict(MODEL_MODULES)
    layer_modules = LAYER_MODULES | (TIED_KEY_VALUE_MODULES if config.tie_key_value else UNTIED_KEY_VALUE_MODULES)
    for i in range(1 if config.share_layer_weights else config.num_hidden_layers):
        for official, ours in layer_modules.items():
            modules[f"encoder.sentence_encoder.layers.{i}.{official}"] = f"luna.layers.{i}.{ours}"
    names = dict(MODEL_NAMES)
    for official, ours in modules.items():
        for parameter in ("weight", "bias"):
            names[f"{official}.{parameter}"] = f"{ours}.{parameter}"
    return names


def find_layer_norm_scale(state_dict: dict[str, torch.Tensor]) -> str:
    """Tell whether the LayerNorm weights of official parameters multiply as they are or after adding 1.

    The official code since January 2023 multiplies by `weight + 1` and stores weights centred on 0, of which about
    half are negative. Weights near 0 that are all positive are small factors: plus 1, not one would be below 1.

    Returns:
        "weight" or "weight_plus_one".

    Raises:
        ConversionError: there are no LayerNorm weights.
    """
    layer_norms = [tensor.flatten().float() for name, tensor in state_dict.items() if is_layer_norm_weight(name)]
    if not layer_norms:
        raise ConversionError("The checkpoint has no LayerNorm weights, so it is not a Luna model.")
    weights = torch.cat(layer_norms)
    return "weight_plus_one" if weights.mean() < 0.5 and weights.min() <= 0 else "weight"


def is_layer_norm_weight(official_name: str) -> bool:
    return official_name.endswith("norm.weight")


def convert_state_dict(
    state_dict: dict[str, torch.Tensor], config: LunaConfig, layer_norm_scale: str = "weight"
) -> dict[str, torch.Tensor]:
    """The official parameters of encoder and language model head under our names, in float32.

    Args:
        state_dict: official parameters, without classification heads.
        layer_norm_scale: "weight", or "weight_plus_one" for LayerNorm weights to which 1 has to be added.

    Raises:
        ConversionError: parameters are missing, unknown, of another shape than the configuration says, or untied where
            it says tied.
    """
    names = map_names(config)
    if missing := [name for name in names if name not in state_dict]:
        raise ConversionError(f"The checkpoint lacks {list_names(missing)}.")
    if unknown := [name for name in state_dict if name not in names]:
        raise ConversionError(f"The checkpoint's args do not account for its parameters {list_names(unknown)}.")
    with torch.device("meta"):
        shapes = {ours: tuple(tensor.shape) for ours, tensor in LunaForMaskedLM(config).state_dict().items()}
    for name, ours in names.items():
        if tuple(state_dict[name].shape) != shapes[ours]:
            raise ConversionError(
                f"{name} has shape {tuple(state_dict[name].shape)}, but the checkpoint's args make it {shapes[ours]}."
            )
    if config.tie_word_embeddings and not torch.equal(
        state_dict["encoder.lm_head.weight"], state_dict["encoder.sentence_encoder.embed_tokens.weight"]
    ):
        raise ConversionError(
            "encoder.lm_head.weight differs from encoder.sentence_encoder.embed_tokens.weight, although the "
            "checkpoint's args do not set untie_weights_luna."
        )
    converted = {}
    for name, ours in names.items():
        converted[ours] = state_dict[name].float()
        if layer_norm_scale == "weight_plus_one" and is_layer_norm_weight(name):
            converted[ours] = converted[ours] + 1
    return converted


def list_names(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


# ---------------------------------------------------------------------------------------------------------------------
# The output folder


def save_model(config: LunaConfig, converted: dict[str, torch.Tensor], out: Path) -> None:
    """Write the folder `out`, or nothing: it is written beside it, loaded back, and renamed when that went well.

    Raises:
        ConversionError: the written folder does not load back with all its weights.
    """
    model = LunaForMaskedLM(config)
    model.load_state_dict(converted)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
        folder = Path(temporary) / "model"
        model.save_pretrained(folder)
        _, loading_info = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if loading_info[kind]:
                raise ConversionError(f"The converted model does not load back: {kind} are {loading_info[kind]}.")
        folder.replace(out)


# ---------------------------------------------------------------------------------------------------------------------
# The command line


def convert(checkpoint: Path, out: Path, dictionary: Path, layer_norm_scale: str = "auto") -> None:
    """Convert the file `checkpoint` into the folder `out` and print what was found.

    Raises:
        ConversionError: with one sentence, and nothing is written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConversionError(f"{out} already exists and is not an empty folder.")
    symbols = read_dictionary(dictionary)
    args, state_dict = load_fairseq_checkpoint(checkpoint)
    config = config_from_args(args, vocab_size=len(symbols))

    embeddings = state_dict.get("encoder.sentence_encoder.embed_tokens.weight")
    if embeddings is not None and len(embeddings) != len(symbols):
        raise ConversionError(
            f"{dictionary} makes a vocabulary of {len(symbols)} symbols with the special ones, but the checkpoint has "
            f"embeddings for {len(embeddings)}."
        )
    heads = [name for name in state_dict if name.startswith(HEAD_PREFIX)]
    encoder = {name: tensor for name, tensor in state_dict.items() if name not in heads}
    found = "given"
    if layer_norm_scale == "auto":
        layer_norm_scale, found = find_layer_norm_scale(encoder), "detected"
    converted = convert_state_dict(encoder, config, layer_norm_scale)
    save_model(config, converted, out)

    print(f"Converted {checkpoint} ({args.arch}) to {out}.")
    print(f"LayerNorm factor: {'weight + 1' if layer_norm_scale == 'weight_plus_one' else 'weight'} ({found}).")
    dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in encoder.values()} - {"float32"}
    if dtypes:
        print(f"Weights in {' and '.join(sorted(dtypes))} were converted to float32.")
    if heads:
        print(f"Left out, since only encoder and language model head are converted: {', '.join(heads)}.")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Convert an official Luna checkpoint into a folder that from_pretrained loads."
    )
    parser.add_argument("checkpoint", type=Path, help="model.pt as the official code saved it")
    parser.add_argument("out", type=Path, help="folder to write: new or empty")
    parser.add_argument("--dict", type=Path, required=True, dest="dictionary", help="dict.txt that came with the checkpoint")
    parser.add_argument(
        "--layer-norm-scale",
        choices=("auto", *LAYER_NORM_SCALES),
        default="auto",
        help="whether LayerNorm multiplies by its weight, as in the published release, or by weight + 1, as in "
        "official code since January 2023 (default: tell by the weights)",
    )
    args = parser.parse_args(argv)
    try:
        convert(args.checkpoint, args.out, args.dictionary, args.layer_norm_scale)
    except (ConversionError, OSError) as error:  # OSError: the disk is full, the folder cannot be written, ...
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
