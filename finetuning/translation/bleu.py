# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""BLEU in the three ways in which figures for WMT'14 are published, and chrF, all by sacreBLEU.

- bleu: of plain text, tokenised by sacreBLEU as mteval-v13a does. The figure to compare today.
- bleu_tokenized: of text that was tokenised before, as papers of the time report it, the Luna paper among them.
- bleu_compound_split: the same with compounds at their hyphens in parts (`##AT##-##AT##`), which Vaswani et al. began.
"""

import re

from sacrebleu.metrics import BLEU, CHRF

# What Moses' tokeniser sets apart: everything but letters, digits, white space, and what the next rules look at.
SYMBOL = re.compile(r"([^\w\s.'`,\-]|_)")
DOTS = re.compile(r"\.{2,}")
COMMA = re.compile(r"(?<=\D),|,(?=\D)|,$|^,")  # not within a number
APOSTROPHE = re.compile(r"'")
LAST_PERIOD = re.compile(r"(?<=[^\s.])\.(?=\s*$)")
PERIOD = re.compile(r"(\S*[^\s.])\.(?=\s+(\S))")
COMPOUND = re.compile(r"(\S)-(\S)")
COMPOUND_PARTS = r"\1 ##AT##-##AT## \2"


def tokenize(line: str) -> str:
    """Set marks apart from words by the rules of Moses' tokeniser, without its lists of abbreviations.

    A period inside a line stays at a word with another period in it (z.B.), of one letter (J.), or before a small letter.
    """
    line = SYMBOL.sub(r" \1 ", line)
    line = DOTS.sub(lambda found: f" {found[0]} ", line)
    line = APOSTROPHE.sub(" ' ", COMMA.sub(" , ", line))
    line = PERIOD.sub(lambda found: found[0] if is_abbreviation(*found.groups()) else f"{found[1]} .", line)
    return " ".join(LAST_PERIOD.sub(" .", line).split())


def is_abbreviation(word: str, following: str) -> bool:
    """Whether the period after a word belongs to it, by the first character that follows."""
    has_period = "." in word and any(map(str.isalpha, word))
    return has_period or (len(word) == 1 and word.isalpha()) or following.islower()


def split_compounds(line: str) -> str:
    """Set the hyphens inside words apart."""
    return COMPOUND.sub(COMPOUND_PARTS, line)


def scores(translations: list[str], references: list[str]) -> dict[str, float]:
    """The figures by name, from 0 to 100.

    Args:
        translations, references: plain text, one line each.
    """
    tokenized = [[tokenize(line) for line in lines] for lines in (translations, references)]
    split = [[split_compounds(line) for line in lines] for lines in tokenized]
    plain, before = BLEU(), BLEU(tokenize="none", force=True)  # force: or it warns of periods that stand alone
    return {
        "bleu": plain.corpus_score(translations, [references]).score,
        "bleu_tokenized": before.corpus_score(tokenized[0], [tokenized[1]]).score,
        "bleu_compound_split": before.corpus_score(split[0], [split[1]]).score,
        "chrf": CHRF().corpus_score(translations, [references]).score,
    }


def signatures() -> dict[str, str]:
    """What sacreBLEU wants to be published beside its figures."""
    made = {}
    for name, metric in {"bleu": BLEU(), "bleu_tokenized": BLEU(tokenize="none"), "chrf": CHRF()}.items():
        metric.corpus_score(["a"], [["a"]])  # which counts the references, a part of the signature
        made[name] = str(metric.get_signature())
    return made
