"""GGUF files, version 2 and 3: checked metadata and tensors over a guarded mapping.

Owns: the header, the tensor list and the views. Refuses: every count, length, offset or size
that the file does not bear out, with the offset where it stands; big-endian files, version 1,
the formats before GGUF and (unless asked) the parts of a split file, each by name.
Invariants: after `open` every tensor lies inside the file, aligned, and apart from the others;
metadata is a copy; opening takes well under a second and at most 64 MB beyond the mapping, whatever
the file says. Nothing here knows about models.
Spec: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from insula import _native
from insula.errors import FormatError, NotFoundError, UnsupportedError
from insula.formats.ggml_types import DEQUANTIZABLE, REMOVED_TYPES, GGMLType
from insula.formats.gguf_metadata import ENTRY_COST, MAX_KEY_BYTES, Cursor, Value, ValueType
from insula.formats.identify import refusal
from insula.formats.mapped import check_intact, open_mapping, release

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32

#: ggml's own limit.
MAX_DIMS = 4

#: llama.cpp reads names of at most 63 bytes; other programs write longer ones.
MAX_NAME_BYTES = 1024

_INTEGERS: dict[GGMLType, str] = {
    GGMLType.I8: "<i1",
    GGMLType.I16: "<i2",
    GGMLType.I32: "<i4",
    GGMLType.I64: "<i8",
    GGMLType.F64: "<f8",
}


_ROWS = re.compile(r"(.+)\[([0-9]{1,12}):([0-9]{1,12})\]")


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorInfo:
    """Where a tensor lies and how it is stored.

    shape is in numpy's order, slowest first: a linear weight is (out, in), and `in` is the row
    that blocks divide. offset counts bytes from the start of the file.
    """

    name: str
    type: GGMLType
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    @property
    def n_elements(self) -> int:
        """How many numbers the tensor holds."""
        return math.prod(self.shape)

    @property
    def matrix(self) -> tuple[int, int]:
        """(rows, columns) as the kernels see it: of several matrices all rows, in order."""
        return math.prod(self.shape[:-1]), self.shape[-1]


class GGUFFile:
    """An open GGUF file. Use `GGUFFile.open(path)`, best in a `with` statement."""

    def __init__(self, path: Path, mapping: _native.Mapping, *, allow_split: bool) -> None:
        self.path = path
        self._mapping = mapping
        self._bytes: NDArray[np.uint8] = np.frombuffer(mapping.view(), dtype=np.uint8)
        self.size = len(self._bytes)
        cursor = Cursor(self._bytes)
        self.version = _read_header(cursor, path)
        n_tensors = cursor.u64("the number of tensors")
        n_keys = cursor.u64("the number of metadata entries")
        self._spans: dict[str, tuple[ValueType, int, int]] = {}
        metadata = _read_metadata(cursor, n_keys, self._spans)
        self.metadata: Mapping[str, Value] = MappingProxyType(metadata)
        self.alignment = _alignment(metadata, self._spans)
        parts = metadata.get("split.count", 1)
        self.split_count = parts if isinstance(parts, int) else 1
        if self.split_count > 1 and not allow_split:
            raise UnsupportedError(
                f"{path.name} is one of {self.split_count} parts of a split model, which the "
                "native engine does not load; merge them (llama-gguf-split --merge) or use the "
                "llamacpp backend",
                backend="native",
            )
        self.tensors: dict[str, TensorInfo] = _read_tensors(cursor, n_tensors, self.alignment)
        check_intact(mapping, path)

    @classmethod
    def open(cls, path: str | Path, *, allow_split: bool = False) -> Self:
        """Map and check the file at `path`.

        allow_split: open one part of a split model, with the tensors that lie in it.
        Raises NotFoundError, FormatError (malformed, with `offset`), UnsupportedError (a format
        or version that is not read here) or ResourceError (cannot be mapped).
        """
        path = Path(path)
        mapping = open_mapping(path)
        try:
            return cls(path, mapping, allow_split=allow_split)
        except BaseException:
            release(mapping)
            raise

    def close(self) -> None:
        """Let the file go. Arrays from `data` stay readable; the last of them unmaps it."""
        self._bytes = np.zeros(0, dtype=np.uint8)
        release(self._mapping)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def poisoned(self) -> bool:
        """Whether the file was cut short while open; what was read since may be zeros."""
        return self._mapping.poisoned

    def check(self) -> None:
        """Raise FormatError if `poisoned`. Call it after reading tensors, before using them."""
        check_intact(self._mapping, self.path)

    def info(self, name: str) -> TensorInfo:
        """The entry of tensor `name`; NotFoundError names the closest that is there.

        `name[a:b]` is an entry for the rows a to b - 1, which lie together in the file.
        """
        try:
            return self.tensors[name]
        except KeyError:
            part = _ROWS.fullmatch(name)
            if part and part[1] in self.tensors:
                return _rows(self.tensors[part[1]], int(part[2]), int(part[3]))
            close = get_close_matches(name, self.tensors, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise NotFoundError(f"{self.path.name} has no tensor {name!r}{hint}") from None

    def data(self, name: str) -> NDArray[np.uint8]:
        """The stored bytes of a tensor, uint8[nbytes]: a read-only view of the mapping."""
        info = self.info(name)
        if len(self._bytes) != self.size:
            raise ValueError(f"{self.path.name} is closed")
        return self._bytes[info.offset : info.offset + info.nbytes]

    def dequantize(self, name: str) -> NDArray[np.float32]:
        """The values of a tensor, float32[shape].

        Raises UnsupportedError for a type that is not decoded here, FormatError if the file was
        cut short meanwhile.
        """
        info = self.info(name)
        raw = self.data(name)
        values: NDArray[np.float32]
        if info.type in DEQUANTIZABLE:
            values = _native.dequantize(int(info.type), raw, info.n_elements)
        elif info.type in _INTEGERS:
            values = np.frombuffer(raw, dtype=_INTEGERS[info.type]).astype(np.float32)
        else:
            raise UnsupportedError(
                f"tensor {name!r} is stored as {info.type.name}, which the native engine does not "
                "decode; use the llamacpp backend or another quantization of the model",
                backend="native",
            )
        self.check()
        return values.reshape(info.shape)

    def drop(self, name: str) -> None:
        """Give the memory of a tensor's pages back; its bytes are read again when needed."""
        info = self.info(name)
        self._mapping.drop(info.offset, info.nbytes)

    def raw_metadata(self, key: str) -> tuple[ValueType, bytes]:
        """The type and the stored bytes of a metadata value, for copying it unchanged."""
        try:
            kind, start, end = self._spans[key]
        except KeyError:
            raise NotFoundError(f"{self.path.name} has no metadata {key!r}") from None
        return kind, self._bytes[start:end].tobytes()


def _rows(info: TensorInfo, start: int, stop: int) -> TensorInfo:
    count = info.shape[0]
    if len(info.shape) < 2 or not start < stop <= count:
        raise NotFoundError(f"tensor {info.name!r} has no rows {start}:{stop}; shape {info.shape}")
    row = info.nbytes // count
    return TensorInfo(
        name=f"{info.name}[{start}:{stop}]",
        type=info.type,
        shape=(stop - start, *info.shape[1:]),
        offset=info.offset + start * row,
        nbytes=(stop - start) * row,
    )


def _read_header(cursor: Cursor, path: Path) -> int:
    head = bytes(cursor.data[:64])
    if head[:4] != MAGIC:
        if head and MAGIC.startswith(head[:4]):
            cursor.need(4, "the magic")
        raise refusal(head, path)
    cursor.pos = 4
    version = cursor.u32("the version")
    if version in VERSIONS:
        return version
    if struct.unpack(">I", struct.pack("<I", version))[0] in (1, *VERSIONS):
        raise UnsupportedError(
            f"{path.name} is a big-endian GGUF file, made for machines like IBM Z; "
            "take the little-endian file of the model",
            backend="native",
        )
    if version == 1:
        raise UnsupportedError(
            f"{path.name} is GGUF version 1, used for a few days in 2023; versions 2 and 3 are "
            "read: take a newer file of the model",
            backend="native",
        )
    raise FormatError(f"GGUF version {version}; versions 2 and 3 are read", offset=4)


def _read_metadata(
    cursor: Cursor, count: int, spans: dict[str, tuple[ValueType, int, int]]
) -> dict[str, Value]:
    at = cursor.pos - 8
    if count > (cursor.size - cursor.pos) // 14:  # length, one byte of key, type, one of value
        raise FormatError(
            f"{count} metadata entries are announced and {cursor.size - cursor.pos} bytes are "
            "left; the file is damaged or its download is incomplete",
            offset=at,
        )
    metadata: dict[str, Value] = {}
    for i in range(count):
        cursor.charge(ENTRY_COST, "this entry")
        start = cursor.pos
        key = cursor.name(f"metadata key {i}", MAX_KEY_BYTES)
        if key in metadata:
            raise FormatError(f"metadata key {key!r} appears twice", offset=start)
        kind = cursor.value_type(repr(key))
        start = cursor.pos
        metadata[key] = cursor.value(kind, repr(key))
        spans[key] = (kind, start, cursor.pos)
    return metadata


def _alignment(metadata: dict[str, Value], spans: dict[str, tuple[ValueType, int, int]]) -> int:
    key = "general.alignment"
    if key not in metadata:
        return DEFAULT_ALIGNMENT
    value = metadata[key]
    kind, at, _ = spans[key]
    if kind is not ValueType.UINT32 or not isinstance(value, int):
        raise FormatError(f"{key} has type {kind.name}; it must be UINT32", offset=at)
    if value <= 0 or value & (value - 1):
        raise FormatError(f"{key} is {value}; it must be a power of two", offset=at)
    return value


def _read_tensors(cursor: Cursor, count: int, alignment: int) -> dict[str, TensorInfo]:
    if count > (cursor.size - cursor.pos) // 33:  # name of one byte, one dim, type, offset
        raise FormatError(
            f"{count} tensors are announced and {cursor.size - cursor.pos} bytes are left; the "
            "file is damaged or its download is incomplete",
            offset=8,
        )
    entries: list[tuple[str, GGMLType, tuple[int, ...], int, int, int]] = []
    names: set[str] = set()
    for i in range(count):
        cursor.charge(ENTRY_COST, "this tensor")
        at = cursor.pos
        name = cursor.name(f"the name of tensor {i}", MAX_NAME_BYTES)
        if name in names:
            raise FormatError(f"tensor {name!r} appears twice", offset=at)
        names.add(name)
        entries.append((name, *_read_tensor(cursor, name, alignment)))
    start = -(-cursor.pos // alignment) * alignment
    tensors = {}
    for name, kind, shape, offset, nbytes, at in entries:
        if start + offset + nbytes > cursor.size:
            raise FormatError(
                f"tensor {name!r} ({nbytes} bytes at {start + offset}) reaches past the end of "
                f"the file ({cursor.size} bytes); it is damaged or its download is incomplete",
                offset=at,
            )
        tensors[name] = TensorInfo(
            name=name, type=kind, shape=shape, offset=start + offset, nbytes=nbytes
        )
    _refuse_overlap(tensors)
    return tensors


def _read_tensor(
    cursor: Cursor, name: str, alignment: int
) -> tuple[GGMLType, tuple[int, ...], int, int, int]:
    """Type, shape, offset in the data section, bytes, and where in the file the offset stands."""
    at = cursor.pos
    n_dims = cursor.u32(f"the dimensions of tensor {name!r}")
    if not 1 <= n_dims <= MAX_DIMS:
        raise FormatError(
            f"tensor {name!r} has {n_dims} dimensions; 1 to {MAX_DIMS} are allowed", offset=at
        )
    dims = [cursor.u64(f"the dimensions of tensor {name!r}") for _ in range(n_dims)]
    if 0 in dims:
        raise FormatError(f"tensor {name!r} has a dimension of 0: {dims}", offset=at + 4)
    at = cursor.pos
    number = cursor.u32(f"the type of tensor {name!r}")
    try:
        kind = GGMLType(number)
    except ValueError:
        was = f", once {REMOVED_TYPES[number]}" if number in REMOVED_TYPES else ""
        raise FormatError(
            f"tensor {name!r} has type {number}{was}, which is not a ggml type known here",
            offset=at,
        ) from None
    if dims[0] % kind.block_size:
        raise FormatError(
            f"tensor {name!r} has rows of {dims[0]}, which {kind.name} cannot divide into blocks "
            f"of {kind.block_size}",
            offset=at,
        )
    # Python's integers do not overflow, so the product is the true one; ggml's does not fit past
    # 2^63, and no file is that long.
    nbytes = math.prod(dims) // kind.block_size * kind.block_bytes
    at = cursor.pos
    offset = cursor.u64(f"the offset of tensor {name!r}")
    if offset % alignment:
        raise FormatError(
            f"tensor {name!r} lies at {offset}, not a multiple of the alignment {alignment}",
            offset=at,
        )
    return kind, tuple(reversed(dims)), offset, nbytes, at


def _refuse_overlap(tensors: dict[str, TensorInfo]) -> None:
    before: TensorInfo | None = None
    for info in sorted(tensors.values(), key=lambda info: info.offset):
        if before is not None and info.offset < before.offset + before.nbytes:
            raise FormatError(
                f"tensors {before.name!r} and {info.name!r} overlap", offset=info.offset
            )
        before = info
