# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Masked-language-model pretraining.

    accelerate launch -m pretraining.train RECIPE.yaml [name=value ...]
    torchrun --nproc_per_node 2 -m pretraining.train RECIPE.yaml [name=value ...]
    python -m pretraining.train RECIPE.yaml --plan

The run is a function of the recipe and the dataset: which sequence comes when, which of its tokens are masked, and what
dropout drops follow from seed, epoch, index and step alone. A run that is stopped, or killed, goes on from its last
checkpoint when the same command is given again.
"""

import argparse
import gc
import importlib.metadata
import importlib.util
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import gather_object, reduce
from huggingface_hub import ModelCard
from safetensors import SafetensorError
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from luna_tools.files import hold_lock, write_json, write_text
from luna_tools.publish import publish, wait_for_uploads
from pretraining import checkpoint as ckpt
from pretraining.cluster import ENGINE_NAMES
from pretraining.data import MaskedLMDataset, Masking, collate, unigram_cross_entropy, verify_shards
from pretraining.engines import ENGINES, DataParallel, NonFiniteError, has_gpu, launched_engine, make_accelerator
from pretraining.model_card import make_model_card
from pretraining.order import MicroBatchSampler
from pretraining.plan import Cluster, check_run, check_tokenizer, enable_gradient_checkpointing, plan
from pretraining.plot import plot_loss
from pretraining.recipe import (
    CHANGEABLE_ON_RESUME,
    InputError,
    Recipe,
    differing_field,
    load_recipe,
    model_config,
)
from pretraining.throughput import TOO_LONG_A_WAIT, Profiler, Throughput

TRACKERS = ("tensorboard", "wandb", "trackio")

MANIFEST_VERSION = 1

# Besides the packed rows a run needs the tokenizer and the counts behind the unigram baseline.
DATASET_FILES = ("manifest.json", "tokenizer", "train", "token_counts.npy")


# ---------------------------------------------------------------------------------------------------------------------
# Dataset and model


def read_manifest(recipe: Recipe) -> dict:
    """The manifest of the recipe's prepared dataset.

    Raises:
        InputError: the dataset is absent or not finished.
    """
    folder = Path(recipe.dataset)
    for name in DATASET_FILES:
        if not (folder / name).exists():
            raise InputError(
                f"`dataset` is {recipe.dataset}, which has no {name}: prepare it first, for example by "
                f"`python -m pretraining.prepare {recipe.dataset} --source python-docs`."
            )
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if manifest["format_version"] != MANIFEST_VERSION:
            raise InputError(
                f"`dataset` is {recipe.dataset}, which is of format {manifest['format_version']}, and this version reads "
                f"format {MANIFEST_VERSION}: prepare it anew."
            )
        return {name: manifest[name] for name in ("sequence_length", "vocab_size", "fingerprint", "splits", "sources")}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"`dataset` is {recipe.dataset}, whose manifest.json is damaged: prepare it anew.") from error


def build_model(recipe: Recipe, checkpoint: Path | None) -> PreTrainedModel:
    """The recipe's model in float32: from `checkpoint`, else from `model_name_or_path`, else initialised from the seed.

    Raises:
        InputError: transformers refuses to build it.
    """
    torch.manual_seed(recipe.seed)
    options = {"attn_implementation": recipe.attn_implementation, "dtype": torch.float32}
    try:
        config = model_config(recipe)
        if source := checkpoint or recipe.model_name_or_path:
            model = AutoModelForMaskedLM.from_pretrained(source, config=config, **options)
        else:
            model = AutoModelForMaskedLM.from_config(config, **options)
    except (ValueError, ImportError, OSError, RuntimeError) as error:
        raise InputError(f"The model can't be built: {' '.join(str(error).split())}") from error
    if recipe.gradient_checkpointing:
        enable_gradient_checkpointing(model)
    return model


def learning_rate_at(step: int, recipe: Recipe) -> float:
    """Learning rate of update `step` (from 0): linear warm-up to the peak, then linear decay that reaches 0 at the end."""
    warmup = (step + 1) / (recipe.warmup_steps + 1)
    decay = (recipe.max_steps - step) / max(1, recipe.max_steps - recipe.warmup_steps)
    return recipe.learning_rate * min(1.0, warmup, decay)


# ---------------------------------------------------------------------------------------------------------------------
# Steps


def train_step(
    accelerator: Accelerator, engine: DataParallel, micro_batches: list[dict], num_masked: int, recipe: Recipe, step: int
) -> tuple[float, float]:
    """One update from one global batch: (loss, gradient norm before clipping).

    The loss is the sum over all masked tokens of the global batch divided by their number `num_masked`, however the batch
    is divided over processes and micro-batches.

    Raises:
        NonFiniteError: the loss or, where no loss scaler deals with it, the gradient is not finite.
    """
    # Dropout is a function of seed, step and process, so a resumed run needs no generator state.
    entropy = np.random.SeedSequence([recipe.seed, step, accelerator.process_index])
    torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0] >> np.uint64(1)))
    loss_sum = torch.zeros((), device=accelerator.device)
    for i, batch in enumerate(micro_batches):
        with engine.micro_batch(is_last=i == len(micro_batches) - 1):
            batch_sum = masked_sum(engine.module, batch)
            # Every engine averages gradients over the processes, hence the factor.
            engine.backward(batch_sum * (accelerator.num_processes / num_masked))
        loss_sum += batch_sum.detach()
    loss = (reduce(loss_sum, "sum") / num_masked).item()
    if not math.isfinite(loss):
        raise NonFiniteError(f"The loss is {loss}")
    return loss, engine.update(learning_rate_at(step, recipe))


def masked_sum(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Summed cross-entropy over the masked tokens of a micro-batch.

    Every masked-LM head returns the mean over them; not all honour `num_items_in_batch`, which would give the sum.
    """
    return model(**batch).loss.float() * (batch["labels"] != -100).sum()


@torch.no_grad()
def evaluate(accelerator: Accelerator, engine: DataParallel, dataset: MaskedLMDataset, recipe: Recipe) -> dict:
    """Loss, perplexity and accuracy over the masked tokens of the validation split."""
    engine.module.eval()
    rows, processes = evaluated_rows(dataset, recipe), accelerator.num_processes
    # As many batches on every process, because engines that divide the weights bring them together at each: rows beyond
    # the last are row 0 again, and do not count.
    places = range(accelerator.process_index, math.ceil(rows / processes) * processes, processes)
    totals = torch.zeros(3, dtype=torch.float64, device=accelerator.device)
    sampler = [place if place < rows else 0 for place in places]
    counts = [place < rows for place in places]
    loader = DataLoader(dataset, batch_size=recipe.eval_micro_batch_size, sampler=sampler, collate_fn=collate)
    for batch in loader:
        batch = {name: tensor.to(accelerator.device) for name, tensor in batch.items()}
        counted, counts = counts[: len(batch["labels"])], counts[len(batch["labels"]) :]
        is_masked = (batch["labels"] != -100) & torch.tensor(counted, device=accelerator.device)[:, None]
        with accelerator.autocast():
            logits = engine.module(input_ids=batch["input_ids"]).logits[is_masked].float()
        labels = batch["labels"][is_masked]
        totals[0] += torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        totals[1] += (logits.argmax(-1) == labels).sum()
        totals[2] += len(labels)
    engine.module.train()
    loss_sum, correct, count = reduce(totals, "sum").tolist()
    loss = loss_sum / count
    return {"eval_loss": loss, "eval_perplexity": math.exp(min(loss, 700)), "eval_accuracy": correct / count}


def evaluated_rows(dataset: MaskedLMDataset, recipe: Recipe) -> int:
    return min(len(dataset), recipe.max_eval_sequences or len(dataset))


def validation_baseline(dataset: MaskedLMDataset, token_counts: np.ndarray, recipe: Recipe) -> float:
    """Cross-entropy in nats of the same masked tokens as `evaluate`'s under the training unigram frequencies."""
    rows = range(evaluated_rows(dataset, recipe))
    labels = [
        row_labels[row_labels != -100]
        for first in rows[::1024]
        for _, row_labels in dataset.__getitems__(list(rows[first : first + 1024]))
    ]
    return unigram_cross_entropy(token_counts, np.concatenate(labels))


# ---------------------------------------------------------------------------------------------------------------------
# Run


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
        now = time.monotonic()
        if number == signal.SIGINT and self.signal_number and now - self.received_at > 2:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.signal_number, self.received_at = self.signal_number or number, now


@contextmanager
def signals_blocked_in_children():
    """Processes started here never see SIGTERM or SIGINT: sent to the whole group, they would end them before the save."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def together(action: Callable):
    """Run `action` on this process and return its result; if it fails on any process, all raise the same error.

    An error on one process alone would leave the others waiting for it.
    """
    result, sentence = None, None
    try:
        result = action()
    except (InputError, ckpt.InputError) as error:
        sentence = str(error)
    except OSError as error:
        sentence = file_error(error)
    failures = [failure for failure in gather_object([sentence]) if failure is not None]
    if failures:
        raise InputError(failures[0])
    return result


def file_error(error: OSError | SafetensorError) -> str:
    name, reason = getattr(error, "filename", None) or "A file", getattr(error, "strerror", None) or error
    return f"{name} can't be used ({reason}): mend that and give the same command again."


@dataclass
class Start:
    """Where a run begins: its data, its lock, and what an earlier run left."""

    manifest: dict
    held: IO | None
    finished: bool
    checkpoint: Path | None
    state: dict

    def place(self) -> tuple:
        return self.finished, self.state["step"], self.manifest["fingerprint"]


def find_start(recipe: Recipe, accelerator: Accelerator) -> Start:
    """Check all that can be checked before anything is loaded, hold the output folder, find the last checkpoint.

    Raises:
        InputError, InputError: with one sentence for the user.
        OSError: a file can't be read or written.
    """
    manifest = read_manifest(recipe)
    config = model_config(recipe)
    check_run(recipe, config, manifest, accelerator.num_processes)
    output_dir = Path(recipe.output_dir)
    held = None
    if accelerator.is_main_process:
        output_dir.mkdir(parents=True, exist_ok=True)
        held = hold_lock(output_dir / ".lock")
        if held is None:
            raise InputError(
                f"Another run is writing to `output_dir` = {output_dir}: wait for it or choose another folder."
            )
    results_path = output_dir / "results.json"
    if results_path.exists():
        check_resumable(json.loads(results_path.read_text(encoding="utf-8")), recipe, manifest, output_dir)
        return Start(manifest, held, finished=True, checkpoint=None, state={"step": recipe.max_steps})
    saved = ckpt.checkpoints(output_dir / "checkpoints")
    if not saved:
        return Start(manifest, held, finished=False, checkpoint=None, state={"step": 0, "scaler": None})
    if accelerator.is_main_process:
        ckpt.verify_checkpoint(saved[-1])
    state = ckpt.load_trainer_state(saved[-1])
    check_resumable(state, recipe, manifest, saved[-1])
    return Start(manifest, held, finished=False, checkpoint=saved[-1], state=state)


def check_resumable(state: dict, recipe: Recipe, manifest: dict, source: Path) -> None:
    """Refuse to go on with a run under another recipe or on other data.

    Raises:
        InputError: naming the first field that differs.
    """
    if difference := differing_field(state["recipe"], recipe.identity()):
        name, old, new = difference
        raise InputError(
            f"`{name}` is {new!r}, but the run in {source} was started with {old!r}: set it back to go on, or choose "
            "another `output_dir` for a new run."
        )
    if state["dataset_fingerprint"] != manifest["fingerprint"]:
        raise InputError(
            f"The dataset {recipe.dataset} is not the one that the run in {source} was started on: prepare it as it was, "
            "or choose another `output_dir` for a new run."
        )


def allowed_changes(recipe: Recipe) -> list[str]:
    """A sentence for each value that the run had at its last start and that alters neither weights nor data."""
    path = Path(recipe.output_dir) / "recipe.yaml"
    if not path.exists():
        return []
    try:
        old, new = dict(yaml.safe_load(path.read_text(encoding="utf-8"))), asdict(recipe)
    except (yaml.YAMLError, TypeError, ValueError):  # it is only a copy
        return []
    return [
        f"warning: `{name}` is {new[name]!r} now and was {old[name]!r} when the run was last started."
        for name in CHANGEABLE_ON_RESUME
        if name in old and old[name] != new[name] and name != "output_dir"
    ]


class Metrics:
    """metrics.jsonl: one line per logged step and per evaluation. Only the main process writes."""

    def __init__(self, path: Path, start_step: int, accelerator: Accelerator):
        self.accelerator = accelerator
        self.file = None
        if accelerator.is_main_process:
            # A resumed run writes again what came after its checkpoint: evaluation follows the save of its step.
            kept = [
                row
                for row in read_metrics(path)
                if row["step"] < start_step or (row["step"] == start_step and "loss" in row)
            ]
            write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
            self.file = path.open("a", encoding="utf-8", buffering=1)

    def write(self, row: dict) -> None:
        if self.file is not None:
            self.file.write(json.dumps(row) + "\n")
        self.accelerator.log({name: value for name, value in row.items() if name != "step"}, step=row["step"])


def read_metrics(path: Path) -> list[dict]:
    """The rows of a metrics file; a last line that a kill cut off is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


def check_environment(recipe: Recipe) -> None:
    """Refuse what this machine cannot do, before anything is loaded.

    Raises:
        InputError: with what to change.
    """
    if recipe.mixed_precision == "fp16" and not has_gpu():
        raise InputError("`mixed_precision` is fp16, which needs a GPU: use bf16 or no.")
    for tracker in recipe.report_to:
        if tracker not in TRACKERS:
            raise InputError(f"`report_to` names {tracker!r}: the trackers are {', '.join(TRACKERS)}.")
        if importlib.util.find_spec(tracker) is None:
            raise InputError(f"`report_to` names {tracker}, which is not installed: run `pip install {tracker}`.")


def run(recipe: Recipe, accelerator: Accelerator, engine_name: str) -> int:
    """Train to the end, or to a signal. Returns the exit status: 0, or 128 + the signal.

    Raises:
        InputError, InputError, NonFiniteError: with one sentence for the user.
    """
    stop = StopRequest()
    start = together(lambda: find_start(recipe, accelerator))
    if len(set(gather_object([start.place()]))) > 1:
        raise InputError(
            f"The processes see different files in `output_dir` = {recipe.output_dir} or `dataset` = {recipe.dataset}: put "
            "both on a file system that all nodes share."
        )
    if start.finished:
        accelerator.print(
            f"This run is finished: its model is in {recipe.output_dir}/model, its figures are in "
            f"{recipe.output_dir}/results.json."
        )
        status = 0
    else:
        status = train(recipe, accelerator, engine_name, start, stop)
    # End process group and trackers in order, once no model is left: DDP now and then aborts at the interpreter's exit.
    accelerator.wait_for_everyone()
    accelerator.free_memory()
    gc.collect()
    accelerator.end_training()
    if start.held is not None:
        start.held.close()
    return status


def train(recipe: Recipe, accelerator: Accelerator, engine_name: str, start: Start, stop: StopRequest) -> int:
    output_dir = Path(recipe.output_dir)
    manifest, start_step = start.manifest, start.state["step"]
    say = accelerator.print
    tokenizer = AutoTokenizer.from_pretrained(Path(recipe.dataset) / "tokenizer")
    together(lambda: check_tokenizer(recipe, model_config(recipe), tokenizer))
    processes = (accelerator.process_index, accelerator.num_processes)
    together(lambda: verify_shards(Path(recipe.dataset), manifest["splits"], *processes))
    masking = Masking(
        recipe.mlm_probability, tokenizer.mask_token_id, tuple(sorted(tokenizer.all_special_ids)), manifest["vocab_size"]
    )
    train_set = MaskedLMDataset(Path(recipe.dataset) / "train", masking, recipe.seed, shuffle=True)
    validation_set = None
    if (Path(recipe.dataset) / "validation").exists():
        validation_set = MaskedLMDataset(Path(recipe.dataset) / "validation", masking, recipe.seed, shuffle=False)

    if start.checkpoint is not None:
        say(f"Going on from {start.checkpoint}.")
        for sentence in allowed_changes(recipe):
            say(sentence)
    model = together(lambda: build_model(recipe, start.checkpoint)).to(accelerator.device).train()
    with torch.device("meta"):
        skeleton = type(model)(model.config)  # what is saved, with weights from the engine: an engine changes the model
    engine = together(lambda: ENGINES[engine_name](accelerator, model, recipe))
    if start.checkpoint is not None:
        engine.load_optimizer_state(ckpt.load_optimizer_state(start.checkpoint))
        if start.state["scaler"] is not None and engine.scaler is not None:
            engine.scaler.load_state_dict(start.state["scaler"])

    sampler = MicroBatchSampler(
        start_step,
        recipe.max_steps,
        recipe.global_batch_size,
        recipe.micro_batch_size,
        accelerator.process_index,
        accelerator.num_processes,
    )
    with signals_blocked_in_children():
        batches = iter(
            DataLoader(train_set, batch_sampler=sampler, collate_fn=collate, num_workers=recipe.dataloader_num_workers)
        )
    if accelerator.is_main_process:
        write_text(output_dir / "recipe.yaml", yaml.safe_dump(asdict(recipe), sort_keys=False))
    if recipe.report_to:
        accelerator.init_trackers("luna-pretraining", config={k: str(v) for k, v in asdict(recipe).items()})
    metrics = Metrics(output_dir / "metrics.jsonl", start_step, accelerator)
    identity = {"recipe": recipe.identity(), "dataset_fingerprint": manifest["fingerprint"]}

    def on_main_process(tensors: Iterator[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        return {name: x.cpu().contiguous() for name, x in tensors if accelerator.is_main_process}

    def card(step: int, results: dict | None = None) -> ModelCard:
        versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "accelerate")}
        return make_model_card(recipe, skeleton.config, manifest, skeleton.num_parameters(), versions, step, results)

    def write_checkpoint(step: int) -> None:
        weights, optimizer_state = on_main_process(engine.weights()), on_main_process(engine.optimizer_state())
        scaler = engine.scaler.state_dict() if engine.scaler is not None else None
        state = {"step": step, **identity, "scaler": scaler}

        def write() -> None:
            if accelerator.is_main_process:
                ckpt.save_checkpoint(
                    output_dir / "checkpoints",
                    skeleton,
                    weights,
                    optimizer_state,
                    tokenizer,
                    state,
                    recipe.save_total_limit,
                    card(step),
                )

        together(write)

    def evaluate_and_log(step: int) -> dict:
        figures = evaluate(accelerator, engine, validation_set, recipe)
        metrics.write({"step": step, **figures})
        if accelerator.is_main_process:
            bar.write(
                f"step {step}: validation loss {figures['eval_loss']:.4f}, perplexity {figures['eval_perplexity']:.1f}, "
                f"masked accuracy {figures['eval_accuracy']:.1%}",
                file=sys.stderr,
            )
        return figures

    say(
        f"{type(skeleton).__name__}, {skeleton.num_parameters():,} parameters; {accelerator.num_processes} process(es) x "
        f"{recipe.micro_batch_size} sequences x {sampler.accumulation_steps} micro-batches a step on "
        f"{accelerator.device}, precision {recipe.mixed_precision}."
    )
    throughput = Throughput(recipe, skeleton.config, manifest["sequence_length"], accelerator.num_processes)
    profiler = Profiler(recipe, output_dir, accelerator.process_index)
    has_warned = False
    with tqdm(
        total=recipe.max_steps,
        initial=start_step,
        desc="train",
        unit="step",
        disable=not accelerator.is_main_process,
        mininterval=0.5 if sys.stderr.isatty() else 20,
    ) as bar:
        for step in range(start_step, recipe.max_steps):
            if validation_set is not None and step > 0 and step % recipe.eval_steps == 0:
                evaluate_and_log(step)
            profiler.before_step(step + 1)
            throughput.begin_step()
            micro_batches = [
                {name: tensor.to(accelerator.device, non_blocking=True) for name, tensor in next(batches).items()}
                for _ in range(sampler.accumulation_steps)
            ]
            throughput.data_is_there()
            # One exchange tells all processes the number of masked tokens and whether one of them was told to stop.
            num_masked, stopped = reduce(
                torch.stack(
                    [
                        sum((batch["labels"] != -100).sum() for batch in micro_batches),
                        torch.tensor(int(stop.signal_number > 0), device=accelerator.device),
                    ]
                ),
                "sum",
            ).tolist()
            if stopped:
                profiler.write()
                write_checkpoint(step)
                say(f"Stopped by a signal after step {step}, which is saved: give the same command again to go on.")
                return 128 + (stop.signal_number or signal.SIGTERM)

            try:
                loss, grad_norm = train_step(accelerator, engine, micro_batches, num_masked, recipe, step)
            except NonFiniteError as error:
                profiler.write()
                good = ckpt.checkpoints(output_dir / "checkpoints")
                kept = f"the last good checkpoint is {good[-1]}" if good else "no checkpoint had been saved yet"
                raise NonFiniteError(
                    f"{error} at step {step + 1}: {kept}; lower `learning_rate` or lengthen `warmup_steps`."
                ) from error

            done = step + 1
            throughput.end_step()
            profiler.after_step(done)
            bar.update()
            if done % recipe.logging_steps == 0 or done == recipe.max_steps:
                row = {
                    "step": done,
                    "loss": loss,
                    "learning_rate": learning_rate_at(step, recipe),
                    "grad_norm": grad_norm,
                    "epoch": done * recipe.global_batch_size / len(train_set),
                    **throughput.figures(),
                }
                row["data_wait"] = max(gather_object([row["data_wait"]]))  # the others wait for the slowest process
                metrics.write(row)
                bar.set_postfix_str(
                    f"loss {row['loss']:.3f}, lr {row['learning_rate']:.1e}, {row['tokens_per_second']:,.0f} tokens/s",
                    refresh=False,
                )
                is_settled = done - start_step > recipe.logging_steps  # the first rows take longer
                if row["data_wait"] > TOO_LONG_A_WAIT and is_settled and accelerator.is_main_process and not has_warned:
                    has_warned = True
                    bar.write(
                        f"warning: up to step {done}, {row['data_wait']:.0%} of the time went into waiting for data: raise "
                        f"`dataloader_num_workers` (now {recipe.dataloader_num_workers}).",
                        file=sys.stderr,
                    )
            if done % recipe.save_steps == 0 or done == recipe.max_steps:
                write_checkpoint(done)
                if recipe.hub_model_id is not None and accelerator.is_main_process:
                    publish(ckpt.checkpoints(output_dir / "checkpoints")[-1], recipe.hub_model_id)

        profiler.write()
        figures = evaluate_and_log(recipe.max_steps) if validation_set is not None else {}
    weights = on_main_process(engine.weights())
    results = {**identity, "steps": recipe.max_steps, "parameters": skeleton.num_parameters(), **figures}
    if accelerator.is_main_process:
        if validation_set is not None:
            counts = np.load(Path(recipe.dataset) / "token_counts.npy")
            results["unigram_cross_entropy"] = validation_baseline(validation_set, counts, recipe)
            print(
                f"Validation loss {results['eval_loss']:.3f} nats (masked accuracy {results['eval_accuracy']:.1%}); the "
                f"unigram cross-entropy of the same tokens is {results['unigram_cross_entropy']:.3f} nats."
            )
        skeleton.save_pretrained(output_dir / "model", state_dict=weights)
        tokenizer.save_pretrained(output_dir / "model")
        card(recipe.max_steps, results).save(output_dir / "model" / "README.md")
        plot_loss(read_metrics(output_dir / "metrics.jsonl"), results.get("unigram_cross_entropy"), output_dir / "loss.png")
        write_json(output_dir / "results.json", results)
        if recipe.hub_model_id is not None:
            publish(output_dir / "model", recipe.hub_model_id, "main")
    say(f"Model and tokenizer are in {output_dir / 'model'}, the curve is in {output_dir / 'loss.png'}.")
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pretraining.train",
        description="Pretrain any masked language model of transformers, Luna first, from a recipe.",
    )
    parser.add_argument("recipe", help="a YAML file, or the name of a recipe in pretraining/recipes")
    parser.add_argument("overrides", nargs="*", metavar="name=value", help="for example max_steps=10 model.hidden_size=64")
    parser.add_argument("--plan", action="store_true", help="print what the run would do, without training")
    cluster = parser.add_argument_group("with --plan")
    cluster.add_argument("--num_processes", type=int, help="processes, one a device (default: the recipe's)")
    cluster.add_argument("--engine", choices=ENGINE_NAMES, default="ddp")
    cluster.add_argument("--tflops", type=float, help="model TFLOP/s that a device reaches, to plan time")
    cluster.add_argument("--link_gb_per_second", type=float, help="what a device sends in a second, to plan communication")
    args = parser.parse_intermixed_args(arguments)
    transformers_logging.disable_progress_bar()
    try:
        recipe = load_recipe(args.recipe, args.overrides)
        if args.plan:
            prepared = (Path(recipe.dataset) / "manifest.json").exists()
            num_processes = recipe.num_processes or 1 if args.num_processes is None else args.num_processes
            stated = Cluster(num_processes, args.engine, args.tflops, args.link_gb_per_second)
            print(plan(recipe, stated, read_manifest(recipe) if prepared else None))
            return 0
        check_environment(recipe)
        engine_name = launched_engine()
        status = run(recipe, make_accelerator(recipe, engine_name), engine_name)
        wait_for_uploads()
        return status
    except (InputError, ckpt.InputError, NonFiniteError) as error:
        # Once a node: all processes stop with the same sentence.
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        return 2
    except (OSError, SafetensorError) as error:  # of this process alone
        print(f"error: {file_error(error)}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
