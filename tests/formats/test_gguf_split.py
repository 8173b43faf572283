"""Models in several files: all parts as one, whichever is named; parts that do not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from golden import golden
from insula import LLM
from insula.errors import FormatError, NotFoundError
from insula.formats.gguf import GGUFFile
from insula.formats.gguf_metadata import ValueType
from insula.formats.gguf_writer import GGUFWriter
from insula.models.quantize import quantize_file
from split_model import split


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return golden.load("phi").write(tmp_path)


@pytest.mark.parametrize("named", [0, 2])
def test_all_parts_are_one_model(whole: Path, tmp_path: Path, named: int) -> None:
    paths = split(whole, tmp_path / "parts")
    with GGUFFile.open(whole) as one, GGUFFile.open(paths[named]) as file:
        assert set(file.tensors) == set(one.tensors)
        assert dict(file.metadata).keys() == dict(one.metadata).keys()
        assert file.size == sum(p.stat().st_size for p in paths)
        for name in ("blk.0.attn_qkv.weight", "blk.1.ffn_up.weight[3:9]"):
            np.testing.assert_array_equal(file.data(name), one.data(name))
            file.drop(name.partition("[")[0])
            np.testing.assert_array_equal(file.dequantize(name), one.dequantize(name))
    with LLM(whole, n_ctx=64) as llm:
        expected = llm.generate([5, 6, 7], temperature=0, max_tokens=8, logprobs=1)
    for weights in ("memory", "mmap"):
        with LLM(paths[named], n_ctx=64, weights=weights) as llm:
            assert llm.model_info.engine == "native"
            found = llm.generate([5, 6, 7], temperature=0, max_tokens=8, logprobs=1)
            assert found.logprobs == expected.logprobs


def test_a_quantized_one_is_whole(whole: Path, tmp_path: Path) -> None:
    paths = split(whole, tmp_path / "parts")
    quantize_file(paths[0], tmp_path / "q.gguf", "Q8_0")
    with GGUFFile.open(tmp_path / "q.gguf") as file:
        assert file.split_count == 1
        assert len(file.tensors) == len(GGUFFile.open(whole).tensors)


def test_a_part_that_is_missing(whole: Path, tmp_path: Path) -> None:
    paths = split(whole, tmp_path / "parts")
    paths[1].unlink()
    with pytest.raises(NotFoundError, match=r"missing beside it: m-00002-of-00003\.gguf$"):
        GGUFFile.open(paths[0])


def test_a_part_that_was_renamed(whole: Path, tmp_path: Path) -> None:
    paths = split(whole, tmp_path / "parts")
    for name in ("model.gguf", "m-00001-of-00004.gguf", "m-00004-of-00003.gguf"):
        renamed = paths[0].rename(paths[0].with_name(name))
        with pytest.raises(FormatError, match="original names"):
            GGUFFile.open(renamed)
        renamed.rename(paths[0])


def test_parts_that_do_not_belong_together(whole: Path, tmp_path: Path) -> None:
    for i, (changes, says) in enumerate(
        (
            ({"no": 2}, "says that it is part 2 of 3"),
            ({"count": 2}, "says that it is part 1 of 2"),
        )
    ):
        paths = split(whole, tmp_path / str(i), **changes)
        with pytest.raises(FormatError, match=says):
            GGUFFile.open(paths[0])


def test_a_tensor_that_is_nowhere_or_twice(whole: Path, tmp_path: Path) -> None:
    paths = split(whole, tmp_path / "a")
    two = split(whole, tmp_path / "b", parts=2)
    # Part 2 of two holds some tensors of part 1 of three, under a name that fits.
    with GGUFFile.open(two[1], allow_split=True) as file:
        writer = GGUFWriter(paths[1], overwrite=True)
        writer.add("split.no", 1, ValueType.UINT16)
        writer.add("split.count", 3, ValueType.UINT16)
        for name, info in file.tensors.items():
            writer.add_tensor(name, file.data(name).copy(), info.type, shape=info.shape)
        writer.write()
    with pytest.raises(FormatError, match="is in two parts"):
        GGUFFile.open(paths[0])
    writer = GGUFWriter(paths[1], overwrite=True)
    writer.add("split.no", 1, ValueType.UINT16)
    writer.add("split.count", 3, ValueType.UINT16)
    writer.write()
    with pytest.raises(FormatError, match=r"says that its parts hold \d+ tensors; they hold \d+"):
        GGUFFile.open(paths[0])


def test_a_part_cut_short(whole: Path, tmp_path: Path) -> None:
    paths = split(whole, tmp_path / "parts")
    with paths[2].open("r+b") as file:
        file.truncate(paths[2].stat().st_size // 2)
    with pytest.raises(FormatError):
        GGUFFile.open(paths[0])
