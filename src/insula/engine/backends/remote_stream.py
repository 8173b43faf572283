"""What a server streams, read into pieces: text, reasoning, log probabilities, the end, the count.

Both routes: completions (choices[0].text) and chat (choices[0].delta). Token ids are not known;
a log probability's token_id is -1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from insula.errors import RemoteError
from insula.types import FinishReason, TokenLogprob

UNKNOWN_ID = -1
_KNOWN_ENDS: Mapping[str, FinishReason] = {"stop": "stop", "length": "length"}


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What one event brought."""

    text: str = ""
    reasoning: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()


class AnswerReader:
    """Reads one answer's events in order. scored: log probabilities were asked for."""

    def __init__(self, *, scored: bool) -> None:
        self.ended: FinishReason | None = None
        self.usage: Mapping[str, Any] = {}
        self.notes: list[str] = []
        self._scored = scored

    def read(self, event: Mapping[str, Any]) -> Piece | None:
        """What the event brought; None where it only counts. Raises RemoteError."""
        if isinstance(event.get("usage"), Mapping):
            self.usage = event["usage"]
        choices = event.get("choices")
        if not choices:
            return None
        try:
            choice = choices[0]
            delta = choice.get("delta")
            said = delta if isinstance(delta, Mapping) else choice
            piece = Piece(
                text=_text(said.get("text" if delta is None else "content")),
                reasoning=_text(said.get("reasoning_content") or said.get("reasoning")),
                logprobs=_logprobs(choice.get("logprobs")) if self._scored else (),
            )
            reason = choice.get("finish_reason")
            if reason is not None and not isinstance(reason, str):
                raise TypeError
        except (KeyError, TypeError, AttributeError, IndexError, ValueError, OverflowError):
            found = ", ".join(sorted(map(str, event)))[:100]
            raise RemoteError(
                f"the server sent an event that is no piece of an answer (it has {found})"
            ) from None
        if said.get("tool_calls"):
            self._note("the server called tools, which are not given back")
        if said.get("refusal"):
            self._note("the server refused to answer")
        if reason is not None:
            self.ended = _KNOWN_ENDS.get(reason, "stop")
            if reason not in _KNOWN_ENDS:
                self._note(f"the server ended the answer for the reason {str(reason)[:40]!r}")
        return piece

    def count(self, name: str) -> int:
        """One of usage's numbers; 0 where the server gave none."""
        value = self.usage.get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) else 0

    @property
    def cached(self) -> int:
        """Tokens of the prompt that the server had cached, if it says so."""
        details = self.usage.get("prompt_tokens_details")
        found = details.get("cached_tokens") if isinstance(details, Mapping) else None
        return found if isinstance(found, int) else 0

    def _note(self, line: str) -> None:
        if line not in self.notes:
            self.notes.append(line)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TypeError
    return value


def _logprobs(found: Any) -> tuple[TokenLogprob, ...]:
    """Of a chat ("content": one mapping per token) or a completion (columns)."""
    if not found:
        return ()
    if "content" in found:
        return tuple(
            TokenLogprob(
                token_id=UNKNOWN_ID,
                token=_bytes(entry),
                logprob=float(entry["logprob"]),
                top=tuple(
                    (UNKNOWN_ID, _bytes(other), float(other["logprob"]))
                    for other in entry.get("top_logprobs") or ()
                ),
            )
            for entry in found["content"] or ()
        )
    tops = found.get("top_logprobs") or [None] * len(found["tokens"])
    return tuple(
        TokenLogprob(
            token_id=UNKNOWN_ID,
            token=str(token).encode(),
            logprob=float(logprob),
            top=tuple(
                (UNKNOWN_ID, str(text).encode(), float(score))
                for text, score in (top or {}).items()
            ),
        )
        for token, logprob, top in zip(found["tokens"], found["token_logprobs"], tops, strict=True)
    )


def _bytes(entry: Mapping[str, Any]) -> bytes:
    raw = entry.get("bytes")
    if raw is not None and not isinstance(raw, list):
        raise TypeError
    return bytes(raw) if raw else str(entry["token"]).encode()
