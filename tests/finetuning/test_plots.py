# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""What the pictures say, read from the figures that are saved, and that no text covers another."""

import itertools

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread

from finetuning.plots import plot_confusion_matrix, plot_learning_curve, plot_regression

HISTORY = [
    {"step": 10, "loss": 1.0, "learning_rate": 1e-5, "epoch": 0.5},
    {"step": 20, "loss": 0.5, "learning_rate": 0.0, "epoch": 1.0},
    {"step": 20, "eval_loss": 0.7, "eval_accuracy": 0.8, "eval_f1": 0.75, "eval_runtime": 3.0, "epoch": 1.0},
    {"step": 40, "eval_loss": 0.8, "eval_accuracy": 0.9, "eval_f1": 0.85, "eval_runtime": 3.0, "epoch": 2.0},
    {"step": 40, "train_runtime": 9.0, "train_loss": 0.75, "epoch": 2.0},
]


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draw by a function; returns the figure that it saves, checked: it shows something, and no text covers another."""
    saved, save = [], Figure.savefig

    def remember(self, path, **options):
        save(self, path, **options)
        saved.append(self)

    def draw(function, *args, **options):
        function(tmp_path / "a.png", *args, **options)
        assert imread(tmp_path / "a.png").std() > 0.05  # it is not one colour
        canvas = FigureCanvasAgg(saved[-1])
        canvas.draw()
        boxes = [(text, text.get_window_extent(canvas.get_renderer())) for text in texts(saved[-1]) if text.get_text()]
        for (text, a), (other, b) in itertools.combinations(boxes, 2):
            assert max(a.x0, b.x0) >= min(a.x1, b.x1) - 1 or max(a.y0, b.y0) >= min(a.y1, b.y1) - 1, (text, other)
        return saved[-1].axes

    monkeypatch.setattr(Figure, "savefig", remember)
    return draw


def texts(figure):
    for axes in figure.axes:
        yield from [*axes.texts, axes.xaxis.label, axes.yaxis.label, axes.title]
        for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            for place, label in zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=False):  # none on a shared axis
                if min(limits) <= place <= max(limits):
                    yield label


@pytest.mark.parametrize("classes", [2, 8, 9, pytest.param(20, marks=pytest.mark.slow)])
def test_confusion_matrix(drawn, classes):
    random = np.random.default_rng(0)
    labels = random.integers(0, classes, 30_000)
    predictions = np.where(random.random(30_000) < 0.7, labels, random.integers(0, classes, 30_000))
    names = [f"a_long_name_of_class_{number}" if number % 2 else f"class_{number}" for number in range(classes)]
    axes = drawn(plot_confusion_matrix, labels, predictions, names, "The title")[0]
    cells = {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in axes.texts}
    for (label, predicted), cell in cells.items():
        count = ((labels == label) & (predictions == predicted)).sum()
        share = count / (labels == label).sum()
        assert cell == (f"{count:,}\n{share:.0%}" if classes <= 8 else f"{count}")
    assert len(cells) == classes**2
    assert axes.get_xlabel() == "predicted class" and axes.get_ylabel() == "true class"
    assert [text.get_text() for text in axes.get_xticklabels()][:2] == ["class_0", "a_long_name_of_clas…"]


def test_classes_that_do_not_occur(drawn):
    axes = drawn(plot_confusion_matrix, np.array([0, 0, 1]), np.array([0, 2, 1]), ["a", "b", "c"], "The title")[0]
    assert sorted(text.get_text() for text in axes.texts) == ["1\n100%", "1\n50%", "1\n50%"]
    np.testing.assert_array_equal(axes.images[0].get_array(), [[0.5, 0, 0.5], [0, 1, 0], [0, 0, 0]])


@pytest.mark.parametrize("spread", [0.5, 0])
def test_regression(drawn, spread):
    labels = np.linspace(0, 5, 100) if spread else np.full(100, 2.0)
    predictions = labels + np.random.default_rng(0).normal(0, 1, 100) * spread
    (axes,) = drawn(plot_regression, labels, predictions, "The title")
    np.testing.assert_allclose(axes.collections[0].get_offsets(), np.transpose([labels, predictions]))
    assert axes.get_xlim() == axes.get_ylim()
    assert axes.get_xlim()[0] < min(labels.min(), predictions.min()) and axes.get_xlim()[1] > predictions.max()


def lines(axes):
    return {line.get_label(): np.transpose(line.get_data()).tolist() for line in axes.lines}


@pytest.mark.filterwarnings("error")
def test_learning_curve(drawn):
    upper, lower = drawn(plot_learning_curve, HISTORY, ("accuracy", "f1"), "The title", best_step=40)
    kept = "kept checkpoint (step 40)"
    assert lines(upper).keys() == {"training", "validation", kept} and lines(lower)["kept checkpoint, 0.900"]
    assert (lines(upper)["training"], lines(upper)["validation"]) == ([[10, 1.0], [20, 0.5]], [[20, 0.7], [40, 0.8]])
    assert (lines(lower)["accuracy"], lines(lower)["f1"]) == ([[20, 0.8], [40, 0.9]], [[20, 0.75], [40, 0.85]])
    assert lines(upper)[kept] == [[40, 0], [40, 1]]
    assert upper.get_ylabel() == "cross-entropy (nats)" and lower.get_xlabel() == "optimizer steps"
    drawn(plot_learning_curve, HISTORY[2:3], ("accuracy",), "The title", best_step=20)  # one evaluation
    without = drawn(plot_learning_curve, HISTORY[:2], ("accuracy",), "The title")
    assert [len(axes.lines) for axes in without] == [1, 0]


def test_learning_curve_of_two_validation_splits(drawn):
    history = [{"step": 5, "loss": 1.0}]
    for step in (5, 10):
        for split in ("matched", "mismatched"):
            keys = (f"eval_validation_{split}_loss", f"eval_validation_{split}_accuracy")
            history.append({"step": step, keys[0]: 1 / step, keys[1]: step / 20})
    upper, lower = drawn(plot_learning_curve, history, ("accuracy",), "The title", loss_name="mean squared error")
    assert list(lines(upper)) == ["training", "validation matched", "validation mismatched"]
    assert list(lines(lower)) == ["validation matched accuracy", "validation mismatched accuracy"]
    assert upper.get_ylabel() == "mean squared error"
