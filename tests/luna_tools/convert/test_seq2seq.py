# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Translation models become folders that the Auto classes load, and come back to the bit; or one sentence says why not."""

import argparse

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from configuration_luna import LunaConfig
from luna_tools.convert.checkpoint import load_fairseq_checkpoint
from luna_tools.convert.seq2seq import args_from_seq2seq_config, config_from_seq2seq_args, map_seq2seq_names
from luna_tools.convert.tokenizer import build_word_tokenizer, read_symbols
from luna_tools.convert.weights import find_layer_norm_scale, is_layer_norm_weight
from modeling_luna import LunaForConditionalGeneration
from tests.support.fairseq_files import convert, convert_back, same_tensors, save_changed
from tests.support.folders import refused, tree
from tests.support.parity_kit import SEQ2SEQ_DICTIONARIES, SEQ2SEQ_VARIANTS, find_variant, variant_params

SOURCE_DICTIONARY, TARGET_DICTIONARY = SEQ2SEQ_DICTIONARIES
SHARED = "seq2seq/tied_shared"
has_shared = pytest.mark.skipif(find_variant(SHARED) is None, reason=f"{SHARED} is not at hand")


def files_of(variant):
    folder = find_variant(variant)
    options = ("--target_dictionary", folder / TARGET_DICTIONARY)
    return folder / "model.pt", options, folder / SOURCE_DICTIONARY, folder / "goldens.safetensors"


@pytest.mark.parametrize("variant", variant_params(*SEQ2SEQ_VARIANTS))
def test_there_and_back(variant, tmp_path, capsys):
    checkpoint, options, dictionary, goldens = files_of(variant)
    out, target = tmp_path / "out", tmp_path / "back" / "model.pt"
    convert(checkpoint, out, *options, "--verify", goldens, dictionary=dictionary)
    printed = capsys.readouterr().out
    assert "LunaForConditionalGeneration" in printed and "LayerNorm factor: weight (detected)." in printed
    model = AutoModelForSeq2SeqLM.from_pretrained(out)
    assert type(model) is LunaForConditionalGeneration
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert len(tokenizer) == model.config.vocab_size
    has_target = model.config.target_vocab_size is not None
    assert has_target == (variant != SHARED) == (out / "target").is_dir()
    if has_target:
        assert len(AutoTokenizer.from_pretrained(out / "target")) == model.config.target_vocab_size

    args, state_dict = load_fairseq_checkpoint(checkpoint)
    for given in (True, False):  # dictionaries to copy, or to be made of the tokenizers
        beside = ("--dictionary", dictionary, *options) if given else ()
        convert_back(out, target, *beside)
        back_args, back = load_fairseq_checkpoint(target)
        assert same_tensors(back, state_dict)
        official = vars(args)
        ours = {name: value for name, value in vars(back_args).items() if name not in ("data", "source_lang", "target_lang")}
        assert ours == {name: official[name] for name in ours}
        languages = ("en", "de") if given else ("source", "target")
        assert (back_args.source_lang, back_args.target_lang) == languages
        names = {f"dict.{language}.txt" for language in languages}
        assert tree(target.parent).keys() == names | {"model.pt"}
        for language, original in zip(languages, SEQ2SEQ_DICTIONARIES, strict=True):
            made, original = target.parent / f"dict.{language}.txt", checkpoint.parent / original
            assert read_symbols(made) == read_symbols(original)
            assert not given or made.read_bytes() == original.read_bytes()
        for path in target.parent.iterdir():
            path.unlink()


@pytest.mark.parametrize("variant", variant_params(*SEQ2SEQ_VARIANTS))
def test_layer_norms_of_the_newer_code_are_told_apart(variant, tmp_path):
    checkpoint, options, dictionary, goldens = files_of(variant)
    _, state_dict = load_fairseq_checkpoint(checkpoint)
    assert find_layer_norm_scale(state_dict) == "weight"
    norms = {name: tensor - 1 for name, tensor in state_dict.items() if is_layer_norm_weight(name)}
    modules = {name.rsplit(".", 1)[0] for name in state_dict if "norm" in name}
    assert {name.removesuffix(".weight") for name in norms} == modules
    newer = save_changed(tmp_path / "newer.pt", norms, variant=variant)
    convert(newer, tmp_path / "out", *options, "--verify", goldens, dictionary=dictionary)
    convert_back(tmp_path / "out", tmp_path / "back.pt", "--layer_norm_scale", "weight_plus_one")
    _, back = load_fairseq_checkpoint(tmp_path / "back.pt")
    for name, tensor in load_fairseq_checkpoint(newer)[1].items():
        torch.testing.assert_close(back[name], tensor, rtol=0, atol=1e-7 if name in norms else 0)


@pytest.mark.parametrize("variant", variant_params(*SEQ2SEQ_VARIANTS))
def test_arguments_and_configuration_describe_each_other(variant):
    args, _ = load_fairseq_checkpoint(find_variant(variant) / "model.pt")
    sizes = [len(read_symbols(find_variant(variant) / name)) for name in SEQ2SEQ_DICTIONARIES]
    config = config_from_seq2seq_args(args, *sizes)
    back = args_from_seq2seq_config(config)
    assert {name: getattr(args, name) for name in back} == back
    again = config_from_seq2seq_args(argparse.Namespace(**back), *sizes)
    assert again.to_dict() == config.to_dict()


def test_a_decoder_of_the_encoder_s_size_has_names_too():
    names = map_seq2seq_names(LunaConfig(is_encoder_decoder=True, num_hidden_layers=2, decoder_layers=2))
    assert map_seq2seq_names(LunaConfig(is_encoder_decoder=True, num_hidden_layers=2)) == names


def test_words_of_a_dictionary(tmp_path):
    path = tmp_path / "dict.txt"
    path.write_text("the 9\nmo@@ 5\non 4\n. 3\nmadeupword0000 0\n")
    symbols = read_symbols(path)
    assert symbols == ["<s>", "<pad>", "</s>", "<unk>", "the", "mo@@", "on", ".", "madeupword0000"]
    tokenizer = build_word_tokenizer(symbols)
    ids = tokenizer("the mo@@ on rises .")["input_ids"]
    assert ids == [4, 5, 6, 3, 7, 2]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "the moon ."
    assert tokenizer.batch_decode([ids[:3], ids[-2:]], skip_special_tokens=True) == ["the moon", "."]
    assert tokenizer.decode([2], skip_special_tokens=True) == ""


REFUSED_ARGS = [
    (
        {"decoder_embed_dim": 64},
        "decoder_embed_dim is 64, but encoder_embed_dim is 32: only models in which they are the same",
    ),
    ({"decoder_normalize_before": True}, "decoder_normalize_before is True, but encoder_normalize_before is False"),
    ({"adaptive_softmax_cutoff": [10]}, "adaptive_softmax_cutoff is [10], but only None can be converted."),
    ({"activation_fn": "swish"}, "activation_fn is swish, but only gelu"),
    ({"encoder_attention_heads": 5}, "The checkpoint's args do not describe a Luna model ("),
]


@has_shared
@pytest.mark.parametrize("changes, sentence", REFUSED_ARGS)
def test_refused_arguments(changes, sentence):
    args, _ = load_fairseq_checkpoint(find_variant(SHARED) / "model.pt")
    with refused(sentence):
        config_from_seq2seq_args(argparse.Namespace(**vars(args) | changes), 64, 64)


@has_shared
def test_refused_files(tmp_path):
    checkpoint, options, dictionary, _ = files_of(SHARED)
    out = tmp_path / "out"
    with refused("--target_dictionary is missing: a translation model comes with a dictionary for each language.", tmp_path):
        convert(checkpoint, out, dictionary=dictionary)
    with refused("is cls, but a translation model has no classification head", tmp_path):
        convert(checkpoint, out, *options, "--head", "cls", dictionary=dictionary)
    changed = {"decoder.output_projection.weight": torch.zeros(64, 32)}
    other = save_changed(tmp_path / "other.pt", changed, variant=SHARED)
    with refused("decoder.output_projection.weight differs from encoder.embed_tokens.weight, although", tmp_path):
        convert(other, out, *options, dictionary=dictionary)
    lacking = save_changed(tmp_path / "lacking.pt", {"decoder.layers.1.self_attn.pc_proj.bias": None}, variant=SHARED)
    with refused("The checkpoint lacks decoder.layers.1.self_attn.pc_proj.bias.", tmp_path):
        convert(lacking, out, *options, dictionary=dictionary)
    small = tmp_path / "small.txt"
    small.write_text("a 1\n")
    with refused("source and target share their embeddings, but the dictionaries have 64 and 5 entries", tmp_path):
        convert(checkpoint, out, "--target_dictionary", small, dictionary=dictionary)
    convert(checkpoint, out, *options, dictionary=dictionary)
    model = LunaForConditionalGeneration.from_pretrained(out)
    model.config.causal_activation = "elu"
    model.save_pretrained(out)
    with refused("The model's causal_activation is elu, but the official translation model has softplus."):
        convert_back(out, tmp_path / "back.pt")
