"""The audit log from a command at this machine: changes and their records, all or nothing."""

from __future__ import annotations

import getpass
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from insula.server.audit import entry
from insula.store.audit_chain import AuditChain, Head
from insula.store.database import Database


class Recorder(Protocol):
    """Add a record to the transaction."""

    def __call__(self, event: str, **fields: Any) -> None: ...


@contextmanager
def recorded(store: Database) -> Iterator[Recorder]:
    """What the block changes and what it records are on the disk together, or neither is."""
    chain = AuditChain.open(store)
    who = _who()
    head: Head | None = None

    def record(event: str, **fields: Any) -> None:
        nonlocal head
        told = {"kind": "terminal", "caller": who, **fields}
        head = chain.append(store, entry(event, time.time(), told))

    with store.transaction():
        yield record
    if head is not None:
        with suppress(OSError):  # the database has the head too
            chain.write_head(head)


def _who() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name
        return "?"
