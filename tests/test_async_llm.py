"""AsyncLLM: many requests on one loop, each what LLM gives, and none in another's way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from insula import LLM, AsyncLLM, SamplingParams
from insula.errors import ConfigError, ContextOverflowError, EngineError

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


@pytest.fixture
def llm(tiny_model: Path) -> Iterator[LLM]:
    with LLM(tiny_model, n_ctx=256, max_running=8) as llm:
        yield llm


def prompt(i: int) -> list[int]:
    return [(7 * i + 3 * k) % 250 for k in range(5 + i % 20)]


def test_three_hundred_at_once_say_what_each_says_alone(llm: LLM) -> None:
    alone = [llm.generate(prompt(i), GREEDY).token_ids for i in range(30)]

    async def main() -> list[tuple[int, ...]]:
        answers = AsyncLLM(llm)
        done = await asyncio.gather(*(answers.generate(prompt(i % 30), GREEDY) for i in range(300)))
        return [completion.token_ids for completion in done]

    assert asyncio.run(main()) == alone * 10


def test_chunks_come_one_by_one_and_make_the_whole(llm: LLM) -> None:
    async def main() -> None:
        chunks = [chunk async for chunk in AsyncLLM(llm).stream(prompt(1), GREEDY)]
        assert len(chunks) > 10
        last = chunks[-1].completion
        assert last is not None
        assert "".join(c.text for c in chunks) == last.text
        assert last.finish_reason == "length"

    asyncio.run(main())


def test_chat_is_llms(llm: LLM) -> None:
    messages = [{"role": "user", "content": "hello"}]
    want = llm.chat(messages, GREEDY)  # type: ignore[list-item]

    async def main() -> None:
        got = await AsyncLLM(llm).chat(messages, GREEDY)  # type: ignore[arg-type]
        assert got.text == want.text

    asyncio.run(main())


def test_a_cancelled_task_and_a_left_loop_free_the_engine(llm: LLM) -> None:
    endless = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)

    async def leave(answers: AsyncLLM) -> None:
        chunks = answers.stream(prompt(2), endless)
        async for _ in chunks:
            break
        await chunks.aclose()

    async def main() -> None:
        answers = AsyncLLM(llm)
        tasks = [asyncio.create_task(answers.generate(prompt(i), endless)) for i in range(20)]
        await leave(answers)
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(e, asyncio.CancelledError) for e in ended)
        for _ in range(100):
            if not llm._engine.busy:  # type: ignore[attr-defined]
                break
            await asyncio.sleep(0.05)
        assert not llm._engine.busy  # type: ignore[attr-defined]
        again = await answers.generate(prompt(3), GREEDY)
        assert len(again.token_ids) == 12

    asyncio.run(main())


def test_a_requests_error_is_its_own(llm: LLM) -> None:
    async def main() -> None:
        answers = AsyncLLM(llm)
        good = asyncio.create_task(answers.generate(prompt(1), GREEDY))
        with pytest.raises(ContextOverflowError):
            await answers.generate(prompt(1), max_tokens=10**6)
        with pytest.raises(ConfigError, match="temperature"):
            await answers.generate(prompt(1), temperature=-1)
        assert len((await good).token_ids) == 12

    asyncio.run(main())


def test_closing_ends_what_runs(tiny_model: Path) -> None:
    async def main() -> None:
        async with await AsyncLLM.load(tiny_model, n_ctx=512) as answers:
            long = SamplingParams(temperature=0, max_tokens=400, ignore_eos=True)
            running = asyncio.create_task(answers.generate(prompt(1), long))
            for _ in range(1000):
                if answers.llm._engine.busy:  # type: ignore[attr-defined]
                    break
                await asyncio.sleep(0.005)
            async for _ in answers.stream(prompt(2), GREEDY):
                break
        ended = await running
        assert ended.finish_reason == "cancelled"
        with pytest.raises(EngineError, match="closed"):
            await answers.generate(prompt(1), GREEDY)

    asyncio.run(main())
    assert all(t.name != "insula" for t in threading.enumerate())


def test_two_loops_and_a_thread_share_one_model(llm: LLM) -> None:
    want = [llm.generate(prompt(i), GREEDY).token_ids for i in range(6)]
    answers, got = AsyncLLM(llm), {}

    async def one(i: int) -> None:
        got[i] = (await answers.generate(prompt(i), GREEDY)).token_ids

    def loop(i: int) -> None:
        asyncio.run(one(i))

    threads = [threading.Thread(target=loop, args=(i,)) for i in range(5)]
    for thread in threads:
        thread.start()
    got[5] = llm.generate(prompt(5), GREEDY).token_ids
    for thread in threads:
        thread.join()
    assert [got[i] for i in range(6)] == want
