"""A hub on loopback: the part of the Hugging Face hub's API that pushing and loading metrics uses.

    create a repository, validate a card, preupload, LFS batch, upload, commit, tag; HEAD and GET of resolved files

Large files go through LFS, as on the hub, and small ones through the commit. Storage by chunks (xet) is not spoken, so
clients are told to leave it out.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_test"
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass
class Repository:
    """The files of each commit, in order, and the commit of each branch and tag."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    def add(self, files: Mapping[str, bytes]) -> str:
        """Commit files on top of the newest ones; return the commit."""
        content = {**self.commits.get(self.names.get("main", ""), {}), **files}
        commit = hashlib.sha1(f"{len(self.commits)} {sorted(content)}".encode()).hexdigest()
        self.commits[commit] = content
        self.names["main"] = commit
        return commit


@dataclass
class FakeHub:
    """A running hub: its URL, its repositories, and the requests it got."""

    url: str
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    large: dict[str, bytes] = field(default_factory=dict)
    #: Answer every request with this status, as a hub that is down does.
    fails_with: int | None = None

    def environment(self, home: Path, token: str | None = TOKEN) -> dict[str, str]:
        """Return the variables with which another process uses this hub, and `home` as its cache."""
        variables = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        return variables | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"} | ({"HF_TOKEN": token} if token else {})


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """Start a hub without repositories."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.hub = FakeHub(f"http://127.0.0.1:{server.server_address[1]}")  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.hub  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    @property
    def hub(self) -> FakeHub:
        return self.server.hub  # type: ignore[attr-defined]

    def do_HEAD(self):
        self.resolve(send_body=False)

    def do_GET(self):
        self.resolve(send_body=True)

    def do_PUT(self):
        digest, content = self.path.rpartition("/")[2], self.body()
        assert hashlib.sha256(content).hexdigest() == digest
        self.hub.large[digest] = content
        self.answer(200, {})

    def do_POST(self):
        body, path = self.body(), urlsplit(self.path).path
        self.hub.requests.append(f"POST {path}")
        if self.hub.fails_with:
            self.answer(self.hub.fails_with, {"error": "out of order"})
        elif path == "/api/validate-yaml":
            self.validate(json.loads(body)["content"])
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer(403, {"error": "You don't have the rights to create a model under this namespace"})
        elif path == "/api/repos/create":
            self.create(json.loads(body))
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit|tag)/([^/]+)", path):
            getattr(self, found[2])(found[1], unquote(found[3]), body)
        elif path.endswith(".git/info/lfs/objects/batch"):
            self.batch(json.loads(body))
        else:
            self.answer(404, {"error": f"the fake hub does not speak {path}"})

    def create(self, request):
        name = f"{request['organization']}/{request['name']}"
        there = name in self.hub.repositories
        if not there:
            self.hub.repositories[name] = Repository(request.get("visibility") == "private")
            self.hub.repositories[name].add({})
        self.answer(409 if there else 200, {"url": f"{self.hub.url}/{name}", "name": name})

    def validate(self, text):
        _, metadata, _ = text.split("---\n", 2)
        content = yaml.safe_load(metadata)
        assert content["license"]
        self.answer(200, {"errors": [], "warnings": []})

    def preupload(self, name, revision, body):
        modes = [
            {"path": file["path"], "shouldIgnore": False, "uploadMode": self.mode(file["path"])}
            for file in json.loads(body)["files"]
        ]
        self.answer(200, {"files": modes})

    @staticmethod
    def mode(path):
        return "lfs" if path.endswith(".safetensors") else "regular"

    def batch(self, request):
        wanted = [{"oid": one["oid"], "size": one["size"]} for one in request["objects"]]
        for one in wanted:
            if one["oid"] not in self.hub.large:
                one["actions"] = {"upload": {"href": f"{self.hub.url}/large/{one['oid']}", "header": {}}}
        self.answer(200, {"transfer": "basic", "objects": wanted})

    def commit(self, name, revision, body):
        files = {}
        for entry in map(json.loads, body.splitlines()):
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
        commit = self.hub.repositories[name].add(files)
        self.answer(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{commit}", "commitOid": commit})

    def tag(self, name, revision, body):
        self.hub.repositories[name].names[json.loads(body)["tag"]] = revision
        self.answer(200, {})

    def resolve(self, *, send_body):
        path = urlsplit(self.path).path
        self.hub.requests.append(f"{self.command} {path}")
        if self.hub.fails_with:
            self.answer(self.hub.fails_with, {"error": "out of order"})
            return
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        repository = self.hub.repositories.get(found[1]) if found else None
        if repository is None or (repository.private and self.headers.get("Authorization") != f"Bearer {TOKEN}"):
            self.answer(401, {"error": "Invalid username or password."}, {"X-Error-Code": "RepoNotFound"})
            return
        revision = unquote(found[2])
        commit = revision if COMMIT.fullmatch(revision) else repository.names.get(revision, "")
        if commit not in repository.commits:
            self.answer(404, {"error": f"Invalid rev id: {revision}"}, {"X-Error-Code": "RevisionNotFound"})
            return
        content = repository.commits[commit].get(found[3])
        if content is None:
            self.answer(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        # As the hub's: the sha256 of files in LFS, and that of a git blob for others.
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        digest = hashlib.sha256(content).hexdigest() if self.mode(found[3]) == "lfs" else blob
        self.send_response(200)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{digest}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if send_body:
            self.wfile.write(content)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def answer(self, status: int, content: object, headers: Mapping[str, str] = {}) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Type": "application/json", "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
