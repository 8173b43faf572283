"""The last steps of every way into the store: is it here already, fetch what is not, add, tell.

Holds the checks that no way may leave out: that a file is a GGUF file and a whole model, and that a
name which insula.lock pins still means what was pinned.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from insula.errors import FormatError, InsulaError, NotFoundError, UnsupportedError
from insula.formats.gguf import GGUFFile
from insula.formats.identify import refusal
from insula.hub import lockfile
from insula.hub.download import fetch, transfer
from insula.hub.manifest import Manifest
from insula.hub.parallel import received
from insula.hub.remote_file import Remote, need_space
from insula.hub.store import ModelStore
from insula.hub.transport import Progress, Transfer, Transport
from insula.locale import text

MAGIC = b"GGUF"


def now() -> str:
    """UTC to the second."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")


def already(store: ModelStore, manifest: Manifest, progress: Progress | None) -> bool:
    """Whether the bytes are there; if so the name is made to mean them.

    Raises ChecksumError if insula.lock pins the name to others.
    """
    lockfile.check(manifest)
    if not store.is_whole(manifest):
        return False
    held = store.get(manifest.name)
    if held is None or held.digest != manifest.digest:
        try:
            store.add(manifest)
        except NotFoundError:  # removed by another process in between
            return False
    done(progress, manifest)
    return True


def done(progress: Progress | None, manifest: Manifest) -> None:
    """Tell that it is here."""
    if progress is not None:
        size = manifest.model_size
        progress(Transfer(phase="done", name=manifest.name, done=size, total=size))


def check_gguf(path: Path, name: str) -> None:
    """Raise FormatError for a file that does not begin as a GGUF file does, UnsupportedError for
    one of a kind that is known and never read."""
    with path.open("rb") as file:
        head = file.read(64)
    if not head.startswith(MAGIC):
        known = refusal(head, Path(name))
        raise (
            known
            if isinstance(known, UnsupportedError)
            else FormatError(text("hub.not_gguf", name=name))
        )


def refuse_part(path: Path, name: str) -> None:
    """Raise UnsupportedError for a part of a split model that comes alone, so that no name means
    what cannot run."""
    try:
        with GGUFFile.open(path, allow_split=True) as file:
            count = file.split_count
    except InsulaError:  # what else is wrong with it, running it says
        return
    if count != 1:
        raise UnsupportedError(text("hub.lone_part", name=name, count=count))


def bring(
    transport: Transport,
    store: ModelStore,
    manifest: Manifest,
    remotes: Sequence[Remote],
    progress: Progress | None,
) -> None:
    """Fetch those of `remotes` that are not in the store, each by its promised digest, then add.

    All are held until all are complete, so that a model is there whole or not at all.
    """
    store.prepare()
    missing = {r.key: r for r in remotes if not store.has_blob(str(r.sha256), r.size)}
    with ExitStack() as held:
        # Always in one order, so that two processes cannot wait for each other.
        parts = {
            key: held.enter_context(transfer(store.partial, missing[key], progress))
            for key in sorted(missing)
        }
        if already(store, manifest, progress):  # the process that we waited for brought it
            return
        wanted = sum(missing[key].size or 0 for key in parts)
        need_space(store.partial, wanted - sum(received(part) for part in parts.values()))
        files: dict[str, Path] = {}
        for key in sorted(parts, key=lambda key: missing[key].size or 0):
            remote = missing[key]
            if not store.has_blob(str(remote.sha256), remote.size):
                files[str(remote.sha256)] = fetch(
                    transport, remote, parts[key], progress=progress
                ).path
        if manifest.sha256 in files:
            try:
                check_gguf(files[manifest.sha256], manifest.name)
                if len(manifest.parts) == 1:
                    refuse_part(files[manifest.sha256], manifest.name)
            except (FormatError, UnsupportedError):
                files[manifest.sha256].unlink()
                raise
        store.add(manifest, layers=files)
    done(progress, manifest)
