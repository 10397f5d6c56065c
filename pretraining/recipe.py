# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Recipes: every value of a pretraining run, from YAML files and the command line. Nothing here imports torch."""

import json
import math
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from luna_tools.errors import InputError
from luna_tools.settings import Parser, named_files, split_command_line

RECIPES = Path(__file__).parent / "recipes"

Schedule = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "cosine_with_min_lr",
    "polynomial",
    "constant_with_warmup",
    "inverse_sqrt",
    "warmup_stable_decay",
]

# What a resumed run may change: it alters neither the weights nor the data of the run.
CHANGEABLE_ON_RESUME = (
    "output_dir",
    "micro_batch_size",
    "eval_micro_batch_size",
    "gradient_checkpointing",
    "compile",
    "num_processes",
    "logging_steps",
    "eval_steps",
    "max_eval_sequences",
    "save_steps",
    "save_total_limit",
    "dataloader_num_workers",
    "report_to",
    "hub_model_id",
    "language",
    "license",
    "peak_tflops",
    "profile_step",
)

MASKING_FIELDS = ("mlm_probability", "final_mlm_probability", "mask_replace_prob", "random_replace_prob")


@dataclass(frozen=True)
class Recipe:
    """A pretraining run. Batch sizes are in sequences, lengths in tokens, steps are optimizer updates.

    Raises:
        InputError: a value that no run can be made of.
    """

    dataset: str
    """A folder that `luna prepare` made."""
    output_dir: str
    """Where the run writes."""
    max_steps: int
    """Updates; the linear schedule reaches 0 after the last one."""
    global_batch_size: int
    """Sequences a step over all processes."""
    learning_rate: float
    """Peak of the learning rate, which rises linearly over the warm-up and then follows the schedule; Muon's with muon."""
    model: dict[str, Any] = field(default_factory=dict)
    """Fields of the configuration of any language model of transformers, `model_type` among them."""
    objective: Literal["masked_lm", "clm"] = "masked_lm"
    """What is learned: masked_lm, the tokens that are masked; clm, each token from those before it."""
    micro_batch_size: int = 8
    """Sequences at a time on one process."""
    eval_micro_batch_size: int = 8
    """Sequences at a time on one process in an evaluation."""
    model_name_or_path: str | None = None
    """Start from these weights; `model` then holds only changes to their configuration."""
    attn_implementation: str = "sdpa"
    """Attention of transformers: eager, sdpa, flash_attention_2, flex_attention, ..."""
    gradient_checkpointing: bool = False
    """Keep one activation a layer and compute the others again."""
    compile: bool = False
    """Compile the model's forward and backward pass by torch.compile as one graph; for Luna, on data parallelism."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """Precision of the computation, fp16 on GPUs alone; weights stay in float32."""
    num_processes: int | None = None
    """Refuse to start with another number of processes."""
    lr_scheduler_type: Schedule = "linear"
    """Course of the learning rate after the warm-up: a schedule of transformers' `get_scheduler`."""
    lr_scheduler_kwargs: dict[str, Any] = field(default_factory=dict)
    """What the schedule takes besides: `num_decay_steps` and `decay_type` of warmup_stable_decay, ..."""
    warmup_steps: int = 0
    """Updates over which the learning rate rises."""
    optimizer: Literal["adamw", "muon", "stable_adamw"] = "adamw"
    """muon: torch.optim.Muon for the matrices of the layers, AdamW for all else; stable_adamw: pytorch-optimizer's."""
    adamw_learning_rate: float | None = None
    """Peak of the learning rate of what Muon leaves to AdamW: embeddings, head, norms, biases."""
    muon_momentum: float = 0.95
    """Decay of Muon's momentum."""
    weight_decay: float = 0.01
    """Decay of matrices; norms and biases have none."""
    adam_beta1: float = 0.9
    """Decay of Adam's first moment."""
    adam_beta2: float = 0.98
    """Decay of Adam's second moment."""
    adam_epsilon: float = 1e-6
    """What Adam adds to the denominator."""
    max_grad_norm: float = 1.0
    """Gradients of a larger norm are clipped to it."""
    mlm_probability: float = 0.15
    """Share of the tokens to predict."""
    final_mlm_probability: float | None = None
    """Share of the tokens to predict at the last step, linearly from `mlm_probability` (default: the same); evaluations
    mask this share."""
    mask_replace_prob: float = 0.8
    """Share of the tokens to predict that become the mask token."""
    random_replace_prob: float = 0.1
    """Share of the tokens to predict that become a random token; the rest stays."""
    seed: int = 0
    """Of weights, order, masks and dropout."""
    logging_steps: int = 10
    """Log every so many steps."""
    eval_steps: int = 500
    """Evaluate every so many steps."""
    max_eval_sequences: int | None = None
    """Validation rows of an evaluation (default: all)."""
    save_steps: int = 500
    """Save a checkpoint every so many steps."""
    save_total_limit: int = 3
    """Checkpoints to keep."""
    dataloader_num_workers: int = 0
    """Processes beside each rank that read and mask."""
    report_to: list[str] = field(default_factory=list)
    """Trackers: tensorboard, wandb, trackio."""
    hub_model_id: str | None = None
    """A name on the Hub, org/name, to publish each checkpoint as a revision."""
    language: str | None = None
    """Language of the dataset for the model card, as a code: en, ..."""
    license: str | None = None
    """Licence of the weights for the model card, as the Hub names it: apache-2.0, ..."""
    peak_tflops: float | None = None
    """Peak TFLOP/s of a device; adds model FLOP utilisation to the metrics."""
    profile_step: int | None = None
    """Write a trace of this step and the next two to profile/rank-N.json."""

    def __post_init__(self):
        for name in (
            "max_steps",
            "global_batch_size",
            "micro_batch_size",
            "eval_micro_batch_size",
            "num_processes",
            "logging_steps",
            "eval_steps",
            "max_eval_sequences",
            "save_steps",
            "save_total_limit",
            "profile_step",
        ):
            self._require(name, lambda value: value >= 1, "at least 1")
        for name in (f.name for f in fields(self) if f.type in (float, float | None)):
            self._require(name, math.isfinite, "a finite number")
        for name in ("learning_rate", "adamw_learning_rate", "adam_epsilon", "max_grad_norm", "peak_tflops"):
            self._require(name, lambda value: value > 0, "above 0")
        for name in ("adam_beta1", "adam_beta2", "muon_momentum"):
            self._require(name, lambda value: 0 <= value < 1, "in [0, 1)")
        for name in ("mlm_probability", "final_mlm_probability"):
            self._require(name, lambda value: 0 < value < 1, "between 0 and 1")
        self._require("mask_replace_prob", lambda value: 0 <= value <= 1, "in [0, 1]")
        left = 1 - self.mask_replace_prob
        self._require(
            "random_replace_prob",
            lambda value: 0 <= value <= left,
            f"between 0 and the {left:g} that `mask_replace_prob` leaves",
        )
        if (self.adamw_learning_rate is not None) != (self.optimizer == "muon"):
            raise InputError(
                f"`adamw_learning_rate` is {self.adamw_learning_rate}, but `optimizer` is {self.optimizer}: set it with "
                "muon, whose `learning_rate` is not for the weights that are left to AdamW, and with no other."
            )
        for f in fields(self):
            if self.objective == "clm" and f.name in MASKING_FIELDS and getattr(self, f.name) != f.default:
                raise InputError(
                    f"`{f.name}` is {getattr(self, f.name)}, but `objective` is clm, which masks nothing: leave it out, or "
                    "set `objective` to masked_lm."
                )
        self._require("seed", lambda value: value < 2**63, "below 2**63")
        for name in ("weight_decay", "warmup_steps", "seed", "dataloader_num_workers"):
            if getattr(self, name) < 0:
                raise InputError(f"`{name}` is {getattr(self, name)}, but must not be negative.")
        if self.warmup_steps > self.max_steps:
            raise InputError(
                f"`warmup_steps` is {self.warmup_steps}, but the run has only `max_steps` = {self.max_steps}: lower it."
            )
        if self.hub_model_id is not None:
            try:
                validate_repo_id(self.hub_model_id)
            except HFValidationError as error:
                raise InputError(
                    f"`hub_model_id` is {self.hub_model_id!r}, which is not a name on the Hub: {error}"
                ) from error

    def _require(self, name: str, holds, wanted: str) -> None:
        value = getattr(self, name)
        if value is not None and not holds(value):
            raise InputError(f"`{name}` is {value}, but must be {wanted}.")

    @property
    def last_mlm_probability(self) -> float:
        """Share of the tokens to predict at the last step and in evaluations."""
        return self.mlm_probability if self.final_mlm_probability is None else self.final_mlm_probability

    def identity(self) -> dict[str, Any]:
        """Return what a resumed run must have in common with the run it resumes."""
        return {name: value for name, value in asdict(self).items() if name not in CHANGEABLE_ON_RESUME}


def parse_recipe(argv: list[str], *others: type) -> tuple[Recipe, ...]:
    """Read a command line: a recipe's name or file, more files, options; the later one wins.

    Args:
        others: dataclasses of more options.

    Returns:
        The recipe, and an object of each of `others`.

    Raises:
        InputError: a file, a name or a value is wrong.
    """
    named = named_files(RECIPES)
    words, options = split_command_line(argv, named)
    if words:
        raise InputError(f"There is no recipe {words[0]!r}: give a YAML file or one of {', '.join(named)}.")
    if not options:
        raise InputError(f"No recipe is given: give a YAML file or one of {', '.join(named)}.")
    description = "Pretrain any masked or causal language model of transformers: [RECIPE or file.yaml ...] [options]."
    return Parser("luna pretrain", description, Recipe, *others).parse(options)


def load_recipe(*argv: str) -> Recipe:
    """Return the recipe of a command line, for example `load_recipe("quickstart", "--max_steps", "10")`.

    Raises:
        InputError: a file, a name or a value is wrong.
    """
    return parse_recipe(list(argv))[0]


def difference_from_run(saved: dict[str, Any], recipe: Recipe) -> tuple[str, Any, Any] | None:
    """Return the first field whose value is another than that of an earlier run, with the old and the new value.

    Args:
        saved: `identity` of the earlier run; fields that it did not know had what is now their default.
    """
    known = {f.name: f.default for f in fields(Recipe) if f.default is not MISSING} | saved
    old = {name: value for name, value in known.items() if name not in CHANGEABLE_ON_RESUME}
    return differing_field(old, recipe.identity())


def differing_field(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> tuple[str, Any, Any] | None:
    """Return the first name whose value differs between two (nested) dictionaries, with both values."""
    for name in sorted(old.keys() | new.keys()):
        a, b = old.get(name), new.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            if found := differing_field(a, b, f"{prefix}{name}."):
                return found
        elif json.dumps(a) != json.dumps(b):
            return f"{prefix}{name}", a, b
    return None
