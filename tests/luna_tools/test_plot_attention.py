# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The picture of the packed slots: its numbers, its labels, and a sentence for each wrong input."""

import os
import warnings

import pytest
import torch
from matplotlib import image

from luna_tools import plot_attention
from luna_tools.load import load_luna
from modeling_luna import LunaForMaskedLM, LunaModel
from tests.support.folders import refused, save_whole
from tests.support.luna_builders import SENTENCES, build, make_tokenizer

TEXT = "The moon & $some$ unread naïve\nwords"


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_whole(tmp_path_factory.mktemp("luna"))


def run(*arguments):
    plot_attention.main([str(argument) for argument in arguments])


def test_writes_a_picture_that_grows_with_the_layers(folder, tmp_path, capsys):
    run(folder, TEXT, "--output", tmp_path / "all.png")
    assert "2 layers" in capsys.readouterr().out
    run(folder, TEXT, "--output", tmp_path / "one.png", "--layers", "1", "--head", "1")
    everything, one = image.imread(tmp_path / "all.png"), image.imread(tmp_path / "one.png")
    assert everything.shape[0] == one.shape[0]
    assert everything.shape[1] > one.shape[1] + 250


def test_attention_is_that_of_the_layers_and_heads_asked_for(folder, tokenizer):
    model = load_luna(str(folder), LunaModel, attn_implementation="eager")
    ids = tokenizer(SENTENCES[0])["input_ids"]
    outputs = model(torch.tensor([ids]), output_attentions=True)
    pack, unpack = plot_attention.attention(model, ids, [1, 0], [1])
    assert pack.shape == (2, 5, len(ids)) and unpack.shape == (2, len(ids), 5)
    torch.testing.assert_close(pack[0], outputs.pack_attentions[1][0, 1])
    torch.testing.assert_close(unpack[1], outputs.attentions[0][0, 1])
    mean, _ = plot_attention.attention(model, ids, [0], [0, 1])
    torch.testing.assert_close(mean[0], outputs.pack_attentions[0][0].mean(dim=0))


def test_panels_show_tokens_downwards_and_slots_to_the_right(tmp_path):
    pack = torch.tensor([[[0.7, 0.2, 0.1], [0.0, 0.4, 0.6]]])
    unpack = torch.tensor([[[0.9, 0.1], [0.5, 0.5], [0.2, 0.8]]])
    figure = plot_attention.plot(pack, unpack, ["<s>", "a$b", "c$"], [3], "title", tmp_path / "picture.svg")
    upper, lower = figure.axes[:2]
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


def test_characters_that_the_font_lacks_are_escapes_without_a_warning(folder, tokenizer, tmp_path):
    text = "日 naïve 🌛 Ω"
    encoded = tokenizer(text, return_offsets_mapping=True)
    names = plot_attention.labels(text, encoded["input_ids"], encoded["offset_mapping"], tokenizer)
    assert names[2:5] == [r"\u65e5"] * 3  # the three bytes of one character
    assert names.count(r"\U0001f31b") + names.count(r"·\U0001f31b") == 4 and "Ω" in "".join(names)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*[Gg]lyph")
        run(folder, text, "--output", tmp_path / "picture.png")
        assert plot_attention.legible("日 model, ä") == r"\u65e5 model, ä"  # as in the title


def test_upper_case_and_what_is_there_is_replaced(folder, tmp_path):
    (tmp_path / "up.PNG").write_text("an older picture")
    run(folder, TEXT, "--output", tmp_path / "up.PNG", "--layers", "0")
    assert image.imread(tmp_path / "up.PNG", format="png").ndim == 3
    assert os.listdir(tmp_path) == ["up.PNG"]


def test_wrong_inputs_give_one_sentence(folder, tokenizer, tmp_path):
    plain, damaged, small = (tmp_path / name for name in ("no_tokenizer", "damaged_tokenizer", "small_vocabulary"))
    for path in (plain, damaged, small):
        build(LunaForMaskedLM, dtype=torch.float32).save_pretrained(path)
    tokenizer.save_pretrained(damaged)
    (damaged / "tokenizer.json").write_text("{")
    tokenizer.save_pretrained(small)
    (tmp_path / "folder.png").mkdir()
    picture = ["--output", tmp_path / "picture.png"]
    cases = {
        "no tokenizer": (plain, TEXT, *picture),
        "no tokenizer that can be read": (damaged, TEXT, *picture),
        "but the model knows 41": (small, TEXT, *picture),
        "folder.png cannot be written (": (folder, TEXT, "--output", tmp_path / "folder.png"),
        "at most 38 tokens": (folder, "moon " * 60, *picture),
        "must have words": (folder, " ", *picture),
        "--layers has '3'": (folder, TEXT, *picture, "--layers", "0,3"),
        "--head has 'x'": (folder, TEXT, *picture, "--head", "x"),
        "is no kind of picture": (folder, TEXT, "--output", tmp_path / "picture.txt"),
        "there is no folder": (folder, TEXT, "--output", tmp_path / "absent" / "picture.png"),
    }
    for sentence, arguments in cases.items():
        with refused(sentence, tmp_path):
            run(*arguments)
