"""A Hugging Face folder (config.json, safetensors, tokenizer) becomes a GGUF file.

Owns what a checkpoint's names are called in GGUF, per architecture, and the three changes that
GGUF makes to weights: the query and key rows of llama and its kin are permuted so that rotated
pairs are adjacent, Gemma's norms get their +1, vectors are stored as F32. GPTQ and AWQ weights
become blocks that give the same values (`packed4`). Nothing is guessed: a
tensor without a name here, a config value that would change the maths and has no GGUF key
(`convert_config`), or an unknown pre-tokenizer (`convert_tokenizer`) is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from insula.errors import ConfigError, FormatError, UnsupportedError
from insula.formats.ggml_types import GGMLType
from insula.formats.gguf_writer import GGUFWriter
from insula.formats.safetensors import SafetensorsFile
from insula.models import convert_config, packed4
from insula.models.convert_tokenizer import tokenizer_metadata
from insula.models.folder import read_json, weight_files

FloatFormat = Literal["auto", "f32", "f16", "bf16"]

#: safetensors dtype -> (GGUF type, the NumPy type its elements are moved as)
FLOATS: Mapping[str, tuple[GGMLType, np.dtype[Any]]] = MappingProxyType(
    {
        "F32": (GGMLType.F32, np.dtype("<f4")),
        "F16": (GGMLType.F16, np.dtype("<f2")),
        "BF16": (GGMLType.BF16, np.dtype("<u2")),
    }
)
FILE_TYPE = {
    GGMLType.F32: 0,
    GGMLType.F16: 1,
    GGMLType.BF16: 32,
    GGMLType.Q4_0: 2,
    GGMLType.Q5_0: 8,
}

BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
HEAD_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}


@dataclass(frozen=True, kw_only=True)
class Rules:
    """One architecture: its GGUF name, the names inside a layer, and what happens to weights.

    permute: query and key rows to adjacent pairs. norm_offset: added to every norm weight.
    """

    arch: str
    block: Mapping[str, str]
    permute: bool = False
    norm_offset: float = 0.0


PRE_NORM = {**BLOCK, "post_attention_layernorm": "ffn_norm"}
POST_NORMS = {
    "post_attention_layernorm": "post_attention_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
GEMMA_BLOCK = {**BLOCK, **POST_NORMS, "pre_feedforward_layernorm": "ffn_norm"}

LLAMA = Rules(arch="llama", block=PRE_NORM, permute=True)
QWEN2 = Rules(arch="qwen2", block=PRE_NORM)
QWEN3 = Rules(arch="qwen3", block={**PRE_NORM, **HEAD_NORMS})
GEMMA2 = Rules(arch="gemma2", block=GEMMA_BLOCK, norm_offset=1.0)
GEMMA3 = Rules(arch="gemma3", block={**GEMMA_BLOCK, **HEAD_NORMS}, norm_offset=1.0)
GRANITE = Rules(arch="granite", block=PRE_NORM, permute=True)
SMOLLM3 = Rules(arch="smollm3", block=PRE_NORM, permute=True)
OLMO2 = Rules(arch="olmo2", block={**BLOCK, **HEAD_NORMS, **POST_NORMS})
PHI3 = Rules(
    arch="phi3",
    block={**PRE_NORM, "self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up"},
)

#: config.json's architectures[0] -> rules
RULES: Mapping[str, Rules] = MappingProxyType(
    {
        "LlamaForCausalLM": LLAMA,
        "MistralForCausalLM": LLAMA,
        "Qwen2ForCausalLM": QWEN2,
        "Qwen3ForCausalLM": QWEN3,
        "Gemma2ForCausalLM": GEMMA2,
        "Gemma3ForCausalLM": GEMMA3,
        "Gemma3ForConditionalGeneration": GEMMA3,
        "GraniteForCausalLM": GRANITE,
        "SmolLM3ForCausalLM": SMOLLM3,
        "Olmo2ForCausalLM": OLMO2,
        "Phi3ForCausalLM": PHI3,
    }
)


@dataclass(frozen=True, kw_only=True)
class _Weight:
    """One tensor on its way: what it will be, and how to get its bytes when they are written."""

    type: GGMLType
    shape: tuple[int, ...]
    load: Callable[[], NDArray[np.uint8]]


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
    rules = _rules(config)
    notes: list[str] = []
    if "text_config" in config:
        notes.append("the vision half of the model was left out")
        config = {"quantization_config": config.get("quantization_config")} | config["text_config"]
    packing = packed4.packing(config)

    with ExitStack() as stack:
        weights: dict[str, _Weight] = {}
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
                name = gguf_name(f"{module}.weight", rules, config)
                if part == "qweight" and name is not None:
                    weights[name] = _packed(files, module, packing, name, rules, config, dtype)
                continue
            name = gguf_name(source, rules, config)
            if name is not None:
                weights[name] = _weight(file, source, name, rules, config, dtype)
        notes.extend(_packed_notes(weights, packing, dtype))
        embedding = weights.get("token_embd.weight")
        if embedding is None:
            raise FormatError(f"{folder} has no embedding (model.embed_tokens.weight)")
        tokenizer, remarks = tokenizer_metadata(folder, config, n_vocab=embedding.shape[0])
        notes.extend(remarks)

        writer = GGUFWriter(out, overwrite=overwrite)
        writer.add("general.architecture", rules.arch)
        writer.add("general.type", "model")
        writer.add("general.name", folder.resolve().name)
        blocks = {w.type for w in weights.values() if w.type.is_quantized}
        writer.add("general.file_type", FILE_TYPE[max(blocks, default=embedding.type)])
        if blocks:
            writer.add("general.quantization_version", 2)
        model = convert_config.metadata(rules.arch, config)
        for key, value in model.items():
            writer.add(f"{rules.arch}.{key}", value)
        if rules in (GEMMA2, GEMMA3) and "attention.scale" in model:
            notes.append("attention.scale, which this model needs, is not read by llama.cpp")
        for key, value in tokenizer.items():
            writer.add(f"tokenizer.{key}", value)
        factors = convert_config.rope_factors(rules.arch, config)
        if factors is not None:
            writer.add_tensor("rope_freqs.weight", factors)

        def pieces(done: int, weight: _Weight) -> Iterator[NDArray[np.uint8]]:
            yield weight.load()
            if progress is not None:
                progress(done, len(weights))

        for done, (name, weight) in enumerate(weights.items(), 1):
            load = partial(pieces, done, weight)
            writer.add_tensor(name, load, weight.type, shape=weight.shape)
        writer.write()
    return tuple(notes)


def _rules(config: Mapping[str, Any]) -> Rules:
    names = config.get("architectures") or [None]
    rules = RULES.get(names[0]) if isinstance(names, list) else None
    if rules is None:
        raise UnsupportedError(
            f"config.json names the architecture {names!r}; the converter knows "
            f"{', '.join(sorted(RULES))}"
        )
    return rules


def gguf_name(source: str, rules: Rules, config: Mapping[str, Any]) -> str | None:
    """What GGUF calls a checkpoint's tensor; None for what GGUF leaves out."""
    if re.match(r"(model\.)?(vision_tower|multi_modal_projector)\.", source):
        return None
    if source.endswith("rotary_emb.inv_freq"):
        return None  # follows from the metadata
    name = re.sub(r"^(language_model\.)?(model\.)?(language_model\.)?", "", source)
    if name == "lm_head.weight":
        return None if config.get("tie_word_embeddings") else "output.weight"
    if name == "embed_tokens.weight":
        return "token_embd.weight"
    if name == "norm.weight":
        return "output_norm.weight"
    match = re.fullmatch(r"layers\.(\d+)\.(.+)\.(weight|bias)", name)
    if match and match[2] in rules.block:
        return f"blk.{int(match[1])}.{rules.block[match[2]]}.{match[3]}"
    raise UnsupportedError(
        f"tensor {source} has no counterpart in GGUF's {rules.arch}; leaving it out could "
        "change the model's answers"
    )


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
    if len(shape) == 1:
        wanted = GGMLType.F32
    else:
        wanted = found if dtype == "auto" else GGMLType[dtype.upper()]
    heads = paired_heads(name, rules, config)

    def load() -> NDArray[np.uint8]:
        values = file.data(source).view(moved_as).reshape(shape)
        if heads:
            values = adjacent_pairs(values, heads)
        if len(shape) == 1 and rules.norm_offset and "norm" in name:
            values = as_float32(values, found) + np.float32(rules.norm_offset)
            return values.reshape(-1).view(np.uint8)
        return encoded(values, found, wanted)

    return _Weight(type=wanted, shape=shape, load=load)


def paired_heads(name: str, rules: Rules, config: Mapping[str, Any]) -> int:
    """How many heads of the tensor GGUF calls `name` have their rows reordered; 0: none."""
    if not rules.permute or not re.search(r"\.attn_[qk]\.", name):
        return 0
    heads: int = config["num_attention_heads"]
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

    def load() -> NDArray[np.uint8]:
        rows = packed.blocks() if dtype == "auto" else packed.values()
        if heads:
            rows = adjacent_pairs(rows, heads)
        if dtype == "auto":
            return np.ascontiguousarray(rows).reshape(-1).view(np.uint8)
        return encoded(rows, GGMLType.F32, wanted)

    return _Weight(type=wanted, shape=packed.shape, load=load)


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
