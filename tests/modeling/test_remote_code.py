# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Saved folders are complete, and load by their own code where there is no other.

The programs in text run in processes of their own. To run them on other versions of the libraries: LUNA_PYTHON=.../python.
"""

import filecmp
import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file
from transformers import Trainer, TrainingArguments

import modeling_luna
from configuration_luna import AUTO_CLASSES, LunaConfig
from tests.support.fresh_process import ROOT, run_program
from tests.support.hub_server import Hub
from tests.support.luna_builders import build, make_tokenizer, pad_batch, random_ids, tiny_config

CODE_FILES = {"causal_luna.py", "configuration_luna.py", "modeling_luna.py"}
MODEL_FILES = CODE_FILES | {"config.json", "model.safetensors"}
FULL_AUTO_MAP = {"AutoConfig": "configuration_luna.LunaConfig"} | {
    auto_name: f"modeling_luna.{class_name}" for auto_name, class_name in AUTO_CLASSES.items()
}


def model_of(class_name, **changes):
    if class_name == "LunaForConditionalGeneration":
        changes["is_encoder_decoder"] = True
    return build(getattr(modeling_luna, class_name), dtype=torch.float32, **changes)


def inputs_of(auto_name, batch):
    """The batch as the class takes it: as choices of one question, as source and target, or as it is."""
    if auto_name == "AutoModelForMultipleChoice":
        return {name: tensor[None] for name, tensor in batch.items()}
    return batch | ({"decoder_input_ids": batch["input_ids"]} if auto_name == "AutoModelForSeq2SeqLM" else {})


def save(folder, class_name="LunaForMaskedLM", **changes):
    """A tiny model and a tokenizer that fits it."""
    tokenizer = make_tokenizer()
    model = model_of(class_name, vocab_size=len(tokenizer), **changes)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def names_in(folder):
    return {path.name for path in Path(folder).iterdir()}


def files_of(model):
    return MODEL_FILES | ({"generation_config.json"} if model.can_generate() else set())


def config_in(folder):
    return json.loads((folder / "config.json").read_text())


def assert_succeeds(done):
    assert done.returncode == 0, done.stderr[-3000:]


# What is saved


@pytest.mark.parametrize("class_name", AUTO_CLASSES.values())
def test_every_class_saves_a_complete_folder(class_name, tmp_path):
    model = model_of(class_name)
    model.save_pretrained(tmp_path)
    assert names_in(tmp_path) == files_of(model)
    assert config_in(tmp_path)["auto_map"] == FULL_AUTO_MAP
    assert config_in(tmp_path)["architectures"] == [class_name]
    for name in CODE_FILES:
        assert filecmp.cmp(tmp_path / name, ROOT / name, shallow=False)


def test_the_table_names_every_class_with_a_head():
    public = {name for name in modeling_luna.__all__ if name != "LunaPreTrainedModel"}
    assert set(AUTO_CLASSES.values()) == public
    for auto_name, class_name in AUTO_CLASSES.items():
        registered = getattr(transformers, auto_name)._model_mapping[LunaConfig]
        assert registered is getattr(modeling_luna, class_name)


def test_only_the_main_process_writes(tmp_path):
    model_of("LunaModel").save_pretrained(tmp_path, is_main_process=False)
    assert not names_in(tmp_path)


def test_a_configuration_saved_alone_brings_the_code(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    assert names_in(tmp_path) == CODE_FILES | {"config.json"}
    assert config_in(tmp_path)["auto_map"] == FULL_AUTO_MAP


def test_auto_map_of_another_repository_is_not_handed_on(tmp_path):
    model = model_of("LunaForMaskedLM")
    model.config.auto_map = {"AutoConfig": "them/theirs--configuration_luna.LunaConfig", "AutoModel": "them/theirs--x.Y"}
    model.save_pretrained(tmp_path)
    assert config_in(tmp_path)["auto_map"] == FULL_AUTO_MAP


def test_the_trainer_saves_a_complete_folder(tmp_path):
    model = model_of("LunaForSequenceClassification")
    rows = [{"input_ids": torch.tensor(random_ids(6, seed)), "labels": seed % 2} for seed in range(4)]
    arguments = TrainingArguments(str(tmp_path), max_steps=1, report_to="none", disable_tqdm=True, use_cpu=True)
    trainer = Trainer(model, arguments, train_dataset=rows, processing_class=make_tokenizer())
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    for folder in (tmp_path / "checkpoint-1", tmp_path / "final"):
        assert names_in(folder) >= MODEL_FILES | {"tokenizer.json", "tokenizer_config.json"}
        assert config_in(folder)["auto_map"] == FULL_AUTO_MAP


# What a stranger loads

LOAD_EVERY_CLASS = """
import json, torch, transformers
from safetensors.torch import load_file
results = {}
for auto_name, class_name in json.loads(sys.argv[2]).items():
    folder = f"{sys.argv[1]}/{class_name}"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    assert len(tokenizer(["Luna packs", "Luna"], padding=True)["input_ids"]) == 2
    model = getattr(transformers, auto_name).from_pretrained(folder, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    assert type(model).__name__ == class_name, type(model)
    batch = load_file(f"{folder}/inputs.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(model(**batch)[0], load_file(f"{folder}/expected.safetensors")["output"])
    if auto_name != "AutoModelForCausalLM":
        encoder = transformers.AutoModel.from_pretrained(folder, trust_remote_code=True)
        assert type(encoder).__name__ == "LunaModel"
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    built = getattr(transformers, auto_name).from_config(config, trust_remote_code=True)
    assert type(built).__name__ == class_name
    model.save_pretrained(f"{sys.argv[1]}/again/{class_name}")
    config.save_pretrained(f"{sys.argv[1]}/again/config")
config = transformers.AutoConfig.from_pretrained(f"{sys.argv[1]}/again/config", trust_remote_code=True)
assert type(transformers.AutoModel.from_config(config, trust_remote_code=True)).__name__ == "LunaModel"
print(transformers.__version__)
"""


def test_a_stranger_loads_every_class_and_saves_it_again(tmp_path):
    batch = pad_batch([random_ids(9, 1), random_ids(4, 2)])
    for auto_name, class_name in AUTO_CLASSES.items():
        model = save(tmp_path / class_name, class_name)
        inputs = {name: tensor.clone() for name, tensor in inputs_of(auto_name, batch).items()}
        save_file(inputs, tmp_path / class_name / "inputs.safetensors")
        with torch.no_grad():
            save_file({"output": model(**inputs)[0].contiguous()}, tmp_path / class_name / "expected.safetensors")
    assert_succeeds(run_program(LOAD_EVERY_CLASS, tmp_path / "elsewhere", tmp_path, json.dumps(AUTO_CLASSES)))

    for class_name in AUTO_CLASSES.values():
        again = tmp_path / "again" / class_name
        assert names_in(again) == files_of(getattr(modeling_luna, class_name))
        for name in MODEL_FILES - {"config.json"}:
            assert filecmp.cmp(again / name, tmp_path / class_name / name, shallow=False), name
        old, new = config_in(tmp_path / class_name), config_in(again)
        assert old | {"transformers_version": ""} == new | {"transformers_version": ""}
    assert names_in(tmp_path / "again" / "config") == CODE_FILES | {"config.json"}


REMOTE_THEN_INSTALLED = """
from transformers import AutoModel, AutoModelForMaskedLM
a, b, broken = sys.argv[1:]
first = AutoModel.from_pretrained(a, trust_remote_code=True)
second = AutoModel.from_pretrained(b, trust_remote_code=True)
assert type(first).MARK == "A" and type(second).MARK == "B"
assert type(AutoModelForMaskedLM.from_pretrained(a, trust_remote_code=True).luna).MARK == "A"
assert type(first.config) is not type(second.config)
assert "modeling_luna" not in sys.modules
try:
    AutoModel.from_pretrained(broken, trust_remote_code=True)
except OSError as error:
    assert "configuration_luna.py" in str(error), error
else:
    raise AssertionError("a folder without configuration_luna.py was loaded")
assert "configuration_luna" not in sys.modules

import modeling_luna
third = AutoModelForMaskedLM.from_pretrained(b)
assert type(third) is modeling_luna.LunaForMaskedLM
assert type(AutoModel.from_pretrained(a)) is modeling_luna.LunaModel
assert type(first).MARK == "A"
"""

INSTALLED_THEN_REMOTE = """
import types
import modeling_luna
from transformers import AutoModel, AutoModelForMaskedLM
from transformers.dynamic_module_utils import get_class_from_dynamic_module
a, b, broken = sys.argv[1:]
assert type(AutoModel.from_pretrained(a)) is modeling_luna.LunaModel
# transformers prefers the classes that a program has registered
assert type(AutoModelForMaskedLM.from_pretrained(b, trust_remote_code=True)) is modeling_luna.LunaForMaskedLM
remote = get_class_from_dynamic_module("modeling_luna.LunaForMaskedLM", b)
assert type(remote.from_pretrained(b)).MARK == "B"
assert type(AutoModelForMaskedLM.from_pretrained(b)) is modeling_luna.LunaForMaskedLM
assert not hasattr(modeling_luna.LunaModel, "MARK")

package = types.ModuleType("half")
package.__path__ = [broken]
sys.modules["half"] = package
try:
    import half.modeling_luna
except ModuleNotFoundError as error:
    assert error.name == "half.configuration_luna", error
else:
    raise AssertionError("the code of a folder took the installed configuration")
"""


@pytest.fixture(scope="module")
def marked_folders(tmp_path_factory):
    """Two folders of one name whose code tells which it is, and one without its configuration's code."""
    root = tmp_path_factory.mktemp("marked")
    for mark in "AB":
        folder = root / mark / "luna"
        save(folder)
        code = (folder / "modeling_luna.py").read_text()
        (folder / "modeling_luna.py").write_text(f'{code}\nLunaPreTrainedModel.MARK = "{mark}"\n')
    save(root / "broken")
    (root / "broken" / "configuration_luna.py").unlink()
    return root / "A" / "luna", root / "B" / "luna", root / "broken"


@pytest.mark.slow
@pytest.mark.parametrize("program", [REMOTE_THEN_INSTALLED, INSTALLED_THEN_REMOTE], ids=["remote", "installed"])
def test_code_of_two_folders_and_installed_code_do_not_clash(program, marked_folders, tmp_path):
    assert_succeeds(run_program(program, tmp_path, *marked_folders, project=True))


@pytest.mark.slow
def test_pipelines_run_from_a_folder(tmp_path):
    save(tmp_path / "masked")
    save(tmp_path / "classifier", "LunaForSequenceClassification")
    program = """
from transformers import pipeline
masked, classifier = sys.argv[1:]
assert len(pipeline("fill-mask", masked, trust_remote_code=True)("The moon <mask> around the earth.")) == 5
assert pipeline("text-classification", classifier, trust_remote_code=True)("The moon")[0]["label"] in ("LABEL_0", "LABEL_1")
"""
    assert_succeeds(run_program(program, tmp_path / "elsewhere", tmp_path / "masked", tmp_path / "classifier"))


def test_a_pushed_model_is_complete_and_keeps_the_repository_s_card(tmp_path, monkeypatch):
    """`push_to_hub` and `save_pretrained` are the library's own: cards are written by the programs and the push tool."""
    assert modeling_luna.LunaPreTrainedModel.save_pretrained is transformers.PreTrainedModel.save_pretrained
    with Hub() as hub:
        hub.serve_this_process(monkeypatch, tmp_path / "cache")
        model = model_of("LunaForMaskedLM")
        model.push_to_hub("org/luna")
        repository = hub.repositories["org/luna"]
        files = repository.commits[repository.branches["main"]]
        assert files.keys() >= MODEL_FILES
        assert json.loads(files["config.json"])["auto_map"] == FULL_AUTO_MAP
        card = b"---\nlicense: mit\n---\n# Mine\r\n"
        repository.commit("main", {"README.md": card})
        model.push_to_hub("org/luna")
        assert repository.commits[repository.branches["main"]]["README.md"] == card
        loaded = transformers.AutoModelForMaskedLM.from_pretrained("org/luna")
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in model.state_dict().items())
