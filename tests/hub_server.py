"""A small hub on this machine: as much of its HTTP API as creating a repository and committing to it need."""

import hashlib
import json
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

TOKEN = "hf_of_the_test"


@dataclass
class Hub:
    """What lies on the hub: the files of each repository, and what was asked of it."""

    endpoint: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    objects: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    read_only: bool = False
    broken: bool = False
    """Whether every commit fails."""


def validate(card: str) -> list[str]:
    """What the hub finds wrong with the metadata of a card."""
    import yaml

    data = yaml.safe_load(card.split("---")[1])
    relations = ("adapter", "merge", "quantized", "finetune")
    errors = [f"{key} is not a list" for key in ("tags",) if not isinstance(data.get(key), list)]
    errors += [f"{key} is not a string" for key in ("pipeline_tag", "library_name") if not isinstance(data[key], str)]
    return errors + (["relation"] if data.get("base_model_relation", "finetune") not in relations else [])


class Handler(BaseHTTPRequestHandler):
    """Answers one request; ``hub`` is set on the class that serves."""

    hub: Hub

    def log_message(self, *_: object) -> None:
        """Say nothing on stderr."""

    def answer(self, status: int, value: Any = None, **headers: str) -> None:
        body = json.dumps(value if value is not None else {}).encode()
        self.send_response(status)
        for name, said in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), said)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.hub.asked.append(f"GET {self.path}")
        if not self.is_known():
            self.answer(401, {"error": "Invalid credentials"})
        elif self.path.endswith("/auth-check/write"):
            self.answer(403 if self.hub.read_only else 200, {"error": "You may only read"})
        else:
            self.answer(404, X_Error_Code="RepoNotFound")

    def do_PUT(self) -> None:
        self.hub.asked.append(f"PUT {self.path}")
        data = self.body()
        self.hub.objects[hashlib.sha256(data).hexdigest()] = data
        self.answer(200)

    def do_POST(self) -> None:
        self.hub.asked.append(f"POST {self.path}")
        body = self.body()
        if self.path == "/api/validate-yaml":
            errors = validate(json.loads(body)["content"])
            self.answer(400 if errors else 200, {"errors": [{"message": e} for e in errors], "warnings": []})
        elif not self.is_known():
            self.answer(401, {"error": "Invalid credentials"})
        elif self.path == "/api/repos/create":
            self.create(json.loads(body))
        elif "/preupload/" in self.path:
            self.preupload(json.loads(body)["files"])
        elif self.path.endswith("/objects/batch"):
            self.batch(json.loads(body)["objects"])
        elif "/commit/" in self.path:
            self.commit([json.loads(line) for line in body.splitlines()])
        else:
            self.answer(404)

    def body(self) -> bytes:
        """What was sent, in one piece or in chunks."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers["Content-Length"]))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def is_known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def create(self, asked: dict[str, Any]) -> None:
        name = f"{asked.get('organization') or 'tester'}/{asked['name']}"
        if asked.get("organization") not in (None, "tester"):
            self.answer(403, {"error": "You don't have the rights to create a model under this namespace"})
            return
        if asked.get("visibility") == "private" or asked.get("private"):
            self.hub.private.add(name)
        new = name not in self.hub.repositories
        self.hub.repositories.setdefault(name, {})
        self.answer(200 if new else 409, {"url": f"{self.hub.endpoint}/{name}"})

    def preupload(self, files: list[dict[str, Any]]) -> None:
        modes = [
            {"path": file["path"], "shouldIgnore": False, "uploadMode": "lfs" if is_large(file["path"]) else "regular"}
            for file in files
        ]
        self.answer(200, {"files": modes})

    def batch(self, objects: list[dict[str, Any]]) -> None:
        upload = f"{self.hub.endpoint}/objects"
        found = [{**one, "actions": {"upload": {"href": f"{upload}/{one['oid']}"}}} for one in objects]
        self.answer(200, {"transfer": "basic", "objects": found})

    def commit(self, lines: list[dict[str, Any]]) -> None:
        if self.hub.broken:
            self.answer(400, {"error": "the disk of the hub is full"})
            return
        files = self.hub.repositories["/".join(self.path.split("/")[3:5])]
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.hub.commits.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
        name = "/".join(self.path.split("/")[3:5])
        url = f"{self.hub.endpoint}/{name}/commit/{'0' * 40}"
        self.answer(200, {"success": True, "commitOid": "0" * 40, "commitUrl": url, "hookOutput": ""})


def is_large(path: str) -> bool:
    return path.endswith((".safetensors", ".png"))


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """A hub that answers on this machine until the context ends."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Serving", (Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
