"""A split model in the store: its blobs once more, under the names by which parts find each other.

Blobs are named after their digests; whoever opens a model in several files looks for the others by
the first one's name (formats/gguf_split.py). So the store has a folder with a second name for each
part, as a hard link, or a symbolic one where the file system has none: no byte is copied, and every
engine can open it. What is in such a folder is made again whenever it is not what it should be.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from insula.errors import ResourceError, UnsupportedError
from insula.formats.gguf import GGUFFile
from insula.hub import places
from insula.locale import text

_NUMBERED = re.compile(r"(.+)-\d{5}-of-(\d{5})\.gguf", re.IGNORECASE)


def part_name(number: int, count: int, *, base: str = "model") -> str:
    """What part `number`, from 1, is called."""
    return f"{base}-{number:05}-of-{count:05}.gguf"


def names(like: str, count: int) -> list[str]:
    """The names of all parts, after one of them; plain ones where `like` is no such name. A model
    in one file keeps its name."""
    if count == 1:
        return [like]
    match = _NUMBERED.fullmatch(like)
    base = match[1] if match and int(match[2]) == count else "model"
    return [part_name(number, count, base=base) for number in range(1, count + 1)]


def key(digests: Iterable[str]) -> str:
    """The folder's name: the same parts, in their order, have the same."""
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()[:40]


def linked(folder: Path, files: Sequence[Path]) -> Path:
    """Give `files` the names of parts in `folder`; the first one's path. Raises ResourceError."""
    paths = [folder / part_name(n, len(files)) for n in range(1, len(files) + 1)]
    places.private_folder(folder)
    for file, path in zip(files, paths, strict=True):
        try:
            _link(file.absolute(), path)
        except OSError as error:
            reason = error.strerror or error
            raise ResourceError(text("hub.cannot_write", path=path, reason=reason)) from error
    return paths[0]


def _link(file: Path, path: Path) -> None:
    with suppress(OSError):  # not there, or a link to what is gone
        if path.samefile(file):
            return
    path.unlink(missing_ok=True)
    try:
        path.hardlink_to(file)
    except FileExistsError:  # another process was quicker
        return
    except OSError:
        with suppress(FileExistsError):
            path.symlink_to(file)


def check(folder: Path, files: Sequence[Path]) -> None:
    """Raise FormatError unless the files are one model's parts, all of them, in their order.

    folder: an empty one, for the time of the check.
    """
    try:
        with GGUFFile.open(linked(folder, files)):
            pass
    except UnsupportedError:  # whole, and of a kind that another engine may know
        pass
    finally:
        shutil.rmtree(folder, ignore_errors=True)
