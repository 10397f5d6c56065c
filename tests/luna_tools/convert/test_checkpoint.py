# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""A checkpoint file is read without running anything in it, or refused in one sentence."""

import argparse
import os
import shutil

import pytest
import torch

from luna_tools.convert.checkpoint import load_fairseq_checkpoint
from tests.support.fairseq_files import TIED
from tests.support.folders import refused

BIAS = "encoder.sentence_encoder.layers.0.fc1.bias"


@pytest.fixture
def checkpoint():
    """The content of luna_bert/tied, to be changed and saved by a test."""
    args, state_dict = load_fairseq_checkpoint(TIED / "model.pt")
    return {"args": args, "model": state_dict}


NO_ARGS = 'has no argparse.Namespace under "args", so it is not a checkpoint of fairseq.'
NO_TENSORS = 'has no dictionary of named tensors under "model".'
UNREADABLE = "is truncated, damaged or not a PyTorch checkpoint."
KINDS = "but weights must be one of float32, float16, bfloat16, float64."
NAMESPACE = argparse.Namespace()
CONTENTS_AND_SENTENCE = [
    ([1, 2], NO_ARGS),
    ({"cfg": {}, "model": {}}, NO_ARGS),
    ({"args": NAMESPACE}, NO_TENSORS),
    ({"args": NAMESPACE, "model": {"a": 1}}, NO_TENSORS),
    ({"args": NAMESPACE, "model": {1: torch.zeros(1)}}, NO_TENSORS),
    (torch.zeros(64, dtype=torch.int8), f"{BIAS} holds int8, {KINDS}"),
    (torch.zeros(64).to(torch.float8_e4m3fn), f"{BIAS} holds float8_e4m3fn, {KINDS}"),
    (torch.ones(64).to_sparse(), f"{BIAS} is a sparse or nested tensor, but weights must be dense tensors."),
    (torch.zeros(64, device="meta"), f"{BIAS} is a meta tensor, without values, but weights must be dense tensors."),
]


@pytest.mark.parametrize("content, sentence", CONTENTS_AND_SENTENCE)
def test_another_content(content, sentence, checkpoint, tmp_path):
    if torch.is_tensor(content):  # in the place of weights
        checkpoint["model"][BIAS] = content
        content = checkpoint
    torch.save(content, tmp_path / "model.pt")
    with refused(sentence):
        load_fairseq_checkpoint(tmp_path / "model.pt")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("fraction", [0, 0.001, 0.1, 0.5, 0.99])
def test_truncated_file(fraction, legacy, checkpoint, tmp_path):
    path = tmp_path / "model.pt"
    torch.save(checkpoint, path, _use_new_zipfile_serialization=not legacy)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * fraction)])
    with refused(f"{path} {UNREADABLE}"):
        load_fairseq_checkpoint(path)


def test_text_and_no_file(tmp_path):
    for path, sentence in (
        (TIED / "dict.txt", f"{TIED / 'dict.txt'} {UNREADABLE}"),
        (tmp_path / "missing", f"There is no checkpoint file {tmp_path / 'missing'}."),
    ):
        with refused(sentence):
            load_fairseq_checkpoint(path)


class Payload:
    """Pickles to a call of `function(argument)`."""

    def __init__(self, function, argument):
        self.call = function, (argument,)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("place", ["args", "model", "extra_state"])
@pytest.mark.parametrize(
    "function, named", [(os.mkdir, f"{os.name}.mkdir"), (shutil.rmtree, "shutil.rmtree"), (exec, "exec")]
)
def test_malicious_pickle_is_refused_by_name_and_does_not_run(function, named, place, legacy, checkpoint, tmp_path):
    victim = tmp_path / "victim"
    if function is shutil.rmtree:
        victim.mkdir()
    checkpoint[place] = Payload(function, f"open({str(victim)!r}, 'w').close()" if function is exec else str(victim))
    path = tmp_path / "model.pt"
    torch.save(checkpoint, path, _use_new_zipfile_serialization=not legacy)

    holds = "and a Luna checkpoint holds nothing but tensors, plain values and an argparse.Namespace."
    with refused(f"{path} is refused because its pickle names {named}, {holds}"):
        load_fairseq_checkpoint(path)
    assert victim.exists() == (function is shutil.rmtree)
    # The pickle does what it says when it is read without care.
    torch.load(path, weights_only=False)
    assert victim.exists() != (function is shutil.rmtree)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("harmless", [True, False])
@pytest.mark.parametrize("protocol", [4, 5])
def test_newer_pickles_are_refused_as_what_they_are(protocol, harmless, legacy, checkpoint, tmp_path, recwarn):
    if not harmless:
        checkpoint["extra_state"] = Payload(os.mkdir, str(tmp_path / "victim"))
    path = tmp_path / "model.pt"
    torch.save(checkpoint, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    with refused(f"{path} is refused because its pickle has protocol {protocol}, but without running code torch reads only"):
        load_fairseq_checkpoint(path)
    assert not recwarn.list


def test_protocol_3_is_read_without_a_warning(checkpoint, tmp_path, recwarn):
    torch.save(checkpoint, tmp_path / "model.pt", pickle_protocol=3)
    _, state_dict = load_fairseq_checkpoint(tmp_path / "model.pt")
    assert all(torch.equal(tensor, checkpoint["model"][name]) for name, tensor in state_dict.items())
    assert not recwarn.list
