"""What config.json says, as GGUF metadata, per architecture.

Every value that shapes the maths is either mapped to its GGUF key or refused here. Both ways
of writing rotary settings are read: rope_parameters (transformers 5) and rope_theta with
rope_scaling (before).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from insula.errors import FormatError, UnsupportedError
from insula.models import gemma2, gemma3, rope, smollm3

Config = Mapping[str, Any]

#: One function under several names (transformers, activations.py).
GELU_TANH = ("gelu_pytorch_tanh", "gelu_new", "gelu_fast")

#: rope_theta where a config.json does not state it: the configuration class's own.
_THETA = {
    "gemma3_text": 1e6,
    "gpt_oss": 150000.0,
    "mixtral": 1e6,
    "nomic_bert": 1000.0,
    "smollm3": 2e6,
}


def metadata(arch: str, config: Config) -> dict[str, Any]:
    """GGUF keys (without the architecture's prefix) and values for a checkpoint's config."""
    heads = need(config, "num_attention_heads")
    head_dim = config.get("head_dim") or need(config, "hidden_size") // heads
    partial = rotated_part(arch, config)
    if not math.isclose(partial, 1.0) and arch != "phi3":
        raise UnsupportedError(f"partial_rotary_factor has no counterpart in GGUF's {arch} here")
    n_rot = int(head_dim * partial)
    meta: dict[str, Any] = {
        "context_length": need(config, "max_position_embeddings"),
        "embedding_length": need(config, "hidden_size"),
        "block_count": need(config, "num_hidden_layers"),
        "feed_forward_length": need(config, "intermediate_size"),
        "attention.head_count": heads,
        "attention.head_count_kv": config.get("num_key_value_heads") or heads,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": np.float32(need(config, "rms_norm_eps")),
        "rope.dimension_count": n_rot,
        "vocab_size": need(config, "vocab_size"),
    }
    match arch:
        case "gemma2":
            return meta | _gemma2(config, head_dim)
        case "gemma3":
            return meta | _gemma3(config, head_dim)
        case "granite":
            meta |= _granite(config)
        case "smollm3":
            _refuse_other_positions(config)
        case "llama" if "num_local_experts" in config:
            meta |= _experts(config)
        case "qwen3moe":
            meta |= _qwen3moe(config)
        case "gpt-oss":
            return meta | _gpt_oss(config)
        case "phi3":
            meta["attention.sliding_window"] = config.get("sliding_window") or 0
            if _rope_type(rope_settings(config)) == "longrope":
                return meta | _longrope(config)
    only(config, "hidden_act", "silu", "swish")
    if arch != "phi3":
        _refuse_windows(config)
    return meta | rope_metadata(rope_settings(config))


def rope_factors(arch: str, config: Config) -> dict[str, NDArray[np.float32]]:
    """Tensors of what each pair's frequency is divided by, for llama3 scaling and longrope."""
    settings = rope_settings(config, "full_attention" if arch == "gemma3" else None)
    if _rope_type(settings) == "longrope":
        return {
            f"rope_factors_{name}.weight": np.array(settings[f"{name}_factor"], np.float32)
            for name in ("long", "short")
        }
    if _rope_type(settings) != "llama3":
        return {}
    head_dim = config.get("head_dim") or need(config, "hidden_size") // need(
        config, "num_attention_heads"
    )
    freqs = rope.plain(int(head_dim * rotated_part(arch, config)), settings["rope_theta"])
    scaled = rope.llama3(
        freqs,
        factor=need(settings, "factor"),
        low=need(settings, "low_freq_factor"),
        high=need(settings, "high_freq_factor"),
        n_ctx_original=need(settings, "original_max_position_embeddings"),
    )
    return {"rope_freqs.weight": (freqs / scaled).astype(np.float32)}


def _experts(config: Config) -> dict[str, Any]:
    count = "num_experts" if "num_experts" in config else "num_local_experts"
    return {
        "expert_count": need(config, count),
        "expert_used_count": need(config, "num_experts_per_tok"),
    }


def _qwen3moe(config: Config) -> dict[str, Any]:
    only({"norm_topk_prob": False, **config}, "norm_topk_prob", True)
    only(config, "decoder_sparse_step", 1)
    if config.get("mlp_only_layers"):
        raise UnsupportedError("GGUF's qwen3moe has experts in every layer; this one has not")
    width = need(config, "moe_intermediate_size")
    return {**_experts(config), "expert_feed_forward_length": width}


def _gpt_oss(config: Config) -> dict[str, Any]:
    only(config, "swiglu_limit", 7.0)
    only(config, "swiglu_alpha", 1.702)
    only(config, "hidden_act", "silu", "swish")
    expected = ["full_attention" if i % 2 else "sliding_attention"
                for i in range(config["num_hidden_layers"])]  # fmt: skip
    if list(config.get("layer_types") or expected) != expected:
        raise UnsupportedError(
            "GGUF's gpt-oss has sliding and full layers in turn; this checkpoint orders them "
            f"{config['layer_types']}"
        )
    if not (config.get("rope_scaling") or config.get("rope_parameters")):
        raise FormatError(
            "config.json states no rope_scaling; gpt-oss turns by yarn, and its numbers are needed"
        )
    return {
        **_experts(config),
        **rope_metadata(rope_settings(config), rounded=False),
        "expert_feed_forward_length": need(config, "intermediate_size"),
        "attention.sliding_window": need(config, "sliding_window"),
    }


def _longrope(config: Config) -> dict[str, Any]:
    only(config, "hidden_act", "silu", "swish")
    settings = rope_settings(config)
    # Phi3Config has its own place for it, and a default; those among the settings do not count.
    original = config.get("original_max_position_embeddings", 4096)
    meta = {
        "rope.freq_base": np.float32(settings["rope_theta"]),
        "rope.scaling.type": "longrope",
        "rope.scaling.original_context_length": original,
    }
    for name in ("short_mscale", "long_mscale"):
        if settings.get(name) is not None:
            raise UnsupportedError(f"longrope's {name} has no counterpart in the converter")
    scale = settings.get("factor") or need(config, "max_position_embeddings") / original
    factor = settings.get("attention_factor")
    if factor is None:
        factor = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
    return {**meta, "rope.scaling.attn_factor": np.float32(factor)}


def _granite(config: Config) -> dict[str, Any]:
    return {
        ours: np.float32(need(config, key))
        for key, ours in (
            ("embedding_multiplier", "embedding_scale"),
            ("residual_multiplier", "residual_scale"),
            ("attention_multiplier", "attention.scale"),
            ("logits_scaling", "logit_scale"),
        )
    }


def _gemma2(config: Config, head_dim: int) -> dict[str, Any]:
    only(config, "hidden_activation", *GELU_TANH)
    if config.get("use_bidirectional_attention"):
        raise UnsupportedError("this Gemma 2 sees text in both directions (an embedding model)")
    layers = config.get("layer_types")
    expected = ["full_attention" if i % 2 else "sliding_attention"
                for i in range(config["num_hidden_layers"])]  # fmt: skip
    if layers is not None and list(layers) != expected:
        raise UnsupportedError(
            "GGUF's gemma2 has sliding and full layers in turn; this checkpoint orders them "
            f"{layers}"
        )
    return {
        **rope_metadata(rope_settings(config)),
        "attention.sliding_window": need(config, "sliding_window"),
        "attn_logit_softcapping": np.float32(need(config, "attn_logit_softcapping")),
        "final_logit_softcapping": np.float32(need(config, "final_logit_softcapping")),
        **_attention_scale(config, head_dim, layers_of_27b=gemma2.LAYERS_OF_27B),
    }


def _gemma3(config: Config, head_dim: int) -> dict[str, Any]:
    only(config, "hidden_activation", *GELU_TANH)
    only(config, "attn_logit_softcapping", None)
    if config.get("use_bidirectional_attention"):
        raise UnsupportedError("this Gemma 3 sees text in both directions (an embedding model)")
    n_layers = config["num_hidden_layers"]
    layers = config.get("layer_types")
    period = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or 6
    expected = ["full_attention" if (i + 1) % period == 0 else "sliding_attention"
                for i in range(n_layers)]  # fmt: skip
    if period != 6 or (layers is not None and list(layers) != expected):
        raise UnsupportedError(
            "GGUF's gemma3 has five sliding layers before each full one; this checkpoint "
            f"orders them {layers or period}"
        )
    full = rope_settings(config, "full_attention")
    local = rope_settings(config, "sliding_attention")
    if _rope_type(local) != "default":
        raise UnsupportedError("GGUF's gemma3 scales rotary angles of full attention alone")
    meta = {
        **rope_metadata(full),
        "rope.freq_base_swa": np.float32(local["rope_theta"]),
        "attention.sliding_window": need(config, "sliding_window"),
        **_attention_scale(config, head_dim, layers_of_27b=gemma3.LAYERS_OF_27B),
    }
    if config.get("final_logit_softcapping"):
        meta["final_logit_softcapping"] = np.float32(config["final_logit_softcapping"])
    return meta


def _attention_scale(config: Config, head_dim: int, *, layers_of_27b: int) -> dict[str, Any]:
    """attention.scale, where it is not what readers of the file assume."""
    scalar = need({"query_pre_attn_scalar": 256, **config}, "query_pre_attn_scalar")
    is_27b = config["num_hidden_layers"] == layers_of_27b
    usual = config["hidden_size"] / config["num_attention_heads"] if is_27b else head_dim
    return {} if math.isclose(scalar, usual) else {"attention.scale": np.float32(scalar**-0.5)}


def rope_settings(config: Config, layer_type: str | None = None) -> dict[str, Any]:
    """Rotary settings with rope_theta among them, for one kind of layer where they differ.

    What counts where a value stands in several places is as in transformers' modeling_rope_utils.
    """
    theta = config.get("rope_theta", _THETA.get(str(config.get("model_type")), 10000.0))
    settings = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if layer_type is not None and layer_type in settings:
        settings = settings[layer_type]
    elif layer_type == "sliding_attention":  # one set of settings is full attention's
        theta, settings = config.get("rope_local_base_freq", 10000.0), {}
    settings = {"rope_theta": theta, **settings}
    kind = _rope_type(settings)
    if config.get("model_type") == "phi3" and kind in ("su", "yarn"):  # its first releases' names
        settings["rope_type"] = "longrope"
    if kind in ("llama3", "yarn") and "max_position_embeddings" in config:
        settings.setdefault("original_max_position_embeddings", config["max_position_embeddings"])
    return settings


def rotated_part(arch: str, config: Config) -> float:
    """Which part of each head is rotated."""
    part = config.get("partial_rotary_factor")
    if part is None:
        part = rope_settings(config).get("partial_rotary_factor")
    usual = 0.25 if arch == "stablelm" else 1.0  # what transformers takes where a file is silent
    return float(usual if part is None else part)


def _rope_type(settings: Config) -> str:
    return str(settings.get("rope_type") or settings.get("type") or "default")


def rope_metadata(settings: Config, *, rounded: bool = True) -> dict[str, Any]:
    """GGUF keys for rotary settings. rounded: yarn's ramp is, in this architecture."""
    meta: dict[str, Any] = {"rope.freq_base": np.float32(settings["rope_theta"])}
    match _rope_type(settings):
        case "default" | "dynamic":  # which is the former as far as the model was trained
            pass
        case "llama3":  # said by the rope_freqs tensor, as llama.cpp reads it
            pass
        case "linear":
            meta["rope.scaling.type"] = "linear"
            meta["rope.scaling.factor"] = np.float32(need(settings, "factor"))
        case "yarn":
            meta |= _yarn(settings, rounded=rounded)
        case other:
            raise UnsupportedError(
                f"rotary scaling {other!r} is unknown here; the converter knows default, "
                "dynamic, linear, llama3 and yarn"
            )
    return meta


def _yarn(settings: Config, *, rounded: bool) -> dict[str, Any]:
    if settings.get("truncate", True) is not rounded:
        raise UnsupportedError(
            f"yarn's truncate is {settings.get('truncate', True)}; GGUF's models of this "
            f"architecture have a ramp that is {'' if rounded else 'not '}rounded to whole pairs"
        )
    factor = need(settings, "factor")
    meta: dict[str, Any] = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": np.float32(factor),
        "rope.scaling.original_context_length": need(settings, "original_max_position_embeddings"),
    }
    for key, ours in (
        ("beta_fast", "rope.scaling.yarn_beta_fast"),
        ("beta_slow", "rope.scaling.yarn_beta_slow"),
    ):
        if settings.get(key):
            meta[ours] = np.float32(settings[key])

    def temperature(times: float) -> float:
        return 1.0 if factor <= 1 else 1.0 + 0.1 * times * math.log(factor)

    attention, two = settings.get("attention_factor"), ("mscale", "mscale_all_dim")
    if attention is None and all(settings.get(key) for key in two):
        attention = temperature(settings[two[0]]) / temperature(settings[two[1]])
    if attention is not None and not math.isclose(attention, temperature(1)):
        meta["rope.scaling.attn_factor"] = np.float32(attention / temperature(1))
    return meta


def _refuse_windows(config: Config) -> None:
    """Sliding windows in llama's and its kin's checkpoints have no GGUF key."""
    window = config.get("sliding_window")
    reach = config.get("max_position_embeddings", 0)
    used = config.get("use_sliding_window", window is not None)
    if used and window is not None and window < reach:
        raise UnsupportedError(
            f"the model attends through a sliding window of {window} in a context of {reach}; "
            "GGUF has no key for that in this architecture"
        )


def _refuse_other_positions(config: Config) -> None:
    """SmolLM3: which layers have rotary positions is the architecture's, GGUF has no key for it."""
    period = smollm3.PERIOD
    expected = [int((i + 1) % period != 0) for i in range(config["num_hidden_layers"])]
    layers = config.get("no_rope_layers")  # 1 where there are rotary positions, despite the name
    if layers is None and config.get("no_rope_layer_interval", period) != period:
        layers = f"by {config['no_rope_layer_interval']}"
    if layers is not None and layers != expected:
        raise UnsupportedError(
            f"GGUF's smollm3 has no rotary positions in each {period}th layer; this checkpoint "
            f"orders its layers {layers}"
        )


def remarks(config: Config) -> tuple[str, ...]:
    """What a person should know about a config that is converted nevertheless."""
    if _rope_type(rope_settings(config)) != "dynamic":
        return ()
    note = (
        "the model's rotary angles are those of its trained context; the dynamic scaling that "
        "config.json asks for beyond it has no key in GGUF"
    )
    return (note,)


def only(config: Config, key: str, *allowed: object) -> None:
    """Raise UnsupportedError if the config sets the key to anything else."""
    if key in config and config[key] not in allowed:
        raise UnsupportedError(
            f"config.json sets {key} to {config[key]!r}; GGUF knows only "
            f"{' and '.join(map(repr, allowed))} here"
        )


def need(config: Config, key: str) -> Any:
    """The number at a key. Raises FormatError."""
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise FormatError(f"config.json has {key} = {value!r}, a number is needed")
    return value
