"""Choosing the next token: what a request may ask for, and the call that chooses.

Owns the validation of `SamplingParams` and the bridge to the native samplers
(native/runtime/sampling.h); ops/reference_sampling.py defines what they compute, docs/sampling.md
explains it. Refuses numbers outside their range, unknown or repeated sampler names, and logits
that are not numbers.

Invariants: a token depends on (logits, params, history, position, seed), the mask and, with
mirostat, on its mu alone, which in turn depends on the request's earlier tokens alone. A uniform
belongs to each position of a seed, so a request's tokens do not depend on what else runs.
Log-probabilities are those of the raw logits, before bias, penalties, mask and temperature.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import numpy.typing as npt

from insula import _native
from insula.errors import ConfigError, EngineError
from insula.types import DEFAULT_SAMPLERS, SamplingParams

#: The samplers there are; `SamplingParams.samplers` is an order of some of them.
SAMPLERS: tuple[str, ...] = DEFAULT_SAMPLERS

MAX_SEED = 2**64 - 1
MAX_NEW_TOKENS = 2**31 - 1
MAX_STOPS = 64
MAX_STOP_CHARACTERS = 4096
MAX_BREAKERS = 64
MAX_BREAKER_BYTES = 40

_NO_HISTORY = np.empty(0, dtype=np.int32)

_FAILURES = {
    1: "the model's logits hold a NaN or +inf; the model file or its numerics are broken",
    2: "no token is left to choose: the logits, the bias and the mask exclude all of them",
    3: "a token id lies outside the vocabulary of {n} tokens",
    4: "the history holds a token id outside the vocabulary of {n} tokens",
}


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """One chosen token.

    logprob: natural log, raw distribution, float32 value; None unless params.logprobs was set.
    top: the params.logprobs likeliest (id, logprob), best first, ties by lower id.
    mirostat_mu: what the request's next token is to be given; None where mirostat is off.
    """

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    mirostat_mu: float | None = None


class Sampler:
    """One request's way of choosing tokens: validated once, then called per token."""

    def __init__(
        self,
        params: SamplingParams,
        *,
        n_vocab: int | None = None,
        breakers: Sequence[Sequence[int]] | None = None,
    ) -> None:
        """breakers: the dry_sequence_breakers as token ids (`breakers.BreakerTable`).

        Raises ConfigError; see `validate`.
        """
        validate(params, n_vocab=n_vocab)
        if breakers is None:
            if wants_breakers(params):
                raise ConfigError(
                    "dry_sequence_breakers: strings were given, but nothing that knows their "
                    "tokens; give the ids, or no strings"
                )
            breakers = ()
        self.params = params
        self._logprobs = -1 if params.logprobs is None else int(params.logprobs)
        self._native = _native.Sampler(
            temperature=float(params.temperature),
            top_k=min(int(params.top_k), 2**31),
            top_p=float(params.top_p),
            min_p=float(params.min_p),
            typical_p=float(params.typical_p),
            repeat_penalty=float(params.repeat_penalty),
            presence_penalty=float(params.presence_penalty),
            frequency_penalty=float(params.frequency_penalty),
            repeat_last_n=min(int(params.repeat_last_n), 2**31),
            dry_multiplier=float(params.dry_multiplier),
            dry_base=float(params.dry_base),
            dry_allowed_length=min(int(params.dry_allowed_length), 2**31),
            dry_penalty_last_n=min(int(params.dry_penalty_last_n), 2**31),
            dry_breakers=breakers,
            top_n_sigma=float(params.top_n_sigma),
            xtc_probability=float(params.xtc_probability),
            xtc_threshold=float(params.xtc_threshold),
            dynatemp_range=float(params.dynatemp_range),
            dynatemp_exponent=float(params.dynatemp_exponent),
            mirostat=int(params.mirostat),
            mirostat_tau=float(params.mirostat_tau),
            mirostat_eta=float(params.mirostat_eta),
            logit_bias=[(int(token), float(value)) for token, value in params.logit_bias.items()],
            samplers=list(params.samplers),
        )

    def __call__(
        self,
        logits: npt.NDArray[np.float32],
        history: npt.NDArray[np.int32],
        position: int,
        seed: int,
        allowed: npt.NDArray[np.uint32] | None = None,
        mirostat_mu: float | None = None,
    ) -> Sampled:
        """Choose one token.

        logits: float32 [n_vocab]. history: int32 [n], every token so far, prompt included, oldest
        first. position: of the token to be chosen. allowed: uint32 [ceil(n_vocab / 32)], the bit
        id % 32 of word id // 32 set where a token may be chosen. mirostat_mu: what the request's
        last token was `Sampled` with; None at its start.
        Raises EngineError where there is nothing to choose or the logits are not numbers.
        """
        status, token, mu, logprob, top = self._native.sample(
            logits, history, position, seed, self._mu(mirostat_mu), allowed, self._logprobs
        )
        if status:
            raise _failure(status, len(logits))
        next_mu = mu if self.params.mirostat else None
        if self._logprobs < 0:
            return Sampled(token_id=token, mirostat_mu=next_mu)
        return Sampled(token_id=token, logprob=logprob, top=tuple(top), mirostat_mu=next_mu)

    def distribution(
        self,
        logits: npt.NDArray[np.float32],
        history: npt.NDArray[np.int32] = _NO_HISTORY,
        allowed: npt.NDArray[np.uint32] | None = None,
        *,
        position: int = 0,
        seed: int = 0,
        mirostat_mu: float | None = None,
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float64]]:
        """The tokens that may be chosen, ids ascending, and the probability of each.

        position, seed: what XTC acts by, or not.
        """
        status, ids, probabilities = self._native.distribution(
            logits, history, position, seed, self._mu(mirostat_mu), allowed
        )
        if status:
            raise _failure(status, len(logits))
        return ids, probabilities

    def _mu(self, mirostat_mu: float | None) -> float:
        return 2.0 * float(self.params.mirostat_tau) if mirostat_mu is None else mirostat_mu


# The last few params seen, by identity: a request passes the same frozen object for every token.
_recent: dict[int, Sampler] = {}


def sample(
    logits: npt.NDArray[np.float32],
    params: SamplingParams,
    history: npt.NDArray[np.int32],
    position: int,
    seed: int,
    allowed: npt.NDArray[np.uint32] | None = None,
    mirostat_mu: float | None = None,
) -> Sampled:
    """Choose one token; see `Sampler.__call__` for the arguments. Raises ConfigError, EngineError.

    A scheduler that keeps a `Sampler` per request saves the look-up.
    """
    sampler = _recent.get(id(params))
    if sampler is None or sampler.params is not params:
        sampler = Sampler(params)
        if len(_recent) >= 64:
            _recent.clear()
        _recent[id(params)] = sampler
    return sampler(logits, history, position, seed, allowed, mirostat_mu)


def log_probabilities(
    logits: npt.NDArray[np.float32], token_id: int, top: int = 0
) -> tuple[float, tuple[tuple[int, float], ...]]:
    """Natural-log probability of a token, and of the `top` likeliest, under raw logits."""
    status, logprob, likeliest = _native.log_probabilities(logits, token_id, top)
    if status:
        raise _failure(status, len(logits))
    return logprob, tuple(likeliest)


def wants_breakers(params: SamplingParams) -> bool:
    """Whether DRY acts and has strings that end a repetition."""
    acts = params.dry_multiplier > 0 and params.dry_penalty_last_n != 0 and "dry" in params.samplers
    return acts and len(params.dry_sequence_breakers) > 0


def draw_seed() -> int:
    """A seed for a request that gave none."""
    return secrets.randbits(64)


def _failure(status: int, n_vocab: int) -> EngineError | ConfigError:
    message = _FAILURES[status].format(n=n_vocab)
    return ConfigError(f"logit_bias: {message}") if status == 3 else EngineError(message)


def validate(params: SamplingParams, *, n_vocab: int | None = None) -> None:
    """Raise ConfigError naming the option, its value and what is allowed.

    n_vocab, where known, bounds token ids and logprobs.
    """
    _real("temperature", params.temperature, 0, 100, "0 (greedy) to 100")
    _integer("top_k", params.top_k, -1, None, "an integer; 0 or -1 is off")
    _real("top_p", params.top_p, 0, 1, "0 to 1 (off)")
    _real("min_p", params.min_p, 0, 1, "0 (off) to 1")
    _real("typical_p", params.typical_p, 0, 1, "0 to 1 (off)")
    _real("repeat_penalty", params.repeat_penalty, 0, 100, "above 0, up to 100; 1 is off")
    if params.repeat_penalty == 0:
        raise _refuse("repeat_penalty", params.repeat_penalty, "above 0, up to 100; 1 is off")
    for name in ("presence_penalty", "frequency_penalty"):
        _real(name, getattr(params, name), -100, 100, "-100 to 100; 0 is off")
    _integer("repeat_last_n", params.repeat_last_n, -1, None, "-1 (all), 0 (none) or a number")
    _check_dry(params)
    _real("top_n_sigma", params.top_n_sigma, -1, 100, "-1 or 0 (off) to 100")
    _real("xtc_probability", params.xtc_probability, 0, 1, "0 (off) to 1")
    _real("xtc_threshold", params.xtc_threshold, 0, 1, "0 to 1; above 0.5 is off")
    _real("dynatemp_range", params.dynatemp_range, 0, 100, "0 (off) to 100")
    _real("dynatemp_exponent", params.dynatemp_exponent, 0, 100, "0 to 100")
    if not _is_integer(params.mirostat) or params.mirostat not in (0, 2):
        raise _refuse("mirostat", params.mirostat, "0 (off) or 2")
    _real("mirostat_tau", params.mirostat_tau, 0, 100, "0 to 100 (bits)")
    _real("mirostat_eta", params.mirostat_eta, 0, 1, "0 to 1")
    if params.seed is not None:
        _integer("seed", params.seed, 0, MAX_SEED, "None, or 0 to 2^64 - 1")
    if params.max_tokens is not None:
        allowed = f"None (no limit of its own), or 0 to {MAX_NEW_TOKENS}"
        _integer("max_tokens", params.max_tokens, 0, MAX_NEW_TOKENS, allowed)
    if params.logprobs is not None:
        ceiling = "" if n_vocab is None else f", up to the {n_vocab} of the vocabulary"
        _integer("logprobs", params.logprobs, 0, n_vocab, "None, or 0 and up" + ceiling)
    if not isinstance(params.ignore_eos, bool):
        raise _refuse("ignore_eos", params.ignore_eos, "true or false")
    _check_samplers(params.samplers)
    _check_stop(params.stop)
    _check_bias(params.logit_bias, n_vocab)


def _check_dry(params: SamplingParams) -> None:
    _real("dry_multiplier", params.dry_multiplier, 0, 100, "0 (off) to 100")
    _real("dry_base", params.dry_base, 1, 100, "1 to 100")
    _integer("dry_allowed_length", params.dry_allowed_length, 0, None, "0 and up")
    window = "-1 (all), 0 (none) or a number"
    _integer("dry_penalty_last_n", params.dry_penalty_last_n, -1, None, window)
    _check_breakers(params.dry_sequence_breakers)


def _check_breakers(breakers: object) -> None:
    option = "dry_sequence_breakers"
    if isinstance(breakers, str) or not isinstance(breakers, Sequence):
        raise _refuse(option, breakers, "a sequence of strings; put a single one in a list")
    if len(breakers) > MAX_BREAKERS:
        raise ConfigError(
            f"{option}: {len(breakers)} strings were given; allowed: at most {MAX_BREAKERS}"
        )
    for text in breakers:
        if not isinstance(text, str) or not 0 < _utf8_length(text) <= MAX_BREAKER_BYTES:
            raise _refuse(option, text, f"strings of 1 to {MAX_BREAKER_BYTES} bytes in UTF-8")


def _utf8_length(text: str) -> int:
    """0 where UTF-8 cannot hold it."""
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        return 0


def _check_samplers(samplers: object) -> None:
    allowed = "each at most once, of: " + ", ".join(SAMPLERS)
    if isinstance(samplers, str) or not isinstance(samplers, Sequence):
        raise _refuse("samplers", samplers, "a sequence of names, " + allowed)
    seen: set[str] = set()
    for name in samplers:
        if name not in SAMPLERS or name in seen:
            raise _refuse("samplers", name, allowed)
        seen.add(name)


def _check_stop(stop: object) -> None:
    if isinstance(stop, str) or not isinstance(stop, Sequence):
        raise _refuse("stop", stop, "a sequence of strings; put a single one in a list")
    if len(stop) > MAX_STOPS:
        raise ConfigError(f"stop: {len(stop)} strings were given; allowed: at most {MAX_STOPS}")
    for text in stop:
        if not isinstance(text, str) or not 0 < len(text) <= MAX_STOP_CHARACTERS:
            raise _refuse("stop", text, f"strings of 1 to {MAX_STOP_CHARACTERS} characters")


def _check_bias(bias: object, n_vocab: int | None) -> None:
    if not isinstance(bias, Mapping):
        raise _refuse("logit_bias", bias, "a mapping from token id to a number")
    last = 2**31 - 1 if n_vocab is None else n_vocab - 1
    for token, value in bias.items():
        if not _is_integer(token) or not 0 <= token <= last:
            raise _refuse("logit_bias", token, f"token ids from 0 to {last}")
        if not _is_real(value) or not (-1e30 <= value <= 1e30 or value == -math.inf):
            raise _refuse("logit_bias", value, "-1e30 to 1e30, or -inf to forbid the token")


def _is_integer(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_real(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _real(option: str, value: Any, low: float, high: float, allowed: str) -> None:
    if not _is_real(value) or not low <= value <= high:  # a NaN compares false
        raise _refuse(option, value, allowed)


def _integer(option: str, value: Any, low: int, high: int | None, allowed: str) -> None:
    if not _is_integer(value) or value < low or (high is not None and value > high):
        raise _refuse(option, value, allowed)


def _refuse(option: str, value: object, allowed: str) -> ConfigError:
    shown = repr(value)
    if len(shown) > 80:
        shown = shown[:77] + "..."
    return ConfigError(f"{option}: {shown} was given; allowed: {allowed}")
