# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The checkpoint under a head for the task: its configuration, weights, tokenizer, and the longest input that it reads."""

import logging

from transformers import (
    AutoConfig,
    AutoModelForMultipleChoice,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

import modeling_luna  # noqa: F401  registers Luna with the Auto classes
from configuration_luna import LunaConfig
from finetuning.arguments import Arguments
from finetuning.lra import transformer  # noqa: F401  registers the Long Range Arena's baseline
from finetuning.tasks import Task, TaskData
from luna_tools.errors import InputError, told

logger = logging.getLogger(__name__)

# The class that puts a head for each kind of task on a checkpoint.
HEAD_CLASSES = {
    "classification": AutoModelForSequenceClassification,
    "regression": AutoModelForSequenceClassification,
    "multiple_choice": AutoModelForMultipleChoice,
    "token_classification": AutoModelForTokenClassification,
}
SPARE_ENTRIES = 0.02  # the largest share of a published vocabulary without a token
HEADS = ("ForSequenceClassification", "ForMultipleChoice", "ForTokenClassification", "ForQuestionAnswering")


def load_config(arguments: Arguments) -> PreTrainedConfig:
    """The checkpoint's configuration with the options that are fields of it.

    Raises:
        InputError: no such checkpoint, or the user gave an option that this architecture does not have.
    """
    model = arguments.model
    if model.is_new:
        config = new_config(arguments)
    else:
        what = f"{model.model_name_or_path} is neither a folder with a checkpoint nor a model of the Hub that can be read"
        with told(what, "correct --model_name_or_path"):
            config = AutoConfig.from_pretrained(**model.source)
    for name, value in model.config_overrides().items():
        if hasattr(config, name):
            with told(f"`{name}` is {value!r}, which {config.model_type} refuses", "give another value"):
                setattr(config, name, value)
        elif name in arguments.given:
            raise InputError(
                f"`{name}` was given, but the configuration of {model.name} ({config.model_type}) has no such field: leave "
                "it out."
            )
    if getattr(config.get_text_config(), "vocab_size", None) is None:
        raise InputError(f"{model.name} ({config.model_type}) reads no text: give a model that does.")
    return config


def new_config(arguments: Arguments) -> PreTrainedConfig:
    """The configuration of a new model, with the task's vocabulary. The baseline leaves out fields that are Luna's alone.

    Raises:
        InputError: no such architecture, or a field or a value that it does not have.
    """
    model, tokenizer = arguments.model, arguments.task.make_tokenizer()
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    with told(f"`model_type` {model.model_type} cannot be built with these fields", "correct --model_type or --model"):
        plain = AutoConfig.for_model(model.model_type)
        fields = {name: value for name, value in model.model.items() if hasattr(plain, name)}
        config = AutoConfig.for_model(model.model_type, vocab_size=len(tokenizer), **ids, **fields)
    for name, value in model.model.items():
        if name not in fields and not hasattr(LunaConfig(), name):
            raise InputError(f"`model.{name}` is {value}, but {model.model_type} has no such field: correct it.")
    if left_out := [name for name in model.model if name not in fields]:
        logger.warning("A %s has no %s: left out.", model.model_type, ", ".join(left_out))
    return config


def is_finetuned(config: PreTrainedConfig) -> bool:
    """Whether a checkpoint holds a head for a task already."""
    return any(name.endswith(HEADS) for name in config.architectures or [])


def num_options(data: TaskData) -> int:
    """How many options each row of a multiple-choice task has."""
    return len(next(iter(data.splits.values()))[0]["options"])


def checkpoint_labels(config: PreTrainedConfig) -> tuple[str, ...] | None:
    """The names of the classes that a fine-tuned checkpoint knows."""
    if not is_finetuned(config) or config.num_labels < 2:
        return None
    return tuple(config.id2label[i] for i in range(config.num_labels))


def fit_config(config: PreTrainedConfig, data: TaskData, arguments: Arguments) -> None:
    """Set labels and problem type for the task.

    Raises:
        InputError: the checkpoint was fine-tuned for something else.
    """
    task = data.task
    if is_finetuned(config) and not arguments.model.ignore_mismatched_sizes:
        check_head(config, data, arguments.model.name)
    if task.kind == "multiple_choice":
        config.num_choices = num_options(data)
    elif task.kind == "regression":
        config.id2label, config.label2id = {0: "value"}, {"value": 0}
        config.problem_type = "regression"
    else:
        config.id2label = dict(enumerate(task.labels))
        config.label2id = {label: i for i, label in enumerate(task.labels)}
    if task.kind == "classification":
        config.problem_type = "single_label_classification"


def check_head(config: PreTrainedConfig, data: TaskData, name: str) -> None:
    """Refuse a checkpoint whose head is for another kind of task, other labels, or another number of options."""
    task, choices = data.task, getattr(config, "num_choices", None)
    old_head = HEAD_CLASSES[task.kind].__name__.removeprefix("AutoModel")
    remedy = "start from a pretrained checkpoint, or give --ignore_mismatched_sizes to start a new head"
    if not any(architecture.endswith(old_head) for architecture in config.architectures):
        raise InputError(
            f"{name} holds a {config.architectures[0]}, but {task.name} is a task of "
            f"{task.kind.replace('_', ' ')}: {remedy}."
        )
    known = checkpoint_labels(config)
    if task.kind in ("classification", "token_classification") and known != task.labels:
        if known is None or len(known) != len(task.labels):
            found = f"{config.num_labels} label{'s' * (config.num_labels != 1)}, but {task.name} has {len(task.labels)}"
            raise InputError(f"{name} was fine-tuned for {found} ({', '.join(task.labels)}): {remedy}.")
        raise InputError(
            f"{name} was fine-tuned for the labels {', '.join(known)} in this order, but {task.name} has "
            f"{', '.join(task.labels)}: {remedy}."
        )
    if task.kind == "regression" and config.num_labels != 1:
        raise InputError(f"{name} was fine-tuned for {config.num_labels} labels, but {task.name} has one value: {remedy}.")
    if task.kind == "multiple_choice" and choices not in (None, num_options(data)):
        raise InputError(
            f"The rows of {task.name} have {num_options(data)} options, but {name} was fine-tuned on {choices}: give it "
            f"rows with {choices} options, or {remedy}."
        )


def load_model(config: PreTrainedConfig, task: Task, arguments: Arguments) -> PreTrainedModel:
    """The checkpoint under a head for the task; says which weights are new."""
    auto_class, model = HEAD_CLASSES[task.kind], arguments.model
    kind = task.kind.replace("_", " ")
    if model.is_new and not arguments.run.do_train:
        raise InputError(f"There is no checkpoint to predict {task.name} with: give --model_name_or_path, or train.")
    if model.random_weights or model.is_new:
        logger.warning("All weights are new: random initialisation of %s.", model.name)
        with told(f"{model.name} ({config.model_type}) cannot do {kind}", "give another checkpoint"):
            return auto_class.from_config(config, trust_remote_code=model.trust_remote_code)
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # its table of new weights says no more than the line below
    what = f"The weights of {model.model_name_or_path} ({config.model_type}) cannot be loaded for {kind}"
    try:
        with told(what, "give another checkpoint"):
            loaded, info = auto_class.from_pretrained(
                **model.source,
                config=config,
                ignore_mismatched_sizes=model.ignore_mismatched_sizes,
                output_loading_info=True,
            )
    finally:
        transformers_logging.set_verbosity(verbosity)
    new = sorted(info["missing_keys"]) + sorted(key for key, *_ in info["mismatched_keys"])
    if new and not arguments.run.do_train:
        raise InputError(
            f"{model.model_name_or_path} has no weights for {new[0]}, so it cannot predict {task.name} without training: "
            "give a checkpoint that was fine-tuned on it."
        )
    logger.warning("New weights: %s.", ", ".join(new) if new else "none")
    return loaded


def load_tokenizer(config: PreTrainedConfig, arguments: Arguments) -> PreTrainedTokenizerBase:
    """The task's own tokenizer, or else the checkpoint's; one that does not pad learns to, and `config` with it.

    Raises:
        InputError: there is none, it has ids that the model does not know, or nothing to pad with.
    """
    model = arguments.model
    tokenizer = arguments.task.make_tokenizer()
    if tokenizer is None:
        what = f"{model.model_name_or_path} has no tokenizer that can be loaded"
        with told(what, "save the one it was trained with beside it"):
            tokenizer = AutoTokenizer.from_pretrained(**model.source)
    check_vocabulary(config, tokenizer, model.name)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise InputError(
                f"The tokenizer of {model.model_name_or_path} has neither a pad token nor an end token: give it one of them."
            )
        logger.warning("The tokenizer has no pad token: it pads with its end token %s.", tokenizer.eos_token)
        tokenizer.pad_token = tokenizer.eos_token
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    return tokenizer


def check_vocabulary(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Refuse a tokenizer that the model was not trained with, by its number of entries and its padding.

    A model may have more entries than its tokenizer: sizes are rounded up to multiples, and some leave up to 2 % to spare.
    """
    size, vocab_size = len(tokenizer), config.get_text_config().vocab_size
    if size > vocab_size or vocab_size - size > max(127, SPARE_ENTRIES * vocab_size):
        raise InputError(
            f"The tokenizer of {name} has {size} entries, but the model {vocab_size}: give the two that belong together."
        )
    if tokenizer.pad_token is not None and config.pad_token_id not in (None, tokenizer.pad_token_id):
        raise InputError(
            f"The tokenizer of {name} pads with the id {tokenizer.pad_token_id}, but the model with {config.pad_token_id}: "
            "give the two that belong together."
        )


def sequence_limit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The longest input in tokens that model and tokenizer allow."""
    limits = [tokenizer.model_max_length]
    if hasattr(model.config, "max_sequence_length"):  # Luna
        limits.append(model.config.max_sequence_length or limits[0])
    else:
        limits.append(getattr(model.config, "max_position_embeddings", None) or limits[0])
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            limits.append(module.num_embeddings - module.padding_idx - 1)  # RoBERTa counts positions from there
    return min(limits)
