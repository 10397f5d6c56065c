# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""A Hub for tests: the part of the Hub's API that huggingface_hub uses for model repositories, on loopback, in memory.

Repositories with branches and commits, regular and LFS files, private repositories, one token, a check of cards' metadata.
There is no xet: its clients need HF_HUB_DISABLE_XET=1. What a test has to know afterwards is in `requests` and
`repositories`; what is to be refused it puts into `failures`.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml
from huggingface_hub import constants, hf_api
from transformers.utils import hub

TOKEN = "hf_" + "x" * 8  # shorter than a real one
LFS_SUFFIXES = (".safetensors", ".png")
LICENSES = ("apache-2.0", "bsd-3-clause", "cc-by-4.0", "mit", "other", "unknown")
REPOSITORY = r"([\w.-]+/[\w.-]+)"


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


# The metadata of a card: a type, or what lists and objects hold. At the top a field may be left out.
NAMED = {"type": str, "name": str}
RESULT = {"task": {"type": str}, "dataset": NAMED, "metrics": [{"type": str, "value": int | float}]}
METADATA = dict.fromkeys(("license", "library_name", "pipeline_tag", "base_model", "language"), str)
METADATA |= dict.fromkeys(("tags", "metrics", "datasets"), [str]) | {"model-index": [{"name": str, "results": [RESULT]}]}


def schema_errors(value: object, schema: object, where: str = "") -> list[str]:
    if isinstance(schema, list) and isinstance(value, list):
        return [error for i, x in enumerate(value) for error in schema_errors(x, schema[0], f"{where}[{i}]")]
    if isinstance(schema, dict) and isinstance(value, dict):
        return [error for key, x in schema.items() for error in schema_errors(value.get(key), x, f"{where}.{key}")]
    if isinstance(schema, list | dict) or not isinstance(value, schema):
        return [f'"{where.removeprefix(".")}" must be of {schema}']
    return []


def metadata_errors(card: str) -> list[str]:
    """What the Hub would say of the YAML at the start of a card, as far as the cards of this project use it."""
    parts = card.split("---\n")
    try:
        data = yaml.safe_load(parts[1]) if len(parts) > 2 and not parts[0] else {}
    except yaml.YAMLError as error:
        return [f"Invalid YAML: {error}"]
    errors = schema_errors(data, {name: schema for name, schema in METADATA.items() if name in data})
    if data.get("license", "mit") not in LICENSES:
        errors.append(f'"license" must be one of [{", ".join(LICENSES)}, ...]')
    return errors


@dataclass
class Repository:
    """Commits are {path: content}; a branch is the id of its newest commit."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        oid = hashlib.sha1(f"{branch} {len(self.commits)}".encode()).hexdigest()
        self.commits[oid] = files
        self.branches[branch] = oid
        return oid


class HubError(Exception):
    """An answer other than success: the status, and the code by which huggingface_hub chooses its exception."""

    def __init__(self, status: int, code: str = "", message: str = ""):
        super().__init__(message)
        self.status, self.headers = status, {"X-Error-Code": code, "X-Error-Message": message}


class Hub(ThreadingHTTPServer):
    """`with Hub() as hub:` serves at `hub.url`, the HF_ENDPOINT of its clients."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}  # LFS content by SHA-256
        self.requests: list[str] = []
        self.failures: dict[str, HubError] = {}  # start of a request, such as "PUT /lfs/" -> the answer to it

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def serve_this_process(self, monkeypatch, cache: Path, token: str = TOKEN) -> None:
        """Make this process a client: huggingface_hub has read the environment when it was imported."""
        monkeypatch.setenv("HF_TOKEN", token)
        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", self.url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(hf_api.api, "endpoint", self.url)
        monkeypatch.setattr(hub, "_hf_api", None, raising=False)  # transformers' own client, made at its first use

    def __exit__(self, *exception):
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def handle_request(self):
        self.path = urlsplit(self.path).path
        self.server.requests.append(f"{self.command} {self.path}")
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = b"".join(iter(self.read_chunk, b""))
        self.is_authorized = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        try:
            if self.headers.get("Authorization") and not self.is_authorized:
                raise HubError(401, message="Invalid credentials in Authorization header")
            for start, failure in self.server.failures.items():
                if f"{self.command} {self.path}".startswith(start):
                    raise failure
            for methods, pattern, answer in ROUTES:
                if self.command in methods.split() and (match := re.fullmatch(pattern, self.path)):
                    return answer(self, *map(unquote, match.groups()))
            raise HubError(404, message=f"no such route: {self.command} {self.path}")
        except HubError as error:
            self.send(b"{}", error.status, error.headers)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def read_chunk(self) -> bytes:
        chunk = self.rfile.read(int(self.rfile.readline(), 16))
        self.rfile.readline()
        return chunk

    def send(self, content: bytes | dict | list, status: int = 200, headers: dict[str, str] | None = None) -> None:
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    # What the routes share

    def need_token(self) -> None:
        if not self.is_authorized:
            raise HubError(401, message="Invalid username or password.")

    def repository(self, name: str, write: bool = False) -> Repository:
        found = self.server.repositories.get(name)
        if found is None or (found.private and not self.is_authorized):
            # The Hub does not tell strangers which private repositories there are.
            raise HubError(404 if self.is_authorized else 401, "RepoNotFound", "Repository not found")
        if write:
            self.need_token()
        return found

    def files(self, name: str, revision: str, write: bool = False) -> tuple[str, dict[str, bytes]]:
        """The id and the files of a branch's newest commit, or of a commit."""
        repository = self.repository(name, write)
        oid = repository.branches.get(revision, revision)
        if oid not in repository.commits:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return oid, repository.commits[oid]

    # Routes

    def who_am_i(self) -> None:
        self.need_token()
        self.send({"type": "user", "name": "org", "orgs": [], "auth": {"type": "access_token"}})

    def create(self) -> None:
        self.need_token()
        wanted = json.loads(self.body)
        name = f"{wanted['organization'] or 'org'}/{wanted['name']}"
        if not name.startswith("org/"):
            raise HubError(403, message="You don't have the rights to create a model under this namespace")
        answer = {"url": f"{self.server.url}/{name}", "name": name, "id": name}
        if name in self.server.repositories:
            return self.send(answer, 409)
        repository = Repository(private=wanted.get("visibility") == "private" or wanted.get("private") is True)
        repository.commit("main", {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})
        self.server.repositories[name] = repository
        self.send(answer)

    def validate_yaml(self) -> None:
        errors = metadata_errors(json.loads(self.body)["content"])
        self.send({"errors": [{"message": error} for error in errors], "warnings": []}, 400 if errors else 200)

    def preupload(self, name: str, revision: str) -> None:
        self.files(name, revision, write=True)
        paths = [file["path"] for file in json.loads(self.body)["files"]]
        modes = {path: "lfs" if path.endswith(LFS_SUFFIXES) else "regular" for path in paths}
        self.send({"files": [{"path": path, "uploadMode": modes[path], "shouldIgnore": False} for path in paths]})

    def lfs_batch(self, name: str) -> None:
        self.repository(name, write=True)
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            actions = {"upload": {"href": f"{self.server.url}/lfs/{wanted['oid']}"}}
            objects.append(wanted | ({} if wanted["oid"] in self.server.objects else {"actions": actions}))
        self.send({"transfer": "basic", "objects": objects})

    def lfs_upload(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise HubError(400, message="the content does not have this SHA-256")
        self.server.objects[oid] = self.body
        self.send({})

    def lfs_download(self, oid: str) -> None:
        self.send(self.server.objects[oid])

    def commit(self, name: str, branch: str) -> None:
        files = dict(self.files(name, branch, write=True)[1])
        for line in self.body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
            elif operation["key"] != "header":
                raise HubError(400, message=f"this Hub does not know {operation['key']}")
        oid = self.repository(name).commit(branch, files)
        self.send({"success": True, "commitOid": oid, "commitUrl": f"{self.server.url}/{name}/commit/{oid}"})

    def create_branch(self, name: str, branch: str) -> None:
        repository = self.repository(name, write=True)
        if branch in repository.branches:
            raise HubError(409, message=f"Reference already exists: {branch}")
        start = json.loads(self.body or b"{}").get("startingPoint", "main")
        repository.branches[branch], _ = self.files(name, start)
        self.send({})

    def info(self, name: str, revision: str = "main") -> None:
        oid, files = self.files(name, revision)
        about = {"id": name, "modelId": name, "sha": oid, "private": self.repository(name).private, "tags": []}
        self.send(about | {"siblings": [{"rfilename": path} for path in sorted(files)]})

    def tree(self, name: str, revision: str, folder: str = "") -> None:
        files = {path: content for path, content in self.files(name, revision)[1].items() if path.startswith(folder)}
        if folder and not files:
            raise HubError(404, "EntryNotFound", f"{folder} does not exist")
        self.send([{"type": "file", "path": path, "size": len(x), "oid": git_oid(x)} for path, x in files.items()])

    def resolve(self, name: str, revision: str, path: str) -> None:
        oid, files = self.files(name, revision)
        headers, content = {"X-Repo-Commit": oid}, files.get(path)
        if content is None:
            self.send(b"", 404, headers | {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
        elif path.endswith(LFS_SUFFIXES):
            sha256 = hashlib.sha256(content).hexdigest()
            linked = {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(content))}
            # Another host, as on the Hub: clients follow redirects within one host, and lose the headers of this answer.
            elsewhere = self.server.url.replace("127.0.0.1", "localhost")
            self.send(b"", 302, headers | linked | {"Location": f"{elsewhere}/lfs/{sha256}"})
        else:
            self.send(content, 200, headers | {"ETag": f'"{git_oid(content)}"'})


ROUTES = [
    ("GET", "/api/whoami-v2", Handler.who_am_i),
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate_yaml),
    ("POST", f"/api/models/{REPOSITORY}/preupload/([^/]+)", Handler.preupload),
    ("POST", f"/{REPOSITORY}.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("PUT", "/lfs/([0-9a-f]{64})", Handler.lfs_upload),
    ("GET HEAD", "/lfs/([0-9a-f]{64})", Handler.lfs_download),
    ("POST", f"/api/models/{REPOSITORY}/commit/([^/]+)", Handler.commit),
    ("POST", f"/api/models/{REPOSITORY}/branch/([^/]+)", Handler.create_branch),
    ("GET", f"/api/models/{REPOSITORY}", Handler.info),
    ("GET", f"/api/models/{REPOSITORY}/revision/([^/]+)", Handler.info),
    ("GET", f"/api/models/{REPOSITORY}/tree/([^/]+)", Handler.tree),
    ("GET", f"/api/models/{REPOSITORY}/tree/([^/]+)/(.+)", Handler.tree),
    ("GET HEAD", f"/{REPOSITORY}/resolve/([^/]+)/(.+)", Handler.resolve),
]
