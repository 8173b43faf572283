"""The guarded mapping: whose SIGBUS is whose, and how long a view lives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest

from insula import _native

posix = pytest.mark.skipif(os.name != "posix", reason="SIGBUS is a matter of POSIX")


def test_it_is_a_read_only_buffer(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"island")
    mapping = _native.Mapping(path)
    assert bytes(memoryview(mapping)) == b"island"
    assert len(mapping) == 6
    assert memoryview(mapping).readonly
    with pytest.raises(ValueError, match="read-only"):
        np.frombuffer(mapping.view(), np.uint8)[0] = 1


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    mapping = _native.Mapping(tmp_path / "x")
    assert bytes(mapping.view()) == b""
    mapping.drop(0, 100)
    mapping.close()


def test_closing(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(10_000))
    mapping = _native.Mapping(path)
    view = np.frombuffer(mapping.view(), np.uint8)
    with pytest.raises(BufferError, match="still shown"):
        mapping.close()
    assert not mapping.closed
    del view
    mapping.close()
    mapping.close()
    assert mapping.closed
    with pytest.raises(ValueError, match="closed"):
        mapping.view()


def test_a_view_keeps_the_mapping(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"a" * 10_000)
    view = np.frombuffer(_native.Mapping(path).view(), np.uint8)
    path.unlink()
    assert view.sum() == 10_000 * ord("a")


def test_dropped_pages_come_back(tmp_path: Path) -> None:
    path = tmp_path / "x"
    content = np.random.default_rng(0).integers(0, 256, 1 << 20, dtype=np.uint8)
    path.write_bytes(content.tobytes())
    mapping = _native.Mapping(path)
    view = np.frombuffer(mapping.view(), np.uint8)
    for offset, length in [(0, 1 << 20), (5, 9000), (1 << 19, 1 << 30), (2**63, 2**63), (7, 0)]:
        mapping.drop(offset, length)
        np.testing.assert_array_equal(view, content)


@posix
def test_dropping_lowers_resident_memory(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(64 << 20))
    mapping = _native.Mapping(path)
    view = np.frombuffer(mapping.view(), np.uint8)

    def resident() -> int:
        statm = Path("/proc/self/statm")
        if not statm.exists():
            pytest.skip("no /proc here")
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    view.sum()
    before = resident()
    mapping.drop(0, 64 << 20)
    assert before - resident() > 48 << 20


@posix
def test_every_lost_byte_reads_as_zero(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"\xff" * 500_000)
    mapping = _native.Mapping(path)
    view = np.frombuffer(mapping.view(), np.uint8)
    os.truncate(path, 100_000)
    seen: list[int] = []
    # On threads, as the engine reads: the handler runs on whichever one meets the hole.

    def read(view: np.ndarray) -> None:
        seen.append(int(view.sum()))

    threads = [threading.Thread(target=read, args=(view,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [100_000 * 255] * 4
    assert mapping.poisoned
    del view, threads, thread
    mapping.close()
    assert mapping.poisoned  # it stays said
    path.write_bytes(b"\xff" * 500_000)
    again = _native.Mapping(path)  # in the place the first one had
    assert np.frombuffer(again.view(), np.uint8).min() == 255
    assert not again.poisoned


def child(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    preamble = "import mmap, os, signal, sys\nfrom insula import _native\n"
    return subprocess.run(
        [sys.executable, "-c", preamble + textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


STRANGER = """
    path = sys.argv[1]
    ours = _native.Mapping(path)
    with open(path + '.other', 'w+b') as file:
        file.write(bytes(100_000)); file.flush()
        theirs = mmap.mmap(file.fileno(), 100_000)
        file.truncate(0)
        print('reading', flush=True)
        theirs[50_000]
    print('alive')
"""


@posix
@pytest.mark.parametrize("order", ["", "before", "after"])
def test_a_strangers_fault_is_still_fatal(tmp_path: Path, order: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(10_000))
    handler = "import faulthandler; faulthandler.enable()"
    code = textwrap.dedent(STRANGER)
    if order == "before":
        code = f"{handler}\n{code}"
    elif order == "after":
        code = code.replace("with open", f"{handler}\nwith open", 1)
    done = child(code, str(path))
    assert done.returncode == -signal.SIGBUS
    assert "alive" not in done.stdout
    assert ("Bus error" in done.stderr) == (order != "")


@posix
def test_our_fault_with_a_handler_that_came_later(tmp_path: Path) -> None:
    """faulthandler after the first mapping: the next mapping puts the guard on top again."""
    path = tmp_path / "x"
    path.write_bytes(bytes(100_000))
    done = child(
        """
        import faulthandler
        path = sys.argv[1]
        first = _native.Mapping(path)
        faulthandler.enable()
        second = _native.Mapping(path)
        os.truncate(path, 0)
        print(bytes(second.view())[50_000], bytes(first.view())[50_000])
        print(first.poisoned, second.poisoned)
        """,
        str(path),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0", "0", "True", "True"]
    assert not done.stderr


@posix
def test_a_sent_sigbus_goes_to_whom_it_went_before(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(100))
    send = "mapping = _native.Mapping(sys.argv[1])\nos.kill(os.getpid(), signal.SIGBUS)\n"
    assert child(send + "print('alive')", str(path)).returncode == -signal.SIGBUS
    ignored = child(
        "signal.signal(signal.SIGBUS, signal.SIG_IGN)\n" + send + "print('alive')", str(path)
    )
    assert ignored.stdout == "alive\n"
    handled = child(
        "signal.signal(signal.SIGBUS, lambda *_: print('handled'))\n" + send * 2 + "print('alive')",
        str(path),
    )
    assert handled.stdout == "handled\nhandled\nalive\n"


@posix
def test_many_mappings_at_once(tmp_path: Path) -> None:
    """More than any fixed table, in threads that open and close while files shrink."""
    errors: list[str] = []

    def work(n: int) -> None:
        for i in range(40):
            path = tmp_path / f"{n}-{i}"
            path.write_bytes(b"\x01" * 20_000)
            mapping = _native.Mapping(path)
            view = np.frombuffer(mapping.view(), np.uint8)
            if i % 2:
                os.truncate(path, 8192)
                if view.sum() != 8192 or not mapping.poisoned:
                    errors.append(f"{path} truncated")
            elif view.sum() != 20_000 or mapping.poisoned:
                errors.append(f"{path} whole")
            if i % 3:
                del view
                mapping.close()
            path.unlink()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        _native.Mapping(tmp_path / "nothing")
    with pytest.raises(OSError, match=r".+"):
        _native.Mapping(tmp_path)
    with pytest.raises(TypeError):
        _native.Mapping(7)


def strings(*items: bytes) -> np.ndarray:
    raw = b"".join(len(item).to_bytes(8, "little") + item for item in items)
    return np.frombuffer(raw, np.uint8)


def test_scan_strings() -> None:
    data = strings(b"uno", b"", b"tres")
    blob, offsets, end = _native.scan_strings(data, 0, 3, 1000)
    assert blob.tobytes() == b"unotres"
    assert offsets.tolist() == [0, 3, 3, 7]
    assert end == len(data)
    assert _native.scan_strings(data, 11, 1, 1000)[2] == 19  # from the middle
    blob, offsets, end = _native.scan_strings(data, len(data), 0, 0)
    assert (len(blob), offsets.tolist(), end) == (0, [0], len(data))


def test_scan_strings_says_where_the_data_ends() -> None:
    with pytest.raises(ValueError, match="cut") as caught:
        _native.scan_strings(strings(b"a long string", b"", b""), 0, 4, 1000)
    assert caught.value.args == ("cut", 37)


@pytest.mark.parametrize(
    ("start", "count", "budget", "expected"),
    [
        (0, 4, 1000, ("cut", 0)),  # 31 bytes cannot hold four lengths
        (0, 2**64 - 1, 2**64 - 1, ("cut", 0)),
        (2**64 - 1, 1, 1000, ("cut", 31)),
        (1, 1, 1000, ("cut", 1)),  # a length of 2^56
        (0, 3, 30, ("too_large", 19)),
        (0, 3, 23, ("too_large", 0)),
    ],
)
def test_scan_strings_refuses(
    start: int, count: int, budget: int, expected: tuple[str, int]
) -> None:
    data = strings(b"uno", b"", b"tres")
    with pytest.raises(ValueError, match=expected[0]) as caught:
        _native.scan_strings(data, start, count, budget)
    assert caught.value.args == expected
