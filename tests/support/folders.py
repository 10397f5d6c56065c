# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Folders of models as a run leaves them, what is in a folder, and refusals that leave it as it was."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from luna_tools.cards import model_card
from luna_tools.errors import InputError
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


def change_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def tree(folder: Path) -> dict[str, bytes | None]:
    """The files below a folder with their content, and the folders, by name."""
    paths = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in paths}


@contextmanager
def refused(sentence: str, unchanged: Path | None = None) -> Iterator[pytest.ExceptionInfo]:
    """What is inside is refused by one line that has `sentence` in it, and the folder stays as it was."""
    before = unchanged and tree(unchanged)
    with pytest.raises(InputError) as error:
        yield error
    assert sentence in str(error.value) and "\n" not in str(error.value)
    assert (unchanged and tree(unchanged)) == before
