"""Whether guessing pays, and how far: what a step of so many rows costs, how often guesses hold.

Owns the decision of how many tokens to propose per sequence. It is made anew for each step from
measured times (medians of the last few steps of as many rows) and each sequence's running
acceptance. For a sequence whose guesses hold with probability a, k of them give

    E(k) = 1 + a + a^2 + ... + a^k = (1 - a^(k+1)) / (1 - a)

tokens per step on average (Leviathan et al. 2023, arXiv 2211.17192, eq. 1). The k with the most
tokens per second wins; k = 0 is no speculation. What is off is tried again now and then, and what
is on is compared with off.

Invariant: results never depend on a decision made here; times do.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Collection, Iterable, Mapping
from statistics import median

from insula.engine.scheduler import Batch
from insula.engine.sequence import Sequence
from insula.engine.speculation import Speculator

#: With more sequences than this decoding together, a step is bound by arithmetic: no guessing.
LARGE_BATCH = 8
#: Every so many decode steps the other choice is tried, so that its figures stay true.
TRY_EVERY = 48
#: What an unmeasured step is taken to cost per row more, as a share of the smallest measured.
#: Low, so that it gets measured.
HOPED_ROW_COST = 0.08
#: A choice must promise this much more than no speculation.
WORTHWHILE = 1.03
#: Acceptance is a running mean with this weight for each new guess, for a sequence and for all.
SEQUENCE_WEIGHT, OVERALL_WEIGHT = 0.1, 0.02
FIRST_ACCEPTANCE = 0.7
SAMPLES = 9


class Payoff:
    """Asks a speculator for as many guesses as pay.

    Called by the engine: `guess` before a step, `ran` after the runner, `judged` per sequence.
    """

    def __init__(self, speculator: Speculator, *, most: int, always: bool = False) -> None:
        """most: tokens per sequence and step. always: as many at every step, for tests."""
        self.speculator = speculator
        self.most = most
        self.always = always
        self._acceptance = FIRST_ACCEPTANCE
        self._seconds: dict[int, deque[float]] = defaultdict(lambda: deque(maxlen=SAMPLES))
        self._guess_seconds: deque[float] = deque(maxlen=SAMPLES)  # per guess of each sequence
        self._since_try = 0

    def guess(
        self, running: Iterable[Sequence], end_ids: Collection[int]
    ) -> dict[Sequence, list[int]]:
        """Guesses for the sequences whose next token is due."""
        room = {
            seq: min(self.most, seq.tokens_left - 1)
            for seq in running
            if seq.pending == 1 and not seq.wants_prompt_logits
        }
        for seq in room:
            self._compare_unrun(seq)
        count = self.choose(list(room)) if room else 0
        wanted = {seq: min(count, left) for seq, left in room.items() if min(count, left) > 0}
        if not wanted:
            if not self.speculator.wants_cost and len(room) <= LARGE_BATCH:
                for seq, guesses in self.speculator.propose(dict.fromkeys(room, 1)).items():
                    seq.unrun_guess = (len(seq.ids), guesses[0]) if guesses else None
            return {}
        started = time.perf_counter()
        found = self.speculator.propose(wanted)
        if self.speculator.wants_cost and any(found.values()):
            self._guess_seconds.append((time.perf_counter() - started) / count)
        # Nothing follows an end, so neither does a guess.
        return {seq: _before_end(guesses, end_ids) for seq, guesses in found.items()}

    def choose(self, seqs: list[Sequence]) -> int:
        """How many tokens to guess for each of these."""
        if self.always:
            return self.most
        n = len(seqs)
        if n > LARGE_BATCH or not self._seconds[n]:
            return 0
        rates = [self._acceptance if s.acceptance is None else s.acceptance for s in seqs]
        per_guess = median(self._guess_seconds) if self._guess_seconds else 0.0

        def speed(count: int) -> float:
            tokens = sum(_expected(rate, count) for rate in rates)
            return tokens / (self._cost(n * (count + 1)) + count * per_guess)

        best = max(range(1, self.most + 1), key=speed)
        count = best if speed(best) > WORTHWHILE * speed(0) else 0
        self._since_try += 1
        if self._since_try >= TRY_EVERY:
            self._since_try = 0
            return best if count == 0 else 0
        return count

    def ran(self, batch: Batch, seconds: float) -> None:
        """The runner took so long. Steps with prompts in them say nothing of guessing."""
        if all(part.count == 1 for part in batch.slices) and not batch.copies:
            rows = sum(1 + len(part.guesses) for part in batch.slices)
            self._seconds[rows].append(seconds)

    def judged(self, seq: Sequence, *, held: bool) -> None:
        """The model's token is known where a guess stood; behind a wrong one nobody looks."""
        seq.draft_accepted += held
        self._learn(seq, held=held)

    def _compare_unrun(self, seq: Sequence) -> None:
        """A guess that costs nothing is made even while guessing is off, to see when it would
        pay: where an answer begins to copy, the next step knows."""
        if seq.unrun_guess is not None:
            at, guess = seq.unrun_guess
            if at < len(seq.ids):
                self._learn(seq, held=seq.ids[at] == guess)
            seq.unrun_guess = None

    def _learn(self, seq: Sequence, *, held: bool) -> None:
        if seq.acceptance is None:
            seq.acceptance = self._acceptance
        seq.acceptance += SEQUENCE_WEIGHT * (held - seq.acceptance)
        self._acceptance += OVERALL_WEIGHT * (held - self._acceptance)

    def _cost(self, rows: int) -> float:
        """Seconds of a step of so many rows: measured, between two measured, or hoped for."""
        known: Mapping[int, float] = {r: median(s) for r, s in self._seconds.items() if s}
        if rows in known:
            return known[rows]
        below = max((r for r in known if r < rows), default=None)
        above = min((r for r in known if r > rows), default=None)
        if below is None:
            assert above is not None, "nothing is measured"
            return known[above]
        if above is None:
            return known[below] + (rows - below) * HOPED_ROW_COST * known[min(known)]
        share = (rows - below) / (above - below)
        return known[below] + share * (known[above] - known[below])


def _expected(rate: float, count: int) -> float:
    """Tokens per step, see above."""
    if rate >= 1.0:
        return count + 1.0
    return float((1.0 - rate ** (count + 1)) / (1.0 - rate))


def _before_end(guesses: list[int], end_ids: Collection[int]) -> list[int]:
    for i, token in enumerate(guesses):
        if token in end_ids:
            return guesses[:i]
    return guesses
