# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""What launchers say in the environment is understood or refused."""

import pytest

from luna_tools.errors import InputError
from pretraining import launcher


@pytest.fixture(autouse=True)
def variables(monkeypatch):
    """An environment without a launcher's variables that takes back what a test makes the program set."""
    for name in ("ACCELERATE_DEEPSPEED_CONFIG_FILE", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP", "FSDP_VERSION"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return monkeypatch


def test_the_launcher_chooses(variables):
    assert launcher.launched_engine() == "ddp"
    variables.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InputError, match="asks for FSDP 1, which is not supported: set `fsdp_version: 2`"):
        launcher.launched_engine()
    variables.setenv("FSDP_VERSION", "2")
    assert launcher.launched_engine() == "fsdp2"
    variables.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    assert launcher.launched_engine() == "zero2"
    variables.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(launcher.LAUNCH / "zero3.json"))
    assert launcher.launched_engine() == "zero3"


@pytest.mark.parametrize("named", ["zero1.json", "pretraining/launch/zero1.json"])
def test_a_configuration_of_the_package_is_found_from_any_folder(named, variables, tmp_path):
    variables.chdir(tmp_path)
    variables.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    variables.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", named)
    assert launcher.launched_engine() == "zero1"
    assert launcher.os.environ["ACCELERATE_DEEPSPEED_CONFIG_FILE"] == str(launcher.LAUNCH / "zero1.json")
    # One of the user's own comes first.
    (tmp_path / named).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / named).write_text('{"zero_optimization": {"stage": 2}}', encoding="utf-8")
    variables.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", named)
    assert launcher.launched_engine() == "zero2"


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ("{", "can't be read .*: mend it"),
        ("{}", "`zero_optimization.stage` .* is None: choose 1, 2 or 3"),
        ('{"zero_optimization": {"stage": 0}}', "is 0: choose 1, 2 or 3, or launch without DeepSpeed"),
        ('{"zero_optimization": {"stage": 2}, "gradient_clipping": 2.0}', "`gradient_clipping` .* is 2.0, but the recipe"),
        ('{"zero_optimization": {"stage": 2}, "bf16": {"enabled": true}}', "`bf16` .*, but the recipe decides it"),
        (
            '{"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}',
            "`zero_optimization.offload_optimizer` .* is not supported",
        ),
    ],
)
def test_deepspeed_configurations_that_are_refused(config, sentence, tmp_path, variables):
    path = tmp_path / "ds.json"
    path.write_text(config, encoding="utf-8")
    variables.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    variables.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(path))
    with pytest.raises(InputError, match=sentence):
        launcher.launched_engine()


def test_without_deepspeed_one_sentence_says_so(variables):
    variables.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    variables.setattr(launcher.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="DeepSpeed, which is not installed"):
        launcher.launched_engine()
