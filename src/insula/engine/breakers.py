"""Sequence breakers: from strings to the token sequences that hold them.

Owns the reading of `SamplingParams.dry_sequence_breakers` against a vocabulary. A breaker is found
wherever its text stands: in one token that contains it, or in a token that ends with its beginning
followed by the tokens of the rest (after llama.cpp, src/llama-sampling.cpp, which has it from
koboldcpp). The vocabulary is read once per engine, and each string's answer is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from insula.engine.request import Tokenizer

#: Token sequences, each of at least one id.
Breakers = tuple[tuple[int, ...], ...]

#: As in llama.cpp: the tokens after the first that are compared, so that a look stays cheap.
MAX_TAIL_TOKENS = 20
_KEPT_STRINGS = 256


class BreakerTable:
    """The breakers of one vocabulary. Safe for several threads: at worst work is done twice."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._pieces: list[bytes] | None = None
        self._known: dict[str, Breakers] = {}

    def find(self, breakers: Sequence[str]) -> Breakers:
        """Every sequence that holds one of the strings, each once, in ascending order."""
        found: set[tuple[int, ...]] = set()
        for text in breakers:
            known = self._known.get(text)
            if known is None:
                if len(self._known) >= _KEPT_STRINGS:
                    self._known.clear()
                known = self._known[text] = self._of(text)
            found.update(known)
        return tuple(sorted(found))

    def _of(self, text: str) -> Breakers:
        breaker = text.encode()
        if self._pieces is None:
            self._pieces = [
                self._tokenizer.token_bytes(i) for i in range(self._tokenizer.vocab_size)
            ]
        tails = {breaker[:n]: self._tails(text, breaker[n:]) for n in range(1, len(breaker))}
        beginnings = tuple(tails)
        found: list[tuple[int, ...]] = []
        for token_id, piece in enumerate(self._pieces):
            if breaker in piece:
                found.append((token_id,))
            elif piece.endswith(beginnings):
                for beginning, ways in tails.items():
                    if piece.endswith(beginning):
                        found.extend((token_id, *tail) for tail in ways)
        return tuple(found)

    def _tails(self, text: str, rest: bytes) -> set[tuple[int, ...]]:
        """The ways in which the rest of a breaker is written: by itself, and as its end.

        Both, because some vocabularies put a space before a text, and a rest may begin inside a
        character. What does not spell the rest exactly is no way.
        """
        ways: set[tuple[int, ...]] = set()
        sources = [text]
        with suppress(UnicodeDecodeError):
            sources.append(rest.decode())
        piece = self._tokenizer.token_bytes
        for source in sources:
            ids = self._tokenizer.encode(source, add_special=False)
            for start in range(len(ids)):
                if b"".join(map(piece, ids[start:])) == rest:
                    ways.add(tuple(ids[start:][:MAX_TAIL_TOKENS]))
        return ways
