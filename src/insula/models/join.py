"""The parts of a split GGUF file as one file.

Owns: which files belong together (llama.cpp's names, NAME-00001-of-00003.gguf, and the split.*
keys in each) and that nothing is missing, twice or from another model. Refuses: parts that do not
agree. Invariant: the target appears complete or not at all; tensors are copied byte by byte.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from insula.errors import ConfigError, FormatError, NotFoundError
from insula.formats.gguf import GGUFFile
from insula.formats.gguf_writer import GGUFWriter

#: More parts than any model has.
MAX_PARTS = 9999

_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


def parts_of(path: str | Path) -> list[Path] | None:
    """All parts of the split file that `path` is one of, in order; None if it is whole.

    Raises NotFoundError for a part that is missing, FormatError for a name that does not say
    where the others are.
    """
    path = Path(path)
    with GGUFFile.open(path, allow_split=True) as file:
        count = file.split_count
    if count < 2:
        return None
    match = _NAME.fullmatch(path.name)
    if match is None or int(match[3]) != count or count > MAX_PARTS:
        raise FormatError(
            f"{path.name} is one of {count} parts; its name must end in "
            f"-00001-of-{count:05d}.gguf, so that the others are found"
        )
    paths = [path.with_name(f"{match[1]}-{i:05d}-of-{match[3]}.gguf") for i in range(1, count + 1)]
    missing = [part.name for part in paths if not part.exists()]
    if missing:
        raise NotFoundError(
            f"{len(missing)} of {count} parts are missing, {missing[0]} first; fetch them into "
            f"{path.absolute().parent}"
        )
    return paths


def join(
    paths: list[Path],
    out: str | Path,
    *,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write `out` from all parts in their order; returns its size.

    progress(done, total) is called after each tensor. Raises ConfigError, FormatError,
    NotFoundError, ResourceError.
    """
    out = Path(out)
    with ExitStack() as stack:
        files = [stack.enter_context(GGUFFile.open(path, allow_split=True)) for path in paths]
        if any(out.exists() and out.samefile(path) for path in paths):
            raise ConfigError(f"{out} is one of the parts; name another file")
        first = files[0]
        for number, file in enumerate(files):
            if (file.metadata.get("split.no"), file.split_count) != (number, len(files)):
                raise FormatError(
                    f"{file.path.name} says it is part {file.metadata.get('split.no')!r}, counted "
                    f"from 0, of {file.split_count}; expected were {number} of {len(files)}"
                )
        total = sum(len(file.tensors) for file in files)
        said = first.metadata.get("split.tensors.count", total)
        names = {name for file in files for name in file.tensors}
        if said != total or len(names) != total:
            raise FormatError(
                f"the parts hold {len(names)} different tensors in {total}, and {said!r} are "
                "announced; they are not parts of one model"
            )
        writer = GGUFWriter(out, overwrite=overwrite, alignment=first.alignment)
        for key in first.metadata:
            if key != "general.alignment" and not key.startswith("split."):
                writer.add_raw(key, *first.raw_metadata(key))

        def pieces(done: int, file: GGUFFile, name: str) -> Iterator[NDArray[np.uint8]]:
            yield file.data(name)
            file.check()
            if progress is not None:
                progress(done, total)

        done = 0
        for file in files:
            for info in file.tensors.values():
                done += 1
                load = partial(pieces, done, file, info.name)
                writer.add_tensor(info.name, load, info.type, shape=info.shape)
        return writer.write()
