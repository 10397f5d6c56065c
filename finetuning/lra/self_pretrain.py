# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The program `luna self_pretrain`: a masked language model of a task's own inputs, for `luna finetune` to start from.

The inputs are those of the training rows, nothing else; the model is the recipe's. An experiment of ours, not the paper's.
"""

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetuning.arguments import Arguments, parse, split_command_line
from finetuning.tasks import TASKS
from finetuning.tasks.lra import LraTask
from luna_tools.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

MASKED_SHARE = 0.15  # of the symbols, as in the paper's pretraining
NOT_READ = set("compare sweep sweep_grid num_seeds do_train do_eval do_predict push_to_hub hub_model_id".split())
USAGE = """usage: luna self_pretrain TASK [options.yaml] [--option value ...]

Train a masked language model on the inputs of a task of the Long Range Arena. The options are those of `luna finetune`; then
luna finetune TASK --model_name_or_path OUTPUT_DIR trains on the labels."""


def main(argv: list[str]) -> None:
    """Train and save the model, from the newest checkpoint if there is one.

    Raises:
        InputError: wrong input.
        Stopped: a signal came, and a checkpoint is saved.
    """
    if not argv or {"-h", "--help"} & set(argv):
        print(USAGE)
        return
    task_names, options = split_command_line(argv)
    if len(task_names) > 1 or not isinstance(TASKS.get(task_names[0]), LraTask):
        raise InputError(f"{' '.join(task_names)} was given, but self-pretraining is for one task of the Long Range Arena.")
    unevaluated = ["--eval_strategy", "no", "--no_load_best_model_at_end"]
    arguments = parse(task_names[0], [*options, *unevaluated], task_names)
    if not arguments.model.is_new or arguments.model.model_type != "luna":
        raise InputError(f"Self-pretraining starts from a new Luna: leave out {arguments.model.name}.")
    if unread := sorted(arguments.given & NOT_READ):
        raise InputError(f"`{unread[0]}` was given, but self-pretraining does not read it: leave it out.")
    if "output_dir" not in arguments.given:
        output_dir = f"runs/self-pretraining/{arguments.task.name}"
        arguments = replace(arguments, training=replace(arguments.training, output_dir=output_dir))
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    folder = self_pretrain(arguments)
    print(f"Saved in {folder}: give it to `luna finetune {arguments.task.name}` as --model_name_or_path.")


def self_pretrain(arguments: Arguments) -> Path:
    """Run the program; returns the folder of the model."""
    from safetensors.torch import load_model
    from transformers import AutoModelForMaskedLM, set_seed

    from finetuning.encoding import encode
    from finetuning.finetune import is_trained, load_data
    from finetuning.model import load_config, load_tokenizer, sequence_limit
    from finetuning.run_folder import check_output_dir, describe, find_checkpoint, list_checkpoints
    from finetuning.trainer import FinetuningTrainer, LogAtSaves, SaveOnSignal, make_training_arguments
    from luna_tools.files import write_json, writing

    args = make_training_arguments(arguments)
    folder, description = Path(args.output_dir), describe(arguments, args) | {"objective": "masked symbols"}
    check_output_dir(folder, description)
    if (folder / "model.safetensors").is_file():
        return folder
    set_seed(args.seed)
    config = load_config(arguments)
    tokenizer = load_tokenizer(config, arguments)
    data = load_data(config, arguments)
    model = AutoModelForMaskedLM.from_config(config)
    length = min(arguments.data.max_sequence_length, sequence_limit(model, tokenizer))
    train = encode(replace(data, splits={"train": data.splits["train"]}), tokenizer, length)["train"]
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "run.json", description)
    on_signal = SaveOnSignal()
    trainer = FinetuningTrainer(
        model=model,
        args=args,
        train_dataset=train.remove_columns("labels"),
        processing_class=tokenizer,
        data_collator=masking_collator(arguments.task, tokenizer),
        callbacks=[on_signal, LogAtSaves()],
        group_by_length=arguments.run.group_by_length,
        write_card=lambda: None,
    )
    checkpoint = find_checkpoint(folder, args.world_size)
    if checkpoint is not None and is_trained(checkpoint, trainer):
        load_model(model, checkpoint / "model.safetensors")
    else:
        on_signal.train(trainer, checkpoint)
    with writing(folder):
        trainer.save_model(str(folder), _internal_call=True)
    if args.should_save:
        for path in list_checkpoints(folder):  # the last one is the model now
            shutil.rmtree(path)
    return folder


def masking_collator(task: LraTask, tokenizer) -> Callable[[list[dict[str, Any]]], "dict[str, Tensor]"]:
    """The task's batches with masked symbols: eight tenths become the mask, one any symbol, one stays.

    Labels are -100 elsewhere. Two texts of a row become two rows.
    """
    from transformers import DataCollatorForLanguageModeling

    from finetuning.encoding import make_collator

    collate = make_collator(task, tokenizer)
    masker = DataCollatorForLanguageModeling(tokenizer, mlm_probability=MASKED_SHARE)
    special = list(tokenizer.all_special_ids)

    def masked(rows: list[dict[str, Any]]) -> "dict[str, Tensor]":
        import torch

        batch = {name: tensor.reshape(-1, tensor.shape[-1]) for name, tensor in collate(rows).items()}
        is_special = torch.isin(batch["input_ids"], torch.tensor(special))
        batch["input_ids"], batch["labels"] = masker.torch_mask_tokens(batch["input_ids"], is_special)
        return batch

    return masked
