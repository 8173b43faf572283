"""The audit log of a server: who asked what of which model, when, how much, and what came of it.

Never a prompt, an answer, a path that a client chose or a key: only the fields of FIELDS, cut
short. A record that was awaited is on the disk. When the disk fails, records wait (MOST_WAITING of
them; how many were lost beyond that is recorded too) and `failing` says so, until a write succeeds.
Refusals are noted without waiting, at most NOTES a minute, so that knocking cannot fill the disk.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from insula.errors import StoreError
from insula.store.audit_chain import AuditChain, Head
from insula.store.database import Database
from insula.store.writer import Writer

log = logging.getLogger("insula.server.audit")

FIELDS = frozenset(
    {
        *("caller", "kind", "tenant", "address", "method", "route", "status", "code", "outcome"),
        *("model", "prompt_tokens", "completion_tokens", "cached_tokens", "joules", "ms"),
        *("request", "suppressed", "lost", "key", "user", "name", "role", "scopes", "by"),
    }
)
LONGEST = 200
MOST_WAITING = 10_000
NOTES = 30
HEAD_EVERY = 64
HEAD_SECONDS = 10.0

Record = Mapping[str, Any]
Also = Callable[[Database], None]


def entry(event: str, now: float, fields: Mapping[str, Any]) -> dict[str, Any]:
    """A record as it is written. None values are left out, long texts cut."""
    unknown = fields.keys() - FIELDS
    assert not unknown, f"not a field of the audit log: {unknown}"
    moment = datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds")
    told = {key: value for key, value in fields.items() if value is not None}
    return {
        "time": moment.replace("+00:00", "Z"),
        "event": event,
        **{k: v[:LONGEST] if isinstance(v, str) else v for k, v in told.items()},
    }


class AuditLog:
    """Of one event loop. The writer is not closed with it."""

    def __init__(self, writer: Writer, chain: AuditChain) -> None:
        self._writer = writer
        self._chain = chain
        self._waiting: deque[tuple[Record, Also | None]] = deque()
        self._lost = 0
        self._notes = float(NOTES)
        self._noted = time.monotonic()
        self._suppressed = 0
        self._last = self._in_file = Head(seq=0, hash=b"")
        self._filed = time.monotonic()
        self._tasks: set[asyncio.Task[None]] = set()
        #: Why the last write failed, None if it did not.
        self.failing: StoreError | None = None

    async def record(self, event: str, *, also: Also | None = None, **fields: Any) -> None:
        """Write a record, with what `also` changes in the same transaction. Raises StoreError;
        record and change are tried again then. Whoever waits may be cancelled, the record not.
        """
        await asyncio.shield(self._task([(entry(event, time.time(), fields), also)]))

    def note(self, event: str, **fields: Any) -> None:
        """Write a record soon, unless there were too many of late."""
        now = time.monotonic()
        self._notes = min(float(NOTES), self._notes + (now - self._noted) * NOTES / 60)
        self._noted = now
        if self._notes < 1:
            self._suppressed += 1
            return
        self._notes -= 1
        suppressed, self._suppressed = self._suppressed or None, 0
        self._task([(entry(event, time.time(), {**fields, "suppressed": suppressed}), None)])

    async def retry(self) -> None:
        """Write what waits since a failure. Raises StoreError if it still fails."""
        await asyncio.shield(self._task([]))

    async def close(self) -> None:
        """Write what is under way, and the head file."""
        if self._tasks:
            await asyncio.wait(set(self._tasks))
        if self._waiting:
            with suppress(StoreError):
                await self.retry()
        if self._waiting:
            log.error("%d audit records are lost: %s", len(self._waiting), self.failing)
        await self._file_head()

    def _task(self, jobs: list[tuple[Record, Also | None]]) -> asyncio.Task[None]:
        task = asyncio.create_task(self._write(jobs))
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("audit records wait: %s", error)

    async def _write(self, jobs: list[tuple[Record, Also | None]]) -> None:
        batch = [*self._waiting, *jobs]
        self._waiting.clear()
        lost, self._lost = self._lost, 0

        def work(store: Database) -> Head | None:
            head = None
            for record, also in batch:
                if also is not None:
                    also(store)
                head = self._chain.append(store, record)
            if lost:
                head = self._chain.append(store, entry("log.lost", time.time(), {"lost": lost}))
            return head

        try:
            head = await asyncio.wrap_future(self._writer.submit(work))
        except StoreError as error:
            self.failing = error
            room = MOST_WAITING - len(self._waiting)
            self._waiting.extendleft(reversed(batch[:room]))
            self._lost += lost + len(batch[room:])
            raise
        self.failing = None
        if head is not None and head.seq > self._last.seq:
            self._last = head
        late = time.monotonic() - self._filed > HEAD_SECONDS
        if late or self._last.seq >= self._in_file.seq + HEAD_EVERY:
            await self._file_head()

    async def _file_head(self) -> None:
        head = self._last
        if head.seq <= self._in_file.seq:
            return
        self._in_file, self._filed = head, time.monotonic()
        try:
            await asyncio.to_thread(self._chain.write_head, head)
        except OSError as error:  # the database has it too, and the next one may succeed
            log.error("the audit log's head file cannot be written: %s", error.strerror)
