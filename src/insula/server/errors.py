"""What went wrong, as each family of clients expects to be told.

Owns `RefusalError`, the one exception that handlers raise on purpose, the way from our error tree
to a status, and the bodies. Nothing here shows a path of this machine or a trace: what we did not
foresee is one sentence for the client and a line in the log.
"""

from __future__ import annotations

import logging
import re
import secrets
from typing import Any

from fastapi.responses import Response

from insula.errors import (
    ConfigError,
    ContextOverflowError,
    DownloadError,
    EngineError,
    FormatError,
    InsulaError,
    NotFoundError,
    RemoteError,
    ResourceError,
    TemplateError,
    TokenizerError,
    UnsupportedError,
)
from insula.server.documents import encode
from insula.server.routes import Family

log = logging.getLogger("insula.server")

#: "top_p: 3 was given" speaks of top_p.
_NAMED = re.compile(r"([a-z][a-z0-9_.]{0,40})(?:\[[^\]]{0,20}\])*: ")
#: A path of this machine: from its root, of two segments at least, and none of our routes.
_PATH = re.compile(r"(?<![\w.:/-])(?:[A-Za-z]:)?[/\\](?!v1/|v2/|api/)[^\s'\",;:]+[/\\][^\s'\",;:]*")


class RefusalError(InsulaError):
    """An answer that is an error. retry_after: seconds. param: which parameter is at fault."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retry_after = retry_after


def unsupported(param: str, why: str = "") -> RefusalError:
    """The 400 for a parameter that is not served, which is never ignored."""
    message = f"{param}: is not supported here" + (f"; {why}" if why else "; leave it out")
    return RefusalError(400, message, code="unsupported_parameter", param=param)


def refusal(error: BaseException) -> RefusalError:
    """Whatever was raised, as what the client is told."""
    if isinstance(error, RefusalError):
        return error
    message = _PATH.sub("[path]", str(error))
    named = _NAMED.match(message)
    param = named[1] if named else None
    match error:
        case ContextOverflowError():
            return RefusalError(400, message, code="context_length_exceeded", param="messages")
        case UnsupportedError():
            return RefusalError(400, message, code="unsupported", param=param)
        case ConfigError() | TemplateError() | TokenizerError():
            return RefusalError(400, message, code="invalid_value", param=param)
        case NotFoundError():
            return RefusalError(404, message, code="model_not_found", param="model")
        case ResourceError():
            return RefusalError(503, message, code="insufficient_resources", retry_after=10)
        case RemoteError():
            busy = error.status == 429
            retry = error.retry_after if error.retry_after is not None else 5.0
            return RefusalError(
                429 if busy else 502,
                message,
                code="remote_error",
                retry_after=retry if error.retryable else None,
            )
        case DownloadError():
            return RefusalError(502, message, code="download_failed")
        case FormatError():
            log.error("a model's file cannot be used: %s", error)
            return RefusalError(500, "the model's file cannot be used; the server's log says why")
        case EngineError():
            log.error("the engine failed: %s", error)
            return RefusalError(500, "the engine failed; ask again", code="engine_error")
    incident = secrets.token_hex(4)
    log.error("incident %s", incident, exc_info=error)
    return RefusalError(500, f"an internal error ({incident}); the server's log has more")


_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def body(family: Family, error: RefusalError) -> dict[str, Any]:
    """The document of an error in the client's own shape."""
    status, message = error.status, str(error)
    server = status >= 500
    if family == "ollama":
        return {"error": message}
    if family == "anthropic":
        kind = _ANTHROPIC_TYPES.get(status, "api_error" if server else "invalid_request_error")
        return {"type": "error", "error": {"type": kind, "message": message}}
    kind = _OPENAI_TYPES.get(status, "server_error" if server else "invalid_request_error")
    return {
        "error": {"message": message, "type": kind, "param": error.param, "code": error.code},
    }


def headers(error: RefusalError) -> dict[str, str]:
    """Retry-After, where coming back helps."""
    if error.retry_after is None:
        return {}
    return {"Retry-After": str(max(1, round(error.retry_after)))}


def response(family: Family, error: BaseException) -> Response:
    """A whole answer."""
    told = refusal(error)
    return Response(
        encode(body(family, told)), told.status, headers(told), media_type="application/json"
    )
