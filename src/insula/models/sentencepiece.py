"""A SentencePiece model file, as far as GGUF needs it: pieces, scores, types, two settings.

The file is a protocol buffer (github.com/google/sentencepiece, src/sentencepiece_model.proto).
Only its outer fields are read; lengths are checked against the file. Unigram models and those
that normalize text are refused: GGUF's "llama" tokenizer merges as BPE does, and only that.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from insula.errors import FormatError, UnsupportedError

_BPE = 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, kw_only=True)
class Piece:
    """type: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte."""

    text: str
    score: float
    type: int


@dataclass(frozen=True, kw_only=True)
class SentencePieceModel:
    """The vocabulary in id order; add_dummy_prefix: a space goes before the text."""

    pieces: tuple[Piece, ...]
    add_dummy_prefix: bool


def read(path: Path) -> SentencePieceModel:
    """Read a tokenizer.model. Raises FormatError or UnsupportedError."""
    pieces: list[Piece] = []
    trainer = normalizer = b""
    for field, value in _fields(path.read_bytes()):
        if not isinstance(value, bytes):
            continue
        if field == 1:
            pieces.append(_piece(value))
        elif field == 2:
            trainer = value
        elif field == 3:
            normalizer = value
    if not pieces:
        raise FormatError(f"{path} holds no pieces; it is not a SentencePiece model")
    model_type = _number(trainer, 3, default=1)
    if model_type != _BPE:
        raise UnsupportedError(f"{path} is a SentencePiece model of type {model_type}, not BPE")
    _refuse_normalization(path, normalizer)
    prefix = bool(_number(normalizer, 3, default=1))
    return SentencePieceModel(pieces=tuple(pieces), add_dummy_prefix=prefix)


def _refuse_normalization(path: Path, spec: bytes) -> None:
    """GGUF's "llama" tokenizer takes text as it is: no character map, no squeezing of spaces."""
    charsmap = any(f == 2 and v for f, v in _fields(spec))
    if charsmap or _number(spec, 4, default=1) or not _number(spec, 5, default=1):
        raise UnsupportedError(
            f"{path} normalizes text (a character map, or extra whitespace removed); GGUF "
            "tokenizers of this kind do not"
        )


def _piece(message: bytes) -> Piece:
    text, score, kind = "", 0.0, 1
    for field, value in _fields(message):
        if field == 1 and isinstance(value, bytes):
            try:
                text = value.decode("utf-8")
            except UnicodeDecodeError:
                raise FormatError(f"a piece is not UTF-8: {value[:20]!r}") from None
        elif field == 2 and isinstance(value, bytes) and len(value) == 4:
            (score,) = struct.unpack("<f", value)
        elif field == 3 and isinstance(value, int):
            kind = value
    if not 1 <= kind <= 6:
        raise FormatError(f"a piece has type {kind}, known are 1 to 6")
    return Piece(text=text, score=score, type=kind)


def _number(message: bytes, field: int, *, default: int) -> int:
    """The last value of a whole-number field, as protocol buffers define repetition."""
    found = [v for f, v in _fields(message) if f == field and isinstance(v, int)]
    return found[-1] if found else default


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of each field; fixed-width values as their bytes."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        value: int | bytes
        if kind == _VARINT:
            value, at = _varint(message, at)
        else:
            if kind == _BYTES:
                length, at = _varint(message, at)
            elif kind in (_FIXED64, _FIXED32):
                length = 8 if kind == _FIXED64 else 4
            else:
                raise FormatError(f"wire type {kind} is not one of 0, 1, 2, 5", offset=at)
            if length > len(message) - at:
                raise FormatError(f"a field of {length} bytes runs past the end", offset=at)
            value, at = message[at : at + length], at + length
        yield key >> 3, value


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise FormatError("a number runs past the end", offset=at)
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise FormatError("a number has more than 10 bytes", offset=at)
