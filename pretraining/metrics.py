# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""What a run tells of itself while it goes on: metrics.jsonl, and a bar on a terminal or lines in a log."""

import json
import sys
import time
from pathlib import Path

from tqdm import tqdm

from luna_tools.files import write_text

SECONDS_BETWEEN_LINES = 5.0  # in a log


def read_metrics(path: Path) -> list[dict]:
    """Return the rows of a metrics file; a last line that a kill cut off is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


class Metrics:
    """metrics.jsonl: one line per logged step and per evaluation. A resumed run writes again what came after its checkpoint.

    Args:
        start_step: steps that are behind the checkpoint; the evaluation of a step follows its save.
    """

    def __init__(self, path: Path, start_step: int):
        kept = [
            row for row in read_metrics(path) if row["step"] < start_step or (row["step"] == start_step and "loss" in row)
        ]
        write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
        self.file = path.open("a", encoding="utf-8", buffering=1)

    def write(self, row: dict) -> None:
        """Add a row."""
        self.file.write(json.dumps(row) + "\n")

    def close(self) -> None:
        """Close the file."""
        self.file.close()


class Progress:
    """How far the training is: a bar on a terminal, otherwise a line every few seconds.

    Args:
        is_shown: False on all processes but one.
    """

    def __init__(self, total: int, done: int, is_shown: bool):
        self.total, self.started_at, self.started = total, time.monotonic(), done
        self.is_shown, self.last_line_at = is_shown, -float("inf")
        has_bar = is_shown and sys.stderr.isatty()
        self.bar = tqdm(total=total, initial=done, desc="train", unit="step", mininterval=0.5, disable=not has_bar)

    def step_done(self) -> None:
        """Count a step."""
        self.bar.update()

    def logged(self, step: int, figures: str) -> None:
        """Show the figures of a logged step."""
        self.bar.set_postfix_str(figures, refresh=False)
        now = time.monotonic()
        if self.bar.disable and (now - self.last_line_at >= SECONDS_BETWEEN_LINES or step == self.total):
            self.last_line_at = now
            left = (now - self.started_at) / (step - self.started) * (self.total - step)
            self.say(f"step {step:,} of {self.total:,}: {figures}, {tqdm.format_interval(left)} left")

    def say(self, line: str) -> None:
        """Print a line, above the bar if there is one."""
        if self.is_shown:
            tqdm.write(line, file=sys.stderr)

    def close(self) -> None:
        """End the bar."""
        self.bar.close()
