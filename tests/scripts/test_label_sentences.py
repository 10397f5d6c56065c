# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Sentences are labelled by a model that is fine-tuned once."""

import json

import pytest
from transformers import AutoTokenizer

from configuration_luna import LunaConfig
from luna_tools.errors import InputError
from modeling_luna import LunaForSequenceClassification
from scripts import label_sentences


def test_a_model_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match="is not there: run `python3 scripts/quickstart.py` first"):
        label_sentences.main(["--model_name_or_path", str(tmp_path / "none"), "--output_dir", str(tmp_path / "labels")])


def test_sentences_are_labelled_by_the_tuned_model(prepared, tmp_path, monkeypatch, capsys):
    labels, asked = tmp_path / "labels", []
    tokenizer = AutoTokenizer.from_pretrained(prepared / "tokenizer")
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LunaConfig(
        **sizes, intermediate_size=16, id2label={0: "internet", 1: "files"}, label2id={"internet": 0, "files": 1}
    )

    def tune(program: str, argv: list[str]) -> int:
        asked.append(argv)
        LunaForSequenceClassification(config).save_pretrained(labels)
        tokenizer.save_pretrained(labels)
        (labels / "all_results.json").write_text(json.dumps({}))
        return 0

    monkeypatch.setattr(label_sentences, "run", tune)
    monkeypatch.setattr(label_sentences, "make_dataset", lambda folder, seed: None)
    options = ["Open a socket.", "--model_name_or_path", str(prepared), "--output_dir", str(labels)]
    for _ in range(2):
        assert label_sentences.main([*options, "--num_train_epochs", "1"]) == 0
        assert capsys.readouterr().out.strip().endswith("%  Open a socket.")
    (argv,) = asked
    assert (
        argv[0] == "custom"
        and argv[-2:] == ["--num_train_epochs", "1"]
        and argv[argv.index("--output_dir") + 1] == str(labels)
    )

    (labels / "all_results.json").unlink()
    monkeypatch.setattr(label_sentences, "run", lambda program, argv: 2)
    assert label_sentences.main(options) == 2
