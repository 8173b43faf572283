"""A GGUF file's tensors as a checkpoint has them: one, some of one, or several together.

Floats go over bit by bit, in the checkpoint's order of rows; quantized tensors are decoded, but
for gpt-oss's MXFP4, which its checkpoints have as well. What GGUF always stores as F32 is as short
as the matrices again where that loses no bit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from insula.errors import FormatError, UnsupportedError
from insula.formats.ggml_types import DEQUANTIZABLE, GGMLType
from insula.formats.gguf import GGUFFile, TensorInfo
from insula.formats.safetensors_writer import Outgoing
from insula.models.convert import ALWAYS_F32, FloatFormat, encoded
from insula.models.export_ways import Way
from insula.models.folder import FLOATS

DTYPES = {kind: name for name, (kind, _) in FLOATS.items()}
_MOVED_AS = dict(FLOATS.values())

#: They are numbers of config.json there.
ROTARY = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


class Export:
    """What becomes of a file's tensors. config: the config.json that is written beside them."""

    def __init__(
        self, file: GGUFFile, way: Way, config: Mapping[str, Any], dtype: FloatFormat
    ) -> None:
        self._file = file
        self._way = way
        self._config = config
        self._dtype: FloatFormat = dtype
        #: What vectors become where they can.
        self.matrix = self._wanted(file.info("token_embd.weight"))

    def plan(self) -> dict[str, Outgoing]:
        """The checkpoint's tensors by name. Raises UnsupportedError, FormatError."""
        tensors: dict[str, Outgoing] = {}
        gpt_oss = self._way.rules.arch == "gpt-oss"
        for info in self._file.tensors.values():
            if info.name in ROTARY:
                continue
            if info.type not in DEQUANTIZABLE:
                raise UnsupportedError(
                    f"tensor {info.name!r} is stored as {info.type.name}, which is not decoded "
                    "here; start from a file in another format"
                )
            found = self._gpt_oss(info) if gpt_oss else None
            tensors |= self._usual(info) if found is None else found
        return tensors

    # -- one tensor, whole or by rows -------------------------------------------------------

    def _usual(self, info: TensorInfo) -> dict[str, Outgoing]:
        return {
            source: self._outgoing(part, one_row=one_row)
            for source, part, one_row in self._parts(info)
        }

    def _parts(self, info: TensorInfo) -> Iterator[tuple[str, TensorInfo, bool]]:
        """(the checkpoint's name, the rows, whether they are one without a first axis)."""
        rules = self._way.rules
        match = re.fullmatch(r"blk\.(\d+)\.(.+)\.(weight|bias)", info.name)
        layer = f"{self._way.prefix}{self._way.layer}.{match[1]}" if match else ""
        experts = {ours: theirs for theirs, ours in rules.experts.items()}
        if match and match[2] in experts and match[3] == "weight":
            router = next(t for t, ours in rules.block.items() if ours == "ffn_gate_inp")
            inside = f"{layer}.{router.rpartition('.')[0]}.experts"
            for i in range(info.shape[0]):
                yield f"{inside}.{i}.{experts[match[2]]}.weight", self._rows(info, i, i + 1), True
        elif rules.arch == "stablelm" and re.search(r"\.attn_[qk]_norm\.weight$", info.name):
            name = self._way.source(info.name).removesuffix(".weight")
            for i in range(info.shape[0]):
                yield f"{name}.{i}.weight", self._rows(info, i, i + 1), True
        elif match and (named := _in_parts(self._way, match[2])):
            rows = info.shape[0] // len(named)
            for i, name in enumerate(named):
                part = self._rows(info, i * rows, (i + 1) * rows)
                yield f"{layer}.{name}.{match[3]}", part, False
        else:
            yield self._way.source(info.name), info, False

    def _rows(self, info: TensorInfo, start: int, stop: int) -> TensorInfo:
        return self._file.info(f"{info.name}[{start}:{stop}]")

    def _outgoing(self, info: TensorInfo, *, one_row: bool) -> Outgoing:
        rules, way = self._way.rules, self._way
        name = info.name.partition("[")[0]
        stored = info.shape[1:] if one_row else info.shape
        shape = stored
        if way.undo is not None:  # what it makes of the shape, without reading anything
            empty = np.broadcast_to(np.uint8(0), stored)
            shape = way.undo(name, empty, self._config).shape
        heads = 0
        if rules.permute and re.search(r"\.attn_[qk]\.", name):
            key = "num_key_value_heads" if ".attn_k." in name else "num_attention_heads"
            heads = self._config[key]

        def changed(values: NDArray[Any]) -> NDArray[Any]:
            values = values.reshape(stored)
            if way.undo is not None:
                values = way.undo(name, values, self._config)
            return split_pairs(values, heads) if heads else values

        if len(shape) == 1 or re.search(ALWAYS_F32, name):
            values = changed(self._file.dequantize(info.name))
            if rules.norm_offset and "norm" in name:
                values = values - np.float32(rules.norm_offset)
            return self._short(values)
        kind = self._wanted(info)

        def load() -> NDArray[np.uint8]:
            values, found = self._values(info)
            return encoded(changed(values), found, kind)

        return Outgoing(dtype=DTYPES[kind], shape=shape, load=load)

    def _short(self, values: NDArray[np.float32]) -> Outgoing:
        """Few numbers, in the matrices' type if nothing is lost."""
        values = np.ascontiguousarray(values)
        kind = self.matrix if _fits(values, self.matrix) else GGMLType.F32
        data = encoded(values, GGMLType.F32, kind)
        return Outgoing(dtype=DTYPES[kind], shape=values.shape, load=lambda: data)

    def _values(self, info: TensorInfo) -> tuple[NDArray[Any], GGMLType]:
        """As they are moved, and their type."""
        if info.type in _MOVED_AS:
            moved = self._file.data(info.name).view(_MOVED_AS[info.type])
            return moved.reshape(info.shape), info.type
        return self._file.dequantize(info.name), GGMLType.F32

    def _wanted(self, info: TensorInfo) -> GGMLType:
        """What a matrix is written as."""
        if self._dtype != "auto":
            return GGMLType[self._dtype.upper()]
        return info.type if info.type in DTYPES else GGMLType.F32

    # -- gpt-oss, which has all experts in one tensor ---------------------------------------

    def _gpt_oss(self, info: TensorInfo) -> dict[str, Outgoing] | None:
        """What begins with this tensor; {} for one that another one brings, None for the usual."""
        match = re.fullmatch(r"blk\.(\d+)\.(attn_sinks|ffn_(gate|up|down)_exps)\.(.+)", info.name)
        if match is None:
            return None
        layer = f"{self._way.prefix}{self._way.layer}.{match[1]}"
        if match[2] == "attn_sinks":
            values = self._file.dequantize(info.name)
            return {f"{layer}.self_attn.sinks": self._short(values)}
        if match[3] == "up":
            return {}
        names = [f"blk.{match[1]}.ffn_{part}_exps.{match[4]}" for part in ("gate", "up")]
        parts = [info] if match[3] == "down" else [self._file.info(name) for name in names]
        name = f"{layer}.mlp.experts.{'down' if match[3] == 'down' else 'gate_up'}_proj"
        if len({(part.shape, part.type) for part in parts}) > 1:
            raise FormatError(f"{names[0]} and {names[1]} differ in shape or type")
        if match[4] == "bias":
            decoded = [self._file.dequantize(part.name) for part in parts]
            return {f"{name}_bias": self._short(_in_turn(decoded, axis=1))}
        if info.type is GGMLType.MXFP4 and self._dtype == "auto":
            return self._mxfp4(name, parts)
        experts, rows, columns = info.shape
        kind = self._wanted(info)

        def load() -> NDArray[np.uint8]:
            found = [self._values(part) for part in parts]
            values = _in_turn([v for v, _ in found], axis=1).swapaxes(1, 2)
            return encoded(values, found[0][1], kind)

        shape = (experts, columns, rows * len(parts))
        return {name: Outgoing(dtype=DTYPES[kind], shape=shape, load=load)}

    def _mxfp4(self, name: str, parts: list[TensorInfo]) -> dict[str, Outgoing]:
        experts, rows, columns = parts[0].shape
        shape = (experts, rows * len(parts), columns // 32)

        def blocks() -> NDArray[np.uint8]:
            found = [
                self._file.data(part.name).reshape(experts, rows, columns // 32, 17)
                for part in parts
            ]
            return _in_turn(found, axis=1)

        def quants() -> NDArray[np.uint8]:
            packed = blocks()[..., 1:]
            values = np.concatenate([packed & 15, packed >> 4], axis=-1)
            paired: NDArray[np.uint8] = values[..., 0::2] | values[..., 1::2] << 4
            return paired.reshape(-1)

        def scales() -> NDArray[np.uint8]:
            return np.ascontiguousarray(blocks()[..., 0]).reshape(-1)

        return {
            f"{name}_blocks": Outgoing(dtype="U8", shape=(*shape, 16), load=quants),
            f"{name}_scales": Outgoing(dtype="U8", shape=shape, load=scales),
        }


def _in_parts(way: Way, name: str) -> list[str]:
    """A checkpoint's names for the parts of GGUF's tensor, in order; [] where it is one."""
    found: dict[int, str] = {}
    for theirs, ours in way.rules.block.items():
        inside, _, part = ours.partition("/")
        if inside == name and part:
            found[int(part)] = theirs
    return [found[i] for i in sorted(found)]


def _in_turn(parts: list[NDArray[Any]], *, axis: int) -> NDArray[Any]:
    """Row 0 of each part, row 1 of each …"""
    stacked = np.stack(parts, axis=axis + 1)
    return stacked.reshape(*parts[0].shape[:axis], -1, *parts[0].shape[axis + 1 :])


def split_pairs(values: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows reordered so that adjacent pairs (2i, 2i+1) become (i, i + E/2): the inverse of
    `convert.adjacent_pairs`."""
    rows = values.shape[0]
    if rows % (2 * heads):
        raise FormatError(f"{rows} rows do not divide into pairs of {heads} heads")
    pairs = values.reshape(heads, rows // heads // 2, 2, *values.shape[1:])
    return pairs.swapaxes(1, 2).reshape(values.shape)


def _fits(values: NDArray[np.float32], kind: GGMLType) -> bool:
    """Whether every value is one of the type's, so that nothing is lost."""
    if kind is GGMLType.F32:
        return True
    if kind is GGMLType.F16:
        with np.errstate(over="ignore"):
            back = values.astype(np.float16).astype(np.float32)
        return bool((back.view(np.uint32) == values.view(np.uint32)).all())
    return bool((values.view(np.uint32) & 0xFFFF == 0).all())
