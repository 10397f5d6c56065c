# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Recipes against the numbers of the paper and the official repository, which options win, and quick answers."""

import json
import subprocess
import sys

import pytest
import yaml

from finetuning.arguments import RECIPES, SMALL_RECIPE, TASK_NAMES, parse, split_command_line
from finetuning.run import main
from finetuning.tasks import TASKS, custom_task
from luna_tools.errors import InputError

MODEL = ["--model_name_or_path", "somewhere"]
GLUE = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")
RACE = ("race", "race-middle", "race-high")
CUSTOM = ["--kind", "classification", "--train_file", "a.csv"]


def parsed(task_name, *options):
    return parse(task_name, [*MODEL, *(CUSTOM if task_name == "custom" else []), *options])


# Learning rate, batch, weight decay, updates or epochs, schedule, warm-up; dropouts of hidden states, attention,
# activations; patience of the early stopping, which the paper names for GLUE alone.
TABLE_9 = {
    (*GLUE, "custom"): (1e-5, 32, 0.1, 20, "linear", 0.06, 0.1, 0.1, 0.1, 5),
    RACE: (1e-5, 64, 0.01, 20, "constant_with_warmup", 150, 0.1, 0.1, 0.0, None),
    ("csqa",): (1e-5, 64, 0.01, 20, "polynomial", 150, 0.2, 0.0, 0.1, None),
}
OFFICIAL = {
    ("qnli",): (1e-5, 32, 0.1, 65520, "polynomial", 2000, 0.1, 0.1, 0.1, None),
    ("qqp",): (1e-5, 32, 0.1, 228_000, "polynomial", 6850, 0.1, 0.1, 0.1, None),
    ("sst2",): (1e-5, 32, 0.1, 21050, "polynomial", 1263, 0.1, 0.1, 0.0, None),
    RACE: (1e-5, 16, 0.01, 20, "constant_with_warmup", 160, 0.1, 0.1, 0.0, None),
    ("csqa",): (1e-5, 32, 0.01, 8000, "polynomial", 150, 0.2, 0.0, 0.1, None),
}
NUMBERS_AS_TEXT = ("learning_rate", "adam_epsilon")  # 1e-5 is no number for YAML 1.1
RECIPE_ROWS = [
    (recipe, name, row)
    for recipe, table in {"table9": TABLE_9, "official": OFFICIAL}.items()
    for names, row in table.items()
    for name in names
]


@pytest.mark.parametrize(("recipe", "task_name", "row"), RECIPE_ROWS)
def test_a_recipe_has_the_published_numbers(recipe, task_name, row):
    arguments = parsed(task_name, "--recipe", recipe)
    run, model, training = arguments.run, arguments.model, arguments.training
    length = training.max_steps if training.max_steps > 0 else training.num_train_epochs
    schedule = (training.lr_scheduler_type, training.warmup_steps)
    dropouts = (model.hidden_dropout_prob, model.attention_probs_dropout_prob, model.activation_dropout)
    found = (training.learning_rate, run.total_train_batch_size, training.weight_decay, length, *schedule, *dropouts)
    assert (*found, run.early_stopping_patience) == row
    assert (training.adam_beta1, training.adam_beta2, training.adam_epsilon, training.max_grad_norm) == (0.9, 0.98, 1e-6, 0)
    assert training.lr_scheduler_kwargs == ({"lr_end": 0.0, "power": 1.0} if "polynomial" in row else {})
    # The official heads drop nothing, their rows are shuffled, and question with option is cut at 128 tokens, all at 512.
    assert model.classifier_dropout == 0.0 and not run.group_by_length
    assert (arguments.data.max_option_length, arguments.data.max_sequence_length) == (128, 512)


def test_every_recipe_is_some_task_s_and_every_value_of_it_is_read():
    tasks = TASKS | {"custom": custom_task("classification")}
    named = {file for task in tasks.values() for file in task.recipes} | {SMALL_RECIPE}
    assert named == {str(path.relative_to(RECIPES)) for path in RECIPES.rglob("*.yaml")}
    for name, task in tasks.items():
        for file in (*task.recipes, SMALL_RECIPE):
            arguments = parsed(name, "--recipe", file.split("/")[0], "--total_train_batch_size", "32")
            values = vars(arguments.model) | vars(arguments.data) | vars(arguments.run) | vars(arguments.training)
            for option, value in yaml.safe_load((RECIPES / file).read_text()).items():
                if "batch_size" not in option:
                    assert values[option] == (float(value) if option in NUMBERS_AS_TEXT else value), option


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_the_command_line_wins_over_the_file_and_the_file_over_the_recipe(tmp_path, suffix):
    values = {"learning_rate": 3e-4, "weight_decay": 0.3, "do_predict": False, "class_names": ["a", "b"], "data_dir": None}
    path = tmp_path / f"options{suffix}"
    path.write_text(yaml.safe_dump(values) if suffix == ".yaml" else json.dumps(values))
    tasks, options = split_command_line(["custom", str(path), "--learning_rate", "7e-4", "--trainer.tf32", "false"])
    arguments = parse(*tasks, [*options, *MODEL, *CUSTOM])
    assert (arguments.training.learning_rate, arguments.training.weight_decay) == (7e-4, 0.3)
    assert arguments.run.do_predict is False and arguments.training.trainer == {"tf32": False}
    assert arguments.data.class_names == ["a", "b"] and arguments.data.data_dir is None
    assert arguments.training.adam_beta2 == 0.98 and arguments.training.output_dir == "runs/finetuning/custom"
    assert {"learning_rate", "weight_decay", "do_predict"} <= arguments.given and "adam_beta2" not in arguments.given
    assert {"do_train", "group_by_length"} <= parsed("sst2", "--no_do_train", "--group-by-length=False").given
    arguments = parsed("sst2", "--recipe", "none")
    assert arguments.training.learning_rate == 5e-5 and arguments.model.hidden_dropout_prob is None
    assert split_command_line(["cola", "rte", "--seed", "3"]) == (["cola", "rte"], ["--seed", "3"])
    assert split_command_line(["custom", "--train_file", "a.json"]) == (["custom"], ["--train_file", "a.json"])


@pytest.mark.parametrize(
    ("total", "per_device", "processes", "size", "steps"),
    [(32, 32, 1, 32, 1), (32, 8, 2, 8, 2), (24, 16, 1, 12, 2), (7, 4, 1, 1, 7), (4, 16, 2, 2, 1), (64, 4, 1, 4, 16)],
)
def test_the_total_batch_is_divided_into_the_largest_parts(total, per_device, processes, size, steps, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    sizes = {"--total_train_batch_size": total, "--per_device_train_batch_size": per_device}
    training = parsed("sst2", "--recipe", "none", *(str(token) for pair in sizes.items() for token in pair)).training
    assert (training.per_device_train_batch_size, training.gradient_accumulation_steps) == (size, steps)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(InputError, match="`total_train_batch_size` is 32, which 3 processes cannot share equally"):
        parsed("sst2")


def test_options_that_one_of_the_tasks_reads_are_for_all():
    options = [*MODEL, "--kind", "regression", "--train_file", "a.csv", "--data_dir", "glue", "--max_option_length", "9"]
    options, tasks = [*options, "--compare", "a", "b"], ("sst2", "custom", "race")
    assert [parse(name, options, tasks).task.name for name in tasks] == list(tasks)
    with pytest.raises(InputError, match="`max_option_length` was given, but sst2 .* or custom .* does not read it"):
        parse("sst2", options, tasks[:2])


# ---------------------------------------------------------------------------------------------------------------------
# Answers before torch is imported

LIGHT = """
import sys
from finetuning.run import main
for argv in {cases!r}:
    try:
        main(argv)
    except ValueError as error:
        print("refused:", error)
    assert "torch" not in sys.modules, argv
"""


def test_help_and_wrong_arguments_are_answered_without_torch():
    """Importing it, and the Trainer, takes five to ten seconds."""
    cases = [["sst3"], ["sst2", "--lerning_rate", "1"], ["sst2", "--learning_rate", "fast"], ["sst2", "--do_eval", "maybe"]]
    cases += [["sst2"], ["sst2", *MODEL, "--learning_rate", "nan"], ["cola", *MODEL, "--recipe", "official"]]
    program = LIGHT.format(cases=[[], ["--help"], *cases])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("refused:") == len(cases)
    assert "sst3 is neither a task nor a .yaml or .json file of options, perhaps sst2 is meant" in done.stdout


def test_the_usage_is_short_and_the_help_is_of_this_program_alone(capsys):
    texts = []
    for argv in ([], ["--help"]):
        main(argv)
        texts.append(capsys.readouterr().out)
    usage, help_text = texts
    assert len(usage.splitlines()) <= 15 and max(map(len, usage.splitlines())) <= 125
    for text in (*TASK_NAMES, "table9", "official", "small"):
        assert text in usage and text in help_text
    assert "--classifier_pooling" in help_text and "--trainer.NAME" in help_text and "--torch_compile" not in help_text
    assert len(help_text.splitlines()) < 300
