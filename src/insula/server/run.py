"""Listening, and stopping in good order.

Owns the socket, who may reach it, and the signals. SIGTERM and Ctrl-C: no new requests, those that
run may end within the grace, then they end with an error; the process ends with 0. A second signal
cuts them at once.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI

from insula.errors import ConfigError, ResourceError
from insula.server.connection import bounded
from insula.server.options import ServeOptions
from insula.server.state import Server

#: What the system keeps of a response that nobody reads, in bytes.
SEND_BUFFER = 128 << 10
#: Seconds that cut answers have to say so.
LAST_WORDS = 5


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises ConfigError for no address, ResourceError for one in use."""
    if not 0 <= port <= 65535:
        raise ConfigError(f"port: found {port}; allowed: 0 (any that is free) to 65535")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise ConfigError(
            f"host: found {host[:80]!r}; allowed is an address of this machine"
        ) from None
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        listener.bind(address)
        listener.set_inheritable(False)
    except OSError as error:
        listener.close()
        raise ResourceError(
            f"cannot listen on {host} port {port}: {error.strerror}; choose another with --port"
        ) from error
    return listener


def url(listener: socket.socket, host: str, *, tls: bool = False) -> str:
    """Where clients find it."""
    port = listener.getsockname()[1]
    scheme = "https" if tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


class Serving(uvicorn.Server):
    """One run of an application."""

    def __init__(
        self, app: FastAPI, options: ServeOptions, *, tls: tuple[Path, Path] | None = None
    ) -> None:
        server: Server = app.state.server
        cert, key = tls or (None, None)
        super().__init__(
            uvicorn.Config(
                app,
                http=bounded(options.limits.head_time),
                ssl_certfile=cert,
                ssl_keyfile=key,
                proxy_headers=False,
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=int(options.grace) + LAST_WORDS,
                h11_max_incomplete_event_size=options.limits.head,
            )
        )
        self._server = server
        self._grace = options.grace
        self._loop: asyncio.AbstractEventLoop | None = None
        server.stop = self.stop

    def stop(self) -> None:
        """Begin to stop: from any thread, and from a signal's handler."""
        self._server.admission.stopping = True
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._server.admission.stopping = True
        timer = asyncio.get_running_loop().call_later(self._grace, self._server.cut.set)
        await super().shutdown(sockets)
        timer.cancel()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.should_exit:
            self.stop()
        elif self._loop is not None and not self._server.cut.is_set():
            self._loop.call_soon_threadsafe(self._server.cut.set)
        else:
            self.force_exit = True

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """As uvicorn's, but a signal that was obeyed is not raised again: to stop is no failure."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {
            number: signal.signal(number, self.handle_exit)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def serve(
    app: FastAPI,
    options: ServeOptions,
    listener: socket.socket,
    *,
    tls: tuple[Path, Path] | None = None,
) -> None:
    """Serve until told to stop. Raises what a model named at the start could not be loaded for."""
    serving = Serving(app, options, tls=tls)
    serving.run(sockets=[listener])
    server: Server = app.state.server
    if server.failure is not None:
        raise server.failure
