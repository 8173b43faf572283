"""POST /api/generate: a prompt through the model's template, or as it is (raw)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import Request
from fastapi.responses import Response
from pydantic import Field

from insula.server import state
from insula.server.errors import unsupported
from insula.server.generation import answering, generation
from insula.server.ollama.keep_alive import seconds_of
from insula.server.ollama.options import (
    check_context,
    constraint_options,
    logprob_options,
    read_options,
)
from insula.server.ollama.presence import presence
from insula.server.ollama.reply import Reply
from insula.server.schema import Body, read
from insula.server.thinking import template_arguments
from insula.server.wire import Wire
from insula.types import ToolCall


class GenerateBody(Body):
    """What may be asked. A template from a request is not run; a context goes to /api/chat as
    messages."""

    model: Annotated[str, Field(min_length=1, max_length=512)]
    prompt: str = ""
    system: str | None = None
    suffix: str | None = None
    template: str | None = None
    context: list[int] | None = None
    images: list[str] | None = None
    raw: bool = False
    options: dict[str, Any] | None = None
    stream: bool = True
    keep_alive: float | str | None = None
    think: bool | str | None = None
    format: Any = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    truncate: bool = True
    shift: bool | None = None


async def generate(request: Request) -> Response:
    """What follows the prompt, as lines of JSON unless stream is false."""
    body = await read(request, GenerateBody, state.of(request).limits)
    keep_alive = seconds_of(body.keep_alive)
    options, notes = read_options(body.options)
    sampling = options.sampling() | logprob_options(body.logprobs, body.top_logprobs)
    sampling |= constraint_options(body.format)
    for name, why in (
        ("suffix", ""),
        ("template", "the model's own is used"),
        ("context", "send the conversation to /api/chat"),
        ("images", "the models here read text"),
    ):
        if getattr(body, name):
            raise unsupported(name, why)
    if body.raw and body.system:
        raise unsupported("system", "with raw the prompt is all there is")
    if body.shift:
        notes.append("shift: a context that is full ends the answer here")

    async def work(wire: Wire) -> None:
        if not body.prompt and not body.system:
            await presence(request, wire, body.model, keep_alive, {"response": ""})
            return
        async with generation(request, wire, body.model, keep_alive=keep_alive) as job:
            check_context(options, job.info.n_ctx)
            if body.raw or not job.info.has_chat_template:
                answer = job.llm.stream(
                    f"{body.system}\n\n{body.prompt}" if body.system else body.prompt,
                    **sampling,
                    salt=job.salt,
                )
            else:
                messages = [{"role": "user", "content": body.prompt}]
                if body.system:
                    messages.insert(0, {"role": "system", "content": body.system})
                arguments = template_arguments(job.llm.llm, think=body.think, name="think")
                answer = job.llm.chat_stream(
                    messages, **sampling, salt=job.salt, template_arguments=arguments or None
                )
            reply = Reply(job, _piece, top=sampling.get("logprobs"), notes=notes)
            await (reply.stream if body.stream else reply.whole)(wire, answer)

    return answering(request, "ollama", work)


def _piece(text: str, reasoning: str, calls: Sequence[ToolCall]) -> dict[str, Any]:
    return {"response": text, "thinking": reasoning} if reasoning else {"response": text}


#: For the OpenAPI document.
BODIES = {"generate": GenerateBody}
