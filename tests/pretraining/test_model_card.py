# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The card of a pretrained model: what recipe, dataset and results say, and an example that runs."""

import json
import re
from pathlib import Path

import pytest
import torch

from luna_tools.cards import UNNAMED, named_card
from modeling_luna import LunaForMaskedLM
from pretraining.model import model_config
from pretraining.model_card import make_model_card, without_local_paths
from pretraining.recipe import Recipe
from tests.support.fresh_process import run_program
from tests.support.hub_server import metadata_errors
from tests.support.luna_builders import build, make_tokenizer

VERSIONS = {"transformers": "5.23.0", "torch": "2.13.0"}
RESULTS = {"eval_loss": 5.815768, "eval_perplexity": 335.5, "eval_accuracy": 0.1559, "unigram_cross_entropy": 6.6474}
VALUES = {
    "dataset": "data/some-docs",
    "output_dir": "runs/first",
    "model": {"model_type": "luna", "hidden_size": 32, "num_attention_heads": 4, "projection_length": 8},
    "max_steps": 3000,
    "global_batch_size": 16,
    "learning_rate": 1e-3,
}
MANIFEST = {
    "sequence_length": 128,
    "vocab_size": 4096,
    "fingerprint": "2a1445",
    "splits": {"train": {"rows": 3753}, "validation": {"rows": 179}},
    "sources": [
        {"source": "python-docs", "documents": 8255, "bytes": 1764682},
        {"source": "/home/somebody/text", "documents": 12, "bytes": 999},
        {"source": "hub:org/corpus@abc:en:train", "documents": 34, "bytes": 0},
    ],
}


def card_of(values=None, step=3000, results=RESULTS, manifest=MANIFEST):
    recipe = Recipe(**VALUES | (values or {}))
    card = make_model_card(recipe, model_config(recipe), manifest, 1424512, VERSIONS, step, results)
    assert metadata_errors(card.content) == [], "the Hub takes it"
    return card


def test_a_card_tells_data_results_recipe_and_size(tmp_path):
    card = card_of()
    for part in (
        "# first",
        "A `luna` masked language model after step 3,000 of 3,000, from random weights.",
        "| parameters | 1,424,512 |",
        "| packed vectors (l) | 8 |",
        "| python-docs | 8,255 | 1,764,682 |",
        "| text | 12 | 999 |",
        "| hub:org/corpus@abc:en:train | 34 | unknown |",
        "Packed into 3,753 rows in `train` and 179 rows in `validation` of 128 tokens, by a tokenizer with 4,096 entries.",
        "Fingerprint: `2a1445`",
        "Over the masked tokens of the validation split:",
        "| cross-entropy, nats | 5.8158 |",
        "| unigram cross-entropy, nats, for comparison | 6.6474 |",
        "| learning_rate | 0.001 |",
        "| mlm_probability | 0.15 |",
        "| seed | 0 |",
        "Made with transformers 5.23.0, torch 2.13.0.",
        "Of the weights: not stated.",
        UNNAMED,
    ):
        assert part in card.content, part
    assert "somebody" not in card.content and "None" not in card.content.replace("None:", "")
    data = card.data
    assert (data.pipeline_tag, data.library_name) == ("fill-mask", "transformers")
    assert data.tags == ["luna", "custom_code"] and data.datasets == ["org/corpus"]
    found = {
        (result.dataset_name, result.dataset_split, result.metric_type): result.metric_value for result in data.eval_results
    }
    assert found == {
        ("some-docs", "validation", "loss"): RESULTS["eval_loss"],
        ("some-docs", "validation", "perplexity"): RESULTS["eval_perplexity"],
        ("some-docs", "validation", "accuracy"): RESULTS["eval_accuracy"],
    }


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"step": 500, "results": None}, ["after step 500 of 3,000", "None: a checkpoint is saved before it is evaluated."]),
        ({"results": {}}, ["None: no documents were held out."]),
        ({"values": {"max_eval_sequences": 64}}, ["of the validation split (at most its first 64 rows):"]),
        ({"values": {"hub_model_id": "org/luna"}}, ["# org/luna\n"]),
    ],
    ids=["checkpoint", "no validation", "part of the validation", "name"],
)
def test_what_is_special_is_said(changes, said):
    card = card_of(**changes)
    for part in said:
        assert part in card.content
    if changes.get("results", RESULTS) != RESULTS:
        assert card.data.eval_results is None


def test_a_start_from_other_weights_is_said(tmp_path):
    build(LunaForMaskedLM).config.save_pretrained(tmp_path)
    card = card_of({"model_name_or_path": str(tmp_path), "model": {}})
    # By name alone: where the folder lies is nobody's business, and no model of the Hub.
    assert f"from the weights of `{tmp_path.name}`." in card.content and str(tmp_path) not in card.content
    assert card.data.base_model is None


def test_a_card_has_what_the_recipe_knows_of_language_licence_and_base_model(monkeypatch):
    monkeypatch.setattr("pretraining.model_card.Path.is_dir", lambda path: False)
    recipe = Recipe(**VALUES | {"language": "en", "license": "apache-2.0", "model_name_or_path": "org/base"})
    config = model_config(Recipe(**VALUES))
    card = make_model_card(recipe, config, MANIFEST, 1, VERSIONS, 3000, RESULTS)
    assert (card.data.language, card.data.license, card.data.base_model) == ("en", "apache-2.0", "org/base")
    assert "from the weights of `org/base`." in card.content and "Of the weights: apache-2.0." in card.content
    assert metadata_errors(card.content) == []


def test_values_for_strangers_have_no_places(tmp_path):
    values = {"dataset": str(tmp_path), "output_dir": "/nowhere/run", "model_name_or_path": "org/base", "seed": 1}
    expected = {"dataset": tmp_path.name, "output_dir": "run", "model_name_or_path": "org/base", "seed": 1}
    assert without_local_paths(values) == expected


def test_another_architecture_needs_no_luna():
    card = card_of({"model": {"model_type": "bert"}})
    assert card.data.tags == ["bert"] and "remote" not in card.content and "luna" not in card.content
    assert "| parameters | 1,424,512 |\n| vocabulary | 30,522 |" in card.content


def test_the_example_works(tmp_path, capsys):
    tokenizer = make_tokenizer()
    build(LunaForMaskedLM, dtype=torch.float32, vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    program = named_card(card_of().content, str(tmp_path)).split("```")[1].removeprefix("python\n")
    done = run_program(program, tmp_path / "elsewhere")
    assert done.returncode == 0 and done.stdout.count("'score'") == 5, done.stderr
    # As the card says: with luna-transformers installed, import it first and run no code of the folder.
    exec("import modeling_luna\n" + program.replace(", trust_remote_code=True", ""), {})
    # The last digits of the scores depend on the number of threads; DeepSpeed may have said on stdout that there is no GPU.
    last_lines = (text.splitlines()[-1] for text in (capsys.readouterr().out, done.stdout))
    here, there = (re.sub(r"'score': [^,]+", "", line) for line in last_lines)
    assert here == there


def test_the_manifest_of_prepare_has_what_a_card_needs(prepared):
    manifest = json.loads((prepared / "manifest.json").read_text())
    card = card_of(manifest=manifest)
    (source,) = manifest["sources"]
    assert f"| {Path(source['source']).name} | {source['documents']:,} | {source['bytes']:,} |" in card.content
    assert f"Fingerprint: `{manifest['fingerprint']}`" in card.content
