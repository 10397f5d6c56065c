# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The library's own common tests of models, with Luna for the model.

They are in the source distribution of transformers, whose folder `tests` LUNA_TRANSFORMERS_TESTS names; it must be of the
installed version. `python3 scripts/test.py --all` fetches it.
"""

import importlib
import os
import re
import sys
import unittest
from types import ModuleType

import pytest
import torch
from transformers.models.auto import modeling_auto

from tests.support.luna_builders import tiny_config
from tests.support.models import ENCODERS

FOLDER = os.environ.get("LUNA_TRANSFORMERS_TESTS")
pytestmark = pytest.mark.slow
if FOLDER is None:
    pytest.skip("LUNA_TRANSFORMERS_TESTS does not name the tests of transformers' source distribution", True)


def common_tests():
    """The module `test_modeling_common`; what it imports of folders that are not distributed is empty."""
    package = ModuleType("transformers_tests")
    package.__path__ = [FOLDER]
    sys.modules["transformers_tests"] = package
    for name, mixin in (("exporters.test_export", "ExportTesterMixin"), ("generation.test_utils", "GenerationTesterMixin")):
        parent, _ = name.split(".")
        sys.modules[f"transformers_tests.{parent}"] = ModuleType(parent)
        sys.modules[f"transformers_tests.{name}"] = module = ModuleType(name)
        setattr(module, mixin, type(mixin, (), {}))
    return importlib.import_module("transformers_tests.test_modeling_common")


common = common_tests()


class LunaTester:
    """What the common tests know of a model."""

    batch_size, seq_length, num_choices, key_length = 3, 7, 4, 5
    hidden_size, num_hidden_layers, num_attention_heads = 16, 2, 2
    is_training = True

    def get_config(self):
        return tiny_config(num_hidden_layers=self.num_hidden_layers)

    def prepare_config_and_inputs_for_common(self):
        input_ids = torch.randint(4, 41, (self.batch_size, self.seq_length))
        return self.get_config(), {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}


@pytest.fixture(autouse=True)
def luna_in_the_library_s_tables(monkeypatch):
    """From these the common tests learn which labels a class takes."""
    for row in ENCODERS:
        table = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", row.auto_name.removeprefix("Auto")).upper()
        monkeypatch.setitem(getattr(modeling_auto, f"{table}_MAPPING_NAMES"), "luna", row.model_class.__name__)


class TestLuna(common.ModelTesterMixin, unittest.TestCase):
    all_model_classes = tuple(dict.fromkeys(row.model_class for row in ENCODERS))

    def setUp(self):
        self.model_tester = LunaTester()
