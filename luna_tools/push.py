# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Check a model folder as a stranger would use it, then upload it: `luna push FOLDER org/name`."""

import codecs
import fnmatch
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, get_session
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import hf_raise_for_status, validate_repo_id
from safetensors import safe_open

try:
    import httpx2 as httpx  # of huggingface_hub 2
except ImportError:
    import httpx  # of huggingface_hub 1

from luna_tools.cards import model_card, named_card
from luna_tools.errors import InputError, one_line, told
from luna_tools.publish import TRAINING_STATE, additions, files_to_upload
from luna_tools.settings import Parser

ROOT = Path(__file__).resolve().parents[1]  # where the model's code lies, in a clone as in an installed wheel
CODE_FILES = ("causal_luna.py", "configuration_luna.py", "modeling_luna.py")

# What a model repository holds: text, and binary files with what they start with.
TEXT = re.compile(r".*\.(json|jsonl|txt|md|py|yaml|yml|csv|tsv|jinja|svg)|\.gitattributes|\.gitignore|LICENSE|NOTICE")
BINARY = {r".*\.png": b"\x89PNG", r".*\.jpe?g": b"\xff\xd8\xff", r".*\.onnx": b"\x08", r".*\.onnx[._]data": b""}
PICKLE_NAME = re.compile(r".*\.(bin|pt|pth|pkl|pickle|ckpt|joblib|dill|pyc)(\.(gz|bz2|xz|zst))?", re.IGNORECASE)
PICKLE_START = re.compile(rb"\x80[\x02-\x05]")
SECRET_NAME = re.compile(
    r"\.env(\..*)?|.*\.(pem|key|p12|pfx)|\.(netrc|npmrc|pypirc|pgpass|htpasswd|git-credentials)|id_(rsa|dsa|ecdsa|ed25519)"
    r"|(credentials?|secrets?|token|stored_tokens|kaggle)(\.(json|txt|ya?ml|csv))?",
    re.IGNORECASE,
)
SECRETS = {
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{30,}",
    "an AWS key": r"\b(AKIA|ASIA)[A-Z0-9]{16}\b",
    "a GitHub token": r"\b(gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{60,})",
    "a GitLab token": r"\bglpat-[A-Za-z0-9_-]{20,}",
    "a token of a package index": r"\b(npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{50,})",
    "a Slack token": r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}",
    "a Google API key": r"\bAIza[A-Za-z0-9_-]{35}",
    "an API key": r"\bsk-[A-Za-z0-9_-]{32,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a password in an address": r"\b[a-z][a-z0-9+.-]*://[^\s/:@\"']+:[^\s/:@\"']+@",
    # A value of letters and digits under a telling name.
    "a password": r"(?im)(password|passwd|secret|(api|access|private)[_-]?key|auth[_-]?token)[\"']?\s*[:=]\s*[\"']?"
    r"(?=\S*\d)(?=\S*[a-z])[^\s\"'(){}\[\]<>,;]{8,}[\"']?\s*([,}]|$)",
}
# What the code of a folder gets to see of this process's environment: no tokens, no home.
SHARED_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "LANG", "TMPDIR", "OMP_NUM_THREADS")

# Runs in a process of its own, without this project: argv is the folder, the Auto class and the model's class.
LOAD_AND_RUN = """
import json, sys
sys.modules.update(dict.fromkeys(["modeling_luna", "configuration_luna", "causal_luna"]))
import torch, transformers
folder, auto_name, class_name = sys.argv[1:]
tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
auto_class = getattr(transformers, auto_name)
model, info = auto_class.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
vocabulary, pad = model.config.vocab_size, model.config.pad_token_id
wrong = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"], *info["unexpected_keys"]]))
if wrong:
    sys.exit(f"its weights are not of a {class_name}: {len(wrong)} are missing, unexpected or misshapen, as {wrong[0]}")
if len(tokenizer) > vocabulary:
    sys.exit(f"its tokenizer has {len(tokenizer)} tokens, but the model has embeddings for {vocabulary}")
if tokenizer.pad_token_id != pad:
    sys.exit(f"its tokenizer pads with id {tokenizer.pad_token_id}, but `pad_token_id` of the model is {pad}")
inputs = tokenizer(["The moon goes around the earth.", "Luna"], padding=True, return_tensors="pt")
if auto_name == "AutoModelForMultipleChoice":
    inputs = {name: tensor[None] for name, tensor in inputs.items()}
if auto_name == "AutoModelForSeq2SeqLM":
    inputs["decoder_input_ids"] = torch.full((2, 1), model.config.decoder_start_token_id)
with torch.no_grad():
    outputs = model.eval()(**inputs)
if not all(bool(x.isfinite().all()) for x in outputs.values() if torch.is_tensor(x) and x.is_floating_point()):
    sys.exit("it gives values that are not finite for a short text")
found = {"class": type(model).__name__, "parameters": model.num_parameters()}
print(json.dumps(found | {"model_vocabulary": vocabulary, "tokenizer_vocabulary": len(tokenizer)}))
"""


def check_files(folder: Path, names: list[str], allowed: list[str]) -> None:
    """Refuse pickles, what looks like a secret, and kinds of files that a model repository does not hold.

    Args:
        allowed: patterns of names that only the first is checked of.

    Raises:
        InputError: naming the file.
    """
    for name in names:
        path = folder / name
        with path.open("rb") as file:
            start = file.read(16)
        if PICKLE_NAME.fullmatch(path.name) or PICKLE_START.match(start):
            raise InputError(
                f"{path} may be a pickle, which runs code where it is loaded: remove it, or save the weights as safetensors "
                "with `save_pretrained`."
            )
        if any(fnmatch.fnmatch(name, pattern) for pattern in allowed):
            continue
        if SECRET_NAME.fullmatch(path.name):
            raise InputError(f"{path} has the name of a file with secrets: remove it from the folder.")
        if path.suffix == ".safetensors":
            check_safetensors(path, name)
        elif path.suffix == ".zip":
            check_zip(path, name)
        elif TEXT.fullmatch(path.name):
            check_text(str(path), name, path.read_bytes())
        elif magic := [magic for pattern, magic in BINARY.items() if re.fullmatch(pattern, path.name)]:
            if not start.startswith(magic[0]):
                raise InputError(f"{path} is not what its name says: remove it, or give it its own name.")
        else:
            raise InputError(
                f"{path} is of no kind that a model repository holds: remove it, or add --allow '{name}' if it is meant."
            )


def check_safetensors(path: Path, name: str) -> None:
    with told(f"{path} is not a whole file of safetensors", "save the model again"), safe_open(path, "numpy") as file:
        metadata = file.metadata() or {}
    check_text(str(path), name, json.dumps(metadata, ensure_ascii=False).encode())


def check_zip(path: Path, name: str) -> None:
    """Text alone, such as predictions to be submitted."""
    with told(f"{path} can't be read as a .zip file", "remove it"), zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            if not TEXT.fullmatch(Path(member).name):
                raise InputError(f"{path} holds {member}, which is not text: remove it.")
            check_text(f"{path} ({member})", name, archive.read(member))


def check_text(where: str, name: str, content: bytes) -> None:
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8"
    with told(f"{where} is not text, as its name says", "remove it, or write it as UTF-8"):
        text = content.decode(encoding)
        if "\0" in text:
            raise ValueError("it has a zero byte")
    for kind, pattern in SECRETS.items():
        if found := re.search(pattern, text):
            line = text.count("\n", 0, found.start()) + 1
            raise InputError(
                f"{where} holds what looks like {kind} in line {line}: remove it and revoke it, or add --allow '{name}' if "
                "it is none."
            )


def read_config(folder: Path) -> tuple[str, str]:
    """The Auto class and the class of the model in config.json.

    Raises:
        InputError: there is no config.json, or a stranger can't load the model by it.
    """
    resave = "load the model with luna-transformers and save it again with `save_pretrained`"
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{folder} has no config.json: give a folder that `save_pretrained` wrote.")
    with told(f"{path} can't be read", resave):
        config = json.loads(path.read_text(encoding="utf-8"))
    match config:
        case {"architectures": [str(class_name), *_]}:
            auto_map = config.get("auto_map")
        case _:
            raise InputError(f"{path} does not name the model's class in a list `architectures`: {resave}.")
    reference = f"modeling_luna.{class_name}"
    autos = [auto for auto in auto_map if auto_map[auto] == reference] if isinstance(auto_map, dict) else []
    if "AutoConfig" not in (auto_map or ()) or not autos:
        raise InputError(
            f"`auto_map` in {path} does not name AutoConfig and the Auto class of {class_name}, so nobody can load it by "
            f"its name: {resave}."
        )
    for name in CODE_FILES:
        if not (folder / name).is_file():
            raise InputError(f"{folder} has no {name}, the code that `auto_map` names: {resave}.")
    return autos[0], class_name


def check_card(folder: Path) -> None:
    """Raises InputError for a README.md that does not start with valid metadata."""
    path = folder / "README.md"
    if not path.is_file():
        return
    with told(f"The metadata of {path} is not valid YAML", "mend it"):
        card = ModelCard.load(path)
    if not card.data.to_dict():
        raise InputError(f"{path} has no metadata: start it with a block of YAML between two lines of `---`.")


def notes_on_code(folder: Path) -> list[str]:
    """Where the code that will run is not this project's."""
    return [
        f"note: {name} is not the one of this project; the check and the uploaded model run the folder's."
        for name in CODE_FILES
        if (folder / name).read_bytes() != (ROOT / name).read_bytes()
    ]


def check_model(folder: Path, auto_name: str, class_name: str) -> dict:
    """Load and run the model in a fresh process, with the folder's code alone. Returns what it found.

    Raises:
        InputError: it does not load or run, or model and tokenizer do not belong together.
    """
    if not any(folder.glob("model*.safetensors")):
        raise InputError(f"{folder} has no weights (model.safetensors): save the model with `save_pretrained`.")
    if not (folder / "tokenizer.json").is_file():
        raise InputError(f"{folder} has no tokenizer.json: save the tokenizer into it with `tokenizer.save_pretrained`.")
    shared = {name: os.environ[name] for name in SHARED_VARIABLES if name in os.environ}
    with tempfile.TemporaryDirectory() as elsewhere:
        done = subprocess.run(
            [sys.executable, "-I", "-c", LOAD_AND_RUN, str(folder.resolve()), auto_name, class_name],
            cwd=elsewhere,
            env=shared | {"HOME": elsewhere, "HF_HOME": elsewhere, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1].rstrip(".")
        raise InputError(
            f"{folder} does not load and run in a fresh process by {auto_name} ({reason}): save the model again, and the "
            "tokenizer that it was trained with."
        )
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError) as error:
        raise InputError(f"{folder} loads, but its code ended the process or printed after the model ran.") from error


def write_card(folder: Path, auto_name: str, found: dict, repository: str, revision: str | None) -> CommitOperationAdd:
    """A card for a folder that has none; the folder stays without."""
    from configuration_luna import LunaConfig

    card = model_card(LunaConfig.from_pretrained(folder), found["class"], auto_name, found["parameters"])
    return CommitOperationAdd("README.md", named_card(card, repository, revision).encode("utf-8"))


def describe(folder: Path, operations: list[CommitOperationAdd], found: dict) -> str:
    """What the checks found and what would be uploaded."""
    lines = [f"{found['class']} with {found['parameters']:,} parameters; loads and runs in a fresh process."]
    if found["tokenizer_vocabulary"] < found["model_vocabulary"]:
        lines.append(
            f"note: the model has embeddings for {found['model_vocabulary']} tokens, the tokenizer has "
            f"{found['tokenizer_vocabulary']}."
        )
    if left_out := [name for name in TRAINING_STATE if (folder / name).exists()]:
        lines.append(f"note: left out, because only resuming a training needs it: {', '.join(left_out)}.")
    if not (folder / "README.md").exists():
        lines.append("note: there is no README.md: one is uploaded that says what the model knows of itself.")
    sizes = {operation.path_in_repo: operation.upload_info.size for operation in operations}
    lines += [f"{size:>15,}  {name}" for name, size in sizes.items()]
    lines.append(f"{sum(sizes.values()):>15,}  bytes in {len(sizes)} files")
    return "\n".join(lines)


def upload(operations: list[CommitOperationAdd], message: str, repository: str, private: bool, revision: str | None) -> str:
    """Create repository and branch where they are missing, and upload in one commit. Returns the address.

    Raises:
        InputError: the Hub refused, or can't be reached.
    """
    api = HfApi()
    card = next(operation for operation in operations if operation.path_in_repo == "README.md")
    try:
        check_metadata(api, card.path_or_fileobj.decode("utf-8"))
        api.create_repo(repository, private=True if private else None, exist_ok=True)
        if private and not api.model_info(repository).private:
            raise InputError(f"{repository} is there already and is public: make it private first, or leave out --private.")
        if revision not in (None, "main"):
            api.create_branch(repository, branch=revision, exist_ok=True)
        api.create_commit(repository, operations, commit_message=message, revision=revision)
    except HfHubHTTPError as error:
        status = error.response.status_code
        remedy = {
            401: "log in with `hf auth login`, or set HF_TOKEN to a token that may write",
            403: "use a token that may write there, or another name",
            404: "check the name, and that your token may see it",
        }.get(status, "try again later" if status == 429 or status >= 500 else "mend what it names")
        reason = error.server_message or one_line(error)
        raise InputError(f"The Hub refused {repository} ({status}, {reason}): {remedy}.") from error
    except (httpx.TransportError, OfflineModeIsEnabled) as error:
        raise InputError(
            f"The Hub at {api.endpoint} can't be reached ({error}): check the network, HF_ENDPOINT and HF_HUB_OFFLINE."
        ) from error
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(one_line(part) for part in (error, error.__cause__) if part is not None)
        raise InputError(
            f"The upload to {repository} failed ({reason}): no file was changed there, give the same command again."
        ) from error
    return f"{api.endpoint}/{repository}" + ("" if revision is None else f"/tree/{revision}")


def check_metadata(api: HfApi, card: str) -> None:
    """Ask the Hub about the card before anything is created there. ModelCard.validate always asks huggingface.co.

    Raises:
        InputError: with what the Hub says.
    """
    answer = get_session().post(f"{api.endpoint}/api/validate-yaml", json={"repoType": "model", "content": card})
    if answer.status_code == 400:
        reasons = "; ".join(str(error.get("message")) for error in answer.json().get("errors", []))
        raise InputError(f"The Hub refuses the metadata of README.md ({' '.join(reasons.split())}): mend it.")
    hf_raise_for_status(answer)


def check_names(repository: str, revision: str | None) -> None:
    """Raises InputError for what is no name of a repository or a branch."""
    with told(f"{repository!r} is not a name on the Hub", "give org/name"):
        validate_repo_id(repository)
    if "/" not in repository:
        raise InputError(f"{repository!r} does not say whose it is: give org/name.")
    is_branch = revision is None or re.fullmatch(r"(?!refs/)\w([\w-]|[./](?=\w))*(?<!\.lock)", revision, re.ASCII)
    if not is_branch:
        raise InputError(f"`--revision` is {revision!r}, which can't name a branch: give for example step-10000.")


@dataclass
class PushOptions:
    private: bool = False
    """Only you and your organisation can see it."""
    revision: str | None = None
    """Upload to this branch, for example step-10000, and not to main."""
    dry_run: bool = False
    """Check and show, and upload nothing."""
    allow: list[str] = field(default_factory=list)
    """Patterns of names that are uploaded though their kind is unknown or a secret seems to be in them (never a pickle)."""


def main(argv: list[str]) -> None:
    parser = Parser("luna push", __doc__.partition(":")[0], PushOptions, words=("FOLDER", "org/name"))
    (name, repository), options = parser.parse_command(argv)
    folder = Path(name)
    check_names(repository, options.revision)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder.")
    names = files_to_upload(folder)
    check_files(folder, names, options.allow)
    auto_name, class_name = read_config(folder)
    check_card(folder)
    for note in notes_on_code(folder):
        print(note, flush=True)
    found = check_model(folder, auto_name, class_name)
    operations = additions(folder, names, repository, options.revision)
    if "README.md" not in names:
        operations.append(write_card(folder, auto_name, found, repository, options.revision))
    print(describe(folder, operations, found))
    if options.dry_run:
        print(f"Nothing was uploaded to {repository}: this was a dry run.")
        return
    address = upload(operations, f"Upload {folder.resolve().name}", repository, options.private, options.revision)
    print(f"Uploaded: {address}")
