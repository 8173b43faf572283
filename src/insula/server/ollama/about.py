"""GET / and /api/version."""

from __future__ import annotations

from fastapi import Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from insula import __version__

#: The version of Ollama whose interface this is: clients compare it with what they need.
INTERFACE = "0.12.11"


async def root(request: Request) -> Response:
    """Somebody is there."""
    return PlainTextResponse("Insula is running")


async def version(request: Request) -> Response:
    """The interface's version, and ours."""
    return JSONResponse({"version": INTERFACE, "insula": __version__})
