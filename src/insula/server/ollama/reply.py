"""Ollama's replies to generate and chat: pieces, and the last one with its durations and counts.

Durations are nanoseconds that were measured: from the request on (total), for loading the model,
for reading the prompt (without the wait in the queue), and for the tokens after the first.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from insula.server.generation import Generation
from insula.server.wire import Wire
from insula.types import Chunk, Completion, Report, TokenLogprob, ToolCall

#: Makes a piece's own part: (text, reasoning, calls of tools) -> keys beside model and done.
Piece = Callable[[str, str, Sequence[ToolCall]], dict[str, Any]]


#: Ollama has no word for calls: they are an answer that has ended.
_REASONS = {"tool_calls": "stop"}


def now() -> str:
    """As RFC 3339 writes it."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def nanoseconds(seconds: float) -> int:
    """Whole ones, never fewer than none."""
    return max(0, round(seconds * 1e9))


class Reply:
    """One answer. notes: what was asked and is not used."""

    def __init__(
        self, job: Generation, piece: Piece, *, top: int | None, notes: Sequence[str]
    ) -> None:
        self._job = job
        self._piece = piece
        self._top = top
        self._notes = list(notes)

    async def whole(self, wire: Wire, answer: AsyncGenerator[Chunk]) -> None:
        """As one document."""
        [completion] = await self._job.whole([answer])
        document = self._document(
            completion.text,
            completion.reasoning or "",
            completion.tool_calls,
            completion.logprobs or (),
        )
        await wire.whole({**document, **self.last(completion)})

    async def stream(self, wire: Wire, answer: AsyncGenerator[Chunk]) -> None:
        """As a document per piece."""
        async for item in self._job.chunks([answer]):
            if item is None:
                continue
            chunk = item[1]
            if chunk.text or chunk.reasoning or chunk.tool_calls or chunk.logprobs:
                document = self._document(
                    chunk.text, chunk.reasoning, chunk.tool_calls, chunk.logprobs or ()
                )
                await wire.event({**document, "done": False}, form="ndjson")
            if chunk.completion is not None:
                document = self._document("", "", (), ())
                await wire.event({**document, **self.last(chunk.completion)}, form="ndjson")
        await wire.end()

    def _document(
        self,
        text: str,
        reasoning: str,
        calls: Sequence[ToolCall],
        logprobs: Sequence[TokenLogprob],
    ) -> dict[str, Any]:
        own = self._piece(text, reasoning, calls)
        document = {"model": self._job.name, "created_at": now(), **own}
        if self._top is not None and logprobs:
            document["logprobs"] = [self._entry(entry, self._top) for entry in logprobs]
        return document

    @staticmethod
    def _entry(entry: TokenLogprob, top: int) -> dict[str, Any]:
        def shown(token: bytes, logprob: float) -> dict[str, Any]:
            text = token.decode(errors="replace")
            return {"token": text, "logprob": logprob, "bytes": list(token)}

        found = shown(entry.token, entry.logprob)
        if top:
            found["top_logprobs"] = [shown(token, p) for _, token, p in entry.top[:top]]
        return found

    def last(self, completion: Completion) -> dict[str, Any]:
        """What the last piece says of the whole."""
        report = completion.report
        document: dict[str, Any] = {
            "done": True,
            "done_reason": _REASONS.get(completion.finish_reason, completion.finish_reason),
            "total_duration": nanoseconds(time.perf_counter() - self._job.began),
            "load_duration": nanoseconds(self._job.load_seconds),
            "prompt_eval_count": report.prompt_tokens,
            "prompt_eval_duration": nanoseconds(report.time_to_first_token - report.queue_seconds),
            "eval_count": report.completion_tokens,
            "eval_duration": nanoseconds(_decoding(report)),
        }
        if report.cached_tokens:
            document["prompt_cached_count"] = report.cached_tokens
        notes = list(self._notes)
        if report.dropped_turns:
            notes.append(
                f"{report.dropped_turns} turns ({report.dropped_tokens} tokens) of the "
                "conversation did not fit and were left out, the oldest first"
            )
        if notes:
            document["notes"] = notes
        return document


def _decoding(report: Report) -> float:
    """Seconds for the tokens after the first."""
    speed = report.decode_tokens_per_second
    return (report.completion_tokens - 1) / speed if speed > 0 else 0.0
