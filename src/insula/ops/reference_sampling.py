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
from collections.abc import Mapping

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


def uniform_at(seed: int, position: int) -> float:
    """The uniform in [0, 1) of a position: 53 bits, of which word 1 gives the high 26."""
    words = philox4x32(
        (position & _MASK32, position >> 32, 0, 0), (seed & _MASK32, (seed >> 32) & _MASK32)
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


def distribution(
    logits: npt.NDArray[np.float32],
    params: SamplingParams,
    history: npt.NDArray[np.int32],
    allowed: npt.NDArray[np.uint32] | None = None,
) -> F64:
    """The probabilities that the next token is drawn from, float64 [n_vocab]."""
    x_V = logit_bias(logits.astype(np.float64), params.logit_bias)
    if allowed is not None:
        x_V = allowed_only(x_V, allowed)
    greedy = params.temperature <= 0
    t = 1.0
    for name in params.samplers:
        if greedy and name != "penalties":
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
            case "top_k":
                x_V = top_k(x_V, params.top_k)
            case "typical_p":
                x_V = typical_p(x_V, params.typical_p, t)
            case "top_p":
                x_V = top_p(x_V, params.top_p, t)
            case "min_p":
                x_V = min_p(x_V, params.min_p, t)
            case "temperature":
                t = params.temperature
    if greedy:
        p_V = np.zeros(len(x_V))
        p_V[best_first(x_V)[0]] = 1.0
        return p_V
    return softmax(x_V, t)


def choose(p_V: F64, u: float) -> int:
    """Inverse transform over ascending ids: the first whose cumulative probability exceeds u."""
    return int(min(np.searchsorted(np.cumsum(p_V), u, side="right"), np.flatnonzero(p_V)[-1]))


def log_probabilities(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Natural-log probabilities of the raw logits, float32 [n_vocab], saturating."""
    x_V = logits.astype(np.float64)
    shifted = x_V - x_V.max()
    return _to_float32(shifted - np.log(np.exp(shifted).sum())).astype(np.float32)
