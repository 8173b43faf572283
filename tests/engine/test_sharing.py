"""A prefix is computed once: samples of one prompt, and requests that begin alike."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from insula import LLM, SamplingParams
from insula.errors import ConfigError

PROMPT = np.random.default_rng(4).integers(5, 300, 200).tolist()  # three pages and a bit
PARAMS = SamplingParams(temperature=1.0, max_tokens=9, ignore_eos=True, seed=11)


@pytest.fixture
def llm(tiny_model: Path) -> Iterator[LLM]:
    with LLM(tiny_model, n_ctx=256, max_running=8) as llm:
        yield llm


def test_samples_share_the_prompt_and_are_those_of_their_seeds(llm: LLM) -> None:
    alone = [llm.generate(PROMPT, PARAMS, seed=11 + i, use_cache=False).token_ids for i in range(5)]
    together = llm.generate(PROMPT, PARAMS, n=5)
    assert [c.token_ids for c in together] == alone
    assert len(set(alone)) > 1
    first, *others = [c.report.cached_tokens for c in together]
    assert first == 0
    assert others == [199] * 4  # all but the token that gives the logits


def test_samples_of_a_list_stand_together(llm: LLM) -> None:
    got = llm.generate([PROMPT[:70], PROMPT[100:140]], PARAMS, n=2)
    alone = [llm.generate(PROMPT[:70], PARAMS, seed=11 + i).token_ids for i in range(2)]
    alone += [llm.generate(PROMPT[100:140], PARAMS, seed=11 + i).token_ids for i in range(2)]
    assert [c.token_ids for c in got] == alone
    assert isinstance(llm.generate(PROMPT[:9], PARAMS, n=1), list)


@pytest.mark.parametrize("n", [0, -1, 257, True, 1.5, "2"])
def test_a_count_that_is_none_is_refused(llm: LLM, n: object) -> None:
    with pytest.raises(ConfigError, match="n: found"):
        llm.generate(PROMPT, PARAMS, n=n)  # type: ignore[call-overload]


def test_requests_that_begin_alike_compute_it_once(llm: LLM) -> None:
    prompts = [[*PROMPT, 300 + i, 7] for i in range(6)]
    greedy = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
    alone = [llm.generate(p, greedy, use_cache=False).token_ids for p in prompts]
    together = llm.generate(prompts, greedy)
    assert [c.token_ids for c in together] == alone
    assert sum(c.report.cached_tokens for c in together) >= 5 * 192
    apart = llm.generate(prompts[:2], greedy, salt="another")
    assert apart[0].report.cached_tokens == 0


def test_no_page_is_left_behind(llm: LLM) -> None:
    engine = llm._engine
    for _ in range(3):
        llm.generate(PROMPT, PARAMS, n=8)
    scheduler = engine.scheduler  # type: ignore[attr-defined]
    scheduler.cache.clear()
    assert scheduler.pool.n_free == scheduler.pool.n_pages
