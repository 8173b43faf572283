"""POST /v1/completions: going on from texts or ids, many at once, and what the model makes of the
prompt itself (echo with logprobs), as lm-eval's local-completions asks."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from fastapi import Request
from fastapi.responses import Response
from pydantic import Field

from insula.server import state
from insula.server.errors import RefusalError
from insula.server.generation import Generation, answering, generation, given
from insula.server.openai import logprobs
from insula.server.openai.chat import StreamOptions
from insula.server.openai.constraints import constraints
from insula.server.openai.embeddings import Id
from insula.server.openai.usage import usage
from insula.server.options import Limits
from insula.server.sampling import MOST_ALTERNATIVES, Integer, Sampling
from insula.server.schema import read
from insula.server.wire import Wire
from insula.types import Completion, Report

#: OpenAI's default.
MAX_TOKENS = 16


class CompletionBody(Sampling):
    """What may be asked."""

    NEUTRAL: ClassVar[Mapping[str, tuple[Any, ...]]] = {"suffix": ("",)}
    prompt: str | list[str] | list[Id] | list[list[Id]]
    max_tokens: Integer = MAX_TOKENS
    echo: bool = False
    logprobs: Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES)] | None = None
    response_format: dict[str, Any] | None = None
    grammar: str | None = None
    best_of: Integer | None = None
    stream_options: dict[str, Any] | None = None

    def prompts(self, limits: Limits) -> list[str | list[int]]:
        """One or many, each a text or ids. Raises RefusalError."""
        found: Any = self.prompt
        if isinstance(found, str) or (found and isinstance(found[0], int)):
            found = [found]
        if not 1 <= len(found) <= limits.prompts:
            message = f"prompt: found {len(found)} prompts; allowed: 1 to {limits.prompts}"
            raise RefusalError(400, message, code="invalid_value", param="prompt")
        return list(found)


async def completions(request: Request) -> Response:
    """Each prompt n times: choices in the order of the prompts, a prompt's samples together."""
    limits = state.of(request).limits
    body = await read(request, CompletionBody, limits)
    prompts = body.prompts(limits)
    options = body.options(most_samples=limits.samples)
    options["max_tokens"] = body.max_tokens
    options |= constraints(body.model_dump(include={"response_format", "grammar"}))
    if body.logprobs is not None:
        options["logprobs"] = body.logprobs
    if body.adapter is not None:
        options["adapter"] = body.adapter
    if body.best_of not in (None, body.n):
        raise RefusalError(400, "best_of: is not supported beyond n", param="best_of")
    if body.stream and body.echo and body.logprobs is not None:
        message = "echo: with logprobs it is not streamed; leave stream out"
        raise RefusalError(400, message, code="unsupported_parameter", param="echo")
    stream = StreamOptions.of(body.stream_options or {})

    async def work(wire: Wire) -> None:
        weight = body.n * len(prompts)
        async with generation(request, wire, body.model, weight=weight) as job:
            answer = _Answer(job, body, prompts, options)
            if body.stream:
                await answer.stream(wire, with_usage=stream.include_usage)
            else:
                await wire.whole(await answer.whole())

    return answering(request, "openai", work)


@dataclass(frozen=True, kw_only=True)
class _Echo:
    """What a prompt shows of itself: its text, and its first token's bytes."""

    text: str
    first: bytes


class _Answer:
    def __init__(
        self,
        job: Generation,
        body: CompletionBody,
        prompts: list[str | list[int]],
        options: Mapping[str, Any],
    ) -> None:
        self._job = job
        self._body = body
        self._prompts = len(prompts)
        scored: dict[str, Any] = {}
        if body.echo and body.logprobs is not None:
            scored = {"prompt_logprobs": body.logprobs}
        self._echoes = [self._echo(prompt) if body.echo else None for prompt in prompts]
        self._answers = [
            job.llm.stream(
                prompt,
                **options,
                **given({"seed": seed}),
                salt=job.salt,
                **scored,
            )
            for prompt in prompts
            for seed in body.seeds()
        ]
        self._head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": job.name,
            "system_fingerprint": f"insula-{job.info.engine}-{job.info.isa}",
        }

    def _echo(self, prompt: str | list[int]) -> _Echo:
        llm = self._job.llm.llm
        ids = llm.tokenize(prompt) if isinstance(prompt, str) else prompt
        if not ids or max(ids) >= llm.tokenizer.vocab_size:  # the engine says what is wrong
            return _Echo(text="", first=b"")
        text = prompt if isinstance(prompt, str) else llm.detokenize(prompt)
        return _Echo(text=text, first=llm.tokenizer.token_bytes(ids[0]))

    async def whole(self) -> dict[str, Any]:
        completions = await self._job.whole(self._answers)
        return {
            **self._head,
            "choices": [self._choice(i, c) for i, c in enumerate(completions)],
            "usage": usage([c.report for c in completions], prompts=self._prompts),
        }

    def _choice(self, index: int, completion: Completion) -> dict[str, Any]:
        echo = self._echoes[index // self._body.n]
        before = "" if echo is None else echo.text
        table = None
        if self._body.logprobs is not None:
            entries = (*(completion.prompt_logprobs or ()), *(completion.logprobs or ()))
            offset = 0 if completion.prompt_logprobs else len(before)
            table = logprobs.columns(entries, b"" if echo is None else echo.first, offset)
        return {
            "index": index,
            "text": before + completion.text,
            "logprobs": table,
            "finish_reason": completion.finish_reason,
        }

    async def stream(self, wire: Wire, *, with_usage: bool) -> None:
        offsets: dict[int, int] = {}
        reports: dict[int, Report] = {}
        empty = {"usage": None} if with_usage else {}

        async def send(index: int, text: str, table: Any, finish: str | None) -> None:
            choice = {"index": index, "text": text, "logprobs": table, "finish_reason": finish}
            await wire.event({**self._head, "choices": [choice], **empty}, form="sse")

        async for item in self._job.chunks(self._answers):
            if item is None:
                await wire.idle("sse")
                continue
            index, chunk = item
            if index not in offsets:
                echo = self._echoes[index // self._body.n]
                offsets[index] = len(echo.text) if echo else 0
                if echo is not None:
                    await send(index, echo.text, None, None)
            table = None
            if chunk.logprobs:
                table = logprobs.columns(chunk.logprobs, b"", offsets[index])
                offsets[index] += sum(len(token) for token in table["tokens"])
            if chunk.text or table or chunk.completion is not None:
                await send(index, chunk.text, table, chunk.finish_reason)
            if chunk.completion is not None:
                reports[index] = chunk.completion.report
        if with_usage:
            cost = usage([reports[i] for i in sorted(reports)], prompts=self._prompts)
            await wire.event({**self._head, "choices": [], "usage": cost}, form="sse")
        await wire.event("[DONE]", form="sse")
        await wire.end()


#: For the OpenAPI document.
BODIES = {"completions": CompletionBody}
