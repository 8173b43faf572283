"""A GGUF file becomes a Hugging Face folder: config.json, safetensors, tokenizer.

Owns the way back of `convert`, from its parts: names (`export_ways`), config.json (`export_config`,
`export_layernorm`), tensors (`export_tensors`), the tokenizer, and what pools (`export_pooling`).
What the folder could not say is refused before anything is written.
Invariant: the folder appears complete or not at all.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from insula.errors import ConfigError, FormatError, ResourceError
from insula.formats.ggml_types import GGMLType
from insula.formats.gguf import GGUFFile
from insula.formats.safetensors_writer import Outgoing, shard_names, shards, write_safetensors
from insula.models import export_pooling
from insula.models.convert import FloatFormat
from insula.models.export_config import Facts, Said
from insula.models.export_config import config as config_of
from insula.models.export_tensors import DTYPES, ROTARY, Export
from insula.models.export_tokenizer import write_tokenizer
from insula.models.export_ways import way_of

#: Bytes of one safetensors file, where nobody says otherwise.
SHARD_BYTES = 5_000_000_000

#: How gpt-oss's config.json says that its experts are MXFP4 (huggingface.co/openai/gpt-oss-20b).
MXFP4 = {
    "quant_method": "mxfp4",
    "modules_to_not_convert": [
        "model.layers.*.self_attn",
        "model.layers.*.mlp.router",
        "model.embed_tokens",
        "lm_head",
    ],
}

NO_POOLER = (
    "GGUF leaves out BERT's pooler, which takes no part in embeddings; transformers says that it "
    "is missing and makes one at random"
)


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
        shapes = {info.name: tuple(info.shape) for info in file.tensors.values()}
        if "token_embd.weight" not in shapes:
            raise FormatError(f"{file.path.name} has no token_embd.weight; it holds no model")
        way = way_of(file.metadata, shapes)
        rotary = {n.removesuffix(".weight"): file.dequantize(n) for n in ROTARY if n in shapes}
        config = config_of(file.metadata, way, Facts(shapes=shapes, rotary=rotary))
        own = Said(file.metadata, way.rules.arch).own
        config |= export_pooling.labels(own, shapes)
        plan = Export(file, way, config, dtype)
        tensors = plan.plan()
        config["torch_dtype"] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[
            DTYPES[plan.matrix]
        ]
        if any(name.endswith("_blocks") for name in tensors):
            config["quantization_config"] = MXFP4
        beside = export_pooling.files(own, width=shapes["token_embd.weight"][1])
        try:
            report = _write(file.metadata, out, config, beside, tensors, shard_bytes, progress)
        finally:
            file.check()
        notes = _notes(file, dtype, kept="quantization_config" in config)
        if way.name == "BertModel":
            notes += (NO_POOLER,)
        return ExportReport(files=report[0], size=report[1], notes=notes)


def _write(
    meta: Mapping[str, Any],
    out: Path,
    config: dict[str, Any],
    beside: Mapping[str, Any],
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
        for name, content in beside.items():
            (temporary / name).parent.mkdir(exist_ok=True)
            written = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
            (temporary / name).write_text(written, encoding="utf-8")
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


def _notes(file: GGUFFile, dtype: FloatFormat, *, kept: bool) -> tuple[str, ...]:
    """kept: MXFP4 stays what it is."""
    quantized = [
        info
        for info in file.tensors.values()
        if info.type not in DTYPES and not (kept and info.type is GGMLType.MXFP4)
    ]
    if not quantized:
        return ()
    kinds = ", ".join(sorted({info.type.name for info in quantized}))
    what = (
        "are written as F32, which is exact; f16 or bf16 take half the space and round"
        if dtype == "auto"
        else f"are decoded and written as {dtype.upper()}"
    )
    return (f"{len(quantized)} tensors were quantized ({kinds}) and {what}",)
