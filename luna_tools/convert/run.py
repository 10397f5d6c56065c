# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Convert a checkpoint of the official (fairseq) Luna code into a folder that `from_pretrained` loads, or a folder back.

`luna convert model.pt --output_dir OUT --dictionary dict.txt --encoder_json encoder.json --vocab_bpe vocab.bpe`
`luna convert checkpoint_best.pt --output_dir OUT --dictionary dict.en.txt --target_dictionary dict.de.txt`
`luna convert FOLDER --to_fairseq model.pt`
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from luna_tools.errors import InputError, undone_when_stopped
from luna_tools.settings import Parser


@dataclass
class ConvertOptions:
    output_dir: str | None = None
    """Folder to write: new or empty."""
    to_fairseq: str | None = None
    """The way back: the checkpoint to write of a FOLDER, beside which dict.txt, encoder.json and vocab.bpe are made of the
    folder's tokenizer (or --dictionary is copied)."""
    dictionary: str | None = None
    """The dict.txt that came with the checkpoint; of a translation model, that of the source language."""
    target_dictionary: str | None = None
    """Of a translation model, the dictionary of the target language."""
    encoder_json: str | None = None
    """Pieces of GPT-2's BPE, for the tokenizer."""
    vocab_bpe: str | None = None
    """Merges of GPT-2's BPE, for the tokenizer."""
    head: str | None = None
    """Classification head to convert, or none for the language model (default: the only head, if there is one); on the way
    back its official name."""
    layer_norm_scale: Literal["auto", "weight", "weight_plus_one"] = "auto"
    """Whether LayerNorm multiplies by its weight, as in the published release, or by weight + 1, as in official code since
    January 2023 (auto: tell by the weights; on the way back as in the release)."""
    verify: str | None = None
    """A goldens.safetensors to compare the result with: beyond the tolerance nothing is written."""

    def __post_init__(self):
        if (self.output_dir is None) == (self.to_fairseq is None):
            raise InputError("Give --output_dir for a folder to write, or --to_fairseq for an official checkpoint to write.")
        if (self.encoder_json is None) != (self.vocab_bpe is None):
            raise InputError("Give --encoder_json and --vocab_bpe together.")
        if self.to_fairseq and (self.encoder_json or self.verify):
            raise InputError("--encoder_json, --vocab_bpe and --verify are not for --to_fairseq: leave them out.")
        if self.output_dir and not self.dictionary:
            raise InputError("--dictionary is missing: give the dict.txt that came with the checkpoint.")


def main(argv: list[str]) -> None:
    parser = Parser("luna convert", __doc__.splitlines()[0], ConvertOptions, words=("CHECKPOINT-or-FOLDER",))
    (source,), options = parser.parse_command(argv)
    paths = {name: Path(value) for name, value in vars(options).items() if value is not None}

    from luna_tools.convert.from_fairseq import convert
    from luna_tools.convert.to_fairseq import convert_back
    from luna_tools.load import quiet_transformers

    shared = paths.get("dictionary"), options.layer_norm_scale
    target_dictionary = paths.get("target_dictionary")
    with undone_when_stopped(), quiet_transformers():
        if options.to_fairseq:
            convert_back(Path(source), paths["to_fairseq"], *shared, options.head, target_dictionary)
        else:
            bpe_files = (paths["encoder_json"], paths["vocab_bpe"]) if options.encoder_json else None
            goldens = paths.get("verify")
            convert(Path(source), paths["output_dir"], *shared, bpe_files, options.head, goldens, target_dictionary)
