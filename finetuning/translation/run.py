# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""One training run, `luna finetune translation`: train, average the last checkpoints, translate, score."""

import json
import logging
import os
import shutil
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

from finetuning.translation.arguments import CHANGEABLE_ON_RESUME, TranslationOptions, check_packages, make_parser, parse
from finetuning.translation.prepare import MANIFEST, SPLITS, read_manifest
from luna_tools.errors import InputError, told
from luna_tools.files import sha256, write_json, write_text, writing

if TYPE_CHECKING:
    from transformers import Seq2SeqTrainingArguments

logger = logging.getLogger(__name__)


def main(argv: list[str]) -> None:
    """Run what the command line asks for.

    Raises:
        InputError: wrong input.
        Stopped: a signal came, and a checkpoint is saved.
    """
    if not argv or {"-h", "--help"} & set(argv):
        make_parser().print_help()
        return
    row, options = parse(argv)
    check_packages("sacrebleu", "pytorch_optimizer", "datasets")
    if options.plan:
        from finetuning.translation.plan import plan

        print(plan(row, options))
        return
    from finetuning.run import libraries_set

    with libraries_set(options.disable_tqdm):
        results = train(row, options)
        if results is not None:
            print("\n".join(f"{name}: {value}" for name, value in results.items()))


def train(row: str | None, options: TranslationOptions) -> dict | None:
    """Do what is due of a run; returns its results, on the first process.

    Raises:
        InputError: wrong input, in one sentence.
        Stopped: a signal came; the same call goes on later.
    """
    from transformers import set_seed

    from finetuning.run_folder import check_output_dir, read_results

    if options.dataset is None:
        raise InputError("Give the pairs with --dataset: a folder that `luna prepare_pairs` made.")
    manifest = read_manifest(Path(options.dataset))
    output_dir = Path(options.output_dir or f"runs/translation/{options.model.get('model_type', 'model')}")
    args = make_training_arguments(options, output_dir)
    logger.warning("Processes: %d, on %s.", args.world_size, args.device.type)
    description = describe(row, options)
    check_output_dir(output_dir, description)
    results = read_results(output_dir)
    if args.world_size > 1:
        import torch

        torch.distributed.barrier()  # all have looked before the first one writes
    if results is None:
        set_seed(options.seed)
        run = TranslationRun(row, options, args, manifest, description)
        run.begin()
        run.train()
        run.average()
        run.evaluate()
        run.finish()
        results = run.results
    else:
        logger.warning("%s is finished.", output_dir)
    return results | {"output_dir": str(output_dir)} if args.should_save else None


def describe(row: str | None, options: TranslationOptions) -> dict:
    """The values that the result depends on: equal for runs that are the same run."""
    from finetuning.run_folder import checkpoint_files, digest, public_path

    values = {name: value for name, value in asdict(options).items() if name not in CHANGEABLE_ON_RESUME}
    values |= {"dataset": public_path(options.dataset), "task": "translation", "row": row}
    digests = {"dataset": sha256(Path(options.dataset) / MANIFEST)}
    if options.model_name_or_path is not None:
        values["model_name_or_path"] = public_path(options.model_name_or_path)
        if files := checkpoint_files(Path(options.model_name_or_path)):
            digests["model"] = digest(files)
    return json.loads(json.dumps(values | {"digests": digests}))


def make_training_arguments(options: TranslationOptions, output_dir: Path) -> "Seq2SeqTrainingArguments":
    """The Trainer's arguments, from this program's options.

    Raises:
        InputError: the Trainer refuses one, or the processes cannot share the batches.
    """
    import torch
    from transformers import Seq2SeqTrainingArguments

    from finetuning.trainer import check_launch

    num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    if options.batches_per_step % num_processes:
        raise InputError(
            f"`batches_per_step` is {options.batches_per_step}, which {num_processes} processes cannot share equally: "
            "choose a multiple of their number."
        )
    known = {field.name for field in fields(Seq2SeqTrainingArguments)}
    for name, value in options.trainer.items():
        if name not in known:
            raise InputError(f"`trainer.{name}` is {value}, but Seq2SeqTrainingArguments has no such field: correct it.")
    values = {name: value for name, value in vars(options).items() if name in known}
    values |= {
        "output_dir": str(output_dir),
        "per_device_train_batch_size": 1,  # not read: batches go by tokens
        "gradient_accumulation_steps": options.batches_per_step // num_processes,
        "label_smoothing_factor": 0.0,  # the loss is our own
        "warmup_steps": options.warmup_steps if options.optimizer == "adam" else 0,
        "eval_strategy": options.save_strategy,
        "eval_steps": options.save_steps,
        "save_total_limit": options.num_averaged_checkpoints,
        "use_cpu": options.use_cpu or not torch.accelerator.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "ddp_find_unused_parameters": False,  # each of an encoder-decoder's parameters has a gradient
    }
    checkpointing = next(name for name in ("activation_checkpointing", "gradient_checkpointing") if name in known)
    values[checkpointing] = values.pop("gradient_checkpointing", options.gradient_checkpointing)
    if options.fp16 and values["use_cpu"]:
        raise InputError("`fp16` is True, but float16 is for accelerators: on a CPU, give --bf16 or neither.")
    with told("The Trainer refuses the options", "correct them"):
        args = Seq2SeqTrainingArguments(**values | options.trainer)
        check_launch(args.world_size)  # which starts the processes' group
    return args


class TranslationRun:
    """A run whose phases are called in order: `begin`, `train`, `average`, `evaluate`, `finish`.

    Raises:
        InputError: the model, the pairs or the options do not go together.
    """

    def __init__(self, row: str | None, options: TranslationOptions, args, manifest: dict, description: dict):
        from datasets import load_from_disk
        from transformers import AutoTokenizer

        from finetuning.translation.batches import make_batches
        from finetuning.translation.model import check_lengths, make_model

        self.row, self.options, self.args = row, options, args
        self.manifest, self.description, self.results = manifest, description, {}
        self.output_dir, dataset = Path(args.output_dir), Path(options.dataset)
        with told(f"The dataset {dataset} cannot be read", "prepare it again"):
            self.tokenizer = AutoTokenizer.from_pretrained(dataset / "tokenizer")
            self.splits = {name: load_from_disk(dataset / name) for name in SPLITS if name in manifest["splits"]}
        self.model = make_model(options, self.tokenizer)
        check_lengths(self.model, self.tokenizer, self.splits, options.generation_max_length)
        train = self.splits["train"].with_format("numpy")
        lengths = (train["source_length"][:], train["target_length"][:])
        batches = make_batches(*lengths, options.max_tokens, options.batches_per_step, options.seed)
        self.trainer = self.make_trainer(batches)

    def make_trainer(self, batches: list):
        """The Trainer of this run, with its callbacks."""
        from finetuning.trainer import LogAtSaves, SaveOnSignal
        from finetuning.translation.trainer import MODEL_INPUTS, TranslationTrainer

        self.on_signal = SaveOnSignal()
        if self.args.should_save:
            self.output_dir.mkdir(parents=True, exist_ok=True)
        with told("The Trainer cannot start", "correct the options"):
            return TranslationTrainer(
                self.options,
                batches,
                model=self.model,
                args=self.args,
                train_dataset=self.splits["train"].select_columns(MODEL_INPUTS),
                eval_dataset=self.splits["validation"].select_columns(MODEL_INPUTS),
                processing_class=self.tokenizer,
                callbacks=[self.on_signal, LogAtSaves()],
                write_card=self.write_card,
            )

    def begin(self) -> None:
        """Make the folder this run's."""
        if self.args.should_save:
            with writing(self.output_dir):
                write_json(self.output_dir / "run.json", self.description)

    def train(self) -> None:
        """Train to the end, from the newest checkpoint if there is one.

        Raises:
            Stopped: a signal came, and a checkpoint is saved.
        """
        from transformers import TrainerState

        from finetuning.run_folder import find_checkpoint

        trainer, checkpoint = self.trainer, find_checkpoint(self.output_dir, self.args.world_size)
        state = checkpoint and TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        if state and state.global_step >= state.max_steps:
            trainer.state = state
        else:
            if checkpoint is not None:
                logger.warning("Going on from %s.", checkpoint)
            self.on_signal.train(trainer, checkpoint)
        self.results |= {"train_steps": trainer.state.global_step, "train_epochs": trainer.state.epoch}

    def average(self) -> None:
        """Make the model the mean of the last checkpoints, and write it."""
        from finetuning.translation.model import build_model
        from luna_tools.average import average_weights

        folders = self.trainer.checkpoints_to_average()
        if len(folders) < self.options.num_averaged_checkpoints:
            logger.warning(
                "The mean is of %d checkpoints: the run has no more of the %d.",
                len(folders),
                self.options.num_averaged_checkpoints,
            )
        self.results["averaged_checkpoints"] = len(folders)
        if self.args.should_save:
            with writing(self.output_dir):
                self.model.save_pretrained(self.output_dir, state_dict=average_weights(folders))
                self.tokenizer.save_pretrained(self.output_dir)
        self.trainer.accelerator.wait_for_everyone()
        self.model.load_state_dict(build_model(self.model.config, str(self.output_dir)).state_dict())

    def evaluate(self) -> None:
        """Loss, translations and scores of validation and test."""
        from finetuning.trainer import TIMINGS
        from finetuning.translation.bleu import scores

        for split in SPLITS[1:]:
            if split not in self.splits:
                continue
            rows = self.splits[split]
            metrics = self.trainer.evaluate(rows.select_columns(["input_ids", "labels"]), metric_key_prefix=split)
            self.results |= {k: v for k, v in metrics.items() if k.startswith(split) and not k.endswith(TIMINGS)}
            logger.warning("Translating %s: %s pairs, %d beams.", split, f"{len(rows):,}", self.options.num_beams)
            translations = self.trainer.translate(rows)
            values = scores(translations, [" ".join(line.split()) for line in rows["target"][:]])
            self.results |= {f"{split}_{name}": value for name, value in values.items()}
            if self.args.should_save:
                with writing(self.output_dir):
                    text = "".join(f"{line}\n" for line in translations)
                    write_text(self.output_dir / f"translations_{split}.txt", text)

    def finish(self) -> None:
        """Write card, learning curve, and last `all_results.json`, which marks the run as finished."""
        from finetuning.plots import plot_learning_curve
        from finetuning.run_folder import list_checkpoints
        from finetuning.translation.bleu import signatures

        if self.args.should_save:
            self.results["signatures"] = signatures()
            with writing(self.output_dir):
                state, smoothing = self.trainer.state, self.options.label_smoothing_factor
                state.save_to_json(str(self.output_dir / "trainer_state.json"))
                plot_learning_curve(
                    self.output_dir / "learning_curve.png",
                    state.log_history,
                    ("perplexity",),
                    self.row or self.model.config.model_type,
                    loss_name=f"cross-entropy (nats)\nin training with label smoothing {smoothing:g}",
                )
                self.write_card()
                write_json(self.output_dir / "all_results.json", self.results)
            for checkpoint in list_checkpoints(self.output_dir):  # their mean is the model now
                shutil.rmtree(checkpoint)
        self.trainer.accelerator.wait_for_everyone()

    def write_card(self) -> None:
        """Write README.md from what is known of the run."""
        from finetuning.translation.card import make_card

        card = make_card(self.output_dir.name, self.model, self.manifest, self.description, self.results, self.options)
        write_text(self.output_dir / "README.md", card)
