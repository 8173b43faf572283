"""Pages of KV cache as files of one folder, for the next run.

Owns the folder `kv` inside the one it is given: names, format, what a file must be to be believed,
and which go when there are too many. Knows nothing of pools, trees, threads or models.

A page's key is blake2b over its parent's key and its own tokens, so a key stands for a whole
prefix, below a root that stands for all else that keys and values depend on. A file's name is
`<parent's key>-<its key>.page`: the listing alone is the tree. In the file: magic, number of
tokens, bytes, checksum, both keys, the tokens, then the page's bytes.

Invariants:
- A file gets its name when it is whole (rename), and is never written again; who dies in the
  middle leaves a file with another name. Any number of processes may share the folder.
- Believed is only a file whose every byte is accounted for: its length is the right one, its head
  is what its name and tokens make it, its rest has the checksum that stands in the head.
- What goes is what was used longest ago, and never a page before those that go on from it.
- No file is touched but those named as above; they are the user's alone (0600, in a folder 0700).
"""

from __future__ import annotations

import math
import os
import re
import secrets
import stat
import struct
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

#: Changes with the format of the file. What a page's bytes mean is the root's affair.
MAGIC = b"INSULAK1"
_HEAD = struct.Struct("<8sIIQQ16s16s")
KEY_BYTES = 16

_NAME = re.compile(r"([0-9a-f]{32})-([0-9a-f]{32})\.page")
_UNFINISHED = re.compile(r"\.[0-9a-f]{16}\.unfinished")
#: Who has not finished writing a page by then never will.
_STALE_SECONDS = 600.0
#: The folder is counted anew after this share of what it may hold was added, and that much is
#: made free at once.
_SHARE = 16

_READ = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
_READ |= getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)


@dataclass(frozen=True, kw_only=True)
class OpenPage:
    """A page's file, open for reading: whoever has it closes it."""

    parent: bytes
    key: bytes
    file: int


class PageFiles:
    """The folder, for pages of one size. `put` is for one thread at a time."""

    def __init__(self, folder: Path, *, page_tokens: int, page_bytes: int, most_bytes: int) -> None:
        """Make the folder, or see whose it is. Raises OSError."""
        self.page_tokens, self.page_bytes = page_tokens, page_bytes
        self.most_bytes = most_bytes
        #: Where in a file the page's own bytes begin.
        self.offset = _HEAD.size + 4 * page_tokens
        self._folder = folder / "kv"
        self._children: dict[bytes, set[bytes]] | None = None
        self._room = 0  # bytes that may be added before the folder is counted again
        self._make_folder()

    def __len__(self) -> int:
        """How many pages the folder had at the first look, and ours."""
        return sum(map(len, self._index().values()))

    def root(self, *parts: bytes) -> bytes:
        """The key above the first pages of everything that these parts say."""
        digest = blake2b(digest_size=KEY_BYTES, person=b"insula pages")
        for part in parts:
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
        return digest.digest()

    def child(self, parent: bytes, tokens: Sequence[int]) -> bytes:
        """The key of the page that has these tokens after its parent's."""
        return blake2b(parent + _token_bytes(tokens), digest_size=KEY_BYTES).digest()

    def open(self, parent: bytes, key: bytes, *, ahead: bool = True) -> OpenPage | None:
        """The page's file, None if it is not there. ahead: all of it will be read soon.

        Raises OSError."""
        try:
            file = os.open(self._path(parent, key), _READ)
        except FileNotFoundError:
            return None
        if ahead and hasattr(os, "posix_fadvise"):
            with suppress(OSError):
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_WILLNEED)
        return OpenPage(parent=parent, key=key, file=file)

    def children(self, parent: bytes) -> list[bytes]:
        """Keys of the pages that go on from this one: those of the first look, and ours."""
        return sorted(self._index().get(parent, ()))

    def tokens(self, page: OpenPage) -> tuple[int, ...] | None:
        """The tokens that a file says it has; None unless its key is theirs. Raises OSError."""
        raw = _read_at_start(page.file, self.offset)
        if len(raw) < self.offset or raw[:8] != MAGIC:
            return None
        n = _HEAD.unpack_from(raw)[1]
        if n > self.page_tokens:
            return None
        tokens = tuple(np.frombuffer(raw, "<i4", n, _HEAD.size).tolist())
        return tokens if self.child(page.parent, tokens) == page.key else None

    def whole(self, page: OpenPage, tokens: Sequence[int], checksum: int | None) -> bool:
        """Whether the file is the page of these tokens, its own bytes having this checksum."""
        if checksum is None:
            return False
        head = self._head(page.parent, page.key, tokens, checksum)
        try:
            found = os.fstat(page.file)
            return (
                stat.S_ISREG(found.st_mode)
                and found.st_size == self.offset + self.page_bytes
                and _read_at_start(page.file, self.offset) == head
            )
        except OSError:
            return False

    def used(self, page: OpenPage) -> None:
        """It was of use now, and so were all that it goes on from."""
        with suppress(OSError):
            os.utime(self._path(page.parent, page.key))

    def discard(self, page: OpenPage) -> None:
        """Remove a file that is not to be believed, so that it may be written again."""
        with suppress(OSError):
            self._path(page.parent, page.key).unlink()

    def put(
        self, parent: bytes, tokens: Sequence[int], page: NDArray[np.uint8], checksum: int
    ) -> None:
        """Keep a page, unless it is there already. Raises OSError."""
        key = self.child(parent, tokens)
        path = self._path(parent, key)
        size = self.offset + self.page_bytes
        if size > self.most_bytes or os.path.lexists(path):
            return
        if size > self._room:
            self._make_room(size, parent)
            if size > self._room:
                return
        unfinished = self._folder / f".{secrets.token_hex(8)}.unfinished"
        file = os.open(unfinished, _WRITE, 0o600)
        try:
            try:
                _write_all(file, self._head(parent, key, tokens, checksum), page.data)
            finally:
                os.close(file)
            unfinished.replace(path)
        except BaseException:
            with suppress(OSError):
                unfinished.unlink()
            raise
        self._room -= size
        index = self._children
        if index is not None:
            index[parent].add(key)

    def _make_folder(self) -> None:
        self._folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        found = self._folder.lstat()
        if not stat.S_ISDIR(found.st_mode):
            raise NotADirectoryError(f"{self._folder.name} is not a folder")
        if hasattr(os, "geteuid"):
            # Whoever else may write here could make us believe other numbers.
            if found.st_uid != os.geteuid():
                raise PermissionError("the folder belongs to another user")
            if found.st_mode & 0o077:
                self._folder.chmod(0o700)

    def _index(self) -> dict[bytes, set[bytes]]:
        index = self._children
        if index is None:
            index = defaultdict(set)
            with suppress(OSError):
                for path in self._folder.iterdir():
                    if name := _NAME.fullmatch(path.name):
                        index[bytes.fromhex(name[1])].add(bytes.fromhex(name[2]))
            self._children = index
        return index

    def _path(self, parent: bytes, key: bytes) -> Path:
        return self._folder / f"{parent.hex()}-{key.hex()}.page"

    def _head(self, parent: bytes, key: bytes, tokens: Sequence[int], checksum: int) -> bytes:
        n = len(tokens)
        head = _HEAD.pack(MAGIC, n, self.page_tokens, self.page_bytes, checksum, parent, key)
        return head + _token_bytes(tokens).ljust(4 * self.page_tokens, b"\xff")

    def _make_room(self, size: int, parent: bytes) -> None:
        """Count the folder, and remove what was used longest ago if one more page, below
        `parent`, would be too much."""
        pages: dict[bytes, _Found] = {}
        total = 0
        with os.scandir(self._folder) as entries:
            for entry in entries:
                name = _NAME.fullmatch(entry.name)
                if name is None and not _UNFINISHED.fullmatch(entry.name):
                    continue
                try:
                    status = entry.stat(follow_symlinks=False)
                except OSError:  # somebody else has removed it
                    continue
                if name is not None:
                    found = _Found(Path(entry), status.st_size, status.st_mtime)
                    found.parent = bytes.fromhex(name[1])
                    pages[bytes.fromhex(name[2])] = found
                elif time.time() - status.st_mtime > _STALE_SECONDS:
                    with suppress(OSError):
                        Path(entry).unlink()
                    continue
                total += status.st_size
        if parent in pages:
            pages[parent].used = math.inf
        share = self.most_bytes // _SHARE
        if total + size > self.most_bytes:
            for found in _in_order(pages):
                if total + max(size, share) <= self.most_bytes or found.used == math.inf:
                    break
                found.path.unlink(missing_ok=True)
                total -= found.size
        self._children = None  # to be listed anew: names do not pile up
        self._room = min(self.most_bytes - total, max(size, share))


class _Found:
    """A file of the folder. used: when it or a page that goes on from it was."""

    __slots__ = ("depth", "parent", "path", "size", "used")

    def __init__(self, path: Path, size: int, used: float) -> None:
        self.path, self.size, self.used = path, size, used
        self.parent = b""
        self.depth = -1


def _in_order(pages: dict[bytes, _Found]) -> list[_Found]:
    """The files in the order in which they go: no page before those that go on from it."""
    for page in pages.values():
        above = []
        at: _Found | None = page
        while at is not None and at.depth < 0:
            above.append(at)
            at.depth = 0  # a circle, which no hash makes, ends here
            at = pages.get(at.parent)
        depth = -1 if at is None else at.depth
        for found in reversed(above):
            depth += 1
            found.depth = depth
    for page in sorted(pages.values(), key=lambda p: -p.depth):
        parent = pages.get(page.parent)
        if parent is not None:
            parent.used = max(parent.used, page.used)
    return sorted(pages.values(), key=lambda p: (p.used, -p.depth))


def _token_bytes(tokens: Sequence[int]) -> bytes:
    return np.asarray(tokens, dtype="<i4").tobytes()


def _read_at_start(file: int, n: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(file, n, 0)
    os.lseek(file, 0, os.SEEK_SET)
    return os.read(file, n)


def _write_all(file: int, *parts: bytes | memoryview) -> None:
    for part in parts:
        left = memoryview(part).cast("B")
        while left:
            left = left[os.write(file, left) :]
