# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Official checkpoints become folders that `from_pretrained` loads, or one sentence says why not."""

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from tests.support.fresh_process import run_program
from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForSequenceClassification

from luna_tools.convert.checkpoint import (
    InputError,
    config_from_args,
    convert_state_dict,
    find_layer_norm_scale,
    load_fairseq_checkpoint,
    main,
    map_names,
    read_dictionary,
)
from modeling_luna import LunaForMaskedLM
from tests.support.fairseq_files import EMBEDDINGS, TIED, Bpe, convert
from tests.support.parity_kit import (
    HEAD_VARIANTS,
    MASKED_LM_VARIANTS,
    REPOSITORY,
    TOLERANCE_FACTOR,
    find_variant,
    max_abs_difference,
    read_goldens,
    variant_params,
)
from tests.support.stopped_command import exit_status_when_stopped

SCRIPT = REPOSITORY / "scripts" / "convert_fairseq_checkpoint.py"
LAYER = "encoder.sentence_encoder.layers.0."
UNNAMED = 'name = "."  # this folder, or its name on the Hub'


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


# Loads what was converted as a user does, and saves what it computes.
FRESH_PROCESS = """
import json
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification
import modeling_luna

for folder, goldens, batches, has_head in json.loads(sys.argv[1]):
    inputs, outputs = load_file(goldens), {}
    encoder = AutoModel.from_pretrained(folder)
    models = {"logits": AutoModelForMaskedLM.from_pretrained(folder)}
    if has_head:
        models["cls_logits"] = AutoModelForSequenceClassification.from_pretrained(folder)
    for batch in batches:
        batch_inputs = {name: inputs[f"{batch}.{name}"] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            states = encoder(**batch_inputs, output_hidden_states=True, output_packed_states=True)
            for kind, values in (("hidden", states.hidden_states), ("packed", states.packed_states)):
                outputs |= {f"{batch}.{kind}.{i}": value.clone() for i, value in enumerate(values)}
            outputs |= {f"{batch}.{kind}": model(**batch_inputs).logits for kind, model in models.items()}
    save_file(outputs, f"{folder}/outputs.safetensors")
"""


@pytest.mark.slow
def test_every_variant_converts_and_computes_the_same_in_a_fresh_process(tmp_path, capsys):
    variants = [name for name in MASKED_LM_VARIANTS if find_variant(name) is not None]
    assert len(variants) >= 7, "those in tests/data/parity"
    jobs = []
    for variant in variants:
        folder, out = find_variant(variant), tmp_path / variant
        assert convert(folder / "model.pt", out, dictionary=folder / "dict.txt") == 0
        printed = capsys.readouterr().out
        is_newer = variant == "head_variants/luna_bert/tied"
        assert f"LayerNorm factor: {'weight + 1' if is_newer else 'weight'} (detected)." in printed
        assert ("Classification head" in printed) == (variant in HEAD_VARIANTS)
        goldens = find_variant(variant.removeprefix("head_variants/")) / "goldens.safetensors"
        jobs.append((str(out), str(goldens), read_goldens(variant)[1]["batches"], variant in HEAD_VARIANTS))

    result = run_program(FRESH_PROCESS, tmp_path / "elsewhere", json.dumps(jobs), project=True)
    assert result.returncode == 0, result.stderr

    for variant, (out, _, batches, has_head) in zip(variants, jobs, strict=True):
        goldens, facts = read_goldens(variant)
        outputs = load_file(f"{out}/outputs.safetensors")
        compared = set()
        for name, output in outputs.items():
            batch, kind = name.split(".")[:2]
            mask = None
            if kind == "packed":
                mask = goldens[f"{batch}.packed_mask"].bool()
                output = output[:, : mask.shape[1]]
            elif kind != "cls_logits":
                mask = goldens[f"{batch}.attention_mask"].bool()
            tolerance = TOLERANCE_FACTOR * facts["fp32_noise"][kind]["max_abs_err"]
            assert max_abs_difference(output, goldens[name], mask) <= tolerance, f"{variant} {name}"
            compared.add((batch, kind))
        kinds = {"hidden", "packed", "logits"} | ({"cls_logits"} if has_head else set())
        assert compared == {(batch, kind) for batch in batches for kind in kinds}


# Prints the peak memory in bytes of converting what the arguments name.
CONVERT_AND_MEASURE = """
import resource
from luna_tools.convert.checkpoint import main
assert main(sys.argv[1:]) == 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
"""


@pytest.mark.slow
def test_a_checkpoint_of_the_released_size_converts_in_3_gb(tmp_path):
    args, tied = load_fairseq_checkpoint(TIED / "model.pt")
    sizes = {"encoder_layers": 12, "encoder_embed_dim": 768, "encoder_ffn_embed_dim": 3072, "encoder_attention_heads": 12}
    sizes |= {"arch": "luna_base_tied_512", "projection_length": 128, "max_positions": 512, "tokens_per_sample": 512}
    vars(args).update(sizes)
    config = config_from_args(args, vocab_size=50265)
    with torch.device("meta"):
        shapes = {name: x.shape for name, x in LunaForMaskedLM(config).state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    state_dict = {
        official: torch.empty(shapes[ours]).normal_(1.0 if "norm" in official else 0.0, 0.02, generator=generator)
        for official, ours in map_names(config).items()
    }
    state_dict["encoder.lm_head.weight"] = state_dict["encoder.sentence_encoder.embed_tokens.weight"]
    assert {name for name in tied if ".layers." not in name} == {name for name in state_dict if ".layers." not in name}
    torch.save({"args": args, "model": state_dict}, tmp_path / "model.pt")
    (tmp_path / "dict.txt").write_text("".join(f"{i} 1\n" for i in range(50260)))

    arguments = [tmp_path / "model.pt", tmp_path / "out", "--dict", tmp_path / "dict.txt"]
    program = f"sys.path.insert(0, {str(SCRIPT.parent)!r})\n{CONVERT_AND_MEASURE}"
    done = run_program(program, tmp_path / "elsewhere", *arguments, project=True)
    assert done.returncode == 0, done.stderr
    *_, peak = done.stdout.splitlines()
    assert int(peak) < 3e9
    model = LunaForMaskedLM.from_pretrained(tmp_path / "out")
    assert 130e6 < model.num_parameters() < 134e6
    loaded = model.state_dict()
    assert all(torch.equal(loaded[ours], state_dict[official]) for official, ours in map_names(config).items())


@pytest.mark.parametrize("variant", variant_params("luna_bert/tied", "luna_bert/attention_head"))
def test_files_of_the_folder(variant, tmp_path):
    folder = find_variant(variant)
    assert convert(folder / "model.pt", tmp_path / "out", dictionary=folder / "dict.txt") == 0
    assert os.listdir(tmp_path) == ["out"]
    # Besides these, save_pretrained of a Luna writes the code of the model.
    assert {"README.md", "config.json", "model.safetensors"} <= set(os.listdir(tmp_path / "out"))
    assert not list((tmp_path / "out").glob("tokenizer*"))


@pytest.mark.slow
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


def test_where_the_user_is(tmp_path, monkeypatch):
    """An empty folder stays the same one, in which the user finds the files."""
    monkeypatch.chdir(tmp_path)
    assert convert(TIED / "model.pt", ".") == 0
    assert "config.json" in os.listdir(".") and not [name for name in os.listdir(".") if name.startswith(".unfinished")]
    assert max_logits_error(tmp_path, "luna_bert/tied") <= 1


@pytest.mark.parametrize("exists", [True, False])
def test_a_link(exists, tmp_path):
    """To an empty folder, or to one that is not there yet."""
    if exists:
        (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    assert convert(TIED / "model.pt", tmp_path / "link") == 0
    assert (tmp_path / "link").is_symlink() and sorted(os.listdir(tmp_path)) == ["folder", "link"]
    assert max_logits_error(tmp_path / "folder", "luna_bert/tied") <= 1


def test_no_tokenizer_is_said_on_one_line(tmp_path, capsys):
    assert convert(TIED / "model.pt", tmp_path / "out") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "No tokenizer, since it needs --encoder-json and --vocab-bpe."


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


def test_dictionary_with_a_byte_order_mark(tmp_path):
    (tmp_path / "dict.txt").write_bytes(b"\xef\xbb\xbf" + (TIED / "dict.txt").read_bytes())
    assert read_dictionary(tmp_path / "dict.txt") == read_dictionary(TIED / "dict.txt")


def test_dictionary_that_overwrites_symbols(tmp_path):
    """The official code gives the symbol a new id, and the old one stays."""
    path = tmp_path / "dict.txt"
    path.write_text("318 12\n318 5 #fairseq:overwrite\n<s> 1 #fairseq:overwrite\n13 1 #fairseq:overwrite\n")
    assert read_dictionary(path) == ["<s>", "<pad>", "</s>", "<unk>", "318", "318", "<s>", "13", "<mask>"]


# ---------------------------------------------------------------------------------------------------------------------
# Classification heads

HEADS = variant_params(*HEAD_VARIANTS)


@pytest.mark.parametrize("variant", HEADS)
def test_the_only_head_is_converted_beside_the_language_model_head(variant, tmp_path, capsys):
    folder, head = find_variant(variant), HEAD_VARIANTS[variant]
    assert convert(folder / "model.pt", tmp_path / "out", dictionary=folder / "dict.txt") == 0
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert config.architectures == ["LunaForSequenceClassification"]
    pooling = {"cls": "cls", "pooling": "packed_max", "attention": "packed_attention"}[head.split("_")[0]]
    assert config.classifier_pooling == pooling and config.num_labels == 3 and config.classifier_dropout == 0.0
    assert (
        f"Classification head: {head}, classifier_pooling {pooling}, 3 classes. The language model head is in the file, "
        "too: AutoModelForMaskedLM loads it."
    ) in capsys.readouterr().out
    assert max_logits_error(tmp_path / "out", variant) <= 1


def test_head_none_converts_the_language_model(tmp_path, capsys):
    folder = find_variant("luna_bert/cls_head")
    assert convert(folder / "model.pt", tmp_path / "out", "--head", "none", dictionary=folder / "dict.txt") == 0
    assert AutoConfig.from_pretrained(tmp_path / "out").architectures == ["LunaForMaskedLM"]
    assert not [name for name in load_file(tmp_path / "out" / "model.safetensors") if name.startswith("classifier.")]
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "Left out" in line)
    prefix = "classification_heads.cls_classification_head"
    assert line.endswith(f"{prefix}.dense.weight, {prefix}.dense.bias, {prefix}.out_proj.weight, {prefix}.out_proj.bias.")
    assert max_logits_error(tmp_path / "out", "luna_bert/cls_head") <= 1


@pytest.fixture
def two_heads(tmp_path):
    """The path of luna_bert/cls_head with its head and, under the name of `rte`, one of 5 classes."""
    args, state_dict = load_fairseq_checkpoint(find_variant("luna_bert/cls_head") / "model.pt")
    for name in [name for name in state_dict if name.startswith("classification_heads.")]:
        tensor = state_dict[name]
        state_dict[name.replace("cls_classification_head", "rte")] = tensor if ".dense." in name else tensor[[0, 1, 2, 0, 1]]
    torch.save({"args": args, "model": state_dict}, tmp_path / "model.pt")
    return tmp_path / "model.pt"


def test_several_heads(two_heads, tmp_path, capsys):
    names = "cls_classification_head, rte"
    sentence = f"The checkpoint has the classification heads {names}: choose one of them with --head, or none."
    assert_refused(capsys, tmp_path, sentence, two_heads)
    sentence = f"The checkpoint has no classification head sst, but {names}."
    assert_refused(capsys, tmp_path, sentence, two_heads, "--head", "sst")
    assert_refused(
        capsys, tmp_path, "The checkpoint has no classification head sst, but no head.", TIED / "model.pt", "--head", "sst"
    )

    assert convert(two_heads, tmp_path / "out", "--head", "rte") == 0
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.config.num_labels == 5 and model.config.classifier_pooling == "cls"
    printed = capsys.readouterr().out
    assert "Left out: classification_heads.cls_classification_head.dense.weight, " in printed and "rte.dense" not in printed


@pytest.mark.parametrize(
    "change, sentence",
    [
        (
            lambda args, weights, head: weights.pop(f"{head}.in_proj.bias"),
            "The checkpoint lacks {0}.in_proj.bias.",
        ),
        (
            lambda args, weights, head: weights.pop(f"{head}.out_proj.bias"),
            "The checkpoint lacks {0}.out_proj.bias.",
        ),
        (
            lambda args, weights, head: weights.update({f"{head}.extra.bias": torch.zeros(2)}),
            "The checkpoint's args do not account for its parameters {0}.extra.bias.",
        ),
        (
            lambda args, weights, head: weights.update({f"{head}.dense.weight": torch.zeros(16, 32)}),
            "{0}.dense.weight has shape (16, 32), but the checkpoint's args make it (32, 32).",
        ),
        (
            lambda args, weights, head: weights.update({f"{head}.out_proj.bias": torch.tensor(1.0)}),
            "{0}.out_proj.bias has shape (), but the checkpoint's args make it (3,).",
        ),
        (
            lambda args, weights, head: setattr(args, "pooler_activation_fn", "relu"),
            "The checkpoint's pooler_activation_fn is relu, but must be tanh.",
        ),
    ],
    ids=["no in_proj", "no out_proj", "extra", "shape", "a single number", "activation"],
)
@pytest.mark.parametrize("variant", variant_params("luna_bert/pooling_head"))
def test_refused_heads(variant, change, sentence, tmp_path, capsys):
    args, state_dict = load_fairseq_checkpoint(find_variant(variant) / "model.pt")
    head = "classification_heads.pooling_classification_head"
    change(args, state_dict, head)
    torch.save({"args": args, "model": state_dict}, tmp_path / "model.pt")
    assert_refused(capsys, tmp_path, sentence.format(head), tmp_path / "model.pt")


# ---------------------------------------------------------------------------------------------------------------------
# The comparison with goldens


@pytest.mark.parametrize("variant", HEADS)
def test_verify(variant, tmp_path, capsys):
    folder = find_variant(variant)
    options = ("--verify", str(folder / "goldens.safetensors"))
    assert convert(folder / "model.pt", tmp_path / "out", *options, dictionary=folder / "dict.txt") == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith(f"Largest difference from {options[1]} as a fraction of the tolerance: hidden 0.0")
    kinds = [part.split()[-2] for part in line.rstrip(".").split(", ")]
    assert kinds == ["hidden", "packed", "logits", "cls_logits"]


@pytest.mark.parametrize("name", ["embed_positions.weight", "layers.1.self_atten_proj_layer_norm.bias", "layers.1.fc2.bias"])
def test_verify_fails(name, checkpoint, tmp_path, capsys):
    checkpoint["model"][f"encoder.sentence_encoder.{name}"][..., 0] += 1e-3
    torch.save(checkpoint, tmp_path / "model.pt")
    goldens = TIED / "goldens.safetensors"
    assert convert(tmp_path / "model.pt", tmp_path / "out", "--verify", str(goldens)) == 1
    printed = capsys.readouterr()
    assert (
        printed.err == f"error: the model is not within the tolerance of {goldens}, so {tmp_path / 'out'} was not written.\n"
    )
    assert "Largest difference" in printed.out and "Converted" not in printed.out
    assert os.listdir(tmp_path) == ["model.pt"]


def test_verify_with_other_files(tmp_path, capsys):
    path = tmp_path / "goldens.safetensors"
    sentence = f"{path} is not a file of goldens: safetensors with luna_parity in the metadata."
    assert_refused(capsys, tmp_path, sentence, TIED / "model.pt", "--verify", str(path))
    path.write_bytes((TIED / "goldens.safetensors").read_bytes()[:5000])
    assert_refused(capsys, tmp_path, sentence, TIED / "model.pt", "--verify", str(path))
    save_file({"a": torch.zeros(1)}, path)
    assert_refused(capsys, tmp_path, sentence, TIED / "model.pt", "--verify", str(path))
    other = find_variant("luna_bert/untied") / "goldens.safetensors"
    sentence = f"{other} is of another model: encoder_layers is 3 there, but 2 here."
    assert_refused(capsys, tmp_path, sentence, TIED / "model.pt", "--verify", str(other))


SHORT = "short.logits"
DAMAGED_GOLDENS = {
    "lacks": (lambda goldens, facts: goldens.pop(SHORT), f"{{0}} lacks {SHORT}, so it is damaged or of another model."),
    "shape": (
        lambda goldens, facts: goldens.update({SHORT: goldens[SHORT][:, :-1].contiguous()}),
        f"{{0}} is damaged: {SHORT} has shape (2, 5, 96), but must have (2, 6, 96).",
    ),
    "flat": (
        lambda goldens, facts: goldens.update({"short.packed_mask": torch.ones(6)}),
        "{0} is damaged: short.packed_mask must have two dimensions.",
    ),
    "mask": (
        lambda goldens, facts: goldens.update({"short.packed_mask": torch.ones(1, 6)}),
        "{0} is damaged: the mask of short.packed.0 is empty or has another shape.",
    ),
    "empty mask": (
        lambda goldens, facts: goldens.update({"short.packed_mask": torch.zeros(2, 6)}),
        "{0} is damaged: the mask of short.packed.0 is empty or has another shape.",
    ),
    "ids": (
        lambda goldens, facts: goldens["short.input_ids"].fill_(96),
        "{0} is damaged: the model cannot read its batch short.",
    ),
    "no noise": (
        lambda goldens, facts: facts["fp32_noise"].pop("logits"),
        "{0} is damaged: its fp32_noise of logits is None, but must be above 0.",
    ),
    "zero noise": (
        lambda goldens, facts: facts["fp32_noise"]["packed"].update(max_abs_err=0),
        "{0} is damaged: its fp32_noise of packed is 0.0, but must be above 0.",
    ),
    "noise as text": (
        lambda goldens, facts: facts["fp32_noise"]["packed"].update(max_abs_err="small"),
        "{0} is not a file of goldens: safetensors with luna_parity in the metadata.",
    ),
    "noise as list": (
        lambda goldens, facts: facts.update(fp32_noise=[]),
        "{0} is not a file of goldens: safetensors with luna_parity in the metadata.",
    ),
    "no batches": (
        lambda goldens, facts: facts.update(batches=[]),
        "{0} has no batches, so there is nothing to compare with.",
    ),
}


@pytest.mark.parametrize("case", DAMAGED_GOLDENS)
def test_verify_with_damaged_goldens(case, tmp_path, capsys):
    change, sentence = DAMAGED_GOLDENS[case]
    goldens, facts = read_goldens("luna_bert/tied")
    change(goldens, facts)
    path = tmp_path / "goldens.safetensors"
    save_file(goldens, path, {"luna_parity": json.dumps(facts)})
    assert_refused(capsys, tmp_path, sentence.format(path), TIED / "model.pt", "--verify", path)


@pytest.mark.parametrize("variant", variant_params("luna_bert/cls_head"))
def test_verify_compares_the_head_or_fails(variant, tmp_path, capsys):
    goldens = TIED / "goldens.safetensors"  # of the same configuration without a head
    sentence = f"{goldens} lacks short.cls_logits, so it is damaged or of another model."
    assert_refused(capsys, tmp_path, sentence, find_variant(variant) / "model.pt", "--verify", goldens)


# ---------------------------------------------------------------------------------------------------------------------
# The model card


@pytest.mark.parametrize(
    "variant", variant_params("luna_bert/tied", "luna_bert/attention_head", "head_variants/luna_bert/tied")
)
def test_model_card(variant, tmp_path):
    folder = find_variant(variant)
    assert convert(folder / "model.pt", tmp_path / "out", dictionary=folder / "dict.txt") == 0
    card = ModelCard.load(tmp_path / "out" / "README.md")
    head = HEAD_VARIANTS.get(variant)
    assert card.data.license == "unknown" and card.data.library_name == "transformers"
    assert card.data.pipeline_tag == ("fill-mask" if head is None else "text-classification")
    digest = hashlib.sha256((folder / "model.pt").read_bytes()).hexdigest()
    model = (AutoModelForMaskedLM if head is None else AutoModelForSequenceClassification).from_pretrained(tmp_path / "out")
    for fact in (digest, f"| parameters | {model.num_parameters():,} |", "trust_remote_code=True", "import modeling_luna"):
        assert fact in card.text
    assert ("1 + those in the file" in card.text) == variant.startswith("head_variants")
    assert head is None or f"`{head}`" in card.text
    assert not re.search(r"\$\w|None", card.text)


@pytest.mark.slow
@pytest.mark.parametrize("with_tokenizer", [True, False])
def test_both_programs_of_the_card_run(with_tokenizer, tmp_path):
    out = tmp_path / "out"
    if with_tokenizer:
        bpe = Bpe(tmp_path)
        assert convert(bpe.checkpoint, out, *bpe.options, dictionary=bpe.dict) == 0
    else:
        assert convert(TIED / "model.pt", out) == 0
    vocab_size = AutoConfig.from_pretrained(out).vocab_size
    remote_code, installed = re.findall(r"```python\n(.*?)```", ModelCard.load(out / "README.md").text, re.DOTALL)
    # The line in which push_to_hub writes the name on the Hub.
    assert remote_code.count(f"\n{UNNAMED}\n") == 1 and "(name, trust_remote_code=True)" in remote_code
    result = run_program(remote_code, out)
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(rf"torch\.Size\(\[1, \d+, {vocab_size}\]\)\n", result.stdout)

    assert installed.startswith("import modeling_luna") and ("AutoTokenizer" in installed) == with_tokenizer
    setup = f"{UNNAMED}\nfrom transformers import AutoModelForMaskedLM, AutoTokenizer\n"
    result = run_program(f"{setup}{installed}\nprint(type(model).__module__)", out, project=True)
    assert result.returncode == 0 and result.stdout == "modeling_luna\n", result.stderr


# ---------------------------------------------------------------------------------------------------------------------
# What is refused


def assert_refused(capsys, tmp_path: Path, sentence: str, checkpoint, *options, dictionary=TIED / "dict.txt") -> None:
    before = sorted(os.listdir(tmp_path))
    assert convert(checkpoint, tmp_path / "out", *options, dictionary=dictionary) == 2
    assert capsys.readouterr().err == f"error: {sentence}\n"
    assert sorted(os.listdir(tmp_path)) == before


ARGS_AND_SENTENCE = [
    (
        {"arch": "luna_lra_listop"},
        "The checkpoint's architecture is luna_lra_listop, of the lra family, which is not supported yet: only the masked "
        "language model is.",
    ),
    (
        {"arch": "roberta_base"},
        "The checkpoint's architecture is roberta_base, but only the masked language model can be converted: luna_bert, "
        "luna_base_512, luna_base_tied_512, luna_base_untied_512, luna_base_2048, luna_large_512, "
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
        {"activation_fn": ["gelu"]},
        "The checkpoint's activation_fn is ['gelu'], but only gelu, gelu_accurate, gelu_fast, relu can be converted.",
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
    (
        lambda weights: weights.update({f"{LAYER}fc1.bias": torch.zeros(64, dtype=torch.int8)}),
        f"{LAYER}fc1.bias holds int8, but weights must be one of float32, float16, bfloat16, float64.",
    ),
    (
        lambda weights: weights.update({f"{LAYER}fc1.bias": torch.zeros(64).to(torch.float8_e4m3fn)}),
        f"{LAYER}fc1.bias holds float8_e4m3fn, but weights must be one of float32, float16, bfloat16, float64.",
    ),
    (
        lambda weights: weights.update({f"{LAYER}final_layer_norm.weight": torch.ones(32).to_sparse()}),
        f"{LAYER}final_layer_norm.weight is a sparse or nested tensor, but weights must be dense tensors.",
    ),
    (
        lambda weights: weights.update({f"{LAYER}fc1.bias": torch.zeros(64, device="meta")}),
        f"{LAYER}fc1.bias is a meta tensor, without values, but weights must be dense tensors.",
    ),
    (
        lambda weights: weights.update({f"{LAYER}fc1.bias": torch.full((64,), torch.nan)}),
        f"{LAYER}fc1.bias holds values that are infinite in float32 or not a number, so the checkpoint is broken.",
    ),
    (
        lambda weights: weights.update({f"{LAYER}fc1.bias": torch.full((64,), 1e300, dtype=torch.float64)}),
        f"{LAYER}fc1.bias holds values that are infinite in float32 or not a number, so the checkpoint is broken.",
    ),
    (
        lambda weights: weights.update({EMBEDDINGS: torch.tensor(1.0)}),
        f"{EMBEDDINGS} has shape (), but the checkpoint's args make it (96, 32).",
    ),
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


OTHER_FAMILIES = ("seq2seq/tied_shared", "seq2seq/untied_prenorm_learned", "lra/listop_tied_layers", "lra/retrieval_dual")


@pytest.mark.parametrize("variant", variant_params(*OTHER_FAMILIES))
def test_other_families_are_refused_by_name(variant, tmp_path, capsys):
    path = find_variant(variant) / "model.pt"
    arch, family = load_fairseq_checkpoint(path)[0].arch, variant.split("/")[0]
    sentence = (
        f"The checkpoint's architecture is {arch}, of the {family} family, which is not supported yet: only the masked "
        "language model is."
    )
    assert_refused(capsys, tmp_path, sentence, path)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("fraction", [0, 0.001, 0.1, 0.5, 0.99])
def test_truncated_file(fraction, legacy, checkpoint, tmp_path, capsys):
    path = tmp_path / "model.pt"
    torch.save(checkpoint, path, _use_new_zipfile_serialization=not legacy)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    assert_refused(capsys, tmp_path, f"{path} is truncated, damaged or not a PyTorch checkpoint.", path)


@pytest.mark.parametrize(
    "options, sentence",
    [
        (("--dict", "d", "--vocab-bpe", "x"), "give --encoder-json and --vocab-bpe together"),
        ((), "--dict is required: the dict.txt that came with the checkpoint"),
        (("--to-fairseq", "--verify", "x"), "--encoder-json, --vocab-bpe and --verify are not for --to-fairseq"),
    ],
)
def test_options_that_do_not_fit(options, sentence, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([str(TIED / "model.pt"), str(tmp_path / "out"), *options])
    assert capsys.readouterr().err.endswith(f"error: {sentence}\n")


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
        (b"\xff\xfe 1\n", "{0} is not UTF-8 text, so it is not a dictionary."),
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


def test_a_folder_by_way_of_one_that_is_not_there(tmp_path, capsys):
    (tmp_path / "kept.txt").write_text("kept")
    assert convert(TIED / "model.pt", tmp_path / "new" / "..") == 2
    assert capsys.readouterr().err == f"error: {tmp_path} already exists and is not an empty folder.\n"
    assert os.listdir(tmp_path) == ["kept.txt"]


def test_a_name_that_is_too_long(tmp_path, capsys):
    assert convert(TIED / "model.pt", tmp_path / ("x" * 300)) == 2
    error = capsys.readouterr().err
    assert "x cannot be written: " in error and error.startswith("error: ") and error.count("\n") == 1


def test_parents_that_were_made_do_not_stay(monkeypatch, tmp_path, capsys, checkpoint):
    """Neither after an error nor where the goldens differ."""
    checkpoint["model"][f"{LAYER}fc2.bias"][0] += 1e-3
    torch.save(checkpoint, tmp_path / "model.pt")
    out = tmp_path / "new" / "folder" / "out"
    assert convert(tmp_path / "model.pt", out, "--verify", str(TIED / "goldens.safetensors")) == 1
    assert os.listdir(tmp_path) == ["model.pt"]
    monkeypatch.setattr(LunaForMaskedLM, "save_pretrained", lambda *args, **kwargs: Path("/dev/full").write_text("x" * 9999))
    assert convert(TIED / "model.pt", out) == 2
    assert capsys.readouterr().err.count(f"error: {out} cannot be written: ") == 1
    assert os.listdir(tmp_path) == ["model.pt"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing_and_says_one_sentence(number, monkeypatch, tmp_path, capsys):
    def write_a_part_and_be_stopped(model, folder, **kwargs):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        signal.raise_signal(number)

    monkeypatch.setattr(LunaForMaskedLM, "save_pretrained", write_a_part_and_be_stopped)
    status = exit_status_when_stopped(lambda: convert(TIED / "model.pt", tmp_path / "new" / "out"))
    assert status == 128 + number
    assert capsys.readouterr().err == f"error: stopped by {number.name}: nothing is half-written.\n"
    assert os.listdir(tmp_path) == []


def test_a_model_that_does_not_load_back_is_not_kept(monkeypatch, tmp_path, capsys):
    from_pretrained = AutoModelForMaskedLM.from_pretrained

    def lose_a_weight(folder, **kwargs):
        model, loading_info = from_pretrained(folder, **kwargs)
        return model, loading_info | {"missing_keys": ["lm_head.dense.bias"]}

    monkeypatch.setattr(AutoModelForMaskedLM, "from_pretrained", lose_a_weight)
    sentence = "The converted model does not load back: missing_keys are ['lm_head.dense.bias']."
    assert_refused(capsys, tmp_path, sentence, TIED / "model.pt")


def test_changed_values_are_not_kept(monkeypatch, tmp_path, capsys):
    from_pretrained = AutoModelForMaskedLM.from_pretrained

    def change_a_weight(folder, **kwargs):
        model, loading_info = from_pretrained(folder, **kwargs)
        model.lm_head.dense.bias.data[0] += 1
        return model, loading_info

    monkeypatch.setattr(AutoModelForMaskedLM, "from_pretrained", change_a_weight)
    sentence = "The converted model does not load back: the values of lm_head.dense.bias are others."
    assert_refused(capsys, tmp_path, sentence, TIED / "model.pt")


def test_a_full_disk_leaves_nothing(monkeypatch, tmp_path, capsys):
    def write_a_part_and_fail(model, folder, **kwargs):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        raise OSError("disk full")

    monkeypatch.setattr(LunaForMaskedLM, "save_pretrained", write_a_part_and_fail)
    assert_refused(capsys, tmp_path, f"{tmp_path / 'out'} cannot be written: disk full.", TIED / "model.pt")


@pytest.mark.slow
@pytest.mark.parametrize("limit", [1_000, 60_000, 100_000], ids=["config", "code", "weights"])
def test_a_file_that_cannot_be_written_whole(limit, tmp_path):
    """The system refuses to write more than `limit` bytes to a file, as a full disk would."""
    program = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
    program += f"import sys; sys.path[:0] = [{str(SCRIPT.parent)!r}]\n"
    program += "from luna_tools.convert.checkpoint import main; sys.exit(main(sys.argv[1:]))"
    out = tmp_path / "out"
    command = [sys.executable, "-c", program, TIED / "model.pt", out, "--dict", TIED / "dict.txt"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 2 and result.stderr.startswith(f"error: {out} cannot be written: ")
    assert result.stderr.count("\n") == 1 and os.listdir(tmp_path) == []


def test_a_parent_that_is_a_file(tmp_path, capsys):
    (tmp_path / "file").write_text("kept")
    assert convert(TIED / "model.pt", tmp_path / "file" / "out") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'file' / 'out'} cannot be written: ") and error.count("\n") == 1
    assert os.listdir(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "kept"


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


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("harmless", [True, False])
@pytest.mark.parametrize("protocol", [4, 5])
def test_newer_pickles_are_refused_as_what_they_are(protocol, harmless, legacy, checkpoint, tmp_path, capsys, recwarn):
    if not harmless:
        checkpoint["extra_state"] = Payload(os.mkdir, str(tmp_path / "victim"))
    path = tmp_path / "model.pt"
    torch.save(checkpoint, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    sentence = (
        f"{path} is refused because its pickle has protocol {protocol}, but without running code torch reads only its own "
        "protocol, 2: it has to be saved again with that."
    )
    assert_refused(capsys, tmp_path, sentence, path)
    assert not recwarn.list


def test_protocol_3_is_read_without_a_warning(checkpoint, tmp_path, recwarn):
    torch.save(checkpoint, tmp_path / "model.pt", pickle_protocol=3)
    _, state_dict = load_fairseq_checkpoint(tmp_path / "model.pt")
    assert all(torch.equal(tensor, checkpoint["model"][name]) for name, tensor in state_dict.items())
    assert not recwarn.list


def test_conversion_error_is_a_value_error():
    assert issubclass(InputError, ValueError)
