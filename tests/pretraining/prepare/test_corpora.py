# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Corpus files become the options of prepare, on the command line too; what cannot be read is told in one sentence."""

import json

import pytest
import yaml

from luna_tools.errors import InputError
from pretraining.prepare.config import PrepareConfig
from pretraining.prepare.corpora import CORPORA, load_corpus
from pretraining.prepare.run import main, parse_arguments
from pretraining.prepare.sources import find_inputs

SOURCES = {
    "paper_16gb": ["lucadiliello/bookcorpusopen", "wikimedia/wikipedia"],
    "paper_160gb": [
        "lucadiliello/bookcorpusopen",
        "wikimedia/wikipedia",
        "Geralt-Targaryen/CC-News",
        "Skylion007/openwebtext",
        "lucadiliello/STORIES",
    ],
}


def test_every_corpus_is_known_here():
    assert sorted(path.stem for path in CORPORA.glob("*.yaml")) == sorted(SOURCES)


@pytest.mark.parametrize(("name", "expected"), SOURCES.items(), ids=SOURCES)
def test_corpora_of_the_paper(name, expected):
    """They cannot be downloaded here, but are read by what reads them there, down to the names."""
    config = PrepareConfig(output="out", **load_corpus(name))
    assert [source.removeprefix("hub:").split(":")[0] for source in config.sources] == expected
    assert [find_inputs(source)[0][0].source for source in config.sources] == config.sources
    assert config.deduplicate and config.sequence_length == 512 and config.vocab_size == 50265
    assert parse_arguments(["out", "--corpus", name]) == config
    assert parse_arguments(["out", "--corpus", str(CORPORA / f"{name}.yaml")]) == config


@pytest.mark.parametrize(("name", "text_gb"), [("paper_16gb", 16), ("paper_160gb", 160)])
def test_weights_give_the_papers_sizes(name, text_gb):
    sizes = {"bookcorpusopen": 6.6, "wikipedia": 20, "CC-News": 380, "openwebtext": 38, "STORIES": 31}  # docs/corpora.md
    corpus = load_corpus(name)
    names = [source.split(":")[1].split("/")[-1] for source in corpus["sources"]]
    total = sum(sizes[name] * weight for name, weight in zip(names, corpus["weights"], strict=True))
    assert total == pytest.approx(text_gb, rel=0.02)


def test_options_of_the_command_line_come_first(tmp_path):
    (tmp_path / "mine.yaml").write_text("sources:\n- source: a\n- source: b\n  weight: 2\nseed: 3\nshard_size_mb: 5\n")
    config = parse_arguments(["out", "--corpus", str(tmp_path / "mine.yaml"), "--seed", "4", "--num_proc", "1"])
    assert config == PrepareConfig("out", ["a", "b"], weights=[1, 2], seed=4, shard_size_mb=5, num_proc=1)


@pytest.mark.parametrize("option", ["source", "weight"])
def test_sources_are_the_corpus_or_the_command_lines(option):
    with pytest.raises(InputError, match=rf"^--{option} 1\S*: leave it out, --corpus sets it\.$"):
        parse_arguments(["out", "--corpus", "paper_16gb", f"--{option}", "1"])


def test_a_run(tmp_path):
    for name in ("a", "b"):
        rows = [{"text": f"some words of document {name if i % 2 else ''} {i}"} for i in range(400)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    corpus = {
        "sources": [{"source": str(tmp_path / "a.jsonl")}, {"source": str(tmp_path / "b.jsonl"), "weight": 0.5}],
        "deduplicate": True,
        "vocab_size": 270,
        "sequence_length": 16,
        "validation_fraction": 0.1,
    }
    (tmp_path / "corpus.yaml").write_text(yaml.safe_dump(corpus))
    assert main([str(tmp_path / "out"), "--corpus", str(tmp_path / "corpus.yaml"), "--num_proc", "1"]) == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["settings"]["weights"] == [1.0, 0.5]
    first, second = (source["documents"] for source in manifest["sources"])
    assert first == 400
    assert second + manifest["duplicate_documents"] + manifest["left_out_documents"] == 400
    assert 0 < second < manifest["left_out_documents"] < 260


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", r"not valid YAML \(.*\); correct it\."),
        ("- a", "it has no list `sources`; add one of `source: ...` and `weight: ...`."),
        ("sources: a", "it has no list `sources`"),
        ("sources: []", "it has no list `sources`"),
        ("sources: [a]", "source 1 is a; write `source: ...` and perhaps `weight: ...`."),
        ("sources: [{source: a}, {weight: 1}]", r"source 2 is {'weight': 1}; write"),
        ("sources: [{source: a, wieght: 1}]", r"source 1 is {'source': 'a', 'wieght': 1}; write"),
        ("sources: [{source: a, weight: much}]", "the weight of a is much; use a number above 0."),
        ("sources: [{source: a}]\nsed: 1", "`sed` is not an option of a dataset; leave it out."),
        ("sources: [{source: a}]\nnum_proc: 1", "`num_proc` is not an option of a dataset; leave it out."),
        ("sources: [{source: a}]\nseed: one", "`seed` is 'one'; give a value of type int."),
        ("sources: [{source: a}]\nseed: true", "`seed` is True; give a value of type int."),
        ("sources: [{source: a}]\ndeduplicate: 1", "`deduplicate` is 1; give a value of type bool."),
        ("sources: [{source: a}]\nvocab_size: 1.5", "`vocab_size` is 1.5; give a value of type int or NoneType."),
    ],
)
def test_files_that_cannot_be(tmp_path, text, message):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(InputError, match=f"^--corpus .*a.yaml: {message}") as caught:
        load_corpus(str(tmp_path / "a.yaml"))
    assert "\n" not in str(caught.value)


def test_a_corpus_that_is_not_there(tmp_path):
    message = "^--corpus absent: No such file or directory; give a YAML file, or one of paper_160gb, paper_16gb.$"
    with pytest.raises(InputError, match=message):
        load_corpus("absent")


def test_a_weight_that_cannot_be(tmp_path):
    (tmp_path / "a.yaml").write_text("sources: [{source: a, weight: -1}]")
    with pytest.raises(InputError, match="^--weight -1.0: use a number above 0.$"):
        parse_arguments(["out", "--corpus", str(tmp_path / "a.yaml")])
