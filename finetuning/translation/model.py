# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The model of a run: an encoder-decoder of transformers, new by the fields of a recipe, or a checkpoint."""

from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

import modeling_luna  # noqa: F401  registers Luna with the Auto classes
from finetuning.model import check_vocabulary, sequence_limit
from finetuning.translation.arguments import TranslationOptions
from luna_tools.errors import InputError, told
from luna_tools.load import quiet_transformers

# How architectures call the options of this program.
DROPOUT_FIELDS = {
    "dropout": ("hidden_dropout_prob", "dropout", "dropout_rate"),
    "attention_dropout": ("attention_probs_dropout_prob", "attention_dropout"),
    "activation_dropout": ("activation_dropout",),
}


def special_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int | None]:
    """The ids that model and generation need; as in fairseq and BART, the decoder starts from the end token."""
    ends = {"eos_token_id": tokenizer.eos_token_id, "decoder_start_token_id": tokenizer.eos_token_id}
    return {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id} | ends


def make_config(options: TranslationOptions, special: dict[str, Any]) -> PreTrainedConfig:
    """The configuration of a new model, or of the checkpoint, with the dropouts that are given.

    Args:
        special: fields that the tokenizer sets in a new model: its size and special ids.

    Raises:
        InputError: the configuration is refused, or has no field for what was given.
    """
    name, values = options.model_name_or_path, dict(options.model)
    if name is not None:
        with told(f"{name} is neither a folder with a checkpoint nor a model of the Hub", "correct --model_name_or_path"):
            config = AutoConfig.from_pretrained(name)
    elif "model_type" not in values:
        raise InputError(
            "There is no model: name a row, or give --model.model_type with its fields or --model_name_or_path."
        )
    else:
        model_type = values.pop("model_type")
        try:
            fields = AutoConfig.for_model(model_type).to_dict() | {"tie_word_embeddings": True}
            known = {key: value for key, value in special.items() if key in fields or key == "decoder_start_token_id"}
            config = AutoConfig.for_model(model_type, **known | values)
        except (ValueError, TypeError, StrictDataclassError) as error:
            reason = " ".join(str(error).split("Error: ", 1)[-1].split())
            raise InputError(f"`model` is refused ({reason.rstrip('.')}): correct it.") from error
        for field in values:
            if field not in fields and field not in config.attribute_map:
                raise InputError(f"`model.{field}` is not a field of {type(config).__name__}: check its spelling.")
    for option, names in DROPOUT_FIELDS.items():
        value = getattr(options, option)
        field = next((field for field in names if hasattr(config, field)), None)
        if value is not None and field is None:
            raise InputError(f"`{option}` is {value}, but {config.model_type} has no such dropout: leave it out.")
        if value is not None:
            setattr(config, field, value)
    return config


def build_model(config: PreTrainedConfig, name: str | None = None) -> PreTrainedModel:
    """A new model, or the weights of the checkpoint `name`, in float32.

    Raises:
        InputError: it is no encoder-decoder, or its weights cannot be loaded.
    """
    what = f"{name or 'A new model'} ({config.model_type}) cannot translate"
    with told(what, "give an encoder-decoder, such as luna, marian, bart or t5"), quiet_transformers():
        if not config.is_encoder_decoder:
            raise ValueError("it has no decoder that reads an encoder")
        if name is None:
            return AutoModelForSeq2SeqLM.from_config(config, dtype=torch.float32)
        model, found = AutoModelForSeq2SeqLM.from_pretrained(
            name, config=config, dtype=torch.float32, output_loading_info=True
        )
        if found["missing_keys"]:
            raise ValueError(f"it has no weights for {sorted(found['missing_keys'])[0]}")
        return model


def make_model(options: TranslationOptions, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The run's model, whose generation is set as the run translates.

    Raises:
        InputError: model and tokenizer do not go together.
    """
    special = special_ids(tokenizer)
    config = make_config(options, special | {"vocab_size": len(tokenizer)})
    name = options.model_name_or_path
    if name is not None:
        check_vocabulary(config, tokenizer, name)
    torch.manual_seed(options.seed)
    model = build_model(config, name)
    if name is None:
        model.generation_config = GenerationConfig(**special)
    model.generation_config.max_length = options.generation_max_length
    model.generation_config.num_beams = options.num_beams
    model.generation_config.length_penalty = options.length_penalty
    return model


def check_lengths(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, splits: dict, max_new: int) -> None:
    """Refuse pairs and translations that are longer than the model has positions for.

    Args:
        splits: datasets with `source_length` and `target_length`, by name.
        max_new: tokens of the longest translation.

    Raises:
        InputError: with the split, the pair and the remedy.
    """
    limit = sequence_limit(model, tokenizer)
    for split, rows in splits.items():
        for side in ("source", "target"):
            lengths = rows[f"{side}_length"][:]
            longest = max(range(len(lengths)), key=lengths.__getitem__)
            if lengths[longest] > limit:
                raise InputError(
                    f"The {side} of pair {longest + 1} of {split} has {lengths[longest]} tokens, but the model reads at "
                    f"most {limit}: give a model that reads more, or prepare shorter lines."
                )
    if max_new > limit:
        raise InputError(f"`generation_max_length` is {max_new}, but the model writes at most {limit} tokens: lower it.")
