# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The mean of checkpoints is a model."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM, AutoTokenizer

from luna_tools.errors import InputError
from pretraining import average
from pretraining.checkpoint import checkpoints


def test_weights_are_the_mean_and_load(finished, tmp_path):
    folders = checkpoints(finished / "checkpoints")
    assert len(folders) == 2
    average.main([*map(str, folders), "--output_dir", str(tmp_path / "mean")])
    one, two = (load_file(folder / "model.safetensors") for folder in folders)
    mean = load_file(tmp_path / "mean" / "model.safetensors")
    assert mean.keys() == one.keys()
    for name, tensor in mean.items():
        torch.testing.assert_close(tensor, (one[name] + two[name]) / 2)
    _, loading = AutoModelForMaskedLM.from_pretrained(tmp_path / "mean", output_loading_info=True)
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert AutoTokenizer.from_pretrained(tmp_path / "mean").mask_token_id is not None


def test_what_cannot_be_averaged_is_refused(finished, tmp_path):
    first, second = checkpoints(finished / "checkpoints")
    other = shutil.copytree(second, tmp_path / "other")
    save_file({"weight": torch.ones(2)}, other / "model.safetensors")
    output = ["--output_dir", str(tmp_path / "mean")]
    for folders, sentence in (
        ([first], "give two or more"),
        ([first, tmp_path], "has no model.safetensors"),
        ([first, other], "other is of another model than"),
    ):
        with pytest.raises(InputError, match=sentence):
            average.main([*map(str, folders), *output])
        assert not (tmp_path / "mean").exists()
    (tmp_path / "mean").mkdir()
    with pytest.raises(InputError, match="is there already"):
        average.main([str(first), str(second), *output])
