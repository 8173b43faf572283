"""A GGUF file in another format.

Owns: the way of each tensor from one file to the other, in pieces of rows, so that the memory
needed does not grow with the model; the report. Refuses: writing onto its own source, values that
the format cannot hold. Which tensor gets which type: `models.mixes`.
Invariant: the target appears complete or not at all, also when it is interrupted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from insula import _native
from insula.errors import ConfigError, FormatError, UnsupportedError
from insula.formats.ggml_types import DEQUANTIZABLE, GGMLType
from insula.formats.gguf import GGUFFile, TensorInfo
from insula.formats.gguf_writer import GGUFWriter
from insula.models.mixes import FALLBACKS, Mix, Target, is_quantized, target

#: ggml's version of the block layouts, which files of quantized tensors carry.
QUANTIZATION_VERSION = 2

#: Elements that are in memory as float32 at once.
PIECE = 1 << 22

#: Called with (bytes of the source done, bytes of the source, name of the tensor). Whatever it
#: raises stops the work, and nothing is left behind.
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, kw_only=True)
class QuantizeReport:
    """What was made. Sizes in bytes; rmse against the source, over the tensors that changed."""

    format: str
    source_size: int
    size: int
    n_parameters: int
    bits_per_weight: float
    counts: dict[str, int]
    rmse: float
    tensor_rmse: dict[str, float]
    notes: tuple[str, ...]


@dataclass(kw_only=True)
class _Errors:
    """Running sums of squared errors by tensor."""

    squares: dict[str, float] = field(default_factory=dict)
    elements: dict[str, int] = field(default_factory=dict)

    def rmse(self) -> float:
        n = sum(self.elements.values())
        return math.sqrt(sum(self.squares.values()) / n) if n else 0.0

    def by_tensor(self) -> dict[str, float]:
        return {name: math.sqrt(s / self.elements[name]) for name, s in self.squares.items()}


def quantize_file(
    src: str | Path,
    dst: str | Path,
    format: str,  # noqa: A002
    *,
    importance: Mapping[str, NDArray[np.float32]] | None = None,
    pure: bool = False,
    progress: Progress | None = None,
    accept: Callable[[Path], None] | None = None,
    overwrite: bool = False,
    threads: int = 0,
) -> QuantizeReport:
    """Write the model in `src` to `dst` in `format`, one of `models.mixes.TARGETS`.

    importance: by tensor name, float32[in] or [experts, in] weights of its columns' errors (an
    importance matrix); pure: every matrix gets the format's own type, without llama.cpp's mix;
    threads 0: one a core; accept: looks at the complete file before it takes the name `dst`, and
    raises if it may not (a gate). A source that is quantized already is decoded first, which the
    report notes: quantizing twice loses twice.
    Raises ConfigError (format, paths, importance), NotFoundError, FormatError, UnsupportedError (a
    source type that is not decoded here), ResourceError (no space).
    """
    src, dst = Path(src), Path(dst)
    wanted = target(format)
    with GGUFFile.open(src) as source:
        if dst.exists() and dst.samefile(src):
            raise ConfigError(f"{dst} is the source itself; name another file")
        weights = _checked_importance(importance, source)
        mix = Mix(
            source.tensors,
            source.metadata,
            wanted,
            pure=pure,
            has_importance=bool(weights),
        )
        types = {info.name: _type_of(info, mix) for info in source.tensors.values()}
        writer = GGUFWriter(dst, overwrite=overwrite, alignment=source.alignment)
        _copy_metadata(source, writer, wanted)
        errors = _Errors()
        total = sum(info.nbytes for info in source.tensors.values())
        done = 0

        def advance(nbytes: int, name: str) -> None:
            nonlocal done
            done += nbytes
            if progress is not None:
                progress(done, total, name)

        for info in source.tensors.values():
            writer.add_tensor(
                info.name,
                _pieces(source, info, types[info.name], weights, errors, advance, threads),
                types[info.name],
                shape=info.shape,
            )
        size = writer.write(accept)
        return QuantizeReport(
            format=wanted.name,
            source_size=source.size,
            size=size,
            n_parameters=(n := sum(info.n_elements for info in source.tensors.values())),
            bits_per_weight=8 * size / n if n else 0.0,
            counts=dict(Counter(kind.name for kind in types.values()).most_common()),
            rmse=errors.rmse(),
            tensor_rmse=errors.by_tensor(),
            notes=(*_notes(source, types, mix, pure=pure), *_unweighted(types, source, weights)),
        )


def _type_of(info: TensorInfo, mix: Mix) -> GGMLType:
    if is_quantized(info):
        kind = mix.type_of(info)
        if kind is not info.type and info.type not in DEQUANTIZABLE:
            raise UnsupportedError(
                f"tensor {info.name!r} is stored as {info.type.name}, which is not decoded here; "
                "start from a file in another format, best F16 or F32",
                backend="native",
            )
        return kind
    # llama.cpp multiplies vectors (norms, biases) as F32 only; the change is exact.
    if len(info.shape) == 1 and info.type in (GGMLType.F16, GGMLType.BF16):
        return GGMLType.F32
    return info.type


def _copy_metadata(source: GGUFFile, writer: GGUFWriter, wanted: Target) -> None:
    for key in source.metadata:
        if key == "general.alignment":
            continue
        kind, raw = source.raw_metadata(key)
        writer.add_raw(key, kind, raw)
    writer.add("general.quantization_version", QUANTIZATION_VERSION)
    writer.add("general.file_type", wanted.file_type)


def _checked_importance(
    importance: Mapping[str, NDArray[np.float32]] | None, source: GGUFFile
) -> dict[str, NDArray[np.float32]]:
    checked = {}
    for name, weights in (importance or {}).items():
        info = source.tensors.get(name)
        if info is None:
            raise ConfigError(f"importance for {name!r}, which {source.path.name} does not have")
        experts = math.prod(info.shape[:-2])
        if weights.size not in (info.shape[-1], experts * info.shape[-1]):
            raise ConfigError(
                f"importance for {name!r} has {weights.size} weights; its rows have "
                f"{info.shape[-1]}"
            )
        if not np.isfinite(weights).all() or (weights < 0).any():
            raise ConfigError(f"importance for {name!r} must be finite and not negative")
        checked[name] = np.ascontiguousarray(weights, dtype=np.float32).reshape(-1, info.shape[-1])
    return checked


def _pieces(
    source: GGUFFile,
    info: TensorInfo,
    kind: GGMLType,
    weights: Mapping[str, NDArray[np.float32]],
    errors: _Errors,
    advance: Callable[[int, str], None],
    threads: int,
) -> Callable[[], Iterator[NDArray[np.uint8]]]:
    """How to make the bytes of one tensor when its turn comes."""

    def copied() -> Iterator[NDArray[np.uint8]]:
        data = source.data(info.name)
        step = 4 * PIECE
        for start in range(0, len(data), step):
            piece = data[start : start + step]
            yield piece
            source.check()
            advance(len(piece), info.name)

    def converted() -> Iterator[NDArray[np.uint8]]:
        data = source.data(info.name)
        cols = info.shape[-1]
        row_bytes = info.type.row_bytes(cols)
        per_expert = info.shape[-2] if len(info.shape) > 1 else 1
        w_EI = weights.get(info.name)
        errors.squares[info.name] = 0.0
        errors.elements[info.name] = info.n_elements
        row, n_rows = 0, info.n_elements // cols
        while row < n_rows:
            last = min(n_rows, row + max(1, PIECE // cols))
            w_I = None
            if w_EI is not None:
                expert = 0
                if len(w_EI) > 1:  # a piece has the rows of one expert
                    expert = row // per_expert
                    last = min(last, (expert + 1) * per_expert)
                w_I = w_EI[expert]
            raw = data[row * row_bytes : last * row_bytes]
            x_RC = _native.dequantize(int(info.type), raw, (last - row) * cols, threads)
            source.check()
            x_RC = x_RC.reshape(last - row, cols)
            try:
                piece = _native.quantize(int(kind), x_RC, w_I, threads)
            except ValueError as error:
                raise FormatError(
                    f"tensor {info.name!r} cannot be written as {kind.name}: {error} "
                    f"(rows counted from {row})"
                ) from None
            back = _native.dequantize(int(kind), piece, x_RC.size, threads)
            back -= x_RC.reshape(-1)
            errors.squares[info.name] += float(np.dot(back, back))
            yield piece
            advance(len(raw), info.name)
            row = last

    return copied if kind is info.type else converted


def _unweighted(
    types: Mapping[str, GGMLType], source: GGUFFile, weights: Mapping[str, object]
) -> tuple[str, ...]:
    """What an importance matrix does not reach; the embedding and the output never are in one."""
    if not weights:
        return ()
    missing = [
        info.name
        for info in source.tensors.values()
        if types[info.name].is_quantized
        and info.name not in weights
        and info.name not in ("token_embd.weight", "output.weight")
    ]
    if not missing:
        return ()
    return (
        f"{len(missing)} quantized tensors, {missing[0]} first, are not in the importance matrix",
    )


def _notes(
    source: GGUFFile, types: Mapping[str, GGMLType], mix: Mix, *, pure: bool
) -> tuple[str, ...]:
    notes = []
    twice = [
        info for info in source.tensors.values() if info.type.is_quantized and is_quantized(info)
    ]
    changed = [info for info in twice if types[info.name] is not info.type]
    if changed:
        names = ", ".join(sorted({info.type.name for info in changed}))
        lost = (
            "and lost precision twice"
            if mix.base.is_quantized
            else "and are no more precise for being decoded"
        )
        notes.append(
            f"{len(changed)} tensors were quantized already ({names}) {lost}; a source in F16 or "
            "F32 gives a better file"
        )
    odd = [
        info
        for info in source.tensors.values()
        if is_quantized(info)
        and info.shape[-1] % 256
        and (mix.base in FALLBACKS or mix.falls_back(info))
    ]
    if odd:
        names = ", ".join(sorted({types[info.name].name for info in odd}))
        notes.append(
            f"{len(odd)} tensors have rows that 256 does not divide; they are stored as {names} "
            "instead, as llama.cpp does"
        )
    if pure:
        notes.append("pure: every matrix has the format's own type, without llama.cpp's mix")
    return tuple(notes)
