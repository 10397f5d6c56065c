# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""What is not whole is refused with one sentence, and the commands that load a Luna write nothing then."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig

from luna_tools import export_onnx, plot_attention
from luna_tools.load import load_luna
from modeling_luna import LunaForSequenceClassification, LunaModel
from tests.support.folders import change_json, refused, save_whole
from tests.support.luna_builders import build


def config(**changes):
    return lambda folder: change_json(folder / "config.json", **changes)


def weights(change):
    """Change the weights by name."""

    def damage(folder):
        path = folder / "model.safetensors"
        save_file(change(load_file(path)), path, {"format": "pt"})

    return damage


def file(name, change):
    """Change a file's bytes; None: there is none."""

    def damage(folder):
        content = change((folder / name).read_bytes())
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_bytes(content)

    return damage


NOT_WHOLE, NO_WEIGHTS = "are missing or of another shape, such as ", "The weights of {0!r} cannot be loaded ("
NO_MODEL = "The config.json of {0!r} makes no model ("
DAMAGES = {
    "other keys": (weights(lambda found: {f"x.{name}": x for name, x in found.items()}), NOT_WHOLE),
    "one key": (
        weights(lambda found: {name: x for name, x in found.items() if "layers.1.fc1.bias" not in name}),
        f": 1 {NOT_WHOLE}",
    ),
    "another size": (config(intermediate_size=33), NOT_WHOLE),
    "truncated": (file("model.safetensors", lambda content: content[:-100]), NO_WEIGHTS),
    "no weights": (file("model.safetensors", lambda content: None), NO_WEIGHTS),
    "negative size": (config(hidden_size=-3), NO_MODEL),
    "size as text": (config(hidden_size="big"), NO_MODEL),
    "no JSON": (file("config.json", lambda content: b"{"), NO_MODEL),
    "list": (file("config.json", lambda content: b"[]"), NO_MODEL),
    "bert": (lambda folder: BertConfig().save_pretrained(folder), "{0!r} is a bert model, not a Luna: "),
    "absent": (lambda folder: folder.rename(folder.with_name("elsewhere")), "There is no model {0!r}: "),
    "no class": (
        config(architectures=["LunaForPoetry"]),
        "`architectures` in the config.json of {0!r} is ['LunaForPoetry'], no Luna: give",
    ),
}


@pytest.fixture
def folder(tmp_path):
    return save_whole(tmp_path / "luna")


@pytest.mark.parametrize("case", DAMAGES)
def test_damaged_folders(case, folder):
    damage, sentence = DAMAGES[case]
    damage(folder)
    with refused(sentence.format(str(folder))):
        load_luna(str(folder))


def test_both_commands_refuse_a_damaged_folder_and_write_nothing(folder, tmp_path):
    pytest.importorskip("onnxruntime")
    damage, sentence = DAMAGES["truncated"]
    damage(folder)
    for main, arguments in (
        (export_onnx.main, ["--output_dir", str(tmp_path / "new" / "onnx")]),
        (plot_attention.main, ["A text.", "--output", str(tmp_path / "picture.png")]),
    ):
        with refused(sentence.format(str(folder)), tmp_path):
            main([str(folder), *arguments])


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
