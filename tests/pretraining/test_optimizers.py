# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Optimizers besides AdamW: what each takes, exact on resume, the same run on several processes, refused elsewhere."""

import pytest
import torch
from safetensors.torch import load_file

from luna_tools.errors import InputError
from pretraining.launcher import ENGINE_NAMES
from pretraining.model import build_model, model_config
from pretraining.optimizers import ENGINES_OF, build_optimizer, check_optimizer, hidden_matrices
from pretraining.plan import Cluster, plan
from pretraining.recipe import Recipe
from tests.support.pretraining import NO_DROPOUT, curve, cut_back, exact_rows, pretrain, weights, write_recipe
from tests.support.ranks import launch

MUON = {"optimizer": "muon", "learning_rate": 2e-2, "adamw_learning_rate": 1e-3}
CHANGES = {"muon": MUON, "stable_adamw": {"optimizer": "stable_adamw"}}


@pytest.fixture(params=CHANGES)
def changes(request):
    if request.param == "stable_adamw":
        pytest.importorskip("pytorch_optimizer")
    return CHANGES[request.param]


@pytest.mark.parametrize("model_type", ["luna", "roberta"])
def test_muon_takes_the_matrices_of_the_layers_and_nothing_else(recipe_values, model_type):
    model = recipe_values["model"] | {"model_type": model_type}
    if model_type == "roberta":
        del model["projection_length"]
    recipe = Recipe(**recipe_values | MUON | {"model": model})
    model = build_model(recipe, model_config(recipe), None)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    taken = {names[id(weight)] for weight in hidden_matrices(model)}
    assert taken == {
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and (".layers." in name or ".layer." in name)
    }
    muon, decayed, free = build_optimizer(model, recipe).param_groups
    assert {names[id(weight)] for weight in muon["params"]} == taken and muon["relative_lr"] == 1
    assert decayed["relative_lr"] == free["relative_lr"] == pytest.approx(1 / 20) and free["weight_decay"] == 0
    assert any("word_embeddings" in names[id(weight)] for weight in decayed["params"])
    assert sum(len(group["params"]) for group in (muon, decayed, free)) == len(names)


def test_one_update_is_that_of_torchs_muon_and_adamw(recipe_values):
    recipe = Recipe(**recipe_values | MUON)
    ours, theirs = (build_model(recipe, model_config(recipe), None) for _ in range(2))
    optimizer = build_optimizer(ours, recipe)
    matrices = hidden_matrices(theirs)
    rest = [p for p in theirs.parameters() if all(p is not weight for weight in matrices)]
    others = [
        torch.optim.Muon(matrices, lr=2e-2, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW([p for p in rest if p.ndim >= 2], lr=1e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01),
        torch.optim.AdamW([p for p in rest if p.ndim < 2], lr=1e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0),
    ]
    for group in optimizer.param_groups:
        group["lr"] = 2e-2 * group["relative_lr"]
    torch.manual_seed(0)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        one.grad = torch.randn_like(one)
        other.grad = one.grad.clone()
    for each in (optimizer, *others):
        each.step()
    # Sums in another order and then rounded to bfloat16: 2**-8 of an update of about 0.02 / 32 ** 0.5.
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4 if ".layers." in name else 1e-7, msg=name)


def test_a_run_resumes_bit_for_bit(changes, values, tmp_path):
    whole = tmp_path / "whole"
    assert pretrain(write_recipe(values, whole, **changes)) == 0
    resumed = cut_back(whole, 4, tmp_path / "resumed")
    assert pretrain(write_recipe(values, resumed, **changes)) == 0
    assert exact_rows(resumed) == exact_rows(whole) and weights(resumed) == weights(whole)
    state = load_file(whole / "checkpoints" / "step-00000008" / "optimizer.safetensors")
    kinds = {name.rpartition(".")[2] for name in state}
    assert kinds == {"exp_avg", "exp_avg_sq", "step"} | ({"momentum_buffer"} if changes is MUON else set())


def test_two_processes_are_the_same_run(changes, values, tmp_path):
    """Muon rounds to bfloat16, so sums in another order differ by more than AdamW's would."""
    values = values | {"model": values["model"] | NO_DROPOUT}
    one, two = tmp_path / "one", tmp_path / "two"
    assert pretrain(write_recipe(values, one, **changes)) == 0
    launch("pretrain", [write_recipe(values, two, **changes)], 2, "ddp")
    assert curve(two) == pytest.approx(curve(one), abs=1e-4)


@pytest.mark.parametrize("engine", ENGINE_NAMES)
def test_an_engine_that_divides_matrices_is_refused(engine, recipe_values):
    recipe = Recipe(**recipe_values | MUON)
    if engine in ENGINES_OF["muon"]:
        assert "learning rate to 0.02 (AdamW's 0.001), then linearly to 0; optimizer muon" in plan(recipe, Cluster(2), None)
        return
    with pytest.raises(InputError, match=f"`optimizer` is muon, .* but {engine} divides them .*: launch with ddp"):
        plan(recipe, Cluster(2, engine), None)


def test_a_package_that_is_absent_is_named(recipe_values, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="run `pip install pytorch-optimizer`"):
        check_optimizer(Recipe(**recipe_values | CHANGES["stable_adamw"]), "ddp")


@pytest.mark.parametrize("change", [{"optimizer": "muon"}, {"adamw_learning_rate": 1e-3}])
def test_adamws_own_rate_belongs_to_muon(recipe_values, change):
    with pytest.raises(InputError, match="`adamw_learning_rate` is .*, but `optimizer` is .*: set it with muon"):
        Recipe(**recipe_values | change)
