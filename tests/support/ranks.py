# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Processes of a program on this machine, as `torchrun` and `accelerate launch` start them, forked from a server.

The server is multiprocessing's: an interpreter without threads that has imported torch, transformers, DeepSpeed and the
programs, so that a launch costs a fork and not ten seconds of imports. Real launchers have tests of their own.
"""

import gc
import importlib.util
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from multiprocessing import connection, forkserver
from pathlib import Path

from luna_tools.command_line import run

ROOT = Path(__file__).parents[2]
PRELOADED = ["torch", "transformers", "accelerate", "datasets", "sklearn.metrics", "matplotlib.pyplot", "deepspeed"]
# What DeepSpeed imports while it sets up an engine.
PRELOADED += ["deepspeed.runtime.zero.muon.original_muon", "deepspeed.module_inject.auto_ep_layer"]
PRELOADED += ["deepspeed.runtime.zero.stage_1_and_2", "deepspeed.runtime.zero.stage3", "torch.utils.tensorboard"]
PRELOADED += ["pretraining.train", "pretraining.run", "finetuning.run", "finetuning.experiments"]
# Of the server and all that it forks: no threads, no GPU that DeepSpeed looks for, the programs of this clone.
FIXED = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
ENDING_SECONDS = 60  # that the other ranks have to end, once one has failed


@contextmanager
def variables_set(variables: dict[str, str]):
    """Set variables of this process's environment, and take them back."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@cache
def server() -> multiprocessing.context.ForkServerContext:
    """The running server; one for this process and all its tests."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([name for name in PRELOADED if importlib.util.find_spec(name.split(".")[0])])
    # DeepSpeed compiles nothing here, but looks for what it would compile with beside the interpreter.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with variables_set(FIXED | {"PATH": path}):
        forkserver.ensure_running()
    return context


def engine_variables(engine: str) -> dict[str, str]:
    """What `accelerate launch` tells its processes about an engine: ddp, fsdp2, zero1, zero2 or zero3."""
    if engine == "fsdp2":
        return {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    if engine.startswith("zero"):
        config = ROOT / "pretraining" / "launch" / f"{engine}.json"
        return {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(config)}
    return {}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run_rank(program: str, argv: list[str], folder: str, variables: dict[str, str], before: Callable | None) -> None:
    """Be one rank: its output goes to files, signals are as a launcher leaves them, and `before` may change the program."""
    gc.freeze()  # the programs' garbage collections leave out what the server has imported
    os.setsid()  # a signal to the tests is not one to the rank
    # A server that a run with data workers has started in this process forks with them blocked.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    os.environ.update(variables)
    for descriptor, stream in ((1, "stdout"), (2, "stderr")):
        name = Path(folder, f"{variables.get('RANK', '0')}.{stream}")
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    if before is not None:
        before()
    status = run(program, argv)
    sys.stdout.flush()
    sys.exit(status)


@dataclass
class Done:
    """How a launch ended: the status of the rank that ended first among those that failed, and the output of all."""

    returncode: int
    stdout: str
    stderr: str


class Ranks:
    """A launch that is under way."""

    def __init__(self, processes: list, folder: tempfile.TemporaryDirectory):
        self.processes, self.folder = processes, folder

    def output(self, stream: str) -> str:
        """What all ranks have written so far to `stdout` or `stderr`, rank by rank."""
        names = sorted(Path(self.folder.name).glob(f"*.{stream}"), key=lambda path: int(path.stem))
        return "".join(path.read_text(encoding="utf-8", errors="replace") for path in names)

    def kill(self, rank: int, number: int = signal.SIGKILL) -> None:
        os.kill(self.processes[rank].pid, number)

    def wait(self, ends_others: bool = True) -> Done:
        """Wait for the end of all. As torchrun does, end the others by SIGTERM when one has failed, unless told not to."""
        left, failed, deadline = list(self.processes), [], None
        try:
            while left:
                timeout = None if deadline is None else max(0, deadline - time.monotonic())
                connection.wait([process.sentinel for process in left], timeout)
                ended = [process for process in left if process.exitcode is not None]
                left = [process for process in left if process.exitcode is None]
                # Of those that are seen to have ended together, one that a signal killed did so first.
                failed += sorted(process.exitcode for process in ended if process.exitcode != 0)
                if failed and deadline is None:
                    deadline = time.monotonic() + ENDING_SECONDS
                    for process in left if ends_others else ():
                        process.terminate()
                if left and deadline is not None and time.monotonic() >= deadline:
                    raise AssertionError(f"{len(left)} ranks did not end:\n{self.output('stderr')[-3000:]}")
        finally:
            for process in left:
                process.kill()
                process.join()
        return Done(failed[0] if failed else 0, self.output("stdout"), self.output("stderr"))


def start(
    program: str, argv: list, processes: int = 1, engine: str = "ddp", before: Callable | None = None, **variables: str
) -> Ranks:
    """Start a program of `luna` as ranks.

    Args:
        argv: its words and options.
        engine: see `engine_variables`.
        before: what each rank calls first; a function of a module, which a fork can find.
        variables: more of the environment.
    """
    folder = tempfile.TemporaryDirectory()
    variables = engine_variables(engine) | variables
    if processes > 1 or engine != "ddp":
        rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        variables |= rendezvous | {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    started = []
    for rank in range(processes):
        of_rank = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if "WORLD_SIZE" in variables else {}
        arguments = (program, [str(token) for token in argv], folder.name, variables | of_rank, before)
        started.append(server().Process(target=run_rank, args=arguments))
        started[-1].start()
    return Ranks(started, folder)


def launch(program: str, argv: list, processes: int = 1, engine: str = "ddp", check: bool = True, **options) -> Done:
    """Run a program to its end as ranks; with `check` a failure is an error that shows what they wrote."""
    done = start(program, argv, processes, engine, **options).wait()
    assert done.returncode == 0 or not check, f"exit status {done.returncode}\n{done.stderr[-3000:]}"
    return done
