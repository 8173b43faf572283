"""The models on this machine: files by the sha256 of their bytes, and manifests by name.

    models/
      blobs/sha256-<hex>            a whole, verified file; never changed once there
      manifests/<name>/<tag>.json   which blob a name means, and where it came from
      partial/                      transfers under way (download.py)

Invariants: a blob is complete and has the digest it is named after; a manifest is written after
its blob and removed before it; a blob goes when the last manifest that names it goes. Changes
happen under one lock across processes. Names are checked by names.py before they touch a path.
"""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from insula.errors import FormatError, NotFoundError, ResourceError
from insula.hub import places
from insula.hub.names import StoreName, parse_store_name
from insula.locale import text
from insula.security.lock import locked

SCHEMA = 1
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What one name means. `size` in bytes, `pulled` is UTC as ISO 8601 writes it."""

    name: str
    file: str
    sha256: str
    size: int
    source: str
    licence: str | None
    pulled: str


@dataclass(frozen=True, kw_only=True)
class Removed:
    """A manifest that is gone, and the bytes that went with it (0 while the blob is shared)."""

    manifest: Manifest
    freed: int


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """Files that nothing named, and their bytes."""

    files: int
    freed: int


def _read_manifest(path: Path) -> Manifest:
    fault = FormatError(text("hub.bad_manifest", path=path))
    try:
        raw = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise fault from None
    if not isinstance(raw, dict) or raw.pop("schema", None) != SCHEMA:
        raise fault
    kinds: dict[str, tuple[type, ...]] = {
        **dict.fromkeys(("name", "file", "sha256", "source", "pulled"), (str,)),
        "size": (int,),
        "licence": (str, type(None)),
    }
    if raw.keys() != kinds.keys() or not all(isinstance(raw[k], kinds[k]) for k in kinds):
        raise fault
    if _HEX.fullmatch(raw["sha256"]) is None or raw["size"] < 0:
        raise fault
    return Manifest(**raw)


class ModelStore:
    """The store under `root`, by default INSULA_HOME/models. Reading creates nothing."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = places.home() / "models" if root is None else root
        self.blobs = self.root / "blobs"
        self.manifests = self.root / "manifests"
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
        if _HEX.fullmatch(sha256) is None:
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
        """The manifest that `name` means; without a tag, the only one under that name.

        Raises ConfigError for an unsafe name and FormatError for a broken manifest.
        """
        wanted = parse_store_name(name)
        if wanted.tag is not None:
            try:
                return _read_manifest(self.manifest_path(wanted))
            except (FileNotFoundError, NotADirectoryError):
                return self._get_any_case(str(wanted))
        found = list(self.manifests.joinpath(*wanted.parts).glob("*.json"))
        return _read_manifest(found[0]) if len(found) == 1 else None

    def _get_any_case(self, name: str) -> Manifest | None:
        # Quantization names are written in both cases; q4_k_m finds Q4_K_M.
        same = [m for m in self.scan()[0] if m.name.lower() == name.lower()]
        return same[0] if len(same) == 1 else None

    def path(self, manifest: Manifest) -> Path:
        """The file itself. Raises NotFoundError if it is gone or has lost bytes."""
        if not self.has_blob(manifest.sha256, manifest.size):
            raise NotFoundError(text("hub.blob_gone", name=manifest.name))
        return self.blob_path(manifest.sha256)

    def add(self, manifest: Manifest, file: Path | None = None) -> Path:
        """Take the verified `file` (moved, not copied) as the blob, then write the manifest.

        Without `file` the blob must be there already. Returns the blob's path.
        """
        blob = self.blob_path(manifest.sha256)
        name = parse_store_name(manifest.name)
        self.prepare()
        with locked(self.root / ".lock"):
            if file is not None:
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
                file.chmod(0o600)
                file.replace(blob)
            elif not self.has_blob(manifest.sha256, manifest.size):
                raise NotFoundError(text("hub.blob_gone", name=manifest.name))
            document = {"schema": SCHEMA, **asdict(manifest)}
            encoded = json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n"
            places.write_private(self.manifest_path(name), encoded)
        return blob

    def remove(self, name: str) -> Removed:
        """Forget `name`, and its blob if no other name means it. NotFoundError if not there."""
        manifest = self.get(name)
        if manifest is None:
            raise NotFoundError(text("hub.not_in_store", name=name))
        path = self.manifest_path(parse_store_name(manifest.name))
        with locked(self.root / ".lock"):
            path.unlink(missing_ok=True)
            for folder in path.parents:
                if folder == self.manifests:
                    break
                with suppress(OSError):  # not empty: other tags live there
                    folder.rmdir()
            others, faults = self.scan()
            shared = any(other.sha256 == manifest.sha256 for other in others)
            # An unreadable manifest may mean this blob too: keep it.
            if shared or faults or not self.has_blob(manifest.sha256):
                return Removed(manifest=manifest, freed=0)
            try:
                self.blob_path(manifest.sha256).unlink()
            except PermissionError as error:  # Windows, while a model is loaded
                raise ResourceError(text("hub.blob_in_use", name=name)) from error
        return Removed(manifest=manifest, freed=manifest.size)

    def prune(self) -> Pruned:
        """Remove blobs that no manifest names and transfers that nobody is making."""
        files = freed = 0
        if not self.root.is_dir():
            return Pruned(files=0, freed=0)
        with locked(self.root / ".lock"):
            manifests, faults = self.scan()
            kept = {self.blob_path(manifest.sha256).name for manifest in manifests}
            blobs = [] if faults else [b for b in self.blobs.glob("*") if b.name not in kept]
            busy = {path.stem for path in self.partial.glob("*.lock")}
            parts = [p for p in self.partial.glob("*") if p.name.split(".")[0] not in busy]
            for path in (*blobs, *parts):
                with suppress(OSError):
                    size = path.stat().st_size
                    path.unlink()
                    files, freed = files + 1, freed + size
        return Pruned(files=files, freed=freed)
