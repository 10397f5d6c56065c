# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The rows of Tables 4 and 5: what the paper says of each, their parameters, and that each makes steps."""

import json
from itertools import product

import pytest

from finetuning.translation.arguments import parse, read_recipes
from finetuning.translation.plan import VOCABULARIES, parameters_of, plan
from luna_tools.command_line import run
from tests.support.translation import FAST, LUNA, MARIAN, run_translation

ROWS = read_recipes()["rows"]
NAMES = [
    "transformer-base-adam",
    "transformer-base-apollo",
    *(f"luna-{l}-{omega}{tied}" for tied, omega, l in product(("-tied", ""), ("elu", "softplus"), (16, 32))),
    "luna-16-softplus-tied-noncontextual",
]


def options_of(row, *words):
    return parse([row, *words])[1]


def test_the_rows_are_those_of_the_tables():
    assert sorted(ROWS) == sorted(NAMES)
    for name in NAMES[2:]:
        model = options_of(name).model
        assert (model["projection_length"], model["causal_activation"]) == (int(name.split("-")[1]), name.split("-")[2])
        assert model["tie_key_value"] == ("tied" in name)
        assert model.get("contextual_projection", True) == ("noncontextual" not in name)


@pytest.mark.parametrize("name", NAMES)
def test_a_row_is_trained_as_section_4_2_says(name):
    """Appendix A.2, number by number."""
    options = options_of(name)
    is_adam = name.endswith("adam")
    assert (options.max_steps, options.max_tokens, options.batches_per_step) == (500_000, 8192, 8)
    assert (options.label_smoothing_factor, options.dropout, options.num_beams) == (0.1, 0.1, 5)
    assert (options.optimizer, options.learning_rate) == (("adam", 5e-4) if is_adam else ("apollo", 0.1))
    assert options.warmup_steps == (4000 if is_adam else 1000)
    assert options.weight_decay == (1e-4 if is_adam else 1e-8)
    if is_adam:
        assert (options.adam_beta1, options.adam_beta2, options.lr_scheduler_type) == (0.9, 0.98, "inverse_sqrt")
    else:
        assert (options.apollo_beta, options.apollo_epsilon, options.apollo_initial_lr) == (0.9, 1e-4, 1e-5)
        assert options.apollo_milestones == [300_000, 450_000]
    code = options_of(name, "code")
    clipping = [(of.max_grad_norm, of.clip_each_parameter) for of in (options, code)]
    assert clipping == [(1.0, 0.0), (0.0, 0.1)]
    assert (options.num_averaged_checkpoints, code.num_averaged_checkpoints) == (10, 5)
    dropouts = [(of.attention_dropout, of.activation_dropout) for of in (options, code)]
    assert dropouts == [(0.0, 0.0), (0.1, 0.1)] and options_of(name, "paper") == options


@pytest.mark.parametrize("name", [name for name in NAMES if "parameters" in ROWS[name]["paper"]])
def test_parameters_are_the_papers_with_40_500_entries(name):
    """The tables round to 0.1 million; with l = 32 they print 0.1 more than 16 vectors of 512 and 40,500 entries give."""
    printed = ROWS[name]["paper"]["parameters"]
    small, large = (parameters_of(options_of(name), size) for size in VOCABULARIES)
    assert large - small == 3500 * 512
    assert abs(large / 1e6 - printed) < (0.11 if "luna-32" in name else 0.05)
    assert printed - small / 1e6 > 1.7


def test_the_plan_has_a_line_for_each_row_and_tells_why_they_differ():
    lines = plan(None, parse([])[1]).splitlines()
    assert [line.split()[1] for line in lines if line.startswith(("| luna", "| trans"))] == list(ROWS)
    assert "| luna-16-softplus-tied | 4 and 5 | 67.8 | 69.6 | 69.6 | 40,456 | 25.9 | 27.3 |" in lines
    assert "| transformer-base-apollo | 4 | 63.1 | 64.9 | 64.9 | 40,550 |  | 28.3 |" in lines
    assert any("about 40,500" in line for line in lines)


def test_the_plan_of_one_row_tells_its_options_and_trains_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("finetune", ["translation", "luna-32-elu", "code", "--plan"]) == 0
    out = capsys.readouterr().out
    assert out.count("| luna-") == 1 and "clip_each_parameter: 0.1" in out and not list(tmp_path.iterdir())


# A tiny model in place of the row's: what makes the row stays.
TINY = {"luna": {name: value for name, value in LUNA.items() if name != "projection_length"}, "marian": MARIAN}
SHORT = FAST | {"max_steps": 2, "learning_rate": None, "num_beams": None, "num_averaged_checkpoints": None}


@pytest.mark.parametrize(
    "words",
    [*((name,) for name in NAMES), ("transformer-base-adam", "code"), ("luna-16-softplus-tied", "code")],
    ids="-".join,
)
def test_each_row_makes_steps_and_translates(words, dataset, tmp_path):
    tiny = TINY["marian" if words[0].startswith("transformer") else "luna"]
    values = SHORT | {"dataset": str(dataset), "output_dir": str(tmp_path / "run"), "model": tiny}
    assert run_translation(*words, **values) == 0
    results = json.loads((tmp_path / "run" / "all_results.json").read_text())
    assert results["train_steps"] == 2 and 0 < results["test_loss"] < 20
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    row = ROWS[words[0]].get("model", {})
    assert {name: config[name] for name in row} == row
    assert config["attention_probs_dropout_prob" if row else "attention_dropout"] == (0.1 if "code" in words else 0.0)
    assert len((tmp_path / "run" / "translations_test.txt").read_text().splitlines()) == 7


def test_each_variant_of_a_row_has_a_folder_of_its_own():
    folders = [parse(["luna-16-softplus-tied", *words])[1].output_dir for words in ([], ["code"], ["--output_dir", "x"])]
    assert folders == ["runs/translation/luna-16-softplus-tied", "runs/translation/luna-16-softplus-tied-code", "x"]
