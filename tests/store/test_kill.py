"""kill -9 at random moments: what was acknowledged is whole, the rest is absent (FAULTS row 21)."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from insula.store import conversations, keys
from insula.store.audit_chain import read_records, verify
from insula.store.database import Database

WRITER = Path(__file__).with_name("killed_writer.py")

pytestmark = pytest.mark.skipif(os.name != "posix", reason="no kill -9 there")


def one_life(path: Path, chance: random.Random) -> list[list[str]]:
    """Let a writer live for a moment; what it acknowledged."""
    with subprocess.Popen(
        [sys.executable, str(WRITER), str(path)], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        said = []
        # After so many lines, and then at any moment: not only right behind a line.
        for _ in range(chance.randrange(1, 60)):
            line = child.stdout.readline()
            assert line, "the writer ended by itself"
            said.append(line.split())
        time.sleep(chance.random() * 0.01)
        child.send_signal(signal.SIGKILL)
        rest = child.stdout.read()
    assert child.returncode == -signal.SIGKILL
    # A line that was cut was not heard.
    said += [line.split() for line in rest.splitlines(keepends=True) if line.endswith("\n")]
    return said


def check(path: Path, acknowledged: list[list[str]]) -> None:
    now = time.time()
    with Database.open(path) as store:
        assert store.row("PRAGMA integrity_check") == ("ok",)
        assert store.rows("PRAGMA foreign_key_check") == []
        verdict = verify(store, path.parent)
        assert verdict.faults == ()
        known = {key.id: key for key in keys.list_keys(store)}
        recorded = {(r["event"], r["key"]) for _, r in read_records(store)}
        talk = ""
        for what, *ids in acknowledged:
            if what == "key":
                assert ("created", ids[0]) in recorded
                assert ids[0] in known
            elif what == "rotated":
                assert ("rotated", ids[0]) in recorded
                assert known[ids[0]].replaced_by == ids[1]
                assert known[ids[1]].state(now) == "active"
            elif what == "revoked":
                assert ("revoked", ids[0]) in recorded
                assert known[ids[0]].state(now) == "revoked"
            elif what == "talk":
                talk = ids[0]
                found = conversations.messages(store, owner="a", conversation=talk)
                there = {message.id for message in found}
                assert all(m.parent is None or m.parent in there for m in found)
                assert {len(m.content) for m in found} <= {3000}
            elif what == "message":
                assert ids[0] in there
            elif what == "removed":
                gone = store.row("SELECT 1 FROM conversations WHERE id = ?", (ids[0],))
                assert gone is None
        # No change without its record, and no record without its change.
        rotated = {key for event, key in recorded if event == "rotated"}
        assert rotated == {key.id for key in known.values() if key.replaced_by is not None}
        revoked = {key for event, key in recorded if event == "revoked"}
        assert revoked == {key.id for key in known.values() if key.revoked is not None}


def lives(path: Path, count: int, seed: int) -> None:
    chance = random.Random(seed)
    acknowledged: list[list[str]] = []
    for _ in range(count):
        acknowledged += one_life(path, chance)
        check(path, acknowledged)
    assert sum(line[0] == "revoked" for line in acknowledged) >= count


def test_ten_kills(tmp_path):
    lives(tmp_path / "insula.db", 10, seed=1)


@pytest.mark.slow
def test_a_hundred_kills(tmp_path):
    lives(tmp_path / "insula.db", 100, seed=2)


def test_killed_while_the_file_is_made(tmp_path):
    """Before it has its name there is nothing; then it is whole."""
    program = (
        "import sys; from pathlib import Path; from insula.store.database import Database\n"
        "print('now', flush=True)\n"
        "for n in range(10000): Database.open(Path(sys.argv[1]) / f'{n}.db').close()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        while len(list(tmp_path.glob("*.db"))) < 3:
            time.sleep(0.001)
        time.sleep(0.003)
        child.kill()
    files = list(tmp_path.glob("*.db"))
    assert files
    for file in files:
        with Database.open(file) as store:
            assert store.row("PRAGMA integrity_check") == ("ok",)
            store.run("INSERT INTO meta VALUES ('a', x'00')")
