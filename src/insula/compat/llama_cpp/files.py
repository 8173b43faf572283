"""A model's file: what its metadata says as text, and how it comes from a hub."""

from __future__ import annotations

import fnmatch
import os
import shutil
from pathlib import Path
from typing import Any

from insula.compat.llama_cpp.errors import NotHereError, theirs
from insula.errors import ConfigError, ResourceError


def described(path: str) -> dict[str, str]:
    """A file's metadata as llama.cpp writes it: text alone, without the arrays."""
    from insula.formats.gguf import GGUFFile

    with theirs(), GGUFFile.open(path, allow_split=True) as file:
        return {
            key: _text(value)
            for key, value in file.metadata.items()
            if isinstance(value, bool | int | float | str)
        }


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:f}" if isinstance(value, float) else str(value)


def pretrained(
    repo_id: str,
    filename: str | None,
    additional_files: list[str] | None,
    local_dir: str | os.PathLike[str] | None,
) -> Path:
    """The file that fits `filename` in a repository, fetched if need be.

    Raises ConfigError (a ValueError) where none fits or several do, NotHereError for models in
    parts, and what a download raises.
    """
    from insula.formats.gguf_split import siblings
    from insula.hub import huggingface
    from insula.hub.names import parse_hub_ref
    from insula.hub.parts import names as part_names
    from insula.hub.resolve import locate
    from insula.hub.transport import Transport

    if additional_files:
        raise NotHereError(
            "additional_files: not fetched; the parts of a split model come with its first one, so "
            "name that alone"
        )
    reference = parse_hub_ref(f"hf.co/{repo_id}")
    if not filename or reference is None:
        raise ConfigError(f"filename: found {filename!r}; allowed is a path or a pattern")
    here = _held(repo_id, filename) if local_dir is None else None
    if here is not None:
        return here
    address = huggingface.endpoint()
    with (
        theirs(),
        Transport(token=huggingface.token(), token_for=address) as transport,
    ):
        files = [file.path for file in huggingface.look(transport, reference).files]
    fitting = [path for path in files if fnmatch.fnmatch(path, filename)]
    if len(fitting) != 1:
        found = "Multiple files" if fitting else "No file"
        raise ConfigError(
            f"{found} found in {repo_id} that match {filename}; "
            f"available files: {', '.join(fitting or files)}"
        )
    with theirs():
        located = locate(f"hf.co/{repo_id}/{fitting[0]}", allow_download=True)
    if local_dir is None:
        return located.path
    parts = siblings(located.path)
    names = part_names(Path(fitting[0]).name, len(parts))
    placed = [
        _placed(part, Path(local_dir) / name) for part, name in zip(parts, names, strict=True)
    ]
    return placed[0]


def _held(repo_id: str, filename: str) -> Path | None:
    """The file in the store, where the name is no pattern: then nobody need be asked."""
    from insula.errors import NotFoundError
    from insula.hub.resolve import locate

    if any(mark in filename for mark in "*?["):
        return None
    try:
        return locate(f"hf.co/{repo_id}/{filename}").path
    except NotFoundError:
        return None


def _placed(source: Path, destination: Path) -> Path:
    """The store's file under a second name; a copy where the file system has no links."""
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        if destination.exists():
            if destination.stat().st_size == source.stat().st_size:
                return destination
            destination.unlink()
        try:
            os.link(source, destination)
        except OSError:
            shutil.copyfile(source, destination)
    except OSError as error:
        raise ResourceError(f"cannot write {destination}: {error.strerror or error}") from error
    return destination
