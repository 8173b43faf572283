"""Where on this machine Insula keeps what it keeps. Creates nothing until asked.

All of it is below INSULA_HOME (config.py knows the platform's own place). Folders are 0700 and
files 0600: what a person asks a model is nobody else's business.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from insula.config import settings
from insula.errors import ResourceError
from insula.locale import text


def home() -> Path:
    """The folder that holds models, history and chats."""
    return settings().home.absolute()


def expanded(path: str | Path) -> Path:
    """`path` with ~ replaced; as it is where there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def private_folder(path: Path) -> Path:
    """Make `path` and what is missing above it, 0700; an existing one is left as it is."""
    if path.is_dir():
        return path
    try:
        missing = [path, *[p for p in path.parents if not p.exists()]]
        for folder in reversed(missing):
            folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise ResourceError(
            text("hub.folder_failed", path=path, reason=error.strerror or error)
        ) from error
    return path


def write_private(path: Path, data: bytes) -> None:
    """Replace `path` with `data` in one step, 0600; a reader sees the old bytes or the new."""
    private_folder(path.parent)
    # mkstemp makes 0600 files under a name that nobody else has.
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.")
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink()
        raise
