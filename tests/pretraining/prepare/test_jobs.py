# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Jobs and their merge make what one job makes, byte for byte, and that is what a slow way makes; and what is refused."""

import gzip
import io
import json
import shutil
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luna_tools.command_line import run
from luna_tools.errors import InputError
from pretraining.prepare import packing, readers, slices, streams
from pretraining.prepare.documents import is_taken, split_of
from pretraining.prepare.readers import Fault, read_input
from pretraining.prepare.run import prepare
from pretraining.prepare.sources import find_inputs
from pretraining.prepare.tokenizer import load_for_text
from tests.support.preparing import command_line, contents, make_config, prepare_in_jobs, steps, write_rows

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


def _expected(config):
    """What the rows are cut from and what is counted, by the slow way: whole documents in lists."""
    encoder = load_for_text(Path(config.tokenizer))
    streams, seen = {"train": [], "validation": []}, set()
    documents, text_bytes, counts = Counter(), Counter(), Counter()
    for repeat in range(2):
        for source, weight in zip(config.sources, config.weights or [1] * len(config.sources), strict=True):
            texts = []
            for one in find_inputs(source)[0]:
                for item in read_input(one, "text", config.document_separator):
                    if isinstance(item, Fault):
                        counts["skipped"] += repeat == 0
                    elif item.first:
                        texts.append([item.text])
                    else:
                        texts[-1].append(item.text)
            for first, *others in texts:
                text, split = "".join([first, *others]), split_of(first, config.seed, config.validation_fraction)
                taken = repeat < weight and is_taken(first, config.seed, weight - repeat)
                if not text:
                    counts["empty_documents"] += repeat == 0
                elif not taken or (repeat and split == "validation"):
                    counts["left_out_documents"] += repeat == 0
                elif config.deduplicate and (repeat, text.strip()) in seen:
                    counts["duplicate_documents"] += 1
                else:
                    seen.add((repeat, text.strip()))
                    documents[source] += 1
                    text_bytes[split] += len(text.encode())
                    stream = streams[split]
                    stream += [2] * bool(stream) + encoder.encode(text, add_special_tokens=False).ids
    return streams, documents, text_bytes, counts


OPTIONS = {
    "document_separator": st.sampled_from(["line", "blank_line", "file"]),
    "weights": st.none() | st.tuples(*[st.sampled_from([0.5, 1.0, 1.5, 2.0])] * 2).map(list),
    "deduplicate": st.booleans(),
    "on_error": st.sampled_from(["skip", "skip", "fail"]),
    "shard_size_mb": st.sampled_from([1e-4, 1e-3]),
}
ANY = {
    "files": st.lists(FILES, min_size=1, max_size=5),
    "num_jobs": st.sampled_from([1, 2, 5]),
    "slice_chars": st.sampled_from([2**20, 16]),
    "batch": st.sampled_from([2**20, 60]),
    "options": st.fixed_dictionaries(OPTIONS),
}


def check_any_corpus(tmp_path_factory, tokenizer, files, num_jobs, slice_chars, batch, options):
    folder = tmp_path_factory.mktemp("any")
    write_rows(folder / "corpus" / "text.jsonl", ["a module", "the module"])
    write_rows(folder / "more.jsonl", [" " * (i % 2) + f"a module {i % 40}" + " \n" * (i % 3) for i in range(60)])
    for number, (extension, data) in enumerate(files):
        (folder / "corpus" / f"{number}{extension}").write_bytes(data)
    source = [folder / "corpus", folder / "more.jsonl"]
    options |= {"tokenizer": str(tokenizer), "sequence_length": 5}
    limits = {(readers, "READ_CHARS"): slice_chars, (slices, "SLICE_CHARS"): slice_chars, (slices, "CUT_WINDOW_CHARS"): 8}
    limits |= {(packing, "BATCH_BYTES"): batch, (streams, "CHUNK"): batch // 10, (streams, "HASHES_PER_PASS"): batch // 3}
    with pytest.MonkeyPatch.context() as patch:
        for (module, name), value in limits.items():
            patch.setattr(module, name, value)
        alone = _try(lambda: prepare(make_config(folder / "alone", source, **options)))
        merged = _try(lambda: prepare_in_jobs(folder / "merged", source, num_jobs, **options))
        tokens, documents, text_bytes, counts = _expected(make_config(folder / "alone", source, **options))
    if isinstance(alone, str):
        assert isinstance(merged, str)
        assert options["on_error"] == "fail" or merged == alone
        return
    assert contents(folder / "merged") == contents(folder / "alone")
    for split, stream in tokens.items():
        rows = np.array(datasets.load_from_disk(str(folder / "alone" / split))["input_ids"])
        assert (rows[:, 0] == 0).all() and (rows[:, -1] == 2).all()
        assert rows[:, 1:-1].ravel().tolist() == stream[: len(stream) // 3 * 3]
        assert alone["splits"][split]["tokens"] == len(stream)
        assert alone["splits"][split]["text_bytes"] == text_bytes[split]
    assert Counter({source["source"]: source["documents"] for source in alone["sources"]}) == documents
    assert alone["skipped"]["count"] == counts.pop("skipped", 0)
    names = ("empty_documents", "left_out_documents", "duplicate_documents")
    assert {name: alone[name] for name in names if alone.get(name)} == +counts


@pytest.mark.parametrize("examples", [12, pytest.param(40, marks=pytest.mark.slow)])
def test_any_corpus(tmp_path_factory, tokenizer, examples):
    limits = settings(max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    limits(given(**ANY)(check_any_corpus))(tmp_path_factory, tokenizer)


def test_sources_of_all_kinds(faulty, tokenizer, tmp_path):
    """Whose parts alone cannot tell that the file has no text, and the files of a Hub dataset."""
    folder = shutil.copytree(faulty, tmp_path / "corpus")
    (folder / "blank.txt").write_text("\n \n" * 20_000)
    for file in range(5):
        texts = [None if i == 7 * file else f"document {file} {i}" for i in range(20)]
        write_rows(tmp_path / "dataset" / f"train-{file}.jsonl", texts)
    source = [folder, f"hub:{tmp_path}/dataset"]
    options = {"tokenizer": str(tokenizer), "on_error": "skip", "weights": [1, 1.5]}
    alone = prepare(make_config(tmp_path / "alone", source, **options))
    prepare_in_jobs(tmp_path / "merged", source, 5, **options)
    assert contents(tmp_path / "merged") == contents(tmp_path / "alone")
    skipped = [f"{of['where']} {of['reason']}" for of in alone["skipped"]["first"]]
    assert f"{folder}/blank.txt holds no text" in skipped
    assert any(fault.startswith(f"{source[1]}, file 2 of 5:8 ") for fault in skipped)


def test_a_source_of_duplicates_alone_is_no_error(tokenizer, tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text("the same documents\n\nand no others")
    options = {"tokenizer": str(tokenizer), "sequence_length": 3, "validation_fraction": 0, "deduplicate": True}
    manifest = prepare(make_config(tmp_path / "out", [tmp_path / "a.txt", tmp_path / "b.txt"], **options))
    assert [source["documents"] for source in manifest["sources"]] == [2, 0]
    assert manifest["settings"]["deduplicate"] is True


def test_the_steps_of_two_jobs(faulty, faulty_complete, tmp_path, capsys):
    """What is complete is left alone, and the raw text is not needed to merge."""
    output, source = tmp_path / "out", shutil.copytree(faulty, tmp_path / "corpus")
    arguments = command_line(output, source, on_error="skip", num_jobs=2)
    assert run("prepare", [*arguments, "--job", "1"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {output}: there is no plan; run the same command with --plan")
    for step in ("--plan", "--job 1", "--job 0"):
        assert run("prepare", [*arguments, *step.split()]) == 0
    before = contents(output)
    for step, sentence in (
        ("--plan", "is planned already, with these settings."),
        ("--job 1", "jobs/00001 is complete already."),
    ):
        assert run("prepare", [*arguments, *step.split()]) == 0
        assert sentence in capsys.readouterr().out
    assert contents(output) == before
    shutil.rmtree(source)
    for step in ("--merge", "--merge", "--plan", "--job 0"):
        assert run("prepare", [*arguments, *step.split()]) == 0
    assert capsys.readouterr().out.count("is complete already, with these settings: nothing to do.") == 3
    made, expected = contents(output), contents(faulty_complete)
    manifests = [json.loads(files.pop("manifest.json")) for files in (made, expected)]  # they name the sources
    assert made == expected
    assert [len(manifest["splits"]["train"]["shards"]) > 3 for manifest in manifests] == [True, True]
    assert [manifest["skipped"]["count"] for manifest in manifests] == [2, 2]


# ---------------------------------------------------------------------------------------------------------------------
# What is refused


@pytest.fixture(scope="session")
def planned(faulty, tmp_path_factory):
    """A plan with two complete jobs, to copy."""
    output = tmp_path_factory.mktemp("planned") / "out"
    for step in steps(2)[:-1]:
        prepare(make_config(output, faulty, on_error="skip", **step))
    return output


@pytest.fixture
def output(planned, tmp_path):
    return shutil.copytree(planned, tmp_path / "out")


def _do(output, source, **step):
    """Do one step of the two jobs."""
    return prepare(make_config(output, source, **({"num_jobs": 2, "on_error": "skip"} | step)))


def _edit(*change):
    """A function that changes a value of a JSON file: its keys one below the other, and the new one."""

    def edit(path):
        document = below = json.loads(path.read_text())
        *keys, last, value = change
        for key in keys:
            below = below[key]
        below[last] = value
        path.write_text(json.dumps(document))

    return edit


def _flip_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _put_first_job(path):
    shutil.copytree(path.with_name("00000"), path, dirs_exist_ok=True)


ZERO, ONE, TOKENIZER = "jobs/00000", "jobs/00001", "tokenizer/tokenizer.json"


@pytest.mark.parametrize(
    ("pattern", "harm", "message"),
    [
        (ONE, shutil.rmtree, "out: 1 of 2 jobs are not complete; run --job 1 first."),
        ("jobs/*/result.json", Path.unlink, "out: 2 of 2 jobs are not complete; run --job 0,1 first."),
        (f"{ONE}/train.tokens", _flip_bit, f"{ONE}/train.tokens is damaged: delete .*/{ONE} and run --job 1 again."),
        (f"{ZERO}/train.tokens", Path.unlink, f"{ZERO}/train.tokens is damaged"),
        (f"{ZERO}/result.json", _edit("counts", 0, "left_out", 9), f"{ZERO}/result.json is damaged"),
        ("plan.json", _edit("inputs", 0, 3, "later"), f"{ZERO} was made with another input: delete it and run --job 0"),
        (f"{ONE}/result.json", _edit("made_from", "settings", "seed", 9), f"{ONE} was made with another settings: delete"),
        (ONE, _put_first_job, f"{ONE} was made with another number: delete it and run --job 1 again."),
        (TOKENIZER, _flip_bit, f"{TOKENIZER} is not as the interrupted run left it"),
        ("plan.json", Path.unlink, "out: there is no plan; run the same command with --plan in place of --job or --merge."),
        (
            "plan.json",
            _edit("tokenizer_sha256", None),
            "the plan has no tokenizer yet; wait for the run with --plan, or run",
        ),
        ("plan.json", _edit("tokenizers_version", "0.1"), "out was made with tokenizers 0.1, and this is .*: use the old"),
    ],
)
def test_merge_refuses(output, faulty, pattern, harm, message):
    for path in sorted(output.glob(pattern)):
        harm(path)
    with pytest.raises(InputError, match=message):
        _do(output, faulty, merge=True)
    assert not (output / "manifest.json").exists()


OTHER = ": use the old value, another folder, or delete this one"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *((step | {"seed": 1}, f"out was made with --seed 0, and this is 1{OTHER}") for step in steps(2)),
        *((step | {"num_jobs": 3}, f"out was made with --num_jobs 2, and this is 3{OTHER}") for step in steps(2)),
        ({"merge": True, "on_error": "fail"}, r"b\.jsonl:151 is not a JSON object but list: correct it, or pass --on_error"),
    ],
)
def test_other_settings(output, faulty, options, message):
    with pytest.raises(InputError, match=message):
        _do(output, faulty, **options)
