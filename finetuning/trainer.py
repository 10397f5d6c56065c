# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""transformers' Trainer as this program uses it: its arguments, the loss, the order of the rows, and what it tells."""

import functools
import gc
import json
import logging
import math
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from torch.utils.data import Sampler
from tqdm.auto import tqdm
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_pt_utils import get_length_grouped_indices

from finetuning.arguments import PROG, Arguments
from finetuning.metrics import metric_names
from finetuning.run_folder import list_checkpoints
from finetuning.tasks import Task
from luna_tools.cards import named_card
from luna_tools.errors import InputError, Stopped, told
from luna_tools.files import writing
from luna_tools.settings import Parser, to_options

logger = logging.getLogger(__name__)


# ---------------------------------------------------------------------------------------------------------------------
# The Trainer's arguments


def make_training_arguments(arguments: Arguments) -> TrainingArguments:
    """The Trainer's arguments, from this program's options.

    Raises:
        InputError: an option that the Trainer does not have or refuses, or that this machine cannot honour.
    """
    options, metric = arguments.training, arguments.training.metric_for_best_model
    metric = best_key(arguments.task) if metric is None else f"eval_{metric.removeprefix('eval_')}"
    values = vars(options) | {
        "metric_for_best_model": metric,
        "greater_is_better": not metric.endswith(("loss", "error")),
        # DeepSpeed finds its own devices.
        "use_cpu": options.use_cpu or not (options.deepspeed or torch.accelerator.is_available()),
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    others = values.pop("trainer")
    known = {field.name: field.default for field in fields(TrainingArguments)}
    for name in others:
        if name not in known:
            raise InputError(f"`trainer.{name}` is {others[name]}, but TrainingArguments has no such field: correct it.")
    if values["fp16"] and values["use_cpu"]:
        raise InputError("`fp16` is True, but float16 is for accelerators: on a CPU, give --bf16 or neither.")
    checkpointing = next(name for name in ("activation_checkpointing", "gradient_checkpointing") if name in known)
    values[checkpointing] = values.pop("gradient_checkpointing") or None
    # TrainingArguments reads its dictionaries from JSON.
    values = {name: json.dumps(value) if isinstance(value, dict) else value for name, value in (values | others).items()}
    values = {name: value for name, value in values.items() if value != known[name]}
    with told("The Trainer refuses the options", "correct them"):
        (args,) = trainer_parser().parse(to_options(values))
        check_launch(args.world_size)  # which starts the processes' group
    return args


@functools.cache  # the runs of a sweep share it
def trainer_parser() -> Parser:
    return Parser(PROG, "", TrainingArguments)


def check_launch(world_size: int) -> None:
    """Refuse a launch whose processes do not know of each other: each would train alone."""
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != world_size:
        raise InputError(
            f"{launched} processes were launched, but the Trainer sees {world_size}: on CPU, launch with torchrun and give "
            "--use_cpu."
        )


def end_processes() -> None:
    """Leave the processes' group: those that keep a model at exit now and then abort in the backend's own clean-up."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        gc.collect()
        torch.distributed.destroy_process_group()


def metric_prefix(task: Task, split: str) -> str:
    """What the Trainer puts before the names of a split's metrics."""
    if split not in task.validation_splits:
        return split
    return "eval" if len(task.validation_splits) == 1 else f"eval_{split}"


def best_key(task: Task) -> str:
    """The result that picks the best checkpoint."""
    return f"{metric_prefix(task, task.validation_splits[0])}_{task.best_metric}"


def test_key(task: Task) -> str | None:
    """The result that tables report, where the test rows' labels are given; None of a task without test rows."""
    return f"{task.test_splits[0]}_{task.best_metric}" if task.test_splits else None


def check_best_metric(task: Task, args: TrainingArguments) -> None:
    """Refuse to pick the best checkpoint by what the evaluation does not give."""
    names = (*metric_names(task), "loss")
    known = [f"{metric_prefix(task, split)}_{name}" for split in task.validation_splits for name in names]
    if args.metric_for_best_model not in known:
        raise InputError(
            f"`metric_for_best_model` is {args.metric_for_best_model}, which {task.name} does not have: choose one of "
            f"{', '.join(known)}."
        )


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


def constant_loss(task: Task, labels: list) -> float:
    """The loss of the best prediction that is the same for every row: the variance, or the entropy of the classes."""
    values = np.concatenate([np.atleast_1d(label) for label in labels])
    if task.kind == "regression":
        return float(values.var())
    _, counts = np.unique(values[values >= 0], return_counts=True)
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def mean_loss(log_history: list[dict], after: float = 0, to: float = math.inf) -> float | None:
    """The mean training loss over the steps of a run, also of one that was interrupted; None where none is logged.

    The Trainer's own `train_loss` is the mean over the steps since it was started last.
    """
    logged = [(entry["step"], entry["loss"]) for entry in log_history if "loss" in entry]
    lengths = np.diff([0, *(step for step, _ in logged)])
    kept = [(loss, length) for (step, loss), length in zip(logged, lengths, strict=True) if after < step <= to]
    return float(f"{np.average([loss for loss, _ in kept], weights=[n for _, n in kept]):.6g}") if kept else None


def loss_remark(task: Task, log_history: list[dict], labels: list, logging_steps: int = 1) -> str | None:
    """A sentence on a training whose loss ended above where it began; None of any other."""
    steps = [entry["step"] for entry in log_history if "loss" in entry]
    if not steps:
        return None
    # The first and the last steps, between bounds that the log of an interrupted run has as well.
    began = mean_loss(log_history, to=max(steps[0], logging_steps))
    ended = mean_loss(log_history, after=0.9 * steps[-1] // logging_steps * logging_steps)
    if ended is None or ended <= began:
        return None
    constant = constant_loss(task, labels)
    has_diverged = ended > DIVERGED * max(began, constant)
    what, remedy = ("diverged", "lower") if has_diverged else ("has not helped", "change")
    return (
        f"The training {what}: its loss began at {began:.4g} and ended at {ended:.4g}, where constant predictions have "
        f"{constant:.4g}: {remedy} learning_rate."
    )


DIVERGED = 1.5  # times a loss: above the noise of a few batches


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
    """The Trainer with rows in a reproducible order, our own model card, and errors of the disk in one sentence."""

    def __init__(self, *args, group_by_length: bool, write_card: Callable[[], None], **kwargs):
        super().__init__(*args, **kwargs)
        self.group_by_length = group_by_length
        self.write_card = write_card
        # The library's rotation of checkpoints takes any folder called checkpoint-... for one.
        self.num_kept, self.args.save_total_limit = self.args.save_total_limit, None
        self.remove_callback(ProgressCallback)
        self.remove_callback(PrinterCallback)
        has_bars = not self.args.disable_tqdm and sys.stderr.isatty()
        if has_bars:
            self.add_callback(Bars())
        self.add_callback(TellProgress(has_bars))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        with writing(Path(self.args.output_dir)):
            super().save_model(output_dir, _internal_call)

    def _save_checkpoint(self, *args, **kwargs) -> None:
        with writing(Path(self.args.output_dir)):
            super()._save_checkpoint(*args, **kwargs)
        if self.num_kept is not None and self.args.should_save:
            self.remove_old_checkpoints(self.num_kept)

    def remove_old_checkpoints(self, num_kept: int) -> None:
        """Keep the best checkpoint and the newest, and others up to so many in all."""
        # One of a later step is what a kill left of the run that this one goes on from before.
        newest, *others = list_checkpoints(Path(self.args.output_dir), self.state.global_step)
        kept = {newest} | ({Path(self.state.best_model_checkpoint)} if self.state.best_model_checkpoint else set())
        for path in others:
            if path not in kept and len(kept) >= num_kept:
                shutil.rmtree(path)
            kept.add(path)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        Path(output_dir or self.args.output_dir, "training_args.bin").unlink(missing_ok=True)  # a pickle; run.json stays

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Nothing: the library would upload pickles and no card. The finished run is pushed as a whole."""

    def create_optimizer(self, *args, **kwargs) -> torch.optim.Optimizer:
        with told(f"`optim` {self.args.optim.value} cannot be used", "correct --optim or --trainer.optim_args"):
            return super().create_optimizer(*args, **kwargs)

    def create_scheduler(self, *args, **kwargs) -> torch.optim.lr_scheduler.LRScheduler:
        name = self.args.lr_scheduler_type.value
        with told(f"`lr_scheduler_type` {name} cannot be used", "correct it or --lr_scheduler_kwargs"):
            return super().create_scheduler(*args, **kwargs)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int]:
        args, lengths = self.args, self.train_dataset["length"][:] if self.group_by_length else None
        return EpochSampler(
            len(self.train_dataset),
            lengths,
            args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size,
            args.seed if args.data_seed is None else args.data_seed,
            # state.epoch counts with fractions; the margin is for the rounding of step / steps.
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


# ---------------------------------------------------------------------------------------------------------------------
# Callbacks


class StopEarly(EarlyStoppingCallback):
    """The library's early stopping, with the count taken from the log, so that a resumed run stops where it would have."""

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        self.early_stopping_patience_counter = evaluations_since_best(state, args.metric_for_best_model)

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        if args.metric_for_best_model in metrics:  # MNLI's second split is for the report alone
            super().on_evaluate(args, state, control, metrics, **kwargs)


def evaluations_since_best(state: TrainerState, metric: str) -> int:
    """How many evaluations came after the best one."""
    return sum(metric in entry and entry["step"] > (state.best_global_step or 0) for entry in state.log_history)


class SaveOnSignal(TrainerCallback):
    """On Ctrl-C or SIGTERM, save a checkpoint after the current step and end."""

    def __init__(self):
        self.received = 0  # the signal's number
        self.previous: dict[int, Callable | int | None] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.previous[number] = signal.signal(number, self.receive)

    def receive(self, number, frame):
        if self.received:  # a second Ctrl-C does not wait
            raise KeyboardInterrupt
        self.received = number

    def on_step_end(self, args, state, control, **kwargs):
        if args.world_size > 1:  # the signal reaches the processes at different steps
            number = torch.tensor(float(self.received), device=args.device)
            torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX)
            self.received = int(number.item())
        if self.received:
            control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.received and state.epoch % 1 > 1e-6:  # stopped within it: the run without a signal has no evaluation here
            control.should_evaluate = control.should_save = control.should_log = False

    def on_save(self, args, state, control, **kwargs):
        if self.received:  # the Trainer would load the best checkpoint, and remove the one to go on from
            state.best_model_checkpoint = None

    def train(self, trainer: Trainer, checkpoint: Path | None) -> None:
        """Train to the end, from a checkpoint if there is one; the trainer has this among its callbacks.

        Raises:
            Stopped: a signal came, and a checkpoint is saved.
        """
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        finally:
            self.restore_handlers()
        if self.received:
            raise Stopped(self.received, "Interrupted: a checkpoint is saved; give the same command again to go on.")

    def restore_handlers(self) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)


class StepTiming(TrainerCallback):
    """Measure the time of the optimizer steps, without evaluations and saving. The first ones warm up and do not count."""

    WARMUP = 5  # steps, where there are more

    def __init__(self, args: TrainingArguments):
        self.device = (
            torch.cuda.get_device_name() if args.device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
        )
        self.times: list[float] = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.began = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.times.append(time.perf_counter() - self.began)

    def measured(self) -> dict[str, object]:
        """The device, the steps since the run was started last, and their mean time.

        An accelerator queues its work: of a step's times, the mean alone means something.
        """
        counted = self.times[self.WARMUP :] or self.times
        seconds = float(f"{np.mean(counted):.4g}") if counted else None
        return {"device": self.device, "steps": len(counted), "seconds_per_step": seconds}


class LogAtSaves(TrainerCallback):
    """Log the training loss wherever a checkpoint or the run ends: a run that goes on would lose what is not logged."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_log |= control.should_save or control.should_training_stop

    def on_epoch_end(self, args, state, control, **kwargs):
        control.should_log |= control.should_save


class Bars(ProgressCallback):
    """The library's bars, without a dict for each logged loss."""

    def on_log(self, args, state, control, **kwargs):
        pass


class TellProgress(TrainerCallback):
    """One readable line per evaluation; where there are no bars, as in a log, lines between them that grow rarer."""

    def __init__(self, has_bars: bool):
        self.has_bars = has_bars
        self.loss: float | None = None
        self.batches = 0  # of the evaluation under way
        self.started = self.told = time.monotonic()

    def tell(self, line: str) -> None:
        """Write a line beside the bars."""
        self.told = time.monotonic()
        if self.has_bars:
            tqdm.write(line, file=sys.stderr)
        else:
            logger.warning("%s", line)

    def tell_rarely(self, line: str) -> None:
        """Write a line if none was written for 5 seconds, and in long runs for the 50th part of the time so far."""
        now = time.monotonic()
        if not self.has_bars and now - self.told > max(5, (now - self.started) / 50):
            self.tell(line)

    def on_step_end(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            loss = "" if self.loss is None else f", training loss {self.loss:.4g}"
            self.tell_rarely(f"Step {state.global_step:,} of {state.max_steps:,}{loss}")

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        self.batches += 1
        if state.is_world_process_zero:
            self.tell_rarely(f"Evaluation: batch {self.batches:,} of {len(eval_dataloader):,}")

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        self.batches = 0
        if state.is_world_process_zero:
            values = {name: value for name, value in (metrics or {}).items() if not name.endswith(TIMINGS)}
            values |= {} if self.loss is None else {"training loss": self.loss}
            described = ", ".join(f"{name} {value:.4g}" for name, value in values.items() if name != "epoch")
            self.tell(f"Epoch {state.epoch or 0:.4g}, step {state.global_step:,} of {state.max_steps:,}: {described}")

    def on_predict(self, args, state, control, **kwargs):
        self.batches = 0

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.loss = (logs or {}).get("loss", self.loss)


# The ends of the names of an evaluation's timings.
TIMINGS = ("_runtime", "_samples_per_second", "_steps_per_second", "_model_preparation_time")
