"""Writing from a server without making anybody wait for the disk twice.

One thread with a connection of its own takes what is to be written, as much of it as waits, into
one transaction: a hundred records cost one fsync. A result is handed out after the commit, so who
has it knows that the change is on the disk. Work that fails alone is undone alone; when the disk
fails, all of that transaction's work fails with the same typed error, and the next is tried afresh.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from insula.errors import StoreError
from insula.store.database import Database

T = TypeVar("T")
MOST_TOGETHER = 256

_Job = tuple[Callable[[Database], Any], "Future[Any]"]


class Writer:
    """Takes ownership of `database`: nobody else may use it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closed = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._serve, name="insula-store", daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[Database], T]) -> Future[T]:
        """`work(database)` inside a transaction; its result once that is on the disk."""
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise StoreError("the store is closed")
            self._jobs.put((work, future))
        return future

    def close(self) -> None:
        """Write what waits, then close the database."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._jobs.put(None)
        self._thread.join()
        self._database.close()

    def _serve(self) -> None:
        while True:
            job = self._jobs.get()
            if job is None:
                return
            jobs, last = [job], False
            while len(jobs) < MOST_TOGETHER and not last:
                try:
                    job = self._jobs.get_nowait()
                except queue.Empty:
                    break
                if job is None:
                    last = True
                else:
                    jobs.append(job)
            self._together([job for job in jobs if job[1].set_running_or_notify_cancel()])
            if last:
                return

    def _together(self, jobs: list[_Job]) -> None:
        done: list[tuple[Future[Any], Any]] = []
        failed: list[tuple[Future[Any], BaseException]] = []
        try:
            with self._database.transaction():
                for work, future in jobs:
                    try:
                        with self._database.transaction():
                            done.append((future, work(self._database)))
                    except StoreError:
                        raise
                    except Exception as error:  # noqa: BLE001 -- handed to whoever asked
                        failed.append((future, error))
        except BaseException as error:  # noqa: BLE001 -- handed to whoever asked
            for _, future in jobs:
                future.set_exception(error)
            return
        for future, result in done:
            future.set_result(result)
        for future, reason in failed:
            future.set_exception(reason)
