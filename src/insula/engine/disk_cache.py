"""The prefix cache's second shelf: pages that were computed come back after a restart.

Owns the way between the prefix tree and `page_files`. Reading: before a plan, the sequence next in
line gets what the folder has of its prefix beyond what the tree has, into free pages and the tree,
where the scheduler finds it like anything else. Writing: new pages of the tree are copied out
between steps, as many as the writer has room for, and a thread of its own writes them.

Invariants:
- `read`, `save` and `close` are called by the thread that steps, between steps.
- A page enters the tree only after all its bytes were checked; what fails is computed, and a note
  says so. No error of the disk is an error of a request: at the first one that meets the writer
  nothing more is written.
- Reading takes pages that the sequence would take in any case, and at most one step's time at once.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Sequence as Items
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from insula.engine.kvcache import Match, Node, PrefixCache
from insula.engine.page_files import OpenPage, PageFiles
from insula.engine.request import PageRunner
from insula.engine.scheduler import Scheduler
from insula.engine.sequence import Sequence

#: Bytes and files that are read in one call; as many again are asked for ahead of it.
READ_BYTES, READ_FILES = 32 << 20, 16
#: Bytes that wait for the writer.
QUEUE_BYTES = 32 << 20
#: How long closing waits for what is not written yet.
CLOSE_SECONDS = 5.0
#: Of a page that matches in part, the part from which on it is read, and of one that is not full,
#: kept: less is computed sooner.
LEAST_PART = 16
#: Most files looked into for a page that matches in part.
MOST_TAILS = 16


@dataclass(frozen=True, kw_only=True)
class _Job:
    parent: bytes
    tokens: tuple[int, ...]
    page: NDArray[np.uint8]
    checksum: int


class DiskCache:
    """Reads and writes pages of one model; see the module."""

    def __init__(self, files: PageFiles, runner: PageRunner, *, model: bytes) -> None:
        """model: stands for all that a page's bytes depend on beside tokens."""
        self._files, self._runner, self._model = files, runner, model
        self._size = files.page_tokens
        self._least = max(1, self._size // LEAST_PART)
        self._batch = max(1, min(READ_FILES, READ_BYTES // files.page_bytes))
        self._writer = _Writer(files, most=max(1, QUEUE_BYTES // files.page_bytes))
        self._notes: list[str] = []
        self._cache: PrefixCache | None = None

    def attach(self, cache: PrefixCache) -> None:
        """From now on this tree's pages are kept."""
        self._cache = cache
        cache.added = deque()

    def read(self, scheduler: Scheduler, until: float) -> bool:
        """Fill the tree for the next sequence that the folder has something for. Returns whether
        there was one. It may take until about then; the rest is read at the next call."""
        for seq in list(scheduler.waiting):
            if not seq.awaits_disk or scheduler.in_the_making(seq):
                continue
            match = scheduler.match(seq)
            try:
                spare = scheduler.spare(seq, match)
                if scheduler.running and spare < len(scheduler.running):
                    return False  # nor can it be admitted
                if self._fill(seq, match, scheduler, spare, until):
                    return True
            except OSError as error:
                seq.awaits_disk = False
                seq.notes.append(f"the cache on disk could not be read: {_reason(error)}")
            finally:
                scheduler.forget(match)
        return False

    def save(self) -> None:
        """Give new pages to the writer, as many as it has room for."""
        assert self._cache is not None
        added = self._cache.added
        while added and self._writer.has_room:
            node = added.popleft()
            if node.page < 0 or node.saved or len(node.tokens) < self._least:
                continue
            assert node.parent is not None
            try:
                page = np.empty(self._files.page_bytes, dtype=np.uint8)
            except MemoryError:  # it may do without
                continue
            checksum = self._runner.save_page(node.page, len(node.tokens), page)
            self._writer.add(
                _Job(
                    parent=self._key(node.parent), tokens=node.tokens, page=page, checksum=checksum
                )
            )
            node.saved = True
        if self._writer.error is not None:
            self._notes.append(f"the cache on disk keeps nothing more: {self._writer.error}")
            self._writer.error = None
        if self._writer.broken and added:
            added.clear()

    def notes(self) -> list[str]:
        """What went wrong since the last call."""
        found, self._notes = self._notes, []
        return found

    def close(self) -> list[str]:
        """Write what is left, for a few seconds. Returns the last notes."""
        until = time.monotonic() + CLOSE_SECONDS
        while time.monotonic() < until:
            self.save()
            if self._cache is None or not self._cache.added:
                break
            self._writer.wait(0.01)
        self._writer.wait(until - time.monotonic())
        self.save()
        return self.notes()

    def _key(self, node: Node) -> bytes:
        path: list[Node] = []
        while not node.key:
            if node.parent is None:
                node.key = self._files.root(self._model, node.salt.encode("utf-8", "surrogatepass"))
            else:
                path.append(node)
                node = node.parent
        for below in reversed(path):
            below.key = self._files.child(node.key, below.tokens)
            node = below
        return node.key

    def _fill(
        self, seq: Sequence, match: Match, scheduler: Scheduler, spare: int, until: float
    ) -> bool:
        """Read what goes on from the match. Returns whether anything was read."""
        assert match.node is not None
        ids, node = scheduler.reusable(seq), match.node
        done = len(match.pages)
        ahead = self._open(self._key(node), ids, done)
        asked, read, whole = len(ahead), 0, True
        try:
            while ahead and whole and (not read or time.perf_counter() < until):
                batch, ahead = ahead, []
                try:
                    ahead = self._open(batch[-1].key, ids, done + asked)
                    asked += len(ahead)
                    chunks = [self._chunk(ids, done + read + i) for i in range(len(batch))]
                    found = self._load(seq, scheduler, node, batch, chunks)
                finally:
                    _close(batch)
                read += len(found)
                node = found[-1] if found else node
                whole = len(found) == len(batch)
        finally:
            _close(ahead)
        seq.disk_tokens += read * self._size
        if whole and ahead:  # no time left; it goes on from here
            return True
        seq.awaits_disk = False
        best = 0 if read else match.tail_tokens
        if whole and spare > 0:
            read += self._tail(seq, scheduler, node, self._chunk(ids, done + read), best)
        return read > 0

    def _open(self, key: bytes, ids: Items[int], first: int) -> list[OpenPage]:
        """Files of the pages from `first` on, below `key`, up to the first that is not there."""
        pages: list[OpenPage] = []
        try:
            last = min(len(ids) // self._size, first + self._batch)
            for i in range(first, last):
                parent, key = key, self._files.child(key, self._chunk(ids, i))
                page = self._files.open(parent, key)
                if page is None:
                    break
                pages.append(page)
        except BaseException:
            _close(pages)
            raise
        return pages

    def _load(
        self,
        seq: Sequence,
        scheduler: Scheduler,
        node: Node,
        batch: list[OpenPage],
        chunks: list[tuple[int, ...]],
    ) -> list[Node]:
        """Read files into free pages and the tree, below `node`; up to the first damaged one."""
        pool, cache = scheduler.pool, scheduler.cache
        if pool.n_free < len(batch):
            cache.evict(len(batch) - pool.n_free)
        pages = [pool.take() for _ in batch]
        nodes: list[Node] = []
        try:
            sums = self._runner.load_pages(pages, [p.file for p in batch], self._files.offset)
            for opened, tokens, page, checksum in zip(batch, chunks, pages, sums, strict=True):
                if not self._files.whole(opened, tokens, checksum):
                    self._files.discard(opened)
                    seq.notes.append("a page of the cache on disk was damaged and not used")
                    break
                node = cache.keep(node, tokens, page)
                node.key, node.saved = opened.key, True
                nodes.append(node)
        finally:
            for page in pages:
                pool.release(page)
        if nodes:
            self._files.used(batch[len(nodes) - 1])
        return nodes

    def _tail(
        self, seq: Sequence, scheduler: Scheduler, node: Node, rest: tuple[int, ...], best: int
    ) -> int:
        """Read the page that begins with most of `rest`, if that says more than `best` tokens."""
        if len(rest) < max(self._least, best + 1):
            return 0
        looked_at: list[OpenPage] = []
        chosen: OpenPage | None = None
        chunk: tuple[int, ...] = ()
        try:
            for key in self._files.children(self._key(node))[:MOST_TAILS]:
                page = self._files.open(self._key(node), key, ahead=False)
                if page is None:
                    continue
                looked_at.append(page)
                tokens = self._files.tokens(page) or ()
                same = _common_prefix(tokens, rest)
                if same > max(best, self._least - 1):
                    chosen, chunk, best = page, tokens, same
            if chosen is None or not self._load(seq, scheduler, node, [chosen], [chunk]):
                return 0
        finally:
            _close(looked_at)
        seq.disk_tokens += best
        return 1

    def _chunk(self, ids: Items[int], i: int) -> tuple[int, ...]:
        return tuple(ids[i * self._size : (i + 1) * self._size])


class _Writer:
    """A thread that writes pages while there are some. The first error is its last page."""

    def __init__(self, files: PageFiles, *, most: int) -> None:
        self.error: str | None = None
        self.broken = False
        self._files, self._most = files, most
        self._jobs: deque[_Job] = deque()
        self._idle = threading.Condition()
        self._thread: threading.Thread | None = None

    @property
    def has_room(self) -> bool:
        return not self.broken and len(self._jobs) < self._most

    def add(self, job: _Job) -> None:
        with self._idle:
            self._jobs.append(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="insula-pages", daemon=True)
                self._thread.start()

    def wait(self, seconds: float) -> None:
        """Until everything is written, or so long."""
        with self._idle:
            self._idle.wait_for(lambda: self._thread is None, max(0.0, seconds))

    def _run(self) -> None:
        while True:
            with self._idle:
                if self.broken:
                    self._jobs.clear()
                if not self._jobs:
                    self._thread = None
                    self._idle.notify_all()
                    return
                job = self._jobs.popleft()
            try:
                self._files.put(job.parent, job.tokens, job.page, job.checksum)
            except OSError as error:
                self.error, self.broken = _reason(error), True


def _reason(error: OSError) -> str:
    """What the system says, without the path: reports go to clients."""
    return error.strerror or str(error)


def _close(pages: list[OpenPage]) -> None:
    for page in pages:
        with suppress(OSError):
            os.close(page.file)


def _common_prefix(a: Items[int], b: Items[int]) -> int:
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )
