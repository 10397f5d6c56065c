# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""transformers' Seq2SeqTrainer with batches by tokens, the optimizers of section 4.2, and a loss over all tokens."""

import bisect
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from torch.utils.data import DataLoader
from transformers import DataCollatorForSeq2Seq, EvalPrediction, Seq2SeqTrainer, TrainerCallback

from finetuning.encoding import IGNORED_LABEL
from finetuning.run_folder import list_checkpoints
from finetuning.trainer import FinetuningTrainer
from finetuning.translation.arguments import TranslationOptions
from finetuning.translation.batches import EpochBatches
from finetuning.translation.vocabulary import decode

MODEL_INPUTS = ("input_ids", "labels")


def make_loss(label_smoothing: float) -> Callable:
    """Cross-entropy with label smoothing: the mean over the tokens of the whole update, however it is divided."""

    def loss(outputs, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int) -> torch.Tensor:
        logits = outputs["logits"].float().flatten(0, 1)
        options = {"ignore_index": IGNORED_LABEL, "reduction": "sum", "label_smoothing": label_smoothing}
        return nn.functional.cross_entropy(logits, labels.flatten(), **options) / num_items_in_batch

    return loss


class PairCollator(DataCollatorForSeq2Seq):
    """The library's batches, whose decoder input is the target moved right; without targets where there are none."""

    def __call__(self, features: list[dict], return_tensors: str | None = None) -> dict[str, torch.Tensor]:
        batch = super().__call__(features, return_tensors)
        return {name: tensor for name, tensor in batch.items() if tensor is not None}


class ClipEachParameter(TrainerCallback):
    """Clip the gradient of each parameter by its own norm, as the official code does."""

    def __init__(self, max_norm: float):
        self.max_norm = max_norm

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        for parameter in model.parameters():
            if parameter.grad is not None:
                nn.utils.clip_grad_norm_([parameter], self.max_norm)


class TranslationTrainer(FinetuningTrainer, Seq2SeqTrainer):
    """The Trainer of pairs.

    Args:
        options: of the run.
        batches: of `make_batches`, with the rows of the training dataset.
        others: what Seq2SeqTrainer takes.
    """

    def __init__(self, options: TranslationOptions, batches: list[np.ndarray], **others):
        self.options, self.batches = options, batches
        super().__init__(
            data_collator=PairCollator(others["processing_class"], model=others["model"], label_pad_token_id=IGNORED_LABEL),
            compute_loss_func=make_loss(options.label_smoothing_factor),
            compute_metrics=mean_over_tokens,
            group_by_length=False,
            **others,
        )
        if options.optimizer == "apollo":
            from pytorch_optimizer import ApolloDQN

            values = {"lr": options.learning_rate, "init_lr": options.apollo_initial_lr, "beta": options.apollo_beta}
            values |= {"eps": options.apollo_epsilon, "warmup_steps": options.warmup_steps, "weight_decay_type": "l2"}
            self.optimizer_cls_and_kwargs = (ApolloDQN, values)
        if options.clip_each_parameter:
            self.add_callback(ClipEachParameter(options.clip_each_parameter))

    # Batches

    def get_train_dataloader(self) -> DataLoader:
        args = self.args
        sampler = EpochBatches(
            self.batches,
            args.seed,
            # state.epoch counts with fractions; the margin is for the rounding of step / steps.
            lambda: math.floor((self.state.epoch or 0) + 1e-6),
            args.process_index,
            args.world_size,
        )
        return DataLoader(
            self.train_dataset,
            batch_sampler=sampler,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
        )

    # Optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        """As in the library; Apollo warms up by itself, and its learning rate falls to a tenth at each milestone."""
        if self.options.optimizer != "apollo":
            return super().create_scheduler(num_training_steps, optimizer)
        if self.lr_scheduler is None:
            milestones = sorted(self.options.apollo_milestones)
            factor = lambda step: 0.1 ** bisect.bisect_right(milestones, step)  # noqa: E731
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, factor)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    # Checkpoints

    def remove_old_checkpoints(self, num_kept: int) -> None:
        """Keep the newest checkpoint, and those that the mean is of: one more after a signal does not push them out."""
        _, *others = list_checkpoints(Path(self.args.output_dir), self.state.global_step)
        kept = self.checkpoints_to_average()
        for path in others:
            if path not in kept:
                shutil.rmtree(path)

    def checkpoints_to_average(self) -> list[Path]:
        """The last checkpoints at the places where a run without interruptions has them, the newest first."""
        interval = self.options.save_steps
        if self.options.save_strategy == "epoch":
            interval = len(self.batches) // self.options.batches_per_step
        paths = list_checkpoints(Path(self.args.output_dir), self.state.global_step)
        steps = {path: int(path.name.removeprefix("checkpoint-")) for path in paths}
        due = [path for path, step in steps.items() if step % interval == 0 or step == self.state.max_steps]
        return due[: self.options.num_averaged_checkpoints]

    # Evaluation

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None, **generation):
        """Each row's sum of the tokens' losses (nats) and its number of tokens, (b, 1) both; or its translation."""
        if self.args.predict_with_generate:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys, **generation)
        inputs = self._prepare_inputs(inputs)
        labels = inputs.pop("labels")
        with torch.no_grad(), self.compute_loss_context_manager():
            logits = model(**inputs, use_cache=False)["logits"].float()
            losses = nn.functional.cross_entropy(logits.mT, labels, ignore_index=IGNORED_LABEL, reduction="none")
        return None, losses.double().sum(1, keepdim=True), (labels != IGNORED_LABEL).sum(1, keepdim=True)

    def translate(self, rows: Dataset) -> list[str]:
        """Translate the rows, in their order: by beam search, rows of similar length together, over all processes."""
        order = np.argsort(-np.asarray(rows["source_length"][:]), kind="stable")
        args, measure = self.args, self.compute_metrics
        args.predict_with_generate, self.compute_metrics = True, None
        try:
            # The longest length of a batch would otherwise be the model's default.
            lengths = {"max_length": self.options.generation_max_length, "num_beams": self.options.num_beams}
            sorted_rows = rows.select_columns(["input_ids"]).select(order)
            ids = self.predict(sorted_rows, length_penalty=self.options.length_penalty, **lengths).predictions
        finally:
            args.predict_with_generate, self.compute_metrics = False, measure
        ids = np.where(ids < 0, self.processing_class.pad_token_id, ids)  # processes fill up with -100
        texts = decode(self.processing_class, ids)
        return [texts[place] for place in np.argsort(order)]


def mean_over_tokens(prediction: EvalPrediction) -> dict[str, float]:
    """The loss in nats per token, over all rows however they were divided into batches, and its exponential."""
    loss = float(prediction.predictions.sum() / prediction.label_ids.sum())
    return {"loss": loss, "perplexity": math.exp(min(loss, 700))}
