"""One SQLite file, and what holds for every use of it.

Owns opening (file 0600, folder 0700, encrypted where there is a key), migrations, transactions, and
the translation of SQLite's failures into ours. Invariants: a transaction that returned is on the
disk (WAL with synchronous=FULL); a file that is not ours, is newer than this program, or does not
open with the key given is never written to; a new file appears under its name complete, so an empty
one is a loss and is reported, not filled anew.

A Database is one connection. Threads may share it and take turns; a process forked off must open
its own.
"""

from __future__ import annotations

import errno
import os
import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from insula.errors import (
    ConfigError,
    StoreBusyError,
    StoreError,
    StoreFullError,
    StoreKeyError,
    StoreVersionError,
)
from insula.locale import text
from insula.security.lock import locked
from insula.security.private_files import make_private_folder, sync_folder
from insula.store.migrations import MIGRATIONS

if TYPE_CHECKING:
    import apsw

#: "Insu", in the file's header, so that another program's database is not taken for ours.
APPLICATION_ID = 0x496E7375
BUSY_MILLISECONDS = 10_000
_PLAIN_HEADER = b"SQLite format 3\0"
_NO_ROOM = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_TOO_MANY = {errno.EMFILE, errno.ENFILE}

Row = tuple[Any, ...]


def driver() -> Any:
    """The apsw module. ConfigError where the server's parts are not installed."""
    try:
        import apsw
    except ModuleNotFoundError:
        raise ConfigError(text("database.not_installed")) from None
    if not hasattr(apsw, "mc_version"):  # plain apsw took its place: the key would be ignored
        raise ConfigError(text("database.plain_apsw"))
    return apsw


class Database:
    """An open store. Use `Database.open`."""

    def __init__(self, connection: apsw.Connection, path: Path) -> None:
        self._connection = connection
        self._lock = threading.RLock()
        self.path = path

    @classmethod
    def open(cls, path: Path, *, key: str | None = None) -> Database:
        """Open the file at `path`, made and migrated as needed; `key` encrypts it.

        Raises StoreError of its kinds, ConfigError where a part is missing.
        """
        driver()
        text("database.too_many_files", path=path)  # loaded now: later no file may be opened
        try:
            make_private_folder(path.parent)
            if not path.exists():
                with locked(path.with_name(f"{path.name}.lock")):
                    if not path.exists():
                        _create(path, key)
            if path.stat().st_size == 0:
                raise StoreError(text("database.empty", path=path))
            if path.stat().st_mode & 0o077:
                path.chmod(0o600)
        except OSError as error:
            raise _from_system(error, path) from error
        database = cls(_connect(path, key), path)
        try:
            database._check_key(key)
            database._migrate()
        except BaseException:
            database.close()
            raise
        return database

    def close(self) -> None:
        """Give the file back. What was acknowledged is on the disk already."""
        with self._lock, suppress(Exception):
            self._connection.close()

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        """All rows of a query."""
        with self._lock, _typed(self._connection, self.path):
            return list(self._connection.execute(sql, tuple(values)))

    def row(self, sql: str, values: Sequence[Any] = ()) -> Row | None:
        """The first row of a query, None where there is none."""
        found = self.rows(sql, values)
        return found[0] if found else None

    def run(self, sql: str, values: Sequence[Any] = ()) -> int:
        """Change something; how many rows changed. Outside `transaction` it is one of its own."""
        with self._lock, _typed(self._connection, self.path):
            self._connection.execute(sql, tuple(values))
            return self._connection.changes()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of the block or nothing. On the disk when it ends; the only writer meanwhile.

        Inside another one it is a part that may fail alone, and is on the disk when that one is.
        """
        with self._lock, _typed(self._connection, self.path):
            if self._inside():
                with self._part():
                    yield
                return
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                # SQLite has rolled back already after some failures.
                if self._inside():
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """All that the block reads is of one moment, whatever others write meanwhile."""
        with self._lock, _typed(self._connection, self.path):
            if self._inside():
                yield
                return
            self._connection.execute("BEGIN")
            try:
                yield
            finally:
                self._connection.execute("COMMIT")

    @contextmanager
    def _part(self) -> Iterator[None]:
        self._connection.execute("SAVEPOINT part")
        try:
            yield
        except BaseException:
            if self._inside():
                self._connection.execute("ROLLBACK TO part")
            raise
        finally:
            if self._inside():
                self._connection.execute("RELEASE part")

    def secret(self, name: str) -> bytes:
        """32 random bytes that belong to this store, made when first asked for."""
        found = self.row("SELECT value FROM meta WHERE name = ?", (name,))
        if found is None:
            with self.transaction():
                self.run(
                    "INSERT OR IGNORE INTO meta (name, value) VALUES (?, ?)",
                    (name, secrets.token_bytes(32)),
                )
            found = self.row("SELECT value FROM meta WHERE name = ?", (name,))
        assert found is not None
        return bytes(found[0])

    def _inside(self) -> bool:
        return self._connection.in_transaction

    def _check_key(self, key: str | None) -> None:
        if key is not None:
            with self.path.open("rb") as file:
                if file.read(len(_PLAIN_HEADER)) == _PLAIN_HEADER:
                    raise StoreKeyError(text("database.not_encrypted", path=self.path))
        found = self.row("PRAGMA application_id")
        if found is None or found[0] != APPLICATION_ID:
            raise StoreKeyError(text("database.not_ours", path=self.path))

    def _migrate(self) -> None:
        if self._version() < len(MIGRATIONS):
            with self.transaction():
                _apply(self._connection, self._version())
        if self._version() > len(MIGRATIONS):
            raise StoreVersionError(
                text(
                    "database.newer",
                    path=self.path,
                    found=self._version(),
                    known=len(MIGRATIONS),
                )
            )

    def _version(self) -> int:
        found = self.row("PRAGMA user_version")
        assert found is not None
        return int(found[0])


def _apply(connection: apsw.Connection, version: int) -> None:
    for number, statements in enumerate(MIGRATIONS[version:], version + 1):
        for statement in statements:
            connection.execute(statement)
        connection.pragma("user_version", number)


def _create(path: Path, key: str | None) -> None:
    """A whole new file, under another name until it is one."""
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(8)}.new")
    unfinished.touch(mode=0o600, exist_ok=False)
    try:
        connection = _connect(unfinished, key)
        try:
            with _typed(connection, path):
                connection.pragma("application_id", APPLICATION_ID)
                connection.execute("BEGIN IMMEDIATE")
                _apply(connection, 0)
                connection.execute("COMMIT")
        finally:
            connection.close()  # which empties and removes the write-ahead log
        unfinished.replace(path)
        sync_folder(path.parent)
    except BaseException:
        for suffix in ("", "-wal", "-shm"):
            Path(f"{unfinished}{suffix}").unlink(missing_ok=True)
        raise


def _connect(path: Path, key: str | None) -> Any:
    apsw = driver()
    try:
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    except apsw.Error as error:
        try:  # SQLite does not say why
            os.close(os.open(path, os.O_RDWR))
        except OSError as reason:
            raise _from_system(reason, path) from error
        raise StoreError(text("database.cannot_open", path=path, reason=str(error))) from error
    try:
        with _typed(connection, path):
            if key is not None:
                connection.pragma("key", key)
            connection.set_busy_timeout(BUSY_MILLISECONDS)
            # The first statement that reads: a wrong key shows here, before anything is written.
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()
            if connection.pragma("journal_mode") != "wal":
                connection.pragma("journal_mode", "wal")
            connection.pragma("synchronous", "full")
            connection.pragma("fullfsync", value=True)
            connection.pragma("foreign_keys", value=True)
            connection.pragma("secure_delete", value=True)
            connection.pragma("trusted_schema", value=False)
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def _typed(connection: apsw.Connection, path: Path) -> Iterator[None]:
    apsw = driver()
    try:
        yield
    except apsw.NotADBError as error:
        raise StoreKeyError(text("database.wrong_key", path=path)) from error
    except (apsw.BusyError, apsw.LockedError, apsw.SchemaChangeError) as error:
        raise StoreBusyError(text("database.busy", path=path)) from error
    except apsw.FullError as error:
        raise StoreFullError(text("database.full", path=path)) from error
    except (apsw.IOError, apsw.CantOpenError) as error:
        system = connection.system_errno
        if system in _NO_ROOM:
            raise StoreFullError(text("database.full", path=path)) from error
        if system in _TOO_MANY:
            raise StoreBusyError(text("database.too_many_files", path=path)) from error
        raise StoreError(text("database.io", path=path, reason=str(error))) from error
    except apsw.CorruptError as error:
        raise StoreError(text("database.damaged", path=path)) from error
    except (apsw.ReadOnlyError, apsw.PermissionsError, apsw.AuthError) as error:
        raise StoreError(text("database.read_only", path=path)) from error
    except (apsw.ConnectionClosedError, apsw.CursorClosedError) as error:
        raise StoreError(text("database.closed", path=path)) from error
    except apsw.NoMemError as error:
        raise MemoryError from error


def _from_system(error: OSError, path: Path) -> StoreError:
    if error.errno in _NO_ROOM:
        return StoreFullError(text("database.full", path=path))
    if error.errno in _TOO_MANY:
        return StoreBusyError(text("database.too_many_files", path=path))
    return StoreError(text("database.cannot_open", path=path, reason=error.strerror or str(error)))
