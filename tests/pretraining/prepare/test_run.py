# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The whole command: what it writes, that the bytes depend on the input alone, going on after any end, and errors."""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from luna_tools.errors import InputError
from pretraining import prepare as module
from pretraining import shards, stages
from pretraining.prepare.config import PrepareConfig
from pretraining.prepare.documents import list_inputs, sample_text, split_of
from pretraining.prepare.run import main, parse_arguments, prepare
from pretraining.prepare.sources import python_docs

ROOT = Path(__file__).parents[2]
DEFAULTS = {
    "vocab_size": 350,
    "sequence_length": 16,
    "validation_fraction": 0.2,
    "shard_size_mb": 0.01,
    "document_separator": "blank_line",
    "num_proc": 1,
}


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A few hundred docstrings over several files and formats."""
    folder = tmp_path_factory.mktemp("corpus")
    texts = [" ".join(doc.text.split()) for doc in python_docs()[:400]]
    (folder / "a.txt").write_text("\n\n".join(texts[:150]), encoding="utf-8")
    (folder / "b.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts[150:300]))
    (folder / "c.md.gz").write_bytes(gzip.compress("\n\n".join(texts[300:]).encode(), mtime=0))
    return folder


@pytest.fixture(scope="session")
def complete(corpus, tmp_path_factory):
    """An uninterrupted run."""
    output = tmp_path_factory.mktemp("complete") / "out"
    return output, prepare(_config(output, corpus))


def _config(output, source, **options):
    return PrepareConfig(str(output), [str(source)], **(DEFAULTS | options))


def _contents(output):
    """The files of a finished run; of the manifest only what is said to be the same for every such run."""
    contents = {str(p.relative_to(output)): p.read_bytes() for p in sorted(output.rglob("*")) if p.is_file()}
    manifest = json.loads(contents["manifest.json"])
    del contents["manifest.json"]
    return contents, manifest


def _stream(rows):
    return np.array(rows["input_ids"])[:, 1:-1].ravel().tolist()


def test_layout(complete):
    output, manifest = complete
    assert sorted(path.name for path in output.iterdir()) == [
        "manifest.json",
        "token_counts.npy",
        "tokenizer",
        "train",
        "validation",
    ]
    assert json.loads((output / "manifest.json").read_text()) == manifest
    tokenizer = AutoTokenizer.from_pretrained(output / "tokenizer")
    assert len(tokenizer) == manifest["vocab_size"] == 350
    assert tokenizer.model_max_length == manifest["sequence_length"] == 16
    assert len(manifest["splits"]["train"]["shards"]) > 3
    for split, of in manifest["splits"].items():
        rows = datasets.load_from_disk(str(output / split))
        assert len(rows) == of["rows"] == sum(shard["rows"] for shard in of["shards"])
        assert of["tokens"] == of["rows"] * 14 + of["dropped_tokens"]
        assert rows.features["input_ids"] == datasets.List(datasets.Value("uint16"), length=16)
        assert len(rows.cache_files) == len(of["shards"])
    counts = np.load(output / "token_counts.npy")
    train = np.array(datasets.load_from_disk(str(output / "train"))["input_ids"])
    assert counts.dtype == np.int64
    assert counts.tolist() == np.bincount(train.ravel(), minlength=350).tolist()


def test_rows_are_the_documents(complete):
    output, manifest = complete
    tokenizer = AutoTokenizer.from_pretrained(output / "tokenizer")
    texts = [" ".join(doc.text.split()) for doc in python_docs()[:400]]
    for split, of in manifest["splits"].items():
        documents = [text for text in texts if split_of(text, 0, 0.2) == split]
        assert of["documents"] == len(documents)
        stream = _stream(datasets.load_from_disk(str(output / split)))
        *joined, last = tokenizer.decode(stream).split("</s>")
        assert joined == documents[: len(joined)]
        assert documents[len(joined)].startswith(last)


def test_manifest_tells_the_sources(complete, corpus):
    _, manifest = complete
    [source] = manifest["sources"]
    assert source["source"] == str(corpus)
    assert [file["path"] for file in source["files"]] == ["a.txt", "b.jsonl", "c.md.gz"]
    assert [file["documents"] for file in source["files"]] == [150, 150, 100]
    assert [file["bytes"] for file in source["files"]] == [(corpus / f["path"]).stat().st_size for f in source["files"]]
    assert source["documents"] == 400 == sum(of["documents"] for of in manifest["splits"].values())
    assert set(manifest["versions"]) == {"python", "datasets", "pyarrow", "tokenizers", "transformers"}


def test_number_of_processes_does_not_matter(complete, corpus, tmp_path):
    prepare(_config(tmp_path / "out", corpus, num_proc=2))
    assert _contents(tmp_path / "out") == _contents(complete[0])


def test_place_of_the_corpus_does_not_matter(complete, corpus, tmp_path):
    shutil.copytree(corpus, tmp_path / "elsewhere")
    assert prepare(_config(tmp_path / "out", tmp_path / "elsewhere"))["fingerprint"] == complete[1]["fingerprint"]


@pytest.mark.parametrize("option", [{"seed": 1}, {"sequence_length": 17}, {"vocab_size": 351}])
def test_fingerprint_depends_on_the_settings(complete, corpus, tmp_path, option):
    assert prepare(_config(tmp_path / "out", corpus, **option))["fingerprint"] != complete[1]["fingerprint"]


def test_no_validation(corpus, tmp_path):
    manifest = prepare(_config(tmp_path / "out", corpus, validation_fraction=0))
    assert list(manifest["splits"]) == ["train"]
    assert manifest["splits"]["train"]["documents"] == 400
    assert not (tmp_path / "out" / "validation").exists()


def test_existing_tokenizer(complete, corpus, tmp_path):
    path = str(complete[0] / "tokenizer")
    manifest = prepare(_config(tmp_path / "out", corpus, tokenizer=path, vocab_size=None))
    shards = [shard["sha256"] for shard in manifest["splits"]["train"]["shards"]]
    assert shards == [shard["sha256"] for shard in complete[1]["splits"]["train"]["shards"]]
    assert manifest["vocab_size"] == 350


@pytest.mark.slow
def test_large_vocabulary_is_stored_as_int32(complete, corpus, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(complete[0] / "tokenizer")
    tokenizer.add_tokens([f"<unused {i}>" for i in range(2**16)])
    tokenizer.save_pretrained(tmp_path / "large")
    prepare(_config(tmp_path / "out", corpus, tokenizer=str(tmp_path / "large"), vocab_size=None))
    rows = datasets.load_from_disk(str(tmp_path / "out" / "train"))
    assert rows.features["input_ids"].feature == datasets.Value("int32")
    assert len(np.load(tmp_path / "out" / "token_counts.npy")) == 350 + 2**16


def test_several_sources_and_formats_have_the_same_stream(corpus, complete, tmp_path):
    files = [str(corpus / name) for name in ("a.txt", "b.jsonl", "c.md.gz")]
    manifest = prepare(PrepareConfig(str(tmp_path / "out"), files, **DEFAULTS))
    assert [source["documents"] for source in manifest["sources"]] == [150, 150, 100]
    assert manifest["fingerprint"] == complete[1]["fingerprint"]


def _sample_of(corpus, tmp_path, **options):
    config = _config(tmp_path / "out", corpus, **options)
    inputs, _ = list_inputs(config, tmp_path / "out")
    return list(sample_text(config, inputs))


def test_tokenizer_sample_is_limited_and_spread(corpus, tmp_path):
    whole = "".join(_sample_of(corpus, tmp_path))
    sample = _sample_of(corpus, tmp_path, tokenizer_sample_mb=0.005)
    assert 4000 < sum(len(text.encode()) for text in sample) <= 5000
    places = [whole.index(text) for text in sample if len(text) > 30]
    assert places == sorted(places)
    assert max(places) > len(whole) * 0.6  # the third file starts about there


def test_tokenizer_is_trained_on_training_documents_only(corpus, tmp_path):
    texts = [" ".join(doc.text.split()) for doc in python_docs()[:400]]
    assert _sample_of(corpus, tmp_path) == [text for text in texts if split_of(text, 0, 0.2) == "train"]


def test_long_document_is_one_document(corpus, tmp_path, monkeypatch):
    from pretraining import sources

    options = {"document_separator": "file", "validation_fraction": 0}
    (tmp_path / "a.txt").write_text(" \n".join(doc.text for doc in python_docs()[:400]), encoding="utf-8")
    whole = prepare(_config(tmp_path / "whole", tmp_path / "a.txt", **options))
    monkeypatch.setattr(sources, "SLICE_CHARS", 1000)
    cut = prepare(_config(tmp_path / "cut", tmp_path / "a.txt", **options))
    assert cut["splits"]["train"]["documents"] == 1
    assert cut["fingerprint"] == whole["fingerprint"]


@given(st.text(), st.integers(0, 2**64 - 1), st.floats(0, 1, exclude_max=True))
def test_split_is_a_function_of_the_text(text, seed, fraction):
    split = split_of(text, seed, fraction)
    assert split == split_of(text, seed, fraction)
    assert split_of(text, seed, 0) == "train"
    assert split == split_of(f"\n{text} ", seed, fraction)
    if split == "validation":
        assert split_of(text, seed, min(1, fraction * 1.5)) == "validation"


def test_split_has_the_fraction_and_depends_on_the_seed():
    texts = [f"document {i}" for i in range(20_000)]
    held_out = {seed: [split_of(text, seed, 0.1) == "validation" for text in texts] for seed in (0, 1)}
    for chosen in held_out.values():
        assert 0.09 < sum(chosen) / len(chosen) < 0.11  # 0.1 is 0.0021 to a standard deviation
    both = sum(a and b for a, b in zip(*held_out.values(), strict=True)) / len(texts)
    assert 0.007 < both < 0.013


# ---------------------------------------------------------------------------------------------------------------------
# Going on


def test_complete_output_is_left_alone(complete, corpus, capsys):
    output, manifest = complete
    times = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    assert prepare(_config(output, corpus, num_proc=2)) == manifest
    assert "is complete already, with these settings: nothing to do." in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == times


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"seed": 5}, "was made with --seed 0, and this is 5: use the old value, another folder, or delete"),
        ({"validation_fraction": 0.3}, "was made with --validation_fraction 0.2, and this is 0.3: use"),
        ({"tokenizer": "x", "vocab_size": None}, "was made with --tokenizer None, and this is x: use"),
        ({"sequence_length": 8, "seed": 5}, "was made with --sequence_length 16, and this is 8: use"),
    ],
)
def test_complete_output_of_other_settings(complete, corpus, option, message):
    with pytest.raises(InputError, match=message):
        prepare(_config(complete[0], corpus, **option))


def test_complete_output_of_another_source(complete, corpus, tmp_path):
    with pytest.raises(InputError, match=f"was made with --source {corpus}, and this is {tmp_path}: use the old"):
        prepare(_config(complete[0], tmp_path))


class _Killed(BaseException):
    pass


def _kill_at_write(monkeypatch, count):
    """Ends the run before its `count`-th write of the progress or the manifest."""
    write = stages.write_json
    calls = iter(range(count))

    def dying(path, value, indent=None):
        if next(calls, None) is None:
            path.with_name(path.name + ".tmp").write_text("{")  # what a write that was cut short leaves
            raise _Killed
        write(path, value, indent)

    for part in (module, shards, stages):
        monkeypatch.setattr(part, "write_json", dying)


@pytest.mark.parametrize("num_proc", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_at_every_write(complete, corpus, tmp_path, num_proc):
    output = tmp_path / "out"
    kills = 0
    while not (output / "manifest.json").exists():
        # Two writes further each time: what is written before is not written again.
        with pytest.MonkeyPatch.context() as patch:
            _kill_at_write(patch, 2)
            try:
                prepare(_config(output, corpus, num_proc=num_proc))
            except _Killed:
                kills += 1
        assert kills < 50
    assert kills >= 3
    assert _contents(output) == _contents(complete[0])


def test_input_that_changed(corpus, tmp_path, monkeypatch):
    folder = tmp_path / "corpus"
    shutil.copytree(corpus, folder)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(_Killed):
        _kill_at_write(patch, 4)
        prepare(_config(tmp_path / "out", folder))
    (folder / "b.jsonl").write_text('{"text": "other"}\n')
    with pytest.raises(InputError, match=r"was begun with other input \(first change: .*b\.jsonl\): go on with what"):
        prepare(_config(tmp_path / "out", folder))
    with pytest.raises(InputError, match="was made with --seed 0, and this is 1: go on with what it was begun with"):
        prepare(_config(tmp_path / "out", folder, seed=1))


def test_start_over_while_nothing_is_finished(corpus, tmp_path, complete, capsys):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(_Killed):
        _kill_at_write(patch, 2)
        prepare(_config(tmp_path / "out", corpus, seed=7))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(_Killed):
        _kill_at_write(patch, 2)
        prepare(_config(tmp_path / "out", corpus, validation_fraction=0))
    assert not (tmp_path / "out" / "validation").exists()
    prepare(_config(tmp_path / "out", corpus))
    assert capsys.readouterr().out.count("no shard was finished, so it is begun anew") == 2
    assert _contents(tmp_path / "out") == _contents(complete[0])


@pytest.mark.parametrize("name", ["train/data-00000.arrow", "tokenizer/tokenizer.json"])
def test_interrupted_output_that_was_changed(corpus, tmp_path, name):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(_Killed):
        _kill_at_write(patch, 4)
        prepare(_config(tmp_path / "out", corpus))
    with open(tmp_path / "out" / name, "a") as file:
        file.write(" ")
    with pytest.raises(InputError, match=f"{name} is not as the interrupted run left it: delete .*out and run again"):
        prepare(_config(tmp_path / "out", corpus))


def test_on_error_may_become_skip_on_the_way(corpus, tmp_path):
    folder = tmp_path / "corpus"
    shutil.copytree(corpus, folder)
    (folder / "d.txt").write_bytes(b"\xff")
    config = _config(tmp_path / "out", folder, tokenizer_sample_mb=0.02)
    with pytest.raises(InputError, match="d.txt:1 is not UTF-8"):
        prepare(config)
    config.on_error = "skip"
    assert prepare(config)["skipped"]["count"] == 1
    config.on_error = "fail"
    with pytest.raises(InputError, match="was made with --on_error skip, and this is fail"):
        prepare(config)


def _command(output, source, num_proc):
    options = DEFAULTS | {"shard_size_mb": 0.05, "num_proc": num_proc, "document_separator": "file"}
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return [sys.executable, "-m", "pretraining.prepare", str(output), "--source", str(source), *arguments]


@pytest.fixture(scope="session")
def large_corpus(tmp_path_factory):
    """Several megabytes: enough for a run to be caught at work. One document is longer than a slice."""
    folder = tmp_path_factory.mktemp("large_corpus")
    text = "\n\n".join(doc.text for doc in python_docs())
    (folder / "long.txt").write_text(text * 2, encoding="utf-8")
    for i in range(300):
        (folder / f"{i:03d}.txt").write_text(text[i * 5000 : (i + 1) * 5000], encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def large_complete(large_corpus, tmp_path_factory):
    output = tmp_path_factory.mktemp("large_complete") / "out"
    subprocess.run(_command(output, large_corpus, 2), cwd=ROOT, check=True, capture_output=True)
    return output


def _start_and_stop(command, output, wait_for, number):
    """Starts the run, sends it a signal when the file appears, and returns what it ended with."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    while not (output / wait_for).exists() and process.poll() is None:
        time.sleep(0.002)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does, to the workers too
    else:
        process.send_signal(number)
    out, err = process.communicate(timeout=60)
    return process, out.decode(), err.decode()


def _none_left(session):
    """Whether the processes of a session end, given some time."""
    for _ in range(1000):
        if not _processes_of_session(session):
            return True
        time.sleep(0.01)
    return False


def _processes_of_session(session):
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(folder.name))
    return found


KILL_POINTS = [
    "progress.json",
    "tokenizer",
    "train/data-00000.arrow",
    "train/data-00003.arrow",
    "train/data-00011.arrow",
]


@pytest.mark.slow
@pytest.mark.parametrize("num_proc", [1, 2])
def test_really_killed(large_corpus, large_complete, tmp_path, num_proc):
    output = tmp_path / "out"
    command = _command(output, large_corpus, num_proc)
    for wait_for in KILL_POINTS:
        process, _, _ = _start_and_stop(command, output, wait_for, signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL, f"ended before {wait_for} was there"
        if wait_for == "train/data-00011.arrow":
            assert json.loads((output / "progress.json").read_text())["splits"]["train"]["shards"]
        assert _none_left(process.pid)
    finished = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert "Going on with the interrupted run" in finished.stdout
    assert _contents(output) == _contents(large_complete)


@pytest.mark.slow
def test_interrupted_by_the_keyboard(large_corpus, large_complete, tmp_path):
    output = tmp_path / "out"
    command = _command(output, large_corpus, 2)
    process, _, err = _start_and_stop(command, output, "train/data-00002.arrow", signal.SIGINT)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "Interrupted: run the same command again to continue."
    assert "Traceback" not in err
    assert _none_left(process.pid)
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert _contents(output) == _contents(large_complete)


def test_interrupted_while_the_tokenizer_is_trained(large_corpus, tmp_path):
    output = tmp_path / "out"
    process, _, err = _start_and_stop(_command(output, large_corpus, 2), output, "progress.json", signal.SIGINT)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "Interrupted: run the same command again to continue."
    assert "Traceback" not in err


def test_two_runs_at_once(corpus, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    with stages.locked(output), pytest.raises(InputError, match="out: another run is writing here; wait for it"):
        prepare(_config(output, corpus))


# ---------------------------------------------------------------------------------------------------------------------
# Errors


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"sources": []}, "--source none: give at least one."),
        ({"sources": ["a", "a"]}, "--source a: it is given twice, give it once."),
        ({"vocab_size": 260}, r"--vocab_size 260: use 261 or more \(256 bytes and 5 special tokens\)."),
        ({"tokenizer": "x", "vocab_size": 300}, "--vocab_size 300: leave it out, --tokenizer sets it."),
        ({"tokenizer_sample_mb": 0}, "--tokenizer_sample_mb 0: use a number above 0."),
        ({"sequence_length": 2}, "--sequence_length 2: use 3 or more."),
        ({"validation_fraction": 1}, "--validation_fraction 1: use a number from 0 to below 1."),
        ({"validation_fraction": -0.1}, "--validation_fraction -0.1: use a number from 0 to below 1."),
        ({"validation_fraction": float("nan")}, "--validation_fraction nan: use a number from 0 to below 1."),
        ({"seed": -1}, r"--seed -1: use a whole number from 0 to 2\*\*64 - 1."),
        ({"shard_size_mb": float("inf")}, "--shard_size_mb inf: use a number above 0."),
        ({"num_proc": 0}, "--num_proc 0: use 1 or more."),
        ({"document_separator": "page"}, "--document_separator page: use one of file, blank_line, line."),
        ({"on_error": "ignore"}, "--on_error ignore: use one of skip, fail."),
    ],
)
def test_options_that_cannot_be(option, message):
    with pytest.raises(InputError, match=f"^{message}$"):
        PrepareConfig(**({"output": "out", "sources": ["a"]} | option))


def test_command_line_sets_every_field():
    config = parse_arguments("out --source a --source b --seed 3 --shard_size_mb 1.5 --on_error skip".split())
    assert config == PrepareConfig("out", ["a", "b"], seed=3, shard_size_mb=1.5, on_error="skip")
    assert config.vocab_size == 50265
    assert config.num_proc == os.cpu_count()


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ({}, {}, r"^--source .*: it holds no file of a known kind \(\.txt"),
        ({"a.csv": b"x"}, {}, r"^--source .*: it holds no file of a known kind \(\.txt"),
        ({"a.txt": b"x"}, {}, "^--vocab_size 350: the training text gives only 26. entries; lower it to 26. or less"),
        ({"a.txt": b"\xff"}, {}, r"a\.txt:1 is not UTF-8 \(invalid start byte\): correct it, or pass --on_error skip"),
        ({"a.txt": b""}, {}, r"a\.txt holds no text: correct it, or pass --on_error skip"),
        ({"a.txt": b"\xff"}, {"on_error": "skip"}, "^--source .*: no text could be read from it; correct its files"),
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
        ({"a.txt": b"x"}, {"tokenizer": "absent/one", "vocab_size": None}, "^--tokenizer absent/one: it cannot be"),
    ],
)
def test_input_that_does_not_do(tmp_path, monkeypatch, files, options, message):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        prepare(_config(tmp_path / "out", folder, **options))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_source_without_text_among_others(corpus, complete, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff")
    for tokenizer in (None, str(complete[0] / "tokenizer")):
        options = DEFAULTS | {"tokenizer": tokenizer, "vocab_size": None if tokenizer else 350, "on_error": "skip"}
        config = PrepareConfig(str(tmp_path / f"out {tokenizer is None}"), [str(corpus), str(tmp_path / "a.txt")], **options)
        with pytest.raises(InputError, match=r"^--source .*a\.txt: no text could be read from it"):
            prepare(config)


def test_skipped_and_ignored_are_told(corpus, tmp_path, capsys):
    folder = tmp_path / "corpus"
    shutil.copytree(corpus, folder)
    (folder / "aa.jsonl").write_text('{"text": "fine"}\n{"body": 1}\n{"text": ""}\nnothing\n')
    (folder / "bad.txt.gz").write_bytes(b"not gzip")
    (folder / "data.csv").write_bytes(b"1,2")
    manifest = prepare(_config(tmp_path / "out", folder, on_error="skip"))
    assert manifest["skipped"] == {
        "count": 3,
        "first": [
            {"where": f"{folder}/aa.jsonl:2", "reason": "has no field 'text' (--text_column)"},
            {
                "where": f"{folder}/aa.jsonl:4",
                "reason": "is not valid JSON (Expecting value: line 1 column 1 (char 0))",
            },
            {"where": f"{folder}/bad.txt.gz", "reason": "cannot be read (Not a gzipped file (b'no'))"},
        ],
    }
    assert manifest["empty_documents"] == 1
    assert manifest["ignored"] == {"count": 1, "first": [f"{folder}/data.csv"]}
    assert {file["path"]: file["documents"] for file in manifest["sources"][0]["files"]}["aa.jsonl"] == 1
    printed = capsys.readouterr().out
    assert f"Ignored 1 files of other kinds, first {folder}/data.csv." in printed
    assert f"Skipped 3 that could not be read, first: {folder}/aa.jsonl:2 has no field" in printed


def test_names_of_the_skipped_are_limited(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "MAX_NAMES", 5)
    (tmp_path / "a.jsonl").write_text("\n".join(["[]"] * 30))
    options = DEFAULTS | {"on_error": "skip"}
    (tmp_path / "a.jsonl").write_text("\n".join(["[]"] * 30 + ['{"text": "x"}']))
    manifest = prepare(PrepareConfig(str(tmp_path / "out"), [str(corpus), str(tmp_path / "a.jsonl")], **options))
    assert manifest["skipped"]["count"] == 30
    assert len(manifest["skipped"]["first"]) == 5


def test_output_in_the_source(corpus, tmp_path):
    shutil.copytree(corpus, tmp_path / "corpus")
    with pytest.raises(InputError, match="^--source .*corpus: the output folder .*/out is inside it; move one of them"):
        prepare(_config(tmp_path / "corpus" / "out", tmp_path / "corpus"))


def test_output_that_holds_other_things(corpus, tmp_path):
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(InputError, match=r"the folder is not empty \(thesis\.txt\) and not from an earlier run"):
        prepare(_config(tmp_path, corpus))
    assert (tmp_path / "thesis.txt").exists()


def test_output_that_cannot_be_made(corpus, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="file: File exists; choose a folder that can be written to"):
        prepare(_config(tmp_path / "file", corpus))


def test_output_of_another_format(corpus, tmp_path):
    (tmp_path / "manifest.json").write_text('{"format_version": 99}')
    with pytest.raises(InputError, match="was made in format 99, and this version writes format 1: use"):
        prepare(_config(tmp_path, corpus))


@pytest.mark.parametrize("text", ["{}", "[]", "not JSON"])
@pytest.mark.parametrize("name", ["manifest.json", "progress.json"])
def test_output_with_a_strange_file_of_that_name(corpus, tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=rf"{name}: this file is not from an earlier run; choose another folder\."):
        prepare(_config(tmp_path, corpus))


def test_too_little_disk(corpus, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match="out: the dataset takes at least 0 MB and 0 MB are free; free some space or"):
        prepare(_config(tmp_path / "out", corpus))


def test_disk_full_on_the_way(corpus, tmp_path, complete, monkeypatch):
    from pretraining.prepare.packing import SplitWriter

    with monkeypatch.context() as patch:

        def full(self):
            raise OSError(28, "No space left on device")

        patch.setattr(SplitWriter, "_finish_shard", full)
        with pytest.raises(InputError, match="No space left on device; free some space and run the same command again"):
            prepare(_config(tmp_path / "out", corpus))
    prepare(_config(tmp_path / "out", corpus))
    assert _contents(tmp_path / "out") == _contents(complete[0])


def test_main_prints_one_sentence(tmp_path, capsys):
    assert main([str(tmp_path / "out"), "--source", str(tmp_path / "absent")]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: --source {tmp_path}/absent: no such file or folder; give an existing one")
    assert captured.err.count("\n") == 1


def test_main_of_a_good_run(corpus, tmp_path, capsys):
    arguments = [part for name, value in DEFAULTS.items() for part in (f"--{name}", str(value))]
    assert main([str(tmp_path / "out"), "--source", str(corpus), *arguments]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"Done: {tmp_path}/out, vocabulary 350, fingerprint ")
    assert main([str(tmp_path / "out"), "--source", str(corpus), *arguments]) == 0
