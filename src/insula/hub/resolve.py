"""From what a person calls a model to a file on this machine.

In this order: a path to a file; a name in the store; the name of a model that another program
keeps here (local.py); then, only if the caller allows it, a download. A name is never guessed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from insula.errors import ConfigError, NotFoundError, UnsupportedError
from insula.hub import catalog, local, lockfile, places
from insula.hub.manifest import Manifest
from insula.hub.names import HubRef, parse_reference
from insula.hub.store import ModelStore
from insula.hub.transport import Progress
from insula.locale import text


@dataclass(frozen=True, kw_only=True)
class Located:
    """A model's file; `manifest` where it is the store's, `program` where it is another's.

    `adapter` is the file of its own adapter: without that the file is another model.
    """

    path: Path
    name: str
    origin: Literal["path", "store", "local"]
    manifest: Manifest | None = None
    program: str | None = None
    adapter: Path | None = None

    def refuse_adapter(self) -> None:
        """Raise UnsupportedError where the file alone is not the model."""
        if self.adapter is not None:
            raise UnsupportedError(text("hub.needs_adapter", name=self.name, path=self.adapter))


def resolve(
    name_or_path: str | os.PathLike[str],
    *,
    store: ModelStore | None = None,
    allow_download: bool = False,
    progress: Progress | None = None,
) -> Path:
    """The file of a model, as `locate` finds it. UnsupportedError if it needs an adapter too."""
    found = locate(name_or_path, store=store, allow_download=allow_download, progress=progress)
    found.refuse_adapter()
    return found.path


def locate(
    name_or_path: str | os.PathLike[str],
    *,
    store: ModelStore | None = None,
    allow_download: bool = False,
    progress: Progress | None = None,
) -> Located:
    """Find a model. NotFoundError says how to get it; what `pull` raises if it downloads."""
    if not isinstance(name_or_path, str | os.PathLike):
        raise ConfigError(text("hub.name_type", found=type(name_or_path).__name__))
    name = os.fspath(name_or_path)
    if not isinstance(name, str):  # a path of bytes
        raise ConfigError(text("hub.name_type", found=type(name).__name__))
    if not name.strip():
        raise ConfigError(text("hub.empty_name"))
    if "\0" in name:
        raise ConfigError(text("hub.bad_name", name=name[:120]))
    store = store or ModelStore()
    path = places.expanded(name)
    if _is_file(path):
        return Located(path=path, name=name, origin="path")
    if _looks_like_path(name) and parse_reference(name) is None:
        found = local.find_model(name)
        if found is not None:
            return Located(path=found.path, name=name, origin="local", program=found.program)
        raise _no_such_path(path)
    manifest = _in_store(name, store)
    if manifest is not None:
        lockfile.check(manifest)
    if manifest is not None and (not allow_download or store.is_whole(manifest)):
        return _of_store(manifest, store)
    found = local.find_model(name)
    if found is not None:
        return Located(path=found.path, name=name, origin="local", program=found.program)
    known = parse_reference(name) is not None or catalog.find(name) is not None
    if not known and path.is_dir():
        raise _no_such_path(path)
    if manifest is not None and not known:  # a name of the person's own: nowhere to fetch it
        return _of_store(manifest, store)
    if not known or not allow_download:
        key = "hub.not_here" if known else "hub.unknown_name"
        raise NotFoundError(text(key, name=name[:120], known=", ".join(sorted(catalog.CATALOG))))
    from insula.hub.pull import pull

    manifest = pull(name, store=store, progress=progress)
    return _of_store(manifest, store)


def _of_store(manifest: Manifest, store: ModelStore) -> Located:
    adapters = manifest.of_kind("adapter")
    if len(adapters) > 1:
        raise UnsupportedError(text("hub.several_adapters", name=manifest.name))
    if adapters and not store.has_blob(adapters[0].sha256, adapters[0].size):
        raise NotFoundError(text("hub.blob_gone", name=manifest.name))
    return Located(
        path=store.path(manifest),
        name=manifest.name,
        origin="store",
        manifest=manifest,
        adapter=store.blob_path(adapters[0].sha256) if adapters else None,
    )


def _in_store(name: str, store: ModelStore) -> Manifest | None:
    entry = catalog.find(name)
    if entry is not None:
        return store.get(entry.name)
    reference = parse_reference(name)
    if reference is None:
        try:
            return store.get(name)
        except ConfigError:
            if any(name.startswith(f"{program}/") for program in local.PROGRAMS):
                return None  # other programs' names follow their own rules
            raise
    if not isinstance(reference, HubRef):
        return store.get(reference.store_name)
    if reference.path is not None:
        stem = reference.path.rpartition("/")[2][: -len(".gguf")]
        tag: str | None = stem
    else:
        tag = reference.quant
    base = f"hf.co/{reference.repo_id}"
    if tag is None:
        return _default_quant(base, store)
    if reference.revision is not None:
        tag += f"@{reference.revision}"
    return store.get(f"{base}:{tag}")


def _default_quant(base: str, store: ModelStore) -> Manifest | None:
    """What `hf.co/owner/repo` means here: the only one there is, else the hub's default."""
    from insula.hub.huggingface import PREFERRED

    return store.get(base) or store.get(f"{base}:{PREFERRED}")


def _is_file(path: Path) -> bool:
    try:
        return path.exists() and not path.is_dir()
    except OSError:  # a name too long to be one
        return False


def _looks_like_path(name: str) -> bool:
    return (
        name.startswith((".", "/", "~", "\\"))
        or name.lower().endswith((".gguf", ".safetensors", ".bin", ".pt"))
        or "\\" in name
        or (len(name) > 2 and name[1] == ":" and name[2] in "/\\")
    )


def _no_such_path(path: Path) -> NotFoundError:
    if path.is_dir():
        inside = sorted(p.name for p in path.glob("*.gguf"))[:8]
        key = "hub.is_folder_with" if inside else "hub.is_folder"
        return NotFoundError(text(key, path=path, files=", ".join(inside)))
    return NotFoundError(text("hub.no_such_file", path=path))
