# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""What a model makes of held-out text: its guesses on masks beside those of counting tables, and whole sentences."""

import re
from pathlib import Path

import numpy as np
import torch
from datasets import load_from_disk
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pretraining.baselines import COPY_LENGTH, NeighbourTable, figures, ranks_and_losses, rows_seen
from pretraining.data import IGNORED, MaskedLMDataset, Masking
from pretraining.dataset_format import TRAIN, VALIDATION, read_manifest

SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n\s*\n")
MOST_VALIDATION_ROWS, MOST_TRAINING_ROWS = 2_000, 500_000


def held_out_sentences(rows_bn: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the plainest sentences of packed rows in their order: 6 to 24 words, mostly letters where there are such."""
    stream = rows_bn[:, 1:-1].ravel()
    documents = np.split(stream, np.flatnonzero(stream == tokenizer.eos_token_id))
    texts = tokenizer.batch_decode([document.tolist() for document in documents], skip_special_tokens=True)
    pieces = [piece.strip() for text in texts for piece in SENTENCE_END.split(text)[:-1]]
    pieces = [piece for piece in dict.fromkeys(pieces) if 6 <= len(piece.split()) <= 24]
    plain = [piece for piece in pieces if sum(c.isalpha() or c in " \n,.'-" for c in piece) >= 0.97 * len(piece)]
    return plain or pieces


def mask_a_word(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the place to mask: the middle-most token that is a word of over three letters, or else the middle."""
    texts = [tokenizer.decode([token]) for token in ids] + [" "]
    inner = sorted(range(1, len(ids) - 1), key=lambda i: abs(i - len(ids) // 2))
    words = [i for i in inner if len(texts[i].strip()) > 3 and texts[i].strip().isalpha() and not texts[i + 1][:1].isalnum()]
    return ([i for i in words if texts[i][0].isspace()] or words or inner)[0]


def measure(model: PreTrainedModel, ids_bn: np.ndarray, labels_bn: np.ndarray) -> dict[str, float]:
    """Return `figures` of the masked positions under the model."""
    parts = []
    for first in range(0, len(ids_bn), 64):
        ids, labels = ids_bn[first : first + 64], labels_bn[first : first + 64]
        logits_bnv = model(input_ids=torch.from_numpy(ids)).logits
        is_masked = labels != IGNORED
        scores_rv = logits_bnv[torch.from_numpy(is_masked)].float().log_softmax(-1).numpy()
        parts.append(ranks_and_losses(scores_rv, labels[is_masked]))
    return figures(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def show_tables(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dataset: Path) -> None:
    """Print loss and right guesses of counting tables and of the model on the masks of the validation rows."""
    train_bn = load_from_disk(str(dataset / TRAIN)).with_format("numpy")[:MOST_TRAINING_ROWS]["input_ids"]
    masking = Masking(0.15, tokenizer.mask_token_id, tuple(sorted(tokenizer.all_special_ids)), len(tokenizer))
    rows = MaskedLMDataset(dataset / VALIDATION, masking, seed=0, shuffle=False)
    ids_bn, labels_bn = map(np.stack, zip(*rows.__getitems__(range(min(len(rows), MOST_VALIDATION_ROWS))), strict=True))
    table = NeighbourTable(train_bn, len(tokenizer), tokenizer.mask_token_id)
    is_copy_b = rows_seen(train_bn, np.where(labels_bn == IGNORED, ids_bn, labels_bn))
    measured = {
        "word frequencies": table.measure_unigram(labels_bn),
        "table of left and right neighbours": table.measure(ids_bn, labels_bn),
        "this model": measure(model, ids_bn, labels_bn),
    }
    if not is_copy_b.all():
        measured["this model, rows without near-copies"] = measure(model, ids_bn[~is_copy_b], labels_bn[~is_copy_b])
    print(
        f"\n{(labels_bn != IGNORED).sum():,} masks in {len(ids_bn):,} held-out rows, {is_copy_b.mean():.0%} of which share"
    )
    print(f"{COPY_LENGTH} tokens in a row with the training rows\n")
    print(f"{'':<38}nats a token   right first   among five")
    for name, row in measured.items():
        print(f"{name:<38}{row['loss']:>12.2f}{row['first']:>14.1%}{row['among five']:>13.1%}")


def show_sentences(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dataset: Path, wanted: int) -> None:
    """Print held-out sentences, taken evenly from all, with a word masked, the model's guesses and the word's rank."""
    rows_bn = load_from_disk(str(dataset / VALIDATION)).with_format("numpy")[:MOST_VALIDATION_ROWS]["input_ids"]
    longest = read_manifest(dataset)["sequence_length"]
    options = {"truncation": True, "max_length": longest}
    encoded = [tokenizer(sentence, **options)["input_ids"] for sentence in held_out_sentences(rows_bn, tokenizer)]
    encoded = [ids for ids in encoded if len(ids) < longest] or rows_bn.tolist()  # the others may have been cut
    for ids in encoded[:: max(1, len(encoded) // wanted)][:wanted]:
        place = mask_a_word(ids, tokenizer)
        masked = [*ids[:place], tokenizer.mask_token_id, *ids[place + 1 :]]
        scores_v = model(input_ids=torch.tensor([masked])).logits[0, place].float().softmax(-1)
        rank = int((scores_v > scores_v[ids[place]]).sum()) + 1
        before, word, after = (
            " ".join(tokenizer.decode(part, skip_special_tokens=True).split())
            for part in (ids[:place], [ids[place]], ids[place + 1 :])
        )
        guesses = ", ".join(
            f"{tokenizer.decode([i]).strip() or '(space)'} {scores_v[i]:.0%}" for i in scores_v.topk(5).indices
        )
        print(f"\n{before} [____] {after}\n    it was: {word}, rank {rank:,}; guesses: {guesses}")
