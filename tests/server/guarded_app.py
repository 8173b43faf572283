"""A small real server behind the guards, for their tests: uvicorn on loopback, in a thread.

The application knows a handful of routes and does what a handler does: reads the body, says what it
used, streams. `Served.seen` holds the callers that reached it.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn

from insula.server.audit import AuditLog
from insula.server.auth import Auth
from insula.server.caller import caller
from insula.server.connection import bounded
from insula.server.denied import Denied, answer, openai_shape
from insula.server.gate import Gate, cookie
from insula.server.logins import Logins
from insula.server.perimeter import Bounds, Hosts, Perimeter
from insula.server.usage import usage
from insula.store.audit_chain import AuditChain
from insula.store.database import Database
from insula.store.writer import Writer


@dataclass(frozen=True, kw_only=True)
class Row:
    method: str
    path: str
    scope: str


ROUTES = (
    Row(method="GET", path="/health", scope="open"),
    Row(method="POST", path="/session", scope="open"),
    Row(method="DELETE", path="/session", scope="inference"),
    Row(method="GET", path="/v1/models", scope="inference"),
    Row(method="POST", path="/v1/chat/completions", scope="inference"),
    Row(method="POST", path="/v1/stream", scope="inference"),
    Row(method="POST", path="/api/pull", scope="models"),
    Row(method="DELETE", path="/api/delete", scope="models"),
    Row(method="GET", path="/metrics", scope="admin"),
)


def find(method: str, path: str) -> Row | None:
    return next((r for r in ROUTES if (r.method, r.path) == (method, path)), None)


def methods(path: str) -> list[str]:
    return [r.method for r in ROUTES if r.path == path]


@dataclass
class Served:
    """A running server. seen: (path, caller) of each request that reached the application."""

    port: int = 0
    seen: list[tuple[str, Any]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    gate: Gate | None = None
    audit: AuditLog | None = None
    logins: Logins | None = None
    loop: asyncio.AbstractEventLoop | None = None
    aborted: list[str] = field(default_factory=list)
    pieces: int = 0

    def request(
        self,
        method: str,
        path: str,
        *,
        key: str | None = None,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """One request over a connection of its own, read to its end."""
        lines = {"Host": f"127.0.0.1:{self.port}", **(headers or {})}
        if key is not None:
            lines["Authorization"] = f"Bearer {key}"
        if body is not None:
            lines.setdefault("Content-Type", "application/json")
            lines["Content-Length"] = str(len(body))
        head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in lines.items())
        return self.raw(head.encode("latin-1") + b"Connection: close\r\n\r\n" + (body or b""))

    def raw(self, data: bytes, *, timeout: float = 60) -> Answer:
        """Send bytes as they are and read what comes until the server closes."""
        with self.connect(timeout) as connection:
            with suppress(BrokenPipeError, ConnectionResetError):  # refused early; it was told why
                connection.sendall(data)
            return Answer.of(read_all(connection))

    def connect(self, timeout: float = 60) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @classmethod
    def of(cls, data: bytes) -> Answer:
        head, _, body = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
        status = int(first.split(" ")[1]) if first else 0
        if headers.get("transfer-encoding") == "chunked":
            body = dechunked(body)
        return cls(status, headers, body)

    @property
    def error(self) -> dict[str, Any]:
        return json.loads(self.body)["error"]


def read_all(connection: socket.socket) -> bytes:
    pieces = []
    try:
        while piece := connection.recv(1 << 16):
            pieces.append(piece)
    except ConnectionResetError:
        pass
    return b"".join(pieces)


def dechunked(data: bytes) -> bytes:
    whole = b""
    while data:
        size, _, rest = data.partition(b"\r\n")
        count = int(size, 16)
        whole, data = whole + rest[:count], rest[count + 2 :]
        if not count:
            break
    return whole


class Application:
    def __init__(self, served: Served) -> None:
        self.served = served

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while (message := await receive())["type"] != "lifespan.shutdown":
                await send({"type": f"{message['type']}.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        self.served.seen.append((scope["path"], scope.get("insula.caller")))
        try:
            await self.handle(scope, receive, send)
        except asyncio.CancelledError:
            self.served.aborted.append(scope["path"])
            raise
        except Denied as denied:
            await answer(scope, send, denied, openai_shape)

    async def handle(self, scope: Any, receive: Any, send: Any) -> None:
        body = await read(receive)
        if body is None:
            self.served.aborted.append(scope["path"])
            return
        self.served.bodies.append(body)
        path, method = scope["path"], scope["method"]
        if path == "/session":
            await self.session(scope, method, body, send)
        elif path == "/v1/stream":
            await self.stream(scope, receive, send, json.loads(body))
        else:
            used = json.loads(body) if body.startswith(b"{") else {}
            if "tokens" in used:
                usage(scope).add(
                    "tiny", prompt_tokens=used["tokens"] - 1, completion_tokens=1, cached_tokens=0
                )
            await reply(send, {"path": path, "tenant": caller(scope).tenant})

    async def session(self, scope: Any, method: str, body: bytes, send: Any) -> None:
        logins = self.served.logins
        if method == "POST":
            given = json.loads(body)
            session, header = await logins.sign_in(
                given["name"], given["password"], address=scope["client"][0], tls=False
            )
            told = {"csrf": session.csrf, "role": session.user.role}
        else:
            header = await logins.sign_out(cookie(scope), tls=False)
            told = {}
        await reply(send, told, ("set-cookie", header))

    async def stream(self, scope: Any, receive: Any, send: Any, asked: dict[str, Any]) -> None:
        gone = asyncio.ensure_future(receive())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(asked["pieces"]):
            piece = b"x" * asked.get("size", 1)
            usage(scope).add("tiny", prompt_tokens=0, completion_tokens=1)
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            self.served.pieces += 1
            await asyncio.sleep(asked.get("pause", 0))
            if gone.done():
                self.served.aborted.append(gone.result()["type"])
                return
        gone.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def read(receive: Any) -> bytes | None:
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message["body"]
        if not message["more_body"]:
            return body


async def reply(send: Any, document: Any, *headers: tuple[str, str]) -> None:
    body = json.dumps(document).encode()
    lines = [(b"content-length", str(len(body)).encode())]
    lines += [(k.encode(), v.encode()) for k, v in headers]
    await send({"type": "http.response.start", "status": 200, "headers": lines})
    await send({"type": "http.response.body", "body": body, "more_body": False})


@contextmanager
def serve(
    home: Path,
    *,
    open_without_keys: bool = True,
    bounds: Bounds | None = None,
    head_seconds: float = 10.0,
    hosts: Hosts | None = None,
    clock: Any = time.time,
    pulse: Any = time.monotonic,
    **perimeter: Any,
) -> Iterator[Served]:
    """The application behind Perimeter and Auth over the store in `home`."""
    served = Served()
    writer = Writer(Database.open(home / "insula.db"))
    reader = Database.open(home / "insula.db")
    chain = AuditChain.open(reader)
    served.gate = Gate(reader, open_without_keys=open_without_keys, clock=clock, pulse=pulse)
    served.audit = AuditLog(writer, chain)
    guarded = Auth(
        Application(served), gate=served.gate, audit=served.audit, find=find, methods=methods
    )
    app = Perimeter(
        guarded, hosts=hosts or Hosts("127.0.0.1"), bounds=bounds or Bounds(), **perimeter
    )
    listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
    served.port = listening.getsockname()[1]
    config = uvicorn.Config(
        app,
        http=bounded(head_seconds),
        h11_max_incomplete_event_size=(bounds or Bounds()).head,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=5,
    )
    server = uvicorn.Server(config)
    started = threading.Event()

    async def run() -> None:
        served.loop = asyncio.get_running_loop()
        served.logins = Logins(writer, served.audit, pulse=pulse)
        task = asyncio.create_task(server.serve(sockets=[listening]))
        while not server.started and not task.done():  # noqa: ASYNC110 -- uvicorn has no event
            await asyncio.sleep(0.005)
        started.set()
        await task
        await served.audit.close()

    thread = threading.Thread(target=asyncio.run, args=(run(),), daemon=True)
    thread.start()
    assert started.wait(60)
    try:
        yield served
    finally:
        server.should_exit = True
        server.force_exit = True
        thread.join(60)
        assert not thread.is_alive()
        writer.close()
        reader.close()
