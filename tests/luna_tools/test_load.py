# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""What is not whole is refused with one sentence, and the commands that load a Luna write nothing then."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig

from luna_tools import export_onnx, plot_attention
from luna_tools.errors import InputError
from luna_tools.load import load_luna
from modeling_luna import LunaForSequenceClassification, LunaModel
from tests.support.folders import save_whole
from tests.support.luna_builders import build


def change_config(**changes):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def change_weights(change):
    def change_file(folder):
        path = folder / "model.safetensors"
        weights = load_file(path)
        save_file(change(weights), path, {"format": "pt"})

    return change_file


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


DAMAGES = {
    "other keys": (
        change_weights(lambda weights: {f"x.{name}": x for name, x in weights.items()}),
        "are missing or of another shape, such as ",
    ),
    "one key": (
        change_weights(lambda weights: {name: x for name, x in weights.items() if "layers.1.fc1.bias" not in name}),
        ": 1 are missing or of another shape, such as ",
    ),
    "another size": (change_config(intermediate_size=33), "are missing or of another shape, such as "),
    "truncated": (truncate, "The weights of {0!r} cannot be loaded ("),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "The weights of {0!r} cannot be loaded ("),
    "negative size": (change_config(hidden_size=-3), "The config.json of {0!r} makes no model ("),
    "size as text": (change_config(hidden_size="big"), "The config.json of {0!r} makes no model ("),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), "The config.json of {0!r} makes no model ("),
    "list": (lambda folder: (folder / "config.json").write_text("[]"), "The config.json of {0!r} makes no model ("),
    "bert": (lambda folder: BertConfig().save_pretrained(folder), "{0!r} is a bert model, not a Luna: "),
    "absent": (lambda folder: folder.rename(folder.with_name("elsewhere")), "There is no model {0!r}: "),
}


@pytest.fixture
def folder(tmp_path):
    return save_whole(tmp_path / "luna")


@pytest.mark.parametrize("case", DAMAGES)
def test_damaged_folders(case, folder):
    damage, sentence = DAMAGES[case]
    damage(folder)
    with pytest.raises(InputError) as refused:
        load_luna(str(folder))
    assert sentence.format(str(folder)) in str(refused.value) and "\n" not in str(refused.value)


def test_both_commands_refuse_a_damaged_folder_and_write_nothing(folder, tmp_path):
    pytest.importorskip("onnxruntime")
    truncate(folder)
    before = sorted(tmp_path.rglob("*"))
    for main, arguments in (
        (export_onnx.main, [str(folder), "--output_dir", str(tmp_path / "new" / "onnx")]),
        (plot_attention.main, [str(folder), "A text.", "--output", str(tmp_path / "picture.png")]),
    ):
        with pytest.raises(InputError, match="^The weights of .* cannot be loaded"):
            main(arguments)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_class_that_is_none(folder):
    change_config(architectures=["LunaForPoetry"])(folder)
    with pytest.raises(InputError, match="`architectures` in the config.json of .* is \\['LunaForPoetry'\\], no Luna: give"):
        load_luna(str(folder))


def test_the_class_of_the_config_or_another_in_float32(tmp_path):
    model = build(LunaForSequenceClassification, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    own, base = load_luna(str(tmp_path)), load_luna(str(tmp_path), LunaModel, attn_implementation="eager")
    assert type(own) is LunaForSequenceClassification and type(base) is LunaModel
    assert base.config._attn_implementation == "eager" and not own.training and not base.training
    for loaded, expected in ((own, model), (base, model.luna)):
        weights = loaded.state_dict()
        assert all(weights[name].dtype == torch.float32 for name in weights)
        assert all(torch.equal(weights[name], tensor.float()) for name, tensor in expected.state_dict().items())
