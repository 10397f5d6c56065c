# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Print, as markdown tables, how far encoder, heads and causal attention are from the official code.

`python -m scripts.reports.parity_report tests/data/parity ../shared/parity > docs/parity.md`
"""

import argparse
import textwrap
from pathlib import Path

import torch
import transformers

from luna_tools.convert.checkpoint import load_fairseq_checkpoint
from luna_tools.convert.configuration import ARCHITECTURES
from luna_tools.convert.from_fairseq import read_checkpoint
from luna_tools.convert.goldens import (
    TOLERANCE_FACTOR,
    Difference,
    build_model,
    compare_causal_attention,
    compare_classifier,
    compare_masked_lm,
    largest_ratios,
    read_goldens,
)
from modeling_luna import LunaForMaskedLM, LunaForSequenceClassification

KINDS = ("hidden", "packed", "logits", "loss", "grad", "cls_logits", "cls_loss", "cls_grad")
CAUSAL_KINDS = ("out_parallel", "out_incremental", "unpack_weights", "state", "grad")
OF_THE_CLONE = Path("tests/data/parity")
NEWER_FORMAT = "head_variants/"  # the same models as those without this prefix, whose goldens they have


def find_variants(roots: list[Path]) -> dict[str, Path]:
    """Name -> folder of the masked language models below the roots, the first place of each."""
    found: dict[str, Path] = {}
    for root in roots:
        for file in sorted(root.rglob("model.pt")):
            if load_fairseq_checkpoint(file)[0].arch in ARCHITECTURES:
                found.setdefault(file.parent.relative_to(root).as_posix(), file.parent)
    return found


def compare_variant(folder: Path, goldens_file: Path, attention: str) -> list[Difference]:
    goldens, facts = read_goldens(goldens_file)
    files = folder / "model.pt", folder / "dict.txt"
    language_model = read_checkpoint(*files, head="none")
    model = build_model(LunaForMaskedLM, language_model.config, language_model.weights, attention)
    differences = compare_masked_lm(model, goldens, facts)
    converted = read_checkpoint(*files)
    if converted.head is not None:
        classifier = build_model(LunaForSequenceClassification, converted.config, converted.weights, attention)
        differences += compare_classifier(classifier, goldens, facts)
    return differences


def causal_files(roots: list[Path]) -> dict[str, Path]:
    """Name -> file of goldens of the causal attention below the roots, the first place of each."""
    found: dict[str, Path] = {}
    for root in roots:
        for file in sorted(root.glob("causal/*.safetensors")):
            found.setdefault(file.relative_to(root).with_suffix("").as_posix(), file)
    return found


def table_row(names: list[str], kinds: tuple[str, ...], differences: list[Difference]) -> str:
    """A row of a table: number of tensors and largest fraction of the tolerance, kind by kind."""
    ratios = largest_ratios(differences)
    counts = {kind: sum(difference.kind == kind for difference in differences) for kind in kinds}
    cells = [f"{counts[kind]}, {ratios[kind]:.3f}" if counts[kind] else "" for kind in kinds]
    return f"| {' | '.join(names + cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path, default=[OF_THE_CLONE], help="where variants of the kit are")
    folders = parser.parse_args().folders
    variants = find_variants(folders)
    everything = variants | causal_files(folders)
    carried = [name for name, path in everything.items() if path.is_relative_to(OF_THE_CLONE)]
    of_the_clone = (
        f"A clone carries {len(carried)} of these {len(everything)} variants, in `{OF_THE_CLONE}`: "
        f"{', '.join(f'`{name}`' for name in sorted(carried))}. Where the others are not at hand, beside the clone in "
        "`../shared/parity` or where LUNA_PARITY_KIT says, their tests are skipped."
    )
    print(
        f"""# Parity with the official code

Each cell: number of tensors compared, and the largest difference from what the official code computes in float32 as a
fraction of the tolerance. The tolerance is {TOLERANCE_FACTOR} times the official code's own float32 error (against
float64) on the same variant and kind of tensor; for a loss that is a sum, the error of the mean counts once per term.
The kinds that start with `cls_` are those of a classification head, where the variant has one; for the losses and the
gradients of a head, the error of `loss` and `grad` counts. Above 1, `tests/modeling/test_parity.py` fails.

{textwrap.fill(of_the_clone, 125)}

Made by `python -m scripts.reports.parity_report {" ".join(map(str, folders))} > docs/parity.md` in float32
on CPU, with torch {torch.__version__} and transformers {transformers.__version__}.

| variant | attention | {" | ".join(KINDS)} |
|---|---|{"---|" * len(KINDS)}"""
    )
    total = 0
    for name, folder in variants.items():
        of_goldens = variants.get(name.removeprefix(NEWER_FORMAT), folder)
        for attention in ("eager", "sdpa"):
            differences = compare_variant(folder, of_goldens / "goldens.safetensors", attention)
            total += len(differences)
            print(table_row([name, attention], KINDS, differences))
    print(
        f"""
## Causal attention

The module alone: the chunked form against the official parallel one, with gradients, and the recurrent form against the
official decoding step by step, with its two sums and its count. No error of the unpack weights and of the sums is recorded:
relative to their largest number it is taken to be that of the output beside them. The tolerance of a gradient is a
thousandth of its largest number.

| variant | {" | ".join(CAUSAL_KINDS)} |
|---|{"---|" * len(CAUSAL_KINDS)}"""
    )
    for name, file in causal_files(folders).items():
        differences = compare_causal_attention(file)
        total += len(differences)
        print(table_row([name], CAUSAL_KINDS, differences))
    print(f"\n{total} tensors were compared.")


if __name__ == "__main__":
    main()
