"""What GGUFWriter writes, GGUFFile and the gguf package read; and it is all or nothing."""

from __future__ import annotations

import ctypes
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from insula.errors import ConfigError, FormatError, ResourceError
from insula.formats.ggml_types import GGMLType
from insula.formats.gguf import GGUFFile
from insula.formats.gguf_metadata import ValueType
from insula.formats.gguf_writer import GGUFWriter
from insula.formats.string_array import StringArray

X_8x64 = np.linspace(-1, 1, 512, dtype=np.float32).reshape(8, 64)


def written(path: Path) -> GGUFWriter:
    writer = GGUFWriter(path)
    writer.add("general.architecture", "llama")
    writer.add("llama.block_count", 2)
    writer.add("llama.rope.freq_base", 10000.0)
    writer.add("tokenizer.ggml.tokens", ["a", "ñ", ""])
    writer.add("tokenizer.ggml.token_type", [1, 3, 6])
    writer.add("tokenizer.ggml.scores", np.array([0.5, -1], np.float32))
    writer.add("flag", True)
    writer.add("big", 1 << 40)
    writer.add("below", -5)
    writer.add("lists", [[1, 2], [3]])
    writer.add_tensor("a.weight", X_8x64)
    writer.add_tensor("b.weight", X_8x64, GGMLType.Q8_0)
    writer.add_tensor("c.weight", X_8x64.astype(np.float16))
    writer.add_tensor("odd", np.arange(3, dtype=np.int32))
    return writer


def test_a_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "out.gguf"
    writer = written(path)
    assert writer.nbytes == writer.write() == path.stat().st_size
    with GGUFFile.open(path) as file:
        kinds = {key: file.raw_metadata(key)[0] for key in file.metadata}
        assert kinds["llama.block_count"] is ValueType.UINT32
        assert kinds["llama.rope.freq_base"] is ValueType.FLOAT32
        assert kinds["below"] is ValueType.INT32
        assert kinds["big"] is ValueType.UINT64
        assert file.metadata["big"] == 1 << 40
        assert file.metadata["tokenizer.ggml.tokens"] == ["a", "ñ", ""]
        assert file.metadata["tokenizer.ggml.token_type"].dtype == np.int32
        assert [part.tolist() for part in file.metadata["lists"]] == [[1, 2], [3]]
        np.testing.assert_array_equal(file.dequantize("a.weight"), X_8x64)
        assert np.abs(file.dequantize("b.weight") - X_8x64).max() < 1 / 127
        assert file.tensors["odd"].shape == (3,)
        assert all(info.offset % 32 == 0 for info in file.tensors.values())


def test_the_gguf_package_reads_it(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "out.gguf"
    written(path).write()
    reader = gguf.GGUFReader(path)
    assert reader.fields["llama.block_count"].contents() == 2
    assert reader.fields["tokenizer.ggml.tokens"].contents() == ["a", "ñ", ""]
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert tensors["b.weight"].tensor_type.name == "Q8_0"
    assert tensors["a.weight"].shape.tolist() == [64, 8]
    np.testing.assert_array_equal(tensors["a.weight"].data, X_8x64)


def test_another_alignment(tmp_path: Path) -> None:
    path = tmp_path / "aligned.gguf"
    writer = GGUFWriter(path, alignment=4096)
    writer.add_tensor("a", X_8x64)
    writer.add_tensor("b", X_8x64)
    writer.write()
    with GGUFFile.open(path) as file:
        assert file.alignment == 4096
        assert [info.offset % 4096 for info in file.tensors.values()] == [0, 0]
    with pytest.raises(ConfigError, match="power of two"):
        GGUFWriter(tmp_path / "other.gguf", alignment=48)


plain = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(width=32, allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
)
lists = st.one_of(
    st.lists(st.booleans(), max_size=5),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5),
    st.lists(st.floats(width=32, allow_nan=False), max_size=5),
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=9), max_size=5),
    hnp.arrays(hnp.integer_dtypes(endianness="<"), st.integers(0, 5)),
)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    metadata=st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
            lambda key: key not in ("general.alignment", "split.count")
        ),
        st.one_of(plain, lists),
        max_size=6,
    )
)
def test_any_metadata_comes_back(tmp_path: Path, metadata: dict[str, object]) -> None:
    path = tmp_path / "any.gguf"
    writer = GGUFWriter(path, overwrite=True)
    for key, value in metadata.items():
        writer.add(key, value)
    writer.write()
    with GGUFFile.open(path) as file:
        assert set(file.metadata) == set(metadata)
        for key, value in metadata.items():
            found = file.metadata[key]
            if isinstance(value, list | np.ndarray):
                assert list(found) == list(value)
            else:
                assert found == value
                assert type(found) is type(value)


def test_what_no_reader_takes_is_refused(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "x.gguf")
    for key, value, words in [
        ("k", object(), "no type for a object"),
        ("k", 2**64, "64 bits"),
        ("k", [1, "a"], "one type"),
        ("k", np.zeros((2, 2)), "2 dimensions"),
        ("k", 1j, "complex"),
        ("", 1, "0 bytes"),
        ("general.alignment", 64, "GGUFWriter"),
    ]:
        with pytest.raises(ConfigError, match=words):
            writer.add(key, value)
    with pytest.raises(ConfigError, match="UINT8"):
        writer.add("k", 256, ValueType.UINT8)
    for name, data, kind, shape, words in [
        ("n" * 64, X_8x64, None, None, "64 bytes"),
        ("t", X_8x64[:, :33].copy(), GGMLType.Q4_0, None, "blocks of 32"),
        ("t", X_8x64, GGMLType.IQ2_XXS, None, "IQ2_XXS"),
        ("t", X_8x64.astype(complex), None, None, "complex"),
        ("t", np.zeros(7, np.uint8), GGMLType.F32, (2,), "8 bytes and 7"),
        ("t", np.zeros(8, np.uint8), None, None, "type"),
        ("t", np.zeros((0, 4), np.float32), None, None, "above 0"),
        ("t", np.zeros((1,) * 5, np.float32), None, None, "1 to 4"),
        ("t", lambda: (), GGMLType.I8, (2**62, 2**10), "larger than any file"),
    ]:
        with pytest.raises(ConfigError, match=words):
            writer.add_tensor(name, data, kind, shape=shape)
    with pytest.raises(FormatError, match="NaN"):
        writer.add_tensor("t", np.full((1, 32), np.nan, np.float32), GGMLType.Q4_0)
    writer.add_tensor("t", X_8x64)
    with pytest.raises(ConfigError, match="twice"):
        writer.add_tensor("t", X_8x64)


def test_an_existing_file_is_kept_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "there.gguf"
    path.write_text("precious")
    with pytest.raises(ConfigError, match="exists"):
        GGUFWriter(path)
    written(tmp_path / "other.gguf").write()
    late = GGUFWriter(tmp_path / "late.gguf")
    (tmp_path / "late.gguf").write_text("somebody was quicker")
    with pytest.raises(ConfigError, match="exists"):
        late.write()
    assert (tmp_path / "late.gguf").read_text() == "somebody was quicker"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["late.gguf", "other.gguf", "there.gguf"]
    replaced = GGUFWriter(path, overwrite=True)
    replaced.add("k", 1)
    replaced.write()
    with GGUFFile.open(path) as file:
        assert file.metadata["k"] == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, ValueError])
def test_a_failure_on_the_way_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "out.gguf"
    path.write_text("as it was")

    def pieces() -> Iterator[np.ndarray]:
        yield np.zeros(128, np.uint8)
        raise error

    writer = GGUFWriter(path, overwrite=True)
    writer.add_tensor("t", pieces, GGMLType.F32, shape=(64,))
    with pytest.raises(error):
        writer.write()
    assert path.read_text() == "as it was"
    assert list(tmp_path.iterdir()) == [path]


def test_pieces_of_the_wrong_size(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "out.gguf")
    writer.add_tensor("t", lambda: (np.zeros(100, np.uint8),), GGMLType.F32, shape=(64,))
    with pytest.raises(FormatError, match="256 bytes and 100"):
        writer.write()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk(tmp_path: Path) -> None:
    """A real limit of the system, in a process of its own: the write itself fails half-way."""
    pytest.importorskip("resource")
    code = (
        "import resource, signal, sys, numpy as np\n"
        "from insula.errors import ResourceError\n"
        "from insula.formats.gguf_writer import GGUFWriter\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "writer = GGUFWriter(sys.argv[1])\n"
        "writer.add_tensor('t', np.zeros((1024, 1024), np.float32))\n"
        "try:\n    writer.write()\n"
        "except ResourceError as error:\n    print(error)\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out.gguf")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "no space" in out
    assert "4.2 MB" in out
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_too_small_is_seen_before_the_work(tmp_path: Path) -> None:
    def pieces() -> Iterator[np.ndarray]:
        raise AssertionError("nothing should be computed")
        yield np.zeros(0, np.uint8)

    writer = GGUFWriter(tmp_path / "out.gguf")
    writer.add_tensor("t", pieces, GGMLType.I8, shape=(1 << 55,))
    with pytest.raises(ResourceError, match=r"36028797019\.0 MB and"):
        writer.write()
    assert list(tmp_path.iterdir()) == []


def test_llama_cpps_own_parser_reads_it(tmp_path: Path) -> None:
    package = pytest.importorskip("xllamacpp", reason="the llamacpp extra is the oracle here")
    library = next(Path(package.__file__).parent.glob("*.so"), None)
    if library is None:
        pytest.skip("the xllamacpp wheel of this platform has no .so to ask")
    ggml = ctypes.CDLL(str(library))
    if not hasattr(ggml, "gguf_init_from_file"):
        pytest.skip("this xllamacpp does not export ggml's GGUF parser")

    class Parameters(ctypes.Structure):
        _fields_ = (("no_alloc", ctypes.c_bool), ("context", ctypes.c_void_p))

    ggml.gguf_init_from_file.restype = ctypes.c_void_p
    ggml.gguf_init_from_file.argtypes = [ctypes.c_char_p, Parameters]
    path = tmp_path / "out.gguf"
    writer = written(path)
    del writer._metadata["lists"]  # llama.cpp reads no arrays of arrays
    writer.write()
    parsed = ggml.gguf_init_from_file(str(path).encode(), Parameters(True, None))
    assert parsed
    ggml.gguf_get_n_tensors.argtypes = ggml.gguf_get_n_kv.argtypes = [ctypes.c_void_p]
    ggml.gguf_get_n_tensors.restype = ggml.gguf_get_n_kv.restype = ctypes.c_int64
    with GGUFFile.open(path) as file:
        assert ggml.gguf_get_n_tensors(parsed) == len(file.tensors)
        assert ggml.gguf_get_n_kv(parsed) == len(file.metadata)
    ggml.gguf_free.argtypes = [ctypes.c_void_p]
    ggml.gguf_free(parsed)


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="directory"):
        GGUFWriter(tmp_path)
    with pytest.raises(ResourceError, match="cannot be written"):
        GGUFWriter(tmp_path / "no" / "such" / "folder.gguf").write()


def test_the_file_has_the_usual_permissions(tmp_path: Path) -> None:
    if os.name != "posix":
        pytest.skip("permissions are a matter of POSIX")
    path = tmp_path / "out.gguf"
    before = os.umask(0o027)
    try:
        GGUFWriter(path).write()
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_string_arrays_pass_through(tmp_path: Path) -> None:
    path = tmp_path / "out.gguf"
    array = StringArray.of(["uno", b"\xff\x00", ""])
    writer = GGUFWriter(path)
    writer.add("tokens", array)
    writer.write()
    with GGUFFile.open(path) as file:
        found = file.metadata["tokens"]
        assert found == array
        assert list(found.iter_raw()) == [b"uno", b"\xff\x00", b""]
        assert found[1] == "\\xff\x00"
        assert found[-3:] == ["uno", "\\xff\x00", ""]
        with pytest.raises(IndexError):
            found[3]


def test_only_an_ordinary_file_is_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ConfigError, match="a device or a pipe"):
        GGUFWriter(pipe, overwrite=True)
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]
