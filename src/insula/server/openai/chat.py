"""POST /v1/chat/completions."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from fastapi import Request
from fastapi.responses import Response
from pydantic import Field

from insula.llm import LLM
from insula.server import state
from insula.server.errors import RefusalError
from insula.server.generation import Generation, answering, generation, given
from insula.server.openai import logprobs
from insula.server.openai.constraints import calls, constraints
from insula.server.openai.usage import usage
from insula.server.sampling import MOST_ALTERNATIVES, Integer, Sampling
from insula.server.schema import Body, read
from insula.server.thinking import template_arguments
from insula.server.wire import Wire
from insula.types import Completion, Report

#: What says what the answer must be.
CONSTRAINTS = {"tools", "tool_choice", "parallel_tool_calls", "response_format", "grammar"}


class StreamOptions(Body):
    """Of a streamed answer. include_obfuscation: nothing is padded here."""

    include_usage: bool = False
    include_obfuscation: Literal[False] | None = None


class ChatBody(Sampling):
    """What may be asked."""

    NEUTRAL: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "store": (False,),
        "modalities": (["text"],),
        "service_tier": ("auto", "default"),
        "functions": ([],),
        "verbosity": ("medium",),
    }
    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    max_tokens: Integer | None = None
    max_completion_tokens: Integer | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES)] | None = None
    stream_options: dict[str, Any] | None = None
    reasoning_effort: Annotated[str, Field(max_length=20)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    grammar: str | None = None
    metadata: dict[str, str] | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None


async def chat_completions(request: Request) -> Response:
    """The assistant's answer, whole or as server-sent events."""
    limits = state.of(request).limits
    body = await read(request, ChatBody, limits)
    options = body.options(most_samples=limits.samples)
    options |= constraints(body.model_dump(include=CONSTRAINTS))
    if body.top_logprobs is not None and not body.logprobs:
        raise RefusalError(400, "top_logprobs: needs logprobs to be true", param="top_logprobs")
    if body.logprobs:
        options["logprobs"] = body.top_logprobs or 0
    most = body.max_completion_tokens
    options |= given({"max_tokens": body.max_tokens if most is None else most})
    if body.adapter is not None:
        options["adapter"] = body.adapter
    stream = StreamOptions.of(body.stream_options or {})

    async def work(wire: Wire) -> None:
        async with generation(request, wire, body.model, weight=body.n) as job:
            answer = _Answer(job, body, options)
            if body.stream:
                await answer.stream(wire, with_usage=stream.include_usage)
            else:
                await wire.whole(await answer.whole())

    return answering(request, "openai", work)


class _Answer:
    def __init__(self, job: Generation, body: ChatBody, options: Mapping[str, Any]) -> None:
        self._job = job
        self._top = options.get("logprobs")
        arguments = template_arguments(
            job.llm.llm, effort=body.reasoning_effort, given=body.chat_template_kwargs
        )
        messages = speakers(job.llm.llm, body.messages)
        self._answers = [
            job.llm.chat_stream(
                messages,
                **options,
                **given({"seed": seed}),
                salt=job.salt,
                template_arguments=arguments or None,
            )
            for seed in body.seeds()
        ]
        self._head = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "object": "chat.completion.chunk" if body.stream else "chat.completion",
            "created": int(time.time()),
            "model": job.name,
            "system_fingerprint": f"insula-{job.info.engine}-{job.info.isa}",
        }

    async def whole(self) -> dict[str, Any]:
        completions = await self._job.whole(self._answers)
        return {
            **self._head,
            "choices": [self._choice(i, c) for i, c in enumerate(completions)],
            "usage": usage([completion.report for completion in completions]),
        }

    def _choice(self, index: int, completion: Completion) -> dict[str, Any]:
        message: dict[str, Any] = {
            "role": "assistant",
            "content": completion.text,
            "refusal": None,
        }
        if completion.reasoning:
            message["reasoning_content"] = completion.reasoning
        if completion.tool_calls:
            message["content"] = completion.text or None
            message["tool_calls"] = calls(completion.tool_calls)
        entries = None
        if self._top is not None:
            entries = logprobs.chat(completion.logprobs or (), self._top)
        return {
            "index": index,
            "message": message,
            "logprobs": entries,
            "finish_reason": completion.finish_reason,
        }

    async def stream(self, wire: Wire, *, with_usage: bool) -> None:
        begun: set[int] = set()
        called: Counter[int] = Counter()
        reports: list[Report] = []
        empty = {"usage": None} if with_usage else {}

        async def send(index: int, delta: dict[str, Any], entries: Any, finish: str | None) -> None:
            choice = {"index": index, "delta": delta, "logprobs": entries, "finish_reason": finish}
            await wire.event({**self._head, "choices": [choice], **empty}, form="sse")

        async for item in self._job.chunks(self._answers):
            if item is None:
                await wire.idle("sse")
                continue
            index, chunk = item
            if index not in begun:
                begun.add(index)
                await send(index, {"role": "assistant", "content": ""}, None, None)
            delta: dict[str, Any] = {}
            if chunk.reasoning:
                delta["reasoning_content"] = chunk.reasoning
            if chunk.text:
                delta["content"] = chunk.text
            if chunk.tool_calls:
                delta["tool_calls"] = calls(chunk.tool_calls, called[index])
                called[index] += len(chunk.tool_calls)
            entries = None
            if self._top is not None and chunk.logprobs:
                entries = logprobs.chat(chunk.logprobs, self._top)
            if delta or entries:
                await send(index, delta, entries, None)
            if chunk.completion is not None:
                reports.append(chunk.completion.report)
                await send(index, {}, None, chunk.finish_reason)
        if with_usage:
            await wire.event({**self._head, "choices": [], "usage": usage(reports)}, form="sse")
        await wire.event("[DONE]", form="sse")
        await wire.end()


def speakers(llm: LLM, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages; OpenAI's developer is the system to a template that knows no developer."""
    knows = "developer" in (llm.template_source or "developer")
    return [
        {**m, "role": "system"} if m.get("role") == "developer" and not knows else dict(m)
        for m in messages
    ]


#: For the OpenAPI document.
BODIES = {"chat_completions": ChatBody}
