# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Figures of a result and where it was measured, as the reports of benchmarks tell them.

A result has in `cells` what `scripts.reports.turns.take_turns` returns.
"""

from statistics import median


def measured(result: dict, name: str) -> dict | None:
    """A contestant's cell, if it was measured."""
    cell = result["cells"].get(name)
    return cell if cell is not None and "absent" not in cell else None


def ratios(result: dict, baseline: str, name: str) -> list[float]:
    """Time of `baseline` over that of `name` in each round; none where one of them is absent."""
    cells = measured(result, baseline), measured(result, name)
    if None in cells:
        return []
    return [one / other for one, other in zip(*(cell["seconds"] for cell in cells), strict=True)]


def memory_ratio(result: dict, baseline: str, name: str) -> float | None:
    """Peak memory of `name` over that of `baseline`."""
    cells = measured(result, baseline), measured(result, name)
    return None if None in cells else cells[1]["peak_mib"] / cells[0]["peak_mib"]


def spread(values: list[float], digits: int = 2) -> str:
    if not values:
        return ""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def shown(value: float | None, form: str = ".2f") -> str:
    return "" if value is None else f"{value:{form}}"


def where(results: list[dict]) -> list[str]:
    """Machines and commands of results."""
    machines = {}
    for result in results:
        machines.setdefault(str(result["machine"]), result["machine"])
    lines = []
    for machine in machines.values():
        settings = ", ".join(f"{name}={value}" for name, value in machine["allocator_settings"].items()) or "defaults"
        device = f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, {machine['memory_gib']} GiB"
        if machine["device"] != "CPU":
            device = f"{machine['device']} ({device})"
        lines.append(
            f"{device}; {machine['dtype']}; torch {machine['torch']}, transformers {machine['transformers']}; memory "
            f"allocator settings: {settings}."
        )
    lines += dict.fromkeys(result["remark"] for result in results if result.get("remark"))
    commands = dict.fromkeys(result["command"] for result in results)
    return [*lines, "```\n" + "\n".join(commands) + "\n```"]
