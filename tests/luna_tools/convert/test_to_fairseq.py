# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""A folder becomes an official checkpoint. test_from_fairseq.py brings official ones back."""

import argparse
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from configuration_luna import LunaConfig
from luna_tools.convert.checkpoint import load_fairseq_checkpoint
from modeling_luna import (
    LunaForMaskedLM,
    LunaForMultipleChoice,
    LunaForSequenceClassification,
    LunaForTokenClassification,
    LunaModel,
)
from tests.support.fairseq_files import TIED, convert, convert_back, same_tensors
from tests.support.folders import refused


def save_tiny(folder, model_class=LunaForMaskedLM, dtype=torch.float32, **changes):
    """Save a model in several files, beside the state of an optimizer as a pretraining leaves it. Returns the model."""
    torch.manual_seed(1)
    sizes = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    model = model_class(LunaConfig(**sizes | {"projection_length": 4, "max_position_embeddings": 20} | changes)).to(dtype)
    model.save_pretrained(folder, max_shard_size="3KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    save_file({f"{name}.exp_avg": x.clone() for name, x in model.named_parameters()}, folder / "optimizer.safetensors")
    return model


CLASSES = {
    "LunaForMaskedLM": (LunaForMaskedLM, {}),
    "untied": (LunaForMaskedLM, {"tie_key_value": False, "tie_word_embeddings": False, "dynamic_projection": False}),
    "tanh gelu": (LunaForMaskedLM, {"hidden_act": "gelu_pytorch_tanh"}),
    "half": (LunaForMaskedLM, {"dtype": torch.bfloat16}),
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
    model = save_tiny(tmp_path / "folder", model_class, **changes)
    convert_back(tmp_path / "folder", tmp_path / "model.pt")
    printed = capsys.readouterr().out
    is_lm = model_class is LunaForMaskedLM
    assert ("no language model head: that of the checkpoint is all zeros" in printed) == (not is_lm)
    assert ("Weights in bfloat16 were converted to float32." in printed) == (case == "half")
    assert f"No dict.txt is written. There is no tokenizer {tmp_path / 'folder' / 'tokenizer.json'}." in printed
    assert sorted(os.listdir(tmp_path)) == ["folder", "model.pt"]

    (tmp_path / "dict.txt").write_text("".join(f"{i} 1\n" for i in range(25)))
    convert(tmp_path / "model.pt", tmp_path / "again", dictionary=tmp_path / "dict.txt")
    again = load_file(tmp_path / "again" / "model.safetensors")
    prefix = "luna." if model_class is LunaModel else ""
    before = {f"{prefix}{name}": tensor.float() for name, tensor in model.state_dict().items()}
    before.pop("lm_head.decoder.weight" if model.config.tie_word_embeddings else "", None)
    added = {name for name in again if name not in before}
    assert same_tensors({name: tensor for name, tensor in again.items() if name not in added}, before)
    assert all(name.startswith("lm_head.") and not again[name].any() for name in added) and bool(added) != is_lm
    config = LunaConfig.from_pretrained(tmp_path / "again")
    for name, value in changes.items():
        assert name in ("num_labels", "dtype") or getattr(config, name) == value


def test_the_content_is_what_fairseq_reads(tmp_path):
    """The keys at the top of the file, and nothing but tensors, plain values and a Namespace."""
    save_tiny(tmp_path / "folder")
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


@pytest.mark.parametrize("head, found", [("rte", {"rte"}), ("none", set())])
def test_head_names(head, found, tmp_path):
    save_tiny(tmp_path / "folder", LunaForSequenceClassification)
    convert_back(tmp_path / "folder", tmp_path / "model.pt", "--head", head)
    _, state_dict = load_fairseq_checkpoint(tmp_path / "model.pt")
    assert {name.split(".")[1] for name in state_dict if name.startswith("classification_heads.")} == found


# ---------------------------------------------------------------------------------------------------------------------
# What is refused

LM, CLASSIFIER = LunaForMaskedLM, LunaForSequenceClassification
ONLY = "but the official masked language model has"
MODELS_AND_SENTENCE = [
    (LM, {"norm_first": True}, f"The model's norm_first is True, {ONLY} False."),
    (
        LM,
        {"position_embedding_type": "sinusoidal"},
        f"The model's position_embedding_type is sinusoidal, {ONLY} learned.",
    ),
    (LM, {"contextual_projection": False}, f"The model's contextual_projection is False, {ONLY} True."),
    (LM, {"share_layer_weights": True}, f"The model's share_layer_weights is True, {ONLY} False."),
    (LM, {"layer_norm_eps": 1e-12}, f"The model's layer_norm_eps is 1e-12, {ONLY} 1e-05."),
    (
        LM,
        {"hidden_act": "silu"},
        "The model's hidden_act is silu, but the official code has gelu, gelu_pytorch_tanh, relu.",
    ),
    (
        CLASSIFIER,
        {"classifier_pooling": "packed_mean"},
        "The model's classifier_pooling is packed_mean, but the official heads are packed_max, packed_attention, cls.",
    ),
    (
        LunaForTokenClassification,
        {},
        "The folder holds LunaForTokenClassification, for which the official code has no model.",
    ),
    # Under a name of which the official code makes another head, or none at all.
    (
        CLASSIFIER,
        {"classifier_pooling": "packed_max", "head": "rte"},
        "A head named rte is cls in the official code, but the model's classifier_pooling is packed_max, named "
        "pooling_classification_head.",
    ),
    (LM, {"head": "rte"}, "There is no classification head to name rte: the folder holds a language model."),
]


@pytest.mark.parametrize("model_class, changes, sentence", MODELS_AND_SENTENCE)
def test_models_that_the_official_code_has_not(model_class, changes, sentence, tmp_path):
    fields = {name: value for name, value in changes.items() if name != "head"}
    save_tiny(tmp_path / "folder", model_class, **fields)
    with refused(sentence, tmp_path):
        convert_back(tmp_path / "folder", tmp_path / "model.pt", *(["--head", changes["head"]] if "head" in changes else []))


BIAS = "luna.layers.1.fc1.bias"
WEIGHTS_AND_SENTENCE = [
    ({BIAS: None}, f"The folder's weights lack {BIAS}."),
    ({"lm_head.dense.bias": None}, "The folder's weights lack lm_head.dense.bias."),
    (
        {"luna.layers.2.fc1.bias": torch.zeros(24)},
        "The folder's config does not account for its weights luna.layers.2.fc1.bias.",
    ),
    (
        {BIAS: torch.zeros(24, dtype=torch.int8)},
        f"{BIAS} holds int8, but weights must be one of float32, float16, bfloat16, float64.",
    ),
    (
        {BIAS: torch.zeros(3)},
        "encoder.sentence_encoder.layers.1.fc1.bias has shape (3,), but the checkpoint's args make it (24,).",
    ),
]


@pytest.mark.parametrize("changes, sentence", WEIGHTS_AND_SENTENCE)
def test_refused_weights(changes, sentence, tmp_path):
    save_tiny(tmp_path / "folder").save_pretrained(tmp_path / "folder")
    path = tmp_path / "folder" / "model.safetensors"
    save_file({name: x for name, x in (load_file(path) | changes).items() if x is not None}, path)
    with refused(sentence, tmp_path):
        convert_back(tmp_path / "folder", tmp_path / "model.pt")


def test_refused_folders(tmp_path):
    folder = tmp_path / "folder"
    path = folder / "model.safetensors"
    no_folder = f"{folder} is not a folder with a config.json and weights in safetensors."
    for damage, sentence in (
        (lambda: None, no_folder),
        (lambda: save_tiny(folder).save_pretrained(folder), None),
        (lambda: path.write_bytes(path.read_bytes()[:1000]), f"{folder} cannot be read ("),
        (path.unlink, no_folder),  # the state of the optimizer alone
    ):
        damage()
        if sentence is not None:
            with refused(sentence, tmp_path):
                convert_back(folder, tmp_path / "model.pt")


def test_existing_files_are_not_touched_and_a_link_is_followed(tmp_path):
    save_tiny(tmp_path / "folder", vocab_size=96)
    (tmp_path / "old.pt").write_text("kept")
    dictionary = tmp_path / "dict.txt"
    dictionary.write_text("318 1\n")
    size = "makes a vocabulary of 6 symbols with the special ones, but the checkpoint has embeddings for 96."
    for target, given, sentence in (
        ("old.pt", TIED / "dict.txt", f"{tmp_path / 'old.pt'} already exists."),
        ("model.pt", TIED / "dict.txt", f"{dictionary} already exists with another content."),
        ("model.pt", dictionary, f"{dictionary} {size}"),
    ):
        with refused(sentence, tmp_path):
            convert_back(tmp_path / "folder", tmp_path / target, "--dictionary", given)
    (tmp_path / "link.pt").symlink_to("model.pt")
    convert_back(tmp_path / "folder", tmp_path / "link.pt")
    assert (tmp_path / "link.pt").is_symlink() and (tmp_path / "model.pt").is_file()
