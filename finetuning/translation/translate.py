# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The program `luna translate`: lines in, their translations out, in the same order."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import IO, TYPE_CHECKING

from finetuning.translation.lines import decode_line
from luna_tools.errors import InputError, told
from luna_tools.settings import Parser

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROG = "luna translate"


@dataclass(frozen=True)
class TranslateOptions:
    """How lines are translated."""

    num_beams: int = 5
    """Beams of the search; 1 takes the likeliest token each time."""
    length_penalty: float = 1.0
    """Power of the length by which a beam's score is divided: above 1 for longer translations."""
    max_length: int = 256
    """Longest translation in tokens."""
    batch_size: int = 32
    """Lines that are translated together."""
    window: int = 1024
    """Lines that are read before the first is written; batches are made of those of similar length."""
    use_cpu: bool = False
    """Translate on the CPU though there is an accelerator."""


def main(argv: list[str]) -> None:
    """Translate standard input to standard output.

    Raises:
        InputError: the model cannot translate, or a line cannot be read.
    """
    parser = Parser(PROG, "Translate the lines of the standard input.", TranslateOptions, words=("MODEL",))
    (name,), options = parser.parse_command(argv)
    for field in ("num_beams", "max_length", "batch_size", "window"):
        if getattr(options, field) < 1:
            raise InputError(f"`{field}` is {getattr(options, field)}: give at least 1.")
    translator = Translator(name, options)
    window = 1 if sys.stdin.isatty() else options.window  # who types waits for each line
    shows = sys.stderr.isatty() and not sys.stdin.isatty()
    for count, line in enumerate(translate_stream(sys.stdin.buffer, translator, window), start=1):
        sys.stdout.buffer.write(line.encode("utf-8") + b"\n")
        if window == 1 or count % window == 0:
            sys.stdout.buffer.flush()
        if shows:
            print(f"\r{count:,} lines", end="", file=sys.stderr, flush=True)
    sys.stdout.buffer.flush()
    if shows:
        print(file=sys.stderr)


def translate_stream(stream: IO[bytes], translator: "Translator", window: int) -> Iterator[str]:
    """Yield the translation of each line; of an empty one an empty one.

    Raises:
        InputError: a line is not UTF-8, or too long for the model; those before are yielded.
    """
    numbered, ended = enumerate(stream, start=1), False
    while not ended:
        ids, fault = [], None
        try:
            for number, line in islice(numbered, window):
                ids.append(translator.encode(decode_line(line, number, "the input"), number))
        except InputError as error:
            fault = error
        yield from translator.translate(ids)
        if fault is not None:
            raise fault
        ended = not ids


class Translator:
    """A model that translates lists of lines.

    Args:
        name: a folder, or a name on the Hub, of any encoder-decoder with its tokenizer.

    Raises:
        InputError: it cannot be loaded, or is no encoder-decoder.
    """

    def __init__(self, name: str, options: TranslateOptions):
        import torch
        from transformers import AutoTokenizer

        from finetuning.model import sequence_limit
        from finetuning.translation.arguments import TranslationOptions
        from finetuning.translation.model import build_model, make_config
        from luna_tools.convert.from_fairseq import TARGET_TOKENIZER

        self.name, self.options = name, options
        model = build_model(make_config(TranslationOptions(model_name_or_path=name), {}), name).eval()
        with told(f"{name} has no tokenizer that can be loaded", "save the one it was trained with beside it"):
            self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name)
        # `luna convert` of two dictionaries writes one tokenizer for each language.
        self.target_tokenizer = self.tokenizer
        if getattr(model.config, "target_vocab_size", None) is not None:
            remedy = f"save it as {name}/{TARGET_TOKENIZER}, where `luna convert` writes it"
            with told(f"{name} has a target vocabulary of its own, and no tokenizer of it that can be loaded", remedy):
                self.target_tokenizer = AutoTokenizer.from_pretrained(name, subfolder=TARGET_TOKENIZER)
        if self.tokenizer.pad_token is None:
            raise InputError(f"The tokenizer of {name} has no pad_token, which batches need: give a model that has one.")
        self.limit = sequence_limit(model, self.tokenizer)
        if options.max_length > self.limit:
            raise InputError(
                f"`max_length` is {options.max_length}, but {name} writes at most {self.limit} tokens: lower it."
            )
        on_cpu = options.use_cpu or not torch.accelerator.is_available()
        self.model: PreTrainedModel = model.to("cpu" if on_cpu else torch.accelerator.current_accelerator())

    def encode(self, line: str, number: int) -> list[int]:
        """The ids of a line; none of an empty one.

        Raises:
            InputError: it has more tokens than the model reads.
        """
        ids = self.tokenizer(line)["input_ids"] if line.strip() else []
        if len(ids) > self.limit:
            raise InputError(f"Line {number} has {len(ids)} tokens, but {self.name} reads at most {self.limit}: divide it.")
        return ids

    def translate(self, ids: list[list[int]]) -> list[str]:
        """Translate encoded lines, those of similar length together; returns them in order."""
        order = sorted((i for i, tokens in enumerate(ids) if tokens), key=lambda i: -len(ids[i]))
        translations = [""] * len(ids)
        for start in range(0, len(order), self.options.batch_size):
            batch = order[start : start + self.options.batch_size]
            for i, text in zip(batch, self.translate_batch([ids[i] for i in batch]), strict=True):
                translations[i] = text
        return translations

    def translate_batch(self, ids: list[list[int]]) -> list[str]:
        """Translate token ids, all at once."""
        from finetuning.translation.vocabulary import decode

        inputs = self.tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(self.model.device)
        generated = self.model.generate(
            **inputs,
            num_beams=self.options.num_beams,
            length_penalty=self.options.length_penalty,
            max_length=self.options.max_length,
            do_sample=False,
        )
        return decode(self.target_tokenizer, generated)
