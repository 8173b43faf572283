"""The key-value part of a GGUF file, read under a budget.

Owns: `Cursor`, which never reads past the end, and the thirteen value types, nested arrays
included. Refuses: lengths that the file cannot hold, unknown types, nesting beyond MAX_DEPTH,
and metadata whose decoded form would take more than its budget of memory. Text that is not
UTF-8 is shown with \\xNN; the bytes themselves stay in the file for whoever copies them.
Invariant: what is returned is a copy; a later change of the file cannot change it.
Spec: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from insula import _native
from insula.errors import FormatError
from insula.formats.string_array import StringArray

#: Memory that the decoded metadata and tensor list of one file may take, in bytes.
#: The largest honest one known (Gemma 3 with its tokenizer.json embedded) needs about 48 MB.
METADATA_BUDGET = 56 << 20

#: How deep arrays may lie in arrays. Files in the wild use one level.
MAX_DEPTH = 8

MAX_KEY_BYTES = 65535

#: A longer string stays `bytes`: decoded it could take four times its size.
LONG_STRING = 4 << 20

#: What one entry of a Python container is charged, generously: it also bounds the parsing time.
ENTRY_COST = 1024


class ValueType(IntEnum):
    """The type ids of metadata values."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


#: NumPy's name for each plain type, little-endian.
PLAIN_DTYPES: dict[ValueType, np.dtype[np.generic]] = {
    ValueType.UINT8: np.dtype("u1"),
    ValueType.INT8: np.dtype("i1"),
    ValueType.UINT16: np.dtype("<u2"),
    ValueType.INT16: np.dtype("<i2"),
    ValueType.UINT32: np.dtype("<u4"),
    ValueType.INT32: np.dtype("<i4"),
    ValueType.FLOAT32: np.dtype("<f4"),
    ValueType.BOOL: np.dtype("u1"),
    ValueType.UINT64: np.dtype("<u8"),
    ValueType.INT64: np.dtype("<i8"),
    ValueType.FLOAT64: np.dtype("<f8"),
}

Scalar = bool | int | float | str | bytes
Value = Scalar | NDArray[np.generic] | StringArray | list["Value"]

_SCALARS = {
    ValueType.UINT8: struct.Struct("<B"),
    ValueType.INT8: struct.Struct("<b"),
    ValueType.UINT16: struct.Struct("<H"),
    ValueType.INT16: struct.Struct("<h"),
    ValueType.UINT32: struct.Struct("<I"),
    ValueType.INT32: struct.Struct("<i"),
    ValueType.FLOAT32: struct.Struct("<f"),
    ValueType.UINT64: struct.Struct("<Q"),
    ValueType.INT64: struct.Struct("<q"),
    ValueType.FLOAT64: struct.Struct("<d"),
}
_U32 = _SCALARS[ValueType.UINT32]
_U64 = _SCALARS[ValueType.UINT64]


class Cursor:
    """A position in a file's bytes that cannot leave them, with a memory budget.

    `data` is uint8[n]. Every method raises FormatError with the offset of what it could not read.
    """

    __slots__ = ("_view", "budget", "data", "pos", "size")

    def __init__(self, data: NDArray[np.uint8], *, budget: int = METADATA_BUDGET) -> None:
        self.data = data
        self._view = data.data
        self.size = len(data)
        self.pos = 0
        self.budget = budget

    def need(self, n: int, what: str) -> None:
        """Raise unless n more bytes are there."""
        left = self.size - self.pos
        if n > left:
            raise FormatError(
                f"the file ends inside {what}: {n} bytes are announced and {left} are left; "
                "it is damaged or its download is incomplete",
                offset=self.pos,
            )

    def charge(self, n: int, what: str) -> None:
        """Take n bytes from the memory budget."""
        if n > self.budget:
            raise FormatError(
                f"{what} would bring the metadata over its {METADATA_BUDGET >> 20} MB of memory",
                offset=self.pos,
            )
        self.budget -= n

    def u32(self, what: str) -> int:
        self.need(4, what)
        value: int = _U32.unpack_from(self._view, self.pos)[0]
        self.pos += 4
        return value

    def u64(self, what: str) -> int:
        self.need(8, what)
        value: int = _U64.unpack_from(self._view, self.pos)[0]
        self.pos += 8
        return value

    def name(self, what: str, limit: int) -> str:
        """A key or tensor name: UTF-8, not empty, at most `limit` bytes."""
        at = self.pos
        length = self.u64(f"the length of {what}")
        if not 0 < length <= limit:
            raise FormatError(f"{what} has {length} bytes; 1 to {limit} are allowed", offset=at)
        self.need(length, what)
        self.charge(length, what)
        raw = bytes(self._view[self.pos : self.pos + length])
        self.pos += length
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise FormatError(f"{what} is not UTF-8: {raw[:40]!r}", offset=at + 8) from None

    def value_type(self, what: str) -> ValueType:
        at = self.pos
        number = self.u32(f"the type of {what}")
        try:
            return ValueType(number)
        except ValueError:
            raise FormatError(
                f"{what} has type {number}; GGUF knows 0 to {max(ValueType)}", offset=at
            ) from None

    def value(self, kind: ValueType, what: str, depth: int = 0) -> Value:
        """A value of type `kind`; what: its key in quotes, for messages."""
        if kind is ValueType.ARRAY:
            return self._array(what, depth)
        if kind is ValueType.STRING:
            length = self.u64(f"the length of {what}")
            self.need(length, what)
            self.charge(length, what)
            raw = bytes(self._view[self.pos : self.pos + length])
            if length > LONG_STRING:
                self.pos += length
                return raw
            self.charge(0 if raw.isascii() else 3 * length, what)
            self.pos += length
            return raw.decode(errors="backslashreplace")
        if kind is ValueType.BOOL:
            self.need(1, what)
            byte = self._view[self.pos]
            if byte > 1:
                raise FormatError(f"{what} is {byte}; a bool is 0 or 1", offset=self.pos)
            self.pos += 1
            return bool(byte)
        form = _SCALARS[kind]
        self.need(form.size, what)
        number: int | float = form.unpack_from(self._view, self.pos)[0]
        self.pos += form.size
        return number

    def _array(self, what: str, depth: int) -> Value:
        if depth >= MAX_DEPTH:
            raise FormatError(
                f"{what} nests arrays deeper than {MAX_DEPTH} levels", offset=self.pos
            )
        kind = self.value_type(f"the elements of {what}")
        at = self.pos
        count = self.u64(f"the length of {what}")
        if kind is ValueType.STRING:
            return self._strings(what, count)
        if kind is ValueType.ARRAY:
            if count > (self.size - self.pos) // 12:  # each has at least its type and length
                self.need(count * 12, what)
            self.charge(count * ENTRY_COST // 2, what)
            return [self.value(kind, what, depth + 1) for _ in range(count)]
        dtype = PLAIN_DTYPES[kind]
        self.need(count * dtype.itemsize, what)
        self.charge(count * dtype.itemsize, what)
        array = np.frombuffer(self.data, dtype, count, self.pos).copy()
        if kind is ValueType.BOOL:
            if count and array.max() > 1:
                wrong = int(np.argmax(array > 1))
                raise FormatError(
                    f"element {wrong} of {what} is {array[wrong]}; a bool is 0 or 1",
                    offset=at + 8 + wrong,
                )
            array = array.view(np.bool_)
        self.pos += count * dtype.itemsize
        array.flags.writeable = False
        return array

    def _strings(self, what: str, count: int) -> StringArray:
        try:
            blob, offsets, end = _native.scan_strings(self.data, self.pos, count, self.budget)
        except ValueError as error:
            reason, at = error.args
            if reason == "too_large":
                self.pos = at
                self.charge(self.budget + 1, what)
            raise FormatError(
                f"the file ends inside {what}, an array of {count} strings; "
                "it is damaged or its download is incomplete",
                offset=at,
            ) from None
        self.charge(blob.nbytes + offsets.nbytes - 8, what)
        self.pos = end
        return StringArray(blob, offsets)
