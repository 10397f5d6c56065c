# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
r"""Measure the speed and the memory of `luna prepare`; print markdown tables.

    python -m scripts.reports.measure_prepare --sizes_mb 10 100 1000
    python -m scripts.reports.measure_prepare --sizes_mb 1000 --file_mb 1000 --document_separator file \
        --validation_fraction 0
    python -m scripts.reports.measure_prepare --distinct_mb 600 --num_proc 2

The first two grow a corpus: the documentation and the sources of the Python standard library, repeated to the size
asked for. The third takes text that is nowhere repeated: the documentation and the sources that are installed on the
machine, each distinct file once and as one document. It makes the dataset as one job of `--num_proc` processes and as
so many jobs of one process each, compares the two, and projects the times of the paper's corpora. CPU time is that of
all processes: on a machine with other work, MB per CPU second tells more about a core than the wall time does.

Options that are not its own go to prepare: the second command makes a single document of 1 GB.

The memory is the sum of the resident sets of a run and all its worker processes, read with psutil ten times a second;
pages that processes share count once for each, so it is an upper bound.
"""

import argparse
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from pretraining.prepare.sources import python_docs

ROOT = Path(__file__).resolve().parents[2]

# Prose first, then code.
KINDS = ((".md", ".rst", ".txt"), (".py", ".pyi", ".h", ".hpp"))
PLACES = ("/usr/share/doc", "/usr/include", "/usr/lib", "/usr/local", "/opt", sys.base_prefix, sys.prefix)
FILE_BYTES = (500, 2_000_000)  # the smallest and the largest file that is taken
CORPORA_GB = (16, 160)
CORES = (1, 8, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes_mb", type=int, nargs="+", default=[10, 100, 1000], help="sizes of the corpora")
    parser.add_argument("--num_proc", type=int, default=os.cpu_count(), help="processes that tokenise, in all")
    parser.add_argument("--file_mb", type=int, default=50, help="a corpus is files of this size")
    parser.add_argument("--distinct_mb", type=int, help="one job against several, on so much distinct text")
    parser.add_argument("--places", nargs="+", default=PLACES, help="where to look for distinct text")
    options, of_prepare = parser.parse_known_args()
    if options.distinct_mb is not None:
        compare(options, of_prepare)
    else:
        grow(options, of_prepare)


def grow(options: argparse.Namespace, of_prepare: list[str]) -> None:
    """Measure one job on corpora of growing size."""
    settings = f"--num_proc {options.num_proc} --vocab_size 32768".split()
    settings += of_prepare or ["--document_separator", "blank_line"]
    print(f"Command: `luna prepare --output_dir OUT --sources CORPUS {' '.join(settings)}`\n")
    print("| corpus, MB | rows of 512 | wall time, s | MB/s | peak memory, MB |")
    print("|---:|---:|---:|---:|---:|", flush=True)
    for size in options.sizes_mb:
        with tempfile.TemporaryDirectory() as folder:
            corpus = Path(folder, "corpus")
            corpus.mkdir()
            written = write_corpus(corpus, size * 1_000_000, options.file_mb * 1_000_000)
            seconds, _, peak = start_and_wait([prepare_command(f"{folder}/out", corpus, *settings)], options.num_proc)
            rows = json.loads(Path(folder, "out", "manifest.json").read_text())["splits"]["train"]["rows"]
        cells = f"{written / 1e6:.0f} | {rows:,} | {seconds:.1f} | {written / 1e6 / seconds:.2f}"
        print(f"| {cells} | {peak / 1e6:.0f} |", flush=True)


def compare(options: argparse.Namespace, of_prepare: list[str]) -> None:
    """Measure one job and as many jobs as it has processes on the same distinct text, and projects the times."""
    num_proc = options.num_proc
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder, "corpus")
        corpus.mkdir()
        size, kinds = write_distinct_corpus(corpus, options.places, options.distinct_mb * 1_000_000)
        told = ", ".join(f"{bytes_ / 1e6:.0f} MB of {kind}" for kind, bytes_ in sorted(kinds.items(), key=lambda k: -k[1]))
        print(f"{size / 1e6:.0f} MB of distinct text, one document a file: {told}.\n")
        settings = ["--vocab_size", "32768", *of_prepare]
        print(f"Settings: `{' '.join(settings)}`; {num_proc} processes.\n")
        print("| step | jobs x processes | wall, s | MB/s | CPU, s | MB per CPU second | peak memory of a job, MB |")
        print("|---|---:|---:|---:|---:|---:|---:|", flush=True)

        def step(name: str, jobs: list[list[str]], processes: int) -> float:
            """Run jobs at the same time, print their line of the table, and return their CPU time in seconds."""
            wall, cpu, peak = start_and_wait(jobs, processes)
            speeds = f"{wall:.1f} | {size / 1e6 / wall:.2f} | {cpu:.1f} | {size / 1e6 / cpu:.2f}"
            print(f"| {name} | {len(jobs)} x {processes} | {speeds} | {peak / 1e6:.0f} |", flush=True)
            return cpu

        step("one job", [prepare_command(f"{folder}/alone", corpus, "--num_proc", str(num_proc), *settings)], num_proc)
        jobs = [f"{folder}/merged", corpus, "--num_proc", "1", "--num_jobs", str(num_proc), *settings]
        plan = step("--plan", [prepare_command(*jobs, "--plan")], num_proc)  # training the tokenizer uses threads
        commands = [prepare_command(*jobs, "--job", str(job)) for job in range(num_proc)]
        tokenise = step("--job, all at the same time", commands, 1)
        merge = step("--merge", [prepare_command(*jobs, "--merge")], 1)

        alone, merged = (contents(Path(folder, name)) for name in ("alone", "merged"))
        same = "the same bytes in" if alone == merged else "DIFFERENT bytes, or names, in"
        fingerprint = json.loads(alone["manifest.json"])["fingerprint"]
        print(f"\nOne job and the merge have {same} all {len(alone)} files; fingerprint {fingerprint[:16]}.\n")
        print("Projection from the CPU times, not a measurement, for cores with no other work: --plan takes as long for")
        print("every corpus (its sample has at most 200 MB), --job grows with the corpus and shrinks with the cores,")
        print("--merge grows with the corpus; the time to start the program is counted as if it grew too.\n")
        print("| corpus | cores | --plan | --job | --merge | in all |")
        print("|---:|---:|---:|---:|---:|---:|")
        for corpus_gb in CORPORA_GB:
            for cores in CORES:
                times = corpus_gb * 1e9 / size
                steps = (plan / min(num_proc, cores), tokenise * times / cores, merge * times)
                cells = " | ".join(duration(seconds) for seconds in (*steps, sum(steps)))
                print(f"| {corpus_gb} GB | {cores} | {cells} |", flush=True)


def duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def contents(folder: Path) -> dict[str, bytes]:
    """The SHA-256 of every file, and the manifest itself."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    found = {str(path.relative_to(folder)): hashlib.file_digest(path.open("rb"), "sha256").digest() for path in files}
    return found | {"manifest.json": (folder / "manifest.json").read_bytes()}


def write_corpus(folder: Path, size: int, file_size: int) -> int:
    """Write about `size` bytes of text to .txt files of `file_size` in the folder; return the bytes written."""
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


def write_distinct_corpus(folder: Path, places: list[str], size: int) -> tuple[int, dict[str, int]]:
    """Write `size` bytes of distinct files' text or more, a line of JSON for each, to files of 50 MB or more.

    Returns:
        The bytes of text, and how many are of each kind of file.
    """
    kinds: dict[str, int] = {}
    file, number = None, 0
    for kind, text in distinct_texts(places):
        if sum(kinds.values()) >= size:
            break
        kinds[kind] = kinds.get(kind, 0) + len(text.encode("utf-8"))
        if file is None or file.tell() > 50_000_000:
            file, number = open(folder / f"{number:05d}.jsonl", "w", encoding="utf-8"), number + 1
        file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    if sum(kinds.values()) < size:
        raise SystemExit(f"Only {sum(kinds.values()) / 1e6:.0f} MB of distinct text found: name more --places.")
    file.close()
    return sum(kinds.values()), kinds


def distinct_texts(places: list[str]) -> Iterator[tuple[str, str]]:
    """Find files of the `KINDS` whose text is UTF-8 and was not found before: pairs of kind and text."""
    seen = set()
    for kinds in KINDS:
        for place in places:
            for parent, folders, names in os.walk(place):
                folders.sort()
                for path in (Path(parent, name) for name in sorted(names) if name.endswith(kinds)):
                    if path.is_symlink() or not FILE_BYTES[0] <= path.stat().st_size <= FILE_BYTES[1]:
                        continue
                    data = path.read_bytes()
                    digest = hashlib.blake2b(data, digest_size=16).digest()
                    try:
                        text = data.decode("utf-8")
                    except UnicodeDecodeError:
                        continue
                    if digest not in seen:
                        seen.add(digest)
                        yield path.suffix, text


def prepare_command(output: str, corpus: Path, *options: str) -> list[str]:
    command = [sys.executable, "-m", "luna_tools.command_line", "prepare"]
    return [*command, "--output_dir", output, "--sources", str(corpus), *options]


def resident_bytes(process: psutil.Process) -> int:
    """The memory of a process and its workers."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):  # a worker that ended just now
            total += one.memory_info().rss
    return total


def start_and_wait(commands: list[list[str]], threads: int) -> tuple[float, float, int]:
    """Run commands at the same time, each with so many threads.

    Returns:
        Seconds until the last one has ended; CPU seconds of all, with the processes they waited for; and the peak memory of
        one of them in bytes.
    """
    environment = os.environ | {"RAYON_NUM_THREADS": str(threads)}  # of tokenizers
    null, start, before, peak = subprocess.DEVNULL, time.perf_counter(), os.times(), 0
    runs = [psutil.Popen(command, cwd=ROOT, env=environment, stdout=null, stderr=null) for command in commands]
    while left := [run for run in runs if run.poll() is None]:
        peak = max(peak, *map(resident_bytes, left))
        time.sleep(0.1)
    seconds, after = time.perf_counter() - start, os.times()
    for run, command in zip(runs, commands, strict=True):
        if run.returncode != 0:
            raise SystemExit(f"{' '.join(command)} ended with {run.returncode}")
    cpu_seconds = after.children_user + after.children_system - before.children_user - before.children_system
    return seconds, cpu_seconds, peak


if __name__ == "__main__":
    main()
