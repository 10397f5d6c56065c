# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""A checkpoint of the official code becomes a folder that `from_pretrained` loads."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from configuration_luna import LunaConfig
from luna_tools.cards import model_card
from luna_tools.convert.checkpoint import list_names, load_fairseq_checkpoint, name_dtype
from luna_tools.convert.configuration import config_from_args
from luna_tools.convert.goldens import compare_folder
from luna_tools.convert.seq2seq import config_from_seq2seq_args, convert_seq2seq_state_dict, is_seq2seq
from luna_tools.convert.tokenizer import (
    build_tokenizer,
    build_word_tokenizer,
    check_vocabulary,
    read_bpe,
    read_dictionary,
    read_symbols,
)
from luna_tools.convert.weights import HEAD_PREFIX, choose_head, convert_state_dict, find_layer_norm_scale
from luna_tools.errors import InputError
from luna_tools.files import put_in_place, sha256, staging_folder, writing
from modeling_luna import LunaForConditionalGeneration, LunaForMaskedLM, LunaForSequenceClassification

LOADERS = {
    LunaForConditionalGeneration: AutoModelForSeq2SeqLM,
    LunaForMaskedLM: AutoModelForMaskedLM,
    LunaForSequenceClassification: AutoModelForSequenceClassification,
}


@dataclass
class Converted:
    """A checkpoint as we have it."""

    config: LunaConfig
    weights: dict[str, torch.Tensor]  # in float32, under our names
    symbols: list[str]  # of the dictionary, in the order of their ids
    arch: str
    model_class: type[PreTrainedModel]
    head: str | None  # official name of the classification head that was converted
    layer_norm_scale: str
    left_out: list[str]  # official names of parameters of other heads
    dtypes: set[str]  # of the official weights
    target_symbols: list[str] | None = None  # of a translation model's other dictionary


# Where the tokenizer of a translation model's target language lies in the folder, unless it is that of the source as well.
TARGET_TOKENIZER = "target"


def read_checkpoint(
    checkpoint: Path,
    dictionary: Path,
    head: str | None = None,
    layer_norm_scale: str = "auto",
    target_dictionary: Path | None = None,
) -> Converted:
    """Read and convert an official checkpoint.

    Args:
        head: the classification head to convert, "none" for the language model, or None for the only head if there is one.
        layer_norm_scale: "weight", "weight_plus_one", or "auto" to tell by the weights.
        target_dictionary: of a translation model, and None for any other.

    Raises:
        InputError: it cannot be converted.
    """
    symbols = read_dictionary(dictionary)
    args, state_dict = load_fairseq_checkpoint(checkpoint)
    if is_seq2seq(args):
        return read_seq2seq_checkpoint(args, state_dict, dictionary, target_dictionary, head, layer_norm_scale)
    if target_dictionary is not None:
        raise InputError(
            f"--target_dictionary is {target_dictionary}, but the checkpoint's architecture is {args.arch}, which is no "
            "translation model: leave it out."
        )
    head = choose_head(state_dict, head)
    # What is missing or has no rows is refused by its name below.
    rows = {name: len(tensor) for name, tensor in state_dict.items() if tensor.ndim > 0}
    num_labels = rows.get(f"{HEAD_PREFIX}{head}.out_proj.bias") or rows.get(f"{HEAD_PREFIX}{head}.out_proj.weight", 0)
    config = config_from_args(args, len(symbols), head, num_labels)
    check_vocabulary(dictionary, len(symbols), rows.get("encoder.sentence_encoder.embed_tokens.weight", len(symbols)))
    left_out = [name for name in state_dict if name.startswith(HEAD_PREFIX) and name.split(".")[1] != head]
    state_dict = {name: tensor for name, tensor in state_dict.items() if name not in left_out}
    if layer_norm_scale == "auto":
        layer_norm_scale = find_layer_norm_scale(state_dict)
    weights = convert_state_dict(state_dict, config, layer_norm_scale, head)
    dtypes = {name_dtype(tensor) for tensor in state_dict.values()}
    model_class = LunaForMaskedLM if head is None else LunaForSequenceClassification
    return Converted(config, weights, symbols, args.arch, model_class, head, layer_norm_scale, left_out, dtypes)


def read_seq2seq_checkpoint(
    args: argparse.Namespace,
    state_dict: dict[str, torch.Tensor],
    dictionary: Path,
    target_dictionary: Path | None,
    head: str | None,
    layer_norm_scale: str,
) -> Converted:
    """Convert a translation model."""
    if head is not None:
        raise InputError(f"`head` is {head}, but a translation model has no classification head: leave it out.")
    if target_dictionary is None:
        raise InputError("--target_dictionary is missing: a translation model comes with a dictionary for each language.")
    symbols, target_symbols = read_symbols(dictionary), read_symbols(target_dictionary)
    config = config_from_seq2seq_args(args, len(symbols), len(target_symbols))
    for path, found, name in (
        (dictionary, symbols, "encoder.embed_tokens.weight"),
        (target_dictionary, target_symbols, "decoder.embed_tokens.weight"),
    ):
        if name in state_dict:  # what is missing is refused by its name below
            check_vocabulary(path, len(found), len(state_dict[name]))
    if layer_norm_scale == "auto":
        layer_norm_scale = find_layer_norm_scale(state_dict)
    weights = convert_seq2seq_state_dict(state_dict, config, layer_norm_scale)
    dtypes = {name_dtype(tensor) for tensor in state_dict.values()}
    names = config, weights, symbols, args.arch, LunaForConditionalGeneration, None, layer_norm_scale, [], dtypes
    return Converted(*names, target_symbols)


def make_model(converted: Converted) -> tuple[PreTrainedModel, dict[str, torch.Tensor]]:
    """The model without a copy of its weights, and all weights to be saved.

    Besides a classifier these are the language model head's, which the classifier does not load.
    """
    config, weights = converted.config, dict(converted.weights)
    with torch.device("meta"):
        model = converted.model_class(config)
    own = model.state_dict().keys()
    model.load_state_dict({name: tensor for name, tensor in weights.items() if name in own}, assign=True)
    model.tie_weights()
    if config.tie_word_embeddings:
        for name in ("lm_head.decoder.weight", "lm_head.weight"):
            weights.pop(name, None)
    storages = set()
    for name, tensor in weights.items():  # parameters that share memory, which safetensors does not have
        if tensor.untyped_storage().data_ptr() in storages:
            weights[name] = tensor.clone()
        storages.add(tensor.untyped_storage().data_ptr())
    return model, weights


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


def make_card(model: PreTrainedModel, converted: Converted, checkpoint: Path, has_tokenizer: bool) -> str:
    """What is known of a converted checkpoint, and nothing else."""
    scale = "1 + those in the file" if converted.layer_norm_scale == "weight_plus_one" else "as in the file"
    rows = {"LayerNorm weights": scale}
    if converted.head is not None:
        labels = f"{model.config.num_labels} classes, whose names are not known"
        rows["classification head"] = f"`{converted.head}`, {model.config.classifier_pooling}, {labels}"
        rows["language model head"] = "in the file as well: `AutoModelForMaskedLM` loads it"
    source = f"""## Source

Converted from `{checkpoint.name}`, a checkpoint of the official code (fairseq-apollo, published under the MIT licence of
fairseq), without training or evaluating anything. Its architecture is `{converted.arch}`, its SHA-256
`{sha256(checkpoint)}`. Weights are in float32.

"""
    names = type(model).__name__, LOADERS[type(model)].__name__
    return model_card(model.config, *names, model.num_parameters(), rows, source, has_tokenizer)


def convert(
    checkpoint: Path,
    out: Path,
    dictionary: Path,
    layer_norm_scale: str = "auto",
    bpe_files: tuple[Path, Path] | None = None,
    head: str | None = None,
    goldens: Path | None = None,
    target_dictionary: Path | None = None,
) -> None:
    """Convert the file `checkpoint` into the folder `out` and print what was found.

    The folder is written under another name, loaded back, compared, and renamed when all of that went well.

    Args:
        bpe_files: encoder.json and vocab.bpe, or None for no tokenizer.
        head: the classification head to convert, "none" for the language model, or None for the only head if there is one.
        goldens: results of the official code to compare with, or None.
        target_dictionary: of a translation model, whose tokenizers are made of its dictionaries alone.

    Raises:
        InputError: with one sentence, and nothing is written.
    """
    with writing(out):
        out = out.resolve()
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(f"{out} already exists and is not an empty folder.")
    bpe = None if bpe_files is None else read_bpe(*bpe_files)
    converted = read_checkpoint(checkpoint, dictionary, head, layer_norm_scale, target_dictionary)
    tokenizer, target_tokenizer, max_length = None, None, converted.config.max_sequence_length
    if converted.target_symbols is not None:
        if bpe is not None:
            raise InputError("--encoder_json and --vocab_bpe are not for translation models: leave them out.")
        tokenizer = build_word_tokenizer(converted.symbols, max_length)
        if converted.target_symbols != converted.symbols:
            target_tokenizer = build_word_tokenizer(converted.target_symbols, max_length)
    elif bpe is not None:
        tokenizer = build_tokenizer(converted.symbols, *bpe, max_length=max_length)
    model, weights = make_model(converted)
    with writing(out), staging_folder(out) as staging:
        folder = staging / "model"
        model.save_pretrained(folder, state_dict=weights)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        if target_tokenizer is not None:
            target_tokenizer.save_pretrained(folder / TARGET_TOKENIZER)
        card = make_card(model, converted, checkpoint, tokenizer is not None)
        (folder / "README.md").write_text(card, encoding="utf-8")
        check_loads_back(folder, model, tokenizer)
        ratios = {} if goldens is None else compare_folder(folder, goldens)
        shown = ", ".join(f"{kind} {ratio:.3f}" for kind, ratio in ratios.items())
        if not all(ratio <= 1 for ratio in ratios.values()):
            raise InputError(
                f"The model is not within the tolerance of {goldens} (largest differences as fractions of it: {shown}), so "
                f"{out} was not written."
            )
        put_in_place(folder, out)

    parameters = f"{model.num_parameters():,} parameters"
    print(f"Converted {checkpoint} ({converted.arch}) to {out}: {type(model).__name__}, {parameters}.")
    factor = "weight + 1" if converted.layer_norm_scale == "weight_plus_one" else "weight"
    print(f"LayerNorm factor: {factor} ({'detected' if layer_norm_scale == 'auto' else 'given'}).")
    if converted.head is not None:
        pooling, classes = converted.config.classifier_pooling, converted.config.num_labels
        print(
            f"Classification head: {converted.head}, classifier_pooling {pooling}, {classes} classes. "
            "The language model head is in the file, too: AutoModelForMaskedLM loads it."
        )
    if dtypes := converted.dtypes - {"float32"}:
        print(f"Weights in {' and '.join(sorted(dtypes))} were converted to float32.")
    if converted.left_out:
        print(f"Left out: {', '.join(converted.left_out)}.")
    if target_tokenizer is not None:
        print(f"Source and target have a tokenizer each: that of the target is in {out / TARGET_TOKENIZER}.")
    if tokenizer is None:
        print("No tokenizer, since it needs --encoder_json and --vocab_bpe.")
    if ratios:
        print(f"Largest difference from {goldens} as a fraction of the tolerance: {shown}.")
