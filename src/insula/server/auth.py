"""The layer that lets requests in by the table of routes, and settles what they used.

Deny by default: a path that the table does not have is refused here, to strangers with 401 like
every other. Nothing of a body is read before. The caller goes into the scope under
`caller.SCOPE_KEY`, what it uses comes back through `usage.SCOPE_KEY`.

An answer's last piece leaves when its audit record and its tokens are on the disk: who has the
whole answer is in the log. If that cannot be written an answer not yet begun becomes 503 or 507;
one that is streaming ends, and its record waits. While records wait, whatever changes something is
refused before it begins. A caller whose key or session ends while an answer streams is cut off
within a second of the next piece.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Protocol

from insula.errors import StoreError
from insula.server.audit import AuditLog
from insula.server.caller import SCOPE_KEY
from insula.server.denied import (
    ASGIApp,
    Denied,
    Message,
    Receive,
    Scope,
    Send,
    Shape,
    answer,
    from_store,
    openai_shape,
)
from insula.server.energy import EnergyMeter
from insula.server.gate import Gate, Known
from insula.server.usage import SCOPE_KEY as USAGE_KEY
from insula.server.usage import Usage
from insula.store import spending
from insula.store.database import Database

#: Seconds between two looks at whether the caller of a stream is still let in.
LOOK_EVERY = 1.0
#: Seconds between two tries to write what a failing disk did not take.
RETRY_EVERY = 1.0
_SAFE = {"GET", "HEAD", "OPTIONS"}


class RouteLike(Protocol):
    """What this layer asks of a row. scope: open, inference, models or admin."""

    @property
    def path(self) -> str: ...
    @property
    def scope(self) -> str: ...


class Auth:
    """ASGI middleware. find: the route for a method and path, None if there is none; methods: what
    a path may be asked, for 405. meter: what requests are measured with, None for nothing."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        gate: Gate,
        audit: AuditLog,
        find: Callable[[str, str], RouteLike | None],
        methods: Callable[[str], Sequence[str]] = lambda path: (),
        shape: Shape = openai_shape,
        meter: EnergyMeter | None = None,
    ) -> None:
        self._app = app
        self._meter = meter
        self._gate = gate
        self._audit = audit
        self._find = find
        self._methods = methods
        self._shape = shape
        self._tried = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        method, path = scope["method"], scope["path"]
        route = self._find(method, path)
        if route is None and method == "HEAD":
            route = self._find("GET", path)
        if route is not None and route.scope == "open":
            await self._app(scope, receive, send)
            return
        try:
            caller = self._gate.admit(scope, None if route is None else route.scope)
            if route is None:
                raise self._not_there(method, path)
            if method not in _SAFE:
                await self._writable()
        except Denied as denied:
            self._note(scope, route, denied)
            await answer(scope, send, denied, self._shape)
            return
        passage = _Passage(self, scope, receive, send, caller, route)
        await passage.run(self._app)

    def _not_there(self, method: str, path: str) -> Denied:
        allowed = self._methods(path)
        if allowed:
            told = f"{method} is not served here; allowed: {', '.join(allowed)}"
            return Denied(
                405, told, code="method_not_allowed", headers={"allow": ", ".join(allowed)}
            )
        return Denied(404, "there is nothing at this path", code="no_route")

    async def _writable(self) -> None:
        """Refuse what could not be recorded. Looks again each second, so it passes by itself."""
        if self._audit.failing is None:
            return
        if time.monotonic() - self._tried >= RETRY_EVERY:
            self._tried = time.monotonic()
            try:
                await self._audit.retry()
            except StoreError as error:
                raise from_store(error) from error
        if self._audit.failing is not None:
            raise from_store(self._audit.failing)

    def _note(self, scope: Scope, route: RouteLike | None, denied: Denied) -> None:
        if denied.status in (401, 403, 429):
            self._audit.note(
                "request.denied",
                address=_address(scope),
                method=scope["method"][:10],
                route=None if route is None else route.path,
                status=denied.status,
                code=denied.code,
            )

    async def _settle(self, passage: _Passage, outcome: str) -> None:
        """Write what a request used. Raises StoreError; the record waits then."""
        caller, used, scope = passage.caller, passage.usage, passage.scope
        if self._meter is not None:
            used.joules = self._meter.end(passage)
        self._gate.spend(caller, used.tokens)
        if scope["method"] in _SAFE and not used.tokens:
            return
        also: Callable[[Database], None] | None = None
        if used.tokens and caller.tenant:
            also = partial(
                spending.charge,
                tenant=caller.tenant,
                now=time.time(),
                prompt_tokens=used.prompt_tokens,
                completion_tokens=used.completion_tokens,
            )
        await self._audit.record(
            "request",
            also=also,
            kind=caller.kind,
            caller=caller.id,
            address=_address(scope),
            method=scope["method"],
            route=passage.route.path,
            status=passage.status,
            outcome=outcome,
            model=used.model,
            prompt_tokens=used.prompt_tokens if used.model else None,
            completion_tokens=used.completion_tokens if used.model else None,
            cached_tokens=used.cached_tokens if used.model else None,
            joules=used.joules,
            ms=round(1000 * (time.monotonic() - passage.began)),
        )


class _Passage:
    """One request on its way through, with what leaves watched."""

    def __init__(
        self,
        auth: Auth,
        scope: Scope,
        receive: Receive,
        send: Send,
        caller: Known,
        route: RouteLike,
    ) -> None:
        self.scope = scope
        self.caller = caller
        self.route = route
        self.usage = Usage()
        self.status: int | None = None
        self.began = time.monotonic()
        self._auth = auth
        self._receive, self._send = receive, send
        self._head: Message | None = None
        self._settled = False
        self._over = False
        self._cut = asyncio.Event()
        self._looked = self.began

    async def run(self, app: ASGIApp) -> None:
        self.scope[SCOPE_KEY] = self.caller
        self.scope[USAGE_KEY] = self.usage
        if self._auth._meter is not None and self.route.scope == "inference":
            self._auth._meter.begin(self)
        try:
            await app(self.scope, self._incoming, self._outgoing)
        finally:
            if not self._settled:
                # The client left, or the handler failed: what was used is owed all the same.
                self._settled = True
                outcome = "revoked" if self._cut.is_set() else "aborted"
                with suppress(StoreError):  # it waits, and the log has said so
                    await self._auth._settle(self, outcome)

    async def _incoming(self) -> Message:
        if self._cut.is_set():
            return {"type": "http.disconnect"}
        waiting = asyncio.ensure_future(self._receive())
        cut = asyncio.ensure_future(self._cut.wait())
        try:
            await asyncio.wait({waiting, cut}, return_when=asyncio.FIRST_COMPLETED)
            return waiting.result() if waiting.done() else {"type": "http.disconnect"}
        finally:
            for task in (waiting, cut):
                task.cancel()

    async def _outgoing(self, message: Message) -> None:
        if self._over:
            return
        if message["type"] == "http.response.start":
            self._head, self.status = message, message["status"]
            return
        if message["type"] != "http.response.body":
            await self._send(message)
            return
        if message.get("more_body", False):
            await self._first()
            await self._look()
            if not self._over:
                await self._send(message)
            return
        self._settled = True
        try:
            await self._auth._settle(self, "done")
        except StoreError as error:
            if self._head is not None:
                self._over = True
                await answer(self.scope, self._send, from_store(error), self._auth._shape)
                return
        await self._first()
        self._over = True
        await self._send(message)

    async def _first(self) -> None:
        if self._head is not None:
            head, self._head = self._head, None
            await self._send(head)

    async def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked >= LOOK_EVERY:
            self._looked = now
            if not self._auth._gate.still_valid(self.caller):
                self._over = True
                self._cut.set()


def _address(scope: Scope) -> str | None:
    client = scope.get("client")
    return None if client is None else str(client[0])
