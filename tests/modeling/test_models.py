# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""What holds for every row of the table of models: equations, padding, masks, saving, outputs, precision, compilation."""

import json
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModel, AutoModelForMaskedLM
from transformers.testing_utils import CaptureLogger
from transformers.utils import logging

from modeling_luna import CACHE_NAME, LunaModel, LunaPackedEmbeddings
from tests.support import naive
from tests.support.backends import BACKENDS, backend_context
from tests.support.luna_builders import (
    TOLERANCE,
    assert_close,
    assert_initialised,
    columns_for,
    ids_of,
    pad_batch,
    place,
    random_ids,
)
from tests.support.models import (
    ALL_OPTIONS,
    CLASSIFIER_OF_BOTH,
    COVERING_OPTIONS,
    ENCODER,
    ENCODERS,
    GENERATORS,
    HEADS,
    MASKED_LM,
    MODELS,
    each_encoder,
    each_generator,
    each_head,
    each_model,
    each_option,
    each_with_an_encoder,
    option_id,
)

TEXT = random_ids(9, seed=3)
BATCH = pad_batch([TEXT, TEXT[:3]])
LEFT = pad_batch([TEXT, TEXT[:3]], side="left")
FLAGS = {"output_hidden_states": True, "output_packed_states": True, "output_attentions": True}
# Everything is float64 but Luna's sinusoids, which are float32 (1e-7 measured on these weights).
NAIVE_TOLERANCE = {"learned": TOLERANCE, "sinusoidal": 5e-6}
PROPERTY = settings(deadline=None, max_examples=40, print_blob=True)


# ---------------------------------------------------------------------------------------------------------------------
# Against the equations


def check_equations(row, options, attention, ids):
    model = row.shared(attention, **options)
    expected = row.oracle(naive.as_weights(model.state_dict()), model.config, ids)
    with torch.no_grad():
        actual = row.results(model, {"input_ids": ids_of(ids)})[0]
    assert_close(actual, expected, NAIVE_TOLERANCE[model.config.position_embedding_type])


@each_option
@each_model
def test_results_are_those_of_the_equations(row, options):
    check_equations(row, options, "eager", TEXT[:3])  # fewer tokens than l, and more
    check_equations(row, options, "sdpa", TEXT)


@PROPERTY
@given(
    row=st.sampled_from(MODELS),
    options=st.sampled_from(ALL_OPTIONS),
    attention=st.sampled_from(["eager", "sdpa"]),
    n=st.integers(1, 12),
)
def test_results_are_those_of_the_equations_for_any_combination(row, options, attention, n):
    check_equations(row, options, attention, random_ids(n, seed=n))


# ---------------------------------------------------------------------------------------------------------------------
# Padding


@st.composite
def padded_batches(draw):
    """Rows of 0 to 9 tokens (l is 5), each padded on the right, on the left or in between, to any width."""
    lengths = draw(st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(any))
    width = max(lengths) + draw(st.integers(0, 4))
    columns = []
    for n in lengths:
        side = draw(st.sampled_from(["right", "left", "scattered"]))
        if side == "scattered":
            columns.append(sorted(draw(st.permutations(range(width)))[:n]))
        else:
            columns += columns_for([n], width, side)
    seed = draw(st.integers(0, 10**6))
    return [random_ids(n, seed + i) for i, n in enumerate(lengths)], columns, width


def check_rows_equal_rows_alone(row, model, rows, columns, width, tolerance=TOLERANCE):
    batch = {
        "input_ids": place(rows, columns, width, 1),
        "attention_mask": place([[1] * len(ids) for ids in rows], columns, width, 0),
    }
    with torch.no_grad():
        output = model(**row.inputs(batch), output_hidden_states=True)
        results = row.results(model, batch)
    assert torch.isfinite(results).all()
    if not row.has_decoder:
        assert torch.isfinite(output.packed_state).all()
    for i, ids in enumerate(rows):
        used = None if row.has_decoder else output.packed_attention_mask[i].sum().item()
        if not ids:
            assert used in (None, 0 if model.config.dynamic_projection else model.config.projection_length)
            continue
        with torch.no_grad():
            alone = model(**row.inputs({"input_ids": ids_of(ids)}), output_hidden_states=True)
            result = row.results(model, {"input_ids": ids_of(ids)})[0]
        assert_close(results[i, columns[i]] if row.per_token else results[i], result, tolerance)
        if not row.has_decoder:
            assert alone.packed_attention_mask.all()
            assert output.packed_attention_mask[i, :used].all()
            assert_close(output.packed_state[i, :used], alone.packed_state[0], tolerance)
        for name in [name for name in output if name.endswith("hidden_states")]:
            for batched, single in zip(output[name], alone[name], strict=True):
                assert_close(batched[i, columns[i]], single[0], tolerance)


@pytest.mark.parametrize("attention", BACKENDS)
@PROPERTY
@given(batch=padded_batches(), row=st.sampled_from(MODELS), options=st.sampled_from(ALL_OPTIONS))
def test_padding_never_changes_a_result(attention, batch, row, options):
    with backend_context(attention):
        check_rows_equal_rows_alone(row, row.shared(attention, **options), *batch)


@pytest.mark.parametrize("attention", BACKENDS)
@each_model
def test_padding_never_changes_a_result_of_any_model(row, attention):
    """Rows below, at and above l, one empty, on either side, in a batch that is wider than any of them."""
    rows = [random_ids(n, n) for n in (2, 5, 8, 0, 3)]
    columns = columns_for([2, 5], 11, "left") + columns_for([8, 0, 3], 11, "right")
    with backend_context(attention):
        check_rows_equal_rows_alone(row, row.shared(attention), rows, columns, 11)


@pytest.mark.slow
def test_padding_never_changes_a_result_with_compiled_flex_attention():
    """Flex attention compiled for the CPU: without gradients, in float32, whose rounding sets the tolerance."""
    rows = [random_ids(n, n) for n in (2, 8)]
    model = MASKED_LM.shared("flex_attention", torch.float32)
    check_rows_equal_rows_alone(MASKED_LM, model, rows, columns_for([2, 8], 9, "left"), 9, 5e-5)


def test_randomised_weights_are_not_nearly_linear():
    """The guard of these tests: at unit scale, padding that is read shows, and poolings differ."""
    model = ENCODER.shared("sdpa")
    read, ignored = model(BATCH["input_ids"]), model(**BATCH)
    assert (read.last_hidden_state[1, :3] - ignored.last_hidden_state[1, :3]).abs().max() > 0.1
    logits = [row.results(row.shared("sdpa"), BATCH) for row in HEADS if row.model_class.__name__.startswith("LunaForSeq")]
    for i, one in enumerate(logits):
        assert all((one - other).abs().max() > 0.01 for other in logits[:i])


# ---------------------------------------------------------------------------------------------------------------------
# Masks: a value is zero or it is not

MASKS = {
    "bool": lambda mask: mask.bool(),
    "int32": lambda mask: mask.int(),
    "float32": lambda mask: mask.float(),
    "float64": lambda mask: mask.double(),
    "twos": lambda mask: 2 * mask,
    "numbers of packed samples": lambda mask: mask * (1 + torch.arange(mask.shape[-1]) // 3),
    "fractions": lambda mask: mask * 0.25,
    "below zero": lambda mask: -mask,
}


@pytest.mark.parametrize("form", MASKS)
@each_model
def test_mask_of_any_form(row, form):
    model = row.shared("sdpa")
    with torch.no_grad():
        expected = model(**row.inputs(LEFT))
        actual = model(**row.inputs(LEFT | {"attention_mask": MASKS[form](LEFT["attention_mask"])}))
    assert actual.keys() == expected.keys()
    for name in expected:
        assert name == CACHE_NAME or torch.equal(actual[name], expected[name]), name


@pytest.mark.parametrize("attention", BACKENDS)
def test_mask_of_any_form_with_any_backend(attention):
    with backend_context(attention), torch.no_grad():
        model = ENCODER.shared(attention)
        expected = model(**BATCH).last_hidden_state
        for form in MASKS.values():
            assert torch.equal(model(BATCH["input_ids"], form(BATCH["attention_mask"])).last_hidden_state, expected)


@pytest.mark.parametrize("attention", BACKENDS)
def test_padded_columns_hold_no_information(attention):
    other = BATCH["input_ids"].where(BATCH["attention_mask"].bool(), 17)
    with backend_context(attention), torch.no_grad():
        for row in (ENCODER, CLASSIFIER_OF_BOTH):
            model = row.shared(attention)
            expected, actual = row.results(model, BATCH), row.results(model, BATCH | {"input_ids": other})
            kept = BATCH["attention_mask"].bool() if row.per_token else ...
            assert torch.equal(actual[kept], expected[kept])


@pytest.mark.parametrize("attention", BACKENDS)
@each_option
def test_mask_of_ones_is_no_mask(options, attention):
    model = MASKED_LM.shared(attention, **options)
    ids = ids_of(TEXT[:4], TEXT[1:5])
    with backend_context(attention), torch.no_grad():
        expected, actual = model(ids), model(ids, attention_mask=torch.ones_like(ids))
    assert_close(actual.logits, expected.logits, TOLERANCE)
    assert_close(actual.packed_state, expected.packed_state, TOLERANCE)
    assert actual.packed_attention_mask.all() and expected.packed_attention_mask.all()


# ---------------------------------------------------------------------------------------------------------------------
# Inputs


@each_model
def test_inputs_embeds_are_input_ids(row):
    model = row.shared("sdpa")
    embeds = {"inputs_embeds": model.get_input_embeddings()(LEFT["input_ids"]), "attention_mask": LEFT["attention_mask"]}
    assert torch.equal(row.results(model, embeds), row.results(model, LEFT))


@each_model
def test_explicit_position_ids_replace_the_count(row):
    model = row.shared("sdpa")
    counted = LEFT["attention_mask"].cumsum(-1) * LEFT["attention_mask"] + 1
    expected = row.results(model, LEFT)
    assert_close(row.results(model, LEFT | {"position_ids": counted}), expected, TOLERANCE)
    shifted = row.results(model, LEFT | {"position_ids": counted + 1})
    assert (shifted - expected).abs().max() > 1e-3


@pytest.mark.parametrize("size", [50, 30])
@each_model
def test_resize_token_embeddings(row, size, tmp_path):
    model = row.build(dtype=torch.float32)
    batch = BATCH | {"input_ids": BATCH["input_ids"] % 30}
    before = row.results(model, batch)
    model.resize_token_embeddings(size)
    assert model.config.vocab_size == model.get_input_embeddings().num_embeddings == size
    model.save_pretrained(tmp_path)
    loaded = row.model_class.from_pretrained(tmp_path, attn_implementation="eager")
    for resized in (model, loaded):
        after = row.results(resized, batch)
        # Matrices of another width are multiplied in another order: float32 rounding.
        kept = min(size, 41) if row is MASKED_LM or row.has_decoder else None
        assert_close(after[..., :kept], before[..., :kept], 1e-5)


@pytest.mark.parametrize("row", [row for row in ENCODERS if not row.takes_choices], ids=str)
def test_text_in_segments(row):
    model = row.shared()
    segment = {"input_ids": ids_of(TEXT[:4], TEXT[2:6])}
    with torch.no_grad():
        first = model(**BATCH)
        assert first.packed_attention_mask.sum(-1).tolist() == [5, 3]
        state = {"packed_state": first.packed_state, "packed_attention_mask": first.packed_attention_mask}
        second = row.results(model, segment | state)
        # A row of 3 tokens uses 3 slots of P, in the next segment as well: the others are not read.
        alone = row.results(model, {"input_ids": ids_of(TEXT[2:6]), "packed_state": first.packed_state[1:, :3]})
        assert_close(second[1], alone[0], TOLERANCE)
        for form in MASKS.values():
            masked = segment | {
                "packed_state": first.packed_state,
                "packed_attention_mask": form(first.packed_attention_mask),
            }
            assert torch.equal(row.results(model, masked), second)
        assert (second - row.results(model, segment)).abs().max() > 1e-3
        assert torch.equal(model(**segment, **state).packed_attention_mask, first.packed_attention_mask)


# ---------------------------------------------------------------------------------------------------------------------
# Outputs


@each_head
def test_a_head_hands_on_what_its_encoder_records(row):
    model = row.shared()
    with torch.no_grad():
        encoder, output = model.luna(**BATCH, **FLAGS), model(**row.inputs(BATCH), **FLAGS)
    assert set(encoder) - set(output) == {"last_hidden_state"}
    for name in set(encoder) & set(output):
        torch.testing.assert_close(output[name], encoder[name], rtol=0, atol=0)


@each_model
def test_nothing_is_recorded_unasked(row):
    output = row.shared()(**row.inputs(BATCH))
    results = {"AutoModel": ["last_hidden_state"], "AutoModelForQuestionAnswering": ["start_logits", "end_logits"]}
    beside = ["packed_state", "packed_attention_mask"]
    if row.has_decoder:
        beside = [CACHE_NAME, "encoder_last_hidden_state"] if row.has_encoder else [CACHE_NAME]
    assert list(output) == [*results.get(row.auto_name, ["logits"]), *beside]
    if not row.has_decoder:
        assert output.packed_attention_mask.dtype == torch.long  # as the library's masks are


@pytest.mark.parametrize(
    ("flag", "recorded"),
    [
        ("output_hidden_states", {"hidden_states"}),
        ("output_packed_states", {"packed_states"}),
        ("output_attentions", {"attentions", "pack_attentions"}),
    ],
)
@each_encoder
def test_each_flag_records_its_own_outputs(row, flag, recorded):
    model, names = row.build(), {"hidden_states", "packed_states", "attentions", "pack_attentions"}
    assert set(model(**row.inputs(BATCH), **{flag: True})) & names == recorded
    if flag != "output_packed_states":  # the library's own two are fields of the configuration as well
        setattr(model.config, flag, True)
        assert set(model(**row.inputs(BATCH))) & names == recorded
        assert not set(model(**row.inputs(BATCH), **{flag: False})) & names


@pytest.mark.parametrize(
    ("flag", "recorded"),
    [
        ("output_hidden_states", ({"hidden_states"}, {"encoder_hidden_states", "decoder_hidden_states"})),
        ("output_attentions", ({"attentions"}, {"encoder_attentions", "decoder_attentions", "cross_attentions"})),
    ],
)
@each_generator
def test_each_flag_records_the_outputs_of_encoder_and_decoder(row, flag, recorded):
    model, recorded = row.build(), recorded[row.has_encoder]
    outputs = [model(**row.inputs(BATCH), **{flag: True}), model(**row.inputs(BATCH))]
    setattr(model.config, flag, True)
    outputs += [model(**row.inputs(BATCH)), model(**row.inputs(BATCH), **{flag: False})]
    names = set().union(*outputs)
    assert [set(output) & names for output in outputs] == [names, names - recorded, names, names - recorded]
    assert recorded < names
    n, l, layers = 9, 5, model.config.num_hidden_layers
    for name in recorded:
        shapes = {x.shape[1:] for x in outputs[0][name]}
        assert shapes == ({(n, 16)} if "hidden" in name else {(2, n, l)}), name
        assert len(outputs[0][name]) == layers + ("hidden" in name)


ORDER = """loss logits start_logits end_logits last_hidden_state packed_state packed_attention_mask packed_states
    hidden_states attentions pack_attentions""".split()


@each_encoder
def test_tuple_order(row):
    """One order for all classes, as a dictionary and as a tuple."""
    model = row.build()
    inputs = row.training_inputs(BATCH) | FLAGS
    output = model(**inputs)
    assert list(output) == [name for name in ORDER if name in output]
    by_argument = model(**inputs, return_dict=False)
    model.config.return_dict = False
    for values in (by_argument, model(**inputs)):
        assert isinstance(values, tuple)
        torch.testing.assert_close(values, output.to_tuple(), rtol=0, atol=0)


# ---------------------------------------------------------------------------------------------------------------------
# Saving, loading, initialising


@pytest.fixture
def load_report():
    """What transformers logs while a checkpoint is loaded."""
    level = logging.get_verbosity()
    logging.set_verbosity_warning()
    with CaptureLogger(logging.get_logger("transformers.modeling_utils")) as captured:
        yield captured
    logging.set_verbosity(level)


def assert_same_weights(model, expected):
    assert model.state_dict().keys() == expected.state_dict().keys()
    for name, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def encoder_of(model):
    return model if isinstance(model, LunaModel) else model.luna


@each_option
@each_model
def test_save_and_load(row, options, tmp_path, load_report):
    model = row.build(dtype=torch.float32, **options)
    model.save_pretrained(tmp_path)
    assert not any("attn_implementation" in key for key in json.loads((tmp_path / "config.json").read_text()))
    for loader in (row.model_class, row.auto_class):
        loaded, info = loader.from_pretrained(tmp_path, output_loading_info=True, attn_implementation="eager")
        assert type(loaded) is row.model_class and not loaded.training
        assert not any(info.values()) and load_report.io.getvalue() == "", info
        assert_same_weights(loaded, model)
        # Equal weights at other addresses: float32 rounding.
        assert_close(row.results(loaded, BATCH), row.results(model, BATCH), 1e-5)
    if not row.has_encoder:
        with pytest.raises(ValueError, match=r"^`is_decoder` is True: .*: load it with AutoModelForCausalLM\.$"):
            AutoModel.from_pretrained(tmp_path)
        return
    # The model of another class in the same folder has the encoder's weights.
    base, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(base) is LunaModel and not info["missing_keys"] and not info["mismatched_keys"]
    assert_same_weights(base, encoder_of(model))
    masked_lm, info = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert all(key.startswith("lm_head.") for key in info["missing_keys"])
    assert bool(info["missing_keys"]) == (row is not MASKED_LM)
    assert_same_weights(masked_lm.luna, encoder_of(model))
    assert masked_lm.lm_head.decoder.weight is masked_lm.luna.embeddings.word_embeddings.weight


def of_each_layer(line):
    """The names that a line of the report with "layers.{0, 1, 2}" stands for."""
    before, *after = re.split(r"\{(.*?)\}", line)
    return [f"{before}{i}{after[1]}" for i in after[0].split(", ")] if after else [before]


def check_initialisation(model, std, only=("",)):
    """Of the modules whose names begin with one of `only`."""
    for name, module in model.named_modules():
        if not name.startswith(only):
            continue
        if isinstance(module, nn.Embedding):
            assert module.weight[module.padding_idx].count_nonzero() == 0, name
            assert_initialised(module.weight[torch.arange(len(module.weight)) != module.padding_idx], std)
        elif isinstance(module, nn.Linear):
            if not name.startswith("lm_head"):
                assert_initialised(module.weight, std)
            assert module.bias is None or module.bias.count_nonzero() == 0, name
        elif isinstance(module, nn.LayerNorm):
            assert torch.equal(module.weight, torch.ones_like(module.weight)), name
            assert module.bias.count_nonzero() == 0, name
        elif isinstance(module, LunaPackedEmbeddings):
            assert_initialised(module.weight, std)


@pytest.mark.parametrize("std", [0.02, 0.5])
@each_with_an_encoder
def test_a_pretrained_encoder_in_any_model(row, std, tmp_path, load_report):
    torch.manual_seed(1)
    pretrained = MASKED_LM.build(dtype=torch.float32, initializer_range=std, hidden_size=64)
    pretrained.save_pretrained(tmp_path)
    load_report.io.truncate(0)
    model, info = row.auto_class.from_pretrained(tmp_path, num_labels=3, **row.options, output_loading_info=True)
    assert type(model) is row.model_class and not model.training
    new = set() if row is MASKED_LM else {name for name in model.state_dict() if name.startswith(row.new_weights or "-")}
    assert info.pop("missing_keys") == new
    assert not any(info.values()), info
    report = load_report.io.getvalue()
    reported = [line.split("|")[0].strip() for line in report.splitlines() if "MISSING " in line]
    assert {name for line in reported for name in of_each_layer(line)} == new
    assert "lm_head" not in report and "luna." not in report and "UNEXPECTED" not in report
    assert_same_weights(encoder_of(model), pretrained.luna)
    if new:
        check_initialisation(model, std, row.new_weights)


@each_model
def test_initialisation_of_a_new_model(row):
    torch.manual_seed(1)
    sizes = {"vocab_size": 300, "hidden_size": 64, "projection_length": 32, "max_position_embeddings": 100}
    model = row.build(initializer_range=0.1, contextual_projection=False, **sizes)
    new = row.model_class(model.config)
    check_initialisation(new, 0.1)
    packed = [module.weight for module in encoder_of(new).packed_embeddings]
    assert len(packed) == 3 and not torch.equal(packed[0], packed[1])


# ---------------------------------------------------------------------------------------------------------------------
# Precision

# Relative to the norm of the result, after three layers at unit scale: measured 0.009 with the 8 bits of bfloat16 and
# 0.0013 with the 11 of float16; three times that for other machines' order of summation.
HALF_PRECISION = [(torch.bfloat16, 0.03), (torch.float16, 0.004)]


@pytest.mark.parametrize(("dtype", "tolerance"), HALF_PRECISION, ids=str)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@each_model
def test_half_precision_is_near_float32(row, attention, dtype, tolerance):
    batch = pad_batch([TEXT[:8], TEXT[:3], []])
    kept = batch["attention_mask"].bool() if row.per_token else [0, 1]
    with torch.no_grad():
        model = row.shared(attention, dtype)
        expected = row.results(row.shared(attention, torch.float32), batch)
        actual = row.results(model, batch)
        others = [] if row.has_decoder else [model(**row.inputs(batch)).packed_state]
    for states in (actual, *others):
        assert states.dtype == dtype and torch.isfinite(states).all()
    difference = actual[kept].double() - expected[kept].double()
    assert difference.norm() < tolerance * expected[kept].double().norm()


@each_option
@each_model
def test_autocast_trains_near_float32(row, options):
    """Also with an empty row, such as a candidate that a question does not have."""
    model = row.build(attention="sdpa", dtype=torch.float32, **options).train()
    batch = pad_batch([TEXT, TEXT[:3], []])
    expected = row.loss(model, batch).item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = row.loss(model, batch)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=0.05)
    for name, parameter in model.named_parameters():
        assert parameter.grad.dtype == torch.float32 and torch.isfinite(parameter.grad).all(), name


# ---------------------------------------------------------------------------------------------------------------------
# Compilation


def check_compiled(row, backend, **options):
    """A training step as one graph for batches of different sizes around l, and the same graph without gradients."""
    model = row.build(attention="sdpa", num_hidden_layers=2, **options)
    compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=True)
    for rows in ([TEXT[:8], TEXT[:6]], [TEXT, TEXT[:2], TEXT[:5]]):
        batch = pad_batch(rows, side="left")
        gradients = []
        for one in (model, compiled):
            model.zero_grad()
            row.results(one, batch).square().mean().backward()
            gradients.append([parameter.grad.clone() for parameter in encoder_of(model).parameters()])
        scale = max(gradient.abs().max() for gradient in gradients[0])
        for expected, actual in zip(*gradients, strict=True):
            assert (actual - expected).abs().max() < TOLERANCE * scale


def check_compiled_inference(row, inputs_of, **options):
    model = row.build(attention="sdpa", num_hidden_layers=1, **options)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for rows in ([TEXT[:8], TEXT[:6]], [TEXT, TEXT[:2], TEXT[:5]], [TEXT[:3], TEXT[:2]]):
        inputs = inputs_of(pad_batch(rows, side="left"))
        with torch.no_grad():
            assert_close(row.results(compiled, inputs), row.results(model, inputs), TOLERANCE)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "row", [CLASSIFIER_OF_BOTH, *(pytest.param(row, marks=pytest.mark.slow) for row in GENERATORS)], ids=str
)
def test_compiled_training_step_is_one_graph(row, fresh_dynamo):
    check_compiled(row, "aot_eager")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", COVERING_OPTIONS[1:], ids=option_id)
def test_compiled_training_step_is_one_graph_with_any_option(options, fresh_dynamo):
    check_compiled(ENCODER, "aot_eager", **options)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_training_step_compiled_by_inductor(fresh_dynamo):
    check_compiled(ENCODER, "inductor", contextual_projection=False)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("row", [ENCODER, *(pytest.param(row, marks=pytest.mark.slow) for row in HEADS)], ids=str)
def test_compiled_inference_is_one_graph(row, fresh_dynamo):
    check_compiled_inference(row, lambda batch: batch)
    check_compiled_inference(row, lambda batch: {"input_ids": batch["input_ids"]})
