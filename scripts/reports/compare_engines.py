# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Run one recipe under every engine on CPU processes, and compare each with plain data parallelism.

    python scripts/compare_engines.py > docs/engines.md

Every cell of the table is really run: `torchrun` starts `pretraining.train` in the environment of `accelerate launch`.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import torch
import yaml
from safetensors.torch import load_file
from tqdm import tqdm
from transformers import AutoModelForMaskedLM

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the program of this clone, installed or not
os.environ["DS_ACCELERATOR"] = "cpu"  # otherwise DeepSpeed says on stdout that it found no GPU

import modeling_luna  # noqa: E402, F401  (registers Luna with the Auto classes)
from pretraining import checkpoint as ckpt  # noqa: E402
from pretraining.cluster import ENGINE_NAMES  # noqa: E402
from pretraining.prepare.run import main as prepare  # noqa: E402
from pretraining.train import read_metrics  # noqa: E402

VOCAB_SIZE, SEQUENCE_LENGTH = 600, 32
# Sizes that no number of processes divides, dropout, clipping that has something to do, an odd number of validation rows.
VALUES = {
    "model": {
        "model_type": "luna",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 36,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 50,
        "projection_length": 7,
        "max_position_embeddings": SEQUENCE_LENGTH + 2,
    },
    "max_steps": 6,
    "global_batch_size": 8,
    "micro_batch_size": 1,
    "learning_rate": 1e-2,
    "max_grad_norm": 0.5,
    "warmup_steps": 1,
    "logging_steps": 1,
    "eval_steps": 3,
    "eval_micro_batch_size": 4,
    "max_eval_sequences": 11,
    "save_steps": 3,
}
# Dropout is drawn by each process for itself, so only without it are runs on other numbers of processes the same.
NO_DROPOUT = VALUES["model"] | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def environment(engine: str) -> dict[str, str]:
    """As `accelerate launch` sets it for the processes, with the configurations of `pretraining/launch`."""
    own = {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    if engine == "fsdp2":
        own |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    elif engine.startswith("zero"):
        config = ROOT / "pretraining" / "launch" / f"{engine}.json"
        own |= {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(config)}
    return os.environ | own | {"PYTHONPATH": str(ROOT)}


def command(recipe: Path, processes: int, program: tuple[str, ...] = ("-m", "pretraining.train")) -> list[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return [*torchrun, "--monitor-interval=0.1", *program, str(recipe)]


def write_recipe(values: dict, output: Path) -> Path:
    recipe = output.parent / f"{output.name}.yaml"
    recipe.write_text(yaml.safe_dump(values | {"output_dir": str(output)}), encoding="utf-8")
    return recipe


def run_to_end(engine: str, started: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command under an engine. The ranks, sessions of their own, end with this program if it is interrupted."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(started, env=environment(engine), cwd=ROOT, **pipes) as process:
        try:
            out, err = process.communicate()
        except BaseException:
            for member in [*psutil.Process(process.pid).children(recursive=True), process]:
                member.kill()
            raise
    return subprocess.CompletedProcess(started, process.returncode, out, err)


def launch(engine: str, values: dict, output: Path, processes: int = 2, **changes) -> Path:
    """Run the program under an engine. Returns `output`, the run's folder."""
    done = run_to_end(engine, command(write_recipe(values | changes, output), processes))
    if done.returncode != 0:
        raise RuntimeError(f"{engine} on {processes} processes failed:\n{done.stderr[-3000:]}")
    return output


def curve(output: Path) -> list[float]:
    """Losses, gradient norms and evaluations in their order."""
    rows = read_metrics(output / "metrics.jsonl")
    return [row[name] for row in rows for name in ("loss", "grad_norm", "eval_loss") if name in row]


def curve_difference(a: Path, b: Path) -> float:
    return max(abs(x - y) for x, y in zip(curve(a), curve(b), strict=True))


def cut_back(output: Path, step: int, copy: Path) -> Path:
    """A copy of the run as it was after `step`."""
    shutil.copytree(output, copy)
    (copy / "results.json").unlink()
    for checkpoint in ckpt.checkpoints(copy / "checkpoints"):
        if ckpt.checkpoint_step(checkpoint) > step:
            shutil.rmtree(checkpoint)
    return copy


def weight_difference(a: Path, b: Path, file: str = "model/model.safetensors") -> float:
    """Largest difference of two runs' tensors; infinite where they have other names."""
    a, b = load_file(a / file), load_file(b / file)
    if a.keys() != b.keys():
        return float("inf")
    return max((a[name] - b[name]).abs().max().item() for name in a)


def loads_whole(output: Path) -> bool:
    _, report = AutoModelForMaskedLM.from_pretrained(output / "model", output_loading_info=True)
    return not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def rows_of_table(folder: Path, values: dict) -> list[list[str]]:
    """One row an engine."""
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


HEADER = ["engine", "losses and gradient norms", "exact resume", "loads as a plain model", "2 to 4 processes", "4 to 2"]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        dataset = f"{folder}/dataset"
        sizes = ["--vocab_size", str(VOCAB_SIZE), "--sequence_length", str(SEQUENCE_LENGTH), "--validation_fraction", "0.05"]
        with open(os.devnull, "w") as quiet:
            shown, sys.stdout = sys.stdout, quiet
            prepare([dataset, "--source", "python-docs", *sizes])
            sys.stdout = shown
        rows = rows_of_table(Path(folder), VALUES | {"dataset": dataset})
    try:
        import deepspeed

        versions = f"torch {torch.__version__}, deepspeed {deepspeed.__version__}"
    except ImportError:
        sys.exit("error: DeepSpeed is not installed: `pip install -e '.[deepspeed]'`.")
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in (HEADER, ["---"] * len(HEADER), *rows))
    print(f"""# One recipe under every engine

Made by `python scripts/compare_engines.py > docs/engines.md` with {versions}, on CPU processes (gloo), in float32.

{table}

A small Luna with dropout, 6 steps and 2 evaluations; 2 processes x 4 micro-batches; the DeepSpeed configurations of
`pretraining/launch`. Losses and gradient norms: largest
difference from plain data parallelism (ddp). Exact resume: stopped after step 3 and started again. Loads as a plain
model: by `from_pretrained`, and the largest difference of its weights from those of ddp. Another number of processes:
after step 3, without dropout, which each process draws for itself; largest difference of losses, and of weights, from the
run on 2.
""")


if __name__ == "__main__":
    main()
