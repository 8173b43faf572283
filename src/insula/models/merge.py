"""An adapter added into a model's weights, for good.

Owns: the sum, in float32, and its way back into the tensor's own type. A weight in F32, F16 or
BF16 is rounded once; one that was quantized is decoded, changed and quantized again, which loses
precision in all of it, and the report says so. Tensors that the adapter leaves alone are copied
byte by byte. Invariant: the target appears complete or not at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from insula import _native
from insula.errors import ConfigError, FormatError, UnsupportedError
from insula.formats.ggml_types import QUANTIZABLE
from insula.formats.gguf import GGUFFile, TensorInfo
from insula.formats.gguf_writer import GGUFWriter
from insula.models.adapter import Update, read_adapter


@dataclass(frozen=True, kw_only=True)
class MergeReport:
    """tensors: how many weights changed; rms: their change's root mean square; size in bytes."""

    tensors: int
    rank: int
    rms: float
    size: int
    notes: tuple[str, ...]


def merge(
    base: str | Path,
    adapter: str | Path,
    out: str | Path,
    *,
    scale: float = 1.0,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> MergeReport:
    """Write `out`, the GGUF model `base` with `adapter` (a PEFT folder or a GGUF file) in it.

    scale: times the adapter's own; -1 takes a merged one out again. progress(done, total) is
    called after each tensor. Raises ConfigError, NotFoundError, FormatError, UnsupportedError,
    ResourceError.
    """
    out = Path(out)
    if not math.isfinite(scale):
        raise ConfigError(f"scale is {scale}; a finite number is needed")
    with GGUFFile.open(base) as file:
        if out.exists() and out.samefile(file.path):
            raise ConfigError(f"{out} is the base itself; name another file")
        updates = read_adapter(adapter, file)
        twice = []
        for name in updates:
            kind = file.info(name).type
            if kind not in QUANTIZABLE:
                raise UnsupportedError(
                    f"tensor {name!r} is stored as {kind.name}, which is not written here; merge "
                    "into an F16 or F32 file of the model"
                )
            if kind.is_quantized:
                twice.append(kind.name)
        writer = GGUFWriter(out, overwrite=overwrite, alignment=file.alignment)
        for key in file.metadata:
            if key != "general.alignment":
                writer.add_raw(key, *file.raw_metadata(key))
        squares: dict[str, float] = {}

        def pieces(done: int, info: TensorInfo) -> Iterator[NDArray[np.uint8]]:
            update = updates.get(info.name)
            if update is None:
                yield file.data(info.name)
            else:
                data, squares[info.name] = _merged(file, info, update, scale)
                yield data
            file.check()
            if progress is not None:
                progress(done, len(file.tensors))

        for done, info in enumerate(file.tensors.values(), 1):
            writer.add_tensor(info.name, partial(pieces, done, info), info.type, shape=info.shape)
        size = writer.write()
        n = sum(file.info(name).n_elements for name in updates)
    notes = []
    if twice:
        notes.append(
            f"{len(twice)} of the weights were quantized ({', '.join(sorted(set(twice)))}): they "
            "were decoded and quantized again, which loses precision; better merge into an F16 "
            "file and quantize that"
        )
    return MergeReport(
        tensors=len(updates),
        rank=max(len(update.a) for update in updates.values()),
        rms=math.sqrt(sum(squares.values()) / n),
        size=size,
        notes=tuple(notes),
    )


def _merged(
    file: GGUFFile, info: TensorInfo, update: Update, scale: float
) -> tuple[NDArray[np.uint8], float]:
    """The changed tensor's bytes, and the sum of squares of the change."""
    delta = update.delta()
    if scale != 1.0:
        delta *= np.float32(scale)
    weight = file.dequantize(info.name) + delta
    try:
        data = _native.quantize(int(info.type), weight)
    except ValueError as error:
        raise FormatError(
            f"tensor {info.name!r} with the adapter cannot be written as {info.type.name}: {error}"
        ) from None
    return data, float(np.square(delta, dtype=np.float64).sum())
