"""POST /api/chat."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import Request
from fastapi.responses import Response
from pydantic import Field

from insula.server import state
from insula.server.errors import RefusalError, unsupported
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


class ChatBody(Body):
    """What may be asked. truncate: leave out the oldest turns of a conversation that is too long
    (and say so), as Ollama does; false makes that an error."""

    model: Annotated[str, Field(min_length=1, max_length=512)]
    messages: Annotated[list[dict[str, Any]], Field(default_factory=list)]
    options: dict[str, Any] | None = None
    stream: bool = True
    keep_alive: float | str | None = None
    think: bool | str | None = None
    format: Any = None
    tools: list[dict[str, Any]] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    truncate: bool = True
    shift: bool | None = None


async def chat(request: Request) -> Response:
    """The assistant's answer, as lines of JSON unless stream is false."""
    body = await read(request, ChatBody, state.of(request).limits)
    keep_alive = seconds_of(body.keep_alive)
    options, notes = read_options(body.options)
    sampling = options.sampling() | logprob_options(body.logprobs, body.top_logprobs)
    sampling |= constraint_options(body.format, body.tools)
    if body.shift:
        notes.append("shift: a context that is full ends the answer here")
    messages = [_plain(at, message) for at, message in enumerate(body.messages)]

    async def work(wire: Wire) -> None:
        if not messages:
            answer = {"message": {"role": "assistant", "content": ""}}
            await presence(request, wire, body.model, keep_alive, answer)
            return
        async with generation(request, wire, body.model, keep_alive=keep_alive) as job:
            check_context(options, job.info.n_ctx)
            arguments = template_arguments(job.llm.llm, think=body.think, name="think")
            answer_of = job.llm.chat_stream(
                messages,
                **sampling,
                salt=job.salt,
                template_arguments=arguments or None,
                overflow="drop_oldest" if body.truncate else "error",
            )
            reply = Reply(job, _piece, top=sampling.get("logprobs"), notes=notes)
            await (reply.stream if body.stream else reply.whole)(wire, answer_of)

    return answering(request, "ollama", work)


def _piece(text: str, reasoning: str, calls: Sequence[ToolCall]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if reasoning:
        message["thinking"] = reasoning
    if calls:
        message["tool_calls"] = [
            {"function": {"name": call.name, "arguments": json.loads(call.arguments)}}
            for call in calls
        ]
    return {"message": message}


def _plain(at: int, message: dict[str, Any]) -> dict[str, Any]:
    """A message without what says nothing. RefusalError for images, which no model here sees."""
    if message.get("images"):
        raise unsupported("images", "the models here read text")
    if not isinstance(message.get("role"), str):
        raise RefusalError(400, f"messages[{at}]: role is missing", param="messages")
    return {name: value for name, value in message.items() if value is not None and value != []}


#: For the OpenAPI document.
BODIES = {"chat": ChatBody}
