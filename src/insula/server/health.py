"""Is the server alive, is it ready, what is it doing; and its own description."""

from __future__ import annotations

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from insula.server import state


async def health(request: Request) -> Response:
    """It answers: nothing else is said to strangers."""
    return JSONResponse({"status": "ok"})


async def ready(request: Request) -> Response:
    """200 when the models named at the start are loaded and the server is not stopping."""
    server = state.of(request)
    if server.stopping:
        return JSONResponse({"status": "stopping"}, status_code=503)
    if server.loading:
        loading = sorted(server.loading)
        return JSONResponse({"status": "loading", "models": loading}, status_code=503)
    return JSONResponse({"status": "ready", "models": sorted(server.models.loaded)})


async def metrics(request: Request) -> Response:
    """In Prometheus' text format."""
    found = state.of(request).metrics
    return Response(found.text(), media_type=found.content_type)


async def openapi(request: Request) -> Response:
    """The OpenAPI document."""
    return JSONResponse(request.app.openapi())
