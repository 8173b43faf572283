"""Safetensors files: what the safetensors package writes is read; files that lie are refused."""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from insula.errors import FormatError, NotFoundError, UnsupportedError
from insula.formats.gguf import GGUFFile
from insula.formats.identify import PICKLE_SUFFIXES, identify
from insula.formats.safetensors import SafetensorsFile


def content(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: str = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def test_what_the_package_writes(path: Path) -> None:
    numpy_format = pytest.importorskip("safetensors.numpy")
    rng = np.random.default_rng(0)
    arrays = {
        "f32": rng.standard_normal((3, 5)).astype(np.float32),
        "f16": rng.standard_normal(7).astype(np.float16),
        "f64": rng.standard_normal((2, 2)),
        "i64": rng.integers(-9, 9, (4,)),
        "u8": rng.integers(0, 255, (2, 3, 4)).astype(np.uint8),
        "bool": np.array([True, False]),
        "scalar": np.array(3, np.float32),
        "none": np.zeros((0, 4), np.float32),
    }
    numpy_format.save_file(arrays, path, metadata={"format": "np"})
    assert identify(path) == "safetensors"
    with SafetensorsFile.open(path) as file:
        assert file.metadata == {"format": "np"}
        assert set(file.tensors) == set(arrays)
        for name, array in arrays.items():
            found = file.array(name)
            assert found.shape == array.shape
            np.testing.assert_array_equal(found, array)
            np.testing.assert_array_equal(file.dequantize(name), array.astype(np.float32))
        with pytest.raises(NotFoundError, match="did you mean 'f32'"):
            file.data("f33")


def test_bfloat16_and_float8(path: Path) -> None:
    values = np.array([1.0, -2.5, 3.0], np.float32)
    raw = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    header = {"b": entry("BF16", [3], [0, 6]), "f": entry("F8_E4M3", [2], [6, 8])}
    path.write_bytes(content(header, raw + b"\x01\x02"))
    with SafetensorsFile.open(path) as file:
        np.testing.assert_array_equal(file.dequantize("b"), values)
        with pytest.raises(UnsupportedError, match="BF16"):
            file.array("b")
        with pytest.raises(UnsupportedError, match="F8_E4M3"):
            file.dequantize("f")


LIES: dict[str, bytes] = {
    "empty": b"",
    "short": b"\x01\x00\x00",
    "length past the end": content({}, length=1000),
    "length of 2^63": content({}, length=2**63),
    "length of 2^64-1": content({}, length=2**64 - 1),
    "zero length": content(b""),
    "not JSON": content(b"{not json}"),
    "not an object": content([1, 2]),
    "not UTF-8": content(b'{"\xff": 1}'),
    "NaN": content(b'{"t": NaN}'),
    "a number of 10,000 digits": content(b'{"t": ' + b"9" * 10_000 + b"}"),
    "depth": content(b'{"t": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "duplicate": content(
        b'{"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
        b'"t":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}',
        b"ab",
    ),
    "missing shape": content({"t": {"dtype": "F32", "data_offsets": [0, 8]}}, bytes(8)),
    "extra key": content({"t": {**entry(), "code": "x"}}, bytes(8)),
    "unknown dtype": content({"t": entry("F31")}, bytes(8)),
    "dtype of another type": content({"t": entry(7)}, bytes(8)),  # type: ignore[arg-type]
    "negative size": content({"t": entry(shape=[-2])}, bytes(8)),
    "fractional size": content({"t": entry(shape=[2.0])}, bytes(8)),
    "boolean size": content({"t": entry("U8", [True], [0, 1])}, bytes(1)),
    "size of 2^63": content({"t": entry(shape=[2**63])}, bytes(8)),
    "product beyond 2^64": content({"t": entry(shape=[2**62, 2**62, 0])}, bytes(8)),
    "too many dimensions": content({"t": entry(shape=[1] * 17, offsets=[0, 4])}, bytes(4)),
    "three offsets": content({"t": entry(offsets=[0, 4, 8])}, bytes(8)),
    "offsets reversed": content({"t": entry(offsets=[8, 0])}, bytes(8)),
    "offsets too far": content({"t": entry(offsets=[2**62, 2**62 + 8])}, bytes(8)),
    "size and shape differ": content({"t": entry(offsets=[0, 4])}, bytes(8)),
    "past the end": content({"t": entry()}, bytes(7)),
    "bytes after the last": content({"t": entry()}, bytes(9)),
    "hole": content({"t": entry(offsets=[4, 12])}, bytes(12)),
    "overlap": content({"t": entry(), "u": entry(offsets=[4, 12])}, bytes(12)),
    "same place": content({"t": entry(), "u": entry()}, bytes(8)),
    "metadata of numbers": content({"__metadata__": {"a": 1}}),
    "metadata as a list": content({"__metadata__": [1]}),
}


@pytest.mark.parametrize("what", LIES)
def test_lies(path: Path, what: str) -> None:
    path.write_bytes(LIES[what])
    with pytest.raises(FormatError) as caught:
        SafetensorsFile.open(path)
    assert caught.value.offset is not None


def test_cut_at_each_byte(path: Path) -> None:
    whole = content({"t": entry(), "u": entry("U8", [3], [8, 11])}, b"01234567abc")
    for n in range(len(whole)):
        path.write_bytes(whole[:n])
        with pytest.raises(FormatError):
            SafetensorsFile.open(path)
    path.write_bytes(whole)
    with SafetensorsFile.open(path) as file:
        assert file.data("u").tobytes() == b"abc"


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_random_damage(path: Path, data: st.DataObject) -> None:
    whole = bytearray(content({"t": entry(), "u": entry("U8", [3], [8, 11])}, b"01234567abc"))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(whole) - 1))
        whole[at : at + 1] = data.draw(st.binary(min_size=1, max_size=4))
    path.write_bytes(whole)
    with suppress(FormatError, UnsupportedError), SafetensorsFile.open(path) as file:
        for info in file.tensors.values():
            assert len(file.data(info.name)) == info.nbytes


GIANTS: dict[str, Callable[[], bytes]] = {
    "lists": lambda: content(b'{"t": [' + b"[]," * 4_000_000 + b"1]}"),
    "objects": lambda: content(b'{"t": [' + b"{}," * 4_000_000 + b"1]}"),
    "text": lambda: content(b'{"t": "' + b"x" * (15 << 20) + b'"}'),
    "too long": lambda: content(b'{"t": "' + b"x" * (40 << 20) + b'"}'),
}


@pytest.mark.parametrize("what", GIANTS)
def test_memory_is_bounded(path: Path, what: str) -> None:
    pytest.importorskip("resource")
    path.write_bytes(GIANTS[what]())
    code = (
        "import resource, sys\n"
        "UNIT = 1 if sys.platform == 'darwin' else 1024\n"
        "def peak(): return UNIT * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "from insula.formats.safetensors import SafetensorsFile\n"
        "from insula.errors import FormatError\n"
        "before = peak()\n"
        "try:\n    SafetensorsFile.open(sys.argv[1]); print('opened')\n"
        "except FormatError as error:\n    print('refused')\n"
        "print(peak() - before)\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    ).stdout.split()
    assert out[0] == "refused"
    assert int(out[1]) <= (64 << 20) + path.stat().st_size


def test_truncation_while_mapped(path: Path) -> None:
    path.write_bytes(content({"t": entry("F32", [1 << 16], [0, 1 << 18])}, b"\x01" * (1 << 18)))
    with SafetensorsFile.open(path) as file:
        os.truncate(path, 4096)
        with pytest.raises(FormatError, match="truncated"):
            file.dequantize("t")


class Canary:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("suffix", [*sorted(PICKLE_SUFFIXES), ".safetensors", ".gguf", ""])
@pytest.mark.parametrize("zipped", [False, True])
def test_pickle_is_refused_and_never_run(tmp_path: Path, suffix: str, zipped: bool) -> None:
    """FAULTS.md row 7: a checkpoint that would run code; the canary is never made."""
    canary = tmp_path / "canary"
    payload = pickle.dumps({"weight": Canary(canary)})
    path = tmp_path / f"pytorch_model{suffix}"
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", payload)
    else:
        path.write_bytes(payload)
    for load in (GGUFFile.open, SafetensorsFile.open, identify):
        with pytest.raises((UnsupportedError, FormatError)) as caught:
            load(path)
        if suffix != ".safetensors":
            assert "pickle" in str(caught.value)
    assert not canary.exists()
    # The canary is a real one.
    pickle.loads(payload)
    assert canary.exists()


def test_no_pickle_loader_exists() -> None:
    """Nothing under src can unpickle: neither pickle itself nor what uses it."""
    source = Path(__file__).resolve().parents[2] / "src" / "insula"
    for file in source.rglob("*.py"):
        text = file.read_text()
        for call in ("import pickle", "from pickle", "pickle.load", "torch.load(", "joblib.load"):
            assert call not in text, f"{file} has {call}"
