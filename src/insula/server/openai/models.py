"""GET /v1/models and /v1/models/{id}: what may be named, loaded or not."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from insula.errors import NotFoundError
from insula.server import state
from insula.server.caller import caller
from insula.server.catalogue import Served


async def models(request: Request) -> Response:
    """All that the caller may use."""
    who = caller(request.scope)
    served = await asyncio.to_thread(state.of(request).catalogue.list)
    found = [_document(request, each) for each in served if who.may_use(each.name)]
    return JSONResponse({"object": "list", "data": found})


async def model(request: Request) -> Response:
    """One of them."""
    name = request.path_params["model"]
    served = state.of(request).catalogue.find(name)
    if not caller(request.scope).may_use(served.name):
        raise NotFoundError(f"model {name[:120]!r} not found")
    return JSONResponse(_document(request, served))


def _document(request: Request, served: Served) -> dict[str, Any]:
    loaded = state.of(request).models.loaded.get(served.name)
    document: dict[str, Any] = {
        "id": served.name,
        "object": "model",
        "created": max(0, int(served.since.timestamp())),
        "owned_by": "insula",
        "loaded": loaded is not None,
    }
    if loaded is not None:
        document["max_model_len"] = loaded.llm.model_info.n_ctx
    return document
