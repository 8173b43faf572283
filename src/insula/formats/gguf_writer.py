"""Writing GGUF files, version 3.

Owns: the layout, the alignment, and that a reader never sees half a file: everything goes to a
new file beside the target, which takes the target's name when it is complete and on the disk.
After any failure or interruption that file is gone and the target is as it was.
Refuses: names, types and shapes that our reader or llama.cpp's would refuse.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import secrets
import shutil
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from insula import _native
from insula.errors import ConfigError, FormatError, ResourceError
from insula.formats.ggml_types import QUANTIZABLE, GGMLType
from insula.formats.gguf import DEFAULT_ALIGNMENT, MAGIC, MAX_DIMS
from insula.formats.gguf_encode import encode_string, encode_value, infer_type
from insula.formats.gguf_metadata import MAX_KEY_BYTES, ValueType

#: The longest tensor name that llama.cpp reads (GGML_MAX_NAME less its final zero).
MAX_NAME_BYTES = 63

#: Pieces of a tensor: each a block of whole bytes, together exactly its size.
Pieces = Callable[[], Iterable[NDArray[np.uint8]]]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True, kw_only=True)
class _Tensor:
    name: str
    type: GGMLType
    shape: tuple[int, ...]
    nbytes: int
    pieces: Pieces


class GGUFWriter:
    """Collects metadata and tensors; `write()` makes the file.

    overwrite False: ConfigError if something has that name, when created and again at the end.
    """

    def __init__(
        self, path: str | Path, *, overwrite: bool = False, alignment: int = DEFAULT_ALIGNMENT
    ) -> None:
        self.path = Path(path)
        self.overwrite = overwrite
        if alignment <= 0 or alignment & (alignment - 1):
            raise ConfigError(f"alignment {alignment} is not a power of two")
        self.alignment = alignment
        self._metadata: dict[str, bytes] = {}
        self._tensors: dict[str, _Tensor] = {}
        self._refuse_existing()
        if alignment != DEFAULT_ALIGNMENT:
            self.add("general.alignment", alignment)

    def add(self, key: str, value: object, type: ValueType | None = None) -> None:  # noqa: A002
        """Set a metadata value; an earlier one of the same key is replaced.

        Without `type`: bool, str, float (FLOAT32), int (UINT32, INT32, UINT64 or INT64, the first
        that holds it), NumPy scalars and arrays (their own type), StringArray, and sequences of
        one of these (ints as INT32 if they fit, floats as FLOAT32).
        """
        kind = infer_type(key, value) if type is None else type
        self.add_raw(key, kind, encode_value(key, kind, value))

    def add_raw(self, key: str, type: ValueType, data: bytes) -> None:  # noqa: A002
        """Set a metadata value from its stored form, as `GGUFFile.raw_metadata` gives it."""
        raw = key.encode()
        if not 0 < len(raw) <= MAX_KEY_BYTES:
            raise ConfigError(f"a metadata key of {len(raw)} bytes; 1 to {MAX_KEY_BYTES} go")
        if key == "general.alignment" and data != struct.pack("<I", self.alignment):
            raise ConfigError(f"{key} is given to GGUFWriter, which lays the file out by it")
        self._metadata[key] = encode_string(raw) + struct.pack("<I", type) + data

    def add_tensor(
        self,
        name: str,
        data: NDArray[np.generic] | Pieces,
        type: GGMLType | None = None,  # noqa: A002
        *,
        shape: Sequence[int] | None = None,
    ) -> None:
        """Add a tensor; they are written in this order.

        data: a float array, encoded as `type` (default: its own, F32 or F16); or stored bytes,
        uint8[nbytes], of `type` and `shape`; or a function that gives such bytes piece by piece
        when the file is written. shape is in NumPy's order, slowest first.
        """
        raw_name = name.encode()
        if not 0 < len(raw_name) <= MAX_NAME_BYTES:
            raise ConfigError(f"tensor name {name!r} has {len(raw_name)} bytes; 1 to 63 go")
        if name in self._tensors:
            raise ConfigError(f"tensor {name!r} is added twice")
        raw: NDArray[np.uint8] | None = None
        if isinstance(data, np.ndarray):
            shape = data.shape if shape is None else shape
            if data.dtype == np.uint8:
                raw = np.ascontiguousarray(data).reshape(-1)
            else:
                type = _array_type(name, data, type)  # noqa: A001
        if type is None or shape is None:
            raise ConfigError(f"tensor {name!r} is given as bytes: say its type and shape")
        nbytes = _checked_size(name, type, shape)
        if isinstance(data, np.ndarray):
            given = _encode_array(name, data, type) if raw is None else raw
            if given.nbytes != nbytes:
                raise ConfigError(
                    f"tensor {name!r} takes {nbytes} bytes and {given.nbytes} are given"
                )
            pieces: Pieces = lambda: (given,)  # noqa: E731
        else:
            pieces = data
        self._tensors[name] = _Tensor(
            name=name, type=type, shape=tuple(shape), nbytes=nbytes, pieces=pieces
        )

    @property
    def nbytes(self) -> int:
        """The size of the file that `write` will make."""
        header = len(self._header())
        return header + -header % self.alignment + self._data_size()

    def write(self, accept: Callable[[Path], None] | None = None) -> int:
        """Write the file and return its size.

        accept: called with the complete file, which has another name yet; what it raises is
        raised here, and the target stays as it was.
        Raises ResourceError if the disk is full or fails, ConfigError if the target appeared in
        the meantime, and whatever the pieces raise; nothing is left behind then.
        """
        size = self.nbytes
        self._refuse_little_space(size)
        temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.part")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, 0o666)
        except OSError as error:
            raise self._failure(error, size) from None
        try:
            with os.fdopen(descriptor, "wb", buffering=1 << 20) as file:
                self._write_to(file)
                file.flush()
                os.fsync(file.fileno())
            if accept is not None:
                accept(temporary)
            self._refuse_existing()
            temporary.replace(self.path)
        except OSError as error:
            _remove(temporary)
            raise self._failure(error, size) from None
        except BaseException:
            _remove(temporary)
            raise
        _sync_directory(self.path.parent)
        return size

    def _header(self) -> bytes:
        parts = [MAGIC, struct.pack("<IQQ", 3, len(self._tensors), len(self._metadata))]
        parts += self._metadata.values()
        offset = 0
        for tensor in self._tensors.values():
            dims = tuple(reversed(tensor.shape))
            parts.append(encode_string(tensor.name.encode()))
            parts.append(struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, tensor.type, offset))
            offset += tensor.nbytes + -tensor.nbytes % self.alignment
        return b"".join(parts)

    def _data_size(self) -> int:
        return sum(t.nbytes + -t.nbytes % self.alignment for t in self._tensors.values())

    def _write_to(self, file: IO[bytes]) -> None:
        header = self._header()
        file.write(header)
        file.write(bytes(-len(header) % self.alignment))
        for tensor in self._tensors.values():
            written = 0
            for piece in tensor.pieces():
                written += piece.nbytes
                file.write(np.ascontiguousarray(piece).data)
            if written != tensor.nbytes:
                raise FormatError(
                    f"tensor {tensor.name!r} takes {tensor.nbytes} bytes and {written} came"
                )
            file.write(bytes(-tensor.nbytes % self.alignment))

    def _refuse_existing(self) -> None:
        if self.path.is_dir():
            raise ConfigError(f"{self.path} is a directory; name a file in it")
        if self.path.exists() and not self.path.is_file():
            raise ConfigError(f"{self.path} is a device or a pipe; name an ordinary file")
        if not self.overwrite and (self.path.exists() or self.path.is_symlink()):
            raise ConfigError(f"{self.path} exists; choose another name or allow overwriting")

    def _refuse_little_space(self, size: int) -> None:
        """Say so now rather than after minutes of work; a quota may still say so later."""
        try:
            free = shutil.disk_usage(self.path.parent).free
        except OSError:
            return
        if size > free:
            raise ResourceError(
                f"no space for {self.path}: it needs {size / 1e6:.1f} MB and {free / 1e6:.1f} MB "
                "are free; free some or write elsewhere"
            )

    def _failure(self, error: OSError, size: int) -> ResourceError:
        if error.errno in _FULL:
            return ResourceError(
                f"no space for {self.path}: it needs {size / 1e6:.1f} MB; free some or write "
                "elsewhere (nothing was left behind)"
            )
        return ResourceError(f"{self.path} cannot be written: {error.strerror or error}")


_BINARY = getattr(os, "O_BINARY", 0)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _sync_directory(path: Path) -> None:
    """Make the new name last through a power cut, where directories can be synced."""
    if os.name != "posix":
        return
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _checked_size(name: str, kind: GGMLType, shape: Sequence[int]) -> int:
    if not 1 <= len(shape) <= MAX_DIMS or any(n <= 0 for n in shape):
        raise ConfigError(
            f"tensor {name!r} has shape {tuple(shape)}; 1 to {MAX_DIMS} dimensions above 0 go"
        )
    if shape[-1] % kind.block_size:
        raise ConfigError(
            f"tensor {name!r} has rows of {shape[-1]}, which {kind.name} cannot divide into "
            f"blocks of {kind.block_size}"
        )
    nbytes = math.prod(shape) // kind.block_size * kind.block_bytes
    if nbytes >= 1 << 63:
        raise ConfigError(f"tensor {name!r} with shape {tuple(shape)} is larger than any file")
    return nbytes


_ARRAY_TYPES = {
    np.dtype(np.float32): GGMLType.F32,
    np.dtype(np.float16): GGMLType.F16,
    np.dtype(np.float64): GGMLType.F64,
    np.dtype(np.int8): GGMLType.I8,
    np.dtype(np.int16): GGMLType.I16,
    np.dtype(np.int32): GGMLType.I32,
    np.dtype(np.int64): GGMLType.I64,
}


def _array_type(name: str, array: NDArray[np.generic], kind: GGMLType | None) -> GGMLType:
    """The type an array is written as: `kind` if it can be, by default its own."""
    own = _ARRAY_TYPES.get(array.dtype)
    if own is None:
        raise ConfigError(f"tensor {name!r} has dtype {array.dtype}, which GGUF cannot hold")
    if kind is None or kind is own:
        return own
    if kind not in QUANTIZABLE or array.dtype.kind != "f":
        raise ConfigError(f"tensor {name!r} of {array.dtype} cannot be written as {kind.name}")
    return kind


def _encode_array(name: str, array: NDArray[np.generic], kind: GGMLType) -> NDArray[np.uint8]:
    if kind is _ARRAY_TYPES[array.dtype]:
        return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    rows = np.ascontiguousarray(array, dtype=np.float32).reshape(-1, array.shape[-1])
    try:
        return _native.quantize(int(kind), rows)
    except ValueError as error:
        raise FormatError(f"tensor {name!r} cannot be written as {kind.name}: {error}") from None
