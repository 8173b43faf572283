"""The llama.cpp engine on a tiny XVERSE, which native does not know: real model, real wheel.

Its answers are random bytes, many of them no UTF-8: the hard case for ids and text.
"""

from __future__ import annotations

import gc
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.xverse_checkpoint import write_xverse
from insula.engine.backends.llamacpp import LlamaCppEngine
from insula.engine.backends.llamacpp_tokenizer import LlamaCppTokenizer
from insula.engine.request import Request
from insula.errors import ConfigError, ContextOverflowError, EngineError, UnsupportedError
from insula.types import Completion, SamplingParams

#: Bias that leaves only these lower-case letters, so that the text is plain.
LETTERS = {i: -100.0 for i in range(256) if not 0x61 <= i <= 0x7A}


def params(**options: object) -> SamplingParams:
    settings: dict[str, object] = {
        "temperature": 0.0,
        "max_tokens": 12,
        "ignore_eos": True,
        "logit_bias": LETTERS | dict.fromkeys(range(256, 266), -100.0),
    }
    return SamplingParams(**(settings | options))  # type: ignore[arg-type]


def complete(engine: LlamaCppEngine, text: str = "the inner", **options: object) -> Completion:
    ids = tuple(engine.tokenizer.encode(text))
    return engine.submit(Request(ids=ids, params=params(**options))).result()


def test_text_ids_and_report_agree(xverse: LlamaCppEngine) -> None:
    answer = complete(xverse)
    assert answer.finish_reason == "length"
    assert len(answer.token_ids) == 12
    assert xverse.tokenizer.decode(answer.token_ids) == answer.text
    report = answer.report
    assert (report.engine, report.engine_reason) == ("llamacpp", "asked for")
    assert report.prompt_tokens == len(xverse.tokenizer.encode("the inner"))
    assert report.completion_tokens == 12
    assert report.isa
    assert report.time_to_first_token > 0
    assert report.decode_tokens_per_second > 0


def test_the_same_question_gets_the_same_answer(xverse: LlamaCppEngine) -> None:
    first, second = (complete(xverse, temperature=1.5, seed=11) for _ in range(2))
    assert first.token_ids == second.token_ids
    assert first.report.seed == 11
    other = complete(xverse, temperature=1.5, seed=12)
    assert other.token_ids != first.token_ids


def test_a_drawn_seed_is_reported_and_repeats(xverse: LlamaCppEngine) -> None:
    first = complete(xverse, temperature=1.5)
    again = complete(xverse, temperature=1.5, seed=first.report.seed)
    assert again.token_ids == first.token_ids


def test_chunks_add_up_to_the_completion(xverse: LlamaCppEngine) -> None:
    ids = tuple(xverse.tokenizer.encode("hello"))
    chunks = list(xverse.submit(Request(ids=ids, params=params(logprobs=3))))
    *parts, final = chunks
    assert final.completion is not None
    assert final.finish_reason == "length"
    assert all(part.finish_reason is None for part in parts)
    assert "".join(c.text for c in chunks) == final.completion.text
    assert sum((c.token_ids for c in chunks), ()) == final.completion.token_ids
    scores = [s for c in parts for s in c.logprobs or ()]
    assert tuple(scores) == final.completion.logprobs
    assert [s.token_id for s in scores] == list(final.completion.token_ids)
    for score in scores:
        assert len(score.top) == 3
        assert [p for _, _, p in score.top] == sorted((p for _, _, p in score.top), reverse=True)
        assert score.logprob <= score.top[0][2]
        assert score.token == xverse.tokenizer.token_bytes(score.token_id)


def test_logprobs_are_those_of_the_raw_distribution(xverse: LlamaCppEngine) -> None:
    """Bias, penalties and temperature move the choice, not the scores."""
    ids = tuple(xverse.tokenizer.encode("hello"))
    plain = SamplingParams(temperature=0, max_tokens=1, logprobs=266, ignore_eos=False)
    bent = params(max_tokens=1, logprobs=266, temperature=2.0, repeat_penalty=1.9, seed=5)
    first, second = (
        engine_answer.logprobs
        for engine_answer in (
            xverse.submit(Request(ids=ids, params=p)).result() for p in (plain, bent)
        )
    )
    assert first is not None
    assert second is not None
    raw = {i: p for i, _, p in first[0].top}
    assert len(raw) == 266
    assert np.logaddexp.reduce(list(raw.values())) == pytest.approx(0, abs=1e-4)
    for i, _, p in second[0].top:
        assert p == pytest.approx(raw[i], abs=1e-4)


def test_bytes_that_are_no_text_are_accounted_for(xverse: LlamaCppEngine) -> None:
    """Unbiased, the model writes random bytes; every token is named or missed aloud."""
    ids = tuple(xverse.tokenizer.encode("the"))
    options = SamplingParams(temperature=2.0, top_k=0, top_p=1, min_p=0, seed=3, max_tokens=40)
    answer = xverse.submit(Request(ids=ids, params=options)).result()
    missing = answer.report.completion_tokens - len(answer.token_ids)
    assert missing >= 0
    said = [note for note in answer.report.notes if "did not name" in note]
    assert bool(said) == (missing > 0)
    if said:
        assert f" {missing} " in said[0]


@pytest.mark.parametrize("split", [1, 2, 3])
def test_stop_strings_across_tokens(xverse: LlamaCppEngine, split: int) -> None:
    whole = complete(xverse)
    stop = whole.text[4 : 4 + split]
    cut = whole.text.find(stop)
    answer = complete(xverse, stop=(stop,))
    assert answer.finish_reason == "stop"
    assert answer.text == whole.text[:cut]


def test_the_end_token_ends_and_is_not_shown(xverse: LlamaCppEngine) -> None:
    end = xverse.tokenizer.eos_id
    assert end is not None
    answer = complete(xverse, logit_bias={end: 100.0}, ignore_eos=False)
    assert (answer.finish_reason, answer.text, answer.token_ids) == ("stop", "", ())
    assert answer.report.completion_tokens == 0


def test_control_tokens_show_text_only_if_asked(xverse: LlamaCppEngine) -> None:
    start = xverse.tokenizer.encode("<|im_start|>", add_special=False, parse_special=True)
    options = params(max_tokens=2, logit_bias={start[0]: 100.0}, ignore_eos=False)
    shown, hidden = (
        xverse.submit(Request(ids=(100,), params=options, skip_special=skip)).result()
        for skip in (False, True)
    )
    assert shown.token_ids == hidden.token_ids == (start[0], start[0])
    assert shown.text == "<|im_start|>" * 2
    assert hidden.text == ""


def test_cancel_ends_early_and_the_next_request_works(xverse: LlamaCppEngine) -> None:
    ids = tuple(xverse.tokenizer.encode("hello"))
    handle = xverse.submit(Request(ids=ids, params=params(max_tokens=200)))
    seen = []
    for chunk in handle:
        seen.append(chunk)
        if len(seen) == 3:
            handle.cancel()
    completion = seen[-1].completion
    assert completion is not None
    assert completion.finish_reason == "cancelled"
    assert len(completion.token_ids) < 200
    assert len(complete(xverse).token_ids) == 12


def test_a_context_beyond_the_trained_one_is_refused(xverse_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="n_ctx=513; it takes at most the 512"):
        LlamaCppEngine(xverse_path, n_ctx=513, threads=1)


def test_a_long_prompt_can_be_cancelled_between_batches(tmp_path: Path) -> None:
    path = write_xverse(tmp_path / "long.gguf", context=4096)
    told: list[int] = []

    def on_chunk(chunk: dict[str, Any]) -> bool:
        if "prompt_progress" in chunk:
            told.append(int(chunk["prompt_progress"]["processed"]))
        return len(told) == 2

    with LlamaCppEngine(path, n_ctx=4096, threads=1) as engine:
        body = {"prompt": [100] * 2000, "n_predict": 1, "stream": True, "return_progress": True}
        engine._server.complete(body, on_chunk)
    assert len(told) == 2
    assert told[-1] < 2000


def test_a_dropped_handle_cancels(xverse: LlamaCppEngine) -> None:
    ids = tuple(xverse.tokenizer.encode("hello"))
    handle = xverse.submit(Request(ids=ids, params=params(max_tokens=None)))
    chunks = iter(handle)
    next(chunks)
    run = handle._run
    del handle, chunks
    gc.collect()
    run.join(timeout=30)
    assert not run.is_alive()


def test_requests_wait_for_each_other(xverse: LlamaCppEngine) -> None:
    ids = tuple(xverse.tokenizer.encode("hello"))
    handles = [xverse.submit(Request(ids=ids, params=params())) for _ in range(3)]
    texts = {handle.result().text for handle in handles}
    assert len(texts) == 1


def test_the_next_turn_costs_its_new_tokens(xverse: LlamaCppEngine) -> None:
    history = tuple(xverse.tokenizer.encode("once upon a time in an inn"))
    first = xverse.submit(Request(ids=history, params=params(), salt="chat")).result()
    longer = history + first.token_ids + tuple(xverse.tokenizer.encode("and then"))
    second = xverse.submit(Request(ids=longer, params=params(), salt="chat")).result()
    assert second.report.cached_tokens >= len(history) + len(first.token_ids) - 1


def test_no_cache_between_salts_nor_without_cache(xverse: LlamaCppEngine) -> None:
    ids = tuple(xverse.tokenizer.encode("a secret that nobody else may probe"))

    def cached(salt: str, *, use_cache: bool = True) -> int:
        request = Request(ids=ids, params=params(max_tokens=1), salt=salt, use_cache=use_cache)
        return xverse.submit(request).result().report.cached_tokens

    cached("a")
    assert cached("a") > 0
    assert cached("b") == 0
    assert cached("a") == 0
    assert cached("a", use_cache=False) == 0
    assert cached("a") == 0


def test_overflow_has_both_numbers(xverse: LlamaCppEngine) -> None:
    with pytest.raises(ContextOverflowError) as info:
        xverse.submit(Request(ids=(5,) * 256, params=params(max_tokens=None)))
    assert (info.value.needed, info.value.limit) == (257, 256)
    with pytest.raises(ContextOverflowError) as info:
        xverse.submit(Request(ids=(5,) * 10, params=params(max_tokens=20), n_ctx=16))
    assert (info.value.needed, info.value.limit) == (30, 16)


def test_without_max_tokens_the_context_ends_it(xverse: LlamaCppEngine) -> None:
    request = Request(ids=(100,) * 10, params=params(max_tokens=None), n_ctx=32)
    answer = xverse.submit(request).result()
    assert (answer.finish_reason, len(answer.token_ids)) == ("length", 22)
    whole = xverse.submit(Request(ids=(100,) * 250, params=params(max_tokens=None))).result()
    assert (whole.finish_reason, len(whole.token_ids)) == ("length", 6)


def test_nothing_is_generated_with_max_tokens_0(xverse: LlamaCppEngine) -> None:
    answer = complete(xverse, max_tokens=0)
    assert (answer.text, answer.token_ids, answer.finish_reason) == ("", (), "length")


@pytest.mark.parametrize("ids", [(), (266,), (-1,), (1, 10**9)])
def test_ids_that_no_prompt_has(xverse: LlamaCppEngine, ids: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError):
        xverse.submit(Request(ids=ids, params=params()))


def test_logits_are_refused_by_name(xverse: LlamaCppEngine) -> None:
    request = Request(ids=(1,), params=params(), on_prompt_logits=lambda start, logits: None)
    with pytest.raises(UnsupportedError, match="llamacpp backend has no logits") as info:
        xverse.submit(request)
    assert info.value.backend == "llamacpp"


def test_options_are_checked_before_the_queue(xverse: LlamaCppEngine) -> None:
    with pytest.raises(UnsupportedError, match="seed"):
        xverse.submit(Request(ids=(1,), params=params(seed=2**40)))
    with pytest.raises(ConfigError, match="top_p"):
        xverse.submit(Request(ids=(1,), params=params(top_p=7.0)))


def test_its_own_tokenizer_gives_the_same_ids(xverse: LlamaCppEngine, xverse_path: Path) -> None:
    from insula.formats.gguf import GGUFFile

    with GGUFFile.open(xverse_path) as file:
        own = LlamaCppTokenizer(xverse._server, file.metadata)
        for text in ("the inner theatre", "año 🌍 né", "<|im_start|>user\nhi<|im_end|>", ""):
            assert own.encode(text) == xverse.tokenizer.encode(text)
            special = own.encode(text, parse_special=True)
            assert special == xverse.tokenizer.encode(text, parse_special=True)
            assert own.decode(special) == text
        assert own.eog_ids <= xverse.tokenizer.eog_ids
        assert (own.bos_id, own.eos_id) == (xverse.tokenizer.bos_id, xverse.tokenizer.eos_id)
        assert own.add_bos is False
        stream = own.detokenizer()
        ids = own.encode("né 🌍")
        texts = [stream.push(i) for i in ids]
        assert "".join(texts) + stream.flush() == "né 🌍"
        assert "" in texts


def test_nobody_else_can_reach_it(xverse: LlamaCppEngine) -> None:
    address = xverse._server._address
    if not address.startswith("unix://"):
        pytest.skip("this platform has no socket files; the server wants its random key")
    folder = Path(address.removeprefix("unix://")).parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    xverse._server._key, key = "wrong", xverse._server._key
    try:
        with pytest.raises(EngineError, match="401"):
            xverse._server.post("/tokenize", {"content": "x"})
    finally:
        xverse._server._key = key


def test_close_twice_frees_the_folder_and_refuses_more(xverse_path: Path) -> None:
    engine = LlamaCppEngine(xverse_path, n_ctx=64, threads=1)
    folder = Path(engine._server._address.removeprefix("unix://")).parent
    engine.close()
    engine.close()
    assert not folder.exists()
    handle = engine.submit(Request(ids=(1,), params=params(max_tokens=1)))
    with pytest.raises(EngineError, match="closed"):
        handle.result()


def test_close_ends_what_runs(xverse_path: Path) -> None:
    engine = LlamaCppEngine(xverse_path, n_ctx=512, threads=1)
    handle = engine.submit(Request(ids=(100,), params=params(max_tokens=None)))
    next(iter(handle))
    engine.close()
    completion = handle.result()
    assert completion.finish_reason == "cancelled"
    assert len(completion.token_ids) < 500


def test_a_failed_load_says_why(tmp_path: Path) -> None:
    path = write_xverse(tmp_path / "odd.gguf", pre="no-such-pre-tokenizer")
    with pytest.raises(EngineError, match="unknown pre-tokenizer type: 'no-such-pre-tokenizer'"):
        LlamaCppEngine(path, n_ctx=64, threads=1)


def test_llamacpp_prints_nothing(xverse_path: Path) -> None:
    """Load, generate, close: not a byte on either stream."""
    program = (
        "import sys\n"
        "from insula.engine.backends.llamacpp import LlamaCppEngine\n"
        "from insula.engine.request import Request\n"
        "from insula.types import SamplingParams\n"
        "with LlamaCppEngine(sys.argv[1], n_ctx=64, threads=1) as e:\n"
        "    e.submit(Request(ids=(1, 2), params=SamplingParams(max_tokens=4))).result()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(xverse_path)],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_threads_end_with_their_requests(xverse: LlamaCppEngine) -> None:
    complete(xverse)
    alive = [t for t in threading.enumerate() if t.name == "insula-llamacpp"]
    assert alive == []
