# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The command line: recipe, files and options, in this order, the later one winning.

A YAML or JSON file holds options by name, so that everything is parsed and checked in one place, as on the command line.
"""

import dataclasses
import functools
import hashlib
import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml
from transformers import HfArgumentParser, TrainingArguments

from finetuning.data import CustomFiles, local_files
from finetuning.tasks import CUSTOM_RECIPES, TASKS, Task, custom_task
from luna_tools.errors import InputError

RECIPES = Path(__file__).parent / "recipes"
KINDS = ("classification", "regression", "multiple_choice", "token_classification")
POOLINGS = ("cls", "packed_mean", "packed_max", "packed_attention", "mean")


@dataclass
class ModelArguments:
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Checkpoint: a folder or a name on the Hub, of Luna or of any other Auto model."}
    )
    revision: str = field(default="main", metadata={"help": "Branch, tag or commit of a checkpoint on the Hub."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run model code that lies in the checkpoint."})
    random_weights: bool = field(
        default=False, metadata={"help": "Start from random weights of the checkpoint's configuration, for comparison."}
    )
    ignore_mismatched_sizes: bool = field(
        default=False, metadata={"help": "Give a checkpoint that was fine-tuned for other labels a new head."}
    )
    classifier_pooling: str | None = field(
        default=None,
        metadata={
            "choices": [None, *POOLINGS],
            "help": "Sentence representation: the first token, mean or max over P, attention over P, mean over tokens.",
        },
    )
    classifier_dropout: float | None = field(default=None, metadata={"help": "Dropout in the head."})
    hidden_dropout_prob: float | None = field(default=None, metadata={"help": "Dropout after embeddings and sub-layers."})
    attention_probs_dropout_prob: float | None = field(default=None, metadata={"help": "Dropout of attention weights."})
    activation_dropout: float | None = field(default=None, metadata={"help": "Dropout inside the feed-forward network."})

    def config_overrides(self) -> dict[str, float | str]:
        """The options that are fields of the model's configuration, where they are given."""
        names = ("classifier_pooling", "classifier_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob")
        values = {name: getattr(self, name) for name in (*names, "activation_dropout")}
        return {name: value for name, value in values.items() if value is not None}


@dataclass
class DataArguments:
    data_dir: str | None = field(
        default=None,
        metadata={"help": "Folder with the task's files, as the Hub or the original site publishes them. Default: the Hub."},
    )
    kind: str | None = field(
        default=None,
        metadata={
            "choices": [None, *KINDS],
            "help": "What a custom task is.",
        },
    )
    train_file: str | None = field(default=None, metadata={"help": "Custom task: .csv, .tsv, .jsonl or .parquet."})
    validation_file: str | None = field(default=None, metadata={"help": "Custom task: rows that pick the best checkpoint."})
    test_file: str | None = field(default=None, metadata={"help": "Custom task: rows to predict."})
    validation_fraction: float = field(
        default=0.1, metadata={"help": "Custom task without a validation file: part of the training rows to hold out."}
    )
    text_columns: list[str] = field(default_factory=lambda: ["text"], metadata={"help": "One column, or two for pairs."})
    label_column: str = field(default="label", metadata={"help": "Column of the label, the value, or the tags."})
    class_names: list[str] | None = field(default=None, metadata={"help": "Classes in the order of their ids."})
    question_column: str = field(default="question", metadata={"help": "Multiple choice: column of the question."})
    passage_column: str | None = field(default=None, metadata={"help": "Multiple choice: column of the passage, if any."})
    option_columns: list[str] = field(
        default_factory=lambda: ["options"], metadata={"help": "Multiple choice: one column of lists, or one per option."}
    )
    words_column: str = field(default="words", metadata={"help": "Token classification: column of the words."})
    max_sequence_length: int = field(
        default=512, metadata={"help": "Longest input in tokens, special ones included; the model's limit if that is less."}
    )
    max_option_length: int = field(
        default=128, metadata={"help": "Longest question with option in tokens (multiple choice)."}
    )

    def custom_files(self) -> CustomFiles:
        return CustomFiles(
            train_file=self.train_file and Path(self.train_file),
            validation_file=self.validation_file and Path(self.validation_file),
            test_file=self.test_file and Path(self.test_file),
            validation_fraction=self.validation_fraction,
            text_columns=tuple(self.text_columns),
            label_column=self.label_column,
            class_names=tuple(self.class_names) if self.class_names else None,
            question_column=self.question_column,
            passage_column=self.passage_column,
            option_columns=tuple(self.option_columns),
            words_column=self.words_column,
        )


@dataclass
class RunArguments:
    recipe: str = field(
        default="table9", metadata={"help": "Where the defaults come from: table9 (the paper), official, or none."}
    )
    total_train_batch_size: int | None = field(
        default=None,
        metadata={"help": "Rows per optimizer step over all devices; accumulation follows from it."},
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after so many evaluations without a better one."}
    )
    group_by_length: bool = field(default=True, metadata={"help": "Batch rows of similar length together."})
    sweep: bool = field(default=False, metadata={"help": "Run the paper's grid."})
    sweep_grid: str | None = field(default=None, metadata={"help": "YAML file of another grid: option: [values]."})
    compare: list[str] | None = field(
        default=None, metadata={"help": "Heads (cls, packed, packed_max, packed_attention, mean) or checkpoints."}
    )
    num_seeds: int = field(default=1, metadata={"help": "Seeds per setting in a sweep or a comparison, from --seed on."})


@dataclass
class FinetuningArguments(TrainingArguments):
    """The Trainer's arguments, with defaults that train, keep the best checkpoint, and predict."""

    do_train: bool = field(default=True, metadata={"help": "Train; otherwise only evaluate and predict."})
    do_eval: bool = field(default=True, metadata={"help": "Evaluate on the validation splits."})
    do_predict: bool = field(default=True, metadata={"help": "Predict the test splits."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate while training."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save a checkpoint."})
    save_total_limit: int | None = field(default=1, metadata={"help": "Checkpoints to keep beside the best one."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "End with the best checkpoint."})
    logging_steps: float = field(default=0.005, metadata={"help": "Steps, or share of all steps, between log lines."})
    dataloader_pin_memory: bool = field(
        default_factory=torch.cuda.is_available, metadata={"help": "Pin the batches' memory, for a faster way to the GPU."}
    )
    per_device_eval_batch_size: int = field(default=32, metadata={"help": "Rows per device in evaluation."})

    def __post_init__(self):
        do_eval = self.do_eval
        super().__post_init__()
        self.do_eval = do_eval  # the library sets it where training evaluates; here it means afterwards


@dataclass(frozen=True)
class Arguments:
    """Everything that one run needs."""

    task: Task
    model: ModelArguments
    data: DataArguments
    run: RunArguments
    training: FinetuningArguments
    given: frozenset[str]  # names of the options that the user gave, as against the recipe


class _Parser(HfArgumentParser):
    def error(self, message: str):
        raise InputError(f"{message}; `python -m finetuning --help` lists the options.")


def make_parser() -> HfArgumentParser:
    return _Parser(
        (ModelArguments, DataArguments, RunArguments, FinetuningArguments),
        prog="python -m finetuning TASK [options.yaml]",
        description="Fine-tune a checkpoint on one of: " + ", ".join([*TASKS, "custom"]) + ".",
        allow_abbrev=False,
    )


def split_command_line(argv: list[str]) -> tuple[list[str], list[str]]:
    """The names of the tasks, and the options, with those of files before those of the command line."""
    first = next((i for i, token in enumerate(argv) if token.startswith("-")), len(argv))
    tasks, options = [], []
    for token in argv[:first]:
        if Path(token).suffix in (".yaml", ".yml", ".json"):
            options += file_to_options(Path(token))
        elif token in (*TASKS, "custom"):
            tasks.append(token)
        else:
            known = ", ".join([*TASKS, "custom"])
            raise InputError(f"{token} is neither a task nor a .yaml or .json file of options: the tasks are {known}.")
    if not tasks:
        raise InputError(f"Name a task: one of {', '.join([*TASKS, 'custom'])}.")
    return tasks, options + argv[first:]


def file_to_options(path: Path) -> list[str]:
    """A YAML or JSON file of options as the command line would spell them."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"The options file {path} cannot be read: {error.strerror}.") from error
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        where = f" at line {place.line + 1}" if place else ""
        raise InputError(f"The options file {path} is not valid YAML or JSON{where}: correct it.") from error
    if not isinstance(values, dict):
        raise InputError(f"The options file {path} must hold `option: value` lines: correct it.")
    options = []
    for name, value in values.items():
        if value is None:
            continue
        options.append(f"--{name}")
        if isinstance(value, dict):
            options.append(json.dumps(value))
        elif isinstance(value, list):
            options += [str(item) for item in value]
        else:
            options.append(str(value))
    return options


def find_recipe(recipe: str, task_name: str) -> Path | None:
    """The recipe's file for a task, or None for the recipe "none"."""
    if recipe == "none":
        return None
    files = TASKS[task_name].recipes if task_name in TASKS else CUSTOM_RECIPES
    known = {Path(file).parent.name: RECIPES / file for file in files}
    if recipe not in known:
        raise InputError(
            f"`recipe` is {recipe!r}, which has no values for {task_name}: choose {' or '.join(known)}, or none."
        )
    return known[recipe]


def parse(task_name: str, options: list[str], together: tuple[str, ...] = ()) -> Arguments:
    """Options of one run to its arguments; the recipe's come first, so that every given option wins.

    Args:
        together: all tasks that share the options, of which one at least must read each.

    Raises:
        InputError: an unknown option, a value of the wrong type, options that contradict each other, or one that
            nothing would read.
    """
    chooser = _Parser(RunArguments, allow_abbrev=False, add_help=False)
    recipe = find_recipe(chooser.parse_known_args(options)[0].recipe, task_name)
    given = frozenset(
        token[2:].split("=")[0].replace("-", "_").removeprefix("no_") for token in options if token.startswith("--")
    )
    if recipe is not None:
        options = file_to_options(recipe) + options
    try:
        model, data, run, training, *unknown = make_parser().parse_args_into_dataclasses(
            options, return_remaining_strings=True, look_for_args_file=False
        )
    except InputError:
        raise
    except (ValueError, ImportError) as error:  # what TrainingArguments refuses
        raise InputError(f"{' '.join(str(error).split()).rstrip('.')}: correct the options.") from error
    if unknown[0]:
        raise InputError(f"{unknown[0][0]} is not an option: `python -m finetuning --help` lists them all.")
    check_ranges(model, run, training)
    check_honoured(training)
    if model.model_name_or_path is None:
        raise InputError("Give a checkpoint with --model_name_or_path: a folder, or a name on the Hub.")
    names = together or (task_name,)
    if "custom" in names and data.kind is None:
        raise InputError(f"A custom task needs --kind: {', '.join(KINDS[:-1])} or {KINDS[-1]}.")
    tasks = {name: TASKS[name] if name in TASKS else custom_task(data.kind, tuple(data.text_columns)) for name in names}
    check_read(given, list(tasks.values()), data, run)
    share_batch(run, training)
    return Arguments(tasks[task_name], model, data, run, training, given)


AT_LEAST_ONE = (
    "num_seeds total_train_batch_size early_stopping_patience per_device_train_batch_size per_device_eval_batch_size "
    "gradient_accumulation_steps"
).split()
NOT_NEGATIVE = "seed learning_rate weight_decay adam_epsilon max_grad_norm dataloader_num_workers".split()
BELOW_ONE = (
    "hidden_dropout_prob attention_probs_dropout_prob activation_dropout classifier_dropout adam_beta1 adam_beta2 "
    "label_smoothing_factor"
).split()


def check_ranges(*parts: ModelArguments | RunArguments | FinetuningArguments) -> None:
    """Refuse numbers that would fail, or mean nothing, deep inside the training."""
    values = {name: value for part in parts for name, value in vars(part).items() if isinstance(value, int | float)}
    for names, allowed, text in (
        (AT_LEAST_ONE, lambda value: value >= 1, "at least 1"),
        (NOT_NEGATIVE, lambda value: 0 <= value < math.inf, "a finite number of at least 0"),
        (BELOW_ONE, lambda value: 0 <= value < 1, "at least 0 and below 1"),
    ):
        for name in names:
            if name in values and not allowed(values[name]):
                raise InputError(f"`{name}` is {values[name]}: give {text}.")
    if values["max_steps"] == 0 or (values["max_steps"] < 0 and not values["num_train_epochs"] > 0):
        raise InputError("The training would have no steps: give --num_train_epochs or --max_steps above 0.")
    if "early_stopping_patience" in values and values["do_train"] and parts[-1].eval_strategy == "no":
        raise InputError("`early_stopping_patience` needs evaluations: give an --eval_strategy other than no.")


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
}


def check_honoured(training: FinetuningArguments) -> None:
    """Refuse options of the Trainer that would do nothing, or break the evaluation."""
    parser = make_parser()
    for name, reason in NOT_HONOURED.items():
        value = getattr(training, name, None)  # each version of transformers has others
        if value != parser.get_default(name):
            raise InputError(f"`{name}` is {value}, but {reason}: leave it out.")


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
    if "num_seeds" in given and not (run.sweep or run.sweep_grid or run.compare):
        raise InputError("`num_seeds` was given, but only --sweep and --compare read it: leave it out.")
    if "validation_fraction" in given and data.validation_file:
        raise InputError("`validation_fraction` was given beside `validation_file`: leave one of them out.")


def share_batch(run: RunArguments, training: FinetuningArguments) -> None:
    """Divide `total_train_batch_size` into devices and accumulation steps, with the largest batch per device that fits."""
    total = run.total_train_batch_size
    if total is None:
        return
    if total % training.world_size:
        raise InputError(
            f"`total_train_batch_size` is {total}, which {training.world_size} processes cannot share equally: "
            "choose a multiple of their number."
        )
    if training.gradient_accumulation_steps != 1:
        raise InputError(
            f"`gradient_accumulation_steps` is {training.gradient_accumulation_steps}, but it follows from "
            f"`total_train_batch_size` {total}: leave it out, or give it with --recipe none and without a total."
        )
    per_process = total // training.world_size
    limit = min(training.per_device_train_batch_size, per_process)
    training.per_device_train_batch_size = max(size for size in range(1, limit + 1) if per_process % size == 0)
    training.gradient_accumulation_steps = per_process // training.per_device_train_batch_size


# What the result of a run depends on, besides all options of the model and the data.
TRAINING_FIELDS = (
    "seed data_seed learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps num_train_epochs max_steps "
    "weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm label_smoothing_factor neftune_noise_alpha optim "
    "optim_args bf16 fp16 do_train eval_strategy eval_steps eval_delay save_strategy save_steps load_best_model_at_end "
    "metric_for_best_model"
).split()


def describe(arguments: Arguments) -> dict:
    """The arguments that the result depends on, as plain values: equal for runs that are the same run.

    `digests` has one for the local files of each split, and one for those of the checkpoint.
    """
    total = arguments.run.total_train_batch_size
    if total is None:
        training = arguments.training
        total = training.per_device_train_batch_size * training.gradient_accumulation_steps * training.world_size
    values = {"task": arguments.task.name, **dataclasses.asdict(arguments.model), **dataclasses.asdict(arguments.data)}
    values |= {"total_train_batch_size": total, "early_stopping_patience": arguments.run.early_stopping_patience}
    values |= {"group_by_length": arguments.run.group_by_length}
    values |= {name: getattr(arguments.training, name) for name in TRAINING_FIELDS}
    values |= {"digests": digests(arguments)}
    return json.loads(json.dumps(values, default=str))


def digests(arguments: Arguments) -> dict[str, str]:
    """SHA-256 of what the run reads from the disk, by split, and of "model"; nothing for what lies on the Hub."""
    checkpoint = Path(arguments.model.model_name_or_path)
    patterns = ("config.json", "*.safetensors", "pytorch_model*.bin", "tokenizer*")
    files = {"model": [path for pattern in patterns for path in sorted(checkpoint.glob(pattern)) if path.is_file()]}
    if arguments.task.name == "custom":
        files |= local_files(arguments.task, custom=arguments.data.custom_files())
    elif arguments.data.data_dir:
        files |= local_files(arguments.task, Path(arguments.data.data_dir))
    found = {}
    for name, paths in files.items():
        whole = hashlib.sha256()
        for path in paths:
            try:
                whole.update(file_digest(path, os.stat(path).st_mtime_ns))
            except OSError as error:
                raise InputError(f"{path} cannot be read ({error.strerror}): give a readable file.") from error
        if paths:
            found[name] = whole.hexdigest()
    return found


@functools.cache  # the runs of a sweep share their files
def file_digest(path: Path, modified: int) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
