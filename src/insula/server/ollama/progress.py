"""A long piece of work in a thread, told line by line: pulls and creations.

The work cannot be interrupted from outside, so a client that leaves stops the telling, and the next
word of the thread's progress stops the work; what was fetched stays for the next time.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from insula.hub.transport import Progress, Transfer
from insula.server.wire import Wire


class Left(Exception):  # noqa: N818 - nothing failed: whoever asked has gone
    """Nobody wants it any more."""


async def told(
    wire: Wire, work: Callable[[Progress], Any], *, stream: bool, digest: str = ""
) -> Any:
    """Run `work`, which calls its progress; returns what it returns. Each step that is new is a
    line, if `stream`; the caller writes the last one."""
    loop = asyncio.get_running_loop()
    news: asyncio.Queue[Transfer | None] = asyncio.Queue()
    left = threading.Event()

    def progress(step: Transfer) -> None:
        if left.is_set():
            raise Left
        loop.call_soon_threadsafe(news.put_nowait, step)

    running = loop.run_in_executor(None, work, progress)
    running.add_done_callback(lambda _: news.put_nowait(None))
    shown: dict[str, Any] = {}
    try:
        while (step := await news.get()) is not None:
            line = _line(step, digest)
            if stream and line != shown and news.empty():
                shown = line
                await wire.event(line, form="ndjson")
        return await running
    finally:
        left.set()
        if not running.done():
            running.add_done_callback(lambda done: done.cancelled() or done.exception())


def _line(step: Transfer, digest: str) -> dict[str, Any]:
    """As Ollama says it."""
    if step.phase in ("connect", "wait", "retry"):
        return {"status": "pulling manifest" if step.phase == "connect" else step.note}
    if step.phase == "done":
        return {"status": "writing manifest"}
    if step.phase in ("check", "unpack"):
        return {"status": "verifying sha256 digest"}
    line: dict[str, Any] = {"status": f"pulling {step.name}", "digest": digest or step.name}
    if step.total is not None:
        line |= {"total": step.total, "completed": step.done}
    return line
