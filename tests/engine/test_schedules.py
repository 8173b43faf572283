"""Random schedules of submit, cancel and step: tokens as if alone, and every page accounted for."""

from __future__ import annotations

import functools
from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.prefix_model import ByteTokenizer, PrefixRunner, logits_after
from insula.engine.engine import Engine
from insula.engine.payoff import Payoff
from insula.engine.request import Request
from insula.engine.sampling import Sampler
from insula.engine.speculation import Draft, NGram
from insula.types import SamplingParams

N_VOCAB = 12  # small, so that prompts share prefixes


class SmallVocabulary(ByteTokenizer):
    vocab_size = N_VOCAB
    eog_ids = frozenset({11})


@functools.lru_cache(maxsize=100_000)
def alone(ids: tuple[int, ...], seed: int, max_tokens: int) -> tuple[int, ...]:
    """What the request gives by definition: no pages, no batch, no cache."""
    sampler = Sampler(params_for(seed, max_tokens), n_vocab=N_VOCAB)
    history = list(ids)
    import numpy as np

    mu = None
    for _ in range(max_tokens):
        logits, ids_so_far = logits_after(history, N_VOCAB), np.array(history, np.int32)
        chosen = sampler(logits, ids_so_far, len(history), seed, mirostat_mu=mu)
        mu = chosen.mirostat_mu
        if chosen.token_id == 11:
            break
        history.append(chosen.token_id)
    return tuple(history[len(ids) :])


class PoorRunner(PrefixRunner):
    """Mostly of the other model's opinion."""

    def step(self, tokens, positions, rows, tables, logit_rows):
        logits = super().step(tokens, positions, rows, tables, logit_rows)
        logits[:, :3] += 1.5
        return logits


def payoff(speculation: str, guesses: int) -> Payoff | None:
    """Speculation at every step. A draft's few pages make it forget and read again."""
    if speculation == "off":
        return None
    if speculation == "ngram":
        return Payoff(NGram(shortest=1), most=guesses, always=True)
    kind = PrefixRunner if speculation == "draft" else PoorRunner
    draft = Draft(kind(n_pages=11, page_size=3, n_vocab=N_VOCAB), name=speculation)
    return Payoff(draft, most=guesses, always=True)


def params_for(seed: int, max_tokens: int) -> SamplingParams:
    """Odd seeds with what keeps a state or tosses a coin besides."""
    return SamplingParams(
        seed=seed,
        max_tokens=max_tokens,
        repeat_penalty=1.2,
        repeat_last_n=8,
        temperature=0.9,
        mirostat=2 * (seed % 2),
        mirostat_tau=1.5,
        mirostat_eta=0.5,
        xtc_probability=0.5,
        dry_multiplier=0.8,
        dry_sequence_breakers=(),
    )


class Schedules(RuleBasedStateMachine):
    @initialize(
        n_pages=st.sampled_from([6, 7, 8, 14]),
        max_running=st.integers(1, 5),
        budget=st.integers(1, 24),
        speculation=st.sampled_from(["off", "ngram", "draft", "poor draft"]),
        guesses=st.integers(1, 9),
    )
    def start(
        self, n_pages: int, max_running: int, budget: int, speculation: str, guesses: int
    ) -> None:
        self.runner = PrefixRunner(n_pages=n_pages, page_size=4, n_vocab=N_VOCAB)
        self.engine = Engine(
            self.runner,
            SmallVocabulary(),
            n_ctx=24,
            max_running=max_running,
            step_tokens=budget,
            payoff=payoff(speculation, guesses),
        )
        self.live: list = []

    @rule(
        ids=st.lists(st.integers(0, 2), min_size=1, max_size=12),
        seed=st.integers(0, 1),
        max_tokens=st.integers(0, 12),
        salt=st.sampled_from(["", "", "other"]),
        use_cache=st.sampled_from([True, True, True, False]),
        wants_logits=st.sampled_from([False, False, True]),
        data=st.data(),
    )
    def submit(self, ids, seed, max_tokens, salt, use_cache, wants_logits, data) -> None:
        seen: list = []
        first = data.draw(st.integers(0, len(ids) - 1)) if wants_logits else 0
        handle = self.engine.submit(
            Request(
                ids=tuple(ids),
                params=params_for(seed, max_tokens),
                salt=salt,
                use_cache=use_cache,
                prompt_logits_from=first,
                on_prompt_logits=(lambda p, x: seen.append((p, x.copy())))
                if wants_logits
                else None,
            )
        )
        self.live.append((handle, tuple(ids), seed, max_tokens, first, seen, wants_logits))

    @rule(n=st.integers(2, 5), length=st.integers(1, 6))
    def crowd(self, n: int, length: int) -> None:
        """Several that grow beyond the pages there are, so that some must give way."""
        for first in range(n):
            ids = (first % 3,) * length
            handle = self.engine.submit(Request(ids=ids, params=params_for(first, 18)))
            self.live.append((handle, ids, first, 18, 0, [], False))

    @rule(n=st.integers(1, 8))
    def step(self, n: int) -> None:
        for _ in range(n):
            self.engine.step()
        for entry in [e for e in self.live if e[0]._seq.done]:
            self.live.remove(entry)
            self.check(entry)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def cancel(self, data) -> None:
        entry = data.draw(st.sampled_from(self.live))
        entry[0].cancel()
        self.live.remove(entry)
        completion = entry[0].result()
        assert completion.finish_reason == "cancelled"
        expected = alone(*entry[1:4])
        assert completion.token_ids == expected[: len(completion.token_ids)]

    def check(self, entry) -> None:
        handle, ids, seed, max_tokens, first, seen, wants_logits = entry
        completion = handle.result()
        assert completion.token_ids == alone(ids, seed, max_tokens)
        assert completion.report.cached_tokens < len(ids)
        if wants_logits:
            positions = [p for start, x in seen for p in range(start, start + len(x))]
            assert positions == list(range(first, len(ids)))
            for start, x in seen:
                for i, row in enumerate(x):
                    assert (row == logits_after(ids[: start + i + 1], N_VOCAB)).all()

    @invariant()
    def every_page_is_accounted_for(self) -> None:
        if not hasattr(self, "engine"):
            return
        scheduler = self.engine.scheduler
        pool = scheduler.pool
        tree = scheduler.cache.pages()
        assert len(tree) == len(set(tree))
        holders = Counter(tree)
        for seq in scheduler.running:
            holders.update(seq.pages)
            assert len(set(seq.pages)) == len(seq.pages)
        for seq in scheduler.waiting:
            assert not seq.pages
        assert {p: holders[p] for p in range(pool.n_pages)} == dict(enumerate(pool.refs.tolist()))
        assert sorted(pool._free) == [p for p in range(pool.n_pages) if not holders[p]]
        assert set(tree) == {p for p in range(pool.n_pages) if pool.kept[p]}
        for node in scheduler.cache._nodes():  # what is shared is what was computed
            assert tuple(self.runner.tokens[node.page][: len(node.tokens)]) == node.tokens

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        for _ in range(4000):
            if not self.engine.busy:
                break
            self.engine.step()
        assert not self.engine.busy, "the engine makes no progress"
        for entry in self.live:
            self.check(entry)
        scheduler = self.engine.scheduler
        scheduler.cache.clear()
        assert scheduler.pool.n_free == scheduler.pool.n_pages
        assert not scheduler.pool.refs.any()


Schedules.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestSchedules = Schedules.TestCase
