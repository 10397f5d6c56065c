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
from torch import nn
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from causal_luna import CAUSAL_ACTIVATIONS, CausalState, causal_attention
from configuration_luna import LunaConfig
from luna_tools.convert.configuration import args_from_config
from luna_tools.convert.lra import args_from_lra_config, is_lra_config, map_lra_names
from luna_tools.convert.seq2seq import args_from_seq2seq_config, map_seq2seq_names
from luna_tools.convert.weights import map_names
from luna_tools.errors import InputError, told
from modeling_luna import LunaForConditionalGeneration, LunaForMaskedLM, LunaForSequenceClassification

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
    if config.is_encoder_decoder:
        ours = args_from_seq2seq_config(config)
    else:
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


def attend_causally(
    weights: dict[str, torch.Tensor],
    x_bnd: torch.Tensor,
    p_bld: torch.Tensor,
    num_heads: int,
    packed_mask_bl: torch.Tensor | None,
    state: CausalState | None = None,
) -> tuple[torch.Tensor, torch.Tensor, CausalState]:
    """Causal attention with the official module's projections: output (b, n, d), unpack weights (b, h, n, l) and state."""

    def project(name: str, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def heads(name: str, x: torch.Tensor) -> torch.Tensor:
        return project(name, x).unflatten(-1, (num_heads, -1)).transpose(1, 2)

    key, value = ("c_proj", "c_proj") if "c_proj.weight" in weights else ("k_proj", "v_proj")
    scaling = (x_bnd.shape[-1] // num_heads) ** -0.5
    pack_bhnl = CAUSAL_ACTIVATIONS["softplus"](heads("pc_proj", x_bnd) @ heads("pq_proj", p_bld).mT * scaling)
    output_bhnk, weights_bhnl, state = causal_attention(
        heads("q_proj", x_bnd) * scaling,
        heads(key, x_bnd),
        heads(value, x_bnd),
        pack_bhnl,
        state=state,
        packed_attention_mask=packed_mask_bl,
    )
    return project("out_proj", output_bhnk.transpose(1, 2).flatten(2)), weights_bhnl, state


def compare_causal_attention(path: Path) -> list[Difference]:
    """Compare the chunked and the recurrent form with the official module, whose weights the file of goldens holds.

    No official error of the unpack weights and of the two sums is recorded: relative to their largest number it is taken to
    be that of the output which they belong to.
    """
    with safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["luna_parity"])
        goldens = {key: file.get_tensor(key) for key in file.keys()}
    weights = {key.removeprefix("weights."): goldens[key] for key in goldens if key.startswith("weights.")}
    x_bnd, p_bld = goldens["query"], goldens["pquery"]
    tensors = {name: tensor.requires_grad_() for name, tensor in ({"query": x_bnd, "pquery": p_bld} | weights).items()}
    differences = []

    def compare(kind: str, key: str, ours: torch.Tensor, tolerance: float) -> None:
        differences.append(Difference(kind, key, max_abs_difference(ours, goldens[key]), tolerance))

    def relative_tolerance(output: str, key: str) -> float:
        noise = facts["fp32_noise"][output]
        return TOLERANCE_FACTOR * noise["max_abs_err"] / noise["max_abs_value"] * goldens[key].abs().max().item()

    for batch, packed_mask_bl in (("nomask", None), ("masked", goldens["pquery_mask"])):
        arguments = p_bld, facts["num_heads"], packed_mask_bl
        output_bnd, weights_bhnl, _ = attend_causally(weights, x_bnd, *arguments)
        results = {"out_parallel": output_bnd, "unpack_weights": weights_bhnl}
        gradients = torch.autograd.grad((output_bnd * goldens[f"{batch}.probe"]).sum(), tensors.values(), allow_unused=True)
        for name, gradient in zip(tensors, gradients, strict=True):
            if (key := f"{batch}.grad.{name}") in goldens:  # few of them are, and they have a tolerance of their own
                compare("grad", key, gradient, 1e-3 * goldens[key].abs().max().item())
        steps, state = [], None
        with torch.no_grad():
            for token_b1d in x_bnd.split(1, dim=1):
                step_b1d, _, state = attend_causally(weights, token_b1d, *arguments, state)
                steps.append(step_b1d)
        results |= {"out_incremental": torch.cat(steps, dim=1), "state.key_accum": state.key_slots}
        results |= {
            "state.value_accum": state.slot_values,
            "state.num_steps": state.count[:, None].expand(-1, facts["num_heads"]),
        }
        for name, ours in results.items():
            if (key := f"{batch}.{name}") not in goldens:  # unpack weights are there with a mask of P only
                continue
            if name in facts["fp32_noise"]:
                tolerance = TOLERANCE_FACTOR * facts["fp32_noise"][name]["max_abs_err"]
            else:
                tolerance = relative_tolerance("out_parallel" if name == "unpack_weights" else "out_incremental", key)
            compare(name.partition(".")[0], key, ours, tolerance)
    return differences


# Gradients and scores of translation models have no recorded error: what they may differ by, the first as a fraction of the
# largest in the tensor.
GRADIENT_TOLERANCE, SCORE_TOLERANCE = 1e-3, 1e-4
# How the goldens were searched for: fairseq's beam search with max_len_b = 10, after which only </s> may come.
MAX_LENGTH = 10


def compare_seq2seq(
    model: LunaForConditionalGeneration, goldens: dict[str, torch.Tensor], facts: dict, training: bool = True
) -> list[Difference]:
    """Compare states, logits and what is generated on every batch, and in `training` losses and gradients.

    Raises: as `compare_masked_lm`.
    """
    noise = facts["noise"]
    noise |= {"enc_hidden": noise["enc_out"], "enc_packed": noise["enc_packed_out"], "dec_hidden": noise["enc_out"]}
    noise |= {"loss": noise["logits"], "step_logits": noise["greedy.step_logits"]}
    comparison = Comparison(goldens, facts)
    compare, pad = comparison.compare, model.config.pad_token_id
    for batch in facts["batches"]:

        def take(name: str, batch: str = batch) -> torch.Tensor:
            return comparison.take(f"{batch}.{name}")

        inputs = {"input_ids": take("src_tokens"), "attention_mask": take("src_mask")}
        is_source, is_target = inputs["attention_mask"].bool(), take("tgt_mask").bool()
        if not torch.equal(is_source.sum(dim=-1), take("src_lengths")):
            raise ValueError(f"{batch}.src_lengths are not those of the mask")
        packed_mask = take("packed_mask").bool()
        slots = packed_mask.shape[1]
        with torch.no_grad():
            source = model.get_encoder()(**inputs, output_hidden_states=True, output_packed_states=True)
        compare("enc_hidden", f"{batch}.enc_hidden.1", source.hidden_states[1], is_source)
        compare("enc_packed", f"{batch}.enc_packed.1", source.packed_states[1][:, :slots], packed_mask)
        compare("enc_out", f"{batch}.enc_out", source.last_hidden_state, is_source)
        compare("enc_packed_out", f"{batch}.enc_packed_out", source.packed_state[:, :slots], packed_mask)

        labels = take("target")
        model.zero_grad()
        with torch.set_grad_enabled(training):
            outputs = model(
                **inputs,
                decoder_input_ids=take("prev_output_tokens"),
                labels=labels.masked_fill(labels == pad, -100) if training else None,
                output_hidden_states=True,
            )
        for i in (0, 1):
            compare("dec_hidden", f"{batch}.dec_hidden.{i}", outputs.decoder_hidden_states[i], is_target)
        compare("logits", f"{batch}.logits", outputs.logits, is_target)
        if training:
            compare("loss", f"{batch}.loss", outputs.loss)
            names = map_seq2seq_names(model.config)
            prefix = f"{batch}.grad."
            keys = [key for key in goldens if key.startswith(prefix)]
            if keys:
                outputs.loss.backward()
            for key in keys:
                official = comparison.take(key)
                difference = max_abs_difference(model.get_parameter(names[key.removeprefix(prefix)]).grad, official)
                tolerance = GRADIENT_TOLERANCE * official.abs().max().item()
                comparison.differences.append(Difference("grad", key, difference, tolerance))
        compare_generated(model, comparison, batch, inputs)
    kinds = "src_ prev target tgt packed enc dec logits loss grad greedy.tokens greedy.step_logits beam".split()
    return comparison.finish(tuple(kinds)) if training else comparison.differences


def compare_generated(model: LunaForConditionalGeneration, comparison: Comparison, batch: str, inputs: dict) -> None:
    """Compare greedy tokens with their logits, and the sequences of beam search with their scores; no token may differ."""
    eos, pad, start = model.config.eos_token_id, model.config.pad_token_id, model.config.decoder_start_token_id

    def compare_tokens(key: str, ours: torch.Tensor) -> None:
        official = comparison.take(key)
        num_different = float((ours != official).sum()) if ours.shape == official.shape else official.numel()
        comparison.differences.append(Difference("tokens", key, num_different, 0.5))

    # Greedy: past the end of the sentence too, and never the padding.
    steps = comparison.take(f"{batch}.greedy.tokens").shape[1]
    tokens, logits, cache = inputs["input_ids"].new_full((len(inputs["input_ids"]), 1), start), [], model.new_cache()
    with torch.no_grad():
        source = {"attention_mask": inputs["attention_mask"], "encoder_outputs": model.get_encoder()(**inputs)}
        for _ in range(steps):
            logits.append(model(**source, decoder_input_ids=tokens[:, -1:], past_key_values=cache).logits[:, -1])
            chosen = logits[-1].index_fill(1, torch.tensor(pad), -torch.inf).argmax(dim=-1, keepdim=True)
            tokens, source = torch.cat([tokens, chosen], dim=1), {}
    compare_tokens(f"{batch}.greedy.tokens", tokens[:, 1:])
    comparison.compare("step_logits", f"{batch}.greedy.step_logits", torch.stack(logits, dim=1))

    vocabulary = list(range(model.lm_head.out_features))
    for num_beams in (1, 3):
        tokens = model.generate(
            **inputs,
            num_beams=num_beams,
            do_sample=False,
            max_new_tokens=MAX_LENGTH + 1,
            min_new_tokens=1,
            length_penalty=1.0,
            early_stopping=num_beams > 1,
            suppress_tokens=[pad],
            # The logit of the forced </s> stays what it is, and counts.
            prefix_allowed_tokens_fn=lambda _, ids: [eos] if len(ids) > MAX_LENGTH else vocabulary,
        )
        ours = nn.functional.pad(tokens[:, 1:], (0, MAX_LENGTH + 2 - tokens.shape[1]), value=pad)
        compare_tokens(f"{batch}.beam{num_beams}.tokens", ours)
        scores = sequence_scores(model, inputs, tokens)
        difference = max_abs_difference(scores, comparison.take(f"{batch}.beam{num_beams}.score"))
        comparison.differences.append(Difference("score", f"{batch}.beam{num_beams}.score", difference, SCORE_TOLERANCE))


def sequence_scores(model: LunaForConditionalGeneration, inputs: dict, tokens: torch.Tensor) -> torch.Tensor:
    """The mean log probability (b,) of the tokens after the first, padding left out."""
    with torch.no_grad():
        log_probabilities = model(**inputs, decoder_input_ids=tokens[:, :-1]).logits.log_softmax(dim=-1)
    is_token = tokens[:, 1:] != model.config.pad_token_id
    chosen = log_probabilities.gather(-1, tokens[:, 1:, None])[..., 0].masked_fill(~is_token, 0)
    return chosen.sum(dim=-1) / is_token.sum(dim=-1)


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
    is_lra = is_lra_config(config)
    if (config.is_encoder_decoder, is_lra) != (facts.get("kind") == "seq2seq", is_of_lra(facts)):
        raise InputError(f"{path} is of another model: its kind is {facts.get('kind')}, which {folder} is not.")
    check_same_model(config, facts)
    if config.is_encoder_decoder or is_lra:
        with told(f"{path} does not fit the model", "give the goldens of this checkpoint"):
            if is_lra:
                classifier = AutoModelForSequenceClassification.from_pretrained(folder)
                return largest_ratios(compare_lra(classifier, goldens, facts, training=False))
            model = AutoModelForSeq2SeqLM.from_pretrained(folder)
            return largest_ratios(compare_seq2seq(model, goldens, facts, training=False))
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
