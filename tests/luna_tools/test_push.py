# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""What `luna push` refuses, and a round trip to a Hub on loopback."""

import io
import json
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi
from safetensors.numpy import save
from transformers import AutoTokenizer

from luna_tools import push
from luna_tools.cards import named_card
from modeling_luna import LunaForMaskedLM
from tests.support.folders import change_json, refused, save_whole, tree
from tests.support.fresh_process import ROOT, run_program, stranger_environment
from tests.support.hub_server import TOKEN, Hub, HubError, Repository

CODE_FILES = {"causal_luna.py", "configuration_luna.py", "modeling_luna.py"}
FILES = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} | CODE_FILES


@pytest.fixture(scope="module")
def whole_folder(tmp_path_factory):
    return save_whole(tmp_path_factory.mktemp("whole") / "luna")


@pytest.fixture
def folder(whole_folder, tmp_path):
    return shutil.copytree(whole_folder, tmp_path / "luna")


@pytest.fixture
def no_fresh_process(monkeypatch):
    found = {"class": "LunaForMaskedLM", "parameters": 1234, "tokenizer_vocabulary": 321, "model_vocabulary": 321}
    monkeypatch.setattr(push, "check_model", lambda *_: found)


def write(folder: Path, name: str, content: str | bytes) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def archive(name: str, content: str) -> bytes:
    with zipfile.ZipFile(file := io.BytesIO(), "w") as members:
        members.writestr(name, content)
    return file.getvalue()


def saved(save_to_file, value: object) -> bytes:
    save_to_file(value, file := io.BytesIO())
    return file.getvalue()


# ---------------------------------------------------------------------------------------------------------------------
# Files that are refused, before anything is loaded

HF_TOKEN, PROTOCOL_0 = "hf_" + "A" * 34, b"cos\nsystem\n(S'id'\ntR."
SECRET, PICKLE, UNKNOWN = "holds what looks like ", "may be a pickle", "is of no kind that a model repository holds: remove "
UNLIKE, NO_TEXT = "is not what its name says", "is not text, as its name says"
# A file that is put into a whole folder, its content, and what is said of it.
FILES_AND_SENTENCE = [
    ("run.json", '{\n"token": "hf_' + "a1" * 17 + '"}', f"{SECRET}a Hugging Face token in line 2"),
    ("utf16.txt", HF_TOKEN.encode("utf-16"), f"{SECRET}a Hugging Face token in line 1"),
    ("notes.txt", "-----BEGIN RSA PRIVATE KEY-----", f"{SECRET}a private key"),
    ("run.yaml", "proxy: http://me:secret@proxy:80", f"{SECRET}a password in an address in line 1"),
    ("aws.json", '{"aws_secret_access_key": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"}', SECRET),
    ("slack.txt", "xoxb-" + "123456789012-" * 2 + "abcdefghijklmnop", f"{SECRET}a Slack token"),
    ("google.txt", "AIza" + "A" * 35, f"{SECRET}a Google API key"),
    ("wandb.txt", "WANDB_API_KEY=" + "a1" * 20, f"{SECRET}a password"),
    ("password.yaml", "password: hunter2hunter2", f"{SECRET}a password"),
    ("index.txt", "pypi-" + "A" * 60, f"{SECRET}a token of a package index"),
    ("x.safetensors", save({"a": np.zeros(1)}, {"note": HF_TOKEN}), f"{SECRET}a Hugging Face token"),
    ("x.zip", archive("a.tsv", HF_TOKEN), f"(a.tsv) {SECRET}a Hugging Face token"),
    *(
        (name, "mine", "has the name of a file with secrets")
        for name in ".env .npmrc .pypirc .htpasswd .netrc .env.local secrets.json credentials token id_rsa a.pem".split()
    ),
    *(
        (name, b"", PICKLE)
        for name in "training_args.bin old/model.PT model.dill model.pkl.gz __pycache__/m.cpython-311.pyc".split()
    ),
    *((name, pickle.dumps({"a": 1}), PICKLE) for name in "LICENSE noext x.safetensors weights.onnx_data".split()),
    # No pickle by name or first bytes, and not what the name says.
    ("sub/notes.docx", "PK", f"{UNKNOWN}it, or add --allow 'sub/notes.docx'"),
    ("weights.npy", saved(lambda x, file: np.save(file, x, allow_pickle=True), [{}]), UNKNOWN),
    ("ckpt.tar", "", UNKNOWN),
    ("id_rsa.pub", "ssh-rsa", UNKNOWN),
    ("x.safetensors", PROTOCOL_0, "is not a whole file of safetensors"),
    ("x.zip", saved(torch.save, {}), "data.pkl, which is not text"),
    ("x.zip", b"PK\x03\x04", "can't be read as a .zip file"),
    ("x.png", PROTOCOL_0, UNLIKE),
    ("x.txt", b"a\0b", NO_TEXT),
    ("x.txt", "é".encode("latin-1"), NO_TEXT),
]


@pytest.mark.parametrize("name, content, sentence", FILES_AND_SENTENCE)
def test_files_that_are_refused_and_allowed(name, content, sentence, folder, no_fresh_process):
    write(folder, name, content)
    arguments = [str(folder), "org/luna", "--dry_run"]
    with refused(sentence, folder):
        push.main(arguments)
    if sentence == PICKLE:  # whatever is allowed
        with refused(sentence, folder):
            push.main([*arguments, "--allow", "*"])
    else:
        push.main([*arguments, "--allow", name])


def test_harmless_files_pass(folder, no_fresh_process):
    write(folder, "notes.txt", "The keys are hf_token and sk-learn, see http://host:80/a@b.")
    write(folder, "credentials_howto.md", "Set `password` = None; secret_key: see https://example.org/page1.")
    write(folder, "run.json", '{"hub_token": null, "password": 12345678, "api_key": "your key 1"}')
    write(folder, "code.py", "def login(password: str = None, api_key=args.api_key): return os.environ['SECRET1']")
    write(folder, "sub/curve.png", b"\x89PNG\r\n")
    write(folder, "submission.zip", archive("CoLA.tsv", "index\tprediction\n0\t1\n"))
    push.main([str(folder), "org/luna", "--dry_run"])


def config(**changes):
    return lambda folder: change_json(folder / "config.json", **changes)


def text(name, content):
    return lambda folder: write(folder, name, content)


def without(name):
    return lambda folder: (folder / name).unlink()


ARCHITECTURES = "does not name the model's class in a list `architectures`"
FOREIGN = {"AutoConfig": "a/b--c.D", "AutoModel": "a/b--modeling_luna.LunaModel"}
# What is done to a whole folder, and what is said of it.
DAMAGES = {
    "no folder": (shutil.rmtree, "is not a folder"),
    "no config": (without("config.json"), "has no config.json"),
    "broken config": (text("config.json", "{"), "config.json can't be read"),
    "config that is a list": (text("config.json", "[]"), ARCHITECTURES),
    "class that is no list": (config(architectures="LunaForMaskedLM"), ARCHITECTURES),
    "auto_map that is a list": (config(auto_map=["AutoModel"]), "`auto_map`"),
    "no auto_map": (config(auto_map=None), "`auto_map`"),
    "auto_map of one class": (config(auto_map={"AutoModelForMaskedLM": "modeling_luna.LunaForMaskedLM"}), "`auto_map`"),
    "auto_map of another repository": (config(auto_map=FOREIGN), "`auto_map`"),
    "no code": (without("configuration_luna.py"), "has no configuration_luna.py"),
    "broken card": (text("README.md", "---\ntags: [luna\n---\n"), "README.md is not valid YAML"),
    "card without metadata": (text("README.md", "# Luna\n"), "README.md has no metadata"),
    "no weights": (without("model.safetensors"), "has no weights"),
    "optimizer alone": (
        lambda folder: (folder / "model.safetensors").rename(folder / "optimizer.safetensors"),
        "has no weights",
    ),
    "no tokenizer": (without("tokenizer.json"), "has no tokenizer.json"),
}


def change_tokenizer(change):
    def damage(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        change(tokenizer)
        tokenizer.save_pretrained(folder)

    return damage


def break_model(folder):
    model = LunaForMaskedLM.from_pretrained(folder)
    model.lm_head.dense.bias.data[0] = float("nan")
    model.save_pretrained(folder)


# What only a fresh process finds.
DOES_NOT_RUN = {
    "code that fails": (text("modeling_luna.py", "class A(Missing): pass\n"), "name 'Missing' is not defined"),
    "code that ends the process": (text("modeling_luna.py", "import os\nos._exit(0)\n"), "its code ended the process"),
    "no numbers": (break_model, "gives values that are not finite"),
    "other weights": (config(num_hidden_layers=4), "are not of a LunaForMaskedLM"),
    "other vocabulary": (
        change_tokenizer(lambda tokenizer: tokenizer.add_tokens(["<more>"])),
        "has 322 tokens, but the model has embeddings for 321",
    ),
    "other padding": (
        change_tokenizer(lambda tokenizer: setattr(tokenizer, "pad_token", "<unk>")),
        "pads with id 3, but `pad_token_id` of the model is 1",
    ),
}


@pytest.mark.parametrize("case", [*DAMAGES, *(pytest.param(case, marks=pytest.mark.slow) for case in DOES_NOT_RUN)])
def test_folders_that_are_refused(case, folder, tmp_path):
    damage, sentence = (DAMAGES | DOES_NOT_RUN)[case]
    damage(folder)
    with refused(sentence, tmp_path):
        push.main([str(folder), "org/luna", "--dry_run"])


WRONG_NAMES = [(name, None, repr(name)) for name in ("luna", "org/luna/main", "org/lu na")]
WRONG_NAMES += [
    ("org/luna", name, f"`--revision` is {name!r}, which can't name a branch")
    for name in ("", "a b", "-x", "a..b", "a/", "/a", "a.lock", "refs/pr/1", "a~1", "é")
]


@pytest.mark.parametrize("name, revision, sentence", WRONG_NAMES)
def test_names_that_the_hub_would_not_take(name, revision, sentence):
    with refused(sentence):
        push.check_names(name, revision)


@pytest.mark.parametrize("revision", [None, "main", "step-10000", "v1.0", "a/b_c"])
def test_takes_branches(revision):
    push.check_names("org/luna", revision)


# ---------------------------------------------------------------------------------------------------------------------
# What is shown and run


@pytest.mark.slow
def test_the_code_that_is_checked_sees_no_token_and_the_note_comes_first(folder, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", "hf_mine")
    spy = "import os, pathlib\nraise RuntimeError(f'{sorted(os.environ)} {list(os.environ.values())} {pathlib.Path.home()}')"
    (folder / "modeling_luna.py").write_text(spy)
    with refused("RuntimeError: [") as error:
        push.main([str(folder), "org/luna", "--dry_run"])
    assert "note: modeling_luna.py is not the one of this project" in capsys.readouterr().out
    seen = str(error.value)
    assert "'PATH'" in seen and "TOKEN" not in seen and "hf_mine" not in seen
    assert str(Path.home()) not in seen.split("] ")[-1]


# ---------------------------------------------------------------------------------------------------------------------
# The Hub


def test_a_hub_that_cannot_be_reached_is_one_sentence(folder, no_fresh_process):
    with refused("can't be reached", folder):
        push.main([str(folder), "org/luna"])


LOG_IN, REFUSES = "log in with `hf auth login`", "The Hub refused org/luna ("
COMMIT, BRANCH = "POST /api/models/org/luna/commit/", "POST /api/models/org/luna/branch/"
# What the Hub of the test does, what is said, and what is there afterwards.
FAILURES = {
    "no token": ({"token": ""}, f"{REFUSES}401, Invalid username or password.): {LOG_IN}", set()),
    "token": ({"token": "hf_other"}, f"{REFUSES}401, Invalid credentials in Authorization header): {LOG_IN}", set()),
    "owner": ({"name": "them/luna"}, "use a token that may write there", set()),
    "public": ({"name": "org/public", "option": "--private"}, "org/public is there already and is public", set()),
    "card": ({"card": "---\nlicense: nonsense\n---\n"}, 'metadata of README.md ("license" must be one of [', set()),
    "disk": (
        {"PUT /lfs/": HubError(507, message="the disk is full")},
        "the disk is full): no file was changed there, give the same command again.",
        {"org/luna"},
    ),
    "commit": (
        {COMMIT: HubError(400, message="too old a client")},
        f"{REFUSES}400, too old a client): mend what it names.",
        {"org/luna"},
    ),
    "branch": ({BRANCH: HubError(404)}, "check the name, and that your token may see it", {"org/luna"}),
}


@pytest.mark.parametrize("case", FAILURES)
def test_what_the_hub_refuses_is_one_sentence_and_changes_nothing(case, folder, tmp_path, monkeypatch, no_fresh_process):
    changes, sentence, left = FAILURES[case]
    if "card" in changes:
        (folder / "README.md").write_text(changes["card"])
    with Hub() as hub:
        hub.serve_this_process(monkeypatch, tmp_path / "cache", changes.get("token", TOKEN))
        hub.failures = {request: answer for request, answer in changes.items() if isinstance(answer, HubError)}
        hub.repositories["org/public"] = public = Repository(private=False)
        public.commit("main", {})
        with refused(sentence, folder):
            push.main([str(folder), changes.get("name", "org/luna"), changes.get("option", "--revision=step-10")])
        assert hub.repositories.keys() == {"org/public"} | left
        for repository in hub.repositories.values():
            assert all(files.keys() <= {".gitattributes"} for files in repository.commits.values())


@pytest.mark.parametrize("has_card", [True, False])
def test_the_card_names_where_it_is_pushed_to_in_the_copy_alone(
    has_card, folder, tmp_path, capsys, monkeypatch, no_fresh_process
):
    """A folder without a card gets one there."""
    if has_card:
        mine = (folder / "README.md").read_text()
        (folder / "README.md").chmod(0o444)
    else:
        (folder / "README.md").unlink()
    before = tree(folder)
    with Hub() as hub:
        hub.serve_this_process(monkeypatch, tmp_path / "cache")
        for name, revision in (("org/try", "main"), ("org/luna", "main"), ("org/luna", "step-10")):
            push.main([str(folder), name, "--revision", revision])
            repository = hub.repositories[name]
            card = repository.commits[repository.branches[revision]]["README.md"].decode()
            assert f'name = "{name}"\n' in card and ('(name, revision="step-10"' in card) == (revision == "step-10")
            if has_card:
                assert card == named_card(mine, name, revision)
            else:
                assert "license: unknown" in card and "| parameters | 1,234 |" in card and str(tmp_path) not in card
    assert ("note: there is no README.md: one is uploaded" in capsys.readouterr().out) == (not has_card)
    assert tree(folder) == before


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

    def logits_of(model):
        with torch.no_grad():
            logits = model(**tokenizer("The moon goes around the earth.", return_tensors="pt")).logits
        return pytest.approx(logits.sum().item(), rel=1e-4)

    (folder / "trainer_state.json").write_text("{}")
    before = tree(folder)
    with Hub() as hub:
        online = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}
        # To main, by the command line, with all checks.
        environment = stranger_environment(tmp_path / "here", HF_TOKEN=TOKEN, PYTHONPATH=str(ROOT), **online)
        command = [sys.executable, "-m", "luna_tools.command_line", "push", str(folder), "org/luna"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0 and done.stdout.endswith(f"Uploaded: {hub.url}/org/luna\n"), done.stderr
        sums = [logits_of(model)]
        public = hub.repositories["org/luna"]
        files = public.commits[public.branches["main"]]
        assert files.keys() == FILES | {".gitattributes"} and tree(folder) == before
        assert files["README.md"].decode() == named_card(before["README.md"].decode(), "org/luna")
        assert all(files[name] == before[name] for name in FILES - {"README.md"})
        assert all(f"{len(files[name]):,}  {name}\n" in done.stdout for name in FILES)
        assert f"LunaForMaskedLM with {model.num_parameters():,} parameters" in done.stdout
        assert "note: left out, because only resuming a training needs it: trainer_state.json." in done.stdout
        assert "not the one of this project" not in done.stdout
        assert [request for request in hub.requests if request.startswith("PUT /lfs/")]

        # Other weights to a revision, and to a private repository.
        with torch.no_grad():
            model.lm_head.decoder.bias += 1
        model.save_pretrained(folder)
        hub.serve_this_process(monkeypatch, tmp_path)
        push.main([str(folder), "org/luna", "--revision", "step-10"])
        push.main([str(folder), "org/hidden", "--private"])
        assert [hub.repositories[name].private for name in ("org/luna", "org/hidden")] == [False, True]
        assert HfApi().list_repo_files("org/luna", revision="step-10") == sorted(FILES | {".gitattributes"})

        # By name into an empty cache; without a token the private one is as if it were not there. Then from the cache alone.
        wanted, sums = [("org/luna", None), ("org/luna", "step-10"), ("org/hidden", None)], [*sums, logits_of(model)]
        for offline, message in (("0", "org/hidden is not a local folder and is not a valid model identifier"), ("1", "")):
            hub.requests.clear()
            variables = online | {"HF_HUB_OFFLINE": offline}
            done = run_program(LOAD_BY_NAME, tmp_path / "there", json.dumps(wanted), **variables)
            assert [float(line) for line in done.stdout.split()] == sums and message in done.stderr, done.stderr
            assert bool(hub.requests) == (offline == "0")
