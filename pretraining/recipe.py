# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Recipes: every value of a pretraining run, from a YAML file and `name=value` overrides."""

import json
import math
import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from huggingface_hub.errors import HFValidationError, StrictDataclassError
from huggingface_hub.utils import validate_repo_id
from transformers import AutoConfig, PreTrainedConfig

import modeling_luna  # noqa: F401  (registers Luna with the Auto classes)

RECIPES = Path(__file__).parent / "recipes"

# What a resumed run may change: it alters neither the weights nor the data of the run.
CHANGEABLE_ON_RESUME = (
    "output_dir",
    "micro_batch_size",
    "eval_micro_batch_size",
    "gradient_checkpointing",
    "num_processes",
    "logging_steps",
    "eval_steps",
    "max_eval_sequences",
    "save_steps",
    "save_total_limit",
    "dataloader_num_workers",
    "report_to",
    "hub_model_id",
    "peak_tflops",
    "profile_step",
)


class RecipeLoader(yaml.SafeLoader):
    """YAML, but 1e-5 is a number: YAML 1.1 wants 1.0e-5."""


RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+"), list("-+0123456789")
)


class InputError(Exception):
    """A value of a recipe that no run can be made of; its message is one sentence for the user."""


@dataclass(frozen=True)
class Recipe:
    """A pretraining run. Batch sizes are in sequences, lengths in tokens, steps are optimizer updates."""

    dataset: str
    output_dir: str
    model: dict[str, Any]
    max_steps: int
    global_batch_size: int
    learning_rate: float
    micro_batch_size: int = 8
    eval_micro_batch_size: int = 8
    model_name_or_path: str | None = None
    attn_implementation: str = "sdpa"
    gradient_checkpointing: bool = False
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    num_processes: int | None = None
    warmup_steps: int = 0
    weight_decay: float = 0.01
    adam_beta1: float = 0.9
    adam_beta2: float = 0.98
    adam_epsilon: float = 1e-6
    max_grad_norm: float = 1.0
    mlm_probability: float = 0.15
    seed: int = 0
    logging_steps: int = 10
    eval_steps: int = 500
    max_eval_sequences: int | None = None
    save_steps: int = 500
    save_total_limit: int = 3
    dataloader_num_workers: int = 0
    report_to: list[str] = field(default_factory=list)
    hub_model_id: str | None = None
    peak_tflops: float | None = None
    profile_step: int | None = None

    def __post_init__(self):
        for name in (
            "max_steps",
            "global_batch_size",
            "micro_batch_size",
            "eval_micro_batch_size",
            "logging_steps",
            "eval_steps",
            "save_steps",
            "save_total_limit",
        ):
            if getattr(self, name) < 1:
                raise InputError(f"`{name}` is {getattr(self, name)}, but must be at least 1.")
        for name, value in asdict(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError(f"`{name}` is {value}, but must be a finite number.")
        for name in ("learning_rate", "adam_epsilon", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise InputError(f"`{name}` is {getattr(self, name)}, but must be above 0.")
        for name in ("weight_decay", "warmup_steps", "seed", "dataloader_num_workers"):
            if getattr(self, name) < 0:
                raise InputError(f"`{name}` is {getattr(self, name)}, but must not be negative.")
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"`{name}` is {getattr(self, name)}, but must be in [0, 1).")
        if not 0 < self.mlm_probability < 1:
            raise InputError(f"`mlm_probability` is {self.mlm_probability}, but must be between 0 and 1.")
        if self.warmup_steps > self.max_steps:
            raise InputError(
                f"`warmup_steps` is {self.warmup_steps}, but the run has only `max_steps` = {self.max_steps}: lower it."
            )
        if self.seed >= 2**63:
            raise InputError(f"`seed` is {self.seed}, but must be below 2**63.")
        if self.hub_model_id is not None:
            try:
                validate_repo_id(self.hub_model_id)
            except HFValidationError as error:
                raise InputError(
                    f"`hub_model_id` is {self.hub_model_id!r}, which is not a name on the Hub: {error}"
                ) from error
        for name in ("num_processes", "max_eval_sequences", "profile_step"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"`{name}` is {getattr(self, name)}, but must be at least 1.")
        if self.peak_tflops is not None and not self.peak_tflops > 0:
            raise InputError(f"`peak_tflops` is {self.peak_tflops}, but must be above 0.")

    def identity(self) -> dict[str, Any]:
        """What a resumed run must have in common with the run it resumes."""
        return {name: value for name, value in asdict(self).items() if name not in CHANGEABLE_ON_RESUME}


def load_recipe(name_or_path: str, overrides: list[str]) -> Recipe:
    """Read a recipe file, or one of the named recipes, and apply overrides such as `max_steps=10` or
    `model.hidden_size=256`.

    Raises:
        InputError: the file, a name or a value is wrong.
    """
    path = Path(name_or_path)
    if not path.is_file() and (RECIPES / f"{name_or_path}.yaml").exists():
        path = RECIPES / f"{name_or_path}.yaml"
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), RecipeLoader)
    except (OSError, UnicodeDecodeError) as error:
        named = ", ".join(sorted(recipe.stem for recipe in RECIPES.glob("*.yaml")))
        raise InputError(
            f"The recipe {name_or_path!r} can't be read ({error}): give a YAML file or one of {named}."
        ) from error
    except yaml.YAMLError as error:
        raise InputError(f"The recipe {path} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(values, dict):
        raise InputError(f"The recipe {path} must hold `name: value` lines, but holds a {type(values).__name__}.")
    for override in overrides:
        apply_override(values, override)
    return recipe_from_values(values, str(path))


def apply_override(values: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise InputError(f"The override {override!r} must have the form name=value.")
    try:
        value = yaml.load(text, RecipeLoader)
    except yaml.YAMLError as error:
        raise InputError(f"The value of the override {override!r} is not valid YAML.") from error
    *sections, leaf = name.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise InputError(f"The override {override!r} goes into `{section}`, which has no named values.")
    values[leaf] = value


def recipe_from_values(values: dict[str, Any], source: str) -> Recipe:
    known = {f.name: f for f in fields(Recipe)}
    for name in values:
        if name not in known:
            raise InputError(f"`{name}` in {source} is not a recipe field: the fields are {', '.join(known)}.")
    required = ("dataset", "output_dir", "model", "max_steps", "global_batch_size", "learning_rate")
    for name in required:
        if values.get(name) is None:
            raise InputError(f"`{name}` is missing from {source}: add a line `{name}: ...`.")
    return Recipe(**{name: coerce(name, value, known[name].type) for name, value in values.items()})


def coerce(name: str, value: Any, annotation: Any) -> Any:
    """`value` as the field's type. YAML reads 1 as an integer where a float is meant."""
    choices = get_args(annotation)
    wanted = " or ".join(getattr(t, "__name__", repr(t)) for t in choices or (annotation,))
    if get_origin(annotation) is Literal:
        # YAML reads a bare `no` as false.
        value = "no" if value is False else value
        if value in choices:
            return value
    elif get_origin(annotation) in (list, dict):
        wanted = get_origin(annotation).__name__
        if isinstance(value, get_origin(annotation)):
            return value
    elif value is None:
        if type(None) in choices:
            return None
    else:
        for kind in choices or (annotation,):
            if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
                return float(value)
            if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
                return value
    raise InputError(f"`{name}` is {value!r}, but must be {wanted}.")


def model_config(recipe: Recipe) -> PreTrainedConfig:
    """The configuration of the recipe's model: `model_name_or_path`'s if given, else built from `model`.

    Raises:
        InputError: the configuration is refused; the message is the configuration's own.
    """
    values = dict(recipe.model)
    try:
        if recipe.model_name_or_path is not None:
            values.pop("model_type", None)
            config = AutoConfig.from_pretrained(recipe.model_name_or_path, **values)
        else:
            if "model_type" not in values:
                raise InputError("`model` has no `model_type`: add for example `model_type: luna`.")
            config = AutoConfig.for_model(**values)
    except StrictDataclassError as error:
        raise InputError(f"`model` is refused: {str(error).split('Error: ', 1)[-1]}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"`model` can't be built: {' '.join(str(error).split())}") from error
    unknown = [name for name in values if name != "model_type" and name not in type(config)().to_dict()]
    if unknown:
        raise InputError(f"`model.{unknown[0]}` is not a field of {type(config).__name__}: check its spelling.")
    return config


def differing_field(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> tuple[str, Any, Any] | None:
    """The first name whose value differs between two (nested) dictionaries, with both values."""
    for name in sorted(old.keys() | new.keys()):
        a, b = old.get(name), new.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            if found := differing_field(a, b, f"{prefix}{name}."):
                return found
        elif json.dumps(a) != json.dumps(b):
            return f"{prefix}{name}", a, b
    return None
