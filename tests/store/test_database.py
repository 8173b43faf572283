"""The store's file: made whole, private, migrated, encrypted; and what its failures become."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from insula.errors import (
    ConfigError,
    ResourceError,
    StoreBusyError,
    StoreError,
    StoreFullError,
    StoreKeyError,
    StoreVersionError,
)
from insula.store import database as database_module
from insula.store.database import Database
from insula.store.migrations import MIGRATIONS
from insula.store.place import open_store, store_key
from insula.store.writer import Writer

KEY = "correct horse battery staple"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "home" / "insula.db"


def put(store, name, value=b"x"):
    store.run("INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)", (name, value))


def names(store):
    return {row[0] for row in store.rows("SELECT name FROM meta")}


def with_all_tables_read(path):
    with Database.open(path) as store:
        for table in ("meta", "keys", "messages"):
            store.rows(f"SELECT * FROM {table}")


def test_a_new_file_is_private_whole_and_durable(path):
    with Database.open(path) as store:
        put(store, "a")
        assert store.row("PRAGMA journal_mode") == ("wal",)
        assert store.row("PRAGMA synchronous") == (2,)  # full
        for file in path.parent.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [file.name for file in path.parent.iterdir()] == ["insula.db"]
    with Database.open(path) as store:
        assert names(store) == {"a"}


def test_permissions_that_somebody_widened_are_taken_back(path):
    Database.open(path).close()
    path.chmod(0o644)
    Database.open(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_transaction_is_all_or_nothing(path):
    with Database.open(path) as store:

        def fail(name):
            with store.transaction():
                put(store, name)
                raise RuntimeError

        with pytest.raises(RuntimeError):
            fail("lost")
        with store.transaction():
            put(store, "kept")
            with pytest.raises(RuntimeError):
                fail("part")
        assert names(store) == {"kept"}


def test_a_snapshot_sees_one_moment(path):
    with Database.open(path) as store, Database.open(path) as other:
        with store.snapshot():
            assert names(store) == set()
            put(other, "later")
            assert names(store) == set()
        assert names(store) == {"later"}


def test_many_processes_may_open_it_at_once(path):
    program = (
        "import sys; from pathlib import Path; from insula.store.database import Database\n"
        "with Database.open(Path(sys.argv[1])) as s:\n"
        "    s.run('INSERT INTO meta VALUES (?, ?)', (sys.argv[2], b'x'))"
    )
    children = [
        subprocess.Popen([sys.executable, "-c", program, str(path), str(number)])
        for number in range(4)
    ]
    assert [child.wait() for child in children] == [0] * 4
    with Database.open(path) as store:
        assert names(store) == {"0", "1", "2", "3"}


class TestMigrations:
    def test_an_older_file_is_brought_up_in_one_transaction(self, path, monkeypatch):
        with Database.open(path) as store:
            put(store, "old")
        later = (*MIGRATIONS, ("CREATE TABLE more (a)", "INSERT INTO more VALUES (7)"))
        monkeypatch.setattr(database_module, "MIGRATIONS", later)
        with Database.open(path) as store:
            assert store.row("SELECT a FROM more") == (7,)
            assert store.row("PRAGMA user_version") == (len(later),)
            assert names(store) == {"old"}

    def test_one_that_fails_leaves_the_file_as_it_was(self, path, monkeypatch):
        Database.open(path).close()
        broken = (*MIGRATIONS, ("CREATE TABLE more (a)", "CREATE TABLE more (a)"))
        monkeypatch.setattr(database_module, "MIGRATIONS", broken)
        with pytest.raises(Exception, match="already exists"):
            Database.open(path)
        monkeypatch.undo()
        with Database.open(path) as store:
            assert store.row("PRAGMA user_version") == (len(MIGRATIONS),)
            assert store.row("SELECT 1 FROM sqlite_schema WHERE name = 'more'") is None

    def test_a_newer_file_is_refused_and_untouched(self, path, monkeypatch):
        monkeypatch.setattr(database_module, "MIGRATIONS", (*MIGRATIONS, ("CREATE TABLE t (a)",)))
        Database.open(path).close()
        monkeypatch.undo()
        before = path.read_bytes()
        with pytest.raises(StoreVersionError, match="pip install -U insula"):
            Database.open(path)
        assert path.read_bytes() == before


class TestKeys:
    def test_an_encrypted_file_tells_nothing(self, path):
        with Database.open(path, key=KEY) as store:
            put(store, "canary-name", b"canary-value")
            for file in path.parent.iterdir():
                assert b"canary" not in file.read_bytes()
                assert not file.read_bytes().startswith(b"SQLite")
        assert b"canary" not in path.read_bytes()
        with Database.open(path, key=KEY) as store:
            assert store.row("SELECT value FROM meta") == (b"canary-value",)

    @pytest.mark.parametrize("wrong", [None, "another key altogether"])
    def test_a_wrong_key_never_writes(self, path, wrong):
        with Database.open(path, key=KEY) as store:
            put(store, "kept")
        before = path.read_bytes()
        for _ in range(2):
            with pytest.raises(StoreKeyError, match="nothing was changed"):
                Database.open(path, key=wrong)
        assert path.read_bytes() == before
        assert [file.name for file in path.parent.iterdir()] == ["insula.db"]
        with Database.open(path, key=KEY) as store:
            assert names(store) == {"kept"}

    def test_a_key_for_a_plain_file_is_refused(self, path):
        Database.open(path).close()
        before = path.read_bytes()
        with pytest.raises(StoreKeyError):
            Database.open(path, key=KEY)
        assert path.read_bytes() == before

    def test_where_the_key_comes_from(self, tmp_path):
        file = tmp_path / "key"
        file.write_text(KEY + "\n")
        assert store_key({}) is None
        assert store_key({"INSULA_STORE_KEY": KEY}) == KEY
        assert store_key({"INSULA_STORE_KEY_FILE": str(file)}) == KEY
        for env, match in (
            ({"INSULA_STORE_KEY": "short"}, "16 and more"),
            ({"INSULA_STORE_KEY": KEY, "INSULA_STORE_KEY_FILE": str(file)}, "one of them"),
            ({"INSULA_STORE_KEY_FILE": str(tmp_path / "none")}, "cannot be read"),
            ({"INSULA_STORE_KEY_FILE": str(tmp_path)}, "no text file"),
        ):
            with pytest.raises(ConfigError, match=match):
                store_key(env)
        env = {"INSULA_HOME": str(tmp_path / "home"), "INSULA_STORE_KEY": KEY}
        with open_store(env) as store:
            assert store.path == tmp_path / "home" / "insula.db"


class TestFiles:
    def test_another_programs_database_is_left_alone(self, path):
        import apsw

        path.parent.mkdir()
        connection = apsw.Connection(str(path))
        connection.execute("CREATE TABLE theirs (a)")
        connection.close()
        with pytest.raises(StoreKeyError, match="another program"):
            Database.open(path)

    @pytest.mark.parametrize("content", [b"", b"\0" * 4096, b"no database\n" * 400])
    def test_what_is_no_database_is_said(self, path, content):
        path.parent.mkdir()
        path.write_bytes(content)
        with pytest.raises(StoreError, match=r"insula\.db"):
            Database.open(path)
        assert path.read_bytes() == content

    def test_damage_is_said(self, path):
        with Database.open(path) as store, store.transaction():
            for number in range(500):
                put(store, f"name {number}", os.urandom(500))
        content = bytearray(path.read_bytes())
        content[8192:] = b"\xff" * (len(content) - 8192)
        path.write_bytes(bytes(content))
        with pytest.raises(StoreError):
            with_all_tables_read(path)

    def test_an_unwritten_end_of_the_log_loses_only_what_was_in_it(self, path, tmp_path):
        """Power loss: what the disk had not taken is not there; what comes before it is whole."""
        with Database.open(path) as store:
            for number in range(40):
                put(store, f"{number:02}")
            wal = path.with_name("insula.db-wal").read_bytes()
            main = path.read_bytes()
        for cut in range(0, len(wal), 4096 * 7 + 11):
            copy = tmp_path / f"cut{cut}" / "insula.db"
            copy.parent.mkdir()
            copy.write_bytes(main)
            copy.with_name("insula.db-wal").write_bytes(wal[:cut])
            with Database.open(copy) as store:
                found = sorted(names(store))
                assert found == [f"{number:02}" for number in range(len(found))]
                assert store.row("PRAGMA integrity_check") == ("ok",)
        assert len(found) > 10

    def test_a_folder_that_cannot_be_made(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(StoreError, match="cannot be opened"):
            Database.open(tmp_path / "file" / "insula.db")


class TestTrouble:
    """Limits of a process of its own stand for full disks; a lock for a busy one."""

    def test_another_writer_is_waited_for_and_then_named(self, path, monkeypatch):
        monkeypatch.setattr(database_module, "BUSY_MILLISECONDS", 50)
        with Database.open(path) as one, Database.open(path) as two:
            with one.transaction():
                put(one, "a")
                with pytest.raises(StoreBusyError) as raised:
                    put(two, "b")
                assert raised.value.retryable
            put(two, "b")
            assert names(one) == {"a", "b"}

    FULL = """
import resource, signal, sys
from pathlib import Path
from insula.errors import ResourceError, StoreFullError
from insula.store.database import Database
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = Database.open(Path(sys.argv[1]))
store.run("INSERT INTO meta VALUES ('before', zeroblob(100000))")
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
for number in range(50):
    try:
        store.run("INSERT INTO meta VALUES (?, zeroblob(100000))", (f"n{number}",))
        kept = number
    except StoreFullError as error:
        assert isinstance(error, ResourceError) and error.retryable
        break
else:
    raise SystemExit("never full")
assert store.row("SELECT length(value) FROM meta WHERE name = 'before'") == (100000,)
assert store.row("SELECT count(*) FROM meta WHERE name = ?", (f"n{number}",)) == (0,)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
store.run("INSERT INTO meta VALUES ('after', x'00')")
print(store.row("PRAGMA integrity_check")[0], store.row("SELECT count(*) FROM meta")[0] - number)
"""

    @pytest.mark.skipif(sys.platform == "win32", reason="no file-size limits there")
    def test_a_full_disk_is_typed_and_passes(self, path):
        done = subprocess.run(
            [sys.executable, "-c", self.FULL, str(path)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ["ok", "2"]

    FILES = """
import os, resource, sys
from pathlib import Path
from insula.errors import StoreBusyError
from insula.store.database import Database
path = Path(sys.argv[1])
Database.open(path).close()
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
held = []
try:
    while True:
        held.append(os.open(os.devnull, os.O_RDONLY))
except OSError:
    pass
try:
    Database.open(path)
except StoreBusyError as error:
    print("too many files" in str(error))
for fd in held:
    os.close(fd)
with Database.open(path) as store:
    print(store.row("PRAGMA integrity_check")[0])
"""

    @pytest.mark.skipif(sys.platform == "win32", reason="no descriptor limits there")
    def test_too_many_files_are_typed_and_pass(self, path):
        done = subprocess.run(
            [sys.executable, "-c", self.FILES, str(path)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ["True", "ok"]


class TestWriter:
    def test_results_come_after_the_commit(self, path):
        writer = Writer(Database.open(path))
        with Database.open(path) as reader, ThreadPoolExecutor(8) as pool:

            def one(number):
                writer.submit(lambda store: put(store, f"{number}")).result()
                return f"{number}" in names(reader)

            assert all(pool.map(one, range(50)))
        writer.close()
        with pytest.raises(StoreError, match="closed"):
            writer.submit(lambda store: None)

    def test_what_waits_goes_together_and_what_fails_fails_alone(self, path):
        gate = threading.Event()
        writer = Writer(Database.open(path))
        writer.submit(lambda store: gate.wait())

        def fail(store):
            put(store, "half")
            raise ValueError("no")

        good = [writer.submit(lambda store, n=n: put(store, f"{n}")) for n in range(20)]
        bad = writer.submit(fail)
        gate.set()
        for future in good:
            future.result(60)
        with pytest.raises(ValueError, match="no"):
            bad.result(60)
        writer.close()
        with Database.open(path) as store:
            assert names(store) == {str(n) for n in range(20)}

    def test_close_writes_what_waits(self, path):
        writer = Writer(Database.open(path))
        for number in range(30):
            writer.submit(lambda store, n=number: put(store, f"{n}"))
        writer.close()
        with Database.open(path) as store:
            assert len(names(store)) == 30

    def test_a_failing_disk_fails_all_of_the_transaction(self, path):
        gate = threading.Event()
        writer = Writer(Database.open(path))
        writer.submit(lambda store: gate.wait())

        def full(store):
            raise StoreFullError("no room")

        good, bad = writer.submit(lambda store: put(store, "a")), writer.submit(full)
        gate.set()
        for future in (good, bad):
            with pytest.raises(ResourceError):
                future.result(60)
        writer.submit(lambda store: put(store, "b")).result(60)
        writer.close()
        with Database.open(path) as store:
            assert names(store) == {"b"}
