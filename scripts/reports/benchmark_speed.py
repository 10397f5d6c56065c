# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Speed and memory of Luna beside the Transformer and other encoders for long inputs: Table 2 and figure 1 of the paper.

    python -m scripts.reports.benchmark_speed encoders      # steps of encoders at many lengths
    python -m scripts.reports.benchmark_speed pretraining   # whole steps of the pretraining program
    python -m scripts.reports.benchmark_speed attention     # when it pays to absorb a projection
    python -m scripts.reports.benchmark_speed               # the report of what has been measured

writes `results.json`, `speed.md` and pictures to `--output_dir`. Contestants take turns, each in a process of its own. The
report says who needs more memory or time than is given, and these are not tried at greater lengths. What is measured
replaces what was measured of the same, device and precision included, so that a benchmark may be made in parts; Ctrl-C
leaves what is finished.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from luna_tools.files import write_json, write_text
from scripts.reports.contestants import CONTESTANTS, SIZES
from scripts.reports.speed_report import MODES, report
from scripts.reports.steps import (
    ATTENTION_SHAPES,
    ATTENTIONS,
    FORMS,
    PRETRAINING,
    PRETRAINING_TOKENS,
    PRODUCT,
    PRODUCT_SIZE,
    attention_counts,
    attention_step,
    encoder_count,
    encoder_step,
    matrix_product_step,
    pretraining_count,
    pretraining_step,
)
from scripts.reports.turns import SERVER, add_options, limits, machine, take_turns

SECTIONS = ("encoders", "pretraining", "attention")


@dataclass
class Group:
    """What is compared: contestants that do the same.

    Attributes:
        name: of the section, and whatever tells this group from the others of it.
        steps: what makes each contestant's step.
        multiply_adds: of a step of each contestant; None where they are not counted.
        absent: why others are not measured.
    """

    name: dict[str, str | int]
    steps: dict[str, Callable]
    multiply_adds: dict[str, float | None]
    absent: dict[str, str]


def encoder_groups(args: argparse.Namespace) -> list[Group]:
    groups = []
    for size_name in args.sizes:
        size = SIZES[size_name]
        if args.num_layers is not None:
            size = type(size)(**asdict(size) | {"num_layers": args.num_layers})
        for mode in args.modes:
            for n in sorted(args.lengths):
                whys = {name: CONTESTANTS[name].refuses(n, args.device, args.dtype) for name in args.contestants}
                names = [name for name, why in whys.items() if why is None]
                of_all = size, args.batch_size, n, mode
                steps = {name: partial(encoder_step, name, *of_all, args.device, args.dtype) for name in names}
                counts = {name: encoder_count(name, *of_all) for name in names}
                sizes = {"num_layers": size.num_layers, "batch_size": args.batch_size}
                group = {"section": "encoders", "size": size_name, "mode": mode, "tokens": n, **sizes}
                groups.append(Group(group, steps, counts, {name: why for name, why in whys.items() if why is not None}))
    return groups


def pretraining_groups(args: argparse.Namespace) -> list[Group]:
    groups = []
    changes = {} if args.num_layers is None else {"num_hidden_layers": args.num_layers}
    for mode in args.modes:
        if mode == "forward":
            continue
        b = args.pretraining_batch_size
        names = args.pretraining_contestants
        steps = {name: partial(pretraining_step, name, b, mode, args.device, args.dtype, changes) for name in names}
        counts = {name: pretraining_count(name, b, mode, args.dtype, changes) for name in names}
        sizes = {"num_layers": args.num_layers or SIZES["base"].num_layers, "batch_size": b}
        groups.append(
            Group({"section": "pretraining", "mode": mode, "tokens": PRETRAINING_TOKENS, **sizes}, steps, counts, {})
        )
    return groups


def attention_groups(args: argparse.Namespace) -> list[Group]:
    groups = []
    for shape in ATTENTION_SHAPES:
        for attention in ATTENTIONS:
            counts = {form: 3 * shape.b * count for form, count in attention_counts(attention, shape).items()}
            steps = {form: partial(attention_step, attention, form, shape, args.device, args.dtype) for form in FORMS}
            groups.append(Group({"section": "attention", "attention": attention, **asdict(shape)}, steps, counts, {}))
    return groups


def measure(group: Group, args: argparse.Namespace, failed: dict[str, str]) -> dict:
    """One group's part of `results.json`.

    Args:
        failed: why a contestant is not to be tried; takes up who fails here.
    """
    steps, counts = dict(group.steps), dict(group.multiply_adds)
    absent = group.absent | {name: failed[name] for name in steps if name in failed}
    steps = {name: step for name, step in steps.items() if name not in absent}
    if group.name["section"] != "attention":
        steps[PRODUCT] = partial(matrix_product_step, args.device, args.dtype)
        counts[PRODUCT] = float(PRODUCT_SIZE[args.device] ** 3)
    cells = take_turns(steps, **limits(args))
    for name, cell in cells.items():
        if "absent" in cell:
            failed[name] = f"at {group.name['tokens']:,} tokens: {cell['absent']}"
    cells |= {name: {"absent": why} for name, why in absent.items()}
    return {
        "group": group.name,
        "machine": machine(args.device, args.dtype),
        "command": shlex.join(["python", "-m", "scripts.reports.benchmark_speed", *sys.argv[1:]]),
        "remark": args.remark,
        "multiply_adds": {name: counts[name] for name in counts if name in cells},
        "cells": cells,
    }


def identity(result: dict) -> tuple:
    """What a result has in common with the one that it replaces."""
    group = {key: value for key, value in result["group"].items() if key != "num_layers"}
    return *group.values(), result["machine"]["device"], result["machine"]["dtype"]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"what to measure: {', '.join(SECTIONS)}")
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES), help="of the encoders")
    parser.add_argument("--num_layers", type=int, help="in place of the sizes' own")
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=list(MODES))
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 3072, 4096, 8192, 16384, 32768, 65536])
    parser.add_argument("--contestants", nargs="+", choices=list(CONTESTANTS), default=list(CONTESTANTS), metavar="NAME")
    parser.add_argument("--batch_size", type=int, default=1, help="of the encoders, at all lengths")
    parser.add_argument("--pretraining_batch_size", type=int, default=4)
    pretraining = list(PRETRAINING)
    parser.add_argument("--pretraining_contestants", nargs="+", choices=pretraining, default=pretraining, metavar="NAME")
    add_options(parser)
    parser.add_argument("--remark", default="", help="a sentence about the circumstances, for the report")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/benchmark-speed"))
    args = parser.parse_args()
    if unknown := set(args.sections) - set(SECTIONS):
        parser.error(f"there is no section {min(unknown)!r}: choose among {', '.join(SECTIONS)}")
    return args


def main() -> int:
    args = parse_args()
    makers = {"encoders": encoder_groups, "pretraining": pretraining_groups, "attention": attention_groups}
    todo = [group for section in SECTIONS if section in args.sections for group in makers[section](args)]
    args.output_dir.mkdir(parents=True, exist_ok=True)
    path = args.output_dir / "results.json"
    results = {identity(result): result for result in json.loads(path.read_text())["results"]} if path.exists() else {}
    SERVER.set_forkserver_preload(["scripts.reports.steps", "scripts.reports.speed_report"])
    failed: dict[tuple, dict[str, str]] = {}
    status = 0
    try:
        for i, group in enumerate(todo):
            print(f"[{i + 1} of {len(todo)}] {', '.join(f'{key} {value}' for key, value in group.name.items())}", flush=True)
            others = tuple(value for key, value in group.name.items() if key != "tokens")
            result = measure(group, args, failed.setdefault(others, {}))
            results[identity(result)] = result
            write_json(path, {"results": list(results.values())}, indent=1)
    except KeyboardInterrupt:
        print("Interrupted: what is finished is kept.", file=sys.stderr)
        status = 130
    if results:
        write_text(args.output_dir / "speed.md", report(list(results.values()), args.output_dir))
        print(f"The report is {args.output_dir / 'speed.md'}.")
    return status


if __name__ == "__main__":
    sys.exit(main())
