# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Tables and pictures of what `scripts.reports.benchmark_speed` measured."""

import math
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path
from statistics import median

from matplotlib.figure import Figure

from luna_tools.cards import table
from modeling_luna import ABSORBED_COST
from scripts.reports.contestants import CONTESTANTS, SIZES
from scripts.reports.results import measured, memory_ratio, ratios, shown, spread, where
from scripts.reports.steps import PRODUCT

MODES = {
    "training": "training step (forward and backward, no optimizer)",
    "training with dropout": "training step with dropout 0.1",
    "forward": "forward",
}
EAGER, SDPA = BASELINES = "Transformer, eager", "Transformer, SDPA"
TABLE_2_LENGTHS = (1024, 2048, 3072, 4096)
# Table 2: training steps per second and peak memory at these lengths, the Transformer's being 1.
TABLE_2 = {
    "Transformer": ((1.0, 1.0, 1.0, 1.0), (1.00, 1.00, 1.00, 1.00)),
    "Local Attention": ((1.1, 1.7, 3.2, 5.3), (0.49, 0.29, 0.19, 0.14)),
    "Linformer": ((1.2, 1.9, 3.7, 5.5), (0.44, 0.21, 0.18, 0.10)),
    "Reformer": ((0.5, 0.4, 0.7, 0.8), (0.56, 0.37, 0.28, 0.24)),
    "Sinkhorn Trans.": ((1.1, 1.6, 2.9, 3.8), (0.55, 0.31, 0.21, 0.16)),
    "Synthesizer": ((1.1, 1.2, 2.9, 1.4), (0.76, 0.75, 0.74, 0.74)),
    "BigBird": ((0.9, 0.8, 1.2, 1.1), (0.91, 0.56, 0.40, 0.30)),
    "Linear Trans.": ((1.1, 1.9, 3.7, 5.6), (0.44, 0.22, 0.15, 0.11)),
    "Performer": ((1.2, 1.9, 3.8, 5.7), (0.44, 0.22, 0.15, 0.11)),
    "Luna-16": ((1.2, 1.8, 3.7, 5.5), (0.44, 0.23, 0.17, 0.10)),
    "Luna-128": ((1.1, 1.7, 3.4, 5.1), (0.49, 0.28, 0.21, 0.14)),
    "Luna-256": ((1.1, 1.7, 3.3, 4.9), (0.60, 0.33, 0.23, 0.16)),
}
# Table 1: accuracy in %, averaged over all tasks but Retrieval. The Transformer is the authors' own.
ACCURACY = {
    "Transformer": 54.27,
    "Local Attention": 44.22,
    "Longformer": 52.60,
    "Linformer": 51.14,
    "Reformer": 49.99,
    "Sinkhorn Trans.": 50.89,
    "Synthesizer": 52.43,
    "BigBird": 53.94,
    "Linear Trans.": 49.92,
    "Performer": 50.81,
    "Luna-16": 56.98,
    "Luna-128": 57.53,
    "Luna-256": 57.54,
}
THRESHOLDS = (1.0, 1.25, 1.5, 1.75, 2.0, 2.5)
CPU_DROPOUT = (
    "With dropout, SDPA has no kernel for the CPU and writes down its attention matrices as eager attention does: n x n of "
    "them for the Transformer, n x l for Luna."
)


# ---------------------------------------------------------------------------------------------------------------------
# Figures of a result


def counted(result: dict, baseline: str, name: str) -> float | None:
    """Multiply-adds of `baseline` over those of `name`: the ratio of times that counting predicts."""
    counts = result["multiply_adds"].get(baseline), result["multiply_adds"].get(name)
    return None if None in counts or name == baseline else counts[0] / counts[1]


def peak_share(result: dict, name: str) -> float | None:
    """Multiply-adds a second over those of the matrix product of the same round."""
    share = counted(result, name, PRODUCT)
    found = ratios(result, PRODUCT, name)
    return None if share is None or not found else share * median(found)


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def table_2(results: list[dict]) -> str:
    """Rates and memory in the layout of Table 2, the paper's in brackets."""
    of_length = {result["group"]["tokens"]: result for result in results}
    paper_names = {contestant.paper: name for name, contestant in CONTESTANTS.items() if contestant.paper}
    names = [name for name in CONTESTANTS if any(name in result["cells"] for result in results)]
    rows = []
    for name in [*names, *(name for name in TABLE_2 if name not in paper_names)]:
        paper = TABLE_2.get(CONTESTANTS[name].paper if name in CONTESTANTS else name, ((), ()))
        row = [name if name in CONTESTANTS else f"{name} (not in transformers)"]
        for kind in (0, 1):
            for i, n in enumerate(TABLE_2_LENGTHS):
                own = None
                if n in of_length and name in CONTESTANTS:
                    found = ratios(of_length[n], EAGER, name)
                    own = (median(found) if found else None, memory_ratio(of_length[n], EAGER, name))[kind]
                theirs = f"({paper[kind][i]:.{kind + 1}f})" if paper[kind] else ""
                row.append(f"{shown(own)} {theirs}".strip() or "-")
        rows.append(row)
    lengths = [f"{n // 1024}K" for n in TABLE_2_LENGTHS]
    return table(("", *(f"steps/s {n}" for n in lengths), *(f"memory {n}" for n in lengths)), rows)


def full_table(results: list[dict], baselines: tuple[str, ...], has_lengths: bool = True) -> str:
    """Every figure of every contestant."""
    header = ["contestant", *(["tokens"] if has_lengths else []), "steps/s", "ms", "peak MiB"]
    for baseline in baselines:
        header += [f"times as fast as {baseline}", "counted", f"memory / {baseline}'s"]
    header += ["of the peak"]
    rows = []
    for result in results:
        for name, cell in result["cells"].items():
            row = [name, *([f"{result['group']['tokens']:,}"] if has_lengths else [])]
            if "absent" in cell:
                rows.append([*row, "", cell["absent"]] + [""] * (len(header) - len(row) - 2))
                continue
            ms = [1e3 * seconds for seconds in cell["seconds"]]
            rate = 1e3 / median(ms)
            row += [f"{rate:.3g}", spread(ms, 0 if median(ms) >= 100 else 1), f"{cell['peak_mib']:,.0f}"]
            for baseline in baselines:
                is_other = name not in (baseline, PRODUCT)
                row.append(spread(ratios(result, baseline, name)) if is_other else "")
                row.append(shown(counted(result, baseline, name)) if is_other else "")
                row.append(shown(memory_ratio(result, baseline, name)) if is_other else "")
            rows.append([*row, shown(peak_share(result, name) if name != PRODUCT else None, ".0%")])
    return table(tuple(header), rows)


def encoders_section(results: list[dict], pictures: dict[str, Path]) -> list[str]:
    """Results of one device and precision."""
    paragraphs = ["## Encoders", *where(results)]
    paragraphs.append(
        "A batch without padding; Luna on SDPA, tied where nothing else is said. Medians, with minimum and maximum, of at "
        f"least {min(len(cell['seconds']) for result in results for cell in result['cells'].values() if 'seconds' in cell)} "
        "rounds. Peak memory is that of a process's first step over what it held before. Counted is the ratio of the "
        "multiply-adds in the layers' matrix products, the same for forward and backward; embeddings, softmax, activation, "
        "layer norm, memory traffic and what SDPA computes again in its backward pass take time and are not counted. The "
        "last column is the speed of the counted multiply-adds in shares of that of a square matrix product, which took "
        "turns with the others."
    )
    batch_sizes = sorted({result["group"]["batch_size"] for result in results})
    for (size_name, size), (mode, title), b in product(SIZES.items(), MODES.items(), batch_sizes):
        of_table = {"size": size_name, "mode": mode, "batch_size": b}
        found = [result for result in results if of_table.items() <= result["group"].items()]
        if found:
            found.sort(key=lambda result: result["group"]["tokens"])
            paragraphs.append(
                f"### {'Text of Table 2' if size_name == 'text' else 'RoBERTa-base'}: {title}"
                f"{f', {b} sequences' if b > 1 else ''}"
            )
            paragraphs.append(
                f"{found[0]['group']['num_layers']} layer(s), hidden size {size.hidden_size}, {size.num_heads} heads, "
                f"feed-forward {size.intermediate_size}, {size.vocab_size:,} vocabulary entries; batch {b}."
            )
            if "dropout" in mode and found[0]["machine"]["device"] == "CPU":
                paragraphs[-1] += f" {CPU_DROPOUT}"
            if (size_name, mode) == ("text", "training") and any(x["group"]["tokens"] in TABLE_2_LENGTHS for x in found):
                paragraphs += [f"Shares of {EAGER}; in brackets the paper's, on a GPU:", table_2(found)]
            paragraphs.append(full_table(found, BASELINES))
    paragraphs += [f"![{title}]({path.name})" for title, path in pictures.items()]
    names = {name for result in results for name in result["cells"]}
    notes = [[name, contestant.note] for name, contestant in CONTESTANTS.items() if name in names]
    paragraphs += ["What the contestants are:", table(("", ""), notes)]
    return paragraphs


def pretraining_section(results: list[dict]) -> list[str]:
    group = results[0]["group"]
    paragraphs = ["## A step of pretraining", *where(results)]
    paragraphs.append(
        f"The training step of `luna pretrain`, of base size ({group['num_layers']} layers, 50,265 entries), under the "
        f"recipes luna_base_16gb and roberta_base_16gb: forward, backward, clipping and AdamW's update of sequences of "
        f"{group['tokens']} tokens, 15 % of them masked. RoBERTa's class projects every token to the vocabulary; in the "
        "second row only the masked ones, as Luna does, whose last layer computes no others, too. Counted are the matrix "
        "products of layers and head."
    )
    titles = {"training": "without dropout", "training with dropout": "with dropout 0.1, as in Table 8"}
    for (mode, title), b in product(titles.items(), sorted({result["group"]["batch_size"] for result in results})):
        found = [result for result in results if {"mode": mode, "batch_size": b}.items() <= result["group"].items()]
        if found:
            baselines = "RoBERTa", "RoBERTa, masked positions only"
            paragraphs += [f"### {b} sequences a step, {title}", full_table(found, baselines, has_lengths=False)]
    return paragraphs


def attention_section(results: list[dict]) -> list[str]:
    """Where absorbed projections pay, and what each threshold would choose."""
    rows, lost = [], {threshold: [] for threshold in THRESHOLDS}
    for result in results:
        group = result["group"]
        found = ratios(result, "plain", "absorbed")
        if not found:
            continue
        count, times = counted(result, "plain", "absorbed"), median(found)
        choice = "absorbed" if count > ABSORBED_COST else "plain"
        best = "absorbed" if times > 1 else "plain"
        shape = [group["attention"], *(f"{group[axis]:,}" for axis in "bnlhd")]
        rows.append([*shape, shown(count), spread(found), shown(count / times), choice, "" if choice == best else best])
        for threshold in THRESHOLDS:
            lost[threshold].append(max(times, 1) / (times if count > threshold else 1))
    losses = [
        [f"{threshold:g}", f"{math.exp(sum(map(math.log, of)) / len(of)) - 1:.1%}", f"{max(of) - 1:.1%}"]
        for threshold, of in lost.items()
    ]
    header = ("attention", "batch", "n", "l", "heads", "d", "counted", "measured", "cost", "chosen", "faster")
    return [
        "## Absorbed projections",
        *where(results),
        "Forward and backward of one attention, time of the plain form over that of the absorbed one: above 1 absorbing is "
        "faster. The cost is that of a multiply-add of the absorbed form, in those of the plain one; it is absorbed where "
        f"the counted ratio is above {ABSORBED_COST:g} (`ABSORBED_COST`). The last column names the faster form where it is "
        "the other.",
        table(header, rows),
        "What a threshold for the counted ratio would lose against always taking the faster form, in these attentions:",
        table(("threshold", "time lost, mean", "at most"), losses),
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


def draw_speed(results: list[dict], path: Path) -> None:
    """Rate against length, in those of the Transformer on SDPA where that is measured: training, both sizes."""
    found = {name: [x for x in results if (x["group"]["size"], x["group"]["mode"]) == (name, "training")] for name in SIZES}
    found = {name: sorted(of, key=lambda x: x["group"]["tokens"]) for name, of in found.items() if of}
    figure = Figure(figsize=(8 * len(found), 5), layout="constrained")
    for axis, (size_name, of) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
        for i, name in enumerate(CONTESTANTS):
            curve = [(x["group"]["tokens"], median(y)) for x in of if (y := ratios(x, SDPA, name))]
            if name == SDPA or not curve:
                continue
            style = {"color": f"C{i % 10}", "linestyle": "-" if "Luna" in name else "--", "marker": "os^D"[i // 10 % 4]}
            axis.plot(*zip(*curve, strict=True), **style, markersize=4, label=name, linewidth=2 if "Luna" in name else 1)
        axis.axhline(1, color="grey", linewidth=0.8)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log", base=2)
        lengths = [x["group"]["tokens"] for x in of]
        axis.set_xticks([n for n in lengths if n & (n - 1) == 0])
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.set_xlabel("tokens")
        axis.set_title("text of Table 2" if size_name == "text" else "RoBERTa-base")
        axis.set_ylabel("training steps, times those of the Transformer on SDPA")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, dpi=120)


def draw_figure_1(result: dict, path: Path) -> None:
    """Accuracy against speed, with memory as the circles' size, at 4K: the paper's, and those that were measured here."""
    own = {}
    for name, contestant in CONTESTANTS.items():
        if contestant.paper and (found := ratios(result, EAGER, name)):
            own[contestant.paper] = median(found), memory_ratio(result, EAGER, name)
    paper = {name: (speed[-1], memory[-1]) for name, (speed, memory) in TABLE_2.items()}
    device = result["machine"]["device"]
    panels = {"the paper's speed and memory": paper, f"speed and memory measured here ({device})": own}
    figure = Figure(figsize=(12, 5), layout="constrained")
    for axis, (title, points) in zip(figure.subplots(1, 2, sharey=True), panels.items(), strict=True):
        # Names of small circles stand above and below them by turns: some are as fast and as accurate as each other.
        for i, (name, (speed, memory)) in enumerate(sorted(points.items(), key=lambda item: item[1])):
            color, area = "C3" if name.startswith("Luna") else "C0", 1500 * memory
            axis.scatter(speed, ACCURACY[name], s=area, alpha=0.5, color=color)
            away = 0 if memory > 0.3 else (math.sqrt(area / math.pi) + 6) * (1 if i % 2 else -1)
            where_to = {"xytext": (0, away), "textcoords": "offset points"}
            axis.annotate(name, (speed, ACCURACY[name]), **where_to, fontsize=8, ha="center", va="center")
        axis.set_title(title)
        axis.set_xlabel("training steps a second at 4K, the Transformer's = 1")
        axis.margins(0.15)
        axis.grid(alpha=0.3)
    figure.axes[0].set_ylabel("accuracy on LRA without Retrieval, % (the paper's)")
    figure.savefig(path, dpi=120)


# ---------------------------------------------------------------------------------------------------------------------
# The report


def by_device(results: Iterable[dict]) -> list[list[dict]]:
    groups: dict[tuple, list[dict]] = {}
    for result in results:
        groups.setdefault((result["machine"]["device"], result["machine"]["dtype"]), []).append(result)
    return list(groups.values())


def draw(results: list[dict], output_dir: Path, suffix: str) -> dict[str, Path]:
    """The pictures of one device's encoders, of the smallest batch. Returns them by title."""
    pictures = {}
    batch_size = min(result["group"]["batch_size"] for result in results)
    results = [result for result in results if result["group"]["batch_size"] == batch_size]
    if any(SDPA in x["cells"] and x["group"]["mode"] == "training" for x in results):
        pictures["Training speed against length"] = output_dir / f"encoders{suffix}.png"
        draw_speed(results, pictures["Training speed against length"])
    for result in results:
        group = result["group"]
        if (group["size"], group["mode"], group["tokens"]) == ("text", "training", 4096) and measured(result, EAGER):
            pictures["Figure 1 of the paper, redrawn"] = output_dir / f"figure1{suffix}.png"
            draw_figure_1(result, pictures["Figure 1 of the paper, redrawn"])
    return pictures


def report(results: list[dict], output_dir: Path) -> str:
    """Write the pictures into `output_dir`. Returns the report."""
    sections: dict[str, Callable[[list[dict]], list[str]]] = {
        "pretraining": pretraining_section,
        "attention": attention_section,
    }
    paragraphs = ["# Speed and memory"]
    for i, of_device in enumerate(by_device(x for x in results if x["group"]["section"] == "encoders")):
        paragraphs += encoders_section(of_device, draw(of_device, output_dir, f"-{i + 1}" if i else ""))
    for name, section in sections.items():
        for of_device in by_device(x for x in results if x["group"]["section"] == name):
            paragraphs += section(of_device)
    return "\n\n".join(paragraphs) + "\n"
