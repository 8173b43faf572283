"""A GGUF model in several files, as llama.cpp's gguf-split writes it.

NAME-00001-of-00003.gguf and so on, in one folder; each says in split.no (from 0) which one it is,
in split.count how many there are, and in split.tensors.count how many tensors all have together.
The first holds the model's metadata. Owns: which files belong together, and that they do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from insula.errors import FormatError, NotFoundError

_NAME = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.gguf", re.IGNORECASE)
MAX_PARTS = 1 << 10


def paths_of_parts(path: Path, count: int) -> list[Path]:
    """The paths of all parts, the first one first. Raises FormatError or NotFoundError."""
    match = _NAME.fullmatch(path.name)
    if match is None or int(match[3]) != count or not 1 <= int(match[2]) <= count <= MAX_PARTS:
        raise FormatError(
            f"{path.name} is one of {count} parts of a split model, and the others are looked for "
            f"by its name, which must end in -00001-of-{count:05}.gguf; give all parts their "
            "original names"
        )
    paths = [path.with_name(f"{match[1]}-{i:05}-of-{count:05}.gguf") for i in range(1, count + 1)]
    missing = [p.name for p in paths if not p.exists()]
    if missing:
        raise NotFoundError(
            f"{path.name} is one of {count} parts of a split model; missing beside it: "
            + ", ".join(missing[:5])
            + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        )
    return paths


def siblings(path: Path) -> list[Path]:
    """The files beside `path` that its name says belong to it, itself among them."""
    match = _NAME.fullmatch(path.name)
    if match is None or not path.parent.is_dir():
        return [path]
    names = (_NAME.fullmatch(other.name) for other in path.parent.iterdir())
    found = [n.string for n in names if n and (n[1], n[3]) == (match[1], match[3])]
    return [path.with_name(name) for name in sorted(found)] or [path]


def check_part(path: Path, metadata: Mapping[str, Any], *, number: int, count: int) -> None:
    """Raise FormatError unless the file says that it is this part of so many."""
    found = metadata.get("split.no"), metadata.get("split.count")
    if found != (number, count):
        raise FormatError(
            f"{path.name} says that it is part {found[0]} of {found[1]}, by its name it is part "
            f"{number} of {count} (counted from 0); the parts do not belong together"
        )
