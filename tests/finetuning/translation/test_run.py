# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Training runs: exact when stopped and on two processes, the mean of the last checkpoints, and wrong input."""

import json
import re
import shutil
import signal
from functools import partial

import pytest
import torch
from datasets import load_from_disk
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, MarianConfig, MarianMTModel

from finetuning.translation import trainer
from finetuning.translation.bleu import scores
from finetuning.translation.prepare import read_manifest
from finetuning.translation.run import describe
from tests.finetuning.test_run import signal_at
from tests.support.finetuning import change_json, write_checkpoint
from tests.support.ranks import launch, start
from tests.support.translation import MARIAN, outcome, run_translation, to_options


def results_of(folder):
    return json.loads((folder / "all_results.json").read_text())


# ---------------------------------------------------------------------------------------------------------------------
# A finished run


def test_loss_and_scores_are_those_of_the_model_in_the_folder(finished, dataset):
    """The loss is a mean over tokens, without smoothing; one row at a time gives the same."""
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(finished), AutoTokenizer.from_pretrained(finished)
    model.eval()
    rows, total, count = load_from_disk(dataset / "test"), 0.0, 0
    with torch.no_grad():
        for ids, labels in zip(rows["input_ids"], rows["labels"], strict=True):
            logits = model(input_ids=torch.tensor([ids]), decoder_input_ids=torch.tensor([[2, *labels[:-1]]])).logits[0]
            total -= logits.double().log_softmax(-1)[range(len(labels)), labels].sum().item()
            count += len(labels)
    results = results_of(finished)
    assert results["test_loss"] == pytest.approx(total / count, rel=1e-5)
    lines = (finished / "translations_test.txt").read_text().splitlines()
    assert {name: results[f"test_{name}"] for name in ("bleu", "chrf")} == pytest.approx(
        {name: value for name, value in scores(lines, rows["target"][:]).items() if name in ("bleu", "chrf")}
    )
    alone = [model.generate(torch.tensor([ids])) for ids in rows["input_ids"]]  # the folder's own settings
    assert lines == [" ".join(tokenizer.decode(ids[0], skip_special_tokens=True).split()) for ids in alone]


def test_the_folder_is_complete_and_tells_no_local_path(finished, base):
    names = {path.name for path in finished.iterdir()}
    assert {"README.md", "learning_curve.png", "run.json", "trainer_state.json", "tokenizer.json", "config.json"} <= names
    assert not any(name.startswith("checkpoint") for name in names)
    for path in finished.rglob("*"):
        assert bytes(base) not in path.read_bytes(), path
    card = (finished / "README.md").read_text()
    assert "trust_remote_code=True" in card and "the mean of 2 checkpoints" in card and "120 in `train`" in card


def test_a_finished_run_is_not_run_again_and_another_one_is_refused(finished, dataset, capsys):
    from tests.support.translation import FAST, LUNA

    values = FAST | {"dataset": str(dataset), "output_dir": str(finished), "model": LUNA}
    before = outcome(finished)
    assert run_translation(**values) == 0 and outcome(finished) == before
    assert run_translation(**values | {"seed": 7}) == 2
    assert "holds a run with seed 42, and this one has 7: choose" in capsys.readouterr().err


def test_the_model_is_the_mean_of_the_last_checkpoints(options, tmp_path, monkeypatch):
    kept = {}
    remove = shutil.rmtree

    def remember(path, *args, **kwargs):
        if path.name.startswith("checkpoint-") and (path / "model.safetensors").exists():
            kept[path.name] = load_file(path / "model.safetensors")
        remove(path, *args, **kwargs)

    monkeypatch.setattr(shutil, "rmtree", remember)
    assert run_translation(**options | {"num_train_epochs": 3}) == 0
    folders = sorted(kept, key=lambda name: int(name.split("-")[1]))
    assert len(folders) == 3
    model = load_file(tmp_path / "run" / "model.safetensors")
    for name, tensor in model.items():
        mean = sum(kept[folder][name].double() for folder in folders[-2:]) / 2
        torch.testing.assert_close(tensor, mean.float(), rtol=0, atol=0)
    assert results_of(tmp_path / "run")["averaged_checkpoints"] == 2


# ---------------------------------------------------------------------------------------------------------------------
# Optimizers


def learning_rates(trainer_of_run, steps):
    """What an optimizer uses at each update, from the size of the first one of a parameter with a constant gradient."""
    scheduler = trainer_of_run.create_scheduler(steps)
    rates = []
    for _ in range(steps):
        rates.append(scheduler.get_last_lr()[0])
        trainer_of_run.optimizer.step()
        scheduler.step()
    return rates


def test_apollo_is_apollo_dqn_and_falls_to_a_tenth_after_each_milestone(options, monkeypatch):
    seen = {}

    def look(self, *args, **kwargs):
        self.create_optimizer()
        seen["optimizer"], seen["rates"] = self.optimizer, learning_rates(self, 7)
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer.TranslationTrainer, "train", look)
    apollo = {"optimizer": "apollo", "learning_rate": 0.1, "warmup_steps": 3, "weight_decay": 1e-8}
    assert run_translation(**options | apollo | {"apollo_milestones": [2, 5]}) == 130
    optimizer = seen["optimizer"]
    assert type(optimizer).__name__ == "ApolloDQN" and optimizer.warmup_steps == 3
    group = optimizer.param_groups[0]
    wanted = {
        "init_lr": 1e-5,
        "beta": 0.9,
        "eps": 1e-4,
        "weight_decay": 1e-8,
        "weight_decay_type": "l2",
        "rebound": "constant",
    }
    assert {name: group[name] for name in wanted} == wanted
    assert seen["rates"] == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.01, 0.001, 0.001])


def test_adam_falls_by_the_inverse_square_root(options, monkeypatch):
    seen = {}

    def look(self, *args, **kwargs):
        self.create_optimizer()
        seen["optimizer"], seen["rates"] = self.optimizer, learning_rates(self, 9)
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer.TranslationTrainer, "train", look)
    assert run_translation(**options | {"warmup_steps": 4, "weight_decay": 1e-4, "learning_rate": 5e-4}) == 130
    assert type(seen["optimizer"]).__name__ == "AdamW" and seen["optimizer"].param_groups[0]["betas"] == (0.9, 0.98)
    rising = [5e-4 * step / 4 for step in range(4)]
    assert seen["rates"] == pytest.approx(rising + [5e-4 * (4 / step) ** 0.5 for step in range(4, 9)])


def test_each_parameter_is_clipped_by_itself():
    model = torch.nn.ModuleList([torch.nn.Linear(3, 1, bias=False) for _ in range(3)])
    gradients = [torch.tensor([[3.0, 0.0, 4.0]]), torch.tensor([[0.03, 0.0, 0.04]])]
    for linear, gradient in zip(model, gradients, strict=False):  # the third has none
        linear.weight.grad = gradient.clone()
    trainer.ClipEachParameter(0.1).on_pre_optimizer_step(None, None, None, model=model)
    torch.testing.assert_close(model[0].weight.grad, gradients[0] / 50, rtol=1e-5, atol=0)
    torch.testing.assert_close(model[1].weight.grad, gradients[1], rtol=0, atol=0)
    assert model[2].weight.grad is None


def test_the_loss_does_not_depend_on_how_an_update_is_divided():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(6, 5, 11, generator=generator), torch.randint(0, 11, (6, 5), generator=generator)
    labels[2, 3:] = labels[5, 1:] = -100
    count, loss = (labels >= 0).sum(), trainer.make_loss(0.1)
    whole = loss({"logits": logits}, labels, count)
    parts = [loss({"logits": logits[rows]}, labels[rows], count) for rows in ([0, 1, 2, 3], [4, 5])]
    torch.testing.assert_close(sum(parts), whole)
    known = labels >= 0
    logs = logits.log_softmax(-1)[known]
    expected = -(0.9 * logs[range(count), labels[known]] + 0.1 * logs.mean(-1)).mean()
    torch.testing.assert_close(whole, expected)


# ---------------------------------------------------------------------------------------------------------------------
# Several processes, and runs that are stopped

EXACT = {"dropout": 0.0, "attention_dropout": 0.0, "max_tokens": 120}  # so that two processes draw nothing of their own


def argv_of(options):
    return ["translation", *to_options(options)]


def test_two_processes_train_and_translate_as_one(options, tmp_path):
    """Loss and gradient of each update; a small rate, because Adam makes steps of rounding errors where gradients are 0."""
    options = options | EXACT | {"num_train_epochs": 1, "learning_rate": 1e-4, "logging_steps": 1}
    assert run_translation(**options | {"output_dir": str(tmp_path / "one")}) == 0
    said = launch("finetune", argv_of(options | {"output_dir": str(tmp_path / "two"), "use_cpu": None}), 2)
    logs = [json.loads((tmp_path / name / "trainer_state.json").read_text())["log_history"] for name in ("one", "two")]
    one, two = ([(row["step"], row["loss"], row["grad_norm"]) for row in log if "loss" in row] for log in logs)
    assert len(one) >= 8 and len({loss for _, loss, _ in one}) == len(one)
    for ours, theirs in zip(one, two, strict=True):
        assert theirs == pytest.approx(ours, rel=1e-4 if ours[0] == 1 else 1e-3)
    results = [results_of(tmp_path / name) for name in ("one", "two")]
    for values in results:
        del values["signatures"]
    assert results[1] == pytest.approx(results[0], rel=1e-3)
    texts = [(tmp_path / name / "translations_test.txt").read_text() for name in ("one", "two")]
    assert texts[0] == texts[1] and len(texts[0].splitlines()) == 7  # an odd number of rows
    assert said.stderr.count("Processes: 2, on cpu.") == 1 and said.stdout.count("output_dir: ") == 1


kill = partial(signal_at, 11, signal.SIGKILL)
terminate_one_rank = partial(signal_at, 3, signal.SIGTERM, rank="1")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "before", "status"), [(1, kill, -signal.SIGKILL), (2, terminate_one_rank, 143)], ids=["killed", "stopped"]
)
def test_a_stopped_run_goes_on_to_the_same_result(processes, before, status, options, tmp_path):
    """The dropout of the rest, the batches that are due, the optimizer, and the checkpoints that are averaged."""
    options |= {"num_train_epochs": 3, "optimizer": "apollo", "learning_rate": 0.05, "warmup_steps": 2, "dropout": 0.2}
    done = start("finetune", argv_of(options), processes, before=before).wait(ends_others=False)
    assert done.returncode == status, done.stderr
    assert not (tmp_path / "run" / "all_results.json").exists()
    done = launch("finetune", argv_of(options), processes)
    assert "Going on from" in done.stderr
    launch("finetune", argv_of(options | {"output_dir": str(tmp_path / "whole")}), processes)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_a_checkpoint_after_a_signal_is_not_averaged_and_pushes_out_none(options, tmp_path, monkeypatch):
    """One update into the second epoch; the mean is of the ends of epochs."""
    averaged, own = [], trainer.TranslationTrainer.checkpoints_to_average

    def watch(self):
        averaged.append([path.name for path in own(self)])
        return own(self)

    monkeypatch.setattr(trainer.TranslationTrainer, "checkpoints_to_average", watch)
    options |= {"num_train_epochs": 3}
    assert run_translation(**options | {"output_dir": str(tmp_path / "whole")}) == 0
    whole = averaged[-1]
    due = int(whole[-1].removeprefix("checkpoint-"))  # the end of the second epoch
    step, train = trainer.TranslationTrainer.training_step, []

    def stop_once(self, *args, **kwargs):
        if self.state.global_step == due // 2 + 1 and not train:
            train.append(signal.raise_signal(signal.SIGTERM))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(trainer.TranslationTrainer, "training_step", stop_once)
    assert run_translation(**options) == 143
    assert run_translation(**options) == 0
    assert averaged[-1] == whole and len(whole) == 2
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


# ---------------------------------------------------------------------------------------------------------------------
# Other models, and wrong input


def test_a_checkpoint_of_another_architecture_is_trained_further(dataset, options, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(dataset / "tokenizer")
    special = {"pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2, "forced_eos_token_id": None}
    sizes = {name: value for name, value in MARIAN.items() if name != "model_type"}
    torch.manual_seed(0)
    MarianMTModel(MarianConfig(vocab_size=len(tokenizer), **sizes, **special)).save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    values = options | {"model": None, "model_name_or_path": str(tmp_path / "start"), "num_train_epochs": 1}
    assert run_translation(**values) == 0
    description = json.loads((tmp_path / "run" / "run.json").read_text())
    assert description["model_name_or_path"] == "start" and set(description["digests"]) == {"dataset", "model"}
    assert results_of(tmp_path / "run")["averaged_checkpoints"] == 1


WRONG = [
    ("luna-16-softplus-tide", {}, "tide is neither a row nor a .* of options, perhaps luna-16-softplus-tied is meant: the"),
    ("luna-16-elu luna-32-elu", {}, "Give one row, and after it paper or code or neither, not luna-16-elu luna-32-elu"),
    ("code", {}, "Give one row, and after it paper or code or neither, not code"),
    ("", {"dataset": None}, "Give the pairs with --dataset: a folder that `luna prepare_pairs` made"),
    ("", {"dataset": "{base}"}, "`dataset` is .*, which `luna prepare_pairs` did not make: give one of its"),
    ("", {"dataset": "{old}"}, "`dataset` is .*old, of version 0, but this is version 1: make it again"),
    ("", {"model": None}, "There is no model: name a row, or give --model.model_type with its fields or --model_name"),
    ("", {"model": {"model_type": "lunar"}}, r"`model` is refused \(.*lunar.*\): correct it"),
    ("", {"model": {"hidden_size": 15}}, r"`model` is refused \(.*`hidden_size` is 15.*\): correct it"),
    ("", {"model": {"hidden_sizes": 16}}, "`model.hidden_sizes` is not a field of LunaConfig: check its spelling"),
    ("", {"model": {"is_encoder_decoder": False}}, r"A new model \(luna\) cannot translate \(it has no decoder .*\): give"),
    ("", {"model": {"model_type": "gpt2"}, "ONLY": True}, r"A new model \(gpt2\) cannot translate \(.*\): give an enc"),
    ("", {"model": None, "model_name_or_path": "{luna}"}, r"luna \(luna\) cannot translate \(it has no decoder"),
    ("", {"model": None, "model_name_or_path": "{nowhere}"}, "nowhere is neither a folder with a checkpoint nor a model of"),
    ("luna-16-elu", {"model": None, "model_name_or_path": "{luna}"}, "was given beside the row luna-16-elu, which has a"),
    ("", {"max_tokens": 20}, r"`max_tokens` is 20, but the longest training pair, number \d+, has \d+ tokens: give at"),
    ("", {"batches_per_step": 500}, "`batches_per_step` is 500, but the training pairs make 120 batches of one pair"),
    ("", {"model": MARIAN | {"max_position_embeddings": 9}, "ONLY": True}, "The source of pair .* reads at most 9: give a"),
    ("", {"model": MARIAN, "ONLY": True, "generation_max_length": 65}, "`generation_max_length` is 65, .* writes at most 6"),
    ("", {"num_beams": 0}, "`num_beams` is 0: give at least 1"),
    ("", {"learning_rate": "fast"}, "`learning_rate` is 'fast', but must be of type float"),
    ("", {"label_smoothing_factor": 1}, "`label_smoothing_factor` is 1.0: give at least 0 and below 1"),
    ("", {"num_train_epochs": 0}, "The training would have no steps: give --num_train_epochs or --max_steps above 0"),
    ("", {"apollo_beta": 0.5}, "`apollo_beta` was given, but only --optimizer apollo reads it: leave it out"),
    ("", {"optimizer": "apollo", "adam_beta2": 0.5}, "`adam_beta2` was given, but only --optimizer adam reads it"),
    ("", {"save_steps": 5}, "`save_steps` was given, but only --save_strategy steps reads it: leave it out"),
    ("", {"clip_each_parameter": 0.1, "fp16": True}, "`clip_each_parameter` is 0.1, but float16 scales the gradients"),
    ("", {"fp16": True}, "`fp16` is True, but float16 is for accelerators: on a CPU, give --bf16 or neither"),
    ("", {"trainer": {"optim": "sgd"}}, "`trainer.optim` is sgd, but --optimizer is for that: leave it out"),
    ("luna-16-softplus-tied", {"optimizer": "adam", "learning_rate": None}, "`optimizer` is adam, but the learning rate"),
    ("", {"trainer": {"dataloader_drop_last": True}}, "`trainer.dataloader_drop_last` is True, but the evaluation"),
    ("", {"trainer": {"seed": 3}}, "`trainer.seed` is 3, but seed is an option of its own: give --seed 3"),
    ("", {"trainer": {"sed": 3}}, "`trainer.sed` is 3, but Seq2SeqTrainingArguments has no such field: correct it"),
    ("", {"lr_scheduler_type": "slow"}, r"The Trainer refuses the options \(.*slow.*\): correct them"),
    ("", {"output_dir": "{base}"}, "holds files that are not a run of this program: choose another --output_dir"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "changes", "sentence"), WRONG)
def test_wrong_input_is_refused_in_one_sentence(words, changes, sentence, options, dataset, base, tmp_path, capsys):
    places = {"base": base / "lines", "nowhere": base / "nowhere", "old": tmp_path / "old", "luna": tmp_path / "luna"}
    if "{old}" in changes.values():
        shutil.copytree(dataset, places["old"])
        change_json(places["old"] / "manifest.json", version=0)
    if "{luna}" in changes.values():
        write_checkpoint(places["luna"])
    changes = {name: value.format(**places) if isinstance(value, str) else value for name, value in changes.items()}
    values = options | changes
    if changes.get("model") and not values.pop("ONLY", False):
        values["model"] = options["model"] | changes["model"]
    if words in ("luna-16-elu", "code") or "luna-16" in words:
        values.pop("model", None)
    capsys.readouterr()
    assert run_translation(*words.split(), **values) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert re.search(sentence, line) and line.endswith("."), line
    assert not (tmp_path / "run" / "all_results.json").exists()


def test_more_processes_than_batches_share_is_refused(options, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert run_translation(**options) == 2
    assert "`batches_per_step` is 2, which 3 processes cannot share equally: choose a mult" in capsys.readouterr().err


def test_a_package_that_is_missing_is_named(options, monkeypatch, capsys):
    from finetuning.translation import arguments

    monkeypatch.setattr(arguments.importlib.util, "find_spec", lambda name: None)
    assert run_translation(**options) == 2
    sentence = (
        "Translation needs the package sacrebleu, which is not installed: run `pip install 'luna-transformers[translate]'`"
    )
    assert sentence in capsys.readouterr().err


def test_a_dataset_that_has_changed_is_another_run(dataset, tmp_path):
    from finetuning.translation.arguments import TranslationOptions

    other = shutil.copytree(dataset, tmp_path / "pairs")
    change_json(other / "manifest.json", vocab_size=3)
    digests = [describe(None, TranslationOptions(dataset=str(folder)))["digests"] for folder in (dataset, other)]
    assert digests[0] != digests[1] and read_manifest(other)["vocab_size"] == 3
