# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The ONNX command: what it refuses, and no folder where the graph is wrong.

tests/modeling/test_ecosystem.py compares its graphs with the model.
"""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers.exporters import OnnxExporter

from luna_tools import export_onnx
from modeling_luna import LunaForMultipleChoice, LunaForQuestionAnswering, LunaForTokenClassification, LunaModel
from tests.support.folders import refused
from tests.support.luna_builders import build
from tests.support.models import each_generator

for library in ("onnxscript", "onnxruntime"):
    pytest.importorskip(library, reason=f"{library} is not installed: pip install 'luna-transformers[onnx]'")


@pytest.fixture
def folder(tmp_path):
    build(LunaModel, dtype=torch.float32, num_hidden_layers=1).save_pretrained(tmp_path / "luna")
    return tmp_path / "luna"


def run(model, folder):
    export_onnx.main([str(model), "--output_dir", str(folder)])


def test_a_folder_that_cannot_be_written_to(folder, tmp_path):
    (tmp_path / "file").write_text("kept")
    for target in (folder, tmp_path / "file"):
        with refused(f"{str(target)!r}, which is not an empty folder: choose another name.", tmp_path):
            run(folder, target)


def fails(model, path):
    raise KeyError("no such node")


REFUSED = {
    "differs": (lambda model, path: (1.0, [1]), "The graph is 1.0e+00 from the model, more than 1e-04: nothing was written"),
    "not a number": (lambda model, path: (float("nan"), [1]), "The graph is nan from the model"),
    "runtime": (fails, "cannot be exported (KeyError: 'no such node'): try other versions"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_graph_that_is_wrong_gets_no_folder(case, folder, tmp_path, monkeypatch):
    largest_difference, sentence = REFUSED[case]
    monkeypatch.setattr(export_onnx, "largest_difference", largest_difference)
    graph = SimpleNamespace(save_pretrained=lambda folder: (folder / "model.onnx").write_bytes(b"graph"))
    monkeypatch.setattr(OnnxExporter, "export", lambda *_: graph)  # which takes seconds
    (tmp_path / "empty").mkdir()
    for target in ("empty", "new/onnx"):
        with refused(sentence, tmp_path):
            run(folder, tmp_path / target)


def test_batches_are_padded_on_their_side_and_have_choices():
    model = build(LunaModel)
    left = export_onnx.make_batch(model, [3, 1], 3, "left")
    assert left["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert (left["input_ids"] == 1).tolist() == [[False, False, False], [True, True, False]]
    assert export_onnx.make_batch(build(LunaForMultipleChoice), [3, 1], 3)["input_ids"].shape == (2, 2, 3)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_becomes_a_graph_in_float32(dtype, tmp_path, monkeypatch):
    """In which ONNX Runtime has all operators, and the tolerance holds."""
    build(LunaModel, dtype=dtype, num_hidden_layers=1).save_pretrained(tmp_path / "luna")
    differences, compare = [], export_onnx.largest_difference

    def record(model, path):
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        differences.append(compare(model, path)[0])
        return differences[0], []

    monkeypatch.setattr(export_onnx, "largest_difference", record)
    run(tmp_path / "luna", tmp_path / "onnx")
    assert 0 < differences[0] < export_onnx.TOLERANCE
    assert {tensor.dtype for tensor in load_file(tmp_path / "luna" / "model.safetensors").values()} == {dtype}


@each_generator
def test_models_that_generate_are_refused(row, tmp_path):
    row.build(dtype=torch.float32, num_hidden_layers=1).save_pretrained(tmp_path / "luna")
    with refused(f"is a {row.model_class.__name__}, whose cache has no form in ONNX"):
        run(tmp_path / "luna", tmp_path / "onnx")


@pytest.mark.slow
@pytest.mark.parametrize("model_class", [LunaForMultipleChoice, LunaForTokenClassification, LunaForQuestionAnswering])
def test_the_other_classes_export(model_class, tmp_path, capsys):
    build(model_class, dtype=torch.float32, num_hidden_layers=1).save_pretrained(tmp_path / "luna")
    (tmp_path / "plain").mkdir()
    run(tmp_path / "luna", tmp_path / "onnx")
    assert (tmp_path / "onnx").stat().st_mode == (tmp_path / "plain").stat().st_mode  # others may read it
    assert "over lengths [1, 2, 4, 5, 6, 15] with padding" in capsys.readouterr().out
    assert (tmp_path / "onnx" / "model.onnx").exists()
