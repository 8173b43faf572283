"""GPTQ and AWQ: 4-bit weights in groups, as safetensors hold them, into GGUF's blocks.

Both store w = s (q - z) with q and z in 0..15 and a float16 scale s for each group of input
columns, packed eight to an int32. GGUF's blocks of 32 give the same numbers, to the last bit:
where every z is 8, Q4_0 is d (q - 8) with d = s, and elsewhere Q5_0 is d (u - 16) with
u = q - z + 16, which lies in 1..31. (Q4_1 is d q + m, and m = -s z has more digits than a float16:
it would be rounded.)

Owns the published layouts: AutoGPTQ's (qweight packed along the inputs, zeros stored less one in
format "gptq" and as they are in "gptq_v2", github.com/AutoGPTQ/AutoGPTQ) and AutoAWQ's "gemm"
(packed along the outputs in the order 0 2 4 6 1 3 5 7, github.com/casper-hansen/AutoAWQ).
Refuses, with the reason: other widths and layouts, groups that 32 does not divide, columns in
activation order (desc_act), whose groups no block can follow.

Shapes: N outputs, K inputs, G groups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from insula.errors import FormatError, UnsupportedError
from insula.formats.ggml_types import GGMLType

#: What a packed module has in place of its weight.
PARTS = ("qweight", "qzeros", "scales", "g_idx")

#: Nibble i of an AWQ word belongs to output AWQ_ORDER[i] of its eight.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_SHIFTS = np.arange(0, 32, 4, dtype=np.uint32)

OTHERWISE = "take the original checkpoint, or decode with --dtype f16"


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How a checkpoint packs. group: inputs that share a scale, None: all of them.
    zero_offset: added to a stored zero."""

    method: str
    group: int | None
    zero_offset: int


def packing(config: Mapping[str, Any]) -> Packing | None:
    """What config.json says of its quantization; None if there is none.

    Raises UnsupportedError for one that is not read here.
    """
    said = config.get("quantization_config")
    if said is None:
        return None
    if not isinstance(said, dict):
        raise FormatError(f"quantization_config is {said!r}, an object is needed")
    method = said.get("quant_method")
    if method == "mxfp4":  # gpt-oss's experts, whose blocks have names of their own
        return None
    if method not in ("gptq", "awq"):
        raise UnsupportedError(
            f"config.json says the weights are quantized with {method!r}; gptq and awq of 4 bits "
            "are read: take the original checkpoint, or one of these"
        )
    bits = said.get("bits", said.get("w_bit"))
    if bits != 4:
        raise UnsupportedError(
            f"the {method} weights have {bits!r} bits; 4 are read: take the original checkpoint"
        )
    group = said.get("group_size", said.get("q_group_size", -1))
    if group != -1 and (not isinstance(group, int) or group < 32 or group % 32):
        raise UnsupportedError(
            f"groups of {group!r} inputs do not divide into blocks of 32; {OTHERWISE}"
        )
    stored = said.get("checkpoint_format" if method == "gptq" else "version")
    known = {"gptq": ("gptq", "gptq_v2", None), "awq": ("gemm", "GEMM", None)}[method]
    if stored not in known or said.get("is_marlin_format"):
        raise UnsupportedError(
            f"the {method} weights are laid out as {stored or 'marlin'!r}; read are "
            f"{', '.join(str(name) for name in known if name)}: take the original checkpoint"
        )
    if said.get("dynamic"):
        raise UnsupportedError("the gptq weights have settings by layer (dynamic); not read here")
    return Packing(
        method=method,
        group=None if group == -1 else group,
        zero_offset=int(method == "gptq" and stored != "gptq_v2"),
    )


@dataclass(frozen=True, kw_only=True)
class Packed:
    """One packed weight [N, K]: its zeros and scales, and its levels when they are asked for.

    zeros and scales [N, G]; groups [K]: each input's; ordered: they follow one another, as blocks
    need it.
    """

    zeros: NDArray[np.int16]
    scales: NDArray[np.float16]
    shape: tuple[int, int]
    groups: NDArray[np.int64]
    ordered: bool
    load_levels: Callable[[], NDArray[np.uint8]]

    @property
    def type(self) -> GGMLType:
        """The smallest GGUF type that holds every value."""
        return GGMLType.Q4_0 if bool((self.zeros == 8).all()) else GGMLType.Q5_0

    def values(self) -> NDArray[np.float32]:
        """s (q - z) as float32 [N, K], which is exact."""
        levels_NK = self.load_levels().astype(np.int16) - self.zeros[:, self.groups]
        return self.scales.astype(np.float32)[:, self.groups] * levels_NK

    def blocks(self) -> NDArray[np.uint8]:
        """GGUF's blocks of `type`, uint8 [N, bytes of a row]."""
        n, k = self.shape
        levels = self.load_levels().astype(np.int16) - self.zeros[:, self.groups]
        kind = self.type
        u = (levels + (8 if kind is GGMLType.Q4_0 else 16)).astype(np.uint8)
        u = u.reshape(n, k // 32, 32)
        out = np.empty((n, k // 32, kind.block_bytes), np.uint8)
        scales = np.ascontiguousarray(self.scales[:, self.groups[::32]], dtype="<f2")
        out[..., :2] = scales.view(np.uint8).reshape(n, k // 32, 2)
        out[..., -16:] = u[..., :16] & 15 | (u[..., 16:] & 15) << 4
        if kind is GGMLType.Q5_0:
            out[..., 2:6] = np.packbits(u >> 4, axis=-1, bitorder="little")
        return out.reshape(n, -1)


def unpack(module: str, packing: Packing, array: Callable[[str], NDArray[Any] | None]) -> Packed:
    """The packed weight of `module`; array(name) gives a tensor of the checkpoint, or None.

    Raises FormatError for parts that are missing or do not fit one another.
    """
    qweight = _part(array, f"{module}.qweight", np.int32)
    qzeros = _part(array, f"{module}.qzeros", np.int32)
    scales_GN = _half(array, f"{module}.scales")
    if packing.method == "gptq":
        k, n = qweight.shape[0] * 8, qweight.shape[1]
    else:
        k, n = qweight.shape[0], qweight.shape[1] * 8
    group = packing.group or k
    n_groups = -(-k // group)
    if k % 32 or scales_GN.shape != (n_groups, n) or qzeros.shape != (n_groups, n // 8) or n % 8:
        raise FormatError(
            f"{module}: qweight {qweight.shape}, qzeros {qzeros.shape} and scales "
            f"{scales_GN.shape} are no weight of {packing.method} in groups of {group}"
        )
    group_K = np.arange(k) // group
    ordered = True
    g_idx = array(f"{module}.g_idx")
    if g_idx is not None and g_idx.size:
        if g_idx.shape != (k,) or g_idx.min() < 0 or g_idx.max() >= n_groups:
            raise FormatError(f"{module}.g_idx does not name a group for each of {k} inputs")
        ordered = bool((g_idx == group_K).all())
        group_K = g_idx.astype(np.int64)
    along_outputs = _nibbles(qzeros)  # [G, N/8, 8]
    if packing.method == "awq":
        along_outputs = along_outputs[..., np.argsort(AWQ_ORDER)]
    # A stored 15 is a zero of 0 that wrapped round when one was taken off.
    zeros_GN = (along_outputs.reshape(n_groups, n) + packing.zero_offset) & 15

    def load_levels() -> NDArray[np.uint8]:
        words = _nibbles(qweight)
        if packing.method == "gptq":  # [K/8, N, 8]: eight inputs in a word
            return np.ascontiguousarray(words.transpose(1, 0, 2)).reshape(n, k)
        words = words[..., np.argsort(AWQ_ORDER)]  # [K, N/8, 8]: eight outputs in a word
        return np.ascontiguousarray(words.reshape(k, n).T)

    return Packed(
        zeros=np.ascontiguousarray(zeros_GN.T).astype(np.int16),
        scales=np.ascontiguousarray(scales_GN.T),
        shape=(n, k),
        groups=group_K,
        ordered=ordered,
        load_levels=load_levels,
    )


def _nibbles(words: NDArray[np.int32]) -> NDArray[np.uint8]:
    return (words.view(np.uint32)[..., None] >> _SHIFTS & 15).astype(np.uint8)


def _part(
    array: Callable[[str], NDArray[Any] | None], name: str, dtype: type[np.generic]
) -> NDArray[Any]:
    found = array(name)
    if found is None:
        raise FormatError(f"the checkpoint has no {name}; a packed weight needs it")
    if found.dtype != dtype or found.ndim != 2:
        raise FormatError(f"{name} is {found.dtype} {found.shape}; a matrix of int32 is needed")
    return found


def _half(array: Callable[[str], NDArray[Any] | None], name: str) -> NDArray[np.float16]:
    found = array(name)
    if found is None:
        raise FormatError(f"the checkpoint has no {name}; a packed weight needs it")
    with np.errstate(over="ignore"):
        half = found.astype(np.float16)
    if found.ndim != 2 or not np.array_equal(half.astype(np.float32), found.astype(np.float32)):
        raise UnsupportedError(
            f"{name} holds scales that float16, and so GGUF's blocks, cannot hold exactly; take "
            "the original checkpoint"
        )
    return half
