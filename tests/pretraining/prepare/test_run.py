# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The whole command: its options, what it writes, that the bytes depend on the input alone, and errors."""

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from transformers import AutoTokenizer

from luna_tools.command_line import run
from luna_tools.errors import InputError
from luna_tools.settings import named_files
from pretraining.dataset_format import CORPORA, read_manifest, verify_shards
from pretraining.prepare import finish, work
from pretraining.prepare.config import PrepareConfig
from pretraining.prepare.run import parse_arguments, prepare
from pretraining.prepare.sources import find_inputs
from tests.support.preparing import command_line, contents, make_config

ROOT = Path(__file__).parents[3]


def test_layout(complete, corpus):
    output, manifest = complete
    names = ["manifest.json", "token_counts.npy", "tokenizer", "train", "validation"]
    assert sorted(path.name for path in output.iterdir()) == names
    assert json.loads((output / "manifest.json").read_text()) == manifest
    assert read_manifest(output)["fingerprint"] == manifest["fingerprint"]
    verify_shards(output, manifest["splits"], 0, 1)
    tokenizer = AutoTokenizer.from_pretrained(output / "tokenizer")
    assert len(tokenizer) == manifest["vocab_size"] == 350
    assert tokenizer.model_max_length == manifest["sequence_length"] == 16
    for split, of in manifest["splits"].items():
        rows = datasets.load_from_disk(str(output / split))
        assert len(rows) == of["rows"] == sum(shard["rows"] for shard in of["shards"])
        assert of["tokens"] == of["rows"] * 14 + of["dropped_tokens"]
    counts = np.load(output / "token_counts.npy")
    train = np.array(datasets.load_from_disk(str(output / "train"))["input_ids"])
    assert counts.dtype == np.int64
    assert counts.tolist() == np.bincount(train.ravel(), minlength=350).tolist()
    counts = {"a.txt": 150, "b.jsonl": 150, "c.md.gz": 100}
    files = [{"path": name, "bytes": (corpus / name).stat().st_size, "documents": counts[name]} for name in counts]
    sums = {name: sum(file[name] for file in files) for name in ("bytes", "documents")}
    assert manifest["sources"] == [{"source": str(corpus), **sums, "files": files}]
    assert set(manifest["versions"]) == {"python", "datasets", "pyarrow", "tokenizers", "transformers"}


@pytest.mark.parametrize("change", ["two processes", "files as sources", "csv"])
def test_bytes_depend_on_the_text_and_the_settings_alone(complete, corpus, texts, tmp_path, change):
    source = shutil.copytree(corpus, tmp_path / "elsewhere")
    if change == "files as sources":
        source = [str(corpus / name) for name in ("a.txt", "b.jsonl", "c.md.gz")]
    elif change == "csv":
        (source / "b.jsonl").unlink()
        with open(source / "b.csv", "w", newline="") as file:
            csv.writer(file).writerows([("number", "text"), *enumerate(texts[150:300])])
    prepare(make_config(tmp_path / "out", source, num_proc=2 if change == "two processes" else 1))
    found, expected = contents(tmp_path / "out"), contents(complete[0])
    manifests = [json.loads(files.pop("manifest.json")) for files in (found, expected)]  # they name the sources
    assert manifests[0]["fingerprint"] == manifests[1]["fingerprint"]
    assert found == expected


def test_fingerprint_depends_on_the_settings_and_the_shards(complete):
    _, manifest = complete
    others = [manifest | {name: "other"} for name in ("sequence_length", "vocab_size", "seed", "tokenizer_sha256")]
    others += [manifest | {"settings": {"validation_fraction": 0.3}}, manifest | {"splits": {}}]
    fingerprints = [finish._fingerprint(of) for of in (manifest, *others, manifest | {"sources": []})]
    assert fingerprints[0] == fingerprints[-1] == manifest["fingerprint"]
    assert len(set(fingerprints)) == 1 + len(others)


def test_no_validation_and_a_tokenizer_that_is_there(complete, corpus, tmp_path):
    tokenizer = complete[0] / "tokenizer"
    manifest = prepare(make_config(tmp_path / "out", corpus, validation_fraction=0, tokenizer=str(tokenizer)))
    assert list(manifest["splits"]) == ["train"]
    assert manifest["splits"]["train"]["documents"] == 400
    assert not (tmp_path / "out" / "validation").exists()
    assert (tmp_path / "out" / "tokenizer" / "tokenizer.json").read_bytes() == (tokenizer / "tokenizer.json").read_bytes()


@pytest.mark.slow
def test_large_vocabulary_is_stored_as_int32(complete, corpus, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(complete[0] / "tokenizer")
    tokenizer.add_tokens([f"<unused {i}>" for i in range(2**16)])
    tokenizer.save_pretrained(tmp_path / "large")
    prepare(make_config(tmp_path / "out", corpus, tokenizer=str(tmp_path / "large")))
    rows = datasets.load_from_disk(str(tmp_path / "out" / "train"))
    assert rows.features["input_ids"].feature == datasets.Value("int32")
    assert len(np.load(tmp_path / "out" / "token_counts.npy")) == 350 + 2**16


# ---------------------------------------------------------------------------------------------------------------------
# The command line

LARGER = ["Geralt-Targaryen/CC-News", "Skylion007/openwebtext", "lucadiliello/STORIES"]
PAPER = {
    "paper_16gb": ["lucadiliello/bookcorpusopen", "wikimedia/wikipedia"],
    "paper_160gb": ["lucadiliello/bookcorpusopen", "wikimedia/wikipedia", *LARGER],
}


def test_every_corpus_is_known_here():
    assert set(named_files(CORPORA)) == {"quickstart", "quickstart_causal", *PAPER}
    assert parse_arguments(["quickstart", "--num_proc", "1"]) == PrepareConfig(
        "data/python-docs", ["python-docs"], vocab_size=4096, sequence_length=32, validation_fraction=0.05, num_proc=1
    )


@pytest.mark.parametrize(("name", "text_gb"), [("paper_16gb", 16), ("paper_160gb", 160)])
def test_corpora_of_the_paper(name, text_gb):
    """They cannot be downloaded here, but are read by what reads them there, down to the names."""
    config = parse_arguments([name])
    names = [source.removeprefix("hub:").split(":")[0] for source in config.sources]
    assert names == PAPER[name]
    assert [find_inputs(source)[0][0].source for source in config.sources] == config.sources
    assert config.deduplicate and config.sequence_length == 512 and config.vocab_size == 50265
    assert parse_arguments([str(CORPORA / f"{name}.yaml")]) == config
    sizes = {"bookcorpusopen": 6.6, "wikipedia": 20, "CC-News": 380, "openwebtext": 38, "STORIES": 31}  # docs/corpora.md
    total = sum(sizes[name.split("/")[1]] * weight for name, weight in zip(names, config.weights, strict=True))
    assert total == pytest.approx(text_gb, rel=0.02)


def test_what_comes_later_wins(tmp_path):
    (tmp_path / "mine.yaml").write_text("sources: [a, b]\nweights: [1, 2]\nseed: 3\nshard_size_mb: 5\noutput_dir: out\n")
    (tmp_path / "more.yaml").write_text("seed: 4\ndeduplicate: true\non_error: skip\n")
    config = parse_arguments(
        [str(tmp_path / "mine.yaml"), str(tmp_path / "more.yaml"), "--on_error", "fail", "--num_proc", "1"]
    )
    expected = PrepareConfig("out", ["a", "b"], weights=[1, 2], seed=4, shard_size_mb=5, deduplicate=True, num_proc=1)
    assert config == expected


@pytest.mark.parametrize(
    ("line", "text", "message"),
    [
        ("", "", "`output_dir` is missing: give --output_dir"),
        (
            "absent OK",
            "",
            "'absent' is not a corpus: give one of paper_160gb, paper_16gb, quickstart, quickstart_causal, a YAML file",
        ),
        ("OK --source a", "", "'--source' is not an option, perhaps --sources is meant"),
        ("paper_16gb --sources a", "", "--weights 0.65 0.6: give 1, one for each of --sources, or none."),
        ("OK --seed one", "", "`seed` is 'one', but must be of type int"),
        ("FILE OK", "weights: [-1]", "--weights -1.0: use numbers above 0."),
    ],
)
def test_command_lines_that_cannot_be(tmp_path, capsys, line, text, message):
    (tmp_path / "a.yaml").write_text(text)
    line = line.replace("FILE", f"{tmp_path}/a.yaml").replace("OK", f"--sources a --output_dir {tmp_path}/out")
    assert run("prepare", line.split()) == 2
    error = capsys.readouterr().err
    assert re.match(f"error: {message}", error) and error.count("\n") == 1


BARE = """
import sys
sys.modules.update(dict.fromkeys(("pyarrow", "datasets", "zstandard", "accelerate")))
from luna_tools.command_line import main
sys.exit(main(["prepare", "--seed", "one"]))
"""


def test_arguments_come_before_the_packages_that_a_bare_install_lacks():
    ended = subprocess.run([sys.executable, "-c", BARE], cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert ended.stderr.startswith("error: `seed` is 'one', but must be of type int")


def test_a_run_and_the_same_again(corpus, tmp_path, capsys):
    assert run("prepare", command_line(tmp_path / "out", corpus)) == 0
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert run("prepare", command_line(tmp_path / "out", corpus, num_proc=2)) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == times
    printed = capsys.readouterr()
    done, again = printed.out.splitlines()[-2:]
    assert done.startswith(f"Done: {tmp_path}/out, vocabulary 350, fingerprint ")
    assert again.endswith("is complete already, with these settings: nothing to do.")
    assert printed.err == ""  # no bars of what takes a moment


# ---------------------------------------------------------------------------------------------------------------------
# What cannot be


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"seed": 5}, "was made with --seed 0, and this is 5: use the old value, another folder, or delete"),
        ({"validation_fraction": 0.3}, "was made with --validation_fraction 0.2, and this is 0.3: use"),
        ({"tokenizer": "x"}, "was made with --tokenizer None, and this is x: use"),
        ({"sequence_length": 8, "seed": 5}, "was made with --sequence_length 16, and this is 8: use"),
        ({"source": "elsewhere"}, "was made with --sources CORPUS, and this is elsewhere: use the old"),
        ({"deduplicate": True}, "was made with --deduplicate None, and this is True: use the old value"),
        ({"weights": [0.5]}, "was made with --weights None, and this is 0.5: use the old value"),
    ],
)
def test_complete_output_of_other_settings(complete, corpus, option, message):
    with pytest.raises(InputError, match=message.replace("CORPUS", str(corpus))):
        prepare(make_config(complete[0], **({"source": corpus} | option)))


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("corpus/out", "^--sources .*corpus: the output folder .*/out is inside it; move one of them"),
        ("file", "file: File exists; choose a folder that can be written to"),
    ],
)
def test_output_that_cannot_be_made(tmp_path, output, message):
    (tmp_path / "file").write_text("x")
    (tmp_path / "corpus").mkdir()
    with pytest.raises(InputError, match=message):
        prepare(make_config(tmp_path / output, tmp_path / "corpus"))


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ({"a.doc": b"x"}, {}, r"^--sources .*: it holds no file of a known kind \(\.txt"),
        ({"a.txt": b"x"}, {}, "^--vocab_size 350: the training text gives only 26. entries; lower it to 26. or less"),
        ({"a.txt": b"\xff"}, {}, r"a\.txt:1 is not UTF-8 \(invalid start byte\): correct it, or pass --on_error skip"),
        ({"a.txt": b""}, {}, r"a\.txt holds no text: correct it, or pass --on_error skip"),
        ({"a.txt": b"\xff"}, {"on_error": "skip"}, "^--sources .*: no text could be read from it; correct its files"),
        (
            {"a.txt": b"x"},
            {"vocab_size": 261, "validation_fraction": 0},
            "^--sequence_length 16: the training documents have 1 tokens, too few for one row; lower it, or add text",
        ),
        (
            {"a.txt": b"a b c d e f g " * 9},
            {"vocab_size": 261, "validation_fraction": 1e-9},
            "^--validation_fraction 1e-09: the documents held out have 0 tokens, too few for one row; raise it, set",
        ),
        ({"a.txt": b"x"}, {"tokenizer": "absent/one"}, "^--tokenizer absent/one: it cannot be"),
    ],
)
def test_input_that_does_not_do(tmp_path, monkeypatch, files, options, message):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        prepare(make_config(tmp_path / "out", folder, **options))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize("given", [True, False])
def test_a_source_without_text_among_others(corpus, tokenizer, tmp_path, given):
    (tmp_path / "a.txt").write_bytes(b"\xff")
    options = {"on_error": "skip"} | ({"tokenizer": str(tokenizer)} if given else {})
    with pytest.raises(InputError, match=r"^--sources .*a\.txt: no text could be read from it"):
        prepare(make_config(tmp_path / "out", [corpus, tmp_path / "a.txt"], **options))


def test_skipped_and_ignored_are_told(corpus, tmp_path, capsys):
    folder = tmp_path / "corpus"
    shutil.copytree(corpus, folder)
    (folder / "aa.jsonl").write_text('{"text": "fine"}\n{"body": 1}\n{"text": ""}\nnothing\n')
    (folder / "bad.txt.gz").write_bytes(b"not gzip")
    (folder / "data.doc").write_bytes(b"1,2")
    manifest = prepare(make_config(tmp_path / "out", folder, on_error="skip"))
    assert manifest["skipped"] == {
        "count": 3,
        "first": [
            {"where": f"{folder}/aa.jsonl:2", "reason": "has no field 'text' (--text_column)"},
            {"where": f"{folder}/aa.jsonl:4", "reason": "is not valid JSON (Expecting value: line 1 column 1 (char 0))"},
            {"where": f"{folder}/bad.txt.gz", "reason": "cannot be read (Not a gzipped file (b'no'))"},
        ],
    }
    assert manifest["empty_documents"] == 1
    assert manifest["ignored"] == {"count": 1, "first": [f"{folder}/data.doc"]}
    assert {file["path"]: file["documents"] for file in manifest["sources"][0]["files"]}["aa.jsonl"] == 1
    printed = capsys.readouterr().out
    assert f"Ignored 1 files of other kinds, first {folder}/data.doc." in printed
    assert f"Skipped 3 that could not be read, first: {folder}/aa.jsonl:2 has no field" in printed


def test_names_of_the_skipped_are_limited(corpus, tokenizer, tmp_path, monkeypatch):
    for module in (work, finish):
        monkeypatch.setattr(module, "MAX_NAMES", 5)
    (tmp_path / "a.jsonl").write_text("\n".join(["[]"] * 30 + ['{"text": "x"}']))
    options = {"on_error": "skip", "tokenizer": str(tokenizer)}
    manifest = prepare(make_config(tmp_path / "out", [corpus, tmp_path / "a.jsonl"], **options))
    assert (manifest["skipped"]["count"], len(manifest["skipped"]["first"])) == (30, 5)
