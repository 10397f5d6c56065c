# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""What goes wrong in the ranks of a pretraining run: faults for `before` of `tests.support.ranks`, each at one place."""

import dataclasses
import os
import signal
import threading
from collections.abc import Callable
from functools import partial

import torch

from pretraining import checkpoint as ckpt
from pretraining import engines, run, start


def is_rank(rank: int) -> bool:
    return os.environ.get("RANK", "0") == str(rank)


# ---------------------------------------------------------------------------------------------------------------------
# In a step


def run_out_of_memory(of_run: run.Run) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 1 GiB.")


def raise_unknown(of_run: run.Run) -> None:
    raise LookupError("nobody knows")


def lose_a_worker(of_run: run.Run) -> None:
    """As the system does that is out of memory."""
    next(iter(of_run.batches.workers)).kill()


def stop_the_group(of_run: run.Run) -> None:
    """As a scheduler does: SIGTERM to every process of the group, data workers included."""
    os.killpg(0, signal.SIGTERM)


def stop(of_run: run.Run) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def stand_still(of_run: run.Run) -> None:
    """As in a collective on GPUs, which knows nothing of other processes."""
    threading.Event().wait()


def die(of_run: run.Run) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def make_loss_nan(of_run: run.Run) -> None:
    real = of_run.objective.loss_sum
    of_run.objective.loss_sum = lambda *args: real(*args) * float("nan")


def make_gradient_nan(of_run: run.Run) -> None:
    """The gradient of a square root at 0 is infinite while the value is finite."""
    real = of_run.objective.loss_sum
    of_run.objective.loss_sum = lambda *args: (value := real(*args)) + torch.sqrt(value * 0.0)


def _at_step(step: int, faults: dict[int, Callable]) -> None:
    real = run.Run.step

    def faulty(self, *args):
        for rank, fault in faults.items():
            if is_rank(rank) and self.done + 1 == step:
                fault(self)
        return real(self, *args)

    run.Run.step = faulty


def at_step(step: int, faults: dict[int, Callable]) -> Callable:
    """Make the fault of each rank happen before its update `step`, counted from 1."""
    return partial(_at_step, step, faults)


def disk_full_at_the_end() -> None:
    """The main process cannot write the finished run's results, which the others wait for."""

    def full(path, values):
        raise OSError(28, "No space left on device", str(path))

    run.write_json = full


# ---------------------------------------------------------------------------------------------------------------------
# In a save


def _killed_in_save(function: str, is_after: bool) -> None:
    module = ckpt.shutil if function == "rmtree" else ckpt
    real, calls = getattr(module, function), []

    def deadly(*args):
        calls.append(1)
        if len(calls) == 2:
            if is_after:
                real(*args)
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args)

    setattr(module, function, deadly)


# From the first moment of a save to its last, by functions of `pretraining.checkpoint` and whether they had run.
MOMENTS = [("write_checkpoint", False), ("remove_unfinished", True), ("save_file", False), ("save_file", True)]
MOMENTS += [("write_json", False), ("write_json", True), ("write_checkpoint", True), ("rmtree", False), ("rmtree", True)]


def killed_in_save(function: str, is_after: bool) -> Callable:
    """Kill the process at the second call of a function of a save."""
    return partial(_killed_in_save, function, is_after)


# ---------------------------------------------------------------------------------------------------------------------
# At the start


def apart() -> None:
    """Each rank has an output folder for itself, as on nodes without a file system in common."""
    real = run.pretrain
    run.pretrain = lambda recipe: real(dataclasses.replace(recipe, output_dir=f"{recipe.output_dir}-{os.environ['RANK']}"))


def stopped_at_once() -> None:
    """The signal has come before the first step."""
    real = run.StopRequest.__init__

    def stopped(self):
        real(self)
        self.signal_number = signal.SIGTERM

    run.StopRequest.__init__ = stopped


def _fp16_on_cpu(scale: float) -> None:
    real = engines.make_accelerator

    def make_accelerator(recipe, engine):
        if engine.startswith("zero"):
            return real(recipe, engine)
        accelerator = real(dataclasses.replace(recipe, mixed_precision="no"), engine)
        accelerator.state._mixed_precision, accelerator.native_amp = "fp16", True
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        return accelerator

    run.make_accelerator, start.has_gpu = make_accelerator, lambda: True
    engines.LossScaler.initial_scale = scale


def fp16_on_cpu(scale: float) -> Callable:
    """Run in fp16 on a CPU, which Accelerate refuses although PyTorch can: as Accelerate prepares it for a GPU."""
    return partial(_fp16_on_cpu, scale)
