# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""What official checkpoints come with: GPT-2's BPE files and a dictionary, trained here."""

import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from luna_tools.convert.checkpoint import load_fairseq_checkpoint
from luna_tools.convert.run import main
from tests.support.parity_kit import REPOSITORY, find_variant

TIED = find_variant("luna_bert/tied")
EMBEDDINGS = "encoder.sentence_encoder.embed_tokens.weight"


def convert(checkpoint, out, *options, dictionary=TIED / "dict.txt") -> None:
    main([str(checkpoint), "--output_dir", str(out), "--dictionary", str(dictionary), *map(str, options)])


def convert_back(folder, checkpoint, *options) -> None:
    main([str(folder), "--to_fairseq", str(checkpoint), *map(str, options)])


def save_changed(path: Path, weights: dict, args: dict | None = None, variant: str = "luna_bert/tied") -> Path:
    """Save a variant's checkpoint with other weights, None for those that are left out, and args. Returns `path`."""
    namespace, state_dict = load_fairseq_checkpoint(find_variant(variant) / "model.pt")
    vars(namespace).update(args or {})
    state_dict = {name: tensor for name, tensor in (state_dict | weights).items() if tensor is not None}
    torch.save({"args": namespace, "model": state_dict}, path)
    return path


def same_tensors(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Names, types and bits."""
    return one.keys() == other.keys() and all(
        tensor.dtype == other[name].dtype and torch.equal(tensor, other[name]) for name, tensor in one.items()
    )


class Bpe:
    """GPT-2's files for a BPE that was trained on this project's texts, and a dictionary whose ids are in another order."""

    def __init__(self, folder: Path):
        self.trained = trained = Tokenizer(models.BPE())
        trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
        trained.train_from_iterator([path.read_text() for path in sorted((REPOSITORY / "docs").glob("*.md"))], trainer)
        model = json.loads(trained.to_str())["model"]
        self.merges = [tuple(merge) for merge in model["merges"]]
        self.numbers = model["vocab"] | {"<|endoftext|>": 600}
        symbols = [str(number) for number in self.numbers.values()]
        random.Random(1).shuffle(symbols)
        self.symbols = [*symbols, "madeupword0000", "madeupword0001"]
        self.ids = {symbol: i for i, symbol in enumerate(["<s>", "<pad>", "</s>", "<unk>", *self.symbols, "<mask>"])}

        self.encoder_json, self.vocab_bpe, self.dict = (folder / n for n in ("encoder.json", "vocab.bpe", "dict.txt"))
        self.encoder_json.write_text(json.dumps(self.numbers))
        self.vocab_bpe.write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in self.merges), encoding="utf-8")
        counts = range(len(self.symbols), 0, -1)
        self.dict.write_text("".join(f"{symbol} {count}\n" for symbol, count in zip(self.symbols, counts, strict=True)))
        self.options = ("--encoder_json", str(self.encoder_json), "--vocab_bpe", str(self.vocab_bpe))

        # luna_bert/tied with a vocabulary of this size
        rows = torch.randn(len(self.ids), 32, generator=torch.Generator().manual_seed(1))
        weights = {EMBEDDINGS: rows, "encoder.lm_head.weight": rows, "encoder.lm_head.bias": rows[:, 0]}
        self.checkpoint = save_changed(folder / "model.pt", weights)

    def encode(self, text: str, ids: dict[str, int] | None = None) -> list[int]:
        """As the official code does: the number of each piece is a symbol of the dictionary, or <unk>."""
        return [(ids or self.ids).get(str(number), 3) for number in self.trained.encode(text).ids]
