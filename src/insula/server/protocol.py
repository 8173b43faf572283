"""HTTP/1.1 as uvicorn speaks it, with two things more: a client that dawdles over its headers is
cut off, and whoever writes a response can cut the connection under it.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from insula.server.wire import TRANSPORT


class Protocol(H11Protocol):
    """head_time: seconds from a request's first byte (or the connection) to its last header."""

    head_time = 10.0
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._head_timer is None and not self._answering:
            self._await_head()
        super().data_received(data)

    def handle_events(self) -> None:
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:  # a request has all its headers; its task has not begun
            self._stop_timer()
            extensions: dict[str, Any] = self.cycle.scope.setdefault("extensions", {})
            extensions[TRANSPORT] = self.transport

    @property
    def _answering(self) -> bool:
        """A request has come whole as far as its headers, and its response is not all written."""
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.response_complete

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(self.head_time, self._too_slow)

    def _too_slow(self) -> None:
        self._head_timer = None
        self.transport.abort()

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
