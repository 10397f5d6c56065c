# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Every fenced command of README.md and docs/ runs, in order, in a fresh copy of the tree.

A command with a comment that says what it needs (`# needs GPUs`, the Hub, SLURM, the network, ...) is not run; where such a
comment is a block's first line, none of the block is. Long ones are run in short, by SHORTER.
"""

import os
import re
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^( *)```(bash|python)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
NEEDS = re.compile(r"#.*\bneeds ")

# What takes minutes or hours -> the same with fewer steps, on less. Each has to occur in some page.
SHORTER = {
    # Set up an environment, which these tests have.
    r"^python3 scripts/quickstart\.py quickstart_causal": (
        "luna prepare quickstart_causal && luna pretrain quickstart_causal --max_steps 8 --warmup_steps 2 --save_steps 8 && "
        "python -m pretraining.continue_text runs/quickstart_causal/model"
    ),
    r"^python3 scripts/quickstart\.py": (
        "luna prepare quickstart && luna pretrain quickstart --max_steps 20 --warmup_steps 2 --save_steps 20 && "
        "python -m pretraining.fill_masks runs/quickstart/model --dataset data/python-docs"
    ),
    r"^python3 scripts/test\.py": "python3 scripts/test.py --help",
    r"^(python -m scripts\.reports\.docstring_families)$": (r"\1 --num_seeds 1 --train_rows 60 --num_train_epochs 1"),
    r"^(python -m scripts\.reports\.signature_summaries)$": (
        r"\1 --max_steps 2 --num_averaged_checkpoints 1 --num_beams 1 --generation_max_length 8"
    ),
    r"^(python -m scripts\.label_sentences .*)$": r"\1 --num_train_epochs 1",
    r"^(luna pretrain quickstart)(?= +#)": r"\1 --max_steps 20 --warmup_steps 2 --save_steps 20",
    r"^(luna pretrain quickstart_causal)(?= +#)": r"\1 --max_steps 8 --warmup_steps 2 --save_steps 8",
    r"--max_steps 100 --warmup_steps 10": "--max_steps 10 --warmup_steps 2",
    r"--output_dir runs/(one-process|two-processes|launched)": r"\g<0> --max_steps 4 --warmup_steps 1",
    r"_samples 20000 --num_valid_samples 1000 --num_test_samples 1000": (
        "_samples 200 --num_valid_samples 20 --num_test_samples 20"
    ),
    r"--num_samples 20000": "--num_samples 100",
    r"(--recipe reduced .*)--num_seeds 3": r"\1--num_seeds 1 --max_steps 2 --eval_steps 1 --save_steps 1 --warmup_steps 1",
    r"simulate_ranks --every_place 1000000000": "simulate_ranks --every_place 1000000 --sequences 20000 --num_processes 4",
    r"kill_ranks --kills 100": "kill_ranks --kills 1",
}


@dataclass
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str


def read_blocks(page: Path) -> list[Block]:
    content = page.read_text(encoding="utf-8")
    return [
        Block(page, content.count("\n", 0, found.start()) + 2, found[2], textwrap.dedent(found[3]))
        for found in FENCE.finditer(content)
    ]


def commands(text: str) -> list[str]:
    """The commands of a shell block, lines that continue joined, without those that need what is not here."""
    lines = text.replace("\\\n", "").splitlines()
    if lines and lines[0].startswith("#") and NEEDS.search(lines[0]):
        return []
    return [line for line in lines if line.strip() and not NEEDS.search(line)]


def shorter(command: str) -> str:
    for pattern, replacement in SHORTER.items():
        command = re.sub(pattern, replacement, command)
    return command


def test_commands_that_need_something_are_left_out():
    text = "# all of it\na b  # a comment\nc --d \\\n    e\nf  # 8 of them; needs GPUs\n\ng=needs\n"
    assert commands(text) == ["# all of it", "a b  # a comment", "c --d     e", "g=needs"]
    assert commands(f"# needs SLURM\n{text}") == []


def test_what_is_cut_short_is_in_some_page():
    texts = [command for page in PAGES for block in read_blocks(page) for command in commands(block.text)]
    for pattern in SHORTER:
        assert any(re.search(pattern, text) for text in texts), pattern


def test_every_fence_is_understood():
    """One of another language, or one that is not closed, would go by unseen."""
    for page in PAGES:
        fences = re.findall(r"^ *```(\w*)", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert len(fences) % 2 == 0 and {"", *fences[1::2]} == {""}, page
        assert set(fences[::2]) <= {"bash", "python", "yaml", ""}, page
        assert len([fence for fence in fences if fence in ("bash", "python")]) == len(read_blocks(page)), page


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """The tree as a user gets it, after the quick start, and the environment in which its commands run."""
    clone = tmp_path_factory.mktemp("clone")
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, files.split("\0")):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).write_bytes((ROOT / name).read_bytes())
    # The commands of an installed distribution, of this tree.
    programs = clone / ".venv" / "bin"
    programs.mkdir(parents=True)
    modules = {"luna": "-m luna_tools.command_line", "python": "", "python3": "", "torchrun": "-m torch.distributed.run"}
    for name, module in modules.items():
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} {module} "$@"\n')
        (programs / name).chmod(0o755)
    path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(clone), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = run(shorter("python3 scripts/quickstart.py"), clone, environment)
    assert done.returncode == 0, done.stdout
    assert "Loading weights" not in done.stdout and "Writing model" not in done.stdout, "stray bars"
    return clone, environment


def run(command: str, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess:
    """Run it as pasted into a shell that stops at the first failure; both streams are in `stdout`."""
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.run(["bash", "-e", "-o", "pipefail", "-c", command], cwd=folder, env=environment, text=True, **streams)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.xdist_group("docs")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_page_runs_as_pasted(page, clone):
    folder, environment = clone
    for block in read_blocks(page):
        if block.language == "bash":
            program = "\n".join(map(shorter, commands(block.text)))
        else:
            (folder / "pasted.py").write_text(block.text)
            program = "" if NEEDS.search(block.text.splitlines()[0]) else "python pasted.py"
        done = run(program, folder, environment)
        where = f"{page.relative_to(ROOT)}:{block.line}"
        assert done.returncode == 0, f"{where}\n{program}\n{done.stdout}"
        assert "Traceback (most" not in done.stdout and "indexing errors" not in done.stdout, f"{where}\n{done.stdout}"
