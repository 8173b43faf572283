"""Load and cancellation: nothing leaks, nothing stalls, and no answer changes."""

from __future__ import annotations

import asyncio

import pytest

from engine.soak import check_pages, soak
from insula import AsyncLLM


@pytest.mark.parametrize(("speculate", "cancels"), [("off", 1000), ("ngram", 200)])
def test_a_thousand_cancels_leave_no_page_behind(tiny_model, speculate, cancels) -> None:
    async def run() -> None:
        async with AsyncLLM(tiny_model, n_ctx=256, max_running=6, speculate=speculate) as llm:
            tally = await soak(llm, seconds=60, clients=12, cancels=cancels)
            assert tally.finished > 0
            assert tally.tokens > tally.finished + tally.cancelled // 2

    asyncio.run(run())


def test_tasks_cancelled_anywhere_leave_no_page_behind(tiny_model) -> None:
    """Cancelled by asyncio at a random moment: before, in and after their first step."""

    async def run() -> None:
        async with AsyncLLM(tiny_model, n_ctx=256, max_running=4) as llm:
            for i in range(150):
                task = asyncio.create_task(llm.generate([5] * 100, max_tokens=50, seed=i))
                await asyncio.sleep(0.0003 * (i % 20))
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            await asyncio.to_thread(check_pages, llm)
            assert (await llm.generate([5] * 100, max_tokens=3, ignore_eos=True)).token_ids

    asyncio.run(run())


@pytest.mark.slow
def test_memory_comes_to_rest_under_load(tiny_model) -> None:
    """The bound is generous: half a minute is short. `python -m tests.engine.soak` runs longer."""

    async def run() -> float:
        async with AsyncLLM(tiny_model, n_ctx=512, max_running=8) as llm:
            await soak(llm, seconds=8)
            before = await soak(llm, seconds=2)
            after = await soak(llm, seconds=25)
            return after.memory[-1][1] - before.memory[-1][1]

    assert asyncio.run(run()) < 8e6
