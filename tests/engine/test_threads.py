"""Many threads at one engine: submit, read, leave, cancel, drop; nothing is lost or held."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time

import pytest

from engine.prefix_model import ByteTokenizer, PrefixRunner
from insula.engine.engine import Engine
from insula.engine.request import Request
from insula.engine.stream import Stream
from insula.types import SamplingParams


def new_engine(n_pages: int = 24) -> Engine:
    return Engine(
        PrefixRunner(n_pages=n_pages, page_size=4), ByteTokenizer(), n_ctx=64, max_running=6
    )


def request(n: int, tokens: int = 20) -> Request:
    params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
    return Request(ids=(n % 5, n % 3, n), params=params)


def idle(engine: Engine) -> bool:
    pool = engine.scheduler.pool
    return not engine.busy and pool.n_free + pool.n_evictable == pool.n_pages


@pytest.mark.parametrize("seed", range(3))
def test_whatever_threads_do_nothing_stays_behind(seed: int) -> None:
    engine = new_engine()
    expected = {n: new_engine().submit(request(n)).result().token_ids for n in range(12)}
    failures: list[str] = []

    def work(which: int) -> None:
        chance = random.Random(seed * 100 + which)
        for _ in range(12):
            n = chance.randrange(12)
            stream = Stream(engine.submit(request(n)))
            way = chance.randrange(4)
            if way == 0:  # read to the end
                tokens = tuple(i for chunk in stream for i in chunk.token_ids)
                if tokens != expected[n]:
                    failures.append(f"{n}: {tokens}")
                continue
            tokens = ()
            for _ in range(chance.randrange(6)):
                tokens += next(stream).token_ids
            if tokens != expected[n][: len(tokens)]:
                failures.append(f"{n}: {tokens}")
            if way == 1:
                stream.close()
                end = stream.completion
                # The others may have taken it to its end before.
                if end is None or end.token_ids != expected[n][: len(end.token_ids)]:
                    failures.append(f"{n}: closed as {end}")
            # Otherwise it is just dropped.

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert not any(thread.is_alive() for thread in threads)
    assert not failures
    engine.step()  # takes in what was dropped while another stepped
    assert idle(engine)


@pytest.mark.skipif(sys.platform == "win32", reason="os.kill cannot send Ctrl-C there")
def test_interrupts_at_any_moment_leave_the_engine_whole() -> None:
    """SIGINT after SIGINT into a thread that submits, reads and leaves."""
    engine = new_engine()
    expected = new_engine().submit(request(1)).result().token_ids
    stop = threading.Event()
    interrupts = 0

    def interrupt() -> None:
        chance = random.Random(1)
        while not stop.is_set():
            time.sleep(chance.uniform(0.0005, 0.01))
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    old = signal.getsignal(signal.SIGINT)
    try:
        thread.start()
        while interrupts < 60:
            try:
                for _ in Stream(engine.submit(request(interrupts))):
                    pass
            except KeyboardInterrupt:
                interrupts += 1
    except KeyboardInterrupt:  # between two of the lines above
        pass
    finally:
        stopping = threading.Thread(target=stop.set)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        stopping.start()
        thread.join(10)
        signal.signal(signal.SIGINT, old)
    engine.step()
    assert idle(engine)
    assert engine.submit(request(1)).result().token_ids == expected


def test_waiting_threads_are_let_go_when_the_engine_closes() -> None:
    engine = new_engine()
    ends: list[str | None] = []
    submitted = threading.Barrier(4)
    endless = SamplingParams(temperature=0.0, ignore_eos=True)

    def work(n: int) -> None:
        handle = engine.submit(Request(ids=(n,), params=endless))
        submitted.wait(30)
        reason = None
        for chunk in handle:
            reason = chunk.finish_reason
            time.sleep(0.01)  # far from the end when the engine closes
        ends.append(reason)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    submitted.wait(30)
    engine.close()
    for thread in threads:
        thread.join(30)
    assert ends == ["cancelled"] * 3
