# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""One run: load data and checkpoint, train, evaluate, predict, and write everything that a reader of the result needs."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_model as load_model_weights
from transformers import AutoModel, EvalPrediction, PreTrainedConfig, TrainerState, TrainingArguments, set_seed

from finetuning.arguments import Arguments
from finetuning.encoding import encode, make_collator
from finetuning.metrics import compute_metrics, decide, metric_names
from finetuning.model import checkpoint_labels, fit_config, load_config, load_model, load_tokenizer, sequence_limit
from finetuning.model_card import make_model_card
from finetuning.plots import plot_confusion_matrix, plot_learning_curve, plot_regression
from finetuning.predictions import write_predictions, write_submission
from finetuning.run_folder import check_output_dir, describe, find_checkpoint, list_checkpoints, read_json, read_results
from finetuning.tasks import Task, TaskData
from finetuning.tasks.task import class_names
from finetuning.trainer import (
    TIMINGS,
    FinetuningTrainer,
    LogAtSaves,
    SaveOnSignal,
    StepTiming,
    StopEarly,
    check_best_metric,
    evaluations_since_best,
    loss_remark,
    make_loss,
    make_training_arguments,
    mean_loss,
    metric_prefix,
)
from luna_tools.errors import InputError, told
from luna_tools.files import write_json, writing

logger = logging.getLogger(__name__)

SMALL = 60_000_000  # parameters; for fewer, the recipes' learning rates, made for 130 million, are too low


def fit_recipe(arguments: Arguments) -> Arguments:
    """Set what the recipe `small` leaves open: the learning rate by the model's size and the epochs by the rows."""
    found = {}
    if arguments.run.recipe == "small" and arguments.run.do_train:
        config = load_config(arguments)
        if "learning_rate" not in arguments.given:
            what = f"{arguments.model.model_name_or_path} ({config.model_type}) cannot be built"
            with told(what, "give --learning_rate, or another checkpoint"), torch.device("meta"):
                model = AutoModel.from_config(config, trust_remote_code=arguments.model.trust_remote_code)
            found["learning_rate"] = learning_rate_for(model.num_parameters())
        if not arguments.given & {"num_train_epochs", "max_steps"}:
            found["num_train_epochs"] = epochs_for(len(load_data(config, arguments).splits["train"]))
    return replace(arguments, training=replace(arguments.training, **found))


def learning_rate_for(parameters: int) -> float:
    """5e-4 up to 10 million parameters; above, it falls, to Table 9's 1e-5 at 130 million."""
    return float(f"{5e-4 * min(1, 1e7 / parameters) ** 1.5:.1e}")


def epochs_for(rows: int) -> float:
    """About 800 steps of 32 rows, but at least 3 epochs and at most 100."""
    return float(min(100, max(3, round(25_600 / rows))))


def finetune(arguments: Arguments) -> dict:
    """Train, evaluate and predict; returns the results, which `all_results.json` in the output folder holds as well.

    A finished run is not run again, but for evaluation or prediction that it left out; an interrupted one goes on from
    its newest checkpoint.

    Raises:
        InputError: wrong input, in one sentence.
        Stopped: a signal came; the same call goes on later.
    """
    args = make_training_arguments(arguments)
    output_dir = Path(args.output_dir)
    description = describe(arguments, args)
    check_output_dir(output_dir, description)
    results = read_results(output_dir)
    finished = set(read_json(output_dir / "run.json").get("finished", ())) if results is not None else set()
    if args.world_size > 1:
        torch.distributed.barrier()  # all have looked before the first one writes
    options = arguments.run
    asked = {"training": options.do_train, "evaluation": options.do_eval, "prediction": options.do_predict}
    due = {phase for phase, is_asked in asked.items() if is_asked} - finished
    if results is not None:
        due -= {"training"}
        if not due:
            logger.warning("%s is finished.", output_dir)
            return results
        logger.warning("%s is finished but for: %s.", output_dir, ", ".join(sorted(due)))
        if options.do_train:
            saved = {"model_name_or_path": str(output_dir), "random_weights": False, "ignore_mismatched_sizes": False}
            arguments = replace(arguments, model=replace(arguments.model, **saved))
    arguments = replace(arguments, run=replace(options, do_train="training" in due))
    set_seed(args.seed)
    run = Run(arguments, args, description, results or {})
    run.begin(finished)
    if "training" in due:
        run.train()
    if "evaluation" in due:
        run.evaluate()
    if "prediction" in due:
        run.predict()
    run.finish(finished | due - {"training"})
    run.push()
    return run.results


class Run:
    """A run whose phases are called in order: `begin`, `train`, `evaluate`, `predict`, `finish`, `push`.

    Args:
        arguments: of what is due now; `description` is that of the whole run, and `results` those of what was done before.

    Raises:
        InputError: the checkpoint, the data or the options do not go together.
    """

    def __init__(self, arguments: Arguments, args: TrainingArguments, description: dict, results: dict):
        self.arguments, self.args, self.description, self.results = arguments, args, description, results
        self.output_dir = Path(args.output_dir)
        config = load_config(arguments)
        tell_unread(config, arguments)
        self.tokenizer = load_tokenizer(config, arguments)
        if arguments.task.kind == "token_classification":
            self.tokenizer.padding_side = "right"  # then a word's tokens are at the same place in every batch
        self.data = load_data(config, arguments)
        self.task = self.data.task
        if arguments.run.do_predict:
            self.task.check_submission(self.data)
        check_best_metric(self.task, args)
        fit_config(config, self.data, arguments)
        self.model = load_model(config, self.task, arguments)
        self.suggest_small()
        self.tokenizer.model_max_length = self.input_length()  # saved, so that a pipeline cuts as the training did
        self.encoded = encode(self.data, self.tokenizer, self.tokenizer.model_max_length, arguments.data.max_option_length)
        self.trainer = self.make_trainer()
        self.check_forward()

    def suggest_small(self) -> None:
        """Say so where the default learning rate is for far larger models."""
        run, parameters = self.arguments.run, self.model.num_parameters()
        if self.arguments.model.is_new:
            return
        if run.do_train and run.recipe != "small" and "learning_rate" not in self.arguments.given and 0 < parameters < SMALL:
            logger.warning(
                "The learning rate %g is for larger models than this one of %.1f million parameters: try --recipe small.",
                self.args.learning_rate,
                parameters / 1e6,
            )

    def input_length(self) -> int:
        """The longest input in tokens.

        Raises:
            InputError: the user gave more than the model reads.
        """
        limit, length = sequence_limit(self.model, self.tokenizer), self.arguments.data.max_sequence_length
        if length > limit and "max_sequence_length" in self.arguments.given:
            raise InputError(
                f"`max_sequence_length` is {length}, but {self.arguments.model.name} reads at most {limit} tokens: give no "
                "more, or leave it out."
            )
        return min(length, limit)

    def make_trainer(self) -> FinetuningTrainer:
        """The Trainer of this run, with its callbacks."""
        task, args, run = self.task, self.args, self.arguments.run
        # With several validation splits the Trainer prefixes a metric with the split's name.
        evaluation = {name: self.encoded[name] for name in task.validation_splits if name in self.encoded}
        if len(task.validation_splits) == 1:
            evaluation = next(iter(evaluation.values()), None)
        if not run.do_train:
            args.eval_strategy = "no"  # between the epochs; the Trainer would ask for a validation split
        if self.model.config.model_type == "luna" and args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = False  # each of its parameters has a gradient
        self.on_signal, self.timing, callbacks = SaveOnSignal(), StepTiming(args), []
        if run.early_stopping_patience is not None and run.do_train:
            callbacks.append(StopEarly(run.early_stopping_patience))
        if args.should_save:
            self.output_dir.mkdir(parents=True, exist_ok=True)
        pad_to_multiple_of = 8 if args.fp16 or args.bf16 else None
        with told("The Trainer cannot start", "correct the options"):
            return FinetuningTrainer(
                model=self.model,
                args=args,
                train_dataset=self.encoded["train"] if run.do_train else None,
                eval_dataset=evaluation,
                processing_class=self.tokenizer,
                data_collator=make_collator(task, self.tokenizer, pad_to_multiple_of=pad_to_multiple_of),
                compute_loss_func=make_loss(task, args.label_smoothing_factor),
                compute_metrics=self.measure,
                callbacks=[self.on_signal, self.timing, LogAtSaves(), *callbacks],
                group_by_length=run.group_by_length,
                write_card=self.write_card,
            )

    def measure(self, prediction: EvalPrediction) -> dict[str, float]:
        """The metrics, and the loss over all rows: the Trainer's own mean depends on how they are divided into batches."""
        logits, labels = first(prediction.predictions), prediction.label_ids
        whole = make_loss(self.task)({"logits": torch.from_numpy(logits)}, torch.from_numpy(labels)).item()
        return {"loss": whole} | compute_metrics(self.task, logits, labels)

    def check_forward(self) -> None:
        """Run the model on one row, so that one that does not take the task's inputs is refused before the training."""
        if self.trainer.is_deepspeed_enabled:  # its weights are in parts until the training starts
            return
        model, kind = self.model.eval(), self.task.kind.replace("_", " ")
        batch = self.trainer.data_collator([next(iter(self.encoded.values()))[0]])
        what = f"{self.arguments.model.name} ({model.config.model_type}) cannot do {kind}"
        with told(what, "give another checkpoint"), torch.no_grad():
            model(**{name: tensor.to(model.device) for name, tensor in batch.items() if name != "labels"})["logits"]

    def begin(self, finished: set[str]) -> None:
        """Make the folder this run's."""
        with writing(self.output_dir):
            if self.args.should_save:
                self.write_description(finished)

    def write_description(self, finished: set[str]) -> None:
        """Write what tells the run from others, and besides what its options come from and what is finished."""
        options = {"recipe": self.arguments.run.recipe, "given": sorted(self.arguments.given)}
        write_json(self.output_dir / "run.json", self.description | options | {"finished": sorted(finished)})

    def train(self) -> None:
        """Train to the end, from the newest checkpoint if there is one.

        Raises:
            Stopped: a signal came, and a checkpoint is saved.
        """
        trainer, checkpoint = self.trainer, find_checkpoint(self.output_dir, self.args.world_size)
        if checkpoint is not None and is_trained(checkpoint, trainer):
            trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
            best = trainer.state.best_model_checkpoint if self.args.load_best_model_at_end else None
            load_model_weights(trainer.model, Path(best or checkpoint) / "model.safetensors")
        else:
            if checkpoint is not None:
                logger.warning("Going on from %s.", checkpoint)
            self.on_signal.train(trainer, checkpoint)
        state = trainer.state
        losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
        self.results |= {
            "train_loss": mean_loss(state.log_history),
            "last_train_loss": losses[-1] if losses else None,
            "train_steps": state.global_step,
            "train_epochs": state.epoch,
            "best_step": state.best_global_step,
            "train_samples": len(trainer.train_dataset),
        }
        labels = self.encoded["train"]["labels"][:]
        self.remark(loss_remark(self.task, state.log_history, labels, state.logging_steps))

    def remark(self, sentence: str | None) -> None:
        """Log a sentence that whoever uses the model must know, and add it to the results, for the card."""
        if sentence:
            self.results["warning"] = " ".join(filter(None, (self.results.get("warning"), sentence)))
            logger.warning("warning: %s", sentence)

    def evaluate(self) -> None:
        """Metrics of the validation splits, with predictions and a picture of each."""
        for split in self.task.validation_splits:
            if split in self.encoded:
                prefix = metric_prefix(self.task, split)
                logits, labels = self.apply(split, prefix)
                self.remark(one_class_remark(self.task, split, logits, labels))
                if self.args.should_save:
                    draw(self.task, self.output_dir, split, logits, labels)

    def predict(self) -> None:
        """Predictions of the test splits, metrics where their labels are published, and what a benchmark's server wants."""
        scores = {split: self.apply(split, split)[0] for split in self.task.test_splits if split in self.encoded}
        if scores and self.task.submission_files and self.args.should_save:
            with writing(self.output_dir):
                write_submission(self.output_dir, self.data, scores)

    def apply(self, split: str, prefix: str) -> tuple[np.ndarray, np.ndarray | None]:
        """Write a split's predictions and add its metrics to the results; returns its logits and labels."""
        rows = self.encoded[split]
        output = self.trainer.predict(rows, metric_key_prefix=prefix)
        logits = first(output.predictions)
        if self.args.should_save:
            first_tokens = rows["first_tokens"][:] if "first_tokens" in rows.column_names else None
            with writing(self.output_dir):
                write_predictions(self.output_dir, self.data, split, logits, first_tokens)
        if output.label_ids is not None:
            self.results |= own_metrics(output.metrics, prefix)
        self.results[f"{prefix}_samples"] = len(rows)
        return logits, output.label_ids

    def finish(self, finished: set[str]) -> None:
        """Write model, tokenizer, card, learning curve, and last `all_results.json`, which marks the run as finished."""
        if self.arguments.run.do_train:
            self.trainer.save_model(str(self.output_dir), _internal_call=True)  # a call by a user would push, too early
        if self.args.should_save:
            with writing(self.output_dir):
                if self.arguments.run.do_train:
                    self.write_state()
                    write_json(self.output_dir / "timing.json", self.timing.measured())
                if self.description["do_train"]:
                    self.write_card()
                self.write_description(finished)
                write_json(self.output_dir / "all_results.json", self.results)
            for checkpoint in list_checkpoints(self.output_dir):  # the best one is the model now
                shutil.rmtree(checkpoint)
        self.trainer.accelerator.wait_for_everyone()

    def write_state(self) -> None:
        """Write the log of the training, and its picture."""
        state, smoothing = self.trainer.state, self.args.label_smoothing_factor
        best = state.best_model_checkpoint
        state.best_model_checkpoint = best and Path(best).name  # the folder's place is nobody's business
        state.save_to_json(str(self.output_dir / "trainer_state.json"))
        plot_learning_curve(
            self.output_dir / "learning_curve.png",
            state.log_history,
            metric_names(self.task),
            self.task.title,
            best_step=state.best_global_step,
            loss_name=loss_name(self.task, smoothing),
        )

    def push(self) -> None:
        """Upload the finished run, where that is asked for."""
        if not self.args.push_to_hub:
            return
        try:
            self.trainer.push_to_hub()
        except Exception as error:  # whatever the network does, the run is finished
            name = self.trainer.hub_model_id or "org/name"
            raise InputError(
                f"The finished run in {self.output_dir} was not pushed ({' '.join(str(error).split())}): mend that, then "
                f"upload it with `luna push {self.output_dir} {name}`."
            ) from error

    def write_card(self) -> None:
        """Write README.md from what is known of the run."""
        make_model_card(
            self.args.hub_model_id or self.output_dir.name,
            self.data,
            self.results or read_results(self.output_dir) or {},
            self.description,
            self.trainer.model.config,
            self.tokenizer.model_max_length,
            pictures=tuple(sorted(path.name for path in self.output_dir.glob("*.png"))),
            license=self.arguments.run.license,
            language=self.arguments.run.language,
        ).save(self.output_dir / "README.md")


def tell_unread(config: PreTrainedConfig, arguments: Arguments) -> None:
    """Say which of the recipe's values are no fields of this architecture."""
    unread = [name for name in arguments.model.config_overrides() if not hasattr(config, name)]
    if unread:
        logger.warning("The recipe's %s do not apply to %s.", ", ".join(unread), config.model_type)


def load_data(config: PreTrainedConfig, arguments: Arguments) -> TaskData:
    """The task's splits that this run needs; a fine-tuned checkpoint's labels name the classes of custom rows to predict."""
    task, options = arguments.task, arguments.data
    if task.name == "custom":
        if options.class_names is None and options.train_file is None:
            options = replace(options, class_names=checkpoint_labels(config))
        data = task.load(options)
    else:
        data = task.load(Path(options.data_dir) if options.data_dir else None)
    if arguments.run.do_train and "train" not in data.splits:
        raise InputError(
            f"{task.name} has no train rows here: give --train_file, or --no_do_train to use the checkpoint as it is."
        )
    return data


def is_trained(checkpoint: Path, trainer: FinetuningTrainer) -> bool:
    """Whether a checkpoint is the last of its training, from which the Trainer would go on by at least one step."""
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    patience = [c.early_stopping_patience for c in trainer.callback_handler.callbacks if isinstance(c, StopEarly)]
    since_best = evaluations_since_best(state, trainer.args.metric_for_best_model)
    return state.global_step >= state.max_steps or any(since_best >= number for number in patience)


def first(predictions) -> np.ndarray:
    """The logits, of a model that returns more besides."""
    return predictions[0] if isinstance(predictions, tuple) else predictions


def own_metrics(metrics: dict, prefix: str) -> dict:
    """Without the Trainer's timings, so that equal runs have equal results."""
    return {name: value for name, value in metrics.items() if name.startswith(prefix) and not name.endswith(TIMINGS)}


def one_class_remark(task: Task, split: str, logits: np.ndarray, labels: np.ndarray) -> str | None:
    """A sentence on predictions that are all the same class, option or tag though the labels differ; None of any others."""
    known = labels != -100  # tokens without a tag
    predicted = np.unique(decide(task, logits)[known])
    if task.kind == "regression" or len(predicted) > 1 or len(np.unique(labels[known])) == 1:
        return None
    name = class_names(task, logits.shape[-1])[predicted[0]]
    return f"All predictions of the split {split!r} are {name!r}: the model tells nothing apart, so train longer."


def draw(task: Task, output_dir: Path, split: str, logits: np.ndarray, labels: np.ndarray) -> None:
    """Draw a split's predictions against its labels."""
    if task.kind == "regression":
        plot_regression(output_dir / f"predictions_{split}.png", labels, logits.reshape(-1), f"{task.title}, {split}")
        return
    known, names = labels != -100, class_names(task, logits.shape[-1])  # tokens without a tag
    path = output_dir / f"confusion_matrix_{split}.png"
    plot_confusion_matrix(path, labels[known], decide(task, logits)[known], names, f"{task.title}, {split}")


def loss_name(task: Task, label_smoothing: float) -> str:
    """The learning curve's, with its unit."""
    if task.kind == "regression":
        return "squared error"
    return "cross-entropy (nats)" + (f"\nin training with label smoothing {label_smoothing:g}" if label_smoothing else "")
