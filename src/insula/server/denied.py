"""A refusal made before any handler: by whoever guards the door, in the client's own shape.

The shape is the caller's affair (`Shape`): given the path and the refusal it returns the JSON
document. Without one it is OpenAI's. No refusal says more than the client knows already.
"""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from insula.errors import StoreError, StoreFullError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]


class Denied(Exception):  # noqa: N818 -- an answer, not a failure
    """status: HTTP's. code: for programs. retry_after: seconds, where coming back helps."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.retry_after = retry_after
        self.headers = dict(headers or {})


Shape = Callable[[str, Denied], Mapping[str, Any]]

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def openai_shape(path: str, denied: Denied) -> Mapping[str, Any]:
    """OpenAI's document of an error."""
    kind = _TYPES.get(
        denied.status, "server_error" if denied.status >= 500 else "invalid_request_error"
    )
    return {"error": {"message": denied.message, "type": kind, "param": None, "code": denied.code}}


def from_store(error: StoreError) -> Denied:
    """What a client is told when the store fails; the log says more."""
    if isinstance(error, StoreFullError):
        return Denied(507, "the server's disk is full", code="storage_full", retry_after=30)
    wait = 1.0 if error.retryable else 30.0
    return Denied(503, "the server's store does not answer", code="storage", retry_after=wait)


async def answer(scope: Scope, send: Send, denied: Denied, shape: Shape) -> None:
    """Send the refusal. With a body on its way the connection ends: nobody will read it."""
    content = json.dumps(shape(scope["path"], denied)).encode()
    headers = {"content-type": "application/json", "cache-control": "no-store", **denied.headers}
    if denied.retry_after is not None:
        headers["retry-after"] = str(max(1, math.ceil(denied.retry_after)))
    if announces_body(scope):
        headers["connection"] = "close"
    headers["content-length"] = str(len(content))
    await send(
        {
            "type": "http.response.start",
            "status": denied.status,
            "headers": [(k.encode("latin-1"), v.encode("latin-1")) for k, v in headers.items()],
        }
    )
    await send({"type": "http.response.body", "body": content, "more_body": False})


def announces_body(scope: Scope) -> bool:
    """Whether the request's headers promise a body."""
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0") != b"")
        for name, value in scope["headers"]
    )


def header(scope: Scope, name: bytes) -> str | None:
    """A header that may be there once; None without it. Denied (400) if it is there twice."""
    found = [value for key, value in scope["headers"] if key == name]
    if len(found) > 1:
        raise Denied(400, f"the header {name.decode()} is there twice", code="bad_request")
    return found[0].decode("latin-1").strip() if found else None
