# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Speed and peak memory of Luna's causal attention against the official parallel formulation.

    python -m scripts.reports.benchmark_causal
    python -m scripts.reports.benchmark_causal --only chunk_sizes

writes `results.json`, `causal.md` and `causal.png` to `--output_dir`. Contestants take turns, each in a process of its own.
A section that is not run again is kept from an earlier `results.json`.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from unittest import mock

import torch
from matplotlib.figure import Figure

import causal_luna
from causal_luna import CAUSAL_ACTIVATIONS, CausalSums, causal_attention, take_chunk
from luna_tools.cards import table
from luna_tools.files import write_json, write_text
from scripts.reports.results import measured, memory_ratio, ratios, shown, spread, where
from scripts.reports.turns import SERVER, add_options, limits, machine, take_turns

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


# ---------------------------------------------------------------------------------------------------------------------
# Measurement


def measure(args: argparse.Namespace, make_steps: dict[str, Callable], n: int, mode: str) -> dict:
    print(f"{n} tokens, {mode}", flush=True)
    makers = {name: partial(make_step, n, mode) for name, make_step in make_steps.items()}
    return {"tokens": n, "mode": mode, "cells": take_turns(makers, **limits(args))}


def measure_lengths(args: argparse.Namespace, results: list[dict]) -> None:
    """Adds to `results` one for each length and mode, so that an interrupted run keeps what it has."""
    for n in args.lengths:
        for mode in MODES:
            names = [name for name in CONTESTANTS if name != PLAIN_AUTOGRAD or mode == "training"]
            if n > args.parallel_up_to:
                names.remove(PARALLEL)
            results.append(measure(args, {name: partial(contestant_step, args, name) for name in names}, n, mode))


def measure_growth(args: argparse.Namespace, results: list[dict]) -> None:
    for mode in MODES:
        for n in args.growth_lengths:
            results.append(measure(args, {CHUNKED: partial(contestant_step, args, CHUNKED)}, n, mode))


def measure_chunk_sizes(args: argparse.Namespace, results: list[dict]) -> None:
    make_steps = {str(size): partial(chunk_size_step, args, size) for size in CHUNK_SIZES}
    for mode in MODES:
        results.append(measure(args, make_steps, args.chunk_sizes_at, mode))


# ---------------------------------------------------------------------------------------------------------------------
# Report


def milliseconds(cell: dict) -> float:
    return 1e3 * median(cell["seconds"])


def fewest_rounds(section: dict) -> int:
    cells = [cell for result in section["results"] for cell in result["cells"].values()]
    return min((len(cell["seconds"]) for cell in cells if "absent" not in cell), default=0)


def lengths_table(results: list[dict]) -> str:
    rows = []
    for result in results:
        for name, cell in result["cells"].items():
            row = [name, f"{result['tokens']:,}"]
            if "absent" in cell:
                rows.append([*row, cell["absent"], "", "", "", ""])
                continue
            ms = milliseconds(cell)
            row += [f"{ms:.1f}", f"{1e3 * ms / result['tokens']:.2f}", f"{cell['peak_mib']:.1f}"]
            if name != PARALLEL:
                row += [spread(ratios(result, PARALLEL, name)), shown(memory_ratio(result, name, PARALLEL), ".1f")]
            rows.append(row if name != PARALLEL else [*row, "", ""])
    header = ("form", "tokens", "ms", "us per token", "peak MiB", "speed-up over parallel", "memory ratio")
    return table(header, rows)


def sizes_line(sizes: dict) -> str:
    return f"{sizes['num_heads']} heads of size {sizes['head_size']}, l = {sizes['projection_length']}; batch 1, no mask."


def lengths_report(section: dict) -> list[str]:
    paragraphs = ["## Against the parallel formulation", *where([section])]
    paragraphs.append(
        f"One attention without projections: {sizes_line(section['arguments'])} The parallel formulation is that of the "
        "official code, written anew: it cumulates the outer products of all tokens, n x k x l numbers in each head. The "
        "chunked form, which the model uses, needs products of a chunk's tokens with each other and one sum before each. "
        f"Medians over at least {fewest_rounds(section)} rounds, with minimum and maximum; above 1 the contestant is "
        "better. Peak memory is that of one step over what the process held before it, which was the inputs."
    )
    for mode, title in MODES.items():
        if results := [result for result in section["results"] if result["mode"] == mode]:
            paragraphs += [f"### {title}", lengths_table(results)]
    paragraphs.append(
        "In the backward pass the chunked form computes again what it needs, from the inputs alone. `chunked, plain "
        "autograd` is the same loop without that: autograd keeps the products and sums of every chunk."
    )
    return [*paragraphs, "![Time and memory against length](causal.png)"]


def growth_report(section: dict) -> list[str]:
    """Fastest round and memory per token: the median of a busy machine says more of its other programs."""
    rows = []
    for result in section["results"]:
        n, cell = result["tokens"], result["cells"][CHUNKED]
        row = [MODES[result["mode"]], f"{n:,}"]
        if "absent" in cell:
            rows.append([*row, cell["absent"], "", ""])
            continue
        fastest = min(cell["seconds"])
        rows.append([*row, f"{1e3 * fastest:.1f}", f"{1e6 * fastest / n:.2f}", f"{1024 * cell['peak_mib'] / n:.1f}"])
    return [
        "## Growth",
        *where([section]),
        f"The chunked form alone; {sizes_line(section['arguments'])} The fastest of {fewest_rounds(section)} "
        "rounds. Where time and memory are linear in the number of tokens, those of a token are the same in every row.",
        table(("step", "tokens", "ms", "us per token", "peak KiB per token"), rows),
    ]


def chunk_sizes_report(section: dict) -> list[str]:
    sizes = section["arguments"]
    rows = []
    for result in section["results"]:
        cells, title = result["cells"].values(), MODES[result["mode"]]
        rows.append([f"{title}, ms", *(cell.get("absent") or f"{milliseconds(cell):.1f}" for cell in cells)])
        rows.append([f"{title}, peak MiB", *("" if "absent" in cell else f"{cell['peak_mib']:.1f}" for cell in cells)])
    return [
        "## Chunk size",
        *where([section]),
        f"{sizes['chunk_sizes_at']:,} tokens; {sizes_line(sizes)} The code uses {section['chunk_size']}. Medians of "
        f"{fewest_rounds(section)} rounds.",
        table(("tokens in a chunk", *map(str, CHUNK_SIZES)), rows),
    ]


def plot(section: dict, path: Path) -> None:
    figure = Figure(figsize=(11, 5), layout="constrained")
    time_axis, memory_axis = figure.subplots(1, 2)
    styles = {"forward": ":", "training": "-"}
    for i, name in enumerate(CONTESTANTS):
        for mode, style in styles.items():
            results = [x for x in section["results"] if x["mode"] == mode and measured(x, name)]
            if not results:
                continue
            tokens, cells = [x["tokens"] for x in results], [x["cells"][name] for x in results]
            line = {"color": f"C{i}", "label": f"{name}, {MODES[mode].lower()}"}
            time_axis.plot(tokens, [milliseconds(cell) for cell in cells], f"o{style}", **line)
            memory_axis.plot(tokens, [cell["peak_mib"] for cell in cells], f"o{style}", **line)
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
    figure.legend(*time_axis.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=150)


# ---------------------------------------------------------------------------------------------------------------------


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=list(MEASURES), help="run one section; default: all")
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096, 8192, 16384, 32768])
    parser.add_argument("--parallel_up_to", type=int, default=8192, help="the longest text for the parallel formulation")
    parser.add_argument("--growth_lengths", type=int, nargs="+", default=[2048, 4096, 8192, 16384, 32768])
    parser.add_argument("--chunk_sizes_at", type=int, default=4096, help="tokens for the section on chunk sizes")
    parser.add_argument("--num_heads", type=int, default=8)
    parser.add_argument("--head_size", type=int, default=64)
    parser.add_argument("--projection_length", type=int, default=16)
    add_options(parser)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/benchmark-causal"))
    return parser.parse_args()


MEASURES = {"lengths": measure_lengths, "growth": measure_growth, "chunk_sizes": measure_chunk_sizes}
REPORTS = {"lengths": lengths_report, "growth": growth_report, "chunk_sizes": chunk_sizes_report}


def write_report(results: dict[str, dict], output_dir: Path) -> None:
    """Write tables and plot of what `results.json` has."""
    paragraphs = ["# Benchmark of causal attention"]
    for name in REPORTS:
        if name in results:
            paragraphs += REPORTS[name](results[name])
    write_text(output_dir / "causal.md", "\n\n".join(paragraphs) + "\n")
    if "lengths" in results:
        plot(results["lengths"], output_dir / "causal.png")


def main() -> int:
    args = parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    path = args.output_dir / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    SERVER.set_forkserver_preload(["causal_luna", "matplotlib.figure", "scripts.reports.turns"])
    found = {name: [] for name in (MEASURES if args.only is None else [args.only])}
    status = 0
    try:
        for name in found:
            MEASURES[name](args, found[name])
    except KeyboardInterrupt:
        print("Interrupted: what is finished is kept.", file=sys.stderr)
        status = 130
    for name in found:
        if found[name]:
            results[name] = {
                "machine": machine(args.device, args.dtype),
                "command": shlex.join(["python", "-m", "scripts.reports.benchmark_causal", *sys.argv[1:]]),
                "arguments": {key: value for key, value in vars(args).items() if key not in ("only", "output_dir")},
                "chunk_size": causal_luna.CHUNK_SIZE,
                "results": found[name],
            }
    write_json(path, results, indent=1)
    write_report(results, args.output_dir)
    print(f"The report is {args.output_dir / 'causal.md'}.")
    return status


if __name__ == "__main__":
    sys.exit(main())
