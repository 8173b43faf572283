"""The front door on a tiny real model: prompts, options, streams, batches, scores, errors."""

from __future__ import annotations

import gc
import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from golden import golden
from insula import LLM, SamplingParams
from insula.errors import (
    ConfigError,
    ContextOverflowError,
    EngineError,
    NotFoundError,
    UnsupportedError,
)
from insula.models.load import open_model
from insula.ops.reference import forward
from tiny_chat_model import write_tiny

GREEDY = SamplingParams(temperature=0.0, max_tokens=12)


def test_text_and_ids_are_the_same_prompt(shared_llm: LLM) -> None:
    by_text = shared_llm.generate("the island", GREEDY)
    ids = shared_llm.tokenize("the island")
    by_ids = shared_llm.generate(ids, GREEDY)
    assert by_text.token_ids == by_ids.token_ids
    assert by_text.text == by_ids.text
    assert by_text.report.prompt_tokens == len(ids)
    assert shared_llm.generate(np.array(ids), GREEDY).token_ids == by_ids.token_ids


def test_greedy_is_the_argmax_of_the_reference(tiny_model: Path, shared_llm: LLM) -> None:
    ids = shared_llm.tokenize("and the sea")
    completion = shared_llm.generate(ids, temperature=0, max_tokens=8, ignore_eos=True)
    with open_model(tiny_model) as model:
        x = forward(model.graph, model.gguf, [*ids, *completion.token_ids])
    for i, token in enumerate(completion.token_ids, start=len(ids) - 1):
        allowed = np.delete(x[i], list(shared_llm.tokenizer.eog_ids))
        assert x[i][token] >= allowed.max() - 1e-3


def test_a_list_of_prompts_runs_together_and_answers_in_order(shared_llm: LLM) -> None:
    prompts = ["one", "two and", "three", "four of the"]
    batch = shared_llm.generate(prompts, GREEDY)
    alone = [shared_llm.generate(p, GREEDY) for p in prompts]
    assert [c.token_ids for c in batch] == [c.token_ids for c in alone]
    by_ids = shared_llm.generate([shared_llm.tokenize(p) for p in prompts], GREEDY)
    assert [c.token_ids for c in by_ids] == [c.token_ids for c in alone]


def test_options_by_keyword_go_on_top_of_params(shared_llm: LLM) -> None:
    assert len(shared_llm.generate("a", GREEDY, max_tokens=3, ignore_eos=True).token_ids) == 3
    cut = shared_llm.generate("a", GREEDY, stop="x", max_tokens=5)
    assert "x" not in cut.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temprature": 1.0}, "did you mean temperature?"),
        ({"max_token": 1}, "did you mean max_tokens?"),
        ({"overflows": "stop"}, "did you mean overflow?"),
        ({"zzz": 1}, "allowed: temperature"),
        ({"top_p": 2}, "top_p: 2 was given; allowed: 0 to 1"),
        ({"temperature": math.nan}, "temperature: nan"),
        ({"max_tokens": -1}, "max_tokens: -1"),
        ({"seed": 2**70}, "seed"),
        ({"logprobs": 10**9}, "logprobs"),
        ({"stop": [""]}, "stop"),
        ({"overflow": "drop"}, "overflow: found 'drop'; allowed: error, stop"),
        ({"params": 5}, "params: found int"),
    ],
)
def test_a_wrong_option_is_named(shared_llm: LLM, options: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        shared_llm.generate("a", **options)
    assert message in str(caught.value)


@pytest.mark.parametrize("prompt", ["", [], [[]], [True], [1.5], 7, None, [None], [["a"]]])
def test_a_prompt_that_is_none(shared_llm: LLM, prompt: object) -> None:
    with pytest.raises(ConfigError):
        shared_llm.generate(prompt, GREEDY)  # type: ignore[call-overload]


def test_a_prompt_of_10_mb_is_refused_with_both_numbers(shared_llm: LLM) -> None:
    with pytest.raises(ContextOverflowError) as caught:
        shared_llm.generate("word " * 2_000_000)
    assert caught.value.needed > 1_000_000
    assert caught.value.limit == 512


def test_overflow_is_an_error_or_a_stop_that_is_said(shared_llm: LLM) -> None:
    ids = [5] * 500
    with pytest.raises(ContextOverflowError) as caught:
        shared_llm.generate(ids, max_tokens=20)
    assert (caught.value.needed, caught.value.limit) == (520, 512)
    options = {"temperature": 0, "ignore_eos": True, "overflow": "stop"}
    cut = shared_llm.generate(ids, max_tokens=20, **options)
    assert (len(cut.token_ids), cut.finish_reason) == (12, "length")
    assert "max_tokens 20 cut to 12: the context holds 512 tokens" in cut.report.notes
    full = shared_llm.generate([5] * 512, **options)
    assert (full.token_ids, full.finish_reason) == ((), "length")
    with pytest.raises(ContextOverflowError):
        shared_llm.generate([5] * 513, **options)


def test_streaming_gives_the_same_and_closing_cancels(shared_llm: LLM) -> None:
    whole = shared_llm.generate("the", GREEDY)
    stream = shared_llm.stream("the", GREEDY)
    chunks = list(stream)
    assert "".join(c.text for c in chunks) == whole.text
    assert stream.completion is chunks[-1].completion
    with shared_llm.stream("the", temperature=0, ignore_eos=True) as left:
        next(left)
    assert left.completion is not None
    assert left.completion.finish_reason == "cancelled"
    assert not shared_llm._engine.busy
    with pytest.raises(StopIteration):
        next(left)
    for _ in shared_llm.stream("the", temperature=0, ignore_eos=True):
        break
    gc.collect()
    assert not shared_llm._engine.busy


def test_a_streams_errors_come_before_its_first_chunk(shared_llm: LLM) -> None:
    with pytest.raises(ConfigError):
        shared_llm.stream("a", top_p=9)
    with pytest.raises(ConfigError, match="one prompt"):
        shared_llm.stream(["a", "b"])  # type: ignore[arg-type]


def test_a_seed_repeats_and_the_report_has_it(shared_llm: LLM) -> None:
    first = shared_llm.generate("once", max_tokens=16, temperature=1.5)
    again = shared_llm.generate("once", max_tokens=16, temperature=1.5, seed=first.report.seed)
    assert first.token_ids == again.token_ids


def test_logprobs_agree_with_logits(shared_llm: LLM) -> None:
    ids = shared_llm.tokenize("of the")
    completion = shared_llm.generate(ids, GREEDY, logprobs=3)
    assert completion.logprobs is not None
    x = shared_llm.logits([*ids, *completion.token_ids]).astype(np.float64)
    for i, entry in enumerate(completion.logprobs, start=len(ids) - 1):
        logp = x[i] - x[i].max() - np.log(np.exp(x[i] - x[i].max()).sum())
        assert entry.logprob == pytest.approx(logp[entry.token_id], abs=1e-4)
        assert entry.token == shared_llm.tokenizer.token_bytes(entry.token_id)
        assert entry.top[0][0] == entry.token_id
        assert len(entry.top) == 3


def test_logits_are_the_references(tiny_model: Path, shared_llm: LLM) -> None:
    ids = shared_llm.tokenize("and so it was that the sea rose over the land of the north")
    found = shared_llm.logits(ids)
    assert found.dtype == np.float32
    assert found.shape == (len(ids), 320)
    with open_model(tiny_model) as model:
        expected = forward(model.graph, model.gguf, ids)
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


@pytest.mark.parametrize(("window", "stride"), [(None, None), (16, 5), (16, 1), (8, 7), (2, 1)])
def test_perplexity_is_its_formula(shared_llm: LLM, window: int | None, stride: int | None) -> None:
    text = "In a village of the island, the name of which I do not want to remember."
    ids = shared_llm.tokenizer.encode(text)
    w = window or len(ids)
    s = stride or w
    total, scored = 0.0, 1
    for start in range(0, len(ids), s):
        part = ids[start : start + w]
        if scored >= len(ids):
            break
        x = shared_llm.logits(part).astype(np.float64)
        for t in range(max(1, scored - start), len(part)):
            row = x[t - 1]
            total += np.log(np.exp(row - row.max()).sum()) + row.max() - row[part[t]]
        scored = start + len(part)
    expected = math.exp(total / (len(ids) - 1))
    assert shared_llm.perplexity(text, window=window, stride=stride) == pytest.approx(
        expected, rel=1e-6
    )
    assert shared_llm.perplexity(ids, window=window, stride=stride) == pytest.approx(expected)


def test_perplexity_refuses_what_it_cannot_score(shared_llm: LLM) -> None:
    with pytest.raises(ConfigError, match="window: found 1; allowed: 2 to 512"):
        shared_llm.perplexity("some text", window=1)
    with pytest.raises(ConfigError, match="stride: found 8; allowed: 1 to 7"):
        shared_llm.perplexity("some text", window=8, stride=8)
    with pytest.raises(ConfigError, match="at least 2 tokens"):
        shared_llm.perplexity("")


def test_scoring_leaves_no_prefix_behind(tiny_model: Path) -> None:
    with LLM(tiny_model) as llm:
        ids = list(range(10, 200))
        llm.logits(ids)
        assert llm.generate(ids, GREEDY).report.cached_tokens == 0


def test_tokenize_and_back(shared_llm: LLM) -> None:
    text = "the ñandú and 🦤\n"
    assert shared_llm.detokenize(shared_llm.tokenize(text)) == text
    assert shared_llm.tokenize("<|end|>") == [1]
    assert len(shared_llm.tokenize("<|end|>", parse_special=False)) > 1
    assert shared_llm.detokenize([0, 1], skip_special=True) == ""


def test_what_was_loaded(tiny_model: Path) -> None:
    with LLM(tiny_model, n_ctx=100, n_threads=1, kv_type="f32") as llm:
        info = llm.model_info
        assert (info.arch, info.n_vocab, info.n_ctx_train, info.n_ctx) == ("llama", 320, 512, 100)
        assert (info.n_layers, info.n_embd, info.kv_type, info.threads) == (2, 64, "f32", 1)
        assert info.engine == "native"
        assert info.file_bytes == tiny_model.stat().st_size
        report = llm.generate("a", GREEDY).report
        assert (report.engine, report.isa) == (info.engine, info.isa)
        assert report.engine_reason == info.engine_reason
        assert "tiny" in repr(llm).lower()


def test_a_smaller_context_is_chosen_for_the_memory_and_said(tiny_model: Path) -> None:
    with LLM(tiny_model, kv_memory="64K") as llm:
        assert llm.n_ctx == 192
        note = llm.model_info.notes[0]
        assert note.startswith("context of 192 tokens, chosen for 64.0 KiB of KV cache")
        assert note in llm.generate("a", GREEDY).report.notes
    with LLM(tiny_model, n_ctx=1000) as llm:
        assert "trained for 512" in llm.model_info.notes[0]


def test_the_reference_engine_gives_the_same_answer(tiny_model: Path, shared_llm: LLM) -> None:
    with LLM(tiny_model, engine="reference") as llm:
        assert llm.model_info.engine == "reference"
        assert np.abs(llm.logits([5, 6, 7]) - shared_llm.logits([5, 6, 7])).max() < 0.02


@pytest.mark.parametrize(
    "options",
    [
        {"n_ctx": 0},
        {"n_ctx": 1 << 30},
        {"n_threads": 0},
        {"engine": "magic"},
        {"kv_type": "q4"},
        {"kv_type": None},
        {"weights": ""},
        {"weights": 5},
        {"cache_dir": 3},
        {"cache_dir": False},
        {"cache_dir": "a\0b"},
        {"cache_dir": "~nobody-of-that-name/x"},
        {"cache_dir_bytes": "9" * 400},
        {"kv_memory": "lots"},
        {"kv_memory": -5},
        {"kv_memory": "1K"},
        {"cache_dir_bytes": "lots"},
        {"max_running": 0},
        {"draft_tokens": 4},
        {"draft_tokens": 0, "speculate": "ngram"},
        {"draft_tokens": 33, "speculate": "ngram"},
    ],
)
def test_a_wrong_setting_is_refused(tiny_model: Path, options: dict) -> None:
    from insula.errors import ResourceError

    with pytest.raises((ConfigError, ResourceError)) as caught:
        LLM(tiny_model, **options)
    assert next(iter(options)) in str(caught.value)


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        LLM(tmp_path / "nothing.gguf")


@pytest.mark.parametrize("speculate", ["ngram", "draft"])
def test_speculation_changes_no_answer(tiny_model: Path, shared_llm: LLM, speculate: str) -> None:
    with LLM(
        tiny_model, speculate=tiny_model if speculate == "draft" else speculate, draft_tokens=3
    ) as llm:
        name = tiny_model.name if speculate == "draft" else "ngram"
        assert llm.model_info.speculation == name
        guesses = 0
        for options in (
            {"temperature": 0},
            {"temperature": 0, "logit_bias": {70: 100.0}},
            {"seed": 3},
            {"seed": 4, "repeat_penalty": 1.3},
        ):
            for prompt in ("the sea the sea the sea the", "no"):
                params = SamplingParams(max_tokens=40, ignore_eos=True, logprobs=1, **options)
                found, plain = llm.generate(prompt, params), shared_llm.generate(prompt, params)
                assert found.logprobs == plain.logprobs
                assert found.text == plain.text
                assert found.report.draft_accepted <= found.report.draft_proposed
                guesses += found.report.draft_proposed
        assert guesses > 0
    assert shared_llm.model_info.speculation == "off"


def test_a_draft_counts_towards_the_kv_cache(tiny_model: Path, shared_llm: LLM) -> None:
    with LLM(tiny_model, speculate=tiny_model) as llm:
        assert llm.model_info.kv_bytes == 2 * shared_llm.model_info.kv_bytes


def test_a_draft_of_another_vocabulary_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    other = write_tiny(tmp_path / "other.gguf", spare="reserved")
    with pytest.raises(ConfigError, match=r"draft model other\.gguf: its token \d+ is"):
        LLM(tiny_model, speculate=other)
    with pytest.raises(NotFoundError):
        LLM(tiny_model, speculate=tmp_path / "nothing.gguf")


def test_after_close_nothing_runs(tiny_model: Path) -> None:
    llm = LLM(tiny_model)
    stream = llm.stream("a", temperature=0, ignore_eos=True)
    next(stream)
    llm.close()
    llm.close()
    rest = list(stream)
    assert rest[-1].finish_reason == "cancelled"
    with pytest.raises(EngineError, match="closed"):
        llm.generate("a")


def test_a_cached_prefix_and_a_batch_change_nothing(tiny_model: Path) -> None:
    ids = list(range(20, 300))
    with LLM(tiny_model) as llm:
        cold = llm.generate(ids, GREEDY, logprobs=2)
        warm = llm.generate(ids, GREEDY, logprobs=2)
        assert cold.report.cached_tokens == 0
        assert warm.report.cached_tokens == len(ids) - 1
        assert warm.logprobs == cold.logprobs
        batch = llm.generate([ids, ids[:50], ids, ids[:100]], GREEDY, logprobs=2)
        assert batch[0].logprobs == cold.logprobs
        fresh = llm.generate(ids, GREEDY, logprobs=2, use_cache=False)
        assert fresh.logprobs == cold.logprobs
        assert llm.generate(ids, GREEDY, salt="another").report.cached_tokens == 0


def test_threads_use_one_model(tiny_model: Path) -> None:
    with LLM(tiny_model) as llm:
        prompts = [f"the {i}" for i in range(8)]
        expected = {p: llm.generate(p, GREEDY).text for p in prompts}
        found: dict[str, str] = {}

        def work(prompt: str) -> None:
            found[prompt] = "".join(c.text for c in llm.stream(prompt, GREEDY))

        threads = [threading.Thread(target=work, args=(p,)) for p in prompts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert found == expected


@pytest.mark.skipif(sys.platform == "win32", reason="os.kill cannot send Ctrl-C there")
def test_ctrl_c_stops_an_answer_and_the_model_goes_on(tiny_model: Path) -> None:
    with LLM(tiny_model) as llm:

        def talk(timer: threading.Timer) -> None:
            timer.start()  # on a busy machine the signal may come before this returns
            while True:
                llm.generate("on and on", temperature=0, ignore_eos=True, use_cache=False)

        for _ in range(5):
            timer = threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGINT))
            with pytest.raises(KeyboardInterrupt):
                talk(timer)
            timer.join()
            assert not llm._engine.busy
        pool = llm._engine.scheduler.pool
        assert pool.n_free + pool.n_evictable == pool.n_pages
        assert llm.generate("a", GREEDY).token_ids


def test_no_backend_for_an_unknown_architecture(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "odd.gguf")
    data = path.read_bytes()
    key = b"general.architecture"
    at = data.index(key) + len(key)
    path.write_bytes(data[:at] + data[at:].replace(b"llama", b"osier", 1))
    with pytest.raises(UnsupportedError) as caught:
        LLM(path, engine="native")
    assert caught.value.backend == "native"


def test_importing_insula_imports_nothing_heavy() -> None:
    code = (
        "import sys, insula\n"
        "heavy = {'numpy', 'jinja2', 'torch', 'transformers', 'rich', 'httpx2', 'pydantic',\n"
        "         'llguidance', 'insula.llm', 'insula._native'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        "from insula import LLM, SamplingParams, ChatSession, InsulaError\n"
        "print(LLM.__name__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split("\n")[:2] == ["[]", "LLM"]


@pytest.mark.parametrize("what", [b"hi", bytearray(b"hi"), memoryview(b"hi")])
def test_bytes_are_neither_text_nor_ids(shared_llm: LLM, what: bytes) -> None:
    for ask in (
        lambda: shared_llm.generate(what, max_tokens=2),  # type: ignore[call-overload]
        lambda: shared_llm.logits(what),
        lambda: shared_llm.detokenize(what),
        lambda: shared_llm.perplexity(what),
    ):
        with pytest.raises(ConfigError, match=r"byte|memoryview|token ids"):
            ask()


FORK = """
import os, sys
from insula import LLM
from insula.errors import EngineError
llm = LLM(sys.argv[1], n_threads=2)
llm.generate([1, 2, 3], max_tokens=2)
child = os.fork()
if child == 0:
    try:
        llm.generate([1, 2, 3], max_tokens=2)
    except EngineError as error:
        print(error, flush=True)
    llm.close()
    sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
print(len(llm.generate([1, 2, 3], max_tokens=2, ignore_eos=True).token_ids))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_is_told_and_ends(tiny_model: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORK, str(tiny_model)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told, count = done.stdout.splitlines()
    assert "forked" in told
    assert count == "2"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_ctx": 1.5}, "n_ctx: found 1.5"),
        ({"n_ctx": "a"}, "n_ctx: found 'a'"),
        ({"n_threads": "a"}, "n_threads: found 'a'"),
        ({"max_running": "a"}, "max_running: found 'a'"),
        ({"max_running": None}, "max_running: found None"),
    ],
)
def test_a_wrong_option_of_a_model_is_named(tiny_model: Path, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LLM(tiny_model, **options)


def test_counts_may_be_numpys(tiny_model: Path) -> None:
    with LLM(tiny_model, n_ctx=np.int64(128), n_threads=np.int32(1)) as llm:  # type: ignore[arg-type]
        assert llm.n_ctx == 128


@pytest.mark.parametrize("name", [None, 1, b"name", 1.5])
def test_a_model_is_named_by_text(name: object) -> None:
    with pytest.raises(ConfigError, match=f"found {type(name).__name__}"):
        LLM(name)  # type: ignore[arg-type]


def test_a_name_with_a_zero_byte_is_not_empty() -> None:
    with pytest.raises(ConfigError, match="not a model name"):
        LLM("a\0b")


@pytest.mark.parametrize(
    "ask",
    [
        lambda llm: llm.generate(np.uint64(3)),
        lambda llm: llm.tokenize(b"hi"),
        lambda llm: llm.tokenize(None),
        lambda llm: llm.detokenize(None),
        lambda llm: llm.detokenize(1),
        lambda llm: llm.perplexity("a b c", window="a"),
        lambda llm: llm.perplexity("a b c", stride=1.5),
        lambda llm: llm.generate("a", use_cache="no"),
        lambda llm: llm.generate("a", salt=3),
        lambda llm: llm.generate("a", overflow="stop", max_tokens="a"),
    ],
)
def test_a_value_of_another_type(shared_llm: LLM, ask) -> None:
    with pytest.raises(ConfigError):
        ask(shared_llm)


def test_ids_may_come_from_an_iterator(shared_llm: LLM) -> None:
    ids = shared_llm.tokenize("the island")
    assert (shared_llm.logits(iter(ids)) == shared_llm.logits(ids)).all()  # type: ignore[arg-type]
    assert shared_llm.perplexity(iter(ids)) == shared_llm.perplexity(ids)  # type: ignore[arg-type]
    assert shared_llm.detokenize(iter(ids)) == "the island"  # type: ignore[arg-type]


def test_longrope_follows_the_context(tmp_path):
    """The same file: by its short factors where the context is short, by the long ones beyond."""
    for name, n_ctx in (("phi-short", 32), ("phi-long", 128)):
        wanted = golden.load(name)
        with LLM(wanted.write(tmp_path), n_ctx=n_ctx) as llm:
            logits = llm.logits(wanted.ids.tolist())
            np.testing.assert_allclose(logits, wanted.logits, rtol=0, atol=5e-2)
            said = any("long contexts" in note for note in llm.model_info.notes)
            assert said == (n_ctx > 32)
