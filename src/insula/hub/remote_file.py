"""A file that is to be fetched, what came of it, and what may go wrong on the way to the disk.

Shared by everything that brings bytes: one stream (download.py), several (parallel.py), copies.
"""

from __future__ import annotations

import errno
import hashlib
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from insula.errors import ChecksumError, ResourceError
from insula.hub.transport import Progress, Transfer
from insula.locale import text

if TYPE_CHECKING:
    import httpx2

BLOCK = 1 << 20
#: Bytes that must arrive before earlier failures are forgiven; a drip-feeding server runs out.
FORGIVING = 1 << 20
#: Free bytes to leave on the disk beyond the file.
SPARE = 32 << 20
CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


@dataclass(frozen=True, kw_only=True)
class Remote:
    """What to fetch. `sha256` and `size` (bytes) are promises to hold it to, where known."""

    url: str
    name: str
    sha256: str | None = None
    size: int | None = None

    @property
    def key(self) -> str:
        """The transfer's file name: the same bytes have the same key, whatever the mirror."""
        return (self.sha256 or hashlib.sha256(self.url.encode()).hexdigest())[:40]


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A complete, verified file that its caller now owns."""

    path: Path
    sha256: str
    size: int


def content_range(response: httpx2.Response) -> tuple[int, int, int] | None:
    """First and last byte and the whole's size, as the server states them."""
    stated = CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if response.status_code != 206 or stated is None or stated[3] == "*":
        return None
    return int(stated[1]), int(stated[2]), int(stated[3])


def too_long(remote: Remote) -> ChecksumError:
    """The error for more bytes, or another total, than was promised."""
    return ChecksumError(text("hub.wrong_size", name=remote.name, size=remote.size))


def digest_of(part: Path, done: int, remote: Remote, progress: Progress | None) -> hashlib._Hash:
    """The digest of the first `done` bytes of the part."""
    digest = hashlib.sha256()
    if not done:
        return digest
    read = 0
    with part.open("rb") as file:
        while read < done and (block := file.read(min(BLOCK, done - read))):
            digest.update(block)
            read += len(block)
            if progress is not None:
                progress(Transfer(phase="check", name=remote.name, done=read, total=done))
    return digest


def need_space(folder: Path, needed: int) -> None:
    """Raises ResourceError, with both numbers, before a transfer that cannot end well."""
    free = shutil.disk_usage(folder).free
    if needed > 0 and free < needed + SPARE:
        raise ResourceError(
            text(
                "hub.no_space",
                folder=folder,
                needed=f"{(needed + SPARE) / 1e6:,.0f}",
                free=f"{free / 1e6:,.0f}",
            )
        )


def disk_trouble(error: OSError, part: Path) -> ResourceError:
    """The error for a disk that is full or cannot be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError(text("hub.disk_full", folder=part.parent))
    return ResourceError(text("hub.cannot_write", path=part, reason=error.strerror or error))
