"""A request without a question: bring a model, or let it go (keep_alive 0)."""

from __future__ import annotations

from typing import Any

from fastapi import Request

from insula.errors import NotFoundError
from insula.server import state
from insula.server.caller import caller
from insula.server.generation import generation
from insula.server.models import KeepAlive
from insula.server.ollama.reply import now
from insula.server.wire import Wire


async def presence(
    request: Request, wire: Wire, model: str, keep_alive: KeepAlive, empty: dict[str, Any]
) -> None:
    """Write the reply; `empty` is an answer of nothing in the route's own shape."""
    server = state.of(request)
    served = server.catalogue.find(model)
    if not caller(request.scope).may_use(served.name):
        raise NotFoundError(f"model {model[:120]!r} not found")
    reason = "load"
    if keep_alive == 0:
        reason = "unload"
        await server.models.unload(served.name)
    else:
        async with generation(request, wire, model, keep_alive=keep_alive):
            pass
    head = {"model": served.name, "created_at": now(), **empty}
    await wire.whole({**head, "done": True, "done_reason": reason})
