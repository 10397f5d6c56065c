# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""What `luna push` refuses, and a round trip to a Hub on loopback."""

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
from safetensors.numpy import save_file
from transformers import AutoTokenizer

from luna_tools import push
from luna_tools.cards import UNNAMED
from luna_tools.command_line import run
from luna_tools.errors import InputError
from luna_tools.publish import files_to_upload
from modeling_luna import LunaForMaskedLM
from tests.support.folders import save_whole
from tests.support.fresh_process import ROOT, run_program, stranger_environment
from tests.support.hub_server import TOKEN, Hub, HubError, Repository

CODE_FILES = {"configuration_luna.py", "modeling_luna.py"}
FILES = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} | CODE_FILES


@pytest.fixture(scope="module")
def whole_folder(tmp_path_factory):
    return save_whole(tmp_path_factory.mktemp("whole") / "luna")


@pytest.fixture
def folder(whole_folder, tmp_path):
    return shutil.copytree(whole_folder, tmp_path / "luna")


def change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def write(name, content):
    def damage(folder):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

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
    "unknown kind": (
        write("sub/notes.docx", "PK"),
        "is of no kind that a model repository holds: remove it, or add --allow",
    ),
    "optimizer alone": (
        lambda folder: (folder / "model.safetensors").rename(folder / "optimizer.safetensors"),
        "no weights",
    ),
    "no config": (remove("config.json"), "has no config.json"),
    "broken config": (write("config.json", "{"), "config.json can't be read"),
    "config that is a list": (write("config.json", "[]"), "does not name the model's class in a list `architectures`"),
    "class that is no list": (
        lambda folder: change_config(folder, architectures="LunaForMaskedLM"),
        "does not name the model's class in a list `architectures`",
    ),
    "auto_map that is a list": (lambda folder: change_config(folder, auto_map=["AutoModel"]), "`auto_map`"),
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
    "broken card": (write("README.md", "---\ntags: [luna\n---\n"), "README.md is not valid YAML"),
    "card without metadata": (write("README.md", "# Luna\n"), "README.md has no metadata"),
    "no weights": (remove("model.safetensors"), "has no weights"),
    "no tokenizer": (remove("tokenizer.json"), "has no tokenizer.json"),
}


@pytest.mark.parametrize(("damage", "message"), REFUSED.values(), ids=REFUSED)
def test_refuses_in_one_sentence(damage, message, folder, capsys):
    damage(folder)
    assert run("push", [str(folder), "org/luna", "--dry_run"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ") and message in output.err and output.err.count("\n") == 1


@pytest.mark.parametrize("name", ["luna", "org/luna/main", "org/lu na"])
def test_refuses_names_that_the_hub_would_not_take(name, folder, capsys):
    assert run("push", [str(folder), name]) == 2
    assert repr(name) in capsys.readouterr().err


@pytest.mark.parametrize("revision", ["", "a b", "-x", "a..b", "a/", "/a", "a.lock", "refs/pr/1", "a~1", "é"])
def test_refuses_what_is_no_branch(revision, folder, capsys):
    assert run("push", [str(folder), "org/luna", f"--revision={revision}"]) == 2
    assert f"`--revision` is {revision!r}, which can't name a branch" in capsys.readouterr().err


@pytest.mark.parametrize("revision", [None, "main", "step-10000", "v1.0", "a/b_c"])
def test_takes_branches(revision):
    push.check_names("org/luna", revision)


SECRETS = {
    "hf.txt": "hf_" + "A" * 34,
    "utf16.txt": ("hf_" + "A" * 34).encode("utf-16"),
    "aws.json": '{"aws_secret_access_key": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"}',
    "slack.txt": "xoxb-" + "123456789012-" * 2 + "abcdefghijklmnop",
    "google.txt": "AIza" + "A" * 35,
    "wandb.txt": "WANDB_API_KEY=" + "a1" * 20,
    "password.yaml": "password: hunter2hunter2",
    "index.txt": "pypi-" + "A" * 60,
}
SECRET_FILES = ".npmrc .pypirc .htpasswd .netrc .env.local secrets.json credentials token id_rsa a.pem".split()
PICKLE = pickle.dumps({"a": 1})
PICKLES = {
    "model.dill": b"",
    "model.pkl.gz": b"",
    "__pycache__/m.cpython-311.pyc": b"",
    "LICENSE": PICKLE,
    "noext": PICKLE,
    "x.safetensors": PICKLE,
    "weights.onnx_data": PICKLE,
}


@pytest.mark.parametrize("name", [*SECRETS, *SECRET_FILES, *PICKLES])
def test_refuses_secrets_and_pickles(name, folder):
    write(name, (SECRETS | PICKLES).get(name, "mine"))(folder)
    said = "holds what looks like" if name in SECRETS else "name of a file with secrets"
    if name in PICKLES:
        said = "may be a pickle"
    with pytest.raises(InputError, match=said):
        push.check_files(folder, files_to_upload(folder), [])
    # Pickles are refused whatever was allowed.
    if name in PICKLES:
        with pytest.raises(InputError, match=said):
            push.check_files(folder, files_to_upload(folder), ["*"])
    else:
        push.check_files(folder, files_to_upload(folder), [name])


def write_zip(name, **members):
    def damage(folder):
        with zipfile.ZipFile(folder / name, "w") as archive:
            for member, content in members.items():
                archive.writestr(member.replace("_", "."), content)

    return damage


# No pickle by name or first bytes, and not what the name says.
OTHERS = {
    "weights.npy": (lambda folder: np.save(folder / "weights.npy", [{}], allow_pickle=True), "is of no kind"),
    "ckpt.tar": (write("ckpt.tar", ""), "is of no kind"),
    "id_rsa.pub": (write("id_rsa.pub", "ssh-rsa"), "is of no kind"),
    "x.safetensors": (write("x.safetensors", b"cos\nsystem\n(S'id'\ntR."), "is not a whole file of safetensors"),
    "metadata": (
        lambda folder: save_file({"a": np.zeros(1)}, folder / "x.safetensors", {"note": "hf_" + "A" * 34}),
        "x.safetensors holds what looks like a Hugging Face token",
    ),
    "weights in a zip": (lambda folder: torch.save({}, folder / "x.zip"), "data.pkl, which is not text"),
    "token in a zip": (write_zip("x.zip", a_tsv="hf_" + "A" * 34), "(a.tsv) holds what looks like a Hugging Face token"),
    "broken zip": (write("x.zip", b"PK\x03\x04"), "can't be read as a .zip file"),
    "picture": (write("x.png", b"cos\nsystem\n(S'id'\ntR."), "is not what its name says"),
    "text with a zero": (write("x.txt", b"a\0b"), "is not text, as its name says"),
    "latin-1": (write("x.txt", "é".encode("latin-1")), "is not text, as its name says"),
}


@pytest.mark.parametrize(("damage", "message"), OTHERS.values(), ids=OTHERS)
def test_refuses_what_is_not_what_it_says(damage, message, folder):
    damage(folder)
    with pytest.raises(InputError) as error:
        push.check_files(folder, files_to_upload(folder), [])
    assert message in str(error.value)


def test_harmless_files_pass(folder):
    write("notes.txt", "The keys are hf_token and sk-learn, see http://host:80/a@b.")(folder)
    write("credentials_howto.md", "Set `password` = None; secret_key: see https://example.org/page1.")(folder)
    write("run.json", '{"hub_token": null, "password": 12345678, "api_key": "your key 1"}')(folder)
    write("code.py", "def login(password: str = None, api_key=args.api_key): return os.environ['SECRET1']")(folder)
    write("sub/curve.png", b"\x89PNG\r\n")(folder)
    write_zip("submission.zip", CoLA_tsv="index\tprediction\n0\t1\n")(folder)
    push.check_files(folder, files_to_upload(folder), [])


@pytest.mark.slow
def test_dry_run_shows_what_would_be_uploaded_and_says_that_the_code_differs(folder, capsys):
    (folder / "modeling_luna.py").write_text((folder / "modeling_luna.py").read_text() + "\n# mine\n")
    (folder / "trainer_state.json").write_text("{}")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert run("push", [str(folder), "org/luna", "--dry_run"]) == 0
    shown = capsys.readouterr().out
    parameters = LunaForMaskedLM.from_pretrained(folder).num_parameters()
    assert f"LunaForMaskedLM with {parameters:,} parameters" in shown and "dry run" in shown
    assert "note: modeling_luna.py is not the one of this project" in shown and "note: config" not in shown
    assert "note: left out, because only resuming a training needs it: trainer_state.json." in shown
    longer = len('name = "org/luna"') - len(UNNAMED)
    for name in FILES:
        size = (folder / name).stat().st_size + (longer if name == "README.md" else 0)
        assert f"{size:,}  {name}\n" in shown
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_folder_without_a_card_gets_one_on_the_hub_alone(folder, tmp_path, capsys, monkeypatch):
    """save_pretrained writes none."""
    (folder / "README.md").unlink()
    found = {"class": "LunaForMaskedLM", "parameters": 1234, "tokenizer_vocabulary": 321, "model_vocabulary": 321}
    monkeypatch.setattr(push, "check_model", lambda *_: found)
    with Hub() as hub:
        hub.serve_this_process(monkeypatch, tmp_path / "cache")
        assert run("push", [str(folder), "org/luna", "--revision", "step-10"]) == 0
        repository = hub.repositories["org/luna"]
        card = repository.commits[repository.branches["step-10"]]["README.md"].decode()
    assert "note: there is no README.md: one is uploaded" in capsys.readouterr().out
    assert "license: unknown" in card and "| parameters | 1,234 |" in card and str(tmp_path) not in card
    assert 'name = "org/luna"\n' in card and 'from_pretrained(name, revision="step-10", trust_remote_code=True)' in card
    assert not (folder / "README.md").exists()


@pytest.mark.slow
def test_the_code_that_is_checked_sees_no_token_and_the_note_comes_first(folder, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", "hf_mine")
    spy = (
        "import os, pathlib\nraise RuntimeError(f'{sorted(os.environ)} {list(os.environ.values())} {pathlib.Path.home()}')\n"
    )
    (folder / "modeling_luna.py").write_text(spy)
    assert run("push", [str(folder), "org/luna", "--dry_run"]) == 2
    output = capsys.readouterr()
    assert "note: modeling_luna.py is not the one of this project" in output.out
    assert "RuntimeError: [" in output.err and "'PATH'" in output.err
    assert "TOKEN" not in output.err and "hf_mine" not in output.err and str(Path.home()) not in output.err.split("] ")[-1]


@pytest.mark.slow
def test_code_that_ends_the_process_is_one_sentence(folder, capsys):
    (folder / "modeling_luna.py").write_text("import os\nos._exit(0)\n")
    assert run("push", [str(folder), "org/luna", "--dry_run"]) == 2
    error = capsys.readouterr().err
    assert "its code ended the process" in error and error.count("\n") == 1


@pytest.fixture
def no_fresh_process(monkeypatch):
    monkeypatch.setattr(push, "check_model", lambda *_: {})
    monkeypatch.setattr(push, "describe", lambda *_: "")


def test_a_hub_that_cannot_be_reached_is_one_sentence(folder, capsys, no_fresh_process):
    assert run("push", [str(folder), "org/luna"]) == 2
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
        assert run("push", [str(folder), *arguments]) == 2
        assert hub.repositories == {"org/public": public} and public.commits[public.branches["main"]] == {}
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


FULL = {"PUT /lfs/": HubError(507, message="the disk is full")}
TOO_OLD = {"POST /api/models/org/luna/commit/": HubError(400, message="too old a client")}


@pytest.mark.parametrize(
    ("card", "failures", "message", "left"),
    [
        ("---\nlicense: nonsense\n---\n", {}, 'metadata of README.md ("license" must be one of [', set()),
        (None, FULL, "the disk is full): no file was changed there, give the same command again.", {"org/luna"}),
        (None, TOO_OLD, "The Hub refused org/luna (400, too old a client): mend what it names.", {"org/luna"}),
        (None, {"POST /api/models/org/luna/branch/": HubError(404)}, "check the name, and that your token", {"org/luna"}),
    ],
    ids=["card", "disk", "commit", "branch"],
)
def test_an_upload_that_fails_is_one_sentence_and_leaves_the_folder_alone(
    card, failures, message, left, folder, tmp_path, capsys, monkeypatch, no_fresh_process
):
    if card is not None:
        (folder / "README.md").write_text(card)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with Hub() as hub:
        hub.serve_this_process(monkeypatch, tmp_path / "cache")
        hub.failures = failures
        assert run("push", [str(folder), "org/luna", "--revision", "step-10"]) == 2
        assert hub.repositories.keys() == left
        for repository in hub.repositories.values():
            assert all(files.keys() == {".gitattributes"} for files in repository.commits.values())
    error = capsys.readouterr().err.partition("error: ")[2]  # the progress of the upload comes before
    assert message in error and error.count("\n") == 1
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_the_card_names_where_it_is_pushed_to_in_the_copy_alone(folder, tmp_path, monkeypatch, no_fresh_process):
    mine = f"""---
license: mit
---
```python
{UNNAMED}
AutoModel.from_pretrained(name, trust_remote_code=True)
pipeline("fill-mask", model=name)
```
"""
    (folder / "README.md").write_text(mine)
    (folder / "README.md").chmod(0o444)
    with Hub() as hub:
        hub.serve_this_process(monkeypatch, tmp_path / "cache")
        for arguments in (["org/try"], ["org/luna"], ["org/luna", "--revision", "step-10"]):
            assert run("push", [str(folder), *arguments]) == 0

        def card(name, branch="main"):
            return hub.repositories[name].commits[hub.repositories[name].branches[branch]]["README.md"].decode()

        for name in ("org/try", "org/luna"):
            assert card(name) == mine.replace(UNNAMED, f'name = "{name}"')
        assert 'name = "org/luna"\n' in card("org/luna", "step-10")
        assert 'from_pretrained(name, revision="step-10", trust_remote_code=True)' in card("org/luna", "step-10")
        assert 'pipeline("fill-mask", model=name, revision="step-10")' in card("org/luna", "step-10")
    assert (folder / "README.md").read_text() == mine


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
    assert run("push", [str(folder), "org/luna", "--dry_run"]) == 2
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
        environment = stranger_environment(tmp_path / "here", HF_TOKEN=TOKEN, PYTHONPATH=str(ROOT), **online)
        command = [sys.executable, "-m", "luna_tools.command_line", "push", str(folder), "org/luna"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0 and done.stdout.endswith(f"Uploaded: {hub.url}/org/luna\n"), done.stderr
        on_main = logits_of(model)
        public = hub.repositories["org/luna"]
        files = public.commits[public.branches["main"]]
        assert files.keys() == FILES | {".gitattributes"}
        for name in FILES - {"README.md"}:
            assert files[name] == (folder / name).read_bytes()
        assert files["README.md"].decode() == (folder / "README.md").read_text().replace(UNNAMED, 'name = "org/luna"')
        assert [request for request in hub.requests if request.startswith("PUT /lfs/")]

        # Other weights to a revision, and to a private repository.
        with torch.no_grad():
            model.lm_head.decoder.bias += 1
        model.save_pretrained(folder)
        hub.serve_this_process(monkeypatch, tmp_path)
        assert run("push", [str(folder), "org/luna", "--revision", "step-10"]) == 0
        assert run("push", [str(folder), "org/hidden", "--private"]) == 0
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
