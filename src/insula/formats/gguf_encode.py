"""Metadata values as GGUF stores them.

Owns: which of the thirteen types a Python value gets, and its bytes.
Refuses: what no type holds, with the key in the message.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

from insula.errors import ConfigError
from insula.formats.gguf_metadata import PLAIN_DTYPES, ValueType
from insula.formats.string_array import StringArray

_INTEGERS = (ValueType.UINT32, ValueType.INT32, ValueType.UINT64, ValueType.INT64)


def encode_string(raw: bytes) -> bytes:
    """A string: its length in 64 bits, then its bytes."""
    return struct.pack("<Q", len(raw)) + raw


def infer_type(key: str, value: object) -> ValueType:
    """The type that holds `value`; see GGUFWriter.add. ConfigError if none does."""
    if isinstance(value, bool | np.bool_):
        return ValueType.BOOL
    if isinstance(value, str | bytes):
        return ValueType.STRING
    if isinstance(value, np.generic):
        return _plain_type(key, value.dtype)
    if isinstance(value, float):
        return ValueType.FLOAT32
    if isinstance(value, int):
        return _integer_type(key, value, value)
    if isinstance(value, StringArray | np.ndarray | Sequence):
        return ValueType.ARRAY
    raise ConfigError(f"{key}: GGUF has no type for a {type(value).__name__}")


def encode_value(key: str, kind: ValueType, value: object) -> bytes:
    """The stored bytes of `value` as `kind`. ConfigError if it does not fit."""
    if kind is ValueType.ARRAY:
        return _encode_array(key, value)
    if kind is ValueType.STRING:
        if not isinstance(value, str | bytes):
            raise ConfigError(f"{key}: a {type(value).__name__} is not a string")
        return encode_string(value.encode() if isinstance(value, str) else value)
    if kind is ValueType.BOOL:
        if not isinstance(value, bool | np.bool_):
            raise ConfigError(f"{key}: {value!r} is not a bool")
        return bytes([bool(value)])
    dtype = PLAIN_DTYPES[kind]
    if dtype.kind in "iu":
        limits = np.iinfo(dtype.name)
        if not isinstance(value, int | np.integer) or not limits.min <= value <= limits.max:
            raise ConfigError(f"{key}: {value!r} does not fit {kind.name}")
    elif not isinstance(value, int | float | np.integer | np.floating):
        raise ConfigError(f"{key}: {value!r} is not a number of type {kind.name}")
    return np.array(value, dtype=dtype).tobytes()


def _integer_type(key: str, low: int, high: int) -> ValueType:
    for kind in _INTEGERS:
        limits = np.iinfo(PLAIN_DTYPES[kind].name)
        if limits.min <= low and high <= limits.max:
            return kind
    raise ConfigError(f"{key}: {low if low < 0 else high} does not fit in 64 bits")


def _plain_type(key: str, dtype: np.dtype[np.generic]) -> ValueType:
    if dtype == np.bool_:
        return ValueType.BOOL
    for kind, known in PLAIN_DTYPES.items():
        if kind is not ValueType.BOOL and known == dtype.newbyteorder("<"):
            return kind
    raise ConfigError(f"{key}: GGUF has no type for {dtype}")


def _encode_array(key: str, value: object) -> bytes:
    if isinstance(value, StringArray):
        body = b"".join(map(encode_string, value.iter_raw()))
        return struct.pack("<IQ", ValueType.STRING, len(value)) + body
    if isinstance(value, np.ndarray):
        if value.ndim != 1:
            raise ConfigError(f"{key}: an array of {value.ndim} dimensions; GGUF has lists")
        kind = _plain_type(key, value.dtype)
        body = value.astype(PLAIN_DTYPES[kind]).tobytes()
        return struct.pack("<IQ", kind, len(value)) + body
    if not isinstance(value, Sequence):
        raise ConfigError(f"{key}: a {type(value).__name__} is not an array")
    kind = _common_type(key, value)
    body = b"".join(encode_value(key, kind, item) for item in value)
    return struct.pack("<IQ", kind, len(value)) + body


def _common_type(key: str, items: Sequence[object]) -> ValueType:
    integers = [item for item in items if type(item) is int]
    if integers and len(integers) == len(items):
        low, high = min(integers), max(integers)
        # INT32 first: llama.cpp reads token types and the like as such.
        small = low >= -(1 << 31) and high < 1 << 31
        return ValueType.INT32 if small else _integer_type(key, low, high)
    kinds = {infer_type(key, item) for item in items}
    if len(kinds) > 1:
        names = ", ".join(sorted(kind.name for kind in kinds))
        raise ConfigError(f"{key}: an array holds one type, and here are {names}")
    return kinds.pop() if kinds else ValueType.INT32
