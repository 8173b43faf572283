"""What a well-formed GGUF file holds is what GGUFFile shows."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest

from formats import gguf_bytes as raw
from insula.errors import FormatError, NotFoundError, UnsupportedError
from insula.formats.ggml_types import GGMLType
from insula.formats.gguf import GGUFFile
from insula.formats.gguf_metadata import ValueType
from insula.formats.string_array import StringArray


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.gguf"
    path.write_bytes(raw.small())
    return path


def test_metadata_of_every_kind(small: Path) -> None:
    with GGUFFile.open(small) as file:
        meta = file.metadata
        assert meta["general.architecture"] == "llama"
        assert meta["a.bool"] is True
        assert meta["a.f32"] == 1.5
        assert meta["a.u64"] == 1 << 40
        assert meta["tokens"] == ["a", "", "ñ"]
        assert isinstance(meta["tokens"], StringArray)
        np.testing.assert_array_equal(meta["scores"], np.array([0, 1, 2], np.float32))
        assert meta["flags"].dtype == np.bool_
        assert meta["flags"].tolist() == [False, True]
        assert [part.tolist() for part in meta["nested"]] == [[-7], []]


@pytest.mark.parametrize(
    ("kind", "form", "value"),
    [
        (ValueType.UINT8, "<B", 255),
        (ValueType.INT8, "<b", -128),
        (ValueType.UINT16, "<H", 65535),
        (ValueType.INT16, "<h", -32768),
        (ValueType.UINT32, "<I", 2**32 - 1),
        (ValueType.INT32, "<i", -(2**31)),
        (ValueType.UINT64, "<Q", 2**64 - 1),
        (ValueType.INT64, "<q", -(2**63)),
        (ValueType.FLOAT32, "<f", 0.25),
        (ValueType.FLOAT64, "<d", 0.1),
    ],
)
def test_extreme_scalars_and_arrays(
    tmp_path: Path, kind: ValueType, form: str, value: float
) -> None:
    body = struct.pack(form, value)
    path = tmp_path / "x.gguf"
    path.write_bytes(
        raw.file([raw.entry("one", kind, body), raw.entry("two", 9, raw.array(kind, 2, body * 2))])
    )
    with GGUFFile.open(path) as file:
        assert file.metadata["one"] == value
        assert file.metadata["two"].tolist() == [value, value]
        assert file.raw_metadata("one") == (kind, body)


def test_tensors_are_views_in_numpy_order(small: Path) -> None:
    with GGUFFile.open(small) as file:
        info = file.tensors["t.q8_0"]
        assert (info.type, info.shape, info.nbytes) == (GGMLType.Q8_0, (2, 32), 68)
        assert file.data("t.q8_0").tobytes() == small.read_bytes()[info.offset : info.offset + 68]
        assert not file.data("t.q8_0").flags.writeable
        assert file.dequantize("t.f32").shape == (2, 4)
        numbers = file.data("t.i32").view("<i4")
        np.testing.assert_array_equal(file.dequantize("t.i32"), numbers.astype(np.float32))
        with pytest.raises(UnsupportedError, match="IQ2_XXS"):
            file.dequantize("t.iq2")
        with pytest.raises(NotFoundError, match=r"did you mean 't\.f32'"):
            file.data("t.f33")


@pytest.mark.parametrize("name", ["t.f32", "t.q8_0"])
def test_rows_of_a_tensor_are_a_view_too(small: Path, name: str) -> None:
    with GGUFFile.open(small) as file:
        whole = file.dequantize(name)
        for start, stop in ((0, 1), (1, 2), (0, 2)):
            part = f"{name}[{start}:{stop}]"
            assert file.info(part).name == part
            assert np.shares_memory(file.data(part), file.data(name))
            np.testing.assert_array_equal(file.dequantize(part), whole[start:stop])
        for wrong in ("[1:1]", "[2:3]", "[1:0]", "[0:3]"):
            with pytest.raises(NotFoundError, match="no rows"):
                file.info(name + wrong)
        for wrong in ("[-1:1]", "[:]", "[0:1", "[0:1][0:1]", "x[0:1]"):
            with pytest.raises(NotFoundError, match="no tensor"):
                file.info(name + wrong)


def test_version_2_is_read(tmp_path: Path) -> None:
    path = tmp_path / "two.gguf"
    path.write_bytes(raw.file([raw.u32("x", 7)], version=2))
    with GGUFFile.open(path) as file:
        assert (file.version, file.metadata["x"]) == (2, 7)


def test_another_alignment(tmp_path: Path) -> None:
    path = tmp_path / "aligned.gguf"
    path.write_bytes(
        raw.file(
            [raw.u32("general.alignment", 256)], [raw.tensor("t", [2])], bytes(8), alignment=256
        )
    )
    with GGUFFile.open(path) as file:
        assert file.alignment == 256
        assert file.tensors["t"].offset == 256


def test_views_outlive_the_file_object(small: Path) -> None:
    file = GGUFFile.open(small)
    view = file.data("t.f32")
    before = view.tobytes()
    file.close()
    small.unlink()
    assert view.tobytes() == before
    with pytest.raises(ValueError, match="closed"):
        file.data("t.f32")


def test_text_that_is_not_utf8_is_shown_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "latin.gguf"
    path.write_bytes(
        raw.file(
            [
                raw.entry("general.author", raw.STRING, raw.string(b"Cervantes\xff")),
                raw.entry("tokens", raw.ARRAY, raw.array(raw.STRING, 1, raw.string(b"\xe2\x96"))),
            ]
        )
    )
    with GGUFFile.open(path) as file:
        assert file.metadata["general.author"] == "Cervantes\\xff"
        assert file.metadata["tokens"].raw(0) == b"\xe2\x96"
        assert file.raw_metadata("general.author")[1].endswith(b"\xff")


def test_truncation_while_mapped_is_an_error_not_a_signal(tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(raw.file([], [raw.tensor("t", [1 << 18])], b"\x01" * (1 << 20)))
    with GGUFFile.open(path) as file, GGUFFile.open(path) as other:
        assert not file.poisoned
        os.truncate(path, 4096)
        with pytest.raises(FormatError, match="truncated"):
            file.dequantize("t")
        assert file.poisoned
        assert file.data("t")[-1] == 0
        # Each mapping speaks for itself: nobody has touched this one's lost pages yet.
        assert not other.poisoned


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (raw.file(version=1), "version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (b"lmgg" + bytes(100), "GGML"),
        (b"fmgg" + bytes(100), "GGMF"),
        (b"tjgg" + bytes(100), "GGJT"),
        (b"PK\x03\x04" + bytes(100), "pickle"),
        (b"\x80\x04\x95" + bytes(100), "pickle"),
    ],
)
def test_other_formats_are_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(UnsupportedError, match=words):
        GGUFFile.open(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "LFS"),
        (b"hello world", "neither GGUF"),
        (raw.file(version=99), "version 99"),
    ],
)
def test_wrong_files_are_explained(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=words):
        GGUFFile.open(path)


def test_one_part_of_a_split_model_on_request(tmp_path: Path) -> None:
    path = tmp_path / "part.gguf"
    path.write_bytes(raw.file([raw.entry("split.count", 2, struct.pack("<H", 3))]))
    with GGUFFile.open(path, allow_split=True) as file:
        assert file.split_count == 3


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no file"):
        GGUFFile.open(tmp_path / "nothing.gguf")
    with pytest.raises(FormatError, match="directory"):
        GGUFFile.open(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")  # opening it must not wait for a writer
        with pytest.raises(FormatError, match="regular"):
            GGUFFile.open(tmp_path / "pipe")


def test_real_vocabularies(shared: Path) -> None:
    """Vocabulary files from llama.cpp's tests, against the gguf package."""
    gguf = pytest.importorskip("gguf")
    path = shared / "data/vocabs/ggml-vocab-llama-spm.gguf"
    reader = gguf.GGUFReader(path)
    with GGUFFile.open(path) as file:
        assert set(file.metadata) == {k for k in reader.fields if not k.startswith("GGUF.")}
        tokens = reader.fields["tokenizer.ggml.tokens"]
        assert list(file.metadata["tokenizer.ggml.tokens"].iter_raw()) == [
            bytes(tokens.parts[i]) for i in tokens.data
        ]
