# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""What the card says of a run, that the Hub takes it, and that its example works."""

from collections import defaultdict
from dataclasses import replace

import pytest
from datasets import Dataset
from huggingface_hub import ModelCard
from transformers import AutoTokenizer, RobertaConfig

from configuration_luna import LunaConfig
from finetuning.encoding import encode
from finetuning.model import HEAD_CLASSES
from finetuning.model_card import make_model_card, usage
from finetuning.tasks import TASKS, TaskData, custom_task
from luna_tools.cards import named_card
from tests.support.finetuning import SIZES
from tests.support.fresh_process import run_program
from tests.support.hub_server import metadata_errors
from tests.support.published_files import write_tokenizer

TAGGING = custom_task("token_classification", labels=("O", "B-PER", "I-PER"))
RESULTS = {
    "mnli": {"eval_validation_matched_accuracy": 0.8123456789, "eval_validation_mismatched_accuracy": 0.8},
    "mrpc": {"eval_accuracy": 0.86, "eval_f1": 0.901},
    "stsb": {"eval_pearson": 0.88, "eval_spearmanr": 0.87},
    "cola": {"eval_matthews_correlation": 0.5},
    "race": {"eval_accuracy": 0.66, "test_accuracy": 0.65},
    "csqa": {"eval_accuracy": 0.6},
    "custom": {"eval_f1_macro": 0.7, "eval_accuracy": 0.9, "eval_entity_precision": 0.5, "eval_entity_f1": 0.6},
}
CARD_TASKS = [*(TASKS[name] for name in RESULTS if name != "custom"), TAGGING]


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


def card_of(task, config=None, warning=None, given=None, **known):
    """A card; `given` are options of the run in place of its own."""
    values = {"model_name_or_path": "some/luna-base", "digests": {}, "max_steps": -1, "learning_rate": 1e-5, "seed": 0}
    values |= {} if task.hub_dataset else {"train_file": "rows.csv"}
    description = defaultdict(lambda: None, values | (given or {}))
    results = RESULTS[task.name] | ({"warning": warning} if warning else {})
    config = config or LunaConfig(classifier_pooling="packed_mean")
    return make_model_card("me/luna", data_of(task), results, description, config, 512, **known)


@pytest.mark.parametrize("task", CARD_TASKS, ids=lambda task: task.name)
def test_a_card_comes_back_with_every_result_and_is_valid_on_the_hub(task, tmp_path):
    card = card_of(task, license="apache-2.0", pictures=("learning_curve.png",))
    assert metadata_errors(card.content) == []
    card.save(tmp_path / "README.md")
    loaded = ModelCard.load(tmp_path / "README.md")
    assert loaded.data.to_dict() == card.data.to_dict()
    found = {}
    for result in loaded.data.eval_results:
        split = {"validation": "eval"}.get(result.dataset_split, result.dataset_split)
        found[f"{'eval_' * split.startswith('validation_')}{split}_{result.metric_name}"] = result.metric_value
        assert (result.dataset_type, result.dataset_config) == (task.hub_dataset or "custom", task.hub_config)
        assert result.dataset_name == task.title and result.task_type == loaded.data.pipeline_tag
    assert found == RESULTS[task.name]
    assert not {"None", "none", "null", "nan"} & set(card.content.replace('"none"', "").replace("`", " ").split())


def test_metadata():
    data = card_of(TASKS["stsb"], license="apache-2.0").data.to_dict()
    expected = {"pipeline_tag": "text-classification", "metrics": ["pearsonr", "spearmanr"], "datasets": ["nyu-mll/glue"]}
    expected |= {"tags": ["luna", "stsb", "custom_code"], "license": "apache-2.0", "language": "en"}
    assert expected.items() <= {key: data[key] for key in expected}.items()
    assert (data["library_name"], data["base_model"]) == ("transformers", "some/luna-base")
    custom = card_of(TAGGING, RobertaConfig()).data.to_dict()
    assert not {"language", "license", "datasets"} & set(custom)
    assert custom["metrics"] == ["accuracy", "f1", "precision"] and custom["tags"] == ["roberta", "custom"]
    assert card_of(TAGGING, language="de").data.language == "de"
    assert metadata_errors(card_of(TASKS["cola"], license="nonsense").content) != []


def test_body():
    text = card_of(TASKS["mnli"], pictures=("learning_curve.png",), warning="It diverged.").content
    for part in (
        "the checkpoint `some/luna-base`, fine-tuned on MNLI.",
        "(`classifier_pooling`) is `packed_mean`.",
        "MNLI, from `nyu-mll/glue` on the Hub.",
        "Rows: 2 in `train`, 2 in `validation_matched`, 2 in `validation_mismatched`, 2 in `test_matched`",
        "## Results\n\n**It diverged.**\n\n| split | accuracy |\n| --- | --- |\n| validation_matched | 0.8123 |\n",
        "| validation_mismatched | 0.8000 |\n",
        "![learning curve](learning_curve.png)",
        "| learning_rate | 1e-05 |\n",
        "| max_sequence_length | 512 |",
        "Made with transformers ",
        "- Without an evaluation: `test_matched`, `test_mismatched`, `diagnostic`.",
        "- Inputs were cut at 512 tokens.",
        "Of the weights: not stated.",
    ):
        assert part in text, part
    assert "weight_decay" not in text and "optimistic" not in text
    text = card_of(TASKS["race"], RobertaConfig(), given={"load_best_model_at_end": True}, license="mit").content
    assert "Of the weights: mit." in text and "classifier_pooling" not in text and "Without an evaluation" not in text
    assert "best of the run on `validation` by accuracy, so its results on that split are optimistic" in text
    assert "remote" not in text and "custom_code" not in text
    for task in (TASKS["cola"], TASKS["race"], TAGGING):
        code = usage("roberta", data_of(task))
        assert compile(code, "example", "exec") and "luna" not in code and "remote" not in code


def test_a_base_model_that_is_not_on_the_hub_is_no_metadata():
    for given, start in (
        ({"digests": {"model": "f00"}}, "the checkpoint `some/luna-base`, fine-tuned on CoLA"),
        ({"random_weights": True}, "random weights, trained on CoLA"),
    ):
        card = card_of(TASKS["cola"], given=given)
        assert "base_model" not in card.data.to_dict() and start in card.content


EXAMPLES = {
    "text": TASKS["sst2"],
    "pair": TASKS["mrpc"],
    "regression": TASKS["stsb"],
    "passage": TASKS["race"],
    "no passage": TASKS["csqa"],
    "entities": TAGGING,
    "tags": replace(TAGGING, labels=("noun", "verb", "other")),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_works(name, tmp_path, capsys):
    task, folder = EXAMPLES[name], tmp_path / "model"
    write_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    labels = len(task.labels or "ab") if task.kind != "regression" else 1
    config = LunaConfig(vocab_size=len(tokenizer), num_labels=labels, **SIZES)
    HEAD_CLASSES[task.kind].from_config(config).save_pretrained(folder)
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
    if name == "text":  # in a stranger's process
        done = run_program(named_card(code, folder), tmp_path / "elsewhere")
        assert done.returncode == 0 and done.stdout.strip().splitlines()[-1] == printed, done.stderr
