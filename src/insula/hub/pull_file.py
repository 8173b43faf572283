"""A GGUF file into the store: from an address, or from this machine.

A file of this machine is copied, or named where it lies (`in_place`): then the store holds its
digest, size and time, and refuses it once they differ. Split files are refused: their first part
alone is no model.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from insula.errors import ConfigError, NotFoundError, UnsupportedError
from insula.hub import arrival, lockfile, places, signatures
from insula.hub.download import fetch, transfer
from insula.hub.huggingface import quant_of
from insula.hub.manifest import Manifest, Place, is_file_name
from insula.hub.names import DEFAULT_TAG, UrlRef, is_safe_segment
from insula.hub.remote_file import BLOCK, Remote, disk_trouble, need_space
from insula.hub.store import ModelStore
from insula.hub.transport import Progress, Retry, Transfer, Transport, shown
from insula.locale import text

_SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)


def pull_url(
    ref: UrlRef, store: ModelStore, progress: Progress | None, retry: Retry | None
) -> Manifest:
    """Fetch the file at an address. Raises as `pull.pull`."""
    _refuse_split(ref.file)
    with Transport(retry=retry, takes_token=False) as transport:
        if progress is not None:
            progress(Transfer(phase="connect", name=shown(ref.url)))
        signature = signatures.wanted(transport, ref.url, progress)
        remote = Remote(url=ref.url, name=ref.file, sha256=ref.sha256)
        store.prepare()
        with transfer(store.partial, remote, progress) as part:
            held = store.get(ref.store_name)
            if ref.sha256 is not None and held is not None and held.sha256 == ref.sha256:
                if signature is not None:
                    signature.check_file(store.path(held))
                if arrival.already(store, held, progress):
                    return held
            fetched = fetch(transport, remote, part, progress=progress)
            manifest = Manifest(
                name=ref.store_name,
                file=ref.file if is_file_name(ref.file) else "model.gguf",
                sha256=fetched.sha256,
                size=fetched.size,
                source=shown(ref.url),
                licence=None,
                pulled=arrival.now(),
            )
            try:
                arrival.check_gguf(part, ref.file)
                if signature is not None:
                    signature.check_file(part)
                lockfile.check(manifest)
                store.add(manifest, part)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
    arrival.done(progress, manifest)
    return manifest


def take_file(
    file: Path,
    name: str | None,
    store: ModelStore,
    progress: Progress | None,
    *,
    in_place: bool = False,
    replacing: bool = False,
) -> Manifest:
    """Give a file of this machine a name in the store.

    Raises NotFoundError, FormatError, ConfigError (the name is taken), ResourceError.
    """
    with store.workplace() as folder:
        copy = None if in_place else folder / "copy"
        manifest = examine(file, name, copy, progress)
        lockfile.check(manifest)
        if not replacing:
            store.refuse_other(manifest)
        store.add(manifest, copy)
    arrival.done(progress, manifest)
    return manifest


def examine(file: Path, name: str | None, copy: Path | None, progress: Progress | None) -> Manifest:
    """What a file of this machine would be in the store; its bytes at `copy` if one is wanted.

    Without a copy the manifest means the file where it is.
    """
    path = places.expanded(file)
    if not path.is_file():
        raise NotFoundError(text("hub.no_such_file", path=path))
    _refuse_split(path.name)
    arrival.check_gguf(path, str(path))
    signature = signatures.wanted_beside(path)
    path = path.resolve()
    mtime_ns = path.stat().st_mtime_ns
    sha256, size = read_through(path, copy, progress)
    if signature is not None:
        signature.check_file(copy or path)
    return Manifest(
        name=name or file_name(path),
        file=path.name if is_file_name(path.name) else "model.gguf",
        sha256=sha256,
        size=size,
        source=f"file:{path}",
        licence=None,
        pulled=arrival.now(),
        place=None if copy else Place(path=os.fspath(path), mtime_ns=mtime_ns),
    )


def read_through(path: Path, copy: Path | None, progress: Progress | None) -> tuple[str, int]:
    """The sha256 and size of a file, and a 0600 copy of it on the way if one is wanted."""
    total, done = path.stat().st_size, 0
    digest = hashlib.sha256()
    if copy is not None:
        need_space(copy.parent, total)
    with path.open("rb") as source:
        try:
            fd = None if copy is None else os.open(copy, _NEW, 0o600)
            with Path(os.devnull).open("wb") if fd is None else os.fdopen(fd, "wb") as target:
                while block := source.read(BLOCK):
                    target.write(block)
                    digest.update(block)
                    done += len(block)
                    if progress is not None:
                        event = Transfer(phase="check", name=path.name, done=done, total=total)
                        progress(event)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise disk_trouble(error, copy or path) from error
    return digest.hexdigest(), done


_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)


def file_name(path: Path) -> str:
    """What a file is called in the store: its stem, and as tag the quantization it ends with."""
    stem = path.name[: -len(".gguf")] if path.name.lower().endswith(".gguf") else path.name
    quant = quant_of(f"{stem}.gguf")
    base = re.sub(rf"[-_.]{re.escape(quant)}$", "", stem, flags=re.IGNORECASE) if quant else stem
    if not is_safe_segment(base):
        raise ConfigError(text("hub.needs_name", path=path))
    return f"{base}:{quant or DEFAULT_TAG}"


def _refuse_split(name: str) -> None:
    if _SPLIT.search(name):
        raise UnsupportedError(text("hub.split_local", file=name))
