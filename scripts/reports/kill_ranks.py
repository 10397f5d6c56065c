# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Kill one rank of a run again and again, at random, and compare the end with that of an undisturbed run.

    python -m scripts.reports.kill_ranks --kills 100 --num_processes 2 --engine ddp

A rank is killed by SIGKILL a few steps after the start, or while a checkpoint is being written. `torchrun` must then end the
other ranks and itself; it is started again, as a scheduler would, and the run goes on from its last checkpoint.
"""

import argparse
import contextlib
import hashlib
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import yaml
from tqdm import tqdm

from pretraining.launcher import ENGINE_NAMES
from pretraining.metrics import read_metrics
from scripts.reports.launching import VALUES, command, curve, environment, launch, prepare

# Seconds, at random up to these, from a logged step or the start of a save to the kill: about two steps, and a save.
DELAY = {"training": 0.1, "saving": 0.03}


def ranks_of(launcher: psutil.Process) -> list[psutil.Process]:
    """List the ranks that the launcher has running; without their data workers."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return [child for child in launcher.children() if "pretraining.train" in " ".join(child.cmdline())]
    return []


def last_step(output: Path) -> int:
    rows = read_metrics(output / "metrics.jsonl")
    return rows[-1]["step"] if rows else 0


def is_saving(output: Path) -> bool:
    return any((output / "checkpoints").glob(".tmp-step-*"))


def run_and_kill(engine: str, values: dict, output: Path, processes: int, kills: int, seed: int) -> dict[str, int]:
    """Run with `kills` kills, then to the end. Returns how many hit it in training and how many in the middle of a save.

    Raises:
        RuntimeError: the run ended before it was killed often enough, did not end when a rank was killed, or failed.
    """
    chooser = random.Random(seed)
    started = command(values, output, processes)
    hits = {"training": 0, "saving": 0}
    for _ in tqdm(range(kills), desc="kills", unit="kill"):
        wanted, steps, started_at = chooser.choice(list(hits)), chooser.randint(1, 4), last_step(output)
        with (output.parent / f"{output.name}.log").open("w", encoding="utf-8") as log:
            process = subprocess.Popen(started, env=environment(engine), stdout=log, stderr=log)
        ranks = []
        while process.poll() is None:
            if (wanted == "training" or is_saving(output)) and last_step(output) >= started_at + steps:
                ranks = ranks_of(psutil.Process(process.pid))
                time.sleep(chooser.uniform(0, DELAY[wanted]))
                break
            time.sleep(0.001)
        if not ranks:
            raise RuntimeError(f"the run ended with {process.wait()} after {sum(hits.values())} kills, see {log.name}")
        hit = "saving" if is_saving(output) else "training"
        with contextlib.suppress(psutil.NoSuchProcess):
            chooser.choice(ranks).kill()
            hits[hit] += 1
        if process.wait(timeout=300) == 0 or psutil.wait_procs(ranks, timeout=60)[1]:
            raise RuntimeError(f"a rank was killed, but the others went on, see {log.name}")
    launch(engine, values, output, processes)
    return hits


def digest(output: Path) -> str:
    return hashlib.sha256((output / "model" / "model.safetensors").read_bytes()).hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--num_processes", type=int, default=2)
    parser.add_argument("--engine", choices=ENGINE_NAMES, default="ddp")
    parser.add_argument("--seed", type=int, default=0)
    args, options = parser.parse_known_args()
    changes = dict(zip((name.removeprefix("--") for name in options[::2]), map(yaml.safe_load, options[1::2]), strict=True))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder / "dataset")
        values = VALUES | {"dataset": f"{folder}/dataset", "max_steps": 10 * args.kills, "warmup_steps": 10}
        values |= {"eval_steps": 50, "save_steps": 2} | changes
        undisturbed = launch(args.engine, values, folder / "undisturbed", args.num_processes)
        hits = run_and_kill(args.engine, values, folder / "killed", args.num_processes, args.kills, args.seed)
        is_same = digest(undisturbed) == digest(folder / "killed") and curve(undisturbed) == curve(folder / "killed")
        left = sorted(path.name for path in (folder / "killed" / "checkpoints").iterdir() if path.name.startswith("."))
        print(
            f"{args.engine}, {args.num_processes} ranks, {10 * args.kills} steps: {hits['training']} kills in training, "
            f"{hits['saving']} while saving; weights and curve are {'bit-identical' if is_same else 'NOT THE SAME'}; "
            f"half-written checkpoints left: {left or 'none'}."
        )
    return 0 if is_same and not left else 1


if __name__ == "__main__":
    sys.exit(main())
