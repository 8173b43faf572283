"""insula.lock: names pinned to digests, so that a project runs what it was tested with.

The file is INSULA_LOCK, else insula.lock in the folder where a command is run. A pinned name that
means something else now, here or on a hub, is a ChecksumError: reported, never used, and nothing
is fetched for it. The digest is that of everything that decides an answer (Manifest.digest), so a
changed system prompt counts as well as changed weights. Names that are not pinned pass.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from insula.config import settings
from insula.errors import ChecksumError, FormatError, NotFoundError, ResourceError
from insula.hub import places
from insula.hub.manifest import Manifest, is_sha256
from insula.hub.store import ModelStore
from insula.locale import text
from insula.security.small_file import NotRegularError, TooLongError, read_small

FORMAT, VERSION = "insula-lock", 1
FILE = "insula.lock"
MAX_BYTES = 4 << 20

State = Literal["same", "changed", "missing"]


@dataclass(frozen=True, kw_only=True)
class Pin:
    """One pinned name. `digest` is the manifest's, `sha256` and `size` those of the weights."""

    name: str
    digest: str
    sha256: str
    size: int
    source: str


def path() -> Path:
    """Where the lock file is, or would be."""
    return settings().lock_file or Path.cwd() / FILE


def read() -> dict[str, Pin]:
    """The pins by name; none where there is no file. FormatError for one that is broken."""
    try:
        where = path()
    except FileNotFoundError:  # the folder that we are in is gone
        return {}
    try:
        raw = json.loads(read_small(where, MAX_BYTES))
        if raw["format"] != FORMAT or raw["version"] != VERSION:
            raise ValueError
        return {name: _pin(name, row) for name, row in raw["models"].items()}
    except FileNotFoundError:
        return {}
    except (NotRegularError, TooLongError, ValueError, KeyError, TypeError, AttributeError):
        raise FormatError(text("hub.bad_lock", path=where)) from None
    except RecursionError:
        raise FormatError(text("hub.bad_lock", path=where)) from None


def _pin(name: str, row: Any) -> Pin:
    pin = Pin(name=name, **row)
    kinds = (type(row["source"]), type(row["size"])) == (str, int)
    if not kinds or not is_sha256(pin.digest) or not is_sha256(pin.sha256):
        raise ValueError
    return pin


def check(manifest: Manifest) -> None:
    """Raise ChecksumError if the lock file pins this name to something else."""
    pin = read().get(manifest.name)
    if pin is None or pin.digest == manifest.digest:
        return
    key = "hub.locked_bytes" if pin.sha256 != manifest.sha256 else "hub.locked_settings"
    raise ChecksumError(
        text(
            key,
            name=manifest.name,
            path=path(),
            pinned=pin.sha256[:12],
            found=manifest.sha256[:12],
        )
    )


def write(store: ModelStore, names: list[str]) -> list[Pin]:
    """Pin `names` to what they mean in the store now, beside what is pinned already."""
    pins = read()
    added = []
    for name in names:
        manifest = store.get(name)
        if manifest is None:
            raise NotFoundError(text("hub.not_in_store", name=name[:120]))
        pin = Pin(
            name=manifest.name,
            digest=manifest.digest,
            sha256=manifest.sha256,
            size=manifest.model_size,
            source=manifest.source,
        )
        pins[pin.name] = pin
        added.append(pin)
    _write(pins)
    return added


def unpin(names: list[str]) -> None:
    """Forget pins. NotFoundError for a name that is not pinned."""
    pins = read()
    for name in names:
        if pins.pop(name, None) is None:
            raise NotFoundError(text("hub.not_pinned", name=name[:120], path=path()))
    _write(pins)


def compare(store: ModelStore) -> list[tuple[Pin, State]]:
    """Each pin, and whether the store has what it says."""
    found: list[tuple[Pin, State]] = []
    for pin in read().values():
        manifest = store.get(pin.name)
        if manifest is None or not store.is_whole(manifest):
            found.append((pin, "missing"))
        else:
            found.append((pin, "same" if manifest.digest == pin.digest else "changed"))
    return found


def _write(pins: dict[str, Pin]) -> None:
    rows = {name: {k: v for k, v in vars(pin).items() if k != "name"} for name, pin in pins.items()}
    document = {"format": FORMAT, "version": VERSION, "models": dict(sorted(rows.items()))}
    data = json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n"
    try:
        places.write_private(path(), data)
        path().chmod(0o644)  # it belongs into the project's repository, for all to read
    except OSError as error:
        reason = error.strerror or error
        raise ResourceError(text("hub.cannot_write", path=path(), reason=reason)) from error
