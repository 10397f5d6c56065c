# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""A folder becomes an official checkpoint, and what came from one comes back to the bit."""

import argparse
import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file, save_file

from configuration_luna import LunaConfig
from luna_tools.convert.checkpoint import load_fairseq_checkpoint
from luna_tools.convert.run import main
from luna_tools.errors import InputError, Stopped
from modeling_luna import (
    LunaForMaskedLM,
    LunaForMultipleChoice,
    LunaForSequenceClassification,
    LunaForTokenClassification,
    LunaModel,
)
from tests.support.fairseq_files import TIED, Bpe, convert
from tests.support.parity_kit import HEAD_VARIANTS, MASKED_LM_VARIANTS, find_variant, variant_params

# Those that build the official model.
MODEL_ARGS = (
    "encoder_layers encoder_embed_dim encoder_ffn_embed_dim encoder_attention_heads projection_length "
    "fix_projection_length untie_luna_kv untie_weights_luna activation_fn pooler_activation_fn dropout "
    "attention_dropout activation_dropout pooler_dropout max_positions encoder_layerdrop encoder_layers_to_keep "
    "quant_noise_pq quant_noise_pq_block_size quant_noise_scalar"
).split()


def convert_back(folder, checkpoint, *options) -> None:
    main([str(folder), "--to_fairseq", str(checkpoint), *map(str, options)])


def tiny_model(model_class=LunaForMaskedLM, **changes):
    torch.manual_seed(1)
    sizes = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    return model_class(LunaConfig(**sizes | {"projection_length": 4, "max_position_embeddings": 20} | changes))


def same_tensors(one: dict, other: dict) -> bool:
    """Names, types and bits."""
    return one.keys() == other.keys() and all(
        tensor.dtype == other[name].dtype and torch.equal(tensor, other[name]) for name, tensor in one.items()
    )


# ---------------------------------------------------------------------------------------------------------------------
# Round trips


@pytest.mark.parametrize("variant", variant_params(*MASKED_LM_VARIANTS))
def test_official_to_folder_to_official(variant, tmp_path, capsys):
    source = find_variant(variant)
    convert(source / "model.pt", tmp_path / "out", dictionary=source / "dict.txt")
    target = tmp_path / "back" / "model.pt"
    # Asked for as it was: by default it is that of the published release.
    scale = ["--layer_norm_scale", "weight_plus_one"] if variant.startswith("head_variants") else []
    convert_back(tmp_path / "out", target, "--dictionary", source / "dict.txt", *scale)

    args, state_dict = load_fairseq_checkpoint(source / "model.pt")
    back_args, back = load_fairseq_checkpoint(target)
    assert list(back) == list(state_dict) or set(back) == set(state_dict)
    if variant.startswith("head_variants"):  # 1 was added and taken off again
        assert back.keys() == state_dict.keys()
        for name, tensor in state_dict.items():
            tolerance = 1e-7 if name.endswith("norm.weight") else 0
            torch.testing.assert_close(back[name], tensor, rtol=0, atol=tolerance)
    else:
        assert same_tensors(back, state_dict)
    expected = {name: getattr(args, name, False) for name in MODEL_ARGS}
    assert {name: getattr(back_args, name) for name in MODEL_ARGS} == expected
    assert back_args.arch == "luna_bert" and back_args.task == "masked_lm"
    assert (target.parent / "dict.txt").read_bytes() == (source / "dict.txt").read_bytes()
    assert sorted(os.listdir(target.parent)) == ["dict.txt", "model.pt"]
    head = HEAD_VARIANTS.get(variant)
    assert (f", its classification head to {head}." in capsys.readouterr().out) == (head is not None)


@pytest.mark.parametrize("variant", variant_params("head_variants/luna_bert/tied"))
def test_the_newer_layout_becomes_that_of_the_release(variant, tmp_path):
    """The two variants are one model, and 1 + its LayerNorm weights are exact."""
    source = find_variant(variant)
    convert(source / "model.pt", tmp_path / "out", dictionary=source / "dict.txt")
    convert_back(tmp_path / "out", tmp_path / "model.pt")
    assert same_tensors(load_fairseq_checkpoint(tmp_path / "model.pt")[1], load_fairseq_checkpoint(TIED / "model.pt")[1])


CLASSES = {
    "LunaForMaskedLM": (LunaForMaskedLM, {}),
    "untied": (LunaForMaskedLM, {"tie_key_value": False, "tie_word_embeddings": False, "dynamic_projection": False}),
    "tanh gelu": (LunaForMaskedLM, {"hidden_act": "gelu_pytorch_tanh"}),
    "cls": (LunaForSequenceClassification, {"num_labels": 4}),
    "packed_max": (LunaForSequenceClassification, {"classifier_pooling": "packed_max", "classifier_dropout": 0.25}),
    "packed_attention": (LunaForSequenceClassification, {"classifier_pooling": "packed_attention"}),
    "LunaForMultipleChoice": (LunaForMultipleChoice, {"tie_word_embeddings": False}),
    "LunaModel": (LunaModel, {}),
}


@pytest.mark.parametrize("case", CLASSES)
def test_folder_to_official_to_folder(case, tmp_path, capsys):
    """Of models that were trained here; those without a language model head get one of zeros."""
    model_class, changes = CLASSES[case]
    model = tiny_model(model_class, **changes)
    model.save_pretrained(tmp_path / "folder", max_shard_size="8KB")
    assert len(list((tmp_path / "folder").glob("*.safetensors"))) > 1
    convert_back(tmp_path / "folder", tmp_path / "model.pt")
    printed = capsys.readouterr().out
    is_lm = model_class is LunaForMaskedLM
    assert ("no language model head: that of the checkpoint is all zeros" in printed) == (not is_lm)

    (tmp_path / "dict.txt").write_text("".join(f"{i} 1\n" for i in range(25)))
    convert(tmp_path / "model.pt", tmp_path / "again", dictionary=tmp_path / "dict.txt")
    again = load_file(tmp_path / "again" / "model.safetensors")
    before = model.state_dict()
    if model_class is LunaModel:
        before = {f"luna.{name}": tensor for name, tensor in before.items()}
    before.pop("lm_head.decoder.weight" if model.config.tie_word_embeddings else "", None)
    added = {name for name in again if name not in before}
    assert same_tensors({name: tensor for name, tensor in again.items() if name not in added}, before)
    assert all(name.startswith("lm_head.") and not again[name].any() for name in added) and bool(added) != is_lm
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    for name, value in changes.items():
        assert name == "num_labels" or config[name] == value


def test_the_content_is_what_fairseq_reads(tmp_path):
    """The keys at the top of the file, and nothing but tensors, plain values and a Namespace."""
    tiny_model().save_pretrained(tmp_path / "folder")
    convert_back(tmp_path / "folder", tmp_path / "model.pt")
    with torch.serialization.safe_globals([argparse.Namespace]):
        back = torch.load(tmp_path / "model.pt", weights_only=True)
        official = torch.load(TIED / "model.pt", weights_only=True)
    assert back.keys() == official.keys()
    assert back["optimizer_history"][0].keys() == official["optimizer_history"][0].keys()
    assert back["extra_state"]["train_iterator"].keys() == official["extra_state"]["train_iterator"].keys()
    # Every arg is one that the official code has, of the same type.
    for name, value in vars(back["args"]).items():
        assert type(value) is type(getattr(official["args"], name)), name


def test_a_checkpoint_of_a_pretraining(tmp_path):
    """It holds the state of the optimizer beside the weights."""
    model = tiny_model()
    model.save_pretrained(tmp_path / "step-10")
    state = {f"{name}.exp_avg": torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    save_file(state, tmp_path / "step-10" / "optimizer.safetensors")
    (tmp_path / "step-10" / "trainer_state.json").write_text("{}")
    model.save_pretrained(tmp_path / "folder")
    for folder in ("step-10", "folder"):
        convert_back(tmp_path / folder, tmp_path / f"{folder}.pt")
    of_step, of_folder = (load_fairseq_checkpoint(tmp_path / f"{folder}.pt")[1] for folder in ("step-10", "folder"))
    assert same_tensors(of_step, of_folder)


def test_half_precision_becomes_float32(tmp_path, capsys):
    model = tiny_model().bfloat16()
    model.save_pretrained(tmp_path / "folder")
    convert_back(tmp_path / "folder", tmp_path / "model.pt")
    assert "Weights in bfloat16 were converted to float32." in capsys.readouterr().out
    _, back = load_fairseq_checkpoint(tmp_path / "model.pt")
    assert {tensor.dtype for tensor in back.values()} == {torch.float32}
    bias = back["encoder.sentence_encoder.layers.1.fc1.weight"]
    assert torch.equal(bias, model.luna.layers[1].fc1.weight.float())


# ---------------------------------------------------------------------------------------------------------------------
# The dictionary, and names of heads


def test_dictionary_and_bpe_from_the_tokenizer(tmp_path, capsys):
    (tmp_path / "official").mkdir()
    bpe = Bpe(tmp_path / "official")
    convert(bpe.checkpoint, tmp_path / "out", *bpe.options, dictionary=bpe.dict)
    convert_back(tmp_path / "out", tmp_path / "back" / "model.pt")
    assert "Beside it: dict.txt, encoder.json, vocab.bpe." in capsys.readouterr().out
    back = tmp_path / "back"
    assert (back / "vocab.bpe").read_bytes() == bpe.vocab_bpe.read_bytes()
    assert json.loads((back / "encoder.json").read_text()) == bpe.numbers
    # The counts are not known.
    assert [line.split() for line in (back / "dict.txt").read_text().splitlines()] == [[s, "0"] for s in bpe.symbols]
    # Files that are there already stay, if they are the same.
    convert_back(tmp_path / "out", back / "again.pt")


def test_without_a_dictionary(tmp_path, capsys):
    tiny_model().save_pretrained(tmp_path / "folder")
    convert_back(tmp_path / "folder", tmp_path / "model.pt")
    path = tmp_path / "folder" / "tokenizer.json"
    assert capsys.readouterr().out.splitlines()[-1] == f"No dict.txt is written. There is no tokenizer {path}."
    assert sorted(os.listdir(tmp_path)) == ["folder", "model.pt"]


@pytest.mark.parametrize("head, found", [("rte", "rte"), ("none", None)])
def test_head_names(head, found, tmp_path):
    tiny_model(LunaForSequenceClassification).save_pretrained(tmp_path / "folder")
    convert_back(tmp_path / "folder", tmp_path / "model.pt", "--head", head)
    _, state_dict = load_fairseq_checkpoint(tmp_path / "model.pt")
    heads = {name.split(".")[1] for name in state_dict if name.startswith("classification_heads.")}
    assert heads == ({found} if found else set())


# ---------------------------------------------------------------------------------------------------------------------
# What is refused


MODELS_AND_SENTENCE = {
    "norm_first": (LunaForMaskedLM, {"norm_first": True}, "The model's norm_first is True, but {only} False."),
    "sinusoidal": (
        LunaForMaskedLM,
        {"position_embedding_type": "sinusoidal"},
        "The model's position_embedding_type is sinusoidal, but {only} learned.",
    ),
    "not contextual": (
        LunaForMaskedLM,
        {"contextual_projection": False},
        "The model's contextual_projection is False, but {only} True.",
    ),
    "one layer": (
        LunaForMaskedLM,
        {"share_layer_weights": True},
        "The model's share_layer_weights is True, but {only} False.",
    ),
    "eps": (LunaForMaskedLM, {"layer_norm_eps": 1e-12}, "The model's layer_norm_eps is 1e-12, but {only} 1e-05."),
    "activation": (
        LunaForMaskedLM,
        {"hidden_act": "silu"},
        "The model's hidden_act is silu, but the official code has gelu, gelu_pytorch_tanh, relu.",
    ),
    "packed_mean": (
        LunaForSequenceClassification,
        {"classifier_pooling": "packed_mean"},
        "The model's classifier_pooling is packed_mean, but the official heads are packed_max, packed_attention, cls.",
    ),
    "tokens": (
        LunaForTokenClassification,
        {},
        "The folder holds LunaForTokenClassification, for which the official code has no model.",
    ),
}


def assert_refused(tmp_path, sentence: str, *options, target="model.pt") -> None:
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(InputError) as refused:
        convert_back(tmp_path / "folder", tmp_path / target, *options)
    assert str(refused.value) == sentence
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("case", MODELS_AND_SENTENCE)
def test_models_that_the_official_code_has_not(case, tmp_path):
    model_class, changes, sentence = MODELS_AND_SENTENCE[case]
    tiny_model(model_class, **changes).save_pretrained(tmp_path / "folder")
    assert_refused(tmp_path, sentence.format(only="the official masked language model has"))


def test_refused_names_of_heads(tmp_path):
    tiny_model(LunaForSequenceClassification, classifier_pooling="packed_max").save_pretrained(tmp_path / "folder")
    sentence = (
        "A head named rte is cls in the official code, but the model's classifier_pooling is packed_max, named "
        "pooling_classification_head."
    )
    assert_refused(tmp_path, sentence, "--head", "rte")
    tiny_model().save_pretrained(tmp_path / "folder")
    sentence = "There is no classification head to name rte: the folder holds a language model."
    assert_refused(tmp_path, sentence, "--head", "rte")


WEIGHTS_AND_SENTENCE = [
    (lambda weights: weights.pop("luna.layers.1.fc1.bias"), "The folder's weights lack luna.layers.1.fc1.bias."),
    (lambda weights: weights.pop("lm_head.dense.bias"), "The folder's weights lack lm_head.dense.bias."),
    (
        lambda weights: weights.update({"luna.layers.2.fc1.bias": torch.zeros(24)}),
        "The folder's config does not account for its weights luna.layers.2.fc1.bias.",
    ),
    (
        lambda weights: weights.update({"luna.layers.1.fc1.bias": torch.zeros(24, dtype=torch.int8)}),
        "luna.layers.1.fc1.bias holds int8, but weights must be one of float32, float16, bfloat16, float64.",
    ),
    (
        lambda weights: weights.update({"luna.layers.1.fc1.bias": torch.zeros(3)}),
        "encoder.sentence_encoder.layers.1.fc1.bias has shape (3,), but the checkpoint's args make it (24,).",
    ),
]


@pytest.mark.parametrize("change, sentence", WEIGHTS_AND_SENTENCE)
def test_refused_weights(change, sentence, tmp_path):
    tiny_model().save_pretrained(tmp_path / "folder")
    weights = load_file(tmp_path / "folder" / "model.safetensors")
    change(weights)
    save_file(weights, tmp_path / "folder" / "model.safetensors")
    assert_refused(tmp_path, sentence)


def test_refused_folders(tmp_path):
    sentence = f"{tmp_path / 'folder'} is not a folder with a config.json and weights in safetensors."
    assert_refused(tmp_path, sentence)
    tiny_model().save_pretrained(tmp_path / "folder")
    path = tmp_path / "folder" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match=f"^{tmp_path / 'folder'} cannot be read: "):
        convert_back(tmp_path / "folder", tmp_path / "model.pt")
    save_file({"a.exp_avg": torch.zeros(1)}, path.rename(path.with_name("optimizer.safetensors")))
    assert_refused(tmp_path, sentence)


def test_existing_files_are_not_touched(tmp_path):
    tiny_model(vocab_size=96).save_pretrained(tmp_path / "folder")
    (tmp_path / "old.pt").write_text("kept")
    assert_refused(tmp_path, f"{tmp_path / 'old.pt'} already exists.", target="old.pt")
    (tmp_path / "dict.txt").write_text("318 1\n")
    options = ("--dictionary", TIED / "dict.txt")
    assert_refused(tmp_path, f"{tmp_path / 'dict.txt'} already exists with another content.", *options)
    sentence = (
        f"{tmp_path / 'dict.txt'} makes a vocabulary of 6 symbols with the special ones, but the checkpoint has embeddings "
        "for 96."
    )
    assert_refused(tmp_path, sentence, "--dictionary", tmp_path / "dict.txt")
    assert (tmp_path / "old.pt").read_text() == "kept" and (tmp_path / "dict.txt").read_text() == "318 1\n"


def fails_after_a_part(error):
    def save(checkpoint, path):
        path.write_bytes(b"part")
        error()

    return save


# As torch tells of a full disk.
TORCH_FAILS = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")


def test_a_full_disk_is_one_sentence_and_leaves_nothing(monkeypatch, tmp_path):
    tiny_model().save_pretrained(tmp_path / "folder")

    def fail():
        raise TORCH_FAILS

    monkeypatch.setattr(torch, "save", fails_after_a_part(fail))
    for target in ("model.pt", "new/folder/model.pt"):
        remedy = "free some space and give the same command again."
        assert_refused(tmp_path, f"{tmp_path / target} cannot be written (the disk is full): {remedy}", target=target)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing(number, monkeypatch, tmp_path):
    tiny_model().save_pretrained(tmp_path / "folder")
    monkeypatch.setattr(torch, "save", fails_after_a_part(lambda: signal.raise_signal(number)))
    with pytest.raises(Stopped, match=f"^Stopped by {number.name}: nothing is half-written.$"):
        convert_back(tmp_path / "folder", tmp_path / "new" / "model.pt")
    assert os.listdir(tmp_path) == ["folder"]


def test_names_that_cannot_be_written(tmp_path):
    tiny_model().save_pretrained(tmp_path / "folder")
    name = "x" * 300
    sentence = f"{tmp_path / name} cannot be written (File name too long): choose another place."
    assert_refused(tmp_path, sentence, target=name)
    # A link is followed.
    (tmp_path / "link.pt").symlink_to("model.pt")
    convert_back(tmp_path / "folder", tmp_path / "link.pt")
    assert (tmp_path / "link.pt").is_symlink() and (tmp_path / "model.pt").is_file()
