# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Corpora of a few hundred docstrings, and what is made of them once."""

import gzip
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from luna_tools.tokenizer import wrap_tokenizer
from pretraining.prepare.run import prepare
from pretraining.prepare.tokenizer import train_tokenizer
from tests.support.preparing import MODULES, docstrings, make_config, write_rows


@pytest.fixture(scope="session")
def texts():
    modules = (*MODULES, "asyncio", "os", "typing")
    distinct = dict.fromkeys(" ".join(text.split()) for module in modules for text in docstrings(module))
    return list(distinct)[:400]


@pytest.fixture(scope="session")
def corpus(texts, tmp_path_factory):
    """Three files of three formats, 400 documents in all."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "a.txt").write_text("\n\n".join(texts[:150]), encoding="utf-8")
    write_rows(folder / "b.jsonl", texts[150:300])
    (folder / "c.md.gz").write_bytes(gzip.compress("\n\n".join(texts[300:]).encode(), mtime=0))
    return folder


@pytest.fixture(scope="session")
def faulty(corpus, texts, tmp_path_factory):
    """All formats, one document that is long, some that are there twice, and two faults."""
    folder = shutil.copytree(corpus, tmp_path_factory.mktemp("faulty") / "corpus")
    with open(folder / "b.jsonl", "a") as file:
        file.write("\n[]\n")
    (folder / "d.txt").write_text(" ".join(texts[250:300]))
    (folder / "e.txt").write_bytes("\n\n".join(texts[:50]).encode() + b"\n\n\xff\n\nlost")
    pq.write_table(pa.table({"text": texts[200:300]}), folder / "f.parquet", row_group_size=13)
    return folder


@pytest.fixture(scope="session")
def complete(corpus, tmp_path_factory):
    """The folder and the manifest of an uninterrupted run."""
    output = tmp_path_factory.mktemp("complete") / "out"
    return output, prepare(make_config(output, corpus))


@pytest.fixture(scope="session")
def faulty_complete(faulty, tmp_path_factory):
    output = tmp_path_factory.mktemp("complete") / "out"
    prepare(make_config(output, faulty, on_error="skip"))
    return output


@pytest.fixture(scope="session")
def tokenizer(texts, tmp_path_factory):
    """The folder of a tokenizer of 400 entries."""
    folder = tmp_path_factory.mktemp("tokenizer")
    wrap_tokenizer(train_tokenizer(texts, 400)).save_pretrained(folder)
    return folder
