# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The ONNX command: a sentence for each wrong input, and no folder where the graph is wrong.

tests/modeling/test_ecosystem.py compares its graphs with the model.
"""

import signal

import pytest
import torch
from safetensors.torch import load_file
from transformers.exporters import OnnxExporter

from luna_tools import export_onnx
from luna_tools.errors import InputError, Stopped
from modeling_luna import LunaForMultipleChoice, LunaForQuestionAnswering, LunaForTokenClassification, LunaModel
from tests.support.luna_builders import build

for library in ("onnxscript", "onnxruntime"):
    pytest.importorskip(library, reason=f"{library} is not installed: pip install 'luna-transformers[onnx]'")


@pytest.fixture
def folder(tmp_path):
    build(LunaModel, dtype=torch.float32, num_hidden_layers=1).save_pretrained(tmp_path / "luna")
    return tmp_path / "luna"


def run(model, folder):
    export_onnx.main([str(model), "--output_dir", str(folder)])


def test_wrong_inputs_give_one_sentence_and_write_nothing(folder, tmp_path):
    (tmp_path / "file").write_text("kept")
    cases = {
        "There is no model": (tmp_path / "absent", tmp_path / "onnx"),
        "luna', which is not an empty folder": (folder, folder),
        "file', which is not an empty folder": (folder, tmp_path / "file"),
        "x cannot be written (File name too long)": (folder, tmp_path / ("x" * 300)),
        "out cannot be written (File exists)": (folder, tmp_path / "file" / "out"),
    }
    before = sorted(tmp_path.rglob("*"))
    for sentence, arguments in cases.items():
        with pytest.raises(InputError) as refused:
            run(*arguments)
        assert sentence in str(refused.value) and "\n" not in str(refused.value)
    assert sorted(tmp_path.rglob("*")) == before


def fails_with(error):
    def fail(model, path):
        assert path.is_file()  # something is written already
        raise error

    return fail


REFUSED = {
    "differs": (lambda model, path: (1.0, [1]), "The graph is 1.0e+00 from the model, more than 1e-04: nothing was written"),
    "not a number": (lambda model, path: (float("nan"), [1]), "The graph is nan from the model"),
    "disk": (fails_with(OSError(28, "No space left on device")), "cannot be written (the disk is full): free some space"),
    "protobuf": (fails_with(RuntimeError("I/O: No space left on device")), "cannot be written (the disk is full): free"),
    "folder": (
        fails_with(PermissionError(13, "Permission denied")),
        "cannot be written (Permission denied): choose another",
    ),
    "runtime": (fails_with(KeyError("no such node")), "cannot be exported (KeyError: 'no such node'): try other versions"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_fails_leaves_the_folders_as_they_were(case, folder, tmp_path, monkeypatch):
    largest_difference, sentence = REFUSED[case]
    monkeypatch.setattr(export_onnx, "largest_difference", largest_difference)
    monkeypatch.setattr(OnnxExporter, "export", lambda *_: FakeGraph())
    (tmp_path / "empty").mkdir()
    for target in ("empty", "new/onnx"):
        with pytest.raises(InputError) as refused:
            run(folder, tmp_path / target)
        assert sentence in str(refused.value) and "\n" not in str(refused.value)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "luna"]
        assert not list((tmp_path / "empty").iterdir())


class FakeGraph:
    """Instead of what takes the exporter seconds."""

    def save_pretrained(self, folder):
        (folder / "model.onnx").write_bytes(b"graph")


def test_a_signal_leaves_nothing(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(export_onnx, "largest_difference", lambda model, path: signal.raise_signal(signal.SIGTERM))
    monkeypatch.setattr(OnnxExporter, "export", lambda *_: FakeGraph())
    with pytest.raises(Stopped, match="^Stopped by SIGTERM: nothing is half-written.$"):
        run(folder, tmp_path / "new" / "onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["luna"]


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


@pytest.mark.slow
@pytest.mark.parametrize("model_class", [LunaForMultipleChoice, LunaForTokenClassification, LunaForQuestionAnswering])
def test_the_other_classes_export(model_class, tmp_path, capsys):
    build(model_class, dtype=torch.float32, num_hidden_layers=1).save_pretrained(tmp_path / "luna")
    (tmp_path / "plain").mkdir()
    run(tmp_path / "luna", tmp_path / "onnx")
    assert (tmp_path / "onnx").stat().st_mode == (tmp_path / "plain").stat().st_mode  # others may read it
    assert "over lengths [1, 2, 4, 5, 6, 15] with padding" in capsys.readouterr().out
    assert (tmp_path / "onnx" / "model.onnx").exists()
