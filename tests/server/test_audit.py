"""The server's audit log: grouped, durable, bounded, and empty of what people write."""

from __future__ import annotations

import asyncio
import json

import pytest

from insula.errors import StoreError, StoreFullError
from insula.server import audit
from insula.server.audit import AuditLog, entry
from insula.store.audit_chain import HEAD_FILE, AuditChain, read_head, read_records, verify
from insula.store.database import Database
from insula.store.writer import Writer


@pytest.fixture
def store(tmp_path):
    with Database.open(tmp_path / "insula.db") as store:
        yield store


class Disk:
    """The log's chain with a disk that can be full."""

    def __init__(self, chain):
        self._chain = chain
        self.full = False

    def append(self, store, record):
        if self.full:
            raise StoreFullError("no room")
        return self._chain.append(store, record)

    def write_head(self, head):
        self._chain.write_head(head)


def run(store, work):
    """`work(log, disk)` with a log over its own writer."""
    writer = Writer(Database.open(store.path))
    disk = Disk(AuditChain.open(store))

    async def main():
        log = AuditLog(writer, disk)
        try:
            await work(log, disk)
        finally:
            await log.close()

    try:
        asyncio.run(main())
    finally:
        writer.close()


def found(store):
    return [record for _, record in read_records(store)]


def test_many_at_once_are_all_there_in_one_chain(store):
    async def work(log, disk):
        await asyncio.gather(*(log.record("request", ms=n) for n in range(300)))

    run(store, work)
    assert sorted(record["ms"] for record in found(store)) == list(range(300))
    verdict = verify(store, store.path.parent)
    assert verdict.faults == ()
    head = read_head(store.path.parent / HEAD_FILE)
    assert head is not None
    assert head[0] == verdict.head  # written when the log was closed


def test_who_waits_may_leave_and_the_record_stays(store):
    async def work(log, disk):
        task = asyncio.create_task(log.record("request", ms=1))
        await asyncio.sleep(0)
        task.cancel()

    run(store, work)
    assert len(found(store)) == 1


def test_what_goes_with_a_record_is_one_with_it(store):
    def also(store):
        store.run("INSERT INTO meta VALUES ('a', x'00')")

    async def work(log, disk):
        disk.full = True
        with pytest.raises(StoreFullError):
            await log.record("request", also=also, ms=1)
        assert store.row("SELECT 1 FROM meta WHERE name = 'a'") is None
        assert isinstance(log.failing, StoreError)
        disk.full = False
        await log.record("request", ms=2)
        assert log.failing is None

    run(store, work)
    assert [record["ms"] for record in found(store)] == [1, 2]
    assert store.row("SELECT 1 FROM meta WHERE name = 'a'") == (1,)


def test_too_many_that_wait_are_counted(store, monkeypatch):
    monkeypatch.setattr(audit, "MOST_WAITING", 3)

    async def work(log, disk):
        disk.full = True
        for number in range(8):
            with pytest.raises(StoreFullError):
                await log.record("request", ms=number)
        disk.full = False
        await log.retry()

    run(store, work)
    records = found(store)
    assert [record.get("ms") for record in records] == [0, 1, 2, None]
    assert (records[-1]["event"], records[-1]["lost"]) == ("log.lost", 5)


def test_notes_are_bounded_and_say_how_many_were_not_made(store):
    async def work(log, disk):
        for number in range(100):
            log.note("request.denied", status=401, ms=number)
        log._noted -= 60  # a minute later
        log.note("request.denied", status=401)

    run(store, work)
    records = found(store)
    assert len(records) == audit.NOTES + 1
    assert records[-1]["suppressed"] == 100 - audit.NOTES


def test_only_known_fields_and_short_ones():
    record = entry("request", 1_700_000_000.5, {"model": "m" * 999, "joules": None, "status": 200})
    assert record == {
        "time": "2023-11-14T22:13:20.500Z",
        "event": "request",
        "model": "m" * 200,
        "status": 200,
    }
    for field in ("prompt", "messages", "path", "body"):
        with pytest.raises(AssertionError):
            entry("request", 0, {field: "x"})
    assert not {"prompt", "text", "messages", "content", "path", "body"} & audit.FIELDS


def test_a_newline_in_a_field_stays_inside_it(store):
    async def work(log, disk):
        await log.record("request", model='a"\n{"seq":9}\u2028')

    run(store, work)
    row = store.row("SELECT record FROM audit")
    assert "\n" not in row[0]
    assert json.loads(row[0])["model"] == 'a"\n{"seq":9}\u2028'
