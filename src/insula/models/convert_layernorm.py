"""What config.json says, as GGUF metadata, for the architectures with layer norms.

GPT-2, Falcon, StarCoder2, StableLM, and the encoders. As in `convert_config`, a value that would
change the maths and has no GGUF key is refused.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from insula.errors import FormatError, UnsupportedError
from insula.models.convert_config import (
    GELU_TANH,
    Config,
    need,
    only,
    rope_metadata,
    rope_settings,
    rotated_part,
)

#: What GPT-2, Falcon, DistilBERT and Nomic's own code call what others call so.
_OTHER_NAMES = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings",
    "n_inner": "intermediate_size",
    "ffn_hidden_size": "intermediate_size",
    "layer_norm_epsilon": "layer_norm_eps",
    "norm_epsilon": "layer_norm_eps",
    "rotary_emb_base": "rope_theta",
    "dim": "hidden_size",
    "hidden_dim": "intermediate_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
}


def usual(config: Config) -> dict[str, Any]:
    """The config under the usual names; where it has both, its own names count."""
    renamed = {_OTHER_NAMES[key]: value for key, value in config.items() if key in _OTHER_NAMES}
    if config.get("model_type") == "distilbert":  # in its code, not in config.json
        renamed["layer_norm_eps"] = 1e-12
    return {**config, **renamed}


def metadata(arch: str, config: Config) -> dict[str, Any]:
    """GGUF keys (without the architecture's prefix) and values for a checkpoint's config."""
    config = usual(config)
    heads, width = need(config, "num_attention_heads"), need(config, "hidden_size")
    head_dim = config.get("head_dim") or width // heads
    meta: dict[str, Any] = {
        "context_length": config.get("max_position_embeddings") or 2048,  # old Falcons say nothing
        "embedding_length": width,
        "block_count": need(config, "num_hidden_layers"),
        "feed_forward_length": config.get("intermediate_size") or 4 * width,
        "attention.head_count": heads,
        "attention.head_count_kv": heads,
        "attention.layer_norm_epsilon": np.float32(need(config, "layer_norm_eps")),
        "vocab_size": need(config, "vocab_size"),
    }
    if head_dim != width // heads:
        meta |= {"attention.key_length": head_dim, "attention.value_length": head_dim}
    match arch:
        case "gpt2":
            _gpt2(config)
        case "falcon":
            meta["attention.head_count_kv"] = falcon_kv_heads(config)
            _falcon(config)
            meta |= rope_metadata(rope_settings(config))
            meta["rope.dimension_count"] = head_dim
        case "starcoder2":
            meta["attention.head_count_kv"] = config.get("num_key_value_heads") or heads
            only(config, "hidden_act", *GELU_TANH)
            meta |= rope_metadata(rope_settings(config))
            meta["rope.dimension_count"] = head_dim
            window = config.get("sliding_window")
            if window and window < meta["context_length"]:
                meta["attention.sliding_window"] = window
        case "stablelm":
            meta["attention.head_count_kv"] = config.get("num_key_value_heads") or heads
            only(config, "hidden_act", "silu")
            meta |= rope_metadata(rope_settings(config))
            meta["rope.dimension_count"] = int(head_dim * rotated_part(arch, config))
            meta["use_parallel_residual"] = bool(config.get("use_parallel_residual"))
        case "bert":
            only(config, "hidden_act", "gelu")
            only(config, "activation", "gelu")
            only(config, "position_embedding_type", "absolute")
            only(config, "is_decoder", False)
            meta["context_length"] -= first_position(config)
            meta["attention.causal"] = False
        case "nomic-bert":
            _nomic(config)
            meta |= rope_metadata(rope_settings({"rope_theta": 1000.0, **config}))
            meta["rope.dimension_count"] = head_dim
            meta["attention.causal"] = False
    return meta


def first_position(config: Config) -> int:
    """The row of the table of positions that a text's first token has: RoBERTa counts from behind
    the padding token's id (transformers, create_position_ids_from_input_ids)."""
    roberta = config.get("model_type") in ("roberta", "xlm-roberta")
    return int(need(config, "pad_token_id")) + 1 if roberta else 0


def falcon_kv_heads(config: Config) -> int:
    """How many key and value heads a Falcon has."""
    heads: int = need(config, "num_attention_heads")
    if config.get("new_decoder_architecture"):
        return int(config.get("num_kv_heads") or heads)
    return 1 if config.get("multi_query", True) else heads


def labels(config: Config) -> list[str]:
    """What a classifier's scores are for, in their order; nothing if they have no names."""
    named = config.get("id2label") or {}
    try:
        found = [str(named[key]) for key in sorted(named, key=int)]
    except (TypeError, ValueError):
        raise FormatError(
            f"config.json's id2label is {named!r}; names by number are needed"
        ) from None
    return [] if found == [f"LABEL_{i}" for i in range(len(found))] else found


def _gpt2(config: Config) -> None:
    only(config, "activation_function", *GELU_TANH)
    only(config, "scale_attn_weights", True)
    only(config, "scale_attn_by_inverse_layer_idx", False)
    only(config, "add_cross_attention", False)


def _falcon(config: Config) -> None:
    only(config, "activation", "gelu")
    if config.get("alibi"):
        raise UnsupportedError("this Falcon has ALiBi instead of rotary positions; GGUF has no key")
    if not config.get("new_decoder_architecture") and not config.get("parallel_attn", True):
        raise UnsupportedError(
            "this Falcon computes attention and feed-forward one after the other (parallel_attn "
            "is false); GGUF's falcon computes them from the same states"
        )


def _nomic(config: Config) -> None:
    """Nomic's own keys, from before transformers knew the model, and transformers' own."""
    only(config, "hidden_act", "silu")
    only(config, "activation_function", "swiglu")
    for key in ("qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias", "prenorm", "causal"):
        only(config, key, False)
    for key in ("rotary_emb_interleaved", "use_rms_norm"):
        only(config, key, False)
    only(config, "rotary_emb_fraction", 1.0)
    if config.get("num_experts"):
        raise UnsupportedError("this Nomic model has experts; the converter knows those without")
