"""How far a next-token distribution is from the float32 one, on a partition known to both.

llama.cpp tells its n most likely tokens. So every distribution, ours too, is looked at on the
same n + 1 events: each of those n tokens, and "any other token". The divergence on a coarser
partition never exceeds the full one (the data processing inequality), and the treatment is the
same for everyone compared.

Names: T positions, N tokens told, V vocabulary; p is float32's distribution, q another's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TINY = 1e-12


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """One engine against float32. kl in nats; margins: how sure float32 was where it flipped."""

    kl: np.ndarray
    flips: np.ndarray
    margins: np.ndarray

    def row(self) -> dict[str, float | int | list[float]]:
        return {
            "positions": len(self.kl),
            "kl_mean": float(self.kl.mean()),
            "kl_median": float(np.median(self.kl)),
            "kl_p99": float(np.quantile(self.kl, 0.99)),
            "kl_p99.9": float(np.quantile(self.kl, 0.999)),
            "kl_max": float(self.kl.max()),
            "same_top": float(1 - self.flips.mean()),
            "flips": int(self.flips.sum()),
            "margin_max": float(self.margins.max(initial=0.0)),
        }


def log_softmax(logits_TV: np.ndarray) -> np.ndarray:
    """Natural-log probabilities, float64."""
    x = logits_TV.astype(np.float64)
    x -= x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def events(logprobs_TN: np.ndarray) -> np.ndarray:
    """Probabilities [T, N+1] of the N told tokens and of any other."""
    p = np.exp(logprobs_TN)
    other = np.maximum(1 - p.sum(axis=-1, keepdims=True), TINY)
    together = np.concatenate([p, other], axis=-1)
    return together / together.sum(axis=-1, keepdims=True)


def divergence(
    reference_TV: np.ndarray, tokens_TN: np.ndarray, logprobs_TN: np.ndarray, top_T: np.ndarray
) -> Divergence:
    """reference_TV: float32's log probabilities; the others tell log q of tokens_TN and argmax."""
    p = events(np.take_along_axis(reference_TV, tokens_TN, axis=-1))
    q = np.maximum(events(logprobs_TN), TINY * TINY)
    kl = (p * (np.log(np.maximum(p, TINY * TINY)) - np.log(q))).sum(axis=-1)
    best = reference_TV.argmax(axis=-1)
    flips = best != top_T
    at = np.arange(len(best))
    margins = reference_TV[at, best] - reference_TV[at, top_T]
    return Divergence(kl=np.maximum(kl, 0), flips=flips, margins=margins[flips])


def ratio_interval(ours: np.ndarray, theirs: np.ndarray, *, draws: int = 2000) -> list[float]:
    """The 95% interval of mean(ours) / mean(theirs), by drawing positions again (paired)."""
    rng = np.random.default_rng(0)
    picks = rng.integers(0, len(ours), (draws, len(ours)))
    ratios = ours[picks].mean(axis=1) / theirs[picks].mean(axis=1)
    return [float(x) for x in np.quantile(ratios, [0.025, 0.975])]
