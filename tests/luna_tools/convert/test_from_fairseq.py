# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Official checkpoints become folders that `from_pretrained` loads, or one sentence says why not and nothing is written."""

import hashlib
import io
import json
import re
import resource
from contextlib import redirect_stdout
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForSequenceClassification

from configuration_luna import LunaConfig
from luna_tools.cards import UNNAMED
from luna_tools.convert.checkpoint import load_fairseq_checkpoint
from luna_tools.convert.run import main
from luna_tools.convert.weights import find_layer_norm_scale
from modeling_luna import LunaForMaskedLM
from tests.support.fairseq_files import EMBEDDINGS, TIED, Bpe, convert, convert_back, same_tensors, save_changed
from tests.support.folders import refused, tree
from tests.support.fresh_process import run_program
from tests.support.hub_server import metadata_errors
from tests.support.parity_kit import HEAD_VARIANTS, MASKED_LM_VARIANTS, find_variant, read_goldens, variant_params

LAYER = "encoder.sentence_encoder.layers.0."
NEWER = "head_variants/"  # LayerNorm weights minus 1, and no head


# Those of the official arguments that build the model.
MODEL_ARGS = (
    "encoder_layers encoder_embed_dim encoder_ffn_embed_dim encoder_attention_heads projection_length "
    "fix_projection_length untie_luna_kv untie_weights_luna activation_fn pooler_activation_fn dropout "
    "attention_dropout activation_dropout pooler_dropout max_positions encoder_layerdrop encoder_layers_to_keep "
    "quant_noise_pq quant_noise_pq_block_size quant_noise_scalar"
).split()


@pytest.fixture(scope="module", params=variant_params(*MASKED_LM_VARIANTS))
def there(request, tmp_path_factory):
    """A variant that was converted, compared with its goldens."""
    there = SimpleNamespace(variant=request.param, head=HEAD_VARIANTS.get(request.param))
    there.source, there.out = find_variant(there.variant), tmp_path_factory.mktemp("there") / "out"
    there.goldens = find_variant(there.variant.removeprefix(NEWER)) / "goldens.safetensors"
    with redirect_stdout(io.StringIO()) as printed:
        convert(there.source / "model.pt", there.out, "--verify", there.goldens, dictionary=there.source / "dict.txt")
    there.printed = printed.getvalue()
    return there


def test_a_checkpoint_computes_the_same_and_its_card_and_the_output_say_what_it_is(there):
    variant, source, out, head, printed = there.variant, there.source, there.out, there.head, there.printed
    auto_class = AutoModelForMaskedLM if head is None else AutoModelForSequenceClassification
    model = auto_class.from_pretrained(out)
    assert model.config.architectures == [type(model).__name__]
    assert f"LayerNorm factor: weight{' + 1' if variant.startswith(NEWER) else ''} (detected)." in printed
    kinds = ["hidden", "packed", "logits"]
    if head is not None:
        kinds.append("cls_logits")
        pooling = {"cls": "cls", "pooling": "packed_max", "attention": "packed_attention"}[head.split("_")[0]]
        config = model.config
        assert (config.classifier_pooling, config.num_labels, config.classifier_dropout) == (pooling, 3, 0.0)
        assert f"Classification head: {head}, classifier_pooling {pooling}, 3 classes. The language model" in printed
    *_, tokenizer_line, line = printed.splitlines()
    assert tokenizer_line == "No tokenizer, since it needs --encoder_json and --vocab_bpe."
    assert line.startswith(f"Largest difference from {there.goldens} as a fraction of the tolerance: hidden 0.")
    assert [part.split()[-2] for part in line.rstrip(".").split(", ")] == kinds

    card = ModelCard.load(out / "README.md")
    assert card.data.license == "unknown" and metadata_errors(card.content) == []
    digest = hashlib.sha256((source / "model.pt").read_bytes()).hexdigest()
    for fact in (digest, f"| parameters | {model.num_parameters():,} |", "trust_remote_code=True", "import modeling_luna"):
        assert fact in card.text
    assert ("1 + those in the file" in card.text) == variant.startswith(NEWER)
    assert head is None or f"`{head}`, {pooling}, 3 classes" in card.text
    assert "None" not in card.text and str(out.parent) not in card.content and str(source) not in card.content


def test_a_checkpoint_comes_back_to_the_bit(there, tmp_path, capsys):
    source, is_newer, target = there.source, there.variant.startswith(NEWER), tmp_path / "back" / "model.pt"
    # The scale is asked for as it was: by default it is that of the published release.
    scale = ["--layer_norm_scale", "weight_plus_one"] if is_newer else []
    convert_back(there.out, target, "--dictionary", source / "dict.txt", *scale)
    assert (f", its classification head to {there.head}." in capsys.readouterr().out) == (there.head is not None)

    args, state_dict = load_fairseq_checkpoint(source / "model.pt")
    back_args, back = load_fairseq_checkpoint(target)
    if is_newer:  # 1 was added and taken off again
        assert back.keys() == state_dict.keys()
        for name, tensor in state_dict.items():
            torch.testing.assert_close(back[name], tensor, rtol=0, atol=1e-7 if name.endswith("norm.weight") else 0)
        # The variant is one model with luna_bert/tied, and 1 + its LayerNorm weights are exact.
        convert_back(there.out, tmp_path / "released.pt")
        back, state_dict = (load_fairseq_checkpoint(path)[1] for path in (tmp_path / "released.pt", TIED / "model.pt"))
    assert same_tensors(back, state_dict)
    expected = {name: getattr(args, name, False) for name in MODEL_ARGS}
    assert {name: getattr(back_args, name) for name in MODEL_ARGS} == expected
    assert back_args.arch == "luna_bert" and back_args.task == "masked_lm"
    assert tree(target.parent).keys() == {"dict.txt", "model.pt"}
    assert (target.parent / "dict.txt").read_bytes() == (source / "dict.txt").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tokenizer", "no tokenizer", "head"])
def test_the_program_of_the_card_runs_in_a_fresh_process(kind, tmp_path):
    out, variant = tmp_path / "out", "luna_bert/cls_head" if kind == "head" else "luna_bert/tied"
    if kind == "tokenizer":
        bpe = Bpe(tmp_path)
        convert(bpe.checkpoint, out, *bpe.options, dictionary=bpe.dict)
    else:
        convert(find_variant(variant) / "model.pt", out)
    (program,) = re.findall(r"```python\n(.*?)```", ModelCard.load(out / "README.md").text, re.DOTALL)
    # The line in which the name on the Hub is written.
    assert program.count(f"\n{UNNAMED}\n") == 1 and ("AutoTokenizer" in program) == (kind == "tokenizer")
    result = run_program(f"{program}print(*model.config.architectures, model.num_parameters())", out)
    assert result.returncode == 0, result.stderr
    model = (AutoModelForSequenceClassification if kind == "head" else AutoModelForMaskedLM).from_pretrained(out)
    assert result.stdout == f"{type(model).__name__} {model.num_parameters()}\n"


# Prints the peak memory in bytes of converting what the arguments name.
CONVERT_AND_MEASURE = """
import resource
from luna_tools.convert.run import main
main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
"""


@pytest.mark.slow
def test_a_checkpoint_of_the_released_size_converts_in_3_gb(tmp_path):
    sizes = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
    model = LunaForMaskedLM(LunaConfig(vocab_size=50265, projection_length=128, max_position_embeddings=514, **sizes))
    assert 130e6 < model.num_parameters() < 134e6
    model.save_pretrained(tmp_path / "folder")
    convert_back(tmp_path / "folder", tmp_path / "model.pt")
    (tmp_path / "dict.txt").write_text("".join(f"{i} 1\n" for i in range(50260)))
    arguments = [tmp_path / "model.pt", "--output_dir", tmp_path / "out", "--dictionary", tmp_path / "dict.txt"]
    done = run_program(CONVERT_AND_MEASURE, tmp_path / "elsewhere", *arguments, project=True)
    assert done.returncode == 0, done.stderr
    *_, peak = done.stdout.splitlines()
    assert int(peak) < 3e9
    assert same_tensors(*(load_file(tmp_path / name / "model.safetensors") for name in ("folder", "out")))


def test_folders_and_links_that_stay_the_users(tmp_path, monkeypatch):
    """An empty folder stays the same one; parents are made; a link is followed."""
    for name in ("here", "linked"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("linked")
    (tmp_path / "to_nothing").symlink_to("new_by_link")
    monkeypatch.chdir(tmp_path / "here")
    for target in (".", "../new/folder", "../link", "../to_nothing"):
        convert(TIED / "model.pt", target)
    here, *others = (tree(tmp_path / place) for place in ("here", "new/folder", "linked", "new_by_link"))
    assert {"README.md", "config.json", "model.safetensors"} <= here.keys() and "tokenizer.json" not in here
    assert others == [here] * 3
    assert (tmp_path / "link").is_symlink() and not list(tmp_path.rglob(".unfinished*"))


def test_weights_are_in_float32_and_the_layer_norm_scale_can_be_given(tmp_path, capsys):
    _, official = load_fairseq_checkpoint(TIED / "model.pt")
    half = save_changed(tmp_path / "half.pt", {name: tensor.half() for name, tensor in official.items()})
    convert(half, tmp_path / "out", "--layer_norm_scale", "weight_plus_one")
    printed = capsys.readouterr().out
    assert "LayerNorm factor: weight + 1 (given)." in printed and "Weights in float16 were converted to float32." in printed
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    layer = model.luna.layers[0]
    for ours, name, added in (
        (layer.final_layer_norm.weight, "final_layer_norm.weight", 1),
        (layer.final_layer_norm.bias, "final_layer_norm.bias", 0),
        (layer.attention.pack_q_proj.weight, "self_attn.pq_proj.weight", 0),
    ):
        assert torch.equal(ours, official[f"{LAYER}{name}"].half().float() + added)


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


# ---------------------------------------------------------------------------------------------------------------------
# Classification heads

CLS_HEAD = "classification_heads.cls_classification_head"


def test_head_none_converts_the_language_model(tmp_path, capsys):
    convert(find_variant("luna_bert/cls_head") / "model.pt", tmp_path / "out", "--head", "none")
    assert AutoConfig.from_pretrained(tmp_path / "out").architectures == ["LunaForMaskedLM"]
    assert not [name for name in load_file(tmp_path / "out" / "model.safetensors") if name.startswith("classifier.")]
    left_out = ", ".join(f"{CLS_HEAD}.{name}" for name in ("dense.weight", "dense.bias", "out_proj.weight", "out_proj.bias"))
    assert f"Left out: {left_out}.\n" in capsys.readouterr().out


def test_several_heads_and_the_dropout_of_one(tmp_path, capsys):
    """Beside the head of luna_bert/cls_head, under the name of `rte`, one of 5 classes."""
    _, state_dict = load_fairseq_checkpoint(find_variant("luna_bert/cls_head") / "model.pt")
    second = {
        name.replace("cls_classification_head", "rte"): tensor if ".dense." in name else tensor[[0, 1, 2, 0, 1]]
        for name, tensor in state_dict.items()
        if name.startswith(CLS_HEAD)
    }
    two_heads = save_changed(tmp_path / "model.pt", second, {"pooler_dropout": 0.25}, "luna_bert/cls_head")
    names = "cls_classification_head, rte"
    for checkpoint, options, sentence in (
        (two_heads, (), f"The checkpoint has the classification heads {names}: choose one of them with --head, or none."),
        (two_heads, ("--head", "sst"), f"The checkpoint has no classification head sst, but {names}."),
        (TIED / "model.pt", ("--head", "sst"), "The checkpoint has no classification head sst, but no head."),
    ):
        with refused(sentence, tmp_path):
            convert(checkpoint, tmp_path / "out", *options)

    convert(two_heads, tmp_path / "out", "--head", "rte")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    config = model.config
    assert (config.num_labels, config.classifier_pooling, config.classifier_dropout) == (5, "cls", 0.25)
    assert {module.p for module in model.classifier.modules() if isinstance(module, torch.nn.Dropout)} == {0.25}
    printed = capsys.readouterr().out
    assert f"Left out: {CLS_HEAD}.dense.weight, " in printed and "rte.dense" not in printed


# ---------------------------------------------------------------------------------------------------------------------
# What is refused

LACKS, UNKNOWN = "The checkpoint lacks ", "The checkpoint's args do not account for its parameters "
MAKE = "but the checkpoint's args make it"
NOT_FINITE = f"{LAYER}fc1.bias holds values that are infinite in float32 or not a number, so the checkpoint is broken."
FIRST, SECOND = f"{LAYER}self_attn.", f"{LAYER.replace('0', '1')}self_attn."
TIED_BERT, POOLING, HEAD = "luna_bert/tied", "luna_bert/pooling_head", "classification_heads.pooling_classification_head."
NO_WEIGHTS = dict.fromkeys(load_fairseq_checkpoint(TIED / "model.pt")[1])
# What is changed: the variant, its weights, its args.
CHANGED_AND_SENTENCE = [
    (TIED_BERT, {f"{LAYER}fc1.bias": None}, {}, f"{LACKS}{LAYER}fc1.bias."),
    (TIED_BERT, {"encoder.extra.weight": torch.zeros(3)}, {}, f"{UNKNOWN}encoder.extra.weight."),
    (TIED_BERT, {f"{LAYER}fc1.bias": torch.zeros(3)}, {}, f"{LAYER}fc1.bias has shape (3,), {MAKE} (64,)."),
    (
        TIED_BERT,
        {"encoder.lm_head.weight": torch.ones(96, 32)},
        {},
        f"encoder.lm_head.weight differs from {EMBEDDINGS}, although the checkpoint's args do not set untie_weights_luna.",
    ),
    (TIED_BERT, {f"{LAYER}fc1.bias": torch.full((64,), torch.nan)}, {}, NOT_FINITE),
    (TIED_BERT, {f"{LAYER}fc1.bias": torch.full((64,), 1e300, dtype=torch.float64)}, {}, NOT_FINITE),
    (TIED_BERT, {EMBEDDINGS: torch.tensor(1.0)}, {}, f"{EMBEDDINGS} has shape (), {MAKE} (96, 32)."),
    (
        TIED_BERT,
        {},
        {"untie_luna_kv": True},
        f"{LACKS}{FIRST}pk_proj.weight, {FIRST}pk_proj.bias, {FIRST}pv_proj.weight and 13 more.",
    ),
    (
        TIED_BERT,
        {},
        {"encoder_layers": 1},
        f"{UNKNOWN}{SECOND}pq_proj.weight, {SECOND}pq_proj.bias, {SECOND}q_proj.weight and 17 more.",
    ),
    (TIED_BERT, {}, {"projection_length": 9}, f"projected_embeddings has shape (8, 32), {MAKE} (9, 32)."),
    (TIED_BERT, {}, {"max_positions": 65}, f"embed_positions.weight has shape (66, 32), {MAKE} (67, 32)."),
    (TIED_BERT, NO_WEIGHTS, {}, "The checkpoint has no LayerNorm weights, so it is not a Luna model."),
    (POOLING, {f"{HEAD}in_proj.bias": None}, {}, f"{LACKS}{HEAD}in_proj.bias."),
    (POOLING, {f"{HEAD}out_proj.bias": None}, {}, f"{LACKS}{HEAD}out_proj.bias."),
    (POOLING, {f"{HEAD}extra.bias": torch.zeros(2)}, {}, f"{UNKNOWN}{HEAD}extra.bias."),
    (POOLING, {f"{HEAD}dense.weight": torch.zeros(16, 32)}, {}, f"{HEAD}dense.weight has shape (16, 32), {MAKE} (32, 32)."),
    (POOLING, {f"{HEAD}out_proj.bias": torch.tensor(1.0)}, {}, f"{HEAD}out_proj.bias has shape (), {MAKE} (3,)."),
]


@pytest.mark.parametrize("variant, weights, args, sentence", CHANGED_AND_SENTENCE)
def test_refused_checkpoints(variant, weights, args, sentence, tmp_path):
    path = save_changed(tmp_path / "model.pt", weights, args, variant)
    with refused(sentence, tmp_path):
        convert(path, tmp_path / "out")


OPTIONS_AND_SENTENCE = [
    ("--output_dir o --dictionary d --vocab_bpe x", "Give --encoder_json and --vocab_bpe together."),
    ("--output_dir o", "--dictionary is missing: give the dict.txt that came with the checkpoint."),
    ("--to_fairseq m --verify x", "--encoder_json, --vocab_bpe and --verify are not for --to_fairseq: leave them out."),
    ("", "Give --output_dir for a folder to write, or --to_fairseq for an official checkpoint to write."),
]


@pytest.mark.parametrize("options, sentence", OPTIONS_AND_SENTENCE)
def test_options_that_do_not_fit(options, sentence):
    with refused(sentence):
        main(["model.pt", *options.split()])


@pytest.mark.parametrize("name", ["folder", "file", "new/.."])
def test_existing_output_is_not_touched(name, tmp_path):
    (tmp_path / "folder").mkdir()
    for path in ("folder/kept.txt", "file"):
        (tmp_path / path).write_text("kept")
    with refused(f"{(tmp_path / name).resolve()} already exists and is not an empty folder.", tmp_path):
        convert(TIED / "model.pt", tmp_path / name)


def lose_a_weight(model, loading_info):
    loading_info["missing_keys"] = ["lm_head.dense.bias"]


def change_a_weight(model, loading_info):
    model.lm_head.dense.bias.data[0] += 1


@pytest.mark.parametrize(
    "damage, reason",
    [
        (lose_a_weight, "missing_keys are ['lm_head.dense.bias']"),
        (change_a_weight, "the values of lm_head.dense.bias are others"),
    ],
)
def test_a_model_that_does_not_load_back_is_not_kept(damage, reason, monkeypatch, tmp_path):
    from_pretrained = AutoModelForMaskedLM.from_pretrained

    def load(folder, **kwargs):
        model, loading_info = from_pretrained(folder, **kwargs)
        damage(model, loading_info)
        return model, loading_info

    monkeypatch.setattr(AutoModelForMaskedLM, "from_pretrained", load)
    with refused(f"The converted model does not load back: {reason}.", tmp_path):
        convert(TIED / "model.pt", tmp_path / "out")


@pytest.mark.parametrize("limit", [60_000, 100_000], ids=["code", "weights"])
def test_a_file_that_cannot_be_written_whole(limit, tmp_path):
    """The system refuses to write more than `limit` bytes to a file, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with refused(f"{tmp_path / 'out'} cannot be written (the disk is full): free some space", tmp_path):
            convert(TIED / "model.pt", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# ---------------------------------------------------------------------------------------------------------------------
# The comparison with goldens

SHORT = "short.logits"
NO_GOLDENS, NO_FIT = "is not a file of goldens (", "does not fit the model ("
DAMAGED_GOLDENS = [
    (lambda goldens, facts: goldens.pop(SHORT), f"{NO_FIT}it lacks {SHORT}): give the goldens of this checkpoint."),
    (
        lambda goldens, facts: goldens.update({SHORT: goldens[SHORT][:, :-1].contiguous()}),
        f"{NO_FIT}a tensor has shape (2, 6, 96), but officially (2, 5, 96))",
    ),
    (
        lambda goldens, facts: goldens.update({"short.packed_mask": torch.ones(1, 6)}),
        f"{NO_FIT}short.packed_mask is not the mask of P)",
    ),
    (lambda goldens, facts: goldens["short.input_ids"].fill_(96), NO_FIT),
    (lambda goldens, facts: facts["fp32_noise"].pop("logits"), f"{NO_FIT}'logits')"),
    (lambda goldens, facts: facts["fp32_noise"]["packed"].update(max_abs_err=0), NO_GOLDENS),
    (lambda goldens, facts: facts.update(batches=[]), NO_GOLDENS),
]


@pytest.mark.parametrize("change, sentence", DAMAGED_GOLDENS)
def test_verify_with_damaged_goldens(change, sentence, tmp_path):
    goldens, facts = read_goldens("luna_bert/tied")
    change(goldens, facts)
    path = tmp_path / "goldens.safetensors"
    save_file(goldens, path, {"luna_parity": json.dumps(facts)})
    with refused(f"{path} {sentence}", tmp_path):
        convert(TIED / "model.pt", tmp_path / "out", "--verify", path)


def test_verify_with_other_files(tmp_path):
    cut, no_facts, absent = (tmp_path / name for name in ("cut", "no_facts", "absent"))
    cut.write_bytes((TIED / "goldens.safetensors").read_bytes()[:5000])
    save_file({"a": torch.zeros(1)}, no_facts)
    other = find_variant("luna_bert/untied") / "goldens.safetensors"
    of_head = find_variant("luna_bert/cls_head") / "model.pt"
    for checkpoint, goldens, sentence in (
        *((TIED / "model.pt", path, f"{path} {NO_GOLDENS}") for path in (cut, no_facts, absent)),
        (TIED / "model.pt", other, f"{other} is of another model: encoder_layers is 3 there, but 2 here."),
        # Of the same configuration without a head.
        (of_head, TIED / "goldens.safetensors", f"{NO_FIT}it lacks short.cls_logits)"),
    ):
        with refused(sentence, tmp_path):
            convert(checkpoint, tmp_path / "out", "--verify", goldens)


@pytest.mark.parametrize("name", ["embed_positions.weight", "layers.1.self_atten_proj_layer_norm.bias", "layers.1.fc2.bias"])
def test_verify_fails(name, tmp_path, capsys):
    name = f"encoder.sentence_encoder.{name}"
    changed = load_fairseq_checkpoint(TIED / "model.pt")[1][name]
    changed[..., 0] += 1e-3
    path, goldens = save_changed(tmp_path / "model.pt", {name: changed}), TIED / "goldens.safetensors"
    sentence = f"The model is not within the tolerance of {goldens} (largest differences as fractions of it: hidden "
    with refused(sentence, tmp_path):
        convert(path, tmp_path / "new" / "out", "--verify", goldens)
    assert capsys.readouterr().out == ""


def test_goldens_that_nothing_is_compared_with_are_told():
    """In the parity tests, so that what is added to the kit is compared too."""
    from tests.support.parity_kit import compare_classifier, compare_masked_lm, load_classifier, load_masked_lm

    goldens, facts = read_goldens("luna_bert/cls_head")
    extra = {f"{facts['batches'][0]}.{name}": torch.zeros(1) for name in ("hidden.9", "cls_extra")}
    for compare, model, key in (
        (compare_masked_lm, load_masked_lm("luna_bert/cls_head"), "hidden.9"),
        (compare_classifier, load_classifier("luna_bert/cls_head"), "cls_extra"),
    ):
        with refused(f".{key}, which nothing is compared with."):
            compare(model, goldens | extra, facts)
