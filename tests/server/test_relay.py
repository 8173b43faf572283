"""Many answers, one writer that may be slow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from insula.server.errors import RefusalError
from insula.server.relay import Relay
from insula.types import Chunk


async def said(text: str, ended: list[str], *, fails: bool = False) -> AsyncGenerator[Chunk]:
    try:
        for letter in text:
            yield Chunk(text=letter, token_ids=(ord(letter),))
            await asyncio.sleep(0)
        if fails:
            raise ValueError(text)
    finally:
        ended.append(text[:1])


def test_what_waits_becomes_one_piece_and_nothing_is_lost():
    async def main() -> None:
        ended: list[str] = []
        async with Relay([said("a" * 500, ended), said("b" * 300, ended)], most=1 << 20) as relay:
            pieces: dict[int, list[str]] = {0: [], 1: []}
            async for item in relay.chunks():
                assert item is not None
                pieces[item[0]].append(item[1].text)
                assert len(item[1].token_ids) == len(item[1].text)
                for _ in range(50):  # a reader slower than what it reads
                    await asyncio.sleep(0)
        assert "".join(pieces[0]) == "a" * 500
        assert "".join(pieces[1]) == "b" * 300
        assert len(pieces[0]) < 30
        assert sorted(ended) == ["a", "b"]

    asyncio.run(main())


def test_a_reader_that_takes_nothing_is_given_up_within_the_bound():
    async def main() -> None:
        ended: list[str] = []
        async with Relay([said("a" * 5000, ended), said("b" * 10**6, ended)], most=4000) as relay:
            pieces = relay.chunks()
            await anext(pieces)
            for _ in range(5000):  # it takes no more for a while
                await asyncio.sleep(0)
            assert sorted(ended) == ["a", "b"]
            with pytest.raises(RefusalError, match="not read fast enough"):
                async for _ in pieces:
                    pass

    asyncio.run(main())


def test_an_answer_that_fails_ends_the_others_after_its_last_piece():
    async def main() -> None:
        ended: list[str] = []
        text = ""

        async def read(relay: Relay) -> None:
            nonlocal text
            async for item in relay.chunks():
                assert item is not None
                text += item[1].text if item[0] == 0 else ""

        answers = [said("abc", ended, fails=True), said("z" * 10**6, ended)]
        async with Relay(answers, most=1 << 30) as relay:
            with pytest.raises(ValueError, match="abc"):
                await read(relay)
        assert text == "abc"
        assert sorted(ended) == ["a", "z"]

    asyncio.run(main())


def test_leaving_cancels():
    async def main() -> None:
        ended: list[str] = []
        async with Relay([said("z" * 10**9, ended)], most=1 << 30) as relay:
            async for _ in relay.chunks():
                break
        assert ended == ["z"]

    asyncio.run(main())


def test_silence_is_told():
    async def main() -> None:
        async def nothing() -> AsyncGenerator[Chunk]:
            await asyncio.sleep(30)
            yield Chunk(text="", token_ids=())

        async with Relay([nothing()], most=1) as relay:
            async for item in relay.chunks(idle=0.01):
                assert item is None
                break

    asyncio.run(main())


def test_so_many_at_once():
    running = most = 0

    async def counted() -> AsyncGenerator[Chunk]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        yield Chunk(text="x", token_ids=(1,))
        running -= 1

    async def main() -> None:
        answers = [counted() for _ in range(20)]
        async with Relay(answers, most=1 << 20, at_once=3) as relay:
            assert len([item async for item in relay.chunks()]) == 20

    asyncio.run(main())
    assert most == 3
