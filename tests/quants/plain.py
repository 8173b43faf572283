"""Plain round-to-nearest for the formats whose scales are searched for: what a search must beat.

Each group's scale comes from its extremes, is stored as the format stores it, and each element
takes the nearest level. x float32[rows, cols] -> what a decoder would give, same shape.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from insula.formats.ggml_types import GGMLType

Floats = NDArray[np.float32]

IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113])
E2M1 = np.array([-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12])


def round_to_nearest(kind: GGMLType, x: Floats) -> Floats:
    """The decoded values of `kind` without any search."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(_ROUND[kind](x.astype(np.float64))).reshape(x.shape).astype(np.float32)


def _half(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return x.astype(np.float16).astype(np.float64)


def _largest(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The element of the last axis that is largest in magnitude, with its sign."""
    at = np.abs(x).argmax(axis=-1, keepdims=True)
    return np.take_along_axis(x, at, axis=-1)


def _codes(scale: NDArray[np.float64], low: int, high: int, unit: int) -> NDArray[np.float64]:
    """Group scales [blocks, groups, 1] as codes of the block's unit, decoded again."""
    d = _half(_largest(scale[..., 0]) / unit)[..., None]
    return d * np.clip(np.rint(scale / d), low, high)


def _nearest(table: NDArray[np.int64], x: NDArray[np.float64]) -> NDArray[np.float64]:
    return table[np.searchsorted((table[1:] + table[:-1]) / 2, x)].astype(np.float64)


def _affine(group: int, levels: int, codes: int):
    def rounded(x: NDArray[np.float64]) -> NDArray[np.float64]:
        g = x.reshape(-1, 256 // group, group)
        least = np.minimum(g.min(axis=-1, keepdims=True), 0)
        scale = _codes((g.max(axis=-1, keepdims=True) - least) / levels, 0, codes, codes)
        least = _codes(-least, 0, codes, codes)
        return scale * np.clip(np.rint((g + least) / scale), 0, levels) - least

    return rounded


def _q3_k(x: NDArray[np.float64]) -> NDArray[np.float64]:
    g = x.reshape(-1, 16, 16)
    scale = _codes(_largest(g) / -4, -32, 31, -32)
    return scale * np.clip(np.rint(g / scale), -4, 3)


def _iq4_nl(x: NDArray[np.float64]) -> NDArray[np.float64]:
    g = x.reshape(-1, 32)
    scale = _half(_largest(g) / -127)
    return scale * _nearest(IQ4, g / scale)


def _iq4_xs(x: NDArray[np.float64]) -> NDArray[np.float64]:
    g = x.reshape(-1, 8, 32)
    scale = _codes(_largest(g) / -127, -32, 31, -32)
    return scale * _nearest(IQ4, g / scale)


def _mxfp4(x: NDArray[np.float64]) -> NDArray[np.float64]:
    g = x.reshape(-1, 32)
    scale = np.exp2(np.floor(np.log2(np.abs(_largest(g)))) - 3)
    return scale * _nearest(E2M1, g / scale)


_ROUND = {
    GGMLType.Q2_K: _affine(16, 3, 15),
    GGMLType.Q3_K: _q3_k,
    GGMLType.Q4_K: _affine(32, 15, 63),
    GGMLType.Q5_K: _affine(32, 31, 63),
    GGMLType.IQ4_NL: _iq4_nl,
    GGMLType.IQ4_XS: _iq4_xs,
    GGMLType.MXFP4: _mxfp4,
}
