# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Jobs and their merge make what one job makes, byte for byte, through any interruption; and what is refused."""

import gzip
import io
import json
import os
import shutil
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from luna_tools.command_line import run
from luna_tools.errors import InputError
from pretraining.prepare import finish, readers, slices, work
from pretraining.prepare.documents import is_taken, split_of
from pretraining.prepare.readers import read_input
from pretraining.prepare.run import prepare
from pretraining.prepare.slices import Slice
from pretraining.prepare.sources import divide, find_inputs
from pretraining.prepare.state import locked
from pretraining.prepare.tokenizer import load_for_text
from tests.support.preparing import (
    DEFAULTS,
    Killed,
    command_line,
    contents,
    make_config,
    prepare_in_jobs,
    prepare_until_killed,
    steps,
)


@pytest.mark.parametrize("num_jobs", [1, 3, 40])
def test_jobs_make_what_one_job_makes(faulty, faulty_complete, tmp_path, num_jobs):
    prepare_in_jobs(tmp_path / "out", faulty, num_jobs, on_error="skip")
    assert contents(tmp_path / "out") == contents(faulty_complete)
    manifest = json.loads((faulty_complete / "manifest.json").read_text())
    assert manifest["skipped"]["count"] == 2
    assert len(manifest["splits"]["train"]["shards"]) > 3


# ---------------------------------------------------------------------------------------------------------------------
# Any corpus

WORDS = st.lists(st.sampled_from(["the", "a", "module", "ä", "\u3000", "漢字", "<s>", "x" * 30]), max_size=6).map(" ".join)
PLAIN = st.lists(WORDS | st.sampled_from(["", "", "\r", " "]), max_size=12).map("\n".join).map(str.encode)
BROKEN = st.tuples(PLAIN, st.sampled_from([b"\xff", b"\xc3"]), PLAIN).map(b"".join)
LINE = WORDS.map(lambda text: json.dumps({"text": text}).encode()) | st.sampled_from([b"{}", b"[", b'{"text": "\xff"}', b""])
ROWS = st.tuples(st.lists(st.none() | WORDS, max_size=12), st.integers(1, 4))


def _parquet(rows):
    file = io.BytesIO()
    pq.write_table(pa.table({"text": pa.array(rows[0], pa.string())}), file, row_group_size=rows[1])
    return file.getvalue()


FILES = st.one_of(
    st.tuples(st.just(".txt"), PLAIN | BROKEN),
    st.tuples(st.just(".jsonl"), st.lists(LINE, max_size=8).map(b"\n".join)),
    st.tuples(st.just(".parquet"), ROWS.map(_parquet) | PLAIN),
    st.tuples(st.just(".txt.gz"), PLAIN.map(lambda data: gzip.compress(data, mtime=0)) | PLAIN),
    st.tuples(st.sampled_from([".csv", ".tsv.gz", ".doc"]), PLAIN.map(lambda data: b"text\n" + data)),
)


def _try(make):
    try:
        return make()
    except InputError as error:
        return str(error)


def _expected_streams(config):
    """What the rows are cut from, by the slow way: whole documents in lists."""
    encoder = load_for_text(Path(config.tokenizer))
    streams, seen = {"train": [], "validation": []}, set()
    for repeat in range(3):
        for source, weight in zip(config.sources, config.weights or [1] * len(config.sources), strict=True):
            texts = []
            for one in find_inputs(source)[0]:
                for item in read_input(one, "text", config.document_separator):
                    if isinstance(item, Slice) and item.first:
                        texts.append((item.text, item.text))
                    elif isinstance(item, Slice):
                        texts[-1] = (texts[-1][0], texts[-1][1] + item.text)
            for first, text in texts:
                split = split_of(first, config.seed, config.validation_fraction)
                taken = repeat < weight and is_taken(first, config.seed, weight - repeat)
                key = (repeat, text.strip())
                if not text or not taken or (repeat and split == "validation") or (config.deduplicate and key in seen):
                    continue
                seen.add(key)
                stream = streams[split]
                stream += [2] * bool(stream) + encoder.encode(text, add_special_tokens=False).ids
    return streams


ANY = {
    "files": st.lists(FILES, min_size=1, max_size=5),
    "num_jobs": st.integers(1, 8),
    "separator": st.sampled_from(["line", "blank_line", "file"]),
    "slice_chars": st.sampled_from([2**20, 16]),
    "weights": st.none() | st.tuples(*[st.sampled_from([0.5, 1.0, 1.5, 2.0])] * 2).map(list),
    "deduplicate": st.booleans(),
    "on_error": st.sampled_from(["skip", "skip", "fail"]),
}


def check_any_corpus(tmp_path_factory, tokenizer, files, num_jobs, separator, slice_chars, weights, deduplicate, on_error):
    folder = tmp_path_factory.mktemp("any")
    (folder / "corpus").mkdir()
    for number, (extension, data) in enumerate(files):
        (folder / "corpus" / f"{number}{extension}").write_bytes(data)
    (folder / "corpus" / "text.jsonl").write_text('{"text": "a module"}\n{"text": "the module"}')
    (folder / "more.jsonl").write_text("\n".join(json.dumps({"text": f"a module {i % 40}"}) for i in range(60)))
    options = DEFAULTS | {
        "tokenizer": str(tokenizer),
        "vocab_size": None,
        "sequence_length": 5,
        "shard_size_mb": 1e-5,
        "document_separator": separator,
        "on_error": on_error,
        "weights": weights,
        "deduplicate": deduplicate,
    }
    source = [str(folder / "corpus"), str(folder / "more.jsonl")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "READ_CHARS", slice_chars)
        patch.setattr(slices, "SLICE_CHARS", slice_chars)
        patch.setattr(slices, "CUT_WINDOW_CHARS", 8)
        alone = _try(lambda: prepare(make_config(folder / "alone", source, **options)))
        merged = _try(lambda: prepare_in_jobs(folder / "merged", source, num_jobs, **options))
        expected = _expected_streams(make_config(folder / "alone", source, **options))
    if isinstance(alone, str):
        assert isinstance(merged, str)
        assert on_error == "fail" or merged == alone
        return
    assert contents(folder / "merged") == contents(folder / "alone")
    for split, stream in expected.items():
        rows = datasets.load_from_disk(str(folder / "alone" / split))["input_ids"]
        assert np.array(rows)[:, 1:-1].ravel().tolist() == stream[: len(stream) // 3 * 3]
        assert alone["splits"][split]["tokens"] == len(stream)


@pytest.mark.parametrize("examples", [12, pytest.param(40, marks=pytest.mark.slow)])
def test_any_corpus(tmp_path_factory, tokenizer, examples):
    options = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
    settings(max_examples=examples, **options)(given(**ANY)(check_any_corpus))(tmp_path_factory, tokenizer)


def test_a_file_without_text_is_told_however_it_is_divided(faulty, tmp_path):
    folder = tmp_path / "corpus"
    shutil.copytree(faulty, folder)
    (folder / "blank.txt").write_text("\n \n" * 20_000)
    alone = prepare(make_config(tmp_path / "alone", folder, on_error="skip"))
    assert {"where": f"{folder}/blank.txt", "reason": "holds no text"} in alone["skipped"]["first"]
    prepare_in_jobs(tmp_path / "merged", folder, 5, on_error="skip")
    assert len(divide([(60_000, 60_000)], 5)[0]) == 1
    assert contents(tmp_path / "merged") == contents(tmp_path / "alone")


def test_documents_longer_than_a_share(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("short\n\n" + "a long one " * 5000 + "\n\nshort\n\n" + "another\n" * 9)
    options = {"tokenizer": str(tokenizer), "vocab_size": None, "validation_fraction": 0}
    prepare(make_config(tmp_path / "alone", tmp_path / "a.txt", **options))
    prepare_in_jobs(tmp_path / "merged", tmp_path / "a.txt", 9, **options)
    assert contents(tmp_path / "merged") == contents(tmp_path / "alone")


def test_a_hub_dataset(tmp_path, tokenizer):
    folder = tmp_path / "dataset"
    folder.mkdir()
    for file in range(5):
        rows = [{"text": None if i == 7 * file else f"document {file} {i}"} for i in range(20)]
        (folder / f"train-{file}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = {"tokenizer": str(tokenizer), "vocab_size": None, "on_error": "skip", "weights": [1.5]}
    manifest = prepare(make_config(tmp_path / "alone", [f"hub:{folder}"], **options))
    assert manifest["skipped"]["first"][1]["where"] == f"hub:{folder}, file 2 of 5:8"
    prepare_in_jobs(tmp_path / "merged", [f"hub:{folder}"], 3, **options)
    assert contents(tmp_path / "merged") == contents(tmp_path / "alone")


# ---------------------------------------------------------------------------------------------------------------------
# Weights and duplicates


def _texts_of(output, split="train"):
    tokenizer = AutoTokenizer.from_pretrained(output / "tokenizer")
    rows = np.array(datasets.load_from_disk(str(output / split))["input_ids"])
    return tokenizer.decode(rows[:, 1:-1].ravel().tolist()).split("</s>")


@pytest.fixture(scope="session")
def repeating(tmp_path_factory):
    """Two sources of documents, some of which occur several times, with white space around them or in both sources."""
    folder = tmp_path_factory.mktemp("repeating")
    first = [f"document {i % 60}" + " \n" * (i % 3) for i in range(100)]
    second = [f"\t document {i}" for i in range(50, 90)]
    for name, texts in (("a", first), ("b", second)):
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return [str(folder / "a.jsonl"), str(folder / "b.jsonl")]


def test_duplicates_are_left_out(repeating, tokenizer, tmp_path):
    options = {"tokenizer": str(tokenizer), "vocab_size": None, "validation_fraction": 0, "sequence_length": 3}
    manifest = prepare(make_config(tmp_path / "out", repeating, **options, deduplicate=True))
    assert manifest["duplicate_documents"] == 50
    assert manifest["settings"]["deduplicate"] is True
    assert [source["documents"] for source in manifest["sources"]] == [60, 30]
    assert [text.strip() for text in _texts_of(tmp_path / "out")] == [f"document {i}" for i in range(90)]
    text_bytes = sum(len(text.encode()) for text in _texts_of(tmp_path / "out"))
    assert manifest["splits"]["train"]["text_bytes"] == text_bytes
    # The same as of a corpus without the duplicates.
    lines = dict.fromkeys(line for path in repeating for line in Path(path).read_text().splitlines())
    distinct = {json.loads(line)["text"].strip(): line for line in reversed(list(lines))}
    (tmp_path / "c.jsonl").write_text("\n".join(distinct[f"document {i}"] for i in range(90)))
    without = prepare(make_config(tmp_path / "without", tmp_path / "c.jsonl", **options))
    assert without["fingerprint"] == manifest["fingerprint"]
    assert "duplicate_documents" not in without


def test_weights(tokenizer, tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text("\n".join(f"{name} {i}" for i in range(2000)))
    options = {"tokenizer": str(tokenizer), "vocab_size": None, "sequence_length": 3, "document_separator": "line"}
    source = [str(tmp_path / "a.txt"), str(tmp_path / "b.txt")]
    manifest = prepare(make_config(tmp_path / "out", source, **options, weights=[0.25, 2.5]))
    texts = {split: _texts_of(tmp_path / "out", split) for split in ("train", "validation")}
    few = [text for split in texts.values() for text in split if text.startswith("a")]
    assert len(few) == len(set(few)) == manifest["sources"][0]["documents"]
    assert 400 < len(few) < 600  # 500, and 19 to a standard deviation
    assert manifest["left_out_documents"] == 2000 - len(few)
    assert manifest["settings"]["weights"] == [0.25, 2.5]
    many = [text for text in texts["train"] if text.startswith("b")]
    held_out = [text for text in texts["validation"] if text.startswith("b")]
    assert len(held_out) == len(set(held_out)) and len(set(many)) + len(held_out) == 2000
    times = {text: many.count(text) for text in set(many)}
    assert set(times.values()) == {2, 3}
    assert 700 < sum(number == 3 for number in times.values()) < 900  # 800 of the 1,600
    assert manifest["sources"][1]["documents"] == len(many) + len(held_out)
    assert [file["documents"] for source in manifest["sources"] for file in source["files"]] == [
        source["documents"] for source in manifest["sources"]
    ]
    # Which documents are taken depends on neither the order nor the other sources.
    alone = prepare(make_config(tmp_path / "alone", source[:1], **options, weights=[0.25]))
    assert alone["sources"][0]["documents"] == len(few)


def test_weights_and_duplicates_together(repeating, tokenizer, tmp_path):
    options = {"tokenizer": str(tokenizer), "vocab_size": None, "sequence_length": 3, "validation_fraction": 0}
    prepare(make_config(tmp_path / "out", repeating, **options, deduplicate=True, weights=[2, 1]))
    texts = [text.strip() for text in _texts_of(tmp_path / "out")]
    assert texts == [f"document {i}" for i in (*range(90), *range(60))]


def test_weights_of_1_are_none(tmp_path):
    assert make_config(tmp_path, ["a", "b"], weights=[1, 1]).settings() == make_config(tmp_path, ["a", "b"]).settings()
    assert "weights" not in make_config(tmp_path, ["a"]).settings()


def test_a_source_of_duplicates_alone_is_no_error(tokenizer, tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text("the same documents\n\nand no others")
    options = {"tokenizer": str(tokenizer), "vocab_size": None, "sequence_length": 3, "validation_fraction": 0}
    source = [str(tmp_path / "a.txt"), str(tmp_path / "b.txt")]
    manifest = prepare(make_config(tmp_path / "out", source, **options, deduplicate=True))
    assert [source["documents"] for source in manifest["sources"]] == [2, 0]


# ---------------------------------------------------------------------------------------------------------------------
# Going on


@pytest.mark.parametrize("deduplicate", [False, True])
def test_killed_at_every_write(faulty, tmp_path, deduplicate):
    options = {"on_error": "skip", "deduplicate": deduplicate}
    prepare(make_config(tmp_path / "whole", faulty, **options))
    kills = {"plan": 0, "job": 0, "merge": 0}
    for step in steps(2):
        name = next(iter(step))
        config = make_config(tmp_path / "out", faulty, num_jobs=2, **options, **step)
        # A plan and a merge begin anew: all of their writes but one are let through.
        while prepare_until_killed(config, {"plan": 1 + kills["plan"], "job": 1, "merge": kills["merge"]}[name]) is None:
            kills[name] += 1
            assert sum(kills.values()) < 50
    assert kills["job"] > 6 and kills["merge"] == 1
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_killed_after_the_manifest_was_written(faulty, faulty_complete, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(finish, "remove_unfinished", lambda output: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            prepare_in_jobs(tmp_path / "out", faulty, 2, on_error="skip")
    assert (tmp_path / "out" / "jobs").exists()
    prepare(make_config(tmp_path / "out", faulty, num_jobs=2, merge=True, on_error="skip"))
    (tmp_path / "out" / ".lock").unlink()
    assert contents(tmp_path / "out") == contents(faulty_complete)


# ---------------------------------------------------------------------------------------------------------------------
# What is refused


@pytest.fixture(scope="session")
def planned(faulty, tmp_path_factory):
    """A plan with two complete jobs, to copy."""
    output = tmp_path_factory.mktemp("planned") / "out"
    for step in steps(2)[:-1]:
        _do(output, faulty, **step)
    return output


@pytest.fixture
def output(planned, tmp_path):
    return shutil.copytree(planned, tmp_path / "out")


def _do(output, source, **step):
    """Do one step of the two jobs."""
    return prepare(make_config(output, source, **({"num_jobs": 2, "on_error": "skip"} | step)))


def test_the_copy_can_be_merged(output, faulty, faulty_complete):
    _do(output, faulty, merge=True)
    assert contents(output) == contents(faulty_complete)


def _edit(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def _flip_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _job(output, number):
    return output / "jobs" / f"{number:05d}"


HARMS = {
    "not begun": (lambda out: shutil.rmtree(_job(out, 1)), r"out: 1 of 2 jobs are not complete; run --job 1 first\."),
    "not finished": (
        lambda out: [(_job(out, i) / "result.json").unlink() for i in range(2)],
        r"out: 2 of 2 jobs are not complete; run --job 0,1 first\.",
    ),
    "bit flipped": (
        lambda out: _flip_bit(_job(out, 1) / "train.tokens"),
        r"jobs/00001/train\.tokens is damaged: delete .*/jobs/00001 and run --job 1 again\.",
    ),
    "cut": (
        lambda out: os.truncate(_job(out, 0) / "validation.tokens", 10),
        r"jobs/00000/validation\.tokens is damaged: delete .*/jobs/00000 and run --job 0 again\.",
    ),
    "missing stream": (lambda out: (_job(out, 0) / "train.tokens").unlink(), r"jobs/00000/train\.tokens is damaged"),
    "changed counts": (
        lambda out: _edit(_job(out, 0) / "result.json", lambda result: result["counts"][0].update(left_out=9)),
        r"jobs/00000/result\.json is damaged",
    ),
    "other input": (
        lambda out: _edit(out / "plan.json", lambda plan: plan["inputs"][0].__setitem__(3, "later")),
        r"jobs/00000 was made with another input: delete it and run --job 0 again\.",
    ),
    "other settings": (
        lambda out: _edit(_job(out, 1) / "result.json", lambda result: result["made_from"]["settings"].update(seed=9)),
        r"jobs/00001 was made with another settings: delete it and run --job 1 again\.",
    ),
    "swapped jobs": (
        lambda out: shutil.copytree(_job(out, 0), _job(out, 1), dirs_exist_ok=True),
        r"jobs/00001 was made with another number: delete it",
    ),
    "other tokenizer": (
        lambda out: _flip_bit(out / "tokenizer" / "tokenizer.json"),
        r"tokenizer/tokenizer\.json is not as the interrupted run left it",
    ),
    "no plan": (
        lambda out: (out / "plan.json").unlink(),
        r"out: there is no plan; run the same command with --plan in place of --job or --merge\.",
    ),
    "plan without tokenizer": (
        lambda out: _edit(out / "plan.json", lambda plan: plan.update(tokenizer_sha256=None)),
        r"out: the plan has no tokenizer yet; wait for the run with --plan, or run it again\.",
    ),
    "plan of another version": (
        lambda out: _edit(out / "plan.json", lambda plan: plan.update(tokenizers_version="0.0.1")),
        r"out was made with tokenizers 0\.0\.1, and this is .*: use the old value, another folder, or delete this one\.",
    ),
}


@pytest.mark.parametrize(("harm", "message"), HARMS.values(), ids=HARMS)
def test_merge_refuses(output, faulty, harm, message):
    harm(output)
    with pytest.raises(InputError, match=message) as caught:
        _do(output, faulty, merge=True)
    assert "\n" not in str(caught.value)
    assert not (output / "manifest.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 1}, "out was made with --seed 0, and this is 1: use the old value, another folder, or delete this one"),
        ({"num_jobs": 3}, "out was made with --num_jobs 2, and this is 3: use the old value"),
        ({"deduplicate": True}, "out was made with --deduplicate None, and this is True: use the old value"),
        ({"weights": [0.5]}, "out was made with --weights None, and this is 0.5: use the old value"),
        ({"on_error": "fail"}, r"b\.jsonl:151 is not a JSON object but list: correct it, or pass --on_error skip\."),
    ],
)
@pytest.mark.parametrize("step", ["plan", "job", "merge"])
def test_other_settings(output, faulty, options, message, step):
    if options == {"on_error": "fail"} and step != "merge":
        return  # what was skipped matters in the dataset alone
    step = {"job": 0} if step == "job" else {step: True}
    with pytest.raises(InputError, match=message):
        _do(output, faulty, **(options | step))


def test_raw_text_is_not_needed_to_merge(planned, faulty, faulty_complete, tmp_path):
    shutil.copytree(faulty, tmp_path / "corpus")
    for step in steps(2)[:-1]:
        _do(tmp_path / "out", tmp_path / "corpus", **step)
    shutil.rmtree(tmp_path / "corpus")
    manifest = _do(tmp_path / "out", tmp_path / "corpus", merge=True)
    assert manifest["fingerprint"] == json.loads((faulty_complete / "manifest.json").read_text())["fingerprint"]


def test_input_that_changed_since_the_plan(faulty, tmp_path):
    shutil.copytree(faulty, tmp_path / "corpus")
    _do(tmp_path / "out", tmp_path / "corpus", plan=True)
    (tmp_path / "corpus" / "b.jsonl").write_text('{"text": "other"}\n')
    with pytest.raises(InputError, match=r"out was planned with other input \(first change: .*b\.jsonl\): bring it back"):
        _do(tmp_path / "out", tmp_path / "corpus", job=0)


def test_a_plan_may_be_made_anew_before_the_first_job(faulty, faulty_complete, tmp_path):
    prepare(make_config(tmp_path / "out", faulty, num_jobs=5, seed=3, on_error="skip", plan=True))
    prepare_in_jobs(tmp_path / "out", faulty, 2, on_error="skip")
    assert contents(tmp_path / "out") == contents(faulty_complete)


def test_complete_steps_are_left_alone(output, faulty, capsys):
    before = contents(output)
    for step in steps(2)[:-1]:
        _do(output, faulty, **step)
    assert contents(output) == before
    printed = capsys.readouterr().out
    assert "is planned already, with these settings." in printed
    assert "jobs/00001 is complete already." in printed
    _do(output, faulty, merge=True)
    for step in steps(2):
        _do(output, faulty, **step)
    assert capsys.readouterr().out.count("is complete already, with these settings: nothing to do.") == 4


def test_two_processes_of_one_job(output, faulty):
    with (
        locked(output / "jobs" / "00001"),
        pytest.raises(InputError, match="jobs/00001: another run is writing here; wait for it"),
    ):
        _do(output, faulty, job=1)


@pytest.mark.parametrize("step", [{"plan": True}, {"merge": True}, {"num_jobs": None}])
def test_two_runs_in_a_folder(output, faulty, step):
    with locked(output), pytest.raises(InputError, match="out: another run is writing here; wait for it"):
        _do(output, faulty, **step)


def test_an_interrupted_job_that_was_changed(faulty, tmp_path):
    _do(tmp_path / "out", faulty, plan=True)
    config = make_config(tmp_path / "out", faulty, num_jobs=2, on_error="skip", job=0)
    assert prepare_until_killed(config, 3) is None
    (tmp_path / "out" / "jobs" / "00000" / "train.tokens").write_bytes(b"")
    with pytest.raises(InputError, match=r"train\.tokens is not as the interrupted run left it: delete .*00000 and run"):
        prepare(config)


def test_one_job_and_several_in_one_folder(output, faulty, tmp_path):
    with pytest.raises(InputError, match="out is prepared by several jobs: add --num_jobs 2 and --plan, --job or"):
        prepare(make_config(output, faulty, on_error="skip"))
    assert prepare_until_killed(make_config(tmp_path / "alone", faulty, on_error="skip"), 3) is None
    with pytest.raises(InputError, match="alone was begun as one job: leave out --num_jobs, use another folder, or"):
        _do(tmp_path / "alone", faulty, plan=True)


def test_on_error_may_become_skip_on_the_way(faulty, tmp_path):
    options = {"num_jobs": 2, "tokenizer_sample_mb": 0.02}
    prepare(make_config(tmp_path / "out", faulty, plan=True, **options))
    with pytest.raises(InputError, match=r"b\.jsonl:151 is not a JSON object but list: correct it, or"):
        prepare(make_config(tmp_path / "out", faulty, job=0, **options))
    for step in steps(2)[1:]:
        prepare(make_config(tmp_path / "out", faulty, on_error="skip", **options, **step))
    prepare(make_config(tmp_path / "alone", faulty, on_error="skip", tokenizer_sample_mb=0.02))
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")


def test_a_fault_ends_a_job(faulty, tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(f"some words {i}" for i in range(500)))
    (tmp_path / "b.jsonl").write_text("[]\n" * 100)
    source = [str(tmp_path / name) for name in ("a.txt", "b.jsonl")]
    options = {"num_jobs": 8, "tokenizer_sample_mb": 0.001, "vocab_size": 261, "document_separator": "line"}
    with pytest.raises(InputError, match=r"b\.jsonl:1 is not a JSON object but list: correct it"):
        prepare(make_config(tmp_path / "out", source, plan=True, **options))
    options["on_error"] = "skip"
    with pytest.raises(InputError, match=r"--sources .*b\.jsonl: no text could be read from it"):
        prepare(make_config(tmp_path / "out", source, plan=True, **options))


def test_too_little_disk_for_streams_and_dataset(faulty, tmp_path, monkeypatch):
    text = sum(path.stat().st_size for path in faulty.iterdir())
    usage = shutil.disk_usage(tmp_path)._replace(free=int(text / 5 * 2 * 1.5))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    prepare(make_config(tmp_path / "alone", faulty, on_error="skip"))
    with pytest.raises(InputError, match="the dataset takes at least 0 MB and 0 MB are free; free some space or"):
        prepare(make_config(tmp_path / "out", faulty, num_jobs=2, plan=True, on_error="skip"))


def test_disk_full_on_the_way(faulty, faulty_complete, tmp_path, monkeypatch):
    prepare(make_config(tmp_path / "out", faulty, num_jobs=1, on_error="skip", plan=True))

    def full(path, values, indent=None):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(work, "write_json", full)
        with pytest.raises(InputError, match="No space left on device; free some space and run the same command again"):
            prepare(make_config(tmp_path / "out", faulty, num_jobs=1, on_error="skip", job=0))
    prepare_in_jobs(tmp_path / "out", faulty, 1, on_error="skip")
    assert contents(tmp_path / "out") == contents(faulty_complete)


def test_command_line(faulty, faulty_complete, tmp_path, capsys):
    arguments = command_line(tmp_path / "out", faulty, on_error="skip", num_jobs=2)
    assert run("prepare", [*arguments, "--job", "1"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}/out: there is no plan; run the same command with --plan")
    for step in (["--plan"], ["--job", "1"], ["--job", "0"], ["--merge"]):
        assert run("prepare", [*arguments, *step]) == 0
    assert contents(tmp_path / "out") == contents(faulty_complete)


@pytest.mark.parametrize("step", [{"plan": True}, {"job": 0}, {"merge": True}])
def test_a_plan_of_another_version_of_the_program(faulty, tmp_path, step):
    (tmp_path / "plan.json").write_text('{"format_version": 2, "num_shards": 2}')
    with pytest.raises(
        InputError, match=r"plan\.json is of format 2, and this version of the program goes on with format 3"
    ):
        prepare(make_config(tmp_path, faulty, num_jobs=2, **step))
    assert [path.name for path in tmp_path.iterdir() if path.name != ".lock"] == ["plan.json"]
