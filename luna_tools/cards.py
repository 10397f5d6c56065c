# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""What model cards share: a plain card of any Luna, the table of sizes, the example, and the name on the Hub."""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from huggingface_hub import ModelCardData

if TYPE_CHECKING:  # which would import torch
    from transformers import PreTrainedConfig

# What the examples of a card load: the folder that it lies in, until `named_card` says where that is on the Hub.
UNNAMED = 'name = "."  # this folder, or its name on the Hub'

# The Hub's name of each task, by the end of the model's class.
PIPELINE_TAGS = {
    "Model": "feature-extraction",
    "ForCausalLM": "text-generation",
    "ForConditionalGeneration": "translation",
    "ForMaskedLM": "fill-mask",
    "ForMultipleChoice": "multiple-choice",
    "ForQuestionAnswering": "question-answering",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
}


def named_card(card: str, name: str, revision: str | None = None) -> str:
    """The card for the Hub: where it says UNNAMED, its examples load the repository `name`, and a revision other than main.

    The examples hand the name on as `from_pretrained(name` or `model=name`.
    """
    if UNNAMED not in card:
        return card
    card = card.replace(UNNAMED, f'name = "{name}"')
    if revision in (None, "main"):
        return card
    return re.sub(r"(from_pretrained\(|model=)name\b", lambda found: f'{found[0]}, revision="{revision}"', card)


def use_section(program: str) -> str:
    """The part of a card that shows a program, which loads UNNAMED with `trust_remote_code=True`."""
    return f"""## Use

With the code in these files; it needs torch and transformers:

```python
{program}```

With luna-transformers installed, no code of these files runs: `import modeling_luna` first, which registers Luna with the
Auto classes, and leave out `trust_remote_code=True`.
"""


def table(header: tuple[str, ...], rows) -> str:
    """A table in Markdown; rows whose second cell is None are left out."""
    lines = [header, ["---"] * len(header), *([str(cell) for cell in row] for row in rows if row[1] is not None)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def size_rows(config: "PreTrainedConfig", parameters: int) -> dict[str, object]:
    """The rows of a card's table of sizes, of a Luna."""
    limit = config.max_sequence_length
    return {
        "parameters": f"{parameters:,}",
        "layers": config.num_hidden_layers,
        "hidden size, heads": f"{config.hidden_size}, {config.num_attention_heads}",
        "packed vectors (l)": config.projection_length,
        "keys and values": "tied" if config.tie_key_value else "untied",
        "positions": f"{config.position_embedding_type}, " + (f"up to {limit} tokens" if limit else "of any number"),
        "vocabulary": f"{config.vocab_size:,}",
    }


def card_text(class_name: str, body: str, **known: object) -> str:
    """A card of a Luna: its metadata and a body.

    Args:
        class_name: of the model, such as LunaForMaskedLM.
        known: `license`, `language`, `base_model`, `datasets`, ... as ModelCardData has them; None says nothing.
    """
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=PIPELINE_TAGS[class_name.removeprefix("Luna")],
        tags=["luna", "custom_code"],
        **known,
    )
    return f"---\n{data.to_yaml()}\n---\n\n{body}"


def model_card(
    config: "PreTrainedConfig",
    class_name: str,
    auto_name: str,
    parameters: int,
    more_rows: Mapping[str, object] = MappingProxyType({}),
    sections: str = "",
    has_tokenizer: bool = True,
) -> str:
    """README.md with what a Luna knows of itself, where no program that trained it has written one.

    Args:
        more_rows: of the table of sizes.
        sections: what else is known, as Markdown.
    """
    classes = ["AutoTokenizer", auto_name] if has_tokenizer else [auto_name]
    program = f"from transformers import {', '.join(classes)}\n\n{UNNAMED}\n"
    for name, auto in zip(("tokenizer", "model")[-len(classes) :], classes, strict=True):
        program += f"{name} = {auto}.from_pretrained(name, trust_remote_code=True)\n"
    body = f"""# {class_name}

A [Luna](https://arxiv.org/abs/2106.01540) model: attention through a packed sequence of l vectors, linear in the length.

{table(("", ""), ({"class": f"`{class_name}`"} | size_rows(config, parameters) | more_rows).items())}

{sections}{use_section(program)}
## Limits

This card was written from the model alone, which knows neither the data, the results nor the licence of the weights.
"""
    return card_text(class_name, body, license="unknown")
