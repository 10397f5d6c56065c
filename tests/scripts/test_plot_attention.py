# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The picture of the packed slots: its numbers, its labels, and a sentence for each wrong input."""

import pytest
import torch
from matplotlib import image
from transformers import BertConfig, BertModel

import plot_attention
from luna_builders import SENTENCES, build, make_tokenizer
from modeling_luna import LunaForMaskedLM

TEXT = "The moon & $some$ unread naïve\nwords"


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("luna")
    build(LunaForMaskedLM, dtype=torch.float32, vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def run(*arguments):
    plot_attention.main([str(argument) for argument in arguments])


def test_writes_a_picture_that_grows_with_the_layers(folder, tmp_path, capsys):
    run(folder, TEXT, "--output", tmp_path / "all.png")
    assert "3 layers" in capsys.readouterr().out
    run(folder, TEXT, "--output", tmp_path / "one.png", "--layers", "2", "--head", "1")
    everything, one = image.imread(tmp_path / "all.png"), image.imread(tmp_path / "one.png")
    assert everything.shape[0] == one.shape[0]
    assert everything.shape[1] > one.shape[1] + 500


def test_attention_is_that_of_the_layers_and_heads_asked_for(folder, tokenizer):
    model, _ = plot_attention.load(str(folder))
    ids = tokenizer(SENTENCES[0])["input_ids"]
    outputs = model(torch.tensor([ids]), output_attentions=True)
    pack, unpack = plot_attention.attention(model, ids, [2, 0], [1])
    assert pack.shape == (2, 5, len(ids)) and unpack.shape == (2, len(ids), 5)
    torch.testing.assert_close(pack[0], outputs.pack_attentions[2][0, 1])
    torch.testing.assert_close(unpack[1], outputs.attentions[0][0, 1])
    mean, _ = plot_attention.attention(model, ids, [1], [0, 1])
    torch.testing.assert_close(mean[0], outputs.pack_attentions[1][0].mean(dim=0))


def test_panels_show_tokens_downwards_and_slots_to_the_right(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(plot_attention.plt, "close", figures.append)
    pack = torch.tensor([[[0.7, 0.2, 0.1], [0.0, 0.4, 0.6]]])
    unpack = torch.tensor([[[0.9, 0.1], [0.5, 0.5], [0.2, 0.8]]])
    plot_attention.plot(pack, unpack, ["<s>", "a$b", "c$"], [3], "title", tmp_path / "picture.svg")
    upper, lower = figures[0].axes[:2]
    torch.testing.assert_close(torch.from_numpy(upper.images[0].get_array().data), pack[0].T)
    torch.testing.assert_close(torch.from_numpy(lower.images[0].get_array().data), unpack[0])
    assert [label.get_text() for label in upper.get_yticklabels()] == ["<s>", "a$b", "c$"]
    assert upper.get_title() == "layer 3"


def test_one_slot_and_one_token_can_be_drawn(tmp_path):
    plot_attention.plot(torch.ones(1, 1, 1), torch.ones(1, 1, 1), ["a"], [0], "title", tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 0


def test_labels_are_the_text_of_the_tokens(tokenizer):
    encoded = tokenizer(TEXT, return_offsets_mapping=True)
    names = plot_attention.labels(TEXT, encoded["input_ids"], encoded["offset_mapping"], tokenizer)
    assert names[:7] == ["<s>", "The", "' '", "mo", "·on", "' '", "&"]
    assert names[-7:] == ["'\\n'", "w", "·o", "·r", "·d", "·s", "</s>"]
    assert [name for name in names if "ï" in name] == ["·ï", "·ï"]  # the two bytes of one letter


def test_wrong_inputs_give_one_sentence(folder, tokenizer, tmp_path, capsys):
    BertModel(BertConfig(vocab_size=8, hidden_size=4, num_hidden_layers=1, num_attention_heads=1)).save_pretrained(
        tmp_path / "bert"
    )
    plain = tmp_path / "no_tokenizer"
    build(LunaForMaskedLM, dtype=torch.float32).save_pretrained(plain)
    no_weights = tmp_path / "no_weights"
    build(LunaForMaskedLM, dtype=torch.float32).config.save_pretrained(no_weights)
    picture = ["--output", tmp_path / "picture.png"]
    cases = {
        "there is no model": (tmp_path / "absent", TEXT, *picture),
        "is a bert model": (tmp_path / "bert", TEXT, *picture),
        "no weights": (no_weights, TEXT, *picture),
        "no tokenizer": (plain, TEXT, *picture),
        "at most 38 tokens": (folder, "moon " * 60, *picture),
        "must have words": (folder, " ", *picture),
        "--layers has '3'": (folder, TEXT, *picture, "--layers", "0,3"),
        "--head has 'x'": (folder, TEXT, *picture, "--head", "x"),
        "is no kind of picture": (folder, TEXT, "--output", tmp_path / "picture.txt"),
        "there is no folder": (folder, TEXT, "--output", tmp_path / "absent" / "picture.png"),
    }
    capsys.readouterr()
    for sentence, arguments in cases.items():
        with pytest.raises(SystemExit) as error:
            run(*arguments)
        message = str(error.value)
        assert message.startswith("error: ") and sentence in message and message.count("\n") == 0, message
    assert not list(tmp_path.glob("picture.*"))
