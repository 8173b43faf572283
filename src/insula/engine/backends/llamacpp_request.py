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

from insula.errors import ConfigError, UnsupportedError
from insula.types import DEFAULT_SAMPLERS, SamplingParams

NAME = "llamacpp"

_INT32_MAX = 2**31 - 1

#: llama.cpp takes 0xFFFFFFFF to mean "draw one", so it cannot be asked for.
MAX_SEED = 0xFFFFFFFE

_SAMPLERS = {
    "penalties": "penalties",
    "top_k": "top_k",
    "typical_p": "typ_p",
    "top_p": "top_p",
    "min_p": "min_p",
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
        "temperature": _finite("temperature", params.temperature),
        "top_k": min(params.top_k, _INT32_MAX),
        "top_p": _finite("top_p", params.top_p),
        "min_p": _finite("min_p", params.min_p),
        "typical_p": _finite("typical_p", params.typical_p),
        "repeat_penalty": _finite("repeat_penalty", params.repeat_penalty),
        "presence_penalty": _finite("presence_penalty", params.presence_penalty),
        "frequency_penalty": _finite("frequency_penalty", params.frequency_penalty),
        "repeat_last_n": min(params.repeat_last_n, _INT32_MAX),
        "logit_bias": [_bias(i, b) for i, b in biases.items()],
        "ignore_eos": params.ignore_eos,
    }


def samplers(params: SamplingParams) -> list[str]:
    """The order under llama.cpp's names. Greedy is llama.cpp's temperature sampler at 0.

    llama.cpp draws at random where that sampler is missing, and a truncating sampler ahead of
    it could drop the highest logit (typical_p does), so greedy keeps the penalties alone.
    """
    unknown = [name for name in params.samplers if name not in _SAMPLERS]
    if unknown:
        raise _cannot("samplers", unknown[0], ", ".join(_SAMPLERS))
    if len(set(params.samplers)) != len(params.samplers):
        raise _cannot("samplers", list(params.samplers), "each sampler once")
    if params.temperature <= 0:
        return [name for name in params.samplers if name == "penalties"] + ["temperature"]
    return [_SAMPLERS[name] for name in params.samplers]


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
