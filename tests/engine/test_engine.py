"""The life of a request: ends, errors, cancelling, reports, and several callers at once."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import threading

import numpy as np
import pytest

from engine.prefix_model import (
    BOS,
    EOS,
    N_VOCAB,
    ByteTokenizer,
    PrefixRunner,
    ScriptRunner,
    logits_after,
)
from insula.engine.engine import Engine
from insula.engine.request import Request
from insula.engine.sampling import Sampler
from insula.errors import ConfigError, ContextOverflowError, EngineError
from insula.types import Chunk, SamplingParams

GREEDY = SamplingParams(temperature=0.0, max_tokens=8)


def engine(runner=None, *, n_ctx: int = 64, **options) -> Engine:
    return Engine(runner or PrefixRunner(n_pages=40), ByteTokenizer(), n_ctx=n_ctx, **options)


def script(text: str, **options) -> tuple[Engine, Request]:
    """An engine whose model says `text` and ends, and a request for it."""
    request = Request(ids=(BOS, 65), params=SamplingParams(temperature=0.0, **options))
    runner = ScriptRunner(text.encode(), n_prompt=2)
    return Engine(runner, ByteTokenizer(), n_ctx=200), request


def test_greedy_tokens_are_the_definitions() -> None:
    ids = [BOS, 1, 2, 3]
    completion = engine().submit(Request(ids=tuple(ids), params=GREEDY)).result()
    for token in completion.token_ids:
        assert token == int(np.argmax(logits_after(ids)))
        ids.append(token)
    assert len(completion.token_ids) == 8
    assert completion.finish_reason == "length"


def test_chunks_add_up_and_the_last_one_has_the_completion() -> None:
    e, request = script("héllo wörld")
    chunks = list(e.submit(request))
    assert "".join(c.text for c in chunks) == "héllo wörld"
    assert [c.finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    completion = chunks[-1].completion
    assert completion is not None
    assert completion.finish_reason == "stop"
    assert completion.text == "héllo wörld"
    assert bytes(completion.token_ids).decode() == "héllo wörld"  # the end token is not among them
    assert all("\ufffd" not in c.text for c in chunks)
    assert tuple(i for c in chunks for i in c.token_ids) == completion.token_ids


@pytest.mark.parametrize(
    ("text", "stops", "shown"),
    [
        ("one two three", ["two"], "one "),
        ("one two three", ["t", "two"], "one "),
        ("aaab", ["aab"], "a"),
        ("añb", ["ñ"], "a"),
        ("tail sto", ["stop"], "tail sto"),
        ("stop", ["stop"], ""),
    ],
)
def test_text_is_cut_before_a_stop_string(text: str, stops: list[str], shown: str) -> None:
    e, request = script(text, stop=stops)
    streamed = ""
    for chunk in e.submit(request):
        streamed += chunk.text
        assert not any(stop in streamed for stop in stops)
    completion = e.submit(request).result()
    assert streamed == completion.text == shown
    assert completion.finish_reason == "stop"


def test_an_unfinished_character_is_not_shown_half() -> None:
    e, request = script("é", max_tokens=1)
    chunks = list(e.submit(request))
    assert [c.text for c in chunks] == ["", "\ufffd"]
    assert chunks[-1].finish_reason == "length"


def test_ignore_eos_never_chooses_an_end_token() -> None:
    e, request = script("hi", ignore_eos=True, max_tokens=20)
    completion = e.submit(request).result()
    assert len(completion.token_ids) == 20
    assert completion.finish_reason == "length"
    assert not set(completion.token_ids) & ByteTokenizer.eog_ids


def test_without_max_tokens_the_context_is_the_end() -> None:
    params = SamplingParams(temperature=0.0, ignore_eos=True)
    completion = engine(n_ctx=16).submit(Request(ids=(1, 2, 3), params=params)).result()
    assert completion.finish_reason == "length"
    assert len(completion.token_ids) == 13


def test_logprobs_are_of_the_raw_logits() -> None:
    params = SamplingParams(
        temperature=0.0, max_tokens=4, logprobs=2, logit_bias={7: 100.0}, repeat_penalty=1.0
    )
    completion = engine().submit(Request(ids=(1, 2), params=params)).result()
    assert completion.logprobs is not None
    ids = [1, 2]
    for entry in completion.logprobs:
        assert entry.token_id == 7
        x = logits_after(ids).astype(np.float64)
        logp = x - np.log(np.exp(x - x.max()).sum()) - x.max()
        assert entry.logprob == pytest.approx(logp[7], abs=1e-4)
        best = np.argsort(-x)[:2]
        assert [i for i, _, _ in entry.top] == best.tolist()
        assert [p for _, _, p in entry.top] == pytest.approx(logp[best], abs=1e-4)
        ids.append(7)


def test_max_tokens_zero_evaluates_and_says_nothing() -> None:
    rows = []
    params = SamplingParams(max_tokens=0)
    ids = (1, 2, 3, 4, 5, 6, 7)
    e = engine(step_tokens=3)
    completion = e.submit(
        Request(ids=ids, params=params, on_prompt_logits=lambda p, x: rows.append((p, x.copy())))
    ).result()
    assert completion.token_ids == ()
    assert completion.finish_reason == "length"
    assert [p for p, _ in rows] == [0, 3, 6]
    found = np.concatenate([x for _, x in rows])
    assert np.array_equal(found, [logits_after(ids[: i + 1]) for i in range(7)])


def test_a_cached_prefix_is_not_computed_again() -> None:
    runner = PrefixRunner(n_pages=40)
    e = engine(runner)
    ids = tuple(range(1, 22))
    first = e.submit(Request(ids=ids, params=GREEDY)).result()
    runner.rows_run = 0
    again = e.submit(Request(ids=ids, params=GREEDY)).result()
    assert again.token_ids == first.token_ids
    assert again.report.cached_tokens == 20
    assert runner.rows_run == 8  # one of the prompt, and seven of the completion
    longer = (*ids, *first.token_ids, 5)
    turn = e.submit(Request(ids=longer, params=GREEDY)).result()
    assert turn.report.cached_tokens == len(longer) - 2  # the last token was never run
    assert turn.token_ids == engine().submit(Request(ids=longer, params=GREEDY)).result().token_ids
    other = e.submit(Request(ids=ids, params=GREEDY, salt="tenant")).result()
    assert other.report.cached_tokens == 0
    alone = e.submit(Request(ids=ids, params=GREEDY, use_cache=False)).result()
    assert alone.report.cached_tokens == 0


def test_the_report_counts_and_times() -> None:
    params = SamplingParams(temperature=1.0, max_tokens=5, ignore_eos=True)
    handle = engine(reason="a test").submit(Request(ids=(1, 2, 3), params=params, notes=("n",)))
    report = handle.result().report
    assert (report.engine, report.engine_reason, report.isa) == ("prefix", "a test", "none")
    assert (report.prompt_tokens, report.completion_tokens, report.cached_tokens) == (3, 5, 0)
    assert report.time_to_first_token > 0
    assert report.prompt_tokens_per_second > 0
    assert report.decode_tokens_per_second > 0
    assert report.notes == ("n",)
    again = dataclasses.replace(params, seed=report.seed)
    same = engine().submit(Request(ids=(1, 2, 3), params=again)).result()
    assert same.token_ids == handle.result().token_ids


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"temperature": 1.5, "mirostat": 2, "mirostat_tau": 2.0, "mirostat_eta": 0.9},
        {"temperature": 1.5, "xtc_probability": 0.5, "dry_multiplier": 2.0},
    ],
    ids=str,
)
def test_preemption_is_said_and_changes_nothing(options: dict) -> None:
    params = SamplingParams(**options, seed=8, max_tokens=20, ignore_eos=True)
    requests = [Request(ids=(i, 2, 3), params=params) for i in range(4)]
    expected = [engine().submit(r).result().token_ids for r in requests]
    e = engine(PrefixRunner(n_pages=10, page_size=4), n_ctx=40)
    handles = [e.submit(r) for r in requests]
    e.run()
    completions = [h.result() for h in handles]
    assert [c.token_ids for c in completions] == expected
    notes = [note for c in completions for note in c.report.notes]
    assert any("gave way" in note for note in notes)
    assert any(not c.report.notes for c in completions)


def test_mirostat_goes_on_from_token_to_token() -> None:
    params = SamplingParams(
        mirostat=2, mirostat_tau=2.0, mirostat_eta=0.9, temperature=1.5, seed=3, max_tokens=12
    )
    answer = engine().submit(Request(ids=(1, 2, 3), params=params)).result()
    sampler, ids, mu, frozen = Sampler(params), [1, 2, 3], None, []
    for token in answer.token_ids:
        args = logits_after(ids), np.array(ids, np.int32), len(ids), 3
        chosen = sampler(*args, mirostat_mu=mu)
        frozen.append(sampler(*args).token_id)
        assert chosen.token_id == token
        ids.append(token)
        mu = chosen.mirostat_mu
    assert tuple(frozen) != answer.token_ids  # the state does something


def test_dry_ends_a_loop_unless_a_breaker_is_in_it() -> None:
    def said(**options) -> bytes:
        e, request = script("abcabcabcabcabc", dry_multiplier=60.0, max_tokens=15, **options)
        return bytes(i for i in e.submit(request).result().token_ids if i < 256)

    loop = b"abcabcabcabcabc"
    assert said(dry_penalty_last_n=0) == loop
    assert said().startswith(b"abcab")
    assert said() != loop
    assert said(dry_sequence_breakers=("b",)) == loop
    assert said(dry_sequence_breakers=("ca",)) == loop
    assert said(dry_sequence_breakers=("x", "cax")) == said()


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(ids=()), "prompt is empty"),
        (Request(ids=(1, N_VOCAB)), f"token id {N_VOCAB}: the vocabulary has 0 to {N_VOCAB - 1}"),
        (Request(ids=(-1,)), "token id -1"),
        (Request(ids=(1,), n_ctx=65), "n_ctx: found 65; allowed: 1 to 64"),
        (Request(ids=(1,), params=SamplingParams(top_p=7.0)), "top_p"),
        (Request(ids=(1,), params=SamplingParams(mirostat=1)), "mirostat: 1 was given; allowed: 0"),
        (
            Request(
                ids=(1,), params=SamplingParams(dry_multiplier=1.0, dry_sequence_breakers=("",))
            ),
            "dry_sequence_breakers: '' was given; allowed: strings of 1 to 40 bytes",
        ),
    ],
)
def test_what_is_refused(request_: Request, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        engine().submit(request_)


def test_overflow_carries_both_numbers() -> None:
    with pytest.raises(ContextOverflowError) as caught:
        engine().submit(Request(ids=(1,) * 60, params=SamplingParams(max_tokens=5)))
    assert (caught.value.needed, caught.value.limit) == (65, 64)
    with pytest.raises(ContextOverflowError):
        engine().submit(Request(ids=(1,) * 64))
    assert engine().submit(Request(ids=(1,) * 60, params=SamplingParams(max_tokens=4))).result()


def test_cancel_frees_at_once_and_ends_the_stream() -> None:
    e = engine()
    endless = SamplingParams(temperature=0.0, ignore_eos=True)
    handle = e.submit(Request(ids=(1, 2, 3), params=endless))
    stream = iter(handle)
    next(stream)
    handle.cancel()
    handle.cancel()
    assert not e.busy
    assert e.scheduler.pool.n_free + e.scheduler.pool.n_evictable == 40
    rest = list(stream)
    assert rest[-1].finish_reason == "cancelled"
    assert rest[-1].completion is not None
    assert rest[-1].completion.token_ids[0] == int(np.argmax(logits_after([1, 2, 3])))


def test_a_dropped_handle_is_cancelled() -> None:
    e = engine()
    e.submit(Request(ids=(1, 2, 3), params=SamplingParams(ignore_eos=True)))
    e.step()
    assert not e.busy


def test_a_failing_runner_fails_its_requests_and_not_the_engine() -> None:
    runner = PrefixRunner(n_pages=40)
    e = engine(runner)
    handles = [e.submit(Request(ids=(i, 2), params=GREEDY)) for i in range(3)]
    runner.fail_next = MemoryError("no more")
    for handle in handles:
        with pytest.raises(EngineError, match="no more"):
            handle.result()
    assert e.submit(Request(ids=(1, 2), params=GREEDY)).result().token_ids
    assert e.scheduler.pool.n_free + e.scheduler.pool.n_evictable == 40


def test_a_failing_callback_fails_only_its_request() -> None:
    def fail(start, logits):
        raise ValueError("mine")

    e = engine()
    other = e.submit(Request(ids=(1, 2), params=GREEDY))
    handle = e.submit(Request(ids=(3, 4), params=GREEDY, on_prompt_logits=fail))
    with pytest.raises(ValueError, match="mine"):
        handle.result()
    assert len(other.result().token_ids) == 8


def test_closing_ends_what_runs_and_refuses_more() -> None:
    runner = PrefixRunner(n_pages=40)
    with engine(runner) as e:
        handle = e.submit(Request(ids=(1, 2), params=GREEDY))
        e.step()
    assert runner.closed
    assert handle.result().finish_reason == "cancelled"
    e.close()
    with pytest.raises(EngineError, match="closed"):
        e.submit(Request(ids=(1,)))


def test_threads_share_steps_and_get_their_own_tokens() -> None:
    params = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
    prompts = [(i, i + 1, i + 2) for i in range(12)]
    expected = [engine().submit(Request(ids=p, params=params)).result().token_ids for p in prompts]
    runner = PrefixRunner(n_pages=40)
    e = engine(runner, max_running=8)
    found: dict[int, list[int]] = {}
    start = threading.Barrier(len(prompts))

    def work(i: int) -> None:
        handle = e.submit(Request(ids=prompts[i], params=params))
        start.wait()
        tokens: list[int] = []
        for chunk in handle:
            tokens.extend(chunk.token_ids)
        found[i] = tokens

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [tuple(found[i]) for i in range(len(prompts))] == expected
    assert not e.busy
    assert len(runner.steps) < 12 * 24  # they rode in common batches


def test_another_thread_can_cancel_and_is_waited_for() -> None:
    e = engine(n_ctx=150)
    handle = e.submit(Request(ids=(1, 2), params=SamplingParams(ignore_eos=True)))
    began = threading.Event()

    def stop() -> None:
        began.wait(30)
        handle.cancel()

    thread = threading.Thread(target=stop)
    thread.start()
    chunks = []
    for chunk in handle:
        chunks.append(chunk)
        began.set()
        if len(chunks) == 2:
            thread.join(30)
    assert chunks[-1].finish_reason == "cancelled"


class InterruptedRunner(PrefixRunner):
    """Ctrl-C in the middle of its third step."""

    def step(self, *arguments):
        if len(self.steps) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return super().step(*arguments)


@pytest.mark.skipif(sys.platform == "win32", reason="os.kill cannot send Ctrl-C there")
def test_ctrl_c_leaves_the_engine_whole() -> None:
    runner = InterruptedRunner(n_pages=40)
    e = engine(runner)
    handle = e.submit(Request(ids=(1, 2), params=GREEDY))
    seen: list[Chunk] = []
    with pytest.raises(KeyboardInterrupt):
        seen.extend(handle)
    assert len(runner.steps) == 3  # the step it fell into was finished
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    # The request can even go on; nothing was lost.
    rest = list(handle)
    tokens = [i for chunk in [*seen, *rest] for i in chunk.token_ids]
    assert tuple(tokens) == engine().submit(Request(ids=(1, 2), params=GREEDY)).result().token_ids
    assert e.scheduler.pool.n_free + e.scheduler.pool.n_evictable == 40
    assert EOS not in tokens


def test_a_full_context_goes_without_the_page_it_would_copy() -> None:
    """With as many pages as one context needs there is none left to copy a tail from."""
    e = engine(PrefixRunner(n_pages=6, page_size=4), n_ctx=24)
    params = SamplingParams(temperature=0.0, max_tokens=1)
    ids = tuple(range(1, 24))
    e.submit(Request(ids=ids, params=params)).result()
    other = (*ids[:18], 99, 98, 97, 96, 95)
    found = e.submit(Request(ids=other, params=params)).result()
    assert found.report.cached_tokens == 16
    assert found.token_ids == engine().submit(Request(ids=other, params=params)).result().token_ids
    assert e.scheduler.pool.n_free + e.scheduler.pool.n_evictable == 6
