"""AsyncLLM: many requests on one loop, each what LLM gives, and none in another's way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from insula import LLM, AsyncLLM, SamplingParams
from insula.errors import ConfigError, ContextOverflowError, EngineError, UnsupportedError
from tiny_encoder import write_encoder

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


@pytest.mark.slow
def test_three_thousand_streams_at_once(llm: LLM) -> None:
    few = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    alone = [llm.generate(prompt(i), few).token_ids for i in range(30)]

    async def one(answers: AsyncLLM, i: int) -> tuple[int, ...]:
        return tuple([t async for chunk in answers.stream(prompt(i), few) for t in chunk.token_ids])

    async def main() -> list[tuple[int, ...]]:
        answers = AsyncLLM(llm)
        return await asyncio.gather(*(one(answers, i % 30) for i in range(3000)))

    assert asyncio.run(main()) == alone * 100


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


TEXTS = ["the cat sat", "a dog ran on the mat", "the sun is hot", "a cat", "the dog sat"]


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("encoders")
    return {
        "mean": write_encoder(folder / "mean.gguf"),
        "rank": write_encoder(folder / "rank.gguf", labels=("score",)),
        "labels": write_encoder(folder / "labels.gguf", labels=("sad", "neither", "glad")),
    }


def test_embeddings_rankings_and_labels_are_llms(encoders: dict[str, Path]) -> None:
    async def main() -> None:
        async with AsyncLLM(encoders["mean"]) as model:
            many = await asyncio.gather(*(model.embed(TEXTS[i % 5 :]) for i in range(40)))
            for i, found in enumerate(many):
                want = model.llm.embed(TEXTS[i % 5 :])
                np.testing.assert_array_equal(found.vectors, want.vectors)
                assert found.report.tokens == want.report.tokens
            short = await model.embed(TEXTS[0], dimensions=8)
            assert short.vectors.shape == (1, 8)
            with pytest.raises(UnsupportedError, match="no head"):
                await model.rerank("cat", TEXTS)
            with pytest.raises(ConfigError, match="is empty"):
                await model.embed([" "])
        with pytest.raises(EngineError, match="closed"):
            await model.embed(TEXTS)
        async with AsyncLLM(encoders["rank"]) as model:
            assert await model.rerank("cat", TEXTS) == model.llm.rerank("cat", TEXTS)
        async with AsyncLLM(encoders["labels"]) as model:
            assert await model.classify(TEXTS) == model.llm.classify(TEXTS)

    asyncio.run(main())
    assert not [t for t in threading.enumerate() if t.name.startswith("insula-embed")]


def test_a_model_for_text_gives_no_embeddings(llm: LLM) -> None:
    async def main() -> None:
        with pytest.raises(UnsupportedError, match="no embeddings"):
            await AsyncLLM(llm).embed("the cat")

    asyncio.run(main())


def test_the_loop_goes_on_and_cancelling_ends_an_embedding(encoders: dict[str, Path]) -> None:
    """The first step is held until the loop has done something else: it cannot be what blocks."""

    async def main() -> None:
        async with AsyncLLM(encoders["mean"]) as model:
            engine = model.llm._engine
            engine._lock.acquire()  # type: ignore[attr-defined]
            steps = 0
            began = asyncio.Event()
            loop = asyncio.get_running_loop()
            step = engine._step  # type: ignore[attr-defined]

            def counted(*args: object) -> object:
                nonlocal steps
                steps += 1
                loop.call_soon_threadsafe(began.set)
                return step(*args)

            engine._step = counted  # type: ignore[attr-defined]
            running = asyncio.create_task(model.embed(TEXTS * 400))  # many steps
            await began.wait()
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            engine._lock.release()  # type: ignore[attr-defined]
            waited = await asyncio.gather(*(model.embed("the cat") for _ in range(8)))
            assert all((w.vectors == waited[0].vectors).all() for w in waited)
        assert steps == 1 + 8  # the step that was under way, and one for each text

    asyncio.run(main())
