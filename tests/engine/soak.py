"""Random requests without a pause: does anything leak, stall or answer differently?

    python -m tests.engine.soak MODEL [--minutes 10] [--clients 8] [--speculate off]

Clients send prompts that share prefixes, some with several samples, some too long; a third of all
streams is cancelled at a random token. Prints a line each half minute and, at the end, the slope of
the process's memory after the first fifth of the time, per ten minutes. It fails on a page that
nobody holds, and on a request whose tokens are not those that it has alone.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from insula import AsyncLLM
from insula.errors import ContextOverflowError


@dataclass(kw_only=True)
class Tally:
    """What a soak did. memory: (seconds, resident bytes)."""

    finished: int = 0
    cancelled: int = 0
    refused: int = 0
    tokens: int = 0
    memory: list[tuple[float, int]] = field(default_factory=list)

    def slope(self) -> float:
        """Bytes per ten minutes, fitted to what follows the first fifth."""
        end = self.memory[-1][0]
        points = np.array([(t, m) for t, m in self.memory if t >= end / 5], dtype=np.float64)
        return float(np.polyfit(points[:, 0], points[:, 1], 1)[0] * 600)


async def soak(
    llm: AsyncLLM,
    *,
    seconds: float,
    clients: int = 8,
    seed: int = 0,
    cancels: int | None = None,
    tell: bool = False,
) -> Tally:
    """Load for `seconds`, or until as many streams were cancelled. Raises AssertionError."""
    began = time.monotonic()
    tally = Tally()
    n_ctx, n_vocab = llm.llm.n_ctx, llm.llm.tokenizer.vocab_size
    prefixes = np.random.default_rng(seed).integers(2, n_vocab, (4, n_ctx // 2)).tolist()
    first: dict[tuple[int, int, int], list[int]] = {}

    def over() -> bool:
        done = cancels is not None and tally.cancelled >= cancels
        return done or time.monotonic() - began >= seconds

    async def client(number: int) -> None:
        rng = random.Random(seed * 1000 + number)
        while not over():
            which, cut = rng.randrange(len(prefixes)), rng.choice([5, 60, 64, 130, n_ctx // 2])
            ids = prefixes[which][: min(cut, n_ctx // 2)]
            n = rng.choice([1, 8, 20])
            options = {"max_tokens": n, "temperature": 1.0, "seed": cut, "ignore_eos": True}
            if rng.random() < 0.02:
                try:
                    await llm.generate(ids * 5 + ids, max_tokens=n_ctx)
                except ContextOverflowError:
                    tally.refused += 1
                continue
            stop_after = rng.randrange(n) if rng.random() < 0.34 else None
            got: list[int] = []
            chunks = llm.stream(ids, **options)
            async for chunk in chunks:
                got += chunk.token_ids
                if stop_after is not None and len(got) > stop_after and chunk.completion is None:
                    break
            await chunks.aclose()
            tally.tokens += len(got)
            if len(got) < n:
                tally.cancelled += 1
            else:
                tally.finished += 1
            expected = first.setdefault((which, cut, n), [])
            common = min(len(expected), len(got))
            assert got[:common] == expected[:common], "the same request gave other tokens"
            if len(got) > len(expected):
                expected[:] = got

    async def watch() -> None:
        step = min(30.0, max(0.5, seconds / 40))
        while True:
            tally.memory.append((time.monotonic() - began, _resident()))
            if tell:
                print(
                    f"{tally.memory[-1][0]:6.0f} s  {tally.memory[-1][1] / 1e6:8.1f} MB  "
                    f"{tally.finished} finished, {tally.cancelled} cancelled, "
                    f"{tally.refused} refused, {tally.tokens} tokens",
                    flush=True,
                )
            await asyncio.sleep(step)

    watcher = asyncio.create_task(watch())
    try:
        await asyncio.gather(*(client(i) for i in range(clients)))
    finally:
        watcher.cancel()
    tally.memory.append((time.monotonic() - began, _resident()))
    check_pages(llm)
    return tally


def check_pages(llm: AsyncLLM) -> None:
    """Every page is free or in the prefix tree, once nobody asks for anything."""
    engine = llm.llm._engine
    until = time.monotonic() + 30
    while engine.busy and time.monotonic() < until:
        time.sleep(0.01)
    assert not engine.busy, "the engine does not come to rest"
    pool, tree = engine.scheduler.pool, engine.scheduler.cache.pages()
    assert Counter(tree) == Counter(np.flatnonzero(pool.refs).tolist())
    assert pool.n_free == pool.n_pages - len(tree)


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--speculate", default="off")
    parser.add_argument("--ctx", type=int, default=512)
    given = parser.parse_args()

    async def run() -> None:
        async with await AsyncLLM.load(
            given.model, n_ctx=given.ctx, speculate=given.speculate
        ) as llm:
            tally = await soak(llm, seconds=60 * given.minutes, clients=given.clients, tell=True)
            print(f"memory grows by {tally.slope() / 1e6:.2f} MB in ten minutes")

    asyncio.run(run())


if __name__ == "__main__":
    main()
