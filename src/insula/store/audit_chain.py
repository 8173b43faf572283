"""A log that shows when somebody changed it.

Each record has a number, its text, a hash over the hash before it and the text (anybody can follow
that chain), and two MACs with a key that is not in the database (who lacks it can forge no record):
over number and text, which tells the records that were changed from those whose hashes were only
computed anew behind them, and over number, text and hash. The head, number and hash of the last
record under a MAC of its own, is in the database, replaced with each record, and now and then in a
file beside it: who cuts the tail off cannot make a head that says so.

What it cannot show: that database, head file and all were put back together to an older state. Keep
`insula audit head`'s line elsewhere and give it to `insula audit verify --head`; that shows it.

A record is appended only behind the record that the head names. Where they disagree, a record
`log.broken` says so and the numbers go on behind the higher of the two: the gap stays.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from insula.errors import StoreError, StoreKeyError
from insula.locale import text
from insula.security.private_files import create_private, make_private_folder, replace_private
from insula.security.small_file import read_small
from insula.store.database import Database, Row

KEY_FILE, HEAD_FILE = "audit.key", "audit.head"
BROKEN = "log.broken"
_NOTHING = bytes(32)
_PAGE = 500
_MAC = 32

FaultKind = Literal["edited", "missing", "moved", "unlinked", "cut", "head", "unknown_head"]


@dataclass(frozen=True, kw_only=True)
class Head:
    """The end of the log as somebody saw it."""

    seq: int
    hash: bytes


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What is wrong, and with which record; `last` ends a range of missing ones."""

    kind: FaultKind
    seq: int
    last: int
    found: int | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """records: how many are there. with_key: whether MACs could be checked."""

    records: int
    head: Head
    with_key: bool
    faults: tuple[Fault, ...]


class AuditChain:
    """The log of one database, with its key."""

    def __init__(self, folder: Path, key: bytes) -> None:
        self._folder = folder
        self._key = key

    @classmethod
    def open(cls, store: Database, folder: Path | None = None) -> AuditChain:
        """The log of `store`, key and head in `folder` (the database's). Makes the first key.

        Raises StoreKeyError where records exist and their key is gone or another one.
        """
        folder = folder or store.path.parent
        path = folder / KEY_FILE
        key = read_key(path)
        marked = store.row("SELECT value FROM meta WHERE name = 'audit_key'")
        if key is None:
            if marked is not None:
                raise StoreKeyError(text("access.audit_key_gone", path=path))
            make_private_folder(folder)
            create_private(path, secrets.token_bytes(32))
            key = read_key(path)
            assert key is not None
        mark = _key_mark(key)
        if marked is None:
            with store.transaction():
                store.run("INSERT OR IGNORE INTO meta VALUES ('audit_key', ?)", (mark,))
            marked = store.row("SELECT value FROM meta WHERE name = 'audit_key'")
        assert marked is not None
        if not hmac.compare_digest(bytes(marked[0]), mark):
            raise StoreKeyError(text("access.audit_key_other", path=path))
        return cls(folder, key)

    def append(self, store: Database, record: Mapping[str, Any]) -> Head:
        """Add a record; the log's new end. Part of the transaction that the caller is in."""
        with store.transaction():
            last = _last(store)
            known = self._known_end(store, last)
            if known is not None:
                broken = {"event": BROKEN, "last_found": last.seq, "last_known": known}
                last = self._write(store, Head(seq=known, hash=last.hash), broken)
            return self._write(store, last, record)

    def write_head(self, head: Head) -> None:
        """Note in the head file an end that is on the disk, unless it knows of a later one."""
        if head.seq >= max(1, self._head_file_seq()):
            line = f"{head_line(head)} {self._head_mac(head).hex()}\n"
            replace_private(self._folder / HEAD_FILE, line.encode())

    def _known_end(self, store: Database, last: Head) -> int | None:
        """The number that the log ended with, where it does not end as its heads say."""
        row = store.row("SELECT seq, mac FROM audit_head")
        if row is None and last.seq == 0:
            return self._head_file_seq() or None
        if _agrees(row, last, self._key):
            return None
        return max(last.seq, 0 if row is None else row[0], self._head_file_seq())

    def _write(self, store: Database, previous: Head, record: Mapping[str, Any]) -> Head:
        seq = previous.seq + 1
        written = json.dumps({"seq": seq, **record}, separators=(",", ":"), allow_nan=False)
        head = Head(seq=seq, hash=_hash(previous.hash, written))
        store.run(
            "INSERT INTO audit (seq, record, hash, mac) VALUES (?, ?, ?, ?)",
            (seq, written, head.hash, _macs(self._key, seq, written, head.hash)),
        )
        store.run(
            "INSERT OR REPLACE INTO audit_head (one, seq, mac) VALUES (1, ?, ?)",
            (seq, self._head_mac(head)),
        )
        return head

    def _head_mac(self, head: Head) -> bytes:
        return _head_mac(self._key, head)

    def _head_file_seq(self) -> int:
        found = read_head(self._folder / HEAD_FILE)
        if found is None or not hmac.compare_digest(found[1], self._head_mac(found[0])):
            return 0
        return found[0].seq


def read_records(store: Database, *, after: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and content of each record behind `after`. Checks nothing."""
    for seq, written, _, _ in _rows(store, after):
        yield seq, _content(written)


def last_head(store: Database) -> Head:
    """The log's end; number 0 of an empty one."""
    return _last(store)


def verify(
    store: Database, folder: Path, *, known: Head | None = None, key: bytes | None = None
) -> Verdict:
    """Look at every record. `known`: a head that was kept elsewhere.

    Without the key only the open chain and the heads' numbers are checked, and the verdict says so.
    """
    key = key or read_key(folder / KEY_FILE)
    faults: list[Fault] = []
    heads = {} if known is None else {known.seq: known.hash}
    # Before the database's state is fixed: the file must not know of later records than it.
    from_file = read_head(folder / HEAD_FILE)
    if from_file is not None and key is not None:
        if hmac.compare_digest(from_file[1], _head_mac(key, from_file[0])):
            heads.setdefault(from_file[0].seq, from_file[0].hash)
        else:
            faults.append(Fault(kind="unknown_head", seq=from_file[0].seq, last=from_file[0].seq))
    with store.snapshot():
        previous, trusted, count = Head(seq=0, hash=_NOTHING), True, 0
        for seq, written, stored, mac in _rows(store, 0):
            count += 1
            linked = hmac.compare_digest(stored, _hash(previous.hash, written))
            own = linked
            if key is not None:
                right = _macs(key, seq, written, stored)
                own = hmac.compare_digest(mac[:_MAC], right[:_MAC])
                linked = linked and hmac.compare_digest(mac[_MAC:], right[_MAC:])
            whole = seq == previous.seq + 1
            if not whole:
                faults.append(Fault(kind="missing", seq=previous.seq + 1, last=seq - 1))
            content = _content(written)
            if not own:
                says = content.get("seq")
                moved = isinstance(says, int) and says != seq
                if moved:
                    faults.append(Fault(kind="moved", seq=seq, last=seq, found=says))
                elif key is not None or whole:
                    faults.append(Fault(kind="edited", seq=seq, last=seq))
            elif trusted and ((not linked and whole) or heads.get(seq, stored) != stored):
                faults.append(Fault(kind="unlinked", seq=seq, last=seq))
            elif content.get("event") == BROKEN and whole:
                faults.append(Fault(kind="head", seq=seq - 1, last=seq - 1))
            # Behind a fault, hashes that were computed anew are no fault of their own.
            previous, trusted = Head(seq=seq, hash=stored), own and (linked or not whole)
        faults += _at_the_end(store, previous, key if trusted else None, heads)
    return Verdict(records=count, head=previous, with_key=key is not None, faults=tuple(faults))


def _at_the_end(
    store: Database, last: Head, key: bytes | None, heads: Mapping[int, bytes]
) -> list[Fault]:
    row = store.row("SELECT seq, mac FROM audit_head")
    end = max([*heads, 0 if row is None else row[0]])
    if end > last.seq:
        return [Fault(kind="cut", seq=last.seq + 1, last=end)]
    if row is None and last.seq == 0:
        return []
    if _agrees(row, last, key):
        return []
    return [Fault(kind="head", seq=last.seq, last=last.seq)]


def _agrees(row: Row | None, last: Head, key: bytes | None) -> bool:
    """Whether the database's head is that of its last record."""
    if row is None or row[0] != last.seq:
        return False
    return key is None or hmac.compare_digest(bytes(row[1]), _head_mac(key, last))


def parse_head(line: str) -> Head:
    """What `insula audit head` printed: NUMBER:HASH. Raises ValueError."""
    number, _, digest = line.strip().partition(":")
    raw = bytes.fromhex(digest)
    if len(raw) != 32 or not number.isascii() or not number.isdigit():
        raise ValueError
    return Head(seq=int(number), hash=raw)


def head_line(head: Head) -> str:
    """NUMBER:HASH, to be kept elsewhere."""
    return f"{head.seq}:{head.hash.hex()}"


def read_key(path: Path) -> bytes | None:
    """The audit key, None where there is no such file."""
    try:
        key = read_small(path, 32)
    except FileNotFoundError:
        return None
    except OSError as error:
        reason = error.strerror or str(error)
        raise StoreError(text("access.audit_key_unreadable", path=path, reason=reason)) from error
    if len(key) != 32:
        raise StoreKeyError(text("access.audit_key_other", path=path))
    return key


def read_head(path: Path) -> tuple[Head, bytes] | None:
    """The head file's content, unchecked; None where there is none that can be read."""
    try:
        line, _, mac = read_small(path, 512).decode().strip().partition(" ")
        return parse_head(line), bytes.fromhex(mac)
    except (OSError, ValueError):
        return None


def _rows(store: Database, after: int) -> Iterator[tuple[int, str, bytes, bytes]]:
    while True:  # in pages, so that nothing holds the write-ahead log back
        rows = store.rows(
            "SELECT seq, record, hash, mac FROM audit WHERE seq > ? ORDER BY seq LIMIT ?",
            (after, _PAGE),
        )
        if not rows:
            return
        for seq, written, stored, mac in rows:
            yield seq, written, bytes(stored), bytes(mac)
        after = rows[-1][0]


def _last(store: Database) -> Head:
    row = store.row("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1")
    return Head(seq=0, hash=_NOTHING) if row is None else Head(seq=row[0], hash=bytes(row[1]))


def _content(written: str) -> dict[str, Any]:
    try:
        content = json.loads(written)
    except (ValueError, RecursionError):
        content = None
    return content if isinstance(content, dict) else {"event": "unreadable"}


def _hash(previous: bytes, written: str) -> bytes:
    return hashlib.sha256(b"insula audit 1\0" + previous + written.encode()).digest()


def _macs(key: bytes, seq: int, written: str, stored: bytes) -> bytes:
    content = seq.to_bytes(8, "big") + hashlib.sha256(written.encode()).digest()
    own = hmac.digest(key, b"record" + content, "sha256")
    return own + hmac.digest(key, b"link" + content + stored, "sha256")


def _head_mac(key: bytes, head: Head) -> bytes:
    return hmac.digest(key, b"head" + head.seq.to_bytes(8, "big") + head.hash, "sha256")


def _key_mark(key: bytes) -> bytes:
    return hashlib.sha256(b"insula audit key\0" + key).digest()[:8]
