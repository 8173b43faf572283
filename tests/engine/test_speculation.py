"""Speculation: tokens as without it, whatever is guessed; guesses counted; off where it costs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.prefix_model import (
    BOS,
    EOS,
    ByteTokenizer,
    PrefixRunner,
    ScriptRunner,
    logits_after,
)
from insula.engine.engine import Engine
from insula.engine.payoff import LARGE_BATCH, TRY_EVERY, Payoff
from insula.engine.request import Request
from insula.engine.runner import NativeRunner
from insula.engine.sampling import Sampler
from insula.engine.scheduler import Batch, Slice
from insula.engine.speculation import DRAFT_SLICE, Draft, NGram, check_same_vocabulary
from insula.errors import ConfigError, EngineError
from insula.models.load import open_model
from insula.types import SamplingParams


def always(speculator, most: int = 5) -> Payoff:
    return Payoff(speculator, most=most, always=True)


def after(ids: list[int], count: int, shortest: int = 2) -> list[int]:
    return NGram(shortest=shortest).after(np.array(ids, np.int32), count)


class Oracle:
    """Knows what comes, and says something else at every `wrong`-th token of the text."""

    name, wants_cost = "oracle", False

    def __init__(self, text: list[int], *, wrong: int = 10**9) -> None:
        self.text, self.wrong = text, wrong

    def propose(self, wanted):
        return {seq: self._after(len(seq.ids), n) for seq, n in wanted.items()}

    def _after(self, at: int, n: int) -> list[int]:
        told = self.text[at : at + n]
        return [7 if (at + i) % self.wrong == 0 else t for i, t in enumerate(told)]

    def reset(self) -> None: ...
    def close(self) -> None: ...


# --- n-grams ----------------------------------------------------------------------------------


def test_what_followed_the_same_tokens_is_proposed() -> None:
    assert after([1, 2, 3, 4, 5, 9, 1, 2], 3) == [3, 4, 5]


def test_the_longest_agreement_wins_then_the_latest() -> None:
    assert after([5, 1, 2, 30, 1, 2, 40, 5, 1, 2], 1) == [30]
    assert after([1, 2, 30, 8, 1, 2, 40, 9, 1, 2], 1) == [40]


def test_a_text_that_repeats_itself_goes_on_doing_so() -> None:
    assert after([1, 2, 3, 1, 2, 3, 1, 2], 7) == [3, 1, 2, 3, 1, 2, 3]
    assert after([4, 4, 4], 4) == [4, 4, 4, 4]


@pytest.mark.parametrize("ids", [[1], [1, 1], [1, 2, 3], [2, 1, 9, 3, 1], [1, 2, 3, 3, 2]])
def test_no_guess_without_agreement(ids: list[int]) -> None:
    assert after(ids, 4) == []


def test_nothing_is_proposed_where_nothing_is_wanted() -> None:
    assert after([1, 2, 3, 1, 2, 3], 0) == []


@given(st.lists(st.integers(0, 2), min_size=1, max_size=40), st.integers(1, 6), st.integers(1, 4))
def test_a_guess_stood_in_the_text_behind_the_same_tokens(ids, count, shortest) -> None:
    found = after(ids, count, shortest)
    places = [
        end
        for end in range(shortest, len(ids))
        if ids[end - shortest : end] == ids[len(ids) - shortest :]
    ]
    assert bool(found) == bool(places and len(ids) > shortest)
    if found:
        assert len(found) == count
        longest = max(_agreement(ids, end) for end in places)
        best = [end for end in places if _agreement(ids, end) == longest][-1]
        assert [ids[best + i % (len(ids) - best)] for i in range(count)] == found


def _agreement(ids: list[int], end: int) -> int:
    n = 0
    while n < min(16, end) and ids[end - 1 - n] == ids[len(ids) - 1 - n]:
        n += 1
    return n


# --- the engine --------------------------------------------------------------------------------

TEXT = b"abc abc abc abd abc abc abe abc abc"


def tell(speculator=None, *, most: int = 5, n_pages: int = 64, **options):
    """The script's text from an engine; its completion, chunks and runner."""
    runner = ScriptRunner(TEXT, n_prompt=2, n_pages=n_pages)
    payoff = None if speculator is None else always(speculator, most)
    engine = Engine(runner, ByteTokenizer(), n_ctx=100, payoff=payoff)
    params = SamplingParams(temperature=0.0, **options)
    chunks = list(engine.submit(Request(ids=(BOS, 65), params=params)))
    assert chunks[-1].completion is not None
    pool = engine.scheduler.pool
    engine.scheduler.cache.clear()
    assert pool.n_free == pool.n_pages
    return chunks[-1].completion, chunks, runner


SCRIPT = [BOS, 65, *TEXT, EOS]
SPECULATORS = [
    lambda: NGram(shortest=1),
    lambda: Oracle(SCRIPT),
    lambda: Oracle(SCRIPT, wrong=4),
    lambda: Oracle(SCRIPT, wrong=1),
]
OPTIONS: list[dict] = [
    {},
    {"max_tokens": 1},
    {"max_tokens": 2},
    {"max_tokens": 9},
    {"max_tokens": 11},
    {"stop": ["abd"]},
    {"stop": ["c a", "zzz"]},
    {"stop": [" abe abc"]},
    {"logprobs": 3},
    {"ignore_eos": True, "max_tokens": 60},
    {"repeat_penalty": 1.5, "frequency_penalty": 40.0, "max_tokens": 30},
]


@pytest.mark.parametrize("make", SPECULATORS)
@pytest.mark.parametrize("options", OPTIONS)
def test_an_answer_is_the_same_chunk_by_chunk(make, options) -> None:
    plain, chunks, _ = tell(**options)
    found, its_chunks, _ = tell(make(), **options)
    assert found.text == plain.text
    assert found.token_ids == plain.token_ids
    assert found.logprobs == plain.logprobs
    assert found.finish_reason == plain.finish_reason
    assert [(c.text, c.token_ids) for c in its_chunks] == [(c.text, c.token_ids) for c in chunks]


def test_right_guesses_save_steps_and_the_report_counts_them() -> None:
    plain, _, slow = tell()
    found, _, fast = tell(Oracle(SCRIPT), most=5)
    assert plain.report.draft_proposed == plain.report.draft_accepted == 0
    # The first token comes of the prompt, then up to six a step; the end itself is not guessed.
    assert len(slow.steps) == 1 + len(TEXT)
    assert len(fast.steps) == 1 + -(-len(TEXT) // 6)
    assert found.report.draft_accepted == found.report.draft_proposed
    assert found.report.draft_accepted == len(TEXT) - (len(fast.steps) - 1)


def test_wrong_guesses_are_counted_too() -> None:
    found, _, runner = tell(Oracle(SCRIPT, wrong=1), most=3)
    assert found.report.draft_accepted == 0
    assert found.report.draft_proposed >= 3 * (len(TEXT) - 3)
    assert len(runner.steps) == 1 + len(TEXT)


def test_no_guess_goes_beyond_what_may_still_come() -> None:
    """With two tokens left, one guess and the token behind it are all there can be."""
    _, _, runner = tell(Oracle(SCRIPT), most=5, max_tokens=3)
    assert runner.steps == [2, 2]


def test_guesses_take_free_pages_alone_and_give_them_back() -> None:
    prompt = tuple(range(1, 8))
    params = SamplingParams(temperature=0.0, max_tokens=9, ignore_eos=True)
    request = Request(ids=prompt, params=params)
    expected = Engine(PrefixRunner(n_pages=4), ByteTokenizer(), n_ctx=16).submit(request).result()
    text = [*prompt, *expected.token_ids]
    runner = PrefixRunner(n_pages=4)
    engine = Engine(runner, ByteTokenizer(), n_ctx=16, payoff=always(Oracle(text, wrong=2), 8))
    handle = engine.submit(request)
    while engine.busy:
        engine.step()
        for seq in engine.scheduler.running:
            assert len(seq.pages) <= -(-(seq.n_computed + 1) // runner.page_size)
    assert handle.result().token_ids == expected.token_ids


def test_two_that_share_four_pages_end_as_alone() -> None:
    params = SamplingParams(temperature=0.0, max_tokens=10, ignore_eos=True)
    requests = [Request(ids=(i, 2, 3), params=params) for i in range(3)]
    alone = Engine(PrefixRunner(n_pages=40), ByteTokenizer(), n_ctx=16)
    expected = [alone.submit(r).result().token_ids for r in requests]
    draft = Draft(PrefixRunner(n_pages=5), name="itself")
    engine = Engine(PrefixRunner(n_pages=5), ByteTokenizer(), n_ctx=16, payoff=always(draft, 3))
    handles = [engine.submit(r) for r in requests]
    engine.run()
    completions = [h.result() for h in handles]
    assert [c.token_ids for c in completions] == expected
    assert any("gave way" in note for c in completions for note in c.report.notes)
    assert sum(c.report.draft_accepted for c in completions) > 0


def test_cancelling_leaves_no_page() -> None:
    draft = Draft(PrefixRunner(n_pages=40), name="itself")
    engine = Engine(PrefixRunner(n_pages=40), ByteTokenizer(), n_ctx=64, payoff=always(draft))
    params = SamplingParams(temperature=0.0, ignore_eos=True)
    first, second = (engine.submit(Request(ids=(i, 1), params=params)) for i in (3, 4))
    for _ in range(3):
        engine.step()
    first.cancel()
    engine.step()
    assert len(engine.scheduler.running) == 1
    assert [seq.request.ids[0] for seq in draft._states] == [4]
    second.cancel()
    engine.scheduler.cache.clear()
    assert engine.scheduler.pool.n_free == 40


def test_a_failure_ends_the_requests_and_guessing_begins_anew() -> None:
    runner = PrefixRunner(n_pages=40)
    draft = Draft(PrefixRunner(n_pages=40), name="itself")
    engine = Engine(runner, ByteTokenizer(), n_ctx=64, payoff=always(draft))
    params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
    request = Request(ids=(1, 2, 3), params=params)
    expected = engine.submit(request).result().token_ids
    handle = engine.submit(request)
    engine.step()
    draft.runner.fail_next = RuntimeError("broken")  # type: ignore[attr-defined]
    with pytest.raises(EngineError, match="broken"):
        handle.result()
    assert not draft._states
    assert engine.submit(request).result().token_ids == expected


def test_closing_the_engine_closes_the_draft() -> None:
    runner = PrefixRunner(n_pages=8)
    Engine(
        PrefixRunner(n_pages=8), ByteTokenizer(), n_ctx=8, payoff=always(Draft(runner, name="d"))
    ).close()
    assert runner.closed


# --- sampling ----------------------------------------------------------------------------------


class Noisy(PrefixRunner):
    """A draft that is nearly of the model's opinion."""

    def step(self, tokens, positions, rows, tables, logit_rows):
        logits = super().step(tokens, positions, rows, tables, logit_rows)
        noise = np.random.default_rng(int(positions[-1])).normal(0, 0.7, logits.shape)
        return (logits + noise).astype(np.float32)


class SmallVocabulary(ByteTokenizer):
    vocab_size = 6
    eog_ids = frozenset({99})


def test_the_distribution_of_guessed_tokens_is_the_models() -> None:
    """The second and third token, which were guessed, over many seeds, against the exact
    probability of each pair: Pearson's chi-squared."""
    options = {"temperature": 1.3, "top_k": 5, "top_p": 1.0, "min_p": 0.0}
    engine = Engine(
        PrefixRunner(n_pages=64, n_vocab=6),
        SmallVocabulary(),
        n_ctx=16,
        payoff=always(Draft(Noisy(n_pages=64, n_vocab=6), name="noisy"), 3),
    )
    prompt, n = (1, 4, 2), 3000
    counts: Counter[tuple[int, int]] = Counter()
    accepted = proposed = 0
    for seed in range(n):
        params = SamplingParams(seed=seed, max_tokens=3, **options)  # type: ignore[arg-type]
        completion = engine.submit(Request(ids=prompt, params=params)).result()
        counts[completion.token_ids[1:]] += 1  # type: ignore[index]
        accepted += completion.report.draft_accepted
        proposed += completion.report.draft_proposed
    assert 0.2 < accepted / proposed < 0.95
    sampler = Sampler(SamplingParams(**options), n_vocab=6)  # type: ignore[arg-type]

    def exact(ids: tuple[int, ...]) -> dict[int, float]:
        tokens, p = sampler.distribution(logits_after(ids, 6), np.array(ids, np.int32))
        return dict(zip(tokens.tolist(), p.tolist(), strict=True))

    expected: Counter[tuple[int, int]] = Counter()
    for a, pa in exact(prompt).items():
        for b, pb in exact((*prompt, a)).items():
            for c, pc in exact((*prompt, a, b)).items():
                expected[b, c] += n * pa * pb * pc  # type: ignore[assignment]
    chi_squared = sum((counts[k] - e) ** 2 / e for k, e in expected.items())
    assert set(counts) <= set(expected)
    assert chi_squared < 66.6  # the 99.9% quantile for 35 degrees: 36 pairs at most


def test_a_draft_that_is_asked_again_says_the_same() -> None:
    """As when a sequence gave way between the guess and the step."""
    draft = Draft(PrefixRunner(n_pages=40), name="itself")
    [seq] = sequences(1)
    first = draft.propose({seq: 4})[seq]
    assert len(first) == 4
    assert draft.propose({seq: 4})[seq] == first
    assert draft.propose({seq: 2})[seq] == first[:2]
    seq.append(first[0])
    assert draft.propose({seq: 3})[seq] == first[1:]


def test_a_long_prompt_is_read_in_pieces() -> None:
    draft = Draft(PrefixRunner(n_pages=400), name="itself")
    engine = Engine(PrefixRunner(n_pages=400), ByteTokenizer(), n_ctx=1024)
    seq = engine._sequence(Request(ids=tuple(i % 250 for i in range(2 * DRAFT_SLICE + 5))))
    assert [len(draft.propose({seq: 2})[seq]) for _ in range(3)] == [0, 0, 2]
    assert draft.runner.steps == [DRAFT_SLICE, DRAFT_SLICE, 5, 1]  # type: ignore[attr-defined]


def test_a_draft_forgets_who_is_not_asked_for() -> None:
    draft = Draft(PrefixRunner(n_pages=4), name="itself")
    seqs = sequences(3)
    for seq in seqs:
        for _ in range(5):
            seq.append(9)
    found = [draft.propose({seq: 1})[seq] for seq in seqs]  # two pages each
    assert all(found)
    assert list(draft._states) == seqs[1:]
    assert draft.propose({seqs[0]: 1})[seqs[0]] == found[0]
    assert draft.propose(dict.fromkeys(seqs, 1))[seqs[0]] == found[0]


def test_room_is_made_past_one_that_has_none_to_give() -> None:
    draft = Draft(PrefixRunner(n_pages=2), name="itself")
    holder, empty, other = sequences(3)
    assert draft.propose({holder: 6})[holder]  # both pages
    assert draft.propose({holder: 6, empty: 1})[empty] == []
    draft._states = {empty: draft._states[empty], holder: draft._states[holder]}
    assert len(draft.propose({other: 1})[other]) == 1
    assert list(draft._states) == [other]


def test_the_draft_draws_as_the_model_does() -> None:
    """From the same distribution it guesses every token, at any temperature."""
    params = SamplingParams(seed=5, temperature=1.5, max_tokens=30, ignore_eos=True)
    draft = Draft(PrefixRunner(n_pages=40), name="itself")
    engine = Engine(PrefixRunner(n_pages=40), ByteTokenizer(), n_ctx=64, payoff=always(draft, 4))
    report = engine.submit(Request(ids=(1, 2, 3), params=params)).result().report
    assert report.draft_proposed == report.draft_accepted >= 20


# --- the native engine -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def native(tiny_model: Path):
    """native(n_pages, speculation): an engine over the tiny model; speculation as in `payoff`."""
    opened: dict[tuple[str, int], NativeRunner] = {}
    with open_model(tiny_model) as model:

        def runner(role: str, n_pages: int) -> NativeRunner:
            key = (role, n_pages)
            if key not in opened:
                opened[key] = NativeRunner(model.graph, model.gguf, n_pages=n_pages, threads=2)
            return opened[key]

        def make(n_pages: int, speculation: str = "off", most: int = 4, **options) -> Engine:
            speculator = {
                "off": lambda: None,
                "ngram": lambda: NGram(shortest=1),
                "draft": lambda: Draft(runner("draft", 5), name="itself"),
            }[speculation]()
            payoff = None if speculator is None else always(speculator, most)
            return Engine(
                runner("model", n_pages), model.tokenizer, n_ctx=256, payoff=payoff, **options
            )

        yield make
        for one in opened.values():
            one.close()


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_native_results_are_bitwise_those_without(native, data) -> None:
    prefix = (np.random.default_rng(2).integers(2, 40, 20).tolist() * 7)[:140]
    requests = []
    for _ in range(data.draw(st.integers(1, 6))):
        cut = data.draw(st.integers(1, 140))
        params = SamplingParams(
            seed=data.draw(st.integers(0, 3)),
            temperature=data.draw(st.sampled_from([0.0, 0.3, 1.0])),
            repeat_penalty=data.draw(st.sampled_from([1.0, 1.3])),
            max_tokens=data.draw(st.integers(1, 60)),
            logprobs=1,
            ignore_eos=data.draw(st.booleans()),
        )
        requests.append(Request(ids=tuple(prefix[:cut]), params=params))
    alone = [native(12).submit(r).result() for r in requests]
    engine = native(
        5,
        data.draw(st.sampled_from(["ngram", "draft"])),
        data.draw(st.sampled_from([1, 3, 4, 8, 16])),
        max_running=6,
        step_tokens=data.draw(st.sampled_from([8, 65, 512])),
    )
    handles = []
    for request in requests:
        handles.append(engine.submit(request))
        for _ in range(data.draw(st.integers(0, 8))):
            engine.step()
        if data.draw(st.sampled_from([False, False, True])):
            other = engine.submit(request)
            engine.step()
            other.cancel()
    together = [h.result() for h in handles]
    assert [c.logprobs for c in together] == [c.logprobs for c in alone]
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]
    assert [c.finish_reason for c in together] == [c.finish_reason for c in alone]


def test_the_native_draft_of_the_same_model_is_always_right(native) -> None:
    params = SamplingParams(seed=1, temperature=0.9, max_tokens=40, ignore_eos=True)
    request = Request(ids=tuple(range(2, 90)), params=params)
    report = native(12, "draft").submit(request).result().report
    assert report.draft_accepted == report.draft_proposed >= 30


# --- the draft's vocabulary ----------------------------------------------------------------------


def test_another_vocabulary_is_refused() -> None:
    class Fewer(ByteTokenizer):
        vocab_size = 200

    class Swapped(ByteTokenizer):
        def token_bytes(self, token_id):
            return b"?" if token_id == 65 else super().token_bytes(token_id)

    class Ordinary(ByteTokenizer):
        def is_special(self, token_id):
            return False

    check_same_vocabulary(ByteTokenizer(), ByteTokenizer(), name="d")
    with pytest.raises(ConfigError, match=r"draft model d.*200 tokens.*260"):
        check_same_vocabulary(ByteTokenizer(), Fewer(), name="d")
    with pytest.raises(ConfigError, match=r"token 65 is b'\?' and the model's is b'A'"):
        check_same_vocabulary(ByteTokenizer(), Swapped(), name="d")
    with pytest.raises(ConfigError, match="token 256"):
        check_same_vocabulary(ByteTokenizer(), Ordinary(), name="d")


# --- when it pays ------------------------------------------------------------------------------


def sequences(n: int):
    engine = Engine(PrefixRunner(n_pages=40), ByteTokenizer(), n_ctx=64)
    seqs = [engine._sequence(Request(ids=(1, 2))) for _ in range(n)]
    for seq in seqs:
        seq.n_computed = 1
    return seqs


def measured(payoff: Payoff, seconds_of: dict[int, float]) -> None:
    [seq] = sequences(1)
    for rows, seconds in seconds_of.items():
        part = Slice(seq=seq, start=1, count=1, every_row=False, guesses=(0,) * (rows - 1))
        for _ in range(9):
            payoff.ran(Batch(slices=[part], copies=[]), seconds)


def judged(payoff: Payoff, seq, share: float, n: int = 200) -> None:
    for i in range(n):
        payoff.judged(seq, held=int((i + 1) * share) > int(i * share))


def test_the_first_step_is_plain_and_then_it_is_tried() -> None:
    payoff, [seq] = Payoff(NGram(), most=4), sequences(1)
    assert payoff.choose([seq]) == 0
    measured(payoff, {1: 1.0})
    assert payoff.choose([seq]) > 0


@pytest.mark.parametrize(
    ("four_rows", "share", "pays"),
    [(1.3, 0.9, True), (1.6, 0.05, False), (4.0, 0.9, False), (2.0, 0.8, True)],
)
def test_cost_and_acceptance_decide(four_rows: float, share: float, pays: bool) -> None:
    payoff, [seq] = Payoff(NGram(), most=3), sequences(1)
    measured(payoff, {1: 1.0, 2: (2 + four_rows) / 3, 4: four_rows})
    judged(payoff, seq, share)
    assert (payoff.choose([seq]) > 0) == pays


def test_one_sequence_that_is_badly_guessed_spoils_it_for_itself_alone() -> None:
    payoff, [good, bad] = Payoff(NGram(), most=3), sequences(2)
    measured(payoff, {1: 1.0, 2: 1.2, 4: 1.5})
    judged(payoff, good, 0.95)
    judged(payoff, bad, 0.0)
    assert payoff.choose([good]) > 0
    assert payoff.choose([bad]) == 0


def test_a_slow_draft_does_not_pay() -> None:
    payoff, [seq] = Payoff(NGram(), most=3), sequences(1)
    measured(payoff, {1: 1.0, 4: 1.3})
    judged(payoff, seq, 0.7)
    assert payoff.choose([seq]) > 0
    payoff._guess_seconds.append(1.0)
    assert payoff.choose([seq]) == 0


def test_a_large_batch_is_not_guessed_for() -> None:
    payoff, seqs = Payoff(NGram(), most=3), sequences(LARGE_BATCH + 1)
    measured(payoff, {1: 1.0, LARGE_BATCH: 1.0, LARGE_BATCH + 1: 1.0, 64: 1.0})
    assert payoff.choose(seqs) == 0
    assert payoff.choose(seqs[:-1]) > 0


def test_what_is_off_is_tried_again_and_what_is_on_compared() -> None:
    payoff, [seq] = Payoff(NGram(), most=3), sequences(1)
    measured(payoff, {1: 1.0, 2: 5.0, 3: 5.0, 4: 5.0})
    choices = [payoff.choose([seq]) > 0 for _ in range(2 * TRY_EVERY)]
    assert choices.count(True) == 2
    payoff = Payoff(NGram(), most=3)
    measured(payoff, {1: 1.0, 2: 1.0, 3: 1.0, 4: 1.0})
    choices = [payoff.choose([seq]) > 0 for _ in range(2 * TRY_EVERY)]
    assert choices.count(False) == 2


def test_an_answer_that_begins_to_copy_turns_it_on_before_the_next_try() -> None:
    payoff, [seq] = Payoff(NGram(shortest=1), most=3), sequences(1)
    measured(payoff, {1: 1.0, 2: 1.2, 3: 1.3, 4: 1.4})
    judged(payoff, seq, 0.0)
    payoff._since_try = 0
    found: list[int] = []
    steps = 0
    while not found:
        seq.append([5, 6, 7][steps % 3])
        seq.n_computed = len(seq.ids) - 1
        found = payoff.guess([seq], ()).get(seq, [])
        steps += 1
    assert steps < 20 < TRY_EVERY
    assert found[0] == [5, 6, 7][steps % 3]
    assert seq.draft_proposed == 0


def test_steps_with_prompts_are_not_measured() -> None:
    payoff, [seq] = Payoff(NGram(), most=3), sequences(1)
    part = Slice(seq=seq, start=0, count=2, every_row=False)
    payoff.ran(Batch(slices=[part], copies=[]), 9.0)
    assert payoff.choose([seq]) == 0
