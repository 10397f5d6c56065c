# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Folders of models as a run leaves them."""

from pathlib import Path

import torch

from luna_tools.cards import model_card
from modeling_luna import LunaForMaskedLM
from tests.support.luna_builders import build, make_tokenizer


def save_whole(folder: Path) -> Path:
    """A small masked language model with its tokenizer and a card. Returns the folder."""
    tokenizer = make_tokenizer()
    model = build(LunaForMaskedLM, dtype=torch.float32, vocab_size=len(tokenizer), num_hidden_layers=2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    card = model_card(model.config, "LunaForMaskedLM", "AutoModelForMaskedLM", model.num_parameters())
    (folder / "README.md").write_text(card)
    return folder
