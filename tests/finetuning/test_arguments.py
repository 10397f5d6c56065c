# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Recipes against the numbers of the paper and the official repository, and the order in which options win."""

import itertools
import json

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from finetuning.arguments import RECIPES, FinetuningArguments, describe, file_to_options, parse, split_command_line
from finetuning.tasks import TASKS, custom_task
from luna_tools.errors import InputError

MODEL = ["--model_name_or_path", "somewhere"]
GLUE = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")
RACE = ("race", "race-middle", "race-high")
DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "activation_dropout")


def parsed(task_name, *options):
    kind = ["--kind", "classification"] if task_name == "custom" else []
    return parse(task_name, [*MODEL, *kind, *options])


def values_of(arguments):
    """The numbers that Table 9 gives, by its rows; then Adam's, and the clipping."""
    training = arguments.training
    return {
        "learning rate": training.learning_rate,
        "batch": arguments.run.total_train_batch_size,
        "decay": training.weight_decay,
        "length": training.max_steps if training.max_steps > 0 else training.num_train_epochs,
        "schedule": str(training.lr_scheduler_type.value),
        "warm-up": training.warmup_steps,
        "dropouts": tuple(getattr(arguments.model, name) for name in DROPOUTS),
        "adam": (training.adam_beta1, training.adam_beta2, training.adam_epsilon),
        "clipping": training.max_grad_norm,
    }


COMMON = {"learning rate": 1e-5, "adam": (0.9, 0.98, 1e-6), "clipping": 0}
TABLE_9 = {
    GLUE: {"batch": 32, "decay": 0.1, "length": 20, "schedule": "linear", "warm-up": 0.06, "dropouts": (0.1, 0.1, 0.1)},
    RACE: {
        "batch": 64,
        "decay": 0.01,
        "length": 20,
        "schedule": "constant_with_warmup",
        "warm-up": 150,
        "dropouts": (0.1, 0.1, 0.0),
    },
    ("csqa",): {
        "batch": 64,
        "decay": 0.01,
        "length": 20,
        "schedule": "polynomial",
        "warm-up": 150,
        "dropouts": (0.2, 0.0, 0.1),
    },
}
OFFICIAL = {  # batch, weight decay, updates or epochs, schedule, warm-up, activation dropout
    "qnli": (32, 0.1, 65520, "polynomial", 2000, 0.1),
    "qqp": (32, 0.1, 228000, "polynomial", 6850, 0.1),
    "sst2": (32, 0.1, 21050, "polynomial", 1263, 0.0),
    "race": (64, 0.01, 20, "constant", 0, 0.0),
    "csqa": (64, 0.01, 8000, "polynomial", 150, 0.1),
}


@pytest.mark.parametrize(("task_name", "expected"), [(name, row) for names, row in TABLE_9.items() for name in names])
def test_the_default_recipe_is_table_9(task_name, expected):
    assert values_of(parsed(task_name)) == COMMON | expected
    assert parsed(task_name).run.early_stopping_patience == 5


@pytest.mark.parametrize("task_name", OFFICIAL)
def test_the_official_recipe(task_name):
    found = values_of(parsed(task_name, "--recipe", "official"))
    names = ("batch", "decay", "length", "schedule", "warm-up")
    assert (*(found[name] for name in names), found["dropouts"][2]) == OFFICIAL[task_name]
    assert {name: found[name] for name in COMMON} == COMMON
    assert found["dropouts"][:2] == ((0.2, 0.0) if task_name == "csqa" else (0.1, 0.1))


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.yaml")), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_recipe_parses_for_every_task_it_serves(path):
    file = f"{path.parent.name}/{path.name}"
    served = [name for name, task in (TASKS | {"custom": custom_task("regression")}).items() if file in task.recipes]
    assert served
    for name in served:
        arguments = parsed(name, "--recipe", path.parent.name)
        for option, value in yaml.safe_load(path.read_text()).items():
            parts = (arguments.model, arguments.run, arguments.training)
            (found,) = [getattr(part, option) for part in parts if hasattr(part, option)]
            if option not in ("lr_scheduler_type", "lr_scheduler_kwargs"):
                assert found == float(value), option
        decay_to_zero = arguments.training.lr_scheduler_type != "polynomial"
        assert decay_to_zero or arguments.training.lr_scheduler_kwargs == {"lr_end": 0.0, "power": 1.0}


def test_the_user_s_own_data_is_trained_as_glue():
    assert values_of(parsed("custom")) == COMMON | TABLE_9[GLUE]


def test_no_recipe_leaves_the_trainer_s_defaults():
    arguments = parsed("sst2", "--recipe", "none")
    assert arguments.training.learning_rate == 5e-5 and arguments.model.hidden_dropout_prob is None


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_the_command_line_wins_over_the_file_and_the_file_over_the_recipe(tmp_path, suffix):
    values = {"learning_rate": 3e-4, "weight_decay": 0.3, "do_predict": False, "class_names": ["a", "b"], "data_dir": None}
    path = tmp_path / f"options{suffix}"
    path.write_text(yaml.safe_dump(values) if suffix == ".yaml" else json.dumps(values))
    tasks, options = split_command_line(["custom", str(path), "--learning_rate", "7e-4"])
    arguments = parse(*tasks, [*options, *MODEL, "--kind", "classification"])
    assert arguments.training.learning_rate == 7e-4
    assert arguments.training.weight_decay == 0.3
    assert arguments.training.do_predict is False
    assert arguments.data.class_names == ["a", "b"] and arguments.data.data_dir is None
    assert arguments.training.adam_beta2 == 0.98
    assert {"learning_rate", "weight_decay", "do_predict"} <= arguments.given and "adam_beta2" not in arguments.given


def test_every_recipe_file_is_some_task_s():
    named = {file for task in (*TASKS.values(), custom_task("regression")) for file in task.recipes}
    assert named == {str(path.relative_to(RECIPES)) for path in RECIPES.rglob("*.yaml")}


def test_a_negated_option_counts_as_given():
    assert {"do_train", "group_by_length"} <= parsed("sst2", "--no_do_train", "--group-by-length=False").given


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["learning_rate", "seed", "do_eval", "run_name", "text_columns"]),
        st.one_of(st.none(), st.floats(0, 1), st.integers(0, 9), st.booleans(), st.lists(st.text("ab", min_size=1))),
    )
)
def test_a_file_of_options_is_spelt_as_the_command_line(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("options") / "o.yaml"
    path.write_text(yaml.safe_dump(values))
    expected = []
    for name, value in values.items():
        if value is not None:
            expected += [f"--{name}", *([str(v) for v in value] if isinstance(value, list) else [str(value)])]
    assert sorted(file_to_options(path)) == sorted(expected)


@pytest.mark.parametrize(
    ("total", "per_device", "size", "steps"),
    [(32, 32, 32, 1), (32, 8, 8, 4), (24, 16, 12, 2), (7, 4, 1, 7), (4, 16, 4, 1), (64, 4, 4, 16)],
)
def test_the_total_batch_is_divided_into_the_largest_parts(total, per_device, size, steps):
    options = ["--total_train_batch_size", str(total), "--per_device_train_batch_size", str(per_device)]
    training = parsed("sst2", *options).training
    assert (training.per_device_train_batch_size, training.gradient_accumulation_steps) == (size, steps)


def test_runs_are_the_same_however_the_batch_is_divided():
    whole, divided = (describe(parsed("sst2", "--per_device_train_batch_size", size)) for size in ("32", "8"))
    assert whole == divided == json.loads(json.dumps(whole))
    assert describe(parsed("sst2", "--total_train_batch_size", "16")) != whole
    assert describe(parsed("sst2", "--seed", "1")) != whole


def test_the_digests_are_those_of_what_is_read(tmp_path):
    for name in ("train.csv", "test.csv", "model.safetensors", "config.json", "README.md"):
        (tmp_path / name).write_text(name)
    files = [f"--{split}_file={tmp_path / split}.csv" for split in ("train", "test")]
    seen = []
    for name, text in ((None, ""), ("train.csv", "new"), ("model.safetensors", "new"), ("README.md", "new")):
        if name:
            (tmp_path / name).write_text(text)
        seen.append(describe(parsed("custom", "--model_name_or_path", str(tmp_path), *files))["digests"])
    assert [set(digests) for digests in seen] == [{"train", "test", "model"}] * 4
    changed = [{name for name in old if old[name] != new[name]} for old, new in itertools.pairwise(seen)]
    assert changed == [{"train"}, {"model"}, set()]
    with pytest.raises(InputError, match=r"nowhere\.csv cannot be read \(No such file or directory\): give"):
        describe(parsed("custom", "--train_file", str(tmp_path / "nowhere.csv")))


@pytest.mark.parametrize("do_eval", [True, False])
def test_the_user_decides_on_the_last_evaluation(do_eval):
    assert parsed("sst2", "--do_eval", str(do_eval)).training.do_eval is do_eval


def test_options_that_one_of_the_tasks_reads_are_for_all():
    options = [*MODEL, "--kind", "regression", "--train_file", "a.csv", "--data_dir", "glue", "--max_option_length", "9"]
    tasks = ("sst2", "custom", "race")
    assert [parse(name, options, tasks).task.name for name in tasks] == list(tasks)
    with pytest.raises(InputError, match="`max_option_length` was given, but sst2 .* or custom .* does not read it"):
        parse("sst2", options, tasks[:2])


def test_an_indivisible_batch_is_refused(monkeypatch):
    monkeypatch.setattr(FinetuningArguments, "world_size", 3)
    with pytest.raises(InputError, match="`total_train_batch_size` is 32, which 3 processes cannot share equally"):
        parsed("sst2")


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["cola"], (["cola"], [])),
        (["cola", "rte", "--seed", "3"], (["cola", "rte"], ["--seed", "3"])),
        (["custom", "--train_file", "a.json"], (["custom"], ["--train_file", "a.json"])),
    ],
)
def test_tasks_come_before_the_options(argv, expected):
    assert split_command_line(argv) == expected
