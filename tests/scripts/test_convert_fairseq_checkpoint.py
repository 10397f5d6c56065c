# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Official checkpoints become folders that `from_pretrained` loads, or one sentence says why not."""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM

from convert_fairseq_checkpoint import (
    ConversionError,
    config_from_args,
    convert_state_dict,
    find_layer_norm_scale,
    load_fairseq_checkpoint,
    main,
    map_names,
    read_dictionary,
)
from modeling_luna import LunaForMaskedLM
from parity_kit import (
    MASKED_LM_VARIANTS,
    REPOSITORY,
    TOLERANCE_FACTOR,
    find_variant,
    max_abs_difference,
    read_goldens,
    variant_params,
)

SCRIPT = REPOSITORY / "scripts" / "convert_fairseq_checkpoint.py"
TIED = find_variant("luna_bert/tied")
LAYER = "encoder.sentence_encoder.layers.0."


def convert(checkpoint, out, *options, dictionary=TIED / "dict.txt") -> int:
    return main([str(checkpoint), str(out), "--dict", str(dictionary), *options])


def max_logits_error(folder, variant: str) -> float:
    """Largest error of the converted model's logits over all batches, as a fraction of the tolerance."""
    model = AutoModelForMaskedLM.from_pretrained(folder)
    assert isinstance(model, LunaForMaskedLM) and not model.training
    goldens, facts = read_goldens(variant)
    errors = []
    for batch in facts["batches"]:
        mask = goldens[f"{batch}.attention_mask"]
        with torch.no_grad():
            logits = model(input_ids=goldens[f"{batch}.input_ids"], attention_mask=mask).logits
        errors.append(max_abs_difference(logits, goldens[f"{batch}.logits"], mask.bool()))
    return max(errors) / (TOLERANCE_FACTOR * facts["fp32_noise"]["logits"]["max_abs_err"])


@pytest.fixture
def checkpoint():
    """The content of luna_bert/tied, to be changed and saved by a test."""
    args, state_dict = load_fairseq_checkpoint(TIED / "model.pt")
    return {"args": args, "model": state_dict}


# ---------------------------------------------------------------------------------------------------------------------
# What is converted


@pytest.mark.parametrize("variant", variant_params(*MASKED_LM_VARIANTS))
def test_converts(variant, tmp_path, capsys):
    folder = find_variant(variant)
    assert convert(folder / "model.pt", tmp_path / "out", dictionary=folder / "dict.txt") == 0

    assert sorted(os.listdir(tmp_path / "out")) == ["config.json", "model.safetensors"]
    assert os.listdir(tmp_path) == ["out"]
    assert max_logits_error(tmp_path / "out", variant) <= 1
    printed = capsys.readouterr().out
    is_newer = variant == "head_variants/luna_bert/tied"
    assert f"LayerNorm factor: {'weight + 1' if is_newer else 'weight'} (detected)." in printed
    has_classifier = variant.removeprefix("luna_bert/") in (
        "cls_head", "pooling_head", "pooling_head_fixed", "attention_head"
    )  # fmt: skip
    assert ("Left out" in printed) == has_classifier


def test_command_line(tmp_path):
    command = [sys.executable, SCRIPT, TIED / "model.pt", tmp_path / "out", "--dict", TIED / "dict.txt"]
    # From elsewhere and without an installed model.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert max_logits_error(tmp_path / "out", "luna_bert/tied") <= 1

    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr == f"error: {tmp_path / 'out'} already exists and is not an empty folder.\n"


def test_an_empty_folder_and_missing_parents_are_no_obstacle(tmp_path):
    (tmp_path / "empty").mkdir()
    assert convert(TIED / "model.pt", tmp_path / "empty") == 0
    assert convert(TIED / "model.pt", tmp_path / "new" / "folder") == 0
    assert max_logits_error(tmp_path / "empty", "luna_bert/tied") <= 1
    assert max_logits_error(tmp_path / "new" / "folder", "luna_bert/tied") <= 1


def test_left_out_heads_are_named_on_one_line(tmp_path, capsys):
    folder = find_variant("luna_bert/cls_head")
    assert convert(folder / "model.pt", tmp_path / "out", dictionary=folder / "dict.txt") == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "Left out" in line)
    prefix = "classification_heads.cls_classification_head"
    assert line.endswith(f"{prefix}.dense.weight, {prefix}.dense.bias, {prefix}.out_proj.weight, {prefix}.out_proj.bias.")


def test_layer_norm_scale_can_be_given(tmp_path, capsys):
    assert convert(TIED / "model.pt", tmp_path / "given", "--layer-norm-scale", "weight_plus_one") == 0
    assert "LayerNorm factor: weight + 1 (given)." in capsys.readouterr().out
    _, official = load_fairseq_checkpoint(TIED / "model.pt")
    layer_norm = AutoModelForMaskedLM.from_pretrained(tmp_path / "given").luna.layers[0].final_layer_norm
    assert torch.equal(layer_norm.weight, official[f"{LAYER}final_layer_norm.weight"] + 1)
    assert torch.equal(layer_norm.bias, official[f"{LAYER}final_layer_norm.bias"])


@pytest.mark.parametrize(
    "scale, weights",
    [
        ("weight", [1.0, 1.0]),
        ("weight", [0.8, 0.3]),
        ("weight", [0.007, 0.05]),  # small factors, as in luna_bert/smallscale
        ("weight", [2.0, -0.1]),
        ("weight_plus_one", [0.0, 0.0]),
        ("weight_plus_one", [-0.2, -0.4]),
        ("weight_plus_one", [0.7, -0.8]),
    ],
)
def test_layer_norm_scale_is_told_by_the_weights(scale, weights):
    state_dict = {"a.layer_norm.weight": torch.tensor(weights), "a.fc1.weight": torch.full((4, 4), -9.0)}
    assert find_layer_norm_scale(state_dict) == scale


def test_half_precision_is_converted_to_float32_and_said(checkpoint, tmp_path, capsys):
    checkpoint["model"] = {name: tensor.half() for name, tensor in checkpoint["model"].items()}
    torch.save(checkpoint, tmp_path / "half.pt")
    assert convert(tmp_path / "half.pt", tmp_path / "out") == 0
    assert "Weights in float16 were converted to float32." in capsys.readouterr().out
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    name = f"{LAYER}self_attn.pq_proj.weight"
    assert torch.equal(model.get_parameter(map_names(model.config)[name]), checkpoint["model"][name].float())


def test_float32_is_not_said(tmp_path, capsys):
    assert convert(TIED / "model.pt", tmp_path / "out") == 0
    assert "converted to float32" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "changed, expected",
    [
        ({"dropout": 0.3}, {"hidden_dropout_prob": 0.3}),
        ({"attention_dropout": 0.2}, {"attention_probs_dropout_prob": 0.2}),
        ({"activation_dropout": 0.4}, {"activation_dropout": 0.4}),
        ({"encoder_layers": 7}, {"num_hidden_layers": 7}),
        ({"encoder_attention_heads": 8}, {"num_attention_heads": 8}),
        ({"encoder_embed_dim": 40}, {"hidden_size": 40}),
        ({"encoder_ffn_embed_dim": 48}, {"intermediate_size": 48}),
        ({"projection_length": 16}, {"projection_length": 16}),
        ({"max_positions": 512}, {"max_position_embeddings": 514}),
        ({"fix_projection_length": True}, {"dynamic_projection": False}),
        ({"untie_luna_kv": True}, {"tie_key_value": False}),
        ({"untie_weights_luna": True}, {"tie_word_embeddings": False}),
        ({"activation_fn": "relu"}, {"hidden_act": "relu"}),
        ({"activation_fn": "gelu_accurate"}, {"hidden_act": "gelu_pytorch_tanh"}),
        ({"activation_fn": "gelu_fast"}, {"hidden_act": "gelu_pytorch_tanh"}),
        ({"arch": "luna_base_untied_512"}, {}),
    ],
)
def test_config_from_args(checkpoint, changed, expected):
    before = config_from_args(checkpoint["args"], vocab_size=96).to_dict()
    after = config_from_args(argparse.Namespace(**{**vars(checkpoint["args"]), **changed}), vocab_size=96).to_dict()
    assert {name: value for name, value in after.items() if value != before[name]} == expected


def test_flags_that_older_code_did_not_have_are_off(checkpoint):
    before = config_from_args(checkpoint["args"], vocab_size=96)
    for flag in ("fix_projection_length", "untie_luna_kv", "untie_weights_luna"):
        delattr(checkpoint["args"], flag)
    after = config_from_args(checkpoint["args"], vocab_size=96)
    assert after.to_dict() == before.to_dict()
    assert after.dynamic_projection and after.tie_key_value and after.tie_word_embeddings


@pytest.mark.parametrize("variant", ["luna_bert/tied", "luna_bert/untied"])
def test_every_parameter_has_one_official_name(variant):
    folder = find_variant(variant)
    args, state_dict = load_fairseq_checkpoint(folder / "model.pt")
    config = config_from_args(args, vocab_size=96)
    names = map_names(config)
    assert set(names) == set(state_dict)
    assert sorted(names.values()) == sorted(LunaForMaskedLM(config).state_dict())
    converted = convert_state_dict(state_dict, config)
    assert all(torch.equal(converted[ours], state_dict[official]) for official, ours in names.items())


def test_dictionary(tmp_path):
    path = tmp_path / "dict.txt"
    path.write_text("318 12\n\u00e9\u2028x 3\nmadeupword0000 0\n", encoding="utf-8")
    symbols = ["<s>", "<pad>", "</s>", "<unk>", "318", "\u00e9\u2028x", "madeupword0000"]
    assert read_dictionary(path) == [*symbols, "<mask>"]
    path.write_text("318 12\n<mask> 0\n13 1\n", encoding="utf-8")
    assert read_dictionary(path) == [*symbols[:5], "<mask>", "13"]


# ---------------------------------------------------------------------------------------------------------------------
# What is refused


def assert_refused(capsys, tmp_path: Path, sentence: str, checkpoint, *, dictionary=TIED / "dict.txt") -> None:
    before = sorted(os.listdir(tmp_path))
    assert convert(checkpoint, tmp_path / "out", dictionary=dictionary) == 2
    assert capsys.readouterr().err.endswith(f"error: {sentence}\n")  # after transformers' progress bars
    assert sorted(os.listdir(tmp_path)) == before


EMBEDDINGS = "encoder.sentence_encoder.embed_tokens.weight"
ARGS_AND_SENTENCE = [
    (
        {"arch": "luna_lra_listop"},
        "The checkpoint's architecture is luna_lra_listop, but only the masked language model can be converted: "
        "luna_bert, luna_base_512, luna_base_tied_512, luna_base_untied_512, luna_base_2048, luna_large_512, "
        "luna_large_2048.",
    ),
    ({"projection_length": None}, "The checkpoint's args lack projection_length."),
    (
        {"dropout": None, "max_positions": None, "activation_fn": None, "encoder_layers": None},
        "The checkpoint's args lack encoder_layers, dropout, max_positions and 1 more.",
    ),
    (
        {"activation_fn": "swish"},
        "The checkpoint's activation_fn is swish, but only gelu, gelu_accurate, gelu_fast, relu can be converted.",
    ),
    (
        {"untie_luna_kv": True},
        f"The checkpoint lacks {LAYER}self_attn.pk_proj.weight, {LAYER}self_attn.pk_proj.bias, "
        f"{LAYER}self_attn.pv_proj.weight and 13 more.",
    ),
    (
        {"encoder_layers": 1},
        "The checkpoint's args do not account for its parameters "
        + ", ".join(f"{LAYER.replace('0', '1')}self_attn.{name}" for name in ("pq_proj.weight", "pq_proj.bias"))
        + f", {LAYER.replace('0', '1')}self_attn.q_proj.weight and 17 more.",
    ),
    (
        {"projection_length": 9},
        "encoder.sentence_encoder.projected_embeddings has shape (8, 32), but the checkpoint's args make it (9, 32).",
    ),
    (
        {"max_positions": 65},
        "encoder.sentence_encoder.embed_positions.weight has shape (66, 32), but the checkpoint's args make it (67, 32).",
    ),
]


@pytest.mark.parametrize("changed, sentence", ARGS_AND_SENTENCE)
def test_refused_args(changed, sentence, checkpoint, tmp_path, capsys):
    for name, value in changed.items():
        setattr(checkpoint["args"], name, value)
        if value is None:
            delattr(checkpoint["args"], name)
    torch.save(checkpoint, tmp_path / "model.pt")
    assert_refused(capsys, tmp_path, sentence, tmp_path / "model.pt")


@pytest.mark.parametrize("changed", [{"encoder_attention_heads": 5}, {"dropout": "0.1"}, {"max_positions": "64"}])
def test_args_that_make_no_model(changed, checkpoint, tmp_path, capsys):
    vars(checkpoint["args"]).update(changed)
    torch.save(checkpoint, tmp_path / "model.pt")
    assert convert(tmp_path / "model.pt", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: The checkpoint's args do not describe a Luna model: ") and error.count("\n") == 1
    assert os.listdir(tmp_path) == ["model.pt"]


WEIGHTS_AND_SENTENCE = [
    (lambda weights: weights.pop(f"{LAYER}fc1.bias"), f"The checkpoint lacks {LAYER}fc1.bias."),
    (
        lambda weights: weights.update({"encoder.extra.weight": torch.zeros(3)}),
        "The checkpoint's args do not account for its parameters encoder.extra.weight.",
    ),
    (
        lambda weights: weights.update({f"{LAYER}fc1.bias": torch.zeros(3)}),
        f"{LAYER}fc1.bias has shape (3,), but the checkpoint's args make it (64,).",
    ),
    (
        lambda weights: weights.update({"encoder.lm_head.weight": weights["encoder.lm_head.weight"] + 1}),
        "encoder.lm_head.weight differs from encoder.sentence_encoder.embed_tokens.weight, although the checkpoint's "
        "args do not set untie_weights_luna.",
    ),
    (lambda weights: weights.clear(), "The checkpoint has no LayerNorm weights, so it is not a Luna model."),
]


@pytest.mark.parametrize("change, sentence", WEIGHTS_AND_SENTENCE)
def test_refused_weights(change, sentence, checkpoint, tmp_path, capsys):
    change(checkpoint["model"])
    torch.save(checkpoint, tmp_path / "model.pt")
    assert_refused(capsys, tmp_path, sentence, tmp_path / "model.pt")


@pytest.mark.parametrize(
    "content, problem",
    [
        ([1, 2], 'has no argparse.Namespace under "args", so it is not a checkpoint of fairseq.'),
        ({"cfg": {}, "model": {}}, 'has no argparse.Namespace under "args", so it is not a checkpoint of fairseq.'),
        ({"args": argparse.Namespace()}, 'has no dictionary of named tensors under "model".'),
        ({"args": argparse.Namespace(), "model": {"a": 1}}, 'has no dictionary of named tensors under "model".'),
        (
            {"args": argparse.Namespace(), "model": {1: torch.zeros(1)}},
            'has no dictionary of named tensors under "model".',
        ),
    ],
)
def test_another_content(content, problem, tmp_path, capsys):
    path = tmp_path / "model.pt"
    torch.save(content, path)
    assert_refused(capsys, tmp_path, f"{path} {problem}", path)


@pytest.mark.parametrize("variant", variant_params("seq2seq/tied_shared", "lra/listop_tied_layers"))
def test_other_models_are_refused_by_their_architecture(variant, tmp_path, capsys):
    args, _ = load_fairseq_checkpoint(find_variant(variant) / "model.pt")
    assert convert(find_variant(variant) / "model.pt", tmp_path / "out") == 2
    assert f"architecture is {args.arch}, but only the masked" in capsys.readouterr().err


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("fraction", [0, 0.001, 0.1, 0.5, 0.99])
def test_truncated_file(fraction, legacy, checkpoint, tmp_path, capsys):
    path = tmp_path / "model.pt"
    torch.save(checkpoint, path, _use_new_zipfile_serialization=not legacy)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    assert_refused(capsys, tmp_path, f"{path} is truncated, damaged or not a PyTorch checkpoint.", path)


def test_text_file(tmp_path, capsys):
    path = TIED / "dict.txt"
    assert_refused(capsys, tmp_path, f"{path} is truncated, damaged or not a PyTorch checkpoint.", path)


def test_missing_files(tmp_path, capsys):
    missing = tmp_path / "missing"
    assert_refused(capsys, tmp_path, f"There is no checkpoint file {missing}.", missing)
    assert_refused(capsys, tmp_path, f"There is no dictionary file {missing}.", TIED / "model.pt", dictionary=missing)


@pytest.mark.parametrize(
    "content, problem",
    [
        (b"318 12\n13\n", "Line 2 of {0} is '13', but must be a symbol, a space and a count."),
        (b"318 12\n\n13 1\n", "Line 2 of {0} is '', but must be a symbol, a space and a count."),
        (b"318 many\n", "Line 1 of {0} is '318 many', but must be a symbol, a space and a count."),
        (b"318 12\n13 1\n318 1\n", "Line 3 of {0} repeats the symbol '318'."),
        (b"\xff\xfe 1\n", "{0} is not UTF-8 text, so it is not a fairseq dictionary."),
        (
            b"318 12\n",
            "{0} makes a vocabulary of 6 symbols with the special ones, but the checkpoint has embeddings for 96.",
        ),
    ],
)
def test_refused_dictionary(content, problem, tmp_path, capsys):
    path = tmp_path / "dict.txt"
    path.write_bytes(content)
    assert_refused(capsys, tmp_path, problem.format(path), TIED / "model.pt", dictionary=path)


@pytest.mark.parametrize("existing", ["folder", "file"])
def test_existing_output_is_not_touched(existing, tmp_path, capsys):
    out = tmp_path / "out"
    kept = out / "kept.txt" if existing == "folder" else out
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("kept")
    assert_refused(capsys, tmp_path, f"{out} already exists and is not an empty folder.", TIED / "model.pt")
    assert kept.read_text() == "kept"


def test_a_model_that_does_not_load_back_is_not_kept(monkeypatch, tmp_path, capsys):
    from_pretrained = AutoModelForMaskedLM.from_pretrained

    def lose_a_weight(folder, **kwargs):
        model, loading_info = from_pretrained(folder, **kwargs)
        return model, loading_info | {"missing_keys": ["lm_head.dense.bias"]}

    monkeypatch.setattr(AutoModelForMaskedLM, "from_pretrained", lose_a_weight)
    sentence = "The converted model does not load back: missing_keys are ['lm_head.dense.bias']."
    assert_refused(capsys, tmp_path, sentence, TIED / "model.pt")


def test_a_full_disk_leaves_nothing(monkeypatch, tmp_path, capsys):
    def write_a_part_and_fail(model, folder):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        raise OSError("disk full")

    monkeypatch.setattr(LunaForMaskedLM, "save_pretrained", write_a_part_and_fail)
    assert_refused(capsys, tmp_path, "disk full", TIED / "model.pt")


class Payload:
    """Pickles to a call of `function(argument)`."""

    def __init__(self, function, argument):
        self.call = function, (argument,)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("place", ["args", "model", "extra_state"])
@pytest.mark.parametrize(
    "function, refused", [(os.mkdir, f"{os.name}.mkdir"), (shutil.rmtree, "shutil.rmtree"), (exec, "exec")]
)
def test_malicious_pickle_is_refused_by_name_and_does_not_run(
    function, refused, place, legacy, checkpoint, tmp_path, capsys
):
    victim = tmp_path / "victim"
    argument = f"open({str(victim)!r}, 'w').close()" if function is exec else str(victim)
    if function is shutil.rmtree:
        victim.mkdir()
    checkpoint[place] = Payload(function, argument)
    path = tmp_path / "model.pt"
    torch.save(checkpoint, path, _use_new_zipfile_serialization=not legacy)

    assert_refused(
        capsys,
        tmp_path,
        f"{path} is refused because its pickle names {refused}, and a Luna checkpoint holds nothing but tensors, "
        "plain values and an argparse.Namespace.",
        path,
    )
    assert victim.exists() == (function is shutil.rmtree)
    # The pickle does what it says when it is read without care.
    torch.load(path, weights_only=False)
    assert victim.exists() != (function is shutil.rmtree)


def test_conversion_error_is_a_value_error():
    assert issubclass(ConversionError, ValueError)
