"""One request while it is in the engine: its tokens, its pages, and what its caller sees.

Owns `Sequence` (state that the scheduler moves) and `Output` (text, chunks, the final report).
`ids` are prompt and completion together; the first `n_computed` of them have keys and values in
`pages`. `pending` tokens are left to run; when none is, the next token can be sampled. There is
no other difference between prefill, decode and recomputation.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from insula.engine.constraint import Matcher
from insula.engine.kvcache import Node
from insula.engine.request import Detokenizer, Request
from insula.engine.sampling import Sampler
from insula.engine.stops import StopStrings
from insula.types import Chunk, Completion, FinishReason, Report, SamplingParams, TokenLogprob


class Sequence:
    """The tokens and pages of one request."""

    def __init__(
        self,
        request: Request,
        *,
        params: SamplingParams,
        sampler: Sampler,
        seed: int,
        limit: int,
        output: Output,
        adapter: int = -1,
        matcher: Matcher | None = None,
    ) -> None:
        self.request = request
        self.params = params
        self.sampler = sampler
        self.seed = seed
        self.mirostat_mu: float | None = None  # goes on from token to token, as ids do
        self.limit = limit
        self.adapter = adapter  # its place among the runner's, -1: none
        self.matcher = matcher  # of the constraint; what was accepted stays so when pages go
        self.output = output
        self.ids = list(request.ids)
        self.n_prompt = len(self.ids)
        self.n_computed = 0
        # Prompt positions whose logits the caller has had, or does not want.
        self.n_delivered = request.prompt_logits_from
        self.pages: list[int] = []
        self.node: Node | None = None  # the prefix tree's node of our last kept page
        self.n_kept = 0  # pages of ours that the prefix tree has
        self.cached_tokens: int | None = None
        self.awaits_disk = False  # it is not admitted before the disk has been asked
        self.disk_tokens = 0  # whose keys and values were read from disk for it
        self.notes: list[str] = []
        self.preemptions = 0
        # Speculation: guesses run, guesses that held, their running share (None: no guess yet).
        self.draft_proposed = 0
        self.draft_accepted = 0
        self.acceptance: float | None = None
        self.unrun_guess: tuple[int, int] | None = None  # (index, token)
        self.done = False
        self._history = np.empty(self.n_prompt + 64, dtype=np.int32)
        self._history[: self.n_prompt] = self.ids

    @property
    def pending(self) -> int:
        return len(self.ids) - self.n_computed

    @property
    def n_generated(self) -> int:
        return len(self.ids) - self.n_prompt

    @property
    def tokens_left(self) -> int:
        """Most tokens that may still be generated."""
        left = self.limit - len(self.ids)
        if self.params.max_tokens is None:
            return left
        return min(left, self.params.max_tokens - self.n_generated)

    @property
    def history(self) -> NDArray[np.int32]:
        """Prompt and completion so far: int32 [len(ids)]."""
        return self._history[: len(self.ids)]

    @property
    def wants_prompt_logits(self) -> bool:
        return self.request.on_prompt_logits is not None and self.n_delivered < self.n_prompt

    def append(self, token_id: int) -> None:
        if len(self.ids) == len(self._history):
            self._history = np.concatenate([self._history, np.empty_like(self._history)])
        self._history[len(self.ids)] = token_id
        self.ids.append(token_id)


@dataclass(frozen=True, kw_only=True)
class EngineFacts:
    """What a report says of the engine."""

    name: str
    reason: str
    isa: str
    threads: int


class Output:
    """What the caller of one request sees: chunks, in order, then the end or an error."""

    def __init__(self, *, detokenizer: Detokenizer, stops: Items[str], facts: EngineFacts) -> None:
        self.chunks: deque[Chunk] = deque()
        self.error: BaseException | None = None
        self.completion: Completion | None = None
        self.started: float | None = None
        self._facts = facts
        self._detokenizer = detokenizer
        self._stops = StopStrings(stops)
        self._text: list[str] = []
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._submitted = time.perf_counter()
        self._first: float | None = None
        self._last = 0.0

    @property
    def ready(self) -> bool:
        """There is something for the caller to see."""
        return bool(self.chunks) or self.completion is not None or self.error is not None

    def push(self, token_id: int, logprob: TokenLogprob | None, now: float) -> bool:
        """Take a token in. Returns True if it completed a stop string."""
        waited = None
        if self._first is None:
            self._first = now
            waited = max(0.0, (self.started or now) - self._submitted)
        self._last = now
        self._token_ids.append(token_id)
        text = self._stops.push(self._detokenizer.push(token_id))
        self._text.append(text)
        if logprob is not None:
            self._logprobs.append(logprob)
        self.chunks.append(
            Chunk(
                text=text,
                token_ids=(token_id,),
                logprobs=None if logprob is None else (logprob,),
                queue_seconds=waited,
            )
        )
        return self._stops.hit is not None

    def finish(self, seq: Sequence, reason: FinishReason, now: float) -> None:
        """Put out the last chunk, with what was held back and the whole completion."""
        rest = self._stops.push(self._detokenizer.flush())
        if self._stops.hit is not None and reason != "cancelled":
            reason = "stop"
        rest += self._stops.flush()
        self._text.append(rest)
        logprobs = tuple(self._logprobs) if seq.params.logprobs is not None else None
        completion = Completion(
            text="".join(self._text),
            token_ids=tuple(self._token_ids),
            finish_reason=reason,
            logprobs=logprobs,
            report=self._report(seq, now),
        )
        self.chunks.append(
            Chunk(text=rest, token_ids=(), finish_reason=reason, completion=completion)
        )
        # Last, because a reader that sees it takes the chunks for complete.
        self.completion = completion

    def fail(self, error: BaseException) -> None:
        self.error = error

    def _report(self, seq: Sequence, now: float) -> Report:
        request, n = seq.request, len(self._token_ids)
        notes = [*request.notes, *seq.notes]
        if seq.preemptions:
            notes.append(
                f"the KV cache was full: this request gave way and was computed again "
                f"{seq.preemptions} time(s)"
            )
        cached = seq.cached_tokens or 0
        prefill_end = self._first if self._first is not None else now
        prefill = prefill_end - (self.started if self.started is not None else prefill_end)
        decode = self._last - self._first if self._first is not None else 0.0
        return Report(
            engine=self._facts.name,
            engine_reason=self._facts.reason,
            isa=self._facts.isa,
            threads=self._facts.threads,
            seed=seq.seed,
            prompt_tokens=seq.n_prompt,
            completion_tokens=n,
            cached_tokens=cached,
            cached_from_disk=min(cached, seq.disk_tokens),
            time_to_first_token=self._first - self._submitted if self._first is not None else 0.0,
            prompt_tokens_per_second=(seq.n_prompt - cached) / prefill if prefill > 0 else 0.0,
            decode_tokens_per_second=(n - 1) / decode if n > 1 and decode > 0 else 0.0,
            queue_seconds=max(
                0.0, (now if self.started is None else self.started) - self._submitted
            ),
            dropped_turns=request.dropped_turns,
            dropped_tokens=request.dropped_tokens,
            draft_proposed=seq.draft_proposed,
            draft_accepted=seq.draft_accepted,
            notes=tuple(notes),
        )
