# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Pictures of a run, as PNG files: the confusion matrix, predictions against labels, and the learning curve."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import confusion_matrix

PNG = {"dpi": 200, "bbox_inches": "tight"}  # tight: or equal aspects push labels over the edge
MAX_NAME_CHARS = 20  # a longer name of a class is cut, or it would take the matrix's place


def plot_confusion_matrix(path: Path, labels: np.ndarray, predictions: np.ndarray, names: list[str], title: str) -> None:
    """Draws which share of each class's rows was predicted as what. The cells hold the counts too.

    Args:
        labels, predictions: (rows,) ids of classes; a row is a token where the classes are tags.
        names: of all classes, in the order of their ids.
    """
    counts = confusion_matrix(labels, predictions, labels=range(len(names)))
    shares = counts / counts.sum(axis=1, keepdims=True).clip(1)
    names = [name if len(name) <= MAX_NAME_CHARS else f"{name[: MAX_NAME_CHARS - 1]}…" for name in names]
    roomy = len(names) <= 8
    longest = max(map(len, names))
    cell = max(2.4 / len(names), 0.75 if roomy else 0.38)  # inches, as is `side`
    name_width = 0.085 * longest
    side = name_width + cell * len(names)
    figure = Figure(figsize=(side + 1.6, side + 0.8), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    bar = figure.colorbar(image, fraction=0.045, format=lambda share, _: f"{share:.0%}")
    bar.set_label("share of the true class")
    for label, predicted in zip(*counts.nonzero(), strict=True):
        count, share = counts[label, predicted], shares[label, predicted]
        axes.text(
            predicted,
            label,
            f"{count:,}\n{share:.0%}" if roomy else f"{count}",
            color="white" if share > 0.55 else "black",
            fontsize=9 if roomy else 9.5 - len(f"{count}") / 2,
            ha="center",
            va="center",
        )
    axes.set_xticks(range(len(names)), names, rotation=0 if name_width < cell else 90)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted class", ylabel="true class", title=title)
    figure.savefig(path, **PNG)


def plot_regression(path: Path, labels: np.ndarray, predictions: np.ndarray, title: str) -> None:
    """Draws predictions against labels, both (rows,), and the line on which they are equal."""
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    low, high = min(labels.min(), predictions.min()), max(labels.max(), predictions.max())
    margin = 0.04 * (high - low) or 1
    limits = (low - margin, high + margin)
    axes.plot(limits, limits, color="gray", linestyle="--", linewidth=1, label="prediction = label", zorder=1)
    axes.scatter(labels, predictions, s=14, alpha=0.4, linewidths=0, label=f"rows ({len(labels):,})")
    axes.set(xlabel="label", ylabel="prediction", title=title, aspect="equal", xlim=limits, ylim=limits)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")
    figure.savefig(path, **PNG)


def plot_learning_curve(
    path: Path,
    log_history: list[dict],
    metric_names: tuple[str, ...],
    title: str,
    best_step: int | None = None,
    loss_name: str = "cross-entropy (nats)",
) -> None:
    """Draws the losses over the steps and, below, the validation metrics.

    Args:
        log_history: `Trainer.state.log_history`. Its rows have `step`, and `loss` or validation results: `eval_loss`,
            or `eval_<split>_loss` for each of several splits, and metrics named in the same way.
        metric_names: such as "accuracy", those of the task.
        best_step: `Trainer.state.best_global_step`, the step of the checkpoint that was kept.
        loss_name: with its unit.
    """
    figure = Figure(figsize=(7, 6.2), layout="constrained")
    upper, lower = figure.subplots(2, sharex=True)
    logged = dict.fromkeys(key for row in log_history for key in row if key.startswith("eval_"))
    loss_keys = [key for key in logged if key.endswith("_loss")]
    metric_keys = [key for name in metric_names for key in logged if key.endswith(f"_{name}")]
    upper.plot(*_series(log_history, "loss"), color="gray", alpha=0.7, linewidth=1, label="training")
    for axes, keys in ((upper, loss_keys), (lower, metric_keys)):
        for number, key in enumerate(keys):
            name = "validation" if key == "eval_loss" else key.removeprefix("eval_").removesuffix("_loss").replace("_", " ")
            style = {"color": f"C{number}", "marker": "os^Dv<>"[number % 7], "markersize": 4, "linewidth": 1.2}
            axes.plot(*_series(log_history, key), label=name, **style)
    if best_step is not None:
        values = [row[metric_keys[0]] for row in log_history if row["step"] == best_step and metric_keys[0] in row]
        names = (
            f"kept checkpoint (step {best_step:,})",
            ", ".join(["kept checkpoint", *(f"{value:.3f}" for value in values)]),
        )
        for axes, name in zip((upper, lower), names, strict=True):
            axes.axvline(best_step, color="black", linestyle=":", linewidth=1.2, label=name)
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
        if axes.lines:  # a run without evaluation has no metrics
            axes.legend(fontsize=9)
    upper.set(ylabel=loss_name, title=title)
    lower.set(xlabel="optimizer steps", ylabel="validation metric")
    lower.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    lower.xaxis.set_major_formatter("{x:,.0f}")
    figure.savefig(path, **PNG)


def _series(log_history: list[dict], key: str) -> tuple[list[int], list[float]]:
    rows = [row for row in log_history if key in row]
    return [row["step"] for row in rows], [row[key] for row in rows]
