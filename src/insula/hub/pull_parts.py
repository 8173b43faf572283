"""A split model of a Hugging Face hub into the store: all of its parts, as one name.

Each part is a transfer of its own, which goes on where it stopped. The name is there when all are
there, each with its digest and signature, and belong together (parts.check).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from insula.errors import ChecksumError, FormatError, NotFoundError
from insula.hub import arrival, lockfile, parts, signatures
from insula.hub.download import fetch, transfer
from insula.hub.huggingface import RepoFile, Repository
from insula.hub.manifest import MAX_PARTS, Layer, Manifest, is_file_name
from insula.hub.parallel import received
from insula.hub.remote_file import Remote, need_space
from insula.hub.signatures import Signature
from insula.hub.store import ModelStore
from insula.hub.transport import Progress, Transport
from insula.locale import text


def pull_parts(
    transport: Transport,
    repository: Repository,
    file: RepoFile,
    name: str,
    store: ModelStore,
    progress: Progress | None,
) -> Manifest:
    """Fetch the parts of `file` that are not here. Raises as `pull.pull`."""
    if len(file.parts) > MAX_PARTS:
        raise FormatError(text("hub.too_many_parts", file=file.path, most=MAX_PARTS))
    remotes = [repository.remote(part) for part in file.parts]
    signed = [
        signatures.wanted(
            transport, remote.url, progress, source=f"hf.co/{repository.repo_id}/{part.path}"
        )
        for part, remote in zip(file.parts, remotes, strict=True)
    ]

    def manifest_for(digests: Sequence[str]) -> Manifest:
        return Manifest(
            name=name,
            file=remotes[0].name if is_file_name(remotes[0].name) else "model.gguf",
            sha256=digests[0],
            size=file.parts[0].size,
            source=f"{repository.endpoint}/{repository.repo_id}@{repository.commit}:{file.path}",
            licence=repository.licence,
            pulled=arrival.now(),
            layers=tuple(
                Layer(kind="part", sha256=sha256, size=part.size)
                for sha256, part in zip(digests[1:], file.parts[1:], strict=True)
            ),
        )

    promised = [remote.sha256 for remote in remotes if remote.sha256 is not None]
    whole = len(promised) == len(remotes)
    if whole:
        for sha256, signature in zip(promised, signed, strict=True):
            if signature is not None and store.has_blob(sha256):
                signature.check_file(store.blob_path(sha256))
        if arrival.already(store, manifest_for(promised), progress):
            return manifest_for(promised)
    store.prepare()
    with ExitStack() as held:
        wanted = {remote.key: remote for remote in remotes if not _here(store, remote)}
        # Always in one order, so that two processes cannot wait for each other.
        paths = {
            key: held.enter_context(transfer(store.partial, wanted[key], progress))
            for key in sorted(wanted)
        }
        if whole and arrival.already(store, manifest_for(promised), progress):
            return manifest_for(promised)  # the process that we waited for brought it
        missing = sum(remote.size or 0 for remote in wanted.values())
        need_space(store.partial, missing - sum(received(path) for path in paths.values()))
        files, digests = list[Path](), list[str]()
        for remote in remotes:
            if remote.key not in paths:
                digests.append(str(remote.sha256))
                files.append(store.blob_path(digests[-1]))
                continue
            fetched = fetch(transport, remote, paths[remote.key], progress=progress)
            digests.append(fetched.sha256)
            files.append(fetched.path)
        manifest = manifest_for(digests)
        try:
            _accept(store, manifest, files, signed)
        except (ChecksumError, FormatError):
            for path in paths.values():
                path.unlink(missing_ok=True)
            raise
        new = dict(zip(digests, files, strict=True))
        kept = {sha: path for sha, path in new.items() if path != store.blob_path(sha)}
        store.add(manifest, layers=kept)
    arrival.done(progress, manifest)
    return manifest


def _here(store: ModelStore, remote: Remote) -> bool:
    return remote.sha256 is not None and store.has_blob(remote.sha256, remote.size)


def _accept(
    store: ModelStore,
    manifest: Manifest,
    files: Sequence[Path],
    signed: Sequence[Signature | None],
) -> None:
    """Raise unless the files are signed as they must be, what is pinned, and one model."""
    for path, signature in zip(files, signed, strict=True):
        if signature is not None:
            signature.check_file(path)
    lockfile.check(manifest)
    with store.workplace() as scratch:
        try:
            parts.check(scratch / "parts", files)
        except NotFoundError as error:  # a number of parts that the files contradict
            raise FormatError(str(error)) from None
