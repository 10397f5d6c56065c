# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The model card of a pretrained model: what recipe, dataset and results say, and nothing else."""

import re
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedConfig

from luna_tools.cards import UNNAMED, size_rows, table, use_section
from pretraining.prepare.sources import HUB_PREFIX
from pretraining.recipe import MASKING_FIELDS, Recipe

# Key in results.json, the Hub's name of the metric, and how the table names it.
METRICS = (
    ("eval_loss", "loss", "cross-entropy, nats"),
    ("eval_perplexity", "perplexity", "perplexity"),
    ("eval_accuracy", "accuracy", "accuracy"),
    ("eval_bits_per_byte", "bits_per_byte", "bits per byte"),
)
# What counting alone makes of the same tokens.
BASELINES = {
    "unigram_cross_entropy": "unigram cross-entropy, nats, for comparison",
    "five_gram_cross_entropy": "5-gram cross-entropy, nats, for comparison",
    "five_gram_bits_per_byte": "5-gram bits per byte, for comparison",
}


class Words(NamedTuple):
    """What a card says of an objective."""

    task: str  # the Hub's name
    model: str
    tokens: str
    program: str  # the lines of the example after `from transformers import pipeline` and the name; `remote` to be filled in


WORDS = {
    "masked_lm": Words(
        "fill-mask",
        "masked language model",
        "masked tokens",
        """fill_mask = pipeline("fill-mask", model=name{remote})
print(fill_mask(f"The moon goes {fill_mask.tokenizer.mask_token} the earth."))
""",
    ),
    "clm": Words(
        "text-generation",
        "causal language model",
        "tokens",
        """write = pipeline("text-generation", model=name{remote})
print(write("The moon goes", max_new_tokens=20, do_sample=True))
""",
    ),
}


def make_model_card(
    recipe: Recipe,
    config: PreTrainedConfig,
    manifest: dict,
    parameters: int,
    versions: dict[str, str],
    step: int,
    results: dict | None = None,
) -> ModelCard:
    """Write the card, README.md of a model's folder.

    Args:
        config: the recipe's model.
        manifest: of the dataset; `sequence_length`, `vocab_size`, `fingerprint`, `splits` and `sources` are read.
        versions: library -> version.
        step: how many of the recipe's steps the weights have seen.
        results: as in results.json, of a finished run.
    """
    words = WORDS[recipe.objective]
    name = recipe.hub_model_id or Path(recipe.output_dir).name
    dataset = Path(recipe.dataset).name
    measured = [metric for metric in METRICS if results is not None and metric[0] in results]
    sources = [describe_source(source["source"]) for source in manifest["sources"]]
    values = without_local_paths(recipe.identity())
    base = values["model_name_or_path"]
    data = ModelCardData(
        model_name=name if measured else None,
        language=recipe.language,
        license=recipe.license,
        base_model=base if base == recipe.model_name_or_path else None,  # else a folder, which the Hub does not know
        library_name="transformers",
        pipeline_tag=words.task,
        datasets=[re.split("[:@]", source)[1] for source in sources if source.startswith(HUB_PREFIX)] or None,
        tags=[config.model_type] + ["custom_code"] * (config.model_type == "luna"),
        eval_results=[
            EvalResult(
                task_type=words.task,
                dataset_type=dataset,
                dataset_name=dataset,
                dataset_split="validation",
                metric_type=kind,
                metric_name=title,
                metric_value=results[key],
            )
            for key, kind, title in measured
        ]
        or None,
    )
    start = f"the weights of `{base}`" if base else "random weights"
    if config.model_type == "luna":
        sizes = size_rows(config, parameters)
    else:
        sizes = {"parameters": f"{parameters:,}", "vocabulary": f"{config.vocab_size:,}"}
    rows = [
        (source, f"{listed['documents']:,}", f"{listed['bytes']:,}" if listed["bytes"] else "unknown")
        for source, listed in zip(sources, manifest["sources"], strict=True)
    ]
    splits = " and ".join(f"{of['rows']:,} rows in `{split}`" for split, of in manifest["splits"].items())
    untold = ("dataset", "model") if recipe.objective == "masked_lm" else ("dataset", "model", *MASKING_FIELDS)
    training = {field: value for field, value in values.items() if field not in untold}
    body = [
        f"# {name}",
        f"A `{config.model_type}` {words.model} after step {step:,} of {recipe.max_steps:,}, from {start}.",
        table(("", ""), sizes.items()),
        _use(config.model_type, words.program),
        "## Data",
        table(("source", "documents", "bytes"), rows),
        f"Packed into {splits} of {manifest['sequence_length']} tokens, by a tokenizer with {manifest['vocab_size']:,} "
        f"entries. Fingerprint: `{manifest['fingerprint']}`.",
        f"## Results\n\n{_results(recipe, measured, results)}",
        "## Training",
        table(("recipe", "value"), training.items()),
        "Made with " + ", ".join(f"{library} {version}" for library, version in versions.items()) + ".",
        f"## Licence\n\nOf the weights: {recipe.license or 'not stated'}.",
        "## Limits\n\nOnly what is under Results was measured: no other data, domain or language, and no bias.",
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(body) + "\n")


def describe_source(source: str) -> str:
    """Name a source of `luna prepare`; of a file or folder its name alone, not where it lies on somebody's machine."""
    return source if source.startswith(HUB_PREFIX) else Path(source).name


def without_local_paths(values: dict) -> dict:
    """Return a recipe's values as strangers may see them: of a folder its name alone, not where it lies."""
    told = dict(values)
    for field in ("dataset", "output_dir", "model_name_or_path"):
        value = told.get(field)
        if value and (Path(value).is_absolute() or Path(value).is_dir()):
            told[field] = Path(value).name
    return told


def _use(model_type: str, program: str) -> str:
    remote = model_type == "luna"
    program = program.replace("{remote}", ", trust_remote_code=True" if remote else "")
    program = f"from transformers import pipeline\n\n{UNNAMED}\n{program}"
    return use_section(program).rstrip() if remote else f"## Use\n\n```python\n{program}```"


def _results(recipe: Recipe, measured: list[tuple[str, str, str]], results: dict | None) -> str:
    if results is None:
        return "None: a checkpoint is saved before it is evaluated."
    if not measured:
        return "None: no documents were held out."
    rows = [(title, f"{results[key]:.4f}") for key, _, title in measured]
    rows += [(title, f"{results[key]:.4f}") for key, title in BASELINES.items() if key in results]
    part = "" if recipe.max_eval_sequences is None else f" (at most its first {recipe.max_eval_sequences:,} rows)"
    return f"Over the {WORDS[recipe.objective].tokens} of the validation split{part}:\n\n" + table(("", "value"), rows)
