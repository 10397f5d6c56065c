# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Official checkpoints become folders that `from_pretrained` loads, or one sentence says why not and nothing is written."""

import hashlib
import json
import os
import re
import signal
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForSequenceClassification

from luna_tools.cards import UNNAMED
from luna_tools.convert.checkpoint import load_fairseq_checkpoint
from luna_tools.convert.configuration import config_from_args
from luna_tools.convert.weights import convert_state_dict, find_layer_norm_scale, map_names
from luna_tools.errors import InputError, Stopped
from modeling_luna import LunaForMaskedLM
from tests.support.fairseq_files import EMBEDDINGS, TIED, Bpe, convert
from tests.support.fresh_process import run_program
from tests.support.parity_kit import (
    HEAD_VARIANTS,
    MASKED_LM_VARIANTS,
    TOLERANCE_FACTOR,
    find_variant,
    max_abs_difference,
    read_goldens,
    variant_params,
)

LAYER = "encoder.sentence_encoder.layers.0."
HEADS = variant_params(*HEAD_VARIANTS)


def max_logits_error(folder, variant: str) -> float:
    """Largest error of the converted model's logits over all batches, as a fraction of the tolerance."""
    model = AutoModelForMaskedLM.from_pretrained(folder)
    assert isinstance(model, LunaForMaskedLM) and not model.training
    goldens, facts = read_goldens(variant)
    errors = []
    for batch in facts["batches"]:
        mask = goldens[f"{batch}.attention_mask"]
        with torch.no_grad():
            logits = model(input_ids=goldens[f"{batch}.input_ids"], attention_mask=mask).logits
        errors.append(max_abs_difference(logits, goldens[f"{batch}.logits"], mask.bool()))
    return max(errors) / (TOLERANCE_FACTOR * facts["fp32_noise"]["logits"]["max_abs_err"])


@pytest.fixture
def checkpoint():
    """The content of luna_bert/tied, to be changed and saved by a test."""
    args, state_dict = load_fairseq_checkpoint(TIED / "model.pt")
    return {"args": args, "model": state_dict}


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def assert_refused(tmp_path: Path, sentence: str, checkpoint, *options, out=None, dictionary=TIED / "dict.txt") -> None:
    before = tree(tmp_path)
    with pytest.raises(InputError) as refused:
        convert(checkpoint, out or tmp_path / "out", *options, dictionary=dictionary)
    assert str(refused.value) == sentence
    assert tree(tmp_path) == before


# ---------------------------------------------------------------------------------------------------------------------
# What is converted


# Loads what was converted as a user does, and saves what it computes.
FRESH_PROCESS = """
import json
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification
import modeling_luna

for folder, goldens, batches, has_head in json.loads(sys.argv[1]):
    inputs, outputs = load_file(goldens), {}
    encoder = AutoModel.from_pretrained(folder)
    models = {"logits": AutoModelForMaskedLM.from_pretrained(folder)}
    if has_head:
        models["cls_logits"] = AutoModelForSequenceClassification.from_pretrained(folder)
    for batch in batches:
        batch_inputs = {name: inputs[f"{batch}.{name}"] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            states = encoder(**batch_inputs, output_hidden_states=True, output_packed_states=True)
            for kind, values in (("hidden", states.hidden_states), ("packed", states.packed_states)):
                outputs |= {f"{batch}.{kind}.{i}": value.clone() for i, value in enumerate(values)}
            outputs |= {f"{batch}.{kind}": model(**batch_inputs).logits for kind, model in models.items()}
    save_file(outputs, f"{folder}/outputs.safetensors")
"""


@pytest.mark.slow
def test_every_variant_converts_and_computes_the_same_in_a_fresh_process(tmp_path, capsys):
    variants = [name for name in MASKED_LM_VARIANTS if find_variant(name) is not None]
    assert len(variants) >= 7, "those in tests/data/parity"
    jobs = []
    for variant in variants:
        folder, out = find_variant(variant), tmp_path / variant
        convert(folder / "model.pt", out, dictionary=folder / "dict.txt")
        printed = capsys.readouterr().out
        is_newer = variant == "head_variants/luna_bert/tied"
        assert f"LayerNorm factor: {'weight + 1' if is_newer else 'weight'} (detected)." in printed
        assert ("Classification head" in printed) == (variant in HEAD_VARIANTS)
        goldens = find_variant(variant.removeprefix("head_variants/")) / "goldens.safetensors"
        jobs.append((str(out), str(goldens), read_goldens(variant)[1]["batches"], variant in HEAD_VARIANTS))

    result = run_program(FRESH_PROCESS, tmp_path / "elsewhere", json.dumps(jobs), project=True)
    assert result.returncode == 0, result.stderr

    for variant, (out, _, batches, has_head) in zip(variants, jobs, strict=True):
        goldens, facts = read_goldens(variant)
        compared = set()
        for name, output in load_file(f"{out}/outputs.safetensors").items():
            batch, kind = name.split(".")[:2]
            mask = None
            if kind == "packed":
                mask = goldens[f"{batch}.packed_mask"].bool()
                output = output[:, : mask.shape[1]]
            elif kind != "cls_logits":
                mask = goldens[f"{batch}.attention_mask"].bool()
            tolerance = TOLERANCE_FACTOR * facts["fp32_noise"][kind]["max_abs_err"]
            assert max_abs_difference(output, goldens[name], mask) <= tolerance, f"{variant} {name}"
            compared.add((batch, kind))
        kinds = {"hidden", "packed", "logits"} | ({"cls_logits"} if has_head else set())
        assert compared == {(batch, kind) for batch in batches for kind in kinds}


# Prints the peak memory in bytes of converting what the arguments name.
CONVERT_AND_MEASURE = """
import resource
from luna_tools.convert.run import main
main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
"""


@pytest.mark.slow
def test_a_checkpoint_of_the_released_size_converts_in_3_gb(tmp_path):
    args, tied = load_fairseq_checkpoint(TIED / "model.pt")
    sizes = {"encoder_layers": 12, "encoder_embed_dim": 768, "encoder_ffn_embed_dim": 3072, "encoder_attention_heads": 12}
    sizes |= {"arch": "luna_base_tied_512", "projection_length": 128, "max_positions": 512, "tokens_per_sample": 512}
    vars(args).update(sizes)
    config = config_from_args(args, vocab_size=50265)
    with torch.device("meta"):
        shapes = {name: x.shape for name, x in LunaForMaskedLM(config).state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    state_dict = {
        official: torch.empty(shapes[ours]).normal_(1.0 if "norm" in official else 0.0, 0.02, generator=generator)
        for official, ours in map_names(config).items()
    }
    state_dict["encoder.lm_head.weight"] = state_dict["encoder.sentence_encoder.embed_tokens.weight"]
    assert {name for name in tied if ".layers." not in name} == {name for name in state_dict if ".layers." not in name}
    torch.save({"args": args, "model": state_dict}, tmp_path / "model.pt")
    (tmp_path / "dict.txt").write_text("".join(f"{i} 1\n" for i in range(50260)))

    arguments = [tmp_path / "model.pt", "--output_dir", tmp_path / "out", "--dictionary", tmp_path / "dict.txt"]
    done = run_program(CONVERT_AND_MEASURE, tmp_path / "elsewhere", *arguments, project=True)
    assert done.returncode == 0, done.stderr
    *_, peak = done.stdout.splitlines()
    assert int(peak) < 3e9
    model = LunaForMaskedLM.from_pretrained(tmp_path / "out")
    assert 130e6 < model.num_parameters() < 134e6
    loaded = model.state_dict()
    assert all(torch.equal(loaded[ours], state_dict[official]) for official, ours in map_names(config).items())


@pytest.mark.parametrize("variant", ["luna_bert/tied", "luna_bert/untied"])
def test_every_parameter_has_one_official_name(variant):
    args, state_dict = load_fairseq_checkpoint(find_variant(variant) / "model.pt")
    config = config_from_args(args, vocab_size=96)
    names = map_names(config)
    assert set(names) == set(state_dict)
    assert sorted(names.values()) == sorted(LunaForMaskedLM(config).state_dict())
    converted = convert_state_dict(state_dict, config)
    assert all(torch.equal(converted[ours], state_dict[official]) for official, ours in names.items())


def test_folders_and_links_that_stay_the_users(tmp_path, monkeypatch, capsys):
    """An empty folder stays the same one; parents are made; a link is followed."""
    for name in ("empty", "here", "linked"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("linked")
    (tmp_path / "to_nothing").symlink_to("new_by_link")
    monkeypatch.chdir(tmp_path / "here")
    targets = {tmp_path / "empty": "empty", tmp_path / "new" / "folder": "new/folder", Path("."): "here"}
    targets |= {tmp_path / "link": "linked", tmp_path / "to_nothing": "new_by_link"}
    for target, place in targets.items():
        convert(TIED / "model.pt", target)
        files = set(os.listdir(tmp_path / place))
        assert {"README.md", "config.json", "model.safetensors"} <= files and "tokenizer.json" not in files
        assert max_logits_error(tmp_path / place, "luna_bert/tied") <= 1
    assert (tmp_path / "link").is_symlink() and not list(tmp_path.rglob(".unfinished*"))
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == "No tokenizer, since it needs --encoder_json and --vocab_bpe."
    assert "converted to float32" not in printed


def test_layer_norm_scale_can_be_given(tmp_path, capsys):
    convert(TIED / "model.pt", tmp_path / "given", "--layer_norm_scale", "weight_plus_one")
    assert "LayerNorm factor: weight + 1 (given)." in capsys.readouterr().out
    _, official = load_fairseq_checkpoint(TIED / "model.pt")
    layer_norm = AutoModelForMaskedLM.from_pretrained(tmp_path / "given").luna.layers[0].final_layer_norm
    assert torch.equal(layer_norm.weight, official[f"{LAYER}final_layer_norm.weight"] + 1)
    assert torch.equal(layer_norm.bias, official[f"{LAYER}final_layer_norm.bias"])


SCALES = [
    ("weight", [1.0, 1.0]),
    ("weight", [0.8, 0.3]),
    ("weight", [0.007, 0.05]),  # small factors, as in luna_bert/smallscale
    ("weight", [2.0, -0.1]),
    ("weight_plus_one", [0.0, 0.0]),
    ("weight_plus_one", [-0.2, -0.4]),
    ("weight_plus_one", [0.7, -0.8]),
]


@pytest.mark.parametrize("scale, weights", SCALES)
def test_layer_norm_scale_is_told_by_the_weights(scale, weights):
    state_dict = {"a.layer_norm.weight": torch.tensor(weights), "a.fc1.weight": torch.full((4, 4), -9.0)}
    assert find_layer_norm_scale(state_dict) == scale


def test_half_precision_is_converted_to_float32_and_said(checkpoint, tmp_path, capsys):
    checkpoint["model"] = {name: tensor.half() for name, tensor in checkpoint["model"].items()}
    torch.save(checkpoint, tmp_path / "half.pt")
    convert(tmp_path / "half.pt", tmp_path / "out")
    assert "Weights in float16 were converted to float32." in capsys.readouterr().out
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    name = f"{LAYER}self_attn.pq_proj.weight"
    assert torch.equal(model.get_parameter(map_names(model.config)[name]), checkpoint["model"][name].float())


# ---------------------------------------------------------------------------------------------------------------------
# Classification heads


@pytest.mark.parametrize("variant", HEADS)
def test_the_only_head_is_converted_beside_the_language_model_head(variant, tmp_path, capsys):
    folder, head = find_variant(variant), HEAD_VARIANTS[variant]
    convert(
        folder / "model.pt", tmp_path / "out", "--verify", folder / "goldens.safetensors", dictionary=folder / "dict.txt"
    )
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert config.architectures == ["LunaForSequenceClassification"]
    pooling = {"cls": "cls", "pooling": "packed_max", "attention": "packed_attention"}[head.split("_")[0]]
    assert config.classifier_pooling == pooling and config.num_labels == 3 and config.classifier_dropout == 0.0
    printed = capsys.readouterr().out
    assert (
        f"Classification head: {head}, classifier_pooling {pooling}, 3 classes. The language model head is in the file, "
        "too: AutoModelForMaskedLM loads it."
    ) in printed
    line = printed.splitlines()[-1]
    start = f"Largest difference from {folder / 'goldens.safetensors'} as a fraction of the tolerance: hidden 0.0"
    assert line.startswith(start)
    kinds = [part.split()[-2] for part in line.rstrip(".").split(", ")]
    assert kinds == ["hidden", "packed", "logits", "cls_logits"]
    assert max_logits_error(tmp_path / "out", variant) <= 1


def test_head_none_converts_the_language_model(tmp_path, capsys):
    folder = find_variant("luna_bert/cls_head")
    convert(folder / "model.pt", tmp_path / "out", "--head", "none", dictionary=folder / "dict.txt")
    assert AutoConfig.from_pretrained(tmp_path / "out").architectures == ["LunaForMaskedLM"]
    assert not [name for name in load_file(tmp_path / "out" / "model.safetensors") if name.startswith("classifier.")]
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "Left out" in line)
    prefix = "classification_heads.cls_classification_head"
    assert line.endswith(f"{prefix}.dense.weight, {prefix}.dense.bias, {prefix}.out_proj.weight, {prefix}.out_proj.bias.")
    assert max_logits_error(tmp_path / "out", "luna_bert/cls_head") <= 1


def test_several_heads_and_the_dropout_of_one(tmp_path, capsys):
    """Beside the head of luna_bert/cls_head, under the name of `rte`, one of 5 classes."""
    args, state_dict = load_fairseq_checkpoint(find_variant("luna_bert/cls_head") / "model.pt")
    args.pooler_dropout = 0.25
    for name in [name for name in state_dict if name.startswith("classification_heads.")]:
        tensor = state_dict[name]
        state_dict[name.replace("cls_classification_head", "rte")] = tensor if ".dense." in name else tensor[[0, 1, 2, 0, 1]]
    two_heads = tmp_path / "model.pt"
    torch.save({"args": args, "model": state_dict}, two_heads)
    names = "cls_classification_head, rte"
    sentence = f"The checkpoint has the classification heads {names}: choose one of them with --head, or none."
    assert_refused(tmp_path, sentence, two_heads)
    sentence = f"The checkpoint has no classification head sst, but {names}."
    assert_refused(tmp_path, sentence, two_heads, "--head", "sst")
    sentence = "The checkpoint has no classification head sst, but no head."
    assert_refused(tmp_path, sentence, TIED / "model.pt", "--head", "sst")

    convert(two_heads, tmp_path / "out", "--head", "rte")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.config.num_labels == 5 and model.config.classifier_pooling == "cls"
    assert model.config.classifier_dropout == 0.25
    assert {module.p for module in model.classifier.modules() if isinstance(module, torch.nn.Dropout)} == {0.25}
    printed = capsys.readouterr().out
    assert "Left out: classification_heads.cls_classification_head.dense.weight, " in printed and "rte.dense" not in printed


# ---------------------------------------------------------------------------------------------------------------------
# The model card


@pytest.mark.parametrize(
    "variant", variant_params("luna_bert/tied", "luna_bert/attention_head", "head_variants/luna_bert/tied")
)
def test_model_card(variant, tmp_path):
    folder = find_variant(variant)
    convert(folder / "model.pt", tmp_path / "out", dictionary=folder / "dict.txt")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    head = HEAD_VARIANTS.get(variant)
    assert card.data.license == "unknown" and card.data.library_name == "transformers"
    assert card.data.pipeline_tag == ("fill-mask" if head is None else "text-classification")
    digest = hashlib.sha256((folder / "model.pt").read_bytes()).hexdigest()
    model = (AutoModelForMaskedLM if head is None else AutoModelForSequenceClassification).from_pretrained(tmp_path / "out")
    for fact in (digest, f"| parameters | {model.num_parameters():,} |", "trust_remote_code=True", "import modeling_luna"):
        assert fact in card.text
    assert ("1 + those in the file" in card.text) == variant.startswith("head_variants")
    assert head is None or f"`{head}`" in card.text
    assert not re.search(r"\$\w|None", card.text) and str(tmp_path) not in card.content and str(folder) not in card.content


@pytest.mark.slow
@pytest.mark.parametrize("with_tokenizer", [True, False])
def test_the_program_of_the_card_runs(with_tokenizer, tmp_path):
    out = tmp_path / "out"
    if with_tokenizer:
        bpe = Bpe(tmp_path)
        convert(bpe.checkpoint, out, *bpe.options, dictionary=bpe.dict)
    else:
        convert(TIED / "model.pt", out)
    (program,) = re.findall(r"```python\n(.*?)```", ModelCard.load(out / "README.md").text, re.DOTALL)
    # The line in which the name on the Hub is written.
    assert program.count(f"\n{UNNAMED}\n") == 1 and "(name, trust_remote_code=True)" in program
    result = run_program(program, out)
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(rf"torch\.Size\(\[1, \d+, {AutoConfig.from_pretrained(out).vocab_size}\]\)\n", result.stdout)


# ---------------------------------------------------------------------------------------------------------------------
# What is refused

TIED_EMBEDDINGS = f"encoder.lm_head.weight differs from {EMBEDDINGS}, although the checkpoint's args do not set "
NOT_FINITE = "fc1.bias holds values that are infinite in float32 or not a number, so the checkpoint is broken."
SECOND = f"{LAYER.replace('0', '1')}self_attn"
WEIGHTS_AND_SENTENCE = [
    ({f"{LAYER}fc1.bias": None}, {}, f"The checkpoint lacks {LAYER}fc1.bias."),
    (
        {"encoder.extra.weight": torch.zeros(3)},
        {},
        "The checkpoint's args do not account for its parameters encoder.extra.weight.",
    ),
    (
        {f"{LAYER}fc1.bias": torch.zeros(3)},
        {},
        f"{LAYER}fc1.bias has shape (3,), but the checkpoint's args make it (64,).",
    ),
    ({"encoder.lm_head.weight": torch.ones(96, 32)}, {}, f"{TIED_EMBEDDINGS}untie_weights_luna."),
    ({f"{LAYER}fc1.bias": torch.full((64,), torch.nan)}, {}, f"{LAYER}{NOT_FINITE}"),
    ({f"{LAYER}fc1.bias": torch.full((64,), 1e300, dtype=torch.float64)}, {}, f"{LAYER}{NOT_FINITE}"),
    ({EMBEDDINGS: torch.tensor(1.0)}, {}, f"{EMBEDDINGS} has shape (), but the checkpoint's args make it (96, 32)."),
    (
        {},
        {"untie_luna_kv": True},
        f"The checkpoint lacks {LAYER}self_attn.pk_proj.weight, {LAYER}self_attn.pk_proj.bias, "
        f"{LAYER}self_attn.pv_proj.weight and 13 more.",
    ),
    (
        {},
        {"encoder_layers": 1},
        f"The checkpoint's args do not account for its parameters {SECOND}.pq_proj.weight, {SECOND}.pq_proj.bias, "
        f"{SECOND}.q_proj.weight and 17 more.",
    ),
    (
        {},
        {"projection_length": 9},
        "encoder.sentence_encoder.projected_embeddings has shape (8, 32), but the checkpoint's args make it (9, 32).",
    ),
    (
        {},
        {"max_positions": 65},
        "encoder.sentence_encoder.embed_positions.weight has shape (66, 32), but the checkpoint's args make it (67, 32).",
    ),
]


@pytest.mark.parametrize("weights, args, sentence", WEIGHTS_AND_SENTENCE)
def test_refused_weights(weights, args, sentence, checkpoint, tmp_path):
    vars(checkpoint["args"]).update(args)
    changed = checkpoint["model"] | weights
    checkpoint["model"] = {name: tensor for name, tensor in changed.items() if tensor is not None}
    torch.save(checkpoint, tmp_path / "model.pt")
    assert_refused(tmp_path, sentence, tmp_path / "model.pt")


def test_a_checkpoint_without_weights(checkpoint, tmp_path):
    torch.save(checkpoint | {"model": {}}, tmp_path / "model.pt")
    assert_refused(tmp_path, "The checkpoint has no LayerNorm weights, so it is not a Luna model.", tmp_path / "model.pt")


HEAD = "classification_heads.pooling_classification_head"
HEADS_AND_SENTENCE = [
    ({"in_proj.bias": None}, f"The checkpoint lacks {HEAD}.in_proj.bias."),
    ({"out_proj.bias": None}, f"The checkpoint lacks {HEAD}.out_proj.bias."),
    ({"extra.bias": torch.zeros(2)}, f"The checkpoint's args do not account for its parameters {HEAD}.extra.bias."),
    (
        {"dense.weight": torch.zeros(16, 32)},
        f"{HEAD}.dense.weight has shape (16, 32), but the checkpoint's args make it (32, 32).",
    ),
    ({"out_proj.bias": torch.tensor(1.0)}, f"{HEAD}.out_proj.bias has shape (), but the checkpoint's args make it (3,)."),
]


@pytest.mark.parametrize("weights, sentence", HEADS_AND_SENTENCE)
def test_refused_heads(weights, sentence, tmp_path):
    args, state_dict = load_fairseq_checkpoint(find_variant("luna_bert/pooling_head") / "model.pt")
    state_dict |= {f"{HEAD}.{name}": tensor for name, tensor in weights.items()}
    state_dict = {name: tensor for name, tensor in state_dict.items() if tensor is not None}
    torch.save({"args": args, "model": state_dict}, tmp_path / "model.pt")
    assert_refused(tmp_path, sentence, tmp_path / "model.pt")


OPTIONS_AND_SENTENCE = [
    (
        ("--output_dir", "o", "--dictionary", "d", "--vocab_bpe", "x"),
        "Give --encoder_json and --vocab_bpe together.",
    ),
    (("--output_dir", "o"), "--dictionary is missing: give the dict.txt that came with the checkpoint."),
    (
        ("--to_fairseq", "m", "--verify", "x"),
        "--encoder_json, --vocab_bpe and --verify are not for --to_fairseq: leave them out.",
    ),
    ((), "Give --output_dir for a folder to write, or --to_fairseq for an official checkpoint to write."),
]


@pytest.mark.parametrize("options, sentence", OPTIONS_AND_SENTENCE)
def test_options_that_do_not_fit(options, sentence):
    from luna_tools.convert.run import main

    with pytest.raises(InputError) as refused:
        main(["model.pt", *options])
    assert str(refused.value) == sentence


DICTIONARIES_AND_SENTENCE = [
    (b"318 12\n13\n", "Line 2 of {0} is '13', but must be a symbol, a space and a count."),
    (b"318 12\n\n13 1\n", "Line 2 of {0} is '', but must be a symbol, a space and a count."),
    (b"318 many\n", "Line 1 of {0} is '318 many', but must be a symbol, a space and a count."),
    (b"318 12\n13 1\n318 1\n", "Line 3 of {0} repeats the symbol '318'."),
    (b"\xff\xfe 1\n", "{0} is not UTF-8 text, so it is not a dictionary."),
    (b"318 12\n", "{0} makes a vocabulary of 6 symbols with the special ones, but the checkpoint has embeddings for 96."),
]


@pytest.mark.parametrize("content, sentence", DICTIONARIES_AND_SENTENCE)
def test_refused_dictionary(content, sentence, tmp_path):
    path = tmp_path / "dict.txt"
    path.write_bytes(content)
    assert_refused(tmp_path, sentence.format(path), TIED / "model.pt", dictionary=path)


@pytest.mark.parametrize("name", ["folder", "file", "new/.."])
def test_existing_output_is_not_touched(name, tmp_path):
    (tmp_path / "folder").mkdir()
    for path in ("folder/kept.txt", "file"):
        (tmp_path / path).write_text("kept")
    target = (tmp_path / name).resolve()
    sentence = f"{target} already exists and is not an empty folder."
    assert_refused(tmp_path, sentence, TIED / "model.pt", out=tmp_path / name)


@pytest.mark.parametrize("name, reason", [("x" * 300, "File name too long"), ("file/out", "File exists")])
def test_names_that_cannot_be_written(name, reason, tmp_path):
    (tmp_path / "file").write_text("kept")
    sentence = f"{tmp_path / name} cannot be written ({reason}): choose another place."
    assert_refused(tmp_path, sentence, TIED / "model.pt", out=tmp_path / name)


def fails_after_a_part(error):
    def save_pretrained(model, folder, **kwargs):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        error()

    return save_pretrained


def test_a_full_disk_is_one_sentence_and_parents_that_were_made_do_not_stay(monkeypatch, tmp_path):
    out = tmp_path / "new" / "folder" / "out"
    full = fails_after_a_part(lambda: Path("/dev/full").write_text("x" * 9999))
    monkeypatch.setattr(LunaForMaskedLM, "save_pretrained", full)
    sentence = f"{out} cannot be written (the disk is full): free some space and give the same command again."
    assert_refused(tmp_path, sentence, TIED / "model.pt", out=out)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing(number, monkeypatch, tmp_path):
    monkeypatch.setattr(LunaForMaskedLM, "save_pretrained", fails_after_a_part(lambda: signal.raise_signal(number)))
    with pytest.raises(Stopped, match=f"^Stopped by {number.name}: nothing is half-written.$"):
        convert(TIED / "model.pt", tmp_path / "new" / "out")
    assert tree(tmp_path) == []


def test_a_model_that_does_not_load_back_is_not_kept(monkeypatch, tmp_path):
    from_pretrained = AutoModelForMaskedLM.from_pretrained

    def lose_a_weight(folder, **kwargs):
        model, loading_info = from_pretrained(folder, **kwargs)
        return model, loading_info | {"missing_keys": ["lm_head.dense.bias"]}

    def change_a_weight(folder, **kwargs):
        model, loading_info = from_pretrained(folder, **kwargs)
        model.lm_head.dense.bias.data[0] += 1
        return model, loading_info

    for loads, reason in (
        (lose_a_weight, "missing_keys are ['lm_head.dense.bias']"),
        (change_a_weight, "the values of lm_head.dense.bias are others"),
    ):
        monkeypatch.setattr(AutoModelForMaskedLM, "from_pretrained", loads)
        assert_refused(tmp_path, f"The converted model does not load back: {reason}.", TIED / "model.pt")


LIMITED = """
sys.dont_write_bytecode = True  # the limit is for these files too
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
from luna_tools.command_line import run
sys.exit(run("convert", sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("limit", [60_000, 100_000], ids=["code", "weights"])
def test_a_file_that_cannot_be_written_whole(limit, tmp_path):
    """The system refuses to write more than `limit` bytes to a file, as a full disk would."""
    out, home = tmp_path / "out", tmp_path / "home"
    arguments = [TIED / "model.pt", "--output_dir", out, "--dictionary", TIED / "dict.txt"]
    result = run_program(f"limit = {limit}\n{LIMITED}", home, *arguments, project=True)
    sentence = f"error: {out} cannot be written (the disk is full): free some space and give the same command again.\n"
    assert result.returncode == 2 and result.stderr.endswith(sentence), result.stderr
    assert os.listdir(tmp_path) == ["home"]


# ---------------------------------------------------------------------------------------------------------------------
# The comparison with goldens


NOT_GOLDENS = "{0} is not a file of goldens: safetensors with luna_parity in the metadata."
SHORT = "short.logits"
DAMAGED_GOLDENS = {
    "lacks": (lambda goldens, facts: goldens.pop(SHORT), f"{{0}} lacks {SHORT}, so it is damaged or of another model."),
    "shape": (
        lambda goldens, facts: goldens.update({SHORT: goldens[SHORT][:, :-1].contiguous()}),
        f"{{0}} is damaged: {SHORT} has shape (2, 5, 96), but must have (2, 6, 96).",
    ),
    "flat": (
        lambda goldens, facts: goldens.update({"short.packed_mask": torch.ones(6)}),
        "{0} is damaged: short.packed_mask must have 2 dimensions.",
    ),
    "mask": (
        lambda goldens, facts: goldens.update({"short.packed_mask": torch.ones(1, 6)}),
        "{0} is damaged: short.packed_mask is not the mask of P.",
    ),
    "ids": (
        lambda goldens, facts: goldens["short.input_ids"].fill_(96),
        "{0} is damaged: the model cannot read its batch short.",
    ),
    "no noise": (
        lambda goldens, facts: facts["fp32_noise"].pop("logits"),
        "{0} is damaged: its fp32_noise of logits is None, but must be above 0.",
    ),
    "zero noise": (
        lambda goldens, facts: facts["fp32_noise"]["packed"].update(max_abs_err=0),
        "{0} is damaged: its fp32_noise of packed is 0.0, but must be above 0.",
    ),
    "noise as text": (lambda goldens, facts: facts["fp32_noise"]["packed"].update(max_abs_err="small"), NOT_GOLDENS),
    "noise as list": (lambda goldens, facts: facts.update(fp32_noise=[]), NOT_GOLDENS),
    "no batches": (
        lambda goldens, facts: facts.update(batches=[]),
        "{0} has no batches, so there is nothing to compare with.",
    ),
}


@pytest.mark.parametrize("case", DAMAGED_GOLDENS)
def test_verify_with_damaged_goldens(case, tmp_path):
    change, sentence = DAMAGED_GOLDENS[case]
    goldens, facts = read_goldens("luna_bert/tied")
    change(goldens, facts)
    path = tmp_path / "goldens.safetensors"
    save_file(goldens, path, {"luna_parity": json.dumps(facts)})
    assert_refused(tmp_path, sentence.format(path), TIED / "model.pt", "--verify", path)


def test_verify_with_other_files(tmp_path):
    path = tmp_path / "goldens.safetensors"
    refuse = (tmp_path, NOT_GOLDENS.format(path), TIED / "model.pt", "--verify", path)
    assert_refused(*refuse)
    path.write_bytes((TIED / "goldens.safetensors").read_bytes()[:5000])
    assert_refused(*refuse)
    save_file({"a": torch.zeros(1)}, path)
    assert_refused(*refuse)
    other = find_variant("luna_bert/untied") / "goldens.safetensors"
    sentence = f"{other} is of another model: encoder_layers is 3 there, but 2 here."
    assert_refused(tmp_path, sentence, TIED / "model.pt", "--verify", other)
    # Of the same configuration without a head.
    goldens, with_head = TIED / "goldens.safetensors", find_variant("luna_bert/cls_head") / "model.pt"
    sentence = f"{goldens} lacks short.cls_logits, so it is damaged or of another model."
    assert_refused(tmp_path, sentence, with_head, "--verify", goldens)


@pytest.mark.parametrize("name", ["embed_positions.weight", "layers.1.self_atten_proj_layer_norm.bias", "layers.1.fc2.bias"])
def test_verify_fails(name, checkpoint, tmp_path, capsys):
    checkpoint["model"][f"encoder.sentence_encoder.{name}"][..., 0] += 1e-3
    torch.save(checkpoint, tmp_path / "model.pt")
    goldens, out = TIED / "goldens.safetensors", tmp_path / "new" / "out"
    with pytest.raises(InputError) as refused:
        convert(tmp_path / "model.pt", out, "--verify", goldens)
    sentence = str(refused.value)
    assert sentence.startswith(
        f"The model is not within the tolerance of {goldens} (largest differences as fractions of it: "
    )
    assert sentence.endswith(f"), so {out} was not written.")
    assert capsys.readouterr().out == "" and os.listdir(tmp_path) == ["model.pt"]


def test_goldens_that_nothing_is_compared_with_are_told():
    """In the parity tests, so that what is added to the kit is compared too."""
    from tests.support.parity_kit import compare_classifier, compare_masked_lm, load_classifier, load_masked_lm

    goldens, facts = read_goldens("luna_bert/cls_head")
    extra = {f"{facts['batches'][0]}.hidden.9": torch.zeros(1), f"{facts['batches'][0]}.cls_extra": torch.zeros(1)}
    for compare, model, key in (
        (compare_masked_lm, load_masked_lm("luna_bert/cls_head"), "hidden.9"),
        (compare_classifier, load_classifier("luna_bert/cls_head"), "cls_extra"),
    ):
        with pytest.raises(InputError, match=rf"holds \w+\.{key}, which nothing is compared with\.$"):
            compare(model, goldens | extra, facts)
