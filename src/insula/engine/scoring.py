"""What a model makes of a given text: raw logits, and perplexity over windows.

Owns the formulas. Everything is asked of the engine as requests that generate nothing, so it
shares batches with whatever else runs, leaves nothing in the prefix cache unless it is told to, and
needs memory for a few rows of logits at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import numpy as np
from numpy.typing import NDArray

from insula.engine.request import LogitsCallback, Request, TextEngine, Tokenizer
from insula.engine.sampling import log_probabilities
from insula.errors import ConfigError
from insula.types import SamplingParams, TokenLogprob

_EVALUATE = SamplingParams(max_tokens=0)


def prompt_logits(
    engine: TextEngine, ids: Sequence[int], *, first: int = 0, use_cache: bool = False
) -> NDArray[np.float32]:
    """Raw logits float32 [T - first, n_vocab]; row t is the distribution of the token after
    ids[first + t]. use_cache: what lies before `first` may come from the prefix cache, and stays
    in it. Raises ConfigError.
    """
    if not _is_count(first) or not 0 <= first < max(1, len(ids)):
        raise ConfigError(f"first: found {first!r}; allowed: 0 to {len(ids) - 1}, the last token")
    out = np.empty((len(ids) - first, engine.n_vocab), dtype=np.float32)

    def take(start: int, logits_TV: NDArray[np.float32]) -> None:
        out[start - first : start - first + len(logits_TV)] = logits_TV

    _evaluate(engine, ids, take, first, use_cache=use_cache)
    return out


def perplexity(
    engine: TextEngine, ids: Sequence[int], *, window: int | None = None, stride: int | None = None
) -> float:
    """exp of the mean negative natural-log likelihood per token:

        exp(-(1/N) * sum over i of ln p(ids[i] | ids[start of i's window .. i-1]))

    over all N = len(ids) - 1 tokens but the first. Windows hold `window` tokens (default: the
    context) and begin `stride` tokens apart (default: half a window). A token is scored in the
    first window that holds it, so beyond the first window each has at least window - stride
    tokens before it. Raises ConfigError for numbers out of range or fewer than two tokens.
    """
    window = engine.n_ctx if window is None else window
    if not _is_count(window) or not 2 <= window <= engine.n_ctx:
        raise ConfigError(f"window: found {window!r}; allowed: 2 to {engine.n_ctx} (the context)")
    stride = max(1, window // 2) if stride is None else stride
    if not _is_count(stride) or not 1 <= stride < window:
        raise ConfigError(f"stride: found {stride!r}; allowed: 1 to {window - 1} (window - 1)")
    if len(ids) < 2:
        raise ConfigError(f"perplexity needs at least 2 tokens; found {len(ids)}")
    scored, total = 1, 0.0
    start = 0
    while scored < len(ids):
        part = list(ids[start : start + window])
        total += _negative_log_likelihood(engine, part, scored - start)
        scored = start + len(part)
        start += stride
    return float(np.exp(total / (len(ids) - 1)))


class PromptLogprobs:
    """Log probabilities of a prompt's own tokens, gathered while it is evaluated: give `take` to
    the request as on_prompt_logits, and look at `found` when it has ended.

    top: how many alternatives per token. Numbers are those the sampler would report.
    """

    def __init__(self, tokenizer: Tokenizer, ids: Sequence[int], *, top: int) -> None:
        self._ids, self._top = ids, top
        self._bytes_of = tokenizer.token_bytes
        self._found: list[TokenLogprob | None] = [None]

    def take(self, start: int, logits_TV: NDArray[np.float32]) -> None:
        for t, row in enumerate(logits_TV, start=start + 1):
            if t == len(self._ids):  # the token after the prompt is the answer's first
                break
            logprob, likeliest = log_probabilities(row, self._ids[t], self._top)
            self._found.append(
                TokenLogprob(
                    token_id=self._ids[t],
                    token=self._bytes_of(self._ids[t]),
                    logprob=logprob,
                    top=tuple((i, self._bytes_of(i), p) for i, p in likeliest),
                )
            )

    @property
    def found(self) -> tuple[TokenLogprob | None, ...]:
        return tuple(self._found)


def _is_count(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _negative_log_likelihood(engine: TextEngine, ids: list[int], first: int) -> float:
    """Sum of -ln p over ids[first:], first >= 1."""
    total = 0.0

    def take(start: int, logits_TV: NDArray[np.float32]) -> None:
        nonlocal total
        for t, row in enumerate(logits_TV, start=start + 1):
            x = row.astype(np.float64)
            top = x.max()
            total += float(np.log(np.exp(x - top).sum()) + top - x[ids[t]])

    # A token is scored by the row before it.
    _evaluate(engine, ids[:-1], take, first - 1)
    return total


def _evaluate(
    engine: TextEngine,
    ids: Sequence[int],
    take: LogitsCallback,
    first: int,
    *,
    use_cache: bool = False,
) -> None:
    request = Request(
        ids=tuple(ids),
        params=_EVALUATE,
        use_cache=use_cache,
        on_prompt_logits=take,
        prompt_logits_from=first,
    )
    handle = engine.submit(request)
    try:
        handle.result()
    finally:
        handle.cancel()
