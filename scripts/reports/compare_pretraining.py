# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Train contestants on the same data and validation tokens, under several seeds.

    python -m scripts.reports.compare_pretraining luna_and_roberta
    python -m scripts.reports.compare_pretraining learning

`luna_and_roberta` sets a recipe's Luna beside a RoBERTa of its width and depth; `learning` sets optimizers, schedules and
masking rates beside AdamW, a linear schedule and 15 % masks. Every run goes through `pretraining.train`, and one that is
finished is not run again: seeds may be divided over several commands.
"""

import argparse
import json
import re
import shlex
import statistics
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import matplotlib
import yaml

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


def luna_and_roberta(recipe: Recipe) -> dict[str, dict]:
    """Luna, and a RoBERTa of its width and depth, eps and token types included."""
    shared = {name: recipe.model[name] for name in SHARED_FIELDS if name in recipe.model}
    roberta = shared | {"model_type": "roberta", "type_vocab_size": 1, "layer_norm_eps": 1e-5}
    return {"RoBERTa": {"model": roberta}, f"Luna, l = {recipe.model['projection_length']}": {}}


def learning(recipe: Recipe) -> dict[str, dict]:
    """Optimizers, schedules and masking rates that a recipe may choose."""
    adamw = {"optimizer": "adamw", "learning_rate": 2e-3, "adamw_learning_rate": None}
    muon = {"optimizer": "muon", "learning_rate": 2e-2, "adamw_learning_rate": 1e-3}
    constant = {"mlm_probability": 0.15, "final_mlm_probability": None}
    falling = {"mlm_probability": 0.3, "final_mlm_probability": 0.15}
    kwargs = {"num_decay_steps": max(recipe.max_steps // 4, 1), "decay_type": "1-sqrt"}
    stable = {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": kwargs}
    return {
        "AdamW, linear, 15 %": adamw | constant,
        "AdamW, linear, 30 to 15 %": adamw | falling,
        "AdamW, warmup_stable_decay, 15 %": adamw | constant | stable,
        "Muon, linear, 15 %": muon | constant,
        "Muon, linear, 30 to 15 %": muon | falling,
        "Muon, warmup_stable_decay, 15 %": muon | constant | stable,
    }


# The contestants of a comparison: the fields of a recipe that each changes.
COMPARISONS = {"luna_and_roberta": luna_and_roberta, "learning": learning}
TITLES = {
    "luna_and_roberta": "Luna and RoBERTa, the same data and steps",
    "learning": "Optimizers, schedules and masking rates, the same model and data",
}


def train(output_dir: Path, recipe: Recipe, changes: dict, seed: int) -> dict:
    """Run the training program, which at once returns from a finished run and refuses that of another recipe."""
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    file = output_dir.with_suffix(".yaml")
    values = asdict(recipe) | changes | {"seed": seed, "output_dir": str(output_dir)}
    file.write_text(yaml.safe_dump({name: value for name, value in values.items() if value is not None}), encoding="utf-8")
    subprocess.run([sys.executable, "-m", "pretraining.train", str(file)], check=True)
    results = json.loads((output_dir / "results.json").read_text(encoding="utf-8"))
    rows = read_metrics(output_dir / "metrics.jsonl")
    results["curve"] = [(row["step"], row["eval_loss"]) for row in rows if "eval_loss" in row]
    results["tokens_per_second"] = statistics.median(row["tokens_per_second"] for row in rows if "tokens_per_second" in row)
    return results


def table(results: dict[str, dict[int, dict]], recipe: Recipe) -> str:
    """Write Markdown: a row a contestant, its validation loss under each seed, mean and spread, accuracy."""
    rows = []
    for name, runs in results.items():
        first, *_ = runs.values()
        losses = [run["eval_loss"] for run in runs.values()]
        figures = [f"{loss:.3f}" for loss in (*losses, statistics.mean(losses))]
        figures.append(f"{statistics.stdev(losses):.3f}" if len(losses) > 1 else "-")
        accuracy = statistics.mean(run["eval_accuracy"] for run in runs.values())
        speed = statistics.median(run["tokens_per_second"] for run in runs.values())
        rows.append([name, f"{first['parameters']:,}", f"{first['steps']:,}", *figures, f"{accuracy:.1%}", f"{speed:,.0f}"])
    seeds = (f"seed {seed}" for seed in runs)
    header = ("", "parameters", "steps", *seeds, "mean", "standard deviation", "masked accuracy", "tokens/s")
    return f"""{cards.table(header, rows)}

Validation loss in nats per masked token; a step has {recipe.global_batch_size} sequences. The unigram cross-entropy of the
same tokens is {first["unigram_cross_entropy"]:.3f}. Tokens/s: the median over the steps, then over the seeds."""


def plot(results: dict[str, dict[int, dict]], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for color, (name, runs) in enumerate(results.items()):
        for i, run in enumerate(runs.values()):
            label = name if i == 0 else None
            axes.plot(*zip(*run["curve"], strict=True), color=f"C{color}", alpha=0.7, linewidth=1.2, label=label)
    unigram = next(iter(next(iter(results.values())).values()))["unigram_cross_entropy"]
    axes.axhline(unigram, color="gray", linestyle="--", label=f"unigram baseline ({unigram:.2f})")
    axes.set(xlabel="step", ylabel="validation loss (nats per masked token)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="Other options are those of `luna pretrain`, for all contestants, for example --max_steps 100.",
    )
    parser.add_argument("comparison", choices=COMPARISONS)
    parser.add_argument("--recipe", default="quickstart", help="a recipe of a Luna")
    parser.add_argument("--seeds", default="0,1,2", help="numbers with commas between them")
    parser.add_argument("--runs_dir", type=Path, help="default: runs/COMPARISON")
    parser.add_argument("--output", type=Path, help="default: docs/COMPARISON.md")
    args, options = parser.parse_known_args(arguments)
    runs_dir = args.runs_dir or Path("runs", args.comparison)
    output = args.output or Path("docs", f"{args.comparison}.md")
    recipe = load_recipe(args.recipe, *options)
    contestants = COMPARISONS[args.comparison](recipe)
    results: dict[str, dict[int, dict]] = {name: {} for name in contestants}
    for seed in map(int, args.seeds.split(",")):
        for name, changes in contestants.items():
            folder = runs_dir / f"{re.sub(r'[^a-z0-9]+', '_', name.lower()).strip('_')}_seed{seed}"
            print(f"{name}, seed {seed}", flush=True)
            results[name][seed] = train(folder, recipe, changes, seed)
    given = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "-m", "scripts.reports.compare_pretraining", *given])
    text = f"# {TITLES[args.comparison]}\n\nMade by `{command}`.\n\n{table(results, recipe)}\n\n"
    plot(results, output.with_suffix(".png"))
    output.write_text(f"{text}![validation loss]({output.with_suffix('.png').name})\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
