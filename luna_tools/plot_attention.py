# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Picture what the packed slots of each layer attend to, and which slots each token reads.

`luna plot MODEL "text" [--output attention.png] [--layers 0,3] [--head 1]`
Layers, heads and slots are counted from 0, as in the model.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from luna_tools.errors import InputError, told
from luna_tools.files import staging_folder, writing
from luna_tools.settings import Parser

if TYPE_CHECKING:  # imported where they are used: the command line is read before
    import torch
    from matplotlib.figure import Figure

MAX_TOKENS = 128  # of a legible picture


def numbers(text: str | None, count: int, option: str) -> list[int]:
    """The numbers of `0,3`; all `count` of them where there is no text.

    Raises:
        InputError: one is no number below `count`.
    """
    if text is None:
        return list(range(count))
    for number in text.split(","):
        if not number.isdecimal() or int(number) >= count:
            raise InputError(f"{option} has {number!r}, but the model counts from 0 to {count - 1}: choose among these.")
    return [int(number) for number in text.split(",")]


def legible(text: str) -> str:
    """The text with escapes such as \\u65e5 for what the picture's font lacks, which would be drawn as empty boxes."""
    from matplotlib import font_manager

    font = font_manager.get_font(font_manager.findfont(font_manager.FontProperties()))
    return "".join(c if font.get_char_index(ord(c)) else c.encode("unicode_escape").decode() for c in text)


def labels(text: str, ids: list[int], offsets: list[tuple[int, int]], tokenizer) -> list[str]:
    """The text of each token, with a dot before a piece that continues a word."""
    names = []
    for token, (start, end) in zip(ids, offsets, strict=True):
        continues = 0 < start < end and text[start - 1].isalnum() and text[start].isalnum()
        decoded = tokenizer.decode(token)  # for white space and special tokens, which may have no place in the text
        names.append(("·" if continues else "") + legible(text[start:end].strip() or decoded.strip() or repr(decoded)))
    return names


def attention(model, ids: list[int], layers: list[int], heads: list[int]) -> tuple["torch.Tensor", "torch.Tensor"]:
    """Means over `heads` of pack (layers, l, n) and unpack (layers, n, l)."""
    import torch

    with torch.no_grad():
        outputs = model(torch.tensor([ids]), output_attentions=True)
    pack, unpack = (
        torch.stack([weights[i][0, heads].mean(dim=0) for i in layers])
        for weights in (outputs.pack_attentions, outputs.attentions)
    )
    return pack.float(), unpack.float()


def plot(pack, unpack, names: list[str], layers: list[int], title: str, path: Path) -> "Figure":
    """Tokens downwards and slots to the right in every panel: pack above, unpack below, a column a layer.

    White is the weight of uniform attention, red is more and blue is less.
    """
    from matplotlib.colors import TwoSlopeNorm
    from matplotlib.figure import Figure

    n, l = unpack.shape[1:]
    width, height = max(1.8, min(6.0, 0.14 * l)), 0.19 * n + 0.75
    figure = Figure(figsize=(width * len(layers) + 2.6, 2 * height + 0.6), layout="constrained")
    axes = figure.subplots(2, len(layers), sharex=True, sharey=True, squeeze=False)
    figure.suptitle(title, parse_math=False)
    rows = (
        ("Pack: what each slot attends to\n(a column is one slot and sums to 1)", pack.transpose(1, 2), n),
        ("Unpack: which slots each token reads\n(a row is one token and sums to 1)", unpack, l),
    )
    for panels, (name, weights, choices) in zip(axes, rows, strict=True):
        scale = TwoSlopeNorm(1 / choices, vmin=0, vmax=max(weights.max().item(), 2 / choices))
        for panel, layer, weights_nl in zip(panels, layers, weights, strict=True):
            image = panel.imshow(weights_nl, aspect="auto", cmap="RdBu_r", norm=scale)
            panel.set_title(f"layer {layer}")
            panel.set_yticks(range(n), names, parse_math=False, fontsize=8)
            panel.set_xticks(range(0, l, -(-l // 8)))
            panel.tick_params(length=0, labelbottom=True)
            panel.set_xlabel("slot of P")
        panels[0].set_ylabel(name)
        figure.colorbar(
            image, ax=list(panels), label=f"attention weight (white: 1/{choices}, uniform)", fraction=0.05, pad=0.02
        )
    figure.savefig(path, dpi=150)
    return figure


@dataclass
class PlotOptions:
    output: str = "attention.png"
    """Picture to write: .png, .svg, .pdf, ..."""
    layers: str | None = None
    """Numbers with commas between them; by default all."""
    head: str | None = None
    """One head's attention; by default the mean over all heads."""


def main(argv: list[str]) -> None:
    parser = Parser("luna plot", __doc__.splitlines()[0], PlotOptions, words=("MODEL", "TEXT"))
    (name, text), options = parser.parse_command(argv)

    from matplotlib.backend_bases import FigureCanvasBase

    output = Path(options.output)
    if output.suffix.lstrip(".").lower() not in FigureCanvasBase.get_supported_filetypes():
        raise InputError(f"--output is {options.output!r}, which is no kind of picture: end it in .png, .svg or .pdf.")
    if not output.parent.is_dir():
        raise InputError(f"--output is {options.output!r}, but there is no folder {str(output.parent)!r}: make it.")

    from transformers import AutoTokenizer

    from luna_tools.load import load_luna, quiet_transformers
    from modeling_luna import LunaModel

    with quiet_transformers():
        model = load_luna(name, LunaModel, attn_implementation="eager")  # which returns the weights of its attention
        with told(f"{name!r} has no tokenizer that can be read", "save the model's into it with `save_pretrained`"):
            tokenizer = AutoTokenizer.from_pretrained(name)
    config = model.config
    layers = numbers(options.layers, config.num_hidden_layers, "--layers")
    heads = numbers(options.head, config.num_attention_heads, "--head")
    encoded = tokenizer(text, return_offsets_mapping=True)
    ids = encoded["input_ids"]
    limit = min(config.max_sequence_length or MAX_TOKENS, MAX_TOKENS)
    if not text.strip() or not 0 < len(ids) <= limit:
        raise InputError(f"The text has {len(ids)} tokens, but must have words, and at most {limit} tokens: change it.")
    if max(ids) >= config.vocab_size:
        raise InputError(f"The tokenizer of {name!r} gives the id {max(ids)}, but the model knows {config.vocab_size}.")
    pack, unpack = attention(model, ids, layers, heads)
    title = f"{name}, " + (f"head {options.head}" if options.head else f"mean over {config.num_attention_heads} heads")
    names = labels(text, ids, encoded["offset_mapping"], tokenizer)
    with writing(output), staging_folder(output) as staging:
        plot(pack, unpack, names, layers, legible(title), staging / output.name)
        (staging / output.name).replace(output)
    print(f"Wrote {output}: {len(layers)} layers, {len(ids)} tokens, {pack.shape[1]} slots.")
