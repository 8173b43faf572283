"""POST /v1/embeddings."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import Request
from fastapi.responses import Response
from pydantic import Field

from insula.server import state
from insula.server.errors import RefusalError
from insula.server.generation import Generation, answering, generation
from insula.server.schema import Body, read
from insula.server.wire import Wire
from insula.types import Embeddings

Id = Annotated[int, Field(ge=0, lt=1 << 31)]


class EmbeddingBody(Body):
    """What may be asked. truncate: an extension; by default a text that is too long is an error."""

    model: Annotated[str, Field(min_length=1, max_length=512)]
    input: str | list[str] | list[Id] | list[list[Id]]
    dimensions: Annotated[int, Field(ge=1, lt=1 << 20)] | None = None
    encoding_format: Literal["float", "base64"] = "float"
    truncate: bool = False
    user: str | None = None


async def embeddings(request: Request) -> Response:
    """A vector for each text."""
    limits = state.of(request).limits
    body = await read(request, EmbeddingBody, limits)
    texts = listed(body.input, limits.inputs)

    async def work(wire: Wire) -> None:
        async with generation(request, wire, body.model) as job:
            found = await embedded(job, texts, truncate=body.truncate, dimensions=body.dimensions)
            tokens = found.report.tokens
            usage: dict[str, Any] = {"prompt_tokens": tokens, "total_tokens": tokens}
            if found.report.truncated:
                usage["truncated"] = list(found.report.truncated)
            data = [
                {"object": "embedding", "index": i, "embedding": _written(v, body.encoding_format)}
                for i, v in enumerate(found.vectors)
            ]
            await wire.whole({"object": "list", "data": data, "model": job.name, "usage": usage})

    return answering(request, "openai", work)


async def embedded(
    job: Generation,
    texts: Sequence[str] | Sequence[Sequence[int]],
    *,
    truncate: bool,
    dimensions: int | None = None,
) -> Embeddings:
    """Vectors of texts, beside whatever else the server does."""
    found = await asyncio.to_thread(
        job.llm.llm.embed, texts, truncate=truncate, dimensions=dimensions
    )
    job.read(found.report.tokens, found.report.seconds)
    return found


def listed(given: Any, most: int) -> list[Any]:
    """The texts, or lists of ids, whichever way they were given. Raises RefusalError."""
    texts = [given] if isinstance(given, str) else given
    if texts and isinstance(texts[0], int):
        texts = [texts]
    if not 1 <= len(texts) <= most:
        message = f"input: found {len(texts)} texts; allowed: 1 to {most}"
        raise RefusalError(400, message, code="invalid_value", param="input")
    return list(texts)


def _written(vector: np.ndarray[Any, np.dtype[np.float32]], form: str) -> Any:
    if form == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return vector.tolist()


#: For the OpenAPI document.
BODIES = {"embeddings": EmbeddingBody}
