# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""What is the heads' own: labels in the configuration, dropout, the decoder's embeddings, pipelines, what they learn."""

import json
import math
from itertools import groupby
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, pipeline

from configuration_luna import LunaConfig
from modeling_luna import LunaForMaskedLM, LunaForSequenceClassification, LunaModel
from tests.support import naive
from tests.support.luna_builders import (
    SENTENCES,
    TOLERANCE,
    assert_close,
    assert_initialised,
    ids_of,
    pad_batch,
    random_ids,
    tiny_config,
)
from tests.support.models import (
    ANSWERER,
    CLASSIFIER,
    CLASSIFIER_OF_P,
    ENCODER,
    HEADS,
    MASKED_LM,
    POOLINGS,
    TAGGER,
    each_head,
)

TEXT = random_ids(9, seed=3)
BATCH = pad_batch([TEXT, TEXT[:3]])


# ---------------------------------------------------------------------------------------------------------------------
# Configuration and checkpoints


def test_another_number_of_labels_is_refused_unless_allowed(tmp_path):
    CLASSIFIER.build(dtype=torch.float32).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match=r"size mismatch|mismatch"):
        LunaForSequenceClassification.from_pretrained(tmp_path, num_labels=5)
    model, info = LunaForSequenceClassification.from_pretrained(
        tmp_path, num_labels=5, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert {entry[0] for entry in info["mismatched_keys"]} == {"classifier.out_proj.weight", "classifier.out_proj.bias"}
    assert model(**BATCH).logits.shape == (2, 5)


def test_label_names_and_the_fields_of_the_heads_survive_saving(tmp_path):
    fields = {
        "id2label": {0: "no", 1: "yes"},
        "label2id": {"no": 0, "yes": 1},
        "classifier_pooling": "packed_mean",
        "classifier_dropout": 0.25,
        "problem_type": "multi_label_classification",
    }
    LunaForSequenceClassification(tiny_config(**fields)).save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is LunaConfig and loaded.num_labels == 2
    assert {name: getattr(loaded, name) for name in fields} == fields
    assert json.loads((tmp_path / "config.json").read_text())["id2label"] == {"0": "no", "1": "yes"}


@pytest.mark.parametrize(
    "missing",
    [
        "packed_embeddings.0.weight",
        "packed_embeddings.2.weight",
        "packed_embeddings.1.layer_norm.weight",
        "embeddings.word_embeddings.weight",
        "embeddings.position_embeddings.weight",
        "layers.1.attention.pack_kv_proj.weight",
        "layers.2.packed_layer_norm.bias",
    ],
)
def test_what_a_checkpoint_lacks_is_initialised(missing, tmp_path):
    torch.manual_seed(2)
    ENCODER.build(dtype=torch.float32, contextual_projection=False).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights[missing]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, info = LunaModel.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == {missing}
    for name, value in weights.items():
        assert torch.equal(loaded.state_dict()[name], value), name
    value = loaded.state_dict()[missing]
    if "layer_norm" in missing:
        assert torch.equal(value, torch.ones(16) if missing.endswith("weight") else torch.zeros(16))
    elif missing.startswith("embeddings."):
        assert value[1].count_nonzero() == 0
        assert_initialised(value[[i for i in range(len(value)) if i != 1]], std=0.02)
    else:
        assert_initialised(value, std=0.02)


@pytest.mark.parametrize("tied", [True, False])
def test_decoder_shares_the_weights_of_the_embeddings_when_tied(tied, tmp_path):
    model = MASKED_LM.build(dtype=torch.float32, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    keys = set(load_file(tmp_path / "model.safetensors"))
    assert set(model.state_dict()) - keys == ({"lm_head.decoder.weight"} if tied else set())
    for one in (model, LunaForMaskedLM.from_pretrained(tmp_path)):
        assert (one.lm_head.decoder.weight is one.luna.embeddings.word_embeddings.weight) == tied
    model = model.double()
    expected = naive.masked_lm_logits(naive.as_weights(model.state_dict()), model.config, TEXT)
    assert_close(model(ids_of(TEXT)).logits[0], expected, TOLERANCE)

    for size in (50, 30):
        decoder, words = model.lm_head.decoder, model.luna.embeddings.word_embeddings
        before, kept = (
            [x.detach().clone() for x in (words.weight, decoder.weight, decoder.bias)],
            min(size, len(words.weight)),
        )
        model.resize_token_embeddings(size)
        decoder, words = model.lm_head.decoder, model.luna.embeddings.word_embeddings
        assert model.config.vocab_size == words.num_embeddings == decoder.out_features == size
        assert (decoder.weight is words.weight) == tied
        for new, old in zip((words.weight, decoder.weight, decoder.bias), before, strict=True):
            assert len(new) == size and torch.equal(new[:kept], old[:kept])
        ids = ids_of([token % 30 for token in TEXT])
        model.zero_grad()
        model(ids, labels=torch.full_like(ids, size - 1)).loss.backward()
        assert decoder.weight.grad[size - 1].count_nonzero() > 0


def test_set_input_and_output_embeddings():
    model = MASKED_LM.build(tie_word_embeddings=False)
    words, decoder = nn.Embedding(41, 16), nn.Linear(16, 41)
    model.set_input_embeddings(words)
    model.set_output_embeddings(decoder)
    assert model.get_input_embeddings() is words and model.luna.embeddings.word_embeddings is words
    assert model.get_output_embeddings() is decoder and model.lm_head.decoder is decoder


@pytest.mark.parametrize("classifier_dropout", [None, 0.25, 0])
@each_head
def test_dropout_of_the_heads_is_their_own(row, classifier_dropout):
    """By default none, as in the official heads, and never the encoder's."""
    fields = {} if classifier_dropout is None else {"classifier_dropout": classifier_dropout}
    model = row.build(hidden_dropout_prob=0.125, num_hidden_layers=1, **fields).train()
    batch, used, seen = {"input_ids": ids_of(TEXT, TEXT)}, classifier_dropout or 0.0, []

    def dropout(x, p=0.5, training=True, inplace=False):
        assert training
        seen.append((p, tuple(x.shape)))
        return x

    with mock.patch.object(nn.functional, "dropout", dropout):
        model.luna(**batch)
        in_encoder = len(seen)
        model(**row.inputs(batch))
    pooling, in_head = row.options.get("classifier_pooling"), seen[2 * in_encoder :]
    if pooling is None:
        assert in_head == ([(used, (2, 9, 16))] if row is TAGGER else [])
    else:
        attention = [(0.0, (2, 2, 1, 5))] if pooling == "packed_attention" else []
        hidden_size = row.options.get("classifier_hidden_size", 16)
        assert in_head == [*attention, (used, (2, 16)), (used, (2, hidden_size))]
    assert torch.equal(row.results(model.eval(), BATCH), row.results(row.build(num_hidden_layers=1), BATCH))


# ---------------------------------------------------------------------------------------------------------------------
# Pipelines


@pytest.fixture
def saved(tokenizer, tmp_path):
    def save(row, **changes):
        model = row.build(dtype=torch.float32, vocab_size=len(tokenizer), max_position_embeddings=66, **changes)
        model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        return model, str(tmp_path)

    return save


def test_fill_mask_pipeline(saved, tokenizer):
    model, folder = saved(MASKED_LM)
    fill = pipeline("fill-mask", model=folder, device="cpu")
    assert type(fill.model) is LunaForMaskedLM
    texts = ["The <mask> goes around the earth.", "Luna packs a long <mask> into a short one and unpacks it again."]
    for text, answers in zip(texts, fill(texts, top_k=3, batch_size=2), strict=True):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        position = (ids[0] == tokenizer.mask_token_id).nonzero().item()
        expected = model(ids).logits[0, position].softmax(-1).topk(3)
        assert [answer["token"] for answer in answers] == expected.indices.tolist()
        # float32, in a padded batch and alone
        assert [answer["score"] for answer in answers] == pytest.approx(expected.values.tolist(), rel=1e-4)


def test_feature_extraction_pipeline(saved, tokenizer):
    model, folder = saved(ENCODER)
    extract = pipeline("feature-extraction", model=folder, device="cpu")
    for text, features in zip(SENTENCES, extract(SENTENCES, batch_size=1), strict=True):
        expected = model(tokenizer(text, return_tensors="pt")["input_ids"]).last_hidden_state
        assert_close(torch.tensor(features), expected, 1e-4)


@pytest.mark.parametrize(
    ("changes", "scores_of"),
    [
        ({"problem_type": "single_label_classification"}, lambda logits: logits.softmax(-1)),
        ({}, lambda logits: logits.softmax(-1)),
        ({"problem_type": "multi_label_classification"}, torch.sigmoid),
        ({"problem_type": "regression", "num_labels": 1}, lambda logits: logits),
        ({"problem_type": "regression"}, lambda logits: logits),
    ],
    ids=["single", "inferred", "multi", "regression", "several values"],
)
def test_text_classification_pipeline(changes, scores_of, saved, tokenizer):
    for row in [row for row in HEADS if row.model_class is LunaForSequenceClassification]:
        model, folder = saved(row, **changes)
        classify = pipeline("text-classification", model=folder, device="cpu")
        for text, answers in zip(SENTENCES, classify(SENTENCES, top_k=None, batch_size=3), strict=True):
            expected = scores_of(model(tokenizer(text, return_tensors="pt")["input_ids"]).logits[0])
            expected = {f"LABEL_{i}": score.item() for i, score in enumerate(expected)}
            # float32, in a padded batch and alone
            assert {answer["label"]: answer["score"] for answer in answers} == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_token_classification_pipeline(saved, tokenizer):
    names = {0: "O", 1: "PART", 2: "WHOLE"}
    model, folder = saved(TAGGER, id2label=names, label2id={v: k for k, v in names.items()})
    tag = pipeline("token-classification", model=folder, device="cpu", ignore_labels=[])
    grouped = pipeline("token-classification", model=folder, device="cpu", aggregation_strategy="simple", ignore_labels=[])
    for text in SENTENCES:
        encoded = tokenizer(text, return_tensors="pt", return_offsets_mapping=True)
        scores = model(encoded["input_ids"]).logits[0, 1:-1].softmax(-1)
        tags, offsets = [names[i] for i in scores.argmax(-1).tolist()], encoded["offset_mapping"][0, 1:-1].tolist()
        answers = tag(text)
        assert [answer["entity"] for answer in answers] == tags
        assert [answer["score"] for answer in answers] == pytest.approx(scores.amax(-1).tolist(), rel=1e-4)
        assert [[answer["start"], answer["end"]] for answer in answers] == offsets
        # Neighbours with one tag are one group.
        groups = [(name, list(members)) for name, members in groupby(range(len(tags)), key=tags.__getitem__)]
        expected = [(name, offsets[members[0]][0], offsets[members[-1]][1]) for name, members in groups]
        assert [(group["entity_group"], group["start"], group["end"]) for group in grouped(text)] == expected


def test_zero_shot_classification_pipeline(saved, tokenizer):
    names = {0: "contradiction", 1: "neutral", 2: "entailment"}
    model, folder = saved(CLASSIFIER_OF_P, id2label=names, label2id={v: k for k, v in names.items()})
    classify = pipeline("zero-shot-classification", model=folder, device="cpu")
    labels = ["text", "moon", "cost"]
    pairs = [tokenizer(SENTENCES[2], f"This is about the {label}.", return_tensors="pt")["input_ids"] for label in labels]
    logits = torch.stack([model(ids).logits[0] for ids in pairs])
    for multi_label, expected in ((False, logits[:, 2].softmax(0)), (True, logits[:, [0, 2]].softmax(1)[:, 1])):
        answer = classify(SENTENCES[2], labels, hypothesis_template="This is about the {}.", multi_label=multi_label)
        scores = dict(zip(answer["labels"], answer["scores"], strict=True))
        assert scores == pytest.approx(dict(zip(labels, expected.tolist(), strict=True)), rel=1e-4)


def test_extraction_with_question_answering(saved, tokenizer):
    """A head that was set to answer with the words after "around": the span is read from the logits by hand."""
    _, folder = saved(ANSWERER, num_hidden_layers=1)
    model = ANSWERER.auto_class.from_pretrained(folder).train()
    question, context = "The moon goes around?", SENTENCES[2]
    encoded = tokenizer(question, context, return_tensors="pt", return_offsets_mapping=True)
    offsets, in_context = encoded.pop("offset_mapping")[0], torch.tensor([i == 1 for i in encoded.sequence_ids(0)])
    answer = context.index("the earth")
    start = (in_context & (offsets[:, 1] > answer)).int().argmax()
    end = (in_context & (offsets[:, 1] >= answer + len("the earth"))).int().argmax()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        model(**encoded, start_positions=start[None], end_positions=end[None]).loss.backward()
        optimizer.step()

    with torch.no_grad():
        output = model.eval()(**encoded)
    scores = output.start_logits[0, :, None] + output.end_logits[0, None, :]
    allowed = torch.triu(in_context[:, None] & in_context[None])
    best = scores.masked_fill(~allowed, -math.inf).flatten().argmax()
    first, last = divmod(best.item(), len(in_context))
    assert context[offsets[first, 0] : offsets[last, 1]].strip() == "the earth"


# ---------------------------------------------------------------------------------------------------------------------
# Learning

FIRST, SECOND, NOISE = 4, 5, range(6, 40)


def marker_rows(count, generator):
    """Texts of 50 to 400 noise tokens with two markers, 20 or more tokens apart; the label says which comes first."""

    def draw(low, high):
        return torch.randint(low, high, (1,), generator=generator).item()

    rows, labels = [], []
    for _ in range(count):
        n = draw(50, 401)
        row = torch.randint(NOISE.start, NOISE.stop, (n,), generator=generator)
        row[0], row[-1] = 0, 2
        gap, label = draw(20, n - 2), draw(0, 2)
        place_of_first = draw(1, n - 1 - gap)
        row[[place_of_first, place_of_first + gap]] = torch.tensor([SECOND, FIRST] if label else [FIRST, SECOND])
        rows.append(row.tolist())
        labels.append(label)
    return rows, torch.tensor(labels)


def learn_the_order_of_markers(pooling, seed):
    """Accuracy on held-out rows, padded on the right and on the left, and the number of training steps.

    Each training batch is new, and they are padded on the right and on the left in turns.
    """
    torch.manual_seed(seed)
    config = LunaConfig(
        vocab_size=NOISE.stop,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        projection_length=16,
        position_embedding_type="sinusoidal",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        # Near hidden_size**-0.5: at 0.02, attention in a model this narrow starts out uniform and stays so for long.
        initializer_range=0.1,
        norm_first=True,  # at this rate post-norm layers do not learn it from every seed
        classifier_pooling=pooling,
        num_labels=2,
    )
    model = LunaForSequenceClassification(config).train()
    generator = torch.Generator().manual_seed(seed)
    # The rate rises for 50 steps, stays until the order is learned, and falls to 0 in another 300.
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses, steps_left = [], 300
    while steps_left > 0 and len(losses) < 2000:
        optimizer.param_groups[0]["lr"] = 2e-3 * min((len(losses) + 1) / 50, steps_left / 300)
        rows, labels = marker_rows(16, generator)
        loss = model(**pad_batch(rows, side=("right", "left")[len(losses) % 2]), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if steps_left < 300 or (len(losses) > 50 and sum(losses[-50:]) / 50 < 0.15):
            steps_left -= 1

    rows, labels = marker_rows(500, torch.Generator().manual_seed(10_000 + seed))
    accuracies = {}
    for side in ("right", "left"):
        with torch.no_grad():
            batches = [pad_batch(rows[i : i + 50], side=side) for i in range(0, 500, 50)]
            predictions = torch.cat([model.eval()(**batch).logits.argmax(-1) for batch in batches])
        accuracies[side] = (predictions == labels).double().mean().item()
    return accuracies, len(losses)


@pytest.mark.slow
@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_representation_learns_the_order_of_two_markers(pooling):
    accuracies, steps = learn_the_order_of_markers(pooling, seed=0)
    print(f"{pooling}: {accuracies} after {steps} steps")
    assert min(accuracies.values()) >= 0.99


# ---------------------------------------------------------------------------------------------------------------------
# Heads of the Long Range Arena models


@pytest.mark.parametrize("hidden_size", [None, 0, 20])
@pytest.mark.parametrize("pair", ["concat", "interact"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_two_texts(pooling, pair, hidden_size):
    """Each is encoded alone, and neither the padding nor the other pairs of the batch matter."""
    model = CLASSIFIER.shared(
        classifier_pooling=pooling, classifier_pair=pair, classifier_hidden_size=hidden_size, classifier_act="relu"
    )
    weights = naive.as_weights(model.state_dict())
    assert not (hidden_size == 0 and any("dense" in name for name in weights))
    pairs = [(TEXT, TEXT[2:6]), (TEXT[:1], TEXT[::-1])]
    batch = pad_batch([text for texts in pairs for text in texts], width=12)
    logits = model(**{name: x.unflatten(0, (-1, 2)) for name, x in batch.items()}).logits
    for row, texts in zip(logits, pairs, strict=True):
        assert_close(row, naive.classifier_logits(weights, model.config, *texts), TOLERANCE)


@pytest.mark.parametrize("shape", [(2, 9), (2, 3, 9)])
def test_one_text_or_three_for_two_is_refused(shape):
    model = CLASSIFIER.shared(classifier_pair="concat")
    with pytest.raises(ValueError, match=r"pair of texts needs `input_ids` of shape \(batch_size, 2, sequence_length\)"):
        model(torch.ones(shape, dtype=torch.long))


@pytest.mark.parametrize("pooling", ["mean_unmasked", "packed_mean_unmasked", "packed_mean_unmasked_no_cls"])
def test_the_unmasked_means(pooling):
    """Without padding they are the equations'; a row beside a longer one has another result, unlike the masked means."""
    model = CLASSIFIER.shared(classifier_pooling=pooling)
    weights = naive.as_weights(model.state_dict())
    alone = model(ids_of(TEXT[:4])).logits[0]
    assert_close(alone, naive.classifier_logits(weights, model.config, TEXT[:4]), TOLERANCE)
    beside = model(**pad_batch([TEXT, TEXT[:4]])).logits
    assert_close(beside[0], naive.classifier_logits(weights, model.config, TEXT), TOLERANCE)
    assert (beside[1] - alone).abs().max() > 1e-3
    # How wide the padding is matters to the mean over all positions alone.
    wider = model(**pad_batch([TEXT, TEXT[:4]], width=13)).logits
    assert torch.allclose(wider, beside) == (pooling != "mean_unmasked")
