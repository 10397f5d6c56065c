# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The model card of a fine-tuned model: what is known from the run, and nothing else."""

from pathlib import Path
from string import Template

import datasets
import torch
import transformers
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedConfig

from finetuning.arguments import DROPOUTS
from finetuning.metrics import ENTITY_METRICS, metric_names
from finetuning.run_folder import PATHS, TRAINING_FIELDS
from finetuning.tasks import Task, TaskData
from finetuning.tasks.lra import LraTask
from finetuning.trainer import metric_prefix
from luna_tools.cards import UNNAMED, table, use_section

LIBRARIES = (transformers, torch, datasets)  # whose versions the card tells
HUB_TASKS = {
    "classification": "text-classification",
    "regression": "text-classification",
    "multiple_choice": "multiple-choice",
    "token_classification": "token-classification",
}
# The Hub's names of metrics, where ours differ.
HUB_METRICS = {"pearson": "pearsonr", "mean_squared_error": "mse", "f1_macro": "f1"}
HUB_METRICS |= {name: name.removeprefix("entity_") for name in ENTITY_METRICS}

# The parts of the examples. The inputs of multiple choice are those of `finetuning.encoding`.
MULTIPLE_CHOICE = Template("""import torch
from transformers import AutoModelForMultipleChoice, AutoTokenizer

$unnamed
tokenizer = AutoTokenizer.from_pretrained(name$remote)
model = AutoModelForMultipleChoice.from_pretrained(name$remote)
$inputs
with torch.no_grad():
    scores = model(**{name: tensor.unsqueeze(0) for name, tensor in inputs.items()}).logits[0]
print(options[scores.argmax()])
""")
# Inputs that no pipeline makes: two texts that are read alone, and the pixels of a picture.
SYMBOLS = Template("""import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

$unnamed
tokenizer = AutoTokenizer.from_pretrained(name$remote)
model = AutoModelForSequenceClassification.from_pretrained(name$remote)
$inputs
with torch.no_grad():
    scores = model(**inputs).logits[0]
print(model.config.id2label[scores.argmax().item()])
""")
TWO_TEXTS = """texts = tokenizer(["The first text.", "The second text."], truncation=True, padding=True, return_tensors="pt")
inputs = {name: tensor.unsqueeze(0) for name, tensor in texts.items()}"""
PIXELS = """pixels = [0] * $count  # the grey levels, row by row
inputs = tokenizer(" ".join(map(str, pixels)), return_tensors="pt")"""
WITH_PASSAGE = """passage = "Anna took the train to Rome."
question, options = "Where is Anna?", ["In Rome", "At home"]
questions = [question.replace("_", option) if "_" in question else f"{question} {option}" for option in options]
inputs = tokenizer(questions, [passage] * len(options), truncation="only_second", padding=True, return_tensors="pt")"""
WITHOUT_PASSAGE = """question, options = "Where do fish live?", ["water", "trees"]
texts = [f"Q: {question}{tokenizer.sep_token}A: {option}" for option in options]
inputs = tokenizer(texts, truncation=True, padding=True, return_tensors="pt")"""


def make_model_card(
    model_name: str,
    data: TaskData,
    results: dict,
    description: dict,
    config: PreTrainedConfig,
    max_sequence_length: int,
    *,
    pictures: tuple[str, ...] = (),
    license: str | None = None,
    language: str | None = None,
) -> ModelCard:
    """The card as README.md of the model's folder.

    Args:
        model_name: the card's title.
        results: of the run, as `all_results.json` has them.
        description: of the run, as `run.json` has it.
        config: the model's.
        max_sequence_length: tokens at which inputs were cut.
        pictures: names of files beside the card.
        license: its identifier on the Hub, only where it is known.
        language: of the texts, as the Hub spells it, only where it is known; English for the built-in tasks.
    """
    task, model_type = data.task, config.model_type
    metrics = split_metrics(task, results)
    hyperparameters = hyperparameters_of(description, config) | {"max_sequence_length": max_sequence_length}
    base_model = None if description["random_weights"] else description["model_name_or_path"]
    card_data = ModelCardData(
        model_name=model_name,
        base_model=None if "model" in description["digests"] else base_model,  # a folder is no name on the Hub
        datasets=[task.hub_dataset] if task.hub_dataset else None,
        language=language or ("en" if task.hub_dataset and task.text_columns else None),
        library_name="transformers",
        license=license,
        metrics=sorted({HUB_METRICS.get(name, name) for values in metrics.values() for name in values}),
        pipeline_tag=HUB_TASKS[task.kind],
        tags=[model_type, task.name] + ["custom_code"] * (model_type == "luna"),
        eval_results=[
            EvalResult(
                task_type=HUB_TASKS[task.kind],
                dataset_type=task.hub_dataset or task.name,
                dataset_name=task.title,
                dataset_config=task.hub_config,
                dataset_split=split,
                metric_type=HUB_METRICS.get(name, name),
                metric_name=name,
                metric_value=value,
            )
            for split, values in metrics.items()
            for name, value in values.items()
        ],
    )
    start = f"the checkpoint `{base_model}`, fine-tuned" if base_model else "random weights, trained"
    reads_all = task.kind == "token_classification" or not hasattr(config, "classifier_pooling")
    pooling = "" if reads_all else f" Its sentence representation (`classifier_pooling`) is `{config.classifier_pooling}`."
    files = [description[name] for name in PATHS[1:] if description[name]]
    source = ", ".join(f"`{file}`" for file in files) or f"`{task.hub_dataset}` on the Hub"
    warning = f"**{results['warning']}**\n\n" if "warning" in results else ""
    rows = ", ".join(f"{len(split):,} in `{name}`" for name, split in data.splits.items())
    classes = f" Classes: {', '.join(f'`{name}`' for name in task.labels)}." if task.labels else ""
    body = [
        f"# {model_name}",
        f"A `{model_type}` model for {task.kind.replace('_', ' ')}: {start} on {task.title}.{pooling}",
        f"## Data\n\n{task.title}, from {source}.\n\nRows: {rows}.{classes}",
        f"## Results\n\n{warning}{results_table(metrics)}",
        *(f"![{Path(picture).stem.replace('_', ' ')}]({picture})" for picture in pictures),
        use_section(usage(model_type, data)).rstrip()
        if model_type == "luna"
        else f"## Use\n\n```python\n{usage(model_type, data)}```",
        f"## Training\n\n{table(('option', 'value'), hyperparameters.items())}",
        "Made with " + ", ".join(f"{library.__name__} {library.__version__}" for library in LIBRARIES) + ".",
        "## Licence\n\nOf the weights: " + (license or "not stated") + ".",
        "## Limits\n\n" + "\n".join(f"- {limit}" for limit in limits_of(data, metrics, hyperparameters)),
    ]
    return ModelCard(f"---\n{card_data.to_yaml()}\n---\n\n" + "\n\n".join(body) + "\n")


def split_metrics(task: Task, results: dict) -> dict[str, dict[str, float]]:
    """The metrics of each split that was evaluated."""
    metrics = {}
    for split in (*task.validation_splits, *task.test_splits):
        start = f"{metric_prefix(task, split)}_"
        values = {name: results[start + name] for name in metric_names(task) if start + name in results}
        if values:
            metrics[split] = values
    return metrics


def hyperparameters_of(description: dict, config: PreTrainedConfig) -> dict[str, object]:
    """The options that count, without those that others made void."""
    names = ["total_train_batch_size", "group_by_length", "early_stopping_patience", "do_train", *TRAINING_FIELDS]
    void = {"num_train_epochs"} if description["max_steps"] > 0 else {"max_steps"}
    void |= {f"{what}_steps" for what in ("eval", "save") if description[f"{what}_strategy"] != "steps"}
    values = {name: description[name] for name in names if name not in void}
    return values | {name: getattr(config, name, None) for name in DROPOUTS}


def results_table(metrics: dict[str, dict[str, float]]) -> str:
    names = list(dict.fromkeys(name for values in metrics.values() for name in values))
    cells = {split: [f"{values[name]:.4f}" if name in values else "" for name in names] for split, values in metrics.items()}
    return table(("split", *names), [(split, *row) for split, row in cells.items()])


def usage(model_type: str, data: TaskData) -> str:
    """A program that loads the model and applies it to one input."""
    task = data.task
    remote = ", trust_remote_code=True" if model_type == "luna" else ""
    if task.kind == "multiple_choice":
        has_passages = any(any(split["passage"]) for split in data.splits.values())
        inputs = WITH_PASSAGE if has_passages else WITHOUT_PASSAGE
        return MULTIPLE_CHOICE.substitute(unnamed=UNNAMED, remote=remote, inputs=inputs)
    if isinstance(task, LraTask) and task.columns != ("text",):
        first = next(iter(data.splits.values()))[0]
        inputs = TWO_TEXTS if "text" in first else Template(PIXELS).substitute(count=len(first["pixels"]))
        return SYMBOLS.substitute(unnamed=UNNAMED, remote=remote, inputs=inputs)
    settings = f'"{HUB_TASKS[task.kind]}", model=name{remote}'
    if task.kind == "token_classification":
        text = '"Anna took the train to Rome."'
        if "entity_f1" in metric_names(task):
            settings += ', aggregation_strategy="simple"'
    else:
        text = '"The first text."'
        if len(task.text_columns) == 2:
            text = '{"text": "The first text.", "text_pair": "The second text."}'
        settings += ", truncation=True" + (', function_to_apply="none"' if task.kind == "regression" else "")
    return f"""from transformers import pipeline

{UNNAMED}
predict = pipeline({settings})
print(predict({text}))
"""


def limits_of(data: TaskData, metrics: dict[str, dict[str, float]], hyperparameters: dict[str, object]) -> list[str]:
    task = data.task
    limits = ["Only what the table shows was measured: no other data, domain or language, and no bias."]
    if hyperparameters.get("load_best_model_at_end"):
        limits.append(
            f"The checkpoint is the best of the run on `{task.validation_splits[0]}` by {task.best_metric}, so its results "
            "on that split are optimistic."
        )
    unseen = [f"`{split}`" for split in data.splits if split in task.test_splits and split not in metrics]
    if unseen:
        limits.append(f"Without an evaluation: {', '.join(unseen)}.")
    if hyperparameters.get("max_sequence_length"):
        limits.append(f"Inputs were cut at {hyperparameters['max_sequence_length']} tokens.")
    return limits
