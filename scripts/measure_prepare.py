# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Measures the speed and the memory of pretraining.prepare on corpora of growing size; prints a markdown table.

    python scripts/measure_prepare.py --sizes_mb 10 100 1000
    python scripts/measure_prepare.py --sizes_mb 1000 --file_mb 1000 --document_separator file --validation_fraction 0

Options that are not its own go to prepare: the second command makes a single document of 1 GB.

The text is real: the documentation and the sources of the Python standard library, repeated to the size asked for.
The memory is the sum of the resident sets of the run and all its worker processes, read with psutil ten times a
second; pages that processes share count once for each, so it is an upper bound.
"""

import argparse
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the program of this clone, installed or not

from pretraining.sources import python_docs  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes_mb", type=int, nargs="+", default=[10, 100, 1000], help="sizes of the corpora")
    parser.add_argument("--num_proc", type=int, default=os.cpu_count(), help="processes that tokenise")
    parser.add_argument("--file_mb", type=int, default=50, help="a corpus is files of this size")
    sizes, of_prepare = parser.parse_known_args()

    options = f"--num_proc {sizes.num_proc} --vocab_size 32768".split()
    options += of_prepare or ["--document_separator", "blank_line"]
    print(f"Command: `python -m pretraining.prepare OUT --source CORPUS {' '.join(options)}`\n")
    print("| corpus, MB | rows of 512 | wall time, s | MB/s | peak memory, MB |")
    print("|---:|---:|---:|---:|---:|", flush=True)
    for size in sizes.sizes_mb:
        with tempfile.TemporaryDirectory() as folder:
            corpus = Path(folder, "corpus")
            corpus.mkdir()
            written = write_corpus(corpus, size * 1_000_000, sizes.file_mb * 1_000_000)
            command = [sys.executable, "-m", "pretraining.prepare", f"{folder}/out", "--source", str(corpus), *options]
            seconds, peak, output = run(command)
        rows = output.split("train: ")[1].split(" tokens, ")[1].split(" rows")[0]
        cells = f"{written / 1e6:.0f} | {rows} | {seconds:.1f} | {written / 1e6 / seconds:.2f} | {peak / 1e6:.0f}"
        print(f"| {cells} |", flush=True)


def write_corpus(folder: Path, size: int, file_size: int) -> int:
    """Writes about `size` bytes of text to .txt files of `file_size` in the folder; returns the bytes written."""
    standard_library = Path(sysconfig.get_paths()["stdlib"])
    texts = [doc.text.encode() for doc in python_docs()]
    texts += [path.read_bytes() for path in sorted(standard_library.glob("*.py"))]
    text = b"\n\n".join(texts).decode("utf-8", "ignore").encode()
    written = 0
    for number in range(-(-size // file_size)):
        with open(folder / f"{number:05d}.txt", "wb") as file:
            limit = min(size, (number + 1) * file_size)
            while written < limit:
                written += file.write(text[: limit - written].decode("utf-8", "ignore").encode() or b" ")
    return written


def run(command: list[str]) -> tuple[float, int, str]:
    """Runs a command; returns its wall time in seconds, the peak of its processes' memory in bytes, and its output."""
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    root = psutil.Process(process.pid)
    peak = 0
    while process.poll() is None:
        resident = 0
        for one in [root, *root.children(recursive=True)]:
            try:
                resident += one.memory_info().rss
            except psutil.NoSuchProcess:  # a worker that ended just now
                continue
        peak = max(peak, resident)
        time.sleep(0.1)
    seconds = time.perf_counter() - start
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return seconds, peak, process.stdout.read()


if __name__ == "__main__":
    main()
