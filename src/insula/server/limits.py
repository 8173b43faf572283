"""From a request's bytes to a JSON object, within bounds that hold before anything is believed.

Owns the body's size and time, the depth of its nesting, and that every number is one. Refuses with
400, 408 or 413. Large bodies are parsed in a thread, so that nobody else waits.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from typing import Any, NoReturn

from fastapi import Request

from insula.server.errors import RefusalError
from insula.server.options import Limits

#: Bytes from which parsing leaves the event loop.
LARGE = 1 << 17
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"?', re.DOTALL)
_BRACKET = re.compile(rb"[\[\]{}]")


async def read_body(request: Request, limits: Limits) -> bytes:
    """The whole body. Raises RefusalError."""
    check_framing(request)
    declared = request.headers.get("content-length", "")
    if declared and int(declared) > limits.body:
        raise _too_large(limits)
    pieces: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(limits.body_time):
            async for piece in request.stream():
                size += len(piece)
                if size > limits.body:
                    raise _too_large(limits)
                pieces.append(piece)
    except TimeoutError:
        raise RefusalError(408, f"the body did not come within {limits.body_time:g} s") from None
    return b"".join(pieces)


def check_framing(request: Request) -> None:
    """One length, said once. Raises RefusalError for what two readers could read differently."""
    lengths = request.headers.getlist("content-length")
    if len(lengths) > 1 or (lengths and "transfer-encoding" in request.headers):
        raise RefusalError(400, "the request says in two ways how long it is; once is allowed")
    if lengths and not (lengths[0].isascii() and lengths[0].isdigit()):
        raise RefusalError(400, "content-length is not a number")


async def read_json(request: Request, limits: Limits) -> dict[str, Any]:
    """The body as a JSON object. Raises RefusalError."""
    data = await read_body(request, limits)
    if len(data) > LARGE:
        return await asyncio.to_thread(parse, data, limits)
    return parse(data, limits)


def parse(data: bytes, limits: Limits) -> dict[str, Any]:
    """RefusalError for what is no JSON object, nests too deeply, or has a number that is none."""
    depth = 0
    for found in _BRACKET.finditer(_STRING.sub(b"", data)):
        depth += 1 if found[0] in b"[{" else -1
        if depth > limits.json_depth:
            raise RefusalError(400, f"the body nests deeper than {limits.json_depth} levels")
    try:
        document = json.loads(data, parse_constant=_no_number, parse_float=_number)
    except RefusalError:
        raise
    except (ValueError, RecursionError):
        raise RefusalError(400, "the body is not JSON in UTF-8") from None
    if not isinstance(document, dict):
        raise RefusalError(
            400, f"the body is a JSON {type(document).__name__}; allowed is an object"
        )
    return document


def _number(written: str) -> float:
    value = float(written)
    if not math.isfinite(value):
        _no_number(written)
    return value


def _no_number(written: str) -> NoReturn:
    raise RefusalError(400, f"{written[:20]} is not a number that JSON allows here")


def _too_large(limits: Limits) -> RefusalError:
    return RefusalError(
        413, f"the body is larger than {limits.body >> 20} MB", code="body_too_large"
    )
