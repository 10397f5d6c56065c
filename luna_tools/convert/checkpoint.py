# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Convert a checkpoint of the official (fairseq) Luna code into a folder that `from_pretrained` loads, or a folder back.

    python scripts/convert_fairseq_checkpoint.py model.pt OUT --dict dict.txt \
        --encoder-json encoder.json --vocab-bpe vocab.bpe
    python scripts/convert_fairseq_checkpoint.py --to-fairseq FOLDER model.pt

Read top to bottom: the checkpoint file, its args, its weights, the output folder, the comparison with goldens, the way back,
the command line. The tokenizer is in `fairseq_tokenizer.py`.
"""

import argparse
import json
import pickle
import re
import struct
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from string import Template

import torch
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the model of this clone, installed or not

from configuration_luna import LunaConfig  # noqa: E402
from luna_tools.convert.tokenizer import (  # noqa: E402
    InputError,
    build_tokenizer,
    read_bpe,
    read_dictionary,
    recover_files,
)
from luna_tools.files import (  # noqa: E402
    one_sentence_when_stopped,
    put_in_place,
    sha256,  # noqa: E402
    staging_folder,
)
from modeling_luna import (  # noqa: E402
    LunaForMaskedLM,
    LunaForMultipleChoice,
    LunaForSequenceClassification,
    LunaModel,
)

HEAD_PREFIX = "classification_heads."
LAYER_NORM_SCALES = ("weight", "weight_plus_one")


# ---------------------------------------------------------------------------------------------------------------------
# The checkpoint file


WEIGHT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

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
        InputError: no such file, not a checkpoint, truncated, damaged, naming any other class, or with weights that are
            no dense floating-point numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"There is no checkpoint file {path}.")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE_FILE_ERRORS as error:
        if refused := re.search(r"GLOBAL (\S+)", str(error)):
            raise InputError(
                f"{path} is refused because its pickle names {refused[1]}, and a Luna checkpoint holds nothing but "
                "tensors, plain values and an argparse.Namespace."
            ) from error
        # Torch warns of protocols above its own, 2; since protocol 4 classes are named in a way that it does not read.
        for protocol in re.findall(r"pickle protocol (\d+)", " ".join(str(warning.message) for warning in caught)):
            if int(protocol) >= 4:
                raise InputError(
                    f"{path} is refused because its pickle has protocol {protocol}, but without running code torch reads "
                    "only its own protocol, 2: it has to be saved again with that."
                ) from error
        raise InputError(f"{path} is truncated, damaged or not a PyTorch checkpoint.") from error

    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("args"), argparse.Namespace):
        raise InputError(f'{path} has no argparse.Namespace under "args", so it is not a checkpoint of fairseq.')
    state_dict = checkpoint.get("model")
    if not isinstance(state_dict, dict) or not all(
        isinstance(name, str) and torch.is_tensor(tensor) for name, tensor in state_dict.items()
    ):
        raise InputError(f'{path} has no dictionary of named tensors under "model".')
    check_kinds(state_dict)
    return checkpoint["args"], state_dict


def check_kinds(weights: dict[str, torch.Tensor]) -> None:
    """Raises InputError for what is no dense tensor of floating-point numbers with values."""
    for name, tensor in weights.items():
        if tensor.dtype not in WEIGHT_DTYPES:
            names = ", ".join(str(dtype).removeprefix("torch.") for dtype in WEIGHT_DTYPES)
            raise InputError(f"{name} holds {name_dtype(tensor)}, but weights must be one of {names}.")
        if tensor.layout != torch.strided or tensor.is_nested or tensor.is_meta:
            kind = "a meta tensor, without values" if tensor.is_meta else "a sparse or nested tensor"
            raise InputError(f"{name} is {kind}, but weights must be dense tensors.")


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
        # The other families of the official code: their models are not here yet.
        family = "lra" if str(arch).startswith("luna_lra") else "seq2seq" if hasattr(args, "decoder_layers") else None
        if family is not None:
            raise InputError(
                f"The checkpoint's architecture is {arch}, of the {family} family, which is not supported yet: only the "
                "masked language model is."
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
    try:
        return LunaConfig(
            vocab_size=vocab_size,
            hidden_act=ACTIVATIONS[args.activation_fn],
            **{ours: getattr(args, arg) for arg, ours in CONFIG_OF_ARG.items()},
            # Positions start after the id of the padding.
            max_position_embeddings=args.max_positions + LunaConfig.pad_token_id + 1,
            **{ours: not getattr(args, flag, False) for flag, ours in CONFIG_WITHOUT_FLAG.items()},
            **head_fields,
        )
    except (StrictDataclassError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"The checkpoint's args do not describe a Luna model: {reason}") from error


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
    return official_name.endswith("norm.weight")


def convert_state_dict(
    state_dict: dict[str, torch.Tensor], config: LunaConfig, layer_norm_scale: str = "weight", head: str | None = None
) -> dict[str, torch.Tensor]:
    """The official parameters of encoder, language model head and classification head under our names, in float32.

    Args:
        state_dict: official parameters, without other classification heads.
        layer_norm_scale: "weight", or "weight_plus_one" for LayerNorm weights to which 1 has to be added.
        head: official name of the classification head that the configuration describes, or None for none.

    Raises:
        InputError: parameters are missing, unknown, of another shape than the configuration says, not finite in
            float32, or untied where the configuration says tied.
    """
    names = map_names(config, head)
    if missing := [name for name in names if name not in state_dict]:
        raise InputError(f"The checkpoint lacks {list_names(missing)}.")
    if unknown := [name for name in state_dict if name not in names]:
        raise InputError(f"The checkpoint's args do not account for its parameters {list_names(unknown)}.")
    with torch.device("meta"):
        shapes = {ours: tuple(tensor.shape) for ours, tensor in LunaForMaskedLM(config).state_dict().items()}
        if head is not None:
            classifier = LunaForSequenceClassification(config).state_dict()
            shapes |= {ours: tuple(tensor.shape) for ours, tensor in classifier.items()}
    converted = {}
    for name, ours in names.items():
        tensor = state_dict[name]
        if tuple(tensor.shape) != shapes[ours]:
            raise InputError(
                f"{name} has shape {tuple(tensor.shape)}, but the checkpoint's args make it {shapes[ours]}."
            )
        converted[ours] = tensor.float()
        if not converted[ours].isfinite().all():
            raise InputError(
                f"{name} holds values that are infinite in float32 or not a number, so the checkpoint is broken."
            )
    if config.tie_word_embeddings and not torch.equal(
        state_dict["encoder.lm_head.weight"], state_dict["encoder.sentence_encoder.embed_tokens.weight"]
    ):
        raise InputError(
            "encoder.lm_head.weight differs from encoder.sentence_encoder.embed_tokens.weight, although the "
            "checkpoint's args do not set untie_weights_luna."
        )
    if layer_norm_scale == "weight_plus_one":
        for name in filter(is_layer_norm_weight, names):
            converted[names[name]] = converted[names[name]] + 1
    return converted


def name_dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def list_names(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


# ---------------------------------------------------------------------------------------------------------------------
# The output folder

LOADERS = {
    LunaForMaskedLM: AutoModelForMaskedLM,
    LunaForSequenceClassification: AutoModelForSequenceClassification,
}


def save_folder(
    model: PreTrainedModel,
    weights: dict[str, torch.Tensor],
    tokenizer: PreTrainedTokenizerFast | None,
    card: ModelCard,
    out: Path,
    goldens: Path | None = None,
) -> dict[str, float]:
    """Write the folder `out`, or nothing: it is written under another name, loaded back, and renamed when that went well.

    Args:
        weights: what to write. Besides a classifier that is the language model head, which the classifier does not load.
        goldens: results of the official code, or None.

    Returns:
        The result of `compare_with_goldens`. If one of its values is above 1, nothing is written.

    Raises:
        InputError: the folder cannot be written, does not load back as it was, or the goldens are not its own.
    """
    with refuse_to_write(out), staging_folder(out) as staging:
        folder = staging / "model"
        model.save_pretrained(folder, state_dict=weights)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        card.save(folder / "README.md")
        check_loads_back(folder, model, tokenizer)
        ratios = {} if goldens is None else compare_with_goldens(folder, goldens)
        if all(ratio <= 1 for ratio in ratios.values()):
            put_in_place(folder, out)
        return ratios


@contextmanager
def refuse_to_write(target: Path) -> Iterator[None]:
    """Raises InputError where the disk is full, a parent is a file, the name too long, ..."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:  # torch.save tells a full disk by a RuntimeError
        raise InputError(f"{target} cannot be written: {' '.join(str(error).split())}.") from error


def check_loads_back(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast | None) -> None:
    loaded, loading_info = LOADERS[type(model)].from_pretrained(folder, output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if loading_info[kind]:
            raise InputError(f"The converted model does not load back: {kind} are {loading_info[kind]}.")
    converted = model.state_dict()
    if changed := [name for name, tensor in loaded.state_dict().items() if not torch.equal(tensor, converted[name])]:
        raise InputError(f"The converted model does not load back: the values of {list_names(changed)} are others.")
    if tokenizer is not None and AutoTokenizer.from_pretrained(folder).get_vocab() != tokenizer.get_vocab():
        raise InputError("The converted tokenizer does not load back: its entries are others.")


CARD = Template("""# $name

Luna, an encoder that attends through a short packed sequence (Ma et al., "Luna: Linear Unified Nested Attention", NeurIPS
2021), $contents.

$table

## Source

Converted from `$file`, a checkpoint of the official code (fairseq-apollo). Its architecture is `$arch`, its SHA-256
`$digest`. Weights are in float32; $layer_norm.

## Use

With the code in these files; it needs torch and transformers:

```python
import torch
from transformers import $imports

name = "."  # this folder, or its name on the Hub
model = $auto_class.from_pretrained(name, trust_remote_code=True)
$inputs
with torch.no_grad():
    print(model(**inputs).logits.shape)
```

With luna-transformers installed, no code of these files runs:

```python
import modeling_luna  # registers Luna with the Auto classes

model = $auto_class.from_pretrained(name)$tokenizer
```

## Licence

Of the weights: unknown. The official code is published under the MIT licence of fairseq.

## Limits

The conversion neither trained nor evaluated anything. The checkpoint does not record what its weights were trained on.
""")
HEAD_CONTENTS = Template("""with the classification head `$head`.
Its `classifier_pooling` is `$pooling`, and the names of its $count classes are not known. The language model head is in the
file as well: `AutoModelForMaskedLM` loads it""")
INPUTS = Template("""tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)
inputs = tokenizer("$text", return_tensors="pt")""")
INPUTS_WITHOUT_TOKENIZER = """# The files of GPT-2's BPE, which a tokenizer needs, were not given. <s> is 0, </s> is 2.
inputs = {"input_ids": torch.tensor([[0, 5, 6, 2]])}"""


def make_model_card(
    model: PreTrainedModel,
    checkpoint: Path,
    arch: str,
    head: str | None,
    layer_norm_scale: str,
    has_tokenizer: bool,
    name: str,
) -> ModelCard:
    """What is known of a converted checkpoint, and nothing else."""
    config = model.config
    rows = {
        "parameters": f"{model.num_parameters():,}",
        "layers": config.num_hidden_layers,
        "hidden size": config.hidden_size,
        "attention heads": config.num_attention_heads,
        "feed-forward size": config.intermediate_size,
        "packed vectors (l)": f"{config.projection_length}{', at most one per token' * config.dynamic_projection}",
        "keys and values": "tied" if config.tie_key_value else "untied",
        "vocabulary": f"{config.vocab_size:,}",
        "longest input": f"{config.max_sequence_length:,} tokens",
    }
    contents, text = "with its language model head", "Paris is the<mask> of France."
    if head is not None:
        contents = HEAD_CONTENTS.substitute(head=head, pooling=config.classifier_pooling, count=config.num_labels)
        text = "Paris is the capital of France."
    auto_class = LOADERS[type(model)].__name__
    metadata = ModelCardData(
        library_name="transformers",
        license="unknown",
        pipeline_tag="fill-mask" if head is None else "text-classification",
        tags=["luna", "custom_code"],
    )
    body = CARD.substitute(
        name=name,
        contents=contents,
        table="\n".join(["| | |", "|---|---|", *(f"| {row} | {value} |" for row, value in rows.items())]),
        file=checkpoint.name,
        arch=arch,
        digest=sha256(checkpoint),
        layer_norm="those of LayerNorms are "
        + ("1 + those" if layer_norm_scale == "weight_plus_one" else "as")
        + " in the file",
        imports=f"{auto_class}, AutoTokenizer" if has_tokenizer else auto_class,
        auto_class=auto_class,
        tokenizer="\ntokenizer = AutoTokenizer.from_pretrained(name)" if has_tokenizer else "",
        inputs=INPUTS.substitute(text=text) if has_tokenizer else INPUTS_WITHOUT_TOKENIZER,
    )
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{body}")


# ---------------------------------------------------------------------------------------------------------------------
# The comparison with goldens

# The official code's own float32 error, times this, is what a correct implementation may differ by.
TOLERANCE_FACTOR = 20


def max_abs_difference(ours: torch.Tensor, official: torch.Tensor, mask: torch.Tensor | None = None) -> float:
    """Largest difference of two tensors of one shape, where the boolean `mask` over the leading dimensions is True."""
    assert ours.shape == official.shape, f"{tuple(ours.shape)}, but officially {tuple(official.shape)}"
    difference = (ours.double() - official.double()).abs()
    return (difference if mask is None else difference[mask]).max().item()


def compare_with_goldens(folder: Path, path: Path) -> dict[str, float]:
    """How far the model in a folder is from what the official code computes, in a `goldens.safetensors`.

    Returns:
        "hidden", "packed", "logits" and, of a classification head, "cls_logits" -> largest difference over all batches and
        layers, as a fraction of the tolerance.

    Raises:
        InputError: no such file, another kind of file, the goldens of another model, or damaged ones.
    """
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["luna_parity"])
            goldens = {key: file.get_tensor(key) for key in file.keys()}
        noise = {kind: float(error["max_abs_err"]) for kind, error in facts["fp32_noise"].items()}
        official = facts["config"] | {"vocab_size": facts["vocab_size"]}
        batches = list(facts["batches"])
    except (OSError, SafetensorError, AttributeError, TypeError, KeyError, ValueError) as error:
        raise InputError(f"{path} is not a file of goldens: safetensors with luna_parity in the metadata.") from error

    model = AutoModelForMaskedLM.from_pretrained(folder)
    ours = args_from_config(model.config) | {"vocab_size": model.config.vocab_size}
    for name, value in ours.items():
        if official.get(name, value) != value:
            raise InputError(f"{path} is of another model: {name} is {official[name]} there, but {value} here.")
    classifier = None
    if model.config.architectures == [LunaForSequenceClassification.__name__]:
        classifier = AutoModelForSequenceClassification.from_pretrained(folder)
    if not batches:
        raise InputError(f"{path} has no batches, so there is nothing to compare with.")

    ratios: dict[str, list[float]] = {}

    def golden(key: str) -> torch.Tensor:
        if key not in goldens:
            raise InputError(f"{path} lacks {key}, so it is damaged or of another model.")
        return goldens[key]

    def compare(kind: str, key: str, tensor: torch.Tensor, mask: torch.Tensor | None = None) -> None:
        if golden(key).shape != tensor.shape:
            shapes = f"{tuple(golden(key).shape)}, but must have {tuple(tensor.shape)}"
            raise InputError(f"{path} is damaged: {key} has shape {shapes}.")
        if mask is not None and (mask.shape != tensor.shape[:2] or not mask.any()):
            raise InputError(f"{path} is damaged: the mask of {key} is empty or has another shape.")
        if not noise.get(kind, 0) > 0:
            raise InputError(f"{path} is damaged: its fp32_noise of {kind} is {noise.get(kind)}, but must be above 0.")
        difference = max_abs_difference(tensor, golden(key), mask)
        ratios.setdefault(kind, []).append(difference / (TOLERANCE_FACTOR * noise[kind]))

    for batch in batches:
        inputs = {name: golden(f"{batch}.{name}") for name in ("input_ids", "attention_mask", "packed_mask")}
        if flat := [name for name, tensor in inputs.items() if tensor.ndim != 2]:
            raise InputError(f"{path} is damaged: {batch}.{flat[0]} must have two dimensions.")
        is_token, packed_mask = inputs["attention_mask"].bool(), inputs.pop("packed_mask").bool()
        with torch.no_grad():
            try:
                outputs = model(**inputs, output_hidden_states=True, output_packed_states=True)
            except (IndexError, RuntimeError, TypeError, ValueError) as error:
                raise InputError(f"{path} is damaged: the model cannot read its batch {batch}.") from error
            for i, (hidden, packed) in enumerate(zip(outputs.hidden_states, outputs.packed_states, strict=True)):
                compare("hidden", f"{batch}.hidden.{i}", hidden, is_token)
                # Ours cuts P to the padded length, where the official code cuts it to the longest row.
                compare("packed", f"{batch}.packed.{i}", packed[:, : packed_mask.shape[1]], packed_mask)
            compare("logits", f"{batch}.logits", outputs.logits, is_token)
            if classifier is not None:
                compare("cls_logits", f"{batch}.cls_logits", classifier(**inputs).logits)
    return {kind: torch.tensor(values).max().item() for kind, values in ratios.items()}


# ---------------------------------------------------------------------------------------------------------------------
# The way back

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
# What the official code reads besides: of the model what ours has not, of the task, and how training would go on.
OTHER_ARGS = {
    "arch": "luna_bert",
    "encoder_layerdrop": 0,
    "encoder_layers_to_keep": None,
    "pooler_activation_fn": "tanh",
    "quant_noise_pq": 0,
    "quant_noise_pq_block_size": 8,
    "quant_noise_scalar": 0,
    "task": "masked_lm",
    "data": ".",
    "sample_break_mode": "complete",
    "mask_prob": 0.15,
    "leave_unmasked_prob": 0.1,
    "random_token_prob": 0.1,
    "freq_weighted_replacement": False,
    "mask_whole_words": False,
    "criterion": "masked_lm",
    "optimizer": "adam",
    "lr_scheduler": "polynomial_decay",
    "seed": 1,
}


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
        "pooler_dropout": 0.0 if config.classifier_dropout is None else config.classifier_dropout,
    }


def read_folder(folder: Path) -> tuple[LunaConfig, dict[str, torch.Tensor]]:
    """Configuration and weights of a Luna that `save_pretrained` wrote, tied weights under both names.

    Raises:
        InputError: not such a folder, or a file in it cannot be read.
    """
    # Other files may be the state of an optimizer.
    files = [*folder.glob("model.safetensors")] or sorted(folder.glob("model-*-of-*.safetensors"))
    if not files or not (folder / "config.json").is_file():
        raise InputError(f"{folder} is not a folder with a config.json and weights in safetensors.")
    try:
        config = LunaConfig.from_pretrained(folder)
        weights = {name: tensor for file in files for name, tensor in load_file(file).items()}
    except (OSError, SafetensorError, StrictDataclassError, TypeError, ValueError) as error:
        raise InputError(f"{folder} cannot be read: {' '.join(str(error).split()).rstrip('.')}.") from error
    check_kinds(weights)
    if config.architectures == [LunaModel.__name__]:
        weights = {f"luna.{name}": tensor for name, tensor in weights.items()}
    if config.tie_word_embeddings and "luna.embeddings.word_embeddings.weight" in weights:
        weights["lm_head.decoder.weight"] = weights["luna.embeddings.word_embeddings.weight"]
    return config, weights


def find_head_name(config: LunaConfig, wanted: str | None) -> str | None:
    """The official name of the classification head of a folder, or None for the language model alone.

    Raises:
        InputError: the official code has no such model or head, or builds another one under the wanted name.
    """
    if config.architectures in ([LunaModel.__name__], [LunaForMaskedLM.__name__]):
        if wanted not in (None, "none"):
            raise InputError(f"There is no classification head to name {wanted}: the folder holds a language model.")
        return None
    if config.architectures not in ([LunaForSequenceClassification.__name__], [LunaForMultipleChoice.__name__]):
        held = ", ".join(config.architectures or ["no model"])
        raise InputError(f"The folder holds {held}, for which the official code has no model.")
    if wanted == "none":
        return None
    pooling = config.classifier_pooling
    if pooling not in NAME_OF_HEAD:
        raise InputError(
            f"The model's classifier_pooling is {pooling}, but the official heads are {', '.join(NAME_OF_HEAD)}."
        )
    if wanted is not None and POOLING_OF_HEAD.get(wanted, "cls") != pooling:
        raise InputError(
            f"A head named {wanted} is {POOLING_OF_HEAD.get(wanted, 'cls')} in the official code, but the model's "
            f"classifier_pooling is {pooling}, named {NAME_OF_HEAD[pooling]}."
        )
    return wanted or NAME_OF_HEAD[pooling]


def official_state_dict(
    config: LunaConfig, weights: dict[str, torch.Tensor], head: str | None, layer_norm_scale: str
) -> dict[str, torch.Tensor]:
    """Our parameters under official names, in float32: the inverse of `convert_state_dict`.

    Raises:
        InputError: parameters are missing, unknown, or what `convert_state_dict` refuses.
    """
    names = map_names(config, head)
    if missing := [ours for ours in names.values() if ours not in weights]:
        raise InputError(f"The folder's weights lack {list_names(missing)}.")
    unknown = [ours for ours in weights if ours not in names.values() and not ours.startswith("classifier.")]
    if unknown:
        raise InputError(f"The folder's config does not account for its weights {list_names(unknown)}.")
    state_dict = {official: weights[ours].float() for official, ours in names.items()}
    convert_state_dict(state_dict, config, head=head)  # for what it refuses
    if layer_norm_scale == "weight_plus_one":
        state_dict = {name: x - 1 if is_layer_norm_weight(name) else x for name, x in state_dict.items()}
    return state_dict


def convert_back(
    folder: Path,
    target: Path,
    dictionary: Path | None = None,
    layer_norm_scale: str = "auto",
    head: str | None = None,
) -> None:
    """Convert a folder into an official checkpoint `target`, with the dictionary beside it, and print what was done.

    Args:
        dictionary: dict.txt to copy; None to make dict.txt, encoder.json and vocab.bpe from the folder's tokenizer.
        layer_norm_scale: "weight" (also by "auto") for the published release, "weight_plus_one" for later official code.
        head: a name for the classification head, "none" to leave it out, or None for the official code's name.

    Raises:
        InputError: with one sentence, and nothing is written.
    """
    with refuse_to_write(target):
        target = target.resolve()
        if target.exists():
            raise InputError(f"{target} already exists.")
    config, weights = read_folder(folder)
    head = find_head_name(config, head)
    if config.architectures == [LunaForMultipleChoice.__name__]:
        config.num_labels = 1  # whatever the config has, the head gives each choice one score
    args = argparse.Namespace(**OTHER_ARGS, **args_from_config(config))
    messages = []
    if not any(name.startswith("lm_head.") and name != "lm_head.decoder.weight" for name in weights):
        # The official code always has one and loads no checkpoint without it.
        with torch.device("meta"):
            lm_head = LunaForMaskedLM(config).lm_head.state_dict(prefix="lm_head.")
        weights = {name: torch.zeros(x.shape) for name, x in lm_head.items()} | weights
        messages.append("The folder has no language model head: that of the checkpoint is all zeros.")
    if dtypes := {name_dtype(tensor) for tensor in weights.values()} - {"float32"}:
        messages.append(f"Weights in {' and '.join(sorted(dtypes))} were converted to float32.")
    state_dict = official_state_dict(config, weights, head, layer_norm_scale)

    beside: dict[str, bytes] = {}
    if dictionary is not None:
        check_vocabulary(dictionary, len(read_dictionary(dictionary)), config.vocab_size)
        beside["dict.txt"] = dictionary.read_bytes()
    else:
        try:
            files = recover_files(folder / "tokenizer.json", config.vocab_size)
            beside = {name: text.encode() for name, text in files.items()}
        except InputError as error:
            messages.append(f"No dict.txt is written. {error}")
    there = [name for name in beside if (target.parent / name).exists()]
    for name in there:
        if (target.parent / name).read_bytes() != beside[name]:
            raise InputError(f"{target.parent / name} already exists with another content.")
    checkpoint = {
        "args": args,
        "model": state_dict,
        "optimizer_history": [
            {
                "criterion_name": "MaskedLmLoss",
                "optimizer_name": "FairseqAdam",
                "lr_scheduler_state": {"best": None},
                "num_updates": 0,
            }
        ],
        "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0, "shuffle": True}, "val_loss": None},
        "last_optimizer_state": None,
    }
    with refuse_to_write(target), staging_folder(target) as staging:
        for name in beside.keys() - there:
            (staging / name).write_bytes(beside[name])
        # A pickle, since that is the format of the official code; it holds tensors, plain values and a Namespace.
        torch.save(checkpoint, staging / target.name)
        put_in_place(staging, target.parent)

    print(f"Converted {folder} to {target}{f', its classification head to {head}' if head else ''}.")
    if beside:
        print(f"Beside it: {', '.join(beside)}.")
    print(*messages, sep="\n", end="\n" if messages else "")


# ---------------------------------------------------------------------------------------------------------------------
# The command line


def check_vocabulary(dictionary: Path, size: int, embeddings: int) -> None:
    if size != embeddings:
        raise InputError(
            f"{dictionary} makes a vocabulary of {size} symbols with the special ones, but the checkpoint has embeddings "
            f"for {embeddings}."
        )


def convert(
    checkpoint: Path,
    out: Path,
    dictionary: Path,
    layer_norm_scale: str = "auto",
    bpe_files: tuple[Path, Path] | None = None,
    head: str | None = None,
    goldens: Path | None = None,
) -> bool:
    """Convert the file `checkpoint` into the folder `out` and print what was found.

    Args:
        bpe_files: encoder.json and vocab.bpe, or None for no tokenizer.
        head: the classification head to convert, "none" for the language model, or None for the only head if there is one.
        goldens: results of the official code to compare with, or None.

    Returns:
        False where the model is not within the tolerance of the goldens; then nothing is written.

    Raises:
        InputError: with one sentence, and nothing is written.
    """
    with refuse_to_write(out):
        out = out.resolve()
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(f"{out} already exists and is not an empty folder.")
    symbols = read_dictionary(dictionary)
    bpe = None if bpe_files is None else read_bpe(*bpe_files)
    args, state_dict = load_fairseq_checkpoint(checkpoint)
    head = choose_head(state_dict, head)
    # What is missing or has no rows is refused by its name below.
    rows = {name: len(tensor) for name, tensor in state_dict.items() if tensor.ndim > 0}
    num_labels = rows.get(f"{HEAD_PREFIX}{head}.out_proj.bias") or rows.get(f"{HEAD_PREFIX}{head}.out_proj.weight", 0)
    config = config_from_args(args, len(symbols), head, num_labels)
    check_vocabulary(dictionary, len(symbols), rows.get("encoder.sentence_encoder.embed_tokens.weight", len(symbols)))

    others = [name for name in state_dict if name.startswith(HEAD_PREFIX) and name.split(".")[1] != head]
    state_dict = {name: tensor for name, tensor in state_dict.items() if name not in others}
    found = "given"
    if layer_norm_scale == "auto":
        layer_norm_scale, found = find_layer_norm_scale(state_dict), "detected"
    converted = convert_state_dict(state_dict, config, layer_norm_scale, head)
    tokenizer = None if bpe is None else build_tokenizer(symbols, *bpe, max_length=config.max_sequence_length)

    with torch.device("meta"):
        model = (LunaForMaskedLM if head is None else LunaForSequenceClassification)(config)
    own = model.state_dict().keys()
    model.load_state_dict({name: tensor for name, tensor in converted.items() if name in own}, assign=True)
    model.tie_weights()
    if config.tie_word_embeddings:
        del converted["lm_head.decoder.weight"]
    storages = set()
    for name, tensor in converted.items():  # parameters that share memory, which safetensors does not have
        if tensor.untyped_storage().data_ptr() in storages:
            converted[name] = tensor.clone()
        storages.add(tensor.untyped_storage().data_ptr())
    card = make_model_card(model, checkpoint, args.arch, head, layer_norm_scale, tokenizer is not None, out.name)
    ratios = save_folder(model, converted, tokenizer, card, out, goldens)

    verified = all(ratio <= 1 for ratio in ratios.values())
    if verified:
        print(
            f"Converted {checkpoint} ({args.arch}) to {out}: {type(model).__name__}, {model.num_parameters():,} parameters."
        )
    print(f"LayerNorm factor: {'weight + 1' if layer_norm_scale == 'weight_plus_one' else 'weight'} ({found}).")
    if head is not None:
        print(
            f"Classification head: {head}, classifier_pooling {config.classifier_pooling}, {config.num_labels} classes. The "
            "language model head is in the file, too: AutoModelForMaskedLM loads it."
        )
    if dtypes := {name_dtype(tensor) for tensor in state_dict.values()} - {"float32"}:
        print(f"Weights in {' and '.join(sorted(dtypes))} were converted to float32.")
    if others:
        print(f"Left out: {', '.join(others)}.")
    if tokenizer is None:
        print("No tokenizer, since it needs --encoder-json and --vocab-bpe.")
    if ratios:
        shown = ", ".join(f"{kind} {ratio:.3f}" for kind, ratio in ratios.items())
        print(f"Largest difference from {goldens} as a fraction of the tolerance: {shown}.")
    if not verified:
        print(f"error: the model is not within the tolerance of {goldens}, so {out} was not written.", file=sys.stderr)
    return verified


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without progress bars and reports of what was loaded: what matters of these is an error here."""
    verbosity, had_progress_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_progress_bar:
            logging.enable_progress_bar()


def main(argv: list[str] | None = None) -> int:
    """Returns 0; 1 where the model is not within the tolerance of the goldens; 2 after an error.

    Exits with 128 + the number of the signal after SIGINT and SIGTERM.
    """
    parser = argparse.ArgumentParser(
        description="Convert an official Luna checkpoint into a folder that from_pretrained loads, or such a folder back."
    )
    parser.add_argument("source", type=Path, help="model.pt as the official code saved it")
    parser.add_argument("target", type=Path, help="folder to write: new or empty")
    parser.add_argument("--dict", type=Path, dest="dictionary", help="dict.txt that came with the checkpoint")
    parser.add_argument("--encoder-json", type=Path, help="pieces of GPT-2's BPE, for the tokenizer")
    parser.add_argument("--vocab-bpe", type=Path, help="merges of GPT-2's BPE, for the tokenizer")
    parser.add_argument(
        "--head",
        metavar="NAME",
        help='classification head to convert, or "none" for the language model (default: the only head, if there is one)',
    )
    parser.add_argument(
        "--layer-norm-scale",
        choices=("auto", *LAYER_NORM_SCALES),
        default="auto",
        help="whether LayerNorm multiplies by its weight, as in the published release, or by weight + 1, as in "
        "official code since January 2023 (default: tell by the weights)",
    )
    parser.add_argument("--verify", type=Path, metavar="GOLDENS", help="goldens.safetensors to compare the result with")
    parser.add_argument(
        "--to-fairseq",
        action="store_true",
        help="the way back: source is the folder, target the checkpoint; writes dict.txt, encoder.json and vocab.bpe from "
        "the folder's tokenizer beside it, or copies --dict; LayerNorm is as in the published release by default; --head "
        "names the classification head",
    )
    args = parser.parse_args(argv)
    if (args.encoder_json is None) != (args.vocab_bpe is None):
        parser.error("give --encoder-json and --vocab-bpe together")
    if args.to_fairseq and (args.encoder_json or args.verify):
        parser.error("--encoder-json, --vocab-bpe and --verify are not for --to-fairseq")
    if not args.to_fairseq and args.dictionary is None:
        parser.error("--dict is required: the dict.txt that came with the checkpoint")
    try:
        with one_sentence_when_stopped(), quiet_transformers():
            if args.to_fairseq:
                convert_back(args.source, args.target, args.dictionary, args.layer_norm_scale, args.head)
                return 0
            bpe_files = (args.encoder_json, args.vocab_bpe) if args.encoder_json else None
            verified = convert(
                args.source, args.target, args.dictionary, args.layer_norm_scale, bpe_files, args.head, args.verify
            )
            return 0 if verified else 1
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
