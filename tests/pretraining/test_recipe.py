# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Recipes say what they mean, and refuse the rest in one sentence."""

from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from luna_tools.errors import InputError
from pretraining.model import model_config
from pretraining.recipe import RECIPES, Recipe, difference_from_run, differing_field, load_recipe
from tests.support.pretraining import write_recipe

TABLE_8 = {
    "luna_base_16gb": {"warmup_steps": 15_000, "global_batch_size": 2048, "max_steps": 250_000},
    "luna_base_160gb_tied": {"warmup_steps": 24_000, "global_batch_size": 8192, "max_steps": 500_000},
    "luna_base_160gb_untied": {"warmup_steps": 24_000, "global_batch_size": 8192, "max_steps": 500_000},
}
# What the official code's larger architectures say: layers, hidden, heads, feed-forward, l, tokens.
LARGER_SHAPES = {
    "luna_base_2048": (12, 768, 12, 3072, 256, 2048),
    "luna_large_512": (24, 1024, 16, 4096, 128, 512),
    "luna_large_2048": (24, 1024, 16, 4096, 256, 2048),
}


@pytest.mark.parametrize("name", TABLE_8)
def test_the_papers_recipes_hold_table_8(name):
    recipe = load_recipe(name)
    assert {field: getattr(recipe, field) for field in TABLE_8[name]} == TABLE_8[name]
    assert (recipe.learning_rate, recipe.weight_decay, recipe.max_grad_norm) == (6e-4, 0.01, 1.0)
    assert (recipe.adam_beta1, recipe.adam_beta2, recipe.adam_epsilon) == (0.9, 0.98, 1e-6)
    config = model_config(recipe)
    assert (config.num_hidden_layers, config.hidden_size, config.intermediate_size) == (12, 768, 3072)
    assert (config.num_attention_heads, config.projection_length, config.vocab_size) == (12, 128, 50265)
    assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob) == (0.1, 0.1)
    assert config.tie_key_value == ("untied" not in name)
    text = (RECIPES / f"{name}.yaml").read_text()
    assert f"luna prepare paper_{name.split('_')[2]}" in text and Path(recipe.dataset).name == f"corpus-{name.split('_')[2]}"
    assert "--tokenizer FacebookAI/roberta-base" in text


@pytest.mark.parametrize("name", LARGER_SHAPES)
def test_the_larger_recipes_have_the_official_shapes_and_the_tokens_of_table_8(name):
    recipe, table_8 = load_recipe(name), load_recipe("luna_base_160gb_tied")
    config = model_config(recipe)
    shape = (config.num_hidden_layers, config.hidden_size, config.num_attention_heads, config.intermediate_size)
    assert (*shape, config.projection_length, config.max_sequence_length) == LARGER_SHAPES[name] and config.tie_key_value
    assert recipe.global_batch_size * config.max_sequence_length == table_8.global_batch_size * 512
    assert ("--sequence_length 2048" in (RECIPES / f"{name}.yaml").read_text()) == recipe.dataset.endswith("-2048")


@pytest.mark.parametrize(
    ("name", "beside"), [("roberta_base_16gb", "luna_base_16gb"), ("roberta_base_160gb", "luna_base_160gb_tied")]
)
def test_the_baseline_differs_from_luna_in_the_model_alone(name, beside):
    roberta, luna = load_recipe(name), load_recipe(beside)
    differ = {field.name for field in fields(Recipe) if getattr(roberta, field.name) != getattr(luna, field.name)}
    assert differ == {"model", "output_dir"}
    shared = luna.model.keys() & roberta.model.keys() - {"model_type"}
    assert luna.model.keys() - shared == {"model_type", "projection_length", "tie_key_value"}
    assert all(luna.model[field] == roberta.model[field] for field in shared)
    assert model_config(roberta).layer_norm_eps == model_config(luna).layer_norm_eps


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_of_the_package_is_valid(path):
    model_config(load_recipe(str(path)))


def test_options_reach_nested_values_and_keep_types(recipe_file):
    recipe = load_recipe(
        str(recipe_file),
        *"--learning_rate 6e-4 --model.layer_norm_eps 1e-12 --model.hidden_size 64 --weight_decay 0".split(),
        *"--mixed_precision no --report_to tensorboard wandb --gradient_checkpointing true".split(),
    )
    assert (
        recipe.learning_rate == 6e-4 and isinstance(recipe.learning_rate, float) and isinstance(recipe.weight_decay, float)
    )
    assert recipe.model["hidden_size"] == 64 and recipe.model["layer_norm_eps"] == 1e-12
    assert recipe.mixed_precision == "no" and recipe.gradient_checkpointing is True
    assert recipe.report_to == ["tensorboard", "wandb"]


def test_a_later_file_wins(recipe_file, tmp_path):
    (tmp_path / "more.yaml").write_text("max_steps: 5\nmodel:\n  hidden_size: 64\n", encoding="utf-8")
    recipe = load_recipe(str(recipe_file), str(tmp_path / "more.yaml"), "--warmup_steps", "1")
    assert (recipe.max_steps, recipe.warmup_steps) == (5, 1)
    assert (recipe.model["hidden_size"], recipe.model["vocab_size"]) == (64, 600)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"learning_rat": 1}, "'--learning_rat' is not an option, perhaps --learning_rate is meant"),
        ({"max_steps": None}, "`max_steps` is missing"),
        ({"max_steps": 0}, "`max_steps` is 0, but must be at least 1"),
        ({"max_steps": "many"}, "`max_steps` is 'many', but must be of type int"),
        ({"max_steps": True}, "`max_steps` is 'true', but must be of type int"),
        ({"max_steps": 2.5}, "`max_steps` is '2.5', but must be of type int"),
        ({"learning_rate": -1}, "`learning_rate` is -1.0, but must be above 0"),
        ({"learning_rate": "fast"}, "`learning_rate` is 'fast', but must be of type float"),
        ({"learning_rate": float("nan")}, "`learning_rate` is nan, but must be a finite number"),
        ({"weight_decay": float("inf")}, "`weight_decay` is inf, but must be a finite number"),
        ({"seed": 2**64}, "`seed` is 18446744073709551616, but must be below"),
        ({"max_eval_sequences": 0}, "`max_eval_sequences` is 0, but must be at least 1"),
        ({"adam_beta2": 1.0}, r"`adam_beta2` is 1.0, but must be in \[0, 1\)"),
        ({"mlm_probability": 1.5}, "`mlm_probability` is 1.5, but must be between 0 and 1"),
        ({"warmup_steps": 9}, "`warmup_steps` is 9, but the run has only `max_steps` = 8"),
        ({"weight_decay": -0.1}, "`weight_decay` is -0.1, but must not be negative"),
        ({"mixed_precision": "int8"}, "`mixed_precision` is 'int8', but must be one of 'no', 'bf16', 'fp16'"),
        ({"num_processes": 0}, "`num_processes` is 0, but must be at least 1"),
        ({"model": "luna"}, "--model is 'luna', but must be `name: value` pairs"),
        ({"hub_model_id": "a/b/c"}, "`hub_model_id` is 'a/b/c', which is not a name on the Hub"),
        ({"peak_tflops": 0.0}, "`peak_tflops` is 0.0, but must be above 0"),
        ({"profile_step": 0}, "`profile_step` is 0, but must be at least 1"),
    ],
)
def test_a_wrong_value_is_refused_by_name(values, tmp_path, change, sentence):
    with pytest.raises(InputError, match=sentence):
        load_recipe(str(write_recipe(values | change, tmp_path / "run")))


def test_identity_leaves_out_what_a_resumed_run_may_change(recipe_values):
    one = Recipe(**recipe_values)
    other = Recipe(**recipe_values | {"micro_batch_size": 4, "save_steps": 1, "output_dir": "elsewhere"})
    assert one.identity() == other.identity()
    changed = Recipe(**recipe_values | {"model": recipe_values["model"] | {"hidden_size": 64}})
    assert differing_field(one.identity(), changed.identity()) == ("model.hidden_size", 32, 64)
    assert differing_field(one.identity(), one.identity()) is None
    old = one.identity() | {"report_to": ["gone"]}
    del old["objective"]
    assert difference_from_run(old, other) is None
    assert difference_from_run(old | {"adam_beta1": 0.8}, other) == ("adam_beta1", 0.8, 0.9)
    assert yaml.safe_load(yaml.safe_dump(one.identity())) == one.identity()
