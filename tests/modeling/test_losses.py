# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The losses of all heads: those of torch, summed over micro-batches, in the Trainer, and with labels of a wrong shape."""

import math
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments, default_data_collator

from tests.support import naive
from tests.support.luna_builders import TOLERANCE, assert_close, ids_of, pad_batch, random_ids
from tests.support.models import ANSWERER, CHOICE, CLASSIFIER, MASKED_LM, TAGGER, each_option

TEXT = random_ids(9, seed=3)
FOUR = pad_batch([random_ids(n, n) for n in (9, 2, 5, 3)])
VALUES = torch.tensor([[0.5, -1.0, 2.0], [1.5, 0.0, -0.5], [-2.0, 1.0, 0.25], [0.75, -0.25, 1.0]])
SOME_TOKENS = (FOUR["attention_mask"] == 0) | (FOUR["input_ids"] % 4 == 0)


def over_tokens(logits, labels, reduction="mean"):
    return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction=reduction)


def of_a_column(logits, labels, reduction="mean"):
    return nn.functional.mse_loss(logits[:, 0], labels, reduction=reduction)


# Row, fields of the config, labels, and the loss of `labels` in plain torch with reduction "mean" or "sum".
LOSSES = {
    "masked tokens": (MASKED_LM, {}, FOUR["input_ids"].masked_fill(SOME_TOKENS, -100), over_tokens),
    "single label": (
        CLASSIFIER,
        {"problem_type": "single_label_classification"},
        torch.tensor([2, 0, -100, 1]),
        nn.functional.cross_entropy,
    ),
    "multi label": (
        CLASSIFIER,
        {"problem_type": "multi_label_classification"},
        (VALUES > 0).float(),
        nn.functional.binary_cross_entropy_with_logits,
    ),
    "regression": (CLASSIFIER, {"num_labels": 1, "problem_type": "regression"}, VALUES[:, 0], of_a_column),
    "regression with a column of values": (
        CLASSIFIER,
        {"num_labels": 1, "problem_type": "regression"},
        VALUES[:, :1],
        nn.functional.mse_loss,
    ),
    "regression of several values": (CLASSIFIER, {"problem_type": "regression"}, VALUES, nn.functional.mse_loss),
    "multiple choice": (CHOICE, {}, torch.tensor([1, -100, 0, 1]), nn.functional.cross_entropy),
    "tags": (TAGGER, {}, (FOUR["input_ids"] % 3).masked_fill(SOME_TOKENS, -100), over_tokens),
}
WITH_GAPS = [case for case, (_, _, labels, _) in LOSSES.items() if (labels == -100).any()]
each_loss = pytest.mark.parametrize("case", LOSSES)


def build_for(case, **changes):
    row, fields = (ANSWERER, {}) if case == "question answering" else LOSSES[case][:2]
    return row.build(attention="sdpa", **({"output_logits": True} | fields | changes))


def inputs_of(row):
    """Four rows, for multiple choice of two candidates each."""
    return {name: torch.stack([x, x.flip(0)], dim=1) for name, x in FOUR.items()} if row.takes_choices else FOUR


def loss_and_gradients(model, **inputs):
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    return loss.detach(), [parameter.grad.clone() for parameter in model.parameters()]


# ---------------------------------------------------------------------------------------------------------------------
# Values


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@each_loss
def test_loss_is_that_of_torch_in_float32(case, dtype):
    row, _, labels, torch_loss = LOSSES[case]
    output = build_for(case, dtype=dtype)(**inputs_of(row), labels=labels)
    assert output.loss.ndim == 0 and output.loss.dtype == torch.float32
    assert_close(output.loss, torch_loss(output.logits.float(), labels), 1e-6)


@pytest.mark.parametrize(("case", "output_logits"), [("masked tokens", False), *((case, True) for case in LOSSES)])
def test_losses_and_gradients_of_micro_batches_sum_to_those_of_the_batch(case, output_logits):
    row, _, labels, _ = LOSSES[case]
    model = build_for(case, output_logits=output_logits)
    inputs, count = inputs_of(row), (labels != -100).sum()
    whole, gradients = loss_and_gradients(model, **inputs, labels=labels)
    scale = max(gradient.abs().max() for gradient in gradients)
    for items in (count, count.item()):
        model.zero_grad()
        parts = []
        for rows in (slice(0, 1), slice(1, 4)):
            part = {name: x[rows] for name, x in inputs.items()}
            parts.append(model(**part, labels=labels[rows], num_items_in_batch=items).loss)
            parts[-1].backward()
        assert_close(sum(parts), whole, 1e-6)
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            assert (parameter.grad - gradient).abs().max() <= 1e-6 * scale


@pytest.mark.parametrize("case", WITH_GAPS)
def test_micro_batch_without_a_label(case):
    """Its share of the loss is 0, and parameters still have a gradient for DDP."""
    row, _, labels, _ = LOSSES[case]
    nothing = torch.full_like(labels, -100)
    loss, gradients = loss_and_gradients(
        build_for(case, output_logits=False), **inputs_of(row), labels=nothing, num_items_in_batch=7
    )
    assert loss == 0 and all(gradient.count_nonzero() == 0 for gradient in gradients)


@each_option
def test_masked_language_model_s_loss_is_that_of_the_equations(options):
    for tied in (True, False):
        model = MASKED_LM.shared("sdpa", tie_word_embeddings=tied, **options)
        weights, labels = naive.as_weights(model.state_dict()), LOSSES["masked tokens"][2]
        rows = [ids[mask.bool()].tolist() for ids, mask in zip(FOUR["input_ids"], FOUR["attention_mask"], strict=True)]
        total = sum(
            naive.cross_entropy(naive.masked_lm_logits(weights, model.config, ids), of_row[: len(ids)].tolist())
            for ids, of_row in zip(rows, labels, strict=True)
        )
        loss = model(**FOUR, labels=labels).loss
        assert loss.item() == pytest.approx(total / (labels != -100).sum().item(), rel=1e-6)


def test_masked_language_model_gives_logits_with_labels_only_when_asked_for():
    model, labels = MASKED_LM.build(), LOSSES["masked tokens"][2]
    with mock.patch.object(model.lm_head, "forward", wraps=model.lm_head.forward) as head:
        short = model(**FOUR, labels=labels)
    # Only masked positions are projected.
    assert [call.args[0].shape for call in head.call_args_list] == [((labels != -100).sum(), 16)]
    assert short.logits is None and "logits" not in short
    full = model(**FOUR, labels=labels, output_logits=True)
    assert torch.equal(full.logits, model(**FOUR).logits)
    assert_close(short.loss, full.loss, 1e-6)
    model.config.output_logits = True
    assert torch.equal(model(**FOUR, labels=labels).logits, full.logits)
    assert model(**FOUR, labels=labels, output_logits=False).logits is None


def fill_up(labels):
    """The positions and the labels of the tokens that have one, rows filled up with -1 and -100, one at least."""
    rows = [row.nonzero().flatten().tolist() for row in labels != -100]
    k = max(map(len, rows)) + 1
    positions = torch.tensor([row + [-1] * (k - len(row)) for row in rows])
    return positions, labels.gather(1, positions.clamp(min=0)).masked_fill(positions < 0, -100)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@each_option
def test_masked_positions_give_the_logits_the_loss_and_the_gradients_of_these_tokens(options, attention):
    model, labels = MASKED_LM.build(attention=attention, **options).train(), LOSSES["masked tokens"][2]
    positions, labels_at = fill_up(labels)
    assert (positions < 0).any(dim=1).all()
    expected = model(**FOUR).logits[labels != -100]
    for arguments in ({}, {"output_hidden_states": True}, {"output_attentions": True}, {"labels": labels_at}):
        output = model(**FOUR, masked_positions=positions, **arguments)
        assert output.logits.shape == (*positions.shape, 41)
        assert_close(output.logits[positions >= 0], expected, TOLERANCE)
    for count in ({}, {"num_items_in_batch": 7}):
        plain_loss, plain = loss_and_gradients(model, **FOUR, labels=labels, output_logits=True, **count)
        loss, gradients = loss_and_gradients(model, **FOUR, labels=labels_at, masked_positions=positions, **count)
        assert_close(loss, plain_loss, 1e-6)
        for gradient, wanted in zip(gradients, plain, strict=True):
            assert_close(gradient, wanted, 1e-6)


def test_loss_of_question_answering():
    model = ANSWERER.build()
    start, end = torch.tensor([0, 1, 2, 0]), torch.tensor([8, 1, 4, 2])
    output = model(**FOUR, start_positions=start, end_positions=end)
    ends = [(output.start_logits, start), (output.end_logits, end)]
    expected = sum(nn.functional.cross_entropy(logits.float(), target) for logits, target in ends) / 2
    assert_close(output.loss, expected, 1e-6)
    # An answer that was cut off counts neither in the sum nor in the number.
    cut = model(**FOUR, start_positions=torch.tensor([0, 1, 2, 9]), end_positions=torch.tensor([8, 1, 4, 30])).loss
    expected = sum(nn.functional.cross_entropy(logits[:3].float(), target[:3]) for logits, target in ends) / 2
    assert_close(cut, expected, 1e-6)
    assert model(**FOUR, start_positions=start).loss is None


# ---------------------------------------------------------------------------------------------------------------------
# Problem types and wrong labels


@pytest.mark.parametrize(
    ("num_labels", "labels", "problem_type"),
    [
        (3, torch.tensor([2, 0, 1, 1]), "single_label_classification"),
        (2, torch.tensor([1, 0, 1, 1]), "single_label_classification"),
        (3, (VALUES > 0).float(), "multi_label_classification"),
        (1, VALUES[:, 0], "regression"),
        (1, VALUES[:, :1], "regression"),
        (1, torch.tensor([3, 1, 2, 5]), "regression"),
    ],
)
def test_problem_type_is_inferred_from_the_labels(num_labels, labels, problem_type):
    model = CLASSIFIER.build(num_labels=num_labels)
    assert model.config.problem_type is None
    inferred = model(**FOUR, labels=labels).loss
    assert model.config.problem_type == problem_type
    given = CLASSIFIER.build(num_labels=num_labels, problem_type=problem_type)
    assert torch.equal(inferred, given(**FOUR, labels=labels).loss)


def test_integer_labels_of_a_multi_label_problem():
    model, labels = build_for("multi label"), (VALUES > 0).long()
    assert torch.equal(model(**FOUR, labels=labels).loss, model(**FOUR, labels=labels.float()).loss)


LONG = torch.zeros(1, dtype=torch.long)
WRONG_LABELS = {
    "too few tokens": (MASKED_LM, {}, {"labels": LONG.expand(4, 8)}, ("(4, 8)", "(4, 9)", "-100")),
    "labels of all tokens": (
        MASKED_LM,
        {},
        {"labels": LONG.expand(4, 9), "masked_positions": LONG.expand(4, 3)},
        ("`labels` has shape (4, 9)", "(4, 3)", "`masked_positions`"),
    ),
    "positions of a row": (
        MASKED_LM,
        {},
        {"masked_positions": LONG.expand(3)},
        ("`masked_positions` has shape (3,)", "batch_size = 4", "-1"),
    ),
    "column of classes": (CLASSIFIER, {}, {"labels": LONG.expand(4, 1)}, ("(4, 1)", "(4,)")),
    "too few classes": (CLASSIFIER, {}, {"labels": LONG.expand(3)}, ("(3,)", "(4,)")),
    "values for classes": (CLASSIFIER, {}, {"labels": torch.ones(4)}, ("(4,)", "(4, 3)")),
    "integers for several classes": (
        CLASSIFIER,
        {},
        {"labels": LONG.expand(4, 3)},
        ("(4, 3)", "'single_label_classification'", "(4,)"),
    ),
    "too few columns": (
        CLASSIFIER,
        {"problem_type": "multi_label_classification"},
        {"labels": torch.ones(4, 2)},
        ("(4, 2)", "'multi_label_classification'", "`num_labels` = 3", "(4, 3)"),
    ),
    "one value for three": (
        CLASSIFIER,
        {"problem_type": "regression"},
        {"labels": torch.ones(4)},
        ("(4,)", "'regression'", "(4, 3)"),
    ),
    "row of values": (CLASSIFIER, {"num_labels": 1}, {"labels": torch.ones(1, 4)}, ("(1, 4)", "(4, 1)")),
    "column of choices": (CHOICE, {}, {"labels": LONG.expand(4, 1)}, ("(4, 1)", "(4,)")),
    "too many choices": (CHOICE, {}, {"labels": LONG.expand(8)}, ("(8,)", "(4,)")),
    "too few tags": (TAGGER, {}, {"labels": LONG.expand(4, 8)}, ("(4, 8)", "(4, 9)", "-100")),
    "tags of a row": (TAGGER, {}, {"labels": LONG.expand(36)}, ("(36,)", "(4, 9)")),
    "too few answers": (
        ANSWERER,
        {},
        {"start_positions": LONG.expand(4), "end_positions": LONG.expand(3)},
        ("`end_positions` has shape (3,)", "(4,)"),
    ),
    "answers as masks": (
        ANSWERER,
        {},
        {"start_positions": LONG.expand(4, 9), "end_positions": LONG.expand(4, 9)},
        ("`start_positions` has shape (4, 9)", "(4,)"),
    ),
}


@pytest.mark.parametrize("case", WRONG_LABELS)
def test_labels_of_another_shape_are_named_in_one_sentence(case):
    row, changes, labels, parts = WRONG_LABELS[case]
    model = row.build(**changes)
    with pytest.raises(ValueError) as caught:
        model(**inputs_of(row), **labels)
    message = str(caught.value)
    for part in parts:
        assert part in message
    assert message.startswith("`") and message.endswith(".") and message.count(". ") == 0, "one sentence"
    assert model.config.problem_type == changes.get("problem_type"), "labels that are refused settle nothing"


@pytest.mark.parametrize("inputs", [{"input_ids": ids_of(TEXT)}, {"inputs_embeds": torch.zeros(1, 9, 16)}], ids=list)
def test_multiple_choice_without_choices_is_named(inputs):
    with pytest.raises(ValueError, match=r"needs `input_ids` of shape \(batch_size, num_choices, sequence_length\).*\(1, 9"):
        CHOICE.build()(**inputs)


# ---------------------------------------------------------------------------------------------------------------------
# The Trainer

TRAINED = [*LOSSES, "question answering"]


def training_rows(case, count):
    """Rows of one width: different numbers of tokens and, with tags, of labels, so that a mean of means is not the mean."""
    rows = []
    for i in range(count):
        batch = pad_batch([random_ids(3 + (5 * i) % 7, i)], width=9)
        if case == "multiple choice":
            batch = {name: torch.cat([x, pad_batch([random_ids(4, i + 100)], width=9)[name]]) for name, x in batch.items()}
        else:
            batch = {name: x[0] for name, x in batch.items()}
        no_label = (batch["attention_mask"] == 0) | (batch["input_ids"] % (2 + i % 4) == 0)
        value = math.sin(i)
        labels = {
            "masked tokens": batch["input_ids"].masked_fill(no_label, -100),
            "tags": (batch["input_ids"] % 3).masked_fill(no_label, -100),
            "single label": torch.tensor(i % 3 if i % 5 else -100),
            "multiple choice": torch.tensor(i % 2 if i % 5 else -100),
            "multi label": torch.tensor([float(i % 2), float(i % 3 == 0), float(i % 5 == 0)]),
            "regression": torch.tensor(value),
            "regression with a column of values": torch.tensor([value]),
            "regression of several values": torch.tensor([value, value**2, -value]),
        }
        answer = {"start_positions": torch.tensor(i % 3), "end_positions": torch.tensor(1 + i % 2)}
        rows.append(batch | (answer if case == "question answering" else {"labels": labels[case]}))
    return rows


def trainer_of(case, folder, **arguments):
    arguments = {"report_to": [], "disable_tqdm": True, "use_cpu": True, "save_strategy": "no", "seed": 5} | arguments
    return Trainer(
        model=build_for(case, dtype=torch.float32).train(),
        args=TrainingArguments(output_dir=folder, **arguments),
        train_dataset=training_rows(case, 24),
        data_collator=default_data_collator,
    )


def train(case, folder, batch_size, accumulation):
    trainer = trainer_of(
        case,
        folder,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        max_steps=3,
        learning_rate=0.05,
        max_grad_norm=0,
        optim="sgd",
        lr_scheduler_type="constant",
        logging_steps=1,
    )
    trainer.train()
    return [log["loss"] for log in trainer.state.log_history if "loss" in log], trainer.model


@pytest.mark.parametrize("case", [TRAINED[0], *(pytest.param(case, marks=pytest.mark.slow) for case in TRAINED[1:])])
def test_trainer_gives_the_same_result_with_and_without_accumulation(case, tmp_path):
    losses, model = train(case, tmp_path / "whole", batch_size=8, accumulation=1)
    accumulated_losses, accumulated_model = train(case, tmp_path / "accumulated", batch_size=2, accumulation=4)
    assert len(losses) == 3 and losses[0] != losses[-1]
    # float32 sums in another order; a loss multiplied by the number of micro-batches would be off by a factor of 4.
    assert accumulated_losses == pytest.approx(losses, rel=1e-3)
    start, moved = build_for(case, dtype=torch.float32), []
    for models in zip(accumulated_model.parameters(), model.parameters(), start.parameters(), strict=True):
        actual, expected, initial = models
        assert_close(actual, expected, 1e-5)
        moved.append((expected - initial).abs().max().item())
    assert max(moved) > 1e-3, "the tolerance above is small beside what training changed"


def test_trainer_logs_the_cross_entropy_itself(tmp_path):
    losses, _ = train("masked tokens", tmp_path, batch_size=24, accumulation=1)
    batch = default_data_collator(training_rows("masked tokens", 24))
    labels = batch.pop("labels")
    logits = build_for("masked tokens", dtype=torch.float32)(**batch).logits
    # The Trainer rounds what it logs to four digits behind the point.
    assert losses[0] == pytest.approx(over_tokens(logits, labels).item(), abs=2e-4)


@pytest.mark.parametrize("case", TRAINED)
def test_trainer_predicts_logits_and_nothing_else(case, tmp_path):
    trainer = trainer_of(case, tmp_path, per_device_eval_batch_size=7)
    rows = training_rows(case, 10)
    prediction = trainer.predict(rows)
    with torch.no_grad():
        output = trainer.model.eval()(**default_data_collator(rows))
    assert prediction.metrics["test_loss"] == pytest.approx(output.loss.item(), rel=0.3), "a mean of means"
    actual = prediction.predictions
    assert isinstance(actual, tuple if case == "question answering" else np.ndarray)
    expected = (output.start_logits, output.end_logits) if case == "question answering" else (output.logits,)
    for one, wanted in zip(actual if isinstance(actual, tuple) else (actual,), expected, strict=True):
        assert_close(torch.tensor(one), wanted, 1e-5)
