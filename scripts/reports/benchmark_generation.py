# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Generation: prefill, speed and memory of a decoder-only Luna against a GPT-2 of its size; constant memory; prompt lookup.

    python -m scripts.reports.benchmark_generation --model runs/quickstart_causal/model
    python -m scripts.reports.benchmark_generation --only lengths

writes `results.json`, `generation.md`, `lengths.png` and `stream.png` to `--output_dir`. The contestants take turns, one
measurement each per round, and a ratio is always between two measurements of one round. A section that is not run again is
kept from an earlier `results.json`.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from statistics import median

import psutil
import torch
from matplotlib.figure import Figure
from transformers import (
    AutoTokenizer,
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from configuration_luna import LunaConfig
from luna_tools.cards import table
from luna_tools.command_line import exit_status
from luna_tools.files import write_json, write_text
from luna_tools.load import load_luna, quiet_transformers
from modeling_luna import LunaForCausalLM
from scripts.reports.results import ratios, spread, where
from scripts.reports.turns import machine

CONTESTANTS = ("Luna", "GPT-2")
STREAM_BLOCK = 100  # tokens of the stream to a point of the plot
LOOKUP = {"greedy": {}, "prompt lookup": {"prompt_lookup_num_tokens": 10}}
REPETITIVE = "Return the number of items in the list.\n\n    >>> len(items)\n    3\n\n"


# ---------------------------------------------------------------------------------------------------------------------
# What is measured


def build_model(args: argparse.Namespace, name: str, n: int) -> PreTrainedModel:
    """Random weights; GPT-2 has learned positions for n tokens, Luna sinusoids, which take no weights."""
    torch.manual_seed(0)
    if name == "GPT-2":
        config = GPT2Config(
            vocab_size=args.vocab_size,
            n_embd=args.hidden_size,
            n_layer=args.num_layers,
            n_head=args.num_heads,
            n_inner=args.intermediate_size,
            n_positions=n,
            bos_token_id=0,
            eos_token_id=2,
            attn_implementation="sdpa",
        )
        return GPT2LMHeadModel(config).eval()
    config = LunaConfig(
        vocab_size=args.vocab_size,
        hidden_size=args.hidden_size,
        num_hidden_layers=args.num_layers,
        num_attention_heads=args.num_heads,
        intermediate_size=args.intermediate_size,
        projection_length=args.projection_length,
        position_embedding_type="sinusoidal",
        norm_first=True,
    )
    return LunaForCausalLM(config).eval()


def parameters_without_positions(model: PreTrainedModel) -> int:
    positions = model.transformer.wpe.weight.numel() if model.config.model_type == "gpt2" else 0
    return model.num_parameters() - positions


def new_cache(model: PreTrainedModel):
    return DynamicCache(config=model.config) if model.config.model_type == "gpt2" else model.new_cache()


def tensors_of(value: object, seen: set[int]) -> list[torch.Tensor]:
    """All tensors that an object reaches, each once."""
    if id(value) in seen or isinstance(value, type | str | int | float | torch.dtype | torch.device):
        return []
    seen.add(id(value))
    if torch.is_tensor(value):
        return [value]
    if isinstance(value, dict):
        children = value.values()
    else:
        children = value if isinstance(value, list | tuple) else getattr(value, "__dict__", {}).values()
    return [tensor for child in children for tensor in tensors_of(child, seen)]


def cache_bytes(cache: object) -> int:
    """Bytes of the tensors that a cache holds, of each layer."""
    return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors_of(cache, set())}.values())


def last_logits(model: PreTrainedModel, ids_bn: torch.Tensor, cache) -> torch.Tensor:
    """Read tokens after those of a cache, and return the logits of the next one: (b, v)."""
    return model(input_ids=ids_bn, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]


def prefill_and_generate(model: PreTrainedModel, ids_bn: torch.Tensor, new_tokens: int) -> dict[str, float]:
    """Read a text at once, then generate greedily one token at a time."""
    cache = new_cache(model)
    start = time.perf_counter()
    logits_bv = last_logits(model, ids_bn, cache)
    prefill = time.perf_counter() - start
    start = time.perf_counter()
    for _ in range(new_tokens):
        logits_bv = last_logits(model, logits_bv.argmax(-1, keepdim=True), cache)
    return {"prefill": prefill, "token": (time.perf_counter() - start) / new_tokens, "cache_bytes": cache_bytes(cache)}


# ---------------------------------------------------------------------------------------------------------------------
# Sections


@torch.inference_mode()
def measure_lengths(args: argparse.Namespace) -> dict:
    """Both models at each length of the context."""
    cells = []
    for n in args.lengths:
        models = {name: build_model(args, name, n + args.new_tokens) for name in CONTESTANTS}
        ids_bn = torch.randint(4, args.vocab_size, (1, n))
        for model in models.values():  # warm up
            prefill_and_generate(model, ids_bn[:, :256], min(4, args.new_tokens))
        rounds = []
        for i in range(args.rounds):
            rounds.append({name: prefill_and_generate(model, ids_bn, args.new_tokens) for name, model in models.items()})
            told = ", ".join(f"{name} {x['prefill']:.2f} s, {1 / x['token']:.0f} tokens/s" for name, x in rounds[-1].items())
            print(f"  {n} tokens, round {i + 1}: {told}", flush=True)
        sizes = {name: parameters_without_positions(model) for name, model in models.items()}
        cells.append({"tokens": n, "parameters": sizes, "rounds": rounds})
    return {"cells": cells}


def load_model(args: argparse.Namespace) -> tuple[LunaForCausalLM, PreTrainedTokenizerBase]:
    with quiet_transformers():
        return load_luna(args.model, LunaForCausalLM), AutoTokenizer.from_pretrained(args.model)


def write_block(model: LunaForCausalLM, token_11: torch.Tensor, cache, first_step: int, told) -> tuple[torch.Tensor, float]:
    """Write STREAM_BLOCK tokens, each drawn as a function of the logits and the step alone; `told` hashes the logits.

    Returns the last token, (1, 1), and the processor time of one in seconds.
    """
    started = time.process_time()
    for step in range(first_step, first_step + STREAM_BLOCK):
        logits_1v = last_logits(model, token_11, cache)
        torch.manual_seed(step)
        token_11 = torch.multinomial(logits_1v.softmax(-1), 1)
        told.update(logits_1v.numpy().tobytes())
    return token_11, (time.process_time() - started) / STREAM_BLOCK


@torch.inference_mode()
def measure_stream(args: argparse.Namespace) -> dict:
    """One long text by the trained model; its state is saved half-way, and a second one goes on from the file."""
    model, tokenizer = load_model(args)
    half, process, file = args.stream_tokens // 2, psutil.Process(), args.output_dir / "state.safetensors"
    first = torch.tensor([[tokenizer.bos_token_id]])
    cache, token, told, points = model.new_cache(), first, sha256(), []
    write_block(model, first, model.new_cache(), 0, sha256())  # warm up
    for step in range(0, args.stream_tokens, STREAM_BLOCK):
        if step == half:
            model.save_cache(cache, file)
            at_half, told = token, sha256()
        token, seconds = write_block(model, token, cache, step, told)
        memory = {"state_bytes": cache_bytes(cache), "rss": process.memory_info().rss}
        _, fresh = write_block(model, first, model.new_cache(), 0, sha256())
        points.append({"tokens": step + STREAM_BLOCK, "processor_seconds": seconds, "of_new_text": fresh, **memory})

    again, token, told_again = model.load_cache(file), at_half, sha256()
    for step in range(half, args.stream_tokens, STREAM_BLOCK):
        token, _ = write_block(model, token, again, step, told_again)
    if told.digest() != told_again.digest():
        raise AssertionError("the state that was saved does not go on as the stream did")
    result = {"points": points, "file_bytes": file.stat().st_size, "sha256_of_logits": told.hexdigest()}
    file.unlink()
    return result


@torch.inference_mode()
def measure_lookup(args: argparse.Namespace) -> dict:
    """Greedy generation with and without prompt lookup, after a text that repeats itself."""
    model, tokenizer = load_model(args)
    ids_bn = torch.tensor([[tokenizer.bos_token_id, *tokenizer(REPETITIVE * 4, add_special_tokens=False)["input_ids"]]])
    options = {"do_sample": False, "max_new_tokens": args.lookup_tokens, "min_new_tokens": args.lookup_tokens}
    options |= {"attention_mask": torch.ones_like(ids_bn), "pad_token_id": tokenizer.pad_token_id}
    rounds = []
    for i in range(args.rounds + 1):
        seconds, texts = {}, {}
        for name, kind in LOOKUP.items():
            start = time.perf_counter()
            texts[name] = model.generate(ids_bn, **options, **kind)
            seconds[name] = time.perf_counter() - start
        if not torch.equal(*texts.values()):
            raise AssertionError("prompt lookup gives other tokens than greedy generation")
        if i > 0:  # the first is to warm up
            rounds.append(seconds)
            print(f"  round {i}:", ", ".join(f"{name} {s:.2f} s" for name, s in seconds.items()), flush=True)
    text = tokenizer.decode(texts["greedy"][0, ids_bn.shape[1] :])
    return {"rounds": rounds, "new_tokens": args.lookup_tokens, "prompt": REPETITIVE * 4, "text": text}


# ---------------------------------------------------------------------------------------------------------------------
# Report


def result_of(rounds: list[dict[str, float]]) -> dict:
    """Rounds as `ratios` takes them: the seconds of each contestant."""
    return {"cells": {name: {"seconds": [seconds[name] for seconds in rounds]} for name in rounds[0]}}


def lengths_report(section: dict) -> list[str]:
    sizes, rows = section["arguments"], []
    for cell in section["cells"]:
        rounds = cell["rounds"]
        for name in CONTESTANTS:
            measured = [x[name] for x in rounds]
            row = [name, f"{cell['tokens']:,}", spread([x["prefill"] for x in measured])]
            row += [spread([1 / x["token"] for x in measured], 1), f"{measured[0]['cache_bytes'] / 2**20:,.2f}"]
            for key in ("prefill", "token"):
                result = result_of([{of: x[of][key] for of in CONTESTANTS} for x in rounds])
                row.append(spread(ratios(result, "GPT-2", name)) if name == "Luna" else "")
            rows.append(row)
    header = ("model", "context", "prefill, s", "tokens/s after it", "cache, MiB", "speed-up of prefill", "of generation")
    counts = section["cells"][0]["parameters"]
    return [
        "## Luna and GPT-2",
        *where([section]),
        f"{sizes['num_layers']} layers, hidden size {sizes['hidden_size']}, {sizes['num_heads']} heads, feed-forward size "
        f"{sizes['intermediate_size']}, vocabulary {sizes['vocab_size']:,}; random weights; batch 1. Luna: l = "
        f"{sizes['projection_length']}, {counts['Luna']:,} parameters; GPT-2 of transformers on SDPA with DynamicCache: "
        f"{counts['GPT-2']:,} and its positions. Prefill reads the context at once and projects the last token; then "
        f"{sizes['new_tokens']} tokens are generated greedily, one at a time. Medians of {sizes['rounds']} rounds, in which "
        "the models take turns, with minimum and maximum. The cache is the bytes of its tensors after the last token.",
        table(header, rows),
        "![Prefill, speed and cache against the context](lengths.png)",
    ]


def stream_report(section: dict) -> list[str]:
    points = section["points"]
    first, last = points[: len(points) // 4], points[-len(points) // 4 :]
    rows = [
        [
            title,
            spread([1e3 * x["processor_seconds"] for x in quarter]),
            spread([x["processor_seconds"] / x["of_new_text"] for x in quarter]),
            f"{quarter[-1]['state_bytes']:,}",
            f"{quarter[-1]['rss'] / 2**20:,.1f}",
        ]
        for title, quarter in (("first quarter", first), ("last quarter", last))
    ]
    header = "", "processor time a token, ms", "the same / of a new text", "bytes of the state at its end"
    header += ("resident memory at its end, MiB",)
    return [
        f"## {points[-1]['tokens']:,} tokens in constant memory",
        *where([section]),
        f"One text sampled by the trained model, a token at a time, {STREAM_BLOCK} tokens to a point; in turns with it the "
        f"first {STREAM_BLOCK} tokens of a new text, since the machine was shared. Medians with minimum and maximum. The "
        f"state was saved half-way ({section['file_bytes']:,} bytes); from the file a second pass gave the same logits to "
        "the bit, and so the same tokens.",
        table(header, rows),
        "![Time and memory against the tokens](stream.png)",
    ]


def lookup_report(section: dict) -> list[str]:
    rounds, tokens = section["rounds"], section["new_tokens"]
    rows = []
    for name in LOOKUP:
        faster = spread(ratios(result_of(rounds), "greedy", name)) if name != "greedy" else ""
        rows.append([name, spread([tokens / x[name] for x in rounds], 1), faster])
    return [
        "## Prompt lookup",
        *where([section]),
        f"{tokens} tokens by the trained model after a text that repeats itself, greedily; with prompt lookup the same "
        "tokens come out, which the program asserts. Wrong guesses are taken back from the state exactly. Medians of "
        f"{len(rounds)} rounds, in which the two take turns, with minimum and maximum.",
        table(("", "tokens/s", "speed-up"), rows),
    ]


def plot_lengths(section: dict, path: Path) -> None:
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    values: dict[str, Callable[[dict], float]] = {
        "prefill (s)": lambda x: x["prefill"],
        "tokens/s after it": lambda x: 1 / x["token"],
        "cache (MiB)": lambda x: x["cache_bytes"] / 2**20,
    }
    for axis, (title, value) in zip(figure.subplots(1, len(values)), values.items(), strict=True):
        for name in CONTESTANTS:
            tokens = [cell["tokens"] for cell in section["cells"]]
            middle = [median(value(x[name]) for x in cell["rounds"]) for cell in section["cells"]]
            axis.plot(tokens, middle, "o-", label=name)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(tokens)
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.set(xlabel="tokens of context", ylabel=title)
        axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=150)


def plot_stream(section: dict, path: Path) -> None:
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    points = section["points"]
    columns = {
        "processor time a token (ms)": [x["processor_seconds"] * 1e3 for x in points],
        "state (KiB)": [x["state_bytes"] / 2**10 for x in points],
        "resident memory (MiB)": [x["rss"] / 2**20 for x in points],
    }
    axes = figure.subplots(1, len(columns))
    new_text = [x["of_new_text"] * 1e3 for x in points]
    axes[0].plot([x["tokens"] for x in points], new_text, color="tab:orange", alpha=0.6, label="in turns: of a new text")
    for axis, (title, values) in zip(axes, columns.items(), strict=True):
        axis.plot([x["tokens"] for x in points], values, label="of the stream")
        axis.set_ylim(0, 1.3 * max(values))
        axis.set(xlabel="tokens generated", ylabel=title)
        axis.grid(alpha=0.3)
    axes[0].legend(loc="lower right")
    figure.savefig(path, dpi=150)


MEASURES = {"lengths": measure_lengths, "stream": measure_stream, "lookup": measure_lookup}
REPORTS = {"lengths": lengths_report, "stream": stream_report, "lookup": lookup_report}
PLOTS = {"lengths": plot_lengths, "stream": plot_stream}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=list(MEASURES), help="run one section; default: all")
    parser.add_argument("--model", default="runs/quickstart_causal/model", help="trained causal Luna for stream and lookup")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 8192, 32768])
    parser.add_argument("--new_tokens", type=int, default=64, help="generated after each context")
    parser.add_argument("--stream_tokens", type=int, default=10_000)
    parser.add_argument("--lookup_tokens", type=int, default=300)
    parser.add_argument("--num_layers", type=int, default=4)
    parser.add_argument("--hidden_size", type=int, default=256)
    parser.add_argument("--num_heads", type=int, default=4)
    parser.add_argument("--intermediate_size", type=int, default=1024)
    parser.add_argument("--projection_length", type=int, default=32)
    parser.add_argument("--vocab_size", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/benchmark-generation"))
    return parser.parse_args()


def write_report(results: dict[str, dict], output_dir: Path) -> None:
    """Write tables and plots of what `results.json` has."""
    paragraphs = ["# Generation benchmark"]
    for name in REPORTS:
        if name in results:
            paragraphs += REPORTS[name](results[name])
            if name in PLOTS:
                PLOTS[name](results[name], output_dir / f"{name}.png")
    write_text(output_dir / "generation.md", "\n\n".join(paragraphs) + "\n")


def main() -> None:
    args = parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    path = args.output_dir / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for name in MEASURES if args.only is None else [args.only]:
        print(name, flush=True)
        results[name] = {
            "machine": machine("cpu", "float32"),
            "command": shlex.join(["python", "-m", "scripts.reports.benchmark_generation", *sys.argv[1:]]),
            "arguments": {key: value for key, value in vars(args).items() if key not in ("only", "output_dir")},
            **MEASURES[name](args),
        }
        write_json(path, results, indent=1)
        write_report(results, args.output_dir)
    print(f"The report is {args.output_dir / 'generation.md'}.")


if __name__ == "__main__":
    sys.exit(exit_status(main, "python -m scripts.reports.benchmark_generation"))
