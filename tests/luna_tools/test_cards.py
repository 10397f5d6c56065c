# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Cards say what is known, name their repository, and are metadata that the Hub takes."""

import pytest
from huggingface_hub import ModelCard

from configuration_luna import LunaConfig
from luna_tools.cards import PIPELINE_TAGS, UNNAMED, card_text, model_card, named_card
from tests.support.hub_server import metadata_errors


@pytest.mark.parametrize("class_name", [f"Luna{end}" for end in PIPELINE_TAGS])
def test_the_card_of_a_model_alone(class_name):
    config = LunaConfig(vocab_size=1234, projection_length=7, max_position_embeddings=40)
    text = model_card(config, class_name, "AutoModel", 56789)
    card = ModelCard(text)
    assert card.data.license == "unknown" and card.data.pipeline_tag == PIPELINE_TAGS[class_name.removeprefix("Luna")]
    assert metadata_errors(text) == []
    for fact in (f"`{class_name}`", "56,789", "| packed vectors (l) | 7 |", "1,234", "up to 38 tokens", UNNAMED):
        assert fact in card.text
    assert "None" not in text


def test_what_is_known_is_metadata():
    text = card_text("LunaForMaskedLM", "# A\n", license="mit", language="en", datasets=["a/b"], base_model="c/d")
    data = ModelCard(text).data
    assert (data.license, data.language, data.datasets, data.base_model) == ("mit", "en", ["a/b"], "c/d")
    assert "language" not in card_text("LunaForMaskedLM", "# A\n", license="mit", language=None)


def test_examples_name_the_repository_and_a_revision_other_than_main():
    card = f'{UNNAMED}\nAutoModel.from_pretrained(name, x=1)\npipeline("fill-mask", model=name)\nrename = name_of(name)\n'
    for revision in (None, "main"):
        assert named_card(card, "org/luna", revision) == card.replace(UNNAMED, 'name = "org/luna"')
    revised = named_card(card, "org/luna", "step-10")
    assert 'from_pretrained(name, revision="step-10", x=1)' in revised and 'model=name, revision="step-10")' in revised
    assert "rename = name_of(name)" in revised
    assert named_card("# mine\nfrom_pretrained(name)", "org/luna", "step-10") == "# mine\nfrom_pretrained(name)"
