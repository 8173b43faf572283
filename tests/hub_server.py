"""A server on the loopback that speaks the own routes of a Hugging Face hub, an Ollama registry and
a package index.

The hub answers on one port and its bytes come, by redirect, from another: two origins, as in
life. Faults are queued per route and used up in order, one per request: a callable that gets
the handler and returns True if it dealt with the request.

    with HubServer() as hub:
        hub.add("owner/repo-GGUF", {"model-Q4_K_M.gguf": data})
        hub.faults.append(status(429, {"Retry-After": "0"}))
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "1234567890abcdef1234567890abcdef12345678"
Fault = Callable[["Handler"], bool]


@dataclass
class Seen:
    """One request that arrived: at the hub or at the store of bytes ("cdn")."""

    side: str
    method: str
    path: str
    headers: dict[str, str]


@dataclass
class Repo:
    files: dict[str, bytes]
    licence: str | None = "apache-2.0"
    lfs: bool = True
    moved_to: str | None = None
    lie_sha256: dict[str, str] = field(default_factory=dict)


class HubServer:
    """Both servers and what they know. `endpoint` is what HF_ENDPOINT must be."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.projects: dict[str, dict[str, bytes]] = {}
        self.registry: dict[str, dict[str, Any]] = {}
        self.blobs: dict[str, bytes] = {}
        self.seen: list[Seen] = []
        self.faults: list[Fault] = []  # before the bytes are sent
        self.api_faults: list[Fault] = []  # on the hub's own routes
        self.page = 2  # entries per page of a tree
        self.token: str | None = None
        self.html_index = False
        self.etags = True
        self._hub = _serve(self, "hub")
        self._cdn = _serve(self, "cdn")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for server in (self._hub, self._cdn):
            server.shutdown()
            server.server_close()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._hub.server_address[1]}"

    @property
    def cdn(self) -> str:
        # Another name as well as another port, so that no cookie or token rule joins them.
        return f"http://localhost:{self._cdn.server_address[1]}"

    def add(self, repo_id: str, files: dict[str, bytes], **options: Any) -> Repo:
        repo = Repo(files=files, **options)
        self.repos[repo_id] = repo
        for data in files.values():
            self.blobs[hashlib.sha256(data).hexdigest()] = data
        return repo

    def add_to_registry(self, name: str, layers: list[tuple[str, bytes]]) -> None:
        """`name` is namespace/model:tag; layers as (last part of the media type, bytes)."""
        rows = []
        for kind, data in layers:
            sha = hashlib.sha256(data).hexdigest()
            self.blobs[sha] = data
            rows.append(
                {
                    "mediaType": f"application/vnd.ollama.image.{kind}",
                    "digest": f"sha256:{sha}",
                    "size": len(data),
                }
            )
        self.registry[name] = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": {
                "mediaType": "application/vnd.docker.container.image.v1+json",
                "digest": f"sha256:{'0' * 64}",
                "size": 2,
            },
            "layers": rows,
        }

    def bytes_requests(self) -> list[Seen]:
        return [seen for seen in self.seen if seen.side == "cdn"]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: HubServer
    side: str

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub = self.state
        self.hub = hub
        hub.seen.append(Seen(self.side, self.command, self.path, dict(self.headers.items())))
        faults = hub.faults if self.side == "cdn" else hub.api_faults
        if faults and faults.pop(0)(self):
            return
        url = urlsplit(self.path)
        path = unquote(url.path)
        if self.side == "cdn":
            self._blob(path)
        elif path.startswith("/simple/"):
            self._index(path)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/([^/]+)", path):
            self._record(match[1])
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            self._tree(match[1], match[2], parse_qs(url.query))
        elif path == "/api/models":
            self._search(parse_qs(url.query))
        elif match := re.fullmatch(r"/v2/([^/]+/[^/]+)/manifests/([^/]+)", path):
            self._registry_manifest(f"{match[1]}:{match[2]}")
        elif match := re.fullmatch(r"/v2/[^/]+/[^/]+/blobs/sha256:([0-9a-f]{64})", path):
            location = f"{hub.cdn}/blobs/{match[1]}?signature=secret"
            self.reply(307, b"", {"Location": location})
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(match[1], match[3])
        else:
            self.reply(404, b'{"error":"Not Found"}')

    def reply(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, kind: str = ""
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind or "application/json")
        self.send_header("Content-Length", str(len(body)))
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _repo(self, repo_id: str) -> Repo | None:
        hub = self.hub
        if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
            self.reply(401, b'{"error":"Invalid credentials"}', {"X-Error-Code": "RepoNotFound"})
            return None
        repo = hub.repos.get(repo_id)
        if repo is None:
            self.reply(404, b'{"error":"Repository not found"}', {"X-Error-Code": "RepoNotFound"})
            return None
        if repo.moved_to:
            target = self.path.replace(repo_id, repo.moved_to)
            self.reply(307, b"", {"Location": target})
            return None
        return repo

    def _record(self, repo_id: str) -> None:
        repo = self._repo(repo_id)
        if repo is None:
            return
        record = {
            "id": repo_id,
            "modelId": repo_id,
            "sha": COMMIT,
            "private": False,
            "gated": False,
            "tags": ["gguf"],
            "siblings": [{"rfilename": path} for path in repo.files],
        }
        if repo.licence:
            record["cardData"] = {"license": repo.licence}
        self.reply(200, json.dumps(record).encode())

    def _tree(self, repo_id: str, revision: str, query: dict[str, list[str]]) -> None:
        repo = self._repo(repo_id)
        if repo is None:
            return
        items = []
        for path, data in sorted(repo.files.items()):
            sha = repo.lie_sha256.get(path) or hashlib.sha256(data).hexdigest()
            item: dict[str, Any] = {
                "type": "file",
                "oid": sha[:40],
                "size": len(data),
                "path": path,
            }
            if repo.lfs:
                item["lfs"] = {"oid": sha, "size": len(data), "pointerSize": 134}
            items.append(item)
        folders = sorted({p.rpartition("/")[0] for p in repo.files if "/" in p})
        items += [{"type": "directory", "oid": "0" * 40, "size": 0, "path": f} for f in folders]
        start = int(query.get("cursor", ["0"])[0])
        headers = {}
        if start + self.hub.page < len(items):
            base = f"{self.hub.endpoint}/api/models/{repo_id}/tree/{revision}"
            following = f"{base}?recursive=true&cursor={start + self.hub.page}"
            headers["Link"] = f'<{following}>; rel="next"'
        self.reply(200, json.dumps(items[start : start + self.hub.page]).encode(), headers)

    def _resolve(self, repo_id: str, path: str) -> None:
        repo = self._repo(repo_id)
        if repo is None:
            return
        data = repo.files.get(path)
        if data is None:
            self.reply(404, b"Entry not found", {"X-Error-Code": "EntryNotFound"})
            return
        sha = hashlib.sha256(data).hexdigest()
        headers = {
            "Location": f"{self.hub.cdn}/blobs/{sha}?X-Signature=secret",
            "X-Repo-Commit": COMMIT,
            "X-Linked-Size": str(len(data)),
            "X-Linked-Etag": f'"{sha}"',
            "ETag": f'"{sha}"',
        }
        self.reply(302, b"", headers)

    def _search(self, query: dict[str, list[str]]) -> None:
        """As the hub lists models: those whose name holds the words, with their tags."""
        words = query.get("search", [""])[0].lower().split()
        rows = [
            {
                "id": repo_id,
                "downloads": 1000 + len(repo.files),
                "likes": 7,
                "gated": False,
                "tags": ["gguf", *([f"license:{repo.licence}"] if repo.licence else [])],
            }
            for repo_id, repo in self.hub.repos.items()
            if all(word in repo_id.lower() for word in words)
            and any(path.endswith(".gguf") for path in repo.files)
        ]
        self.reply(200, json.dumps(rows[: int(query.get("limit", ["20"])[0])]).encode())

    def _registry_manifest(self, name: str) -> None:
        manifest = self.hub.registry.get(name)
        if manifest is None:
            self.reply(404, b'{"errors":[{"code":"MANIFEST_UNKNOWN"}]}')
            return
        kind = "application/vnd.docker.distribution.manifest.v2+json"
        self.reply(200, json.dumps(manifest).encode(), kind=kind)

    def _blob(self, path: str) -> None:
        data = self.hub.blobs.get(path.rpartition("/")[2])
        if data is None:
            self.reply(404, b"")
            return
        self.send_bytes(data)

    def send_bytes(self, data: bytes, *, stop_after: int | None = None, pause: float = 0) -> None:
        """The body with Range and If-Range honoured; the line is cut after `stop_after` bytes."""
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        start, status = 0, 200
        end = len(data)
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked and self.headers.get("If-Range", etag) == etag:
            start, status = int(asked[1]), 206
            end = min(end, int(asked[2] or end) + 1)
            if start >= len(data):
                self.reply(416, b"", {"Content-Range": f"bytes */{len(data)}"})
                return
        self.send_response(status)
        self.send_header("Content-Length", str(end - start))
        if self.hub.etags:
            self.send_header("ETag", etag)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        body = data[start:end]
        if stop_after is not None:
            body = body[:stop_after]
        step = 65536
        for at in range(0, len(body), step):
            try:
                self.wfile.write(body[at : at + step])
                self.wfile.flush()
            except (BrokenPipeError, ConnectionResetError):
                return
            time.sleep(pause)
        if stop_after is not None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    def _index(self, path: str) -> None:
        project = path.strip("/").rpartition("/")[2]
        files = self.hub.projects.get(project)
        if files is None:
            self.reply(404, b"")
            return
        addresses = {}
        for name, data in files.items():
            self.hub.blobs[name] = data
            addresses[name] = (f"{self.hub.cdn}/packages/{name}", hashlib.sha256(data).hexdigest())
        if self.hub.html_index:
            rows = "".join(
                f'<a href="{url}#sha256={sha}">{name}</a>' for name, (url, sha) in addresses.items()
            )
            page = f"<!DOCTYPE html><html><body>{rows}</body></html>"
            self.reply(200, page.encode(), kind="text/html")
            return
        document = {
            "meta": {"api-version": "1.0"},
            "name": project,
            "files": [
                {"filename": name, "url": url, "hashes": {"sha256": sha}}
                for name, (url, sha) in addresses.items()
            ],
        }
        self.reply(200, json.dumps(document).encode(), kind="application/vnd.pypi.simple.v1+json")


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        # A client that is killed in the middle is what several tests are about, and no news.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def _serve(state: HubServer, side: str) -> ThreadingHTTPServer:
    handler = type("BoundHandler", (Handler,), {"state": state, "side": side})
    server = _Server(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
    ).start()
    return server


def status(code: int, headers: dict[str, str] | None = None) -> Fault:
    """Answer with this status instead."""

    def fault(handler: Handler) -> bool:
        handler.reply(code, b"", headers)
        return True

    return fault


def passes(handler: Handler) -> bool:
    """No fault: this request is served."""
    return False


def hang_up(handler: Handler) -> bool:
    """Close the connection without an answer."""
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)
    return True


def die_after(count: int) -> Fault:
    """Send `count` bytes of the body that was promised whole, then cut the line."""

    def fault(handler: Handler) -> bool:
        data = handler.hub.blobs[unquote(urlsplit(handler.path).path).rpartition("/")[2]]
        handler.send_bytes(data, stop_after=count)
        return True

    return fault


def slowly(pause: float) -> Fault:
    """Send 64 KiB at a time with `pause` seconds between."""

    def fault(handler: Handler) -> bool:
        data = handler.hub.blobs[unquote(urlsplit(handler.path).path).rpartition("/")[2]]
        handler.send_bytes(data, pause=pause)
        return True

    return fault


def other_bytes(data: bytes) -> Fault:
    """Serve `data` in place of what was asked for."""

    def fault(handler: Handler) -> bool:
        handler.send_bytes(data)
        return True

    return fault


def without_range(handler: Handler) -> bool:
    """Serve the whole file whatever range was asked for."""
    del handler.headers["Range"]
    return False
