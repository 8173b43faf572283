"""The parts of a split GGUF file as one file (`formats.gguf_split` says which belong together).

Invariant: the target appears complete or not at all; tensors are copied byte by byte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from insula.errors import ConfigError
from insula.formats.gguf import GGUFFile
from insula.formats.gguf_writer import GGUFWriter


def join(
    part: str | Path,
    out: str | Path,
    *,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write `out` from the file that `part` is one part of; returns its size.

    progress(done, total) is called after each tensor. Raises ConfigError, FormatError,
    NotFoundError, ResourceError.
    """
    out = Path(out)
    with GGUFFile.open(part) as file:
        if any(out.exists() and out.samefile(path) for path in file.paths):
            raise ConfigError(f"{out} is one of the parts; name another file")
        writer = GGUFWriter(out, overwrite=overwrite, alignment=file.alignment)
        for key in file.metadata:
            if key != "general.alignment":
                writer.add_raw(key, *file.raw_metadata(key))

        def pieces(done: int, name: str) -> Iterator[NDArray[np.uint8]]:
            yield file.data(name)
            file.check()
            if progress is not None:
                progress(done, len(file.tensors))

        for done, info in enumerate(file.tensors.values(), 1):
            load = partial(pieces, done, info.name)
            writer.add_tensor(info.name, load, info.type, shape=info.shape)
        return writer.write()
