"""The folder of pages: what is put comes back, what is damaged is not believed, and what goes is
what was used longest ago."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from engine.page_folder import FILE_BYTES, PAGE_TOKENS, ROOT, get, page_files, page_of, put
from insula.engine.page_files import PageFiles


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in (folder / "kv").iterdir())


class Folder(RuleBasedStateMachine):
    """Prefixes of pages of one or two tokens' choice, in a folder that holds eight files."""

    MOST = 8

    @initialize()
    def begin(self) -> None:
        import tempfile

        self.folder = Path(tempfile.mkdtemp())
        self.files = page_files(self.folder, most=self.MOST)
        self.clock = 1_000_000_000

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)

    @rule(way=st.lists(st.integers(0, 1), min_size=1, max_size=5))
    def put_way(self, way: list[int]) -> None:
        """A prefix, page by page, as an engine computes them."""
        parent = ROOT
        for i, token in enumerate(way):
            parent = put(self.files, parent, (token,) * PAGE_TOKENS, page_of(*way[: i + 1]))

    @rule(way=st.lists(st.integers(0, 1), min_size=1, max_size=5))
    def get_way(self, way: list[int]) -> None:
        parent = ROOT
        for i, token in enumerate(way):
            tokens = (token,) * PAGE_TOKENS
            found = get(self.files, parent, tokens)
            key = self.files.child(parent, tokens)
            if found is None:
                assert not (self.folder / "kv" / f"{parent.hex()}-{key.hex()}.page").exists()
                break
            assert found == page_of(*way[: i + 1]).tobytes()
            parent = key

    @rule()
    def restart(self) -> None:
        self.files = page_files(self.folder, most=self.MOST)

    @invariant()
    def bounded_and_reachable(self) -> None:
        if not hasattr(self, "folder"):
            return
        found = [name.removesuffix(".page").split("-") for name in names(self.folder)]
        assert len(found) <= self.MOST
        keys = {key for _, key in found} | {ROOT.hex()}
        assert all(parent in keys for parent, _ in found)


TestFolder = Folder.TestCase
TestFolder.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)


@pytest.fixture
def one(tmp_path: Path) -> tuple[PageFiles, Path]:
    """A folder with one page, and its file."""
    files = page_files(tmp_path)
    put(files, ROOT, (1, 2, 3, 4), page_of(1))
    return files, tmp_path / "kv" / names(tmp_path)[0]


def test_a_flipped_bit_anywhere_is_seen(one: tuple[PageFiles, Path]) -> None:
    files, path = one
    good = path.read_bytes()
    assert len(good) == FILE_BYTES
    assert get(files, ROOT, (1, 2, 3, 4)) == page_of(1).tobytes()
    for at in range(len(good)):
        bad = bytearray(good)
        bad[at] ^= 1 << (at % 8)
        path.write_bytes(bad)
        assert get(files, ROOT, (1, 2, 3, 4)) is None, at


def test_a_file_of_another_length_or_another_page_is_not_believed(
    one: tuple[PageFiles, Path],
) -> None:
    files, path = one
    good = path.read_bytes()
    for bad in (b"", good[:7], good[:-1], good + b"\0", bytes(len(good)), b"GGUF" + good[4:]):
        path.write_bytes(bad)
        assert get(files, ROOT, (1, 2, 3, 4)) is None
    path.write_bytes(good)
    other = files.child(ROOT, (5, 6, 7, 8))
    path.rename(path.with_name(f"{ROOT.hex()}-{other.hex()}.page"))
    assert get(files, ROOT, (1, 2, 3, 4)) is None
    assert get(files, ROOT, (5, 6, 7, 8)) is None


@pytest.mark.skipif(sys.platform == "win32", reason="needs links and pipes")
def test_what_is_no_file_is_not_followed_nor_waited_for(one: tuple[PageFiles, Path]) -> None:
    files, path = one
    elsewhere = path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(elsewhere)
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
        get(files, ROOT, (1, 2, 3, 4))
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(OSError, match=os.strerror(errno.ESPIPE)):
        get(files, ROOT, (1, 2, 3, 4))


def test_tokens_of_a_file_are_believed_only_under_their_key(one: tuple[PageFiles, Path]) -> None:
    files, path = one
    put(files, ROOT, (9,), page_of(9))
    assert len(files.children(ROOT)) == 2
    found = set()
    for key in files.children(ROOT):
        opened = files.open(ROOT, key, ahead=False)
        assert opened is not None
        found.add(files.tokens(opened))
        os.close(opened.file)
    assert found == {(1, 2, 3, 4), (9,)}
    raw = bytearray(path.read_bytes())
    raw[64] ^= 1
    path.write_bytes(raw)
    opened = files.open(ROOT, files.child(ROOT, (1, 2, 3, 4)))
    assert opened is not None
    assert files.tokens(opened) is None
    os.close(opened.file)


def test_a_page_is_written_once(one: tuple[PageFiles, Path]) -> None:
    files, path = one
    before = path.stat()
    put(files, ROOT, (1, 2, 3, 4), page_of(1))
    put(page_files(path.parent.parent), ROOT, (1, 2, 3, 4), page_of(1))
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert len(names(path.parent.parent)) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
def test_files_are_the_users_alone(one: tuple[PageFiles, Path], tmp_path: Path) -> None:
    _, path = one
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    path.parent.chmod(0o777)
    page_files(tmp_path)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    if os.geteuid() == 0:
        os.chown(path.parent, 1, 1)
        with pytest.raises(PermissionError):
            page_files(tmp_path)


def test_the_longest_unused_goes_first_and_a_use_counts_for_what_it_goes_on_from(
    tmp_path: Path,
) -> None:
    files = page_files(tmp_path, most=4)
    keys = {}
    for first in (1, 2):
        parent = put(files, ROOT, (first,) * 4, page_of(first))
        keys[first] = parent, put(files, parent, (7,) * 4, page_of(first, 7))
    for path in (tmp_path / "kv").iterdir():
        os.utime(path, (1000, 1000))
    opened = files.open(keys[1][0], keys[1][1])  # the last page of the first prefix
    assert opened is not None
    files.used(opened)
    os.close(opened.file)
    put(files, ROOT, (3,) * 4, page_of(3))
    assert get(files, ROOT, (1,) * 4) is not None
    assert get(files, keys[1][0], (7,) * 4) is not None
    assert get(files, keys[2][0], (7,) * 4) is None
    put(files, ROOT, (4,) * 4, page_of(4))
    assert get(files, ROOT, (2,) * 4) is None
    assert len(names(tmp_path)) == 4


def test_other_files_are_left_alone_and_litter_is_cleared(tmp_path: Path) -> None:
    files = page_files(tmp_path, most=2)
    folder = tmp_path / "kv"
    mine = folder / "notes.txt"
    mine.write_bytes(bytes(10 * FILE_BYTES))
    old, new = (folder / f".{c * 16}.unfinished" for c in "ab")
    old.write_bytes(bytes(FILE_BYTES))
    new.write_bytes(b"")
    os.utime(old, (1000, 1000))
    for token in range(5):
        put(files, ROOT, (token,), page_of(token))
    assert mine.exists()
    assert new.exists()
    assert not old.exists()
    assert len(list(folder.glob("*.page"))) == 2


def test_a_bound_below_one_page_keeps_nothing(tmp_path: Path) -> None:
    files = page_files(tmp_path, most=0)
    put(files, ROOT, (1,), page_of(1))
    assert names(tmp_path) == []


WRITE_FOR_EVER = f"""
import itertools, sys
sys.path[:0] = {[str(Path(__file__).parents[1])]!r}
from pathlib import Path
from engine.page_folder import *
files = page_files(Path(sys.argv[1]), most=200)
print("begun", flush=True)
for n in itertools.count(int(sys.argv[2])):
    put(files, ROOT, (n, 0, 0, 0), page_of(n))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_kill_9_while_several_write_leaves_only_whole_pages(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    for _ in range(3):
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", WRITE_FOR_EVER, str(tmp_path), str(start)],
                stdout=subprocess.PIPE,
            )
            for start in (0, 0, 5000)
        ]
        for writer in writers:
            assert writer.stdout is not None
            writer.stdout.readline()
        time.sleep(random.uniform(0.02, 0.3))
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
            writer.wait()
            assert writer.stdout is not None
            writer.stdout.close()
        files = page_files(tmp_path)
        written = list((tmp_path / "kv").glob("*.page"))
        assert written
        # Each process keeps the bound; between two counts of the folder the others may add to it.
        assert len(written) <= 200 + 3 * 200 // 16
        for path in written:
            key = bytes.fromhex(path.stem.split("-")[1])
            opened = files.open(ROOT, key)
            assert opened is not None
            tokens = files.tokens(opened)
            os.close(opened.file)
            assert tokens is not None
            assert get(files, ROOT, tokens) == page_of(tokens[0]).tobytes()
