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


def metadata(arch: str, config: Config) -> dict[str, Any]:
    """GGUF keys (without the architecture's prefix) and values for a checkpoint's config."""
    heads = _need(config, "num_attention_heads")
    head_dim = config.get("head_dim") or _need(config, "hidden_size") // heads
    partial = config.get("partial_rotary_factor") or _rope(config).get("partial_rotary_factor")
    if not math.isclose(partial or 1.0, 1.0) and arch != "phi3":
        raise UnsupportedError(f"partial_rotary_factor has no counterpart in GGUF's {arch} here")
    n_rot = int(head_dim * (partial or 1.0))
    meta: dict[str, Any] = {
        "context_length": _need(config, "max_position_embeddings"),
        "embedding_length": _need(config, "hidden_size"),
        "block_count": _need(config, "num_hidden_layers"),
        "feed_forward_length": _need(config, "intermediate_size"),
        "attention.head_count": heads,
        "attention.head_count_kv": config.get("num_key_value_heads") or heads,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": np.float32(_need(config, "rms_norm_eps")),
        "rope.dimension_count": n_rot,
        "vocab_size": _need(config, "vocab_size"),
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
            if _rope_type(_rope(config)) == "longrope":
                return meta | _longrope(config)
    _only(config, "hidden_act", "silu")
    if arch != "phi3":
        _refuse_windows(config)
    return meta | _rope_metadata(_rope(config))


def rope_factors(arch: str, config: Config) -> dict[str, NDArray[np.float32]]:
    """Tensors of what each pair's frequency is divided by, for llama3 scaling and longrope."""
    settings = _rope(config, "full_attention" if arch == "gemma3" else None)
    if _rope_type(settings) == "longrope":
        return {
            f"rope_factors_{name}.weight": np.array(settings[f"{name}_factor"], np.float32)
            for name in ("long", "short")
        }
    if _rope_type(settings) != "llama3":
        return {}
    head_dim = config.get("head_dim") or _need(config, "hidden_size") // _need(
        config, "num_attention_heads"
    )
    freqs = rope.plain(head_dim, settings["rope_theta"])
    scaled = rope.llama3(
        freqs,
        factor=_need(settings, "factor"),
        low=_need(settings, "low_freq_factor"),
        high=_need(settings, "high_freq_factor"),
        n_ctx_original=_need(settings, "original_max_position_embeddings"),
    )
    return {"rope_freqs.weight": (freqs / scaled).astype(np.float32)}


def _experts(config: Config) -> dict[str, Any]:
    count = "num_experts" if "num_experts" in config else "num_local_experts"
    return {
        "expert_count": _need(config, count),
        "expert_used_count": _need(config, "num_experts_per_tok"),
    }


def _qwen3moe(config: Config) -> dict[str, Any]:
    _only(config, "norm_topk_prob", True)
    _only(config, "decoder_sparse_step", 1)
    if config.get("mlp_only_layers"):
        raise UnsupportedError("GGUF's qwen3moe has experts in every layer; this one has not")
    width = _need(config, "moe_intermediate_size")
    return {**_experts(config), "expert_feed_forward_length": width}


def _gpt_oss(config: Config) -> dict[str, Any]:
    _only(config, "swiglu_limit", 7.0)
    _only(config, "swiglu_alpha", 1.702)
    _only(config, "hidden_act", "silu")
    expected = ["full_attention" if i % 2 else "sliding_attention"
                for i in range(config["num_hidden_layers"])]  # fmt: skip
    if list(config.get("layer_types") or expected) != expected:
        raise UnsupportedError(
            "GGUF's gpt-oss has sliding and full layers in turn; this checkpoint orders them "
            f"{config['layer_types']}"
        )
    settings = _rope(config)
    if _rope_type(settings) == "yarn" and settings.get("truncate") is not False:
        raise UnsupportedError("GGUF's gpt-oss has a yarn ramp that is not rounded (truncate)")
    return {
        **_experts(config),
        **_rope_metadata({k: v for k, v in settings.items() if k != "truncate"}),
        "expert_feed_forward_length": _need(config, "intermediate_size"),
        "attention.sliding_window": _need(config, "sliding_window"),
    }


def _longrope(config: Config) -> dict[str, Any]:
    _only(config, "hidden_act", "silu")
    settings = _rope(config)
    original = settings.get("original_max_position_embeddings") or _need(
        config, "original_max_position_embeddings"
    )
    meta = {
        "rope.freq_base": np.float32(settings["rope_theta"]),
        "rope.scaling.type": "longrope",
        "rope.scaling.original_context_length": original,
    }
    for name in ("short_mscale", "long_mscale"):
        if settings.get(name) is not None:
            raise UnsupportedError(f"longrope's {name} has no counterpart in the converter")
    scale = _need(config, "max_position_embeddings") / original
    factor = settings.get("attention_factor")
    if factor is None:
        factor = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
    return {**meta, "rope.scaling.attn_factor": np.float32(factor)}


def _granite(config: Config) -> dict[str, Any]:
    return {
        ours: np.float32(_need(config, key))
        for key, ours in (
            ("embedding_multiplier", "embedding_scale"),
            ("residual_multiplier", "residual_scale"),
            ("attention_multiplier", "attention.scale"),
            ("logits_scaling", "logit_scale"),
        )
    }


def _gemma2(config: Config, head_dim: int) -> dict[str, Any]:
    _only(config, "hidden_activation", "gelu_pytorch_tanh")
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
        **_rope_metadata(_rope(config)),
        "attention.sliding_window": _need(config, "sliding_window"),
        "attn_logit_softcapping": np.float32(_need(config, "attn_logit_softcapping")),
        "final_logit_softcapping": np.float32(_need(config, "final_logit_softcapping")),
        **_attention_scale(config, head_dim, layers_of_27b=gemma2.LAYERS_OF_27B),
    }


def _gemma3(config: Config, head_dim: int) -> dict[str, Any]:
    _only(config, "hidden_activation", "gelu_pytorch_tanh")
    _only(config, "attn_logit_softcapping", None)
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
    full, local = _rope(config, "full_attention"), _rope(config, "sliding_attention")
    if _rope_type(local) != "default":
        raise UnsupportedError("GGUF's gemma3 scales rotary angles of full attention alone")
    meta = {
        **_rope_metadata(full),
        "rope.freq_base_swa": np.float32(local["rope_theta"]),
        "attention.sliding_window": _need(config, "sliding_window"),
        **_attention_scale(config, head_dim, layers_of_27b=gemma3.LAYERS_OF_27B),
    }
    if config.get("final_logit_softcapping"):
        meta["final_logit_softcapping"] = np.float32(config["final_logit_softcapping"])
    return meta


def _attention_scale(config: Config, head_dim: int, *, layers_of_27b: int) -> dict[str, Any]:
    """attention.scale, where it is not what readers of the file assume."""
    scalar = config.get("query_pre_attn_scalar") or head_dim
    is_27b = config["num_hidden_layers"] == layers_of_27b
    usual = config["hidden_size"] / config["num_attention_heads"] if is_27b else head_dim
    return {} if math.isclose(scalar, usual) else {"attention.scale": np.float32(scalar**-0.5)}


def _rope(config: Config, layer_type: str | None = None) -> dict[str, Any]:
    """Rotary settings with rope_theta among them, for one kind of layer where they differ."""
    settings = config.get("rope_parameters")
    if settings is not None:
        if layer_type is not None and layer_type in settings:
            settings = settings[layer_type]
        return {"rope_theta": 10000.0, **settings}
    if layer_type == "sliding_attention":
        return {"rope_theta": config.get("rope_local_base_freq", 10000.0)}
    default = 1e6 if layer_type else 10000.0
    return {
        "rope_theta": config.get("rope_theta", default),
        **(config.get("rope_scaling") or {}),
    }


def _rope_type(settings: Config) -> str:
    return str(settings.get("rope_type") or settings.get("type") or "default")


def _rope_metadata(settings: Config) -> dict[str, Any]:
    meta: dict[str, Any] = {"rope.freq_base": np.float32(settings["rope_theta"])}
    match _rope_type(settings):
        case "default":
            pass
        case "llama3":  # said by the rope_freqs tensor, as llama.cpp reads it
            pass
        case "linear":
            meta["rope.scaling.type"] = "linear"
            meta["rope.scaling.factor"] = np.float32(_need(settings, "factor"))
        case "yarn":
            meta["rope.scaling.type"] = "yarn"
            meta["rope.scaling.factor"] = np.float32(_need(settings, "factor"))
            meta["rope.scaling.original_context_length"] = _need(
                settings, "original_max_position_embeddings"
            )
            for key, ours in (
                ("beta_fast", "rope.scaling.yarn_beta_fast"),
                ("beta_slow", "rope.scaling.yarn_beta_slow"),
            ):
                if settings.get(key) is not None:
                    meta[ours] = np.float32(settings[key])
            for key in ("attention_factor", "mscale", "mscale_all_dim", "truncate"):
                if settings.get(key) is not None:
                    raise UnsupportedError(f"yarn's {key} has no counterpart in the converter")
        case other:
            raise UnsupportedError(
                f"rotary scaling {other!r} is unknown here; the converter knows default, "
                "linear, llama3 and yarn"
            )
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


def _only(config: Config, key: str, allowed: object) -> None:
    if key in config and config[key] != allowed:
        raise UnsupportedError(
            f"config.json sets {key} to {config[key]!r}; GGUF knows only {allowed!r} here"
        )


def _need(config: Config, key: str) -> Any:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise FormatError(f"config.json has {key} = {value!r}, a number is needed")
    return value
