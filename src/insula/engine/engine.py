"""Requests in, chunks out: one runner, one scheduler, any number of calling threads.

Owns the life of a request: submit (checked, queued), step (plan, run, sample, give out), finish
or cancel. There is no thread of its own: whoever waits for a chunk and finds nobody stepping
steps for all, the others wait for that step and look again.

Invariants:
- Only the thread that has set `_stepping` touches scheduler and runner, or whoever holds `_turn`
  while nobody has. `_turn` is not held during a step and is not reentrant.
- What is submitted or cancelled goes into an inbox first, without a lock, so that a finalizer may
  cancel in the middle of anything. Whoever lets go of `_turn` looks into the inboxes again.
- A SIGINT is delivered between steps, never inside one.
- If the runner fails, every request in flight fails with EngineError, pages and cache start
  anew, and the engine goes on.
- A request's tokens depend on the request alone (KERNELS contract of the runner; sampling by
  seed and position).
"""

from __future__ import annotations

import dataclasses
import os
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from insula.engine.breakers import BreakerTable
from insula.engine.constraint import Constraints
from insula.engine.disk_cache import DiskCache
from insula.engine.interrupts import HeldInterrupts
from insula.engine.payoff import Payoff
from insula.engine.request import Request, Runner, Tokenizer
from insula.engine.sampling import Sampler, draw_seed, validate, wants_breakers
from insula.engine.scheduler import Batch, Scheduler, Slice
from insula.engine.sequence import EngineFacts, Output, Sequence
from insula.errors import ConfigError, ContextOverflowError, EngineError, InsulaError
from insula.types import Activity, Chunk, Completion, TokenLogprob

#: A step aims at this many seconds, so that cancelling and joining are quick.
SLICE_SECONDS = 0.25
MIN_SLICE, MAX_SLICE = 64, 512
#: Most bytes of logits that one step may return for prompt positions.
LOGIT_BYTES = 32 << 20
WAIT_SECONDS = 0.1


class Engine:
    """Runs requests on a runner. Thread-safe. See `request.TextEngine` for the face."""

    takes: frozenset[str] = frozenset()

    def __init__(
        self,
        runner: Runner,
        tokenizer: Tokenizer,
        *,
        n_ctx: int,
        reason: str = "",
        max_running: int = 16,
        step_tokens: int | None = None,
        payoff: Payoff | None = None,
        disk: DiskCache | None = None,
        adapters: Mapping[str, str] | None = None,
        own_adapter: str | None = None,
    ) -> None:
        """n_ctx: most tokens of one request; the runner's pages must hold at least that many.

        step_tokens: most tokens per step; None adapts it to SLICE_SECONDS.
        payoff: speculation, and when it pays; None: none.
        disk: keeps the prefix cache for the next run; None: nothing does.
        adapters: those that the runner has, in its order: name and digest of each.
        own_adapter: the one that requests go through which name none.
        """
        capacity = runner.n_pages * runner.page_size
        if not 1 <= n_ctx <= capacity:
            raise ConfigError(f"n_ctx: found {n_ctx}; allowed: 1 to {capacity} with these pages")
        self.runner = runner
        self.tokenizer = tokenizer
        self._breakers = BreakerTable(tokenizer)
        self._constraints = Constraints(tokenizer, n_vocab=runner.n_vocab)
        self.n_ctx = n_ctx
        self.n_vocab = runner.n_vocab
        self.name, self.reason = runner.engine, reason
        self.isa, self.threads = runner.isa, runner.threads
        self._facts = EngineFacts(name=self.name, reason=reason, isa=self.isa, threads=self.threads)
        self._adapt = step_tokens is None
        self._budget = MIN_SLICE if step_tokens is None else step_tokens
        self._max_running = max_running
        self._payoff = payoff
        self._disk = disk
        self._adapters = dict(adapters or {})
        self._own_adapter = own_adapter
        self.scheduler = self._new_scheduler()
        self._turn = threading.Condition(threading.Lock())
        self._stepping = False
        self._submitted: deque[Sequence] = deque()
        self._cancelled: deque[Sequence] = deque()
        self._closing = self._closed = False
        self._process = os.getpid()

    def submit(self, request: Request) -> RequestHandle:
        """Check and queue a request.

        Raises ConfigError (options, ids; ConstraintError for a constraint), ContextOverflowError
        (prompt and max_tokens together exceed the context), EngineError (closed).
        """
        seq = self._sequence(request)
        handle = RequestHandle(self, seq)
        if self._closing:
            raise EngineError("the engine is closed; open the model again")
        if os.getpid() != self._process:
            raise EngineError(
                "this model was loaded before the process forked, and its threads stayed in the "
                "parent; load it in the child, or start children by spawn"
            )
        self._submitted.append(seq)
        self._poke()
        return handle

    def step(self) -> bool:
        """Run one batch, unless another thread is at it. Returns whether there was work."""
        return self._pump(None)

    def run(self) -> None:
        """Step until every request has ended."""
        while self.busy:
            self._pump(None)

    @property
    def busy(self) -> bool:
        """A request is queued or running."""
        return bool(self._submitted or self.scheduler.waiting or self.scheduler.running)

    @property
    def activity(self) -> Activity:
        """What runs and waits. Read without waiting for a step: a moment's numbers, for a gauge."""
        scheduler = self.scheduler
        pool = scheduler.pool
        free, evictable = pool.n_free, pool.n_evictable
        return Activity(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting) + len(self._submitted),
            pages=pool.n_pages,
            pages_in_use=max(0, pool.n_pages - free - evictable),
            pages_cached=evictable,
        )

    def cancel(self, handle: RequestHandle) -> None:
        """End a request with finish_reason "cancelled", within the running step if there is one."""
        handle.cancel()

    def close(self) -> None:
        """Cancel everything and let go of the runner. May be called twice."""
        with HeldInterrupts(), self._turn:
            if self._closing:
                return
            self._closing = True  # nobody steps any more; who waits sees the end of what runs
            while self._stepping:
                self._turn.wait(WAIT_SECONDS)
            self._closed = True
            self._settle()
            for seq in [*self.scheduler.running, *self.scheduler.waiting]:
                self._end_cancelled(seq)
            notes: list[str] = []
            if self._disk is not None and os.getpid() == self._process:
                notes = self._disk.close()
            self.runner.close()
            if self._payoff is not None:
                self._payoff.speculator.close()
            self._turn.notify_all()
        for note in notes:  # no report is left to carry it
            warnings.warn(note, RuntimeWarning, stacklevel=2)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _sequence(self, request: Request) -> Sequence:
        ids, params = request.ids, request.params
        adapter = -1
        name = self._own_adapter if request.adapter is None else request.adapter
        if name is not None:
            adapter = self._adapter(name)
            # Another adapter, other keys and values: nothing of the cache is shared with it.
            digest = self._adapters[name]
            request = dataclasses.replace(request, salt=f"{request.salt}\0{digest}")
        if not ids:
            raise ConfigError("the prompt is empty; at least one token is needed")
        if min(ids) < 0 or max(ids) >= self.n_vocab:
            wrong = next(i for i in ids if not 0 <= i < self.n_vocab)
            raise ConfigError(f"token id {wrong}: the vocabulary has 0 to {self.n_vocab - 1}")
        if request.on_prompt_logits and not 0 <= request.prompt_logits_from < len(ids):
            raise ConfigError(
                f"prompt_logits_from: found {request.prompt_logits_from}; allowed: 0 to "
                f"{len(ids) - 1}, the prompt's last token"
            )
        limit = self.n_ctx
        if request.n_ctx is not None:
            if not 1 <= request.n_ctx <= self.n_ctx:
                raise ConfigError(f"n_ctx: found {request.n_ctx}; allowed: 1 to {self.n_ctx}")
            limit = request.n_ctx
        if params.ignore_eos:
            never = dict.fromkeys(self.tokenizer.eog_ids, float("-inf"))
            params = dataclasses.replace(params, logit_bias={**params.logit_bias, **never})
        validate(params, n_vocab=self.n_vocab)
        breakers = params.dry_sequence_breakers if wants_breakers(params) else ()
        sampler = Sampler(params, n_vocab=self.n_vocab, breakers=self._breakers.find(breakers))
        # With no max_tokens at least one token must fit, or the request could do nothing.
        needed = len(ids) + (1 if params.max_tokens is None else params.max_tokens)
        if needed > limit:
            raise ContextOverflowError(
                needed, limit, "shorten the prompt, lower max_tokens or raise n_ctx"
            )
        constraint = request.constraint
        matcher = None if constraint is None else self._constraints.matcher(constraint)
        return Sequence(
            request,
            params=params,
            sampler=sampler,
            seed=draw_seed() if params.seed is None else int(params.seed),
            limit=limit,
            adapter=adapter,
            matcher=matcher,
            output=Output(
                detokenizer=self.tokenizer.detokenizer(
                    skip_special=request.skip_special,
                    # The text is what the constraint describes, its first space included.
                    continues=request.continues or matcher is not None,
                ),
                stops=params.stop,
                facts=self._facts,
            ),
        )

    def _adapter(self, name: str) -> int:
        if name not in self._adapters:
            loaded = ", ".join(self._adapters) or "none is loaded"
            raise ConfigError(f"adapter: found {name!r}; allowed: {loaded}")
        return list(self._adapters).index(name)

    def _pump(self, seq: Sequence | None) -> bool:
        """Step, or wait a moment for the thread that does. With a sequence: until it has output.

        Everything that takes the lock is inside HeldInterrupts, because a KeyboardInterrupt
        between taking and releasing it would leave it locked.
        """
        with HeldInterrupts():
            try:
                return self._advance(seq)
            finally:
                self._poke()

    def _advance(self, seq: Sequence | None) -> bool:
        with self._turn:
            if seq is not None and seq.output.ready:
                return True
            if self._stepping or (self._closing and not self._closed):
                self._turn.wait(WAIT_SECONDS)
                return True
            if self._closed:
                raise EngineError("the engine is closed; open the model again")
            self._stepping = True
            self._settle()
        try:
            return self._step()
        except BaseException as error:
            self._fail_all(error)
            if not isinstance(error, Exception):
                raise
            return True  # each request raises it to its own caller
        finally:
            with self._turn:
                self._settle()
                self._stepping = False
                self._turn.notify_all()

    def _poke(self) -> None:
        """Settle now if nobody steps; else the one who does will. Never waits."""
        if not self._submitted and not self._cancelled:
            return
        with HeldInterrupts():
            while (self._submitted or self._cancelled) and self._turn.acquire(blocking=False):
                try:
                    if self._stepping:
                        return
                    self._settle()
                    self._turn.notify_all()
                finally:
                    self._turn.release()

    def _settle(self) -> None:
        """Take in what was submitted and cancelled. The caller holds the lock, and steps if
        anybody does."""
        while self._submitted:
            seq = self._submitted.popleft()
            seq.awaits_disk = self._disk is not None and seq.request.use_cache
            self.scheduler.add(seq)
        while self._cancelled:
            seq = self._cancelled.popleft()
            if not seq.done:
                self._end_cancelled(seq)

    def _end_cancelled(self, seq: Sequence) -> None:
        self.scheduler.finish(seq)
        seq.output.finish(seq, "cancelled", time.perf_counter())

    def _step(self) -> bool:
        payoff, disk = self._payoff, self._disk
        read = disk is not None and disk.read(
            self.scheduler, until=time.perf_counter() + SLICE_SECONDS
        )
        guesses = payoff.guess(self.scheduler.running, self.tokenizer.eog_ids) if payoff else {}
        batch = self.scheduler.plan(guesses)
        if not batch.slices:
            return read
        started = time.perf_counter()
        for part in batch.slices:
            if part.seq.output.started is None:
                part.seq.output.started = started
        logits_RV, first_row = self._run(batch)
        now = time.perf_counter()
        self.scheduler.computed(batch)
        if disk is not None:
            for note in disk.notes():
                for part in batch.slices:
                    part.seq.notes.append(note)
        self._set_budget(batch, now - started)
        if payoff is not None:
            payoff.ran(batch, now - started)
        for part, row in zip(batch.slices, first_row, strict=True):
            seq = part.seq
            try:
                if part.every_row:
                    self._deliver(seq, part.start, logits_RV[row : row + part.count])
                    row += part.count - 1
                if seq.pending == 0:
                    self._next_tokens(part, logits_RV[row:], now)
            except Exception as error:  # noqa: BLE001 - the caller's callback may raise anything
                self.scheduler.finish(seq)
                seq.output.fail(error)
        if disk is not None:
            disk.save()
        return True

    def _run(self, batch: Batch) -> tuple[NDArray[np.float32], list[int]]:
        """Run the slices. Returns logits and, per slice, its first row in them."""
        for source, destination in batch.copies:
            self.runner.copy_page(source, destination)
        counts = [part.count + len(part.guesses) for part in batch.slices]
        tokens = np.empty(sum(counts), dtype=np.int32)
        positions = np.empty_like(tokens)
        rows = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        tables = []
        wanted: list[int] = []
        first_row: list[int] = []
        at = 0
        for part, count in zip(batch.slices, counts, strict=True):
            end = part.start + part.count
            tokens[at : at + part.count] = part.seq.history[part.start : end]
            tokens[at + part.count : at + count] = part.guesses
            positions[at : at + count] = np.arange(part.start, part.start + count)
            tables.append(np.array(part.seq.pages, dtype=np.int32))
            first_row.append(len(wanted))
            if part.every_row:
                wanted.extend(range(at, at + count))
            elif end == len(part.seq.ids) and part.seq.params.max_tokens != 0:
                wanted.extend(range(at + part.count - 1, at + count))
            at += count
        logit_rows = np.array(wanted, dtype=np.int32)
        adapters = [part.seq.adapter for part in batch.slices]
        if max(adapters) < 0:
            return self.runner.step(tokens, positions, rows, tables, logit_rows), first_row
        through = np.array(adapters, dtype=np.int32)
        return self.runner.step(tokens, positions, rows, tables, logit_rows, through), first_row

    def _deliver(self, seq: Sequence, start: int, logits_TV: NDArray[np.float32]) -> None:
        """Give prompt logits to the caller."""
        callback = seq.request.on_prompt_logits
        assert callback is not None
        assert start == seq.n_delivered
        seq.n_delivered += len(logits_TV)
        callback(start, logits_TV)

    def _next_tokens(self, part: Slice, logits_RV: NDArray[np.float32], now: float) -> None:
        """The next token, and one more for each guess that it and those after it confirm.

        Each is drawn as it would be in a step of its own: from logits of the same prefix, with
        the history that has the tokens before it. A guess has no part in it.
        """
        seq = part.seq
        seq.draft_proposed += len(part.guesses)
        for row, guess in enumerate((*part.guesses, None)):
            if not self._next_token(seq, logits_RV, row, guess, now):
                return
            if seq.ids[-1] != guess:
                break
            self.scheduler.held(seq)
        if part.guesses:
            self.scheduler.drop_guesses(seq)

    def _next_token(
        self,
        seq: Sequence,
        logits_RV: NDArray[np.float32],
        row: int,
        guess: int | None,
        now: float,
    ) -> bool:
        """Sample, show, and see whether that was the end. Returns whether it goes on."""
        params, output = seq.params, seq.output
        if params.max_tokens == 0:
            self.scheduler.finish(seq)
            output.finish(seq, "length", now)
            return False
        matcher = seq.matcher
        if matcher is not None and matcher.ended:
            self.scheduler.finish(seq)
            output.finish(seq, "stop", now)
            return False
        chosen = seq.sampler(
            logits_RV[row],
            seq.history,
            len(seq.ids),
            seq.seed,
            None if matcher is None else matcher.allowed(),
            mirostat_mu=seq.mirostat_mu,
        )
        seq.mirostat_mu = chosen.mirostat_mu
        token_id = chosen.token_id
        if self._payoff is not None and guess is not None:
            self._payoff.judged(seq, held=token_id == guess)
        if token_id in self.tokenizer.eog_ids and not params.ignore_eos:
            self.scheduler.finish(seq)
            output.finish(seq, "stop", now)
            return False
        logprob = None
        if chosen.logprob is not None:
            bytes_of = self.tokenizer.token_bytes
            logprob = TokenLogprob(
                token_id=token_id,
                token=bytes_of(token_id),
                logprob=chosen.logprob,
                top=tuple((i, bytes_of(i), p) for i, p in chosen.top),
            )
        seq.append(token_id)
        if matcher is not None:
            matcher.accept(token_id)
        stopped = output.push(token_id, logprob, now)
        stopped = stopped or (matcher is not None and matcher.ended)
        if stopped or seq.n_generated == params.max_tokens or len(seq.ids) == seq.limit:
            self.scheduler.finish(seq)
            output.finish(seq, "stop" if stopped else "length", now)
        return not seq.done

    def _set_budget(self, batch: Batch, seconds: float) -> None:
        """Fit the step to the machine. Results do not depend on it."""
        n = sum(part.count + len(part.guesses) for part in batch.slices)
        if self._adapt and n >= MIN_SLICE // 2 and seconds > 0:
            fitting = int(n / seconds * SLICE_SECONDS) // MIN_SLICE * MIN_SLICE
            self.scheduler.budget = max(MIN_SLICE, min(MAX_SLICE, fitting))

    def _fail_all(self, error: BaseException) -> None:
        """The runner failed: what the pages hold is unknown, so nobody may go on from them."""
        for seq in [*self.scheduler.running, *self.scheduler.waiting]:
            failure = error
            if not isinstance(error, InsulaError):
                failure = EngineError(f"the engine failed while it ran: {error!r}")
                failure.__cause__ = error
            seq.done = True
            seq.output.fail(failure)
        self._budget = self.scheduler.budget
        self.scheduler = self._new_scheduler()
        if self._payoff is not None:
            self._payoff.speculator.reset()

    def _new_scheduler(self) -> Scheduler:
        scheduler = Scheduler(
            n_pages=self.runner.n_pages,
            page_size=self.runner.page_size,
            max_running=self._max_running,
            budget=self._budget,
            logit_rows=max(1, LOGIT_BYTES // (4 * self.runner.n_vocab)),
        )
        if self._disk is not None:
            self._disk.attach(scheduler.cache)
        return scheduler


class RequestHandle:
    """The caller's end of a request. Iterate it, or wait for `result()`; see `request.Handle`."""

    def __init__(self, engine: Engine, seq: Sequence) -> None:
        self._engine = engine
        self._seq = seq

    @property
    def done(self) -> bool:
        """The request has ended and everything was read."""
        output = self._seq.output
        return (output.completion is not None or output.error is not None) and not output.chunks

    @property
    def ready(self) -> bool:
        """There is a chunk, the end or an error: the next look at it does not wait."""
        return self._seq.output.ready

    def __iter__(self) -> Iterator[Chunk]:
        output = self._seq.output
        while True:
            while output.chunks:
                yield output.chunks.popleft()
            if output.error is not None:
                raise output.error
            if output.completion is not None:
                return
            self._engine._pump(self._seq)

    def result(self) -> Completion:
        output = self._seq.output
        while output.completion is None:
            if output.error is not None:
                raise output.error
            self._engine._pump(self._seq)
            output.chunks.clear()
        return output.completion

    def cancel(self) -> None:
        if not self._seq.done:
            self._engine._cancelled.append(self._seq)
            self._engine._poke()

    def __del__(self) -> None:
        self.cancel()
