"""GGUF metadata as a config.json, the way back of `convert_config`.

The way back is checked by the way there: what is written here is turned into metadata again and
compared with the file, key by key. A key that does not come back the same, or that no
config.json of the architecture could say, is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from insula.errors import FormatError, UnsupportedError
from insula.models import convert_config, gemma2, gemma3, smollm3

#: GGUF architecture -> (config.json's architectures[0], its model_type)
CLASSES: Mapping[str, tuple[str, str]] = {
    "llama": ("LlamaForCausalLM", "llama"),
    "qwen2": ("Qwen2ForCausalLM", "qwen2"),
    "qwen3": ("Qwen3ForCausalLM", "qwen3"),
    "gemma2": ("Gemma2ForCausalLM", "gemma2"),
    "gemma3": ("Gemma3ForCausalLM", "gemma3_text"),
    "granite": ("GraniteForCausalLM", "granite"),
    "smollm3": ("SmolLM3ForCausalLM", "smollm3"),
    "olmo2": ("Olmo2ForCausalLM", "olmo2"),
    "phi3": ("Phi3ForCausalLM", "phi3"),
}

#: config.json -> GGUF, the numbers that every architecture states.
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


def config(
    meta: Mapping[str, Any],
    *,
    n_vocab: int,
    tied: bool,
    biased: tuple[bool, bool],
    factors: NDArray[np.float32] | None,
) -> dict[str, Any]:
    """A config.json for a file's metadata.

    tied: the output is the embedding. biased: attention's four products have biases, and the
    feed-forward's three.
    factors: the rope_freqs tensor, if there is one.
    Raises UnsupportedError, FormatError.
    """
    arch = meta.get("general.architecture")
    if not isinstance(arch, str) or arch not in CLASSES:
        raise UnsupportedError(
            f"the architecture {arch!r} cannot be written as a Hugging Face folder; these can: "
            f"{', '.join(sorted(CLASSES))}"
        )
    prefix = f"{arch}."
    own = {k.removeprefix(prefix): v for k, v in meta.items() if k.startswith(prefix)}
    name, kind = CLASSES[arch]
    found: dict[str, Any] = {"architectures": [name], "model_type": kind}

    def number(key: str, default: float | None = None) -> Any:
        value = plain(own.get(key, default))
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise FormatError(
                f"{prefix}{key} is {str(value)[:60]}; one number above 0 is needed, the same for "
                "all layers"
            )
        return value

    found |= {key: number(gguf_key) for key, gguf_key in _NUMBERS.items()}
    heads = found["num_attention_heads"]
    found["num_key_value_heads"] = number("attention.head_count_kv", heads)
    found["head_dim"] = number("attention.key_length", found["hidden_size"] // heads)
    found |= {"vocab_size": n_vocab, "tie_word_embeddings": tied}
    if arch in ("gemma2", "gemma3"):
        found |= _gemma(arch, own, found)
    else:
        found["hidden_act"] = "silu"
        if arch in ("llama", "qwen3", "granite", "smollm3", "olmo2"):
            found["attention_bias"] = biased[0]
        if arch == "llama":
            found["mlp_bias"] = biased[1]
    if arch == "granite":
        found |= {key: plain(own[ours]) for key, ours in _GRANITE.items() if ours in own}
    elif arch == "smollm3":
        layers = range(found["num_hidden_layers"])
        found["no_rope_layer_interval"] = smollm3.PERIOD
        found["no_rope_layers"] = [int((i + 1) % smollm3.PERIOD != 0) for i in layers]
    elif arch == "phi3":
        found["sliding_window"] = plain(own.get("attention.sliding_window", 0)) or None
    found["rope_theta"] = number("rope.freq_base", 10000.0)
    scaling = _scaling(arch, own, found, factors)
    if scaling:
        found["rope_scaling"] = scaling
    _check(arch, own, found)
    return found


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
    factors: NDArray[np.float32] | None,
) -> dict[str, Any]:
    """rope_scaling, {} if there is none."""
    if factors is not None:
        return _llama3(arch, found, factors)
    kind = own.get("rope.scaling.type", "none")
    match kind:
        case "none":
            return {}
        case "linear":
            return {"rope_type": "linear", "factor": plain(own.get("rope.scaling.factor"))}
        case "yarn":
            scaling = {
                "rope_type": "yarn",
                "factor": plain(own.get("rope.scaling.factor")),
                "original_max_position_embeddings": plain(
                    own.get("rope.scaling.original_context_length")
                ),
            }
            for key, ours in (("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")):
                if f"rope.scaling.{ours}" in own:
                    scaling[key] = plain(own[f"rope.scaling.{ours}"])
            return scaling
    raise UnsupportedError(f"rotary scaling {kind!r} has no counterpart in config.json here")


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


def _check(arch: str, own: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Raise unless the way there gives the file's own metadata again."""
    again = convert_config.metadata(arch, found)
    for key, value in own.items():
        if key == "rope.scaling.type" and value == "none":
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
