"""Safetensors files: a JSON header and checked tensors over a guarded mapping.

Owns: the header and the views. Refuses: headers larger or busier than the limits below, JSON that
is not exactly a map of tensors, sizes that do not follow from dtype and shape, overlaps, holes and
bytes past the last tensor. No pickle is read anywhere.
Invariants: as for GGUF: after `open` every tensor lies inside the file and apart from the others,
and opening takes at most 64 MB beyond the mapping.
Spec: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from insula import _native
from insula.errors import FormatError, NotFoundError, UnsupportedError
from insula.formats.identify import refusal
from insula.formats.mapped import check_intact, open_mapping, release

#: The largest header, in bytes. 50,000 tensors take about 6 MB.
MAX_HEADER = 16 << 20

#: How many commas, brackets and braces a header may hold: each may become a Python object.
MAX_STRUCTURE = 400_000

MAX_DIMS = 16

#: Bytes per element, and NumPy's type where it has one.
DTYPES: dict[str, tuple[int, str | None]] = {
    "BOOL": (1, "?"),
    "U8": (1, "u1"),
    "I8": (1, "i1"),
    "F8_E4M3": (1, None),
    "F8_E5M2": (1, None),
    "F8_E8M0": (1, None),
    "U16": (2, "<u2"),
    "I16": (2, "<i2"),
    "F16": (2, "<f2"),
    "BF16": (2, None),
    "U32": (4, "<u4"),
    "I32": (4, "<i4"),
    "F32": (4, "<f4"),
    "U64": (8, "<u8"),
    "I64": (8, "<i8"),
    "F64": (8, "<f8"),
    "C64": (8, "<c8"),
}
_FLOATS = {"F16": 1, "BF16": 30}  # to the ggml type that decodes the same bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class SafetensorsInfo:
    """Where a tensor lies. offset counts bytes from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class SafetensorsFile:
    """An open safetensors file. Use `SafetensorsFile.open(path)`, best in a `with` statement."""

    def __init__(self, path: Path, mapping: _native.Mapping) -> None:
        self.path = path
        self._mapping = mapping
        self._bytes: NDArray[np.uint8] = np.frombuffer(mapping.view(), dtype=np.uint8)
        self.size = len(self._bytes)
        header, start = _read_header(self._bytes, path)
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(
            isinstance(value, str) for value in metadata.values()
        ):
            raise FormatError("__metadata__ must map strings to strings", offset=8)
        self.metadata: Mapping[str, str] = MappingProxyType(metadata)
        self.tensors: dict[str, SafetensorsInfo] = {
            name: _checked(name, entry, start) for name, entry in header.items()
        }
        _refuse_gaps(self.tensors, start, self.size)
        check_intact(mapping, path)

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Map and check the file at `path`.

        Raises NotFoundError, FormatError (with `offset`), UnsupportedError (a pickle checkpoint,
        by name and unread) or ResourceError.
        """
        path = Path(path)
        mapping = open_mapping(path)
        try:
            return cls(path, mapping)
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

    def check(self) -> None:
        """Raise FormatError if the file was cut short while open."""
        check_intact(self._mapping, self.path)

    def info(self, name: str) -> SafetensorsInfo:
        """The entry of tensor `name`; NotFoundError names the closest that is there."""
        try:
            return self.tensors[name]
        except KeyError:
            close = get_close_matches(name, self.tensors, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise NotFoundError(f"{self.path.name} has no tensor {name!r}{hint}") from None

    def data(self, name: str) -> NDArray[np.uint8]:
        """The stored bytes of a tensor, uint8[nbytes]: a read-only view of the mapping."""
        info = self.info(name)
        if len(self._bytes) != self.size:
            raise ValueError(f"{self.path.name} is closed")
        return self._bytes[info.offset : info.offset + info.nbytes]

    def array(self, name: str) -> NDArray[Any]:
        """A tensor in its own dtype and shape, a read-only view; BF16 and F8 have none in NumPy."""
        info = self.info(name)
        kind = DTYPES[info.dtype][1]
        if kind is None:
            raise UnsupportedError(
                f"tensor {name!r} is {info.dtype}, for which NumPy has no type; use dequantize()"
            )
        return np.frombuffer(self.data(name), dtype=kind).reshape(info.shape)

    def dequantize(self, name: str) -> NDArray[np.float32]:
        """The values of a tensor as float32[shape]; F8 and complex numbers are not decoded."""
        info = self.info(name)
        values: NDArray[np.float32]
        if info.dtype in _FLOATS:
            n = math.prod(info.shape)
            values = _native.dequantize(_FLOATS[info.dtype], self.data(name), n)
        elif DTYPES[info.dtype][1] is None or info.dtype == "C64":
            raise UnsupportedError(
                f"tensor {name!r} is {info.dtype}, which is not decoded here; convert the "
                "checkpoint to BF16, F16 or F32"
            )
        else:
            values = self.array(name).astype(np.float32)
        self.check()
        return values.reshape(info.shape)


def _read_header(data: NDArray[np.uint8], path: Path) -> tuple[dict[str, Any], int]:
    """The parsed header and where the tensors' bytes begin."""
    head = data[:64].tobytes()
    if head[:4] == b"GGUF" or (head[8:9] != b"{" and path.suffix != ".safetensors"):
        raise refusal(head, path)
    if len(data) < 8:
        raise FormatError(f"{path.name} ends inside the length of its header", offset=len(data))
    length = int.from_bytes(head[:8], "little")
    if length > len(data) - 8:
        raise FormatError(
            f"the header has {length} bytes and {len(data) - 8} are left; the file is damaged or "
            "its download is incomplete",
            offset=0,
        )
    if length > MAX_HEADER:
        raise FormatError(f"the header has {length} bytes; {MAX_HEADER} are allowed", offset=0)
    text = data[8 : 8 + length].tobytes()
    if not text.startswith(b"{"):
        raise FormatError("the header is not a JSON object", offset=8)
    structure = sum(text.count(mark) for mark in (b",", b"[", b"{"))
    if structure > MAX_STRUCTURE:
        raise FormatError(
            f"the header has {structure} commas and brackets; {MAX_STRUCTURE} are allowed", offset=8
        )
    try:
        header = json.loads(
            text.decode(), object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant
        )
    except FormatError:
        raise
    except RecursionError:
        raise FormatError("the header nests too deep", offset=8) from None
    except ValueError as error:  # not JSON, not UTF-8, or a number of thousands of digits
        raise FormatError(f"the header is not JSON: {error}", offset=8) from None
    if not isinstance(header, dict):
        raise FormatError("the header is not a JSON object", offset=8)
    return header, 8 + length


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        name, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise FormatError(f"the header names {name!r} twice", offset=8)
    return result


def _refuse_constant(name: str) -> NoReturn:
    raise FormatError(f"the header has {name}, which is not JSON", offset=8)


def _whole(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _checked(name: str, entry: object, start: int) -> SafetensorsInfo:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise FormatError(
            f"tensor {name!r} must have exactly dtype, shape and data_offsets", offset=8
        )
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise FormatError(
            f"tensor {name!r} has dtype {str(dtype)[:40]!r}; known are {', '.join(DTYPES)}",
            offset=8,
        )
    if not isinstance(shape, list) or len(shape) > MAX_DIMS or not all(map(_whole, shape)):
        raise FormatError(
            f"tensor {name!r} has a shape that is not a list of at most {MAX_DIMS} sizes", offset=8
        )
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_whole, offsets)):
        raise FormatError(f"tensor {name!r} has data_offsets that are not two sizes", offset=8)
    first, last = offsets
    nbytes = math.prod(shape) * DTYPES[dtype][0]
    if last - first != nbytes:
        raise FormatError(
            f"tensor {name!r} of {dtype} {shape} takes {nbytes} bytes; data_offsets give "
            f"{last - first}",
            offset=8,
        )
    return SafetensorsInfo(
        name=name, dtype=dtype, shape=tuple(shape), offset=start + first, nbytes=nbytes
    )


def _refuse_gaps(tensors: Mapping[str, SafetensorsInfo], start: int, size: int) -> None:
    """The spec wants the bytes covered exactly: no overlap, no hole, nothing after."""
    at = start
    for info in sorted(tensors.values(), key=lambda info: (info.offset, info.nbytes)):
        if info.offset != at:
            what = "overlaps the one before" if info.offset < at else "leaves a hole before it"
            raise FormatError(f"tensor {info.name!r} {what}", offset=info.offset)
        at += info.nbytes
    if at != size:
        reason = (
            f"the tensors end at {at} and the file at {size}; it is damaged or its download is "
            "incomplete"
        )
        raise FormatError(reason, offset=min(at, size))
