"""Files that lie (FAULTS.md rows 1, 2 and 4): a typed error with the offset, soon and cheaply."""

from __future__ import annotations

import gc
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from formats import gguf_bytes as raw
from insula.errors import FormatError, InsulaError, UnsupportedError
from insula.formats.gguf import GGUFFile

HUGE = (2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1)


def refused(path: Path, content: bytes) -> FormatError:
    path.write_bytes(content)
    with pytest.raises(FormatError) as caught:
        GGUFFile.open(path)
    assert caught.value.offset is not None
    assert 0 <= caught.value.offset <= len(content)
    return caught.value


LIES: dict[str, Callable[[int], bytes]] = {
    "tensor count": lambda n: raw.file(n_tensors=n),
    "entry count": lambda n: raw.file(n_entries=n),
    "key length": lambda n: raw.file([struct.pack("<Q", n) + b"key"]),
    "string length": lambda n: raw.file([raw.entry("k", raw.STRING, struct.pack("<Q", n) + b"v")]),
    "array length": lambda n: raw.file([raw.entry("k", raw.ARRAY, raw.array(raw.F32, n))]),
    "bool array length": lambda n: raw.file([raw.entry("k", raw.ARRAY, raw.array(raw.BOOL, n))]),
    "string array length": lambda n: raw.file(
        [raw.entry("k", raw.ARRAY, raw.array(raw.STRING, n))]
    ),
    "string in an array": lambda n: raw.file(
        [raw.entry("k", raw.ARRAY, raw.array(raw.STRING, 1, struct.pack("<Q", n)))]
    ),
    "nested array length": lambda n: raw.file([raw.entry("k", raw.ARRAY, raw.array(raw.ARRAY, n))]),
    "tensor name length": lambda n: raw.file([], [struct.pack("<Q", n) + bytes(40)]),
    "first dimension": lambda n: raw.file([], [raw.tensor("t", [n])], bytes(64)),
    "last dimension": lambda n: raw.file([], [raw.tensor("t", [1, 1, 1, n])], bytes(64)),
    "product": lambda n: raw.file([], [raw.tensor("t", [n, n, n, n])], bytes(64)),
    "offset": lambda n: raw.file([], [raw.tensor("t", [1], 0, n // 32 * 32)], bytes(64)),
}


@pytest.mark.parametrize("n", HUGE)
@pytest.mark.parametrize("what", LIES)
def test_every_count_up_to_2_64(tmp_path: Path, what: str, n: int) -> None:
    refused(tmp_path / "lie.gguf", LIES[what](n))


def test_sizes_that_wrap_around_in_64_bits(tmp_path: Path) -> None:
    # 0x7FFFFFFFFFFFFFC0 bytes of I8: padded and added they wrap to something small.
    path = tmp_path / "wrap.gguf"
    dims = [0x7FFFFFFFFFFFFFC0]
    two = [raw.tensor("a", dims, 24, 0), raw.tensor("b", dims, 24, 0x7FFFFFFFFFFFFFC0)]
    assert "past the end" in str(refused(path, raw.file([], two, bytes(64))))
    refused(path, raw.file([], [raw.tensor("a", [1 << 32, 1 << 32], 0)], bytes(64)))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (raw.file([raw.u32("k", 1), raw.u32("k", 1)]), "twice"),
        (raw.file([], [raw.tensor("t", [8]), raw.tensor("t", [8], 0, 32)], bytes(64)), "twice"),
        (raw.file([], [raw.tensor("a", [16]), raw.tensor("b", [8], 0, 32)], bytes(64)), "overlap"),
        (raw.file([], [raw.tensor("t", [1], 0, 4)], bytes(64)), "alignment"),
        (raw.file([], [raw.tensor("t", [0])], bytes(64)), "dimension of 0"),
        (raw.file([], [raw.tensor("t", [])], bytes(64)), "0 dimensions"),
        (raw.file([], [raw.tensor("t", [1], n_dims=5)], bytes(64)), "5 dimensions"),
        (raw.file([], [raw.tensor("t", [1], n_dims=2**32 - 1)], bytes(64)), "dimensions"),
        (raw.file([], [raw.tensor("t", [31], 8)], bytes(64)), "blocks of 32"),
        (raw.file([], [raw.tensor("t", [32], 4)], bytes(64)), "once Q4_2"),
        (raw.file([], [raw.tensor("t", [32], 999)], bytes(64)), "type 999"),
        (raw.file([], [raw.tensor("t", [17])], bytes(64)), "past the end"),
        (raw.file([], [raw.tensor("", [1])], bytes(64)), "0 bytes"),
        (raw.file([], [raw.tensor(b"\xff", [1])], bytes(64)), "UTF-8"),
        (raw.file([raw.u32("", 1)]), "0 bytes"),
        (raw.file([raw.entry(b"\xff\xfe", raw.U32, bytes(4))]), "UTF-8"),
        (raw.file([raw.u32("general.alignment", 0)]), "power of two"),
        (raw.file([raw.u32("general.alignment", 48)]), "power of two"),
        (raw.file([raw.entry("general.alignment", raw.STRING, raw.string("32"))]), "UINT32"),
        (raw.file([raw.entry("k", 13, bytes(8))]), "type 13"),
        (raw.file([raw.entry("k", raw.ARRAY, raw.array(77, 1))]), "type 77"),
        (raw.file([raw.entry("k", raw.BOOL, b"\x02")]), "bool"),
        (raw.file([raw.entry("k", raw.ARRAY, raw.array(raw.BOOL, 2, b"\x01\x02"))]), "element 1"),
        (raw.file([raw.entry("k", raw.ARRAY, raw.array(raw.ARRAY, 1) * 9)]), "deeper than 8"),
    ],
)
def test_contradictions(tmp_path: Path, content: bytes, words: str) -> None:
    assert words in str(refused(tmp_path / "bad.gguf", content))


def test_an_alignment_larger_than_the_file(tmp_path: Path) -> None:
    content = raw.file([raw.u32("general.alignment", 1 << 31)], [raw.tensor("t", [1])], bytes(64))
    refused(tmp_path / "bad.gguf", content)


def test_cut_at_each_byte(tmp_path: Path) -> None:
    whole = raw.small()
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole)
    with GGUFFile.open(path) as file:
        end = max(info.offset + info.nbytes for info in file.tensors.values())
    for n in range(end):
        error = refused(path, whole[:n])
        assert "traceback" not in str(error).lower()


def test_each_bit_flipped(tmp_path: Path) -> None:
    """Every flip either loads, with all its tensors inside the file, or is a typed error."""
    whole = raw.small()
    path = tmp_path / "flip.gguf"
    path.write_bytes(whole)
    loaded = 0
    with path.open("r+b", buffering=0) as patch:
        for at in range(len(whole) - 290):  # the header and the tensor list
            for bit in range(8):
                patch.seek(at)
                patch.write(bytes([whole[at] ^ 1 << bit]))
                with suppress(FormatError, UnsupportedError), GGUFFile.open(path) as file:
                    loaded += 1
                    for info in file.tensors.values():
                        assert info.offset + info.nbytes <= file.size
                        assert len(file.data(info.name)) == info.nbytes
            patch.seek(at)
            patch.write(whole[at : at + 1])
    assert path.read_bytes() == whole
    assert loaded > 0


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_random_damage(tmp_path: Path, data: st.DataObject) -> None:
    whole = bytearray(raw.small())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole) - 9))
        patch = data.draw(
            st.one_of(
                st.binary(min_size=1, max_size=8),
                st.sampled_from([struct.pack("<Q", n) for n in (*HUGE, 0, 1, 33)]),
            )
        )
        whole[at : at + len(patch)] = patch
    path = tmp_path / "damaged.gguf"
    path.write_bytes(whole)
    try:
        with GGUFFile.open(path) as file:
            for name in file.tensors:
                with suppress(UnsupportedError):
                    assert file.dequantize(name).size == file.tensors[name].n_elements
    except InsulaError:
        pass


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(content=st.binary(max_size=400))
def test_random_bytes_after_the_magic(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "random.gguf"
    path.write_bytes(b"GGUF\x03\x00\x00\x00" + content)
    with suppress(FormatError, UnsupportedError):
        GGUFFile.open(path).close()


MANY = 24 << 20

#: For a fresh process: the most memory it has had, in bytes.
PEAK = (
    "import resource, sys\n"
    "UNIT = 1 if sys.platform == 'darwin' else 1024\n"
    "def peak(): return UNIT * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
)

#: Files that hold what they announce, in amounts no model has.
GIANTS: dict[str, Callable[[], bytes]] = {
    "empty strings": lambda: raw.file(
        [raw.entry("k", raw.ARRAY, raw.array(raw.STRING, MANY // 8, bytes(MANY)))]
    ),
    "numbers": lambda: raw.file(
        [raw.entry("k", raw.ARRAY, raw.array(0, 3 * MANY, bytes(3 * MANY)))]
    ),
    "text": lambda: raw.file([raw.entry("k", raw.STRING, raw.string("ñ" * 40_000_000))]),
    "wide text": lambda: raw.file([raw.entry("k", raw.STRING, raw.string("🏝" * 1_000_000))]),
    "nested": lambda: raw.file(
        [raw.entry("k", raw.ARRAY, raw.array(raw.ARRAY, MANY // 12, bytes(MANY)))]
    ),
    "keys": lambda: raw.file([raw.entry(f"k{i:07}", 0, b"\0") for i in range(100_000)]),
    "tensors": lambda: raw.file([], [raw.tensor(f"t{i:07}", [1]) for i in range(100_000)]),
}


@pytest.mark.parametrize("what", GIANTS)
def test_memory_and_time_are_bounded(tmp_path: Path, what: str) -> None:
    pytest.importorskip("resource")
    path = tmp_path / "giant.gguf"
    path.write_bytes(GIANTS[what]())
    # A fresh process: only there is the peak this file's own. Pages of the mapping that were read
    # count as resident too, though the system takes them back; so their size is granted.
    code = (
        f"{PEAK}import time\n"
        "from insula.formats.gguf import GGUFFile\n"
        "from insula.errors import FormatError\n"
        "before = peak()\n"
        "start = time.process_time()\n"
        "try:\n    GGUFFile.open(sys.argv[1]); print('opened')\n"
        "except FormatError as error:\n    print('refused')\n"
        "took = time.process_time() - start\n"
        "print(peak() - before, took)\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    ).stdout.split()
    grown, seconds = int(out[1]), float(out[2])
    assert grown <= (64 << 20) + path.stat().st_size
    assert seconds < 5  # about half a second; a loaded machine may take longer


def test_a_poisoned_string_array_is_refused(tmp_path: Path) -> None:
    """A file cut while it is being opened is refused, whatever its zeros happened to mean."""
    from insula.formats import gguf as module

    path = tmp_path / "race.gguf"
    path.write_bytes(raw.file([raw.entry("k", raw.ARRAY, raw.array(0, 1 << 16, bytes(1 << 16)))]))
    original = module._read_metadata

    def cut_first(*args: object) -> object:
        os.truncate(path, 4096)
        return original(*args)  # type: ignore[arg-type]

    module._read_metadata = cut_first  # type: ignore[assignment]
    try:
        with pytest.raises(FormatError, match="truncated"):
            GGUFFile.open(path)
    finally:
        module._read_metadata = original


def test_opening_many_bad_files_leaks_nothing(tmp_path: Path) -> None:
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        pytest.skip("no /proc here")
    path = tmp_path / "bad.gguf"
    path.write_bytes(raw.small()[:-200])

    def in_use() -> tuple[int, int]:
        mapped = Path("/proc/self/maps").read_text().count(str(path))
        return len(list(folder.iterdir())), mapped

    before = in_use()
    for _ in range(200):
        with pytest.raises(FormatError):
            GGUFFile.open(path)
    gc.collect()
    assert in_use() == before
