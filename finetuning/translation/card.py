# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The model card of a model that translates: what is known from the run, and nothing else."""

from huggingface_hub import ModelCardData
from transformers import PreTrainedModel

from finetuning.translation.arguments import TranslationOptions
from luna_tools.cards import UNNAMED, table, use_section

METRICS = ("loss", "bleu", "bleu_tokenized", "bleu_compound_split", "chrf")


def make_card(
    name: str, model: PreTrainedModel, manifest: dict, description: dict, results: dict, options: TranslationOptions
) -> str:
    """README.md of a finished run.

    Args:
        manifest: of the dataset.
        description: of the run, as `run.json` has it.
        results: of the run, as `all_results.json` has them.
    """
    prepared, is_luna = manifest["options"], model.config.model_type == "luna"
    languages = [prepared[side] for side in ("source_language", "target_language") if side in prepared]
    data = ModelCardData(
        language=languages or None,
        license=options.license,
        library_name="transformers",
        pipeline_tag="translation",
        datasets=[prepared["hub_dataset"]] if "hub_dataset" in prepared else None,
        tags=[model.config.model_type, "translation"] + ["custom_code"] * is_luna,
    )
    remote = ", trust_remote_code=True" if is_luna else ""
    program = f"""from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

{UNNAMED}
tokenizer = AutoTokenizer.from_pretrained(name{remote})
model = AutoModelForSeq2SeqLM.from_pretrained(name{remote})
inputs = tokenizer(["A line."], return_tensors="pt")
print(tokenizer.batch_decode(model.generate(**inputs), skip_special_tokens=True))
"""
    splits = [split for split in ("validation", "test") if f"{split}_bleu" in results]
    rows = [(split, *(f"{results[f'{split}_{metric}']:.2f}" for metric in METRICS)) for split in splits]
    signatures = "\n".join(f"- {metric}: `{text}`" for metric, text in results["signatures"].items())
    pairs = ", ".join(f"{values['pairs']:,} in `{split}`" for split, values in manifest["splits"].items())
    hyperparameters = {key: value for key, value in description.items() if key != "digests" and value not in (None, {}, [])}
    body = [
        f"# {name}",
        f"A `{model.config.model_type}` model of {model.num_parameters():,} parameters that translates"
        + (f" from {languages[0]} to {languages[1]}" if len(languages) == 2 else "")
        + f": the mean of {results['averaged_checkpoints']} checkpoints of one run.",
        f"## Data\n\n`{description['dataset']}`, pairs: {pairs}.",
        f"## Results\n\n{table(('split', *METRICS), rows)}\n\nThe loss is in nats per token. By sacreBLEU; compounds are "
        f"split before, by `##AT##-##AT##`:\n\n{signatures}",
        "![learning curve](learning_curve.png)",
        use_section(program).rstrip() if is_luna else f"## Use\n\n```python\n{program}```",
        f"## Training\n\n{table(('option', 'value'), hyperparameters.items())}",
        f"## Licence\n\nOf the weights: {options.license or 'not stated'}.",
        "## Limits\n\n- Only what the table shows was measured: no other domain or language, and no bias.",
    ]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(body) + "\n"
