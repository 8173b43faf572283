"""What one running server has, for the handlers: one object, made by app.py.

Found from a request by `of`. Nothing here outlives the server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from fastapi import Request

from insula.server.admission import Admission
from insula.server.catalogue import Catalogue
from insula.server.metrics import Metrics
from insula.server.models import Models
from insula.server.options import Limits, ServeOptions


@dataclass(kw_only=True)
class Server:
    """stopping: no more requests, who is here may end. cut: what still runs ends now.

    loading: models named at the start that are not here yet; failure: why one of them will not be.
    ready, stop: called when all are, and when one cannot be.
    """

    options: ServeOptions
    catalogue: Catalogue
    models: Models
    admission: Admission
    metrics: Metrics
    stop: Callable[[], None] = lambda: None
    ready: Callable[[], None] = lambda: None
    loading: set[str] = field(default_factory=set)
    failure: BaseException | None = None
    cut: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def limits(self) -> Limits:
        return self.options.limits

    @property
    def stopping(self) -> bool:
        return self.admission.stopping


def of(request: Request) -> Server:
    """The server that was asked."""
    server = request.app.state.server
    assert isinstance(server, Server)
    return server
