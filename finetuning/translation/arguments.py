# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The command line of `luna finetune translation`: a row of Table 4 or 5, files and options, the later one winning.

Nothing here imports torch, so that a mistake is told at once.
"""

import functools
import importlib.util
import math
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from luna_tools.errors import InputError
from luna_tools.settings import Parser, option_names, read_yaml, split_command_line, to_options

PROG = "luna finetune translation"
RECIPES = Path(__file__).parent / "recipes" / "wmt14.yaml"
VARIANTS = ("paper", "code")  # what a row takes from where the two disagree
USAGE = f"{PROG} [ROW] [paper or code] [options.yaml ...] --dataset FOLDER [--option value ...]"


@dataclass(frozen=True)
class TranslationOptions:
    """A training run. Lengths are in tokens, steps are optimizer updates."""

    dataset: str | None = None
    """A folder that `luna prepare_pairs` made."""
    output_dir: str | None = None
    """The run's folder. Default: runs/translation/ROW, and ROW-code for what the code has."""
    plan: bool = False
    """Print the parameters of each row, or of the row that is named, beside the paper's, and train nothing."""
    model: dict[str, Any] = field(default_factory=dict)
    """Fields of the configuration of any encoder-decoder of transformers, `model_type` among them."""
    model_name_or_path: str | None = None
    """Start from these weights, in place of `model`; the dataset has to be made with its tokenizer."""
    dropout: float | None = None
    """Dropout after embeddings and sub-layers."""
    attention_dropout: float | None = None
    """Dropout of attention weights."""
    activation_dropout: float | None = None
    """Dropout inside the feed-forward network."""
    seed: int = 42
    """Of new weights, dropout, the batches and their order."""
    max_steps: int = -1
    """Updates, in place of the epochs if above 0."""
    num_train_epochs: float = 10.0
    """Passes over the training pairs."""
    max_tokens: int = 4096
    """The most tokens of a batch: its pairs times its longest side, padding included."""
    batches_per_step: int = 1
    """Batches per update over all processes, which have to divide it; each process accumulates its share."""
    label_smoothing_factor: float = 0.1
    """Share of the target that is spread over all entries, in training."""
    optimizer: Literal["adam", "apollo"] = "adam"
    """adam: AdamW, by a schedule of transformers; apollo: ApolloDQN of pytorch-optimizer, whose rate falls at milestones."""
    learning_rate: float = 5e-4
    """The highest learning rate."""
    warmup_steps: int = 0
    """Updates in which the learning rate rises."""
    lr_scheduler_type: str = "inverse_sqrt"
    """Schedule of Adam after the warm-up: inverse_sqrt, linear, cosine, constant_with_warmup, ..."""
    adam_beta1: float = 0.9
    """Decay of Adam's mean of gradients."""
    adam_beta2: float = 0.98
    """Decay of Adam's mean of squared gradients."""
    adam_epsilon: float = 1e-8
    """Added to Adam's denominator."""
    apollo_initial_lr: float = 1e-5
    """Where Apollo's warm-up begins."""
    apollo_beta: float = 0.9
    """Decay of Apollo's mean of gradients."""
    apollo_epsilon: float = 1e-4
    """Added to Apollo's denominator."""
    apollo_milestones: list[int] = field(default_factory=list)
    """Updates after each of which Apollo's learning rate is a tenth."""
    weight_decay: float = 0.0
    """Of all weights but biases and norms: decoupled in Adam, in the gradient (L2) in Apollo."""
    max_grad_norm: float = 0.0
    """Norm to which the gradient of all parameters together is clipped; 0 for none."""
    clip_each_parameter: float = 0.0
    """Norm to which the gradient of each parameter is clipped by itself; 0 for none."""
    bf16: bool = False
    """Compute in bfloat16 where that is safe."""
    fp16: bool = False
    """Compute in float16 where that is safe, with a loss scale; on accelerators alone."""
    gradient_checkpointing: bool = False
    """Compute activations again instead of storing them: less memory, more time."""
    save_strategy: Literal["epoch", "steps"] = "epoch"
    """When to evaluate and to save a checkpoint."""
    save_steps: int = 1000
    """Updates between checkpoints by steps."""
    num_averaged_checkpoints: int = 1
    """The model is the mean of so many of the last checkpoints, which are kept for it."""
    logging_steps: int = 100
    """Updates between logged losses."""
    num_beams: int = 5
    """Beams of the search that translates validation and test."""
    length_penalty: float = 1.0
    """Power of the length by which a beam's score is divided."""
    generation_max_length: int = 256
    """Longest translation."""
    per_device_eval_batch_size: int = 32
    """Pairs per device in evaluation."""
    dataloader_num_workers: int = 0
    """Processes that prepare batches."""
    report_to: str = "none"
    """Where to report besides: tensorboard, wandb, ..., all."""
    disable_tqdm: bool = False
    """Write lines in place of bars, as in a log file."""
    use_cpu: bool = False
    """Train on the CPU though there is an accelerator."""
    trainer: dict[str, Any] = field(default_factory=dict)
    """Any other field of transformers' Seq2SeqTrainingArguments, such as --trainer.torch_compile true."""
    license: str | None = None
    """The licence of the new weights, as the Hub spells it (apache-2.0, ...), for the model card."""


# What a run that goes on may change: neither the weights nor the translations depend on it.
CHANGEABLE_ON_RESUME = (
    "output_dir plan gradient_checkpointing logging_steps per_device_eval_batch_size dataloader_num_workers report_to "
    "disable_tqdm use_cpu license"
).split()
AT_LEAST_ONE = (
    "max_tokens batches_per_step save_steps num_averaged_checkpoints logging_steps num_beams generation_max_length "
    "per_device_eval_batch_size"
).split()
NOT_NEGATIVE = (
    "seed learning_rate warmup_steps adam_epsilon apollo_initial_lr apollo_epsilon weight_decay max_grad_norm "
    "clip_each_parameter dataloader_num_workers"
).split()
BELOW_ONE = ("dropout attention_dropout activation_dropout label_smoothing_factor adam_beta1 adam_beta2 apollo_beta").split()
ONLY_FOR = {  # options that one optimizer alone reads
    "adam": ("lr_scheduler_type", "adam_beta1", "adam_beta2", "adam_epsilon"),
    "apollo": ("apollo_initial_lr", "apollo_beta", "apollo_epsilon", "apollo_milestones"),
}
# Fields of Seq2SeqTrainingArguments that this program cannot honour, and why.
NOT_HONOURED = {
    "per_device_train_batch_size": "--max_tokens is for that",
    "gradient_accumulation_steps": "it follows from --batches_per_step",
    **dict.fromkeys(("train_sampling_strategy", "auto_find_batch_size"), "batches go by --max_tokens"),
    "save_total_limit": "--num_averaged_checkpoints is for that",
    **dict.fromkeys(("eval_strategy", "eval_steps"), "--save_strategy is for that"),
    **dict.fromkeys(("load_best_model_at_end", "metric_for_best_model"), "the model is the mean of the last checkpoints"),
    **dict.fromkeys(("predict_with_generate", "generation_num_beams", "generation_config"), "--num_beams is for that"),
    **dict.fromkeys(("optim", "optim_args"), "--optimizer is for that"),
    **dict.fromkeys(("push_to_hub", "hub_model_id", "hub_strategy"), "`luna push` uploads the finished folder"),
    **dict.fromkeys(("deepspeed", "fsdp"), "this program trains by data parallelism"),
    "prediction_loss_only": "the loss is the mean over all tokens",
    "save_only_model": "an interrupted run could not go on",
    "dataloader_drop_last": "the evaluation would lose rows",
    **dict.fromkeys(
        ("batch_eval_metrics", "eval_do_concat_batches", "include_for_metrics", "label_names"),
        "the program computes its own figures",
    ),
    **dict.fromkeys(("sortish_sampler", "data_seed"), "the order of the batches follows from --seed"),
    "resume_from_checkpoint": "the same command goes on from the newest checkpoint by itself",
    "remove_unused_columns": "the program knows its columns",
}  # fmt: skip


@functools.cache
def read_recipes() -> dict[str, Any]:
    """The shipped recipes: `base`, `models`, `optimizers`, `variants` and `rows`, as the file explains them."""
    return read_yaml(RECIPES)


def row_options(row: str, variant: str = "paper") -> dict[str, Any]:
    """The options of a row of Table 4 or 5."""
    recipes = read_recipes()
    entry = recipes["rows"][row]
    parts = [recipes["base"], recipes["models"][entry["uses"]], recipes["optimizers"][entry["optimizer"]]]
    parts += [recipes["variants"][variant], {"model": entry.get("model", {})}]
    merged = {name: value for part in parts for name, value in part.items()}
    return merged | {"model": {name: value for part in parts for name, value in part.get("model", {}).items()}}


@functools.cache
def make_parser() -> Parser:
    """The parser of all options."""
    rows = ", ".join(read_recipes()["rows"])
    description = f"Train an encoder-decoder to translate. Rows of Tables 4 and 5: {rows}; from the paper, or the code."
    parser = Parser(PROG, description, TranslationOptions)
    parser.usage = USAGE
    return parser


def parse(argv: list[str]) -> tuple[str | None, TranslationOptions]:
    """The row that is named, if any, and the options of the run.

    Raises:
        InputError: an unknown row or option, a value of the wrong type or range, or options that contradict each other.
    """
    words, given = split_command_line(argv, {})
    row, variant = find_row(words)
    folder = f"runs/translation/{row}{'-code' if variant == 'code' else ''}"
    start = to_options({"output_dir": folder} | row_options(row, variant)) if row else []
    names = option_names(given)
    if "model_name_or_path" in names and row:
        raise InputError(
            f"`model_name_or_path` was given beside the row {row}, which has a model of its own: leave one out."
        )
    (options,) = make_parser().parse(start + given)
    if row and options.optimizer != read_recipes()["rows"][row]["optimizer"] and "learning_rate" not in names:
        raise InputError(
            f"`optimizer` is {options.optimizer}, but the learning rate {options.learning_rate:g} of {row} is for another: "
            "give --learning_rate too, and --warmup_steps and --weight_decay as it needs them."
        )
    check_options(options, names)
    return row, options


def find_row(words: list[str]) -> tuple[str | None, str]:
    """The row and the variant among the words of a command line."""
    rows = tuple(read_recipes()["rows"])
    named = [word for word in words if word in rows]
    variants = [word for word in words if word in VARIANTS]
    for word in words:
        if word not in rows + VARIANTS:
            near = "".join(f", perhaps {near} is meant" for near in get_close_matches(word, rows, n=1))
            raise InputError(
                f"{word} is neither a row nor a .yaml or .json file of options{near}: the rows are {', '.join(rows)}."
            )
    if len(named) > 1 or len(variants) > 1 or (variants and not named):
        raise InputError(f"Give one row, and after it paper or code or neither, not {' '.join(words)}.")
    return (named[0] if named else None), (variants[0] if variants else "paper")


def check_options(options: TranslationOptions, given: set[str]) -> None:
    """Refuse numbers that would fail, or mean nothing, deep inside the training, and options that nothing would read."""
    values = {name: value for name, value in vars(options).items() if isinstance(value, int | float)}
    for names, allowed, text in (
        (AT_LEAST_ONE, lambda value: value >= 1, "at least 1"),
        (NOT_NEGATIVE, lambda value: 0 <= value < math.inf, "a finite number of at least 0"),
        (BELOW_ONE, lambda value: 0 <= value < 1, "at least 0 and below 1"),
    ):
        for name in names:
            if name in values and not allowed(values[name]):
                raise InputError(f"`{name}` is {values[name]}: give {text}.")
    if options.max_steps == 0 or (options.max_steps < 0 and not options.num_train_epochs > 0):
        raise InputError("The training would have no steps: give --num_train_epochs or --max_steps above 0.")
    for optimizer, names in ONLY_FOR.items():
        for name in sorted(given.intersection(names)):
            if options.optimizer != optimizer:
                raise InputError(f"`{name}` was given, but only --optimizer {optimizer} reads it: leave it out.")
    if "save_steps" in given and options.save_strategy != "steps":
        raise InputError("`save_steps` was given, but only --save_strategy steps reads it: leave it out.")
    if options.clip_each_parameter and options.fp16:
        raise InputError(
            f"`clip_each_parameter` is {options.clip_each_parameter}, but float16 scales the gradients: give --bf16 or "
            "neither, or clip by --max_grad_norm."
        )
    for name, value in options.trainer.items():
        if name in NOT_HONOURED:
            raise InputError(f"`trainer.{name}` is {value}, but {NOT_HONOURED[name]}: leave it out.")
        if hasattr(options, name):
            raise InputError(f"`trainer.{name}` is {value}, but {name} is an option of its own: give --{name} {value}.")


def check_packages(*packages: str) -> None:
    """Refuse to begin without what the extra `translate` installs."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise InputError(
                f"Translation needs the package {package}, which is not installed: run "
                "`pip install 'luna-transformers[translate]'`."
            )
