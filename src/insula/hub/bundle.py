"""Models as one portable file: a manifest, then the blobs that it names.

A plain tar (POSIX ustar, sizes over 8 GiB as GNU tar writes them), so that any tar can list it:
manifest.json first, with the sha256 and size of every blob, then blobs/sha256-<hex>. Reading
takes nothing but that: regular files, of these names, in these sizes, each with its digest. So
there is no path to escape by, no link, no device and no size that was not announced; nothing is in
the store until all of it is right. Signatures are beside the bundle (signatures.py).
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import BinaryIO

from insula.errors import ChecksumError, ConfigError, FormatError, NotFoundError
from insula.hub import arrival, catalog, local, lockfile, parts, signatures
from insula.hub import manifest as documents
from insula.hub.manifest import Manifest
from insula.hub.names import parse_store_name
from insula.hub.remote_file import BLOCK, disk_trouble, need_space
from insula.hub.store import ModelStore
from insula.hub.transport import Progress, Transfer
from insula.locale import text

FORMAT, VERSION = "insula-bundle", 1
MANIFEST = "manifest.json"
MAX_MANIFEST = 16 << 20
MAX_MODELS = 1000
_SECTOR = 512


def export(
    names: list[str], target: Path, *, store: ModelStore, progress: Progress | None = None
) -> list[Manifest]:
    """Write the models `names` into the file `target`, whole or not at all.

    Raises NotFoundError, ChecksumError (a blob is damaged), ResourceError.
    """
    manifests: dict[str, Manifest] = {}
    files: dict[str, tuple[Path, int]] = {}
    for name in names:
        held = store.get(name)
        if held is None:
            raise NotFoundError(text("hub.not_in_store", name=name[:120]))
        path = store.path(held)
        if held.place is not None:
            files[held.sha256] = (path, held.size)
        held = replace(held, place=None)
        for sha256, size in held.blobs.items():
            if sha256 not in files:
                if not store.has_blob(sha256, size):
                    raise NotFoundError(text("hub.blob_gone", name=held.name))
                files[sha256] = (store.blob_path(sha256), size)
        manifests[held.name] = held
    document = {
        "format": FORMAT,
        "version": VERSION,
        "blobs": {sha256: size for sha256, (_, size) in files.items()},
        "models": [{"schema": documents.SCHEMA, **asdict(m)} for m in manifests.values()],
    }
    for path, _ in files.values():
        if target.exists() and target.samefile(path):
            raise ConfigError(text("cli.target_is_input", path=target))
    head = json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n"
    need_space(target.parent, sum(size for _, size in files.values()))
    try:
        fd, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:40]}.")
        part = Path(name)
        try:
            with os.fdopen(fd, "wb") as file:
                with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as archive:
                    archive.addfile(_entry(MANIFEST, len(head)), io.BytesIO(head))
                    for sha256, (path, size) in files.items():
                        with path.open("rb") as blob:
                            reader = _Hashing(blob, path.name, size, progress)
                            entry = _entry(f"blobs/sha256-{sha256}", size)
                            archive.addfile(entry, reader)  # type: ignore[arg-type]
                        _same(reader.digest.hexdigest(), sha256, path.name)
                file.flush()
                os.fsync(file.fileno())
            part.replace(target)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    except BrokenPipeError:
        raise
    except OSError as error:
        raise disk_trouble(error, target) from error
    return list(manifests.values())


def _entry(name: str, size: int) -> tarfile.TarInfo:
    """The same for the same content: no time, no owner."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, 0o600
    return entry


class _Hashing:
    """A file that is being read through its digest."""

    def __init__(self, file: BinaryIO, name: str, size: int, progress: Progress | None) -> None:
        self.digest = hashlib.sha256()
        self._file, self._name, self._size = file, name, size
        self._done, self._progress = 0, progress

    def read(self, count: int) -> bytes:
        data = self._file.read(count)
        self.digest.update(data)
        self._done += len(data)
        if self._progress is not None:
            self._progress(
                Transfer(phase="check", name=self._name, done=self._done, total=self._size)
            )
        return data


def is_bundle(path: Path) -> bool:
    """Whether a file begins as a bundle does."""
    try:
        with path.open("rb") as file:
            return file.read(100).rstrip(b"\0") == MANIFEST.encode()
    except OSError:
        return False


def take(
    path: Path, *, store: ModelStore, progress: Progress | None = None, replacing: bool = False
) -> list[Manifest]:
    """Put the models of a bundle into the store. All of its bytes are checked first.

    All of them come in, or none. Raises FormatError, ChecksumError, ConfigError (a name means
    something else here, unless `replacing`, or cannot stand beside another), ResourceError.
    """
    signature = signatures.wanted_beside(path)
    if signature is not None:
        signature.check_file(path)
    with path.open("rb") as file, store.workplace() as folder:
        entries = _entries(file)
        name, size = next(entries, ("", 0))
        if name != MANIFEST or size > MAX_MANIFEST:
            raise _broken(path, "manifest.json")
        manifests, blobs = _read_head(path, file.read(size))
        for manifest in manifests:
            lockfile.check(manifest)
            if not replacing:
                store.refuse_other(manifest)
        store.refuse_crossing([manifest.name for manifest in manifests])
        need_space(folder, sum(blobs.values()))
        files: dict[str, Path] = {}
        for name, size in entries:
            sha256 = name.removeprefix("blobs/sha256-")
            if not name.startswith("blobs/sha256-") or blobs.get(sha256) != size:
                raise _broken(path, name)
            if sha256 in files:
                raise _broken(path, name)
            files[sha256] = folder / sha256
            _unpack(file, size, files[sha256], sha256, progress)
        if files.keys() != blobs.keys():
            raise _broken(path, "blobs")
        for manifest in manifests:
            arrival.check_gguf(files[manifest.sha256], manifest.name)
            if len(manifest.parts) > 1:
                parts.check(folder / "parts", [files[sha256] for sha256, _ in manifest.parts])
            else:
                arrival.refuse_part(files[manifest.sha256], manifest.name)
        added = [replace(m, source=f"bundle:{path.name} ({m.source})"[:500]) for m in manifests]
        store.add_all(added, files)
    for manifest in added:
        arrival.done(progress, manifest)
    return added


def _entries(file: BinaryIO) -> Iterator[tuple[str, int]]:
    """(name, size) of each member; the caller reads its bytes before asking for the next.

    Only what `export` writes is taken: plain headers of regular files, no extensions.
    """
    while True:
        start = file.tell()
        header = file.read(_SECTOR)
        if header == bytes(_SECTOR):
            return
        try:
            if len(header) < _SECTOR:
                raise ValueError("cut short")
            entry = tarfile.TarInfo.frombuf(header, "ascii", "strict")
            if entry.type != tarfile.REGTYPE or header[345:500].strip(b"\0"):
                raise ValueError("not a regular file")
            if entry.size < 0:
                raise ValueError("size")
        except (ValueError, tarfile.TarError):
            raise FormatError(text("hub.bad_bundle_entry"), offset=start) from None
        yield entry.name, entry.size
        file.seek(start + _SECTOR + -(-entry.size // _SECTOR) * _SECTOR)


def _read_head(path: Path, data: bytes) -> tuple[list[Manifest], dict[str, int]]:
    """The manifests and sizes of all blobs, each of which some manifest needs."""
    try:
        raw = json.loads(data)
        if raw["format"] != FORMAT or raw["version"] != VERSION or not raw["models"]:
            raise ValueError
        if len(raw["models"]) > MAX_MODELS:
            raise ValueError
        manifests = [documents.from_plain(model) for model in raw["models"]]
        blobs = {sha: size for manifest in manifests for sha, size in manifest.blobs.items()}
        if blobs != raw["blobs"] or any(m.place is not None for m in manifests):
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _broken(path, MANIFEST) from None
    for manifest in manifests:
        entry = catalog.find(manifest.name)
        # What the catalogue's names mean is in the program, and other programs' are theirs.
        forged = entry is not None and entry.sha256 != manifest.sha256
        name = parse_store_name(manifest.name)
        if forged or name.tag is None or name.parts[0].lower() in local.PROGRAMS:
            raise _broken(path, manifest.name)
    return manifests, blobs


def _unpack(
    file: BinaryIO, size: int, target: Path, sha256: str, progress: Progress | None
) -> None:
    digest, done = hashlib.sha256(), 0
    try:
        with target.open("xb") as out:
            while done < size and (block := file.read(min(BLOCK, size - done))):
                out.write(block)
                digest.update(block)
                done += len(block)
                if progress is not None:
                    progress(Transfer(phase="unpack", name=target.name, done=done, total=size))
    except BrokenPipeError:
        raise
    except OSError as error:
        raise disk_trouble(error, target) from error
    _same(digest.hexdigest(), sha256, target.name)


def _same(found: str, expected: str, name: str) -> None:
    if found != expected:
        raise ChecksumError(text("hub.damaged", name=name, expected=expected, found=found))


def _broken(path: Path, what: str) -> FormatError:
    return FormatError(text("hub.bad_bundle", path=path, what=what[:120]))
