# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""What is shown of work that takes more than a moment."""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

DELAY = 2  # seconds; what is done by then shows nothing


def progress_bar(title: str, unit: str, total: int | None = None, initial: int = 0, over: Iterable | None = None) -> tqdm:
    """Return a bar that counts up to `total` units from `initial` on, or that goes over `over`."""
    scaled = {"unit_scale": True} if unit in ("B", "token") else {}
    unit = unit if unit == "B" else f" {unit}s"
    return tqdm(over, desc=title, total=total, initial=initial, unit=unit, mininterval=1, delay=DELAY, **scaled)


@contextmanager
def clock(title: str) -> Iterator[None]:
    """Show the time that passes while a library works and tells nothing."""
    done = threading.Event()

    def show() -> None:
        with tqdm(desc=title, bar_format="{desc}: {elapsed}", delay=DELAY) as bar:
            while not done.wait(1):
                bar.update()

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
