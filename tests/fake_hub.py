"""A small Hugging Face Hub on localhost: the endpoints that huggingface_hub and datasets call, LFS, and faults.

Repositories live in memory. `faults` is a list of (method, part of the path, status, text): the first that fits a
request answers it once and is taken off. Status 0 breaks the connection instead (RST); 1 does what was asked and
then breaks it, so that the answer is lost.
"""

import base64
import hashlib
import json
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

Python = Callable[..., subprocess.CompletedProcess[str]]
LFS_FROM = 20_000
ROOT = Path(__file__).resolve().parent.parent


def blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repo:
    private: bool
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    lfs: set[str] = field(default_factory=set)
    heads: dict[str, str] = field(default_factory=lambda: {"main": uuid.uuid4().hex + "0" * 8})


@dataclass
class Hub:
    repos: dict[str, Repo] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    faults: list[tuple[str, str, int, str]] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    url: str = ""


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    lost = False
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") == "chunked":
            whole = b""
            while size := int(self.rfile.readline().strip(), 16):
                whole += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return whole
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def break_connection(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def answer(self, content: Any, status: int = 200, **headers: str) -> None:
        if self.lost:
            self.lost = False
            return self.break_connection()
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", headers.pop("size", str(len(data))))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def error(self, status: int, code: str) -> None:
        self.answer({"error": code}, status, X_Error_Code=code, X_Error_Message=code)

    def handle_any(self) -> None:
        data = self.body()
        url = urlparse(self.path)
        path = unquote(url.path)
        self.hub.log.append(f"{self.command} {path}")
        for fault in self.hub.faults:
            method, part, status, text = fault
            if method == self.command and part in path:
                self.hub.faults.remove(fault)
                if status == 0:
                    return self.break_connection()
                if status == 1:
                    self.lost = True
                    break
                return self.answer({"error": text}, status, X_Error_Message=text)
        if path == "/api/repos/create":
            return self.create(json.loads(data))
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if path.startswith("/lfs/"):
            if self.command == "PUT":
                assert hashlib.sha256(data).hexdigest() == path[5:]
                self.hub.stored[path[5:]] = data
            return self.answer({})
        if found := re.fullmatch(r"(?:/datasets)?/(.+?/.+?)\.git/info/lfs/objects/batch", path):
            return self.lfs_batch(json.loads(data))
        if found := re.fullmatch(r"(?:/datasets)?/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self.resolve(*found.groups())
        if found := re.fullmatch(r"/api/(?:datasets|models)/([^/]+/[^/]+)(?:/(\w[\w-]*)(?:/([^/]+))?(/.*)?)?", path):
            return self.api(*found.groups(), data, parse_qs(url.query))  # type: ignore[misc]
        return self.error(404, "EntryNotFound")

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = handle_any

    def create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.hub.repos:
            return self.answer({"error": "exists", "url": f"{self.hub.url}/datasets/{name}"}, 409)
        self.hub.repos[name] = Repo(bool(asked.get("private")) or asked.get("visibility") == "private")
        return self.answer({"url": f"{self.hub.url}/datasets/{name}", "name": name})

    def lfs_batch(self, asked: dict[str, Any]) -> None:
        objects = []
        for entry in asked["objects"]:
            href = f"{self.hub.url}/lfs/{entry['oid']}"
            actions = {} if entry["oid"] in self.hub.stored else {"upload": {"href": href, "header": {}}}
            objects.append({**entry, **({"actions": actions} if actions else {})})
        self.answer({"transfer": "basic", "objects": objects})

    def api(
        self, name: str, what: str | None, revision: str | None, rest: str | None, data: bytes, query: dict[str, Any]
    ) -> None:
        repo = self.hub.repos.get(name)
        if repo is None:
            return self.error(404, "RepoNotFound")
        if what == "branch":
            if revision in repo.branches:
                return self.answer({"error": "exists"}, 409)
            repo.branches[str(revision)] = dict(repo.branches["main"])
            repo.heads[str(revision)] = repo.heads["main"]
            return self.answer({})
        branch = self.branch(repo, revision or "main")
        if branch is None:
            return self.error(404, "RevisionNotFound")
        files = repo.branches[branch]
        if what is None or what == "revision":
            return self.answer(self.info(name, repo, branch))
        if what == "preupload":
            asked = json.loads(data)["files"]
            return self.answer(
                {
                    "files": [
                        {
                            "path": f["path"],
                            "uploadMode": "lfs" if f["size"] >= LFS_FROM else "regular",
                            "shouldIgnore": False,
                            "oid": None,
                        }
                        for f in asked
                    ]
                }
            )
        if what == "commit":
            return self.commit(name, repo, branch, [json.loads(line) for line in data.splitlines() if line])
        if what == "tree":
            under = (rest or "").strip("/")
            deep = query.get("recursive", ["false"])[0].lower() in ("true", "1")
            return self.tree(repo, files, under, deep)
        if what == "paths-info":
            form = parse_qs(data.decode()) if not data.startswith(b"{") else json.loads(data)
            wanted = form["paths"] if isinstance(form["paths"], list) else [form["paths"]]
            return self.answer([entry for path in wanted for entry in self.entries(repo, files, path)])
        return self.error(404, "EntryNotFound")

    def branch(self, repo: Repo, revision: str) -> str | None:
        if revision in repo.branches:
            return revision
        return next((name for name, head in repo.heads.items() if head == revision), None)

    def info(self, name: str, repo: Repo, branch: str) -> dict[str, Any]:
        files = repo.branches[branch]
        return {
            "id": name, "_id": "0" * 24, "author": "org", "sha": repo.heads[branch], "private": repo.private,
            "disabled": False, "gated": False, "downloads": 0, "likes": 0, "tags": [],
            "lastModified": "2026-01-01T00:00:00.000Z", "createdAt": "2026-01-01T00:00:00.000Z",
            "siblings": [{"rfilename": path} for path in files],
        }  # fmt: skip

    def entry(self, repo: Repo, path: str, content: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": blob_id(content)}
        if path in repo.lfs:
            entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        return entry

    def entries(self, repo: Repo, files: dict[str, bytes], path: str) -> list[dict[str, Any]]:
        if path in files:
            return [self.entry(repo, path, files[path])]
        inside = any(name.startswith(path.rstrip("/") + "/") for name in files)
        return [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0}] if inside else []

    def tree(self, repo: Repo, files: dict[str, bytes], under: str, deep: bool) -> None:
        start = f"{under}/" if under else ""
        found: dict[str, dict[str, Any]] = {}
        for path, content in files.items():
            if not path.startswith(start):
                continue
            parts = path[len(start) :].split("/")
            for depth in range(1, len(parts) if deep else min(len(parts), 2)):
                folder = start + "/".join(parts[:depth])
                found[folder] = {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0}
            if deep or len(parts) == 1:
                found[path] = self.entry(repo, path, content)
        if under and not found:
            return self.error(404, "EntryNotFound")
        return self.answer(list(found.values()))

    def commit(self, name: str, repo: Repo, branch: str, lines: list[dict[str, Any]]) -> None:
        files = dict(repo.branches[branch])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
                repo.lfs.discard(value["path"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.stored[value["oid"]]
                repo.lfs.add(value["path"])
            elif line["key"] == "deletedFile":
                if value["path"] not in files:
                    return self.answer({"error": "no such file"}, 400, X_Error_Message="no such file")
                del files[value["path"]]
        repo.branches[branch] = files
        repo.heads[branch] = uuid.uuid4().hex + "0" * 8
        url = f"{self.hub.url}/datasets/{name}/commit/{repo.heads[branch]}"
        self.answer({"success": True, "commitUrl": url, "commitOid": repo.heads[branch], "hookOutput": ""})

    def resolve(self, name: str, revision: str, path: str) -> None:
        repo = self.hub.repos.get(name)
        if repo is None:
            return self.error(404, "RepoNotFound")
        branch = self.branch(repo, revision)
        if branch is None:
            return self.error(404, "RevisionNotFound")
        content = repo.branches[branch].get(path)
        if content is None:
            return self.error(404, "EntryNotFound")
        etag = hashlib.sha256(content).hexdigest() if path in repo.lfs else blob_id(content)
        headers = {"ETag": f'"{etag}"', "X_Repo_Commit": repo.heads[branch], "Accept_Ranges": "bytes"}
        if found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(found[1]), int(found[2] or len(content) - 1)
            part = content[start : end + 1]
            headers["Content_Range"] = f"bytes {start}-{start + len(part) - 1}/{len(content)}"
            return self.answer(part, 206, **headers)
        return self.answer(content, 200, **headers)


def start() -> tuple[Hub, ThreadingHTTPServer]:
    """Start a Hub on a free port; `server.shutdown()` ends it."""
    hub = Hub()
    handler = type("BoundHandler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return hub, server


def python_with_hub(hub: Hub, cache: Path) -> Python:
    """What runs Python in a process of its own with this Hub as the Hub, which huggingface_hub decides when imported."""
    usual = {
        **os.environ,
        "HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_test", "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(cache), "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1",
    }  # fmt: skip

    def call(*args: object, code: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *map(str, args)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=usual | env)
        assert done.returncode == code, done.stdout + done.stderr[-3000:]
        assert "Traceback" not in done.stderr
        return done

    return call
