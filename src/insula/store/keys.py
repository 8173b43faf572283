"""API keys: who may ask for what, for how much and until when.

A key is `sk-insula-` and 256 random bits. What is stored is its SHA-256, which suffices for a
secret that cannot be guessed; the key itself is handed out once, by `create` and `rotate`. Rows are
never deleted. `tenant` is whom a key stands for: a key made by rotation has the old one's, and so
its conversations, its cached prefixes and what it has spent.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
from dataclasses import dataclass
from typing import Literal

from insula.errors import ConfigError, NotFoundError
from insula.locale import text
from insula.store.database import Database, Row

PREFIX = "sk-insula-"
SCOPES = ("inference", "models", "admin")
LONGEST_NAME = 100

State = Literal["active", "expired", "revoked"]
_COLUMNS = (
    "id, hash, hint, name, tenant, scopes, models, requests_per_minute, tokens_per_minute, "
    "tokens_per_day, tokens_total, created, expires, revoked, replaced_by"
)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a tenant may use; None is no limit. Days are UTC's."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    tokens_total: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not 1 <= value < 1 << 53:
                raise ConfigError(text("access.bad_limit", name=name, value=value))


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key without its secret. models: None is all. Times in seconds since 1970."""

    id: str
    hint: str
    name: str
    tenant: str
    scopes: tuple[str, ...]
    models: tuple[str, ...] | None
    limits: Limits
    created: int
    expires: int | None
    revoked: int | None
    replaced_by: str | None

    def state(self, now: float) -> State:
        """Whether it opens anything."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= now else "active"


def create(
    store: Database,
    *,
    name: str,
    now: float,
    scopes: tuple[str, ...] = ("inference",),
    models: tuple[str, ...] | None = None,
    limits: Limits | None = None,
    expires: int | None = None,
) -> tuple[Key, str]:
    """A new key, and its secret, which nobody can ask for again."""
    unknown = [scope for scope in scopes if scope not in SCOPES]
    if unknown or not scopes:
        found = ", ".join(unknown) or "-"
        raise ConfigError(text("access.bad_scope", found=found[:80], known=", ".join(SCOPES)))
    if not name.strip() or len(name) > LONGEST_NAME or not name.isprintable():
        raise ConfigError(text("access.bad_name", name=name[:40], most=LONGEST_NAME))
    if expires is not None and expires <= now:
        raise ConfigError(text("access.expires_past"))
    key = Key(
        id=_fresh_id("key"),
        hint="",
        name=name,
        tenant=_fresh_id("ten"),
        scopes=tuple(scope for scope in SCOPES if scope in scopes),
        models=models,
        limits=limits or Limits(),
        created=int(now),
        expires=expires,
        revoked=None,
        replaced_by=None,
    )
    with store.transaction():
        return _insert(store, key)


def find(store: Database, secret: str) -> Key | None:
    """The key that `secret` is, whatever its state; None for no key of ours."""
    if not secret.startswith(PREFIX) or not secret.isascii():
        return None
    digest = hashlib.sha256(secret.encode()).digest()
    row = store.row(f"SELECT {_COLUMNS} FROM keys WHERE hash = ?", (digest,))  # noqa: S608
    if row is None or not hmac.compare_digest(bytes(row[1]), digest):
        return None
    return _key(row)


def get(store: Database, name: str) -> Key:
    """The key of this id, or the only one of this name that is active, else the only one."""
    rows = store.rows(
        f"SELECT {_COLUMNS} FROM keys WHERE id = ?1 OR name = ?1 ORDER BY revoked IS NOT NULL",  # noqa: S608
        (name,),
    )
    found = [_key(row) for row in rows]
    for key in found:
        if key.id == name:
            return key
    usable = [key for key in found if key.revoked is None and key.replaced_by is None]
    candidates = usable or found
    if not candidates:
        raise NotFoundError(text("access.no_such_key", name=name[:80]))
    if len(candidates) > 1:
        ids = ", ".join(key.id for key in candidates[:5])
        raise ConfigError(text("access.ambiguous_key", name=name[:80], ids=ids))
    return candidates[0]


def list_keys(store: Database) -> list[Key]:
    """All keys that ever were, the oldest first."""
    return [_key(row) for row in store.rows(f"SELECT {_COLUMNS} FROM keys ORDER BY created, id")]  # noqa: S608


def any_known(store: Database) -> bool:
    """Whether somebody ever set up access: made a key or a user, gone or not."""
    return store.row("SELECT 1 FROM meta WHERE name = 'access'") is not None


def set_up(store: Database) -> None:
    """From now on nobody is let in without a credential."""
    store.run("INSERT OR IGNORE INTO meta (name, value) VALUES ('access', x'01')")


def rotate(store: Database, name: str, *, grace: int, now: float) -> tuple[Key, Key, str]:
    """A new key of the same tenant, scopes and limits; the old one ends `grace` seconds from now.

    Returns the old one, the new one and its secret.
    """
    with store.transaction():
        old = get(store, name)
        if old.state(now) != "active" or old.replaced_by is not None:
            raise ConfigError(text("access.cannot_rotate", name=name[:80]))
        fresh = Key(
            **{
                **vars(old),
                "id": _fresh_id("key"),
                "created": int(now),
            }
        )
        new, secret = _insert(store, fresh)
        ends = int(now) + grace
        ends = ends if old.expires is None else min(ends, old.expires)
        store.run(
            "UPDATE keys SET expires = ?, replaced_by = ? WHERE id = ?", (ends, new.id, old.id)
        )
        return get(store, old.id), new, secret


def revoke(store: Database, name: str, *, now: float) -> Key:
    """End a key now. One that was revoked before stays as it is."""
    with store.transaction():
        key = get(store, name)
        store.run(
            "UPDATE keys SET revoked = ? WHERE id = ? AND revoked IS NULL", (int(now), key.id)
        )
        return get(store, key.id)


def _insert(store: Database, key: Key) -> tuple[Key, str]:
    secret = PREFIX + base64.urlsafe_b64encode(secrets.token_bytes(32)).decode().rstrip("=")
    limits = key.limits
    set_up(store)
    store.run(
        f"INSERT INTO keys ({_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,NULL,NULL)",  # noqa: S608
        (
            key.id,
            hashlib.sha256(secret.encode()).digest(),
            secret[-4:],
            key.name,
            key.tenant,
            " ".join(key.scopes),
            None if key.models is None else json.dumps(key.models),
            limits.requests_per_minute,
            limits.tokens_per_minute,
            limits.tokens_per_day,
            limits.tokens_total,
            key.created,
            key.expires,
        ),
    )
    return get(store, key.id), secret


def _key(row: Row) -> Key:
    return Key(
        id=row[0],
        hint=row[2],
        name=row[3],
        tenant=row[4],
        scopes=tuple(row[5].split()),
        models=None if row[6] is None else tuple(json.loads(row[6])),
        limits=Limits(
            requests_per_minute=row[7],
            tokens_per_minute=row[8],
            tokens_per_day=row[9],
            tokens_total=row[10],
        ),
        created=row[11],
        expires=row[12],
        revoked=row[13],
        replaced_by=row[14],
    )


def _fresh_id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(8)}"
