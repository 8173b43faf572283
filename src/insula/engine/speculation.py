"""Guessing what comes next, so that one step of the model can confirm several tokens.

Owns the guesses: `NGram` finds the text's last tokens earlier in it and proposes what followed
there; `Draft` asks a smaller model with the same vocabulary. Both are a `Speculator`; whether and
how far to guess is `payoff.Payoff`'s.

Invariant: a guess decides nothing. The engine runs the guessed tokens behind the last known one,
draws its own token at each position as ever, and goes on for as long as the two are the same; so a
request's tokens are those it has without speculation. (The usual rejection sampling, Leviathan et
al. 2023, arXiv 2211.17192, keeps the distribution and not the tokens; see docs/decisions.md.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from insula.engine.kvcache import PagePool
from insula.engine.request import Runner, Tokenizer
from insula.engine.sampling import Sampler
from insula.engine.sequence import Sequence
from insula.errors import ConfigError, EngineError

#: Tokens of a prompt that the draft model reads per step, so that a step stays short.
DRAFT_SLICE = 256


class Speculator(Protocol):
    """Guesses. Called by the thread that steps, between steps.

    wants_cost: a guess takes time worth counting.
    """

    name: str
    wants_cost: bool

    def propose(self, wanted: Mapping[Sequence, int]) -> dict[Sequence, list[int]]:
        """Up to that many tokens likely to follow each sequence's ids, none where there is no
        guess. A sequence that is done is forgotten."""
        ...

    def reset(self) -> None:
        """Forget all sequences: the engine starts anew."""
        ...

    def close(self) -> None: ...


class NGram:
    """Prompt lookup: what followed the last time these tokens stood here.

    Of the places where the longest run of last tokens stood before, the latest counts (Saxena
    2023, github.com/apoorvumang/prompt-lookup-decoding). A place so near the end that its
    continuation runs into it is a text that repeats itself, and goes on doing so.
    """

    name = "ngram"
    wants_cost = False

    def __init__(self, *, shortest: int = 3, longest: int = 16) -> None:
        """shortest: tokens that must agree for a guess. longest: where looking further ends."""
        self.shortest, self.longest = shortest, longest

    def propose(self, wanted: Mapping[Sequence, int]) -> dict[Sequence, list[int]]:
        return {seq: self.after(seq.history, count) for seq, count in wanted.items()}

    def after(self, ids: NDArray[np.int32], count: int) -> list[int]:
        """Up to count tokens to follow ids (int32 [n])."""
        n = len(ids)
        if count < 1 or n <= self.shortest:
            return []
        ends = np.flatnonzero(ids[:-1] == ids[-1])
        for length in range(2, min(self.longest, n - 1) + 1):
            further = ends[ends >= length - 1]
            further = further[ids[further - (length - 1)] == ids[n - length]]
            if not len(further):
                if length <= self.shortest:
                    return []
                break
            ends = further
        if not len(ends):
            return []
        start = int(ends[-1]) + 1
        found: list[int] = ids[start + np.arange(count) % (n - start)].tolist()
        return found

    def reset(self) -> None:
        pass

    def close(self) -> None:
        pass


class Draft:
    """A smaller model guesses, with the sampler and the draws of the request itself.

    Its keys and values live in pages of its own: for each sequence what of `ids` it has read, and
    behind that what it guessed last. What is missing is read again; when pages run out, the
    sequence that was asked for longest ago is forgotten.
    """

    wants_cost = True

    def __init__(self, runner: Runner, *, name: str) -> None:
        self.name = name
        self.runner = runner
        self._pool = PagePool(runner.n_pages)
        self._states: dict[Sequence, _DraftState] = {}  # in the order of their last use

    def propose(self, wanted: Mapping[Sequence, int]) -> dict[Sequence, list[int]]:
        for seq in [seq for seq in self._states if seq.done]:
            self._forget(seq)
        guesses: dict[Sequence, list[int]] = {}
        todo: dict[Sequence, NDArray[np.int32]] = {}  # tokens to run next
        budget = DRAFT_SLICE
        for seq, count in wanted.items():
            guesses[seq] = []
            if count < 1 or not self._make_room(seq, len(seq.ids) + count, wanted):
                continue
            state = self._states[seq]
            state.settle(seq)
            missing = seq.history[state.n_read :][:budget]
            todo[seq] = missing
            budget = max(1, budget - len(missing))
        while todo:
            logits_SV = self._run(todo)
            ready = list(zip(list(todo), logits_SV, strict=True))
            todo = {}
            for seq, logits_V in ready:
                state = self._states[seq]
                if state.n_read < len(seq.ids):
                    continue  # more of the prompt next time
                guessed = guesses[seq]
                history = np.concatenate([seq.history, np.array(guessed, dtype=np.int32)])
                try:
                    token = state.sampler(logits_V, history, len(history), seq.seed).token_id
                except EngineError:  # nothing to choose; the model may see it otherwise
                    continue
                guessed.append(token)
                if len(guessed) < wanted[seq]:
                    todo[seq] = np.array([token], dtype=np.int32)
        return guesses

    def reset(self) -> None:
        self._pool = PagePool(self.runner.n_pages)
        self._states = {}

    def close(self) -> None:
        self._states = {}
        self.runner.close()

    def _run(self, todo: Mapping[Sequence, NDArray[np.int32]]) -> NDArray[np.float32]:
        """Run each sequence's tokens behind what it has. Returns the logits after the last."""
        counts = [len(tokens) for tokens in todo.values()]
        states = [self._states[seq] for seq in todo]
        starts = [state.n_read + len(state.guessed) for state in states]
        positions = [
            np.arange(s, s + n, dtype=np.int32) for s, n in zip(starts, counts, strict=True)
        ]
        logits_SV = self.runner.step(
            np.concatenate(list(todo.values())),
            np.concatenate(positions),
            np.repeat(np.arange(len(counts), dtype=np.int32), counts),
            [np.array(state.pages, dtype=np.int32) for state in states],
            (np.cumsum(counts) - 1).astype(np.int32),
        )
        for (seq, tokens), state in zip(todo.items(), states, strict=True):
            if state.n_read < len(seq.ids):
                state.n_read += len(tokens)
            else:
                state.guessed += tokens.tolist()
        return logits_SV

    def _make_room(self, seq: Sequence, n: int, asked: Collection[Sequence]) -> bool:
        """Pages for n positions, taken from sequences that nobody asks for now if need be."""
        state = self._states.pop(seq, None) or _DraftState(seq)
        self._states[seq] = state
        wanted = -(-n // self.runner.page_size)
        while len(state.pages) < wanted:
            while self._pool.n_free == 0:  # one that found no room has none to give
                idle = next((s for s in self._states if s not in asked), None)
                if idle is None:
                    return False
                self._forget(idle)
            state.pages.append(self._pool.take())
        return True

    def _forget(self, seq: Sequence) -> None:
        for page in self._states.pop(seq).pages:
            self._pool.release(page)


class _DraftState:
    """What the draft model has read of a sequence: n_read of its ids, then `guessed`."""

    def __init__(self, seq: Sequence) -> None:
        self.pages: list[int] = []
        self.n_read = 0
        self.guessed: list[int] = []
        # The same draws from nearly the same distribution are mostly the same tokens.
        self.sampler = Sampler(dataclasses.replace(seq.params, logprobs=None))

    def settle(self, seq: Sequence) -> None:
        """Of the guesses, those that came true have been read; the rest is written over.

        The last of ids is left to run even so: its logits are where guessing begins.
        """
        last = len(seq.ids) - 1
        for token in self.guessed:
            if self.n_read >= last or token != seq.ids[self.n_read]:
                break
            self.n_read += 1
        self.n_read = min(self.n_read, last)
        self.guessed = []


def check_same_vocabulary(target: Tokenizer, draft: Tokenizer, *, name: str) -> None:
    """Raise ConfigError unless both mean the same by every id."""
    found = f"draft model {name}: "
    hint = "; a draft model is a smaller one of the same family"
    if draft.vocab_size != target.vocab_size:
        raise ConfigError(
            f"{found}found a vocabulary of {draft.vocab_size} tokens; the model has "
            f"{target.vocab_size}, and both must be the same{hint}"
        )
    for i in range(target.vocab_size):
        ours, theirs = target.token_bytes(i), draft.token_bytes(i)
        if ours != theirs or target.is_special(i) != draft.is_special(i):
            raise ConfigError(
                f"{found}its token {i} is {theirs!r} and the model's is {ours!r}; the "
                f"vocabularies must be the same{hint}"
            )
