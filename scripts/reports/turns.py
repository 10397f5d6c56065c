# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Contestants that take turns, each in a process of its own: a slow or greedy one ends without the others.

A contestant is a step. In a round each makes steps for a second, or one that takes longer: a ratio is always between two
times of one round, whatever else the machine does, and caches are warm as in a loop. Its peak memory is that of its first
steps, over what its process held before.
"""

import argparse
import os
import platform
import resource
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path

import psutil
import torch
import transformers

from luna_tools.errors import first_sentence

MIN_ROUNDS = 3
TURN_SECONDS = 1.0
# Processes are forked from one that has imported what they share. Not "spawn": on Linux the peak of a spawned process starts
# at the size of the one that spawned it.
SERVER = get_context("forkserver")


class Absent(Exception):
    """Why there is no measurement, as a table says it."""


# ---------------------------------------------------------------------------------------------------------------------
# In the contestant's process


def work(connection, make_step: Callable[[], Callable[[], None]], device: str, memory_bytes: int) -> None:
    """Build the step, then take a turn whenever told: send (seconds, peak bytes), or why there is none."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who counts
    try:
        if device == "cpu":
            limit = psutil.Process().memory_info().vms + memory_bytes
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        step = make_step()
        connection.send(None)
        while connection.recv():
            connection.send(measured(step, device))
    except EOFError:
        return
    except Exception as error:
        connection.send(Absent(reason(error, memory_bytes)))


def reason(error: Exception, memory_bytes: int) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        return "does not fit into the device's memory"
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return f"needs more than {memory_bytes / 2**30:.0f} GiB"
    return first_sentence(error)


def measured(step: Callable[[], None], device: str) -> tuple[float, int]:
    """Seconds of a step, the mean of a turn, and the bytes of their peak over what was held before."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        with suppress(OSError):  # Linux's: the peak starts anew
            Path("/proc/self/clear_refs").write_text("5")
        before = psutil.Process().memory_info().rss
    start, seconds, steps = time.perf_counter(), 0.0, 0
    while seconds < TURN_SECONDS:
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds, steps = time.perf_counter() - start, steps + 1
    seconds /= steps
    if device == "cuda":
        return seconds, torch.cuda.max_memory_allocated() - before
    unit = 1 if platform.system() == "Darwin" else 1024
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - before


# ---------------------------------------------------------------------------------------------------------------------
# In the process that counts


class Entrant:
    """A contestant's process.

    Args:
        make_step: makes the step; it is pickled.
        memory_bytes: what the process may take on a CPU.

    Raises:
        Absent: the step cannot be made.
    """

    def __init__(self, make_step: Callable[[], Callable[[], None]], device: str, memory_bytes: int):
        self.connection, theirs = SERVER.Pipe()
        self.process = SERVER.Process(target=work, args=(theirs, make_step, device, memory_bytes), daemon=True)
        self.process.start()
        theirs.close()
        try:
            self.receive(None)
        except BaseException:
            self.close()
            raise

    def step(self, longest: float) -> tuple[float, int]:
        """Take a turn: the seconds of a step, and the bytes of their peak.

        Raises:
            Absent: a step failed, or took longer than `longest` seconds.
        """
        self.connection.send(True)
        return self.receive(TURN_SECONDS + longest)

    def receive(self, longest: float | None):
        if not self.connection.poll(longest):
            raise Absent(f"a step takes more than {longest - TURN_SECONDS:g} s")
        try:
            answer = self.connection.recv()
        except EOFError:
            raise Absent("its process was ended, as a system does that is out of memory") from None
        if isinstance(answer, Absent):
            raise answer
        return answer

    def close(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.join()


def take_turns(
    steps: dict[str, Callable[[], Callable[[], None]]],
    device: str,
    memory_bytes: int,
    rounds: int,
    longest: float,
    budget: float,
    say: Callable[[str], None],
) -> dict[str, dict]:
    """Measure all contestants, in `rounds` rounds, or as many beyond MIN_ROUNDS as begin within `budget` seconds.

    Args:
        steps: what makes each contestant's step.
        longest: seconds that a step may take.
        say: takes lines of progress.

    Returns:
        Of each contestant `seconds`, one for each round, and `peak_mib`; or, why it is `absent`.
    """
    cells, entrants = {}, {}

    def turn(name: str, act: Callable[[], tuple[float, int]]) -> tuple[float, int] | None:
        try:
            return act()
        except Absent as why:
            cells[name] = {"absent": str(why)}
            say(f"{name}: {why}")
            if name in entrants:
                entrants.pop(name).close()
        return None

    def first_step(name: str) -> tuple[float, int]:
        entrants[name] = Entrant(steps[name], device, memory_bytes)
        return entrants[name].step(longest)

    try:
        for name in steps:
            if (found := turn(name, lambda name=name: first_step(name))) is not None:
                cells[name] = {"peak_mib": found[1] / 2**20, "seconds": []}
                say(f"{name}: {found[0]:.3f} s, {found[1] / 2**20:,.0f} MiB (warm-up)")
        began = time.perf_counter()
        for i in range(rounds):
            if i >= MIN_ROUNDS and time.perf_counter() - began > budget:
                break
            for name in list(entrants):
                if (found := turn(name, lambda name=name: entrants[name].step(longest))) is not None:
                    cells[name]["seconds"].append(found[0])
            say(f"round {i + 1}: " + ", ".join(f"{name} {cells[name]['seconds'][-1]:.3f} s" for name in entrants))
    finally:
        for entrant in entrants.values():
            entrant.close()
    return {name: cells[name] for name in steps}


def number_of_rounds(text: str) -> int:
    if int(text) < MIN_ROUNDS:
        raise argparse.ArgumentTypeError(f"{text} is too few: give at least {MIN_ROUNDS}")
    return int(text)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `limits` reads, and the precision."""
    parser.add_argument("--rounds", type=number_of_rounds, default=5, help=f"counted rounds, at least {MIN_ROUNDS}")
    parser.add_argument(
        "--budget", type=float, default=60, help=f"seconds after which no round beyond the first {MIN_ROUNDS} begins"
    )
    parser.add_argument("--seconds_per_step", type=float, default=60, help="who takes longer is left out")
    parser.add_argument("--memory_gib", type=float, help="on a CPU, who takes more is left out (default: 0.8 of the free)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")


def limits(args: argparse.Namespace) -> dict:
    """What a program's options say to `take_turns`."""
    return {
        "device": args.device,
        "memory_bytes": int(args.memory_gib * 2**30 if args.memory_gib else 0.8 * psutil.virtual_memory().available),
        "rounds": args.rounds,
        "longest": args.seconds_per_step,
        "budget": args.budget,
        "say": lambda line: print(f"  {line}", flush=True),
    }


def machine(device: str, dtype: str) -> dict:
    """What a time depends on besides the program."""
    cpu = platform.processor()
    if Path("/proc/cpuinfo").exists():
        models = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")]
        cpu = models[0].partition(":")[2].strip() if models else cpu
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "CPU",
        "cpu": cpu,
        "cores": psutil.cpu_count(logical=False),
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "dtype": dtype,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        # Large tensors come from the C allocator, whose settings change the times.
        "allocator_settings": {
            name: value
            for name, value in os.environ.items()
            if name.startswith("MALLOC_") or name in ("GLIBC_TUNABLES", "LD_PRELOAD", "THP_MEM_ALLOC_ENABLE")
        },
    }
