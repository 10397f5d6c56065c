# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Run one recipe under every engine on CPU processes, and compare each with plain data parallelism.

    python -m scripts.reports.compare_engines > docs/engines.md

Every cell of the table is really run: `torchrun` starts `pretraining.train` in the environment of `accelerate launch`.
"""

import argparse
import importlib.util
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from tqdm import tqdm
from transformers import AutoModelForMaskedLM

import modeling_luna  # noqa: F401  (registers Luna with the Auto classes)
from luna_tools.cards import table
from pretraining.launcher import ENGINE_NAMES
from scripts.reports.launching import VALUES, curve_difference, cut_back, launch, prepare, weight_difference

# Dropout is drawn by each process for itself, so only without it are runs on other numbers of processes the same.
NO_DROPOUT = VALUES["model"] | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
HEADER = ("engine", "losses and gradient norms", "exact resume", "loads as a plain model", "2 to 4 processes", "4 to 2")


def loads_whole(output: Path) -> bool:
    """Tell whether a run's model loads without a key missing or left."""
    _, report = AutoModelForMaskedLM.from_pretrained(output / "model", output_loading_info=True)
    return not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def rows_of_table(folder: Path, values: dict) -> list[list[str]]:
    """Run all that the table tells. Returns one row an engine."""
    rows = []
    still = values | {"model": NO_DROPOUT}
    bar = tqdm(total=6 * len(ENGINE_NAMES), desc="runs", unit="run")

    def run(*args, **kwargs) -> Path:
        output = launch(*args, **kwargs)
        bar.update()
        return output

    for engine in ENGINE_NAMES:
        (own := folder / engine).mkdir()
        whole = run(engine, values, own / "run")
        plain = whole if engine == "ddp" else folder / "ddp" / "run"
        resumed = run(engine, values, cut_back(whole, 3, own / "resumed"))
        two, four = run(engine, still, own / "two"), run(engine, still, own / "four", processes=4)
        up = run(engine, still, cut_back(two, 3, own / "up"), processes=4)
        down = run(engine, still, cut_back(four, 3, own / "down"))
        rows.append(
            [
                engine,
                f"{curve_difference(whole, plain):.0e}",
                "yes, bit for bit" if weight_difference(resumed, whole) == 0 == curve_difference(resumed, whole) else "NO",
                f"yes, {weight_difference(whole, plain):.0e}" if loads_whole(whole) else "NO",
                f"{curve_difference(up, two):.0e}, {weight_difference(up, two):.0e}",
                f"{curve_difference(down, two):.0e}, {weight_difference(down, two):.0e}",
            ]
        )
    bar.close()
    return rows


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    if importlib.util.find_spec("deepspeed") is None:
        sys.exit("error: DeepSpeed is not installed: `pip install -e '.[deepspeed]'`.")
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder, "dataset"))
        rows = rows_of_table(Path(folder), VALUES | {"dataset": f"{folder}/dataset"})
    print(f"""# One recipe under every engine

Made by `python -m scripts.reports.compare_engines > docs/engines.md` with torch {version("torch")}, deepspeed
{version("deepspeed")}, on CPU processes (gloo), in float32.

{table(HEADER, rows)}

A small Luna with dropout, 6 steps and 2 evaluations; 2 processes x 4 micro-batches; the DeepSpeed configurations of
`pretraining/launch`. Losses and gradient norms: largest
difference from plain data parallelism (ddp). Exact resume: stopped after step 3 and started again. Loads as a plain
model: by `from_pretrained`, and the largest difference of its weights from those of ddp. Another number of processes:
after step 3, without dropout, which each process draws for itself; largest difference of losses, and of weights, from the
run on 2.
""")


if __name__ == "__main__":
    main()
