"""Whose turn it is: state in, batch out.

Each step runs the next token of every decoding sequence, and with what is left of the step's
budget a slice of somebody's prompt: of sequences already running first, then of the waiting, in
the order of their arrival. When pages run out, cached prefixes are evicted; then the youngest
running sequence gives up its pages and waits at the head of the queue (what it had computed
stays cached while there is room). A request never fails for lack of pages: the oldest running
sequence can always go on, since no request is larger than the pool.

A prefix is computed once: who shares it with a running prompt waits for its pages, then shares the
full ones and copies the last. Pages from disk (`disk_cache`) come between two plans; who waits for
them is not admitted before, nor is who came later.

The scheduler calls no runner and reads no clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from insula.engine.kvcache import Match, PagePool, PrefixCache
from insula.engine.sequence import Sequence

#: Most waiting sequences that others may overtake, because their prefix is being computed.
MOST_HELD = 256


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Run ids[start : start + count] of one sequence, and behind them the guesses.

    every_row: logits of each, not the last. With guesses, logits of the last and of each guess.
    """

    seq: Sequence
    start: int
    count: int
    every_row: bool
    guesses: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One step: first copy pages (source, destination) in order, then run the slices."""

    slices: list[Slice]
    copies: list[tuple[int, int]]


class Scheduler:
    """Queues, pages and turns."""

    def __init__(
        self,
        *,
        n_pages: int,
        page_size: int,
        max_running: int = 16,
        budget: int = 512,
        logit_rows: int = 64,
    ) -> None:
        """budget: most tokens per step (more only if more sequences decode). logit_rows: most
        of them whose logits a request wants for its prompt."""
        self.pool = PagePool(n_pages)
        self.cache = PrefixCache(self.pool, page_size)
        self.page_size = page_size
        self.max_running = max_running
        self.budget = budget
        self.logit_rows = logit_rows
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    def add(self, seq: Sequence) -> None:
        self.waiting.append(seq)

    def plan(self, guesses: Mapping[Sequence, list[int]] | None = None) -> Batch:
        """The next batch; empty if there is nothing to do.

        guesses: tokens that may follow a decoding sequence's ids. They run where there is room:
        nobody gives way for a guess, and no cached prefix goes.
        """
        copies: list[tuple[int, int]] = []
        slices = [
            self._slice(seq, 1)
            for seq in list(self.running)
            # One that comes late in this list may have given way to one before it.
            if seq.pending == 1 and seq in self.running and self._grow(seq)
        ]
        budget = self.budget - len(slices)
        if guesses:
            room = min(budget - 1, self.logit_rows - len(slices))
            for i, part in enumerate(slices):
                slices[i] = self._with_guesses(part, guesses.get(part.seq, [])[: max(0, room)])
                room -= len(slices[i].guesses)
                budget -= len(slices[i].guesses)
        budget = max(1, budget)  # prompts always move on
        for seq in self.running:
            if seq.pending > 1 and budget > 0:
                slices.append(self._slice(seq, budget))
                budget -= slices[-1].count
        held: list[Sequence] = []
        while budget > 0 and self.waiting and len(self.running) < self.max_running:
            seq = self.waiting.popleft()
            if len(held) < MOST_HELD and self.in_the_making(seq):
                held.append(seq)
            elif not seq.awaits_disk and self._admit(seq, copies):
                self.running.append(seq)
                slices.append(self._slice(seq, budget))
                budget -= slices[-1].count
            else:
                self.waiting.appendleft(seq)
                break
        self.waiting.extendleft(reversed(held))
        return Batch(slices=slices, copies=copies)

    def computed(self, batch: Batch) -> None:
        """The batch has run: its tokens have keys and values now."""
        for part in batch.slices:
            part.seq.n_computed = part.start + part.count
            self._keep_full_pages(part.seq)

    def held(self, seq: Sequence) -> None:
        """A guess became the sequence's next token: it has keys and values already."""
        seq.n_computed += 1
        self._keep_full_pages(seq)

    def drop_guesses(self, seq: Sequence) -> None:
        """Give back pages that only wrong guesses needed. What is written in others stays there
        and is written over."""
        while len(seq.pages) > -(-seq.n_computed // self.page_size):
            self.pool.release(seq.pages.pop())

    def finish(self, seq: Sequence) -> None:
        """The sequence is over, running or waiting: its pages go to the prefix cache."""
        if seq in self.running:
            self.running.remove(seq)
            self._let_go(seq)
        elif seq in self.waiting:
            self.waiting.remove(seq)
        seq.done = True

    def _slice(self, seq: Sequence, budget: int) -> Slice:
        every_row = False
        count = min(seq.pending, budget)
        if seq.wants_prompt_logits:
            unwanted = seq.n_delivered - seq.n_computed
            every_row = unwanted <= 0
            count = min(count, self.logit_rows if every_row else unwanted)
        return Slice(seq=seq, start=seq.n_computed, count=count, every_row=every_row)

    def in_the_making(self, seq: Sequence) -> bool:
        """A running sequence is computing a prefix of this one: waiting for it costs nothing,
        computing it beside that would cost all of it again."""
        return any(
            other.n_computed < other.n_prompt
            and self._shared(seq, other, other.n_prompt) // self.page_size
            > other.n_computed // self.page_size
            for other in self.running
        )

    def _shared(self, seq: Sequence, other: Sequence, limit: int) -> int:
        """How many of the first tokens both have and may have in common."""
        mine, theirs = seq.request, other.request
        if not mine.use_cache or not theirs.use_cache or mine.salt != theirs.salt:
            return 0
        n = min(self._known(seq), limit)
        differs = np.flatnonzero(seq.history[:n] != other.history[:n])
        return int(differs[0]) if len(differs) else n

    def reusable(self, seq: Sequence) -> list[int]:
        """The tokens that may come from a cache."""
        return seq.ids[: self._known(seq)]

    def spare(self, seq: Sequence, match: Match) -> int:
        """Pages left when the sequence has all that it needs beside its match; less than 0 or,
        with others running, than one for each: it cannot be admitted now."""
        wanted = -(-len(seq.ids) // self.page_size) - len(match.pages)
        return self.pool.n_free + self.pool.n_evictable - wanted

    def match(self, seq: Sequence) -> Match:
        """The sequence's longest prefix in memory; give it back with `forget`."""
        if not seq.request.use_cache:
            return Match(pages=[], node=None)
        return self.cache.match(seq.request.salt, self.reusable(seq))

    def forget(self, match: Match) -> None:
        for page in match.pages:
            self.pool.release(page)
        if match.tail is not None:
            self.pool.release(match.tail)

    def _known(self, seq: Sequence) -> int:
        """How many tokens may come from a cache: one must run, or there are no logits to sample
        from, and those whose logits are wanted."""
        known = len(seq.ids) - 1
        return min(known, seq.n_delivered) if seq.wants_prompt_logits else known

    def _longer_tail(self, seq: Sequence, match: Match) -> Match:
        """The match, with the page of a running sequence to copy from if that says more: what
        lies before its last token is written and stays as it is."""
        if not seq.request.use_cache:
            return match
        start, best = len(match.pages) * self.page_size, match.tail_tokens
        source = None
        for other in self.running:
            n = min(self._shared(seq, other, other.n_computed) - start, self.page_size)
            if n > best:
                source, best = other.pages[len(match.pages)], n
        if source is None:
            return match
        if match.tail is not None:
            self.pool.release(match.tail)
        self.pool.share(source)
        return Match(pages=match.pages, node=match.node, tail=source, tail_tokens=best)

    def _with_guesses(self, part: Slice, guesses: list[int]) -> Slice:
        """The slice with as many guesses as find a place in its pages and in free ones."""
        seq, size = part.seq, self.page_size
        end = part.start + part.count
        while self.pool.n_free and len(seq.pages) * size < end + len(guesses):
            seq.pages.append(self.pool.take())
        return replace(part, guesses=tuple(guesses[: len(seq.pages) * size - end]))

    def _admit(self, seq: Sequence, copies: list[tuple[int, int]]) -> bool:
        """Give a waiting sequence the pages for all its tokens so far, cached ones shared."""
        match = self._longer_tail(seq, self.match(seq))
        wanted = -(-len(seq.ids) // self.page_size) - len(match.pages)
        spare = self.spare(seq, match)
        if self.running and spare < len(self.running):  # each may need a page soon
            self.forget(match)
            return False
        tail = match.tail
        if tail is not None and spare < 0:  # the page to copy from is one of those we need
            self.pool.release(tail)
            tail = None
        if self.pool.n_free < wanted:
            self.cache.evict(wanted - self.pool.n_free)
        seq.pages = match.pages + [self.pool.take() for _ in range(wanted)]
        seq.node, seq.n_kept = match.node, len(match.pages)
        seq.n_computed = len(match.pages) * self.page_size
        if tail is not None:
            copies.append((tail, seq.pages[seq.n_kept]))
            # Copies run in order before the step, so the source may be given away from here on.
            self.pool.release(tail)
            seq.n_computed += match.tail_tokens
        if seq.cached_tokens is None:
            seq.cached_tokens = seq.n_computed
        return True

    def _grow(self, seq: Sequence) -> bool:
        """Make sure the next token has a page. False if the sequence had to give way itself."""
        if seq.n_computed // self.page_size < len(seq.pages):
            return True
        while self.pool.n_free == 0 and not self.cache.evict(1):
            victim = self.running.pop()
            self._let_go(victim)
            victim.preemptions += 1
            self.waiting.appendleft(victim)
            if victim is seq:
                return False
        seq.pages.append(self.pool.take())
        return True

    def _keep_full_pages(self, seq: Sequence) -> None:
        """Share full pages with everyone at once: nobody will write them again."""
        if seq.node is None:
            return
        size = self.page_size
        while (seq.n_kept + 1) * size <= seq.n_computed:
            k = seq.n_kept
            tokens = tuple(seq.ids[k * size : (k + 1) * size])
            seq.node = self.cache.keep(seq.node, tokens, seq.pages[k])
            if seq.node.page != seq.pages[k]:  # someone computed the same: one copy is enough
                self.pool.share(seq.node.page)
                self.pool.release(seq.pages[k])
                seq.pages[k] = seq.node.page
            seq.n_kept += 1

    def _let_go(self, seq: Sequence) -> None:
        """Give the pages up; what was computed stays in the prefix cache."""
        if seq.node is not None and seq.n_kept < len(seq.pages):
            tokens = tuple(seq.ids[seq.n_kept * self.page_size : seq.n_computed])
            self.cache.keep_tail(seq.node, tokens, seq.pages[seq.n_kept])
        for page in seq.pages:
            self.pool.release(page)
        seq.pages, seq.node, seq.n_kept, seq.n_computed = [], None, 0, 0
