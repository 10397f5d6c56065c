# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The learning curve of a run."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402


def plot_loss(rows: list[dict], unigram_cross_entropy: float | None, path: Path) -> None:
    """Draw training and validation loss over the steps, and the unigram baseline, into a PNG file."""
    train = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    validation = [(row["step"], row["eval_loss"]) for row in rows if "eval_loss" in row]
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    axes.plot(*zip(*train, strict=True), color="tab:blue", alpha=0.5, linewidth=1, label="training")
    if validation:
        axes.plot(*zip(*validation, strict=True), color="tab:orange", marker="o", markersize=4, label="validation")
        step, loss = validation[-1]
        axes.annotate(f"{loss:.2f}", (step, loss), textcoords="offset points", xytext=(0, 8), ha="right")
    if unigram_cross_entropy is not None:
        axes.axhline(
            unigram_cross_entropy, color="gray", linestyle="--", label=f"unigram baseline ({unigram_cross_entropy:.2f})"
        )
    axes.set(xlabel="step", ylabel="masked-LM loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)
