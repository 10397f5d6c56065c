# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Print, as a markdown table, how far encoder, language model head and classification heads are from the official code on
every variant of the parity kit at hand.

    python scripts/parity_report.py > docs/parity.md

Variants that are not at hand are named on stderr.
"""

import sys
from pathlib import Path

import torch
import transformers

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]

from tests.support.parity_kit import (  # noqa: E402
    HEAD_VARIANTS,
    MASKED_LM_VARIANTS,
    TOLERANCE_FACTOR,
    compare_classifier,
    compare_masked_lm,
    find_variant,
    load_classifier,
    load_masked_lm,
    read_goldens,
)

KINDS = ("hidden", "packed", "logits", "loss", "grad", "cls_logits", "cls_loss", "cls_grad")


def main() -> None:
    print(
        f"""# Parity with the official code

Each cell: number of tensors compared, and the largest difference from what the official code computes in float32 as a
fraction of the tolerance. The tolerance is {TOLERANCE_FACTOR} times the official code's own float32 error (against
float64) on the same variant and kind of tensor; for a loss that is a sum, the error of the mean counts once per term.
The kinds that start with `cls_` are those of a classification head, where the variant has one; for the losses and the
gradients of a head, the error of `loss` and `grad` counts. Above 1, `tests/modeling/test_parity.py` fails.

Made by `python scripts/parity_report.py > docs/parity.md` in float32 on CPU, with torch {torch.__version__} and
transformers {transformers.__version__}.

| variant | attention | {" | ".join(KINDS)} |
|---|---|{"---|" * len(KINDS)}"""
    )
    total = 0
    for variant in MASKED_LM_VARIANTS:
        if find_variant(variant) is None:
            print(f"{variant} was not found", file=sys.stderr)
            continue
        goldens, facts = read_goldens(variant)
        for attention in ("eager", "sdpa"):
            differences = compare_masked_lm(load_masked_lm(variant, attention), goldens, facts)
            if variant in HEAD_VARIANTS:
                differences += compare_classifier(load_classifier(variant, attention), goldens, facts)
            total += len(differences)
            cells = []
            for kind in KINDS:
                ratios = [entry.max_abs / entry.tolerance for entry in differences if entry.kind == kind]
                cells.append(f"{len(ratios)}, {max(ratios):.3f}" if ratios else "")
            print(f"| {variant} | {attention} | {' | '.join(cells)} |")
    print(f"\n{total} tensors were compared.")


if __name__ == "__main__":
    main()
