# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The command line: wrong input in one sentence, and the real program in processes that are many, stopped, or killed."""

import functools
import os
import re
import resource
import shutil
import signal
import subprocess
import sys

import pytest

from configuration_luna import LunaConfig
from finetuning import arguments, trainer
from finetuning.trainer import check_launch
from luna_tools.errors import InputError
from modeling_luna import LunaForQuestionAnswering
from tests.support.finetuning import (
    FAST,
    OTHERS,
    change_json,
    outcome,
    published,
    read_lines,
    read_results,
    run_main,
    run_task,
    to_options,
    write_checkpoint,
    write_other,
)
from tests.support.ranks import ROOT, launch, start

pytestmark = pytest.mark.xdist_group("finetuning")  # which share finished runs


# ---------------------------------------------------------------------------------------------------------------------
# Wrong input


def refusal(capsys, *argv):
    """The one sentence with which the program refuses."""
    capsys.readouterr()
    assert run_main(*argv) == 2
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in err, err
    sentence = lines[0].removeprefix("error: ")
    assert sentence.endswith(".") and not re.search(r"[.!?] [A-Z]", sentence), sentence
    assert re.search("[:;`] ?", sentence), sentence  # what to do, after what is wrong
    return sentence


# Command lines, in which {luna} is a pretrained checkpoint; SST2 and RACE stand for these tasks on their files.
WRONG = [
    ("sst3 --model_name_or_path {luna}", "sst3 is neither a task nor a .yaml or .json file of options, perhaps sst2 is"),
    ("--model_name_or_path m", "Name a task: one of cola"),
    ("SST2 --learning_rates 1", "'--learning_rates' is not an option, perhaps --learning_rate is meant; `luna fi"),
    ("SST2 --learning_rate fast", "`learning_rate` is 'fast', but must be of type float; .*--help"),
    ("SST2 --do_eval maybe", "`do_eval`.*got maybe"),
    ("SST2 --eval_strategy often", "`eval_strategy` is 'often', but must be one of 'no', 'steps', 'epoch'"),
    ("SST2 --eval_strategy no", "`load_best_model_at_end` is True, which needs evaluations: give an --eval_strategy other"),
    ("SST2 --lr_scheduler_kwargs {{bad", "The value '{bad' of --lr_scheduler_kwargs is not valid YAML"),
    ("sst2 --data_dir {sst2}", "Give a checkpoint with --model_name_or_path: a folder"),
    ("SST2 --model_name_or_path {base}/nowhere", "nowhere is neither a folder with a checkpoint nor a model"),
    ("SST2 --model_name_or_path {no_tokenizer}", "no_tokenizer has no tokenizer that can be loaded .*: save"),
    ("SST2 --model_name_or_path {more_entries}", "has 3.. entries, but the model 100: give the two that"),
    ("SST2 --model_name_or_path {fewer_entries}", "has 3.. entries, but the model 4096: give the two that belong together"),
    ("SST2 --model_name_or_path {other_padding}", "pads with the id 1, but the model with 3: give the two that belong"),
    ("SST2 --model_name_or_path {broken}", r"The weights of .*broken \(luna\) cannot be loaded for classification \("),
    ("mnli --data_dir {mnli} --model_name_or_path {tuned_sst2}", "for 2 labels, but mnli has 3 .*: start"),
    ("rte --data_dir {rte} --model_name_or_path {tuned_sst2}", "labels negative, positive in this order"),
    ("stsb --data_dir {stsb} --model_name_or_path {tuned_sst2}", "2 labels, but stsb has one value"),
    ("SST2 --model_name_or_path {tuned_stsb}", "fine-tuned for 1 label, but sst2 has 2 .*: start"),
    ("SST2 --model_name_or_path {tuned_race}", "holds a LunaForMultipleChoice, but sst2 is a task of"),
    ("SST2 --model_name_or_path {answers}", "holds a LunaForQuestionAnswering, but sst2 is a task of"),
    ("csqa --data_dir {csqa} --model_name_or_path {tuned_race}", "csqa have 5 options, but .* was fine-tuned on 4: give"),
    ("SST2 --model_name_or_path {roberta} --classifier_pooling cls", r"pooling` was given, but .*\(roberta\) has no"),
    ("SST2 --model_name_or_path {modernbert} --classifier_pooling packed_mean", r"which modernbert refuses \("),
    ("SST2 --classifier_pooling max", "`classifier_pooling` is 'max', but must be one of 'cls'"),
    ("SST2 --hidden_dropout_prob 1.5", "`hidden_dropout_prob` is 1.5: give at least 0 and below 1"),
    ("SST2 --learning_rate nan", "`learning_rate` is nan: give a finite number"),
    ("SST2 --adam_beta2 1", "`adam_beta2` is 1.0: give at least 0 and below 1"),
    ("SST2 --seed -1", "`seed` is -1: give a finite number of at least 0"),
    ("SST2 --per_device_eval_batch_size 0", "`per_device_eval_batch_size` is 0: give at least 1"),
    ("SST2 --num_train_epochs 0", "The training would have no steps: give --num_train_epochs"),
    ("SST2 --metric_for_best_model f1", "`metric_for_best_model` is eval_f1, which sst2 does not have"),
    ("SST2 --max_sequence_length 97", "`max_sequence_length` is 97, but .* at most 96 tokens: give"),
    ("SST2 --model_name_or_path {roberta} --max_sequence_length 97", "is 97, but .*roberta reads at most 96 tokens"),
    ("SST2 --total_train_batch_size 0", "`total_train_batch_size` is 0: give at least 1"),
    ("SST2 --total_train_batch_size 8 --gradient_accumulation_steps 2", "is 2, but it follows from `total_train_batch"),
    ("cola --model_name_or_path m --recipe official", "`recipe` is 'official', which has no values for cola: choose"),
    ("RACE --recipe best", "`recipe` is 'best', which has no values for race: choose table9 or official"),
    ("sst2 {base}/broken.yaml", "broken.yaml is not valid YAML or JSON at line 2: correct it"),
    ("sst2 {base}/list.yaml", "list.yaml holds a list: write `option: value` lines"),
    ("sst2 {base}/nowhere.yaml", r"nowhere.yaml cannot be read \(No such file or directory\): give"),
    ("sst2 rte --model_name_or_path {luna}", r"Several tasks \(sst2, rte\) need --compare: otherwise run them one by one"),
    ("SST2 --compare cls", "`compare` needs at least two heads or checkpoints, such as"),
    ("SST2 --compare cls packed --sweep", "Give either --compare or --sweep: each has runs"),
    ("SST2 --sweep_grid {base}/nowhere.yaml", "nowhere.yaml cannot be read"),
    ("SST2 --sweep_grid {base}/broken.yaml", "broken.yaml is not valid YAML or JSON at line 2: correct it"),
    ("SST2 --sweep_grid {base}/values.yaml", "`sweep_grid` .*values.yaml must hold `option:"),
    ("SST2 --sweep_grid {base}/unknown.yaml", "'--learning_rates' is not an option"),
    ("SST2 --sweep_grid {base}/seeds.yaml", "seeds.yaml holds seed: give the number of seeds with"),
    ("SST2 --sweep --num_seeds 0", "`num_seeds` is 0: give at least 1"),
    ("SST2 --output_dir {foreign}", "foreign holds files that are not a run of this program: choose"),
    ("SST2 --output_dir {tuned_sst2}", "finished-sst2/run holds a run with .* and this one has .*: choose"),
    ("SST2 --output_dir /proc/run", r"/proc/run cannot be used \(No such file or directory\): mend that"),
    ("SST2 --no_do_train", "has no weights for classifier.dense.bias, so it cannot predict sst2 without"),
    ("SST2 --output_dir {base}/rows.csv", "--output_dir is .*rows.csv, but .*rows.csv is a file: choose"),
    ("SST2 --output_dir {base}/rows.csv/run", "run, but .*rows.csv is a file: choose another"),
    ("csqa --data_dir {csqa} --model_name_or_path {gpt2}", r"gpt2 \(gpt2\) cannot be loaded for multiple ch"),
    ("csqa --data_dir {csqa} --model_name_or_path {gpt2} --random_weights", r"gpt2 \(gpt2\) cannot do multiple choice"),
    ("SST2 --model_name_or_path {t5}", r"t5 \(t5\) cannot do classification \(.*decoder_start_token_id.*\): give"),
    ("SST2 --model_name_or_path {vit}", r"vit \(vit\) reads no text: give a model that does"),
    ("SST2 --model_name_or_path {no_end}", "no_end has neither a pad token nor an end token: give it one of"),
    ("RACE", "`--max_option_length` is 128, which leaves no room .* 96 tokens .* or of the model: lower it, to 48"),
    ("SST2 --report_to paper", r"The Trainer cannot start \(paper is not supported, .*\): correct the opt"),
    ("SST2 --push_to_hub", r"The Trainer cannot start \(Cannot reach .*\): correct the options"),
    ("SST2 --lr_scheduler_kwargs.foo 0", "`lr_scheduler_type` linear cannot be used .*'foo'.*: correct it or --lr_sched"),
    ("SST2 --lr_scheduler_type slow", "`lr_scheduler_type` is 'slow', but must be one of 'linear', 'cosine'"),
    ("SST2 --trainer.optim_args foo", r"`optim` adamw_torch.* cannot be used \(.*\): correct --optim or"),
    ("SST2 --dataloader_drop_last", "'--dataloader_drop_last' is not an option"),
    ("SST2 --trainer.dataloader_drop_last true", "drop_last` is True, but the evaluation would lose rows: lea"),
    ("SST2 --trainer.label_names foo", "`trainer.label_names` is foo, but every task has the one column of labels"),
    ("SST2 --trainer.prediction_loss_only true", "`trainer.prediction_loss_only` is True, but the metrics need the scores"),
    ("SST2 --trainer.resume_from_checkpoint d", "`trainer.resume_from_checkpoint` is d, but the same command goes on from"),
    ("SST2 --trainer.hub_strategy checkpoint", "`trainer.hub_strategy` is checkpoint, but only a finished run is pushed"),
    ("SST2 --trainer.seed 3", "`trainer.seed` is 3, but seed is an option of its own: give --seed 3"),
    ("SST2 --trainer.torch_compiles true", "_compiles` is True, but TrainingArguments has no such field: corr"),
    ("SST2 --trainer.torch_compile maybe", "`torch_compile`: .*got maybe"),
    ("SST2 --trainer fast", "--trainer is 'fast', but must be `name: value` pairs, set by --trainer.NAME VALUE"),
    ("SST2 --train_file c/train.csv", r"`train_file` was given, but sst2 \(classification\) does not read"),
    ("SST2 --text_columns foo --kind regression", "`kind` was given, but sst2"),
    ("SST2 --max_option_length 9", "`max_option_length` was given, but sst2"),
    ("CUSTOM --kind regression --data_dir d", r"`data_dir` was given, but custom \(regression\) does"),
    ("CUSTOM --kind regression --class_names a b", "`class_names` was given, but custom"),
    ("CUSTOM --kind token_classification --classifier_pooling mean", r"pooling` .* custom \(token classification\)"),
    ("CUSTOM --kind token_classification --train_file t --compare cls packed", "`compare` has cls, but token cl"),
    ("CUSTOM --kind regression --validation_file a --validation_fraction 0.2", "fraction` was given beside `valida"),
    ("CUSTOM", "A custom task needs --kind: classification, regression"),
    ("CUSTOM --kind classification --test_file {base}/rows.csv --class_names a b", "custom has no train rows here: give"),
    ("SST2 --fp16", "`fp16` is True, but float16 is for accelerators: on a CPU, give --bf16 or neither"),
]  # fmt: skip
TASKS_ON_FILES = {"SST2": "sst2 --data_dir {sst2}", "RACE": "race --data_dir {race}", "CUSTOM": "custom"}


@pytest.mark.parametrize(("line", "sentence"), WRONG)
def test_wrong_input_is_refused_in_one_sentence(line, sentence, wrong, tmp_path, capsys):
    first, _, rest = line.partition(" ")
    if first in TASKS_ON_FILES:
        first = TASKS_ON_FILES[first] + " --model_name_or_path {luna}"
    argv = f"{first} {rest}".format(**wrong).split()
    first_option = next(i for i, token in enumerate([*argv, "--"]) if token.startswith("--"))
    options = to_options(**FAST | {"output_dir": tmp_path / "run"})
    assert re.search(sentence, refusal(capsys, *argv[:first_option], *options, *argv[first_option:]))


@pytest.fixture(scope="module")
def wrong(finished, checkpoints, base):
    """Name -> a folder or file that the cases above speak of."""
    places = {"base": base, **checkpoints} | {f"tuned_{name}": finished(name) for name in ("sst2", "race", "stsb")}
    places |= {name: published(name, "hub", base) for name in ("sst2", "race", "mnli", "rte", "stsb", "csqa")}
    changed = {"more_entries": {"vocab_size": 100}, "fewer_entries": {"vocab_size": 4096}}
    changed |= {"other_padding": {"pad_token_id": 3}}
    for name in ("no_tokenizer", "broken", "answers", "no_end", *changed):
        places[name] = shutil.copytree(checkpoints["luna"], base / name)
        change_json(base / name / "config.json", **changed.get(name, {}))
    places |= {name: write_other(base / name, name) for name in OTHERS}
    change_json(base / "no_end" / "tokenizer_config.json", pad_token=None, eos_token=None)
    for path in (base / "no_tokenizer").glob("tokenizer*"):
        path.unlink()
    (base / "broken" / "model.safetensors").write_bytes(b"nothing")
    LunaForQuestionAnswering(LunaConfig.from_pretrained(base / "answers")).save_pretrained(base / "answers")
    places["foreign"] = base / "foreign"
    places["foreign"].mkdir()
    texts = {"broken.yaml": "learning_rate: 1\n  seed: [\n", "list.yaml": "- 1\n", "values.yaml": "learning_rate: 1\n"}
    texts |= {"unknown.yaml": "learning_rates: [1]\n", "seeds.yaml": "seed: [1, 2]\n", "foreign/thesis.txt": ""}
    texts |= {"rows.csv": "text,label\nx,a\ny,b\n"}
    for name, text in texts.items():
        (base / name).write_text(text)
    return {name: str(place) for name, place in places.items()}


def test_processes_that_do_not_know_each_other_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="2 processes were launched, but the Trainer sees 1: on CPU, launch with torchrun"):
        check_launch(1)


def test_deepspeed_that_is_not_installed_is_named(values, monkeypatch, capsys):
    monkeypatch.setattr(arguments.importlib.util, "find_spec", lambda name: None)
    sentence = refusal(capsys, "sst2", *to_options(**values | {"deepspeed": "zero2.json"}))
    assert sentence.startswith("`deepspeed` is zero2.json, but the package deepspeed is not installed: run `pip install")


@pytest.mark.parametrize("limit", [20_000, 100_000, 250_000])  # bytes of a file: code, model, or optimizer do not fit
def test_a_full_disk_is_one_sentence(limit, values, tmp_path, capsys, monkeypatch):
    """A limit on the size of a file, which libraries meet as they meet the end of a disk."""

    def fill_up(*args, **kwargs):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
        return train(*args, **kwargs)

    limits, train = resource.getrlimit(resource.RLIMIT_FSIZE), trainer.FinetuningTrainer.train
    monkeypatch.setattr(trainer.FinetuningTrainer, "train", fill_up)
    values["model_name_or_path"] = write_checkpoint(tmp_path / "larger", hidden_size=64)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        sentence = refusal(capsys, "sst2", *to_options(**values))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert sentence.endswith("run cannot be written (the disk is full): free some space and give the same command again.")


# ---------------------------------------------------------------------------------------------------------------------
# What a run says


def test_a_run_tells_its_evaluations_its_results_and_no_local_path(values, tmp_path, capsys, caplog):
    assert run_main("sst2", *to_options(**values | {"license": "mit", "language": "de"})) == 0
    folder, out = tmp_path / "run", capsys.readouterr().out
    results = read_results(folder)
    assert out == "".join(f"{name}: {value}\n" for name, value in results.items()) + f"Saved in {folder}.\n"
    # `accelerate launch --num_processes 2` starts one process on CPU, and says nothing.
    assert caplog.messages[0] == "Processes: 1, on cpu."
    number = r"\d+(\.\d+)?"
    lines = [line for line in caplog.messages if line.startswith("Epoch ")]
    told = f"eval_loss {number}, eval_accuracy {number}, training loss {number}"
    for epoch, line in zip((1, 2), lines, strict=True):
        assert re.fullmatch(f"Epoch {epoch}, step {4 * epoch} of 8: {told}", line)
    for path in folder.rglob("*"):
        assert path.is_dir() or bytes(tmp_path.parent) not in path.read_bytes(), path
    card = (folder / "README.md").read_text()
    assert "license: mit" in card and "language: de" in card and "the checkpoint `luna`, fine-tuned" in card
    assert "base_model" not in card  # it is no name on the Hub


def test_long_phases_tell_how_far_they_are_and_a_cpu_trains_in_bfloat16(values, tmp_path, caplog, monkeypatch):
    """Each batch takes 10 seconds here."""
    clock = iter(range(0, 100_000, 10))
    monkeypatch.setattr(trainer.time, "monotonic", lambda: next(clock))
    values |= {"per_device_eval_batch_size": 4, "num_train_epochs": 1, "bf16": True, "use_cpu": None}
    assert run_main("sst2", *to_options(**values)) == 0
    assert any(re.fullmatch(r"Step 2 of 4, training loss \d\.\d+", line) for line in caplog.messages)
    assert "Evaluation: batch 3 of 4" in caplog.messages
    assert "| bf16 | True |" in (tmp_path / "run" / "README.md").read_text()


def test_a_training_that_diverged_is_told(values, tmp_path, caplog):
    """At this learning rate the loss goes up and stays finite."""
    assert run_main("sst2", *to_options(**values | {"learning_rate": 10, "num_train_epochs": 3})) == 0
    warning = read_results(tmp_path / "run")["warning"]
    pattern = r"The training diverged: its loss began at .* and ended at .*, where constant predictions have 0.69.*: lower "
    assert re.match(pattern, warning) and f"**{warning}**" in (tmp_path / "run" / "README.md").read_text()
    told = [line.removeprefix("warning: ") for line in caplog.messages if line.startswith("warning: ")]
    assert " ".join(told) == warning


def test_ctrl_c_while_libraries_load_is_no_traceback(values, tmp_path):
    (tmp_path / "datasets.py").write_text("raise KeyboardInterrupt\n")
    command = [sys.executable, "-m", "finetuning", "sst2", *to_options(**values)]
    done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": f"{tmp_path}:{ROOT}"}, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "Interrupted: give the same command again.\n")


# ---------------------------------------------------------------------------------------------------------------------
# Processes


def numbers(folder):
    """The results without remarks, in which rounding may show."""
    return {name: value for name, value in read_results(folder).items() if name != "warning"}


def test_two_processes_train_as_one(values, base, tmp_path):
    values |= {"data_dir": published("race", "hub", base), "max_option_length": 40, "hidden_dropout_prob": 0.0}
    values |= {"attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0, "num_train_epochs": 1}
    values |= {"total_train_batch_size": 8, "learning_rate": 0.1, "optim": "sgd", "use_cpu": None}
    run_task("race", **values | {"output_dir": tmp_path / "1"})
    said = launch("finetune", ["race", *to_options(**values | {"output_dir": tmp_path / "2"})], 2)
    one, two = (numbers(tmp_path / f"{processes}") for processes in (1, 2))
    assert two == pytest.approx(one, rel=1e-5)
    assert one["train_steps"] == 4
    assert said.stdout.count("Saved in") == 1 and said.stderr.count("New weights") == 1
    assert said.stderr.count("Processes: 2, on cpu.") == 1 and "find_unused_parameters" not in said.stderr


@pytest.mark.slow
def test_torchrun_launches_the_program(values, tmp_path):
    """Without --use_cpu: where there is no accelerator, the CPU is used."""
    options = to_options(**values | {"max_steps": 2, "use_cpu": None})
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    env = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [*launcher, "-m", "finetuning", "sst2", *options]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Saved in") == 1 and done.stderr.count("Processes: 2, on cpu.") == 1


@pytest.mark.slow
def test_two_processes_evaluate_every_row_exactly_once(values, base, tmp_path):
    values |= {"data_dir": published("mnli", "hub", base, rows=26), "per_device_eval_batch_size": 2}  # 13 in other splits
    run_task("mnli", **values)
    values |= {"model_name_or_path": tmp_path / "run", "do_train": False}
    for processes in (1, 2):
        launch("finetune", ["mnli", *to_options(**values | {"output_dir": tmp_path / f"{processes}"})], processes)
    assert numbers(tmp_path / "2") == pytest.approx(numbers(tmp_path / "1"), abs=1e-6)
    assert numbers(tmp_path / "2")["eval_validation_matched_samples"] == 13
    for split in ("validation_matched", "validation_mismatched", "test_matched", "test_mismatched", "diagnostic"):
        one, two = (read_lines(tmp_path / f"{processes}" / f"predictions_{split}.jsonl") for processes in (1, 2))
        assert len(one) == 13
        for expected, line in zip(one, two, strict=True):
            probabilities = expected.pop("probabilities")
            assert line.pop("probabilities") == pytest.approx(probabilities, abs=1e-6)
            assert line == expected
    assert (tmp_path / "1" / "submission.zip").read_bytes() == (tmp_path / "2" / "submission.zip").read_bytes()


def test_an_error_in_all_processes_is_told_once(values):
    done = launch("finetune", ["sst2", *to_options(**values | {"learning_rate": 1e6})], 2, check=False)
    assert done.returncode == 2
    assert done.stderr.count("error: The model's scores are NaN or infinite") == 1


def signal_at(step, number, rank="0"):
    """Let one rank get a signal in a step of its training, once."""
    training_step = trainer.FinetuningTrainer.training_step

    def stepped(self, *args, **kwargs):
        if self.state.global_step == step and os.environ.get("RANK", "0") == rank:
            os.kill(os.getpid(), number)
        return training_step(self, *args, **kwargs)

    trainer.FinetuningTrainer.training_step = stepped


interrupt = functools.partial(signal_at, 5, signal.SIGINT)
kill = functools.partial(signal_at, 6, signal.SIGKILL)
terminate_one_rank = functools.partial(signal_at, 5, signal.SIGTERM, rank="1")


@pytest.mark.parametrize(
    ("processes", "before", "status"),
    [
        pytest.param(1, interrupt, 130, marks=pytest.mark.slow),
        (2, terminate_one_rank, 143),
        pytest.param(1, kill, -signal.SIGKILL, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_goes_on_to_the_same_result(processes, before, status, values, tmp_path):
    values |= {"num_train_epochs": 2, "total_train_batch_size": 8, "save_total_limit": 2}
    done = start("finetune", ["sst2", *to_options(**values)], processes, before=before).wait(ends_others=False)
    assert done.returncode == status, done.stderr
    told = "Interrupted: a checkpoint is saved; give the same command again to go on.\n"
    assert done.stderr.count(told) == (before is not kill)
    assert not (tmp_path / "run" / "all_results.json").exists()
    done = launch("finetune", ["sst2", *to_options(**values)], processes)
    assert "Going on from" in done.stderr
    launch("finetune", ["sst2", *to_options(**values | {"output_dir": tmp_path / "whole"})], processes)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


@pytest.mark.parametrize("name", ["finetuning", "luna_tools.command_line"])
def test_the_program_starts_by_both_names(name):
    argv = ["finetune", "--help"] if name == "luna_tools.command_line" else ["--help"]
    done = subprocess.run([sys.executable, "-m", name, *argv], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stdout.startswith("usage: luna finetune TASK")
