# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""A pretraining run on one process: its steps, evaluations, checkpoints and end, alone or with others.

The run is a function of the recipe and the dataset: which sequence comes when, which of its tokens are masked, and what
dropout drops follow from seed, epoch, index and step alone. A run that is stopped, or killed, goes on from its last
checkpoint when the same command is given again.
"""

import gc
import importlib.metadata
import math
import signal
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import datasets
import numpy as np
import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import gather_object, reduce
from huggingface_hub import ModelCard
from safetensors import SafetensorError
from torch.utils.data import DataLoader
from transformers import AutoTokenizer
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER
from transformers.utils import logging as transformers_logging

from luna_tools.errors import InputError, Stopped, first_sentence
from luna_tools.files import write_json, write_text
from luna_tools.publish import publish, wait_for_uploads
from pretraining import checkpoint as ckpt
from pretraining.alarm import Alarm
from pretraining.dataset_format import TOKENIZER, TRAIN, VALIDATION, verify_shards
from pretraining.engines import ENGINES, NonFiniteError, make_accelerator
from pretraining.launcher import EngineName, launched_engine
from pretraining.metrics import Metrics, Progress, read_metrics
from pretraining.model import build_model, max_sequence_length
from pretraining.model_card import make_model_card, without_local_paths
from pretraining.objectives import OBJECTIVES
from pretraining.order import MicroBatchSampler
from pretraining.plan import check_tokenizer
from pretraining.plot import plot_loss
from pretraining.recipe import Recipe
from pretraining.schedules import learning_rate_at
from pretraining.start import Start, allowed_changes, check_environment, file_error, find_start, together
from pretraining.throughput import TOO_LONG_A_WAIT, Profiler, Throughput
from pretraining.workers import MicroBatches, WorkerError, start_server


def pretrain(recipe: Recipe) -> None:
    """Train to the end, or to a signal.

    Raises:
        InputError: with one sentence for the user.
        Stopped: a signal came, and the run is saved.
    """
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    check_environment(recipe)
    if recipe.dataloader_num_workers > 0:
        start_server()
    engine_name = launched_engine()
    accelerator = make_accelerator(recipe, engine_name)
    alarm = Alarm(accelerator.process_index, accelerator.num_processes)
    try:
        stopped = run_to_end(recipe, accelerator, engine_name)
        accelerator.wait_for_everyone()
        alarm.close()
    except InputError:  # of all processes together
        alarm.close()
        raise
    except BaseException as error:  # of this one alone
        sentence = explain(error, recipe)
        if accelerator.num_processes > 1:
            alarm.raise_and_leave(f"error: {sentence}" if sentence is not None else traceback.format_exc())
        if sentence is not None:
            raise InputError(sentence) from error
        raise
    # End process group and trackers in order, once no model is left: DDP now and then aborts at the interpreter's exit.
    accelerator.free_memory()
    gc.collect()
    accelerator.end_training()
    wait_for_uploads()
    if stopped is not None:
        raise stopped


def run_to_end(recipe: Recipe, accelerator: Accelerator, engine_name: EngineName) -> Stopped | None:
    """Find where the run begins, go through it, and write what it leaves. Returns the signal that stopped it, if one did."""
    stop = StopRequest()
    start = find_start(recipe, accelerator)
    try:
        if start.finished:
            accelerator.print(
                f"This run is finished: its model is in {recipe.output_dir}/model, its figures are in "
                f"{recipe.output_dir}/results.json."
            )
            return None
        run = Run(recipe, accelerator, engine_name, start)
        try:
            stopped = run.train(stop)
            if stopped is None:
                run.finish()
            return stopped
        finally:
            run.close()
    finally:
        if start.held is not None:
            start.held.close()


def explain(error: BaseException, recipe: Recipe) -> str | None:
    """Say in one sentence what went wrong on this process and what to do; None where only a traceback can."""
    message = str(error)
    if isinstance(error, WorkerError):
        return message
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator: can't allocate" in message:
        return (
            f"The memory does not suffice ({first_sentence(error)}): lower `micro_batch_size` (now "
            f"{recipe.micro_batch_size}) or set `gradient_checkpointing` to true, for an evaluation lower "
            f"`eval_micro_batch_size` (now {recipe.eval_micro_batch_size}), and give the same command again."
        )
    if isinstance(error, torch.distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in message.lower()):
        return f"Another process has ended, and this one cannot go on without it ({first_sentence(error)}): look for why."
    if isinstance(error, OSError | SafetensorError):
        return file_error(error)
    return None


def told_results(results: dict) -> str:
    """Say what a finished run has reached, beside what counting reaches."""
    bits = f", {results['eval_bits_per_byte']:.3f} bits per byte" if "eval_bits_per_byte" in results else ""
    line = (
        f"Validation loss {results['eval_loss']:.3f} nats (accuracy {results['eval_accuracy']:.1%}{bits}); the unigram "
        f"cross-entropy of the same tokens is {results['unigram_cross_entropy']:.3f} nats"
    )
    if "five_gram_cross_entropy" in results:
        line += f", that of 5-grams {results['five_gram_cross_entropy']:.3f}"
    if "five_gram_bits_per_byte" in results:
        line += f" ({results['five_gram_bits_per_byte']:.3f} bits per byte)"
    return line + "."


class StopRequest:
    """Remembers SIGTERM or SIGINT until the step is done; a second Ctrl-C acts at once.

    Launchers pass on to their ranks what a scheduler or a terminal has sent to the ranks, too: repeated signals that come
    together are one.
    """

    def __init__(self):
        self.signal_number, self.received_at = 0, 0.0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.receive)

    def receive(self, number: int, frame) -> None:
        """Handle a signal."""
        now = time.monotonic()
        if number == signal.SIGINT and self.signal_number and now - self.received_at > 2:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.signal_number, self.received_at = self.signal_number or number, now


class Run:
    """A run on this process, from the start or its last checkpoint. Construction sets it up: data, model, engine, outputs.

    Attributes:
        done: updates so far.

    Raises:
        InputError: on all processes.
    """

    def __init__(self, recipe: Recipe, accelerator: Accelerator, engine_name: EngineName, start: Start):
        self.recipe, self.accelerator, self.start = recipe, accelerator, start
        self.output_dir, self.done = Path(recipe.output_dir), start.state["step"]
        self.identity = {"recipe": recipe.identity(), "dataset_fingerprint": start.manifest["fingerprint"]}
        self.open_data()
        if start.checkpoint is not None:
            accelerator.print("\n".join([f"Going on from {start.checkpoint}.", *allowed_changes(recipe)]))
        self.build_engine(engine_name)
        self.open_outputs()
        self.batches = MicroBatches(
            self.train_rows, self.sampler, self.objective.collate, recipe.dataloader_num_workers
        )  # at last: what fails before leaves no workers

    # -----------------------------------------------------------------------------------------------------------------
    # Set up

    def open_data(self) -> None:
        """Check the dataset, and open its splits as the objective reads them."""
        recipe, accelerator, folder = self.recipe, self.accelerator, Path(self.recipe.dataset)
        splits = self.start.manifest["splits"]
        self.tokenizer = AutoTokenizer.from_pretrained(folder / TOKENIZER)
        together(lambda: check_tokenizer(recipe, self.start.config, self.tokenizer))
        # Saved with the model, which may read longer texts than the rows that it is trained on.
        self.tokenizer.model_max_length = max_sequence_length(self.start.config) or VERY_LARGE_INTEGER
        together(lambda: verify_shards(folder, splits, accelerator.process_index, accelerator.num_processes))
        self.objective = OBJECTIVES[recipe.objective](recipe, self.tokenizer, self.start.manifest)
        self.train_rows = self.objective.rows(folder / TRAIN, shuffle=True)
        self.validation_rows, self.num_validation_rows = None, 0
        if (folder / VALIDATION).exists():
            self.validation_rows = self.objective.rows(folder / VALIDATION, shuffle=False)
            available = len(self.validation_rows)
            self.num_validation_rows = min(available, recipe.max_eval_sequences or available)
        self.sampler = MicroBatchSampler(
            self.done,
            recipe.max_steps,
            recipe.global_batch_size,
            recipe.micro_batch_size,
            accelerator.process_index,
            accelerator.num_processes,
        )

    def build_engine(self, engine_name: EngineName) -> None:
        """Build the model, or load it from the checkpoint, and hand it to the engine."""
        checkpoint, accelerator = self.start.checkpoint, self.accelerator
        model = together(lambda: build_model(self.recipe, self.start.config, checkpoint, self.objective.auto_class))
        model = model.to(accelerator.device).train()
        together(lambda: self.objective.suit(model, self.start.manifest["sequence_length"]))
        if self.recipe.compile:
            model.compile(fullgraph=True, dynamic=False)  # in place: its weights keep their names
        with torch.device("meta"):
            # What is saved, with weights from the engine: an engine changes the model.
            self.skeleton = type(model)(model.config)
        self.engine = together(lambda: ENGINES[engine_name](accelerator, model, self.recipe))
        if checkpoint is not None:
            self.engine.load_optimizer_state(ckpt.load_optimizer_state(checkpoint))
            if self.start.state["scaler"] is not None and self.engine.scaler is not None:
                self.engine.scaler.load_state_dict(self.start.state["scaler"])

    def open_outputs(self) -> None:
        """Open metrics, trackers and progress, and say what begins."""
        recipe, accelerator, skeleton = self.recipe, self.accelerator, self.skeleton
        self.metrics = None
        if accelerator.is_main_process:
            write_text(self.output_dir / "recipe.yaml", yaml.safe_dump(asdict(recipe), sort_keys=False))
            self.metrics = Metrics(self.output_dir / "metrics.jsonl", self.done)
        if recipe.report_to:
            values = without_local_paths(asdict(recipe))
            accelerator.init_trackers("luna-pretraining", config={name: str(value) for name, value in values.items()})
        accelerator.print(
            f"{type(skeleton).__name__}, {skeleton.num_parameters():,} parameters; {accelerator.num_processes} process(es) "
            f"x {recipe.micro_batch_size} sequences x {self.sampler.accumulation_steps} micro-batches a step on "
            f"{accelerator.device}, precision {recipe.mixed_precision}."
        )
        length = self.start.manifest["sequence_length"]
        self.throughput = Throughput(recipe, skeleton.config, length, accelerator.num_processes)
        self.profiler = Profiler(recipe, self.output_dir, accelerator.process_index)
        self.progress = Progress(recipe.max_steps, self.done, is_shown=accelerator.is_main_process)
        self.has_warned = False

    # -----------------------------------------------------------------------------------------------------------------
    # Training

    def train(self, stop: StopRequest) -> Stopped | None:
        """Go through all steps, or to a signal. Returns the signal."""
        recipe, first = self.recipe, self.done
        while self.done < recipe.max_steps:
            if self.validation_rows is not None and self.done > 0 and self.done % recipe.eval_steps == 0:
                self.evaluate()
            self.profiler.before_step(self.done + 1)
            self.throughput.begin_step()
            micro_batches = [next(self.batches) for _ in range(self.sampler.accumulation_steps)]
            self.throughput.data_is_there()
            num_predicted, is_stopped = self.exchange(micro_batches, stop)
            if is_stopped:
                self.profiler.write()
                self.save()
                saved = f"Stopped by a signal after step {self.done}, which is saved: give the same command again to go on."
                return Stopped(stop.signal_number or signal.SIGTERM, saved)
            loss, grad_norm = self.step([self.to_device(batch) for batch in micro_batches], num_predicted)
            self.throughput.end_step()
            self.profiler.after_step(self.done)
            self.progress.step_done()
            if self.done % recipe.logging_steps == 0 or self.done == recipe.max_steps:
                self.log(loss, grad_norm, is_settled=self.done - first > recipe.logging_steps)
            if self.done % recipe.save_steps == 0 or self.done == recipe.max_steps:
                self.save()
                if recipe.hub_model_id is not None and self.accelerator.is_main_process:
                    publish(ckpt.checkpoints(self.output_dir / "checkpoints")[-1], recipe.hub_model_id)
        return None

    def to_device(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Move a micro-batch to the device."""
        return {name: tensor.to(self.accelerator.device, non_blocking=True) for name, tensor in batch.items()}

    def exchange(self, micro_batches: list[dict], stop: StopRequest) -> tuple[int, bool]:
        """Return the predicted tokens of the global batch, and whether a process was told to stop, by one exchange.

        A process alone has nothing to ask its device for.
        """
        num_predicted = sum(int(self.objective.num_predicted(batch)) for batch in micro_batches)
        told = torch.tensor([num_predicted, int(stop.signal_number > 0)])
        if self.accelerator.num_processes > 1:
            told = reduce(told.to(self.accelerator.device), "sum")
        num_predicted, stopped = told.tolist()
        return num_predicted, stopped > 0

    def step(self, micro_batches: list[dict], num_predicted: int) -> tuple[float, float]:
        """Make one update from one global batch. Returns the loss, and the gradient's norm before clipping.

        The loss is the sum over all predicted tokens of the global batch divided by their number, however the batch is
        divided over processes and micro-batches.

        Raises:
            InputError: the loss or, where no loss scaler deals with it, the gradient is not finite.
        """
        accelerator, engine = self.accelerator, self.engine
        # Dropout is a function of seed, step and process, so a resumed run needs no generator state.
        entropy = np.random.SeedSequence([self.recipe.seed, self.done, accelerator.process_index])
        torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0] >> np.uint64(1)))
        loss_sum = torch.zeros((), device=accelerator.device)
        for i, batch in enumerate(micro_batches):
            with engine.micro_batch(is_last=i == len(micro_batches) - 1):
                batch_sum = self.objective.loss_sum(engine.module, batch)
                # Every engine averages gradients over the processes, hence the factor.
                engine.backward(batch_sum * (accelerator.num_processes / num_predicted))
            loss_sum += batch_sum.detach()
        loss, failure = reduce(loss_sum, "sum") / num_predicted, None
        try:
            grad_norm = engine.update(learning_rate_at(self.done, self.recipe))  # which waits for the device
        except NonFiniteError as error:
            failure = error
        loss = loss.item()
        if not math.isfinite(loss):
            failure = NonFiniteError(f"The loss is {loss}")
        if failure is not None:
            self.profiler.write()
            good = ckpt.checkpoints(self.output_dir / "checkpoints")
            kept = f"the last good checkpoint is {good[-1]}" if good else "no checkpoint had been saved yet"
            raise InputError(
                f"{failure} at step {self.done + 1}: {kept}; lower `learning_rate` or lengthen `warmup_steps`."
            ) from failure
        self.done += 1
        return loss, grad_norm

    def log(self, loss: float, grad_norm: float, is_settled: bool) -> None:
        """Write and show the figures of the last step; warn once where data comes too slowly, the first rows apart."""
        recipe = self.recipe
        row = {
            "step": self.done,
            "loss": loss,
            "learning_rate": learning_rate_at(self.done - 1, recipe),
            "grad_norm": grad_norm,
            "epoch": self.done * recipe.global_batch_size / len(self.train_rows),
            **self.throughput.figures(),
        }
        row["data_wait"] = max(gather_object([row["data_wait"]]))  # the others wait for the slowest process
        self.record(row)
        self.progress.logged(
            self.done, f"loss {loss:.3f}, lr {row['learning_rate']:.1e}, {row['tokens_per_second']:,.0f} tokens/s"
        )
        if row["data_wait"] > TOO_LONG_A_WAIT and is_settled and not self.has_warned:
            self.has_warned = True
            self.progress.say(
                f"warning: up to step {self.done}, {row['data_wait']:.0%} of the time went into waiting for data: raise "
                f"`dataloader_num_workers` (now {recipe.dataloader_num_workers})."
            )

    def record(self, row: dict) -> None:
        """Add a row to the metrics and the trackers."""
        if self.metrics is not None:
            self.metrics.write(row)
        self.accelerator.log({name: value for name, value in row.items() if name != "step"}, step=row["step"])

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Measure the model on the validation rows, write and show the figures. Returns them."""
        engine, device = self.engine, self.accelerator.device
        engine.module.eval()
        rows, processes = self.num_validation_rows, self.accelerator.num_processes
        # As many batches on every process, because engines that divide the weights bring them together at each: rows beyond
        # the last are row 0 again, and do not count.
        places = range(self.accelerator.process_index, math.ceil(rows / processes) * processes, processes)
        sampler = [place if place < rows else 0 for place in places]
        counts = torch.tensor([place < rows for place in places], device=device)
        loader = DataLoader(
            self.validation_rows,
            batch_size=self.recipe.eval_micro_batch_size,
            sampler=sampler,
            collate_fn=self.objective.collate,
        )
        sums = torch.zeros(3, dtype=torch.float64, device=device)
        for batch, counted_b in zip(loader, counts.split(self.recipe.eval_micro_batch_size), strict=True):
            with self.accelerator.autocast(), torch.compiler.set_stance("force_eager"):
                sums += self.objective.evaluation_sums(engine.module, self.to_device(batch), counted_b)
        engine.module.train()
        figures = self.objective.figures(reduce(sums, "sum"))
        self.record({"step": self.done, **figures})
        bits = f", {figures['eval_bits_per_byte']:.3f} bits per byte" if "eval_bits_per_byte" in figures else ""
        self.progress.say(
            f"step {self.done}: validation loss {figures['eval_loss']:.4f}, perplexity {figures['eval_perplexity']:.1f}, "
            f"accuracy {figures['eval_accuracy']:.1%}{bits}"
        )
        return figures

    # -----------------------------------------------------------------------------------------------------------------
    # What is left behind

    def save(self) -> None:
        """Write a checkpoint; all processes take part.

        Raises:
            InputError: on all processes; it can't be written.
        """
        engine, recipe = self.engine, self.recipe
        weights, optimizer_state = self.on_main_process(engine.weights()), self.on_main_process(engine.optimizer_state())
        scaler = engine.scaler.state_dict() if engine.scaler is not None else None
        state = {"step": self.done, **self.identity, "scaler": scaler}
        folder, limit = self.output_dir / "checkpoints", recipe.save_total_limit

        def write() -> None:
            if self.accelerator.is_main_process:
                ckpt.save_checkpoint(
                    folder, self.skeleton, weights, optimizer_state, self.tokenizer, state, limit, self.card()
                )

        together(write)

    def on_main_process(self, tensors: Iterator[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Collect what all processes must ask for, on the main process alone."""
        return {name: x.cpu().contiguous() for name, x in tensors if self.accelerator.is_main_process}

    def card(self, results: dict | None = None) -> ModelCard:
        """Write the card of the model as it is now."""
        versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "accelerate")}
        config, parameters = self.skeleton.config, self.skeleton.num_parameters()
        return make_model_card(self.recipe, config, self.start.manifest, parameters, versions, self.done, results)

    def finish(self) -> None:
        """Evaluate the finished model, and write it with its results, its card and its curve."""
        recipe, output_dir = self.recipe, self.output_dir
        self.profiler.write()
        figures = self.evaluate() if self.validation_rows is not None else {}
        weights = self.on_main_process(self.engine.weights())
        if self.accelerator.is_main_process:
            results = {**self.identity, "steps": self.done, "parameters": self.skeleton.num_parameters(), **figures}
            if self.validation_rows is not None:
                results |= self.objective.baselines(Path(recipe.dataset), self.validation_rows, self.num_validation_rows)
                print(told_results(results))
            self.skeleton.save_pretrained(output_dir / "model", state_dict=weights)
            self.tokenizer.save_pretrained(output_dir / "model")
            self.card(results).save(output_dir / "model" / "README.md")
            curve = read_metrics(output_dir / "metrics.jsonl")
            plot_loss(curve, results, output_dir / "loss.png")
            write_json(output_dir / "results.json", results)
            if recipe.hub_model_id is not None:
                publish(output_dir / "model", recipe.hub_model_id, "main")
        self.accelerator.print(
            f"Model and tokenizer are in {output_dir / 'model'}, the curve is in {output_dir / 'loss.png'}."
        )

    def close(self) -> None:
        """End data workers, metrics and progress."""
        self.batches.close()
        self.progress.close()
        if self.metrics is not None:
            self.metrics.close()
