# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Check a model folder as a stranger would use it, then upload it: `python scripts/push_to_hub.py FOLDER org/name`."""

import argparse
import fnmatch
import glob
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import DEFAULT_IGNORE_PATTERNS, validate_repo_id

try:
    import httpx2 as httpx  # of huggingface_hub 2
except ImportError:
    import httpx  # of huggingface_hub 1

ROOT = Path(__file__).parents[1]
CODE_FILES = ("configuration_luna.py", "modeling_luna.py")
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")
SECRET_NAMES = (
    ".env",
    ".env.*",
    "*.pem",
    "*.key",
    ".netrc",
    "id_rsa*",
    "id_ed25519*",
    "credentials*",
    ".git-credentials",
    "token",
)
SECRETS = {
    "a Hugging Face token": rb"\bhf_[A-Za-z0-9]{30,}",
    "an AWS key": rb"\b(AKIA|ASIA)[A-Z0-9]{16}\b",
    "a GitHub token": rb"\b(gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{60,})",
    "an API key": rb"\bsk-[A-Za-z0-9_-]{32,}",
    "a private key": rb"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a password in an address": rb"\b[a-z][a-z0-9+.-]*://[^\s/:@\"']+:[^\s/:@\"']+@",
}
# What save_pretrained's card says where it does not know the name on the Hub.
UNNAMED = 'name = "."  # this folder, or its name on the Hub'

# Runs in a process of its own, without this project: argv is the folder, the Auto class and the model's class.
LOAD_AND_RUN = """
import json, sys
sys.modules.update(dict.fromkeys(["modeling_luna", "configuration_luna"]))
import torch, transformers
folder, auto_name, class_name = sys.argv[1:]
tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
auto_class = getattr(transformers, auto_name)
model, info = auto_class.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
model.eval()
inputs = tokenizer(["The moon goes around the earth.", "Luna"], padding=True, return_tensors="pt")
if auto_name == "AutoModelForMultipleChoice":
    inputs = {name: tensor[None] for name, tensor in inputs.items()}
in_range = int(inputs["input_ids"].max()) < model.config.vocab_size
with torch.no_grad():
    outputs = model(**inputs) if in_range else {}
print(json.dumps({
    "class": type(model).__name__,
    "missing": sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"], *info["unexpected_keys"]])),
    "parameters": model.num_parameters(),
    "model_vocabulary": model.config.vocab_size, "tokenizer_vocabulary": len(tokenizer),
    "model_pad": model.config.pad_token_id, "tokenizer_pad": tokenizer.pad_token_id,
    "finite": all(bool(x.isfinite().all()) for x in outputs.values() if torch.is_tensor(x) and x.is_floating_point()),
}))
"""


class PushError(Exception):
    """A folder or a request that nothing was uploaded for; its message is one sentence for the user."""


def files_to_upload(folder: Path) -> list[str]:
    """The files, by name relative to the folder, without what huggingface_hub never uploads (.git, its own cache)."""
    names = sorted(str(path.relative_to(folder).as_posix()) for path in folder.rglob("*") if path.is_file())
    return [name for name in names if not any(fnmatch.fnmatch(name, pattern) for pattern in DEFAULT_IGNORE_PATTERNS)]


def check_files(folder: Path, names: list[str]) -> None:
    """Refuse pickles and secrets.

    Raises:
        PushError: naming the file.
    """
    for name in names:
        if Path(name).suffix.lower() in PICKLES:
            raise PushError(
                f"{folder / name} may be a pickle, which runs code where it is loaded: remove it, or save the weights as "
                "safetensors with `save_pretrained`."
            )
    for name in names:
        if any(fnmatch.fnmatch(Path(name).name.lower(), pattern) for pattern in SECRET_NAMES):
            raise PushError(f"{folder / name} has the name of a file with secrets: remove it from the folder.")
        if name.endswith(".safetensors"):
            continue
        content = (folder / name).read_bytes()
        for kind, pattern in SECRETS.items():
            if found := re.search(pattern, content):
                line = content[: found.start()].count(b"\n") + 1
                raise PushError(f"{folder / name} holds what looks like {kind} in line {line}: remove it, and revoke it.")


def read_config(folder: Path) -> tuple[str, str]:
    """The Auto class and the class of the model in config.json.

    Raises:
        PushError: there is no config.json, or a stranger can't load the model by it.
    """
    resave = "load the model with luna-transformers and save it again with `save_pretrained`"
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise PushError(f"{folder} has no config.json: give a folder that `save_pretrained` wrote.") from error
    except (ValueError, OSError) as error:
        raise PushError(f"{folder / 'config.json'} can't be read ({error}): {resave}.") from error
    auto_map = config.get("auto_map") or {}
    class_name = (config.get("architectures") or [None])[0]
    autos = [auto for auto, reference in auto_map.items() if reference == f"modeling_luna.{class_name}"]
    if "AutoConfig" not in auto_map or not autos:
        raise PushError(
            f"`auto_map` in {folder / 'config.json'} does not name AutoConfig and the Auto class of {class_name}, so nobody "
            f"can load it by its name: {resave}."
        )
    for name in CODE_FILES:
        if not (folder / name).is_file():
            raise PushError(f"{folder} has no {name}, the code that `auto_map` names: {resave}.")
    return autos[0], class_name


def check_card(folder: Path) -> None:
    """Raises PushError unless README.md is there and starts with valid metadata."""
    path = folder / "README.md"
    if not path.is_file():
        raise PushError(f"{folder} has no README.md: write a model card, or have one written by `save_pretrained`.")
    try:
        card = ModelCard.load(path)
    except (yaml.YAMLError, ValueError) as error:
        raise PushError(f"The metadata of {path} is not valid YAML ({' '.join(str(error).split())}): mend it.") from error
    if not card.data.to_dict():
        raise PushError(f"{path} has no metadata: start it with a block of YAML between two lines of `---`.")


def check_model(folder: Path, auto_name: str, class_name: str) -> dict:
    """Load and run the model in a fresh process, with the folder's code alone. Returns what it found.

    Raises:
        PushError: it does not load or run, or model and tokenizer do not belong together.
    """
    if not any(folder.glob("*.safetensors")):
        raise PushError(f"{folder} has no weights (*.safetensors): save the model with `save_pretrained`.")
    if not (folder / "tokenizer.json").is_file():
        raise PushError(f"{folder} has no tokenizer.json: save the tokenizer into it with `tokenizer.save_pretrained`.")
    with tempfile.TemporaryDirectory() as elsewhere:
        done = subprocess.run(
            [sys.executable, "-I", "-c", LOAD_AND_RUN, str(folder.resolve()), auto_name, class_name],
            cwd=elsewhere,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": elsewhere, "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise PushError(f"{folder} does not load and run in a fresh process by {auto_name}: {reason}")
    found = json.loads(done.stdout.splitlines()[-1])
    if found["missing"]:
        raise PushError(
            f"The weights in {folder} are not of a {class_name} ({len(found['missing'])} are missing, unexpected or of "
            f"another shape, the first is {found['missing'][0]}): save the model again."
        )
    if found["tokenizer_vocabulary"] > found["model_vocabulary"]:
        raise PushError(
            f"The tokenizer in {folder} has {found['tokenizer_vocabulary']} tokens, but the model has embeddings for "
            f"{found['model_vocabulary']}: save the tokenizer that the model was trained with."
        )
    if found["tokenizer_pad"] != found["model_pad"]:
        raise PushError(
            f"The tokenizer in {folder} pads with id {found['tokenizer_pad']}, but `pad_token_id` of the model is "
            f"{found['model_pad']}: save the tokenizer that the model was trained with."
        )
    if not found["finite"]:
        raise PushError(f"The model in {folder} gives values that are not finite for a short text: it is broken.")
    return found


def describe(folder: Path, names: list[str], found: dict) -> str:
    """What the checks found and what would be uploaded."""
    lines = [f"{found['class']} with {found['parameters']:,} parameters; loads and runs in a fresh process."]
    if found["tokenizer_vocabulary"] < found["model_vocabulary"]:
        lines.append(
            f"note: the model has embeddings for {found['model_vocabulary']} tokens, the tokenizer has "
            f"{found['tokenizer_vocabulary']}."
        )
    for name in CODE_FILES:
        if (folder / name).read_bytes() != (ROOT / name).read_bytes():
            lines.append(f"note: {name} is not the one of this project; the uploaded model will run the folder's.")
    sizes = {name: (folder / name).stat().st_size for name in names}
    lines += [f"{size:>15,}  {name}" for name, size in sizes.items()]
    lines.append(f"{sum(sizes.values()):>15,}  bytes in {len(names)} files")
    return "\n".join(lines)


def upload(folder: Path, names: list[str], repository: str, private: bool, revision: str | None) -> str:
    """Create repository and branch where they are missing, and upload. Returns the address.

    Raises:
        PushError: the Hub refused, or can't be reached.
    """
    api = HfApi()
    try:
        api.create_repo(repository, private=True if private else None, exist_ok=True)
        if private and not api.model_info(repository).private:
            raise PushError(f"{repository} is there already and is public: make it private first, or leave out --private.")
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True)
        card = (folder / "README.md").read_text(encoding="utf-8")
        if UNNAMED in card:
            (folder / "README.md").write_text(card.replace(UNNAMED, f'name = "{repository}"'), encoding="utf-8")
            print(f"README.md: its example loads {repository} now.")
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=[glob.escape(name) for name in names],
            revision=revision,
            commit_message=f"Upload {folder.name}",
        )
    except HfHubHTTPError as error:
        status = error.response.status_code
        remedy = {
            401: "log in with `hf auth login`, or set HF_TOKEN to a token that may write",
            403: "use a token that may write there, or another name",
        }.get(status, "try again later")
        reason = error.server_message or " ".join(str(error).split())
        raise PushError(f"The Hub refused {repository} ({status}, {reason}): {remedy}.") from error
    except (httpx.TransportError, OfflineModeIsEnabled) as error:
        raise PushError(
            f"The Hub at {api.endpoint} can't be reached ({error}): check the network, HF_ENDPOINT and HF_HUB_OFFLINE."
        ) from error
    return f"{api.endpoint}/{repository}" + ("" if revision is None else f"/tree/{revision}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a folder with model, tokenizer and card, as `save_pretrained` writes it")
    parser.add_argument("repository", metavar="org/name", help="its name on the Hub; it is created where it is missing")
    parser.add_argument("--private", action="store_true", help="only you and your organisation can see it")
    parser.add_argument("--revision", help="upload to this branch, for example step-10000, and not to main")
    parser.add_argument("--dry-run", action="store_true", help="check and show, and upload nothing")
    args = parser.parse_args(arguments)
    try:
        try:
            validate_repo_id(args.repository)
        except HFValidationError as error:
            raise PushError(f"{args.repository!r} is not a name on the Hub: {error}") from error
        if "/" not in args.repository:
            raise PushError(f"{args.repository!r} does not say whose it is: give org/name.")
        if not args.folder.is_dir():
            raise PushError(f"{args.folder} is not a folder.")
        names = files_to_upload(args.folder)
        check_files(args.folder, names)
        auto_name, class_name = read_config(args.folder)
        check_card(args.folder)
        print(describe(args.folder, names, check_model(args.folder, auto_name, class_name)))
        if args.dry_run:
            print(f"Nothing was uploaded to {args.repository}: this was a dry run.")
            return 0
        address = upload(args.folder, names, args.repository, args.private, args.revision)
        print(f"Uploaded: {address}")
        return 0
    except PushError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
