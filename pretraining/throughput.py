# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""How fast a run is, what its devices reach of their peak, how long they wait for data, and where the time goes."""

import time
from pathlib import Path

import torch
from transformers import PreTrainedConfig

from pretraining.cluster import flops_per_sequence
from pretraining.recipe import Recipe

PROFILED_STEPS = 3
TOO_LONG_A_WAIT = 0.05  # of the time of a step


class Throughput:
    """Counts from one logged step to the next.

    Model FLOP utilisation is the FLOPs of the forward and backward passes (`flops_per_sequence`), without what checkpointing
    computes again, divided by the time and by the peak of all devices.
    """

    def __init__(self, recipe: Recipe, config: PreTrainedConfig, sequence_length: int, num_processes: int):
        self.tokens_per_step = recipe.global_batch_size * sequence_length
        self.peak_share_per_second = None
        if recipe.peak_tflops is not None:
            flops = flops_per_sequence(recipe, config, sequence_length) * recipe.global_batch_size
            self.peak_share_per_second = flops / (recipe.peak_tflops * 1e12 * num_processes)
        self.start()

    def start(self) -> None:
        self.steps, self.seconds, self.waited = 0, 0.0, 0.0

    def begin_step(self) -> None:
        self.began = time.perf_counter()

    def data_is_there(self) -> None:
        self.waited += time.perf_counter() - self.began

    def end_step(self) -> None:
        self.seconds += time.perf_counter() - self.began
        self.steps += 1

    def figures(self) -> dict[str, float]:
        """Return the speed since the last call, and start afresh."""
        figures = {
            "tokens_per_second": self.steps * self.tokens_per_step / self.seconds,
            "data_wait": self.waited / self.seconds,
        }
        if self.peak_share_per_second is not None:
            figures["mfu"] = self.steps * self.peak_share_per_second / self.seconds
        self.start()
        return figures


class Profiler:
    """Records `profile_step` and the two steps after it into a trace for chrome://tracing or Perfetto; otherwise nothing."""

    def __init__(self, recipe: Recipe, output_dir: Path, process_index: int):
        self.first = recipe.profile_step
        self.path = output_dir / "profile" / f"rank-{process_index}.json"
        self.profile = None

    def before_step(self, step: int) -> None:
        """Begin the record if it is time; `step` counts from 1."""
        if self.first is not None and step == self.first:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.profile = torch.profiler.profile(record_shapes=True)
            self.profile.start()

    def after_step(self, step: int) -> None:
        if self.profile is not None and step >= self.first + PROFILED_STEPS - 1:
            self.write()

    def write(self) -> None:
        """End the record and write it, also that of a run that ends early."""
        if self.profile is not None:
            self.profile.stop()
            self.profile.export_chrome_trace(str(self.path))
            self.profile = None
