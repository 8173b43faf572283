"""Token ids to text one at a time, as they are generated.

Invariants: every string that comes out is complete Unicode text; the strings of all push() calls
and of flush(), joined, are what Tokenizer.decode gives for all ids at once.
"""

from __future__ import annotations

import codecs

from insula import _native


class Detokenizer:
    """Made by `Tokenizer.detokenizer()`; one for each text. Not for use by two threads at once."""

    __slots__ = ("_decoder", "_first", "_native", "_skip_special")

    def __init__(
        self, native: _native.Tokenizer, *, skip_special: bool = False, continues: bool = False
    ) -> None:
        self._native = native
        self._skip_special = skip_special
        self._first = native.strips_space and not continues
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The text that is complete now; "" while a character still lacks bytes.

        Raises TokenizerError if the id is not in the vocabulary.
        """
        if self._skip_special and self._native.is_special(token_id):
            return ""
        piece = self._native.piece(token_id)
        if self._first:
            self._first = False
            piece = piece.removeprefix(b" ")
        return self._decoder.decode(piece)

    def flush(self) -> str:
        """What is left: U+FFFD where the last character is incomplete, else "".

        Nothing may be pushed after it.
        """
        return self._decoder.decode(b"", final=True)
