"""One file from one address into one folder, whole or not at all.

A transfer lives in `<folder>/<key>.part` beside `<key>.json`, which says whose bytes those are.
It survives kill -9: the next call goes on from the last byte with a Range request, after reading
what is there through the digest again. Without a promised sha256, If-Range makes the server
start over if its file changed. What is handed back is complete and has the promised size and
digest; a part with the wrong digest is removed. One process at a time works on a key. Large files
of which the digest is promised come by several connections at once (parallel.py).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from insula.config import settings
from insula.errors import ChecksumError, DownloadError
from insula.hub import places
from insula.hub.remote_file import (
    CONTENT_RANGE,
    FORGIVING,
    Fetched,
    Remote,
    digest_of,
    disk_trouble,
    need_space,
    too_long,
)
from insula.hub.transport import Progress, Transfer, Transport
from insula.locale import text
from insula.security.lock import locked

if TYPE_CHECKING:
    import httpx2

    from insula.hub.parallel import Plan


@contextmanager
def transfer(folder: Path, remote: Remote, progress: Progress | None) -> Iterator[Path]:
    """Hold the right to this key; yields the part's path. Waits for another process's turn."""
    places.private_folder(folder)

    def waiting() -> None:
        _say(progress, Transfer(phase="wait", name=remote.name, note=text("hub.waiting")))

    with locked(folder / f"{remote.key}.lock", waiting=waiting):
        yield folder / f"{remote.key}.part"


def fetch(
    transport: Transport,
    remote: Remote,
    part: Path,
    *,
    progress: Progress | None = None,
    plan: Plan | None = None,
) -> Fetched:
    """Bring `part` to completeness and verify it. Call inside `transfer`.

    plan: whether and how several connections share the work (default: parallel.Plan with
    INSULA_HUB_CONNECTIONS of them).
    Raises ResourceError (disk), OfflineError, ChecksumError, NotFoundError, DownloadError. After
    any of these but ChecksumError, and after KeyboardInterrupt, the part can be resumed.
    """
    from insula.hub import parallel

    whole = finished(remote, part, progress=progress)
    if whole is not None:
        return whole
    plan = plan or parallel.Plan(connections=settings().hub_connections)
    if plan.applies(remote, part):
        try:
            return parallel.fetch(transport, remote, part, plan, progress=progress)
        except parallel.NoRangesError:
            pass  # one stream, then
    state = _State(remote, part)
    done = state.resume_at()
    need_space(part.parent, (remote.size or 0) - done)
    digest = digest_of(part, done, remote, progress)
    failures = 0
    while remote.size is None or done < remote.size:
        before = done
        try:
            with transport.open(remote.url, state.headers(done)) as response:
                start = _start_of(response, done, remote)
                if start is None:
                    break  # the server says that there is nothing after what we have
                if start != done:
                    done, digest = 0, hashlib.sha256()
                before = done
                state.remember(response, start)
                total = remote.size if remote.size is not None else _total_of(response, start)
                if remote.size is None and total is not None:
                    need_space(part.parent, total - done)
                with part.open("r+b" if done else "wb", buffering=0) as file:
                    part.chmod(0o600)
                    file.seek(done)
                    file.truncate()
                    for piece in response.iter_raw():
                        if remote.size is not None and done + len(piece) > remote.size:
                            raise too_long(remote)
                        _write(file, piece)
                        digest.update(piece)
                        done += len(piece)
                        _say(
                            progress,
                            Transfer(phase="download", name=remote.name, done=done, total=total),
                        )
            if total is not None and done < total:
                raise DownloadError(
                    text("hub.cut_short", name=remote.name, done=done, total=total), retryable=True
                )
            break
        except ChecksumError:
            state.forget()
            raise
        except DownloadError as error:
            failures = 1 if done - before >= FORGIVING else failures + 1
            transport.wait(failures, error, remote.name, progress)
        except BrokenPipeError:
            raise  # the progress display's reader went away; the disk is well
        except OSError as error:
            raise disk_trouble(error, part) from error
    found = digest.hexdigest()
    if remote.sha256 is not None and found != remote.sha256:
        state.forget()
        raise ChecksumError(
            text("hub.wrong_checksum", name=remote.name, expected=remote.sha256, found=found)
        )
    with suppress(FileNotFoundError):
        state.path.unlink()
    return Fetched(path=part, sha256=found, size=done)


def finished(remote: Remote, part: Path, *, progress: Progress | None = None) -> Fetched | None:
    """The part, if it has the promised size and digest already; it needs no note and no network.

    So is what a process left that was killed between the end of a transfer and the part's use.
    """
    if remote.sha256 is None or remote.size is None or part.with_suffix(".chunks").exists():
        return None
    try:
        if part.stat().st_size != remote.size:
            return None
        if digest_of(part, remote.size, remote, progress).hexdigest() != remote.sha256:
            return None
    except OSError:
        return None
    part.with_suffix(".json").unlink(missing_ok=True)
    return Fetched(path=part, sha256=remote.sha256, size=remote.size)


class _State:
    """The note beside a part: whose bytes it holds, so that no two files are spliced."""

    def __init__(self, remote: Remote, part: Path) -> None:
        self.remote, self.part = remote, part
        self.path = part.with_suffix(".json")
        self.etag: str | None = None

    def resume_at(self) -> int:
        """The bytes of the part that can be kept."""
        try:
            note = json.loads(self.path.read_bytes())
            have = self.part.stat().st_size
        except (OSError, ValueError):
            note, have = None, 0
        remote = self.remote
        etag = note.get("etag") if isinstance(note, dict) else None
        same = isinstance(note, dict) and note.get("sha256") == remote.sha256
        # Without a digest, only a strong validator says that the file there is still the same.
        known = remote.sha256 is not None or (isinstance(etag, str) and not etag.startswith("W/"))
        fits = remote.size is None or have <= remote.size
        if have and same and known and fits:
            self.etag = etag if isinstance(etag, str) else None
            return have
        self.forget()
        return 0

    def headers(self, done: int) -> dict[str, str]:
        if not done:
            return {}
        headers = {"Range": f"bytes={done}-"}
        if self.remote.sha256 is None and self.etag:
            headers["If-Range"] = self.etag
        return headers

    def remember(self, response: httpx2.Response, start: int) -> None:
        if start and self.path.exists():
            return
        self.etag = response.headers.get("ETag")
        note = {
            "url": self.remote.url.partition("?")[0],
            "name": self.remote.name,
            "sha256": self.remote.sha256,
            "size": self.remote.size,
            "etag": self.etag,
        }
        places.write_private(self.path, json.dumps(note, indent=2).encode() + b"\n")

    def forget(self) -> None:
        for path in (self.part, self.path, self.part.with_suffix(".chunks")):
            path.unlink(missing_ok=True)


def _start_of(response: httpx2.Response, done: int, remote: Remote) -> int | None:
    """Where the body begins in the file; None if there is nothing more to send."""
    if response.status_code == 416:
        stated = re.fullmatch(r"bytes \*/(\d+)", response.headers.get("Content-Range", ""))
        if stated and int(stated[1]) == done and remote.size in (None, done):
            return None
        raise too_long(remote)
    if response.status_code != 206:
        return 0
    stated = CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if stated is None or int(stated[1]) != done:
        raise DownloadError(text("hub.wrong_range", name=remote.name))
    if remote.size is not None and stated[3] not in ("*", str(remote.size)):
        raise too_long(remote)
    return done


def _total_of(response: httpx2.Response, start: int) -> int | None:
    length = response.headers.get("Content-Length", "")
    return start + int(length) if length.isdecimal() else None


def _write(file: BinaryIO, piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        written = file.write(view)
        view = view[written:]


def _say(progress: Progress | None, event: Transfer) -> None:
    if progress is not None:
        progress(event)
