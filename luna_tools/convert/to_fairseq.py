# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""A folder becomes a checkpoint of the official code."""

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file

from configuration_luna import LunaConfig
from luna_tools.convert.checkpoint import check_kinds, name_dtype
from luna_tools.convert.configuration import NAME_OF_HEAD, POOLING_OF_HEAD, args_from_config
from luna_tools.convert.from_fairseq import TARGET_TOKENIZER
from luna_tools.convert.seq2seq import args_from_seq2seq_config, official_seq2seq_state_dict
from luna_tools.convert.tokenizer import (
    check_vocabulary,
    read_dictionary,
    read_symbols,
    recover_dictionary,
    recover_files,
)
from luna_tools.convert.weights import official_state_dict
from luna_tools.errors import InputError, told
from luna_tools.files import put_in_place, staging_folder, writing
from modeling_luna import (
    LunaForConditionalGeneration,
    LunaForMaskedLM,
    LunaForMultipleChoice,
    LunaForSequenceClassification,
    LunaModel,
)

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
# The same for translation models.
SEQ2SEQ_ARGS = {
    "encoder_layerdrop": 0,
    "decoder_layerdrop": 0,
    "encoder_embed_path": None,
    "decoder_embed_path": None,
    "adaptive_softmax_dropout": 0,
    "tie_adaptive_weights": False,
    "word_dropout": 0.0,
    "quant_noise_pq": 0,
    "quant_noise_pq_block_size": 8,
    "quant_noise_scalar": 0,
    "task": "translation",
    "data": ".",
    "left_pad_source": True,
    "left_pad_target": False,
    "load_alignments": False,
    "truncate_source": False,
    "upsample_primary": 1,
    "num_batch_buckets": 0,
    "eval_bleu": False,
    "criterion": "label_smoothed_cross_entropy",
    "label_smoothing": 0.1,
    "optimizer": "adam",
    "lr_scheduler": "inverse_sqrt",
    "seed": 1,
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
    with told(f"{folder} cannot be read", "save the model again with `save_pretrained`"):
        config = LunaConfig.from_pretrained(folder)
        weights = {name: tensor for file in files for name, tensor in load_file(file).items()}
    check_kinds(weights)
    if config.architectures == [LunaModel.__name__]:
        weights = {f"luna.{name}": tensor for name, tensor in weights.items()}
    owner = "luna" if config.target_vocab_size is None else "decoder"
    embeddings, output = f"{owner}.embeddings.word_embeddings.weight", "lm_head.decoder.weight"
    if config.tie_word_embeddings and embeddings in weights:
        weights["lm_head.weight" if config.is_encoder_decoder else output] = weights[embeddings]
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


def official_seq2seq_checkpoint(
    config: LunaConfig, weights: dict[str, torch.Tensor], head: str | None, layer_norm_scale: str, languages: tuple[str, str]
) -> dict:
    """What the official code saves of a translation model.

    Raises:
        InputError: the official code has no such model, or a head is asked for.
    """
    if head not in (None, "none"):
        raise InputError(f"There is no classification head to name {head}: the folder holds a translation model.")
    args = (
        SEQ2SEQ_ARGS | args_from_seq2seq_config(config) | dict(zip(("source_lang", "target_lang"), languages, strict=True))
    )
    state_dict = official_seq2seq_state_dict(config, weights, layer_norm_scale)
    return checkpoint_of(argparse.Namespace(**args), state_dict, "LabelSmoothedCrossEntropyCriterion")


def checkpoint_of(args: argparse.Namespace, state_dict: dict[str, torch.Tensor], criterion: str) -> dict:
    """The content of a checkpoint from which no training goes on."""
    optimizer = {
        "criterion_name": criterion,
        "optimizer_name": "FairseqAdam",
        "lr_scheduler_state": {"best": None},
        "num_updates": 0,
    }
    return {
        "args": args,
        "model": state_dict,
        "optimizer_history": [optimizer],
        "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0, "shuffle": True}, "val_loss": None},
        "last_optimizer_state": None,
    }


def official_checkpoint(
    folder: Path, head: str | None, layer_norm_scale: str, languages: tuple[str, str]
) -> tuple[LunaConfig, dict, str | None, list[str]]:
    """What the official code saves of the model in a folder.

    Returns:
        The folder's configuration, the content of the checkpoint, the name of its classification head, and what a user
        has to know of it.

    Raises:
        InputError: the official code has no such model, or the folder cannot be read.
    """
    config, weights = read_folder(folder)
    if config.architectures == [LunaForConditionalGeneration.__name__]:
        return config, official_seq2seq_checkpoint(config, weights, head, layer_norm_scale, languages), None, []
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
    return config, checkpoint_of(args, state_dict, "MaskedLmLoss"), head, messages


def tokenizer_files(folder: Path, dictionary: Path | None, vocab_size: int, messages: list[str]) -> dict[str, bytes]:
    """The files beside the checkpoint, by name; `messages` is told why there are none.

    Raises:
        InputError: the given dictionary cannot be read, or is of another size.
    """
    if dictionary is not None:
        check_vocabulary(dictionary, len(read_dictionary(dictionary)), vocab_size)
        return {"dict.txt": dictionary.read_bytes()}
    try:
        return {name: text.encode() for name, text in recover_files(folder / "tokenizer.json", vocab_size).items()}
    except InputError as error:
        messages.append(f"No dict.txt is written. {error}")
        return {}


def dictionary_language(path: Path | None, otherwise: str) -> str:
    """The language in the name of a dictionary, which is dict.LANGUAGE.txt."""
    parts = path.name.split(".") if path is not None else []
    return parts[1] if len(parts) == 3 and parts[0] == "dict" and parts[2] == "txt" else otherwise


def dictionary_files(
    folder: Path, dictionaries: tuple[Path | None, Path | None], languages: tuple[str, str], config: LunaConfig
) -> dict[str, bytes]:
    """The two dictionaries beside a translation model, by name: those that are given, or those of the folder's tokenizers.

    Raises:
        InputError: one cannot be read, or is of another size.
    """
    files, sizes = {}, (config.vocab_size, config.target_vocab_size or config.vocab_size)
    of_target = folder / TARGET_TOKENIZER
    folders = folder, of_target if of_target.is_dir() else folder
    for path, language, size, tokenizer in zip(dictionaries, languages, sizes, folders, strict=True):
        if path is None:
            files[f"dict.{language}.txt"] = recover_dictionary(tokenizer / "tokenizer.json", size).encode()
        else:
            check_vocabulary(path, len(read_symbols(path)), size)
            files[f"dict.{language}.txt"] = path.read_bytes()
    return files


def convert_back(
    folder: Path,
    target: Path,
    dictionary: Path | None = None,
    layer_norm_scale: str = "auto",
    head: str | None = None,
    target_dictionary: Path | None = None,
) -> None:
    """Convert a folder into an official checkpoint `target`, with the dictionary beside it, and print what was done.

    Args:
        dictionary: dict.txt to copy; None to make dict.txt, encoder.json and vocab.bpe from the folder's tokenizer.
        layer_norm_scale: "weight" (also by "auto") for the published release, "weight_plus_one" for later official code.
        head: a name for the classification head, "none" to leave it out, or None for the official code's name.
        target_dictionary: of a translation model, to be copied as `dictionary` is.

    Raises:
        InputError: with one sentence, and nothing is written.
    """
    with writing(target):
        target = target.resolve()
        if target.exists():
            raise InputError(f"{target} already exists.")
    languages = dictionary_language(dictionary, "source"), dictionary_language(target_dictionary, "target")
    config, checkpoint, head, messages = official_checkpoint(folder, head, layer_norm_scale, languages)
    if config.is_encoder_decoder:
        beside = dictionary_files(folder, (dictionary, target_dictionary), languages, config)
    else:
        beside = tokenizer_files(folder, dictionary, config.vocab_size, messages)
    there = [name for name in beside if (target.parent / name).exists()]
    for name in there:
        if (target.parent / name).read_bytes() != beside[name]:
            raise InputError(f"{target.parent / name} already exists with another content.")
    with writing(target), staging_folder(target) as staging:
        for name in beside.keys() - there:
            (staging / name).write_bytes(beside[name])
        # A pickle, since that is the format of the official code; it holds tensors, plain values and a Namespace.
        torch.save(checkpoint, staging / target.name)
        put_in_place(staging, target.parent)

    print(f"Converted {folder} to {target}{f', its classification head to {head}' if head else ''}.")
    if beside:
        print(f"Beside it: {', '.join(beside)}.")
    print(*messages, sep="\n", end="\n" if messages else "")
