"""A GGUF file into the store: from an address, or from this machine.

A file of this machine is copied, or named where it lies (`in_place`): then the store holds its
digest, size and time, and refuses it once they differ. Of a split model all parts are copied,
whichever is named; an address is of one file, so that a part there is refused.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from insula.errors import ConfigError, NotFoundError, UnsupportedError
from insula.formats.gguf import GGUFFile
from insula.hub import arrival, lockfile, places, signatures
from insula.hub.download import fetch, transfer
from insula.hub.huggingface import quant_of
from insula.hub.manifest import Layer, Manifest, Place, is_file_name
from insula.hub.names import DEFAULT_TAG, UrlRef, is_safe_segment
from insula.hub.remote_file import BLOCK, Remote, disk_trouble, need_space
from insula.hub.store import ModelStore
from insula.hub.transport import Progress, Retry, Transfer, Transport, shown
from insula.locale import text

_SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)
_NUMBER = re.compile(r"-\d{5}-of-\d{5}$")


def pull_url(
    ref: UrlRef, store: ModelStore, progress: Progress | None, retry: Retry | None
) -> Manifest:
    """Fetch the file at an address. Raises as `pull.pull`."""
    if _SPLIT.search(ref.file):
        raise UnsupportedError(text("hub.split_address", file=ref.file))
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
                arrival.refuse_part(part, ref.file)
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
        taken = examine(file, name, None if in_place else folder / "copy", progress)
        manifest = taken.manifest
        lockfile.check(manifest)
        if not replacing:
            store.refuse_other(manifest)
        store.add(manifest, layers=taken.files)
    arrival.done(progress, manifest)
    return manifest


@dataclass(frozen=True, kw_only=True)
class Examined:
    """What a file of this machine would be in the store; the files that go there, by digest.

    `path` is where the model can be opened before that.
    """

    manifest: Manifest
    path: Path
    files: dict[str, Path] = field(default_factory=dict)


def examine(file: Path, name: str | None, copy: Path | None, progress: Progress | None) -> Examined:
    """Read a file of this machine through, with its bytes at `copy` if one is wanted; of a split
    model all parts. Without a copy the manifest means the file where it is.
    """
    path = places.expanded(file)
    if path.is_dir():
        raise UnsupportedError(text("hub.import_folder", path=path))
    if not path.is_file():
        raise NotFoundError(text("hub.no_such_file", path=path))
    arrival.check_gguf(path, str(path))
    paths = [path]
    if _SPLIT.search(path.name):
        with GGUFFile.open(path) as whole:
            paths = whole.paths
    else:
        arrival.refuse_part(path, path.name)
    if len(paths) > 1 and copy is None:
        raise UnsupportedError(text("hub.split_in_place", file=path.name))
    paths = [each.resolve() if len(paths) == 1 else each.absolute() for each in paths]
    mtime_ns = paths[0].stat().st_mtime_ns
    found: list[tuple[str, int]] = []
    files: dict[str, Path] = {}
    for number, each in enumerate(paths):
        beside = path if len(paths) == 1 else each
        signature = signatures.wanted_beside(beside)
        target = None if copy is None else copy.with_name(f"{copy.name}-{number}")
        sha256, size = read_through(each, target, progress)
        if signature is not None:
            signature.check_file(target or each)
        found.append((sha256, size))
        if target is not None:
            files[sha256] = target
    path = paths[0]
    manifest = Manifest(
        name=name or file_name(path),
        file=path.name if is_file_name(path.name) else "model.gguf",
        sha256=found[0][0],
        size=found[0][1],
        source=f"file:{path}",
        licence=None,
        pulled=arrival.now(),
        layers=tuple(Layer(kind="part", sha256=sha, size=size) for sha, size in found[1:]),
        place=None if copy else Place(path=os.fspath(path), mtime_ns=mtime_ns),
    )
    return Examined(manifest=manifest, path=path, files=files)


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
    stem = _NUMBER.sub("", stem)
    quant = quant_of(f"{stem}.gguf")
    base = re.sub(rf"[-_.]{re.escape(quant)}$", "", stem, flags=re.IGNORECASE) if quant else stem
    if not is_safe_segment(base):
        raise ConfigError(text("hub.needs_name", path=path))
    return f"{base}:{quant or DEFAULT_TAG}"
