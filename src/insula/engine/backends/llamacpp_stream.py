"""llama.cpp's chunks, read into ours.

The handler reports one token id per chunk and none for a token that ends inside a character:
its bytes come with the token that completes it. The number of tokens comes with every chunk
(`timings.predicted_n`), so a gap is seen, and the missing ids are found from the bytes. Where
that is not possible, or the character never became whole, the report says so.

Invariants: text is never half a character; a stop string never appears, nor any part of one
that became whole; the ids are those of the tokens up to and including the one that ended it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from insula.engine.request import Tokenizer
from insula.errors import ContextOverflowError, EngineError
from insula.types import FinishReason, TokenLogprob

#: A UTF-8 character has at most four bytes, so a gap has few tokens and the search is tiny.
MAX_GAP = 16


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What one chunk brought."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]


class GapFinder:
    """Ids of tokens known only by their joined bytes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    @cached_property
    def _partial(self) -> dict[bytes, int]:
        """Tokens whose bytes are not whole characters; the lowest id of equal ones."""
        table: dict[bytes, int] = {}
        for token_id in range(self._tokenizer.vocab_size):
            data = self._tokenizer.token_bytes(token_id)
            if not data.isascii() and not _is_utf8(data):
                table.setdefault(data, token_id)
        return table

    def find(self, data: bytes, last: int, count: int) -> tuple[int, ...] | None:
        """The `count` ids before `last` that with it make `data`; None if there is no one way."""
        end = self._tokenizer.token_bytes(last)
        if count > MAX_GAP or not data.endswith(end):
            return None
        ways = self._split(data[: len(data) - len(end)], count)
        return ways[0] if len(ways) == 1 else None

    def _split(self, data: bytes, count: int) -> list[tuple[int, ...]]:
        if count == 0:
            return [] if data else [()]
        ways: list[tuple[int, ...]] = []
        for size in range(1, len(data) - count + 2):
            head = self._partial.get(data[:size])
            if head is not None:
                ways += [(head, *tail) for tail in self._split(data[size:], count - 1)]
        return ways


class StreamReader:
    """Reads one request's chunks in order."""

    def __init__(self, *, tokenizer: Tokenizer, gaps: GapFinder, logprobs: int | None) -> None:
        self._tokenizer = tokenizer
        self._gaps = gaps
        self._top = logprobs
        self._counted = 0
        self.lost = 0
        self.unscored = 0
        self.ended: FinishReason | None = None
        self.timings: Mapping[str, Any] = {}

    def read(self, chunk: Mapping[str, Any]) -> Piece | None:
        """What the chunk brought; None for progress and for the last one.

        Raises the error that the chunk carries.
        """
        if "error" in chunk:
            raise _error(chunk["error"])
        self.timings = chunk.get("timings", self.timings)
        choice = chunk["choices"][0]
        if choice["finish_reason"] is not None:
            self.ended = "stop" if choice["finish_reason"] == "stop" else "length"
            self._count_lost(int(chunk.get("usage", {}).get("completion_tokens", self._counted)))
            return None
        scored = (choice["logprobs"] or {}).get("content") or ()
        if not scored:
            return None
        entry = scored[-1]
        count = int(chunk.get("timings", {}).get("predicted_n", self._counted + 1))
        missing = max(0, count - self._counted - 1)
        self._counted = max(count, self._counted + 1)
        return self._piece(choice["text"], entry, missing)

    def notes(self) -> tuple[str, ...]:
        """What the report must say."""
        notes = []
        if self.lost:
            notes.append(
                f"llama.cpp did not name {self.lost} generated tokens that end inside a "
                "character; token_ids lacks them"
            )
        if self.unscored:
            notes.append(
                f"llama.cpp gave no log probability for {self.unscored} tokens that end inside "
                "a character; theirs is nan"
            )
        return tuple(notes)

    def _piece(self, text: str, entry: Mapping[str, Any], missing: int) -> Piece:
        last = int(entry["id"])
        before: tuple[int, ...] = ()
        if missing:
            found = self._gaps.find(text.encode(), last, missing)
            if found is None:
                self.lost += missing
            else:
                before = found
        if self._top is None:
            return Piece(text=text, token_ids=(*before, last), logprobs=())
        self.unscored += len(before)
        unscored = tuple(
            TokenLogprob(token_id=i, token=self._tokenizer.token_bytes(i), logprob=float("nan"))
            for i in before
        )
        return Piece(
            text=text, token_ids=(*before, last), logprobs=(*unscored, self._scored(entry))
        )

    def _scored(self, entry: Mapping[str, Any]) -> TokenLogprob:
        assert self._top is not None
        top = tuple(
            (int(t["id"]), self._tokenizer.token_bytes(int(t["id"])), float(t["logprob"]))
            for t in entry["top_logprobs"][: self._top]
        )
        token_id = int(entry["id"])
        return TokenLogprob(
            token_id=token_id,
            token=self._tokenizer.token_bytes(token_id),
            logprob=float(entry["logprob"]),
            top=top,
        )

    def _count_lost(self, completed: int) -> None:
        # Tokens after the last chunk: the answer ended inside a character.
        self.lost += max(0, completed - self._counted)
        self._counted = max(self._counted, completed)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _error(error: Mapping[str, Any]) -> Exception:
    if error.get("type") == "exceed_context_size_error":
        needed, limit = int(error.get("n_prompt_tokens", 0)), int(error.get("n_ctx", 0))
        return ContextOverflowError(needed, limit, "shorten the prompt or raise n_ctx")
    return EngineError(f"llama.cpp refused the request: {error.get('message', error)}")
