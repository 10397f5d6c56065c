# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The command line: recipe, files and options, in this order, the later one winning.

Nothing here imports torch, so that a mistake is told at once.
"""

import functools
import importlib.util
import math
import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args

from finetuning.tasks import CUSTOM_RECIPES, TASKS, Task, TaskKind, custom_task
from finetuning.tasks.lra import LraTask
from luna_tools.errors import InputError
from luna_tools.settings import Parser, option_names, read_yaml, to_options
from luna_tools.settings import split_command_line as split_words

RECIPES = Path(__file__).parent / "recipes"
SMALL_RECIPE = "small/any.yaml"  # for all tasks
TASK_NAMES = (*TASKS, "custom")
KINDS = get_args(TaskKind)
Pooling = Literal[
    "cls",
    "packed_mean",
    "packed_max",
    "packed_attention",
    "mean",
    "mean_unmasked",
    "packed_mean_unmasked",
    "packed_mean_unmasked_no_cls",
]
POOLINGS = get_args(Pooling)
DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "activation_dropout", "classifier_dropout")


@dataclass
class ModelArguments:
    model_name_or_path: str | None = None
    """Checkpoint: a folder or a name on the Hub, of Luna or of any other Auto model."""
    model_type: str | None = None
    """In place of a checkpoint, a new model with random weights for a task with a vocabulary of its own (the Long Range
    Arena): luna, or transformer, its baseline."""
    model: dict[str, Any] = field(default_factory=dict)
    """Fields of the new model's configuration, such as --model.projection_length 128."""
    revision: str = "main"
    """Branch, tag or commit of a checkpoint on the Hub."""
    trust_remote_code: bool = False
    """Run model code that lies in the checkpoint."""
    random_weights: bool = False
    """Start from random weights of the checkpoint's configuration, for comparison."""
    ignore_mismatched_sizes: bool = False
    """Give a checkpoint that was fine-tuned for other labels a new head."""
    classifier_pooling: Pooling | None = None
    """Sentence representation: the first token, mean or maximum over P, attention over P, mean over the tokens; the unmasked
    means are the official Long Range Arena models'."""
    classifier_dropout: float | None = None
    """Dropout in the head."""
    hidden_dropout_prob: float | None = None
    """Dropout after embeddings and sub-layers."""
    attention_probs_dropout_prob: float | None = None
    """Dropout of attention weights."""
    activation_dropout: float | None = None
    """Dropout inside the feed-forward network."""

    @property
    def is_new(self) -> bool:
        """Whether the model starts from random weights and a configuration of the options."""
        return self.model_name_or_path is None

    @property
    def name(self) -> str:
        """What messages call the model."""
        return self.model_name_or_path or f"the new {self.model_type}"

    @property
    def source(self) -> dict[str, Any]:
        """What `from_pretrained` finds the checkpoint by."""
        where = {"pretrained_model_name_or_path": self.model_name_or_path, "revision": self.revision}
        return where | {"trust_remote_code": self.trust_remote_code}

    def config_overrides(self) -> dict[str, float | str]:
        """The options that are fields of the model's configuration, where they are given."""
        values = {name: getattr(self, name) for name in ("classifier_pooling", *DROPOUTS)}
        return {name: value for name, value in values.items() if value is not None}


@dataclass
class DataArguments:
    data_dir: str | None = None
    """Folder with the task's files, as the Hub or the original site publishes them. Default: the Hub."""
    kind: TaskKind | None = None
    """What a custom task is."""
    train_file: str | None = None
    """Custom task: .csv, .tsv, .jsonl or .parquet."""
    validation_file: str | None = None
    """Custom task: rows that pick the best checkpoint."""
    test_file: str | None = None
    """Custom task: rows to predict."""
    validation_fraction: float = 0.1
    """Custom task without a validation file: part of the training rows to hold out."""
    text_columns: list[str] = field(default_factory=lambda: ["text"])
    """One column, or two for pairs."""
    label_column: str = "label"
    """Column of the label, the value, or the tags."""
    class_names: list[str] | None = None
    """Classes in the order of their ids."""
    question_column: str = "question"
    """Multiple choice: column of the question."""
    passage_column: str | None = None
    """Multiple choice: column of the passage, if any."""
    option_columns: list[str] = field(default_factory=lambda: ["options"])
    """Multiple choice: one column of lists, or one per option."""
    words_column: str = "words"
    """Token classification: column of the words."""
    max_sequence_length: int = 512
    """Longest input in tokens, special ones included; the model's limit if that is less."""
    max_option_length: int = 128
    """Longest question with option in tokens (multiple choice)."""


@dataclass
class RunArguments:
    recipe: str | None = None
    """Where the defaults come from: table9 or, for the Long Range Arena, paper (the paper's, and the default), official (the
    authors' repository), small (checkpoints far below the paper's size), reduced (what a CPU can train), or none."""
    do_train: bool = True
    """Train; otherwise only evaluate and predict."""
    do_eval: bool = True
    """Evaluate on the validation splits at the end."""
    do_predict: bool = True
    """Predict the test splits at the end."""
    total_train_batch_size: int | None = None
    """Rows per optimizer step over all devices; accumulation follows from it."""
    early_stopping_patience: int | None = None
    """Stop after so many evaluations without a better one."""
    group_by_length: bool = False
    """Batch rows of similar length together, which saves padding; the paper's runs shuffle."""
    sweep: bool = False
    """Run the paper's grid."""
    sweep_grid: str | None = None
    """YAML file of another grid: option: [values]."""
    compare: list[str] | None = None
    """Heads (cls, packed, packed_max, packed_attention, mean) or checkpoints."""
    num_seeds: int = 1
    """Seeds, from --seed on: of each setting in a sweep or a comparison, or of this one."""
    license: str | None = None
    """The licence of the new weights, as the Hub spells it (apache-2.0, ...), for the model card."""
    language: str | None = None
    """The language of the texts, as the Hub spells it (en, ...), for the model card. Known for the built-in tasks."""


@dataclass
class TrainingOptions:
    """Options of the Trainer, under its names."""

    output_dir: str | None = None
    """The run's folder. Default: runs/finetuning/TASK."""
    seed: int = 42
    """Of new weights, dropout, and the order of the rows."""
    learning_rate: float = 5e-5
    """The highest learning rate of the schedule."""
    lr_scheduler_type: str = "linear"
    """Schedule: linear, cosine, polynomial, constant, constant_with_warmup, ..."""
    lr_scheduler_kwargs: dict[str, Any] = field(default_factory=dict)
    """More values of the schedule, such as --lr_scheduler_kwargs.power 2."""
    warmup_steps: float = 0
    """Steps, or below 1 the share of all steps, in which the learning rate rises."""
    num_train_epochs: float = 3.0
    """Passes over the training rows."""
    max_steps: int = -1
    """Optimizer steps, in place of the epochs if above 0."""
    per_device_train_batch_size: int = 8
    """Rows per device and forward pass; with total_train_batch_size the most of them."""
    per_device_eval_batch_size: int = 32
    """Rows per device in evaluation."""
    gradient_accumulation_steps: int = 1
    """Forward passes per optimizer step, where total_train_batch_size is not given."""
    weight_decay: float = 0.0
    """Of all weights but biases and norms."""
    adam_beta1: float = 0.9
    """Decay of Adam's mean of gradients."""
    adam_beta2: float = 0.999
    """Decay of Adam's mean of squared gradients."""
    adam_epsilon: float = 1e-8
    """Added to Adam's denominator."""
    max_grad_norm: float = 1.0
    """Norm to which gradients are clipped; 0 for none."""
    label_smoothing_factor: float = 0.0
    """Share of the target that is spread over all classes, in training."""
    optim: str | None = None
    """Optimizer of the Trainer. Default: AdamW."""
    bf16: bool = False
    """Compute in bfloat16 where that is safe."""
    fp16: bool = False
    """Compute in float16 where that is safe, with a loss scale; on accelerators alone."""
    gradient_checkpointing: bool = False
    """Compute activations again instead of storing them: less memory, more time."""
    eval_strategy: Literal["no", "steps", "epoch"] = "epoch"
    """When to evaluate while training."""
    eval_steps: float | None = None
    """Steps, or share of all steps, between evaluations by steps."""
    save_strategy: Literal["no", "steps", "epoch", "best"] = "epoch"
    """When to save a checkpoint."""
    save_steps: float = 500
    """Steps, or share of all steps, between checkpoints by steps."""
    save_total_limit: int | None = 1
    """Checkpoints to keep beside the best one while training."""
    logging_steps: float = 0.005
    """Steps, or share of all steps, between logged losses."""
    load_best_model_at_end: bool = True
    """End with the best checkpoint."""
    metric_for_best_model: str | None = None
    """What picks the best checkpoint. Default: the task's first metric."""
    dataloader_num_workers: int = 0
    """Processes that prepare batches."""
    report_to: str = "none"
    """Where to report besides: tensorboard, wandb, ..., all."""
    disable_tqdm: bool = False
    """Write lines in place of bars, as in a log file."""
    use_cpu: bool = False
    """Train on the CPU though there is an accelerator."""
    deepspeed: str | None = None
    """DeepSpeed's JSON file."""
    push_to_hub: bool = False
    """Upload the finished run."""
    hub_model_id: str | None = None
    """Repository to upload to: org/name."""
    trainer: dict[str, Any] = field(default_factory=dict)
    """Any other field of transformers' TrainingArguments, such as --trainer.torch_compile true."""


@dataclass(frozen=True)
class Arguments:
    """Everything that one run needs."""

    task: Task
    model: ModelArguments
    data: DataArguments
    run: RunArguments
    training: TrainingOptions
    given: frozenset[str]  # names of the options that the user gave, as against the recipe


PROG = "luna finetune"
USAGE = f"""usage: {PROG} TASK [TASK ...] [options.yaml ...] --model_name_or_path CHECKPOINT [--option value ...]

{textwrap.fill(f"tasks: {', '.join(TASK_NAMES)}", 120, break_on_hyphens=False)}
recipes (--recipe): table9 or paper, the paper's and the default; official; small, for small checkpoints; reduced; none

  {PROG} sst2 --model_name_or_path M                                    a task of GLUE, RACE or CSQA, from the Hub
  {PROG} sst2 --model_name_or_path M --data_dir FOLDER                  the same from local files
  {PROG} custom --model_name_or_path M --kind classification --train_file rows.csv    your own rows
  {PROG} qnli --model_name_or_path M --sweep --num_seeds 5              the paper's grid
  {PROG} cola rte --model_name_or_path M --compare cls packed           heads or checkpoints, side by side
  {PROG} listops --data_dir FOLDER --model.projection_length 128        a new model for the Long Range Arena
  {PROG} translation luna-16-softplus-tied --dataset FOLDER             pairs of lines; has options of its own: --help

`{PROG} --help` lists every option."""


@functools.cache
def make_parser() -> Parser:
    """The parser of all options."""
    recipes = sorted((path.name for path in RECIPES.iterdir()), reverse=True)
    parser = Parser(
        PROG,
        f"Fine-tune a checkpoint on one of: {', '.join(TASK_NAMES)}. Recipes: {', '.join(recipes)}, none.",
        *(ModelArguments, DataArguments, RunArguments, TrainingOptions),
    )
    parser.usage = f"{PROG} TASK [TASK ...] [options.yaml ...] --model_name_or_path CHECKPOINT [--option value ...]"
    return parser


def split_command_line(argv: list[str]) -> tuple[list[str], list[str]]:
    """The names of the tasks, and the options, with those of files before those of the command line.

    Raises:
        InputError: a word that is no task, no task, or a file that cannot be read.
    """
    tasks, options = split_words(argv, {})
    for name in tasks:
        if name not in TASK_NAMES:
            near = "".join(f", perhaps {near} is meant" for near in get_close_matches(name, TASK_NAMES, n=1))
            raise InputError(
                f"{name} is neither a task nor a .yaml or .json file of options{near}: "
                f"the tasks are {', '.join(TASK_NAMES)}."
            )
    if not tasks:
        raise InputError(f"Name a task: one of {', '.join(TASK_NAMES)}.")
    return tasks, options


def find_recipe(recipe: str | None, task_name: str) -> Path | None:
    """The recipe's file for a task, the paper's where none is named, or None for the recipe "none".

    Raises:
        InputError: the recipe has no values for the task.
    """
    if recipe == "none":
        return None
    files = TASKS[task_name].recipes if task_name in TASKS else CUSTOM_RECIPES
    if recipe is None:
        return RECIPES / files[0]
    known = {Path(file).parent.name: RECIPES / file for file in (*files, SMALL_RECIPE)}
    if recipe not in known:
        raise InputError(
            f"`recipe` is {recipe!r}, which has no values for {task_name}: choose {' or '.join(known)}, or none."
        )
    return known[recipe]


def parse(task_name: str, options: list[str], together: Sequence[str] = ()) -> Arguments:
    """Options of one run to its arguments; the recipe's come first, so that every given option wins.

    Args:
        together: all tasks that share the options, of which one at least must read each.

    Raises:
        InputError: an unknown option, a value of the wrong type, options that contradict each other, or one that
            nothing would read.
    """
    names, parser = together or (task_name,), make_parser()
    *_, run, _ = parser.parse(options)
    recipe = find_recipe(run.recipe, task_name)
    values = to_options(read_yaml(recipe)) if recipe else []
    model, data, run, training = parser.parse(values + options)
    given = frozenset(option_names(options))
    if training.output_dir is None:
        training.output_dir = f"runs/finetuning/{'-'.join(names)}"
    check_ranges(model, run, training)
    check_trainer(training)
    check_model(model, given, TASKS.get(task_name))
    if "custom" in names and data.kind is None:
        raise InputError(f"A custom task needs --kind: {', '.join(KINDS[:-1])} or {KINDS[-1]}.")
    tasks = {name: TASKS[name] if name in TASKS else custom_task(data.kind, tuple(data.text_columns)) for name in names}
    check_read(given, list(tasks.values()), data, run)
    training = share_batch(run, training, int(os.environ.get("WORLD_SIZE", "1")))
    return Arguments(tasks[task_name], model, data, run, training, given)


def check_model(model: ModelArguments, given: frozenset[str], task: Task | None) -> None:
    """Refuse a run without a model, or with two."""
    if model.model_name_or_path is None and model.model_type is None:
        raise InputError("Give a checkpoint with --model_name_or_path: a folder, or a name on the Hub.")
    for name in sorted(given & {"model_type", "model"}):
        if model.model_name_or_path is not None:
            raise InputError(
                f"`{name}` was given beside `model_name_or_path` {model.model_name_or_path}: leave one of them out."
            )
        if not isinstance(task, LraTask):
            raise InputError(f"`{name}` was given, but only the tasks of the Long Range Arena start from a new model.")


AT_LEAST_ONE = (
    "num_seeds total_train_batch_size early_stopping_patience per_device_train_batch_size per_device_eval_batch_size "
    "gradient_accumulation_steps"
).split()
NOT_NEGATIVE = "seed learning_rate weight_decay adam_epsilon max_grad_norm dataloader_num_workers".split()
BELOW_ONE = (*DROPOUTS, "adam_beta1", "adam_beta2", "label_smoothing_factor")


def check_ranges(model: ModelArguments, run: RunArguments, training: TrainingOptions) -> None:
    """Refuse numbers that would fail, or mean nothing, deep inside the training."""
    values = vars(model) | vars(run) | vars(training)
    values = {name: value for name, value in values.items() if isinstance(value, int | float)}
    for names, allowed, text in (
        (AT_LEAST_ONE, lambda value: value >= 1, "at least 1"),
        (NOT_NEGATIVE, lambda value: 0 <= value < math.inf, "a finite number of at least 0"),
        (BELOW_ONE, lambda value: 0 <= value < 1, "at least 0 and below 1"),
    ):
        for name in names:
            if name in values and not allowed(values[name]):
                raise InputError(f"`{name}` is {values[name]}: give {text}.")
    if training.max_steps == 0 or (training.max_steps < 0 and not training.num_train_epochs > 0):
        raise InputError("The training would have no steps: give --num_train_epochs or --max_steps above 0.")
    if training.eval_strategy == "no" and run.do_train:
        for name in ("early_stopping_patience", "load_best_model_at_end"):
            if values.get(name):
                raise InputError(
                    f"`{name}` is {values[name]}, which needs evaluations: give an --eval_strategy other than no."
                )


# Options of the Trainer that this program cannot honour, and why.
NOT_HONOURED = {
    "dataloader_drop_last": "the evaluation would lose rows",
    "prediction_loss_only": "the metrics need the scores",
    "batch_eval_metrics": "the metrics need all rows at once",
    "eval_do_concat_batches": "the metrics need all rows at once",
    "include_for_metrics": "the metrics read scores and labels alone",
    "label_names": "every task has the one column of labels",
    "train_sampling_strategy": "--group_by_length says how rows are batched",
    "length_column_name": "the program counts the tokens itself",
    "auto_find_batch_size": "the result would depend on the memory",
    "save_only_model": "an interrupted run could not go on",
    "resume_from_checkpoint": "the same command goes on from the newest checkpoint by itself",
    "hub_strategy": "only a finished run is pushed, because checkpoints hold pickles",
}


def check_trainer(training: TrainingOptions) -> None:
    """Refuse options of the Trainer that would do nothing, break the evaluation, or need what is not installed."""
    for name, value in training.trainer.items():
        if name in NOT_HONOURED:
            raise InputError(f"`trainer.{name}` is {value}, but {NOT_HONOURED[name]}: leave it out.")
        if any(hasattr(part, name) for part in (training, RunArguments)):
            raise InputError(f"`trainer.{name}` is {value}, but {name} is an option of its own: give --{name} {value}.")
    if training.deepspeed and importlib.util.find_spec("deepspeed") is None:
        raise InputError(
            f"`deepspeed` is {training.deepspeed}, but the package deepspeed is not installed: run "
            "`pip install 'luna-transformers[deepspeed]'`, or leave it out."
        )


# Options that only custom tasks read, and options that any task reads: the kinds of task that do.
CUSTOM_ONLY = {
    **dict.fromkeys(("kind", "train_file", "validation_file", "test_file", "validation_fraction", "label_column"), KINDS),
    **dict.fromkeys(("question_column", "passage_column", "option_columns"), ("multiple_choice",)),
    "text_columns": ("classification", "regression"),
    "class_names": ("classification", "token_classification"),
    "words_column": ("token_classification",),
}
SOME_KINDS = {"max_option_length": ("multiple_choice",), "classifier_pooling": KINDS[:3]}


def is_read(name: str, task: Task) -> bool:
    """Whether a task reads an option."""
    if name == "data_dir":
        return task.name != "custom"
    if name in CUSTOM_ONLY and task.name != "custom":
        return False
    return task.kind in (CUSTOM_ONLY | SOME_KINDS).get(name, KINDS)


def check_read(given: frozenset[str], tasks: list[Task], data: DataArguments, run: RunArguments) -> None:
    """Refuse given options that would be ignored in silence."""
    for name in sorted(given):
        if not any(is_read(name, task) for task in tasks):
            kinds = " or ".join(f"{task.name} ({task.kind.replace('_', ' ')})" for task in tasks)
            raise InputError(f"`{name}` was given, but {kinds} does not read it: leave it out.")
    if "validation_fraction" in given and data.validation_file:
        raise InputError("`validation_fraction` was given beside `validation_file`: leave one of them out.")
    if run.compare and (run.sweep or run.sweep_grid):
        raise InputError("Give either --compare or --sweep: each has runs of its own.")
    if len(tasks) > 1 and not run.compare:
        names = ", ".join(task.name for task in tasks)
        raise InputError(f"Several tasks ({names}) need --compare: otherwise run them one by one.")


def share_batch(run: RunArguments, training: TrainingOptions, num_processes: int) -> TrainingOptions:
    """Divide `total_train_batch_size` into processes and accumulation steps, with the largest batch per device that fits."""
    total = run.total_train_batch_size
    if total is None:
        return training
    if total % num_processes:
        raise InputError(
            f"`total_train_batch_size` is {total}, which {num_processes} processes cannot share equally: "
            "choose a multiple of their number."
        )
    if training.gradient_accumulation_steps != 1:
        raise InputError(
            f"`gradient_accumulation_steps` is {training.gradient_accumulation_steps}, but it follows from "
            f"`total_train_batch_size` {total}: leave it out, or give it with --recipe none and without a total."
        )
    per_process = total // num_processes
    limit = min(training.per_device_train_batch_size, per_process)
    size = max(size for size in range(1, limit + 1) if per_process % size == 0)
    return replace(training, per_device_train_batch_size=size, gradient_accumulation_steps=per_process // size)
