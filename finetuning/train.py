# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""One run: load data and checkpoint, train, evaluate, predict, and write everything that a reader of the result needs.

Read top to bottom: the model, the loss, the Trainer, checkpoints, the run.
"""

import json
import logging
import math
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_model as load_model_weights
from torch import nn
from torch.utils.data import Sampler
from transformers import (
    AutoConfig,
    AutoModelForMultipleChoice,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    EarlyStoppingCallback,
    EvalPrediction,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerState,
    set_seed,
)
from transformers.trainer_pt_utils import get_length_grouped_indices
from transformers.utils import logging as transformers_logging

from finetuning.arguments import TRAINING_FIELDS, Arguments, describe
from finetuning.data import TaskData, load_task
from finetuning.encoding import encode, make_collator
from finetuning.metrics import compute_metrics, decide, metric_names
from finetuning.model_card import make_model_card
from finetuning.plots import plot_confusion_matrix, plot_learning_curve, plot_regression
from finetuning.predictions import check_submission, letter, write_predictions, write_submission
from finetuning.tasks import Task
from luna_tools.cards import named_card
from luna_tools.errors import InputError, first_sentence, told

logger = logging.getLogger(__name__)

AUTO_CLASSES = {
    "classification": AutoModelForSequenceClassification,
    "regression": AutoModelForSequenceClassification,
    "multiple_choice": AutoModelForMultipleChoice,
    "token_classification": AutoModelForTokenClassification,
}
DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "activation_dropout", "classifier_dropout")
HEADS = ("ForSequenceClassification", "ForMultipleChoice", "ForTokenClassification", "ForQuestionAnswering")


# ---------------------------------------------------------------------------------------------------------------------
# The model


def load_config(arguments: Arguments) -> PreTrainedConfig:
    """The checkpoint's configuration with the options that are fields of it.

    Raises:
        InputError: no such checkpoint, or the user gave an option that this architecture does not have.
    """
    model = arguments.model
    try:
        config = AutoConfig.from_pretrained(
            model.model_name_or_path, revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise InputError(
            f"{model.model_name_or_path} is neither a folder with a checkpoint nor a model of the Hub that can be read "
            f"({first_sentence(error)}): correct --model_name_or_path."
        ) from error
    for name, value in model.config_overrides().items():
        if hasattr(config, name):
            try:
                setattr(config, name, value)
            except StrictDataclassError as error:
                reason = str(error).splitlines()[-1].strip().removeprefix("TypeError: ")
                raise InputError(f"`{name}` is {value!r}, which {config.model_type} refuses: {reason}.") from error
        elif name in arguments.given:
            raise InputError(
                f"`{name}` was given, but the configuration of {model.model_name_or_path} ({config.model_type}) has no such "
                "field: leave it out."
            )
    if getattr(config.get_text_config(), "vocab_size", None) is None:
        raise InputError(f"{model.model_name_or_path} ({config.model_type}) reads no text: give a model that does.")
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
    task, name = data.task, arguments.model.model_name_or_path
    old_head = AUTO_CLASSES[task.kind].__name__.removeprefix("AutoModel")
    if is_finetuned(config) and not arguments.model.ignore_mismatched_sizes:
        remedy = "start from a pretrained checkpoint, or give --ignore_mismatched_sizes to start a new head"
        if not any(architecture.endswith(old_head) for architecture in config.architectures):
            raise InputError(
                f"{name} holds a {config.architectures[0]}, but {task.name} is a task of {task.kind.replace('_', ' ')}: "
                f"{remedy}."
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
            raise InputError(
                f"{name} was fine-tuned for {config.num_labels} labels, but {task.name} has one value: {remedy}."
            )
        choices = getattr(config, "num_choices", None)
        if task.kind == "multiple_choice" and choices not in (None, num_options(data)):
            raise InputError(
                f"The rows of {task.name} have {num_options(data)} options, but {name} was fine-tuned on {choices}: give it "
                f"rows with {choices} options, or {remedy}."
            )
    if task.kind == "multiple_choice":
        config.num_choices = num_options(data)
        return
    if task.kind == "regression":
        config.id2label, config.label2id = {0: "value"}, {"value": 0}
        config.problem_type = "regression"
        return
    config.id2label = dict(enumerate(task.labels))
    config.label2id = {label: i for i, label in enumerate(task.labels)}
    if task.kind == "classification":
        config.problem_type = "single_label_classification"


def load_model(config: PreTrainedConfig, task: Task, arguments: Arguments) -> PreTrainedModel:
    """The checkpoint under a head for the task; says which weights are new."""
    auto_class, model = AUTO_CLASSES[task.kind], arguments.model
    kind = task.kind.replace("_", " ")
    if model.random_weights:
        logger.warning("All weights are new: random initialisation of %s.", model.model_name_or_path)
        with told(f"{model.model_name_or_path} ({config.model_type}) cannot do {kind}", "give another checkpoint"):
            return auto_class.from_config(config, trust_remote_code=model.trust_remote_code)
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # its table of new weights says no more than the line below
    try:
        loaded, info = auto_class.from_pretrained(
            model.model_name_or_path,
            config=config,
            revision=model.revision,
            trust_remote_code=model.trust_remote_code,
            ignore_mismatched_sizes=model.ignore_mismatched_sizes,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, AttributeError, SafetensorError) as error:
        raise InputError(
            f"The weights of {model.model_name_or_path} ({config.model_type}) cannot be loaded for {kind} "
            f"({first_sentence(error)}): give another checkpoint."
        ) from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    new = sorted(info["missing_keys"]) + sorted(key for key, *_ in info["mismatched_keys"])
    if new and not arguments.training.do_train:
        raise InputError(
            f"{model.model_name_or_path} has no weights for {new[0]}, so it cannot predict {task.name} without training: "
            "give a checkpoint that was fine-tuned on it."
        )
    logger.warning("New weights: %s.", ", ".join(new) if new else "none")
    return loaded


def load_tokenizer(config: PreTrainedConfig, arguments: Arguments) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer; one that does not pad learns to, and `config` with it.

    Raises:
        InputError: there is none, it has ids that the model does not know, or nothing to pad with.
    """
    model = arguments.model
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            model.model_name_or_path, revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise InputError(
            f"{model.model_name_or_path} has no tokenizer that can be loaded: save the one it was trained with beside it."
        ) from error
    vocab_size = config.get_text_config().vocab_size
    if len(tokenizer) > vocab_size:
        raise InputError(
            f"The tokenizer of {model.model_name_or_path} has {len(tokenizer)} entries, but the model {vocab_size}: "
            "give the two that belong together."
        )
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


# ---------------------------------------------------------------------------------------------------------------------
# The loss


def make_loss(task: Task, label_smoothing: float = 0.0) -> Callable:
    """The task's loss for any architecture: the mean over the labels of the whole batch, however it is divided.

    Most heads of transformers leave `num_items_in_batch` out, which makes loss and gradients grow with accumulation.
    """

    def loss(outputs, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None) -> torch.Tensor:
        logits = outputs["logits"].float()
        reduction = "mean" if num_items_in_batch is None else "sum"
        if task.kind == "regression":
            value = nn.functional.mse_loss(logits.view(-1), labels.view(-1).float(), reduction=reduction)
        else:
            value = nn.functional.cross_entropy(
                logits.view(-1, logits.shape[-1]), labels.view(-1), reduction=reduction, label_smoothing=label_smoothing
            )
        return value if num_items_in_batch is None else value / num_items_in_batch

    return loss


# ---------------------------------------------------------------------------------------------------------------------
# The Trainer


class EpochSampler(Sampler[int]):
    """An order that depends on seed and epoch alone, so that a resumed run goes on with the rows that are due.

    The library's length grouping draws from the global generator, which a run that resumes within an epoch has lost.
    """

    def __init__(self, num_rows: int, lengths: list[int] | None, batch_size: int, seed: int, epoch: Callable[[], int]):
        self.num_rows, self.lengths, self.batch_size, self.seed, self.epoch = num_rows, lengths, batch_size, seed, epoch

    def __len__(self) -> int:
        return self.num_rows

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch())
        if self.lengths is None:
            return iter(torch.randperm(self.num_rows, generator=generator).tolist())
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, generator=generator))


class FinetuningTrainer(Trainer):
    """The Trainer with rows in a reproducible order, and our own model card."""

    def __init__(self, *args, group_by_length: bool, total_train_batch_size: int, write_card: Callable[[], None], **kwargs):
        super().__init__(*args, **kwargs)
        self.group_by_length = group_by_length
        self.total_train_batch_size = total_train_batch_size
        self.write_card = write_card

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        Path(output_dir or self.args.output_dir, "training_args.bin").unlink(missing_ok=True)  # a pickle; run.json stays

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Nothing: the library would upload pickles and no card. The finished run is pushed as a whole."""

    def create_optimizer(self, *args, **kwargs) -> torch.optim.Optimizer:
        with told(f"`optim` {self.args.optim.value} cannot be used", "correct --optim or --optim_args"):
            return super().create_optimizer(*args, **kwargs)

    def create_scheduler(self, *args, **kwargs) -> torch.optim.lr_scheduler.LRScheduler:
        name = self.args.lr_scheduler_type.value
        with told(f"`lr_scheduler_type` {name} cannot be used", "correct it or --lr_scheduler_kwargs"):
            return super().create_scheduler(*args, **kwargs)

    def _get_train_sampler(self, train_dataset: datasets.Dataset | None = None) -> Sampler[int]:
        lengths = self.train_dataset["length"][:] if self.group_by_length else None
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        # state.epoch counts with fractions; the margin is for the rounding of step / steps.
        return EpochSampler(
            len(self.train_dataset),
            lengths,
            self.total_train_batch_size,
            seed,
            lambda: math.floor((self.state.epoch or 0) + 1e-6),
        )

    def push_to_hub(self, *args, **kwargs):
        """As in the library; the card names the repository there, and stays as it is in the folder."""
        try:
            return super().push_to_hub(*args, **kwargs)
        finally:
            if self.is_world_process_zero():
                self.write_card()

    def create_model_card(self, *args, **kwargs) -> None:
        if self.is_world_process_zero():
            self.write_card()
            path = Path(self.args.output_dir, "README.md")
            card = named_card(path.read_text(encoding="utf-8"), self.hub_model_id, self.args.hub_revision)
            path.write_text(card, encoding="utf-8")


class StopEarly(EarlyStoppingCallback):
    """The library's early stopping, with the count taken from the log, so that a resumed run stops where it would have."""

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        self.early_stopping_patience_counter = evaluations_since_best(state, args.metric_for_best_model)

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        if args.metric_for_best_model in metrics:  # MNLI's second split is for the report alone
            super().on_evaluate(args, state, control, metrics, **kwargs)


def evaluations_since_best(state: TrainerState, metric: str) -> int:
    return sum(metric in entry and entry["step"] > (state.best_global_step or 0) for entry in state.log_history)


class SaveOnSignal(TrainerCallback):
    """On Ctrl-C or SIGTERM, save a checkpoint after the current step and end."""

    def __init__(self):
        self.received = False
        self.previous: dict[int, Callable | int | None] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.previous[number] = signal.signal(number, self.receive)

    def receive(self, number, frame):
        if self.received:  # a second Ctrl-C does not wait
            raise KeyboardInterrupt
        self.received = True

    def on_step_end(self, args, state, control, **kwargs):
        received = self.received
        if args.world_size > 1:  # the signal reaches the processes at different steps
            flag = torch.tensor(float(received), device=args.device)
            torch.distributed.all_reduce(flag)
            received = self.received = bool(flag.item())
        if received:
            control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.received and state.epoch % 1 > 1e-6:  # stopped within it: the run without a signal has no evaluation here
            control.should_evaluate = control.should_save = control.should_log = False

    def on_save(self, args, state, control, **kwargs):
        if self.received:  # the Trainer would load the best checkpoint, and remove the one to go on from
            state.best_model_checkpoint = None

    def restore_handlers(self) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints of an interrupted run


def list_checkpoints(output_dir: Path) -> list[Path]:
    """The Trainer's checkpoints, the newest first."""
    folders = [path for path in output_dir.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdecimal()]
    return sorted(folders, key=lambda path: int(path.name.removeprefix("checkpoint-")), reverse=True)


def find_checkpoint(output_dir: Path, world_size: int | None = None) -> Path | None:
    """The newest whole checkpoint; a kill while the Trainer writes one leaves it without its last file.

    Args:
        world_size: the number of processes that go on from it; None takes one of any number.
    """
    needed = ["model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json"]
    if world_size is not None:
        needed += ["rng_state.pth"] if world_size == 1 else [f"rng_state_{rank}.pth" for rank in range(world_size)]
    for folder in list_checkpoints(output_dir):
        missing = [name for name in needed if not (folder / name).is_file()]
        try:
            json.loads((folder / "trainer_state.json").read_text())
        except (OSError, ValueError):
            missing = missing or ["trainer_state.json"]
        if not missing:
            return folder
        logger.warning("%s is incomplete (%s) and is not used.", folder, missing[0])
    return None


# ---------------------------------------------------------------------------------------------------------------------
# The run


def read_results(output_dir: Path) -> dict | None:
    """The results of a finished run, or None."""
    path = output_dir / "all_results.json"
    return read_json(path) if path.is_file() else None


def read_json(path: Path) -> dict:
    """A file of a run.

    Raises:
        InputError: it is not a JSON object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise InputError(f"{path} is not a JSON object: choose another --output_dir, or remove the folder.")
    return values


def write_json(path: Path, values: dict) -> None:
    """Write a JSON file that is there whole or not at all."""
    beside = path.with_name(f"{path.name}.tmp")
    beside.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(beside, path)


def check_output_dir(output_dir: Path, description: dict) -> None:
    """Refuse a folder that holds another run's checkpoints or results; of a run that failed before, nothing is lost.

    Raises:
        InputError: naming the first option or the first files that differ.
    """
    place = next(path for path in (output_dir, *output_dir.absolute().parents) if path.exists())
    if not place.is_dir():
        raise InputError(f"--output_dir is {output_dir}, but {place} is a file: choose another --output_dir.")
    path = output_dir / "run.json"
    if not path.is_file():
        if output_dir.is_dir() and any(output_dir.iterdir()):
            raise InputError(
                f"{output_dir} holds files that are not a run of this program: choose another --output_dir."
            )
        return
    there = read_json(path)
    changed = [name for name in description if there.get(name) != description[name]]
    if not changed or (read_results(output_dir) is None and find_checkpoint(output_dir) is None):
        return
    remedy = "choose another --output_dir, or remove the folder"
    if changed != ["digests"]:
        name = changed[0]
        raise InputError(
            f"{output_dir} holds a run with {name} {there.get(name)!r}, and this one has {description[name]!r}: {remedy}."
        )
    old, new = there.get("digests", {}), description["digests"]
    name = next(name for name in old | new if old.get(name) != new.get(name))
    raise InputError(f"The files of `{name}` have changed since the run in {output_dir}: {remedy}.")


class Interrupted(Exception):
    """The run was stopped by a signal and has saved a checkpoint."""


def run(arguments: Arguments) -> dict:
    """Train, evaluate and predict; returns the results, which `all_results.json` in the output folder holds as well.

    A finished run is not run again, but for evaluation or prediction that it left out; an interrupted one goes on from
    its newest checkpoint.

    Raises:
        InputError: wrong input, in one sentence.
        Interrupted: a signal came; the same call goes on later.
    """
    training, output_dir = arguments.training, Path(arguments.training.output_dir)
    if "hub_strategy" in arguments.given and training.hub_strategy != "end":
        raise InputError(
            f"`hub_strategy` is {training.hub_strategy.value}, but only a finished run is pushed, because checkpoints hold "
            "pickles: leave it out."
        )
    choose_metric(arguments)
    description = describe(arguments)
    check_output_dir(output_dir, description)
    results = read_results(output_dir)
    if training.world_size > 1:
        torch.distributed.barrier()  # all have looked before the first one writes
    finished = set(read_json(output_dir / "run.json").get("finished", ())) if results is not None else set()
    phases = {"evaluation": training.do_eval, "prediction": training.do_predict}
    missing = {phase for phase, asked in phases.items() if asked} - finished
    if results is not None:
        if not missing:
            logger.warning("%s is finished.", output_dir)
            return results
        logger.warning("%s is finished but for: %s.", output_dir, ", ".join(sorted(missing)))
        training.do_eval, training.do_predict = "evaluation" in missing, "prediction" in missing
        if training.do_train:
            saved = {"model_name_or_path": str(output_dir), "random_weights": False, "ignore_mismatched_sizes": False}
            arguments = replace(arguments, model=replace(arguments.model, **saved))
        training.do_train = False

    set_seed(training.seed)
    config = load_config(arguments)
    unread = [name for name in arguments.model.config_overrides() if not hasattr(config, name)]
    if unread:
        logger.warning("The recipe's %s do not apply to %s.", ", ".join(unread), config.model_type)
    tokenizer = load_tokenizer(config, arguments)
    if arguments.task.kind == "token_classification":
        tokenizer.padding_side = "right"  # then a word's tokens are at the same place in every batch
    data = load_data(config, arguments)
    if training.do_predict:
        check_submission(data)
    fit_config(config, data, arguments)
    model = load_model(config, data.task, arguments)
    limit = sequence_limit(model, tokenizer)
    length = arguments.data.max_sequence_length
    if length > limit and "max_sequence_length" in arguments.given:
        raise InputError(
            f"`max_sequence_length` is {length}, but {arguments.model.model_name_or_path} reads at most {limit} tokens: "
            "give no more, or leave it out."
        )
    length = min(length, limit)
    tokenizer.model_max_length = length  # saved with it, so that a pipeline cuts as the training did
    encoded = encode(data, tokenizer, length, arguments.data.max_option_length)
    if training.should_save:
        output_dir.mkdir(parents=True, exist_ok=True)
    trainer = make_trainer(model, tokenizer, data, encoded, arguments, description)
    check_forward(trainer, data.task, encoded, arguments)
    if training.should_save:
        write_json(output_dir / "run.json", description | {"finished": sorted(finished)})

    results = results or {}
    if training.do_train:
        results |= train(trainer, output_dir)
    if training.do_eval:
        for split in data.task.validation_splits:
            results |= evaluate(trainer, data, encoded, split, output_dir)
    if training.do_predict:
        submitted = {}
        for split in data.task.test_splits:
            if split in encoded:
                metrics, submitted[split] = predict(trainer, data, encoded, split, output_dir)
                results |= metrics
        if submitted and data.task.name != "custom" and training.should_save:
            write_submission(output_dir, data, submitted)
    finish(trainer, data, results, description | {"finished": sorted(finished | missing)}, output_dir)
    return results


def choose_metric(arguments: Arguments) -> None:
    """Name the metric that picks the best checkpoint as the Trainer logs it; by default the task's, not the loss."""
    training = arguments.training
    if "metric_for_best_model" not in arguments.given:
        training.metric_for_best_model = best_key(arguments.task)
    training.metric_for_best_model = f"eval_{training.metric_for_best_model.removeprefix('eval_')}"
    if "greater_is_better" not in arguments.given:
        training.greater_is_better = not training.metric_for_best_model.endswith(("loss", "error"))


def load_data(config: PreTrainedConfig, arguments: Arguments) -> TaskData:
    """The task's splits that this run needs; a fine-tuned checkpoint's labels name the classes of custom rows to predict."""
    task, options = arguments.task, arguments.data
    if task.name == "custom":
        files = options.custom_files()
        if files.class_names is None and files.train_file is None:
            files = replace(files, class_names=checkpoint_labels(config))
        data = load_task(task, custom=files)
    else:
        data = load_task(task, Path(options.data_dir) if options.data_dir else None)
    if arguments.training.do_train and "train" not in data.splits:
        raise InputError(
            f"{task.name} has no train rows here: give --train_file, or --no_do_train to use the checkpoint as it is."
        )
    return data


def make_trainer(
    model, tokenizer, data: TaskData, encoded: dict, arguments: Arguments, description: dict
) -> FinetuningTrainer:
    task, training = data.task, arguments.training
    splits = task.validation_splits
    # With several validation splits the Trainer prefixes a metric with the split's name.
    evaluation = encoded.get(splits[0]) if len(splits) == 1 else {name: encoded[name] for name in splits if name in encoded}
    known = [f"{metric_prefix(task, split)}_{name}" for split in splits for name in (*metric_names(task), "loss")]
    if training.metric_for_best_model not in known:
        raise InputError(
            f"`metric_for_best_model` is {training.metric_for_best_model}, which {task.name} does not have: choose one of "
            f"{', '.join(known)}."
        )
    if not training.do_train:
        training.eval_strategy = "no"  # between the epochs; the Trainer would ask for a validation split
    if model.config.model_type == "luna" and training.ddp_find_unused_parameters is None:
        training.ddp_find_unused_parameters = False  # its heads freeze what they do not read
    callbacks: list[TrainerCallback] = [SaveOnSignal()]
    if arguments.run.early_stopping_patience is not None and training.do_train:
        callbacks.append(StopEarly(arguments.run.early_stopping_patience))
    total = training.per_device_train_batch_size * training.gradient_accumulation_steps * training.world_size
    loss = make_loss(task)

    def measure(prediction: EvalPrediction) -> dict[str, float]:
        """The metrics, and the loss over all rows: the Trainer's own mean depends on how they are divided into batches."""
        logits, labels = first(prediction.predictions), prediction.label_ids
        whole = loss({"logits": torch.from_numpy(logits)}, torch.from_numpy(labels)).item()
        return {"loss": whole} | compute_metrics(task, logits, labels)

    with told("The Trainer cannot start", "correct the options"):
        trainer = FinetuningTrainer(
            model=model,
            args=training,
            train_dataset=encoded.get("train") if training.do_train else None,
            eval_dataset=evaluation,
            processing_class=tokenizer,
            data_collator=make_collator(task, tokenizer, pad_to_multiple_of=8 if training.fp16 or training.bf16 else None),
            compute_loss_func=make_loss(task, training.label_smoothing_factor),
            compute_metrics=measure,
            callbacks=callbacks,
            group_by_length=arguments.run.group_by_length,
            total_train_batch_size=total,
            write_card=lambda: write_card(trainer, data, read_results(Path(training.output_dir)) or {}, description),
        )
    return trainer


def check_forward(trainer: FinetuningTrainer, task: Task, encoded: dict, arguments: Arguments) -> None:
    """Run the model on one row, so that one that does not take the task's inputs is refused before the training."""
    if trainer.is_deepspeed_enabled:  # its weights are in parts until the training starts
        return
    model, kind = trainer.model.eval(), task.kind.replace("_", " ")
    batch = trainer.data_collator([next(iter(encoded.values()))[0]])
    what = f"{arguments.model.model_name_or_path} ({model.config.model_type}) cannot do {kind}"
    with told(what, "give another checkpoint"), torch.no_grad():
        model(**{name: tensor.to(model.device) for name, tensor in batch.items() if name != "labels"})["logits"]


def first(predictions) -> np.ndarray:
    """The logits, of a model that returns more besides."""
    return predictions[0] if isinstance(predictions, tuple) else predictions


def first_tokens(rows: datasets.Dataset) -> list[list[int]] | None:
    """Of token classification: where each word's first token is."""
    return rows["first_tokens"][:] if "first_tokens" in rows.column_names else None


def is_trained(checkpoint: Path, trainer: FinetuningTrainer) -> bool:
    """Whether a checkpoint is the last of its training, from which the Trainer would go on by at least one step."""
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    patience = [c.early_stopping_patience for c in trainer.callback_handler.callbacks if isinstance(c, StopEarly)]
    since_best = evaluations_since_best(state, trainer.args.metric_for_best_model)
    return state.global_step >= state.max_steps or any(since_best >= number for number in patience)


def train(trainer: FinetuningTrainer, output_dir: Path) -> dict:
    """Train to the end, from the newest checkpoint if there is one."""
    checkpoint = find_checkpoint(output_dir, trainer.args.world_size)
    on_signal = next(callback for callback in trainer.callback_handler.callbacks if isinstance(callback, SaveOnSignal))
    if checkpoint is not None and is_trained(checkpoint, trainer):
        trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        best = trainer.state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
        load_model_weights(trainer.model, Path(best or checkpoint) / "model.safetensors")
    else:
        if checkpoint is not None:
            logger.warning("Going on from %s.", checkpoint)
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        finally:
            on_signal.restore_handlers()
        if on_signal.received:
            raise Interrupted
    state = trainer.state
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    return {
        "train_loss": losses[-1] if losses else None,
        "train_steps": state.global_step,
        "train_epochs": state.epoch,
        "best_step": state.best_global_step,
        "train_samples": len(trainer.train_dataset),
    }


def evaluate(trainer: FinetuningTrainer, data: TaskData, encoded: dict, split: str, output_dir: Path) -> dict:
    """Metrics of a validation split, with predictions and a picture of them."""
    if split not in encoded:
        return {}
    prefix = metric_prefix(data.task, split)
    output = trainer.predict(encoded[split], metric_key_prefix=prefix)
    if trainer.is_world_process_zero():
        logits = first(output.predictions)
        write_predictions(output_dir, data, split, logits, first_tokens(encoded[split]))
        draw(data.task, output_dir, split, logits, output.label_ids)
    return own_metrics(output.metrics, prefix) | {f"{prefix}_samples": len(encoded[split])}


def predict(trainer: FinetuningTrainer, data: TaskData, encoded: dict, split: str, output_dir: Path):
    """Predictions of a test split, and its metrics where its labels are published."""
    output = trainer.predict(encoded[split], metric_key_prefix=split)
    if trainer.is_world_process_zero():
        write_predictions(output_dir, data, split, first(output.predictions), first_tokens(encoded[split]))
    has_labels = output.label_ids is not None
    metrics = own_metrics(output.metrics, split) if has_labels else {}
    return metrics | {f"{split}_samples": len(encoded[split])}, first(output.predictions)


def metric_prefix(task: Task, split: str) -> str:
    """What the Trainer puts before the names of a split's metrics."""
    if split not in task.validation_splits:
        return split
    return "eval" if len(task.validation_splits) == 1 else f"eval_{split}"


def best_key(task: Task) -> str:
    """The result that picks the best checkpoint."""
    return f"{metric_prefix(task, task.validation_splits[0])}_{task.best_metric}"


def own_metrics(metrics: dict, prefix: str) -> dict:
    """Without the Trainer's timings, so that equal runs have equal results."""
    dropped = ("_runtime", "_samples_per_second", "_steps_per_second", "_model_preparation_time")
    return {name: value for name, value in metrics.items() if name.startswith(prefix) and not name.endswith(dropped)}


def draw(task: Task, output_dir: Path, split: str, logits: np.ndarray, labels: np.ndarray) -> None:
    if task.kind == "regression":
        plot_regression(output_dir / f"predictions_{split}.png", labels, logits.reshape(-1), f"{task.title}, {split}")
        return
    if task.kind == "multiple_choice":
        names = [letter(option) for option in range(logits.shape[1])]
    else:
        names = list(task.labels)
    predicted = decide(task, logits)
    known = labels != -100  # tokens without a tag
    plot_confusion_matrix(
        output_dir / f"confusion_matrix_{split}.png", labels[known], predicted[known], names, f"{task.title}, {split}"
    )


def finish(trainer: FinetuningTrainer, data: TaskData, results: dict, description: dict, output_dir: Path) -> None:
    """Write model, tokenizer, card, learning curve, and last `all_results.json`, which marks the run as finished."""
    if trainer.args.do_train:
        trainer.save_model(str(output_dir), _internal_call=True)  # a call by a user would push, before there are results
    if trainer.is_world_process_zero():
        if trainer.args.do_train:
            trainer.state.save_to_json(str(output_dir / "trainer_state.json"))
            plot_learning_curve(
                output_dir / "learning_curve.png",
                trainer.state.log_history,
                metric_names(data.task),
                data.task.title,
                best_step=trainer.state.best_global_step,
                loss_name=loss_name(data.task, trainer.args.label_smoothing_factor),
            )
        if description["do_train"]:
            write_card(trainer, data, results, description)
        write_json(output_dir / "run.json", description)
        write_json(output_dir / "all_results.json", results)
        for checkpoint in list_checkpoints(output_dir):  # the best one is the model now
            shutil.rmtree(checkpoint)
    trainer.accelerator.wait_for_everyone()
    if trainer.args.push_to_hub:
        try:
            trainer.push_to_hub()
        except Exception as error:  # whatever the network does, the run is finished
            name = trainer.hub_model_id or "org/name"
            raise InputError(
                f"The finished run in {output_dir} was not pushed ({' '.join(str(error).split())}): mend that, then upload "
                f"it with `python scripts/push_to_hub.py {output_dir} {name}`."
            ) from error


def loss_name(task: Task, label_smoothing: float) -> str:
    """The learning curve's, with its unit."""
    if task.kind == "regression":
        return "squared error"
    return "cross-entropy (nats)" + (f"\nin training with label smoothing {label_smoothing:g}" if label_smoothing else "")


def write_card(trainer: FinetuningTrainer, data: TaskData, results: dict, description: dict) -> None:
    task, config = data.task, trainer.model.config
    metrics = {}
    for split in (*task.validation_splits, *task.test_splits):
        start = f"{metric_prefix(task, split)}_"
        values = {name: results[start + name] for name in metric_names(task) if start + name in results}
        if values:
            metrics[split] = values
    names = ["total_train_batch_size", "group_by_length", "early_stopping_patience", *TRAINING_FIELDS]
    overridden = {"num_train_epochs"} if description["max_steps"] > 0 else {"max_steps"}
    overridden |= {f"{what}_steps" for what in ("eval", "save") if description[f"{what}_strategy"] != "steps"}
    hyperparameters = {name: description[name] for name in names if name not in overridden}
    hyperparameters |= {name: getattr(config, name, None) for name in DROPOUTS}
    hyperparameters["max_sequence_length"] = trainer.processing_class.model_max_length
    files = [description[name] for name in ("data_dir", "train_file", "validation_file", "test_file") if description[name]]
    source = ", ".join(f"`{file}`" for file in files) or f"`{task.hub_dataset}` on the Hub"
    folder = Path(trainer.args.output_dir)
    make_model_card(
        model_name=trainer.args.hub_model_id or folder.name,
        data=data,
        metrics=metrics,
        hyperparameters=hyperparameters,
        versions={library.__name__: library.__version__ for library in (transformers, torch, datasets)},
        model_type=config.model_type,
        base_model=None if description["random_weights"] else description["model_name_or_path"],
        data_description=f"{task.title}, from {source}.",
        classifier_pooling=None if task.kind == "token_classification" else getattr(config, "classifier_pooling", None),
        pictures=tuple(sorted(path.name for path in folder.glob("*.png"))),
    ).save(folder / "README.md")
