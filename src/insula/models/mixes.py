"""Which tensor gets which type when a model is quantized.

Owns: the names of the target formats and the rules of llama.cpp's mixes, so that our Q4_K_M is
theirs, tensor for tensor (llama-quant.cpp, MIT, github.com/ggml-org/llama.cpp).
Refuses: a format name it does not know. Decides from names and shapes; reads no data.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from insula.errors import ConfigError
from insula.formats.ggml_types import GGMLType as T
from insula.formats.gguf import TensorInfo


@dataclass(frozen=True, kw_only=True)
class Target:
    """A format to quantize to: its name, the type most tensors get, general.file_type."""

    name: str
    base: T
    file_type: int


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target(name="F32", base=T.F32, file_type=0),
        Target(name="F16", base=T.F16, file_type=1),
        Target(name="BF16", base=T.BF16, file_type=32),
        Target(name="Q4_0", base=T.Q4_0, file_type=2),
        Target(name="Q4_1", base=T.Q4_1, file_type=3),
        Target(name="Q5_0", base=T.Q5_0, file_type=8),
        Target(name="Q5_1", base=T.Q5_1, file_type=9),
        Target(name="Q8_0", base=T.Q8_0, file_type=7),
        Target(name="Q2_K", base=T.Q2_K, file_type=10),
        Target(name="Q2_K_S", base=T.Q2_K, file_type=21),
        Target(name="Q3_K_S", base=T.Q3_K, file_type=11),
        Target(name="Q3_K_M", base=T.Q3_K, file_type=12),
        Target(name="Q3_K_L", base=T.Q3_K, file_type=13),
        Target(name="Q4_K_S", base=T.Q4_K, file_type=14),
        Target(name="Q4_K_M", base=T.Q4_K, file_type=15),
        Target(name="Q5_K_S", base=T.Q5_K, file_type=16),
        Target(name="Q5_K_M", base=T.Q5_K, file_type=17),
        Target(name="Q6_K", base=T.Q6_K, file_type=18),
        Target(name="IQ4_NL", base=T.IQ4_NL, file_type=25),
        Target(name="IQ4_XS", base=T.IQ4_XS, file_type=30),
        # llama.cpp's: the experts, and Q8_0 for all else. MXFP4 is ours: every matrix but the
        # output, for models without experts; llama.cpp has no other number for it.
        Target(name="MXFP4_MOE", base=T.MXFP4, file_type=38),
        Target(name="MXFP4", base=T.MXFP4, file_type=38),
    )
}

#: llama.cpp's short names.
ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}

#: What rows that do not divide into super-blocks of 256 get instead.
FALLBACKS = {
    T.Q2_K: T.Q4_0,
    T.Q3_K: T.Q4_0,
    T.Q4_K: T.Q5_0,
    T.Q5_K: T.Q5_1,
    T.Q6_K: T.Q8_0,
    T.IQ4_XS: T.IQ4_NL,
}

# Weights that are small, or that the graph needs in full: left as they are.
_KEPT = re.compile(
    r"_norm\.weight$|ffn_gate_inp\.weight$|altup|laurel|per_layer_model_proj"
    r"|^position_embd\.weight$|^token_types\.weight$|ssm_conv1d|shortconv\.conv\.weight$"
    r"|time_mix_(first|w0|w1|w2|v0|v1|v2|a0|a1|a2|g1|g2|decay_w1|decay_w2|lerp_fused)\.weight$"
    r"|attn_rel_b\.weight$|\.position_embd|sam\.pos_embd|sam\.neck\.|sam\.net_|\.rel_pos"
)
_LAYER = re.compile(r"blk\.(\d+)\.")


def target(name: str) -> Target:
    """The format called `name` in any case; ConfigError lists the ones there are."""
    key = name.upper().replace("-", "_")
    key = ALIASES.get(key, key)
    if key not in TARGETS:
        raise ConfigError(f"no format {name!r}; there are {', '.join(TARGETS)}")
    return TARGETS[key]


def is_quantized(info: TensorInfo) -> bool:
    """Whether llama.cpp would quantize this tensor: a weight matrix, and not one it keeps."""
    return (
        info.name.endswith("weight")
        and len(info.shape) >= 2
        and not _KEPT.search(info.name)
        and info.type not in (T.I8, T.I16, T.I32, T.I64, T.F64)
    )


class Mix:
    """The types of one model's tensors in one format."""

    def __init__(
        self,
        tensors: Mapping[str, TensorInfo],
        metadata: Mapping[str, object],
        wanted: Target,
        *,
        pure: bool = False,
        has_importance: bool = False,
    ) -> None:
        self._wanted = wanted
        self._pure = pure or wanted.base in (T.F32, T.F16, T.BF16)
        self._has_importance = has_importance
        arch = metadata.get("general.architecture")
        self._arch = arch if isinstance(arch, str) else ""
        self._has_output = "output.weight" in tensors
        self._n_expert = self._number(metadata, "expert_count")
        self._n_layer = self._number(metadata, "block_count")
        heads = metadata.get(f"{self._arch}.attention.head_count")
        kv_heads = metadata.get(f"{self._arch}.attention.head_count_kv", heads)
        self._many_heads = (
            isinstance(heads, int) and isinstance(kv_heads, int) and heads >= 4 * kv_heads > 0
        )
        # llama.cpp's name for the 80-layer Llama with grouped heads.
        self._is_70b = self._arch == "llama" and self._n_layer == 80 and heads != kv_heads
        # Counted as llama.cpp counts, which walks the tensors by layer and then by name.
        counted = ("attn_v.weight", "attn_qkv.weight", "attn_kv_b.weight")
        self._n_values = sum(any(part in name for part in counted) for name in tensors)
        self._value_rank = self._ranks(n for n in tensors if "attn_v.weight" in n)
        self._down_rank = self._ranks(
            info.name for info in tensors.values() if "ffn_down" in info.name and is_quantized(info)
        )

    @property
    def base(self) -> T:
        """The type most tensors get."""
        return self._wanted.base

    def falls_back(self, info: TensorInfo) -> bool:
        """Whether a tensor's rows do not divide into blocks of the type that the mix wants."""
        kind = self._wanted.base if self._pure else self._mixed(info)
        return info.shape[-1] % kind.block_size != 0

    def type_of(self, info: TensorInfo) -> T:
        """The type that a tensor to be quantized gets."""
        kind = self._wanted.base if self._pure else self._mixed(info)
        row = info.shape[-1]
        if row % kind.block_size and kind in FALLBACKS:
            kind = FALLBACKS[kind]
        return T.F16 if row % kind.block_size else kind

    def _number(self, metadata: Mapping[str, object], key: str) -> int:
        value = metadata.get(f"{self._arch}.{key}")
        return value if isinstance(value, int) else 0

    def _ranks(self, names: Iterable[str]) -> dict[str, int]:
        ordered = sorted(names, key=lambda name: (self._layer(name), name))
        return {name: rank for rank, name in enumerate(ordered)}

    def _layer(self, name: str) -> int:
        found = _LAYER.search(name)
        return int(found.group(1)) if found else -1

    def _mixed(self, info: TensorInfo) -> T:
        name, base = info.name, self._wanted.base
        tied = not self._has_output and name == "token_embd.weight"
        if name == "output.weight" or tied:
            # The last product decides the token: it gets more bits in every format.
            if self._arch == "falcon" or info.shape[-1] % base.block_size:
                return T.Q8_0
            return T.Q8_0 if base in (T.Q8_0, T.MXFP4) else T.Q6_K
        if base is T.MXFP4:
            experts = len(info.shape) > 2 and info.shape[0] > 1
            return T.MXFP4 if experts or self._wanted.name == "MXFP4" else T.Q8_0
        if "attn_v.weight" in name:
            return self._attention_value(name)
        if "attn_k.weight" in name:
            return T.Q8_0 if self._n_expert == 8 else base
        if "ffn_down" in name:
            return self._feed_forward_down(name)
        if "attn_output.weight" in name:
            return self._attention_output()
        if "attn_qkv.weight" in name:
            more = {"Q3_K_M": T.Q4_K, "Q3_K_L": T.Q4_K, "Q4_K_M": T.Q5_K, "Q5_K_M": T.Q6_K}
            return more.get(self._wanted.name, base)
        return base

    def _attention_output(self) -> T:
        name, base = self._wanted.name, self._wanted.base
        if self._arch == "falcon":
            return T.Q4_K if name == "Q3_K_L" else base
        if self._n_expert == 8:
            few = {"Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M", "IQ4_NL", "IQ4_XS"}
            return T.Q5_K if name in few else base
        return {"Q2_K": T.Q3_K, "Q3_K_M": T.Q4_K, "Q3_K_L": T.Q5_K}.get(name, base)

    def _attention_value(self, name: str) -> T:
        kind, rank = self._wanted.base, self._value_rank[name]
        if self._n_expert == 8:
            return T.Q8_0  # 128 MB more in a Mixtral
        match self._wanted.name:
            case "Q2_K":
                kind = T.Q4_K if self._many_heads else T.Q3_K
            case "Q2_K_S" if self._many_heads:
                kind = T.Q4_K
            case "Q3_K_M":
                kind = T.Q5_K if rank < 2 else T.Q4_K
            case "Q3_K_L":
                kind = T.Q5_K
            case "IQ4_NL" | "IQ4_XS" if self._many_heads:
                kind = T.Q5_K
            case "Q4_K_M" | "Q5_K_M" if _more_bits(rank, self._n_values):
                kind = T.Q6_K
            case "Q4_K_S" if rank < 4:
                kind = T.Q5_K
        return T.Q5_K if self._is_70b and kind in (T.Q3_K, T.Q4_K) else kind

    def _feed_forward_down(self, name: str) -> T:
        base, n = self._wanted.base, self._n_layer
        rank = self._layer(name) if self._n_expert > 1 else self._down_rank[name]
        falcon = self._arch == "falcon"
        match self._wanted.name:
            case "Q2_K":
                return T.Q3_K
            case "Q2_K_S" if rank < n // 8:
                return T.Q4_K
            case "Q3_K_M" if rank < n // 16:
                return T.Q5_K
            case "Q3_K_M":
                return T.Q4_K if not falcon or _more_bits(rank, n) else base
            case "Q3_K_L":
                return T.Q4_K if falcon else T.Q5_K
            case "IQ4_NL" | "IQ4_XS" if rank < n // 8 and not self._has_importance:
                return T.Q5_K
            case "Q4_K_M" if falcon:
                return T.Q6_K if rank < n // 16 else T.Q5_K if _more_bits(rank, n) else base
            case "Q4_K_M" | "Q5_K_M":
                return T.Q6_K if _more_bits(rank, n) else base
            case "Q4_K_S" if not falcon and rank < n // 8:
                return T.Q5_K
            case "Q4_0" | "Q5_0" if self._has_importance and rank < n // 8:
                return T.Q4_1 if base is T.Q4_0 else T.Q5_1
        return base


def _more_bits(rank: int, n: int) -> bool:
    """llama.cpp's choice of layers: the first and last eighth, and every third between."""
    return rank < n // 8 or rank >= 7 * n // 8 or (rank - n // 8) % 3 == 2
