"""A sequence that a program moves by hand: tokens in, logits out, one token chosen at a time.

Owns what llama-cpp-python calls the model's state: the ids, the logits of the last of them, and
with logits_all those of all. Keys and values are the engine's: each evaluation is a request whose
beginning the prefix cache has, so a step computes what is new and little more, and a state that is
restored computes again what the cache has lost. The token chosen is the one that the engine would
choose itself from the same ids, seed and parameters.

Invariants: `ids` are those evaluated; `logits` is the row after the last of them, or None where it
has not been computed since they changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from insula.compat.llama_cpp.sampling import LogitsProcessorList
from insula.engine.sampling import Sampled, draw_seed, sample
from insula.errors import ConfigError, ContextOverflowError
from insula.types import SamplingParams

#: (ids, first) -> logits [len(ids) - first, n_vocab].
Logits = Callable[[list[int], int], NDArray[np.float32]]


class TokenState:
    """The state of one `Llama`. all_logits: keep a row of logits per token."""

    def __init__(
        self, logits: Logits, *, n_ctx: int, n_vocab: int, n_batch: int, all_logits: bool
    ) -> None:
        self.all_logits = all_logits
        self.n_ctx, self.n_vocab = n_ctx, n_vocab
        self.ids: list[int] = []
        self.logits: NDArray[np.float32] | None = None
        # Zeros that nobody wrote take no memory.
        self.scores = np.zeros((n_ctx if all_logits else n_batch, n_vocab), np.float32)
        self.mirostat_mu: float | None = None
        self._compute = logits

    def eval(self, tokens: Sequence[int]) -> None:
        """Go on with `tokens`. Raises ContextOverflowError (a ValueError)."""
        added = [int(token) for token in tokens]
        if not added:
            return
        ids = self.ids + added
        if len(ids) > self.n_ctx:
            raise ContextOverflowError(len(ids), self.n_ctx, "reset, or make a larger n_ctx")
        first = len(self.ids) if self.all_logits else len(ids) - 1
        rows = self._compute(ids, first)
        if self.all_logits:
            self.scores[first : len(ids)] = rows
        self.ids, self.logits = ids, rows[-1]

    def keep(self, n: int) -> None:
        """Forget all but the first n tokens."""
        if n < len(self.ids):
            del self.ids[n:]
            self.logits = None

    def common(self, tokens: Sequence[int]) -> int:
        """How many of `tokens` are evaluated already, from the first on."""
        n = 0
        for mine, other in zip(self.ids, tokens, strict=False):
            if mine != other:
                break
            n += 1
        return n

    def last_logits(self) -> NDArray[np.float32]:
        """float32 [n_vocab], for the token after the last one."""
        if not self.ids:
            raise ConfigError("there is nothing to go on from; eval some tokens first")
        if self.logits is None:
            self.logits = self._compute(self.ids, len(self.ids) - 1)[-1]
        return self.logits

    def sample(
        self,
        params: SamplingParams,
        *,
        processors: LogitsProcessorList | None = None,
        index: int | None = None,
    ) -> Sampled:
        """Choose the token after the last one, or after ids[index] where all logits are kept.

        Raises ConfigError for an index whose logits there are none of, or a processor's result
        that is no row of logits.
        """
        at = len(self.ids) - 1 if index is None else index
        if at == len(self.ids) - 1:
            row = self.last_logits()
        elif self.all_logits and 0 <= at < len(self.ids):
            row = self.scores[at]
        else:
            raise ConfigError(
                f"idx: found {index}; allowed: {len(self.ids) - 1}, the last token evaluated"
                + (", or one before it" if self.all_logits else "; logits_all keeps them all")
            )
        history = np.array(self.ids[: at + 1], dtype=np.int32)
        if processors is not None:
            given = processors(history, row.copy())
            row = np.ascontiguousarray(given, dtype=np.float32)
            if row.shape != (self.n_vocab,):
                raise ConfigError(
                    f"logits_processor: gave shape {row.shape}; allowed is ({self.n_vocab},)"
                )
        seed = draw_seed() if params.seed is None else int(params.seed)
        chosen = sample(row, params, history, len(history), seed, mirostat_mu=self.mirostat_mu)
        self.mirostat_mu = chosen.mirostat_mu
        return chosen
