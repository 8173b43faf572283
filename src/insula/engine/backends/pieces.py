"""A vocabulary's pieces as bytes, and ids as text, for tokenizers that other libraries bring.

Two rules cover them: byte-level BPE (GPT-2's printable stand-ins for bytes, github.com/openai/gpt-2
encoder.py, bytes_to_unicode) and SentencePiece (U+2581 for a space, <0xHH> for a byte).
"""

from __future__ import annotations

import codecs
import re
from typing import Protocol

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Pieces(Protocol):
    """What `Utf8Stream` needs of a tokenizer."""

    def token_bytes(self, token_id: int, /) -> bytes: ...
    def is_special(self, token_id: int, /) -> bool: ...


def byte_level_bytes(piece: str) -> bytes:
    """The bytes of a byte-level piece; of another one its own text."""
    if _BYTE_OF.keys() >= set(piece):
        return bytes(_BYTE_OF[c] for c in piece)
    return piece.encode()


def sentencepiece_bytes(piece: str, *, may_be_byte: bool = True) -> bytes:
    """The bytes of a SentencePiece piece."""
    match = _BYTE_TOKEN.fullmatch(piece)
    if match and may_be_byte:
        return bytes([int(match[1], 16)])
    return piece.replace("\u2581", " ").encode()


class Utf8Stream:
    """Ids in, text out, never half a character. strip: the space before the first word goes."""

    def __init__(self, tokenizer: Pieces, *, skip_special: bool, strip: bool) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._strip = strip
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int, /) -> str:
        """The text that became whole with this token."""
        if self._skip_special and self._tokenizer.is_special(token_id):
            return ""
        piece = self._tokenizer.token_bytes(token_id)
        if self._strip:
            self._strip = False
            piece = piece.removeprefix(b" ")
        return self._decoder.decode(piece)

    def flush(self) -> str:
        """What is left at the end; an unfinished character becomes U+FFFD."""
        return self._decoder.decode(b"", True)


def _byte_stand_ins() -> dict[str, int]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in set(printable)]
    table = {chr(b): b for b in printable}
    table.update({chr(0x100 + n): b for n, b in enumerate(hidden)})
    return table


_BYTE_OF = _byte_stand_ins()
