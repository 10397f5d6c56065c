# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""A checkpoint is whole or absent, and says when it is damaged."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from transformers import AutoTokenizer

from configuration_luna import LunaConfig
from luna_tools.errors import InputError
from modeling_luna import LunaForMaskedLM
from pretraining import checkpoint as ckpt
from pretraining.engines import DataParallel
from pretraining.recipe import Recipe

SIZES = {"vocab_size": 600, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
CONFIG = LunaConfig(**SIZES, projection_length=4, max_position_embeddings=34)


@pytest.fixture
def engine_of(recipe_values):
    """A function from a model to its engine."""
    yield lambda model: DataParallel(Accelerator(cpu=True), model, Recipe(**recipe_values))
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def trained(engine_of, prepared):
    """A model, its engine, whose optimizer has moments, and the tokenizer."""
    model = LunaForMaskedLM(CONFIG)
    engine = engine_of(model)
    ids = torch.randint(4, 600, (2, 8))
    with engine.micro_batch(is_last=True):
        engine.backward(engine.module(input_ids=ids, labels=ids).loss)
    engine.update(learning_rate=1e-3)
    return model, engine, AutoTokenizer.from_pretrained(prepared / "tokenizer")


def save(folder, step, trained, limit=10):
    model, engine, tokenizer = trained
    weights, state = dict(engine.weights()), dict(engine.optimizer_state())
    return ckpt.save_checkpoint(folder, model, weights, state, tokenizer, {"step": step}, limit)


def test_what_is_saved_comes_back_bit_for_bit(tmp_path, trained, engine_of):
    model, engine, _ = trained
    saved = save(tmp_path, 7, trained)
    ckpt.verify_checkpoint(saved)
    assert {path.suffix for path in saved.iterdir()} <= {".json", ".safetensors", ".txt", ".jinja", ".py", ".md", ""}, (
        "no pickle"
    )
    again = LunaForMaskedLM.from_pretrained(saved)
    new_engine = engine_of(again)
    new_engine.load_optimizer_state(ckpt.load_optimizer_state(saved))
    assert ckpt.load_trainer_state(saved) == {"step": 7}
    for (name, old), (_, new) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(old, new), name
        assert old.requires_grad == new.requires_grad, name
        assert engine.optimizer.state[old].keys() == new_engine.optimizer.state[new].keys()
        for key, value in engine.optimizer.state[old].items():
            assert torch.equal(value, new_engine.optimizer.state[new][key]), (name, key)
    assert any("exp_avg" in state for state in engine.optimizer.state.values())


def test_the_newest_are_kept(tmp_path, trained):
    for step in (1, 2, 10):
        save(tmp_path, step, trained, limit=2)
    assert [path.name for path in ckpt.checkpoints(tmp_path)] == ["step-00000002", "step-00000010"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000010"]


def test_a_folder_without_seal_is_no_checkpoint_and_goes_at_the_next_save(tmp_path, trained):
    save(tmp_path, 1, trained)
    half = save(tmp_path, 2, trained)
    (half / ckpt.SEAL).unlink()
    (tmp_path / ".tmp-step-00000003").mkdir()
    (tmp_path / "notes").mkdir()
    assert [path.name for path in ckpt.checkpoints(tmp_path)] == ["step-00000001"]
    save(tmp_path, 4, trained)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes", "step-00000001", "step-00000004"]


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda whole: None, "lacks its file {name}: remove the folder"),
        (lambda whole: whole[:-1], "The file {name} of the checkpoint .* is damaged"),
        (lambda whole: whole[:-1] + bytes([whole[-1] ^ 1]), "The file {name} of the checkpoint .* is damaged"),
    ],
    ids=["missing", "truncated", "bit-flipped"],
)
def test_damage_is_reported_by_file(tmp_path, trained, damage, sentence):
    saved = save(tmp_path, 1, trained)
    for name in ("model.safetensors", "optimizer.safetensors", "trainer_state.json", "config.json"):
        whole = (saved / name).read_bytes()
        (saved / name).unlink()
        if (damaged := damage(whole)) is not None:
            (saved / name).write_bytes(damaged)
        with pytest.raises(InputError, match=sentence.format(name=name)):
            ckpt.verify_checkpoint(saved)
        (saved / name).write_bytes(whole)
    ckpt.verify_checkpoint(saved)


def test_a_save_that_fails_leaves_the_checkpoints_before_it(tmp_path, trained, monkeypatch):
    save(tmp_path, 1, trained)

    def full(tensors, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ckpt, "save_file", full)
    with pytest.raises(InputError, match="step-00000002 can't be written .*No space left.*make room"):
        save(tmp_path, 2, trained)
    assert [path.name for path in ckpt.checkpoints(tmp_path)] == ["step-00000001"]
    ckpt.verify_checkpoint(ckpt.checkpoints(tmp_path)[-1])
