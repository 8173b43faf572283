"""The models on this machine: files by the sha256 of their bytes, and manifests by name.

    models/
      blobs/sha256-<hex>            a whole, verified file; never changed once there
      manifests/<name>/<tag>.json   which blobs a name means, and where they came from (manifest.py)
      splits/<digest>/              second names for the blobs of a split model (parts.py)
      partial/                      transfers under way (download.py)

Invariants: a blob is complete and has the digest it is named after; a manifest is written after
its blobs and removed before them; a blob goes when the last manifest that names it goes. How many
do is counted from the manifests each time, so that no count can be wrong. Changes happen under one
lock across processes. Names are checked by names.py before they touch a path.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from insula.errors import ConfigError, FormatError, NotFoundError, ResourceError
from insula.hub import manifest as documents
from insula.hub import parts, places
from insula.hub.manifest import Manifest, is_sha256
from insula.hub.names import DEFAULT_TAG, StoreName, parse_store_name
from insula.locale import text
from insula.security.lock import locked
from insula.security.small_file import NotRegularError, TooLongError, read_small


@dataclass(frozen=True, kw_only=True)
class Removed:
    """A name that is gone, and the bytes that went with it (0 while all blobs are shared).

    `manifest` is None where what stood there could not be read; then its blobs are still here.
    """

    name: str
    manifest: Manifest | None
    freed: int


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """Files that nothing named, and their bytes."""

    files: int
    freed: int


def _read_manifest(path: Path) -> Manifest:
    try:
        return documents.decode(read_small(path, documents.MAX_BYTES))
    except (ValueError, NotRegularError, TooLongError):
        raise FormatError(text("hub.bad_manifest", path=path)) from None


class ModelStore:
    """The store under `root`, by default INSULA_HOME/models. Reading creates nothing."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = places.home() / "models" if root is None else root
        self.blobs = self.root / "blobs"
        self.manifests = self.root / "manifests"
        self.splits = self.root / "splits"
        self.partial = self.root / "partial"

    def prepare(self) -> None:
        """Make the folders. Raises ResourceError where that is not possible."""
        for folder in (self.root, self.blobs, self.manifests, self.partial):
            places.private_folder(folder)

    def manifest_path(self, name: StoreName) -> Path:
        if name.tag is None:
            raise ValueError(f"{name} has no tag")
        return self.manifests.joinpath(*name.parts) / f"{name.tag}.json"

    def blob_path(self, sha256: str) -> Path:
        if not is_sha256(sha256):
            raise ValueError(f"not a sha256: {sha256!r}")
        return self.blobs / f"sha256-{sha256}"

    def has_blob(self, sha256: str, size: int | None = None) -> bool:
        """Whether the blob is there (and has `size` bytes; one that lost some is not)."""
        try:
            found = self.blob_path(sha256).stat().st_size
        except FileNotFoundError:
            return False
        return size is None or found == size

    def scan(self) -> tuple[list[Manifest], list[FormatError]]:
        """All manifests by name, and a fault for each file there that is not one."""
        manifests: list[Manifest] = []
        faults: list[FormatError] = []
        for path in sorted(self.manifests.rglob("*.json")):
            try:
                manifests.append(_read_manifest(path))
            except FormatError as fault:
                faults.append(fault)
            except FileNotFoundError:  # removed by another process since
                continue
        manifests.sort(key=lambda manifest: manifest.name.lower())
        return manifests, faults

    def get(self, name: str) -> Manifest | None:
        """The manifest that `name` means; without a tag, the only one there is, else `latest`.

        Raises ConfigError for an unsafe name and FormatError for a broken manifest.
        """
        wanted = parse_store_name(name)
        if wanted.tag is not None:
            try:
                return _read_manifest(self.manifest_path(wanted))
            except (FileNotFoundError, NotADirectoryError):
                return self._get_any_case(str(wanted))
        folder = self.manifests.joinpath(*wanted.parts)
        found = list(folder.glob("*.json"))
        if len(found) > 1:
            found = [path for path in found if path.name == f"{DEFAULT_TAG}.json"]
        return _read_manifest(found[0]) if found else None

    def _get_any_case(self, name: str) -> Manifest | None:
        # Quantization names are written in both cases; q4_k_m finds Q4_K_M.
        same = [m for m in self.scan()[0] if m.name.lower() == name.lower()]
        return same[0] if len(same) == 1 else None

    @contextmanager
    def workplace(self) -> Iterator[Path]:
        """A folder on the store's disk for the length of the block.

        What a killed process leaves of it, prune takes.
        """
        self.prepare()
        folder = self.partial / f"work-{secrets.token_hex(8)}"
        with locked(folder.with_suffix(".lock")):
            try:
                yield places.private_folder(folder)
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def references(self) -> Counter[str]:
        """How many names need each blob, by its sha256."""
        return Counter(sha256 for manifest in self.scan()[0] for sha256 in manifest.blobs)

    def is_whole(self, manifest: Manifest) -> bool:
        """Whether every byte that the name needs is here."""
        own = manifest.place is None or _in_place(manifest)
        return own and all(self.has_blob(sha, size) for sha, size in manifest.blobs.items())

    def path(self, manifest: Manifest) -> Path:
        """The file itself, of a split model the first, with the others beside it.

        Raises NotFoundError if it is gone, has lost bytes or was changed.
        """
        if manifest.place is not None:
            if not _in_place(manifest):
                place = manifest.place.path
                raise NotFoundError(text("hub.place_changed", name=manifest.name, path=place))
            return Path(manifest.place.path)
        if not all(self.has_blob(sha256, size) for sha256, size in manifest.parts):
            raise NotFoundError(text("hub.blob_gone", name=manifest.name))
        if len(manifest.parts) > 1:
            return parts.linked(
                self._split_folder(manifest), [self.blob_path(sha) for sha, _ in manifest.parts]
            )
        return self.blob_path(manifest.sha256)

    def _split_folder(self, manifest: Manifest) -> Path:
        return self.splits / parts.key(sha256 for sha256, _ in manifest.parts)

    def add(
        self,
        manifest: Manifest,
        file: Path | None = None,
        *,
        layers: Mapping[str, Path] | None = None,
    ) -> Path:
        """Take verified files (moved, not copied) as blobs, then write the manifest.

        `file` has the manifest's sha256; `layers` are others by theirs. What is not given must be
        there already. Returns the model's path.
        """
        given = dict(layers or {})
        if file is not None:
            given[manifest.sha256] = file
        self.add_all([manifest], given)
        return self.path(manifest)

    def add_all(self, manifests: Sequence[Manifest], files: Mapping[str, Path]) -> None:
        """Take verified files (moved) as blobs, then write the manifests: all of them, or none.

        Raises ConfigError for names that cannot stand beside each other, NotFoundError for a blob
        that is neither given nor here.
        """
        self.prepare()
        written: list[tuple[Path, bytes | None]] = []
        with locked(self.root / ".lock"):
            self.refuse_crossing([manifest.name for manifest in manifests])
            for sha256, path in files.items():
                with path.open("rb") as handle:
                    os.fsync(handle.fileno())
                path.chmod(0o600)
                path.replace(self.blob_path(sha256))
            for manifest in manifests:
                if not self.is_whole(manifest):
                    raise NotFoundError(text("hub.blob_gone", name=manifest.name))
            try:
                for manifest in manifests:
                    path = self.manifest_path(parse_store_name(manifest.name))
                    written.append((path, path.read_bytes() if path.is_file() else None))
                    places.write_private(path, documents.encode(manifest))
            except BaseException:
                for path, before in reversed(written):
                    with suppress(OSError):
                        if before is not None:
                            places.write_private(path, before)
                        else:
                            self._forget(path)
                raise

    def refuse_crossing(self, names: Sequence[str]) -> None:
        """Raise ConfigError for names of which two would be one file, or a file and a folder."""
        taken: dict[tuple[str, ...], str] = {}
        paths = [(name, self.manifest_path(parse_store_name(name))) for name in names]
        for name, path in paths:
            place = tuple(part.lower() for part in path.relative_to(self.manifests).parts)
            if place in taken:
                raise ConfigError(text("hub.names_cross", name=name, other=taken[place]))
            taken[place] = name
        for name, path in paths:
            place = tuple(part.lower() for part in path.relative_to(self.manifests).parts)
            for end in range(1, len(place)):
                folder = path.parents[len(place) - 1 - end]
                other = taken.get(place[:end])
                if other is not None or folder.is_file():
                    raise ConfigError(text("hub.names_cross", name=name, other=other or folder))
            if path.is_dir():
                raise ConfigError(text("hub.names_cross", name=name, other=path))

    def _forget(self, path: Path) -> None:
        """Remove a manifest, and the folders that are empty without it."""
        path.unlink(missing_ok=True)
        for folder in path.parents:
            if folder == self.manifests:
                break
            with suppress(OSError):  # not empty: other tags live there
                folder.rmdir()

    def copy(self, source: str, target: str, *, replacing: bool = False) -> Manifest:
        """Give what `source` means a second name; no byte is copied.

        Raises NotFoundError, and ConfigError if `target` means something else already.
        """
        held = self.get(source)
        if held is None:
            raise NotFoundError(text("hub.not_in_store", name=source))
        copied = replace(held, name=target)
        if not replacing:
            self.refuse_other(copied)
        self.add(copied)
        return copied

    def refuse_other(self, manifest: Manifest) -> None:
        """Raise ConfigError if the manifest's name means something else here."""
        held = self.get(manifest.name)
        if held is not None and held.digest != manifest.digest:
            raise ConfigError(text("hub.name_taken", name=manifest.name))

    def remove(self, name: str) -> Removed:
        """Forget `name`, and the blobs that no other name means. NotFoundError if not there.

        A name whose manifest cannot be read goes too; nobody knows then which blobs were its own.
        """
        damaged = self._damaged(name)
        manifest = self.get(name) if damaged is None else None
        if manifest is None and damaged is None:
            raise NotFoundError(text("hub.not_in_store", name=name))
        path = damaged or self.manifest_path(parse_store_name(manifest.name if manifest else name))
        freed = 0
        with locked(self.root / ".lock"):
            self._forget(path)
            others, faults = self.scan()
            shared = {sha256 for other in others for sha256 in other.blobs}
            # An unreadable manifest may mean these blobs too: keep them.
            unneeded = {} if faults or manifest is None else manifest.blobs
            self._sweep_splits(others)
            for sha256, size in unneeded.items():
                if sha256 in shared or not self.has_blob(sha256):
                    continue
                try:
                    self.blob_path(sha256).unlink()
                except PermissionError as error:  # Windows, while a model is loaded
                    raise ResourceError(text("hub.blob_in_use", name=name)) from error
                freed += size
        if manifest is not None:
            name = manifest.name
        return Removed(name=name, manifest=manifest, freed=freed)

    def _damaged(self, name: str) -> Path | None:
        """The manifest that `name` means, if it is there and cannot be read."""
        wanted = parse_store_name(name)
        folder = self.manifests.joinpath(*wanted.parts)
        found = [self.manifest_path(wanted)] if wanted.tag else list(folder.glob("*.json"))
        if len(found) > 1:
            found = [path for path in found if path.name == f"{DEFAULT_TAG}.json"]
        try:
            for path in found:
                if path.is_file():
                    _read_manifest(path)
        except FormatError:
            return found[0]
        except (FileNotFoundError, NotADirectoryError):
            pass
        return None

    def _sweep_splits(self, kept: Sequence[Manifest]) -> None:
        """Remove the folders of split models that none of these is: second names, no bytes."""
        named = {self._split_folder(m).name for m in kept if len(m.parts) > 1}
        for folder in self.splits.glob("*"):
            if folder.name not in named:
                shutil.rmtree(folder, ignore_errors=True)

    def prune(self, *, remove: bool = True) -> Pruned:
        """Remove blobs that no manifest names and transfers that nobody is making.

        Without `remove` only count them.
        """
        files = freed = 0
        if not self.root.is_dir():
            return Pruned(files=0, freed=0)
        with locked(self.root / ".lock"):
            manifests, faults = self.scan()
            kept = {self.blob_path(sha).name for manifest in manifests for sha in manifest.blobs}
            blobs = [] if faults else [b for b in self.blobs.glob("*") if b.name not in kept]
            busy = {path.stem for path in self.partial.glob("*.lock") if _is_held(path)}
            pieces = [
                part
                for top in self.partial.glob("*")
                if top.name.split(".")[0] not in busy
                for part in (top.rglob("*") if top.is_dir() and not top.is_symlink() else [top])
            ]
            if remove:
                self._sweep_splits(manifests)
            for path in (*blobs, *pieces):
                with suppress(OSError):
                    size = path.stat().st_size
                    if remove:
                        path.unlink()
                    files, freed = files + 1, freed + size
            for folder in self.partial.glob("*/"):
                if remove and folder.name not in busy:
                    shutil.rmtree(folder, ignore_errors=True)
        return Pruned(files=files, freed=freed)


def _is_held(lock: Path) -> bool:
    """Whether a process that lives holds the lock; one that was killed left only the file."""
    try:
        with locked(lock, wait=False):
            return False
    except BlockingIOError:
        return True


def _in_place(manifest: Manifest) -> bool:
    """Whether the person's own file is still what it was."""
    assert manifest.place is not None
    try:
        found = Path(manifest.place.path).stat()
    except OSError:
        return False
    return (found.st_size, found.st_mtime_ns) == (manifest.size, manifest.place.mtime_ns)
