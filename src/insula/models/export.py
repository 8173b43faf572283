"""A GGUF file becomes a Hugging Face folder: config.json, safetensors, tokenizer.

Owns the way back of `convert`: names, the order of query and key rows, the norms' +1, and vectors
in the matrices' own type where that loses no bit. Floats go over bit by bit; quantized tensors
are decoded, exactly as float32 unless a smaller type is asked for. What the folder could not say
is refused before anything is written.
Invariant: the folder appears complete or not at all.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from insula.errors import ConfigError, FormatError, ResourceError, UnsupportedError
from insula.formats.ggml_types import DEQUANTIZABLE, GGMLType
from insula.formats.gguf import GGUFFile, TensorInfo
from insula.formats.safetensors_writer import Outgoing, shard_names, shards, write_safetensors
from insula.models.convert import FloatFormat, encoded
from insula.models.convert_rules import RULES, Rules
from insula.models.export_config import config as config_of
from insula.models.export_tokenizer import write_tokenizer
from insula.models.folder import FLOATS

#: Bytes of one safetensors file, where nobody says otherwise.
SHARD_BYTES = 5_000_000_000

_DTYPES = {kind: name for name, (kind, _) in FLOATS.items()}
_MOVED_AS = dict(FLOATS.values())
_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_ATTENTION = tuple(f"attn_{part}.bias" for part in ("q", "k", "v", "output"))
_FEED_FORWARD = tuple(f"ffn_{part}.bias" for part in ("gate", "up", "down"))
_WITH_ATTENTION_BIAS = ("llama", "qwen3", "granite", "smollm3", "olmo2")


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What was written: safetensors files, their bytes, and remarks for the user."""

    files: tuple[str, ...]
    size: int
    notes: tuple[str, ...]


def export(
    path: str | Path,
    out: str | Path,
    *,
    dtype: FloatFormat = "auto",
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> ExportReport:
    """Write the folder `out`, which must not be there yet, from a GGUF file.

    dtype: what matrices are stored as; "auto" keeps floats as they are and decodes quantized
    tensors to float32. shard_bytes: most bytes of tensors per file. progress(done, total) is
    called after each tensor.
    Raises ConfigError, FormatError, NotFoundError, ResourceError, TokenizerError,
    UnsupportedError.
    """
    out = Path(out)
    if dtype not in ("auto", "f32", "f16", "bf16"):
        raise ConfigError(f"dtype is {dtype!r}, allowed are auto, f32, f16 and bf16")
    if shard_bytes < 1:
        raise ConfigError(f"shard_bytes is {shard_bytes}; a file holds at least one byte")
    if out.exists() or out.is_symlink():
        raise ConfigError(f"{out} exists; name a folder that does not")
    with GGUFFile.open(path) as file:
        arch = file.metadata.get("general.architecture")
        rules = next((r for r in RULES.values() if r.arch == arch), None)
        factors = file.tensors.get("rope_freqs.weight")
        embedding = file.tensors.get("token_embd.weight")
        if embedding is None:
            raise FormatError(f"{file.path.name} has no token_embd.weight; it holds no model")
        config = config_of(
            file.metadata,
            n_vocab=embedding.shape[0],
            tied="output.weight" not in file.tensors,
            biased=_biases(file, str(arch)),
            factors=None if factors is None else file.dequantize("rope_freqs.weight"),
        )
        if rules is None:  # config_of knows no architecture that convert does not
            raise UnsupportedError(f"no rules for the architecture {arch!r}")
        matrix = _type(embedding, dtype)
        tensors: dict[str, Outgoing] = {}
        for info in file.tensors.values():
            if info.name != "rope_freqs.weight":
                name = _source_name(info.name, rules)
                tensors[name] = _outgoing(file, info, rules, config, dtype, matrix)
        config["torch_dtype"] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[
            _DTYPES[matrix]
        ]
        try:
            report = _write(file.metadata, out, config, tensors, shard_bytes, progress)
        finally:
            file.check()
        return ExportReport(files=report[0], size=report[1], notes=_notes(file, dtype))


def _write(
    meta: Mapping[str, Any],
    out: Path,
    config: dict[str, Any],
    tensors: dict[str, Outgoing],
    shard_bytes: int,
    progress: Callable[[int, int], None] | None,
) -> tuple[tuple[str, ...], int]:
    parts = shards({name: t.nbytes for name, t in tensors.items()}, shard_bytes)
    names = shard_names(len(parts))
    temporary = out.with_name(f".{out.name}.{secrets.token_hex(4)}.part")
    total = sum(t.nbytes for t in tensors.values())
    try:
        free = shutil.disk_usage(out.absolute().parent).free
        if total > free:
            raise ResourceError(
                f"no space for {out}: it needs {total / 1e6:.1f} MB and {free / 1e6:.1f} MB are "
                "free; free some or write elsewhere"
            )
        temporary.mkdir(mode=0o777)
    except OSError as error:
        raise ResourceError(f"{out} cannot be written: {error.strerror or error}") from None
    done = 0

    def counted(tensor: Outgoing) -> Outgoing:
        def load() -> NDArray[np.uint8]:
            nonlocal done
            data = tensor.load()
            done += 1
            if progress is not None:
                progress(done, len(tensors))
            return data

        return Outgoing(dtype=tensor.dtype, shape=tensor.shape, load=load)

    try:
        ids = write_tokenizer(meta, temporary)
        text = json.dumps({**config, **ids}, indent=2) + "\n"
        (temporary / "config.json").write_text(text, encoding="utf-8")
        size = 0
        where: dict[str, str] = {}
        for file_name, part in zip(names, parts, strict=True):
            size += write_safetensors(
                temporary / file_name, {name: counted(tensors[name]) for name in part}
            )
            where |= dict.fromkeys(part, file_name)
        if len(parts) > 1:
            index = {"metadata": {"total_size": total}, "weight_map": where}
            (temporary / "model.safetensors.index.json").write_text(
                json.dumps(index, indent=2) + "\n", encoding="utf-8"
            )
        temporary.rename(out)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise ResourceError(f"{out} cannot be written: {error.strerror or error}") from None
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return tuple(names), size


def _source_name(name: str, rules: Rules) -> str:
    """What a checkpoint calls GGUF's tensor."""
    if name in _TOP:
        return _TOP[name]
    back = {ours: theirs for theirs, ours in rules.block.items()}
    match = re.fullmatch(r"blk\.(\d+)\.(.+)\.(weight|bias)", name)
    if match and match[2] in back and (match[3] == "weight" or "norm" not in match[2]):
        return f"model.layers.{int(match[1])}.{back[match[2]]}.{match[3]}"
    raise UnsupportedError(
        f"tensor {name} has no counterpart in a {rules.arch} checkpoint; leaving it out could "
        "change the model's answers"
    )


def _biases(file: GGUFFile, arch: str) -> tuple[bool, bool]:
    """Whether attention has its four biases, and the feed-forward its three. Some of them alone
    no config.json can say, but for qwen2, whose q, k and v always have one."""
    found = []
    for names, having in ((_ATTENTION, _WITH_ATTENTION_BIAS), (_FEED_FORWARD, ("llama",))):
        there = {part for name in file.tensors for part in names if name.endswith("." + part)}
        if arch == "qwen2" and there and "attn_output.bias" not in there:
            there = set()
        if there and (arch not in having or len(there) < len(names)):
            raise UnsupportedError(
                f"the file has {', '.join(sorted(there))}; a {arch} checkpoint has all of "
                f"{', '.join(names)} or none of them"
                if arch in having
                else f"the file has {', '.join(sorted(there))}, which {arch} checkpoints have not"
            )
        found.append(bool(there))
    return found[0], found[1]


def _type(info: TensorInfo, dtype: FloatFormat) -> GGMLType:
    """What a matrix is written as."""
    if dtype != "auto":
        return GGMLType[dtype.upper()]
    return info.type if info.type in _DTYPES else GGMLType.F32


def _outgoing(
    file: GGUFFile,
    info: TensorInfo,
    rules: Rules,
    config: Mapping[str, Any],
    dtype: FloatFormat,
    matrix: GGMLType,
) -> Outgoing:
    if info.type not in DEQUANTIZABLE:
        raise UnsupportedError(
            f"tensor {info.name!r} is stored as {info.type.name}, which is not decoded here; "
            "start from a file in another format"
        )
    heads = 0
    if rules.permute and re.search(r"\.attn_[qk]\.", info.name):
        heads = config["num_key_value_heads" if ".attn_k." in info.name else "num_attention_heads"]
    if len(info.shape) == 1:
        values = file.dequantize(info.name)
        if rules.norm_offset and "norm" in info.name:
            values = values - np.float32(rules.norm_offset)
        if heads:
            values = split_pairs(values, heads)
        kind = matrix if _fits(values, matrix) else GGMLType.F32
        data = encoded(values, GGMLType.F32, kind)
        return Outgoing(dtype=_DTYPES[kind], shape=info.shape, load=lambda: data)
    kind = _type(info, dtype)

    def load() -> NDArray[np.uint8]:
        if info.type in _MOVED_AS:
            values = file.data(info.name).view(_MOVED_AS[info.type]).reshape(info.shape)
            found = info.type
        else:
            values, found = file.dequantize(info.name), GGMLType.F32
        return encoded(split_pairs(values, heads) if heads else values, found, kind)

    return Outgoing(dtype=_DTYPES[kind], shape=info.shape, load=load)


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


def _notes(file: GGUFFile, dtype: FloatFormat) -> tuple[str, ...]:
    quantized = [info for info in file.tensors.values() if info.type not in _DTYPES]
    if not quantized:
        return ()
    kinds = ", ".join(sorted({info.type.name for info in quantized}))
    what = (
        "are written as F32, which is exact; f16 or bf16 take half the space and round"
        if dtype == "auto"
        else f"are decoded and written as {dtype.upper()}"
    )
    return (f"{len(quantized)} tensors were quantized ({kinds}) and {what}",)
