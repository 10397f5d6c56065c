# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Print, as markdown tables, how far the models and causal attention are from the official code.

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
    GRADIENT_TOLERANCE,
    SCORE_TOLERANCE,
    TOLERANCE_FACTOR,
    Difference,
    build_model,
    compare_causal_attention,
    compare_classifier,
    compare_lra,
    compare_masked_lm,
    compare_seq2seq,
    is_of_lra,
    largest_ratios,
    read_goldens,
)
from luna_tools.convert.lra import is_lra
from luna_tools.convert.seq2seq import is_seq2seq
from modeling_luna import LunaForConditionalGeneration, LunaForMaskedLM, LunaForSequenceClassification

KINDS = ("hidden", "packed", "sentence_rep", "logits", "loss", "grad", "cls_logits", "cls_loss", "cls_grad")
CAUSAL_KINDS = ("out_parallel", "out_incremental", "unpack_weights", "state", "grad")
SEQ2SEQ_KINDS = (
    *("enc_hidden", "enc_packed", "enc_out", "enc_packed_out", "dec_hidden", "logits", "loss", "grad"),
    *("step_logits", "tokens", "score"),
)
OF_THE_CLONE = Path("tests/data/parity")
NEWER_FORMAT = "head_variants/"  # the same models as those without this prefix, whose goldens they have


def find_variants(roots: list[Path]) -> dict[str, Path]:
    """Name -> folder of the models below the roots that can be converted, the first place of each."""
    found: dict[str, Path] = {}
    for root in roots:
        for file in sorted(root.rglob("model.pt")):
            args, _ = load_fairseq_checkpoint(file)
            if args.arch in ARCHITECTURES or is_lra(args) or is_seq2seq(args):
                found.setdefault(file.parent.relative_to(root).as_posix(), file.parent)
    return found


def compare_variant(folder: Path, goldens_file: Path, attention: str) -> list[Difference]:
    goldens, facts = read_goldens(goldens_file)
    if facts.get("kind") == "seq2seq":
        converted = read_checkpoint(folder / "model.pt", folder / "dict.en.txt", target_dictionary=folder / "dict.de.txt")
        model = build_model(LunaForConditionalGeneration, converted.config, converted.weights, attention)
        return compare_seq2seq(model, goldens, facts)
    files = folder / "model.pt", folder / "dict.txt"
    if is_of_lra(facts):
        converted = read_checkpoint(*files)
        model = build_model(LunaForSequenceClassification, converted.config, converted.weights, attention)
        return compare_lra(model, goldens, facts)
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


def print_header(names: list[str], kinds: tuple[str, ...]) -> None:
    print(f"| {' | '.join([*names, *kinds])} |\n|{'---|' * (len(names) + len(kinds))}")


def print_models(kinds: tuple[str, ...], chosen: dict[str, Path], variants: dict[str, Path]) -> int:
    """Print the table of the chosen variants of all these. Returns the number of tensors compared."""
    total = 0
    print_header(["variant", "attention"], kinds)
    for name, folder in chosen.items():
        of_goldens = variants.get(name.removeprefix(NEWER_FORMAT), folder)
        for attention in ("eager", "sdpa"):
            differences = compare_variant(folder, of_goldens / "goldens.safetensors", attention)
            total += len(differences)
            print(table_row([name, attention], kinds, differences))
    print()
    return total


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
gradients of a head, the error of `loss` and `grad` counts. The Long Range Arena variants (`lra`, and `lra_head` of the newer
official code) have a recorded error of the logits alone: their loss has the same, their states and the sentence
representation that of luna_bert/fixed, and a gradient may differ by a thousandth of the largest in its tensor. Above 1,
`tests/modeling/test_parity.py` fails.

Of translation models, `enc_` and `dec_` are states of encoder and decoder and `step_logits` those of greedy decoding with
a cache, with the error of the encoder's output, or of the logits, where that of a kind is not recorded; a gradient may
differ by {GRADIENT_TOLERANCE:g} of the largest in its tensor. `tokens` are sequences of greedy decoding and of beam search
with beams of 1 and 3, of which no token may differ, and `score` their mean log probabilities, within {SCORE_TOLERANCE:g}.

{textwrap.fill(of_the_clone, 125)}

Made by `python -m scripts.reports.parity_report {" ".join(map(str, folders))} > docs/parity.md` in float32
on CPU, with torch {torch.__version__} and transformers {transformers.__version__}.
"""
    )
    translation = {name: folder for name, folder in variants.items() if name.startswith("seq2seq/")}
    total = print_models(KINDS, {name: variants[name] for name in variants if name not in translation}, variants)
    if translation:
        print("## Translation\n")
        total += print_models(SEQ2SEQ_KINDS, translation, variants)
    if files := causal_files(folders):
        print(
            """## Causal attention

The module alone: the chunked form against the official parallel one, with gradients, and the recurrent form against the
official decoding step by step, with its two sums and its count. No error of the unpack weights and of the sums is recorded:
relative to their largest number it is taken to be that of the output beside them. The tolerance of a gradient is a
thousandth of its largest number.
"""
        )
        print_header(["variant"], CAUSAL_KINDS)
        for name, file in files.items():
            differences = compare_causal_attention(file)
            total += len(differences)
            print(table_row([name], CAUSAL_KINDS, differences))
        print()
    print(f"{total} tensors were compared.")


if __name__ == "__main__":
    main()
