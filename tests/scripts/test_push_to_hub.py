# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""What scripts/push_to_hub.py refuses, and a round trip to a Hub on loopback."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from huggingface_hub import HfApi
from transformers import AutoTokenizer

import push_to_hub
from fresh_process import ROOT, run_program, stranger_environment
from hub_server import TOKEN, Hub, Repository
from luna_builders import build, make_tokenizer
from modeling_luna import LunaForMaskedLM

FILES = {
    "README.md",
    "config.json",
    "configuration_luna.py",
    "model.safetensors",
    "modeling_luna.py",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture(scope="module")
def whole_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "luna"
    tokenizer = make_tokenizer()
    build(LunaForMaskedLM, dtype=torch.float32, vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(whole_folder, tmp_path):
    return shutil.copytree(whole_folder, tmp_path / "luna")


def change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def write(name, text):
    def damage(folder):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)

    return damage


def remove(name):
    return lambda folder: (folder / name).unlink()


# What is wrong, and what the one sentence says.
REFUSED = {
    "no folder": (shutil.rmtree, "is not a folder"),
    "training arguments": (write("training_args.bin", ""), "training_args.bin may be a pickle"),
    "pickled weights in a subfolder": (write("old/model.PT", ""), "old/model.PT may be a pickle"),
    "environment file": (write(".env", "A=1"), ".env has the name of a file with secrets"),
    "token": (write("run.json", '{\n"token": "hf_' + "a1" * 17 + '"}'), "a Hugging Face token in line 2"),
    "private key": (write("notes.txt", "-----BEGIN RSA PRIVATE KEY-----"), "notes.txt holds what looks like a private key"),
    "password": (write("run.yaml", "proxy: http://me:secret@proxy:80"), "a password in an address in line 1"),
    "no config": (remove("config.json"), "has no config.json"),
    "broken config": (write("config.json", "{"), "config.json can't be read"),
    "no auto_map": (lambda folder: change_config(folder, auto_map=None), "`auto_map`"),
    "auto_map of one class": (
        lambda folder: change_config(folder, auto_map={"AutoModelForMaskedLM": "modeling_luna.LunaForMaskedLM"}),
        "`auto_map`",
    ),
    "auto_map of another repository": (
        lambda folder: change_config(
            folder, auto_map={"AutoConfig": "a/b--c.D", "AutoModel": "a/b--modeling_luna.LunaModel"}
        ),
        "`auto_map`",
    ),
    "no code": (remove("configuration_luna.py"), "has no configuration_luna.py"),
    "no card": (remove("README.md"), "has no README.md"),
    "broken card": (write("README.md", "---\ntags: [luna\n---\n"), "README.md is not valid YAML"),
    "card without metadata": (write("README.md", "# Luna\n"), "README.md has no metadata"),
    "no weights": (remove("model.safetensors"), "has no weights"),
    "no tokenizer": (remove("tokenizer.json"), "has no tokenizer.json"),
}


@pytest.mark.parametrize(("damage", "message"), REFUSED.values(), ids=REFUSED)
def test_refuses_in_one_sentence(damage, message, folder, capsys):
    damage(folder)
    assert push_to_hub.main([str(folder), "org/luna", "--dry-run"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ") and message in output.err and output.err.count("\n") == 1


@pytest.mark.parametrize("name", ["luna", "org/luna/main", "org/lu na"])
def test_refuses_names_that_the_hub_would_not_take(name, folder, capsys):
    assert push_to_hub.main([str(folder), name]) == 2
    assert repr(name) in capsys.readouterr().err


def test_a_token_that_is_no_token_passes(folder):
    (folder / "notes.txt").write_text("The keys are hf_token and sk-learn, see http://host:80/a@b.")
    push_to_hub.check_files(folder, push_to_hub.files_to_upload(folder))


def test_git_and_cache_are_no_files_to_upload(folder):
    for name in (".git/config", ".cache/huggingface/x", "sub/.git/config", "sub/a.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    assert set(push_to_hub.files_to_upload(folder)) == FILES | {"sub/a.txt"}


def test_dry_run_shows_what_would_be_uploaded_and_says_that_the_code_differs(folder, capsys):
    (folder / "modeling_luna.py").write_text((folder / "modeling_luna.py").read_text() + "\n# mine\n")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert push_to_hub.main([str(folder), "org/luna", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    parameters = LunaForMaskedLM.from_pretrained(folder).num_parameters()
    assert f"LunaForMaskedLM with {parameters:,} parameters" in shown and "dry run" in shown
    assert "note: modeling_luna.py is not the one of this project" in shown and "note: config" not in shown
    for name in FILES:
        assert f"{(folder / name).stat().st_size:,}  {name}\n" in shown
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.fixture
def no_fresh_process(monkeypatch):
    monkeypatch.setattr(push_to_hub, "check_model", lambda *_: {})
    monkeypatch.setattr(push_to_hub, "describe", lambda *_: "")


def test_a_hub_that_cannot_be_reached_is_one_sentence(folder, capsys, no_fresh_process):
    assert push_to_hub.main([str(folder), "org/luna"]) == 2
    error = capsys.readouterr().err
    assert "can't be reached" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "token", "message"),
    [
        (["org/luna"], "", "(401, Invalid username or password.): log in with `hf auth login`"),
        (["org/luna"], "hf_other", "(401, Invalid credentials in Authorization header): log in with `hf auth login`"),
        (["them/luna"], TOKEN, "use a token that may write there"),
        (["org/public", "--private"], TOKEN, "org/public is there already and is public"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(
    arguments, token, message, folder, tmp_path, capsys, monkeypatch, no_fresh_process
):
    with Hub() as hub:
        hub.serve_this_process(monkeypatch, tmp_path, token)
        hub.repositories["org/public"] = public = Repository(private=False)
        public.commit("main", {})
        assert push_to_hub.main([str(folder), *arguments]) == 2
        assert hub.repositories == {"org/public": public} and public.commits[public.branches["main"]] == {}
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def add_tokens(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<more>"])
    tokenizer.save_pretrained(folder)


def change_pad(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = "<unk>"
    tokenizer.save_pretrained(folder)


# What only a fresh process finds.
DOES_NOT_LOAD = {
    "code that fails": (
        write("modeling_luna.py", "class LunaForMaskedLM(Missing): pass\n"),
        "name 'Missing' is not defined",
    ),
    "other weights": (lambda folder: change_config(folder, num_hidden_layers=4), "are not of a LunaForMaskedLM"),
    "other vocabulary": (add_tokens, "has 322 tokens, but the model has embeddings for 321"),
    "other padding": (change_pad, "pads with id 3, but `pad_token_id` of the model is 1"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("damage", "message"), DOES_NOT_LOAD.values(), ids=DOES_NOT_LOAD)
def test_refuses_what_a_stranger_could_not_use(damage, message, folder, capsys):
    damage(folder)
    assert push_to_hub.main([str(folder), "org/luna", "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


LOAD_BY_NAME = """
import json, torch
from transformers import AutoModelForMaskedLM, AutoTokenizer
for name, revision in json.loads(sys.argv[1]):
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True, revision=revision)
    model = AutoModelForMaskedLM.from_pretrained(name, trust_remote_code=True, revision=revision)
    assert type(model).__module__.startswith("transformers_modules.org."), type(model)
    with torch.no_grad():
        print(model(**tokenizer("The moon goes around the earth.", return_tensors="pt")).logits.sum().item(), flush=True)
"""


@pytest.mark.slow
def test_round_trip(folder, tmp_path, monkeypatch, no_fresh_process):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = LunaForMaskedLM.from_pretrained(folder)
    inputs = tokenizer("The moon goes around the earth.", return_tensors="pt")

    def logits_of(model):
        with torch.no_grad():
            return pytest.approx(model(**inputs).logits.sum().item(), rel=1e-4)

    with Hub() as hub:
        online = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}

        def load(home, *wanted, **variables):
            """Sums of logits, one for each (name, revision) that loads, and what was written to stderr."""
            done = run_program(LOAD_BY_NAME, tmp_path / home, json.dumps(wanted), **(online | variables))
            return [float(line) for line in done.stdout.split()], done.stderr

        # To main, by the command line, with all checks.
        environment = stranger_environment(tmp_path / "here", HF_TOKEN=TOKEN, **online)
        command = [sys.executable, str(ROOT / "scripts" / "push_to_hub.py"), str(folder), "org/luna"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0 and done.stdout.endswith(f"Uploaded: {hub.url}/org/luna\n"), done.stderr
        on_main = logits_of(model)
        public = hub.repositories["org/luna"]
        files = public.commits[public.branches["main"]]
        assert files.keys() == FILES | {".gitattributes"}
        for name in FILES:
            assert files[name] == (folder / name).read_bytes()
        assert b'name = "org/luna"' in files["README.md"]
        assert [request for request in hub.requests if request.startswith("PUT /lfs/")]

        # Other weights to a revision, and to a private repository.
        with torch.no_grad():
            model.lm_head.decoder.bias += 1
        model.save_pretrained(folder)
        hub.serve_this_process(monkeypatch, tmp_path)
        assert push_to_hub.main([str(folder), "org/luna", "--revision", "step-10"]) == 0
        assert push_to_hub.main([str(folder), "org/hidden", "--private"]) == 0
        assert (
            public.branches.keys() == {"main", "step-10"} and not public.private and hub.repositories["org/hidden"].private
        )
        assert HfApi().list_repo_files("org/luna", revision="step-10") == sorted(FILES | {".gitattributes"})

        # By name into an empty cache; without a token the private one is as if it were not there.
        wanted = [("org/luna", None), ("org/luna", "step-10"), ("org/hidden", None)]
        sums, errors = load("there", *wanted)
        assert sums == [on_main, logits_of(model)], errors
        assert "org/hidden is not a local folder and is not a valid model identifier" in errors
        sums, errors = load("there", ("org/hidden", None), HF_TOKEN=TOKEN)
        assert sums == [logits_of(model)], errors

        # From the cache alone.
        hub.requests.clear()
        sums, errors = load("there", *wanted[:2], HF_HUB_OFFLINE="1")
        assert sums == [on_main, logits_of(model)] and not hub.requests, errors
