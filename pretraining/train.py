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
import fcntl
import gc
import importlib.util
import json
import math
import os
import signal
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import reduce
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from pretraining import checkpoint as ckpt
from pretraining.data import MaskedLMDataset, Masking, MicroBatchSampler, collate, unigram_cross_entropy
from pretraining.files import write_json
from pretraining.plan import check_run, enable_gradient_checkpointing, plan
from pretraining.plot import plot_loss
from pretraining.recipe import Recipe, RecipeError, differing_field, load_recipe, model_config

TRACKERS = ("tensorboard", "wandb", "trackio")

# Besides the packed rows a run needs the tokenizer and the counts behind the unigram baseline.
DATASET_FILES = ("manifest.json", "tokenizer", "train", "token_counts.npy")


class NonFiniteError(RuntimeError):
    """The loss or its gradient stopped being a number."""


# ---------------------------------------------------------------------------------------------------------------------
# Dataset and model


def read_manifest(recipe: Recipe) -> dict:
    """The manifest of the recipe's prepared dataset.

    Raises:
        RecipeError: the dataset is absent or not finished.
    """
    folder = Path(recipe.dataset)
    for name in DATASET_FILES:
        if not (folder / name).exists():
            raise RecipeError(
                f"`dataset` is {recipe.dataset}, which has no {name}: prepare it first, for example by "
                f"`python -m pretraining.prepare {recipe.dataset} --source python-docs`."
            )
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def build_model(recipe: Recipe, checkpoint: Path | None) -> PreTrainedModel:
    """The recipe's model in float32: from `checkpoint`, else from `model_name_or_path`, else initialised from the seed.

    Raises:
        RecipeError: transformers refuses to build it.
    """
    torch.manual_seed(recipe.seed)
    options = {"attn_implementation": recipe.attn_implementation, "dtype": torch.float32}
    try:
        config = model_config(recipe)
        if source := checkpoint or recipe.model_name_or_path:
            model = AutoModelForMaskedLM.from_pretrained(source, config=config, **options)
        else:
            model = AutoModelForMaskedLM.from_config(config, **options)
    except (ValueError, ImportError, OSError) as error:
        if isinstance(error, RecipeError):
            raise
        raise RecipeError(f"The model can't be built: {' '.join(str(error).split())}") from error
    if recipe.gradient_checkpointing:
        enable_gradient_checkpointing(model)
    return model


def build_optimizer(model: PreTrainedModel, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW that decays matrices only, not norms and biases."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups,
        lr=recipe.learning_rate,
        betas=(recipe.adam_beta1, recipe.adam_beta2),
        eps=recipe.adam_epsilon,
        fused=True,
    )


def learning_rate_at(step: int, recipe: Recipe) -> float:
    """Learning rate of update `step` (from 0): linear warm-up to the peak, then linear decay that reaches 0 at the end."""
    warmup = (step + 1) / (recipe.warmup_steps + 1)
    decay = (recipe.max_steps - step) / max(1, recipe.max_steps - recipe.warmup_steps)
    return recipe.learning_rate * min(1.0, warmup, decay)


# ---------------------------------------------------------------------------------------------------------------------
# Steps


def train_step(
    accelerator: Accelerator, model: torch.nn.Module, micro_batches: list[dict], num_masked: int, recipe: Recipe, step: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of one global batch: (loss, gradient norm before clipping).

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
        # Gradients travel once a step. DistributedDataParallel averages over processes, hence the factor.
        with nullcontext() if i == len(micro_batches) - 1 else accelerator.no_sync(model):
            batch_sum = masked_sum(model, batch)
            accelerator.backward(batch_sum * (accelerator.num_processes / num_masked))
        loss_sum += batch_sum.detach()
    loss = reduce(loss_sum, "sum") / num_masked
    if not torch.isfinite(loss):
        raise NonFiniteError(f"The loss is {loss.item()} at step {step + 1}")
    grad_norm = accelerator.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
    if accelerator.scaler is None and not torch.isfinite(grad_norm):
        raise NonFiniteError(f"The gradient norm is {grad_norm.item()} at step {step + 1}")
    return loss, grad_norm


def masked_sum(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Summed cross-entropy over the masked tokens of a micro-batch.

    Every masked-LM head returns the mean over them; not all honour `num_items_in_batch`, which would give the sum.
    """
    return model(**batch).loss.float() * (batch["labels"] != -100).sum()


@torch.no_grad()
def evaluate(accelerator: Accelerator, model: PreTrainedModel, dataset: MaskedLMDataset, recipe: Recipe) -> dict:
    """Loss, perplexity and accuracy over the masked tokens of the whole validation split."""
    model.eval()
    mine = range(accelerator.process_index, len(dataset), accelerator.num_processes)
    totals = torch.zeros(3, dtype=torch.float64, device=accelerator.device)
    loader = DataLoader(dataset, batch_size=recipe.eval_micro_batch_size, sampler=mine, collate_fn=collate)
    for batch in loader:
        batch = {name: tensor.to(accelerator.device) for name, tensor in batch.items()}
        is_masked = batch["labels"] != -100
        with accelerator.autocast():
            logits = model(input_ids=batch["input_ids"]).logits[is_masked].float()
        labels = batch["labels"][is_masked]
        totals[0] += torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        totals[1] += (logits.argmax(-1) == labels).sum()
        totals[2] += len(labels)
    model.train()
    loss_sum, correct, count = reduce(totals, "sum").tolist()
    loss = loss_sum / count
    return {"eval_loss": loss, "eval_perplexity": math.exp(min(loss, 700)), "eval_accuracy": correct / count}


def validation_baseline(dataset: MaskedLMDataset, token_counts: np.ndarray) -> float:
    """Cross-entropy in nats of the masked validation tokens under the training unigram frequencies."""
    chunks = range(0, len(dataset), 1024)
    labels = [
        row_labels[row_labels != -100]
        for first in chunks
        for _, row_labels in dataset.__getitems__(list(range(first, min(first + 1024, len(dataset)))))
    ]
    return unigram_cross_entropy(token_counts, np.concatenate(labels))


# ---------------------------------------------------------------------------------------------------------------------
# Run


class StopRequest:
    """Remembers SIGTERM or SIGINT until the step is done; a second signal acts at once."""

    def __init__(self):
        self.signal_number = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.receive)

    def receive(self, number: int, frame) -> None:
        self.signal_number = number
        signal.signal(number, signal.SIG_DFL)


def lock(output_dir: Path):
    """Hold the output folder for this run; the kernel lets go when the process ends, however it ends."""
    output_dir.mkdir(parents=True, exist_ok=True)
    file = (output_dir / ".lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise RecipeError(
            f"Another run is writing to `output_dir` = {output_dir}: wait for it or choose another folder."
        ) from error
    return file


def check_resumable(state: dict, recipe: Recipe, manifest: dict, source: Path) -> None:
    """Refuse to go on with a run under another recipe or on other data.

    Raises:
        RecipeError: naming the first field that differs.
    """
    if difference := differing_field(state["recipe"], recipe.identity()):
        name, old, new = difference
        raise RecipeError(
            f"`{name}` is {new!r}, but the run in {source} was started with {old!r}: set it back to go on, or choose "
            "another `output_dir` for a new run."
        )
    if state["dataset_fingerprint"] != manifest["fingerprint"]:
        raise RecipeError(
            f"The dataset {recipe.dataset} is not the one that the run in {source} was started on: prepare it as it was, "
            "or choose another `output_dir` for a new run."
        )


class Metrics:
    """metrics.jsonl: one line per logged step and per evaluation. Only the main process writes."""

    def __init__(self, path: Path, start_step: int, recipe: Recipe, accelerator: Accelerator):
        self.accelerator = accelerator
        self.file = None
        if accelerator.is_main_process:
            # A resumed run writes again what came after its checkpoint, and the last evaluation, which follows it.
            kept = [
                row
                for row in read_metrics(path)
                if row["step"] <= start_step and not ("eval_loss" in row and row["step"] == recipe.max_steps)
            ]
            beside = path.with_name(f".tmp-{path.name}")
            beside.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
            beside.rename(path)
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


def check_launch(accelerator: Accelerator) -> None:
    """Refuse a launch whose processes do not know each other.

    Raises:
        RecipeError: with what to change.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != world_size:
        raise RecipeError(
            f"The launcher started {world_size} processes, but Accelerate sees {accelerator.num_processes} "
            f"({accelerator.distributed_type}): check its configuration, the copies would train apart."
        )


def check_environment(recipe: Recipe) -> None:
    """Refuse what this machine cannot do, before anything is loaded.

    Raises:
        RecipeError: with what to change.
    """
    if recipe.mixed_precision == "fp16" and not torch.accelerator.is_available():
        raise RecipeError("`mixed_precision` is fp16, which needs a GPU: use bf16 or no.")
    for tracker in recipe.report_to:
        if tracker not in TRACKERS:
            raise RecipeError(f"`report_to` names {tracker!r}: the trackers are {', '.join(TRACKERS)}.")
        if importlib.util.find_spec(tracker) is None:
            raise RecipeError(f"`report_to` names {tracker}, which is not installed: run `pip install {tracker}`.")


def run(recipe: Recipe, accelerator: Accelerator) -> int:
    """Train to the end, or to a signal. Returns the exit status: 0, or 128 + the signal.

    Raises:
        RecipeError, CheckpointError, NonFiniteError: with one sentence for the user.
    """
    stop = StopRequest()
    check_launch(accelerator)
    manifest = read_manifest(recipe)
    check_run(recipe, model_config(recipe), manifest, accelerator.num_processes)
    held = lock(Path(recipe.output_dir)) if accelerator.is_main_process else None
    status = train(recipe, accelerator, manifest, stop)
    # End process group and trackers in order, once no model is left: DDP now and then aborts at the interpreter's exit.
    accelerator.wait_for_everyone()
    accelerator.free_memory()
    gc.collect()
    accelerator.end_training()
    if held is not None:
        held.close()
    return status


def train(recipe: Recipe, accelerator: Accelerator, manifest: dict, stop: StopRequest) -> int:
    output_dir = Path(recipe.output_dir)
    say = accelerator.print

    results_path = output_dir / "results.json"
    if results_path.exists():
        check_resumable(json.loads(results_path.read_text(encoding="utf-8")), recipe, manifest, output_dir)
        say(f"This run is finished: its model is in {output_dir / 'model'}, its figures are in {results_path}.")
        return 0

    tokenizer = AutoTokenizer.from_pretrained(Path(recipe.dataset) / "tokenizer")
    masking = Masking(
        recipe.mlm_probability, tokenizer.mask_token_id, tuple(sorted(tokenizer.all_special_ids)), manifest["vocab_size"]
    )
    train_set = MaskedLMDataset(Path(recipe.dataset) / "train", masking, recipe.seed, shuffle=True)
    validation_set = None
    if (Path(recipe.dataset) / "validation").exists():
        validation_set = MaskedLMDataset(Path(recipe.dataset) / "validation", masking, recipe.seed, shuffle=False)

    saved = ckpt.checkpoints(output_dir / "checkpoints")
    state = {"step": 0, "scaler": None}
    if saved:
        ckpt.verify_checkpoint(saved[-1])
        state = ckpt.load_trainer_state(saved[-1])
        check_resumable(state, recipe, manifest, saved[-1])
        say(f"Going on from {saved[-1]}.")
    model = build_model(recipe, saved[-1] if saved else None).to(accelerator.device).train()
    optimizer = build_optimizer(model, recipe)
    if saved:
        ckpt.load_optimizer(saved[-1], model, optimizer)
    if state["scaler"] is not None:
        accelerator.scaler.load_state_dict(state["scaler"])
    prepared_model, prepared_optimizer = accelerator.prepare(model, optimizer)

    start_step = state["step"]
    sampler = MicroBatchSampler(
        start_step,
        recipe.max_steps,
        recipe.global_batch_size,
        recipe.micro_batch_size,
        accelerator.process_index,
        accelerator.num_processes,
    )
    batches = iter(
        DataLoader(train_set, batch_sampler=sampler, collate_fn=collate, num_workers=recipe.dataloader_num_workers)
    )
    if accelerator.is_main_process:
        (output_dir / "recipe.yaml").write_text(yaml.safe_dump(asdict(recipe), sort_keys=False), encoding="utf-8")
    if recipe.report_to:
        accelerator.init_trackers("luna-pretraining", config={k: str(v) for k, v in asdict(recipe).items()})
    metrics = Metrics(output_dir / "metrics.jsonl", start_step, recipe, accelerator)
    identity = {"recipe": recipe.identity(), "dataset_fingerprint": manifest["fingerprint"]}

    def save(step: int) -> None:
        if accelerator.is_main_process:
            scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else None
            state = {"step": step, **identity, "scaler": scaler}
            ckpt.save_checkpoint(
                output_dir / "checkpoints", step, model, optimizer, tokenizer, state, recipe.save_total_limit
            )
        accelerator.wait_for_everyone()

    def evaluate_and_log(step: int) -> dict:
        figures = evaluate(accelerator, model, validation_set, recipe)
        metrics.write({"step": step, **figures})
        bar.write(
            f"step {step}: validation loss {figures['eval_loss']:.4f}, perplexity {figures['eval_perplexity']:.1f}, "
            f"masked accuracy {figures['eval_accuracy']:.1%}",
            file=sys.stderr,
        )
        return figures

    say(
        f"{type(model).__name__}, {model.num_parameters():,} parameters; {accelerator.num_processes} process(es) x "
        f"{recipe.micro_batch_size} sequences x {sampler.accumulation_steps} micro-batches a step on "
        f"{accelerator.device}, precision {recipe.mixed_precision}."
    )
    bar = tqdm(
        total=recipe.max_steps,
        initial=start_step,
        desc="train",
        unit="step",
        disable=not accelerator.is_main_process,
        mininterval=0.5 if sys.stderr.isatty() else 20,
    )
    seconds = tokens = 0
    for step in range(start_step, recipe.max_steps):
        clock = time.perf_counter()
        micro_batches = [
            {name: tensor.to(accelerator.device, non_blocking=True) for name, tensor in next(batches).items()}
            for _ in range(sampler.accumulation_steps)
        ]
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
            save(step)
            bar.close()
            say(f"Stopped by a signal after step {step}, which is saved: give the same command again to go on.")
            return 128 + (stop.signal_number or signal.SIGTERM)

        learning_rate = learning_rate_at(step, recipe)
        for group in prepared_optimizer.param_groups:
            group["lr"] = learning_rate
        try:
            loss, grad_norm = train_step(accelerator, prepared_model, micro_batches, num_masked, recipe, step)
        except NonFiniteError as error:
            bar.close()
            good = ckpt.checkpoints(output_dir / "checkpoints")
            kept = f"the last good checkpoint is {good[-1]}" if good else "no checkpoint had been saved yet"
            raise NonFiniteError(f"{error}: {kept}; lower `learning_rate` or lengthen `warmup_steps`.") from error
        prepared_optimizer.step()
        prepared_optimizer.zero_grad()

        done = step + 1
        seconds += time.perf_counter() - clock
        tokens += recipe.global_batch_size * manifest["sequence_length"]
        bar.update()
        if done % recipe.logging_steps == 0 or done == recipe.max_steps:
            row = {
                "step": done,
                "loss": loss.item(),
                "learning_rate": learning_rate,
                "grad_norm": grad_norm.item(),
                "epoch": done * recipe.global_batch_size / len(train_set),
                "tokens_per_second": tokens / seconds,
            }
            metrics.write(row)
            bar.set_postfix_str(
                f"loss {row['loss']:.3f}, lr {learning_rate:.1e}, {row['tokens_per_second']:,.0f} tokens/s", refresh=False
            )
            seconds = tokens = 0
        if validation_set is not None and (done % recipe.eval_steps == 0 and done < recipe.max_steps):
            evaluate_and_log(done)
        if done % recipe.save_steps == 0 or done == recipe.max_steps:
            save(done)

    results = {**identity, "steps": recipe.max_steps, "parameters": model.num_parameters()}
    if validation_set is not None:
        counts = np.load(Path(recipe.dataset) / "token_counts.npy")
        results |= evaluate_and_log(recipe.max_steps)
        results["unigram_cross_entropy"] = validation_baseline(validation_set, counts)
        say(
            f"Validation loss {results['eval_loss']:.3f} nats (masked accuracy {results['eval_accuracy']:.1%}); the "
            f"unigram cross-entropy of the same tokens is {results['unigram_cross_entropy']:.3f} nats."
        )
    bar.close()
    if accelerator.is_main_process:
        model.save_pretrained(output_dir / "model")
        tokenizer.save_pretrained(output_dir / "model")
        plot_loss(read_metrics(output_dir / "metrics.jsonl"), results.get("unigram_cross_entropy"), output_dir / "loss.png")
        write_json(results_path, results)
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
    parser.add_argument("--num_processes", type=int, default=1, help="with --plan: plan for this many processes")
    args = parser.parse_args(arguments)
    transformers_logging.disable_progress_bar()
    main_process = os.environ.get("RANK", "0") == "0"
    try:
        recipe = load_recipe(args.recipe, args.overrides)
        if args.plan:
            prepared = (Path(recipe.dataset) / "manifest.json").exists()
            print(plan(recipe, args.num_processes, read_manifest(recipe) if prepared else None))
            return 0
        check_environment(recipe)
        accelerator = Accelerator(
            # Without this, torchrun on a machine without an accelerator starts copies that do not know each other.
            cpu=not torch.accelerator.is_available(),
            mixed_precision=recipe.mixed_precision,
            step_scheduler_with_optimizer=False,
            log_with=recipe.report_to or None,
            project_dir=recipe.output_dir,
        )
        return run(recipe, accelerator)
    except (RecipeError, ckpt.CheckpointError, NonFiniteError) as error:
        if main_process:
            print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
