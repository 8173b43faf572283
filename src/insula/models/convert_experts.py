"""Checkpoints that store all experts of a layer as one tensor: what becomes of each.

gpt-oss stores gates and ups interleaved, [expert, in, out] in floats or [expert, out, in] in
MXFP4 (huggingface.co/openai/gpt-oss-20b, its modeling code and transformers' mxfp4 integration).
GGUF has one tensor [expert, out, in] for each; MXFP4 stays MXFP4, bit by bit, in other places:
the checkpoint's byte j holds values 2j and 2j + 1 of a block of 32, GGUF's holds j and j + 16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from insula.errors import FormatError, UnsupportedError
from insula.formats.ggml_types import GGMLType
from insula.formats.safetensors import SafetensorsFile
from insula.models.folder import FLOATS

Take = Callable[[NDArray[Any]], NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A tensor before it is read: its type and shape, and its content expert by expert."""

    type: GGMLType
    shape: tuple[int, ...]
    load: Callable[[], Iterator[NDArray[Any]]]


@dataclass(frozen=True, kw_only=True)
class Split:
    """One tensor of GGUF: its name in a block, and which part of an expert's values it is."""

    name: str
    take: Take
    mxfp4: bool = False

    def plan(self, file: SafetensorsFile, source: str) -> Planned:
        """Raises FormatError or UnsupportedError for a tensor of another form."""
        return self._plan_mxfp4(file, source) if self.mxfp4 else self._plan_floats(file, source)

    def _plan_floats(self, file: SafetensorsFile, source: str) -> Planned:
        info = file.tensors[source]
        if info.dtype not in FLOATS:
            raise UnsupportedError(
                f"tensor {source} is {info.dtype}; the converter reads {', '.join(FLOATS)} here"
            )
        found, moved_as = FLOATS[info.dtype]
        shape = tuple(info.shape)

        def values() -> NDArray[Any]:
            return file.data(source).view(moved_as).reshape(shape)

        if len(shape) == 1:
            return Planned(type=found, shape=shape, load=lambda: iter([self.take(values())]))
        inner = self.take(np.empty(shape[1:], np.bool_)).shape
        return Planned(
            type=found,
            shape=(shape[0], *inner),
            load=lambda: (self.take(expert) for expert in values()),
        )

    def _plan_mxfp4(self, file: SafetensorsFile, source: str) -> Planned:
        scales_name = source.removesuffix("_blocks") + "_scales"
        if scales_name not in file.tensors:
            raise FormatError(f"{source} has no {scales_name} beside it in {file.path.name}")
        blocks, scales = file.tensors[source], file.tensors[scales_name]
        shape = tuple(blocks.shape)
        if (blocks.dtype, scales.dtype) != ("U8", "U8") or (
            len(shape) != 4 or shape[3] != 16 or tuple(scales.shape) != shape[:3]
        ):
            raise FormatError(
                f"{source} is {blocks.dtype} {shape} with scales {tuple(scales.shape)}; MXFP4 is "
                "bytes [experts, out, in / 32, 16] with scales [experts, out, in / 32]"
            )

        def load() -> Iterator[NDArray[np.uint8]]:
            q_EOBJ = file.data(source).reshape(shape)
            s_EOB = file.data(scales_name).reshape(shape[:3])
            for q_OBJ, s_OB in zip(q_EOBJ, s_EOB, strict=True):
                yield repacked(self.take(q_OBJ), self.take(s_OB))

        rows = self.take(np.empty((shape[1], 1), np.bool_)).shape[0]
        return Planned(type=GGMLType.MXFP4, shape=(shape[0], rows, shape[2] * 32), load=load)


def repacked(q_OBJ: NDArray[np.uint8], scales_OB: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Blocks of MXFP4 as GGUF has them: bytes [out, in / 32, 17], the scale first."""
    values = np.stack([q_OBJ & 15, q_OBJ >> 4], axis=-1).reshape(*q_OBJ.shape[:2], 32)
    packed = values[..., :16] | values[..., 16:] << 4
    return np.concatenate([scales_OB[..., None], packed], axis=-1)


def _all(x: NDArray[Any]) -> NDArray[Any]:
    return x


def _transposed(x: NDArray[Any]) -> NDArray[Any]:
    return x.T


def _even_rows(x: NDArray[Any]) -> NDArray[Any]:
    return x[0::2]


def _odd_rows(x: NDArray[Any]) -> NDArray[Any]:
    return x[1::2]


def _even_columns(x: NDArray[Any]) -> NDArray[Any]:
    return x.T[0::2]


def _odd_columns(x: NDArray[Any]) -> NDArray[Any]:
    return x.T[1::2]


#: A checkpoint's tensor within a layer -> the tensors of GGUF's block.
GPT_OSS: Mapping[str, tuple[Split, ...]] = MappingProxyType(
    {
        "self_attn.sinks": (Split(name="attn_sinks.weight", take=_all),),
        "mlp.experts.gate_up_proj": (
            Split(name="ffn_gate_exps.weight", take=_even_columns),
            Split(name="ffn_up_exps.weight", take=_odd_columns),
        ),
        "mlp.experts.gate_up_proj_blocks": (
            Split(name="ffn_gate_exps.weight", take=_even_rows, mxfp4=True),
            Split(name="ffn_up_exps.weight", take=_odd_rows, mxfp4=True),
        ),
        "mlp.experts.gate_up_proj_scales": (),
        "mlp.experts.gate_up_proj_bias": (
            Split(name="ffn_gate_exps.bias", take=_even_rows),
            Split(name="ffn_up_exps.bias", take=_odd_rows),
        ),
        "mlp.experts.down_proj": (Split(name="ffn_down_exps.weight", take=_transposed),),
        "mlp.experts.down_proj_blocks": (
            Split(name="ffn_down_exps.weight", take=_all, mxfp4=True),
        ),
        "mlp.experts.down_proj_scales": (),
        "mlp.experts.down_proj_bias": (Split(name="ffn_down_exps.bias", take=_all),),
    }
)
