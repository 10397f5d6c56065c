# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Speed and peak memory of Luna's causal attention against the official parallel formulation.

    python -m scripts.reports.benchmark_causal
    python -m scripts.reports.benchmark_causal --only chunk_sizes

writes `results.json`, `causal.md` and `causal.png` to `--output_dir`. The contestants take turns, one step each per round,
and a ratio is always between two steps of one round. Peak memory is that of one step in a fresh process. A section that is
not run again is kept from an earlier `results.json`.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from matplotlib.figure import Figure

import causal_luna
from causal_luna import CAUSAL_ACTIVATIONS, CausalSums, causal_attention, take_chunk
from scripts.reports.benchmark_encoder import (
    MIN_ROUNDS,
    available_bytes,
    environment,
    median_ms,
    peak_mebibytes,
    ratios,
    section_lines,
    spread,
    table,
    time_in_turns,
)

MODES = {"forward": "Forward", "training": "Forward and backward"}
PARALLEL, CHUNKED, PLAIN_AUTOGRAD = "parallel", "chunked", "chunked, plain autograd"
CHUNK_SIZES = (16, 32, 64, 128, 256)


# ---------------------------------------------------------------------------------------------------------------------
# What is measured


def parallel_f(x_bhni: torch.Tensor, y_bhni: torch.Tensor, z_bhno: torch.Tensor, t_n1: torch.Tensor) -> torch.Tensor:
    """Equation 7 as the official code computes it for training: every token's sum is written down, (b, h, n, i, o)."""
    sums_bhnio = (y_bhni.unsqueeze(-1) @ z_bhno.unsqueeze(-2)).cumsum(dim=2)
    return (x_bhni.unsqueeze(-2) @ sums_bhnio).squeeze(-2) / t_n1


def parallel_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pack: torch.Tensor) -> torch.Tensor:
    t_n1 = torch.arange(1, query.shape[2] + 1, device=query.device)[:, None]
    return parallel_f(parallel_f(query, key, pack, t_n1).softmax(dim=-1), pack, value, t_n1)


def chunked_attention(*inputs: torch.Tensor) -> torch.Tensor:
    return causal_attention(*inputs, output_weights=False)[0]


def plain_autograd_sums(x_bhni, y_bhni, z_bhno, state_bhio, reverse) -> tuple[torch.Tensor, torch.Tensor]:
    """What `CausalSums` computes, by operations of which autograd keeps what it needs of each chunk."""
    outputs = []
    # Split at once: the gradient of a slice would be as long as the text.
    for chunks in zip(*(tensor.split(causal_luna.CHUNK_SIZE, dim=2) for tensor in (x_bhni, y_bhni, z_bhno)), strict=True):
        x, y, z = (take_chunk(chunk, 0, state_bhio.dtype) for chunk in chunks)
        outputs.append(x @ state_bhio + (x @ y.mT).tril() @ z)
        state_bhio = state_bhio + y.mT @ z
    return torch.cat(outputs, dim=2)[:, :, : x_bhni.shape[2]], state_bhio


def plain_autograd_attention(*inputs: torch.Tensor) -> torch.Tensor:
    with mock.patch.object(CausalSums, "apply", plain_autograd_sums):
        return chunked_attention(*inputs)


CONTESTANTS = {PARALLEL: parallel_attention, CHUNKED: chunked_attention, PLAIN_AUTOGRAD: plain_autograd_attention}


def attention_step(args: argparse.Namespace, attend: Callable, n: int, mode: str) -> Callable[[], None]:
    torch.manual_seed(0)
    options = {"device": args.device, "dtype": getattr(torch, args.dtype)}

    def make(n: int) -> Callable[[], None]:
        def normal(size: int) -> torch.Tensor:  # laid out as a model's projections give them
            return torch.randn(1, n, args.num_heads, size, **options).transpose(1, 2)

        pack = CAUSAL_ACTIVATIONS["softplus"](normal(args.projection_length))
        inputs = [x.requires_grad_(mode == "training") for x in (*(normal(args.head_size) for _ in range(3)), pack)]
        gradient = normal(args.head_size)

        def step():
            with torch.set_grad_enabled(mode == "training"):
                output = attend(*inputs)
                if mode == "training":
                    torch.autograd.grad(output, inputs, gradient)

        return step

    make(2 * causal_luna.CHUNK_SIZE)()  # what a process loads with its first step is no one's memory
    return make(n)


def contestant_step(args: argparse.Namespace, name: str, n: int, mode: str) -> Callable[[], None]:
    return attention_step(args, CONTESTANTS[name], n, mode)


def chunk_size_step(args: argparse.Namespace, size: int, n: int, mode: str) -> Callable[[], None]:
    step = attention_step(args, chunked_attention, n, mode)

    def patched():
        with mock.patch.object(causal_luna, "CHUNK_SIZE", size):
            step()

    return patched


def sums_bytes(args: argparse.Namespace, n: int, mode: str) -> int:
    """What the parallel formulation needs at least: outer products and their sums, for training those of both f."""
    live = 2 if mode == "forward" else 4
    return live * n * args.num_heads * args.head_size * args.projection_length * getattr(torch, args.dtype).itemsize


# ---------------------------------------------------------------------------------------------------------------------
# Measurement


def measure(args: argparse.Namespace, make_steps: dict[str, Callable], baseline: str, n: int, mode: str) -> dict:
    print(f"memory, {n} tokens, {mode}", flush=True)
    memory = {name: peak_mebibytes(partial(make_step, n, mode), args.device) for name, make_step in make_steps.items()}
    print(f"time, {n} tokens, {mode}", flush=True)
    steps = {name: make_step(n, mode) for name, make_step in make_steps.items()}
    return {"tokens": n, "mode": mode, "peak_mib": memory, "seconds": time_in_turns(steps, [baseline], args)}


def measure_lengths(args: argparse.Namespace, cells: list[dict]) -> None:
    """Adds to `cells` one for each length and mode, so that an interrupted run keeps what it has."""
    for n in args.lengths:
        for mode in MODES:
            names = [name for name in CONTESTANTS if name != PLAIN_AUTOGRAD or mode == "training"]
            if n > args.parallel_up_to or sums_bytes(args, n, mode) > available_bytes(args.device):
                names.remove(PARALLEL)
            make_steps = {name: partial(contestant_step, args, name) for name in names}
            cells.append(measure(args, make_steps, CHUNKED, n, mode))


def measure_chunk_sizes(args: argparse.Namespace, cells: list[dict]) -> None:
    make_steps = {str(size): partial(chunk_size_step, args, size) for size in CHUNK_SIZES}
    for mode in MODES:
        cells.append(measure(args, make_steps, str(causal_luna.CHUNK_SIZE), args.chunk_sizes_at, mode))


# ---------------------------------------------------------------------------------------------------------------------
# Report


def microseconds_per_token(cell: dict, name: str) -> float:
    return median_ms(cell["seconds"], name) * 1e3 / cell["tokens"]


def lengths_table(cells: list[dict], mode: str) -> str:
    rows = []
    for cell in [x for x in cells if x["mode"] == mode]:
        memory, rounds = cell["peak_mib"], cell["seconds"]
        for name in memory:
            row = [name, f"{cell['tokens']:,}", f"{median_ms(rounds, name):.1f}"]
            row += [f"{microseconds_per_token(cell, name):.2f}", f"{memory[name]:.1f}"]
            if name == PARALLEL or PARALLEL not in memory:
                row += ["", ""]
            else:
                row += [spread(ratios(rounds, PARALLEL, name)), f"{memory[PARALLEL] / memory[name]:.1f}"]
            rows.append(row)
    header = ["form", "tokens", "ms", "us per token", "peak MiB", "speed-up over parallel", "memory ratio"]
    return table(header, rows)


def growth_line(cells: list[dict], mode: str) -> str:
    """How time and memory of the chunked form grow, from 1,024 tokens or the next length on."""
    cells = [cell for cell in cells if cell["mode"] == mode and cell["tokens"] >= 1024]
    if len(cells) < 2:
        return ""
    first, last = min(cells, key=lambda x: x["tokens"]), max(cells, key=lambda x: x["tokens"])
    factor = last["tokens"] / first["tokens"]
    seconds = median_ms(last["seconds"], CHUNKED) / median_ms(first["seconds"], CHUNKED)
    return (
        f"From {first['tokens']:,} to {last['tokens']:,} tokens, {factor:.0f} times as many, the chunked form takes "
        f"{seconds:.1f} times the time and {last['peak_mib'][CHUNKED] / first['peak_mib'][CHUNKED]:.1f} times the memory."
    )


def sizes_line(sizes: dict) -> str:
    return f"{sizes['num_heads']} heads of size {sizes['head_size']}, l = {sizes['projection_length']}; batch 1, no mask."


def lengths_report(section: dict) -> list[str]:
    cells = section["cells"]
    fewest = min(len(cell["seconds"]) for cell in cells)
    paragraphs = ["## Against the parallel formulation", *section_lines(section)]
    paragraphs.append(
        f"One attention without projections: {sizes_line(section['arguments'])} The parallel formulation is that of the "
        "official code, written anew: it cumulates the outer products of all tokens, n x k x l numbers in each head. The "
        "chunked form, which the model uses, needs products of a chunk's tokens with each other and one sum before each. "
        f"Medians over at least {fewest} rounds, with minimum and maximum; above 1 the contestant is better. Peak memory is "
        "that of one step over what the process held before it, which was the inputs."
    )
    for mode, title in MODES.items():
        if any(cell["mode"] == mode for cell in cells):
            paragraphs += [f"### {title}", lengths_table(cells, mode), growth_line(cells, mode)]
    paragraphs.append(
        "In the backward pass the chunked form computes again what it needs, from the inputs alone. `chunked, plain "
        "autograd` is the same loop without that: autograd keeps the products and sums of every chunk."
    )
    return [*filter(None, paragraphs), "![Time and memory against length](causal.png)"]


def chunk_sizes_report(section: dict) -> list[str]:
    sizes = section["arguments"]
    rows = []
    for cell in section["cells"]:
        cells = [f"{median_ms(cell['seconds'], name):.1f}" for name in cell["peak_mib"]]
        memory = [f"{mib:.1f}" for mib in cell["peak_mib"].values()]
        rows += [[f"{MODES[cell['mode']]}, ms", *cells], [f"{MODES[cell['mode']]}, peak MiB", *memory]]
    return [
        "## Chunk size",
        *section_lines(section),
        f"{sizes['chunk_sizes_at']:,} tokens; {sizes_line(sizes)} The code uses {section['chunk_size']}. Medians of "
        f"{min(len(cell['seconds']) for cell in section['cells'])} rounds.",
        table(["tokens in a chunk", *map(str, CHUNK_SIZES)], rows),
    ]


def plot(section: dict, path: Path) -> None:
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    time_axis, memory_axis = figure.subplots(1, 2)
    styles = {"forward": ":", "training": "-"}
    for i, name in enumerate(CONTESTANTS):
        for mode, style in styles.items():
            cells = [x for x in section["cells"] if x["mode"] == mode and name in x["peak_mib"]]
            if not cells:
                continue
            tokens = [cell["tokens"] for cell in cells]
            line = {"color": f"C{i}", "label": f"{name}, {MODES[mode].lower()}"}
            time_axis.plot(tokens, [median_ms(cell["seconds"], name) for cell in cells], f"o{style}", **line)
            memory_axis.plot(tokens, [cell["peak_mib"][name] for cell in cells], f"o{style}", **line)
    lengths = section["arguments"]["lengths"]
    for axis, title in ((time_axis, "ms"), (memory_axis, "peak MiB")):
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(lengths)
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.yaxis.set_major_formatter("{x:,.0f}")
        axis.tick_params(axis="x", which="minor", bottom=False)
        axis.set_xlabel("tokens")
        axis.set_ylabel(title)
        axis.grid(alpha=0.3)
    time_axis.legend()
    figure.savefig(path, dpi=150)


# ---------------------------------------------------------------------------------------------------------------------


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=list(MEASURES), help="run one section; default: both")
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096, 8192, 16384, 32768])
    parser.add_argument("--parallel_up_to", type=int, default=8192, help="the longest text for the parallel formulation")
    parser.add_argument("--chunk_sizes_at", type=int, default=4096, help="tokens for the section on chunk sizes")
    parser.add_argument("--num_heads", type=int, default=8)
    parser.add_argument("--head_size", type=int, default=64)
    parser.add_argument("--projection_length", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5, help=f"counted rounds, at least {MIN_ROUNDS}")
    parser.add_argument(
        "--time_budget",
        type=float,
        default=5,
        help=f"seconds per contestant, length and mode, after which it runs no round beyond the first {MIN_ROUNDS}",
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/benchmark-causal"))
    args = parser.parse_args()
    if args.rounds < MIN_ROUNDS:
        parser.error(f"--rounds is {args.rounds}, but must be at least {MIN_ROUNDS}")
    return args


MEASURES = {"lengths": measure_lengths, "chunk_sizes": measure_chunk_sizes}
REPORTS = {"lengths": lengths_report, "chunk_sizes": chunk_sizes_report}


def main() -> None:
    args = parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    results_file = args.output_dir / "results.json"
    results = json.loads(results_file.read_text()) if results_file.exists() else {}
    cells = {name: [] for name in (MEASURES if args.only is None else [args.only])}
    try:
        for name in cells:
            MEASURES[name](args, cells[name])
    except KeyboardInterrupt:
        print("interrupted: the report holds what is finished", flush=True)
    for name in cells:
        if cells[name]:
            results[name] = {
                "environment": environment(args),
                "command": shlex.join(["python", "-m", "scripts.reports.benchmark_causal", *sys.argv[1:]]),
                "arguments": {key: value for key, value in vars(args).items() if key not in ("only", "output_dir")},
                "chunk_size": causal_luna.CHUNK_SIZE,
                "cells": cells[name],
            }

    paragraphs = ["# Benchmark of causal attention"]
    for name in REPORTS:
        if name in results:
            paragraphs += REPORTS[name](results[name])
    report = "\n\n".join(paragraphs) + "\n"
    print(report)
    results_file.write_text(json.dumps(results, indent=1) + "\n")
    (args.output_dir / "causal.md").write_text(report)
    if "lengths" in results:
        plot(results["lengths"], args.output_dir / "causal.png")


if __name__ == "__main__":
    main()
