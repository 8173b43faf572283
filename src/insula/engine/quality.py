"""What a rewritten model lost against the one it was made from: perplexity, KL divergence, speed.

Both models read the same ids in the same windows, each window from an empty cache; every token
but a window's first is scored from the row before it. With p the source's distribution, q the
other's and N tokens scored:

    perplexity   exp(-(1/N) sum ln q(token))
    KL           (1/N) sum over tokens of sum over the vocabulary of p (ln p - ln q), in nats
    same top     share of tokens for which both find the same token the most likely

Owns these formulas, and the built-in text for those who have none of their own (quality.txt: a
page of English and one of Spanish in the public domain, and one of Python). Refuses models whose
vocabularies differ. Needs memory for both models and a few rows of logits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from insula.engine.importance import WINDOW, windows
from insula.engine.runner import PAGE_TOKENS, NativeRunner
from insula.errors import ConfigError, EngineError, UnsupportedError
from insula.models.load import open_model
from insula.ops.graph import Logits

#: Windows that are compared at most where nobody says otherwise.
MOST_WINDOWS = 32
#: Rows of logits that are looked at together: 64 x 256,000 x 8 bytes are 131 MB.
ROWS = 64
#: Single tokens whose median time is the speed, after so many that are not counted.
TIMED, WARM = 32, 4

F64 = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Quality:
    """One model against its source. kl in nats; speeds in tokens a second, one sequence;
    left_out: windows of the text that were not read."""

    text: str
    tokens: int
    window: int
    left_out: int
    perplexity_source: float
    perplexity: float
    kl_mean: float
    kl_median: float
    kl_p99: float
    kl_max: float
    same_top: float
    decode_tokens_per_second_source: float
    decode_tokens_per_second: float

    def row(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        return asdict(self)


def builtin_text() -> str:
    """The text that comes with the package."""
    return (files("insula.engine") / "quality.txt").read_text(encoding="utf-8")


def compare(
    source: str | Path,
    other: str | Path,
    text: str,
    *,
    name: str = "",
    window: int = WINDOW,
    most: int | None = MOST_WINDOWS,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Quality:
    """Compare the models in two files on `text`, called `name`, in `most` windows at most.

    Raises what `open_model` and `NativeRunner` raise, and ConfigError for vocabularies that
    differ or a text of fewer than two tokens, EngineError for logits that are no numbers.
    """
    with open_model(source) as first, open_model(other) as second:
        if first.graph.n_vocab != second.graph.n_vocab:
            raise ConfigError(
                f"the source has {first.graph.n_vocab} tokens and the other model "
                f"{second.graph.n_vocab}; only models of one vocabulary can be compared"
            )
        for model in (first, second):
            if not isinstance(model.graph.ops[-1], Logits):
                raise UnsupportedError(
                    f"{model.gguf.path.name} gives no logits (it is a model for embeddings); there "
                    "is nothing to compare",
                    backend="native",
                )
        window = min(window, first.graph.n_ctx_train, second.graph.n_ctx_train)
        every = windows(first, text, window=window)
        parts = every[:most]
        runners = []
        try:
            for model in (first, second):
                runners.append(
                    NativeRunner(
                        model.graph,
                        model.gguf,
                        n_pages=-(-(window + TIMED + WARM) // PAGE_TOKENS),
                        threads=threads,
                        max_rows=ROWS,
                    )
                )
            found = []
            for done, ids in enumerate(parts, 1):
                found.append(_window(runners[0], runners[1], ids))
                if progress is not None:
                    progress(done, len(parts))
            speeds = [_speed(runner, parts[0]) for runner in runners]
        finally:
            for runner in runners:
                runner.close()
    kl, nll_p, nll_q, same = (np.concatenate(values) for values in zip(*found, strict=True))
    if not (np.isfinite(kl).all() and np.isfinite(nll_p).all()):
        raise EngineError("one of the models gives logits that are not finite; nothing to compare")
    return Quality(
        text=name,
        tokens=len(kl),
        window=window,
        left_out=len(every) - len(parts),
        perplexity_source=float(np.exp(nll_p.mean())),
        perplexity=float(np.exp(nll_q.mean())),
        kl_mean=float(kl.mean()),
        kl_median=float(np.median(kl)),
        kl_p99=float(np.quantile(kl, 0.99)),
        kl_max=float(kl.max()),
        same_top=float(same.mean()),
        decode_tokens_per_second_source=speeds[0],
        decode_tokens_per_second=speeds[1],
    )


def _window(p: NativeRunner, q: NativeRunner, ids: Sequence[int]) -> tuple[F64, F64, F64, F64]:
    """KL, -ln p, -ln q and 0 or 1 for the same top, each float64 [len(ids) - 1]."""
    n = len(ids) - 1
    kl, nll_p, nll_q, same = (np.empty(n) for _ in range(4))
    for start in range(0, n, ROWS):
        stop = min(n, start + ROWS)
        at, following = np.arange(stop - start), np.asarray(ids[start + 1 : stop + 1])
        p_TV = log_softmax(step(p, ids, start, stop))
        q_TV = log_softmax(step(q, ids, start, stop))
        part = (np.exp(p_TV) * (p_TV - q_TV)).sum(axis=-1)
        kl[start:stop] = np.maximum(part, 0.0)  # rounding may leave -1e-16
        nll_p[start:stop] = -p_TV[at, following]
        nll_q[start:stop] = -q_TV[at, following]
        same[start:stop] = p_TV.argmax(axis=-1) == q_TV.argmax(axis=-1)
    return kl, nll_p, nll_q, same


def step(runner: NativeRunner, ids: Sequence[int], start: int, stop: int) -> NDArray[np.float32]:
    """Logits float32 [stop - start, V] of one sequence's tokens start to stop - 1."""
    n = stop - start
    table = np.arange(runner.n_pages, dtype=np.int32)
    positions = np.arange(start, stop)
    return runner.step(ids[start:stop], positions, np.zeros(n, np.int32), [table], np.arange(n))


def log_softmax(logits_TV: NDArray[np.float32]) -> F64:
    """Natural-log probabilities."""
    x = logits_TV.astype(np.float64)
    x -= x.max(axis=-1, keepdims=True)
    x -= np.log(np.exp(x).sum(axis=-1, keepdims=True))
    return x


def _speed(runner: NativeRunner, ids: Sequence[int]) -> float:
    """Tokens a second of one sequence that goes on after `ids`: the median step."""
    table, zero = np.arange(runner.n_pages, dtype=np.int32), np.zeros(1, np.int32)
    seconds = []
    first = min(len(ids), max(0, runner.graph.n_ctx_train - WARM - TIMED))
    for at in range(first, min(first + WARM + TIMED, runner.graph.n_ctx_train)):
        begun = time.perf_counter()
        runner.step(ids[-1:], [at], zero, [table], zero)
        seconds.append(time.perf_counter() - begun)
    return 1.0 / float(np.median(seconds[WARM:] or seconds or [math.inf]))
