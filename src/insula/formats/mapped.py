"""Opening a file as a guarded, read-only mapping.

Owns: the operating system's errors as Insula's, and the check for a file that was cut short
while mapped. Invariant: a view of the mapping never outlives it; `release` leaves the unmapping
to the last view.
"""

from __future__ import annotations

import contextlib
import errno
from pathlib import Path

from insula import _native
from insula.errors import FormatError, NotFoundError, ResourceError


def open_mapping(path: Path) -> _native.Mapping:
    """Map `path`. Raises NotFoundError, FormatError (a directory or device), ResourceError."""
    try:
        return _native.Mapping(path)
    except FileNotFoundError:
        raise NotFoundError(f"no file at {path}") from None
    except IsADirectoryError:
        raise FormatError(f"{path} is a directory; give the model file in it") from None
    except NotADirectoryError:
        raise NotFoundError(f"no file at {path}") from None
    except OSError as error:
        if error.errno == errno.ENODEV:
            raise FormatError(f"{path} is not a regular file") from None
        raise ResourceError(f"{path} cannot be opened: {error.strerror or error}") from None


def check_intact(mapping: _native.Mapping, path: Path) -> None:
    """Raise FormatError if the file was cut short, or its disk failed, while it was mapped."""
    if mapping.poisoned:
        raise FormatError(
            f"{path.name} was truncated or became unreadable while it was open; "
            "what was read from it since is not the model: load it again"
        )


def release(mapping: _native.Mapping) -> None:
    """Unmap now if no array shows the bytes any more, else with the last of them."""
    with contextlib.suppress(BufferError):
        mapping.close()
