"""Whether a server may listen where it is told to: keys on a network, TLS files that match.

Refuses an address that others can reach while nobody needs a key, unless that was asked for by
name.
"""

from __future__ import annotations

import os
import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

from insula.errors import ConfigError
from insula.server.perimeter import is_loopback
from insula.server.settings import ServerSettings

#: A certificate that ends sooner is worth a word.
SOON = timedelta(days=14)


def is_open_without_keys(found: ServerSettings) -> bool:
    """What `Gate` is told: whether everybody is let in until there is a first key."""
    if found.auth == "required":
        return False
    return is_loopback(found.host) or found.allow_open


def check_exposure(found: ServerSettings, *, has_keys: bool) -> list[str]:
    """Warnings for whoever starts the server. Raises ConfigError for what must not be."""
    if is_loopback(found.host):
        return check_tls(found)
    if not has_keys and not found.allow_open:
        raise ConfigError(
            f"host: found {found.host!r}, which others can reach, and there is no key yet; make "
            "one with insula keys create NAME, or say --allow-open to serve everybody"
        )
    warnings = check_tls(found)
    if not has_keys:
        warnings.append(f"everybody who reaches {found.host} may use this server: there is no key")
    if found.tls_cert is None:
        warnings.append(
            f"{found.host} is served without TLS: keys and texts can be read on their way; "
            "set tls_cert and tls_key, or put a proxy with TLS before it"
        )
    return warnings


def check_tls(found: ServerSettings) -> list[str]:
    """Warnings about the certificate. Raises ConfigError for one that cannot be used."""
    cert, key = found.tls_cert, found.tls_key
    if cert is None or key is None:
        return []
    for name, path in (("tls_cert", cert), ("tls_key", key)):
        if not path.is_file() or not os.access(path, os.R_OK):
            raise ConfigError(f"{name}: {path} is no file that can be read")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # Never ask for a passphrase at a terminal that nobody watches.
        context.load_cert_chain(cert, key, password=lambda: "")
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or str(error)
        if reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(f"tls_key: {key} is not the key of {cert}") from None
        raise ConfigError(
            f"tls_cert: {cert} and {key} cannot be used ({reason}); allowed are PEM files, the key "
            "without a passphrase"
        ) from None
    return [*_loose_permissions(key), *_lifetime(cert)]


def _loose_permissions(key: Path) -> list[str]:
    if os.name != "posix":
        return []
    mode = stat.S_IMODE(key.stat().st_mode)
    if not mode & 0o077:
        return []
    return [f"{key} can be read by others (mode {mode:04o}); run: chmod 600 {key}"]


def _lifetime(cert: Path) -> list[str]:
    from cryptography import x509

    try:
        found = x509.load_pem_x509_certificate(cert.read_bytes())
    except ValueError:  # OpenSSL took it
        return []
    ends, now = found.not_valid_after_utc, datetime.now(UTC)
    if ends <= now:
        return [f"the certificate {cert} has expired on {ends:%Y-%m-%d}; clients will refuse it"]
    if ends - now < SOON:
        return [f"the certificate {cert} expires on {ends:%Y-%m-%d}"]
    return []
