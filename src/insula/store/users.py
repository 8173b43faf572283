"""People who use the page, and their sessions.

Passwords come and go as hashes (security/passwords.py makes them). A session's token is 256 random
bits that only the cookie holds; stored is its SHA-256. A changed password or role, and a removed
user, end all of that user's sessions.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass

from insula.errors import ConfigError, NotFoundError
from insula.locale import text
from insula.store.database import Database, Row
from insula.store.keys import set_up

ROLES = ("user", "admin")
_NAME = re.compile(r"[\w.@+-]{1,64}")


@dataclass(frozen=True, kw_only=True)
class User:
    """One person. `created` in seconds since 1970."""

    id: str
    name: str
    role: str
    created: int


@dataclass(frozen=True, kw_only=True)
class Session:
    """A person who has signed in. `csrf` must come back in a header with what changes things."""

    user: User
    csrf: str
    expires: int


def add(store: Database, *, name: str, role: str, password_hash: str, now: float) -> User:
    """A new user. ConfigError for a name that is taken or not allowed."""
    check_name(name)
    if role not in ROLES:
        raise ConfigError(text("access.bad_role", found=role[:40], known=", ".join(ROLES)))
    with store.transaction():
        if store.row("SELECT 1 FROM users WHERE name = ?", (name,)) is not None:
            raise ConfigError(text("access.name_taken", name=name))
        set_up(store)
        store.run(
            "INSERT INTO users (id, name, role, password, created) VALUES (?, ?, ?, ?, ?)",
            (f"usr_{secrets.token_hex(8)}", name, role, password_hash, int(now)),
        )
        return get(store, name)


def check_name(name: str) -> None:
    """Raise ConfigError for what cannot be a user's name."""
    if not _NAME.fullmatch(name):
        raise ConfigError(text("access.bad_user_name", name=name[:40]))


def get(store: Database, name: str) -> User:
    """The user of this name or id."""
    row = store.row("SELECT id, name, role, created FROM users WHERE name = ?1 OR id = ?1", (name,))
    if row is None:
        raise NotFoundError(text("access.no_such_user", name=name[:80]))
    return _user(row)


def list_users(store: Database) -> list[User]:
    """All users by name."""
    return [_user(r) for r in store.rows("SELECT id, name, role, created FROM users ORDER BY name")]


def password_hash(store: Database, name: str) -> str | None:
    """The stored hash, None where there is no such user."""
    row = store.row("SELECT password FROM users WHERE name = ?", (name,))
    return None if row is None else str(row[0])


def set_password(store: Database, name: str, password_hash: str) -> User:
    """Change a password."""
    with store.transaction():
        user = get(store, name)
        store.run("UPDATE users SET password = ? WHERE id = ?", (password_hash, user.id))
        store.run("DELETE FROM sessions WHERE user = ?", (user.id,))
        return user


def remove(store: Database, name: str) -> User:
    """Forget a user."""
    with store.transaction():
        user = get(store, name)
        store.run("DELETE FROM users WHERE id = ?", (user.id,))
        return user


def sign_in(
    store: Database, name: str, *, old: str, fresh: str | None, now: float, seconds: int
) -> tuple[Session, str]:
    """A session for a user whose password was right, and its token.

    old: the hash that it was checked against; fresh: one with newer parameters to take its place.
    NotFoundError if the user or that hash is not there any more.
    """
    token, csrf = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
    expires = int(now) + seconds
    with store.transaction():
        user = get(store, name)
        if password_hash(store, name) != old:
            raise NotFoundError(text("access.no_such_user", name=name[:80]))
        if fresh is not None:
            store.run("UPDATE users SET password = ? WHERE id = ?", (fresh, user.id))
        store.run("DELETE FROM sessions WHERE expires <= ?", (int(now),))
        store.run(
            "INSERT INTO sessions (hash, user, csrf, created, expires) VALUES (?, ?, ?, ?, ?)",
            (_digest(token), user.id, csrf, int(now), expires),
        )
    return Session(user=user, csrf=csrf, expires=expires), token


def find_session(store: Database, token: str, *, now: float) -> Session | None:
    """The session that a cookie's token opens, None if there is none or it has ended."""
    row = store.row(
        """SELECT u.id, u.name, u.role, u.created, s.csrf, s.expires
        FROM sessions s JOIN users u ON u.id = s.user WHERE s.hash = ? AND s.expires > ?""",
        (_digest(token), int(now)),
    )
    return None if row is None else Session(user=_user(row), csrf=row[4], expires=row[5])


def close_session(store: Database, token: str) -> None:
    """Sign out."""
    store.run("DELETE FROM sessions WHERE hash = ?", (_digest(token),))


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _user(row: Row) -> User:
    return User(id=row[0], name=row[1], role=row[2], created=row[3])
