"""One large file by several Range requests at once, resumable at any moment.

`<key>.part` has the file's full size from the start and is filled in any order; `<key>.chunks`
says which chunks are there: a header line, then one line per chunk, appended after its bytes have
been handed to the disk. So it survives kill -9 and a loss of power: what the journal does not name
is fetched again. Only for files whose sha256 and size are promised: the whole is read through the
digest at the end, and a part with the wrong one is removed.

Threads fetch and write; the caller's thread alone tells progress and raises. A server that ignores
Range makes this end with NoRangesError, and the caller falls back to one stream.
"""

from __future__ import annotations

import json
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from insula.errors import ChecksumError, DownloadError
from insula.hub import places
from insula.hub.remote_file import (
    FORGIVING,
    Fetched,
    Remote,
    content_range,
    digest_of,
    disk_trouble,
    need_space,
    too_long,
)
from insula.hub.transport import Progress, Transfer, Transport
from insula.locale import text


class NoRangesError(DownloadError):
    """The server sends the whole file, whatever is asked for."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a file is divided. Bytes; a request asks for at most `span`, a chunk is what is kept.

    Files below `least` are not worth more than one connection.
    """

    connections: int = 4
    chunk: int = 4 << 20
    span: int = 64 << 20
    least: int = 32 << 20

    def applies(self, remote: Remote, part: Path) -> bool:
        """Whether `remote` is to be fetched so; a transfer begun as one stream stays one."""
        if remote.sha256 is None or remote.size is None or self.connections < 2:
            return False
        begun = part.with_suffix(".json").exists() and part.exists()
        return remote.size >= self.least and not begun


class _Journal:
    """Which chunks of the part are on the disk."""

    def __init__(self, remote: Remote, part: Path, plan: Plan) -> None:
        assert remote.size is not None
        self.path = part.with_suffix(".chunks")
        self.part = part
        self.size = remote.size
        self._head = {"sha256": remote.sha256, "size": remote.size, "chunk": plan.chunk}
        self.chunk = plan.chunk
        self.count = -(-remote.size // plan.chunk)
        self.done = self._read()

    def _read(self) -> set[int]:
        try:
            head, *lines = self.path.read_text(encoding="ascii").split("\n")
            note = json.loads(head)
            chunk = note["chunk"]
            whole = self.part.stat().st_size == self.size
        except (OSError, ValueError, KeyError, TypeError):
            return set()
        same = {**note, "chunk": self.chunk} == self._head and isinstance(chunk, int)
        if not same or not whole or not 1 <= chunk <= self.size:
            return set()
        self.chunk, self.count = chunk, -(-self.size // chunk)
        self._head["chunk"] = chunk
        lines.pop()  # empty, or a line that was being written when the process was killed
        return {int(line) for line in lines if line.isdigit() and int(line) < self.count}

    def start(self) -> None:
        """Make the part full-sized and the journal true."""
        fresh = not self.done
        fd = os.open(self.part, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if fresh:
                os.ftruncate(fd, 0)
            os.ftruncate(fd, self.size)
        finally:
            os.close(fd)
        lines = [json.dumps(self._head), *map(str, sorted(self.done))]
        places.write_private(self.path, ("\n".join(lines) + "\n").encode())

    def note(self, chunk: int) -> None:
        with self.path.open("a", encoding="ascii") as file:
            file.write(f"{chunk}\n")
        self.done.add(chunk)

    def bytes_done(self) -> int:
        return sum(self.length(chunk) for chunk in self.done)

    def length(self, chunk: int) -> int:
        return min(self.chunk, self.size - chunk * self.chunk)

    def spans(self, most: int) -> deque[range]:
        """What is missing, as runs of chunks of about `most` bytes."""
        runs: deque[range] = deque()
        longest = max(1, most // self.chunk)
        for chunk in range(self.count):
            if chunk in self.done:
                continue
            if runs and runs[-1].stop == chunk and len(runs[-1]) < longest:
                runs[-1] = range(runs[-1].start, chunk + 1)
            else:
                runs.append(range(chunk, chunk + 1))
        return runs

    def forget(self) -> None:
        for path in (self.part, self.path):
            path.unlink(missing_ok=True)


def received(part: Path) -> int:
    """Bytes of a chunked part that are there; of any other its size."""
    try:
        head, *lines = part.with_suffix(".chunks").read_text(encoding="ascii").split("\n")
        chunk, size = int(json.loads(head)["chunk"]), part.stat().st_size
        done = {int(line) for line in lines[:-1] if line.isdigit()}
        return sum(max(0, min(chunk, size - number * chunk)) for number in done)
    except (OSError, ValueError, KeyError, TypeError):
        return part.stat().st_size if part.exists() else 0


class _Crew:
    """The threads of one transfer. `events` carries progress and failures to the caller's."""

    def __init__(self, transport: Transport, remote: Remote, journal: _Journal, plan: Plan) -> None:
        self.transport, self.remote, self.journal = transport, remote, journal
        self.events: queue.SimpleQueue[Transfer | BaseException] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._guard = threading.Lock()
        self.done = journal.bytes_done()
        # Every connection gets some of what is missing, however little that is.
        share = (journal.size - self.done) // plan.connections
        self._spans = journal.spans(min(plan.span, share))
        count = min(plan.connections, len(self._spans))
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]

    @contextmanager
    def at_work(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            deadline = time.monotonic() + 2
            for thread in self._threads:  # one that waits for a silent server writes nothing more
                thread.join(timeout=max(0.0, deadline - time.monotonic()))

    def busy(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    def _work(self) -> None:
        try:
            with self.journal.part.open("r+b", buffering=0) as file:
                while not self._stop.is_set():
                    with self._guard:
                        if not self._spans:
                            return
                        span = self._spans.popleft()
                    self._fetch_span(file.fileno(), span)
        except BaseException as error:  # noqa: BLE001 -- the caller's thread raises it
            self.events.put(error)

    def _fetch_span(self, fd: int, span: range) -> None:
        journal = self.journal
        at = span.start * journal.chunk
        end = min(span.stop * journal.chunk, journal.size)
        failures = 0
        while at < end and not self._stop.is_set():
            before = at
            try:
                headers = {"Range": f"bytes={at}-{end - 1}"}
                with self.transport.open(self.remote.url, headers) as response:
                    if response.status_code == 200:
                        raise NoRangesError(text("hub.wrong_range", name=self.remote.name))
                    if content_range(response) != (at, end - 1, journal.size):
                        raise DownloadError(text("hub.wrong_range", name=self.remote.name))
                    for piece in response.iter_raw():
                        if self._stop.is_set():
                            return
                        if at + len(piece) > end:
                            raise too_long(self.remote)
                        _write_at(fd, piece, at)
                        at = self._advance(fd, at, len(piece), end)
                if at < end:
                    raise DownloadError(
                        text("hub.cut_short", name=self.remote.name, done=at, total=end),
                        retryable=True,
                    )
            except ChecksumError:
                raise
            except DownloadError as error:
                failures = 1 if at - before >= FORGIVING else failures + 1
                pause = self.transport.retry.pause(failures, error)
                note = text("hub.retrying", reason=error, seconds=f"{pause:.1f}")
                self.events.put(Transfer(phase="retry", name=self.remote.name, note=note))
                self._stop.wait(pause)

    def _advance(self, fd: int, at: int, count: int, end: int) -> int:
        """Count `count` bytes written at `at`, and note the chunks that they complete."""
        journal = self.journal
        after = at + count
        first, last = at // journal.chunk, (after - 1) // journal.chunk
        complete = [
            chunk
            for chunk in range(first, last + 1)
            if after >= min((chunk + 1) * journal.chunk, end)
        ]
        if complete:
            os.fsync(fd)
        with self._guard:
            if self._stop.is_set():
                return after
            for chunk in complete:
                journal.note(chunk)
            self.done += count
            event = Transfer(
                phase="download", name=self.remote.name, done=self.done, total=journal.size
            )
        self.events.put(event)
        return after


def fetch(
    transport: Transport, remote: Remote, part: Path, plan: Plan, *, progress: Progress | None
) -> Fetched:
    """Bring `part` to completeness and verify it. Raises as `download.fetch`, and NoRangesError."""
    journal = _Journal(remote, part, plan)
    need_space(part.parent, journal.size - journal.bytes_done())
    try:
        journal.start()
        _run(_Crew(transport, remote, journal, plan), progress)
        found = digest_of(part, journal.size, remote, progress).hexdigest()
    except (ChecksumError, NoRangesError):
        journal.forget()
        raise
    except BrokenPipeError:
        raise  # the progress display's reader went away; the disk is well
    except OSError as error:
        raise disk_trouble(error, part) from error
    if found != remote.sha256:
        journal.forget()
        raise ChecksumError(
            text("hub.wrong_checksum", name=remote.name, expected=remote.sha256, found=found)
        )
    with suppress(FileNotFoundError):
        journal.path.unlink()
    return Fetched(path=part, sha256=found, size=journal.size)


def _run(crew: _Crew, progress: Progress | None) -> None:
    """Let the threads work; tell what they say, and raise what one of them met."""
    with crew.at_work():
        while True:
            try:
                event = crew.events.get(timeout=0.1)
            except queue.Empty:
                if crew.busy() or not crew.events.empty():
                    continue
                return
            if isinstance(event, BaseException):
                raise event
            if progress is not None:
                progress(event)


def _write_at(fd: int, piece: bytes, at: int) -> None:
    view = memoryview(piece)
    if not hasattr(os, "pwrite"):  # Windows; the descriptor is this thread's own
        os.lseek(fd, at, os.SEEK_SET)
    while view:
        written = os.pwrite(fd, view, at) if hasattr(os, "pwrite") else os.write(fd, view)
        view, at = view[written:], at + written
