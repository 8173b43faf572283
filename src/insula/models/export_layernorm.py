"""GGUF metadata as a config.json, for the architectures with layer norms.

The way back of `convert_layernorm`; `export_config` adds rotary settings and checks the whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from insula.errors import UnsupportedError


class Keys(Protocol):
    """An architecture's keys of a file's metadata."""

    @property
    def own(self) -> Mapping[str, Any]:
        """By key, without the architecture's name."""
        ...

    def number(self, key: str, default: float | None = None) -> Any:
        """The number above 0 at a key. Raises FormatError."""
        ...


#: config.json -> GGUF.
_NUMBERS = {
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "layer_norm_eps": "attention.layer_norm_epsilon",
}
#: What GPT-2, Falcon and StarCoder2 call them.
_OTHER_NAMES: Mapping[str, Mapping[str, str]] = {
    "gpt2": {
        "max_position_embeddings": "n_positions",
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "intermediate_size": "n_inner",
        "num_attention_heads": "n_head",
        "layer_norm_eps": "layer_norm_epsilon",
    },
    "falcon": {"intermediate_size": "ffn_hidden_size", "layer_norm_eps": "layer_norm_epsilon"},
    "starcoder2": {"layer_norm_eps": "norm_epsilon"},
}

_DISTIL = {
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "intermediate_size": "hidden_dim",
    "num_attention_heads": "n_heads",
}


def config(arch: str, said: Keys, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """A config.json's settings, without rotary ones. shapes: of the file's tensors.

    Raises UnsupportedError, FormatError.
    """
    names = _OTHER_NAMES.get(arch, {})
    found: dict[str, Any] = {names.get(k, k): said.number(ours) for k, ours in _NUMBERS.items()}
    heads = said.number("attention.head_count")
    kv_heads = said.number("attention.head_count_kv", heads)
    head_dim = said.number("embedding_length") // heads
    stated = said.number("attention.key_length", head_dim)
    if stated != head_dim:
        if arch not in ("starcoder2", "nomic-bert"):
            raise UnsupportedError(
                f"heads are {stated} wide; in {arch} checkpoints they are as wide as "
                f"embedding_length by heads, {head_dim}"
            )
        found["head_dim"] = stated
    match arch:
        case "gpt2":
            found["activation_function"] = "gelu_new"
        case "falcon":
            found |= {"activation": "gelu", "alibi": False, "parallel_attn": True}
            found |= _falcon(heads, kv_heads, two_norms="blk.0.attn_norm_2.weight" in shapes)
        case "starcoder2":
            found |= {"hidden_act": "gelu_pytorch_tanh", "num_key_value_heads": kv_heads}
            found["sliding_window"] = int(said.own.get("attention.sliding_window", 0)) or None
        case "stablelm":
            rotated = said.number("rope.dimension_count", stated)
            found |= {"hidden_act": "silu", "num_key_value_heads": kv_heads}
            found["partial_rotary_factor"] = rotated / stated
            found["qk_layernorm"] = "blk.0.attn_q_norm.weight" in shapes
            found["use_parallel_residual"] = "blk.0.ffn_norm.weight" not in shapes
        case "bert" if "token_types.weight" not in shapes:  # DistilBERT, with names of its own
            found = {_DISTIL.get(key, key): value for key, value in found.items()}
            found["activation"] = "gelu"
        case "bert" | "nomic-bert":
            found["hidden_act"] = "gelu" if arch == "bert" else "silu"
            if "token_types.weight" not in shapes:
                raise UnsupportedError(
                    f"the file has no token_types.weight, which every {arch} checkpoint has"
                )
            found["type_vocab_size"] = shapes["token_types.weight"][0]
    return found


def _falcon(heads: int, kv_heads: int, *, two_norms: bool) -> dict[str, Any]:
    """Its first models have one key head or as many as query heads, and one norm."""
    if kv_heads in (1, heads) and not two_norms:
        return {"new_decoder_architecture": False, "multi_query": kv_heads == 1}
    return {
        "new_decoder_architecture": True,
        "num_kv_heads": kv_heads,
        "num_ln_in_parallel_attn": 2 if two_norms else 1,
    }
