"""Weights of 16-bit floats as whole numbers: what the kernels multiply twice as fast as floats.

In blocks of 64 along a row, int16 of at most 4095 with a float32 scale; inputs likewise, of at most
8191, so that a block's sum is an exact int32 (native/kernels/layout.h). Values that are far smaller
than their block's largest lose bits there, where a float16 keeps eleven: on all-MiniLM-L6-v2 a
vector's cosine with the float32 one is off by about a millionth (docs/lab.md). Meant for encoders,
which are limited by arithmetic; a decoder reads its weights at the same speed either way.

Refuses a NaN or an infinity: rounded, it would be some number like any other, and the vectors would
be wrong without a sign of it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from insula.errors import FormatError
from insula.formats.ggml_types import GGMLType
from insula.formats.gguf import GGUFFile
from insula.ops.graph import Graph, Linear

#: The native side's number for such a matrix; no file has it.
WHOLE_NUMBERS = 0x10000

BLOCK, MOST = 64, 4095
_FLOATS = (GGMLType.F16, GGMLType.BF16)
_KEPT = np.dtype([("q", "<i2", BLOCK), ("scale", "<f4")])
#: Blocks that are worked on at once: what this takes beside the matrix is a few megabytes.
_AT_ONCE = 1 << 13


def kept_as(graph: Graph, gguf: GGUFFile, names: list[str], *, whole: bool) -> dict[str, int]:
    """The type in which each tensor of `names` is packed: the file's; or, if `whole`, whole numbers
    for matrices of 16-bit floats that only products read and whose rows are blocks of 64. Float32
    is a wish for exactness.
    """
    types = {name: int(gguf.info(name).type) for name in names}
    if whole:
        linear = {op.weight for op in graph.ops if isinstance(op, Linear)}
        others = {getattr(op, "weight", None) for op in graph.ops if not isinstance(op, Linear)}
        for name in linear - others:
            info = gguf.info(name)
            if info.type in _FLOATS and info.matrix[1] % BLOCK == 0:
                types[name] = WHOLE_NUMBERS
    return types


def matrix_bytes(gguf: GGUFFile, name: str, kind: int) -> NDArray[np.uint8]:
    """A tensor's bytes in one of `kept_as`'s types: the file's own, or made of them.

    Raises FormatError where whole numbers are to be made of a NaN or an infinity.
    """
    if kind != WHOLE_NUMBERS:
        return gguf.data(name)
    try:
        return whole_numbers(gguf.dequantize(name))
    except FloatingPointError:
        raise FormatError(
            f"{gguf.path.name}: the tensor {name} holds a NaN or an infinity; the file is broken: "
            "fetch or convert the model again"
        ) from None


def whole_numbers(matrix: NDArray[np.float32]) -> NDArray[np.uint8]:
    """float32 [rows, columns], columns a multiple of 64, as the bytes that `pack` takes.

    Raises FloatingPointError for a NaN or an infinity.
    """
    blocks = matrix.reshape(-1, BLOCK)
    out = np.empty(len(blocks), dtype=_KEPT)
    for at in range(0, len(blocks), _AT_ONCE):
        some, kept = blocks[at : at + _AT_ONCE], out[at : at + _AT_ONCE]
        scale = np.abs(some).max(axis=1) / np.float32(MOST)
        if not np.isfinite(scale).all():
            raise FloatingPointError("not finite")
        steps = np.where(scale > 0, scale, np.float32(1))
        kept["q"] = np.rint(some / steps[:, None]).clip(-MOST, MOST)
        kept["scale"] = scale
    return out.view(np.uint8).reshape(-1)
