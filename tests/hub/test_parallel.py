"""One file over several connections: whole, resumable after kill -9, and never spliced."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hub_server import HubServer, die_after, other_bytes, slowly, status, without_range
from insula.errors import ChecksumError, DownloadError
from insula.hub.download import fetch, transfer
from insula.hub.parallel import Plan, received
from insula.hub.remote_file import Fetched, Remote
from insula.hub.transport import Retry, Transfer, Transport

CHUNK = 64 << 10
DATA = random.Random(7).randbytes(40 * CHUNK + 1234)
SHA = hashlib.sha256(DATA).hexdigest()
PLAN = Plan(connections=4, chunk=CHUNK, span=8 * CHUNK, least=1)


@pytest.fixture
def remote(hub: HubServer) -> Remote:
    hub.add("o/r", {"m.gguf": DATA})
    return Remote(
        url=f"{hub.endpoint}/o/r/resolve/main/m.gguf", name="m", sha256=SHA, size=len(DATA)
    )


def get(remote: Remote, folder: Path, retry: Retry, plan: Plan = PLAN, progress=None) -> Fetched:
    with transfer(folder, remote, progress) as part, Transport(retry=retry) as transport:
        return fetch(transport, remote, part, progress=progress, plan=plan)


def spans(hub: HubServer) -> list[tuple[int, int]]:
    found = [re.fullmatch(r"bytes=(\d+)-(\d+)", s.headers["Range"]) for s in hub.bytes_requests()]
    return sorted((int(f[1]), int(f[2])) for f in found if f)


def test_it_arrives_in_spans_that_touch(hub, remote, tmp_path, quick):
    events: list[Transfer] = []
    fetched = get(remote, tmp_path, quick, progress=events.append)
    assert fetched.path.read_bytes() == DATA
    assert fetched.sha256 == SHA
    asked = spans(hub)
    assert len(asked) == 6
    assert asked[0][0] == 0
    assert asked[-1][1] == len(DATA) - 1
    assert all(a[1] + 1 == b[0] for a, b in itertools.pairwise(asked))
    done = [event.done for event in events if event.phase == "download"]
    assert done == sorted(done)
    assert done[-1] == len(DATA)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [fetched.path.name]
    if sys.platform != "win32":
        assert fetched.path.stat().st_mode & 0o077 == 0


def test_several_connections_are_open_at_once(hub, remote, tmp_path, quick):
    # Nobody is served before three are there: one connection alone would wait for ever.
    import threading

    together = threading.Barrier(3)

    def gathers(handler) -> bool:
        together.wait(timeout=30)
        return False

    hub.faults += [gathers] * 3
    assert get(remote, tmp_path, quick).path.read_bytes() == DATA
    assert not together.broken


@pytest.mark.parametrize(
    "faults",
    [
        [die_after(10_000)] * 3,
        [status(503), status(429, {"Retry-After": "0"}), status(500)],
        [die_after(0), status(503), die_after(CHUNK + 1)],
    ],
)
def test_faults_are_overcome(hub, remote, tmp_path, quick, faults):
    hub.faults += faults
    assert get(remote, tmp_path, quick).path.read_bytes() == DATA


def test_wrong_bytes_are_removed(hub, remote, tmp_path, quick):
    hub.faults += [other_bytes(bytes(len(DATA)))]
    with pytest.raises(ChecksumError, match=SHA):
        get(remote, tmp_path, quick)
    assert list(tmp_path.glob("*.*")) == []
    assert get(remote, tmp_path, quick).path.read_bytes() == DATA


def test_a_server_without_ranges_gets_one_stream(hub, remote, tmp_path, quick):
    hub.faults += [without_range] * 8
    assert get(remote, tmp_path, quick).path.read_bytes() == DATA
    assert hub.bytes_requests()[-1].headers.get("Range") is None
    assert not list(tmp_path.glob("*.chunks"))


def test_what_is_refused_for_good_ends_it_and_keeps_the_rest(hub, remote, tmp_path, quick):
    hub.faults += [*[lambda handler: False] * 4, status(403)]
    with pytest.raises(DownloadError, match="403"):
        get(remote, tmp_path, quick, Plan(connections=2, chunk=CHUNK, span=4 * CHUNK, least=1))
    (part,) = tmp_path.glob("*.part")
    kept = received(part)
    assert kept >= 4 * CHUNK
    before = len(hub.bytes_requests())
    assert get(remote, tmp_path, quick).path.read_bytes() == DATA
    again = [s.headers["Range"] for s in hub.bytes_requests()[before:]]
    asked = sum(int(b) - int(a) + 1 for a, b in (r[6:].split("-") for r in again))
    assert asked <= len(DATA) - kept + CHUNK


_CHILD = """
import sys
from pathlib import Path
from insula.hub.download import fetch, transfer
from insula.hub.remote_file import Remote
from insula.hub.parallel import Plan
from insula.hub.transport import Transport
url, sha, size, chunk, folder = sys.argv[1:]
remote = Remote(url=url, name="model.gguf", sha256=sha, size=int(size))
plan = Plan(connections=4, chunk=int(chunk), span=8 * int(chunk), least=1)
def progress(event):
    print(event.phase, event.done, flush=True)
with transfer(Path(folder), remote, progress) as part, Transport() as transport:
    fetch(transport, remote, part, progress=progress, plan=plan)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no kill -9 on Windows")
@pytest.mark.parametrize("when", [3 * CHUNK, 20 * CHUNK])
def test_kill_9_then_only_the_rest_is_fetched(hub, remote, tmp_path, quick, when):
    hub.faults += [slowly(0.02)] * 6
    command = [sys.executable, "-c", _CHILD, remote.url, SHA, str(len(DATA)), str(CHUNK)]
    with subprocess.Popen([*command, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            phase, done = line.split()
            if phase == "download" and int(done) >= when:
                process.send_signal(signal.SIGKILL)
                break
        process.wait()
    assert process.returncode == -signal.SIGKILL
    (part,) = tmp_path.glob("*.part")
    kept = received(part)
    # Of each of the four connections at most the chunk that it was in is lost.
    assert when - 4 * CHUNK <= kept < len(DATA)
    hub.faults.clear()
    before = len(hub.bytes_requests())
    assert get(remote, tmp_path, quick).path.read_bytes() == DATA
    ranges = [s.headers["Range"][6:].split("-") for s in hub.bytes_requests()[before:]]
    assert sum(int(b) - int(a) + 1 for a, b in ranges) == len(DATA) - kept


def half_done(remote: Remote, folder: Path, *, head: dict | None = None, lines: str = "") -> Path:
    """A part of which the first half is there, with its journal."""
    part = folder / f"{remote.key}.part"
    half = 20 * CHUNK
    part.write_bytes(DATA[:half] + bytes(len(DATA) - half))
    note = {"sha256": SHA, "size": len(DATA), "chunk": CHUNK, **(head or {})}
    text = json.dumps(note) + "\n" + (lines or "".join(f"{n}\n" for n in range(20)))
    part.with_suffix(".chunks").write_text(text)
    return part


def test_the_journal_is_believed_about_its_own_file(hub, remote, tmp_path, quick):
    half_done(remote, tmp_path)
    assert get(remote, tmp_path, quick).path.read_bytes() == DATA
    assert spans(hub)[0][0] == 20 * CHUNK


@pytest.mark.parametrize(
    "head", [{"sha256": "0" * 64}, {"size": len(DATA) + 1}, {"chunk": 0}, {"chunk": "x"}]
)
def test_a_journal_of_something_else_is_not(hub, remote, tmp_path, quick, head):
    half_done(remote, tmp_path, head=head)
    assert get(remote, tmp_path, quick).path.read_bytes() == DATA
    assert spans(hub)[0][0] == 0


def test_a_line_that_was_being_written_does_not_count(hub, remote, tmp_path, quick):
    half_done(remote, tmp_path, lines="".join(f"{n}\n" for n in range(19)) + "19")
    assert get(remote, tmp_path, quick).path.read_bytes() == DATA
    assert spans(hub)[0][0] == 19 * CHUNK


def test_a_journal_that_lies_is_found_out(hub, remote, tmp_path, quick):
    half_done(remote, tmp_path, lines="".join(f"{n}\n" for n in range(30)))
    with pytest.raises(ChecksumError):
        get(remote, tmp_path, quick)
    assert get(remote, tmp_path, quick).path.read_bytes() == DATA


def test_the_chunks_of_an_earlier_plan_are_kept(hub, remote, tmp_path, quick):
    half_done(remote, tmp_path)
    plan = Plan(connections=2, chunk=3 * CHUNK, span=9 * CHUNK, least=1)
    assert get(remote, tmp_path, quick, plan).path.read_bytes() == DATA
    assert spans(hub)[0][0] == 20 * CHUNK


def test_one_connection_is_one_stream(hub, remote, tmp_path, quick, monkeypatch):
    monkeypatch.setenv("INSULA_HUB_CONNECTIONS", "1")
    with transfer(tmp_path, remote, None) as part, Transport(retry=quick) as transport:
        assert fetch(transport, remote, part).path.read_bytes() == DATA
    assert [s.headers.get("Range") for s in hub.bytes_requests()] == [None]


def test_a_stream_that_was_begun_stays_one(hub, remote, tmp_path, quick):
    hub.faults += [die_after(CHUNK)]
    one = Plan(connections=1)
    with pytest.raises(DownloadError):
        get(remote, tmp_path, Retry(first=0.001, attempts=1), one)
    assert not list(tmp_path.glob("*.chunks"))
    hub.faults.clear()
    assert get(remote, tmp_path, quick).path.read_bytes() == DATA
    assert hub.bytes_requests()[-1].headers["Range"] == f"bytes={CHUNK}-"


def test_ctrl_c_stops_the_threads_and_keeps_what_came(hub, remote, tmp_path, quick):
    hub.faults += [slowly(0.01)] * 6

    def impatient(event: Transfer) -> None:
        if event.phase == "download" and event.done > 10 * CHUNK:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get(remote, tmp_path, quick, progress=impatient)
    assert not list(tmp_path.glob("*.lock"))
    hub.faults.clear()
    assert get(remote, tmp_path, quick).path.read_bytes() == DATA
