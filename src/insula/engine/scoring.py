"""What a model makes of a given text: raw logits, probabilities of what may follow, and perplexity
over windows.

Owns the formulas. Everything is asked of the engine as requests that generate nothing, so it
shares batches with whatever else runs, leaves nothing in the prefix cache unless it is told to, and
needs memory for a few rows of logits at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral

import numpy as np
from numpy.typing import NDArray

from insula.engine.request import Handle, LogitsCallback, Request, TextEngine, Tokenizer
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


def continuation_logprobs(
    engine: TextEngine,
    prompts: Sequence[tuple[int, ...]],
    continuations: Sequence[Sequence[tuple[int, ...]]],
    *,
    use_cache: bool = True,
    salt: str = "",
    adapter: str | None = None,
) -> list[list[NDArray[np.float64]]]:
    """For each prompt and each of its continuations, ln p of each of the continuation's tokens:

        ln p(c[j] | prompt, c[0 .. j-1])

    All run together. What several continuations have in common is asked for once, and their prompt
    is computed once if the cache may be used. Raises ConfigError for an empty prompt or
    continuation, and what `submit` raises.
    """
    n_vocab = engine.n_vocab
    for prompt, choices in zip(prompts, continuations, strict=True):
        if not prompt or not all(choices):
            raise ConfigError(
                "a prompt or a continuation has no tokens; each needs one at least, or there is "
                "nothing whose probability could be told"
            )
        wrong = [i for choice in choices for i in choice if not 0 <= i < n_vocab]
        if wrong:
            raise ConfigError(f"token id {wrong[0]}: the vocabulary has 0 to {n_vocab - 1}")
    found = [[np.empty(len(c)) for c in choices] for choices in continuations]
    requests = []
    for prompt, choices, out in zip(prompts, continuations, found, strict=True):
        for asked, served in _shared(choices).items():
            requests.append(
                Request(
                    ids=(*prompt, *asked),
                    params=_EVALUATE,
                    use_cache=use_cache,
                    salt=salt,
                    adapter=adapter,
                    on_prompt_logits=_picker(
                        len(prompt) - 1, [(choices[i], out[i]) for i in served]
                    ),
                    prompt_logits_from=len(prompt) - 1,
                )
            )
    with _submitted(engine, requests) as handles:
        for handle in handles:
            handle.result()
    return found


def _shared(choices: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], list[int]]:
    """What must be computed after the prompt, and which of the choices each of it serves.

    A choice needs the logits before each of its tokens, so all of its tokens but the last; that
    may be the beginning of what another one needs.
    """
    bodies = sorted({choice[:-1] for choice in choices}, key=len, reverse=True)
    lengths = {len(body) for body in bodies}
    host: dict[tuple[int, ...], tuple[int, ...]] = {}
    for body in bodies:
        if body not in host:
            for n in lengths:
                host.setdefault(body[:n], body)
    serves: dict[tuple[int, ...], list[int]] = {}
    for i, choice in enumerate(choices):
        serves.setdefault(host[choice[:-1]], []).append(i)
    return serves


def _picker(
    first: int, served: Sequence[tuple[tuple[int, ...], NDArray[np.float64]]]
) -> LogitsCallback:
    """Writes ln p of each choice's j-th token, told by the logits of position first + j."""

    def take(start: int, logits_TV: NDArray[np.float32]) -> None:
        for j, row in enumerate(logits_TV, start=start - first):
            wanted = [(choice, out) for choice, out in served if j < len(choice)]
            if wanted:
                x = row.astype(np.float64)
                top = x.max()
                total = top + np.log(np.exp(x - top).sum())
                for choice, out in wanted:
                    out[j] = x[choice[j]] - total

    return take


@contextmanager
def _submitted(engine: TextEngine, requests: Sequence[Request]) -> Iterator[list[Handle]]:
    """The requests' handles; none goes on alone if one fails."""
    handles: list[Handle] = []
    try:
        for request in requests:
            handles.append(engine.submit(request))
        yield handles
    finally:
        for handle in handles:
            handle.cancel()


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
    with _submitted(engine, [request]) as [handle]:
        handle.result()
