# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Luna in the libraries around transformers: docs/ecosystem.md says the same to users."""

import re

import numpy as np
import pytest
import torch
from torch.export import Dim
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
)

from luna_tools import export_onnx
from modeling_luna import LunaForMaskedLM, LunaForSequenceClassification, LunaModel
from tests.support.backends import emulated_flash
from tests.support.hub_server import Hub
from tests.support.luna_builders import SENTENCES, build, make_tokenizer, pad_batch, random_ids
from tests.support.models import TRANSLATOR, each_generator

CLASSES = [LunaModel, LunaForMaskedLM, LunaForSequenceClassification]
LORA_TARGETS = r".*\.layers\.\d+\.\w*attention\.\w+_proj"


def needs(library, extra):
    return pytest.importorskip(library, reason=f"{library} is not installed: pip install 'luna-transformers[{extra}]'")


def batches(lengths):
    """One row, and three of which two are padded, on either side."""
    for n in lengths:
        yield pad_batch([random_ids(n, seed=n)])
        for side in ("right", "left"):
            yield pad_batch([random_ids(m, seed=10 * n + m) for m in (n, 1, -(-n // 2))], side=side)


def small(model_class, **changes):
    return build(model_class, attention="sdpa", dtype=torch.float32, num_hidden_layers=2, **changes)


# ---------------------------------------------------------------------------------------------------------------------
# torch.export and ONNX


@pytest.mark.parametrize("dynamic_projection", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("model_class", [CLASSES[2], *(pytest.param(x, marks=pytest.mark.slow) for x in CLASSES[:2])])
def test_torch_export_gives_one_program_for_all_lengths(model_class, dynamic_projection):
    model = small(model_class, dynamic_projection=dynamic_projection)
    example = pad_batch([random_ids(7), random_ids(4), random_ids(2)])
    shapes = {name: {0: Dim.DYNAMIC, 1: Dim.DYNAMIC} for name in example}
    program = torch.export.export(model, args=(), kwargs=example, dynamic_shapes=shapes).module()
    # A dynamic dimension of torch.export is at least 2, which binds where it decides the number of slots.
    for batch in batches(range(2 if dynamic_projection else 1, 16)):
        actual, expected = program(**batch), model(**batch)
        assert actual.keys() == expected.keys()
        for name in expected:
            torch.testing.assert_close(actual[name], expected[name], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "model_class, dynamic_projection", [(LunaModel, False), (LunaForMaskedLM, True), (LunaForSequenceClassification, True)]
)
def test_onnx_runtime_agrees_over_all_lengths(model_class, dynamic_projection, tmp_path):
    needs("onnxscript", "onnx")
    onnxruntime = needs("onnxruntime", "onnx")
    model = small(model_class, dynamic_projection=dynamic_projection)
    model.save_pretrained(tmp_path / "luna")
    export_onnx.main([str(tmp_path / "luna"), "--output_dir", str(tmp_path / "onnx")])

    session = onnxruntime.InferenceSession(str(tmp_path / "onnx" / "model.onnx"))
    names = [output.name for output in session.get_outputs()]
    assert names == list(model(**pad_batch([random_ids(3)])).keys())
    for batch in batches(range(1, 16)):
        expected = model(**batch)
        for name, values in zip(names, session.run(None, {k: v.numpy() for k, v in batch.items()}), strict=True):
            np.testing.assert_allclose(values, expected[name].detach().numpy(), rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# Loading and quantization


@pytest.fixture
def saved(tmp_path):
    """A masked language model, saved in several files, and a batch."""
    model = small(LunaForMaskedLM)
    model.save_pretrained(tmp_path, max_shard_size="5KB")
    return model, tmp_path, pad_batch([random_ids(9), random_ids(3)])


def test_sharded_checkpoint_keeps_the_model_and_its_tied_weights(saved):
    model, folder, batch = saved
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 1
    loaded = AutoModelForMaskedLM.from_pretrained(folder)
    assert loaded.lm_head.decoder.weight is loaded.luna.embeddings.word_embeddings.weight
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)


def test_dtype_is_that_asked_for_or_that_of_the_checkpoint(saved, tmp_path):
    model, folder, batch = saved
    assert AutoModelForMaskedLM.from_pretrained(folder, dtype="auto").dtype == torch.float32
    half = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    expected = model(**batch).logits
    torch.testing.assert_close(half(**batch).logits.float(), expected, rtol=0, atol=0.05 * expected.abs().max().item())
    half.save_pretrained(tmp_path / "half")
    assert AutoModelForMaskedLM.from_pretrained(tmp_path / "half", dtype="auto").dtype == torch.bfloat16


def test_loading_makes_no_second_copy_of_the_weights(saved, monkeypatch):
    model, folder, batch = saved
    devices, original = set(), LunaForMaskedLM.__init__

    def recorded(self, *args, **kwargs):
        original(self, *args, **kwargs)
        devices.update(parameter.device.type for parameter in self.parameters())

    monkeypatch.setattr(LunaForMaskedLM, "__init__", recorded)
    loaded = LunaForMaskedLM.from_pretrained(folder)
    assert devices == {"meta"}
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)


def test_device_map_places_modules_and_offloads_the_rest(saved, tmp_path):
    needs("accelerate", "pretrain")
    model, folder, batch = saved
    on_cpu = AutoModelForMaskedLM.from_pretrained(folder, device_map="auto")
    assert torch.equal(on_cpu(**batch).logits, model(**batch).logits)
    places = {"luna.embeddings": "cpu", "luna.packed_embeddings": "disk", "luna.layers.0": "cpu", "luna.layers.1": "disk"}
    offloaded = AutoModelForMaskedLM.from_pretrained(
        folder, device_map=places | {"lm_head": "cpu"}, offload_folder=tmp_path / "offload"
    )
    assert offloaded.luna.layers[1].fc1.weight.device.type == "meta"
    assert torch.equal(offloaded(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize(
    "options, layer, similarity",
    [({"load_in_8bit": True}, "Linear8bitLt", 0.99), ({"load_in_4bit": True}, "Linear4bit", 0.9)],
)
def test_bitsandbytes_quantizes_all_but_the_head(options, layer, similarity, tmp_path):
    needs("bitsandbytes", "quantization")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_labels": 3}
    model = small(LunaForSequenceClassification, **sizes)
    model.save_pretrained(tmp_path / "luna")
    config = BitsAndBytesConfig(llm_int8_skip_modules=["classifier"], **options)
    quantized = AutoModelForSequenceClassification.from_pretrained(tmp_path / "luna", quantization_config=config)
    kinds = {name: type(module).__name__ for name, module in quantized.named_modules() if name.endswith("_proj")}
    assert {kind for name, kind in kinds.items() if name.startswith("luna.")} == {layer}
    assert kinds["classifier.out_proj"] == "Linear"

    batch = pad_batch([random_ids(9), random_ids(4)])
    expected = model.luna(**batch).packed_mean
    cosine = torch.nn.functional.cosine_similarity(quantized.luna(**batch).packed_mean.float(), expected)
    assert similarity < cosine.min() and cosine.max() < 1 - 1e-6
    quantized.save_pretrained(tmp_path / "quantized")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "quantized")
    torch.testing.assert_close(again(**batch).logits, quantized(**batch).logits)


# ---------------------------------------------------------------------------------------------------------------------
# PEFT


@pytest.mark.parametrize("tie_key_value", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_lora_trains_merges_and_loads_as_a_plain_model_from_folder_and_hub(tie_key_value, tmp_path, monkeypatch):
    peft = needs("peft", "peft")
    base = small(LunaForSequenceClassification, num_labels=2, tie_key_value=tie_key_value)
    base.save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=LORA_TARGETS, modules_to_save=["classifier"])
    model = peft.get_peft_model(base, config)
    adapters = [name for name, _ in model.named_parameters() if "lora_A" in name]
    assert len(adapters) == 2 * (5 if tie_key_value else 7)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name in trained if "lora_" not in name} == {name for name in trained if "modules_to_save" in name}

    # The toy task: does the text begin with an id above 20?
    batch = pad_batch([random_ids(9 if i % 2 else 4, seed=i) for i in range(12)])
    labels = (batch["input_ids"][:, 0] > 20).long()
    frozen = base.luna.layers[0].fc1.weight.clone()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(20):
        loss = model.train()(**batch, labels=labels).loss
        loss.backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4
    assert torch.equal(base.luna.layers[0].fc1.weight, frozen)

    expected = model.eval()(**batch).logits
    model.save_pretrained(tmp_path / "adapter")
    merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert not [name for name in loaded.state_dict() if "lora" in name]
    torch.testing.assert_close(loaded(**batch).logits, expected, rtol=1e-5, atol=1e-5)
    adapted = peft.PeftModel.from_pretrained(
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "base"), tmp_path / "adapter"
    )
    torch.testing.assert_close(adapted(**batch).logits, expected, rtol=1e-5, atol=1e-5)

    tokenizer = make_tokenizer()
    with Hub() as hub:
        hub.serve_this_process(monkeypatch, tmp_path / "cache")
        merged.push_to_hub("org/merged")
        tokenizer.push_to_hub("org/merged")
        repository = hub.repositories["org/merged"]
        files = repository.commits[repository.branches["main"]]
        by_name = AutoModelForSequenceClassification.from_pretrained("org/merged")
    assert {"config.json", "model.safetensors", "modeling_luna.py", "tokenizer.json"} <= files.keys()
    assert not [name for name in files if "adapter" in name]
    torch.testing.assert_close(by_name(**batch).logits, expected, rtol=1e-5, atol=1e-5)


@each_generator
def test_lora_trains_generates_and_merges_where_luna_is_causal(row):
    peft = needs("peft", "peft")
    base = row.build(attention="sdpa", dtype=torch.float32, num_hidden_layers=2)
    task_type = "SEQ_2_SEQ_LM" if row is TRANSLATOR else "CAUSAL_LM"
    model = peft.get_peft_model(base, peft.LoraConfig(task_type=task_type, r=4, target_modules=LORA_TARGETS))
    batch = pad_batch([random_ids(9, seed=i) for i in range(4)])
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(30):
        loss = model.train()(**row.training_inputs(batch)).loss
        loss.backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.2

    tokens = model.eval().generate(**batch, max_new_tokens=6, do_sample=False, pad_token_id=1)
    expected = model(**row.inputs(batch)).logits
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(**row.inputs(batch)).logits, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(merged.generate(**batch, max_new_tokens=6, do_sample=False, pad_token_id=1), tokens)


# ---------------------------------------------------------------------------------------------------------------------
# sentence-transformers


@pytest.fixture
def encoder(tmp_path):
    """A Luna with its tokenizer as sentence-transformers finds it, texts above and below l, and their encoding."""
    tokenizer = make_tokenizer()
    model = small(LunaModel, vocab_size=len(tokenizer))
    tokenizer.model_max_length = model.config.max_sequence_length
    model.save_pretrained(tmp_path / "luna")
    tokenizer.save_pretrained(tmp_path / "luna")
    texts = ["moon", "a", *SENTENCES]
    encoded = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    assert encoded["attention_mask"].sum(dim=-1).min() < 5 < encoded["attention_mask"].sum(dim=-1).max()
    with torch.no_grad():
        return tmp_path / "luna", texts, encoded, model(**encoded)


def test_sentence_transformers_takes_the_mean_over_tokens(encoder):
    library = needs("sentence_transformers", "sentence-transformers")
    folder, texts, encoded, outputs = encoder
    model = library.SentenceTransformer(str(folder), device="cpu")
    mask = encoded["attention_mask"][..., None]
    expected = (outputs.last_hidden_state * mask).sum(dim=1) / mask.sum(dim=1)
    torch.testing.assert_close(model.encode(texts, convert_to_tensor=True), expected, rtol=1e-5, atol=1e-5)


def test_sentence_transformers_takes_the_mean_over_the_packed_slots(encoder, tmp_path):
    library = needs("sentence_transformers", "sentence-transformers")
    from sentence_transformers.sentence_transformer.modules import Transformer

    folder, texts, _, outputs = encoder
    module = Transformer(
        str(folder),
        modality_config={"text": {"method": "forward", "method_output_name": "packed_mean"}},
        module_output_name="sentence_embedding",
    )
    model = library.SentenceTransformer(modules=[module], device="cpu")
    used = outputs.packed_attention_mask.bool()
    expected = torch.stack([row[mask].mean(dim=0) for row, mask in zip(outputs.packed_state, used, strict=True)])
    torch.testing.assert_close(model.encode(texts, convert_to_tensor=True), expected, rtol=1e-5, atol=1e-5)
    assert model.get_embedding_dimension() == 16

    model.save_pretrained(str(tmp_path / "saved"))
    again = library.SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    torch.testing.assert_close(again.encode(texts, convert_to_tensor=True), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("packed", [False, True])
def test_sentence_transformers_trains_it(packed, encoder, tmp_path):
    library = needs("sentence_transformers", "sentence-transformers")
    from datasets import Dataset
    from sentence_transformers.sentence_transformer import losses
    from sentence_transformers.sentence_transformer.modules import Transformer

    folder, *_ = encoder
    if packed:
        text = {"method": "forward", "method_output_name": "packed_mean"}
        module = Transformer(str(folder), modality_config={"text": text}, module_output_name="sentence_embedding")
        model = library.SentenceTransformer(modules=[module], device="cpu")
    else:
        model = library.SentenceTransformer(str(folder), device="cpu")
    pairs = Dataset.from_dict({"anchor": SENTENCES, "positive": [re.sub(r"\w+$", "", text[:-1]) for text in SENTENCES]})
    arguments = library.SentenceTransformerTrainingArguments(
        str(tmp_path / "run"), max_steps=12, per_device_train_batch_size=3, learning_rate=5e-3, logging_steps=1,
        save_strategy="no", report_to="none", use_cpu=True,
    )  # fmt: skip
    loss = losses.MultipleNegativesRankingLoss(model)
    trainer = library.SentenceTransformerTrainer(model, arguments, train_dataset=pairs, loss=loss)
    trainer.train()
    history = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert history[-1] < history[0] / 2


def test_sentence_transformers_must_pad_under_flash_attention(encoder):
    """There it hands over all texts as one row, unless told otherwise."""
    library = needs("sentence_transformers", "sentence-transformers")
    folder, texts, _, _ = encoder
    model = library.SentenceTransformer(str(folder), device="cpu")
    expected = model.encode(texts, convert_to_tensor=True)
    with emulated_flash():
        model[0].model.config._attn_implementation = "flash_attention_2"
        model[0].unpad_inputs = None  # it looks again, and finds the kernels
        with pytest.raises(ValueError, match="`unpad_inputs=False`"):
            model.encode(texts)
        model[0].unpad_inputs = False
        torch.testing.assert_close(model.encode(texts, convert_to_tensor=True), expected, rtol=1e-5, atol=1e-5)
