"""The way out: one response, whole or piece by piece, for a client that may leave or fall asleep.

`Answering` runs the work of a request while it watches the connection: if the client goes, the work
is cancelled, and with it what the engine does for it. `Wire` writes: headers with the first piece,
so that an error before it has its own status; an error after it is one last event. A piece that
nobody takes for `stall` seconds ends the response.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal

from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from insula.server import errors
from insula.server.documents import encode
from insula.server.errors import RefusalError
from insula.server.options import Limits
from insula.server.routes import Family

Format = Literal["sse", "ndjson"]
_MEDIA = {"sse": "text/event-stream; charset=utf-8", "ndjson": "application/x-ndjson"}
#: Where protocol.py puts the connection, in the scope's extensions.
TRANSPORT = "insula.transport"
#: Seconds of silence after which a server-sent stream says that it is alive.
IDLE = 15.0


class Stalled(Exception):  # noqa: N818 - not an error of anybody's: the reader fell asleep
    """Nobody reads any more."""


class Wire:
    """One response. `headers` go out with the first piece."""

    def __init__(self, send: Send, family: Family, limits: Limits) -> None:
        self.family = family
        self.headers: dict[str, str] = {"x-request-id": f"req_{secrets.token_hex(12)}"}
        self.started = False
        self.status = 200
        self._send = send
        self._stall = limits.stall
        self._format: Format | None = None

    async def whole(self, document: Any, *, status: int = 200) -> None:
        """The whole answer as one JSON document."""
        await self.body(encode(document), "application/json", status=status)

    async def body(self, content: bytes, media: str, *, status: int = 200) -> None:
        self.headers["content-length"] = str(len(content))
        await self._start(status, media)
        await self._write(content, more=False)

    async def event(self, document: Any, *, form: Format, name: str | None = None) -> None:
        """One piece of a stream: `document` is JSON, or a text as it is."""
        if not self.started:
            self._format = form
            self.headers.update({"cache-control": "no-cache", "x-accel-buffering": "no"})
            await self._start(200, _MEDIA[form])
        data = document.encode() if isinstance(document, str) else encode(document)
        if form == "sse":
            head = b"" if name is None else f"event: {name}\n".encode()
            data = head + b"data: " + data + b"\n"
        await self._write(data + b"\n", more=True)

    async def idle(self, form: Format) -> None:
        """Say that the answer is still being made, where a format has words for that."""
        if form == "sse":
            if not self.started:
                self._format = form
                await self._start(200, _MEDIA[form])
            await self._write(b": waiting\n\n", more=True)

    async def end(self) -> None:
        await self._write(b"", more=False)

    async def error(self, error: BaseException) -> None:
        """Say what went wrong, in whatever form the client still understands."""
        told = errors.refusal(error)
        document = errors.body(self.family, told)
        if not self.started:
            self.headers.update(errors.headers(told))
            await self.whole(document, status=told.status)
            return
        self.status = told.status
        if self._format is not None:
            name = "error" if self.family == "anthropic" else None
            await self.event(document, form=self._format, name=name)
        await self.end()

    async def _start(self, status: int, media: str) -> None:
        self.started = True
        self.status = status
        headers = {"content-type": media, **self.headers}
        await self._timed(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [(k.encode("latin-1"), v.encode("latin-1")) for k, v in headers.items()],
            }
        )

    async def _write(self, data: bytes, *, more: bool) -> None:
        await self._timed({"type": "http.response.body", "body": data, "more_body": more})

    async def _timed(self, message: Mapping[str, Any]) -> None:
        try:
            async with asyncio.timeout(self._stall):
                await self._send(dict(message))
        except TimeoutError:
            raise Stalled from None


class Answering(Response):
    """A response whose content is made while it is sent. `work` writes it all to its wire.

    seen: told the wire at the end, whatever the end was. cut: set when the server can wait no
    longer; what still runs then ends with an error.
    """

    #: `seen` counts it, when it is over.
    counts_itself = True

    def __init__(
        self,
        work: Callable[[Wire], Awaitable[None]],
        *,
        family: Family,
        limits: Limits,
        seen: Callable[[Wire, Literal["ended", "left", "stalled"]], None],
        cut: asyncio.Event,
    ) -> None:
        super().__init__()
        self._work = work
        self._family: Family = family
        self._limits = limits
        self._seen = seen
        self._cut = cut

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        wire = Wire(send, self._family, self._limits)
        work = asyncio.ensure_future(self._work(wire))
        gone = asyncio.ensure_future(_disconnected(receive))
        cut = asyncio.ensure_future(self._cut.wait())
        end: Literal["ended", "left", "stalled"] = "left"
        try:
            await asyncio.wait({work, gone, cut}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                end = "ended"
                await self._finish(wire, work)
            elif cut.done() and not gone.done():
                end = "ended"
                await _cancelled(work)
                await wire.error(_stopping())
        except Stalled:
            end = "stalled"
            await _abort(scope)
        finally:
            for task in (work, gone, cut):
                await _cancelled(task)
            self._seen(wire, end)

    async def _finish(self, wire: Wire, work: asyncio.Future[None]) -> None:
        if work.cancelled():  # not by us: what it waited for is being closed
            await wire.error(_stopping())
            return
        error = work.exception()
        if isinstance(error, Stalled):
            raise error
        if error is not None:
            await wire.error(error)


def _stopping() -> RefusalError:
    return RefusalError(503, "the server is stopping", code="stopping", retry_after=5)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancelled(task: asyncio.Future[Any]) -> None:
    """Cancel, and wait until it has let go of what it holds."""
    if not task.done():
        task.cancel()
        await asyncio.wait({task})
    if not task.cancelled():
        task.exception()  # looked at, so that asyncio does not complain


async def _abort(scope: Scope) -> None:
    """Cut the connection: what its buffer holds will not be read."""
    transport = scope.get("extensions", {}).get(TRANSPORT)
    if transport is not None:
        transport.abort()
        await asyncio.sleep(0)  # its end is told before this response's
