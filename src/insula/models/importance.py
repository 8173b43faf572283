"""An importance matrix: how much each input column of each weight counts when it is quantized.

The importance of a column is the mean square of what it is multiplied with: the error of one
product is sum over columns of (w - q) x, so its expected square is, columns taken as independent,
the sum of (w - q)^2 E[x^2] (llama.cpp's imatrix, github.com/ggml-org/llama.cpp/pull/4861).

Owns: the sums and counts, our file (llama.cpp's GGUF form, which both read) and the reading of
llama.cpp's older .dat. How the sums come about: `engine.importance`.
Refuses: files whose numbers cannot be means of squares, and models given for a matrix.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from insula.errors import FormatError, NotFoundError, ResourceError
from insula.formats.gguf import MAGIC, GGUFFile
from insula.formats.gguf_writer import GGUFWriter

SQUARES, COUNTS = ".in_sum2", ".counts"
#: A .dat file names at most this many tensors, with names of at most this many bytes.
MAX_ENTRIES, MAX_NAME = 1 << 20, 1024


@dataclass(frozen=True, kw_only=True)
class Importance:
    """squares: by tensor name, float64 [experts, in] sums of squares; counts: float64 [experts]
    rows that they are sums over (experts is 1 for ordinary weights). datasets: the texts' names;
    chunks of chunk_tokens tokens were read, and left_out were not."""

    squares: Mapping[str, NDArray[np.float64]]
    counts: Mapping[str, NDArray[np.float64]]
    datasets: tuple[str, ...] = ()
    chunks: int = 0
    chunk_tokens: int = 0
    left_out: int = 0

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """Means of squares, float32 [experts, in], as `quantize_file` takes them. An expert that
        no token ever reached counts every column alike, as in llama.cpp. From float32 sums, which
        the file has: a matrix that was saved gives the same weights."""
        found = {}
        for name, sums_EI in self.squares.items():
            squares_EI = sums_EI.astype(np.float32).astype(np.float64)
            counts_E1 = self.counts[name][:, None]
            means = np.where(counts_E1 > 0, squares_EI / np.maximum(counts_E1, 1e-30), 1.0)
            found[name] = means.astype(np.float32)
        return found

    def save(self, path: str | Path, *, overwrite: bool = False) -> int:
        """Write the GGUF form; returns its size. Raises ConfigError, ResourceError."""
        writer = GGUFWriter(path, overwrite=overwrite)
        writer.add("general.type", "imatrix")
        writer.add("imatrix.datasets", list(self.datasets) or [""])
        writer.add("imatrix.chunk_count", self.chunks)
        writer.add("imatrix.chunk_size", self.chunk_tokens)
        for name, squares_EI in self.squares.items():
            writer.add_tensor(name + SQUARES, squares_EI.astype(np.float32))
            writer.add_tensor(name + COUNTS, self.counts[name].astype(np.float32)[:, None])
        return writer.write()


def is_matrix(path: Path) -> bool:
    """Whether the file is a matrix (or any binary file) and not a text. Raises NotFoundError."""
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except FileNotFoundError:
        raise NotFoundError(f"no file at {path}") from None
    except OSError as error:
        raise ResourceError(f"{path} cannot be read: {error.strerror}") from None
    return head.startswith(MAGIC) or b"\0" in head


def read_importance(path: str | Path) -> Importance:
    """Read a matrix in llama.cpp's GGUF form or its older .dat.

    Raises NotFoundError, FormatError, ResourceError.
    """
    path = Path(path)
    if not is_matrix(path):
        raise FormatError(f"{path.name} is a text, not an importance matrix")
    with path.open("rb") as file:
        is_gguf = file.read(4) == MAGIC
    found = _read_gguf(path) if is_gguf else _read_dat(path)
    for name, squares in found.squares.items():
        if not np.isfinite(squares).all() or (squares < 0).any():
            raise FormatError(f"{path.name}: {name} has values that are no sums of squares")
        if not np.isfinite(found.counts[name]).all() or (found.counts[name] < 0).any():
            raise FormatError(f"{path.name}: {name} has counts that are none")
    if not found.squares:
        raise FormatError(f"{path.name} holds no importance for any tensor")
    return found


def _read_gguf(path: Path) -> Importance:
    with GGUFFile.open(path) as file:
        kind = file.metadata.get("general.type")
        if kind != "imatrix":
            raise FormatError(
                f"{path.name} is a GGUF file of type {kind!r}, not an importance matrix; give a "
                "text, or a matrix that --save-imatrix or llama-imatrix wrote"
            )
        squares, counts = {}, {}
        for full in file.tensors:
            if full.endswith(SQUARES):
                name = full.removesuffix(SQUARES)
                if name + COUNTS not in file.tensors:
                    raise FormatError(f"{path.name}: {full} comes without {name}{COUNTS}")
                values = file.dequantize(full).astype(np.float64)
                counted = file.dequantize(name + COUNTS).astype(np.float64).reshape(-1)
                values = values.reshape(-1, values.shape[-1])
                if len(values) != len(counted):
                    raise FormatError(
                        f"{path.name}: {name} has {len(values)} rows and {len(counted)} counts"
                    )
                squares[name], counts[name] = values, counted
        names: Any = file.metadata.get("imatrix.datasets", ())
        return Importance(
            squares=squares,
            counts=counts,
            datasets=tuple(str(n) for n in names if n),
            chunks=_whole(file.metadata.get("imatrix.chunk_count")),
            chunk_tokens=_whole(file.metadata.get("imatrix.chunk_size")),
        )


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0


def _read_dat(path: Path) -> Importance:
    """entries: i32; each: i32 name bytes, name, i32 calls, i32 n, float32[n] mean squares times
    calls; then i32 chunks, i32 name bytes, the text's name (both may be missing)."""
    data = path.read_bytes()
    at = 0

    def take(n: int, what: str) -> bytes:
        nonlocal at
        if n < 0 or n > len(data) - at:
            raise FormatError(
                f"{path.name} is neither a text nor an importance matrix: {what} runs past its end",
                offset=at,
            )
        at += n
        return data[at - n : at]

    def number(what: str) -> int:
        return int(struct.unpack("<i", take(4, what))[0])

    entries = number("the number of entries")
    if not 1 <= entries <= MAX_ENTRIES:
        raise FormatError(
            f"{path.name} is neither a text nor an importance matrix: it begins with {entries} "
            "entries",
            offset=0,
        )
    squares, counts = {}, {}
    for i in range(entries):
        length = number(f"the name of entry {i}")
        if not 1 <= length <= MAX_NAME:
            raise FormatError(f"{path.name}: entry {i} has a name of {length} bytes", offset=at)
        raw = take(length, f"the name of entry {i}")
        try:
            name = raw.decode()
        except UnicodeDecodeError:
            raise FormatError(f"{path.name}: the name of entry {i} is not UTF-8") from None
        calls = max(1, number(f"the calls of {name}"))
        n = number(f"the values of {name}")
        if n < 1 or name in squares:
            raise FormatError(f"{path.name}: {name} has {n} values, or comes twice", offset=at)
        values = np.frombuffer(take(4 * n, f"the values of {name}"), "<f4").astype(np.float64)
        squares[name], counts[name] = values[None], np.array([float(calls)])
    chunks = number("the number of chunks") if at < len(data) else 0
    text = take(number("the text's name"), "the text's name") if at < len(data) else b""
    named = (text.decode(errors="replace"),) if text else ()
    return Importance(squares=squares, counts=counts, datasets=named, chunks=chunks)
