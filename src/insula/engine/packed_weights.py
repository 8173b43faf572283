"""Weights as the kernels read them, in a file of their own that is mapped and not copied.

Owns the folder `packed` below the one it is given: one file per model file, made by the first who
opens it. Several processes that map it share one copy in memory, and a machine with little memory
may drop its pages and read them again; a later start packs nothing.

The file: magic, length of the head, blake2b of the head, the head (JSON), then the tensors at
multiples of 64 bytes, then a page that prefetching loops may run into.

Invariants:
- A file is made by one process at a time (a lock) and gets its name when it is whole (rename);
  what a dead one leaves has another name and goes at the next making.
- Believed is only a file whose head is the one wanted (model, build of the core) and whose tensors
  have the checksums in it. Anything else is made anew.
- A file whose model is gone goes then too. No other file is touched.
"""

from __future__ import annotations

import json
import mmap
import os
import stat
import struct
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from insula import _native
from insula.engine.whole_numbers import WHOLE_NUMBERS, matrix_bytes
from insula.errors import FormatError, InsulaError, ResourceError
from insula.formats.gguf import GGUFFile
from insula.formats.mapped import check_intact, open_mapping, release
from insula.security.lock import locked

MAGIC = b"INSULAW1"
_HEAD = struct.Struct("<8sQ32s")
_ALIGN, _TAIL = 64, 8192
_MOST_HEAD = 1 << 26
_SUFFIX, _PART = ".weights", ".part"


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A tensor's place in the file. shape: rows, columns."""

    name: str
    type: int
    shape: tuple[int, int]
    start: int
    nbytes: int
    checksum: int = 0


class PackedWeights:
    """A mapped file of packed tensors."""

    def __init__(self, path: Path, mapping: _native.Mapping, tensors: Iterable[Packed]) -> None:
        self.path = path
        self._mapping = mapping
        self._bytes: NDArray[np.uint8] = np.frombuffer(mapping.view(), dtype=np.uint8)
        self._tensors = {t.name: t for t in tensors}

    def data(self, name: str) -> NDArray[np.uint8]:
        """The tensor as `Model.pack` made it."""
        t = self._tensors[name]
        return self._bytes[t.start : t.start + t.nbytes]

    def check(self) -> None:
        """Raise FormatError if the file was cut short or its disk failed since it was opened."""
        check_intact(self._mapping, self.path)

    def close(self) -> None:
        """Unmap, now or with the last array that shows the bytes."""
        del self._bytes
        release(self._mapping)


def open_packed(
    folder: Path, model: _native.Model, gguf: GGUFFile, types: Mapping[str, int], *, key: bytes
) -> PackedWeights:
    """The packed form of some tensors of `gguf`, made if it is not there.

    types: what each is packed as (`whole_numbers.kept_as`). key: stands for all that the bytes
    depend on. Raises ResourceError (no room, no permission) or FormatError (the model file was cut
    short).
    """
    wanted = _plan(gguf, types)
    source = gguf.path.resolve()
    name = blake2b(os.fsencode(source), digest_size=16).hexdigest()
    path = folder / "packed" / (name + _SUFFIX)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = _open(path, wanted, key)
        if found is None:
            with locked(path.with_suffix(".lock")):
                found = _open(path, wanted, key)  # another process may have made it meanwhile
                if found is None:
                    sweep(folder)
                    _make(path, model, gguf, wanted, source, key)
                    found = _open(path, wanted, key)
    except OSError as error:
        raise ResourceError(
            f"packed weights cannot be kept in {path.parent}: {error.strerror or error}; "
            'free some space, set INSULA_HOME to another disk, or take weights="memory"'
        ) from None
    if found is None:
        raise ResourceError(
            f"packed weights written to {path} read back otherwise: that disk is not reliable"
        )
    return found


def sweep(folder: Path) -> int:
    """Delete packed files whose model is gone, and unfinished ones. Returns bytes freed."""
    freed = 0
    for path in [*(folder / "packed").glob("*" + _SUFFIX), *(folder / "packed").glob("*" + _PART)]:
        with suppress(OSError), locked(path.with_suffix(".lock"), wait=False):
            found = path.lstat()
            if stat.S_ISREG(found.st_mode) and (path.suffix == _PART or _has_no_model(path)):
                path.unlink()
                freed += found.st_size
    return freed


def _has_no_model(path: Path) -> bool:
    try:
        return not Path(str(_read_head(path)["source"])).exists()
    except (ValueError, KeyError):  # nor can it ever be used
        return True


def _plan(gguf: GGUFFile, types: Mapping[str, int]) -> list[Packed]:
    """Places from 0 on; the head's length is added when it is known."""
    at, found = 0, []
    for name, kind in types.items():
        rows, columns = gguf.info(name).matrix
        try:
            nbytes = _native.Model.packed_bytes(kind, rows, columns)
        except ValueError as error:
            raise FormatError(f"{gguf.path.name}: {name}: {error}") from None
        found.append(Packed(name=name, type=kind, shape=(rows, columns), start=at, nbytes=nbytes))
        at += -(-nbytes // _ALIGN) * _ALIGN
    return found


def _head(tensors: list[Packed], source: Path, key: bytes) -> bytes:
    """Equally long whatever the checksums are."""
    document = {
        "source": str(source),
        "key": key.hex(),
        "tensors": [
            [t.name, t.type, *t.shape, t.start, t.nbytes, f"{t.checksum:016x}"] for t in tensors
        ],
    }
    raw = json.dumps(document).encode()
    return _HEAD.pack(MAGIC, len(raw), blake2b(raw, digest_size=32).digest()) + raw


def _data_start(head: bytes) -> int:
    return -(-len(head) // mmap.PAGESIZE) * mmap.PAGESIZE


def _read_head(path: Path) -> dict[str, Any]:
    """Raises OSError or ValueError."""
    with path.open("rb") as file:
        magic, length, digest = _HEAD.unpack(file.read(_HEAD.size).ljust(_HEAD.size, b"\0"))
        if magic != MAGIC or length > _MOST_HEAD:
            raise ValueError("no packed weights")
        raw = file.read(length)
    if blake2b(raw, digest_size=32).digest() != digest:
        raise ValueError("a damaged head")
    try:
        found = json.loads(raw)
    except RecursionError:
        found = None
    if not isinstance(found, dict):
        raise ValueError("a damaged head")
    return found


def _open(path: Path, wanted: list[Packed], key: bytes) -> PackedWeights | None:
    """None unless it is there, wanted and whole."""
    try:
        head = _read_head(path)
        if head["key"] != key.hex():
            return None
        entries = [tuple(t) for t in head["tensors"]]
        sums = [int(t[-1], 16) for t in entries]
        plain = [(t.name, t.type, *t.shape, t.start, t.nbytes) for t in wanted]
        if [t[:-1] for t in entries] != plain:
            return None
        start = _data_start(_head(wanted, Path(str(head["source"])), key))
        mapping = open_mapping(path)
    except (OSError, ValueError, KeyError, TypeError, IndexError, InsulaError):
        return None
    placed = [
        replace(t, start=start + t.start, checksum=s) for t, s in zip(wanted, sums, strict=True)
    ]
    found = PackedWeights(path, mapping, placed)
    end = max((t.start + t.nbytes for t in placed), default=start) + _TAIL
    if len(mapping) >= end and _intact(found, placed):
        return found
    found.close()
    return None


def _intact(weights: PackedWeights, tensors: list[Packed]) -> bool:
    """All bytes are read, by two threads: later steps find them in memory."""

    def right(t: Packed) -> bool:
        return _native.checksum(weights.data(t.name)) == t.checksum

    with ThreadPoolExecutor(2) as pool:
        whole = all(pool.map(right, tensors))
    try:
        weights.check()
    except FormatError:
        return False
    return whole


def _make(
    path: Path,
    model: _native.Model,
    gguf: GGUFFile,
    tensors: list[Packed],
    source: Path,
    key: bytes,
) -> None:
    """Pack into a new file and give it its name. Raises OSError or FormatError."""
    start = _data_start(_head(tensors, source, key))
    size = start + max((t.start + t.nbytes for t in tensors), default=0) + _TAIL
    unfinished = path.with_suffix(_PART)
    with suppress(FileNotFoundError):  # of one who died
        unfinished.unlink()
    file = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        _reserve(file, size)
        # Not closed here: an error's traceback may still show arrays over it. The last one does.
        mapping = mmap.mmap(file, size)
        out: NDArray[np.uint8] = np.frombuffer(mapping, dtype=np.uint8)
        done = []
        for t in tensors:
            place = out[start + t.start : start + t.start + t.nbytes]
            data = matrix_bytes(gguf, t.name, t.type)
            model.pack(t.type, *t.shape, data, t.type != WHOLE_NUMBERS, place)
            done.append(replace(t, checksum=_native.checksum(place)))
        gguf.check()
        head = _head(done, source, key)
        out[: len(head)] = np.frombuffer(head, dtype=np.uint8)
        mapping.flush()
        os.fsync(file)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink()
        raise
    finally:
        os.close(file)
    unfinished.replace(path)


def _reserve(file: int, size: int) -> None:
    """Room on the disk now: a mapping that meets a full one later is killed."""
    allocate: Callable[[int, int, int], None] | None = getattr(os, "posix_fallocate", None)
    if allocate is None:
        os.ftruncate(file, size)
        return
    allocate(file, 0, size)
