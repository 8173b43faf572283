"""POST /api/embed, and /api/embeddings, its older form."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import Request
from fastapi.responses import Response
from pydantic import Field

from insula.server import state
from insula.server.generation import answering, generation
from insula.server.ollama.keep_alive import seconds_of
from insula.server.ollama.options import read_options
from insula.server.ollama.reply import nanoseconds
from insula.server.openai.embeddings import embedded, listed
from insula.server.schema import Body, read
from insula.server.wire import Wire


class EmbedBody(Body):
    """What may be asked. truncate: cut a text that is too long, as Ollama does, and say so."""

    model: Annotated[str, Field(min_length=1, max_length=512)]
    input: str | list[str]
    truncate: bool = True
    dimensions: Annotated[int, Field(ge=0, lt=1 << 20)] | None = None
    options: dict[str, Any] | None = None
    keep_alive: float | str | None = None


class EmbeddingsBody(Body):
    """The older form: one text."""

    model: Annotated[str, Field(min_length=1, max_length=512)]
    prompt: str = ""
    options: dict[str, Any] | None = None
    keep_alive: float | str | None = None


async def embed(request: Request) -> Response:
    """A vector for each text."""
    limits = state.of(request).limits
    body = await read(request, EmbedBody, limits)
    keep_alive = seconds_of(body.keep_alive)
    _, notes = read_options(body.options)
    # Ollama's own way to ask whether a model embeds: no text at all.
    texts = listed(body.input, limits.inputs) if body.input not in ("", []) else []

    async def work(wire: Wire) -> None:
        async with generation(request, wire, body.model, keep_alive=keep_alive) as job:
            vectors: list[list[float]] = []
            tokens = 0
            if texts:
                found = await embedded(
                    job, texts, truncate=body.truncate, dimensions=body.dimensions or None
                )
                vectors, tokens = found.vectors.tolist(), found.report.tokens
                if found.report.truncated:
                    cut = ", ".join(map(str, found.report.truncated))
                    notes.append(f"texts that were too long and cut: {cut}")
            document: dict[str, Any] = {
                "model": job.name,
                "embeddings": vectors,
                "total_duration": nanoseconds(time.perf_counter() - job.began),
                "load_duration": nanoseconds(job.load_seconds),
                "prompt_eval_count": tokens,
            }
            await wire.whole({**document, "notes": notes} if notes else document)

    return answering(request, "ollama", work)


async def embeddings(request: Request) -> Response:
    """The vector of one text."""
    body = await read(request, EmbeddingsBody, state.of(request).limits)
    keep_alive = seconds_of(body.keep_alive)
    read_options(body.options)

    async def work(wire: Wire) -> None:
        async with generation(request, wire, body.model, keep_alive=keep_alive) as job:
            vector: list[float] = []
            if body.prompt:
                found = await embedded(job, [body.prompt], truncate=True)
                vector = found.vectors[0].tolist()
            await wire.whole({"embedding": vector})

    return answering(request, "ollama", work)


#: For the OpenAPI document.
BODIES = {"embed": EmbedBody, "embeddings": EmbeddingsBody}
