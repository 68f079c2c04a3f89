"""A server that answers what huggingface_hub asks when files are published and fetched; all lies in memory."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

LARGE = ".safetensors"
"""Files that are uploaded by the protocol of Git LFS; the others are inside a commit."""


class Hub:
    def __init__(self) -> None:
        self.url = ""
        self.repos: dict[str, dict[str, bytes]] = {}  # of ``user/name``: files by path
        self.made: list[dict[str, Any]] = []  # what was asked of a new repository
        self.uploaded: dict[str, bytes] = {}  # large files by SHA-256
        self.tokens: set[str | None] = set()

    def commit(self, repo: str) -> str:
        return hashlib.sha1(repr(sorted(self.repos[repo].items())).encode()).hexdigest()

    def post(self, path: str, body: bytes) -> dict[str, Any]:
        if path == "/api/repos/create":
            self.made.append(json.loads(body))
            repo = f"{self.made[-1]['organization']}/{self.made[-1]['name']}"
            self.repos.setdefault(repo, {})
            return {"url": f"{self.url}/{repo}"}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if path.endswith("/info/lfs/objects/batch"):
            wanted = json.loads(body)["objects"]
            objects = [one | {"actions": {"upload": {"href": f"{self.url}/{one['oid']}"}}} for one in wanted]
            return {"transfer": "basic", "objects": objects}
        repo, action = path.removeprefix("/api/models/").removesuffix("/main").rsplit("/", 1)
        if action == "preupload":
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = {name: "lfs" if name.endswith(LARGE) else "regular" for name in names}
            return {"files": [{"path": name, "uploadMode": modes[name], "shouldIgnore": False} for name in names]}
        assert action == "commit", path
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.repos[repo][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.repos[repo][value["path"]] = self.uploaded[value["oid"]]
        return {"commitUrl": f"{self.url}/{repo}/commit/{self.commit(repo)}", "commitOid": self.commit(repo)}


@contextmanager
def toy_hub() -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            hub.tokens.add(self.headers.get("Authorization"))
            self.answer(200, json.dumps(hub.post(urlsplit(self.path).path, self.body())).encode())

        def do_PUT(self) -> None:
            hub.uploaded[self.path[1:]] = self.body()
            self.answer(200)

        def do_GET(self) -> None:  # /user/name/resolve/revision/file
            user, name, *place = urlsplit(self.path).path[1:].split("/")
            repo = f"{user}/{name}"
            if repo not in hub.repos:
                return self.answer(404, X_Error_Code="RepoNotFound")
            content = hub.repos[repo][place[-1]]
            self.answer(200, content, ETag=hashlib.sha256(content).hexdigest(), X_Repo_Commit=hub.commit(repo))

        do_HEAD = do_GET

        def body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def answer(self, code: int, content: bytes = b"", **headers: str) -> None:
            self.send_response(code)
            for name, value in (headers | {"Content_Length": str(len(content))}).items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Tests print enough."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
