# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Speed and peak memory of the Luna encoder, and of its masked-LM step, against RoBERTa of the same size.

    python -m scripts.reports.benchmark_encoder
    python -m scripts.reports.benchmark_encoder --only mlm_head

writes `results.json`, `encoder.md` and `encoder.png` to `--output_dir`. The contestants take turns, one step each per
round, and a ratio is always between two steps of one round. GPU steps are timed with synchronisation. Peak memory is
that of one step in a fresh process. A section that is not run again is kept from an earlier `results.json`.
"""

import argparse
import json
import os
import platform
import resource
import shlex
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import psutil
import torch
import transformers
from matplotlib.figure import Figure
from transformers import PreTrainedModel, RobertaConfig, RobertaForMaskedLM, RobertaModel

import modeling_luna
from configuration_luna import LunaConfig
from modeling_luna import LunaForMaskedLM, LunaModel

BASELINES = ["RoBERTa SDPA", "RoBERTa eager"]
MODES = {
    "forward": "Forward",
    "training": "Training step (forward and backward, no optimizer)",
    "training with dropout": "Training step with dropout 0.1, as in Table 8",
}
MLM_STEPS = ["RoBERTa SDPA", "Luna, all logits", "Luna, masked positions only"]
MLM_BATCH, MLM_TOKENS, MLM_MASKED_SHARE = 4, 512, 0.15
MIN_ROUNDS = 3
CPU_DROPOUT = (
    " With dropout, SDPA has no kernel for the CPU and writes down its attention matrices as eager attention does: n x n of "
    "them for RoBERTa, n x l for Luna."
)


# ---------------------------------------------------------------------------------------------------------------------
# What is measured


PLAIN = ", plain projections"


def luna_names(args: argparse.Namespace, n: int) -> list[str]:
    """Each l; and with plain projections, where the model absorbs one by itself."""
    names = [f"Luna l = {l}{form}" for l in args.projection_lengths for form in ("", PLAIN)]
    return [
        name
        for name in names
        if not name.endswith(PLAIN) or multiply_adds(args, name, n) > multiply_adds(args, name.removesuffix(PLAIN), n)
    ]


def projection_length(name: str) -> int:
    return int(name.removeprefix("Luna l = ").removesuffix(PLAIN))


def model_sizes(args: argparse.Namespace, n: int, dropout: float = 0.0) -> dict:
    """Configuration shared by all contestants, with positions for n tokens and no more.

    The gradient of an embedding table is dense, so that unused positions would cost every contestant time.
    """
    return {
        "hidden_size": args.hidden_size,
        "num_attention_heads": args.num_heads,
        "intermediate_size": args.intermediate_size,
        "num_hidden_layers": args.num_layers,
        "max_position_embeddings": n + 2,
        "pad_token_id": 1,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
    }


def build_encoder(args: argparse.Namespace, name: str, n: int, mode: str) -> PreTrainedModel:
    sizes = model_sizes(args, n, 0.1 if mode == "training with dropout" else 0.0) | {"vocab_size": 1000}
    if name in BASELINES:
        config = RobertaConfig(**sizes, type_vocab_size=1, attn_implementation=name.removeprefix("RoBERTa ").lower())
        return RobertaModel(config, add_pooling_layer=False)
    model = LunaModel(LunaConfig(**sizes, projection_length=projection_length(name), attn_implementation="sdpa"))
    for layer in model.layers if name.endswith(PLAIN) else ():
        layer.attention.absorbs = lambda *args: False
    return model


def encoder_step(args: argparse.Namespace, name: str, n: int, mode: str) -> Callable[[], None]:
    torch.manual_seed(0)
    model = build_encoder(args, name, n, mode).to(args.device, getattr(torch, args.dtype)).train(mode != "forward")
    input_ids = torch.randint(2, 1000, (1, n), device=args.device)
    # A random gradient of the output: that of a sum of squares would be zero, since every token was just normalised.
    gradient = torch.randn(1, n, args.hidden_size, device=args.device, dtype=model.dtype)

    def forward():
        with torch.no_grad():
            model(input_ids)

    def training():
        model.zero_grad()
        model(input_ids).last_hidden_state.backward(gradient)

    return forward if mode == "forward" else training


def mlm_step(args: argparse.Namespace, name: str) -> Callable[[], None]:
    torch.manual_seed(0)
    sizes = model_sizes(args, MLM_TOKENS) | {"vocab_size": args.vocab_size, "attn_implementation": "sdpa"}
    is_luna = name.startswith("Luna")
    if is_luna:
        model = LunaForMaskedLM(LunaConfig(**sizes))
    else:
        model = RobertaForMaskedLM(RobertaConfig(**sizes, type_vocab_size=1))
    model = model.to(args.device, getattr(torch, args.dtype)).train()
    input_ids = torch.randint(2, args.vocab_size, (MLM_BATCH, MLM_TOKENS), device=args.device)
    is_masked = torch.rand(input_ids.shape, device=args.device) < MLM_MASKED_SHARE

    def luna_loss():
        labels = input_ids.where(is_masked, -100)
        return model(input_ids, labels=labels, output_logits=name == "Luna, all logits").loss

    def roberta_loss():  # whose own class projects every position
        logits = model.lm_head(model.roberta(input_ids).last_hidden_state[is_masked])
        return torch.nn.functional.cross_entropy(logits.float(), input_ids[is_masked])

    def training():
        model.zero_grad()
        (luna_loss() if is_luna else roberta_loss()).backward()

    return training


def multiply_adds(args: argparse.Namespace, name: str, n: int) -> float:
    """Multiply-adds of a layer's matrix products, forward, per token."""
    d, ffn = args.hidden_size, 2 * args.hidden_size * args.intermediate_size
    if name in BASELINES:
        return 4 * d**2 + ffn + 2 * n * d
    l = min(projection_length(name), n)
    # Pack, with keys and values in one, and unpack, with its output; of P and Y_P: pack_q and unpack_kv.
    attention = 2 * l * d**2
    for num_projections in (1, 2):
        sizes = n, l, args.num_heads, d, num_projections
        absorbs = not name.endswith(PLAIN) and modeling_luna.pays_to_absorb(*sizes)
        attention += modeling_luna.multiply_adds(*sizes)[absorbs]
    return ffn + attention / n


def attention_matrix_bytes(args: argparse.Namespace, name: str, n: int, mode: str) -> int:
    """Size of the attention matrices that RoBERTa holds at its peak; 0 where the kernel never writes them down.

    Forward holds the scores, the scaled scores and the weights of the layer before. Training keeps the weights of all
    layers, and the backward pass of one layer needs three gradients of that size. Dropout keeps the dropped weights and
    the mask as well. SDPA has no kernel for the CPU that drops out, so there it does what eager attention does.
    """
    with_dropout = mode == "training with dropout"
    if name == "RoBERTa SDPA" and not (with_dropout and args.device == "cpu"):
        return 0
    kept = 3 if with_dropout else 1
    live = 3 if mode == "forward" else kept * args.num_layers + 3
    return live * args.num_heads * n**2 * getattr(torch, args.dtype).itemsize


def available_bytes(device: str) -> int:
    return torch.cuda.mem_get_info()[0] if device == "cuda" else psutil.virtual_memory().available


# ---------------------------------------------------------------------------------------------------------------------
# Measurement


def timed(step: Callable[[], None], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def time_in_turns(
    steps: dict[str, Callable[[], None]], baselines: list[str], args: argparse.Namespace
) -> list[dict[str, float]]:
    """Seconds of each contestant, one dict per counted round; the warm-up round is not counted.

    After MIN_ROUNDS a contestant that has used up the time budget sits out, and without a baseline the rounds end.
    """
    for step in steps.values():
        step()
    rounds = []
    spent = dict.fromkeys(steps, 0.0)
    for i in range(args.rounds):
        running = [name for name in steps if i < MIN_ROUNDS or spent[name] < args.time_budget]
        if not set(running) & set(baselines):
            break
        rounds.append({name: timed(steps[name], args.device) for name in running})
        for name, seconds in rounds[-1].items():
            spent[name] += seconds
        print(f"  round {i + 1}:", ", ".join(f"{name} {s * 1e3:.1f} ms" for name, s in rounds[-1].items()), flush=True)
    return rounds


def step_peak_bytes(make_step: Callable[[], Callable[[], None]], device: str) -> int:
    """Peak memory of one step over what was in use before it. Runs in a process of its own."""
    step = make_step()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    before = psutil.Process().memory_info().rss
    step()
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - before


def peak_mebibytes(make_step: Callable[[], Callable[[], None]], device: str) -> float:
    # Not "spawn": on Linux the ru_maxrss of a spawned process starts at the size of this one.
    context = get_context("forkserver")
    context.set_forkserver_preload(["scripts.reports.benchmark_encoder"])  # what all of them import is imported once
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(step_peak_bytes, make_step, device).result() / 2**20


def measure_encoder(args: argparse.Namespace, cells: list[dict]) -> None:
    """Adds to `cells` one for each length and mode, so that an interrupted run keeps what it has."""
    for n in args.lengths:
        for mode in MODES:
            names = BASELINES + luna_names(args, n)
            left_out = {}
            for name in BASELINES:
                need = attention_matrix_bytes(args, name, n, mode)
                if need > available_bytes(args.device):
                    names.remove(name)
                    left_out[name] = f"left out: its attention matrices need {need / 2**30:.1f} GiB"
            if "RoBERTa SDPA" in left_out:
                print(f"{n} tokens, {mode}: no baseline, RoBERTa is {left_out['RoBERTa SDPA']}", flush=True)
                continue
            print(f"memory, {n} tokens, {mode}", flush=True)
            memory = {name: peak_mebibytes(partial(encoder_step, args, name, n, mode), args.device) for name in names}
            print(f"time, {n} tokens, {mode}", flush=True)
            steps = {name: encoder_step(args, name, n, mode) for name in names}
            cells.append(
                {
                    "tokens": n,
                    "mode": mode,
                    "left_out": left_out,
                    "peak_mib": memory,
                    "multiply_adds": {name: multiply_adds(args, name, n) for name in names},
                    "seconds": time_in_turns(steps, BASELINES, args),
                }
            )


def measure_mlm_head(args: argparse.Namespace, cells: list[dict]) -> None:
    print("masked-LM head", flush=True)
    memory = {name: peak_mebibytes(partial(mlm_step, args, name), args.device) for name in MLM_STEPS}
    steps = {name: mlm_step(args, name) for name in MLM_STEPS}
    cells.append({"peak_mib": memory, "seconds": time_in_turns(steps, MLM_STEPS[:1], args)})


def environment(args: argparse.Namespace) -> dict:
    cpu = platform.processor()
    if Path("/proc/cpuinfo").exists():
        models = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")]
        cpu = models[0].partition(":")[2].strip() if models else cpu
    return {
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "CPU",
        "cpu": cpu,
        "cores": psutil.cpu_count(logical=False),
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "dtype": args.dtype,
        # Large tensors come from the C allocator, whose settings change the times.
        "allocator_settings": {
            name: value
            for name, value in os.environ.items()
            if name.startswith("MALLOC_") or name in ("GLIBC_TUNABLES", "LD_PRELOAD", "THP_MEM_ALLOC_ENABLE")
        },
    }


# ---------------------------------------------------------------------------------------------------------------------
# Report


def ratios(rounds: list[dict[str, float]], baseline: str, name: str) -> list[float]:
    """Time of `baseline` over that of `name` in each round that has both."""
    return [seconds[baseline] / seconds[name] for seconds in rounds if baseline in seconds and name in seconds]


def spread(values: list[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})" if values else ""


def median_ms(rounds: list[dict[str, float]], name: str) -> float:
    return median(seconds[name] for seconds in rounds if name in seconds) * 1e3


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def encoder_table(cells: list[dict], sizes: dict, mode: str) -> str:
    passes = 1 if mode == "forward" else 3
    header = ["contestant", "tokens", "ms", "G multiply-adds/s", "peak MiB", "predicted speed-up"]
    for baseline in BASELINES:
        header += [f"speed-up over {baseline}", "measured / predicted", "memory ratio"]
    rows = []
    for cell in [x for x in cells if x["mode"] == mode]:
        counts, memory, rounds = cell["multiply_adds"], cell["peak_mib"], cell["seconds"]
        for name in counts:
            ms = median_ms(rounds, name)
            rate = counts[name] * cell["tokens"] * sizes["num_layers"] * passes / ms / 1e6
            predicted = counts["RoBERTa SDPA"] / counts[name]
            row = [name, str(cell["tokens"]), f"{ms:.1f}", f"{rate:.0f}", f"{memory[name]:.0f}"]
            row.append("" if name in BASELINES else f"{predicted:.2f}")
            for baseline in BASELINES:
                measured = [] if name == baseline else ratios(rounds, baseline, name)
                row.append(spread(measured))
                row.append(f"{median(measured) / predicted:.2f}" if measured and name not in BASELINES else "")
                row.append(f"{memory[baseline] / memory[name]:.2f}" if measured else "")
            rows.append(row)
        for name, why in cell["left_out"].items():
            rows.append([name, str(cell["tokens"]), why] + [""] * (len(header) - 3))
    return table(header, rows)


def section_lines(section: dict) -> list[str]:
    """Environment and command of a section."""
    env = section["environment"]
    settings = ", ".join(f"{name}={value}" for name, value in env["allocator_settings"].items()) or "defaults"
    device = f"{env['cpu']}, {env['cores']} cores, {env['threads']} threads, {env['memory_gib']} GiB"
    if env["device"] != "CPU":
        device = f"{env['device']} ({device})"
    return [
        f"{device}; {env['dtype']}; torch {env['torch']}, transformers {env['transformers']}; memory allocator "
        f"settings: {settings}.",
        f"```\n{section['command']}\n```",
    ]


def encoder_report(section: dict) -> list[str]:
    cells, sizes = section["cells"], section["arguments"]
    rounds = [len(ratios(cell["seconds"], "RoBERTa SDPA", name)) for cell in cells for name in cell["multiply_adds"]]
    paragraphs = ["## Encoder", *section_lines(section)]
    paragraphs.append(
        f"{sizes['num_layers']} layer(s), since the cost per layer is what differs; hidden size {sizes['hidden_size']}, "
        f"{sizes['num_heads']} heads, feed-forward size {sizes['intermediate_size']}; batch 1, no mask. "
        f"Luna has tied keys and values and uses SDPA. Medians over at least {min(rounds)} rounds, with minimum and "
        "maximum; speed-ups and memory ratios are RoBERTa / contestant, so above 1 the contestant is better. "
        "Peak memory is that of one step over what the process held before it."
    )
    for mode, title in MODES.items():
        if any(cell["mode"] == mode for cell in cells):
            paragraphs += [f"### {title}", encoder_table(cells, sizes, mode)]
    paragraphs.append(
        "The prediction is the ratio of multiply-adds in the layers' matrix products, the same for forward and "
        "backward. Measured / predicted is thus the ratio of the rates in the fourth column: above 1, Luna gets "
        "through its multiply-adds faster than RoBERTa. Embeddings, softmax, activation, layer norm, memory traffic "
        "and what SDPA computes again in its backward pass take time and are not counted."
        + (CPU_DROPOUT if section["environment"]["device"] == "CPU" else "")
    )
    return paragraphs + ["![Speed-up against length](encoder.png)"]


def mlm_head_report(section: dict) -> list[str]:
    [cell], sizes = section["cells"], section["arguments"]
    rounds, memory = cell["seconds"], cell["peak_mib"]
    rows = []
    for name in MLM_STEPS:
        row = [name, f"{median_ms(rounds, name):.1f}", f"{memory[name]:.0f}"]
        row += [spread(ratios(rounds, MLM_STEPS[0], name)), f"{memory[MLM_STEPS[0]] / memory[name]:.2f}"]
        rows.append(row if name != MLM_STEPS[0] else row[:3] + ["", ""])
    return [
        "## Masked-LM step",
        *section_lines(section),
        f"Training step without an optimizer: {sizes['num_layers']} layer(s), hidden size {sizes['hidden_size']}, l = 128, "
        f"vocabulary {sizes['vocab_size']:,}, batch {MLM_BATCH} x {MLM_TOKENS} tokens, {MLM_MASKED_SHARE:.0%} masked. "
        'RoBERTa\'s head too projects the masked positions only; "all logits" is `output_logits=True`. Median of '
        f"{len(rounds)} rounds, with minimum and maximum.",
        table(["step", "ms", "peak MiB", "speed-up over RoBERTa", "memory ratio"], rows),
    ]


def plot(section: dict, path: Path) -> None:
    names = BASELINES[1:] + [f"Luna l = {l}" for l in section["arguments"]["projection_lengths"]]
    figure = Figure(figsize=(15, 4.5), layout="constrained")
    axes = figure.subplots(1, len(MODES), sharey=True)
    for axis, mode in zip(axes, MODES, strict=True):
        cells = [cell for cell in section["cells"] if cell["mode"] == mode]
        for i, name in enumerate(names):
            shown = [cell for cell in cells if name in cell["multiply_adds"]]
            tokens = [cell["tokens"] for cell in shown]
            measured = [median(ratios(cell["seconds"], "RoBERTa SDPA", name)) for cell in shown]
            axis.plot(tokens, measured, "o-", color=f"C{i}", label=name)
            if name not in BASELINES:
                counts = [cell["multiply_adds"] for cell in shown]
                predicted = [x["RoBERTa SDPA"] / x[name] for x in counts]
                axis.plot(tokens, predicted, ":", color=f"C{i}", label=f"{name}, predicted")
        axis.axhline(1, color="grey", linewidth=0.8)
        axis.set_xscale("log", base=2)
        lengths = section["arguments"]["lengths"]
        axis.set_xlim(min(lengths) / 1.2, max(lengths) * 1.2)
        axis.set_xticks(lengths)
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.tick_params(axis="x", which="minor", bottom=False)
        axis.set_xlabel("tokens")
        axis.set_title(mode)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("times as fast as RoBERTa SDPA")
    axes[0].legend()
    figure.savefig(path, dpi=150)


# ---------------------------------------------------------------------------------------------------------------------


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=["encoder", "mlm_head"], help="run one section; default: both")
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096, 8192, 16384])
    parser.add_argument("--projection_lengths", type=int, nargs="+", default=[16, 128])
    parser.add_argument("--num_layers", type=int, default=2)
    parser.add_argument("--hidden_size", type=int, default=768)
    parser.add_argument("--num_heads", type=int, default=12)
    parser.add_argument("--intermediate_size", type=int, default=3072)
    parser.add_argument("--vocab_size", type=int, default=50265, help="of the masked-LM head")
    parser.add_argument("--rounds", type=int, default=5, help=f"counted rounds, at least {MIN_ROUNDS}")
    parser.add_argument(
        "--time_budget",
        type=float,
        default=300,
        help=f"seconds per contestant, length and mode, after which it runs no round beyond the first {MIN_ROUNDS}",
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/benchmark-encoder"))
    args = parser.parse_args()
    if args.rounds < MIN_ROUNDS:
        parser.error(f"--rounds is {args.rounds}, but must be at least {MIN_ROUNDS}")
    return args


def main() -> None:
    args = parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    results_file = args.output_dir / "results.json"
    results = json.loads(results_file.read_text()) if results_file.exists() else {}
    measures = {"encoder": measure_encoder, "mlm_head": measure_mlm_head}
    reports = {"encoder": encoder_report, "mlm_head": mlm_head_report}
    cells = {name: [] for name in (measures if args.only is None else [args.only])}
    try:
        for name in cells:
            measures[name](args, cells[name])
    except KeyboardInterrupt:
        print("interrupted: the report holds what is finished", flush=True)
    for name in cells:
        if cells[name]:
            results[name] = {
                "environment": environment(args),
                "command": shlex.join(["python", "-m", "scripts.reports.benchmark_encoder", *sys.argv[1:]]),
                "arguments": {key: value for key, value in vars(args).items() if key not in ("only", "output_dir")},
                "cells": cells[name],
            }

    paragraphs = ["# Encoder benchmark"]
    for name in reports:
        if name in results:
            paragraphs += reports[name](results[name])
    report = "\n\n".join(paragraphs) + "\n"
    print(report)
    results_file.write_text(json.dumps(results, indent=1) + "\n")
    (args.output_dir / "encoder.md").write_text(report)
    if "encoder" in results:
        plot(results["encoder"], args.output_dir / "encoder.png")


if __name__ == "__main__":
    main()
