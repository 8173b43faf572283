"""SamplingParams as llama.cpp's completion handler reads them.

Owns the translation and its limits. Every option is translated or refused with an
UnsupportedError that names the backend and the option; nothing is left out. Stop strings stay
on our side (`llamacpp_stream`), so that they mean the same on every backend.

Names and meanings: llama.cpp, tools/server/README.md, "POST /completion".
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Collection, Sequence
from typing import Any

from insula.engine.request import Conversation
from insula.errors import ConfigError, UnsupportedError
from insula.types import DEFAULT_SAMPLERS, SamplingParams

NAME = "llamacpp"

_INT32_MAX = 2**31 - 1

#: llama.cpp takes 0xFFFFFFFF to mean "draw one", so it cannot be asked for.
MAX_SEED = 0xFFFFFFFE

_SAMPLERS = {
    "penalties": "penalties",
    "dry": "dry",
    "top_n_sigma": "top_n_sigma",
    "top_k": "top_k",
    "typical_p": "typ_p",
    "top_p": "top_p",
    "min_p": "min_p",
    "xtc": "xtc",
    "temperature": "temperature",
}
assert set(_SAMPLERS) == set(DEFAULT_SAMPLERS)


def draw_seed() -> int:
    """A seed that every backend can take."""
    return secrets.randbelow(MAX_SEED)


def completion_request(
    ids: Sequence[int],
    params: SamplingParams,
    *,
    seed: int,
    max_tokens: int,
    eog_ids: Collection[int],
) -> dict[str, Any]:
    """The handler's JSON for a streamed completion of `ids`.

    eog_ids: the tokens that end a generation, which ignore_eos must never choose; llama.cpp
    has a list of its own, which may be shorter.

    One alternative per token is always asked for, because only then does the handler say
    which token it chose. Raises UnsupportedError for what llama.cpp cannot express and
    ConfigError for what no backend could.
    """
    if not 0 <= seed <= MAX_SEED:
        raise _cannot("seed", seed, f"a whole number from 0 to {MAX_SEED}")
    never = dict.fromkeys(eog_ids, -math.inf) if params.ignore_eos else {}
    biases = {**params.logit_bias, **never}
    return {
        "prompt": [int(i) for i in ids],
        "stream": True,
        "return_progress": True,
        "timings_per_token": True,
        "n_predict": max_tokens,
        "n_probs": max(1, params.logprobs or 0),
        "seed": seed,
        "samplers": samplers(params),
        "temperature": _temperature(params),
        "top_k": min(params.top_k, _INT32_MAX),
        "top_p": _finite("top_p", params.top_p),
        "min_p": _finite("min_p", params.min_p),
        "typical_p": _finite("typical_p", params.typical_p),
        "repeat_penalty": _finite("repeat_penalty", params.repeat_penalty),
        "presence_penalty": _finite("presence_penalty", params.presence_penalty),
        "frequency_penalty": _finite("frequency_penalty", params.frequency_penalty),
        "repeat_last_n": _window(params.repeat_last_n, len(ids) + max_tokens),
        "dry_multiplier": _finite("dry_multiplier", params.dry_multiplier),
        "dry_base": _finite("dry_base", params.dry_base),
        "dry_allowed_length": min(params.dry_allowed_length, _INT32_MAX),
        "dry_penalty_last_n": _window(params.dry_penalty_last_n, len(ids) + max_tokens),
        **_breakers(params),
        "top_n_sigma": _finite("top_n_sigma", params.top_n_sigma),
        "xtc_probability": _finite("xtc_probability", params.xtc_probability),
        "xtc_threshold": _finite("xtc_threshold", params.xtc_threshold),
        "dynatemp_range": _finite("dynatemp_range", params.dynatemp_range),
        "dynatemp_exponent": _finite("dynatemp_exponent", params.dynatemp_exponent),
        **_mirostat(params),
        "logit_bias": [_bias(i, b) for i, b in biases.items()],
        "ignore_eos": params.ignore_eos,
    }


def conversation_request(body: dict[str, Any], conversation: Conversation) -> dict[str, Any]:
    """The chat handler's JSON, from the completion's: it has OpenAI's names for three things.

    The answer comes as the model wrote it, its reasoning in its text.
    """
    body = {key: value for key, value in body.items() if key != "prompt"}
    return {
        **body,
        "messages": [dict(message) for message in conversation.messages],
        "max_tokens": body.pop("n_predict"),
        "logprobs": True,
        "top_logprobs": body.pop("n_probs"),
        "chat_template_kwargs": dict(conversation.arguments),
        "reasoning_format": "none",
    }


def samplers(params: SamplingParams) -> list[str]:
    """The order under llama.cpp's names. Greedy is llama.cpp's temperature sampler at 0.

    llama.cpp draws at random where that sampler is missing, and a truncating sampler ahead of
    it could drop the highest logit (typical_p does), so greedy keeps what penalizes alone.
    """
    unknown = [name for name in params.samplers if name not in _SAMPLERS]
    if unknown:
        raise _cannot("samplers", unknown[0], ", ".join(_SAMPLERS))
    if len(set(params.samplers)) != len(params.samplers):
        raise _cannot("samplers", list(params.samplers), "each sampler once")
    if params.temperature <= 0:
        return [n for n in params.samplers if n in ("penalties", "dry")] + ["temperature"]
    return [_SAMPLERS[name] for name in params.samplers]


def _window(last_n: int, most: int) -> int:
    """As many tokens as there can be where all are asked for.

    llama.cpp allocates what it is told, and newer versions know no -1.
    """
    return most if last_n < 0 else min(last_n, most)


def _temperature(params: SamplingParams) -> float:
    """With mirostat llama.cpp divides by it whether or not the order has it."""
    if params.mirostat and params.temperature > 0 and "temperature" not in params.samplers:
        return 1.0
    return _finite("temperature", params.temperature)


def _breakers(params: SamplingParams) -> dict[str, list[str]]:
    """The handler takes no empty list, and reads a missing one as its own default."""
    if params.dry_sequence_breakers:
        return {"dry_sequence_breakers": list(params.dry_sequence_breakers)}
    if params.dry_multiplier > 0 and "dry" in params.samplers:
        raise _cannot("dry_sequence_breakers", (), "at least one where dry_multiplier is set")
    return {}


def _mirostat(params: SamplingParams) -> dict[str, Any]:
    """llama.cpp's mirostat leaves everything out but a fixed temperature."""
    acts = params.mirostat == 2 and params.temperature > 0
    if acts:
        penalizes = (
            params.repeat_penalty != 1 or params.presence_penalty or params.frequency_penalty
        )
        for name, used in (
            ("penalties", penalizes and params.repeat_last_n),
            ("dry", params.dry_multiplier > 0 and params.dry_penalty_last_n),
            ("temperature", params.dynatemp_range > 0),
        ):
            if used and name in params.samplers:
                other = "dynatemp_range" if name == "temperature" else name
                raise _cannot("mirostat", params.mirostat, f"it only without {other}")
    return {
        "mirostat": params.mirostat if acts else 0,
        "mirostat_tau": _finite("mirostat_tau", params.mirostat_tau),
        "mirostat_eta": _finite("mirostat_eta", params.mirostat_eta),
    }


def _bias(token_id: int, bias: float) -> list[Any]:
    if math.isnan(bias):
        raise ConfigError(f"logit_bias: found {bias} for token {token_id}; a number is needed")
    if bias == -math.inf:
        return [int(token_id), False]  # how the handler says "never"
    if bias == math.inf:
        raise _cannot("logit_bias", bias, "finite values and -inf")
    return [int(token_id), float(bias)]


def _finite(option: str, value: float) -> float:
    if not math.isfinite(value):
        raise _cannot(option, value, "a finite number")
    return float(value)


def _cannot(option: str, found: object, allowed: str) -> UnsupportedError:
    return UnsupportedError(
        f"the {NAME} backend cannot take {option}={found!r}; it takes {allowed}", backend=NAME
    )
