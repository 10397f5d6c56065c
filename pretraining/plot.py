# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The learning curve of a run."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

BASELINES = {"unigram_cross_entropy": ("unigram", "--"), "five_gram_cross_entropy": ("5-gram", ":")}


def plot_loss(rows: list[dict], results: dict, path: Path) -> None:
    """Draw training and validation loss over the steps, and the baselines among the results, into a PNG file."""
    train = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    validation = [(row["step"], row["eval_loss"]) for row in rows if "eval_loss" in row]
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    axes.plot(*zip(*train, strict=True), color="tab:blue", alpha=0.5, linewidth=1, label="training")
    if validation:
        axes.plot(*zip(*validation, strict=True), color="tab:orange", marker="o", markersize=4, label="validation")
        step, loss = validation[-1]
        axes.annotate(f"{loss:.2f}", (step, loss), textcoords="offset points", xytext=(0, 8), ha="right")
    for key, (name, style) in BASELINES.items():
        if key in results:
            line = f"{name} baseline ({results[key]:.2f})"
            axes.axhline(results[key], color="gray", linestyle=style, label=line)
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)
