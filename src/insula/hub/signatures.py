"""Whether a file carries the signature that its source must carry.

Signatures are minisign's (https://jedisct1.github.io/minisign): `<file>.minisig` beside the file,
made with `minisign -Sm <file>`; Ed25519 over the BLAKE2b-512 of the bytes. Who must sign what is
in INSULA_TRUSTED_KEYS, else in INSULA_HOME/trusted_keys: per line a public key and the beginning of
the sources that it stands for, or * for all.

    RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3  https://models.example.org/

A source is an address, hf.co/owner/repo/file, ollama.com/namespace/model:tag, pypi:project==version
or file:/path. One that no line covers needs no signature; one that a line covers is refused without
a right one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from insula.config import settings
from insula.errors import ChecksumError, ConfigError, DownloadError, NotFoundError
from insula.hub import places
from insula.hub.remote_file import BLOCK
from insula.hub.transport import Progress, Transport
from insula.locale import text
from insula.security.ed25519 import verify
from insula.security.small_file import NotRegularError, TooLongError, read_small

SUFFIX = ".minisig"
MAX_BYTES = 64 << 10
_KEY, _PREHASHED, _LEGACY = b"Ed", b"ED", b"Ed"


@dataclass(frozen=True, kw_only=True)
class TrustedKey:
    """A public key and the beginning of the sources that it stands for."""

    key_id: bytes
    key: bytes
    prefix: str

    def covers(self, source: str) -> bool:
        return self.prefix == "*" or source.startswith(self.prefix)


@dataclass(frozen=True, kw_only=True)
class Signature:
    """What a .minisig file says, and the keys that may have made it."""

    source: str
    key_id: bytes
    signature: bytes
    comment: bytes
    over_comment: bytes
    keys: tuple[TrustedKey, ...]

    def check_file(self, path: Path) -> None:
        """Raise ChecksumError unless one of the keys signed these bytes."""
        digest = hashlib.blake2b()
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
        for key in self.keys:
            if (
                key.key_id == self.key_id
                and verify(key.key, digest.digest(), self.signature)
                and verify(key.key, self.signature + self.comment, self.over_comment)
            ):
                return
        raise ChecksumError(text("hub.bad_signature", name=self.source))


def trusted_keys() -> list[TrustedKey]:
    """The configured keys; none where there is no such file. ConfigError names a bad line."""
    asked = settings().trusted_keys
    path = asked or places.home() / "trusted_keys"
    try:
        lines = read_small(path, MAX_BYTES).decode().splitlines()
    except FileNotFoundError:
        if asked is not None:  # a person who asked for signatures must get them
            raise ConfigError(text("hub.no_trusted_keys", path=path)) from None
        return []
    except (NotRegularError, TooLongError, UnicodeDecodeError):
        raise ConfigError(text("hub.bad_trusted_keys", path=path, line=1)) from None
    keys = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            encoded, prefix = line.split()
            raw = base64.b64decode(encoded, validate=True)
        except (ValueError, binascii.Error):
            raw, prefix = b"", ""
        if len(raw) != 42 or raw[:2] != _KEY:
            raise ConfigError(text("hub.bad_trusted_keys", path=path, line=number))
        keys.append(TrustedKey(key_id=raw[2:10], key=raw[10:], prefix=prefix))
    return keys


def needed(source: str) -> tuple[TrustedKey, ...]:
    """The keys of which one must have signed what comes from `source`."""
    return tuple(key for key in trusted_keys() if key.covers(_canonical(source)))


def refuse_unsignable(source: str) -> None:
    """Raise ChecksumError if a key covers a source that has no place for signatures."""
    if needed(source):
        raise ChecksumError(text("hub.no_signature", name=source))


def wanted(
    transport: Transport, url: str, progress: Progress | None, *, source: str | None = None
) -> Signature | None:
    """The signature beside `url`, None where none is needed. ChecksumError if it is missing."""
    source = source or url
    keys = needed(source)
    if not keys:
        return None
    parts = urlsplit(url)
    beside = urlunsplit(parts._replace(path=parts.path + SUFFIX))
    try:
        data, _ = transport.document(beside, progress=progress)
    except NotFoundError:
        raise ChecksumError(text("hub.no_signature", name=source)) from None
    return parse(data, source, keys)


def wanted_beside(path: Path) -> Signature | None:
    """The same for a file of this machine."""
    path = places.expanded(path)
    source = f"file:{path.absolute()}"
    keys = needed(source)
    if not keys:
        return None
    beside = Path(os.fspath(path) + SUFFIX)
    try:
        data = read_small(beside, MAX_BYTES)
    except OSError:
        raise ChecksumError(text("hub.no_signature", name=source)) from None
    return parse(data, source, keys)


def parse(data: bytes, source: str, keys: tuple[TrustedKey, ...]) -> Signature:
    """What a .minisig file says. Raises DownloadError if it is none, or of the legacy kind."""
    lines = data.split(b"\n")
    try:
        raw = base64.b64decode(lines[1].strip(), validate=True)
        over_comment = base64.b64decode(lines[3].strip(), validate=True)
        prefix, comment = b"trusted comment: ", lines[2].rstrip(b"\r")
        whole = len(raw) == 74 and len(over_comment) == 64 and comment.startswith(prefix)
        if not whole or raw[:2] not in (_PREHASHED, _LEGACY):
            raise ValueError
    except (ValueError, IndexError, binascii.Error):
        raise DownloadError(text("hub.not_minisig", name=source)) from None
    if raw[:2] != _PREHASHED:
        raise DownloadError(text("hub.legacy_minisig", name=source))
    return Signature(
        source=source,
        key_id=raw[2:10],
        signature=raw[10:],
        comment=comment[len(prefix) :],
        over_comment=over_comment,
        keys=keys,
    )


def _canonical(source: str) -> str:
    """Scheme and host in lower case, as keys are written."""
    if not source.lower().startswith(("http://", "https://")):
        return source
    parts = urlsplit(source)
    return urlunsplit(parts._replace(scheme=parts.scheme.lower(), netloc=parts.netloc.lower()))
