"""A Hugging Face folder (config.json, safetensors, tokenizer) becomes a GGUF file.

Owns what a checkpoint's names are called in GGUF, per architecture, and the three changes that
GGUF makes to weights: the query and key rows of llama and its kin are permuted so that rotated
pairs are adjacent, Gemma's norms get their +1, vectors are stored as F32. Nothing is guessed: a
tensor without a name here, a config value that would change the maths and has no GGUF key
(`convert_config`), or an unknown pre-tokenizer (`convert_tokenizer`) is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
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
from insula.models import convert_config, convert_experts
from insula.models.convert_experts import Planned, Split
from insula.models.convert_tokenizer import tokenizer_metadata
from insula.models.folder import FLOATS, read_json, weight_files

FloatFormat = Literal["auto", "f32", "f16", "bf16"]

FILE_TYPE = {GGMLType.F32: 0, GGMLType.F16: 1, GGMLType.BF16: 32}

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
    experts: names within an expert; together: tensors of all experts (convert_experts).
    """

    arch: str
    block: Mapping[str, str]
    permute: bool = False
    norm_offset: float = 0.0
    experts: Mapping[str, str] = field(default_factory=dict)
    together: Mapping[str, tuple[Split, ...]] = field(default_factory=dict)


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

MIXTRAL = Rules(
    arch="llama",
    block={**PRE_NORM, "block_sparse_moe.gate": "ffn_gate_inp"},
    permute=True,
    experts={"w1": "ffn_gate_exps", "w2": "ffn_down_exps", "w3": "ffn_up_exps"},
)
QWEN3MOE = Rules(
    arch="qwen3moe",
    block={**PRE_NORM, **HEAD_NORMS, "mlp.gate": "ffn_gate_inp"},
    experts={
        "gate_proj": "ffn_gate_exps",
        "up_proj": "ffn_up_exps",
        "down_proj": "ffn_down_exps",
    },
)
GPT_OSS = Rules(
    arch="gpt-oss",
    block={
        **BLOCK,
        "post_attention_layernorm": "post_attention_norm",
        "mlp.router": "ffn_gate_inp",
    },
    together=convert_experts.GPT_OSS,
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
        "MixtralForCausalLM": MIXTRAL,
        "Qwen3MoeForCausalLM": QWEN3MOE,
        "GptOssForCausalLM": GPT_OSS,
    }
)


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

    dtype: what matrices are stored as; "auto" keeps each tensor's own float type.
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
        config = config["text_config"]

    with ExitStack() as stack:
        weights: dict[str, _Weight] = {}
        experts: dict[str, dict[int, _Weight]] = {}
        for path in weight_files(folder):
            file = stack.enter_context(SafetensorsFile.open(path))
            for source in file.tensors:
                parts = _together(file, source, rules, dtype)
                expert = _expert_name(source, rules)
                if parts is not None:
                    weights |= parts
                elif expert is not None:
                    name, number = expert
                    weight = _weight(file, source, name, rules, config, dtype)
                    experts.setdefault(name, {})[number] = weight
                elif (plain := _gguf_name(source, rules, config)) is not None:
                    weights[plain] = _weight(file, source, plain, rules, config, dtype)
        for name, members in experts.items():
            weights[name] = _stacked(name, members)
        embedding = weights.get("token_embd.weight")
        if embedding is None:
            raise FormatError(f"{folder} has no embedding (model.embed_tokens.weight)")
        tokenizer, remarks = tokenizer_metadata(folder, config, n_vocab=embedding.shape[0])
        notes.extend(remarks)

        writer = GGUFWriter(out, overwrite=overwrite)
        writer.add("general.architecture", rules.arch)
        writer.add("general.type", "model")
        writer.add("general.name", folder.resolve().name)
        writer.add("general.file_type", FILE_TYPE[embedding.type])
        model = convert_config.metadata(rules.arch, config)
        for key, value in model.items():
            writer.add(f"{rules.arch}.{key}", value)
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


def _rules(config: Mapping[str, Any]) -> Rules:
    names = config.get("architectures") or [None]
    rules = RULES.get(names[0]) if isinstance(names, list) else None
    if rules is None:
        raise UnsupportedError(
            f"config.json names the architecture {names!r}; the converter knows "
            f"{', '.join(sorted(RULES))}"
        )
    return rules


def _gguf_name(source: str, rules: Rules, config: Mapping[str, Any]) -> str | None:
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
    heads = 0
    if rules.permute and re.search(r"\.attn_[qk]\.", name):
        heads = config["num_attention_heads"]
        if ".attn_k." in name:
            heads = config.get("num_key_value_heads") or heads

    def load() -> Iterator[NDArray[np.uint8]]:
        values = file.data(source).view(moved_as).reshape(shape)
        if heads:
            values = adjacent_pairs(values, heads)
        if len(shape) == 1 and rules.norm_offset and "norm" in name:
            values = _as_float32(values, found) + np.float32(rules.norm_offset)
            yield values.reshape(-1).view(np.uint8)
        else:
            yield _encoded(values, found, wanted)

    return _Weight(type=wanted, shape=shape, load=load)


def _expert_name(source: str, rules: Rules) -> tuple[str, int] | None:
    """(GGUF's name, number) of a tensor that belongs to one expert; GGUF stacks them."""
    match = re.fullmatch(r"model\.layers\.(\d+)\..+\.experts\.(\d+)\.(\w+)\.weight", source)
    if match is None or match[3] not in rules.experts:
        return None
    return f"blk.{int(match[1])}.{rules.experts[match[3]]}.weight", int(match[2])


def _stacked(name: str, members: Mapping[int, _Weight]) -> _Weight:
    """The tensors of experts 0..n-1 as one; each is loaded when it is written."""
    first = members[min(members)]
    if sorted(members) != list(range(len(members))) or any(
        (m.shape, m.type) != (first.shape, first.type) for m in members.values()
    ):
        raise FormatError(f"{name}: experts are missing, or differ in shape or type")

    def load() -> Iterator[NDArray[np.uint8]]:
        for number in range(len(members)):
            yield from members[number].load()

    return _Weight(type=first.type, shape=(len(members), *first.shape), load=load)


def _together(
    file: SafetensorsFile, source: str, rules: Rules, dtype: FloatFormat
) -> dict[str, _Weight] | None:
    """What becomes of a tensor that holds all experts' weights; None: it is no such tensor."""
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", source)
    if match is None or match[2] not in rules.together:
        return None
    made = {}
    for split in rules.together[match[2]]:
        read = split.plan(file, source)
        wanted = read.type
        if len(read.shape) == 1 or split.name.endswith(".bias"):
            wanted = GGMLType.F32
        elif read.type in FILE_TYPE and dtype != "auto":
            wanted = GGMLType[dtype.upper()]
        made[f"blk.{int(match[1])}.{split.name}"] = _Weight(
            type=wanted, shape=read.shape, load=partial(_split_load, read, wanted)
        )
    return made


def _split_load(read: Planned, wanted: GGMLType) -> Iterator[NDArray[np.uint8]]:
    for values in read.load():
        yield _encoded(values, read.type, wanted)


def adjacent_pairs(values: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows reordered within each head so that rotated pairs (i, i + E/2) become (2i, 2i+1)."""
    rows = values.shape[0]
    if rows % (2 * heads):
        raise FormatError(f"{rows} rows do not divide into pairs of {heads} heads")
    halves = values.reshape(heads, 2, rows // heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def _encoded(values: NDArray[Any], found: GGMLType, wanted: GGMLType) -> NDArray[np.uint8]:
    """Elements of one float type as the bytes of another."""
    if found is not wanted:
        values = _as_float32(values, found)
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


def _as_float32(values: NDArray[Any], type_: GGMLType) -> NDArray[np.float32]:
    if type_ is GGMLType.BF16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32, copy=False)
