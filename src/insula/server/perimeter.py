"""What no request may be, whoever sends it: the outermost layer.

Owns which Host and Origin are served (a page of another site, or a name of another site that was
made to point here, gets 403 and no CORS header ever), the size of the head, one framing of the
body, and the body's size and time. Refuses before anything is authenticated or read. What HTTP
itself forbids (a negative length, two lengths) the protocol layer has refused already.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from insula.server.denied import (
    ASGIApp,
    Denied,
    Message,
    Receive,
    Scope,
    Send,
    Shape,
    answer,
    header,
    openai_shape,
)

#: A form of another site may send these without asking first.
_TEXT = "text/plain"
_UNSAFE = {"POST", "PUT", "PATCH", "DELETE"}
#: A body larger than what `body_seconds` are meant for has time for its size, at so many bytes/s.
_SLOWEST = 64 << 10


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Bytes and seconds."""

    head: int = 16 << 10
    body: int = 10 << 20
    body_seconds: float = 30.0


class Hosts:
    """Which names this server answers to.

    On loopback: localhost and loopback addresses. Elsewhere: any address written as digits (nobody
    can make digits point elsewhere) and this machine's own name. And what was configured.
    """

    def __init__(self, bound: str, allowed: Iterable[str] = ()) -> None:
        self._allowed = {name.lower().rstrip(".") for name in (*allowed, "localhost")}
        self._loopback = is_loopback(bound)
        if not self._loopback:
            self._allowed |= {bound.lower(), socket.gethostname().lower()}

    def serves(self, host: str) -> bool:
        """Whether a Host header (with or without port) means us."""
        name = _name(host)
        if name is None:
            return False
        if name in self._allowed:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or not self._loopback


class Perimeter:
    """ASGI middleware. body_limit: bytes for a method and path, None for what bounds itself."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: Hosts,
        origins: Iterable[str] = (),
        bounds: Bounds | None = None,
        body_limit: Callable[[str, str], int | None] | None = None,
        shape: Shape = openai_shape,
    ) -> None:
        self._app = app
        self._hosts = hosts
        self._origins = {origin.lower().rstrip("/") for origin in origins}
        self._bounds = bounds or Bounds()
        self._body_limit = body_limit or (lambda method, path: self._bounds.body)
        self._shape = shape

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # no websocket is served, so none is let in
            await send({"type": "websocket.close", "code": 1008})
            return
        try:
            self._check(scope)
            limit = self._body_limit(scope["method"], scope["path"])
            length = header(scope, b"content-length")
            if limit is not None and length is not None and int(length) > limit:
                raise _too_large(limit)
        except Denied as denied:
            await answer(scope, send, denied, self._shape)
            return
        if limit is None:
            await self._app(scope, receive, send)
            return
        body = _Body(scope, receive, send, limit, self._bounds.body_seconds, self._shape)
        await self._app(scope, body.receive, body.send)

    def _check(self, scope: Scope) -> None:
        head = sum(len(name) + len(value) + 4 for name, value in scope["headers"])
        target = len(scope.get("raw_path") or b"") + len(scope["query_string"])
        if head + target > self._bounds.head:
            message = f"the request's head has more than {self._bounds.head} bytes"
            raise Denied(431, message, code="head_too_large", headers={"connection": "close"})
        if header(scope, b"transfer-encoding") and header(scope, b"content-length"):
            message = "the request says in two ways how long it is; once is allowed"
            raise Denied(400, message, code="bad_framing", headers={"connection": "close"})
        host = header(scope, b"host")
        if host is None or not self._hosts.serves(host):
            message = "this server does not answer to that name; allowed_hosts says which it knows"
            raise Denied(403, message, code="host_not_allowed")
        self._check_site(scope, host)

    def _check_site(self, scope: Scope, host: str) -> None:
        method = scope["method"]
        origin = header(scope, b"origin")
        if origin is not None and not self._is_ours(origin, host):
            raise Denied(403, "requests of other sites are not served", code="origin_not_allowed")
        site = header(scope, b"sec-fetch-site")
        followed = header(scope, b"sec-fetch-mode") == "navigate" and method not in _UNSAFE
        if origin is None and site in ("cross-site", "same-site") and not followed:
            raise Denied(403, "requests of other sites are not served", code="origin_not_allowed")
        kind = (header(scope, b"content-type") or "").partition(";")[0].strip().lower()
        if method in _UNSAFE and kind == _TEXT:
            message = "content-type text/plain is not served; send application/json"
            raise Denied(403, message, code="content_type_not_allowed")

    def _is_ours(self, origin: str, host: str) -> bool:
        origin = origin.lower()
        if origin in self._origins:
            return True
        parts = urlsplit(origin) if origin.startswith(("http://", "https://")) else None
        return parts is not None and parts.netloc == host.lower()


class _Body:
    """The body on its way in. What breaks a bound is answered here, and the handler sees a client
    that has gone."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        limit: int,
        seconds: float,
        shape: Shape,
    ) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._limit, self._seconds, self._shape = limit, seconds, shape
        self._size = 0
        self._whole = False
        self._started = False
        self._denied = False
        self._began: float | None = None

    async def receive(self) -> Message:
        if self._denied:
            return {"type": "http.disconnect"}
        if self._whole:
            return await self._receive()
        now = time.monotonic()
        self._began = now if self._began is None else self._began
        left = self._began + max(self._seconds, self._size / _SLOWEST) - now
        try:
            async with asyncio.timeout(max(0.0, left)):
                message = await self._receive()
        except TimeoutError:
            late = f"the body did not come within {self._seconds:g} s"
            return await self._deny(Denied(408, late, code="body_too_slow"))
        if message["type"] == "http.request":
            self._size += len(message.get("body", b""))
            self._whole = not message.get("more_body", False)
            if self._size > self._limit:
                return await self._deny(_too_large(self._limit))
        return message

    async def send(self, message: Message) -> None:
        if self._denied:
            return
        self._started = True
        await self._send(message)

    async def _deny(self, denied: Denied) -> Message:
        if not self._started:
            self._denied = True
            denied.headers["connection"] = "close"
            await answer(self._scope, self._send, denied, self._shape)
        return {"type": "http.disconnect"}


def is_loopback(host: str) -> bool:
    """Whether an address to listen on can only be reached from this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _name(host: str) -> str | None:
    """The name in a Host header, without port; None for what is none."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port
    except ValueError:
        return None
    if parts.netloc != host or "@" in host or not parts.hostname:
        return None
    return parts.hostname.lower().rstrip(".")


def _too_large(limit: int) -> Denied:
    message = f"the body has more than {limit} bytes"
    return Denied(413, message, code="body_too_large", headers={"connection": "close"})
