# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Line files, prepared pairs, and runs of the real translation program that take a second."""

import random
from pathlib import Path

from accelerate.state import AcceleratorState

from luna_tools.command_line import run
from luna_tools.settings import to_options

WORDS = "the a red blue big small cat dog house tree sees likes eats finds old new man woman runs sleeps".split()
SIZES = {"train": 120, "validation": 10, "test": 7}
LUNA = {
    "model_type": "luna",
    "is_encoder_decoder": True,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
LUNA |= {"intermediate_size": 24, "projection_length": 4, "position_embedding_type": "sinusoidal"}
MARIAN = {"model_type": "marian", "d_model": 16, "max_position_embeddings": 64}
MARIAN |= {f"{side}_{name}": 1 for side in ("encoder", "decoder") for name in ("layers", "attention_heads")}
MARIAN |= {f"{side}_ffn_dim": 24 for side in ("encoder", "decoder")}
INITIALIZERS = {"luna": "initializer_range", "marian": "init_std"}
FAST = {
    "max_tokens": 160,
    "batches_per_step": 2,
    "num_train_epochs": 2,
    "learning_rate": 1e-2,
    "num_averaged_checkpoints": 2,
    "generation_max_length": 12,
    "num_beams": 2,
    "use_cpu": True,
    "disable_tqdm": True,
}


def make_pairs(count: int, seed: int) -> list[tuple[str, str]]:
    """Sentences and what a language that spells backwards makes of them."""
    chooser = random.Random(seed)
    sources = [[chooser.choice(WORDS) for _ in range(chooser.randint(2, 9))] for _ in range(count)]
    return [(" ".join(words), " ".join(word[::-1].capitalize() for word in words)) for words in sources]


def write_lines(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def write_pair_files(folder: Path, sizes: dict[str, int] = SIZES) -> dict[str, list[str]]:
    """Write line files; returns the options that name them."""
    folder.mkdir(parents=True, exist_ok=True)
    options = {}
    for seed, (split, count) in enumerate(sizes.items()):
        sides = zip(("en", "xx"), zip(*make_pairs(count, seed), strict=True), strict=True)
        options[f"{split}_files"] = [str(write_lines(folder / f"{split}.{name}", list(lines))) for name, lines in sides]
    return options


def prepare(folder: Path, **values) -> int:
    """`luna prepare_pairs` in this process; returns the exit status."""
    return run("prepare_pairs", to_options({"vocab_size": 300, "output_dir": str(folder)} | values))


def run_translation(*words: str, **values) -> int:
    """`luna finetune translation` in this process, as a launch of its own; returns the exit status."""
    AcceleratorState._reset_state(reset_partial_state=True)
    return run("finetune", ["translation", *words, *to_options(values)])


def outcome(folder: Path) -> dict[str, bytes]:
    """The files of a finished run that must be exact."""
    names = ("all_results.json", "model.safetensors", "translations_validation.txt", "translations_test.txt")
    return {name: (Path(folder) / name).read_bytes() for name in names}
