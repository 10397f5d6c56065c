# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The three BLEU figures against a plain computation on tokens that were set apart by hand."""

import math
from collections import Counter

import pytest

from finetuning.translation.bleu import scores, signatures, split_compounds, tokenize


def plain_bleu(translation: str, reference: str) -> float:
    """BLEU of one line, tokens separated by spaces, where each of the four precisions is above 0 (Papineni et al., 2002)."""
    ours, theirs = translation.split(), reference.split()
    logs = 0.0
    for order in range(1, 5):
        counts, known = (
            Counter(tuple(tokens[i : i + order]) for i in range(len(tokens) - order + 1)) for tokens in (ours, theirs)
        )
        logs += math.log(sum((counts & known).values()) / sum(counts.values())) / 4
    return 100 * math.exp(logs + min(0, 1 - len(theirs) / len(ours)))


# Translation and reference: plain, and as each of the three ways sees them.
EXAMPLES = [
    (  # all alike
        ("a b c d e", "a b c d f"),
        ("a b c d e", "a b c d f"),
        ("a b c d e", "a b c d f"),
        ("a b c d e", "a b c d f"),
    ),
    (  # a compound; full stop and comma
        ("Er hat gestern, sagt er, die E-Mail-Adresse.", "Er hat gestern, sagt er, die E-Mail-Liste geändert."),
        ("Er hat gestern , sagt er , die E-Mail-Adresse .", "Er hat gestern , sagt er , die E-Mail-Liste geändert ."),
        ("Er hat gestern , sagt er , die E-Mail-Adresse .", "Er hat gestern , sagt er , die E-Mail-Liste geändert ."),
        (
            "Er hat gestern , sagt er , die E - Mail - Adresse .",
            "Er hat gestern , sagt er , die E - Mail - Liste geändert .",
        ),
    ),
    (  # German quotation marks are words to mteval-v13a, and marks to Moses
        ("Sie sagte „nein“ zu ihm und ging dann.", "Sie sagte „ja“ zu ihm und ging heute."),
        ("Sie sagte „nein“ zu ihm und ging dann .", "Sie sagte „ja“ zu ihm und ging heute ."),
        ("Sie sagte „ nein “ zu ihm und ging dann .", "Sie sagte „ ja “ zu ihm und ging heute ."),
        ("Sie sagte „ nein “ zu ihm und ging dann .", "Sie sagte „ ja “ zu ihm und ging heute ."),
    ),
]


@pytest.mark.parametrize("example", EXAMPLES)
def test_each_way_is_bleu_on_its_own_tokens(example):
    (translation, reference), *seen = example
    found = scores([translation], [reference])
    for name, tokens in zip(("bleu", "bleu_tokenized", "bleu_compound_split"), seen, strict=True):
        assert found[name] == pytest.approx(plain_bleu(*tokens), abs=1e-9), name
    same = scores([reference], [reference])
    assert all(value == pytest.approx(100) for value in same.values()) and 0 < found["chrf"] < 100


def test_figures_are_of_the_corpus_not_means_of_lines():
    lines, references = ["a b c d e", "a b c d e f g h"], ["a b c d f", "a b c d e f g h"]
    precisions = [12 / 13, 10 / 11, 8 / 9, 6 / 7]
    assert scores(lines, references)["bleu"] == pytest.approx(100 * math.prod(precisions) ** 0.25)


@pytest.mark.parametrize(
    ("line", "tokens"),
    [
        ("Das kostet 3,50 Euro, oder 1.000.", "Das kostet 3,50 Euro , oder 1.000 ."),
        ("Er sagte: „Ja“ (und ging)!", "Er sagte : „ Ja “ ( und ging ) !"),
        ("Hunde, z.B. von J. S. Bach. Er kam.", "Hunde , z.B. von J. S. Bach . Er kam ."),
        ("Warten... und dann?", "Warten ... und dann ?"),
        ("Wie geht's? 50% 'gut'", "Wie geht ' s ? 50 % ' gut '"),
        ("die E-Mail-Adresse – neu_alt", "die E-Mail-Adresse – neu _ alt"),
        ("Nr. 5 und bzw. klein", "Nr . 5 und bzw. klein"),  # without Moses' list of abbreviations
        ("", ""),
    ],
)
def test_marks_are_set_apart_as_by_moses(line, tokens):
    assert tokenize(line) == tokens


def test_compounds_are_split_at_each_hyphen_inside_a_word():
    assert split_compounds("die E-Mail-Adresse - ja -5") == "die E ##AT##-##AT## Mail ##AT##-##AT## Adresse - ja -5"


def test_signatures_say_how_a_figure_was_made():
    found = signatures()
    assert "tok:13a" in found["bleu"] and "tok:none" in found["bleu_tokenized"] and "nrefs:1" in found["bleu"]
    assert "nc:6|nw:0" in found["chrf"] and "version:" in found["chrf"]
