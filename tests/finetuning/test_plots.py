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
def figure(monkeypatch):
    """The last saved figure: its axes, and the areas of all texts in it."""
    saved = []
    save = Figure.savefig

    def remember(self, path, **options):
        save(self, path, **options)
        saved.append(self)

    monkeypatch.setattr(Figure, "savefig", remember)
    return lambda: saved[-1]


def _texts(figure):
    for axes in figure.axes:
        yield from [*axes.texts, axes.xaxis.label, axes.yaxis.label, axes.title]
        for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            for place, label in zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=False):  # none on a shared axis
                if min(limits) <= place <= max(limits):
                    yield label


def _check(figure, path):
    assert imread(path).std() > 0.05  # it is not one colour
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = {text: text.get_window_extent(canvas.get_renderer()) for text in _texts(figure) if text.get_text()}
    for (text, a), (other, b) in itertools.combinations(boxes.items(), 2):
        assert max(a.x0, b.x0) >= min(a.x1, b.x1) - 1 or max(a.y0, b.y0) >= min(a.y1, b.y1) - 1, (text, other)


@pytest.mark.parametrize("classes", [2, 8, 9, pytest.param(20, marks=pytest.mark.slow)])
def test_confusion_matrix(tmp_path, figure, classes):
    random = np.random.default_rng(0)
    labels = random.integers(0, classes, 30_000)
    predictions = np.where(random.random(30_000) < 0.7, labels, random.integers(0, classes, 30_000))
    names = [f"a_long_name_of_class_{number}" if number % 2 else f"class_{number}" for number in range(classes)]
    plot_confusion_matrix(tmp_path / "a.png", labels, predictions, names, "The title")
    axes = figure().axes[0]
    cells = {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in axes.texts}
    for (label, predicted), cell in cells.items():
        count = ((labels == label) & (predictions == predicted)).sum()
        share = count / (labels == label).sum()
        assert cell == (f"{count:,}\n{share:.0%}" if classes <= 8 else f"{count}")
    assert len(cells) == classes**2
    assert axes.get_xlabel() == "predicted class" and axes.get_ylabel() == "true class"
    shown = [text.get_text() for text in axes.get_xticklabels()]
    assert shown[:2] == ["class_0", "a_long_name_of_clas…"]
    _check(figure(), tmp_path / "a.png")


def test_classes_that_do_not_occur(tmp_path, figure):
    plot_confusion_matrix(tmp_path / "a.png", np.array([0, 0, 1]), np.array([0, 2, 1]), ["a", "b", "c"], "The title")
    axes = figure().axes[0]
    assert sorted(text.get_text() for text in axes.texts) == ["1\n100%", "1\n50%", "1\n50%"]
    np.testing.assert_array_equal(axes.images[0].get_array(), [[0.5, 0, 0.5], [0, 1, 0], [0, 0, 0]])


@pytest.mark.parametrize("spread", [0.5, 0])
def test_regression(tmp_path, figure, spread):
    labels = np.linspace(0, 5, 100) if spread else np.full(100, 2.0)
    predictions = labels + np.random.default_rng(0).normal(0, 1, 100) * spread
    plot_regression(tmp_path / "a.png", labels, predictions, "The title")
    axes = figure().axes[0]
    np.testing.assert_allclose(axes.collections[0].get_offsets(), np.transpose([labels, predictions]))
    assert axes.get_xlim() == axes.get_ylim()
    assert axes.get_xlim()[0] < min(labels.min(), predictions.min()) and axes.get_xlim()[1] > predictions.max()
    _check(figure(), tmp_path / "a.png")


def test_learning_curve(tmp_path, figure):
    path = tmp_path / "a.png"
    plot_learning_curve(path, HISTORY, ("accuracy", "f1"), "The title", best_step=40)
    upper, lower = figure().axes
    lines = {line.get_label(): np.transpose(line.get_data()).tolist() for line in upper.lines}
    assert lines["training"] == [[10, 1.0], [20, 0.5]]
    assert lines["validation"] == [[20, 0.7], [40, 0.8]]
    assert set(lines) == {"training", "validation", "kept checkpoint (step 40)"}
    lines = {line.get_label(): np.transpose(line.get_data()).tolist() for line in lower.lines}
    assert lines["accuracy"] == [[20, 0.8], [40, 0.9]] and lines["f1"] == [[20, 0.75], [40, 0.85]]
    assert lines["kept checkpoint, 0.900"] == [[40, 0], [40, 1]]
    assert upper.get_ylabel() == "cross-entropy (nats)" and lower.get_xlabel() == "optimizer steps"
    _check(figure(), path)


def test_learning_curve_of_two_validation_splits(tmp_path, figure):
    history = [{"step": 5, "loss": 1.0}]
    for step in (5, 10):
        for split in ("matched", "mismatched"):
            keys = (f"eval_validation_{split}_loss", f"eval_validation_{split}_accuracy")
            history.append({"step": step, keys[0]: 1 / step, keys[1]: step / 20})
    plot_learning_curve(tmp_path / "a.png", history, ("accuracy",), "The title", loss_name="mean squared error")
    upper, lower = figure().axes
    assert [line.get_label() for line in upper.lines] == ["training", "validation matched", "validation mismatched"]
    assert [line.get_label() for line in lower.lines] == ["validation matched accuracy", "validation mismatched accuracy"]
    assert upper.get_ylabel() == "mean squared error"
    _check(figure(), tmp_path / "a.png")


def test_learning_curve_of_one_evaluation(tmp_path, figure):
    plot_learning_curve(tmp_path / "a.png", HISTORY[2:3], ("accuracy",), "The title", best_step=20)
    _check(figure(), tmp_path / "a.png")


@pytest.mark.filterwarnings("error")
def test_learning_curve_without_evaluation(tmp_path, figure):
    plot_learning_curve(tmp_path / "a.png", HISTORY[:2], ("accuracy",), "The title")
    assert [len(axes.lines) for axes in figure().axes] == [1, 0]
