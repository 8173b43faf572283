"""The constructor's parameters: what each becomes here, is noted as without effect, or refused.

Owns the tables. A parameter that would change results and has no counterpart is refused; one
that speaks of how llama.cpp works inside, and changes no result, is noted where it differs from
its default. None is left out in silence.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from insula.compat.llama_cpp import constants as c
from insula.compat.llama_cpp.errors import NotHereError
from insula.compat.llama_cpp.llama_speculative import LlamaPromptLookupDecoding
from insula.errors import ConfigError

#: Changes no result: (default, why it has no effect).
NO_EFFECT: Mapping[str, tuple[Any, str]] = {
    "split_mode": (c.LLAMA_SPLIT_MODE_LAYER, "the backend's own way of splitting is used"),
    "main_gpu": (0, "the backend's own choice is used"),
    "tensor_split": (None, "the backend's own way of splitting is used"),
    "use_mmap": (True, "weights are packed in memory at the start; INSULA_WEIGHTS=mmap maps them"),
    "use_mlock": (False, "nothing is locked in memory"),
    "offload_kqv": (True, "the backend decides"),
    "flash_attn": (False, "attention is computed page by page in any case"),
    "op_offload": (None, "the backend decides"),
    "swa_full": (None, "a windowed layer keeps its window"),
    "no_perf": (False, "times are in every report, which costs nothing"),
    "numa": (False, "threads stay where the system puts them"),
    "lora_base": (None, "no adapter is loaded"),
    "lora_scale": (1.0, "no adapter is loaded"),
    "n_parts": (-1, "a file says itself how many parts it has"),
    "f16_kv": (True, "type_k and type_v say how keys and values are kept"),
    "n_gqa": (None, "the file says it"),
    "rms_norm_eps": (None, "the file says it"),
    "mul_mat_q": (None, "there is one way to multiply"),
    "low_vram": (None, "there is no GPU memory to save"),
    "device": (None, "n_gpu_layers says what runs on a GPU"),
    "spm_infill": (False, "filling in (suffix) is refused"),
}

#: Would change results: (default, what to do instead).
REFUSED: Mapping[str, tuple[Any, str]] = {
    "kv_overrides": (None, "write the metadata into the file instead"),
    "rope_scaling_type": (c.LLAMA_ROPE_SCALING_TYPE_UNSPECIFIED, "the file's own is used"),
    "yarn_ext_factor": (-1.0, "the file's own is used"),
    "yarn_attn_factor": (1.0, "the file's own is used"),
    "yarn_beta_fast": (32.0, "the file's own is used"),
    "yarn_beta_slow": (1.0, "the file's own is used"),
    "yarn_orig_ctx": (0, "the file's own is used"),
    "attention_type": (c.LLAMA_ATTENTION_TYPE_UNSPECIFIED, "the model's own is used"),
    "pooling_type": (c.LLAMA_POOLING_TYPE_UNSPECIFIED, "a model pools as it declares"),
    "lora_path": (None, "merge the adapter into the model first"),
    "tokenizer": (None, "the model's own is used"),
    "vocab_only": (False, "insula.tokenizer.Tokenizer reads a vocabulary alone"),
}

#: What LangChain's wrapper passes unless told otherwise, whatever the model.
ROPE_DEFAULTS = {"rope_freq_base": 10000.0, "rope_freq_scale": 1.0}

_KV_TYPES = {c.GGML_TYPE_F32: "f32", c.GGML_TYPE_F16: "f16", c.GGML_TYPE_Q8_0: "int8"}


@dataclass(frozen=True, kw_only=True)
class Loading:
    """Keywords for `insula.LLM`, and what must be said."""

    options: Mapping[str, Any]
    notes: tuple[str, ...]


def loading(given: Mapping[str, Any], unknown: Mapping[str, Any]) -> Loading:
    """From the constructor's parameters. `unknown`: names that it does not have.

    Raises ConfigError and NotHereError, both ValueErrors.
    """
    notes: list[str] = []
    for name in unknown:
        if name not in NO_EFFECT:
            close = difflib.get_close_matches(name, [*given, *NO_EFFECT], n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ConfigError(f"Llama has no parameter {name!r}{hint}")
    for name, value in {**given, **unknown}.items():
        if name in NO_EFFECT:
            default, why = NO_EFFECT[name]
            if value is not None and value != default:
                notes.append(f"{name}={value!r} has no effect: {why}")
        elif name in REFUSED:
            default, instead = REFUSED[name]
            if value is not None and value != default:
                raise NotHereError(f"{name}: found {value!r}, which Insula cannot do; {instead}")
    notes += _rope(given)
    threads, batch_threads = given["n_threads"], given["n_threads_batch"]
    if batch_threads not in (None, threads):
        notes.append(f"n_threads_batch={batch_threads!r} has no effect: n_threads is for both")
    for name in ("n_batch", "n_ubatch"):
        _at_least(name, given[name], 1)
    _at_least("n_ctx", given["n_ctx"], 0)
    options: dict[str, Any] = {
        # 0: the model's. So is what is not said (512 there) of a model for embeddings.
        "n_ctx": None if given["embedding"] and given["n_ctx"] == 512 else given["n_ctx"] or None,
        "n_threads": threads,
        "kv_type": _kv_type(given["type_k"], given["type_v"]),
        **_draft(given["draft_model"]),
    }
    return Loading(options=options, notes=tuple(notes))


def _rope(given: Mapping[str, Any]) -> list[str]:
    """RoPE's numbers come from the file. 0 means that, and LangChain's defaults are forgiven."""
    notes = []
    for name, default in ROPE_DEFAULTS.items():
        value = given[name]
        if value in (None, 0):
            continue
        if value != default:
            raise NotHereError(
                f"{name}: found {value!r}, which Insula cannot do; 0 takes the file's own"
            )
        notes.append(f"{name}={value!r} has no effect: the file's own is used")
    return notes


def _kv_type(type_k: int | None, type_v: int | None) -> str:
    k, v = (c.GGML_TYPE_F16 if kind is None else kind for kind in (type_k, type_v))
    if k != v or k not in _KV_TYPES:
        allowed = ", ".join(f"{number} ({name})" for number, name in _KV_TYPES.items())
        raise NotHereError(
            f"type_k, type_v: found {type_k!r} and {type_v!r}; allowed is one for both: {allowed}"
        )
    return _KV_TYPES[k]


def _draft(model: Any) -> dict[str, Any]:
    if model is None:
        return {}
    if not isinstance(model, LlamaPromptLookupDecoding):
        raise NotHereError(
            f"draft_model: found {type(model).__name__}; allowed is LlamaPromptLookupDecoding "
            "(or a smaller model, through insula.LLM(speculate=…))"
        )
    return {"speculate": "ngram", "draft_tokens": min(model.num_pred_tokens, 32)}


def _at_least(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name}: found {value!r}; allowed is {least} or more")


def gpu(layers: int) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Keywords for `insula.LLM` that put layers on a GPU, if there is one, and what must be said.

    -1 is all of them. Without a GPU the model runs on the CPU, as llama-cpp-python built for the
    CPU does.
    """
    if layers == 0:
        return {}, ()
    from insula.engine.backends.llamacpp_devices import gpu_obstacle

    obstacle = gpu_obstacle()
    if obstacle is not None:
        return {}, (f"n_gpu_layers={layers} has no effect: {obstacle}",)
    return {"engine": "llamacpp", "gpu_layers": layers}, ()
