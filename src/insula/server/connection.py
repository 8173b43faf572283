"""One connection's HTTP, within bounds that uvicorn's own protocol does not have.

Owns the time in which a request's head must arrive (the first and each later one), the status and
JSON of what is no HTTP, how much is buffered for a slow reader and how long, and the end of a
connection whose request's body nobody will read: the answer is sent, what still comes is thrown
away for a moment so that the client can read it, then the connection is closed. Handlers find the
connection in the scope's extensions under TRANSPORT, to cut it.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

TRANSPORT = "insula.transport"
#: Of the kernel's buffer, which Linux doubles. With asyncio's own 64 KB it is below 256 KB.
SEND_BUFFER = 64 << 10
LINGER_SECONDS = 2.0
LINGER_BYTES = 16 << 20
#: Seconds that the rest of an answer waits for its reader when the connection is to end.
FLUSH_SECONDS = 30.0

_MESSAGES = {
    408: "the request's head did not come in time",
    431: "the request's head is too large",
    501: "that transfer-encoding is not known here",
}


class _Connection(h11.Connection):
    """h11's, which remembers what was wrong."""

    fault: h11.RemoteProtocolError | None = None

    def next_event(self) -> Any:
        try:
            return super().next_event()
        except h11.RemoteProtocolError as error:
            self.fault = error
            raise


class _Lingering:
    """A transport whose `close` lets a client that is still sending read the answer first."""

    def __init__(self, transport: asyncio.Transport, sending: Callable[[], bool]) -> None:
        self._transport = transport
        self._sending = sending
        self.discarding = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self.discarding or self._transport.is_closing()

    def close(self) -> None:
        if self.is_closing():
            return
        loop = asyncio.get_running_loop()
        if not self._sending() or not self._transport.can_write_eof():
            if self._transport.get_write_buffer_size():
                loop.call_later(FLUSH_SECONDS, self._transport.abort)
            self._transport.close()
            return
        self.discarding = True
        self._transport.write_eof()
        self._transport.resume_reading()
        loop.call_later(LINGER_SECONDS, self._transport.abort)


class BoundedProtocol(H11Protocol):
    """For `uvicorn.Config(http=…)`. `head_seconds`: see `bounded`."""

    head_seconds = 10.0

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        most = config.h11_max_incomplete_event_size or 16 << 10
        self._http = _Connection(h11.SERVER, most)
        self.conn = self._http
        self._outer = self.app
        self.app = self._with_transport
        self._head_timer: asyncio.TimerHandle | None = None
        self._discarded = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        found = transport.get_extra_info("socket")
        if found is not None and found.family in (socket.AF_INET, socket.AF_INET6):
            found.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        self._link = _Lingering(transport, self._is_sending)
        super().connection_made(self._link)  # type: ignore[arg-type]
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_arrived()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._link.discarding:
            self._discarded += len(data)
            if self._discarded > LINGER_BYTES:
                self._link.abort()
            return
        cycle = self.cycle
        super().data_received(data)
        if self.cycle is not cycle or self._link.is_closing():
            self._head_arrived()
        elif self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._await_head()

    def on_response_complete(self) -> None:
        before = self.cycle
        super().on_response_complete()
        if self._is_sending() and self.cycle is before:
            self._link.close()

    def send_400_response(self, msg: str) -> None:
        fault = self._http.fault
        self._refuse(400 if fault is None else fault.error_status_hint)

    async def _with_transport(self, scope: Any, receive: Any, send: Any) -> None:
        scope.setdefault("extensions", {})[TRANSPORT] = self.transport
        await self._outer(scope, receive, send)

    def _is_sending(self) -> bool:
        """Whether the client has begun a request that is not wholly here."""
        return self.conn.their_state in (h11.SEND_BODY, h11.ERROR)

    def _await_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_seconds, self._late)

    def _head_arrived(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _late(self) -> None:
        self._head_timer = None
        if self._link.is_closing():
            return
        if self.conn.trailing_data[0] and self.conn.our_state is h11.IDLE:
            self._refuse(408)
        else:
            self._link.close()

    def _refuse(self, status: int) -> None:
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self._link.abort()  # an answer is under way already
            return
        message = _MESSAGES.get(status, "this is not a request in HTTP/1.1")
        error = {"message": message, "type": "invalid_request_error", "param": None}
        content = json.dumps({"error": {**error, "code": "bad_request"}}).encode()
        head = (
            f"HTTP/1.1 {status} Refused\r\ncontent-type: application/json\r\n"
            f"content-length: {len(content)}\r\nconnection: close\r\n\r\n"
        )
        self._link.write(head.encode() + content)
        self._link.close()


def bounded(head_seconds: float) -> type[BoundedProtocol]:
    """The protocol with another time for a request's head."""
    return type("Bounded", (BoundedProtocol,), {"head_seconds": head_seconds})
