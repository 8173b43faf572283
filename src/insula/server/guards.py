"""All that stands before the handlers, put together from the settings: one factory for create_app.

Owns the order (perimeter, then authorization), the store's two connections, the audit log and the
energy meter for as long as the application runs, and their end with it: the log is closed before
the server says that it has stopped.

    guards = Guards.open(loaded.settings, find=routes.find, methods=routes.methods, shape=shape)
    app = create_app(options, middleware=[Middleware(guards.around)])
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from insula.server.audit import AuditLog
from insula.server.auth import Auth, RouteLike
from insula.server.denied import ASGIApp, Message, Receive, Scope, Send, Shape, openai_shape
from insula.server.energy import LONGEST_GAP, EnergyMeter
from insula.server.exposure import check_exposure, is_open_without_keys
from insula.server.gate import Gate
from insula.server.logins import Logins
from insula.server.perimeter import Bounds, Hosts, Perimeter
from insula.server.settings import ServerSettings
from insula.store import keys
from insula.store.audit_chain import AuditChain
from insula.store.database import Database
from insula.store.place import store_key, store_path
from insula.store.writer import Writer

#: Routes that take files of any size and bound them themselves.
_FILES = "/api/blobs/"


class Guards:
    """warnings: what whoever starts the server should be told. writer, logins: for handlers."""

    def __init__(
        self,
        settings: ServerSettings,
        store: Database,
        writer: Writer,
        *,
        find: Callable[[str, str], RouteLike | None],
        methods: Callable[[str], Sequence[str]],
        shape: Shape,
        warnings: Sequence[str] = (),
    ) -> None:
        self.settings = settings
        self.warnings = tuple(warnings)
        self.writer = writer
        self.store = store
        self.audit = AuditLog(writer, AuditChain.open(store))
        self.gate = Gate(store, open_without_keys=is_open_without_keys(settings))
        self.logins = Logins(writer, self.audit)
        self.meter = EnergyMeter(settings.energy_root)
        self._find, self._methods, self._shape = find, methods, shape
        self._ticking: asyncio.Task[None] | None = None

    @classmethod
    def open(
        cls,
        settings: ServerSettings,
        *,
        find: Callable[[str, str], RouteLike | None],
        methods: Callable[[str], Sequence[str]] = lambda path: (),
        shape: Shape = openai_shape,
        path: Path | None = None,
        key: str | None = None,
    ) -> Guards:
        """Open the store (INSULA_HOME's, unless another is named) and check where we may listen.

        Raises StoreError, and ConfigError for an address that must not be served so.
        """
        if path is None:
            path, key = store_path(), store_key()
        store = Database.open(path, key=key)
        try:
            warnings = check_exposure(settings, has_keys=keys.any_known(store))
            writer = Writer(Database.open(path, key=key))
        except BaseException:
            store.close()
            raise
        return cls(
            settings,
            store,
            writer,
            find=find,
            methods=methods,
            shape=shape,
            warnings=warnings,
        )

    def around(self, app: ASGIApp) -> ASGIApp:
        """The guarded application."""
        settings = self.settings
        auth = Auth(
            app,
            gate=self.gate,
            audit=self.audit,
            find=self._find,
            methods=self._methods,
            shape=self._shape,
            meter=self.meter if self.meter.available else None,
        )
        outer = Perimeter(
            auth,
            hosts=Hosts(settings.host, settings.allowed_hosts),
            origins=settings.allowed_origins,
            bounds=Bounds(
                head=settings.head, body=settings.body, body_seconds=settings.body_seconds
            ),
            body_limit=self._body_limit,
            shape=self._shape,
        )

        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "lifespan":
                await outer(scope, receive, self._through_life(send))
            else:
                await outer(scope, receive, send)

        return guarded

    async def close(self) -> None:
        """Write what waits and give the store back."""
        if self._ticking is not None:
            self._ticking.cancel()
            with suppress(asyncio.CancelledError):
                await self._ticking
            self._ticking = None
        await self.audit.close()
        await asyncio.to_thread(self.writer.close)
        self.store.close()

    def _through_life(self, send: Send) -> Send:
        async def told(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete" and self.meter.available:
                self._ticking = asyncio.create_task(self._tick())
            if message["type"] in ("lifespan.shutdown.complete", "lifespan.startup.failed"):
                await self.close()
            await send(message)

        return told

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(LONGEST_GAP / 3)
            self.meter.tick()

    def _body_limit(self, method: str, path: str) -> int | None:
        return None if path.startswith(_FILES) else self.settings.body
