# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.

import re
from dataclasses import replace

import pytest
import yaml
from datasets import Dataset
from huggingface_hub import ModelCard
from transformers import (
    AutoModelForMultipleChoice,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from configuration_luna import LunaConfig
from finetuning.encoding import encode
from finetuning.model_card import make_model_card, usage
from finetuning.tasks import TASKS, TaskData, custom_task
from luna_tools.cards import named_card
from tests.support.fresh_process import run_program
from tests.support.hub_server import metadata_errors
from tests.support.published_files import write_tokenizer

TAGGING = custom_task("token_classification", labels=("O", "B-PER", "I-PER"))
VERSIONS = {"transformers": "5.23.0", "torch": "2.13.0"}
RESULTS = {
    "mnli": {"validation_matched": {"accuracy": 0.8123456789}, "validation_mismatched": {"accuracy": 0.8}},
    "mrpc": {"validation": {"accuracy": 0.86, "f1": 0.901}},
    "stsb": {"validation": {"pearson": 0.88, "spearmanr": 0.87}},
    "cola": {"validation": {"matthews_correlation": 0.5}},
    "race": {"validation": {"accuracy": 0.66}, "test": {"accuracy": 0.65}},
    "csqa": {"validation": {"accuracy": 0.6}},
    "custom": {"validation": {"f1_macro": 0.7, "accuracy": 0.9, "entity_precision": 0.5, "entity_f1": 0.6}, "test": {}},
}


def data_of(task):
    columns = {"index": [0, 1]} | {column: ["one text", "two texts"] for column in task.columns}
    columns |= {"label": [0.5, 1.0] if task.kind == "regression" else [0, 1]}
    if task.kind == "multiple_choice":
        passage = "" if task.name == "csqa" else "Anna took the train to Rome."
        question = "Where do fish live?" if task.name == "csqa" else "Where is Anna?"
        options = ["water", "trees"] if task.name == "csqa" else ["In Rome", "At home"]
        columns |= {"passage": [passage] * 2, "question": [question] * 2, "options": [options] * 2}
    if task.kind == "token_classification":
        columns |= {"words": [["Anna", "left"], ["home"]], "label": [[1, 0], [0]]}
    splits = ("train", *task.validation_splits, *task.test_splits)
    return TaskData(task, {split: Dataset.from_dict(columns) for split in splits})


def card_of(task, **changes):
    known = {
        "model_type": "luna",
        "base_model": "some/luna-base",
        "base_is_on_hub": True,
        "data_description": "The GLUE benchmark's task.",
    }
    hyperparameters = {"learning_rate": 1e-5, "warmup_ratio": None, "max_sequence_length": 512, "seed": 0}
    return make_model_card("me/luna", data_of(task), RESULTS[task.name], hyperparameters, VERSIONS, **known | changes)


@pytest.mark.parametrize("task", [*(TASKS[name] for name in RESULTS if name != "custom"), TAGGING], ids=lambda t: t.name)
def test_card_round_trip(tmp_path, task):
    card = card_of(task, classifier_pooling="packed_mean", pictures=("learning_curve.png",), license="apache-2.0")
    card.save(tmp_path / "README.md")
    loaded = ModelCard.load(tmp_path / "README.md")
    assert loaded.data.to_dict() == card.data.to_dict()
    assert loaded.data.eval_results == card.data.eval_results
    found = {split: {} for split in RESULTS[task.name]}
    for result in loaded.data.eval_results:
        found[result.dataset_split][result.metric_name] = result.metric_value
        assert result.dataset_type == (task.hub_dataset or "custom")
        assert result.dataset_config == task.hub_config and result.dataset_name == task.title
        assert result.task_type == loaded.data.pipeline_tag
    assert found == RESULTS[task.name]
    assert not re.search(r"\b(None|none|null|nan)\b", card.content.replace('function_to_apply="none"', ""))
    assert yaml.safe_load(card.content.split("---\n")[1])["base_model"] == "some/luna-base"


def test_metadata():
    data = card_of(TASKS["stsb"], license="apache-2.0").data.to_dict()
    assert data["pipeline_tag"] == "text-classification"
    assert data["metrics"] == ["pearsonr", "spearmanr"]
    assert data["tags"] == ["luna", "stsb", "custom_code"]
    assert data["datasets"] == ["nyu-mll/glue"]
    assert (data["license"], data["language"], data["library_name"]) == ("apache-2.0", "en", "transformers")
    assert "license" not in card_of(TASKS["stsb"]).data.to_dict()
    custom = card_of(TAGGING, model_type="roberta").data.to_dict()
    assert not {"language", "license", "datasets"} & set(custom)
    assert card_of(TAGGING, language="de").data.language == "de"
    assert custom["metrics"] == ["accuracy", "f1", "precision"] and custom["tags"] == ["roberta", "custom"]


def test_body():
    text = card_of(TASKS["mnli"], classifier_pooling="packed_mean", pictures=("learning_curve.png",)).content
    for part in (
        "the checkpoint `some/luna-base`, fine-tuned on MNLI.",
        "(`classifier_pooling`) is `packed_mean`.",
        "Rows: 2 in `train`, 2 in `validation_matched`, 2 in `validation_mismatched`, 2 in `test_matched`",
        "| split | accuracy |\n| --- | --- |\n| validation_matched | 0.8123 |\n| validation_mismatched | 0.8000 |\n",
        "![learning curve](learning_curve.png)",
        "| learning_rate | 1e-05 |\n| max_sequence_length | 512 |",
        "Made with transformers 5.23.0, torch 2.13.0.",
        "- Without an evaluation: `test_matched`, `test_mismatched`, `diagnostic`.",
        "- Inputs were cut at 512 tokens.",
    ):
        assert part in text, part
    assert "warmup_ratio" not in text and "optimistic" not in text
    assert "Of the weights: not stated." in text
    assert "Of the weights: apache-2.0." in card_of(TASKS["mnli"], license="apache-2.0").content
    assert "classifier_pooling" not in card_of(TASKS["mnli"]).content
    assert "Without an evaluation" not in card_of(TASKS["race"]).content
    assert "## Results\n\n**It diverged.**\n\n| split" in card_of(TASKS["mnli"], warning="It diverged.").content


def test_the_split_that_picked_the_checkpoint():
    known = {"model_type": "luna", "base_model": None, "data_description": "The GLUE benchmark's task."}
    hyperparameters = {"load_best_model_at_end": True}
    text = make_model_card("m", data_of(TASKS["mnli"]), RESULTS["mnli"], hyperparameters, VERSIONS, **known).content
    assert "best of the run on `validation_matched` by accuracy, so its results on that split are optimistic" in text


@pytest.mark.parametrize("name", [None, "runs/quickstart/model"])
def test_base_model_that_is_not_on_the_hub(name):
    card = card_of(TASKS["cola"], base_model=name, base_is_on_hub=False)
    assert "base_model" not in card.data.to_dict()
    assert (f"the checkpoint `{name}`, fine-tuned" if name else "random weights, trained on CoLA") in card.content


@pytest.mark.parametrize(
    ("task", "auto_class", "labels"),
    [
        (TASKS["sst2"], AutoModelForSequenceClassification, 2),
        (TASKS["mrpc"], AutoModelForSequenceClassification, 2),
        (TASKS["stsb"], AutoModelForSequenceClassification, 1),
        (TASKS["race"], AutoModelForMultipleChoice, 2),
        (TASKS["csqa"], AutoModelForMultipleChoice, 2),
        (TAGGING, AutoModelForTokenClassification, 3),
        (replace(TAGGING, labels=("noun", "verb", "other")), AutoModelForTokenClassification, 3),
    ],
    ids=["text", "pair", "regression", "passage", "no passage", "entities", "tags"],
)
def test_the_example_works(tmp_path, capsys, task, auto_class, labels):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    folder = tmp_path / "model"
    write_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = LunaConfig(vocab_size=len(tokenizer), projection_length=4, num_labels=labels, **sizes)
    auto_class.from_config(config).save_pretrained(folder)
    data = data_of(task)
    code = usage("luna", data)
    # As the card says: with luna-transformers installed, import it first and run no code of the folder.
    installed = "import modeling_luna\n" + named_card(code, folder).replace(", trust_remote_code=True", "")
    variables = {}
    exec(compile(installed, "example", "exec"), variables)
    printed = capsys.readouterr().out.strip().splitlines()[-1]
    if task.kind == "multiple_choice":
        assert printed in data.splits["train"][0]["options"]
        encoded = encode(data, tokenizer, 256)["train"][0]["input_ids"]
        ids, mask = variables["inputs"]["input_ids"], variables["inputs"]["attention_mask"]
        assert [row[kept.bool()].tolist() for row, kept in zip(ids, mask, strict=True)] == encoded
    else:
        assert "score" in printed or printed == "[]"
    known = {"model_type": "luna", "base_model": None, "data_description": "Some data."}
    assert f"```python\n{code}```" in make_model_card("me/luna", data, {}, {}, VERSIONS, **known).content
    if task.name == "sst2":  # in a stranger's process
        done = run_program(named_card(code, folder), tmp_path / "elsewhere")
        assert done.returncode == 0 and done.stdout.strip().splitlines()[-1] == printed, done.stderr


def test_other_models_need_no_luna():
    for task in (TASKS["cola"], TASKS["race"], TAGGING):
        code = usage("roberta", data_of(task))
        compile(code, "example", "exec")
        assert "luna" not in code and "remote" not in code
        assert "custom_code" not in card_of(TASKS["cola"], model_type="roberta").content


def test_cards_are_valid_on_the_hub():
    for task in (*(TASKS[name] for name in RESULTS if name != "custom"), TAGGING):
        assert metadata_errors(card_of(task, license="mit").content) == []
    assert metadata_errors(card_of(TASKS["cola"], license="nonsense").content) != []
