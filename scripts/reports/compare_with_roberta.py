# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Train Luna and a RoBERTa of the same width and depth on the same data and steps, under several seeds.

Every run goes through `pretraining.train`; a run that is finished is not run again.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

from luna_tools import cards  # noqa: E402
from pretraining.metrics import read_metrics  # noqa: E402
from pretraining.recipe import Recipe, load_recipe  # noqa: E402

SHARED_FIELDS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
)


def roberta_model(recipe: Recipe) -> str:
    """Return the recipe's Luna as a RoBERTa of its width and depth, eps and token types included, as JSON."""
    fields = {name: recipe.model[name] for name in SHARED_FIELDS if name in recipe.model}
    return json.dumps(fields | {"model_type": "roberta", "type_vocab_size": 1, "layer_norm_eps": 1e-5})


def train(output_dir: Path, argv: list[str]) -> dict:
    """Run the training program, which at once returns from a finished run and refuses that of another recipe."""
    command = [sys.executable, "-m", "pretraining.train", *argv, "--output_dir", str(output_dir)]
    print(shlex.join(command[1:]), flush=True)
    subprocess.run(command, check=True)
    results = json.loads((output_dir / "results.json").read_text(encoding="utf-8"))
    rows = read_metrics(output_dir / "metrics.jsonl")
    results["curve"] = [(row["step"], row["eval_loss"]) for row in rows if "eval_loss" in row]
    return results


def table(results: dict[str, dict[int, dict]], recipe) -> str:
    """Write Markdown: a row a model, its validation loss under each seed, mean and spread, accuracy."""
    rows = []
    for name, runs in results.items():
        first, *_ = runs.values()
        losses = [run["eval_loss"] for run in runs.values()]
        figures = [f"{loss:.3f}" for loss in (*losses, statistics.mean(losses))]
        figures.append(f"{statistics.stdev(losses):.3f}" if len(losses) > 1 else "-")
        accuracy = statistics.mean(run["eval_accuracy"] for run in runs.values())
        rows.append([name, f"{first['parameters']:,}", *figures, f"{accuracy:.1%}"])
    header = ("model", "parameters", *(f"seed {seed}" for seed in runs), "mean", "standard deviation", "masked accuracy")
    return f"""{cards.table(header, rows)}

Validation loss in nats per masked token after {recipe.max_steps:,} steps of {recipe.global_batch_size} sequences; the
unigram cross-entropy of the same tokens is {first["unigram_cross_entropy"]:.3f}."""


def plot(results: dict[str, dict[int, dict]], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for color, (name, runs) in zip(("tab:orange", "tab:blue"), results.items(), strict=True):
        for i, run in enumerate(runs.values()):
            axes.plot(*zip(*run["curve"], strict=True), color=color, alpha=0.7, label=name if i == 0 else None)
    unigram = next(iter(next(iter(results.values())).values()))["unigram_cross_entropy"]
    axes.axhline(unigram, color="gray", linestyle="--", label=f"unigram baseline ({unigram:.2f})")
    axes.set(xlabel="step", ylabel="validation loss (nats per masked token)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="Other options are those of `luna pretrain`, for both models, for example --max_steps 100.",
    )
    parser.add_argument("--recipe", default="quickstart", help="a recipe of a Luna")
    parser.add_argument("--seeds", default="0,1,2", help="numbers with commas between them")
    parser.add_argument("--runs_dir", type=Path, default=Path("runs/luna_and_roberta"))
    parser.add_argument("--output", type=Path, default=Path("docs/luna_and_roberta.md"))
    args, options = parser.parse_known_args(arguments)
    argv = [args.recipe, *options]
    recipe = load_recipe(*argv)
    contestants = {"RoBERTa": ["--model", roberta_model(recipe)], f"Luna, l = {recipe.model['projection_length']}": []}
    results: dict[str, dict[int, dict]] = {name: {} for name in contestants}
    for seed in args.seeds.split(","):
        for name, model in contestants.items():
            folder = args.runs_dir / f"{name.split(',')[0].lower()}_seed{seed}"
            results[name][int(seed)] = train(folder, [*argv, *model, "--seed", seed])
    given = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "-m", "scripts.reports.compare_with_roberta", *given])
    picture = args.output.with_suffix(".png")
    plot(results, picture)
    text = f"# Luna and RoBERTa, the same data and steps\n\nMade by `{command}`.\n\n{table(results, recipe)}\n\n"
    args.output.write_text(f"{text}![validation loss]({picture.name})\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
