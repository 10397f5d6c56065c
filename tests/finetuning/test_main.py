# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The command line: wrong input in one sentence, and the real program in processes that are many, stopped, or killed."""

import contextlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from configuration_luna import LunaConfig
from finetuning import __main__ as program
from luna_tools.errors import InputError
from modeling_luna import LunaForQuestionAnswering
from tests.support.finetuning import (
    FAST,
    OTHERS,
    ROOT,
    change_json,
    command,
    environment,
    launch,
    outcome,
    published,
    read_lines,
    read_results,
    run_main,
    run_task,
    to_options,
    write_other,
)
from tests.support.published_files import write_published

# ---------------------------------------------------------------------------------------------------------------------
# Wrong input


@pytest.fixture(scope="module")
def tuned(checkpoint, sst2, base):
    """Kind of head -> a fine-tuned folder: of two labels (sst2), four options (race), and one value (stsb)."""
    folders = {}
    for name in ("sst2", "race", "stsb"):
        folders[name] = base / f"tuned-{name}"
        values = {"data_dir": published(name, "hub", base), "output_dir": folders[name], "num_train_epochs": 1}
        run_task(name, model_name_or_path=checkpoint, **values)
    return folders


def refusal(capsys, *argv):
    """The one sentence with which the program refuses."""
    capsys.readouterr()
    assert run_main(*argv) == 2
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in err, err
    sentence = lines[0].removeprefix("error: ")
    assert sentence.endswith(".") and not re.search(r"[.!?] [A-Z]", sentence), sentence
    assert ": " in sentence or "`" in sentence, sentence  # what to do, after what is wrong
    return sentence


SST2, RACE = ("sst2", "--data_dir", "{sst2}"), ("race", "--data_dir", "{race}")
MODEL = ("--model_name_or_path", "{luna}")


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["sst3", *MODEL], "sst3 is neither a task nor a .yaml or .json file of options: the tasks are cola, sst2,"),
        (["--model_name_or_path", "m"], "Name a task: one of cola"),
        ([*SST2, *MODEL, "--learning_rates", "1"], "--learning_rates is not an option: `python -m finetuning --help` lists"),
        ([*SST2, *MODEL, "--learning_rate", "fast"], "--learning_rate.*invalid float value: 'fast'; .*--help"),
        ([*SST2, *MODEL, "--do_eval", "maybe"], "--do_eval.*got maybe"),
        ([*SST2, *MODEL, "--eval_strategy", "often"], "often is not a valid IntervalStrategy"),
        ([*SST2, *MODEL, "--eval_strategy", "no"], "load_best_model_at_end requires"),
        ([*SST2, *MODEL, "--lr_scheduler_kwargs", "{{bad"], "correct the options"),
        ([*SST2], "Give a checkpoint with --model_name_or_path: a folder"),
        ([*SST2, "--model_name_or_path", "{base}/nowhere"], "nowhere is neither a folder with a checkpoint nor a model"),
        ([*SST2, "--model_name_or_path", "{no_tokenizer}"], "no_tokenizer has no tokenizer that can be loaded: save"),
        ([*SST2, "--model_name_or_path", "{other_tokenizer}"], "has 3.. entries, but the model 100: give the two that"),
        (
            [*SST2, "--model_name_or_path", "{broken}"],
            r"The weights of .*broken \(luna\) cannot be loaded for classification \(",
        ),
        (["mnli", "--data_dir", "{mnli}", "--model_name_or_path", "{tuned_sst2}"], "for 2 labels, but mnli has 3 .*: start"),
        (
            ["rte", "--data_dir", "{rte}", "--model_name_or_path", "{tuned_sst2}"],
            "labels negative, positive in this order",
        ),
        (
            ["stsb", "--data_dir", "{stsb}", "--model_name_or_path", "{tuned_sst2}"],
            "2 labels, but stsb has one value",
        ),
        ([*SST2, "--model_name_or_path", "{tuned_stsb}"], "fine-tuned for 1 label, but sst2 has 2 .*: start"),
        (
            [*SST2, "--model_name_or_path", "{tuned_race}"],
            "holds a LunaForMultipleChoice, but sst2 is a task of",
        ),
        ([*SST2, "--model_name_or_path", "{answers}"], "holds a LunaForQuestionAnswering, but sst2 is a task of"),
        (
            ["csqa", "--data_dir", "{csqa}", "--model_name_or_path", "{tuned_race}"],
            "rows of csqa have 5 options, but .* was fine-tuned on 4: give it rows with 4 options, or start from",
        ),
        (
            [*SST2, "--model_name_or_path", "{roberta}", "--classifier_pooling", "cls"],
            r"`classifier_pooling` was given, but the configuration of .*roberta \(roberta\) has no such field",
        ),
        (
            [*SST2, "--model_name_or_path", "{modernbert}", "--classifier_pooling", "packed_mean"],
            "`classifier_pooling` is 'packed_mean', which modernbert refuses: .*'cls', 'mean'",
        ),
        ([*SST2, *MODEL, "--classifier_pooling", "max"], "--classifier_pooling.*invalid choice: 'max'"),
        ([*SST2, *MODEL, "--hidden_dropout_prob", "1.5"], "`hidden_dropout_prob` is 1.5: give at least 0 and below 1"),
        ([*SST2, *MODEL, "--learning_rate", "nan"], "`learning_rate` is nan: give a finite number"),
        ([*SST2, *MODEL, "--adam_beta2", "1"], "`adam_beta2` is 1.0: give at least 0 and below 1"),
        ([*SST2, *MODEL, "--seed", "-1"], "`seed` is -1: give a finite number of at least 0"),
        ([*SST2, *MODEL, "--per_device_eval_batch_size", "0"], "`per_device_eval_batch_size` is 0: give at least 1"),
        ([*SST2, *MODEL, "--num_train_epochs", "0"], "The training would have no steps: give --num_train_epochs"),
        (
            [*SST2, *MODEL, "--metric_for_best_model", "f1"],
            "`metric_for_best_model` is eval_f1, which sst2 does not have",
        ),
        ([*SST2, *MODEL, "--max_sequence_length", "97"], "`max_sequence_length` is 97, but .* at most 96 tokens: give"),
        (
            [*SST2, "--model_name_or_path", "{roberta}", "--max_sequence_length", "97"],
            "`max_sequence_length` is 97, but .*roberta reads at most 96 tokens",
        ),
        ([*SST2, *MODEL, "--total_train_batch_size", "0"], "`total_train_batch_size` is 0: give at least 1"),
        (
            [*SST2, *MODEL, "--total_train_batch_size", "8", "--gradient_accumulation_steps", "2"],
            "`gradient_accumulation_steps` is 2, but it follows from `total_train_batch_size` 8: leave it out",
        ),
        (
            ["cola", *MODEL, "--recipe", "official"],
            "`recipe` is 'official', which has no values for cola: choose table9",
        ),
        (
            [*RACE, *MODEL, "--recipe", "best"],
            "`recipe` is 'best', which has no values for race: choose table9 or official",
        ),
        (["sst2", "{base}/broken.yaml"], "broken.yaml is not valid YAML or JSON at line 2: correct it"),
        (["sst2", "{base}/list.yaml"], "list.yaml must hold `option: value` lines"),
        (["sst2", "{base}/nowhere.yaml"], "nowhere.yaml cannot be read: No such file or directory"),
        (["sst2", "rte", *MODEL], r"Several tasks \(sst2, rte\) need --compare: otherwise run them one by one"),
        (
            [*SST2, *MODEL, "--compare", "cls"],
            "`compare` needs at least two heads or checkpoints, such as",
        ),
        ([*SST2, *MODEL, "--compare", "cls", "packed", "--sweep"], "Give either --compare or --sweep: each has runs"),
        (
            ["custom", *MODEL, "--kind", "token_classification", "--train_file", "t.csv", "--compare", "cls", "packed"],
            "`compare` has cls, but token classification reads every token: compare checkpoints",
        ),
        ([*SST2, *MODEL, "--sweep_grid", "{base}/nowhere.yaml"], "`sweep_grid` .*nowhere.yaml cannot be read as YAML: give"),
        ([*SST2, *MODEL, "--sweep_grid", "{base}/broken.yaml"], "`sweep_grid` .*broken.yaml cannot be read as YAML: give"),
        (
            [*SST2, *MODEL, "--sweep_grid", "{base}/list.yaml"],
            "`sweep_grid` .*list.yaml must hold `option:",
        ),
        ([*SST2, *MODEL, "--sweep_grid", "{base}/unknown.yaml"], "--learning_rates is not an option: "),
        (
            [*SST2, *MODEL, "--sweep_grid", "{base}/seeds.yaml"],
            "seeds.yaml holds seed: give the number of seeds with",
        ),
        ([*SST2, *MODEL, "--sweep", "--num_seeds", "0"], "`num_seeds` is 0: give at least 1"),
        (
            [*SST2, *MODEL, "--output_dir", "{foreign}"],
            "foreign holds files that are not a run of this program: choose",
        ),
        (
            [*SST2, *MODEL, "--output_dir", "{tuned_sst2}"],
            "tuned-sst2 holds a run with .* and this one has .*: choose",
        ),
        ([*SST2, *MODEL, "--output_dir", "/proc/run"], "/proc/run cannot be used: No such file or directory"),
        (
            [*SST2, *MODEL, "--no_do_train"],
            "has no weights for classifier.dense.bias, so it cannot predict sst2 without",
        ),
        ([*SST2, *MODEL, "--output_dir", "{base}/rows.csv"], "--output_dir is .*rows.csv, but .*rows.csv is a file: choose"),
        ([*SST2, *MODEL, "--output_dir", "{base}/rows.csv/run"], "run, but .*rows.csv is a file: choose another"),
        (
            ["csqa", "--data_dir", "{csqa}", "--model_name_or_path", "{gpt2}"],
            r"gpt2 \(gpt2\) cannot be loaded for multiple ch",
        ),
        (
            ["csqa", "--data_dir", "{csqa}", "--model_name_or_path", "{gpt2}", "--random_weights"],
            r"gpt2 \(gpt2\) cannot do multiple choice \(Unrecognized configuration .*\): give another",
        ),
        (
            [*SST2, "--model_name_or_path", "{t5}"],
            r"t5 \(t5\) cannot do classification \(.*decoder_start_token_id.*\): give",
        ),
        ([*SST2, "--model_name_or_path", "{vit}"], r"vit \(vit\) reads no text: give a model that does"),
        ([*SST2, "--model_name_or_path", "{no_end}"], "no_end has neither a pad token nor an end token: give it one of"),
        (
            [*RACE, *MODEL],
            "`--max_option_length` is 128, which leaves no room .* 96 tokens .* or of the model: lower it, to 48",
        ),
        (
            [*SST2, *MODEL, "--report_to", "paper"],
            r"The Trainer cannot start \(paper is not supported, .*\): correct the opt",
        ),
        ([*SST2, *MODEL, "--push_to_hub"], r"The Trainer cannot start \(Cannot reach .*\): correct the options"),
        (
            [*SST2, *MODEL, "--lr_scheduler_kwargs", '{{"foo": 0}}'],
            "`lr_scheduler_type` linear cannot be used .*'foo'.*: correct it or --lr_scheduler_kwargs",
        ),
        ([*SST2, *MODEL, "--optim_args", "foo"], r"`optim` adamw_torch.* cannot be used \(.*\): correct --optim or"),
        (
            [*SST2, *MODEL, "--dataloader_drop_last"],
            "`dataloader_drop_last` is True, but the evaluation would lose rows: leave",
        ),
        (
            [*SST2, *MODEL, "--label_names", "foo"],
            r"`label_names` is \['foo'\], but every task has the one column of labels",
        ),
        (
            [*SST2, *MODEL, "--prediction_loss_only", "true"],
            "`prediction_loss_only` is True, but the metrics need the scores",
        ),
        (
            [*SST2, *MODEL, "--batch_eval_metrics", "true"],
            "`batch_eval_metrics` is True, but the metrics need all rows at once",
        ),
        (
            [*SST2, *MODEL, "--resume_from_checkpoint", "nodir/checkpoint-5"],
            "`resume_from_checkpoint` is nodir/checkpoint-5, but the same command goes on from the newest checkpoint",
        ),
        (
            [*SST2, *MODEL, "--train_file", "c/train.csv"],
            r"`train_file` was given, but sst2 \(classification\) does not read",
        ),
        ([*SST2, *MODEL, "--text_columns", "foo", "--kind", "regression"], "`kind` was given, but sst2"),
        ([*SST2, *MODEL, "--max_option_length", "9"], "`max_option_length` was given, but sst2"),
        (
            ["custom", *MODEL, "--kind", "regression", "--data_dir", "d"],
            r"`data_dir` was given, but custom \(regression\) does",
        ),
        (["custom", *MODEL, "--kind", "regression", "--class_names", "a", "b"], "`class_names` was given, but custom"),
        (
            ["custom", *MODEL, "--kind", "token_classification", "--classifier_pooling", "packed_mean"],
            r"`classifier_pooling` was given, but custom \(token classification\) does not read it: leave it out",
        ),
        (
            ["custom", *MODEL, "--kind", "regression", "--validation_file", "a.csv", "--validation_fraction", "0.2"],
            "`validation_fraction` was given beside `validation_file`: leave",
        ),
        ([*SST2, *MODEL, "--num_seeds", "3"], "`num_seeds` was given, but only --sweep and --compare read it: leave"),
        (["custom", *MODEL], "A custom task needs --kind: classification, regression"),
        (
            ["custom", *MODEL, "--kind", "classification", "--test_file", "{base}/rows.csv", "--class_names", "a", "b"],
            "custom has no train rows here: give --train_file, or --no_do_train to use the checkpoint as it is",
        ),
        (
            [*SST2, *MODEL, "--learning_rate", "1e6"],
            "scores are NaN or infinite in 16 of 16 rows, so the training has diverged: lower learning_rate",
        ),
    ],
)
def test_wrong_input_is_refused_in_one_sentence(argv, sentence, wrong, tmp_path, capsys):
    argv = [token.format(**wrong) for token in argv]
    first_option = next((i for i, token in enumerate(argv) if token.startswith("--")), len(argv))
    options = to_options(**FAST | {"output_dir": tmp_path / "run"})
    argv = [*argv[:first_option], *options, *argv[first_option:]]
    assert re.search(sentence, refusal(capsys, *argv))


@pytest.fixture(scope="module")
def wrong(tuned, checkpoints, base):
    """Name -> a folder or file that the cases above speak of."""
    places = {"base": base, **checkpoints} | {f"tuned_{name}": folder for name, folder in tuned.items()}
    places |= {name: published(name, "hub", base) for name in ("sst2", "race", "mnli", "rte", "stsb", "csqa")}
    for name in ("no_tokenizer", "other_tokenizer", "broken", "answers", "no_end"):
        places[name] = base / name
        shutil.copytree(checkpoints["luna"], base / name)
    places |= {name: write_other(base / name, name) for name in OTHERS}
    change_json(base / "no_end" / "tokenizer_config.json", pad_token=None, eos_token=None)
    for path in (base / "no_tokenizer").glob("tokenizer*"):
        path.unlink()
    change_json(base / "other_tokenizer" / "config.json", vocab_size=100)
    (base / "broken" / "model.safetensors").write_bytes(b"nothing")
    LunaForQuestionAnswering(LunaConfig.from_pretrained(base / "answers")).save_pretrained(base / "answers")
    places["foreign"] = base / "foreign"
    places["foreign"].mkdir()
    (places["foreign"] / "thesis.txt").touch()
    (base / "broken.yaml").write_text("learning_rate: 1\n  seed: [\n")
    (base / "list.yaml").write_text("- 1\n")
    (base / "unknown.yaml").write_text("learning_rates: [1]\n")
    (base / "seeds.yaml").write_text("seed: [1, 2]\n")
    (base / "rows.csv").write_text("text,label\nx,a\ny,b\n")
    return {name: str(place) for name, place in places.items()}


def test_processes_that_do_not_know_each_other_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="2 processes were launched, but the Trainer sees 1: on CPU, launch with"):
        program.check_launch(1)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError("Cannot reach the Hub: offline.\nMore."), "Cannot reach the Hub: offline."),
        (OSError(28, "No space left on device", "/run/model"), "/run/model cannot be used: No space left on device."),
    ],
)
def test_what_the_system_refuses_is_told_in_its_words(error, sentence, values, monkeypatch, capsys):
    def run(arguments):
        raise error

    monkeypatch.setattr(program, "run", run)
    assert run_main("sst2", *to_options(**values)) == 2
    assert capsys.readouterr().err == f"error: {sentence}\n"


@pytest.mark.parametrize(
    ("stub", "tokens"), [("datasets", ["-m", "finetuning"]), ("sklearn", [f"{ROOT}/scripts/docstring_families.py"])]
)
def test_ctrl_c_while_libraries_load_is_no_traceback(stub, tokens, tmp_path):
    (tmp_path / f"{stub}.py").write_text("raise KeyboardInterrupt\n")
    env = environment() | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, *tokens], capture_output=True, text=True, env=env, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_the_number_of_processes_is_told(values, caplog):
    """`accelerate launch --num_processes 2` starts one process on CPU, and says nothing."""
    assert run_main("sst2", *to_options(**values | {"max_steps": 1})) == 0
    assert caplog.messages[0] == "Processes: 1, on cpu."


def test_help_names_the_tasks_and_the_options(capsys):
    assert run_main("--help") == run_main() == 0
    out = capsys.readouterr().out
    assert "csqa, custom" in out and "--classifier_pooling" in out and "packed_attention" in out and "--num_seeds" in out


def test_a_run_tells_its_results_and_where_they_are(checkpoint, sst2, tmp_path, capsys):
    values = FAST | {"model_name_or_path": checkpoint, "data_dir": sst2, "output_dir": tmp_path / "run"}
    assert run_main("sst2", *to_options(**values)) == 0
    out = capsys.readouterr().out
    for name, value in read_results(tmp_path / "run").items():
        assert f"{name}: {value}\n" in out
    assert out.endswith(f"Saved in {tmp_path / 'run'}.\n")


# ---------------------------------------------------------------------------------------------------------------------
# Processes


@pytest.fixture
def values(checkpoint, sst2, tmp_path):
    return FAST | {"model_name_or_path": checkpoint, "data_dir": sst2, "output_dir": tmp_path / "run"}


def kill_family(process):
    """End a launch with all its processes: torchrun's workers are sessions of their own, which outlive it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        process.wait()
        psutil.wait_procs(family, timeout=30)


@contextlib.contextmanager
def started(*tokens, processes=1):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command(*tokens, processes=processes), env=environment(), cwd=ROOT, **pipes)
    try:
        yield process
    finally:
        kill_family(process)


def run_processes(*tokens, processes):
    with started(*tokens, processes=processes) as process:
        out, err = process.communicate(timeout=150)
        assert process.returncode == 0, err
    return out, err


@pytest.mark.slow
def test_two_processes_evaluate_every_row_exactly_once(checkpoint, values, base, tmp_path):
    write_published("mnli", tmp_path / "mnli", "hub", rows=26)  # 13 rows in each other split
    run_task("mnli", **values | {"data_dir": tmp_path / "mnli"})
    change = {"model_name_or_path": tmp_path / "run", "data_dir": tmp_path / "mnli", "do_train": False}
    change |= {"per_device_eval_batch_size": 2}
    for processes in (1, 2):
        options = to_options(**values | change | {"output_dir": tmp_path / f"{processes}"})
        run_processes("mnli", *options, processes=processes)
    assert read_results(tmp_path / "2") == pytest.approx(read_results(tmp_path / "1"), abs=1e-6)
    assert read_results(tmp_path / "2")["eval_validation_matched_samples"] == 13
    for split in ("validation_matched", "validation_mismatched", "test_matched", "test_mismatched", "diagnostic"):
        one, two = (read_lines(tmp_path / f"{processes}" / f"predictions_{split}.jsonl") for processes in (1, 2))
        assert len(one) == 13
        for expected, line in zip(one, two, strict=True):
            probabilities = expected.pop("probabilities")
            assert line.pop("probabilities") == pytest.approx(probabilities, abs=1e-6)
            assert line == expected
    assert (tmp_path / "1" / "submission.zip").read_bytes() == (tmp_path / "2" / "submission.zip").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("task_name", ["stsb", "race"])
def test_two_processes_train_as_one(task_name, values, base, tmp_path):
    values |= {
        "data_dir": published(task_name, "hub", base),
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    values |= {"total_train_batch_size": 8, "learning_rate": 0.1, "optim": "sgd"}
    values |= {"max_option_length": 40} if task_name == "race" else {}
    said = {}
    for processes in (1, 2):
        options = to_options(**values | {"output_dir": tmp_path / f"{processes}"})
        said[processes] = run_processes(task_name, *options, processes=processes)
    one, two = (read_results(tmp_path / f"{processes}") for processes in (1, 2))
    assert two == pytest.approx(one, rel=1e-5)
    assert one["train_steps"] == 8
    assert said[2][0].count("Saved in") == 1 and said[2][1].count("New weights") == 1
    assert said[2][1].count("Processes: 2, on cpu.") == 1 and "find_unused_parameters" not in said[2][1]


@pytest.mark.slow
def test_two_processes_stop_at_a_signal_and_go_on_to_the_same_result(values, tmp_path):
    values |= {"num_train_epochs": 60, "total_train_batch_size": 8, "save_total_limit": 2}
    with started("sst2", *to_options(**values), processes=2) as process:
        wait_for(process, tmp_path / "run", epochs=2)
        process.send_signal(signal.SIGTERM)  # torchrun sends it on to its workers
        _, err = process.communicate(timeout=60)
        assert process.returncode != 0
        assert err.count("Interrupted: a checkpoint is saved; give the same command again to go on.") == 1
    run_processes("sst2", *to_options(**values), processes=2)
    run_processes("sst2", *to_options(**values | {"output_dir": tmp_path / "whole"}), processes=2)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


@pytest.mark.slow
def test_an_error_in_all_processes_is_told_once(values, tmp_path):
    with started("sst2", *to_options(**values | {"learning_rate": 1e6}), processes=2) as process:
        _, err = process.communicate(timeout=100)
    assert process.returncode != 0
    assert err.count("error: The model's scores are NaN or infinite") == 1


@pytest.mark.slow
@pytest.mark.skipif(torch.accelerator.is_available(), reason="with an accelerator, the processes know each other")
def test_a_launch_whose_processes_are_strangers_is_refused(values, tmp_path):
    with started("sst2", *to_options(**values | {"use_cpu": None}), processes=2) as process:
        _, err = process.communicate(timeout=100)
    assert process.returncode != 0 and not (tmp_path / "run").exists()
    assert err.count("error: 2 processes were launched, but the Trainer sees 1: on CPU, launch with torchrun and give") == 1


# ---------------------------------------------------------------------------------------------------------------------
# Stopped and killed


def wait_for(process, folder, epochs):
    """Until the run has saved a checkpoint of so many epochs (4 steps each) or a later one."""
    while not any(int(path.name.split("-")[1]) >= 4 * epochs for path in Path(folder).glob("checkpoint-*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


@pytest.fixture(scope="module")
def whole(checkpoint, sst2, base):
    """The result of the command that the tests below disturb."""
    run_task("sst2", model_name_or_path=checkpoint, data_dir=sst2, output_dir=base / "whole", num_train_epochs=40)
    return outcome(base / "whole")


@pytest.mark.slow
def test_ctrl_c_saves_and_the_same_command_goes_on(values, whole, tmp_path):
    values |= {"num_train_epochs": 40}
    with started("sst2", *to_options(**values)) as process:
        wait_for(process, tmp_path / "run", epochs=2)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130, err
        assert err.endswith("Interrupted: a checkpoint is saved; give the same command again to go on.\n")
    assert not (tmp_path / "run" / "all_results.json").exists()
    done = launch("sst2", *to_options(**values))
    assert "Going on from" in done.stderr
    assert outcome(tmp_path / "run") == whole


@pytest.mark.slow
def test_kill_9_at_random_times_changes_nothing(values, whole, tmp_path):
    values |= {"num_train_epochs": 40}
    chance = random.Random(0)
    for epochs in (1, 12):
        with started("sst2", *to_options(**values)) as process:
            wait_for(process, tmp_path / "run", epochs)
            time.sleep(chance.uniform(0, 0.3))
            assert process.poll() is None
            process.kill()
    launch("sst2", *to_options(**values))
    assert outcome(tmp_path / "run") == whole


@pytest.mark.slow
def test_a_comparison_from_the_command_line(values, tmp_path):
    done = launch("sst2", *to_options(**values | {"compare": ["cls", "packed"], "num_seeds": 2}))
    table = (tmp_path / "run" / "compare.md").read_text()
    assert table in done.stdout
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:4]] == ["Luna-4, [CLS]", "Luna-4, P"]
    assert done.stderr.count("Run 4 of 4") == 1
    scores = [read_results(path.parent)["eval_accuracy"] for path in (tmp_path / "run").glob("*/all_results.json")]
    assert len(scores) == 4 and np.isfinite(scores).all()
