"""Reading a small file whole, where its path came from a person.

Owns the bound: a device, a pipe or a file of any length costs nothing. Refuses what is not a
regular file, and what is longer than the caller's limit, before reading it. Messages are the
caller's affair.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


class NotRegularError(OSError):
    """A folder, a device or a pipe."""


class TooLongError(OSError):
    """More bytes than the limit."""


def read_small(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Raises NotRegularError, TooLongError, and OSError as opening does. All carry the path.
    """
    name = os.fspath(path)
    if path.is_dir():  # Windows cannot open one to look
        raise NotRegularError(errno.EISDIR, os.strerror(errno.EISDIR), name)
    # Without O_NONBLOCK, opening a pipe waits for somebody to write.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise NotRegularError(errno.EINVAL, os.strerror(errno.EINVAL), name)
        # Files of /proc state no size, and a file may grow: the read is bounded as well.
        data = b"" if found.st_size > limit else file.read(limit + 1)
        if found.st_size > limit or len(data) > limit:
            raise TooLongError(errno.EFBIG, os.strerror(errno.EFBIG), name)
    return data
