# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The ONNX command: a sentence for each wrong input, and no folder where the graph is wrong.

tests/modeling/test_ecosystem.py compares its graphs with the model.
"""

import pytest
import torch
from transformers import BertConfig

import export_onnx
from luna_builders import build
from modeling_luna import LunaForMultipleChoice, LunaModel

for library in ("onnxscript", "onnxruntime"):
    pytest.importorskip(library, reason=f"{library} is not installed: pip install 'luna-transformers[onnx]'")


@pytest.fixture
def folder(tmp_path):
    build(LunaModel, dtype=torch.float32, num_hidden_layers=1).save_pretrained(tmp_path / "luna")
    return tmp_path / "luna"


def run(*arguments):
    export_onnx.main([str(argument) for argument in arguments])


def test_wrong_inputs_give_one_sentence_and_write_nothing(folder, tmp_path):
    BertConfig().save_pretrained(tmp_path / "bert")
    build(LunaModel).config.save_pretrained(tmp_path / "no_weights")
    cases = {
        "there is no model": (tmp_path / "absent", tmp_path / "onnx"),
        "is a bert": (tmp_path / "bert", tmp_path / "onnx"),
        "not a Luna": (tmp_path / "no_weights", tmp_path / "onnx"),
        "not an empty folder": (folder, folder),
    }
    before = sorted(tmp_path.rglob("*"))
    for sentence, arguments in cases.items():
        with pytest.raises(SystemExit) as error:
            run(*arguments)
        message = str(error.value)
        assert message.startswith("error: ") and sentence in message and "\n" not in message, message
    assert sorted(tmp_path.rglob("*")) == before


def test_a_graph_that_differs_is_not_written(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(export_onnx, "TOLERANCE", -1.0)
    with pytest.raises(SystemExit, match="nothing was written"):
        run(folder, tmp_path / "onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["luna"]


def test_batches_are_padded_on_their_side_and_have_choices():
    model = build(LunaModel)
    left = export_onnx.make_batch(model, [3, 1], 3, "left")
    assert left["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert (left["input_ids"] == 1).tolist() == [[False, False, False], [True, True, False]]
    assert export_onnx.make_batch(build(LunaForMultipleChoice), [3, 1], 3)["input_ids"].shape == (2, 2, 3)


def test_multiple_choice_exports(tmp_path, capsys):
    build(LunaForMultipleChoice, dtype=torch.float32, num_hidden_layers=1).save_pretrained(tmp_path / "luna")
    run(tmp_path / "luna", tmp_path / "onnx")
    assert "over lengths [1, 2, 4, 5, 6, 15] with padding" in capsys.readouterr().out
    assert (tmp_path / "onnx" / "model.onnx").exists()
