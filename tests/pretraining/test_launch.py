# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Launch configurations, each read by its real parser, and launch scripts, run with stand-ins for a cluster's commands."""

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env, prepare_simple_launcher_cmd_env

from pretraining import launcher
from tests.support.pretraining import weights, write_recipe
from tests.support.ranks import FIXED, launch

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "pretraining" / "launch"
CONFIGS = sorted(LAUNCH.glob("*.yaml"))
SIZES = {"1cpu": (1, 1), "1gpu": (1, 1), "8gpu": (1, 8), "64gpu": (8, 64)}


def test_every_size_and_engine_has_a_configuration():
    expected = {"1cpu", "1gpu"} | {f"{size}_{engine}" for size in ("8gpu", "64gpu") for engine in launcher.ENGINE_NAMES}
    assert {path.stem for path in CONFIGS} == expected


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_reads_it_and_the_program_finds_its_engine(path, tmp_path, monkeypatch):
    """What `accelerate launch` would set in the environment of the processes, without starting them, from any folder."""
    machines, processes = SIZES[path.stem.split("_")[0]]
    config = load_config_from_file(str(path))
    assert (config.num_machines, config.num_processes) == (machines, processes)
    DistributedType(yaml.safe_load(path.read_text())["distributed_type"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("accelerate.commands.launch.is_bf16_available", lambda *_: True)
    options = ["--config_file", str(path), "--machine_rank", "0", "-m", "pretraining.train", "quickstart"]
    if machines > 1:
        options = ["--main_process_ip", "127.0.0.1", "--main_process_port", "29400", *options]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(options))
    assert (args.num_machines, args.num_processes) == (machines, processes)
    environment = processes_environment(args)
    for name in [name for name in os.environ if name.startswith(("ACCELERATE_", "FSDP_"))]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        if name.startswith(("ACCELERATE_", "FSDP_")):
            monkeypatch.setenv(name, value)
    assert launcher.launched_engine() == (path.stem.partition("_")[2] or "ddp")
    if "zero" in path.stem:
        assert Path(os.environ["ACCELERATE_DEEPSPEED_CONFIG_FILE"]).parent == LAUNCH


def processes_environment(args: Namespace) -> dict[str, str]:
    if args.use_deepspeed:
        args.deepspeed_fields_from_accelerate_config = ""  # set by `launch_command` itself
        return prepare_deepspeed_cmd_env(args)[1]
    return prepare_multi_gpu_env(args) if args.multi_gpu or args.use_fsdp else prepare_simple_launcher_cmd_env(args)[1]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeed_reads_its_configuration(stage, monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    config = pytest.importorskip("deepspeed.runtime.config", reason="deepspeed: pip install -e '.[deepspeed]'")
    path = LAUNCH / f"zero{stage}.json"
    assert launcher.check_deepspeed_config(path) == stage
    read = config.DeepSpeedConfig(json.loads(path.read_text()) | {"train_micro_batch_size_per_gpu": 1})
    assert read.zero_config.stage == stage


@pytest.mark.slow
def test_accelerate_launches_a_configuration_from_another_folder(values, tmp_path):
    recipe = write_recipe(values, tmp_path / "run")
    config = LAUNCH / "8gpu_zero2.yaml"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), "--num_processes", "2"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [*command, "-m", "pretraining.train", str(recipe)],
        cwd=tmp_path,
        env=os.environ | FIXED | {"PATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    launch("pretrain", [write_recipe(values, tmp_path / "forked")], 2, "zero2")
    assert weights(tmp_path / "run") == weights(tmp_path / "forked")


# ---------------------------------------------------------------------------------------------------------------------
# Scripts


class Cluster:
    """Stand-ins for a cluster's commands, which write down how they were called, and one script that calls them."""

    def __init__(self, folder: Path):
        self.folder, self.bin, self.log = folder, folder / "bin", folder / "calls"
        self.bin.mkdir()
        (folder / ".venv/bin").mkdir(parents=True)
        (folder / ".venv/bin/activate").touch()
        self.command("python", f'exec {sys.executable} "$@"')
        self.command("scontrol", '[ "$1" = show ] && printf "n1\\nn2\\n" || true')
        self.command("pdsh", 'bash -c "${@: -1}"')  # on this machine

    def command(self, name: str, body: str) -> None:
        (self.bin / name).write_text(f'#!/usr/bin/env bash\necho "{name} $*" >>{self.log}\n{body}\n')
        (self.bin / name).chmod(0o755)

    def calls(self, name: str) -> list[str]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line for line in lines if line.startswith(f"{name} ")]

    def run(self, script: str, *arguments: str, terminated: bool = False) -> tuple[int, str]:
        """Run a script to its end, by SIGTERM once a command has made the file `started`. Returns status and stderr."""
        environment = os.environ | {"PATH": f"{self.bin}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
        environment |= {"SLURM_JOB_ID": "7", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NODEID": "1"}
        command = ["bash", str(LAUNCH / script), *arguments]
        started = subprocess.Popen(command, cwd=self.folder, env=environment, stderr=subprocess.PIPE, text=True)
        while terminated and not (self.folder / "started").exists():
            assert started.poll() is None, started.stderr.read()
        if terminated:
            started.terminate()
        _, told = started.communicate(timeout=300)
        return started.returncode, told


@pytest.fixture
def cluster(tmp_path):
    return Cluster(tmp_path)


RECIPE = "luna_base_16gb --output_dir runs/x".split()
SLURM = ("slurm.sh", "pretraining/launch/64gpu_ddp.yaml")


@pytest.mark.slow
def test_slurm_starts_one_launcher_a_node(cluster):
    cluster.command("srun", 'shift 4; exec "$@"')
    cluster.command("accelerate", "exit 0")
    status, told = cluster.run(*SLURM, *RECIPE)
    assert status == 0, told
    expected = f"accelerate launch --config_file {SLURM[1]} --num_machines 2 --num_processes 16 --machine_rank 1 "
    expected += "--main_process_ip n1 --main_process_port 29400 --tee 3 --log_dir logs/7/0/node-1 "
    assert cluster.calls("accelerate")[0] == f"{expected}-m pretraining.train {' '.join(RECIPE)}"
    assert "scontrol requeue 7" not in cluster.calls("scontrol")


@pytest.mark.slow
@pytest.mark.parametrize("progress", [True, False])
def test_slurm_queues_again_only_what_made_progress(cluster, progress):
    cluster.command("srun", f"{'mkdir -p runs/x/checkpoints/step-00000001; ' if progress else ''}exit 1")
    assert cluster.run(*SLURM, *RECIPE)[0] == 1
    assert ("scontrol requeue 7" in cluster.calls("scontrol")) == progress


@pytest.mark.slow
def test_slurm_passes_the_signal_on_and_waits_for_the_checkpoint(cluster):
    saved = "sleep 1; mkdir -p runs/x/checkpoints/step-00000002; exit 143"
    cluster.command("srun", f"trap '{saved}' TERM; touch started; while true; do sleep 0.1; done")
    assert cluster.run(*SLURM, *RECIPE, terminated=True)[0] == 143
    assert (cluster.folder / "runs/x/checkpoints/step-00000002").exists()
    assert "scontrol requeue 7" in cluster.calls("scontrol")


@pytest.mark.slow
def test_slurm_says_what_is_wrong_with_the_recipe_before_it_starts(cluster):
    cluster.command("srun", "exit 0")
    status, told = cluster.run(*SLURM, "no_such_recipe")
    assert status == 2
    assert told.startswith("error: There is no recipe 'no_such_recipe'")
    assert not cluster.calls("srun")


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "environment"), [("ddp", ""), ("zero2", "ACCELERATE_USE_DEEPSPEED=true")])
def test_pdsh_starts_torchrun_on_all_nodes_and_again_after_a_failure(cluster, engine, environment):
    saved = "runs/x/checkpoints/step-00000002"
    cluster.command("torchrun", f"[ -e {saved} ] && exit 0; mkdir -p {saved}; exit 1")
    status, told = cluster.run("pdsh.sh", "n1,n2", engine, *RECIPE)
    assert status == 0, told
    calls = cluster.calls("torchrun")
    assert len(calls) == 2
    for attempt, call in enumerate(calls):
        assert "--nnodes 2 --nproc_per_node 8 --rdzv_backend c10d --rdzv_endpoint n1:29400" in call
        assert f"--rdzv_id luna-{attempt} " in call and f"--log-dir logs/pdsh/{attempt}/" in call
        assert call.endswith(f"-m pretraining.train {' '.join(RECIPE)}")
    assert all("-S -w n1,n2" in line and environment in line for line in cluster.calls("pdsh"))


@pytest.mark.slow
def test_pdsh_gives_up_without_a_new_checkpoint_and_passes_signals_on(cluster):
    cluster.command("torchrun", "exit 1")
    assert cluster.run("pdsh.sh", "n1,n2", "ddp", *RECIPE)[0] == 1
    assert len(cluster.calls("torchrun")) == 1

    saved = "mkdir -p runs/x/checkpoints/step-00000004; exit 1"
    cluster.command("pkill", "kill -TERM $(cat pid)")
    cluster.command("torchrun", f"echo $$ >pid; trap '{saved}' TERM; touch started; while true; do sleep 0.1; done")
    assert cluster.run("pdsh.sh", "n1,n2", "ddp", *RECIPE, terminated=True)[0] == 1
    assert (cluster.folder / "runs/x/checkpoints/step-00000004").exists()
    assert "pkill -TERM -f torchrun --nnodes 2 .*--rdzv_id luna-" in cluster.log.read_text()


def test_pdsh_refuses_an_engine_that_is_none(cluster):
    status, told = cluster.run("pdsh.sh", "n1", "zero4", *RECIPE)
    assert status == 2
    assert "the engine is zero4: choose ddp, fsdp2, zero1, zero2 or zero3" in told
    assert not cluster.log.exists()
