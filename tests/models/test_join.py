"""Split files become one: llama.cpp's names and keys, and parts that do not belong together."""

from __future__ import annotations

from pathlib import Path

import pytest

from insula.errors import ConfigError, FormatError, NotFoundError
from insula.formats.gguf import GGUFFile
from insula.formats.gguf_metadata import ValueType
from insula.formats.gguf_writer import GGUFWriter
from insula.models.join import join
from tiny_chat_model import write_tiny

PARTS = 3


def split(source: Path, folder: Path, *, total: int | None = None) -> list[Path]:
    """What llama-gguf-split writes: all metadata in the first part, tensors in turn."""
    paths = []
    with GGUFFile.open(source) as file:
        names = list(file.tensors)
        step = -(-len(names) // PARTS)
        for part in range(PARTS):
            paths.append(folder / f"m-{part + 1:05d}-of-{PARTS:05d}.gguf")
            writer = GGUFWriter(paths[-1])
            if part == 0:
                for key in file.metadata:
                    writer.add_raw(key, *file.raw_metadata(key))
            writer.add("split.no", part, ValueType.UINT16)
            writer.add("split.count", PARTS, ValueType.UINT16)
            writer.add("split.tensors.count", total or len(names), ValueType.INT32)
            for name in names[part * step : (part + 1) * step]:
                info = file.tensors[name]
                writer.add_tensor(name, file.data(name), info.type, shape=info.shape)
            writer.write()
    return paths


def test_the_parts_are_the_whole(tmp_path: Path) -> None:
    source = write_tiny(tmp_path / "whole.gguf")
    paths = split(source, tmp_path)
    seen: list[tuple[int, int]] = []
    size = join(paths[1], tmp_path / "out.gguf", progress=lambda *at: seen.append(at))
    assert size == (tmp_path / "out.gguf").stat().st_size
    assert seen == [(i, len(seen)) for i in range(1, len(seen) + 1)]
    assert (tmp_path / "out.gguf").read_bytes() == source.read_bytes()
    with pytest.raises(ConfigError, match="exists"):
        join(paths[0], tmp_path / "out.gguf")
    with pytest.raises(ConfigError, match="one of the parts"):
        join(paths[0], paths[1], overwrite=True)


def test_parts_that_do_not_belong_together_leave_nothing(tmp_path: Path) -> None:
    paths = split(write_tiny(tmp_path / "whole.gguf"), tmp_path, total=99)
    with pytest.raises(FormatError, match="hold 99"):
        join(paths[0], tmp_path / "out.gguf")
    paths[1].unlink()
    with pytest.raises(NotFoundError, match=r"m-00002-of-00003\.gguf"):
        join(paths[0], tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()
