"""A GGUF model in several files, as llama.cpp's gguf-split writes it."""

from __future__ import annotations

from pathlib import Path

from insula.formats.gguf import GGUFFile
from insula.formats.gguf_metadata import ValueType
from insula.formats.gguf_writer import GGUFWriter


def split(
    whole: Path, folder: Path, parts: int = 3, *, base: str = "m", **changes: int
) -> list[Path]:
    """The parts of a model, as gguf-split makes them. changes: other split.* values in part 1."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{base}-{i + 1:05}-of-{parts:05}.gguf" for i in range(parts)]
    with GGUFFile.open(whole) as file:
        names = list(file.tensors)
        for number, path in enumerate(paths):
            writer = GGUFWriter(path)
            if number == 0:
                for key in file.metadata:
                    writer.add_raw(key, *file.raw_metadata(key))
            said = {"no": number, "count": parts, "tensors.count": len(names)}
            if number == 1:
                said |= changes
            writer.add("split.no", said["no"], ValueType.UINT16)
            writer.add("split.count", said["count"], ValueType.UINT16)
            writer.add("split.tensors.count", said["tensors.count"], ValueType.INT32)
            for name in names[number::parts]:
                info = file.info(name)
                writer.add_tensor(name, file.data(name), info.type, shape=info.shape)
            writer.write()
    return paths
