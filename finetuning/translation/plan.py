# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""`luna finetune translation --plan`: the parameters of each row beside those that the paper prints, and why they differ."""

from dataclasses import replace

import torch
from transformers import PreTrainedModel

from finetuning.translation.arguments import TranslationOptions, make_parser, read_recipes, row_options
from finetuning.translation.model import build_model, make_config
from luna_tools.cards import table
from luna_tools.settings import to_options

VOCABULARIES = (37_000, 40_500)  # section 4.2, and what the counts of Table 4 imply
SPECIAL = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}


def count_parameters(model: PreTrainedModel) -> int:
    """Trained parameters, a tied one once: sinusoidal positions are none."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def parameters_of(options: TranslationOptions, vocab_size: int) -> int:
    """The parameters of a new model, which is built without its weights."""
    with torch.device("meta"):
        return count_parameters(build_model(make_config(options, SPECIAL | {"vocab_size": vocab_size})))


def plan(row: str | None, options: TranslationOptions) -> str:
    """The table of all rows, or of one with its options; for a model of one's own, its parameters alone.

    Raises:
        InputError: the model is refused.
    """
    if row is None and options.model:
        counts = (f"{parameters_of(options, size):,} with {size:,} entries" for size in VOCABULARIES)
        return f"Parameters: {', '.join(counts)}."
    rows = read_recipes()["rows"]
    named = [row] if row else list(rows)
    lines = []
    for name in named:
        if row is None:
            (options,) = make_parser().parse(to_options(row_options(name)))
        counts = [parameters_of(options, size) for size in VOCABULARIES]
        lines.append([name, *table_cells(rows[name]["paper"], counts, width_of(options))])
    header = ["row", "paper, table", *(f"{size:,} entries" for size in VOCABULARIES)]
    header += ["paper", "entries by the paper", "BLEU, dev", "BLEU, test"]
    text = f"Trained parameters in millions:\n\n{table(header, lines)}\n\n{EXPLANATION}"
    return text if row is None else f"{text}\n\n{describe(options)}"


def width_of(options: TranslationOptions) -> int:
    """The hidden size: what an entry of the shared embeddings has."""
    return make_config(options, SPECIAL).hidden_size


def table_cells(paper: dict, counts: list[int], width: int) -> list[str]:
    """What the table says of a row: our counts, the paper's, and the entries with which ours would be the paper's."""
    printed = paper.get("parameters")
    implied = "" if printed is None else f"{VOCABULARIES[0] + round((printed * 1e6 - counts[0]) / width):,}"
    cells = [paper["table"], *(f"{count / 1e6:.1f}" for count in counts), printed, implied]
    return ["" if cell is None else str(cell) for cell in (*cells, paper.get("validation"), paper.get("test"))]


EXPLANATION = (
    "The paper names 37,000 joint entries, but its counts are those of about 40,500: an entry is a row of 512 in the\n"
    "shared embeddings. Both are prepared by name: `luna prepare_pairs wmt14-bpe-37000` and `wmt14-bpe-40500`. Sinusoidal\n"
    "positions have no parameters. Table 5 prints no counts; without contextual P each layer has l learned vectors of its\n"
    "own. RFA (66.2 million parameters, BLEU 27.2) is out of scope."
)


def describe(options: TranslationOptions) -> str:
    """The row's options, as a file of options would say them."""
    values = {
        name: value for name, value in vars(replace(options, plan=False)).items() if value not in (None, [], {}, False)
    }
    return "Options:\n" + "\n".join(f"  {name}: {value}" for name, value in values.items())
