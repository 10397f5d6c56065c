# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The loss, the order of the rows, what is counted and logged, and the Trainer's arguments."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import EarlyStoppingCallback, TrainerControl, TrainerState

from finetuning.tasks import TASKS
from finetuning.trainer import (
    EpochSampler,
    FinetuningTrainer,
    StopEarly,
    constant_loss,
    evaluations_since_best,
    loss_remark,
    make_loss,
    make_training_arguments,
    mean_loss,
)
from finetuning.trainer import (
    test_key as result_of_tests,
)
from tests.support.finetuning import arguments_of


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=60),
    batch_size=st.integers(1, 9),
    seed=st.integers(0, 99),
    epoch=st.integers(0, 9),
    grouped=st.booleans(),
)
def test_an_epoch_is_a_permutation_that_seed_and_epoch_fix(lengths, batch_size, seed, epoch, grouped):
    def order(seed, epoch):
        torch.rand(1)  # what else draws from the global generator does not matter
        return list(EpochSampler(len(lengths), lengths if grouped else None, batch_size, seed, lambda: epoch))

    first = order(seed, epoch)
    assert sorted(first) == list(range(len(lengths))) and first == order(seed, epoch)


def test_grouping_puts_rows_of_similar_length_together():
    lengths = torch.randint(1, 500, (800,), generator=torch.Generator().manual_seed(0)).tolist()

    def padding(lengths_given, epoch=0):
        order = list(EpochSampler(800, lengths_given, 8, 0, lambda: epoch))
        batches = [[lengths[i] for i in order[start : start + 8]] for start in range(0, 800, 8)]
        return sum(max(batch) * 8 - sum(batch) for batch in batches)

    assert padding(lengths) < padding(None) / 5
    assert list(EpochSampler(800, lengths, 8, 0, lambda: 0)) != list(EpochSampler(800, lengths, 8, 0, lambda: 1))


def test_early_stopping_counts_the_split_that_picks_the_checkpoint(monkeypatch):
    """MNLI has two validation splits, and the Trainer tells of both."""
    counted = []
    monkeypatch.setattr(EarlyStoppingCallback, "on_evaluate", lambda *args, **kwargs: counted.append(args[-1]))
    args = SimpleNamespace(metric_for_best_model="eval_validation_matched_accuracy")
    log = [{f"eval_validation_{split}_accuracy": 0.5} for split in ("matched", "mismatched")]
    for metrics in log:
        StopEarly(2).on_evaluate(args, TrainerState(), TrainerControl(), metrics=metrics)
    assert counted == log[:1]
    state = TrainerState(log_history=[entry | {"step": step} for step in (4, 8, 12) for entry in log], best_global_step=4)
    assert evaluations_since_best(state, args.metric_for_best_model) == 2


def test_the_loss_is_that_of_torch():
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, -100, 1, 0])
    expected = -logits.log_softmax(-1)[[0, 1, 2, 4, 5], labels[labels >= 0]].mean()
    loss = make_loss(TASKS["mnli"])
    torch.testing.assert_close(loss({"logits": logits}, labels), expected)
    torch.testing.assert_close(loss({"logits": logits}, labels, num_items_in_batch=torch.tensor(5)), expected)
    smooth = make_loss(TASKS["mnli"], 0.3)({"logits": logits}, labels)
    torch.testing.assert_close(smooth, 0.7 * expected - 0.3 * logits.log_softmax(-1)[labels >= 0].mean())
    values, targets = torch.tensor([[1.0], [2.0]]), torch.tensor([0.0, 4.0])
    assert make_loss(TASKS["stsb"])({"logits": values}, targets).item() == 2.5


def test_constant_predictions_have_the_loss_of_torch():
    for task_name, labels, scores in (
        ("sst2", [0, 1, 1, 1], [math.log(1 / 4), math.log(3 / 4)]),
        ("stsb", [0.0, 1.0, 5.0], [2.0]),
        ("race", [0, 1, 2, 3], [0.0] * 4),
    ):
        outputs = {"logits": torch.tensor([scores] * len(labels))}
        expected = make_loss(TASKS[task_name])(outputs, torch.tensor(labels)).item()
        assert constant_loss(TASKS[task_name], labels) == pytest.approx(expected)
    assert constant_loss(TASKS["sst2"], [[-100, 0, 1], [-100, 1, 0, -100]]) == pytest.approx(math.log(2))  # -100: no tag


@pytest.mark.parametrize(
    ("losses", "start"),
    [
        ([0.7, 5.0, 8291.0], "The training diverged: its loss began at 0.7 and ended at 8291, where constant predictions"),
        ([0.7, 0.9, 0.8, 0.72], "The training has not helped: its loss began at 0.7 and ended at 0.72, where constant pred"),
        ([0.1, 0.3, 0.5], "The training has not helped: "),  # still better than constant predictions
        *(([0.7, 9.0, 0.5], None), ([9.0, 6.0], None), ([], None)),
    ],
)
def test_a_loss_that_ended_above_where_it_began_is_told(losses, start):
    log = [{"step": step, "loss": loss} for step, loss in enumerate(losses, start=1)] + [{"step": 9, "eval_loss": 1e9}]
    sentence = loss_remark(TASKS["sst2"], log, [0, 1] * 8)
    assert sentence is start or sentence.startswith(start)


def test_an_interruption_does_not_change_what_is_told_of_the_loss():
    """It is one more step at which the mean since the last one is logged."""
    losses = [(step % 7 + step) / 40 for step in range(1, 41)]

    def told(bounds):
        spans = zip([0, *bounds], bounds, strict=False)
        log = [{"step": end, "loss": sum(losses[start:end]) / (end - start)} for start, end in spans]
        return loss_remark(TASKS["sst2"], log, [0, 1] * 8, logging_steps=3)

    bounds = [*range(3, 40, 3), 40]
    assert {told(sorted({*bounds, step})) for step in range(1, 41)} == {told(bounds)} != {None}


def test_the_mean_loss_is_over_steps():
    log = [{"step": 4, "loss": 1.0}, {"step": 4, "eval_loss": 9.0}, {"step": 5, "loss": 6.0}]
    assert mean_loss(log) == 2.0 and mean_loss([{"step": 1, "eval_loss": 1.0}]) is None


def test_options_reach_the_trainer(tmp_path):
    options = {"lr_scheduler_kwargs": {"power": 2.0}, "lr_scheduler_type": "polynomial", "gradient_checkpointing": True}
    options |= {"trainer": {"ddp_bucket_cap_mb": 7}, "metric_for_best_model": "loss", "total_train_batch_size": 12}
    args = make_training_arguments(arguments_of("sst2", model_name_or_path="m", output_dir=tmp_path, **options))
    assert (args.lr_scheduler_kwargs, args.lr_scheduler_type.value) == ({"power": 2.0}, "polynomial")
    assert getattr(args, "activation_checkpointing", None) or args.gradient_checkpointing
    assert (args.ddp_bucket_cap_mb, args.metric_for_best_model, args.greater_is_better) == (7, "eval_loss", False)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps, args.learning_rate) == (6, 2, 1e-3)
    assert args.eval_strategy.value == args.save_strategy.value == "epoch" and args.logging_steps == 0.005


def test_a_checkpoint_that_a_kill_cut_off_takes_no_other_with_it(tmp_path):
    """One of a later step than the one that is saved now is not the newest."""
    trainer = object.__new__(FinetuningTrainer)
    trainer.args, trainer.state = SimpleNamespace(output_dir=tmp_path), TrainerState(global_step=9)
    for step in (5, 9, 12):
        (tmp_path / f"checkpoint-{step}").mkdir()
    trainer.remove_old_checkpoints(1)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-9", "checkpoint-12"}


def test_a_task_without_test_rows_has_no_test_result():
    assert result_of_tests(TASKS["text"]) is None and result_of_tests(TASKS["sst2"]) == "test_accuracy"
