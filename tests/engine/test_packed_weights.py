"""Weights in a file: the same numbers, made once, shared, and never believed when damaged."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from golden import golden
from insula import LLM, _native
from insula.engine import packed_weights
from insula.engine.packed_weights import open_packed, sweep
from insula.engine.runner import NativeRunner, matrices
from insula.engine.whole_numbers import kept_as
from insula.errors import ConfigError, FormatError, ResourceError
from insula.models.load import open_model
from insula.models.quantize import quantize_file
from insula.ops.reference import forward

GREEDY = {"max_tokens": 12, "temperature": 0.0, "ignore_eos": True}
IDS = [5, 6, 7, 8]


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("INSULA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def runner(path: Path, home: Path | None, key: bytes = b"k") -> NativeRunner:
    with open_model(path) as model:
        packed = None if home is None else (home, key)
        return NativeRunner(model.graph, model.gguf, n_pages=4, packed=packed)


def logits(r: NativeRunner) -> np.ndarray:
    table = np.arange(2, dtype=np.int32)
    n = 70
    found = r.step(np.arange(n) % r.n_vocab, np.arange(n), np.zeros(n), [table], np.arange(n))
    r.close()
    return found


def packed_file(home: Path) -> Path:
    (found,) = (p for p in (home / "packed").iterdir() if p.suffix != ".lock")
    return found


def test_tensors_that_are_used_by_rows(tmp_path, home) -> None:
    path = tmp_path / "q8.gguf"
    quantize_file(golden.load("phi").write(tmp_path), path, "Q8_0", pure=True)
    expected = logits(runner(path, None))
    assert np.array_equal(logits(runner(path, home)), expected)
    with open_model(path) as model:
        assert any(name.endswith("]") for name in matrices(model.graph))
        exact = forward(model.graph, model.gguf, np.arange(70))
    assert np.abs(expected - exact).mean() < 0.05 * exact.std()


def test_the_same_bits_and_packed_once(tiny_model, home, monkeypatch) -> None:
    expected = logits(runner(tiny_model, None))
    assert np.array_equal(logits(runner(tiny_model, home)), expected)
    file = packed_file(home)
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    before = file.stat()
    monkeypatch.setattr(packed_weights, "_make", None)  # would be called
    assert np.array_equal(logits(runner(tiny_model, home)), expected)
    assert file.stat().st_mtime_ns == before.st_mtime_ns


def test_through_the_front_door(tiny_model, home) -> None:
    with LLM(tiny_model, n_ctx=128) as llm:
        expected = llm.generate(IDS, **GREEDY).token_ids
    for _ in range(2):
        with LLM(tiny_model, n_ctx=128, weights="mmap") as llm:
            assert llm.generate(IDS, **GREEDY).token_ids == expected
    with pytest.raises(ConfigError, match="allowed: memory, mmap"):
        LLM(tiny_model, weights="disk")


@pytest.mark.parametrize("place", [3, 20, 200, -9000, -20000])
def test_a_flipped_byte_is_found_and_mended(tiny_model, home, place) -> None:
    expected = logits(runner(tiny_model, home))
    file = packed_file(home)
    raw = bytearray(file.read_bytes())
    raw[place] ^= 16
    file.write_bytes(raw)
    assert np.array_equal(logits(runner(tiny_model, home)), expected)
    assert packed_file(home).read_bytes() != bytes(raw)


@pytest.mark.parametrize("length", [0, 7, 100, 5000, -1])
def test_a_short_file_is_made_anew(tiny_model, home, length) -> None:
    expected = logits(runner(tiny_model, home))
    file = packed_file(home)
    size = file.stat().st_size
    os.truncate(file, length if length >= 0 else size - 1)
    assert np.array_equal(logits(runner(tiny_model, home)), expected)
    assert packed_file(home).stat().st_size == size


def test_another_key_is_another_file_in_its_place(tiny_model, home) -> None:
    runner(tiny_model, home, b"one").close()
    first = packed_file(home).read_bytes()
    runner(tiny_model, home, b"two").close()
    assert packed_file(home).read_bytes() != first


def test_a_changed_model_is_packed_anew(tiny_model, home, tmp_path) -> None:
    model = tmp_path / "m.gguf"
    shutil.copy(tiny_model, model)
    with LLM(model, n_ctx=128, weights="mmap") as llm:
        llm.generate(IDS, **GREEDY)
    first = packed_file(home).read_bytes()
    raw = bytearray(model.read_bytes())
    raw[-1] ^= 1
    model.write_bytes(raw)
    with LLM(model, n_ctx=128, weights="mmap") as llm:
        llm.generate(IDS, **GREEDY)
    assert packed_file(home).read_bytes() != first


def test_no_room_says_so_and_leaves_nothing(tiny_model, home, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(packed_weights, "_reserve", full)
    with pytest.raises(ResourceError, match=r'No space left.*weights="memory"'):
        runner(tiny_model, home)
    assert list((home / "packed").iterdir()) == []


def test_a_folder_that_cannot_be_made_says_so(tiny_model, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="packed weights cannot be kept"):
        runner(tiny_model, tmp_path / "file")


def test_a_file_cut_while_in_use_is_an_error_and_no_crash(tiny_model, home) -> None:
    r = runner(tiny_model, home)
    os.truncate(packed_file(home), 4096)
    with pytest.raises(FormatError, match="truncated or became unreadable"):
        logits(r)


def test_who_dies_while_packing_leaves_nothing_that_is_believed(tiny_model, home) -> None:
    code = (
        "import os, sys\n"
        "from insula import LLM\n"
        "from insula.engine import packed_weights\n"
        "packed_weights._head = lambda *a, h=packed_weights._head: h(*a) if not any("
        "t.checksum for t in a[0]) else os._exit(9)\n"
        "LLM(sys.argv[1], n_ctx=128, weights='mmap')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tiny_model)], check=False)
    assert done.returncode == 9
    left = packed_file(home)
    assert left.suffix == ".part"
    expected = logits(runner(tiny_model, None))
    assert np.array_equal(logits(runner(tiny_model, home)), expected)
    assert packed_file(home).suffix == ".weights"


def test_what_has_no_model_any_more_goes(tiny_model, home, tmp_path) -> None:
    model = tmp_path / "gone.gguf"
    shutil.copy(tiny_model, model)
    runner(model, home).close()
    runner(tiny_model, home).close()
    (home / "packed" / "letter.txt").write_text("mine")
    model.unlink()
    assert sweep(home) > 0
    assert len(list((home / "packed").iterdir())) == 2
    assert (home / "packed" / "letter.txt").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_processes_share_one_copy(tiny_model, home) -> None:
    """The weights are a mapping of the file, and nobody has a private copy of its pages."""
    with open_model(tiny_model) as model:
        r = NativeRunner(model.graph, model.gguf, n_pages=4, packed=(home, b"k"))
        assert r.weight_bytes > 0
        assert matrices(model.graph)
    entry, private = False, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0] and ":" not in line.split(" ")[0]:
            entry = str(packed_file(home)) in line
        elif entry and line.startswith("Private_Dirty"):
            private += int(line.split()[1])
    assert private == 0
    assert str(packed_file(home)) in Path("/proc/self/maps").read_text()
    r.close()


def test_a_tensor_that_the_kernels_do_not_know_is_told(tiny_model, home) -> None:
    with open_model(tiny_model) as model:
        native = _native.Model("", 1)
        with pytest.raises(ValueError, match="has 64 bytes where"):
            native.add_packed(0, 16, 16, np.zeros(64, np.uint8))
        types = kept_as(model.graph, model.gguf, matrices(model.graph), whole=False)
        found = open_packed(home, native, model.gguf, types, key=b"k")
        found.check()
        found.close()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), FormatError("cut short")])
def test_what_stops_the_packing_is_what_is_told(tiny_model, home, monkeypatch, error) -> None:
    class Stops:
        def __getattr__(self, name: str):
            if name == "checksum":
                raise error
            return getattr(_native, name)

    monkeypatch.setattr(packed_weights, "_native", Stops())
    with pytest.raises(type(error)):
        runner(tiny_model, home)
    assert list((home / "packed").iterdir()) == []


def test_what_a_dead_process_left_goes_at_once(tiny_model, home) -> None:
    runner(tiny_model, home).close()
    left = packed_file(home).with_suffix(".part")
    left.write_bytes(b"x" * 1000)
    os.mkfifo(left.with_name("pipe.weights"))
    left.with_name("deep.weights").write_bytes(b"no head")
    assert sweep(home) == 1000 + len(b"no head")
    assert not left.exists()


def test_several_processes_make_one_file(tiny_model, home, tmp_path) -> None:
    code = (
        "import sys\n"
        "from insula import LLM\n"
        "from insula.engine import packed_weights as p\n"
        "def told(*a, make=p._make):\n    print('made'); make(*a)\n"
        "p._make = told\n"
        "LLM(sys.argv[1], n_ctx=128, weights='mmap').close()\n"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(tiny_model)], stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    said = [process.communicate(timeout=60)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert b"".join(said).count(b"made") == 1
