"""One request's way through the server: admitted, given its model, answered, counted.

What the families share, so that each of them only reads its own parameters and writes its own
documents. A request is admitted before anything waits for it; its headers say how long it waited in
the queue, and which engine answered on which instruction set.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal

from fastapi import Request

from insula.async_llm import AsyncLLM
from insula.errors import NotFoundError
from insula.server import state
from insula.server.caller import caller
from insula.server.errors import RefusalError
from insula.server.models import DEFAULT, KeepAlive, Loaded
from insula.server.relay import Relay
from insula.server.routes import Family
from insula.server.state import Server
from insula.server.usage import Usage, usage
from insula.server.wire import IDLE, Answering, Wire
from insula.types import Chunk, Completion, ModelInfo, Report


def answering(
    request: Request, family: Family, work: Callable[[Wire], Awaitable[None]]
) -> Answering:
    """The response that `work` writes, with what every route counts."""
    server = state.of(request)
    route = request.scope["route"].path

    def seen(wire: Wire, end: Literal["ended", "left", "stalled"]) -> None:
        server.metrics.requests.labels(route, wire.status if end == "ended" else 499).inc()
        server.metrics.ended.labels(end).inc()

    return Answering(work, family=family, limits=server.limits, seen=seen, cut=server.cut)


class Generation:
    """An admitted request on a loaded model."""

    def __init__(
        self, server: Server, loaded: Loaded, tenant: str, wire: Wire, used: Usage
    ) -> None:
        self._server = server
        self._used = used
        self._wire = wire
        self.loaded = loaded
        self.salt = tenant
        self.began = time.perf_counter()
        self._opened: list[AsyncGenerator[tuple[int, Chunk] | None]] = []
        self._at_once = server.options.max_running
        #: What loading took of this request's time, in seconds.
        self.load_seconds = 0.0
        self._queue = 0.0
        info = self.info
        wire.headers |= {"x-insula-engine": info.engine, "x-insula-isa": info.isa}

    @property
    def llm(self) -> AsyncLLM:
        return self.loaded.llm

    @property
    def info(self) -> ModelInfo:
        return self.loaded.llm.model_info

    @property
    def name(self) -> str:
        return self.loaded.name

    def chunks(
        self, answers: Sequence[AsyncGenerator[Chunk]]
    ) -> AsyncIterator[tuple[int, Chunk] | None]:
        """Of several answers, as they come; None now and then while nothing does. The headers know
        the queue time when the first one comes. Whatever is not read to its end ends with us."""
        opened = self._chunks(answers)
        self._opened.append(opened)
        return opened

    async def close(self) -> None:
        """Let go of what still runs: not when somebody collects garbage, but now."""
        for opened in self._opened:
            await opened.aclose()

    async def _chunks(
        self, answers: Sequence[AsyncGenerator[Chunk]]
    ) -> AsyncGenerator[tuple[int, Chunk] | None]:
        most = self._server.limits.buffered
        unfinished: Counter[int] = Counter()
        try:
            async with Relay(answers, most=most, at_once=self._at_once) as relay:
                async for item in relay.chunks(idle=IDLE):
                    if item is not None:
                        index, chunk = item
                        self._queued(chunk.queue_seconds)
                        unfinished[index] += len(chunk.token_ids)
                        if chunk.completion is not None:
                            del unfinished[index]
                            self._answered(chunk.completion.report)
                    yield item
        finally:  # who leaves early has had these
            self._used.add(self.name, prompt_tokens=0, completion_tokens=sum(unfinished.values()))

    async def whole(self, answers: Sequence[AsyncGenerator[Chunk]]) -> list[Completion]:
        """All of them, complete. Nothing is written meanwhile, so nothing is buffered."""
        found: dict[int, Completion] = {}
        async with Relay(answers, most=1 << 62, at_once=self._at_once) as relay:
            async for item in relay.chunks():
                assert item is not None
                index, chunk = item
                self._queued(chunk.queue_seconds)
                if chunk.completion is not None:
                    found[index] = chunk.completion
                    self._answered(chunk.completion.report)
        return [found[index] for index in range(len(answers))]

    def read(self, tokens: int, seconds: float) -> None:
        """Texts were read for vectors or scores."""
        self._server.metrics.tokens.labels(self.name, "prompt").inc(tokens)
        self._used.add(self.name, prompt_tokens=tokens)
        self._server.metrics.first.observe(seconds)
        self._queued(0.0)

    def _queued(self, seconds: float | None) -> None:
        if seconds is not None:
            self._queue = max(self._queue, seconds)
            self._wire.headers["x-insula-queue-ms"] = f"{1000 * self._queue:.1f}"

    def _answered(self, report: Report) -> None:
        self._queued(report.queue_seconds)
        self._server.metrics.answered(self.name, report)
        self._used.add(
            self.name,
            prompt_tokens=report.prompt_tokens,
            completion_tokens=report.completion_tokens,
            cached_tokens=report.cached_tokens,
        )


@asynccontextmanager
async def generation(
    request: Request,
    wire: Wire,
    model: str,
    *,
    weight: int = 1,
    keep_alive: KeepAlive = DEFAULT,
) -> AsyncIterator[Generation]:
    """Admit the request, and give it its model for the length of the block.

    weight: how many sequences it is; of more than run together, the others wait within it.
    Raises RefusalError, NotFoundError, and what loading raises.
    """
    server = state.of(request)
    who = caller(request.scope)
    try:
        with server.admission.enter(min(weight, server.options.max_running), who.tenant):
            served = server.catalogue.find(model)
            if not who.may_use(served.name):
                raise NotFoundError(f"model {model[:120]!r} not found")
            began = time.perf_counter()
            async with server.models.lease(served.name, keep_alive) as loaded:
                found = Generation(server, loaded, who.tenant, wire, usage(request.scope))
                found.load_seconds = time.perf_counter() - began
                found.began = began
                try:
                    yield found
                finally:
                    await found.close()
    except RefusalError as error:
        if error.status in (429, 503):
            server.metrics.refused.labels(error.code or "busy").inc()
        raise


def seeds(seed: int | None, count: int) -> list[int | None]:
    """Of each of several samples: seed, seed + 1, …; below 0, as clients may, counted from 2^64."""
    if seed is None:
        return [None] * count
    return [(seed + i) % (1 << 64) for i in range(count)]


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """What was said, without what was not."""
    return {name: value for name, value in values.items() if value is not None}


def total(reports: Sequence[Report]) -> Report:
    """Of several samples of one prompt: its tokens once, theirs together."""
    first = reports[0]
    return dataclasses.replace(
        first,
        completion_tokens=sum(report.completion_tokens for report in reports),
        cached_tokens=max(report.cached_tokens for report in reports),
        dropped_turns=max(report.dropped_turns for report in reports),
        dropped_tokens=max(report.dropped_tokens for report in reports),
    )
