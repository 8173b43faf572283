"""GGUF metadata as a config.json, the way back of `convert_config`.

The way back is checked by the way there: what is written here is turned into metadata again and
compared with the file, key by key. A key that does not come back the same, or that no
config.json of the architecture could say, is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from insula.errors import FormatError, UnsupportedError
from insula.models import convert_config, export_layernorm, gemma2, gemma3, smollm3
from insula.models.export_ways import Way

#: config.json -> GGUF, the numbers that every architecture with RMS norms states.
_NUMBERS = {
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
_GRANITE = {
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "attention_multiplier": "attention.scale",
    "logits_scaling": "logit_scale",
}
#: What `export_pooling` writes into other files, or into labels.
_POOLING = ("pooling_type", "pooling.", "classifier.")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a config.json says that is not in the metadata but in the tensors.

    shapes: of all tensors. rotary: the tensors of rotary factors, by name without ".weight".
    """

    shapes: Mapping[str, tuple[int, ...]]
    rotary: Mapping[str, NDArray[np.float32]]

    @property
    def tied(self) -> bool:
        """Whether the output is the embedding."""
        return "output.weight" not in self.shapes


class Said:
    """An architecture's keys of a file's metadata, read through checks."""

    def __init__(self, meta: Mapping[str, Any], arch: str) -> None:
        self.prefix = f"{arch}."
        self.own = {
            k.removeprefix(self.prefix): v for k, v in meta.items() if k.startswith(self.prefix)
        }

    def number(self, key: str, default: float | None = None) -> Any:
        """The number above 0 at a key. Raises FormatError."""
        value = plain(self.own.get(key, default))
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise FormatError(
                f"{self.prefix}{key} is {str(value)[:60]}; one number above 0 is needed, the same "
                "for all layers"
            )
        return value


def config(meta: Mapping[str, Any], way: Way, facts: Facts) -> dict[str, Any]:
    """A config.json for a file. Raises UnsupportedError, FormatError."""
    arch = way.rules.arch
    said = Said(meta, arch)
    found: dict[str, Any] = {"architectures": [way.name], "model_type": way.kind}
    found |= {"vocab_size": facts.shapes["token_embd.weight"][0], "tie_word_embeddings": facts.tied}
    found |= way.biased(facts.shapes)
    if way.layer_norms:
        found |= export_layernorm.config(arch, said, facts.shapes)
    else:
        found |= _with_rms_norms(arch, said, found)
    if "rope.dimension_count" in said.own or "rope.freq_base" in said.own:
        theta = 1000.0 if arch == "nomic-bert" else 10000.0
        found["rope_theta"] = said.number("rope.freq_base", theta)
        scaling = _scaling(arch, said.own, found, facts.rotary)
        if scaling:
            found["rope_scaling"] = scaling
    _check(way, said.own, found)
    return found


def _with_rms_norms(arch: str, said: Said, known: Mapping[str, Any]) -> dict[str, Any]:
    own, number = said.own, said.number
    found: dict[str, Any] = {key: number(gguf_key) for key, gguf_key in _NUMBERS.items()}
    heads = found["num_attention_heads"]
    found["num_key_value_heads"] = number("attention.head_count_kv", heads)
    found["head_dim"] = number("attention.key_length", found["hidden_size"] // heads)
    if arch in ("gemma2", "gemma3"):
        return found | _gemma(arch, own, found)
    found["hidden_act"] = "silu"
    match arch:
        case "llama" if own.get("expert_count"):
            found |= _experts(said, "num_local_experts")
            found["sliding_window"] = None
        case "qwen3moe":
            found |= _experts(said, "num_experts")
            found["moe_intermediate_size"] = number("expert_feed_forward_length")
            found |= {"norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []}
        case "gpt-oss":
            found |= _experts(said, "num_local_experts")
            found["sliding_window"] = number("attention.sliding_window")
        case "granite":
            found |= {key: plain(own[ours]) for key, ours in _GRANITE.items() if ours in own}
        case "smollm3":
            layers = range(found["num_hidden_layers"])
            found["no_rope_layer_interval"] = smollm3.PERIOD
            found["no_rope_layers"] = [int((i + 1) % smollm3.PERIOD != 0) for i in layers]
        case "phi3":
            found["sliding_window"] = plain(own.get("attention.sliding_window", 0)) or None
            part = number("rope.dimension_count", found["head_dim"]) / found["head_dim"]
            if part != 1:
                found["partial_rotary_factor"] = part
            original = own.get("rope.scaling.original_context_length")
            found["original_max_position_embeddings"] = plain(
                found["max_position_embeddings"] if original is None else original
            )
    return found


def _experts(said: Said, count: str) -> dict[str, Any]:
    return {
        count: said.number("expert_count"),
        "num_experts_per_tok": said.number("expert_used_count"),
    }


def plain(value: Any) -> Any:
    """A metadata value for JSON: a float32 as its shortest decimal."""
    if isinstance(value, float | np.floating):
        return float(str(np.float32(value)))
    return value.item() if isinstance(value, np.generic) else value


def _gemma(arch: str, own: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    added: dict[str, Any] = {
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": plain(own.get("attention.sliding_window")),
    }
    large = gemma2.LAYERS_OF_27B if arch == "gemma2" else gemma3.LAYERS_OF_27B
    is_27b = found["num_hidden_layers"] == large
    usual = found["hidden_size"] // found["num_attention_heads"] if is_27b else found["head_dim"]
    scale = own.get("attention.scale")
    # The scalar is a whole number in every checkpoint; the file has its root's inverse.
    added["query_pre_attn_scalar"] = usual if scale is None else _scalar(float(scale))
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if arch == "gemma2" or key in own:
            added[key] = plain(own.get(key))
    if arch == "gemma3":
        added["rope_local_base_freq"] = plain(own.get("rope.freq_base_swa", 10000.0))
        added["sliding_window_pattern"] = 6
    return added


def _scalar(scale: float) -> float:
    exact = scale**-2
    return round(exact) if np.float32(round(exact) ** -0.5) == np.float32(scale) else exact


def _scaling(
    arch: str,
    own: Mapping[str, Any],
    found: Mapping[str, Any],
    rotary: Mapping[str, NDArray[np.float32]],
) -> dict[str, Any]:
    """rope_scaling, {} if there is none."""
    if "rope_freqs" in rotary:
        return _llama3(arch, found, rotary["rope_freqs"])
    kind = own.get("rope.scaling.type", "longrope" if rotary else "none")
    match kind:
        case "none":
            return {}
        case "linear":
            return {"rope_type": "linear", "factor": plain(own.get("rope.scaling.factor"))}
        case "yarn":
            return _yarn(arch, own)
        case "longrope" if arch == "phi3" and len(rotary) == 2:
            return _longrope(own, found, rotary)
    raise UnsupportedError(f"rotary scaling {kind!r} has no counterpart in config.json here")


def _yarn(arch: str, own: Mapping[str, Any]) -> dict[str, Any]:
    factor = plain(own.get("rope.scaling.factor"))
    scaling = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": plain(own.get("rope.scaling.original_context_length")),
    }
    for key, ours in (("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")):
        if f"rope.scaling.{ours}" in own:
            scaling[key] = plain(own[f"rope.scaling.{ours}"])
    if "rope.scaling.attn_factor" in own and factor > 1:  # GGUF multiplies, config.json replaces
        usual = 1.0 + 0.1 * math.log(factor)
        scaling["attention_factor"] = float(own["rope.scaling.attn_factor"]) * usual
    return scaling | ({"truncate": False} if arch == "gpt-oss" else {})


def _longrope(
    own: Mapping[str, Any], found: Mapping[str, Any], rotary: Mapping[str, NDArray[np.float32]]
) -> dict[str, Any]:
    scaling: dict[str, Any] = {"rope_type": "longrope"}
    for name in ("long", "short"):
        scaling[f"{name}_factor"] = [plain(v) for v in rotary[f"rope_factors_{name}"].reshape(-1)]
    stated = own.get("rope.scaling.attn_factor")
    usual = convert_config.metadata("phi3", {**found, "rope_scaling": scaling})
    if stated is not None and not _same(stated, usual["rope.scaling.attn_factor"]):
        scaling["attention_factor"] = plain(stated)
    return scaling


def _llama3(arch: str, found: Mapping[str, Any], factors: NDArray[np.float32]) -> dict[str, Any]:
    """The scaling whose factors these are. GGUF keeps the factors and not what they come from, so
    the published settings are tried, with every power of two as the original context."""
    for context in (1 << n for n in range(20, 3, -1)):
        scaling = {
            "rope_type": "llama3",
            "factor": plain(factors.max()),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": context,
        }
        made = convert_config.rope_factors(arch, {**found, "rope_scaling": scaling})
        if np.array_equal(made["rope_freqs.weight"], factors.reshape(-1)):
            return scaling
    raise UnsupportedError(
        "rope_freqs.weight holds factors that no llama3 scaling known here gives, and config.json "
        "cannot say them otherwise"
    )


def _check(way: Way, own: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Raise unless the way there gives the file's own metadata again."""
    arch = way.rules.arch
    again = way.rules.metadata(arch, found)
    for key, value in own.items():
        if (key == "rope.scaling.type" and value == "none") or key.startswith(_POOLING):
            continue
        if key == "use_parallel_residual":  # the tensors say it: `models/stablelm.py`
            continue
        if key not in again:
            raise UnsupportedError(
                f"{arch}.{key} is {str(value)[:60]}, which config.json cannot say for this "
                "architecture; leaving it out could change the model's answers"
            )
        if not _same(value, again[key]):
            raise UnsupportedError(
                f"{arch}.{key} is {str(value)[:60]} and would come back as {again[key]}; a "
                "config.json that means the same cannot be written"
            )


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, str) or isinstance(b, str):
        return bool(a == b)
    if np.size(a) != 1 or np.size(b) != 1:
        return False
    return bool(np.float32(a) == np.float32(b)) or math.isclose(a, b, rel_tol=1e-7)
