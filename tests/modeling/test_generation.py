# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Causality, caches, `generate()`, saved state, and one sentence for each wrong input, of the models that generate."""

import copy
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, Trainer, TrainingArguments, pipeline

from modeling_luna import CACHE_NAME, LunaForCausalLM, LunaForConditionalGeneration, LunaModel
from tests.support import naive
from tests.support.luna_builders import (
    TOLERANCE,
    assert_close,
    assert_refused_in_one_sentence,
    ids_of,
    pad_batch,
    random_ids,
)
from tests.support.models import CAUSAL_LM, COVERING_OPTIONS, TRANSLATOR, each_generator, option_id

TEXT = random_ids(12, seed=3)
SOURCE = pad_batch([random_ids(8, seed=7), random_ids(3, seed=8)], side="left")
PROPERTY = settings(deadline=None, max_examples=25, print_blob=True)
ACTIVATIONS = ("softplus", "softplus_natural", "elu")
each_option = pytest.mark.parametrize("options", COVERING_OPTIONS[::3], ids=option_id)


def target_inputs(row, ids, mask=None, source=SOURCE) -> dict:
    """A call of the model on tokens (b, n) that it is to go on with, after the source where there is one."""
    if row is CAUSAL_LM:
        return {"input_ids": ids} | ({} if mask is None else {"attention_mask": mask})
    inputs = {name: x[: len(ids)] for name, x in source.items()} | {"decoder_input_ids": ids}
    return inputs | ({} if mask is None else {"decoder_attention_mask": mask})


def generated(row, model, inputs, **options) -> torch.Tensor:
    """What `generate()` makes of a batch: a beginning to go on with, or a source.

    Random encoder-decoders say one token for ever: repeating is forbidden.
    """
    defaults = {"max_new_tokens": 9, "do_sample": False, "pad_token_id": 1}
    return model.generate(**inputs, **(defaults | ({"no_repeat_ngram_size": 1} if row is TRANSLATOR else {}) | options))


def prompt(row):
    return pad_batch([TEXT[:7], TEXT[4:8]], side="left") if row is CAUSAL_LM else SOURCE


# ---------------------------------------------------------------------------------------------------------------------
# The past


@each_option
@each_generator
def test_the_future_never_changes_the_past(row, options):
    """To the bit: other tokens after a position, and fewer or more of them."""
    model = row.shared(**options)
    other = torch.cat([ids_of(TEXT)[:, :7], ids_of(random_ids(20, seed=9))], dim=1)
    with torch.no_grad():
        logits = [model(**target_inputs(row, ids)).logits[:, :7] for ids in (ids_of(TEXT), other, other[:, :7])]
    # Rows of matrices of another height are added up in another order outside the attention.
    for found in logits[1:]:
        assert_close(found, logits[0], TOLERANCE)
    changed = other.clone()
    changed[:, 6] += 1
    with torch.no_grad():
        assert (model(**target_inputs(row, changed)).logits[:, 6] - logits[1][:, 6]).abs().max() > 1e-5


@each_generator
def test_each_token_reads_all_before_it(row):
    model = row.shared(num_hidden_layers=1)
    embeds = torch.randn(1, 6, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    name = "inputs_embeds" if row is CAUSAL_LM else "decoder_inputs_embeds"
    inputs = target_inputs(row, ids_of(TEXT[:6]))
    inputs.pop("input_ids" if row is CAUSAL_LM else "decoder_input_ids")
    model(**inputs, **{name: embeds}).logits[0, 3].square().sum().backward()
    assert (embeds.grad[0].abs().amax(dim=-1) > 1e-9).tolist() == [True] * 4 + [False] * 2


@pytest.mark.parametrize("activation", ACTIVATIONS)
@each_generator
def test_each_activation_is_that_of_the_equations(row, activation):
    model = row.shared(causal_activation=activation)
    expected = row.oracle(naive.as_weights(model.state_dict()), model.config, TEXT)
    with torch.no_grad():
        assert_close(row.results(model, {"input_ids": ids_of(TEXT)})[0], expected, TOLERANCE)


@PROPERTY
@given(
    row=st.sampled_from([CAUSAL_LM, TRANSLATOR]),
    options=st.sampled_from(COVERING_OPTIONS),
    cuts=st.sets(st.integers(1, 11), max_size=5),
    padding=st.lists(st.integers(0, 4), min_size=2, max_size=2),
    describes_past=st.booleans(),
)
def test_a_text_in_pieces_equals_one_piece(row, options, cuts, padding, describes_past):
    """Pieces of one token and of several (transformers#45513), padded on the left, with masks of the piece or of all."""
    model = row.shared(**options)
    rows = [TEXT[n:] for n in padding]
    batch = pad_batch(rows, width=12, side="left")
    ids, mask, cache, logits = batch["input_ids"], batch["attention_mask"], model.new_cache(), []
    bounds = [0, *sorted(cuts), 12]
    with torch.no_grad():
        expected = model(**target_inputs(row, ids, mask)).logits
        for start, end in zip(bounds, bounds[1:], strict=False):
            piece_mask = mask[:, :end] if describes_past else mask[:, start:end]
            inputs = target_inputs(row, ids[:, start:end], piece_mask)
            if row is TRANSLATOR and start > 0:  # the encoder is not asked again
                inputs = {name: x for name, x in inputs.items() if name.startswith("decoder_")}
            logits.append(model(**inputs, past_key_values=cache).logits)
    kept = mask.bool()
    assert_close(torch.cat(logits, dim=1)[kept], expected[kept], TOLERANCE)
    assert cache.get_seq_length() == 12


@each_generator
def test_a_cache_is_of_constant_size(row):
    model, sizes = row.shared(), []
    cache = model.new_cache()
    inputs = target_inputs(row, ids_of(TEXT))
    for _ in range(3):
        with torch.no_grad():
            model(**inputs, past_key_values=cache)
        half = getattr(cache, "self_attention_cache", cache)
        sizes.append([[x.numel() for x in layer.state] for layer in half.layers])
    assert sizes[0] == sizes[1] == sizes[2] == [[2 * 8 * 5, 2 * 5 * 8, 1]] * 3
    if row is TRANSLATOR:
        lengths = [layer.get_seq_length() for layer in cache.cross_attention_cache.layers]
        assert lengths == [5, 5, 5, 5]  # l, whatever the length of the source


def test_the_encoder_s_output_may_go_after_the_first_step():
    model = TRANSLATOR.shared()
    cache = model.new_cache()
    with torch.no_grad():
        model(**target_inputs(TRANSLATOR, ids_of(TEXT[:1], TEXT[:1])), past_key_values=cache)
        assert cache.is_updated == {0: True, 1: True, 2: True}
        with_source = model(
            **target_inputs(TRANSLATOR, ids_of(TEXT[1:3], TEXT[1:3])), past_key_values=copy.deepcopy(cache)
        ).logits
        without = model(decoder_input_ids=ids_of(TEXT[1:3], TEXT[1:3]), past_key_values=cache).logits
    assert torch.equal(without, with_source)


@each_generator
def test_both_names_of_the_cache(row):
    model, inputs = row.shared(), target_inputs(row, ids_of(TEXT))
    with torch.no_grad():
        caches = [model.new_cache() for _ in range(2)]
        outputs = [model(**inputs, past_key_values=caches[0]), model(**inputs, cache=caches[1])]
        assert torch.equal(outputs[0].logits, outputs[1].logits)
        assert [output[CACHE_NAME] for output in outputs] == caches
    with pytest.raises(
        ValueError, match=r"^`cache` and `past_key_values` are two names of one argument: give one of them\.$"
    ):
        model(**inputs, cache=caches[0], past_key_values=caches[1])


@each_generator
def test_a_cache_is_made_where_it_is_of_use(row):
    model, inputs = row.build(), target_inputs(row, ids_of(TEXT))
    assert CACHE_NAME in model(**inputs) and CACHE_NAME not in model(**inputs, use_cache=False)
    assert CACHE_NAME not in model(**inputs, labels=ids_of(TEXT))
    assert CACHE_NAME not in model.train()(**inputs)
    model.config.use_cache = False
    assert CACHE_NAME not in model.eval()(**inputs) and CACHE_NAME in model(**inputs, use_cache=True)


@each_generator
def test_rows_of_a_cache_are_selected_repeated_taken_back_and_reset(row):
    model = row.shared()
    batch = pad_batch([TEXT[:7], TEXT[2:6]], side="left")
    last = ids_of(TEXT[:2], TEXT[3:5])

    def read(cache, ids, **kwargs):
        inputs = {"input_ids": ids} if row is CAUSAL_LM else {"decoder_input_ids": ids}
        with torch.no_grad():
            return model(**inputs, **kwargs, past_key_values=cache).logits

    def new_cache():
        cache = model.new_cache()
        cache.activate_past_recording()
        with torch.no_grad():
            model(**target_inputs(row, batch["input_ids"], batch["attention_mask"]), past_key_values=cache)
        return cache

    expected = read(new_cache(), last)
    for change, rows in (
        (lambda cache: cache.reorder_cache(torch.tensor([1, 0])), [1, 0]),
        (lambda cache: cache.reorder_cache(torch.tensor([1, 1])), [1, 1]),
        (lambda cache: cache.batch_select_indices(torch.tensor([1])), [1]),
        (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1]),
    ):
        cache = new_cache()
        change(cache)
        assert_close(read(cache, last[rows]), expected[rows], TOLERANCE)
    cache = new_cache()
    read(cache, ids_of(TEXT[5:8], TEXT[8:11]))
    cache.crop(-3)
    assert torch.equal(read(cache, last), expected)  # to the bit
    cache.reset()
    assert cache.get_seq_length() == 0
    with torch.no_grad():
        model(**target_inputs(row, batch["input_ids"], batch["attention_mask"]), past_key_values=cache)
    assert torch.equal(read(cache, last), expected)


# ---------------------------------------------------------------------------------------------------------------------
# generate()

OPTION_SETS = {
    "greedy": {},
    "sampling": {"do_sample": True, "temperature": 0.7},
    "top k": {"do_sample": True, "top_k": 5},
    "nucleus": {"do_sample": True, "top_p": 0.8},
    "minimum p": {"do_sample": True, "min_p": 0.1},
    "several per row": {"do_sample": True, "num_return_sequences": 3},
    "beams": {"num_beams": 3},
    "beams of all lengths": {"num_beams": 3, "length_penalty": 0.3, "early_stopping": True, "num_return_sequences": 2},
    "sampled beams": {"num_beams": 2, "do_sample": True},
    "penalty": {"repetition_penalty": 1.3},
    "no repetition": {"no_repeat_ngram_size": 2},
    "lengths": {"min_new_tokens": 6, "max_new_tokens": 8},
}


@pytest.mark.parametrize("options", OPTION_SETS.values(), ids=OPTION_SETS)
@each_generator
def test_generating_with_a_cache_and_without(row, options):
    model, found = row.shared(tie_word_embeddings=False), []
    for use_cache in (True, False):
        torch.manual_seed(0)
        found.append(generated(row, model, prompt(row), use_cache=use_cache, **options))
    assert torch.equal(*found)
    assert len(found[0].unique()) > 4, "the model says more than one thing"


@each_generator
def test_a_row_is_continued_as_it_is_alone(row):
    """Also with padding on the left of a single row (transformers#46773)."""
    model, batch = row.shared(), prompt(row)
    together = generated(row, model, batch)
    new = together[:, batch["input_ids"].shape[1] :] if row is CAUSAL_LM else together
    for i in range(2):
        is_token = batch["attention_mask"][i].bool()
        padded = {name: x[i : i + 1] for name, x in batch.items()}
        alone = {name: x[i : i + 1, is_token] for name, x in batch.items()}
        for inputs in (padded, alone):
            found = generated(row, model, inputs)
            found = found[:, inputs["input_ids"].shape[1] :] if row is CAUSAL_LM else found
            found = torch.nn.functional.pad(found, (0, new.shape[1] - found.shape[1]), value=1)
            assert torch.equal(found[0], new[i])


REPETITIVE = ids_of((TEXT[:4] * 6)[:21])


@pytest.mark.parametrize("how", ["prompt lookup", "assistant", "assistant of another size"])
@each_generator
def test_assisted_decoding_gives_the_tokens_of_greedy(row, how):
    model = row.shared("sdpa")
    # transformers 5.17 ends a lookup at once where the target starts with the token that ends it, in BART too.
    inputs = {"input_ids": REPETITIVE} | ({"decoder_start_token_id": 0} if row is TRANSLATOR else {})
    expected = generated(row, model, inputs, max_new_tokens=15)
    options = {"prompt_lookup_num_tokens": 3}
    if how != "prompt lookup":
        changes = {} if how == "assistant" else {"num_hidden_layers": 1, "seed": 5}
        options = {"assistant_model": row.build(attention="sdpa", **changes)}
    assert torch.equal(generated(row, model, inputs, max_new_tokens=15, **options), expected)


def test_generating_from_embeddings():
    model, inputs = CAUSAL_LM.shared(), prompt(CAUSAL_LM)
    new = generated(CAUSAL_LM, model, inputs)[:, inputs["input_ids"].shape[1] :]
    embeds = model.get_input_embeddings()(inputs.pop("input_ids"))
    assert torch.equal(generated(CAUSAL_LM, model, inputs | {"inputs_embeds": embeds}), new)


@pytest.mark.parametrize("chunk", [1, 3, 50])
def test_a_prompt_read_in_chunks(chunk):
    """transformers#46741."""
    model, inputs = CAUSAL_LM.shared(), prompt(CAUSAL_LM)
    expected = generated(CAUSAL_LM, model, inputs)
    assert torch.equal(generated(CAUSAL_LM, model, inputs, prefill_chunk_size=chunk), expected)


@each_generator
def test_going_on_from_a_cache(row):
    """The tokens of one call, and of a second that has the cache of a first."""
    model, inputs = row.shared(), prompt(row)
    expected = generated(row, model, inputs, max_new_tokens=9, min_new_tokens=9)
    cache = model.new_cache()
    first = generated(row, model, inputs, max_new_tokens=4, min_new_tokens=4, **{CACHE_NAME: cache})
    assert cache.get_seq_length() == first.shape[1] - 1
    new = 5 * [1]
    mask = torch.cat([inputs["attention_mask"], torch.ones(2, 4, dtype=torch.long)], dim=1)
    if row is CAUSAL_LM:
        again = {"input_ids": first, "attention_mask": mask}
    else:
        again = inputs | {"decoder_input_ids": first}
    options = {"max_new_tokens": len(new), "min_new_tokens": len(new), CACHE_NAME: cache}
    assert torch.equal(generated(row, model, again, **options), expected)


def test_a_text_generation_pipeline(tokenizer, tmp_path):
    model = CAUSAL_LM.build(dtype=torch.float32, vocab_size=len(tokenizer))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    generate = pipeline("text-generation", str(tmp_path))
    assert type(generate.model) is LunaForCausalLM
    texts = ["Luna packs a long text", "The moon"]
    tokenizer.padding_side = "left"
    batched = generate(texts, max_new_tokens=5, do_sample=False, batch_size=2)
    alone = [generate(text, max_new_tokens=5, do_sample=False) for text in texts]
    assert batched == alone and all(found[0]["generated_text"].startswith("Luna") for found in batched[:1])


@each_generator
def test_positions_beyond_the_last_are_refused_in_generation_too(row):
    model = row.shared()
    assert_refused_in_one_sentence(
        lambda: generated(
            row, model, {"input_ids": ids_of(TEXT)}, max_new_tokens=60, min_new_tokens=60, no_repeat_ngram_size=0
        ),
        ("The input has 39 tokens", "`max_position_embeddings` = 40", "positions for 38"),
    )
    endless = row.shared(position_embedding_type="sinusoidal")
    inputs = {"input_ids": ids_of(TEXT)}
    options = {"max_new_tokens": 60, "min_new_tokens": 60, "no_repeat_ngram_size": 0}
    assert generated(row, endless, inputs, **options).shape[1] > 60


# ---------------------------------------------------------------------------------------------------------------------
# Saved state


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@each_generator
def test_a_saved_state_goes_on_to_the_bit(row, dtype, tmp_path):
    model, batch = row.shared("sdpa", dtype), pad_batch([TEXT[:7], TEXT[2:6]], side="left")
    cache = model.new_cache()
    last = {"input_ids" if row is CAUSAL_LM else "decoder_input_ids": ids_of(TEXT[:3], TEXT[3:6])}
    with torch.no_grad():
        model(**target_inputs(row, batch["input_ids"], batch["attention_mask"]), past_key_values=cache)
        model.save_cache(cache, tmp_path / "state.safetensors")
        expected = model(**last, past_key_values=cache).logits
        for _ in range(2):  # the file is not changed by going on
            loaded = model.load_cache(tmp_path / "state.safetensors")
            assert loaded.get_seq_length() == 7
            assert torch.equal(model(**last, past_key_values=loaded).logits, expected)


# ---------------------------------------------------------------------------------------------------------------------
# Training


@each_generator
def test_loss_is_the_mean_over_the_labels_and_a_sum_over_the_whole_batch(row):
    model, batch = row.shared(), pad_batch([TEXT[:7], TEXT[2:6]])
    inputs, labels = row.inputs(batch), row.labels(batch)["labels"]
    logits = model(**inputs).logits
    shifted = labels if row is TRANSLATOR else torch.cat([labels[:, 1:], labels.new_full((2, 1), -100)], dim=1)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), shifted.flatten(), reduction="sum")
    count = int((shifted != -100).sum())
    loss = model(**inputs, labels=labels).loss
    assert loss.item() == pytest.approx(expected.item() / count, rel=1e-6)
    assert model(**inputs, labels=labels, num_items_in_batch=40).loss.item() == pytest.approx(expected.item() / 40, rel=1e-6)


def test_decoder_inputs_are_made_of_labels():
    model = TRANSLATOR.shared()
    labels = torch.tensor([[5, 6, 7, 2], [8, 2, -100, -100]])
    made = model.prepare_decoder_input_ids_from_labels(labels)
    assert made.tolist() == [[2, 5, 6, 7], [2, 8, 2, 1]]
    with torch.no_grad():
        expected = model(**SOURCE, decoder_input_ids=made, labels=labels)
        assert torch.equal(model(**SOURCE, labels=labels).loss, expected.loss)


@each_generator
def test_label_smoothing_of_the_trainer(row, tmp_path):
    """It works from logits: labels are taken out of the inputs before the call."""
    model = row.build(dtype=torch.float32)
    labels = torch.tensor([[5, 6, 7, 2], [8, 2, -100, -100]])
    if row is TRANSLATOR:
        inputs = SOURCE | {"decoder_input_ids": model.prepare_decoder_input_ids_from_labels(labels)}
    else:
        inputs = {"input_ids": labels.clamp(min=1)}
    arguments = TrainingArguments(str(tmp_path), label_smoothing_factor=0.1, use_cpu=True, report_to=[])
    loss = Trainer(model, arguments).compute_loss(model, inputs | {"labels": labels})
    with torch.no_grad():
        logits = model(**inputs).logits
    if row is CAUSAL_LM:  # each token is predicted from those before it
        logits, labels = logits[:, :-1], labels[:, 1:]
    kept = labels != -100
    log_probabilities = logits.log_softmax(dim=-1)[kept]
    expected = 0.9 * -log_probabilities.gather(1, labels[kept][:, None]).mean() - 0.1 * log_probabilities.mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("target_vocab_size", [None, 30])
def test_embeddings_of_source_target_and_output(target_vocab_size, tied, tmp_path):
    model = TRANSLATOR.build(dtype=torch.float32, target_vocab_size=target_vocab_size, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    for one in (model, LunaForConditionalGeneration.from_pretrained(tmp_path)):
        words = one.luna.embeddings.word_embeddings
        assert (one.target_embeddings is words) == (target_vocab_size is None)
        assert (one.lm_head.weight is one.target_embeddings.weight) == tied
        assert one.lm_head.out_features == one.target_embeddings.num_embeddings == (target_vocab_size or 41)
        ids = torch.tensor([[5, 6, 2], [7, 8, 2]])
        with torch.no_grad():
            logits = [each(**SOURCE, decoder_input_ids=ids).logits for each in (one, model)]
        assert_close(*logits, 1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Wrong input


def read_by(model, row, ids=TEXT):
    cache = model.new_cache()
    with torch.no_grad():
        model(**target_inputs(row, ids_of(ids)), past_key_values=cache)
    return cache


SHORT, PAIR = ids_of(TEXT[:2]), ids_of(TEXT[:2], TEXT[:2])
WRONG_CALLS = {
    "another kind of cache": (
        CAUSAL_LM,
        lambda model: model(SHORT, past_key_values=DynamicCache()),
        ("`past_key_values` is a DynamicCache", "LunaCache", "`model.new_cache()`"),
    ),
    "the cache of a decoder alone": (
        TRANSLATOR,
        lambda model: model(**SOURCE, decoder_input_ids=PAIR, cache=CAUSAL_LM.shared().new_cache()),
        ("is a LunaCache", "LunaEncoderDecoderCache"),
    ),
    "a cache of other layers": (
        CAUSAL_LM,
        lambda model: model(SHORT, cache=read_by(CAUSAL_LM.shared(num_hidden_layers=1), CAUSAL_LM)),
        ("of another model", "it has 1 layers", "this model 3"),
    ),
    "a cache of other heads": (
        CAUSAL_LM,
        lambda model: model(SHORT, cache=read_by(CAUSAL_LM.shared(num_attention_heads=4), CAUSAL_LM)),
        ("of another model", "4 heads of size 4", "2 of size 8"),
    ),
    "a cache of another number of slots": (
        CAUSAL_LM,
        lambda model: model(SHORT, cache=read_by(CAUSAL_LM.shared(projection_length=7), CAUSAL_LM)),
        ("of another model", "its P has 7 slots", "this model's 5"),
    ),
    "all that a cache has read, and no more": (
        CAUSAL_LM,
        lambda model: model.generate(ids_of(TEXT), max_new_tokens=2, **{CACHE_NAME: read_by(model, CAUSAL_LM)}),
        ("has read 12 tokens, and `input_ids` has 12", "at least one more"),
    ),
    "a cache of another batch": (
        CAUSAL_LM,
        lambda model: model(PAIR, cache=read_by(model, CAUSAL_LM)),
        ("has read 1 rows, but the batch has 2", "`batch_repeat_interleave`"),
    ),
    "a mask of another length": (
        CAUSAL_LM,
        lambda model: model(SHORT, attention_mask=torch.ones(1, 5), cache=read_by(model, CAUSAL_LM)),
        ("`attention_mask` has shape (1, 5)", "(1, 14)", "with or without those that the cache has read"),
    ),
    "P of a decoder alone": (
        CAUSAL_LM,
        lambda model: model(SHORT, packed_state=torch.zeros(1, 5, 16)),
        ("`packed_state` was given to a decoder-only model", "`past_key_values`"),
    ),
    "no input": (CAUSAL_LM, lambda model: model(), ("Give either `input_ids` or `inputs_embeds`",)),
    "labels of another length": (
        CAUSAL_LM,
        lambda model: model(SHORT, labels=ids_of(TEXT)),
        ("`labels` has shape (1, 12)", "(1, 2)", "-100"),
    ),
    "no target": (
        TRANSLATOR,
        lambda model: model(**SOURCE),
        ("Give `decoder_input_ids`, or `labels` to make them of",),
    ),
    "a target of another batch": (
        TRANSLATOR,
        lambda model: model(**SOURCE, decoder_input_ids=SHORT),
        ("`encoder_hidden_states` has shape (2, 8, 16)", "batch_size = 1"),
    ),
    "a target of another shape": (
        TRANSLATOR,
        lambda model: model(**SOURCE, decoder_input_ids=torch.tensor([5, 6])),
        ("`decoder_input_ids` has shape (2,)", "(batch_size, target_sequence_length)"),
    ),
    "no source": (
        TRANSLATOR,
        lambda model: model(decoder_input_ids=SHORT, cache=model.new_cache()),
        ("`encoder_hidden_states` is missing", "unless its cache has read it"),
    ),
    "an encoder without P": (
        TRANSLATOR,
        lambda model: model(encoder_outputs=(torch.zeros(1, 4, 16),), decoder_input_ids=SHORT),
        ("`encoder_outputs` has no `packed_state`", "`model.get_encoder()`"),
    ),
    "another size of vocabulary for one language": (
        TRANSLATOR,
        lambda model: TRANSLATOR.build(target_vocab_size=30).resize_token_embeddings(50),
        ("`target_vocab_size` = 30", "only one that source and target share can be resized"),
    ),
    "a cache of another implementation": (
        CAUSAL_LM,
        lambda model: model.generate(SHORT, cache_implementation="static", max_new_tokens=2),
        ("`cache_implementation` is 'static'", "leave the argument out"),
    ),
    "an empty cache to save": (
        CAUSAL_LM,
        lambda model: model.save_cache(model.new_cache(), "nowhere"),
        ("`cache` has read no token",),
    ),
    "a decoder's configuration for an encoder": (
        CAUSAL_LM,
        lambda model: LunaModel(model.config),
        ("`is_decoder` is True", "AutoModelForCausalLM"),
    ),
    "an encoder-decoder's configuration for a decoder": (
        TRANSLATOR,
        lambda model: LunaForCausalLM(model.config),
        ("`is_encoder_decoder` is True", "AutoModelForSeq2SeqLM"),
    ),
    "a decoder's configuration for an encoder-decoder": (
        CAUSAL_LM,
        lambda model: LunaForConditionalGeneration(model.config),
        ("`is_encoder_decoder` is False", "AutoModelForCausalLM"),
    ),
}


@pytest.mark.parametrize("case", WRONG_CALLS)
def test_wrong_calls_are_refused_in_one_sentence(case):
    row, call, parts = WRONG_CALLS[case]
    assert_refused_in_one_sentence(lambda: call(row.shared()), parts)


@each_generator
def test_a_cache_and_checkpointed_gradients_exclude_each_other(row):
    """Layers that are computed again would read the text again."""
    model = row.build(dtype=torch.float32)
    model.train().gradient_checkpointing_enable()
    cache = model.new_cache()
    call = partial(model, **target_inputs(row, SHORT), past_key_values=cache)
    assert_refused_in_one_sentence(call, ("`past_key_values` is given while gradient checkpointing", "disable()"))


def test_p_is_trained_after_a_prefix_that_was_read_without_gradients():
    model = CAUSAL_LM.build(dtype=torch.float32)
    cache = read_by(model, CAUSAL_LM)
    model(SHORT, labels=SHORT, past_key_values=cache).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_a_file_that_is_no_saved_cache(tmp_path):
    model, other = CAUSAL_LM.build(dtype=torch.float32), CAUSAL_LM.build(dtype=torch.float32, num_hidden_layers=1)
    (tmp_path / "text").write_text("no tensors")
    model.save_pretrained(tmp_path)
    other.save_cache(read_by(other, CAUSAL_LM), tmp_path / "other")
    for name, parts in (
        ("text", ("is not a cache that `save_cache` wrote",)),
        ("model.safetensors", ("is not a cache that `save_cache` wrote",)),
        ("other", ("is of another model", "1 layers, this model 3")),
    ):
        assert_refused_in_one_sentence(lambda name=name: model.load_cache(tmp_path / name), parts)
