# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""What the official code computes, as a file of goldens, and how far a converted model is from it.

A `goldens.safetensors` holds inputs and results of the official code in float32, and in its metadata the facts about them:
the model's arguments, the batches, and the official code's own float32 error of each kind of tensor (against float64).
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, PreTrainedModel

from configuration_luna import LunaConfig
from luna_tools.convert.configuration import args_from_config
from luna_tools.convert.lra import args_from_lra_config, is_lra_config, map_lra_names
from luna_tools.convert.weights import map_names
from luna_tools.errors import InputError, told
from modeling_luna import LunaForMaskedLM, LunaForSequenceClassification

# The official code's own float32 error, times this, is what a correct implementation may differ by.
TOLERANCE_FACTOR = 20


@dataclass
class Difference:
    """How far one tensor of ours is from the official one, and how far it may be."""

    kind: str  # the class of tensors that shares a tolerance, such as "hidden" or "grad"
    name: str
    max_abs: float
    tolerance: float


def max_abs_difference(ours: torch.Tensor, official: torch.Tensor, mask: torch.Tensor | None = None) -> float:
    """Largest difference of two tensors of one shape, where the boolean `mask` over the leading dimensions is True."""
    if ours.shape != official.shape:
        raise ValueError(f"a tensor has shape {tuple(ours.shape)}, but officially {tuple(official.shape)}")
    difference = (ours.double() - official.double()).abs()
    return (difference if mask is None else difference[mask]).max().item()


def read_goldens(path: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """The tensors of a file of goldens, and the facts about them with `file`, its path.

    Raises:
        InputError: no such file, or another kind of file.
    """
    with told(f"{path} is not a file of goldens", "give safetensors with luna_parity in the metadata"):
        with safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["luna_parity"])
            goldens = {key: file.get_tensor(key) for key in file.keys()}
        noise = {kind: float(error["max_abs_err"]) for kind, error in facts["fp32_noise"].items()}
        if not (facts["batches"] and all(error > 0 for error in noise.values())):
            raise ValueError("it has no batches, or an error that is not above 0")
        official = facts["config"] | {name: facts[name] for name in ["vocab_size"] if name in facts}
    return goldens, facts | {"file": str(path), "noise": noise, "official": official}


def build_model(
    model_class: type[PreTrainedModel], config: LunaConfig, weights: dict[str, torch.Tensor], attention: str
) -> PreTrainedModel:
    """A model with converted weights, in eval mode; of these it takes what it has."""
    config._attn_implementation = attention
    model = model_class(config).eval()
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    return model


def is_of_lra(facts: dict) -> bool:
    """Whether goldens are those of a Long Range Arena model, of the kind lra or lra_head."""
    return str(facts.get("kind")).startswith("lra")


def check_same_model(config: LunaConfig, facts: dict) -> None:
    """Raises InputError for goldens of another model."""
    ours = args_from_lra_config(config) if is_of_lra(facts) else args_from_config(config)
    ours["vocab_size"] = config.vocab_size
    for name, value in ours.items():
        official = facts["official"].get(name, value)
        if official != value:
            raise InputError(f"{facts['file']} is of another model: {name} is {official} there, but {value} here.")


class Comparison:
    """The differences of a model from goldens, and the goldens that were not read yet."""

    def __init__(self, goldens: dict[str, torch.Tensor], facts: dict):
        self.goldens, self.facts = goldens, facts
        self.differences: list[Difference] = []
        self.unread = set(goldens)

    def take(self, key: str) -> torch.Tensor:
        """A tensor of the goldens."""
        if key not in self.goldens:
            raise LookupError(f"it lacks {key}")
        self.unread.discard(key)
        return self.goldens[key]

    def compare(
        self, kind: str, key: str, ours: torch.Tensor, mask: torch.Tensor | None = None, tolerance_scale: int = 1
    ) -> None:
        difference = max_abs_difference(ours, self.take(key), mask)
        noise = self.facts["noise"][{"cls_loss": "loss", "cls_grad": "grad"}.get(kind, kind)]
        self.differences.append(Difference(kind, key, difference, TOLERANCE_FACTOR * tolerance_scale * noise))

    def compare_gradients(self, kind: str, prefix: str, model: PreTrainedModel, head: str | None = None) -> None:
        names = map_names(model.config, head)
        for key in [key for key in self.goldens if key.startswith(prefix)]:
            self.compare(kind, key, model.get_parameter(names[key.removeprefix(prefix)]).grad)

    def finish(self, prefixes: tuple[str, ...]) -> list[Difference]:
        """The differences. Raises InputError where a tensor `BATCH.PREFIX...` was neither an input nor compared."""
        if forgotten := sorted(key for key in self.unread if key.split(".", 1)[1].startswith(prefixes)):
            raise InputError(f"{self.facts['file']} holds {', '.join(forgotten)}, which nothing is compared with.")
        return self.differences


def compare_masked_lm(
    model: LunaForMaskedLM, goldens: dict[str, torch.Tensor], facts: dict, training: bool = True
) -> list[Difference]:
    """Compare encoder and language model head on every batch of the goldens, and in `training` losses and gradients.

    Raises:
        InputError: the goldens hold, in `training`, what is not compared.
        Exception: they are damaged or of another model.
    """
    comparison = Comparison(goldens, facts)
    take, compare = comparison.take, comparison.compare
    for batch in facts["batches"]:
        inputs = {name: take(f"{batch}.{name}") for name in ("input_ids", "attention_mask")}
        packed_mask, is_token = take(f"{batch}.packed_mask").bool(), inputs["attention_mask"].bool()
        labels = take(f"{batch}.labels") if training else None
        model.zero_grad()
        with torch.set_grad_enabled(training):
            outputs = model(
                **inputs, labels=labels, output_logits=True, output_hidden_states=True, output_packed_states=True
            )
        # Ours cuts P to the padded length and masks the rest, where the official code cuts it to the longest row.
        slots = packed_mask.shape[1]
        surplus = outputs.packed_attention_mask.shape[1] - slots
        if not torch.equal(outputs.packed_attention_mask.bool(), torch.nn.functional.pad(packed_mask, (0, surplus))):
            raise ValueError(f"{batch}.packed_mask is not the mask of P")
        # The states before the first layer are compared with their padding, which both codes set to zero.
        for i, (hidden, packed) in enumerate(zip(outputs.hidden_states, outputs.packed_states, strict=True)):
            compare("hidden", f"{batch}.hidden.{i}", hidden, is_token if i > 0 else None)
            compare("packed", f"{batch}.packed.{i}", packed[:, :slots], packed_mask if i > 0 else None)
        compare("logits", f"{batch}.logits", outputs.logits, is_token)
        if not training:
            continue
        compare("loss", f"{batch}.loss", outputs.loss)
        with torch.no_grad():
            loss_sum = model(**inputs, labels=labels, num_items_in_batch=1).loss
        # The recorded error is that of the mean.
        compare("loss", f"{batch}.loss_sum", loss_sum, tolerance_scale=int((labels != -100).sum()))
        if batch in facts["grad_batches"]:
            outputs.loss.backward()
            comparison.compare_gradients("grad", f"{batch}.grad.", model)
    kinds = ("input", "attention", "packed", "hidden", "logits", "label", "loss", "grad")
    return comparison.finish(kinds) if training else comparison.differences


def compare_classifier(
    model: LunaForSequenceClassification, goldens: dict[str, torch.Tensor], facts: dict, training: bool = True
) -> list[Difference]:
    """Compare the logits of a classification head on every batch of the goldens, and in `training` losses and gradients.

    Raises: as `compare_masked_lm`.
    """
    comparison = Comparison(goldens, facts)
    for batch in facts["batches"]:
        inputs = {name: comparison.take(f"{batch}.{name}") for name in ("input_ids", "attention_mask")}
        model.zero_grad()
        with torch.set_grad_enabled(training):
            outputs = model(**inputs, labels=comparison.take(f"{batch}.cls_labels") if training else None)
        comparison.compare("cls_logits", f"{batch}.cls_logits", outputs.logits)
        if not training:
            continue
        comparison.compare("cls_loss", f"{batch}.cls_loss", outputs.loss)
        if batch in facts["grad_batches"]:
            outputs.loss.backward()
            comparison.compare_gradients("cls_grad", f"{batch}.cls_grad.", model, facts["classification_head"])
    return comparison.finish(("cls_",)) if training else comparison.differences


# The official code's float32 error of the states of its Long Range Arena models, of which the goldens have that of the
# logits alone: it is that of luna_bert/fixed, the largest for states of this size. And what gradients may differ by, of the
# largest in the tensor.
LRA_STATE_ERROR, LRA_GRADIENT_TOLERANCE = 3e-6, 1e-3


def compare_lra(
    model: LunaForSequenceClassification, goldens: dict[str, torch.Tensor], facts: dict, training: bool = True
) -> list[Difference]:
    """Compare a Long Range Arena model on every batch of the goldens, and in `training` losses and gradients.

    Raises: as `compare_masked_lm`.
    """
    noise = dict.fromkeys(("hidden", "packed", "sentence_rep"), LRA_STATE_ERROR) | facts["noise"]
    comparison = Comparison(goldens, facts | {"noise": noise | {"loss": noise["logits"]}})
    take, compare, last = comparison.take, comparison.compare, model.config.num_hidden_layers
    names, pad = map_lra_names(model.config), model.config.pad_token_id
    each = 1 if model.config.classifier_pair is None else 2  # of two texts, the goldens have the states of the first
    read = []  # what the classifier reads: X, P, the slots of P in use, the mask
    with model.classifier.register_forward_pre_hook(lambda classifier, inputs: read.append(inputs)):
        for batch in facts["batches"]:
            input_ids, is_token = take(f"{batch}.input_ids"), take(f"{batch}.encoder_input_ids") != pad
            if not torch.equal(input_ids != pad, take(f"{batch}.attention_mask").bool()):
                raise ValueError(f"{batch}.attention_mask is not the mask of the padding")
            if model.config.classifier_pair is not None:
                input_ids = torch.stack([input_ids, take(f"{batch}.input_ids_1")], dim=1)
            labels = take(f"{batch}.labels") if training else None
            model.zero_grad()
            with torch.set_grad_enabled(training):
                inputs = {"input_ids": input_ids, "attention_mask": (input_ids != pad).long(), "labels": labels}
                outputs = model(**inputs, output_hidden_states=True)
                x_brd, p_bld, is_used_bl, _ = read[-1]
                sentences_bd = model.classifier.pool(x_brd, p_bld, None, is_used_bl)
            packed_mask = take(f"{batch}.packed_mask").bool()
            packed_state = outputs.packed_state[::each, : packed_mask.shape[1]]
            compare("hidden", f"{batch}.hidden.{last}", outputs.hidden_states[-1][::each], is_token)
            compare("packed", f"{batch}.packed.{last}", packed_state, packed_mask)
            compare("sentence_rep", f"{batch}.sentence_rep", sentences_bd[::each])
            compare("logits", f"{batch}.logits", outputs.logits)
            if not training:
                continue
            compare("loss", f"{batch}.loss", outputs.loss)
            keys = [key for key in goldens if key.startswith(f"{batch}.grad.")]
            if keys:
                outputs.loss.backward()
            for key in keys:
                gradient, official = model.get_parameter(names[key.removeprefix(f"{batch}.grad.")]).grad, take(key)
                tolerance = LRA_GRADIENT_TOLERANCE * official.abs().max().item()
                comparison.differences.append(Difference("grad", key, max_abs_difference(gradient, official), tolerance))
    kinds = ("input", "attention", "encoder", "packed", "hidden", "sentence", "logits", "label", "loss", "grad")
    return comparison.finish(kinds) if training else comparison.differences


def compare_folder(folder: Path, path: Path) -> dict[str, float]:
    """How far the model in a folder is from the goldens in a file.

    Returns:
        "hidden", "packed", "logits" and, of a classification head, "cls_logits" -> largest difference over all batches and
        layers, as a fraction of the tolerance.

    Raises:
        InputError: no file of goldens, that of another model, or a damaged one.
    """
    goldens, facts = read_goldens(path)
    config = LunaConfig.from_pretrained(folder)
    if is_lra_config(config) != is_of_lra(facts):
        raise InputError(f"{path} is of another model: its kind is {facts.get('kind')}, which {folder} is not.")
    check_same_model(config, facts)
    if is_lra_config(config):
        with told(f"{path} does not fit the model", "give the goldens of this checkpoint"):
            classifier = AutoModelForSequenceClassification.from_pretrained(folder)
            return largest_ratios(compare_lra(classifier, goldens, facts, training=False))
    model = AutoModelForMaskedLM.from_pretrained(folder)
    with told(f"{path} does not fit the model", "give the goldens of this checkpoint"):
        differences = compare_masked_lm(model, goldens, facts, training=False)
        if model.config.architectures == [LunaForSequenceClassification.__name__]:
            classifier = AutoModelForSequenceClassification.from_pretrained(folder)
            differences += compare_classifier(classifier, goldens, facts, training=False)
    return largest_ratios(differences)


def largest_ratios(differences: list[Difference]) -> dict[str, float]:
    """Kind -> largest difference as a fraction of the tolerance; not a number where one is."""
    ratios: dict[str, list[float]] = {}
    for difference in differences:
        ratios.setdefault(difference.kind, []).append(difference.max_abs / difference.tolerance)
    return {kind: torch.tensor(values).max().item() for kind, values in ratios.items()}
