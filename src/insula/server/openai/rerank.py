"""POST /rerank (and /v1, /v2) in Cohere's and Jina's shape, /score in vLLM's.

A relevance score is the logistic function of the model's own, between 0 and 1, as those services
give it; the order is the model's.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from typing import Annotated, Any

from fastapi import Request
from fastapi.responses import Response
from pydantic import Field

from insula.server import state
from insula.server.errors import RefusalError
from insula.server.generation import answering, generation
from insula.server.schema import Body, read
from insula.server.wire import Wire

Name = Annotated[str, Field(min_length=1, max_length=512)]


class RerankBody(Body):
    """What may be asked."""

    model: Name
    query: str
    documents: list[str | dict[str, str]]
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool = False
    truncate: bool = False
    user: str | None = None


class ScoreBody(Body):
    """One text against others, or pairs of equally many."""

    model: Name
    text_1: str | list[str]
    text_2: str | list[str]
    truncate: bool = False


async def rerank(request: Request) -> Response:
    """The documents, the best first."""
    limits = state.of(request).limits
    body = await read(request, RerankBody, limits)
    documents = [_text(document) for document in body.documents]
    _bounded("documents", len(documents), limits.inputs)

    async def work(wire: Wire) -> None:
        async with generation(request, wire, body.model) as job:
            ranked = await asyncio.to_thread(
                job.llm.llm.rerank, body.query, documents, truncate=body.truncate
            )
            results = []
            for index, score in ranked[: body.top_n]:
                result: dict[str, Any] = {"index": index, "relevance_score": _logistic(score)}
                if body.return_documents:
                    result["document"] = {"text": documents[index]}
                results.append(result)
            await wire.whole(
                {"id": f"rerank-{secrets.token_hex(12)}", "model": job.name, "results": results}
            )

    return answering(request, "openai", work)


async def score(request: Request) -> Response:
    """How well the second of each pair answers the first."""
    limits = state.of(request).limits
    body = await read(request, ScoreBody, limits)
    second = [body.text_2] if isinstance(body.text_2, str) else body.text_2
    first = [body.text_1] * len(second) if isinstance(body.text_1, str) else body.text_1
    if len(first) != len(second):
        message = f"text_1: found {len(first)} texts and {len(second)} in text_2; one or as many"
        raise RefusalError(400, message, code="invalid_value", param="text_1")
    _bounded("text_2", len(second), limits.inputs)

    async def work(wire: Wire) -> None:
        async with generation(request, wire, body.model) as job:
            llm = job.llm.llm

            def scores() -> list[float]:
                if isinstance(body.text_1, str):
                    ranked = llm.rerank(body.text_1, second, truncate=body.truncate)
                    return [value for _, value in sorted(ranked)]
                return [
                    llm.rerank(query, [text], truncate=body.truncate)[0][1]
                    for query, text in zip(first, second, strict=True)
                ]

            found = await asyncio.to_thread(scores)
            data = [
                {"index": i, "object": "score", "score": _logistic(value)}
                for i, value in enumerate(found)
            ]
            await wire.whole(
                {
                    "id": f"score-{secrets.token_hex(12)}",
                    "object": "list",
                    "model": job.name,
                    "data": data,
                }
            )

    return answering(request, "openai", work)


def _text(document: str | dict[str, str]) -> str:
    if isinstance(document, str):
        return document
    if set(document) != {"text"}:
        message = 'documents: allowed are texts, or objects such as {"text": "..."}'
        raise RefusalError(400, message, code="invalid_value", param="documents")
    return document["text"]


def _bounded(name: str, found: int, most: int) -> None:
    if not 1 <= found <= most:
        message = f"{name}: found {found}; allowed: 1 to {most}"
        raise RefusalError(400, message, code="invalid_value", param=name)


def _logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))


#: For the OpenAPI document.
BODIES = {"rerank": RerankBody, "score": ScoreBody}
