"""Every route of the server, and what a caller must be allowed to do to use it.

Plain data: app.py serves what is in ROUTES and nothing else, and whoever checks keys asks `find`
before a byte of the body is read. A path that is not here has no scope: it is denied. A new route
is a row here and a function.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Literal

#: open: anybody. inference: ask the models. models: change which there are. admin: the server.
Scope = Literal["open", "inference", "models", "admin"]
#: Whose interface it is, and so what its errors look like.
Family = Literal["openai", "ollama", "anthropic", "server"]


@dataclass(frozen=True, kw_only=True)
class Route:
    """`handler` is module:function below insula.server. {name:path} in a path takes slashes too."""

    method: Literal["GET", "HEAD", "POST", "DELETE"]
    path: str
    scope: Scope
    family: Family
    handler: str


def _rows(family: Family, rows: str) -> tuple[Route, ...]:
    found = []
    for line in rows.strip().splitlines():
        method, path, scope, handler = line.split()
        found.append(
            Route(method=method, path=path, scope=scope, family=family, handler=handler)  # type: ignore[arg-type]
        )
    return tuple(found)


ROUTES: tuple[Route, ...] = (
    *_rows(
        "server",
        """
        GET    /health                     open       health:health
        HEAD   /health                     open       health:health
        GET    /ready                      inference  health:ready
        GET    /metrics                    admin      health:metrics
        GET    /openapi.json               inference  health:openapi
        """,
    ),
    *_rows(
        "openai",
        """
        GET    /v1/models                  inference  openai.models:models
        GET    /v1/models/{model:path}     inference  openai.models:model
        POST   /v1/chat/completions        inference  openai.chat:chat_completions
        POST   /v1/completions             inference  openai.completions:completions
        POST   /v1/embeddings              inference  openai.embeddings:embeddings
        POST   /rerank                     inference  openai.rerank:rerank
        POST   /v1/rerank                  inference  openai.rerank:rerank
        POST   /v2/rerank                  inference  openai.rerank:rerank
        POST   /score                      inference  openai.rerank:score
        POST   /v1/score                   inference  openai.rerank:score
        POST   /tokenize                   inference  openai.tokens:tokenize
        POST   /detokenize                 inference  openai.tokens:detokenize
        GET    /tokenizer_info             inference  openai.tokens:tokenizer_info
        """,
    ),
    *_rows(
        "anthropic",
        """
        POST   /v1/messages                inference  anthropic.messages:messages
        POST   /v1/messages/count_tokens   inference  anthropic.messages:count_tokens
        """,
    ),
    *_rows(
        "ollama",
        """
        GET    /                           inference  ollama.about:root
        HEAD   /                           inference  ollama.about:root
        GET    /api/version                inference  ollama.about:version
        HEAD   /api/version                inference  ollama.about:version
        GET    /api/tags                   inference  ollama.listing:tags
        HEAD   /api/tags                   inference  ollama.listing:tags
        GET    /api/ps                     inference  ollama.listing:ps
        POST   /api/show                   inference  ollama.listing:show
        POST   /api/generate               inference  ollama.generate:generate
        POST   /api/chat                   inference  ollama.chat:chat
        POST   /api/embed                  inference  ollama.embed:embed
        POST   /api/embeddings             inference  ollama.embed:embeddings
        POST   /api/copy                   models     ollama.store:copy
        DELETE /api/delete                 models     ollama.store:delete
        POST   /api/pull                   models     ollama.store:pull
        POST   /api/create                 models     ollama.create:create
        HEAD   /api/blobs/{digest}         models     ollama.blobs:has_blob
        POST   /api/blobs/{digest}         models     ollama.blobs:take_blob
        """,
    ),
)


def find(method: str, path: str) -> Route | None:
    """The route that answers, None if nothing does."""
    for pattern, route in _patterns():
        if route.method == method and pattern.fullmatch(path):
            return route
    return None


def methods(path: str) -> tuple[str, ...]:
    """What may be asked of the path, for a 405."""
    return tuple(route.method for pattern, route in _patterns() if pattern.fullmatch(path))


def family(path: str) -> Family:
    """Whose errors a caller of `path` understands, whether it is there or not."""
    if path == "/" or path.startswith("/api/"):
        return "ollama"
    return "anthropic" if path.startswith("/v1/messages") else "openai"


@cache
def _patterns() -> tuple[tuple[re.Pattern[str], Route], ...]:
    return tuple((_pattern(route.path), route) for route in ROUTES)


def _pattern(path: str) -> re.Pattern[str]:
    pieces = re.split(r"(\{\w+(?::path)?\})", path)
    return re.compile(
        "".join(
            re.escape(piece)
            if not piece.startswith("{")
            else ".+"
            if piece.endswith(":path}")
            else "[^/]+"
            for piece in pieces
        )
    )
