# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Settings that cannot be are told in one sentence, and what does not change a dataset is none of its settings."""

import pytest

from luna_tools.errors import InputError
from pretraining.prepare.config import PrepareConfig


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"sources": []}, "--sources: give at least one."),
        ({"sources": ["a", "a"]}, "--sources a: it is given twice, give it once."),
        ({"weights": [1, 0.5]}, "--weights 1 0.5: give 1, one for each of --sources, or none."),
        ({"weights": [0]}, "--weights 0: use numbers above 0."),
        ({"weights": [float("nan")]}, "--weights nan: use numbers above 0."),
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
        ({"plan": True}, "--plan: add --num_jobs."),
        ({"job": 0}, "--job 0: add --num_jobs."),
        ({"merge": True}, "--merge: add --num_jobs."),
        ({"num_jobs": 0}, "--num_jobs 0: use 1 or more."),
        ({"num_jobs": 2}, "--num_jobs 2: add one of --plan, --job and --merge."),
        ({"num_jobs": 2, "job": 0, "merge": True}, "--num_jobs 2: add one of --plan, --job and --merge."),
        ({"num_jobs": 2, "job": 2}, "--job 2: use a number from 0 to 1."),
        ({"num_jobs": 2, "job": -1}, "--job -1: use a number from 0 to 1."),
    ],
)
def test_options_that_cannot_be(option, message):
    with pytest.raises(InputError, match=f"^{message}$"):
        PrepareConfig(**({"output_dir": "out", "sources": ["a"]} | option))


def test_weights_of_1_are_none():
    same = PrepareConfig("here", ["a", "b"], weights=[1, 1], num_proc=1, num_jobs=2, plan=True).settings()
    assert same == PrepareConfig("there", ["a", "b"], num_proc=2).settings()
    assert not {"weights", "deduplicate", "output_dir", "num_proc"} & set(same)
