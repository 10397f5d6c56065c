# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The model of a recipe is that of its fields, and a wrong one is refused by name."""

import pytest
from transformers import RobertaConfig

from luna_tools.errors import InputError
from pretraining.model import max_sequence_length, model_config
from pretraining.recipe import Recipe


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ({"hidden_size": 32}, "`model` has no `model_type`"),
        ({"model_type": "lunar"}, "`model` can't be built: .*lunar"),
        ({"model_type": "luna", "hidden_size": 30, "num_attention_heads": 4}, "`model` is refused: `hidden_size` is 30"),
        ({"model_type": "luna", "hiden_size": 32}, "`model.hiden_size` is not a field of LunaConfig"),
        ({"model_type": "luna", "projection_length": "16"}, "`model` is refused: .*projection_length"),
    ],
)
def test_a_wrong_model_is_refused_by_name(recipe_values, model, sentence):
    with pytest.raises(InputError, match=sentence):
        model_config(Recipe(**recipe_values | {"model": model}))


def test_positions_are_counted_as_each_architecture_does(recipe_values):
    assert max_sequence_length(RobertaConfig(max_position_embeddings=514)) == 512
    assert max_sequence_length(model_config(Recipe(**recipe_values))) == 32
    sinusoidal = recipe_values | {"model": recipe_values["model"] | {"position_embedding_type": "sinusoidal"}}
    assert max_sequence_length(model_config(Recipe(**sinusoidal))) is None
