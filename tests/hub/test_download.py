"""Downloads over a bad network: what arrives is whole, what does not can be resumed."""

from __future__ import annotations

import collections
import errno
import hashlib
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hub_server import (
    HubServer,
    die_after,
    hang_up,
    other_bytes,
    passes,
    slowly,
    status,
    without_range,
)
from insula.errors import (
    ChecksumError,
    ConfigError,
    DownloadError,
    NotFoundError,
    OfflineError,
    ResourceError,
)
from insula.hub import download, remote_file
from insula.hub.download import fetch, transfer
from insula.hub.remote_file import Fetched, Remote
from insula.hub.transport import Retry, Transfer, Transport

DATA = random.Random(7).randbytes(3_000_000)
SHA = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def remote(hub: HubServer) -> Remote:
    hub.blobs[SHA] = DATA
    return Remote(url=f"{hub.cdn}/blobs/{SHA}", name="model.gguf", sha256=SHA, size=len(DATA))


def get(remote: Remote, folder: Path, retry: Retry, **options) -> Fetched:
    with transfer(folder, remote, None) as part, Transport(retry=retry) as transport:
        return fetch(transport, remote, part, **options)


def ranges(hub: HubServer) -> list[str | None]:
    return [seen.headers.get("Range") for seen in hub.bytes_requests()]


def test_a_file_arrives_whole_and_private(hub, remote, tmp_path, quick):
    events: list[Transfer] = []
    fetched = get(remote, tmp_path / "p", quick, progress=events.append)
    assert fetched.path.read_bytes() == DATA
    assert (fetched.sha256, fetched.size) == (SHA, len(DATA))
    assert fetched.path.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "p").stat().st_mode & 0o777 == 0o700
    done = [event.done for event in events if event.phase == "download"]
    assert done == sorted(done)
    assert done[-1] == len(DATA) == events[-1].total
    assert list((tmp_path / "p").iterdir()) == [fetched.path]  # no lock, no note left behind


def test_a_dying_connection_is_resumed_where_it_died(hub, remote, tmp_path, quick):
    hub.faults += [die_after(1_000_000), die_after(500_000), hang_up]
    fetched = get(remote, tmp_path, quick)
    assert fetched.path.read_bytes() == DATA
    assert ranges(hub) == [None, "bytes=1000000-", "bytes=1500000-", "bytes=1500000-"]


@pytest.mark.parametrize("code", [429, 500, 502, 503, 504, 408])
def test_a_busy_server_is_asked_again(hub, remote, tmp_path, quick, code):
    hub.faults += [status(code), status(code)]
    assert get(remote, tmp_path, quick).sha256 == SHA
    assert len(hub.bytes_requests()) == 3


def test_retry_after_is_obeyed(hub, remote, tmp_path, monkeypatch):
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    hub.faults += [status(429, {"Retry-After": "7"})]
    assert get(remote, tmp_path, Retry()).sha256 == SHA
    assert 7.0 in pauses


def test_a_retry_after_that_is_too_long_is_an_error_at_once(hub, remote, tmp_path, quick):
    hub.faults += [status(429, {"Retry-After": "3600"})]
    with pytest.raises(DownloadError, match="429") as caught:
        get(remote, tmp_path, quick)
    assert caught.value.retryable
    assert len(hub.bytes_requests()) == 1


def test_retries_are_bounded(hub, remote, tmp_path, quick):
    hub.faults += [status(503)] * 50
    with pytest.raises(DownloadError, match="503"):
        get(remote, tmp_path, quick)
    assert len(hub.bytes_requests()) == quick.attempts


def test_a_server_that_drips_and_dies_is_given_up(hub, remote, tmp_path, quick):
    hub.faults += [die_after(1000)] * 50
    with pytest.raises(DownloadError):
        get(remote, tmp_path, quick)
    assert len(hub.bytes_requests()) == quick.attempts
    hub.faults.clear()
    assert get(remote, tmp_path, quick).sha256 == SHA
    assert ranges(hub)[-1] == f"bytes={1000 * quick.attempts}-"  # what did arrive was kept


def test_progress_forgives_earlier_failures(hub, remote, tmp_path):
    hub.faults += [hang_up, die_after(1 << 20), hang_up, die_after(1 << 20), hang_up]
    retry = Retry(attempts=3, first=0.001, longest=0.002)
    assert get(remote, tmp_path, retry).sha256 == SHA


def test_wrong_bytes_are_a_checksum_error_and_are_removed(hub, remote, tmp_path, quick):
    hub.faults += [other_bytes(bytes(len(DATA)))]
    with pytest.raises(ChecksumError, match=SHA):
        get(remote, tmp_path, quick)
    assert list(tmp_path.iterdir()) == []
    assert get(remote, tmp_path, quick).sha256 == SHA


@pytest.mark.parametrize("extra", [b"x", bytes(100_000)])
def test_more_bytes_than_promised_are_refused(hub, remote, tmp_path, quick, extra):
    hub.faults += [other_bytes(DATA + extra)]
    with pytest.raises(ChecksumError):
        get(remote, tmp_path, quick)
    assert list(tmp_path.iterdir()) == []


def test_a_file_shorter_than_promised_never_counts_as_whole(hub, remote, tmp_path, quick):
    hub.faults += [other_bytes(DATA[:-10])] + [status(503)] * 9
    with pytest.raises(DownloadError):
        get(remote, tmp_path, quick)
    hub.faults.clear()
    assert get(remote, tmp_path, quick).path.read_bytes() == DATA


def test_a_server_without_ranges_is_started_over(hub, remote, tmp_path, quick):
    hub.faults += [die_after(2_000_000), without_range]
    assert get(remote, tmp_path, quick).path.read_bytes() == DATA
    assert len(hub.bytes_requests()) == 2


def test_without_a_digest_the_file_must_still_be_the_same(hub, tmp_path, quick):
    """The first file's head is never joined to the second file's tail."""
    first, second = DATA, DATA[::-1]
    hub.blobs["file"] = first
    remote = Remote(url=f"{hub.cdn}/blobs/file", name="file")
    hub.faults += [die_after(1_500_000)] + [status(503)] * 10
    with pytest.raises(DownloadError):
        get(remote, tmp_path, quick)
    hub.blobs["file"] = second
    hub.faults.clear()
    assert get(remote, tmp_path, quick).path.read_bytes() == second
    assert (
        hub.bytes_requests()[-1].headers["If-Range"].strip('"') == hashlib.sha256(first).hexdigest()
    )


def test_without_digest_or_validator_it_starts_over(hub, tmp_path, quick):
    hub.etags = False
    hub.blobs["file"] = DATA
    remote = Remote(url=f"{hub.cdn}/blobs/file", name="file")
    hub.faults += [die_after(1_500_000)] + [status(503)] * 10
    with pytest.raises(DownloadError):
        get(remote, tmp_path, quick)
    hub.faults.clear()
    hub.seen.clear()
    assert get(remote, tmp_path, quick).path.read_bytes() == DATA
    assert ranges(hub) == [None]


def test_a_part_of_another_file_is_not_continued(hub, remote, tmp_path, quick):
    part = tmp_path / f"{remote.key}.part"
    part.write_bytes(b"something else entirely")
    assert get(remote, tmp_path, quick).path.read_bytes() == DATA
    assert ranges(hub) == [None]


def test_a_damaged_part_is_found_out(hub, remote, tmp_path, quick):
    hub.faults += [die_after(2_000_000)] + [status(503)] * 10
    with pytest.raises(DownloadError):
        get(remote, tmp_path, quick)
    hub.faults.clear()
    part = tmp_path / f"{remote.key}.part"
    with part.open("r+b") as file:
        file.write(b"\0" * 4096)
    with pytest.raises(ChecksumError):
        get(remote, tmp_path, quick)
    assert get(remote, tmp_path, quick).path.read_bytes() == DATA


def test_nobody_there(tmp_path, quick, monkeypatch):
    remote = Remote(url="http://127.0.0.1:1/x", name="x", sha256=SHA, size=5)
    with pytest.raises(OfflineError, match=r"127\.0\.0\.1") as caught:
        get(remote, tmp_path, quick)
    assert caught.value.retryable


@pytest.mark.parametrize("key", ["INSULA_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_by_choice_asks_nobody(hub, remote, tmp_path, quick, monkeypatch, key):
    monkeypatch.setenv(key, "1")
    with pytest.raises(OfflineError, match=key) as caught:
        get(remote, tmp_path, quick)
    assert not caught.value.retryable
    assert hub.seen == []


@pytest.mark.parametrize(
    ("code", "kind"), [(401, DownloadError), (403, DownloadError), (404, NotFoundError)]
)
def test_refusals_are_not_repeated(hub, remote, tmp_path, quick, code, kind):
    hub.faults += [status(code)]
    with pytest.raises(kind, match=str(code)):
        get(remote, tmp_path, quick)
    assert len(hub.bytes_requests()) == 1


def test_too_little_space_is_an_error_before_the_first_byte(hub, tmp_path, quick):
    remote = Remote(url=f"{hub.cdn}/blobs/x", name="x", sha256=SHA, size=1 << 60)
    with pytest.raises(ResourceError, match="disk space"):
        get(remote, tmp_path, quick)
    assert hub.seen == []


def test_a_size_learned_late_is_checked_too(hub, tmp_path, quick, monkeypatch):
    hub.blobs["file"] = DATA
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(remote_file.shutil, "disk_usage", lambda _: usage(9, 9, remote_file.SPARE))
    with pytest.raises(ResourceError, match="disk space"):
        get(Remote(url=f"{hub.cdn}/blobs/file", name="file"), tmp_path, quick)


def test_a_disk_that_fills_up_keeps_what_arrived(hub, remote, tmp_path, quick, monkeypatch):
    whole = download._write
    written = 0

    def fills_up(file, piece):
        nonlocal written
        written += len(piece)
        if written > 1_000_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        whole(file, piece)

    monkeypatch.setattr(download, "_write", fills_up)
    with pytest.raises(ResourceError, match="full"):
        get(remote, tmp_path, quick)
    kept = (tmp_path / f"{remote.key}.part").stat().st_size
    assert 900_000 < kept <= 1_000_000
    monkeypatch.undo()
    monkeypatch.setenv("NO_PROXY", "*")
    assert get(remote, tmp_path, quick).path.read_bytes() == DATA
    assert ranges(hub)[-1] == f"bytes={kept}-"


def test_ctrl_c_leaves_a_part_that_resumes(hub, remote, tmp_path, quick):
    def impatient(event: Transfer) -> None:
        if event.done > 1_000_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get(remote, tmp_path, quick, progress=impatient)
    kept = (tmp_path / f"{remote.key}.part").stat().st_size
    assert kept > 1_000_000
    assert not list(tmp_path.glob("*.lock"))
    assert get(remote, tmp_path, quick).path.read_bytes() == DATA
    assert ranges(hub) == [None, f"bytes={kept}-"]


_CHILD = """
import sys
from pathlib import Path
from insula.hub.download import fetch, transfer
from insula.hub.remote_file import Remote
from insula.hub.transport import Transport
url, sha, size, folder = sys.argv[1:]
remote = Remote(url=url, name="model.gguf", sha256=sha, size=int(size))
def progress(event):
    print(event.phase, event.done, flush=True)
with transfer(Path(folder), remote, progress) as part, Transport() as transport:
    fetch(transport, remote, part, progress=progress)
print("finished", flush=True)
"""


def child(remote: Remote, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _CHILD, remote.url, SHA, str(len(DATA)), str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no kill -9 on Windows")
def test_kill_9_in_the_middle_then_resume(hub, remote, tmp_path, quick):
    hub.faults += [slowly(0.02)]
    with child(remote, tmp_path) as process:
        assert process.stdout is not None
        for line in process.stdout:
            phase, done = line.split()
            if phase == "download" and int(done) >= 1_000_000:
                process.send_signal(signal.SIGKILL)
                break
        process.wait()
    assert process.returncode == -signal.SIGKILL
    kept = (tmp_path / f"{remote.key}.part").stat().st_size
    assert 1_000_000 <= kept < len(DATA)
    events: list[Transfer] = []
    assert get(remote, tmp_path, quick, progress=events.append).path.read_bytes() == DATA
    assert ranges(hub) == [None, f"bytes={kept}-"]
    assert events[0].phase == "check"  # what was there went through the digest again


def test_two_processes_do_not_fight(hub, remote, tmp_path, quick):
    hub.faults += [slowly(0.02)]
    with child(remote, tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("download")
        events: list[Transfer] = []
        with transfer(tmp_path, remote, events.append) as part:
            assert part.read_bytes() == DATA  # the other one has finished
        process.wait()
    assert process.returncode == 0
    assert [event.phase for event in events] == ["wait"]
    assert ranges(hub) == [None]


def test_the_token_stays_with_its_origin(hub, tmp_path, quick):
    hub.add("o/r", {"m.gguf": DATA})
    remote = Remote(
        url=f"{hub.endpoint}/o/r/resolve/main/m.gguf", name="m", sha256=SHA, size=len(DATA)
    )
    with (
        transfer(tmp_path, remote, None) as part,
        Transport(retry=quick, token="hf_secret", token_for=hub.endpoint) as transport,
    ):
        fetch(transport, remote, part)
    by_side = {seen.side: seen.headers for seen in hub.seen}
    assert by_side["hub"]["Authorization"] == "Bearer hf_secret"
    assert "Authorization" not in by_side["cdn"]


@pytest.mark.parametrize(
    ("location", "problem"),
    [("file:///etc/passwd", "redirect"), ("", "redirect"), ("ftp://127.0.0.1/x", "redirect")],
)
def test_redirects_to_elsewhere_are_refused(hub, remote, tmp_path, quick, location, problem):
    hub.faults += [status(302, {"Location": location})]
    with pytest.raises(DownloadError, match=problem):
        get(remote, tmp_path, quick)


def test_redirect_loops_end(hub, remote, tmp_path, quick):
    hub.faults += [status(302, {"Location": remote.url})] * 50
    with pytest.raises(DownloadError, match="too many"):
        get(remote, tmp_path, quick)
    assert len(hub.seen) < 10


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/x", "http://", "nonsense"])
def test_an_address_that_is_none(url, tmp_path, quick):
    with pytest.raises(ConfigError):
        get(Remote(url=url, name="x"), tmp_path, quick)


def test_a_proxy_is_honoured(hub, tmp_path, quick, monkeypatch):
    """The hub's own port stands in as the proxy: it sees the whole foreign address."""
    hub.api_faults += [passes]
    monkeypatch.setenv("HTTP_PROXY", hub.endpoint)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    remote = Remote(url="http://models.invalid/x", name="x", sha256=SHA, size=1)
    with pytest.raises(NotFoundError):
        get(remote, tmp_path, quick)
    assert hub.seen[0].path == "http://models.invalid/x"


def test_messages_hide_signatures(hub, remote, tmp_path, quick):
    hub.faults += [status(403)]
    signed = Remote(url=remote.url + "?X-Signature=secret", name="m", sha256=SHA, size=len(DATA))
    with pytest.raises(DownloadError) as caught:
        get(signed, tmp_path, quick)
    assert "secret" not in str(caught.value)


def test_a_whole_part_without_a_note_is_kept_if_it_is_right(hub, remote, tmp_path, quick):
    part = get(remote, tmp_path, quick).path
    assert not part.with_suffix(".json").exists()
    count = len(hub.bytes_requests())
    assert get(remote, tmp_path, quick).path.read_bytes() == DATA
    assert len(hub.bytes_requests()) == count
    part.write_bytes(bytes(len(DATA)))  # as long, and not it
    assert get(remote, tmp_path, quick).path.read_bytes() == DATA
    assert len(hub.bytes_requests()) == count + 1
