"""The audit log shows what was done to it, and which record it was done to."""

from __future__ import annotations

import json
import stat

import pytest

from insula.errors import StoreKeyError
from insula.store.audit_chain import (
    BROKEN,
    HEAD_FILE,
    KEY_FILE,
    AuditChain,
    head_line,
    last_head,
    parse_head,
    read_head,
    read_records,
    verify,
)
from insula.store.database import Database


@pytest.fixture
def store(tmp_path):
    with Database.open(tmp_path / "insula.db") as store:
        yield store


@pytest.fixture
def chain(store):
    """Twelve records; the head file knows of the eighth."""
    chain = AuditChain.open(store)
    for number in range(1, 13):
        head = chain.append(store, {"event": "request", "tokens": number})
        if number == 8:
            chain.write_head(head)
    return chain


def faults(store, **how):
    verdict = verify(store, store.path.parent, **how)
    return [(fault.kind, fault.seq, fault.last) for fault in verdict.faults]


def rewrite(store, seq, **columns):
    for name, value in columns.items():
        store.run(f"UPDATE audit SET {name} = ? WHERE seq = ?", (value, seq))


def rechain(store, start):
    """What an attacker without the key can do: make the open chain right again."""
    from insula.store import audit_chain

    row = store.row("SELECT hash FROM audit WHERE seq < ? ORDER BY seq DESC LIMIT 1", (start,))
    previous = bytes(row[0]) if row else bytes(32)
    for seq, written in store.rows("SELECT seq, record FROM audit WHERE seq >= ?", (start,)):
        previous = audit_chain._hash(previous, written)
        rewrite(store, seq, hash=previous)


def test_a_log_that_nobody_touched_is_whole(store, chain):
    verdict = verify(store, store.path.parent)
    assert verdict.faults == ()
    assert verdict.with_key
    assert (verdict.records, verdict.head.seq) == (12, 12)
    assert [record["tokens"] for _, record in read_records(store, after=10)] == [11, 12]
    assert last_head(store) == verdict.head
    for name in (KEY_FILE, HEAD_FILE):
        assert stat.S_IMODE((store.path.parent / name).stat().st_mode) == 0o600


def test_the_chain_is_what_the_documentation_says(store):
    """Numbers computed here, by hand, from docs/access.md."""
    import hashlib

    chain = AuditChain.open(store)
    chain.append(store, {"event": "a"})
    chain.append(store, {"event": "b"})
    first = hashlib.sha256(b"insula audit 1\0" + bytes(32) + b'{"seq":1,"event":"a"}').digest()
    second = hashlib.sha256(b"insula audit 1\0" + first + b'{"seq":2,"event":"b"}').digest()
    assert [bytes(row[0]) for row in store.rows("SELECT hash FROM audit")] == [first, second]


def test_an_empty_log_is_whole(store):
    assert faults(store) == []


def test_an_edited_record_is_named_and_no_other(store, chain):
    rewrite(store, 5, record='{"seq":5,"event":"request","tokens":0}')
    assert faults(store) == [("edited", 5, 5)]


def test_an_edited_record_in_a_chain_made_right_again_is_named(store, chain):
    rewrite(store, 5, record='{"seq":5,"event":"request","tokens":0}')
    rechain(store, 5)
    assert faults(store) == [("edited", 5, 5)]
    rewrite(store, 9, record='{"seq":9,"event":"request","tokens":0}')
    rechain(store, 5)
    assert faults(store) == [("edited", 5, 5), ("edited", 9, 9)]


def test_the_last_record_is_named_like_any_other(store, chain):
    rewrite(store, 12, record='{"seq":12,"event":"request","tokens":0}')
    assert faults(store) == [("edited", 12, 12)]
    rechain(store, 12)
    assert faults(store) == [("edited", 12, 12)]


def test_a_part_of_another_history_is_named(store, chain, tmp_path):
    """Two logs that the same server wrote, after a backup was put back: pieces do not mix."""
    older = tmp_path / "older.db"
    store.run("VACUUM INTO ?", (str(older),))
    with Database.open(older) as back:
        for database, event in ((store, "here"), (back, "there")):
            for _ in range(4):
                chain.append(database, {"event": event})
        (row,) = back.rows("SELECT record, hash, mac FROM audit WHERE seq = 14")
    rewrite(store, 14, record=row[0], hash=row[1], mac=row[2])
    assert faults(store)[0] == ("unlinked", 14, 14)


def test_a_deleted_record_is_named(store, chain):
    store.run("DELETE FROM audit WHERE seq IN (4, 5, 9)")
    assert faults(store) == [("missing", 4, 5), ("missing", 9, 9)]


def test_the_first_record_is_missed_too(store, chain):
    store.run("DELETE FROM audit WHERE seq = 1")
    assert faults(store) == [("missing", 1, 1)]


def test_records_that_changed_places_are_named(store, chain):
    store.run("UPDATE audit SET seq = 100 WHERE seq = 3")
    store.run("UPDATE audit SET seq = 3 WHERE seq = 6")
    store.run("UPDATE audit SET seq = 6 WHERE seq = 100")
    assert [fault for fault in faults(store) if fault[0] == "moved"] == [
        ("moved", 3, 3),
        ("moved", 6, 6),
    ]


@pytest.mark.parametrize("left", [0, 6, 11])
def test_a_tail_that_was_cut_is_seen(store, chain, left):
    store.run("DELETE FROM audit WHERE seq > ?", (left,))
    assert faults(store) == [("cut", left + 1, 12)]


def test_a_tail_that_was_cut_with_the_databases_head_is_seen_by_the_file(store, chain):
    store.run("DELETE FROM audit WHERE seq > 6")
    store.run("DELETE FROM audit_head")
    assert faults(store) == [("cut", 7, 8)]
    store.run("DELETE FROM audit")
    assert faults(store) == [("cut", 1, 8)]


def test_a_head_cannot_be_forged(store, chain):
    store.run("DELETE FROM audit WHERE seq > 10")
    store.run("UPDATE audit_head SET seq = 10")
    assert faults(store) == [("head", 10, 10)]
    path = store.path.parent / HEAD_FILE
    path.write_text(f"{head_line(last_head(store))} {bytes(32).hex()}\n")
    assert ("unknown_head", 10, 10) in faults(store)


def test_what_was_cut_stays_seen_when_the_log_goes_on(store, chain):
    """The server appends behind the cut before anybody looked."""
    store.run("DELETE FROM audit WHERE seq > 9")
    head = chain.append(store, {"event": "request"})
    assert head.seq == 14
    events = dict(read_records(store, after=9))
    assert events[13] == {"seq": 13, "event": BROKEN, "last_found": 9, "last_known": 12}
    assert faults(store) == [("missing", 10, 12)]


def test_a_log_that_was_emptied_does_not_begin_anew(store, chain):
    store.run("DELETE FROM audit")
    store.run("DELETE FROM audit_head")
    chain.append(store, {"event": "request"})
    assert faults(store) == [("missing", 1, 8)]


def test_a_removed_head_stays_seen_when_the_log_goes_on(store, chain):
    store.run("DELETE FROM audit_head")
    chain.append(store, {"event": "request"})
    assert faults(store) == [("head", 12, 12)]


def test_a_whole_older_state_is_seen_with_a_head_kept_elsewhere(store, chain, tmp_path):
    older = tmp_path / "older.db"
    store.run("VACUUM INTO ?", (str(older),))
    for number in range(5):
        chain.append(store, {"event": "request", "tokens": number})
    kept = head_line(last_head(store))
    with Database.open(older) as back:
        assert faults(back) == []  # nothing beside it says otherwise
        assert faults(back, known=parse_head(kept)) == [("cut", 13, 17)]
        # and one that went on differently
        other = AuditChain.open(back)
        for _ in range(7):
            other.append(back, {"event": "else"})
        assert faults(back, known=parse_head(kept)) == [("unlinked", 17, 17)]


def test_without_the_key_the_open_chain_is_checked_and_that_is_said(store, chain):
    (store.path.parent / KEY_FILE).unlink()
    verdict = verify(store, store.path.parent)
    assert not verdict.with_key
    assert verdict.faults == ()
    rewrite(store, 5, record='{"seq":5,"event":"request","tokens":0}')
    assert faults(store) == [("edited", 5, 5)]


def test_a_log_whose_key_is_gone_or_another_does_not_go_on(store, chain):
    path = store.path.parent / KEY_FILE
    key = path.read_bytes()
    path.unlink()
    with pytest.raises(StoreKeyError, match="put it back"):
        AuditChain.open(store)
    assert not path.exists()
    path.write_bytes(bytes(32))
    with pytest.raises(StoreKeyError, match="right one"):
        AuditChain.open(store)
    path.write_bytes(key)
    AuditChain.open(store).append(store, {"event": "request"})
    assert faults(store) == []


@pytest.mark.parametrize("written", ["", "{", "[]", "[" * 100_000, '{"seq":"x"}', '"seq"'])
def test_records_that_are_no_json_are_named(store, chain, written):
    rewrite(store, 5, record=written)
    assert faults(store) == [("edited", 5, 5)]
    assert dict(read_records(store))[5].get("event") != "request"


def test_the_record_and_what_it_is_about_are_one_transaction(store, chain):
    def change():
        with store.transaction():
            store.run("INSERT INTO meta VALUES ('thing', x'00')")
            chain.append(store, {"event": "thing"})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        change()
    assert store.row("SELECT 1 FROM meta WHERE name = 'thing'") is None
    assert last_head(store).seq == 12
    assert faults(store) == []


def test_the_head_file_never_goes_back(store, chain):
    path = store.path.parent / HEAD_FILE
    row = store.row("SELECT hash FROM audit WHERE seq = 3")
    chain.write_head(parse_head(f"3:{bytes(row[0]).hex()}"))
    found = read_head(path)
    assert found is not None
    assert found[0].seq == 8


@pytest.mark.parametrize("line", ["", "5", "5:zz", "x:" + "00" * 32, "5:" + "00" * 31])
def test_a_head_that_is_none(line):
    with pytest.raises(ValueError):  # noqa: PT011
        parse_head(line)


def test_records_are_compact_json(store, chain):
    row = store.row("SELECT record FROM audit WHERE seq = 2")
    assert row == ('{"seq":2,"event":"request","tokens":2}',)
    assert json.loads(row[0])["tokens"] == 2
