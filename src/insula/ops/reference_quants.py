"""Decoding of the quantized formats in NumPy: the truth that the native decoder is compared with.

Owns: one short function a format, in the order of float32 operations that the native code has, so
that the results are equal bit for bit. Slow and readable. Layouts: native/quants/blocks.h, from
ggml-common.h of ggml (MIT).
Shapes: b uint8[n_blocks, block_bytes] -> float32[n_blocks, block_size].
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Blocks = NDArray[np.uint8]
Floats = NDArray[np.float32]

_BLOCK_BYTES = {
    0: 4,
    1: 2,
    2: 18,
    3: 20,
    6: 22,
    7: 24,
    8: 34,
    10: 84,
    11: 110,
    12: 144,
    13: 176,
    14: 210,
    20: 18,
    23: 136,
    30: 2,
    39: 17,
}

_IQ4 = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], dtype=np.float32
)
_MXFP4 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], dtype=np.float32)


def dequantize(type_id: int, raw: NDArray[np.uint8], n: int) -> Floats:
    """Blocks uint8[nbytes] of a ggml type as float32[n]; ValueError for an unknown type."""
    if type_id not in _DECODERS:
        raise ValueError(f"no reference for ggml type {type_id}")
    blocks = np.ascontiguousarray(raw).reshape(-1, _BLOCK_BYTES[type_id])
    values = _DECODERS[type_id](blocks).reshape(-1)
    if len(values) != n:
        raise ValueError(f"{len(raw)} bytes are {len(values)} elements, not {n}")
    return values


def _half(b: Blocks) -> Floats:
    """Two bytes of each block as float16: float32[n_blocks, 1]."""
    return np.ascontiguousarray(b).view("<f2").astype(np.float32)


def _nibbles(qs: Blocks) -> Blocks:
    """Low nibbles, then high ones."""
    nibbles: Blocks = np.concatenate([qs & 15, qs >> 4], axis=1).astype(np.uint8)
    return nibbles


def _bits(b: Blocks) -> Blocks:
    """Each bit of the little-endian words as an element."""
    return np.unpackbits(np.ascontiguousarray(b), axis=1, bitorder="little")


def _f32(b: Blocks) -> Floats:
    return b.view("<f4").astype(np.float32)


def _f16(b: Blocks) -> Floats:
    return b.view("<f2").astype(np.float32)


def _bf16(b: Blocks) -> Floats:
    return (b.view("<u2").astype(np.uint32) << 16).view(np.float32)


def _q4_0(b: Blocks) -> Floats:
    return _half(b[:, :2]) * (_nibbles(b[:, 2:]).astype(np.float32) - 8)


def _q4_1(b: Blocks) -> Floats:
    return _half(b[:, :2]) * _nibbles(b[:, 4:]).astype(np.float32) + _half(b[:, 2:4])


def _q5_0(b: Blocks) -> Floats:
    q = _nibbles(b[:, 6:]) | _bits(b[:, 2:6]) << 4
    return _half(b[:, :2]) * (q.astype(np.float32) - 16)


def _q5_1(b: Blocks) -> Floats:
    q = _nibbles(b[:, 8:]) | _bits(b[:, 4:8]) << 4
    return _half(b[:, :2]) * q.astype(np.float32) + _half(b[:, 2:4])


def _q8_0(b: Blocks) -> Floats:
    q: Floats = b[:, 2:].view(np.int8).astype(np.float32)
    return _half(b[:, :2]) * q


def _crumbs(qs: Blocks) -> Blocks:
    """64 bytes as 256 values of two bits: bits 2k of 32 bytes are elements 32k..32k+31."""
    halves = qs.reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
    return (halves & 3).astype(np.uint8).reshape(-1, 256)


def _planes(bits: Blocks) -> Blocks:
    """32 bytes as 256 bits: bit k of byte j is element 32k + j."""
    shifts = np.arange(8, dtype=np.uint8).reshape(1, 8, 1)
    return (bits.reshape(-1, 1, 32) >> shifts & 1).astype(np.uint8).reshape(-1, 256)


def _q2_k(b: Blocks) -> Floats:
    scales, qs = b[:, :16], _crumbs(b[:, 16:80]).reshape(-1, 16, 16).astype(np.float32)
    d, dmin = _half(b[:, 80:82]), _half(b[:, 82:84])
    scale = (d * (scales & 15).astype(np.float32))[:, :, None]
    least = (dmin * (scales >> 4).astype(np.float32))[:, :, None]
    return (scale * qs - least).reshape(-1, 256)


def _q3_k(b: Blocks) -> Floats:
    q = _crumbs(b[:, 32:96]).astype(np.int8) - 4 * (1 - _planes(b[:, :32]).astype(np.int8))
    packed = b[:, 96:108]
    low = np.concatenate([packed[:, :8] & 15, packed[:, :8] >> 4], axis=1)
    high = np.concatenate([packed[:, 8:] >> shift & 3 for shift in (0, 2, 4, 6)], axis=1)
    codes = (low | high << 4).astype(np.float32) - 32
    scale: Floats = (_half(b[:, 108:110]) * codes)[:, :, None]
    return (scale * q.reshape(-1, 16, 16).astype(np.float32)).reshape(-1, 256)


def _scale_min(packed: Blocks) -> tuple[Floats, Floats]:
    """The eight 6-bit scales and mins in 12 bytes, float32[n_blocks, 8] each."""
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scale = np.concatenate([first & 63, third & 15 | first >> 6 << 4], axis=1)
    least = np.concatenate([second & 63, third >> 4 | second >> 6 << 4], axis=1)
    return scale.astype(np.float32), least.astype(np.float32)


def _nibble_pairs(qs: Blocks) -> Blocks:
    """128 bytes as 256 nibbles: 32 bytes hold 64 elements, low nibbles first."""
    pairs = qs.reshape(-1, 4, 1, 32) >> np.array([0, 4], np.uint8).reshape(1, 1, 2, 1)
    return (pairs & 15).astype(np.uint8).reshape(-1, 256)


def _groups_of_32(b: Blocks, q: Blocks) -> Floats:
    codes, mins = _scale_min(b[:, 4:16])
    scale = (_half(b[:, :2]) * codes)[:, :, None]
    least = (_half(b[:, 2:4]) * mins)[:, :, None]
    return (scale * q.reshape(-1, 8, 32).astype(np.float32) - least).reshape(-1, 256)


def _q4_k(b: Blocks) -> Floats:
    return _groups_of_32(b, _nibble_pairs(b[:, 16:]))


def _q5_k(b: Blocks) -> Floats:
    return _groups_of_32(b, _nibble_pairs(b[:, 48:]) | (_planes(b[:, 16:48]) << 4).astype(np.uint8))


def _q6_k(b: Blocks) -> Floats:
    low = b[:, :128].reshape(-1, 2, 1, 64) >> np.array([0, 4], np.uint8).reshape(1, 1, 2, 1)
    q = (low & 15).reshape(-1, 256) | _crumbs(b[:, 128:192]) << 4
    scale = _half(b[:, 208:210]) * b[:, 192:208].view(np.int8).astype(np.float32)
    centred = q.reshape(-1, 16, 16).astype(np.float32) - 32
    return (scale[:, :, None] * centred).reshape(-1, 256)


def _iq4_nl(b: Blocks) -> Floats:
    return _half(b[:, :2]) * _IQ4[_nibbles(b[:, 2:])]


def _iq4_xs(b: Blocks) -> Floats:
    high = np.ascontiguousarray(b[:, 2:4]).view("<u2") >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    low = np.stack([b[:, 4:8] & 15, b[:, 4:8] >> 4], axis=2).reshape(-1, 8)
    codes = (low | high << 4).astype(np.float32) - 32
    scale: Floats = (_half(b[:, :2]) * codes)[:, :, None]
    q = _nibbles(b[:, 8:].reshape(-1, 16)).reshape(-1, 8, 32)
    return (scale * _IQ4[q]).reshape(-1, 256)


def _mxfp4(b: Blocks) -> Floats:
    e = b[:, :1].astype(np.uint32)
    bits = np.where(e < 2, np.uint32(0x00200000) << e, (e - 1) << 23).astype(np.uint32)
    return bits.view(np.float32) * _MXFP4[_nibbles(b[:, 1:])]


_DECODERS: dict[int, Callable[[Blocks], Floats]] = {
    0: _f32,
    1: _f16,
    2: _q4_0,
    3: _q4_1,
    6: _q5_0,
    7: _q5_1,
    8: _q8_0,
    10: _q2_k,
    11: _q3_k,
    12: _q4_k,
    13: _q5_k,
    14: _q6_k,
    20: _iq4_nl,
    23: _iq4_xs,
    30: _bf16,
    39: _mxfp4,
}
