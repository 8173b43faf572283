"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's interface."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from fastapi import Request
from fastapi.responses import Response
from pydantic import Field

from insula.engine.options import sampling_params
from insula.engine.sampling import MAX_STOPS
from insula.llm import LLM
from insula.server import state
from insula.server.anthropic.asked import conversation, tool_options, tools
from insula.server.errors import RefusalError
from insula.server.generation import Generation, answering, generation, given
from insula.server.sampling import Integer, Number
from insula.server.schema import Body, read
from insula.server.thinking import template_arguments
from insula.server.wire import Wire
from insula.types import Completion, Report, ToolCall

_STOPS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "cancelled": "end_turn",
    "tool_calls": "tool_use",
}


class CountBody(Body):
    """A conversation."""

    model: Annotated[str, Field(min_length=1, max_length=512)]
    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    system: str | list[dict[str, Any]] | None = None
    thinking: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None


class MessagesBody(CountBody):
    """What may be asked."""

    NEUTRAL: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "service_tier": ("auto", "standard_only"),
    }
    max_tokens: Annotated[Integer, Field(ge=1)]
    temperature: Number | None = None
    top_p: Number | None = None
    top_k: Integer | None = None
    stop_sequences: Annotated[list[str], Field(max_length=MAX_STOPS)] | None = None
    stream: bool = False
    metadata: dict[str, Any] | None = None


async def messages(request: Request) -> Response:
    """The assistant's turn, whole or as events."""
    body = await read(request, MessagesBody, state.of(request).limits)
    sampling = given(
        {
            "max_tokens": body.max_tokens,
            "temperature": body.temperature,
            "top_p": body.top_p,
            "top_k": body.top_k,
            "stop": body.stop_sequences,
        }
    )
    sampling_params(None, sampling)
    sampling |= tool_options(body.tools, body.tool_choice)
    turns = conversation(body.system, body.messages)

    async def work(wire: Wire) -> None:
        async with generation(request, wire, body.model) as job:
            answer = job.llm.chat_stream(
                turns,
                **sampling,
                salt=job.salt,
                template_arguments=_thinking(job.llm.llm, body.thinking) or None,
            )
            head = {
                "id": f"msg_{secrets.token_hex(12)}",
                "type": "message",
                "role": "assistant",
                "model": job.name,
            }
            if body.stream:
                await _stream(job, wire, answer, head, body.stop_sequences)
                return
            [completion] = await job.whole([answer])
            content: list[dict[str, Any]] = []
            if completion.reasoning:
                content.append(
                    {"type": "thinking", "thinking": completion.reasoning, "signature": ""}
                )
            if completion.text or not completion.tool_calls:
                content.append({"type": "text", "text": completion.text})
            content += [_block(call, json.loads(call.arguments)) for call in completion.tool_calls]
            await wire.whole(
                {
                    **head,
                    "content": content,
                    **_ending(job, completion, body.stop_sequences),
                    "usage": _usage(completion.report),
                }
            )

    return answering(request, "anthropic", work)


def _block(call: ToolCall, given: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": given}


async def count_tokens(request: Request) -> Response:
    """How many tokens a conversation is, through the model's own template."""
    body = await read(request, CountBody, state.of(request).limits)
    turns = conversation(body.system, body.messages)

    async def work(wire: Wire) -> None:
        async with generation(request, wire, body.model) as job:
            llm = job.llm.llm
            arguments = _thinking(llm, body.thinking) or None
            count = await asyncio.to_thread(
                llm.count_chat, turns, tools=tools(body.tools) or None, template_arguments=arguments
            )
            await wire.whole({"input_tokens": count})

    return answering(request, "anthropic", work)


def _ending(job: Generation, completion: Completion, stops: list[str] | None) -> dict[str, Any]:
    """Why it ended. The tokens go on to the end of a stop string, the text does not."""
    if completion.finish_reason == "stop" and stops:
        said = job.llm.llm.detokenize(completion.token_ids)
        for stop in stops:
            if stop in said:
                return {"stop_reason": "stop_sequence", "stop_sequence": stop}
    return {"stop_reason": _STOPS[completion.finish_reason], "stop_sequence": None}


async def _stream(
    job: Generation, wire: Wire, answer: Any, head: dict[str, Any], stops: list[str] | None
) -> None:
    """Anthropic's events: the message opens, each block opens, grows and closes, the message ends.

    The prompt's tokens are known when the first token comes; the counts of the opening are of what
    is known then, those of the end are whole.
    """

    async def send(kind: str, **rest: Any) -> None:
        await wire.event({"type": kind, **rest}, form="sse", name=kind)

    async def open_block(kind: Literal["text", "thinking"]) -> None:
        block = {"type": "text", "text": ""}
        if kind == "thinking":
            block = {"type": "thinking", "thinking": "", "signature": ""}
        await send("content_block_start", index=index, content_block=block)

    index, block = 0, ""
    begun = False
    last: Completion | None = None
    async for item in job.chunks([answer]):
        if item is None:
            await wire.idle("sse")
            continue
        chunk = item[1]
        if not begun:
            begun = True
            opening = {**head, "content": [], "stop_reason": None, "stop_sequence": None}
            usage = {"input_tokens": 0, "output_tokens": 0}
            await send("message_start", message={**opening, "usage": usage})
        for kind, piece in (("thinking", chunk.reasoning), ("text", chunk.text)):
            if not piece:
                continue
            if block != kind:
                if block:
                    await send("content_block_stop", index=index)
                    index += 1
                block = kind
                await open_block("thinking" if kind == "thinking" else "text")
            await send(
                "content_block_delta", index=index, delta={"type": f"{kind}_delta", kind: piece}
            )
        for call in chunk.tool_calls:
            if block:
                await send("content_block_stop", index=index)
                index += 1
            block = "tool_use"
            await send("content_block_start", index=index, content_block=_block(call, {}))
            delta = {"type": "input_json_delta", "partial_json": call.arguments}
            await send("content_block_delta", index=index, delta=delta)
        if chunk.completion is not None:
            last = chunk.completion
    assert last is not None
    if not block:
        await open_block("text")
    await send("content_block_stop", index=index)
    await send("message_delta", delta=_ending(job, last, stops), usage=_usage(last.report))
    await send("message_stop")
    await wire.end()


def _usage(report: Report) -> dict[str, Any]:
    """Anthropic counts what came from the cache apart from the rest of the input."""
    return {
        "input_tokens": report.prompt_tokens - report.cached_tokens,
        "cache_read_input_tokens": report.cached_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": report.completion_tokens,
    }


def _thinking(llm: LLM, asked: Mapping[str, Any] | None) -> dict[str, Any]:
    if asked is None:
        return {}
    kinds = {"enabled": True, "adaptive": True, "disabled": False}
    if asked.get("type") not in kinds:
        raise RefusalError(
            400, "thinking: allowed are enabled, adaptive and disabled", param="thinking"
        )
    return template_arguments(llm, think=kinds[asked["type"]], name="thinking")


#: For the OpenAPI document.
BODIES = {"messages": MessagesBody, "count_tokens": CountBody}
