"""One process at a time, by a lock on a file. The system lets go of it when a process dies.

The file is removed by whoever held it last, so that no litter stays; who then finds that the
file it locked is no longer the one under that name tries again.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

POLL_SECONDS = 0.1

if sys.platform == "win32":
    import msvcrt

    def _try_lock(fd: int) -> bool:
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
else:
    import fcntl

    def _try_lock(fd: int) -> bool:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def _still_named(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def locked(
    path: Path, *, wait: bool = True, waiting: Callable[[], None] | None = None
) -> Iterator[None]:
    """Hold the lock on `path` for the block; `waiting` is called once if another has it. Without
    `wait` that is a BlockingIOError."""
    told = False
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if _try_lock(fd):
                if _still_named(fd, path):
                    break
                os.close(fd)
                continue
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        if not wait:
            raise BlockingIOError(f"{path} is locked")
        if waiting is not None and not told:
            told = True
            waiting()
        time.sleep(POLL_SECONDS)
    try:
        yield
    finally:
        # Windows removes no open file; there the empty file stays and does no harm.
        with suppress(OSError):
            path.unlink()
        os.close(fd)
