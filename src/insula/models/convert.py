"""A Hugging Face folder (config.json, safetensors, tokenizer) becomes a GGUF file.

Owns the way of each tensor, and the changes that GGUF makes to weights: those of `convert_rules`,
and that vectors are stored as F32. Nothing is guessed: a tensor without a name (`convert_rules`), a
config value that would change the maths and has no GGUF key (`convert_config`), or an unknown
pre-tokenizer (`convert_tokenizer`) is refused. GPTQ and AWQ weights become blocks that give the
same values (`packed4`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from insula.errors import ConfigError, FormatError, UnsupportedError
from insula.formats.ggml_types import GGMLType
from insula.formats.gguf_writer import GGUFWriter
from insula.formats.safetensors import SafetensorsFile
from insula.models import convert_config, convert_pooling, packed4
from insula.models.convert_config import need
from insula.models.convert_experts import Planned
from insula.models.convert_rules import GEMMA2, GEMMA3, Rules, gguf_name, rules_of
from insula.models.convert_tokenizer import tokenizer_metadata
from insula.models.folder import FLOATS, read_json, weight_files

FloatFormat = Literal["auto", "f32", "f16", "bf16"]

FILE_TYPE = {
    GGMLType.F32: 0,
    GGMLType.F16: 1,
    GGMLType.BF16: 32,
    GGMLType.Q4_0: 2,
    GGMLType.Q5_0: 8,
}


#: Tensors of more than one dimension that GGUF stores as F32 all the same.
ALWAYS_F32 = r"(_norm|^position_embd|^token_types)\.weight$"


@dataclass(frozen=True, kw_only=True)
class _Weight:
    """One tensor on its way: what it will be, and how to get its bytes when they are written."""

    type: GGMLType
    shape: tuple[int, ...]
    load: Callable[[], Iterator[NDArray[np.uint8]]]


def convert(
    folder: str | Path,
    out: str | Path,
    *,
    dtype: FloatFormat = "auto",
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[str, ...]:
    """Write `out`, a GGUF file, from a Hugging Face folder; returns notes for the user.

    dtype: what matrices are stored as; "auto" keeps each tensor's own float type, and 4-bit
    weights in blocks of the same values.
    overwrite: replace `out` if it is there. progress(done, total) is called after each tensor.
    Raises NotFoundError for a missing file, UnsupportedError or FormatError for content that
    has no exact counterpart in GGUF.
    """
    folder, out = Path(folder), Path(out)
    if dtype not in ("auto", "f32", "f16", "bf16"):
        raise ConfigError(f"dtype is {dtype!r}, allowed are auto, f32, f16 and bf16")
    config = read_json(folder / "config.json")
    rules = rules_of(config)
    notes: list[str] = []
    if "text_config" in config:
        notes.append("the vision half of the model was left out")
        if not isinstance(config["text_config"], dict):
            raise FormatError("config.json has a text_config that is no object")
        config = {"quantization_config": config.get("quantization_config")} | config["text_config"]
    packing = packed4.packing(config)

    with ExitStack() as stack:
        parts: dict[str, dict[int, _Weight]] = {}
        files: dict[str, SafetensorsFile] = {}
        for path in weight_files(folder):
            file = stack.enter_context(SafetensorsFile.open(path))
            files |= dict.fromkeys(file.tensors, file)
        for source, file in files.items():
            module, _, part = source.rpartition(".")
            if part in packed4.PARTS:
                if packing is None:
                    raise UnsupportedError(
                        f"{source} is part of a packed weight (GPTQ, AWQ), and config.json has no "
                        "quantization_config that says how it is packed; take a folder that has "
                        "one, or the original checkpoint"
                    )
                named = gguf_name(f"{module}.weight", rules, config)
                if part == "qweight" and named is not None:
                    made = _packed(files, module, packing, named[0], rules, config, dtype)
                    parts.setdefault(named[0], {})[named[1]] = made
                continue
            for name, weight in _together(file, source, rules, dtype):
                parts[name] = {0: weight}
            named = gguf_name(source, rules, config)
            if named is not None:
                made = _weight(file, source, named[0], rules, config, dtype)
                parts.setdefault(named[0], {})[named[1]] = made
        weights = {name: _joined(name, found) for name, found in parts.items()}
        notes.extend(_packed_notes(weights, packing, dtype))
        embedding = weights.get("token_embd.weight")
        if embedding is None:
            raise FormatError(f"{folder} has no embedding (model.embed_tokens.weight)")
        if (
            _has_logits(config)
            and config.get("tie_word_embeddings") is False
            and ("output.weight" not in weights)
        ):
            raise FormatError(
                f"{folder / 'config.json'} says that the output has weights of its own "
                "(tie_word_embeddings is false), and the checkpoint has no lm_head.weight"
            )
        tokenizer, remarks = tokenizer_metadata(folder, config, n_vocab=embedding.shape[0])
        notes.extend(remarks)

        writer = GGUFWriter(out, overwrite=overwrite)
        writer.add("general.architecture", rules.arch)
        writer.add("general.type", "model")
        writer.add("general.name", folder.resolve().name)
        blocks = {w.type for w in weights.values() if w.type in (GGMLType.Q4_0, GGMLType.Q5_0)}
        writer.add("general.file_type", FILE_TYPE[max(blocks, default=embedding.type)])
        if any(w.type.is_quantized for w in weights.values()):
            writer.add("general.quantization_version", 2)
        model = rules.metadata(rules.arch, config)
        model |= convert_pooling.metadata(folder, config)
        for key, value in model.items():
            writer.add(f"{rules.arch}.{key}", value)
        notes.extend(convert_config.remarks(config))
        if rules in (GEMMA2, GEMMA3) and "attention.scale" in model:
            notes.append("attention.scale, which this model needs, is not read by llama.cpp")
        for key, value in tokenizer.items():
            writer.add(f"tokenizer.{key}", value)
        for name, factors in convert_config.rope_factors(rules.arch, config).items():
            writer.add_tensor(name, factors)

        def pieces(done: int, weight: _Weight) -> Iterator[NDArray[np.uint8]]:
            yield from weight.load()
            if progress is not None:
                progress(done, len(weights))

        for done, (name, weight) in enumerate(weights.items(), 1):
            load = partial(pieces, done, weight)
            writer.add_tensor(name, load, weight.type, shape=weight.shape)
        writer.write()
    return tuple(notes)


def _has_logits(config: Mapping[str, Any]) -> bool:
    names = config.get("architectures") or [""]
    return str(names[0]).endswith(("ForCausalLM", "LMHeadModel"))


def _weight(
    file: SafetensorsFile,
    source: str,
    name: str,
    rules: Rules,
    config: Mapping[str, Any],
    dtype: FloatFormat,
) -> _Weight:
    """One tensor's plan: its type and shape now, GGUF's changes to its values when loaded."""
    info = file.tensors[source]
    if info.dtype not in FLOATS:
        raise UnsupportedError(
            f"tensor {source} is {info.dtype}; the converter reads {', '.join(FLOATS)} "
            "(quantized checkpoints: convert the original instead)"
        )
    found, moved_as = FLOATS[info.dtype]
    shape = tuple(info.shape)
    if len(shape) == 1 or re.search(ALWAYS_F32, name):
        wanted = GGMLType.F32
    else:
        wanted = found if dtype == "auto" else GGMLType[dtype.upper()]
    if rules.change is not None:  # what it makes of the shape, without reading anything
        shape = rules.change(name, np.broadcast_to(np.uint8(0), shape), config).shape
    heads = paired_heads(name, rules, config)

    def load() -> Iterator[NDArray[np.uint8]]:
        values = file.data(source).view(moved_as).reshape(info.shape)
        if rules.change is not None:
            values = rules.change(name, values, config)
        if heads:
            values = adjacent_pairs(values, heads)
        if len(shape) == 1 and rules.norm_offset and "norm" in name:
            values = as_float32(values, found) + np.float32(rules.norm_offset)
            yield values.reshape(-1).view(np.uint8)
        else:
            yield encoded(values, found, wanted)

    return _Weight(type=wanted, shape=shape, load=load)


def paired_heads(name: str, rules: Rules, config: Mapping[str, Any]) -> int:
    """How many heads of the tensor GGUF calls `name` have their rows reordered; 0: none."""
    if not rules.permute or not re.search(r"\.attn_[qk]\.", name):
        return 0
    heads = int(need(config, "num_attention_heads"))
    return config.get("num_key_value_heads") or heads if ".attn_k." in name else heads


def _packed(
    files: Mapping[str, SafetensorsFile],
    module: str,
    packing: packed4.Packing,
    name: str,
    rules: Rules,
    config: Mapping[str, Any],
    dtype: FloatFormat,
) -> _Weight:
    """The plan of a weight that GPTQ or AWQ packed."""

    def array(part: str) -> NDArray[Any] | None:
        file = files.get(part)
        if file is None:
            return None
        return file.dequantize(part) if part.endswith(".scales") else file.array(part)

    packed = packed4.unpack(module, packing, array)
    if dtype == "auto" and not packed.ordered:
        raise UnsupportedError(
            f"{module} has its inputs in the order of their activations (desc_act): neighbours "
            "belong to different groups, and a block has one scale for 32 of them; "
            f"{packed4.OTHERWISE}"
        )
    wanted = packed.type if dtype == "auto" else GGMLType[dtype.upper()]
    heads = paired_heads(name, rules, config)
    order = _row_order(name, packed.shape[0], rules, config)
    if order is None:
        raise UnsupportedError(
            f"{packing.method.upper()} weights of {rules.arch} are not converted: its checkpoints "
            "have the inputs as rows; take the original checkpoint"
        )

    def load() -> Iterator[NDArray[np.uint8]]:
        rows = packed.blocks() if dtype == "auto" else packed.values()
        if rules.change is not None:
            rows = rows[order]
        if heads:
            rows = adjacent_pairs(rows, heads)
        if dtype == "auto":
            yield np.ascontiguousarray(rows).reshape(-1).view(np.uint8)
        else:
            yield encoded(rows, GGMLType.F32, wanted)

    return _Weight(type=wanted, shape=packed.shape, load=load)


def _row_order(
    name: str, count: int, rules: Rules, config: Mapping[str, Any]
) -> NDArray[np.int64] | None:
    """Which row of the checkpoint each of GGUF's is; None where the change is not one of rows,
    which is all that can be done to blocks."""
    order = np.arange(count)
    if rules.change is None:
        return order
    two = np.broadcast_to(order[:, None], (count, 2))  # columns, so that a transposition shows
    changed = rules.change(name, two, config)
    return changed[:, 0] if changed.shape == two.shape else None


def _packed_notes(
    weights: Mapping[str, _Weight], packing: packed4.Packing | None, dtype: FloatFormat
) -> list[str]:
    if packing is None:
        return []
    made = [w.type.name for w in weights.values() if w.type.is_quantized]
    method = packing.method.upper()
    if dtype != "auto":
        return [f"the {method} weights are decoded and written as {dtype.upper()}"]
    counts = ", ".join(f"{made.count(kind)} as {kind}" for kind in sorted(set(made)))
    return [f"{len(made)} {method} weights are written value for value ({counts})"]


def _joined(name: str, parts: Mapping[int, _Weight]) -> _Weight:
    """The parts of a tensor, one below the other; experts one behind the other."""
    if sorted(parts) != list(range(len(parts))):
        raise FormatError(f"of GGUF's {name} the checkpoint has the parts {sorted(parts)} alone")
    first, experts = parts[0], name.endswith("_exps.weight") and len(parts[0].shape) == 2
    if len(parts) == 1 and not experts:
        return first
    ordered = [parts[i] for i in range(len(parts))]
    if len({(w.type, w.shape[0 if experts else 1 :]) for w in ordered}) != 1:
        raise FormatError(f"the parts of GGUF's {name} differ in type or shape")

    def load() -> Iterator[NDArray[np.uint8]]:
        for weight in ordered:
            yield from weight.load()

    rows = sum(w.shape[0] for w in ordered)
    shape = (len(ordered), *first.shape) if experts else (rows, *first.shape[1:])
    return _Weight(type=first.type, shape=shape, load=load)


def _together(
    file: SafetensorsFile, source: str, rules: Rules, dtype: FloatFormat
) -> Iterator[tuple[str, _Weight]]:
    """What becomes of a tensor that holds all experts' weights (`convert_experts`)."""
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", source)
    if match is None:
        return
    for split in rules.together.get(match[2], ()):
        read = split.plan(file, source)
        wanted = read.type
        if len(read.shape) == 1 or split.name.endswith(".bias"):
            wanted = GGMLType.F32
        elif read.type in FILE_TYPE and dtype != "auto":
            wanted = GGMLType[dtype.upper()]
        load = partial(_split_load, read, wanted)
        name = f"blk.{int(match[1])}.{split.name}"
        yield name, _Weight(type=wanted, shape=read.shape, load=load)


def _split_load(read: Planned, wanted: GGMLType) -> Iterator[NDArray[np.uint8]]:
    for values in read.load():
        yield encoded(values, read.type, wanted)


def adjacent_pairs(values: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows reordered within each head so that rotated pairs (i, i + E/2) become (2i, 2i+1)."""
    rows = values.shape[0]
    if rows % (2 * heads):
        raise FormatError(f"{rows} rows do not divide into pairs of {heads} heads")
    halves = values.reshape(heads, 2, rows // heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def encoded(values: NDArray[Any], found: GGMLType, wanted: GGMLType) -> NDArray[np.uint8]:
    """Elements of one float type as the bytes of another."""
    if found is not wanted:
        values = as_float32(values, found)
        if wanted is GGMLType.F16:
            with np.errstate(over="ignore"):
                values = values.astype("<f2")
            if not np.all(np.isfinite(values)):
                raise FormatError("a weight is too large for f16; choose bf16 or f32")
        elif wanted is GGMLType.BF16:
            bits = values.view(np.uint32)
            rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # to nearest, ties to even
            values = rounded.astype("<u2")
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)


def as_float32(values: NDArray[Any], type_: GGMLType) -> NDArray[np.float32]:
    """Elements of a float type, as they are moved, as float32."""
    if type_ is GGMLType.BF16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32, copy=False)
