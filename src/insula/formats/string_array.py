"""A GGUF array of strings that is decoded only where it is asked.

Owns: the bytes and where each string lies. Invariants: offsets ascend from 0 to len(blob);
nothing refers to the file any more. A vocabulary of 262k tokens costs its bytes, not 262k objects.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import overload

import numpy as np
from numpy.typing import NDArray


class StringArray(Sequence[str]):
    """String i is `blob[offsets[i]:offsets[i + 1]]`.

    blob uint8[n_bytes], offsets int64[n + 1]. `[i]` decodes UTF-8 and shows bytes that are not
    as \\xNN; `raw(i)` gives the bytes as they are.
    """

    __slots__ = ("blob", "offsets")

    def __init__(self, blob: NDArray[np.uint8], offsets: NDArray[np.int64]) -> None:
        self.blob = blob
        self.offsets = offsets
        blob.flags.writeable = False
        offsets.flags.writeable = False

    @classmethod
    def of(cls, strings: Sequence[str | bytes]) -> StringArray:
        """The array of these strings."""
        pieces = [s.encode() if isinstance(s, str) else s for s in strings]
        offsets = np.zeros(len(pieces) + 1, dtype=np.int64)
        np.cumsum([len(piece) for piece in pieces], out=offsets[1:])
        return cls(np.frombuffer(b"".join(pieces), dtype=np.uint8), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def raw(self, index: int) -> bytes:
        """The bytes of string `index` (negative counts from the end)."""
        n = len(self)
        if not -n <= index < n:
            raise IndexError(f"string {index} of {n}")
        index %= n
        return self.blob[self.offsets[index] : self.offsets[index + 1]].tobytes()

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.raw(index).decode(errors="backslashreplace")

    def __iter__(self) -> Iterator[str]:
        data = self.blob.tobytes()
        ends = self.offsets.tolist()
        for start, end in pairwise(ends):
            yield data[start:end].decode(errors="backslashreplace")

    def iter_raw(self) -> Iterator[bytes]:
        """The bytes of each string, in order."""
        data = self.blob.tobytes()
        ends = self.offsets.tolist()
        for start, end in pairwise(ends):
            yield data[start:end]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, StringArray):
            return np.array_equal(self.offsets, other.offsets) and np.array_equal(
                self.blob, other.blob
            )
        if isinstance(other, list | tuple):
            return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = ", ".join(repr(self[i]) for i in range(min(3, len(self))))
        return f"StringArray({len(self)}: {shown}{', …' if len(self) > 3 else ''})"
