# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Causal language models: rows as they are, labels shifted once, figures of the definition, the same run in every way."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from luna_tools.errors import InputError
from pretraining import average
from pretraining.baselines import NGrams, token_stream
from pretraining.checkpoint import checkpoints
from pretraining.data import PackedDataset
from pretraining.dataset_format import read_manifest
from pretraining.model import build_model, model_config
from pretraining.objectives import OBJECTIVES
from pretraining.plan import Cluster, activation_bytes, plan
from pretraining.recipe import Recipe
from pretraining.throughput import Throughput
from tests.support.hub_server import metadata_errors
from tests.support.pretraining import GPT2, NO_DROPOUT, error, exact_rows, pretrain, write_recipe
from tests.support.ranks import launch


def no_dropout(values: dict) -> dict:
    return values | {"model": values["model"] | NO_DROPOUT}


def cross_entropy_by_hand(model, rows_bn: np.ndarray) -> float:
    """The mean in nats over the tokens of rows but their first and last, each from the logits one place before."""
    ids_bn = torch.from_numpy(rows_bn.astype(np.int64))
    with torch.no_grad():
        scores_bnv = model.eval()(input_ids=ids_bn).logits.double().log_softmax(-1)
    return -np.mean(
        [scores_bnv[row, i - 1, ids_bn[row, i]].item() for row in range(len(ids_bn)) for i in range(1, ids_bn.shape[1] - 1)]
    )


def test_the_first_loss_is_that_of_the_definition(causal_values, tmp_path):
    changed = no_dropout(causal_values) | {"max_steps": 1, "warmup_steps": 0}
    assert pretrain(write_recipe(changed, tmp_path / "run")) == 0
    recipe = Recipe(**changed, output_dir="")
    data = PackedDataset(Path(recipe.dataset) / "train", seed=0, shuffle=True)
    model = build_model(recipe, model_config(recipe), None, AutoModelForCausalLM)
    expected = cross_entropy_by_hand(model, data.rows[[i for _, i in data.locate(range(8))]]["input_ids"])
    assert exact_rows(tmp_path / "run")[0]["loss"] == pytest.approx(expected, rel=1e-6)


def test_results_are_those_of_the_definition(finished_causal, prepared):
    results = json.loads((finished_causal / "results.json").read_text())
    validation = PackedDataset(prepared / "validation", seed=0, shuffle=False).rows[:]["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(finished_causal / "model")
    assert results["eval_loss"] == pytest.approx(cross_entropy_by_hand(model, validation), rel=1e-6)
    # Bits of the rows' text over its bytes. The split's last tokens fill no row, hence the tolerance.
    tokenizer, text = AutoTokenizer.from_pretrained(prepared / "tokenizer"), token_stream(validation)
    num_bytes = len(tokenizer.decode(text, skip_special_tokens=True).encode())
    bits = results["eval_loss"] * len(text) / math.log(2)
    assert results["eval_bits_per_byte"] == pytest.approx(bits / num_bytes, rel=0.02)
    train = token_stream(PackedDataset(prepared / "train", seed=0, shuffle=False).rows[:]["input_ids"])
    five_gram = -np.log(NGrams(train, 600).probabilities(text)).mean()
    assert results["five_gram_cross_entropy"] == pytest.approx(five_gram)
    factor = results["eval_bits_per_byte"] / results["eval_loss"]
    assert results["five_gram_bits_per_byte"] == pytest.approx(five_gram * factor)
    assert results["five_gram_cross_entropy"] < results["unigram_cross_entropy"] - 1


def test_a_dataset_that_does_not_know_its_bytes_has_no_bits_per_byte(causal_values, prepared):
    manifest = read_manifest(prepared)
    for split in manifest["splits"].values():
        del split["text_bytes"]
    objective = OBJECTIVES["clm"](Recipe(**causal_values, output_dir=""), None, manifest)
    figures = objective.figures(torch.tensor([6.0, 1.0, 2.0]))
    assert figures == {"eval_loss": 3.0, "eval_perplexity": pytest.approx(math.exp(3)), "eval_accuracy": 0.5}
    rows = objective.rows(prepared / "validation", shuffle=False)
    assert objective.baselines(prepared, rows, 3).keys() == {"unigram_cross_entropy", "five_gram_cross_entropy"}


def test_a_finished_run_tells_and_its_model_writes(finished_causal, causal_values, prepared, capsys):
    card = (finished_causal / "model" / "README.md").read_text()
    assert metadata_errors(card) == [] and "pipeline_tag: text-generation" in card and "type: bits_per_byte" in card
    assert "causal language model after step 8 of 8" in card and "Over the tokens of the validation split" in card
    assert "| bits per byte |" in card and "| 5-gram cross-entropy, nats, for comparison |" in card
    assert "mask" not in card
    write = pipeline("text-generation", model=str(finished_causal / "model"), device="cpu")
    assert write("Return the", max_new_tokens=3, do_sample=False)[0]["generated_text"].startswith("Return the")
    assert (finished_causal / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_processes_and_accumulation_never_change_the_curve(causal_values, tmp_path):
    values = no_dropout(causal_values) | {"max_steps": 10, "eval_steps": 5, "save_steps": 10, "eval_micro_batch_size": 3}
    runs = [tmp_path / name for name in ("one", "two")]
    for run, processes, micro_batch in zip(runs, (1, 2), (8, 2), strict=True):
        launch("pretrain", [write_recipe(values, run, micro_batch_size=micro_batch)], processes)
    for expected, row in zip(*map(exact_rows, runs), strict=True):
        assert row == pytest.approx(expected, rel=1e-5)


def test_training_learns(causal_values, tmp_path):
    changes = {"max_steps": 150, "learning_rate": 3e-3, "global_batch_size": 32, "micro_batch_size": 32}
    changes |= dict.fromkeys(("logging_steps", "eval_steps", "save_steps"), 150)
    assert pretrain(write_recipe(no_dropout(causal_values), tmp_path / "run", **changes)) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["eval_loss"] < results["unigram_cross_entropy"] - 0.3


def test_checkpoints_average_into_a_causal_model(finished_causal, tmp_path):
    folders = checkpoints(finished_causal / "checkpoints")
    average.main([*map(str, folders), "--output_dir", str(tmp_path / "mean")])
    one, two, mean = (load_file(folder / "model.safetensors") for folder in (*folders, tmp_path / "mean"))
    assert all(torch.allclose(mean[name], (one[name] + two[name]) / 2, atol=1e-6) for name in one.keys() | mean.keys())
    _, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "mean", output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]


# ---------------------------------------------------------------------------------------------------------------------
# What is planned, and what is refused


def test_the_plan_is_of_the_causal_model(causal_values, prepared):
    recipe = Recipe(**causal_values, output_dir="")
    text = plan(recipe, Cluster(2), read_manifest(prepared))
    class_name = type(AutoModelForCausalLM.from_config(model_config(recipe))).__name__
    assert f"Model: {class_name}, " in text and "Objective: clm, each token of a row from those before it" in text
    assert not re.search("[Mm]ask", text)


@pytest.mark.parametrize("model", [{}, GPT2], ids=["luna", "gpt2"])
def test_activations_are_those_that_a_real_step_keeps(causal_values, model):
    recipe = Recipe(**causal_values | ({"model": model} if model else {}), output_dir="")
    config = model_config(recipe)
    model, held = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa"), {}

    def record(tensor):
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    ids_bn = torch.randint(4, 600, (2, 32))
    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        output = model(input_ids=ids_bn, labels=ids_bn)
    held[0] = output.logits.nbytes
    for parameter in model.parameters():
        held.pop(parameter.data_ptr(), None)
    assert activation_bytes(recipe, config, 32) == pytest.approx(sum(held.values()), rel=0.15)


def test_the_flops_are_six_a_weight_and_token(causal_values):
    recipe = Recipe(**causal_values | {"model": GPT2}, output_dir="", peak_tflops=1e-12)
    config = model_config(recipe)
    weights = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters() if p.ndim == 2)
    positions, attention = config.n_positions * config.n_embd, config.n_layer * 2 * 32 * config.n_embd
    share = Throughput(recipe, config, 32, 1).peak_share_per_second / recipe.global_batch_size
    assert share == pytest.approx(6 * (weights - positions + attention) * 32, rel=0.02)


@pytest.mark.parametrize(
    ("field", "value"),
    [("mlm_probability", 0.3), ("final_mlm_probability", 0.15), ("mask_replace_prob", 0.7), ("random_replace_prob", 0.0)],
)
def test_fields_of_masking_are_refused(causal_values, tmp_path, capsys, field, value):
    assert pretrain(write_recipe(causal_values | {field: value}, tmp_path / "run")) == 2
    sentence = f"error: `{field}` is {value}, but `objective` is clm, which masks nothing: leave it out"
    assert error(capsys.readouterr().err).startswith(sentence)


def test_a_model_that_reads_ahead_is_refused(values, tmp_path, capsys):
    model = {name: value for name, value in values["model"].items() if name != "projection_length"}
    recipe = write_recipe(values | {"objective": "clm", "model": model | {"model_type": "roberta"}}, tmp_path / "run")
    assert pretrain(recipe) == 2
    assert "`objective` is clm, but RobertaForCausalLM reads tokens that come later" in error(capsys.readouterr().err)
    assert pretrain(recipe, "--model.is_decoder", "true", "--max_steps", "2") == 0


def test_the_check_for_reading_ahead_leaves_a_model_as_it_was(causal_values):
    recipe = Recipe(**causal_values, output_dir="")
    model = build_model(recipe, model_config(recipe), None, AutoModelForCausalLM).train()
    objective = OBJECTIVES["clm"](recipe, None, {"vocab_size": 600, "splits": {}})
    objective.suit(model, 32)
    assert model.training and all(p.grad is None for p in model.parameters())
    model.forward = lambda input_ids: type("Output", (), {"logits": input_ids.flip(-1)[..., None].expand(-1, -1, 4)})
    with pytest.raises(InputError, match="reads tokens that come later"):
        objective.suit(model, 32)
