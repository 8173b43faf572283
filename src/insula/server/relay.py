"""From running answers to one writer that may be slower than they are.

Owns the merging of several answers' chunks in the order in which they come, and the bound on what
waits: chunks that a writer has not taken yet become one chunk, so that a slow reader gets fewer and
larger pieces; beyond the bound the answers are cancelled. Leaving the block cancels what runs, and
the engine frees it within a step.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from types import TracebackType
from typing import Self

from insula.server.errors import RefusalError
from insula.types import Chunk

#: What an entry of log probabilities is counted as, in bytes, beside its alternatives.
ENTRY, ALTERNATIVE = 200, 80


class Relay:
    """Use as an async context manager, and iterate: (index of the answer, chunk)."""

    def __init__(
        self, answers: Sequence[AsyncGenerator[Chunk]], *, most: int, at_once: int = 1 << 30
    ) -> None:
        """most: bytes of text and log probabilities that may wait to be written. at_once: how many
        answers run together; the others wait here."""
        self._answers = answers
        self._turn = asyncio.Semaphore(at_once)
        self._most = most
        self._waiting: dict[int, Chunk] = {}
        self._bytes = 0
        self._running = len(answers)
        self._error: BaseException | None = None
        self._news = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [
            asyncio.create_task(self._read(index, answer))
            for index, answer in enumerate(self._answers)
        ]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def chunks(self, idle: float | None = None) -> AsyncIterator[tuple[int, Chunk] | None]:
        """As they come; None whenever nothing came for `idle` seconds. Raises what an answer
        raised, after its last chunk."""
        while True:
            while self._waiting:
                index = next(iter(self._waiting))
                chunk = self._waiting.pop(index)
                self._bytes -= _size(chunk)
                yield index, chunk
            if self._error is not None:
                raise self._error
            if not self._running:
                return
            self._news.clear()
            try:
                async with asyncio.timeout(idle):
                    await self._news.wait()
            except TimeoutError:
                yield None

    async def _read(self, index: int, answer: AsyncGenerator[Chunk]) -> None:
        try:
            async with self._turn:
                async for chunk in answer:
                    self._put(index, chunk)
        except Exception as error:  # noqa: BLE001 - it is raised to whoever reads
            self._fail(error)
        finally:
            self._running -= 1
            self._news.set()
            await answer.aclose()

    def _put(self, index: int, chunk: Chunk) -> None:
        self._bytes += _size(chunk)
        waiting = self._waiting.get(index)
        self._waiting[index] = chunk if waiting is None else _joined(waiting, chunk)
        if self._bytes > self._most:
            raise RefusalError(408, "the answer was not read fast enough; it was given up")
        self._news.set()

    def _fail(self, error: BaseException) -> None:
        if self._error is None:
            self._error = error
        self._news.set()
        self._cancel()

    def _cancel(self) -> None:
        current = asyncio.current_task()
        for task in self._tasks:
            if task is not current:
                task.cancel()


def _joined(first: Chunk, then: Chunk) -> Chunk:
    """Both as one chunk."""
    logprobs = None
    if first.logprobs is not None or then.logprobs is not None:
        logprobs = (*(first.logprobs or ()), *(then.logprobs or ()))
    return dataclasses.replace(
        then,
        text=first.text + then.text,
        token_ids=first.token_ids + then.token_ids,
        logprobs=logprobs,
        reasoning=first.reasoning + then.reasoning,
        tool_calls=first.tool_calls + then.tool_calls,
        queue_seconds=first.queue_seconds if then.queue_seconds is None else then.queue_seconds,
    )


def _size(chunk: Chunk) -> int:
    """Of what is to be written of it. Joining two adds up."""
    size = 4 * (len(chunk.text) + len(chunk.reasoning))
    size += sum(ENTRY + 4 * len(call.arguments) for call in chunk.tool_calls)
    for entry in chunk.logprobs or ():
        size += ENTRY + ALTERNATIVE * len(entry.top)
    return size
