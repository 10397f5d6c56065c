# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The heads for fine-tuning, judged by a naive float64 oracle, by padding, by torch's losses and by the library's rules.

Parity with the official heads is in test_parity.py.
"""

import json
import math
from functools import cache
from itertools import groupby
from unittest import mock

import naive
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from luna_builders import (
    ALL_OPTIONS,
    SENTENCES,
    SINGLE_OPTIONS,
    TOLERANCE,
    assert_close,
    assert_initialised,
    build,
    columns_for,
    ids_of,
    option_id,
    pad_batch,
    place,
    random_ids,
    tiny_config,
    train_under_ddp,
)
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    Trainer,
    TrainingArguments,
    default_data_collator,
    pipeline,
)
from transformers.testing_utils import CaptureLogger
from transformers.utils import logging

from configuration_luna import LunaConfig
from modeling_luna import (
    LunaAttention,
    LunaForMaskedLM,
    LunaForMultipleChoice,
    LunaForQuestionAnswering,
    LunaForSequenceClassification,
    LunaForTokenClassification,
    LunaModel,
)

POOLINGS = ("cls", "packed_mean", "packed_max", "packed_attention", "mean")
AUTO_CLASSES = {
    LunaForSequenceClassification: AutoModelForSequenceClassification,
    LunaForMultipleChoice: AutoModelForMultipleChoice,
    LunaForTokenClassification: AutoModelForTokenClassification,
    LunaForQuestionAnswering: AutoModelForQuestionAnswering,
}
# Every head with every pooling that it has.
HEADS = [
    *[(LunaForSequenceClassification, pooling) for pooling in POOLINGS],
    *[(LunaForMultipleChoice, pooling) for pooling in POOLINGS],
    (LunaForTokenClassification, "cls"),
    (LunaForQuestionAnswering, "cls"),
]
each_head = pytest.mark.parametrize(
    ("model_class", "pooling"), HEADS, ids=lambda value: value if isinstance(value, str) else value.__name__[7:]
)
TEXT = random_ids(9, seed=3)
BATCH = pad_batch([TEXT, TEXT[:3]])


def build_head(model_class, pooling="cls", **changes):
    return build(model_class, classifier_pooling=pooling, **({"num_labels": 3} | changes))


@cache
def cached_head(model_class, pooling, attention, options):
    return build_head(model_class, pooling, attention=attention, **dict(options))


def inputs_of(model_class, batch):
    """The batch as the head takes it: for multiple choice its rows are the choices of one question."""
    return {name: x[None] for name, x in batch.items()} if model_class is LunaForMultipleChoice else batch


def labels_of(model_class, batch):
    """Labels for the inputs above."""
    b = len(batch["input_ids"])
    if model_class is LunaForSequenceClassification:
        return {"labels": torch.arange(b) % 3}
    if model_class is LunaForMultipleChoice:
        return {"labels": torch.tensor([b - 1])}
    if model_class is LunaForTokenClassification:
        return {"labels": (batch["input_ids"] % 3).masked_fill(batch["attention_mask"] == 0, -100)}
    first = batch["attention_mask"].argmax(dim=-1)
    return {"start_positions": first, "end_positions": first + 1}


def logits_of(output):
    return torch.stack([output.start_logits, output.end_logits], dim=-1) if "start_logits" in output else output.logits


def row_logits(model, batch):
    """The logits of each row of the batch: (b, ...)."""
    logits = logits_of(model(**inputs_of(type(model), batch)))
    return logits.view(-1, 1) if isinstance(model, LunaForMultipleChoice) else logits


def loss_and_gradients(model, **inputs):
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(actual, expected, tolerance):
    assert actual.keys() == expected.keys()
    scale = max(gradient.abs().max() for gradient in expected.values())
    assert scale > 0
    for name, gradient in expected.items():
        assert (actual[name] - gradient).abs().max() <= tolerance * scale, name


# ---------------------------------------------------------------------------------------------------------------------
# Against the equations


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("options", SINGLE_OPTIONS, ids=option_id)
@each_head
def test_logits_are_those_of_the_equations(model_class, pooling, options, attention):
    model = build_head(model_class, pooling, attention=attention, **options)
    weights = naive.as_weights(model.state_dict())
    # Luna's sinusoids are float32.
    tolerance = 5e-6 if "position_embedding_type" in options else TOLERANCE
    for ids in (TEXT[:3], TEXT):  # below and above l
        if model_class in (LunaForSequenceClassification, LunaForMultipleChoice):
            expected = naive.classifier_logits(weights, model.config, ids)
        else:
            encoder = {name.removeprefix("luna."): w for name, w in weights.items() if name.startswith("luna.")}
            name = "classifier" if model_class is LunaForTokenClassification else "qa_outputs"
            expected = naive.linear(weights, name, naive.luna(encoder, model.config, ids).last_hidden_state)
        with torch.no_grad():
            actual = row_logits(model, {"input_ids": ids_of(ids)})[0]
        assert_close(actual, expected, tolerance)


def test_representations_differ():
    """The guard of the tests with poolings: at unit scale no two of them are alike, not even the tokens."""
    with torch.no_grad():
        model = build_head(LunaForSequenceClassification, "packed_attention")
        outputs = model.luna(ids_of(TEXT))
        states = (outputs.last_hidden_state, outputs.packed_state, None, outputs.packed_attention_mask)
        pooled = []
        model.classifier.in_proj = nn.Identity()
        for model.classifier.pooling in POOLINGS:
            pooled.append(model.classifier.pool(*states))
    for i, one in enumerate(pooled):
        assert all((one - other).abs().max() > 0.01 for other in pooled[:i])


# ---------------------------------------------------------------------------------------------------------------------
# Padding


@st.composite
def padded_batches(draw):
    """Rows of 1 to 9 tokens (l is 5), each padded on the right or on the left, to any width."""
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    width = max(lengths) + draw(st.integers(0, 4))
    columns = [columns_for([n], width, draw(st.sampled_from(["right", "left"])))[0] for n in lengths]
    seed = draw(st.integers(0, 10**6))
    return [random_ids(n, seed + i) for i, n in enumerate(lengths)], columns, width


def check_rows_equal_rows_alone(model, rows, columns, width):
    batch = {
        "input_ids": place(rows, columns, width, 1),
        "attention_mask": place([[1] * len(row) for row in rows], columns, width, 0),
    }
    with torch.no_grad():
        together = row_logits(model, batch)
        for i, row in enumerate(rows):
            actual = together[i] if together.ndim < 3 else together[i, columns[i]]
            assert_close(actual, row_logits(model, {"input_ids": ids_of(row)})[0], TOLERANCE)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@settings(deadline=None, max_examples=60, print_blob=True)
@given(batch=padded_batches(), head=st.sampled_from(HEADS), options=st.sampled_from(ALL_OPTIONS))
def test_padding_never_changes_a_logit(attention, batch, head, options):
    check_rows_equal_rows_alone(cached_head(*head, attention, tuple(sorted(options.items()))), *batch)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dynamic", [True, False])
@each_head
def test_padding_never_changes_a_logit_of_any_head(model_class, pooling, dynamic, attention):
    """Rows below, at and above l, on either side, in a batch that is wider than any of them."""
    model = cached_head(model_class, pooling, attention, (("dynamic_projection", dynamic),))
    rows = [random_ids(n, n) for n in (2, 5, 8, 3)]
    check_rows_equal_rows_alone(model, rows, columns_for([2, 5], 11, "left") + columns_for([8, 3], 11, "right"), 11)


@pytest.mark.parametrize("side", ["right", "left"])
@each_head
def test_padding_never_changes_a_gradient(model_class, pooling, side):
    model = build_head(model_class, pooling, attention="sdpa")
    gradients = []
    for width in (3, 8):
        batch = pad_batch([TEXT[:3], TEXT[3:6]], width, side)
        gradients.append(loss_and_gradients(model, **inputs_of(model_class, batch), **labels_of(model_class, batch))[1])
    # The library's losses are float32.
    assert_same_gradients(gradients[1], gradients[0], 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@each_head
def test_an_empty_row_is_finite_and_harms_no_other(model_class, pooling, dtype):
    """Such as a candidate that a question does not have."""
    model = build_head(model_class, pooling, dtype=dtype)
    batch = pad_batch([TEXT, []])
    loss, gradients = loss_and_gradients(model, **inputs_of(model_class, batch), **labels_of(model_class, batch))
    assert torch.isfinite(row_logits(model, batch)).all()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float32])
@each_head
def test_mask_of_any_dtype(model_class, pooling, dtype):
    model = build_head(model_class, pooling)
    batch = pad_batch([TEXT, TEXT[:3]], side="left")
    with torch.no_grad():
        expected = row_logits(model, batch)
        actual = row_logits(model, batch | {"attention_mask": batch["attention_mask"].to(dtype)})
    assert torch.equal(actual, expected)


# ---------------------------------------------------------------------------------------------------------------------
# Loss

ROWS = [random_ids(n, n) for n in (9, 2, 5, 3)]
FOUR = pad_batch(ROWS)
VALUES = torch.tensor([[0.5, -1.0, 2.0], [1.5, 0.0, -0.5], [-2.0, 1.0, 0.25], [0.75, -0.25, 1.0]])
# Head, fields of the config, labels, and the loss of `labels` in plain torch with reduction "mean" or "sum".
LOSSES = {
    "single label": (
        LunaForSequenceClassification,
        {"num_labels": 3, "problem_type": "single_label_classification"},
        torch.tensor([2, 0, -100, 1]),
        nn.functional.cross_entropy,
    ),
    "multi label": (
        LunaForSequenceClassification,
        {"num_labels": 3, "problem_type": "multi_label_classification"},
        (VALUES > 0).float(),
        nn.functional.binary_cross_entropy_with_logits,
    ),
    "regression": (
        LunaForSequenceClassification,
        {"num_labels": 1, "problem_type": "regression"},
        VALUES[:, 0],
        lambda logits, labels, reduction="mean": nn.functional.mse_loss(logits[:, 0], labels, reduction=reduction),
    ),
    "regression with a column of values": (
        LunaForSequenceClassification,
        {"num_labels": 1, "problem_type": "regression"},
        VALUES[:, :1],
        nn.functional.mse_loss,
    ),
    "regression of several values": (
        LunaForSequenceClassification,
        {"num_labels": 3, "problem_type": "regression"},
        VALUES,
        nn.functional.mse_loss,
    ),
    "multiple choice": (
        LunaForMultipleChoice,
        {},
        torch.tensor([1, -100, 0, 1]),
        nn.functional.cross_entropy,
    ),
    "tokens": (
        LunaForTokenClassification,
        {"num_labels": 3},
        (FOUR["input_ids"] % 3).masked_fill((FOUR["attention_mask"] == 0) | (FOUR["input_ids"] % 4 == 0), -100),
        lambda logits, labels, reduction="mean": nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), reduction=reduction
        ),
    ),
}


def loss_inputs(case):
    """The inputs of a case of LOSSES: four rows, for multiple choice of two candidates each."""
    if LOSSES[case][0] is LunaForMultipleChoice:
        return {name: torch.stack([x, x.flip(0)], dim=1) for name, x in FOUR.items()}
    return FOUR


@pytest.mark.parametrize("case", LOSSES)
def test_loss_is_that_of_torch(case):
    model_class, changes, labels, torch_loss = LOSSES[case]
    model = build_head(model_class, **changes)
    output = model(**loss_inputs(case), labels=labels)
    assert output.loss.ndim == 0
    # The losses are float32.
    assert_close(output.loss, torch_loss(output.logits.float(), labels), 1e-6)


@pytest.mark.parametrize("case", LOSSES)
def test_losses_and_gradients_of_micro_batches_sum_to_those_of_the_batch(case):
    model_class, changes, labels, torch_loss = LOSSES[case]
    model = build_head(model_class, attention="sdpa", **changes)
    inputs, count = loss_inputs(case), (labels != -100).sum()
    whole, gradients = loss_and_gradients(model, **inputs, labels=labels)
    for items in (count, count.item()):
        model.zero_grad()
        parts = []
        for rows in (slice(0, 1), slice(1, 4)):
            part = {name: x[rows] for name, x in inputs.items()}
            parts.append(model(**part, labels=labels[rows], num_items_in_batch=items).loss)
            parts[-1].backward()
        assert_close(sum(parts), whole, 1e-6)
        summed = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert_same_gradients(summed, gradients, 1e-6)


@pytest.mark.parametrize("case", ["single label", "multiple choice", "tokens"])
def test_micro_batch_without_a_label(case):
    """Its share of the loss is 0, and parameters still have a gradient for DDP."""
    model_class, changes, labels, _ = LOSSES[case]
    model = build_head(model_class, **changes)
    loss, gradients = loss_and_gradients(
        model, **loss_inputs(case), labels=torch.full_like(labels, -100), num_items_in_batch=7
    )
    assert loss == 0 and all(gradient.count_nonzero() == 0 for gradient in gradients.values())


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
    model = build_head(LunaForSequenceClassification, num_labels=num_labels)
    assert model.config.problem_type is None
    inferred = model(**FOUR, labels=labels).loss
    assert model.config.problem_type == problem_type
    given = build_head(LunaForSequenceClassification, num_labels=num_labels, problem_type=problem_type)
    assert torch.equal(inferred, given(**FOUR, labels=labels).loss)


def test_integer_labels_of_a_multi_label_problem():
    model = build_head(LunaForSequenceClassification, problem_type="multi_label_classification")
    labels = (VALUES > 0).long()
    assert torch.equal(model(**FOUR, labels=labels).loss, model(**FOUR, labels=labels.float()).loss)


def test_loss_of_question_answering():
    model = build_head(LunaForQuestionAnswering)
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


@pytest.mark.parametrize("case", ["single label", "multiple choice", "tokens", "question answering"])
def test_losses_are_float32_in_bfloat16(case):
    if case == "question answering":
        model, inputs = build_head(LunaForQuestionAnswering, dtype=torch.bfloat16), FOUR
        labels = labels_of(LunaForQuestionAnswering, FOUR)
    else:
        model_class, changes, labels, _ = LOSSES[case]
        model, inputs = build_head(model_class, dtype=torch.bfloat16, **changes), loss_inputs(case)
        labels = {"labels": labels}
    assert model(**inputs, **labels).loss.dtype == torch.float32


LONG = torch.zeros(1, dtype=torch.long)
WRONG_LABELS = {
    "column of classes": (LunaForSequenceClassification, {}, {"labels": LONG.expand(4, 1)}, ("(4, 1)", "(4,)")),
    "too few classes": (LunaForSequenceClassification, {}, {"labels": LONG.expand(3)}, ("(3,)", "(4,)")),
    "values for classes": (LunaForSequenceClassification, {}, {"labels": torch.ones(4)}, ("(4,)", "(4, 3)")),
    "integers for several classes": (
        LunaForSequenceClassification,
        {},
        {"labels": LONG.expand(4, 3)},
        ("(4, 3)", "'single_label_classification'", "(4,)"),
    ),
    "too few columns": (
        LunaForSequenceClassification,
        {"problem_type": "multi_label_classification"},
        {"labels": torch.ones(4, 2)},
        ("(4, 2)", "'multi_label_classification'", "`num_labels` = 3", "(4, 3)"),
    ),
    "one value for three": (
        LunaForSequenceClassification,
        {"problem_type": "regression"},
        {"labels": torch.ones(4)},
        ("(4,)", "'regression'", "(4, 3)"),
    ),
    "row of values": (LunaForSequenceClassification, {"num_labels": 1}, {"labels": torch.ones(1, 4)}, ("(1, 4)", "(4, 1)")),
    "column of choices": (LunaForMultipleChoice, {}, {"labels": LONG.expand(4, 1)}, ("(4, 1)", "(4,)")),
    "too many choices": (LunaForMultipleChoice, {}, {"labels": LONG.expand(8)}, ("(8,)", "(4,)")),
    "too few tags": (LunaForTokenClassification, {}, {"labels": LONG.expand(4, 8)}, ("(4, 8)", "(4, 9)", "-100")),
    "tags of a row": (LunaForTokenClassification, {}, {"labels": LONG.expand(36)}, ("(36,)", "(4, 9)")),
    "too few answers": (
        LunaForQuestionAnswering,
        {},
        {"start_positions": LONG.expand(4), "end_positions": LONG.expand(3)},
        ("`end_positions` has shape (3,)", "(4,)"),
    ),
    "answers as masks": (
        LunaForQuestionAnswering,
        {},
        {"start_positions": LONG.expand(4, 9), "end_positions": LONG.expand(4, 9)},
        ("`start_positions` has shape (4, 9)", "(4,)"),
    ),
}


@pytest.mark.parametrize("case", WRONG_LABELS)
def test_labels_of_another_shape_are_named_in_one_sentence(case):
    model_class, changes, labels, parts = WRONG_LABELS[case]
    model = build_head(model_class, **changes)
    inputs = loss_inputs("multiple choice") if model_class is LunaForMultipleChoice else FOUR
    with pytest.raises(ValueError) as caught:
        model(**inputs, **labels)
    message = str(caught.value)
    for part in parts:
        assert part in message
    assert message.startswith("`") and message.endswith(".") and message.count(". ") == 0, "one sentence"


def test_refused_labels_leave_the_problem_type_open():
    model = build_head(LunaForSequenceClassification)
    with pytest.raises(ValueError, match="multi_label_classification"):
        model(**FOUR, labels=torch.ones(4))
    assert torch.isfinite(model(**FOUR, labels=torch.tensor([0, 1, 2, 0])).loss)


@pytest.mark.parametrize(
    "inputs",
    [{"input_ids": ids_of(TEXT)}, {"inputs_embeds": torch.zeros(1, 9, 16)}],
    ids=["input_ids", "inputs_embeds"],
)
def test_multiple_choice_without_choices_is_named(inputs):
    with pytest.raises(ValueError, match=r"needs `input_ids` of shape \(batch_size, num_choices, sequence_length\).*\(1, 9"):
        build_head(LunaForMultipleChoice)(**inputs)


# ---------------------------------------------------------------------------------------------------------------------
# Training by the Trainer

TRAINED = [*LOSSES, "question answering"]


def training_rows(case, count):
    """Rows of one width: different numbers of tokens and, with tags, of labels; some rows without a class."""
    rows = []
    for i in range(count):
        batch = pad_batch([random_ids(3 + (5 * i) % 7, i)], width=9)
        if case == "multiple choice":
            batch = {name: torch.cat([x, pad_batch([random_ids(4, i + 100)], width=9)[name]]) for name, x in batch.items()}
            labels = {"labels": torch.tensor(i % 2 if i % 5 else -100)}
        else:
            batch = {name: x[0] for name, x in batch.items()}
        value = math.sin(i)
        if case == "single label":
            labels = {"labels": torch.tensor(i % 3 if i % 5 else -100)}
        elif case == "multi label":
            labels = {"labels": torch.tensor([float(i % 2), float(i % 3 == 0), float(i % 5 == 0)])}
        elif case == "regression":
            labels = {"labels": torch.tensor(value)}
        elif case == "regression with a column of values":
            labels = {"labels": torch.tensor([value])}
        elif case == "regression of several values":
            labels = {"labels": torch.tensor([value, value**2, -value])}
        elif case == "tokens":
            no_label = (batch["attention_mask"] == 0) | (batch["input_ids"] % (2 + i % 4) == 0)
            labels = {"labels": (batch["input_ids"] % 3).masked_fill(no_label, -100)}
        elif case == "question answering":
            labels = {"start_positions": torch.tensor(i % 3), "end_positions": torch.tensor(1 + i % 2)}
        rows.append(batch | labels)
    return rows


def build_for(case, **changes):
    if case == "question answering":
        return build_head(LunaForQuestionAnswering, **changes)
    return build_head(LOSSES[case][0], **LOSSES[case][1], **changes)


def trainer_of(case, folder, **arguments):
    model = build_for(case, attention="sdpa", dtype=torch.float32).train()
    arguments = {"report_to": [], "disable_tqdm": True, "use_cpu": True, "save_strategy": "no", "seed": 5} | arguments
    return Trainer(
        model=model,
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


@pytest.mark.slow
@pytest.mark.parametrize("case", TRAINED)
def test_trainer_gives_the_same_result_with_and_without_accumulation(case, tmp_path):
    losses, model = train(case, tmp_path / "whole", batch_size=8, accumulation=1)
    accumulated_losses, accumulated_model = train(case, tmp_path / "accumulated", batch_size=2, accumulation=4)
    assert len(losses) == 3 and losses[0] != losses[-1]
    # float32 sums in another order; a loss multiplied by the number of micro-batches would be off by a factor of 4.
    assert accumulated_losses == pytest.approx(losses, rel=1e-3)
    start = build_for(case, dtype=torch.float32)
    moved = []
    for actual, expected, initial in zip(
        accumulated_model.parameters(), model.parameters(), start.parameters(), strict=True
    ):
        assert_close(actual, expected, 1e-5)
        moved.append((expected - initial).abs().max().item())
    assert max(moved) > 1e-3, "the tolerance above is small beside what training changed"


@pytest.mark.parametrize("case", TRAINED)
def test_trainer_predicts_logits_and_nothing_else(case, tmp_path):
    trainer = trainer_of(case, tmp_path, per_device_eval_batch_size=7)
    rows = training_rows(case, 10)
    prediction = trainer.predict(rows)
    with torch.no_grad():
        output = trainer.model.eval()(**default_data_collator(rows))
    assert prediction.metrics["test_loss"] == pytest.approx(output.loss.item(), rel=0.3), "a mean of means"
    if case == "question answering":
        expected = (output.start_logits, output.end_logits)
        assert isinstance(prediction.predictions, tuple)
    else:
        expected = (output.logits,)
        assert isinstance(prediction.predictions, np.ndarray)
        prediction = prediction._replace(predictions=(prediction.predictions,))
    for actual, wanted in zip(prediction.predictions, expected, strict=True):
        assert_close(torch.tensor(actual), wanted, 1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Parameters without a reader


def frozen_parameters(model):
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def unread_parameters(model):
    """The parameters that backward never reaches when none is frozen."""
    model.requires_grad_(True)
    _, gradients = loss_and_gradients(model, **inputs_of(type(model), BATCH), **labels_of(type(model), BATCH))
    return {name for name, _ in model.named_parameters()} - gradients.keys()


FREEZING_OPTIONS = [
    {"norm_first": norm_first, "contextual_projection": contextual, "share_layer_weights": share}
    for norm_first in (False, True)
    for contextual in (True, False)
    for share in (False, True)
]


@pytest.mark.parametrize("num_hidden_layers", [1, 2])
@pytest.mark.parametrize("options", FREEZING_OPTIONS, ids=option_id)
@each_head
def test_frozen_parameters_are_those_without_a_reader(model_class, pooling, options, num_hidden_layers, tmp_path):
    model = build_head(model_class, pooling, dtype=torch.float32, num_hidden_layers=num_hidden_layers, **options).train()
    frozen = frozen_parameters(model)
    assert frozen == unread_parameters(model)
    model.save_pretrained(tmp_path)
    assert frozen_parameters(model_class.from_pretrained(tmp_path)) == frozen


@each_head
def test_frozen_parameters_after_loading_a_pretrained_encoder(model_class, pooling, tmp_path):
    build(LunaForMaskedLM, dtype=torch.float32).save_pretrained(tmp_path)
    model = model_class.from_pretrained(tmp_path, classifier_pooling=pooling, num_labels=3)
    assert frozen_parameters(model) == frozen_parameters(build_head(model_class, pooling))
    assert frozen_parameters(model) == unread_parameters(model.train())


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["packed_mean", "packed_attention"])
def test_distributed_data_parallel_without_find_unused_parameters(pooling, tmp_path):
    context = torch.multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    options = {"classifier_pooling": pooling, "num_labels": 3}
    torch.multiprocessing.spawn(
        train_under_ddp, (2, tmp_path / "init", options, queue, LunaForSequenceClassification), nprocs=2
    )
    (_, losses, sums), (_, other_losses, other_sums) = sorted(queue.get() for _ in range(2))
    assert all(math.isfinite(loss) for loss in losses + other_losses)
    assert losses != other_losses, "each process has its own data"
    assert sums == other_sums, "and all have the same weights"


# ---------------------------------------------------------------------------------------------------------------------
# Saving, loading, initialising

SIZES = {"hidden_size": 64, "vocab_size": 41}
NEW_MODULES = {
    "cls": {"classifier.dense", "classifier.out_proj"},
    "mean": {"classifier.dense", "classifier.out_proj"},
    "packed_mean": {"classifier.dense", "classifier.out_proj"},
    "packed_max": {"classifier.dense", "classifier.out_proj", "classifier.in_proj"},
    "packed_attention": {"classifier.dense", "classifier.out_proj"}
    | {f"classifier.attention.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj", "layer_norm")},
}


def new_modules(model_class, pooling):
    if model_class is LunaForTokenClassification:
        return {"classifier"}
    return {"qa_outputs"} if model_class is LunaForQuestionAnswering else NEW_MODULES[pooling]


def new_weights(model_class, pooling):
    return {f"{module}.{kind}" for module in new_modules(model_class, pooling) for kind in ("weight", "bias")}


@pytest.fixture
def load_report():
    """What transformers logs while a checkpoint is loaded."""
    level = logging.get_verbosity()
    logging.set_verbosity_warning()
    with CaptureLogger(logging.get_logger("transformers.modeling_utils")) as captured:
        yield captured
    logging.set_verbosity(level)


@pytest.mark.parametrize("std", [0.02, 0.5])
@each_head
def test_pretrained_encoder_in_a_head(model_class, pooling, std, tmp_path, load_report):
    torch.manual_seed(1)
    pretrained = build(LunaForMaskedLM, dtype=torch.float32, initializer_range=std, **SIZES)
    pretrained.save_pretrained(tmp_path)
    load_report.io.truncate(0)
    model, info = AUTO_CLASSES[model_class].from_pretrained(
        tmp_path, classifier_pooling=pooling, num_labels=3, output_loading_info=True
    )
    assert type(model) is model_class and not model.training
    expected = new_weights(model_class, pooling)
    assert info.pop("missing_keys") == expected
    assert not any(info.values()), info

    report = load_report.io.getvalue()
    named = {line.split("|")[0].strip() for line in report.splitlines() if "MISSING " in line}
    assert named == expected
    assert "lm_head" not in report and "luna." not in report and "UNEXPECTED" not in report

    for name, value in pretrained.luna.state_dict().items():
        assert torch.equal(model.luna.state_dict()[name], value), name
    for name in new_modules(model_class, pooling):
        module = model.get_submodule(name)
        assert module.bias.count_nonzero() == 0
        if isinstance(module, nn.LayerNorm):
            assert torch.equal(module.weight, torch.ones(64))
        else:
            assert_initialised(module.weight, std)


@each_head
def test_initialisation_of_a_new_model(model_class, pooling):
    torch.manual_seed(1)
    model = model_class(tiny_config(classifier_pooling=pooling, num_labels=3, initializer_range=0.1, **SIZES))
    for name in new_modules(model_class, pooling):
        module = model.get_submodule(name)
        assert module.bias.count_nonzero() == 0
        if not isinstance(module, nn.LayerNorm):
            assert_initialised(module.weight, 0.1)


@pytest.mark.parametrize("auto", [False, True])
@each_head
def test_save_and_load(model_class, pooling, auto, tmp_path, load_report):
    model = build_head(model_class, pooling, dtype=torch.float32)
    model.save_pretrained(tmp_path)
    loader = AUTO_CLASSES[model_class] if auto else model_class
    loaded, info = loader.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is model_class
    assert not any(info.values()), info
    assert load_report.io.getvalue() == ""
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    loaded.config._attn_implementation = "eager"
    # Equal weights at other addresses: float32 rounding.
    assert_close(row_logits(loaded, BATCH), row_logits(model, BATCH), 1e-5)


@each_head
def test_checkpoint_of_a_head_in_the_other_models(model_class, pooling, tmp_path):
    model = build_head(model_class, pooling, dtype=torch.float32)
    model.save_pretrained(tmp_path)
    base, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(base) is LunaModel and not info["missing_keys"] and not info["mismatched_keys"]
    masked_lm, info = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] and all(key.startswith("lm_head.") for key in info["missing_keys"])
    assert info["unexpected_keys"] == new_weights(model_class, pooling)
    for name, value in model.luna.state_dict().items():
        assert torch.equal(base.state_dict()[name], value), name
        assert torch.equal(masked_lm.luna.state_dict()[name], value), name


def test_another_number_of_labels_is_refused_unless_allowed(tmp_path):
    build_head(LunaForSequenceClassification, dtype=torch.float32).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match=r"size mismatch|mismatch"):
        LunaForSequenceClassification.from_pretrained(tmp_path, num_labels=5)
    model, info = LunaForSequenceClassification.from_pretrained(
        tmp_path, num_labels=5, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert {entry[0] for entry in info["mismatched_keys"]} == {"classifier.out_proj.weight", "classifier.out_proj.bias"}
    assert model(**BATCH).logits.shape == (2, 5)


def test_label_names_and_the_fields_of_the_heads_survive_saving(tmp_path):
    names = {0: "no", 1: "yes"}
    config = tiny_config(
        id2label=names,
        label2id={"no": 0, "yes": 1},
        classifier_pooling="packed_mean",
        classifier_dropout=0.25,
        problem_type="multi_label_classification",
    )
    LunaForSequenceClassification(config).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["id2label"] == {"0": "no", "1": "yes"} and saved["classifier_pooling"] == "packed_mean"
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is LunaConfig
    assert loaded.id2label == names and loaded.label2id == {"no": 0, "yes": 1} and loaded.num_labels == 2
    assert (loaded.classifier_pooling, loaded.classifier_dropout) == ("packed_mean", 0.25)
    assert loaded.problem_type == "multi_label_classification"


# ---------------------------------------------------------------------------------------------------------------------
# Outputs and the library

FLAGS = {"output_hidden_states": True, "output_packed_states": True, "output_attentions": True}


@each_head
def test_recorded_outputs(model_class, pooling):
    model = build_head(model_class, pooling)
    with torch.no_grad():
        encoder = model.luna(**BATCH, **FLAGS)
        output = model(**inputs_of(model_class, BATCH), **FLAGS)
    for name, expected in encoder.items():
        if name == "last_hidden_state":
            assert name not in output
        elif torch.is_tensor(expected):
            assert torch.equal(output[name], expected)
        else:
            assert len(output[name]) == len(expected)
            assert all(torch.equal(one, other) for one, other in zip(output[name], expected, strict=True))


@each_head
def test_nothing_is_recorded_unasked(model_class, pooling):
    output = build_head(model_class, pooling)(**inputs_of(model_class, BATCH))
    logits = ["start_logits", "end_logits"] if model_class is LunaForQuestionAnswering else ["logits"]
    assert list(output) == [*logits, "packed_state", "packed_attention_mask"]


@pytest.mark.parametrize("where", ["argument", "config"])
@each_head
def test_tuple_order(model_class, pooling, where):
    model = build_head(model_class, pooling)
    inputs = inputs_of(model_class, BATCH) | labels_of(model_class, BATCH) | FLAGS
    output = model(**inputs)
    assert list(output)[:2] == ["loss", "start_logits" if model_class is LunaForQuestionAnswering else "logits"]
    if where == "config":
        model.config.return_dict = False
    values = model(**inputs, **({"return_dict": False} if where == "argument" else {}))
    assert isinstance(values, tuple)
    for value, wanted in zip(values, output.values(), strict=True):
        for one, other in zip(value, wanted, strict=True) if isinstance(wanted, tuple) else [(value, wanted)]:
            assert torch.equal(one, other)


@pytest.mark.parametrize("arguments", [None, {"use_reentrant": True}], ids=str)
@each_head
def test_gradient_checkpointing_changes_nothing(model_class, pooling, arguments):
    model = build_head(model_class, pooling, attention="sdpa").train()
    inputs = inputs_of(model_class, BATCH) | labels_of(model_class, BATCH)
    loss, gradients = loss_and_gradients(model, **inputs)
    model.gradient_checkpointing_enable(arguments)
    with mock.patch.object(LunaAttention, "forward", autospec=True, side_effect=LunaAttention.forward) as forward:
        checkpointed_loss, checkpointed = loss_and_gradients(model, **inputs)
    assert forward.call_count == 2 * model.config.num_hidden_layers, "each layer is computed again for backward"
    assert torch.equal(checkpointed_loss, loss)
    assert_same_gradients(checkpointed, gradients, 0)


# As in test_modeling_luna.py, relative to the norm of the result.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.03), (torch.float16, 0.004)])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@each_head
def test_half_precision_is_near_float32(model_class, pooling, attention, dtype, tolerance):
    batch = pad_batch([TEXT[:8], TEXT[:3]], width=8)
    kept = batch["attention_mask"].bool() if model_class in (LunaForTokenClassification, LunaForQuestionAnswering) else ...
    with torch.no_grad():
        expected = row_logits(build_head(model_class, pooling, attention=attention, dtype=torch.float32), batch)[kept]
        actual = row_logits(build_head(model_class, pooling, attention=attention, dtype=dtype), batch)[kept]
    assert actual.dtype == dtype
    assert (actual.float() - expected).norm() < tolerance * expected.norm()


@each_head
def test_autocast_trains(model_class, pooling):
    model = build_head(model_class, pooling, attention="sdpa", dtype=torch.float32).train()
    inputs = inputs_of(model_class, BATCH) | labels_of(model_class, BATCH)
    expected = model(**inputs).loss.item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**inputs).loss
    assert loss.item() == pytest.approx(expected, rel=0.05)
    loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.dtype == torch.float32 and torch.isfinite(parameter.grad).all(), name


@each_head
def test_inputs_embeds_are_input_ids(model_class, pooling):
    model = build_head(model_class, pooling)
    batch = pad_batch([TEXT, TEXT[:3]], side="left")
    embeds = {"inputs_embeds": model.get_input_embeddings()(batch["input_ids"]), "attention_mask": batch["attention_mask"]}
    assert torch.equal(row_logits(model, embeds), row_logits(model, batch))


@each_head
def test_explicit_position_ids_replace_the_count(model_class, pooling):
    model = build_head(model_class, pooling)
    counted = BATCH["attention_mask"].cumsum(-1) * BATCH["attention_mask"] + 1
    assert_close(row_logits(model, BATCH | {"position_ids": counted}), row_logits(model, BATCH), TOLERANCE)
    assert (row_logits(model, BATCH | {"position_ids": counted + 1}) - row_logits(model, BATCH)).abs().max() > 1e-3


@pytest.mark.parametrize("size", [50, 30])
@each_head
def test_resize_token_embeddings(model_class, pooling, size, tmp_path):
    model = build_head(model_class, pooling, dtype=torch.float32)
    batch = BATCH | {"input_ids": BATCH["input_ids"] % 30}
    before = row_logits(model, batch)
    model.resize_token_embeddings(size)
    assert model.config.vocab_size == model.get_input_embeddings().num_embeddings == size
    assert_close(row_logits(model, batch), before, 1e-5)
    model.save_pretrained(tmp_path)
    loaded = model_class.from_pretrained(tmp_path, attn_implementation="eager")
    assert_close(row_logits(loaded, batch), before, 1e-5)


@pytest.mark.parametrize(
    ("model_class", "pooling"), [head for head in HEADS if head[0] is not LunaForMultipleChoice], ids=str
)
def test_text_in_segments(model_class, pooling):
    model = build_head(model_class, pooling)
    with torch.no_grad():
        first = model(**BATCH)
        state = {"packed_state": first.packed_state, "packed_attention_mask": first.packed_attention_mask}
        second = model(ids_of(TEXT[:4], TEXT[2:6]), **state)
        encoder = model.luna(ids_of(TEXT[:4], TEXT[2:6]), **state)
        if model_class is LunaForSequenceClassification:
            expected = model.classifier(encoder, None)
        else:
            expected = (model.classifier if model_class is LunaForTokenClassification else model.qa_outputs)(
                encoder.last_hidden_state
            )
        # A row of 3 tokens uses 3 slots of P, in the next segment as well: the others are not read.
        alone = model(ids_of(TEXT[2:6]), packed_state=first.packed_state[1:, :3])
    assert torch.equal(logits_of(second), expected)
    assert second.packed_attention_mask.sum(-1).tolist() == [5, 3]
    assert_close(logits_of(second)[1], logits_of(alone)[0], TOLERANCE)
    assert (logits_of(second) - logits_of(model(ids_of(TEXT[:4], TEXT[2:6])))).abs().max() > 1e-3


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("pooling", ["packed_attention", pytest.param("packed_max", marks=pytest.mark.slow)])
def test_compiles_to_one_graph(pooling):
    torch._dynamo.reset()
    model = build_head(LunaForSequenceClassification, pooling, attention="sdpa")
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        for rows in ([TEXT[:8], TEXT[:6]], [TEXT, TEXT[:2], TEXT[:5]]):
            batch = pad_batch(rows, side="left")
            assert_close(compiled(**batch).logits, model(**batch).logits, TOLERANCE)
    torch._dynamo.reset()


@pytest.mark.parametrize(("classifier_dropout", "used"), [(None, 0.125), (0.25, 0.25), (0, 0)])
@each_head
def test_dropout_of_the_heads(model_class, pooling, classifier_dropout, used):
    model = build_head(
        model_class, pooling, hidden_dropout_prob=0.125, classifier_dropout=classifier_dropout, num_hidden_layers=1
    ).train()
    encoder_inputs = inputs_of(model_class, {"input_ids": ids_of(TEXT, TEXT)})
    seen = []

    def dropout(x, p=0.5, training=True, inplace=False):
        assert training
        seen.append((p, tuple(x.shape)))
        return x

    with mock.patch.object(nn.functional, "dropout", dropout):
        model.luna(ids_of(TEXT, TEXT))
        in_encoder = len(seen)
        model(**encoder_inputs)
    in_head = seen[2 * in_encoder :]
    if model_class is LunaForTokenClassification:
        assert in_head == [(used, (2, 9, 16))]
    elif model_class is LunaForQuestionAnswering:
        assert in_head == []
    else:
        attention = [(0.0, (2, 2, 1, 5))] if pooling == "packed_attention" else []
        assert in_head == attention + [(used, (2, 16))] * 2
    without = build_head(model_class, pooling, num_hidden_layers=1)
    assert torch.equal(row_logits(model.eval(), BATCH), row_logits(without, BATCH))


# ---------------------------------------------------------------------------------------------------------------------
# Pipelines


@pytest.fixture
def saved_head(tokenizer, tmp_path):
    def save(model_class, **changes):
        model = build_head(
            model_class, dtype=torch.float32, vocab_size=len(tokenizer), max_position_embeddings=66, **changes
        )
        model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        return model, str(tmp_path)

    return save


@pytest.mark.parametrize(
    ("changes", "scores_of"),
    [
        ({"problem_type": "single_label_classification"}, lambda logits: logits.softmax(-1)),
        ({}, lambda logits: logits.softmax(-1)),
        ({"problem_type": "multi_label_classification"}, torch.sigmoid),
        ({"problem_type": "regression", "num_labels": 1}, lambda logits: logits),
        ({"problem_type": "regression"}, lambda logits: logits),
    ],
    ids=["single", "inferred", "multi", "regression", "several values"],
)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_text_classification_pipeline(pooling, changes, scores_of, saved_head, tokenizer):
    model, folder = saved_head(LunaForSequenceClassification, pooling=pooling, **changes)
    classify = pipeline("text-classification", model=folder, device="cpu")
    assert type(classify.model) is LunaForSequenceClassification
    for text, answers in zip(SENTENCES, classify(SENTENCES, top_k=None, batch_size=3), strict=True):
        expected = scores_of(model(tokenizer(text, return_tensors="pt")["input_ids"]).logits[0])
        expected = {f"LABEL_{i}": score.item() for i, score in enumerate(expected)}
        # float32, in a padded batch and alone
        assert {answer["label"]: answer["score"] for answer in answers} == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_token_classification_pipeline(saved_head, tokenizer):
    names = {0: "O", 1: "PART", 2: "WHOLE"}
    model, folder = saved_head(LunaForTokenClassification, id2label=names, label2id={v: k for k, v in names.items()})
    tag = pipeline("token-classification", model=folder, device="cpu", ignore_labels=[])
    grouped = pipeline("token-classification", model=folder, device="cpu", aggregation_strategy="simple", ignore_labels=[])
    assert type(tag.model) is LunaForTokenClassification
    for text in SENTENCES:
        encoded = tokenizer(text, return_tensors="pt", return_offsets_mapping=True)
        scores = model(encoded["input_ids"]).logits[0, 1:-1].softmax(-1)
        tags, offsets = [names[i] for i in scores.argmax(-1).tolist()], encoded["offset_mapping"][0, 1:-1].tolist()
        answers = tag(text)
        assert [answer["entity"] for answer in answers] == tags
        assert [answer["score"] for answer in answers] == pytest.approx(scores.amax(-1).tolist(), rel=1e-4)
        assert [[answer["start"], answer["end"]] for answer in answers] == offsets
        # Neighbours with one tag are one group.
        groups = [(name, list(members)) for name, members in groupby(range(len(tags)), key=tags.__getitem__)]
        expected = [(name, offsets[members[0]][0], offsets[members[-1]][1]) for name, members in groups]
        assert [(group["entity_group"], group["start"], group["end"]) for group in grouped(text)] == expected


def test_zero_shot_classification_pipeline(saved_head, tokenizer):
    names = {0: "contradiction", 1: "neutral", 2: "entailment"}
    model, folder = saved_head(
        LunaForSequenceClassification, pooling="packed_mean", id2label=names, label2id={v: k for k, v in names.items()}
    )
    classify = pipeline("zero-shot-classification", model=folder, device="cpu")
    labels = ["text", "moon", "cost"]
    hypotheses = [f"This is about the {label}." for label in labels]
    pairs = [tokenizer(SENTENCES[2], hypothesis, return_tensors="pt")["input_ids"] for hypothesis in hypotheses]
    pairs = [model(ids).logits[0] for ids in pairs]
    answer = classify(SENTENCES[2], labels, hypothesis_template="This is about the {}.")
    expected = torch.stack([logits[2] for logits in pairs]).softmax(0).tolist()
    assert dict(zip(answer["labels"], answer["scores"], strict=True)) == pytest.approx(
        dict(zip(labels, expected, strict=True)), rel=1e-4
    )
    answer = classify(SENTENCES[2], labels, hypothesis_template="This is about the {}.", multi_label=True)
    expected = [logits[[0, 2]].softmax(0)[1].item() for logits in pairs]
    assert dict(zip(answer["labels"], answer["scores"], strict=True)) == pytest.approx(
        dict(zip(labels, expected, strict=True)), rel=1e-4
    )


def test_extraction_with_question_answering(saved_head, tokenizer):
    """A head that was set to answer with the words after "around": the span is read from the logits by hand."""
    model, folder = saved_head(LunaForQuestionAnswering, num_hidden_layers=1)
    model = AutoModelForQuestionAnswering.from_pretrained(folder).train()
    question, context = "The moon goes around?", SENTENCES[2]
    encoded = tokenizer(question, context, return_tensors="pt", return_offsets_mapping=True)
    offsets, in_context = encoded.pop("offset_mapping")[0], torch.tensor([i == 1 for i in encoded.sequence_ids(0)])
    answer = context.index("the earth")
    start = (in_context & (offsets[:, 1] > answer)).int().argmax()
    end = (in_context & (offsets[:, 1] >= answer + len("the earth"))).int().argmax()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        model(**encoded, start_positions=start[None], end_positions=end[None]).loss.backward()
        optimizer.step()

    with torch.no_grad():
        output = model.eval()(**encoded)
    scores = output.start_logits[0, :, None] + output.end_logits[0, None, :]
    allowed = torch.triu(in_context[:, None] & in_context[None])
    best = scores.masked_fill(~allowed, -math.inf).flatten().argmax()
    first, last = divmod(best.item(), len(in_context))
    assert context[offsets[first, 0] : offsets[last, 1]].strip() == "the earth"


# ---------------------------------------------------------------------------------------------------------------------
# Learning

FIRST, SECOND, NOISE = 4, 5, range(6, 40)


def marker_rows(count, generator):
    """Texts of 50 to 400 noise tokens with two markers, 20 or more tokens apart; the label says which comes first."""

    def draw(low, high):
        return torch.randint(low, high, (1,), generator=generator).item()

    rows, labels = [], []
    for _ in range(count):
        n = draw(50, 401)
        row = torch.randint(NOISE.start, NOISE.stop, (n,), generator=generator)
        row[0], row[-1] = 0, 2
        gap, label = draw(20, n - 2), draw(0, 2)
        place_of_first = draw(1, n - 1 - gap)
        row[[place_of_first, place_of_first + gap]] = torch.tensor([SECOND, FIRST] if label else [FIRST, SECOND])
        rows.append(row.tolist())
        labels.append(label)
    return rows, torch.tensor(labels)


def learn_the_order_of_markers(pooling, seed):
    """Accuracy on held-out rows, padded on the right and on the left, and the number of training steps.

    Each training batch is new, and they are padded on the right and on the left in turns.
    """
    torch.manual_seed(seed)
    config = LunaConfig(
        vocab_size=NOISE.stop,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        projection_length=16,
        position_embedding_type="sinusoidal",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        # Near hidden_size**-0.5: at 0.02, attention in a model this narrow starts out uniform and stays so for long.
        initializer_range=0.1,
        norm_first=True,  # at this rate post-norm layers do not learn it from every seed
        classifier_pooling=pooling,
        num_labels=2,
    )
    model = LunaForSequenceClassification(config).train()
    generator = torch.Generator().manual_seed(seed)
    # The rate rises for 50 steps, stays until the order is learned, and falls to 0 in another 300.
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses, steps_left = [], 300
    while steps_left > 0 and len(losses) < 2000:
        optimizer.param_groups[0]["lr"] = 2e-3 * min((len(losses) + 1) / 50, steps_left / 300)
        rows, labels = marker_rows(16, generator)
        loss = model(**pad_batch(rows, side=("right", "left")[len(losses) % 2]), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if steps_left < 300 or (len(losses) > 50 and sum(losses[-50:]) / 50 < 0.15):
            steps_left -= 1

    rows, labels = marker_rows(500, torch.Generator().manual_seed(10_000 + seed))
    accuracies = {}
    for side in ("right", "left"):
        with torch.no_grad():
            batches = [pad_batch(rows[i : i + 50], side=side) for i in range(0, 500, 50)]
            predictions = torch.cat([model.eval()(**batch).logits.argmax(-1) for batch in batches])
        accuracies[side] = (predictions == labels).double().mean().item()
    return accuracies, len(losses)


@pytest.mark.slow
@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_representation_learns_the_order_of_two_markers(pooling):
    accuracies, steps = learn_the_order_of_markers(pooling, seed=0)
    print(f"{pooling}: {accuracies} after {steps} steps")
    assert min(accuracies.values()) >= 0.99
