"""What choosing a token means, in NumPy: the definitions that the native samplers are held to.

Owns the plain form of every sampler, the generator and the log-probabilities. Written to be read:
float64, whole-row, sorted where that is simplest; nothing here is fast and nothing at run time
calls it.

Legend: x_V logits float64 [n_vocab], -inf where a token is out; p_V probabilities; t the
temperature if that sampler has acted already, else 1: probabilities are softmax(x_V / t). (Dividing
x_V itself would overflow for huge logits, and merge tiny ones.)
Every sampler takes x_V and returns a new x_V. Ties are always broken towards the lower id.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from insula.types import SamplingParams

F64 = npt.NDArray[np.float64]
FLOAT_MAX = float(np.finfo(np.float32).max)
_MASK32 = 0xFFFFFFFF


def philox4x32(
    counter: tuple[int, int, int, int], key: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Philox4x32-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (
            (b >> 32) ^ c1 ^ k0,
            b & _MASK32,
            (a >> 32) ^ c3 ^ k1,
            a & _MASK32,
        )
        k0, k1 = (k0 + 0x9E3779B9) & _MASK32, (k1 + 0xBB67AE85) & _MASK32
    return c0, c1, c2, c3


def uniform_at(seed: int, position: int, stream: int = 0) -> float:
    """The uniform in [0, 1) of a position: 53 bits, of which word 1 gives the high 26.

    stream: 0 for the token, 1 for XTC's coin.
    """
    words = philox4x32(
        (position & _MASK32, position >> 32, stream, 0), (seed & _MASK32, (seed >> 32) & _MASK32)
    )
    return ((words[1] >> 6) << 27 | words[0] >> 5) * 2.0**-53


def _below_highest(x_V: F64, t: float) -> F64:
    with np.errstate(over="ignore"):
        out: F64 = (x_V - x_V.max()) / max(t, float(np.finfo(np.float64).tiny))
    return out


def softmax(x_V: F64, t: float = 1.0) -> F64:
    """exp(x / t) / sum exp(x / t); tokens at -inf get 0."""
    w_V = np.exp(_below_highest(x_V, t))
    p_V: F64 = w_V / w_V.sum()
    return p_V


def best_first(x_V: F64) -> npt.NDArray[np.int64]:
    """Ids by descending logit, then ascending id; tokens that are out are left off."""
    ids = np.lexsort((np.arange(len(x_V)), -x_V))
    return ids[x_V[ids] > -np.inf]


def _only(x_V: F64, ids: npt.NDArray[np.int64]) -> F64:
    out = np.full_like(x_V, -np.inf)
    out[ids] = x_V[ids]
    return out


def _to_float32(x_V: F64) -> F64:
    """Round to float32, saturating: an adjusted logit stays finite; -inf stays -inf."""
    clipped = np.where(np.isneginf(x_V), x_V, np.clip(x_V, -FLOAT_MAX, FLOAT_MAX))
    return clipped.astype(np.float32).astype(np.float64)


def logit_bias(x_V: F64, bias: Mapping[int, float]) -> F64:
    """x_i + b_i. A bias of -inf forbids the token."""
    out = x_V.copy()
    for token, value in bias.items():
        out[token] += float(np.float32(value))
    return _to_float32(out)


def allowed_only(x_V: F64, mask: npt.NDArray[np.uint32]) -> F64:
    """Tokens whose bit (id % 32 of word id // 32) is set."""
    ids = np.arange(len(x_V))
    bit = (mask[ids // 32] >> (ids % 32).astype(np.uint32)) & 1
    return np.where(bit == 1, x_V, -np.inf)


def penalties(
    x_V: F64,
    history: npt.NDArray[np.int32],
    *,
    repeat_penalty: float,
    presence_penalty: float,
    frequency_penalty: float,
    repeat_last_n: int,
    t: float = 1.0,
) -> F64:
    """Tokens of the window, n_i times in it, are made less likely.

    y_i <- (y_i * r if y_i <= 0 else y_i / r) - (n_i * frequency + presence), with y = x / t;
    r after Keskar et al., CTRL (arXiv:1909.05858), the others after OpenAI's API.
    """
    if repeat_last_n == 0:
        return x_V
    window = history if repeat_last_n < 0 else history[-repeat_last_n:]
    out = x_V.copy()
    for token, count in zip(*np.unique(window, return_counts=True), strict=True):
        value = out[token]
        value = value * repeat_penalty if value <= 0 else value / repeat_penalty
        out[token] = value - (int(count) * frequency_penalty + presence_penalty) * t
    return _to_float32(out)


def top_k(x_V: F64, k: int) -> F64:
    """The k highest (Fan et al., arXiv:1805.04833). Exactly k, also where the k-th is tied."""
    return x_V if k <= 0 else _only(x_V, best_first(x_V)[:k])


def typical_p(x_V: F64, p: float, t: float = 1.0) -> F64:
    """Locally typical sampling (Meister et al., arXiv:2202.00666).

    The tokens whose surprise -log p_i is nearest to the entropy H, nearest first, until their mass
    exceeds p.
    """
    if p >= 1:
        return x_V
    p_V = softmax(x_V, t)
    below_V = _below_highest(x_V, t)
    surprise_V = np.log(np.exp(below_V).sum()) - below_V
    held = p_V > 0
    entropy = float((p_V[held] * surprise_V[held]).sum())
    alive = np.flatnonzero(x_V > -np.inf)
    order = alive[np.lexsort((alive, np.abs(surprise_V[alive] - entropy)))]
    return _only(x_V, order[: _reach(np.cumsum(p_V[order]) > p)])


def top_p(x_V: F64, p: float, t: float = 1.0) -> F64:
    """Nucleus sampling (Holtzman et al., arXiv:1904.09751): the fewest best that hold mass p."""
    if p >= 1:
        return x_V
    order = best_first(x_V)
    return _only(x_V, order[: _reach(np.cumsum(softmax(x_V, t)[order]) >= p)])


def _reach(reached: npt.NDArray[np.bool_]) -> int:
    return int(np.argmax(reached)) + 1 if reached.any() else len(reached)


def min_p(x_V: F64, p: float, t: float = 1.0) -> F64:
    """p_i >= p * max p (Nguyen et al., arXiv:2407.01082), compared as logits."""
    return x_V if p <= 0 else np.where(x_V >= x_V.max() + t * math.log(p), x_V, -np.inf)


def dry(
    x_V: F64,
    history: npt.NDArray[np.int32],
    *,
    multiplier: float,
    base: float,
    allowed_length: int,
    last_n: int,
    breakers: Sequence[Sequence[int]] = (),
    t: float = 1.0,
) -> F64:
    """DRY of p-e-w (https://github.com/oobabooga/text-generation-webui/pull/5677).

    A token that once followed the context's last n tokens would carry on a repetition of n; of
    several n the longest counts, up to the last sequence breaker. If n >= allowed_length,
    y <- y - multiplier * base^(n - allowed_length), y = x / t. A token that is a breaker is spared.
    Where several breakers begin at one place the longest counts, as in llama.cpp.
    """
    if multiplier <= 0 or last_n == 0:
        return x_V
    window = (history if last_n < 0 else history[-last_n:]).tolist()
    known = [list(ids) for ids in breakers]
    limit = len(window)
    for start in reversed(range(len(window))):
        fitting = [ids for ids in known if window[start : start + len(ids)] == ids]
        if fitting:
            limit = len(window) - start - max(map(len, fitting))
            break
    longest: dict[int, int] = {}
    for at in range(1, len(window)):
        n = 0
        while n < min(at, limit) and window[at - 1 - n] == window[-1 - n]:
            n += 1
        longest[window[at]] = max(n, longest.get(window[at], 0))
    out = x_V.copy()
    for token, n in longest.items():
        if n >= allowed_length and [token] not in known:
            with np.errstate(over="ignore"):
                loss = multiplier * np.power(np.float64(base), n - allowed_length)
            out[token] -= min(float(loss), FLOAT_MAX) * t
    return _to_float32(out)


def top_n_sigma(x_V: F64, n: float) -> F64:
    """Tang et al., "Top-nsigma: not all logits are you need" (arXiv:2411.07641).

    x_i >= max x - n sigma, sigma the standard deviation of what is left.
    """
    if n <= 0:
        return x_V
    left = x_V[x_V > -np.inf]
    return np.where(x_V >= left.max() - n * left.std(), x_V, -np.inf)


def xtc(x_V: F64, threshold: float, t: float = 1.0) -> F64:
    """Exclude top choices (p-e-w, https://github.com/oobabooga/text-generation-webui/pull/6335).

    Of the tokens with p_i >= threshold the least likely stays, of equal ones the highest id. A
    coin decides whether that happens at all; see `distribution`.
    """
    order = best_first(x_V)
    above = order[softmax(x_V, t)[order] >= threshold]
    out = x_V.copy()
    out[above[:-1]] = -np.inf
    return out


def dynamic_temperature(
    x_V: F64, temperature: float, spread: float, exponent: float, t: float = 1.0
) -> float:
    """Entropy-based temperature (kalomaze, https://github.com/ggml-org/llama.cpp/pull/4972).

    From temperature - spread (not below 0) to temperature + spread, by (H / ln N)^exponent with H
    the entropy of the N tokens that are left.
    """
    n_left = int((x_V > -np.inf).sum())
    if spread <= 0 or n_left < 2:
        return temperature
    p_V = softmax(x_V, t)
    below_V = _below_highest(x_V, t)
    held = p_V > 0
    surprise_V = np.log(np.exp(below_V).sum()) - below_V
    share = min(float((p_V[held] * surprise_V[held]).sum()) / math.log(n_left), 1.0)
    low = max(0.0, temperature - spread)
    return float(low + (temperature + spread - low) * share**exponent)


def mirostat(x_V: F64, mu: float, t: float = 1.0) -> F64:
    """Mirostat 2 (Basu et al., arXiv:2007.14966; https://github.com/basusourya/mirostat).

    The best token, and all with -log2 p_i <= mu, compared as logits.
    """
    highest = x_V.max()
    log_total = math.log(np.exp(_below_highest(x_V, t)).sum())
    threshold = min(highest, highest + t * (log_total - mu * math.log(2)))
    return np.where(x_V >= threshold, x_V, -np.inf)


def next_mu(p_V: F64, token: int, mu: float, *, tau: float, eta: float) -> float:
    """mu after a token: mu - eta * (its surprise in bits - tau), under what it was drawn from."""
    return mu - eta * (-math.log2(p_V[token]) - tau)


def distribution(
    logits: npt.NDArray[np.float32],
    params: SamplingParams,
    history: npt.NDArray[np.int32],
    allowed: npt.NDArray[np.uint32] | None = None,
    *,
    breakers: Sequence[Sequence[int]] = (),
    position: int = 0,
    seed: int = 0,
    mirostat_mu: float | None = None,
) -> F64:
    """The probabilities that the next token is drawn from, float64 [n_vocab]."""
    x_V = logit_bias(logits.astype(np.float64), params.logit_bias)
    if allowed is not None:
        x_V = allowed_only(x_V, allowed)
    greedy = params.temperature <= 0
    t = 1.0
    for name in params.samplers:
        if greedy and name not in ("penalties", "dry"):
            continue
        if params.mirostat == 2 and name not in ("penalties", "dry", "temperature"):
            continue
        match name:
            case "penalties":
                x_V = penalties(
                    x_V,
                    history,
                    repeat_penalty=params.repeat_penalty,
                    presence_penalty=params.presence_penalty,
                    frequency_penalty=params.frequency_penalty,
                    repeat_last_n=params.repeat_last_n,
                    t=t,
                )
            case "dry":
                x_V = dry(
                    x_V,
                    history,
                    multiplier=params.dry_multiplier,
                    base=params.dry_base,
                    allowed_length=params.dry_allowed_length,
                    last_n=params.dry_penalty_last_n,
                    breakers=breakers,
                    t=t,
                )
            case "top_n_sigma":
                x_V = top_n_sigma(x_V, params.top_n_sigma)
            case "top_k":
                x_V = top_k(x_V, params.top_k)
            case "typical_p":
                x_V = typical_p(x_V, params.typical_p, t)
            case "top_p":
                x_V = top_p(x_V, params.top_p, t)
            case "min_p":
                x_V = min_p(x_V, params.min_p, t)
            case "xtc":
                coin = uniform_at(seed, position, 1)
                if coin < params.xtc_probability and params.xtc_threshold <= 0.5:
                    x_V = xtc(x_V, params.xtc_threshold, t)
            case "temperature":
                t = dynamic_temperature(
                    x_V, params.temperature, params.dynatemp_range, params.dynatemp_exponent, t
                )
    if greedy:
        p_V = np.zeros(len(x_V))
        p_V[best_first(x_V)[0]] = 1.0
        return p_V
    if params.mirostat == 2:
        mu = 2 * params.mirostat_tau if mirostat_mu is None else mirostat_mu
        x_V = mirostat(x_V, mu, t)
    return softmax(x_V, t)


def choose(p_V: F64, u: float) -> int:
    """Inverse transform over ascending ids: the first whose cumulative probability exceeds u."""
    return int(min(np.searchsorted(np.cumsum(p_V), u, side="right"), np.flatnonzero(p_V)[-1]))


def log_probabilities(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Natural-log probabilities of the raw logits, float32 [n_vocab], saturating."""
    x_V = logits.astype(np.float64)
    shifted = x_V - x_V.max()
    return _to_float32(shifted - np.log(np.exp(shifted).sum())).astype(np.float32)
